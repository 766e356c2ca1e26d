"""Layers in closed form: parametrizations, masks, nested inputs, repeated blocks; hyperparameters that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax


def noise(i, *shape):
    return jnp.asarray(np.random.default_rng(i).standard_normal(shape))


def test_standard_parametrization_trains_weights_and_biases_at_unit_rate(x64):
    """f = W x + b: the gradient is (x, 1), whatever W_std and b_std are; without bias it is x."""
    x = noise(0, 3, 5)
    for b_std, own in ((0.3, 1.0), (None, 0.0)):
        layer = stax.Dense(4, 1.7, b_std, parameterization="standard")
        np.testing.assert_allclose(layer.kernel_fn(x, None, "ntk"), x @ x.T + own, rtol=1e-12)


def test_layer_norm_over_pixels_does_not_count_hidden_ones(x64):
    x = noise(1, 2, 4, 3)
    kernel_fn = stax.serial(
        stax.Dense(4, 1.2, 0.3),
        stax.LayerNorm(axis=(1, 2)),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(1),
    ).kernel_fn
    padded = jnp.concatenate([x, jnp.full((2, 3, 3), 10.0)], 1)
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(
            kernel_fn(padded, None, get, mask_constant=10.0), kernel_fn(x, None, get), rtol=1e-10
        )


@pytest.mark.parametrize("n", [0, 4])
def test_repeat_draws_what_serial_draws(n):
    block = stax.serial(stax.Dense(4), stax.Relu(), stax.Dense(3))
    x, key = noise(2, 2, 3), jax.random.key(3)
    outputs = [
        net.apply_fn(net.init_fn(key, x.shape)[1], x)
        for net in (stax.repeat(block, n), stax.serial(*[block] * n))
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-5)


def test_nested_inputs(x64):
    a, b, c = (noise(i, 3, 4) for i in range(3))
    side = stax.parallel(stax.Dense(1, 1.1), stax.Dense(1, 0.7))
    k = stax.parallel(side, stax.Dense(1)).kernel_fn(((a, b), c), None, "ntk")
    np.testing.assert_allclose(k[0][0], 1.21 * a @ a.T / 4, rtol=1e-12)
    np.testing.assert_allclose(k[0][1], 0.49 * b @ b.T / 4, rtol=1e-12)
    np.testing.assert_allclose(k[1], c @ c.T / 4, rtol=1e-12)
    summed = stax.parallel(stax.serial(side, stax.FanInSum()), stax.Dense(1))
    k = stax.serial(summed, stax.FanInSum()).kernel_fn([[a, b], c], None, "nngp")
    np.testing.assert_allclose(k, (1.21 * a @ a.T + 0.49 * b @ b.T + c @ c.T) / 4, rtol=1e-12)


def test_networks_that_vanish_or_do_nothing(x64):
    x = noise(0, 3, 4)
    zero = stax.serial(stax.Dense(5), stax.ABRelu(0.0, 0.0), stax.Dense(1)).kernel_fn
    np.testing.assert_array_equal(zero(x, None, "nngp"), np.zeros((3, 3)))
    np.testing.assert_array_equal(zero(x, None, "ntk"), np.zeros((3, 3)))
    found = stax.serial().kernel_fn(x, None, ("nngp", "ntk"))
    np.testing.assert_allclose(found.nngp, x @ x.T / 4, rtol=1e-12)
    np.testing.assert_array_equal(found.ntk, np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stax.Dense("a"), "out_dim is 'a'"),
        (lambda: stax.Dense(-3), "out_dim is -3"),
        (lambda: stax.Dense(3, float("nan")), "W_std is nan"),
        (lambda: stax.Dense(3, 1.0, "b"), "b_std is 'b'"),
        (lambda: stax.Conv(0, (3,)), "out_chan is 0"),
        (lambda: stax.Conv(4, (0,)), "filter_shape is"),
        (lambda: stax.Conv(4, (2,), (0,)), "strides is"),
        (lambda: stax.AvgPool((2, 0)), "window_shape is"),
        (lambda: stax.LayerNorm(eps=float("inf")), "eps is inf"),
        (lambda: stax.GlobalSelfAttention(4, 4, 4, 0), "n_heads is 0"),
        (lambda: stax.GlobalSelfAttention(4, 4, 4, 2, W_out_std=float("nan")), "W_out_std"),
        (lambda: stax.FanOut(0), "num is 0"),
        (lambda: stax.repeat(stax.Relu(), 1.5), "n is 1.5"),
    ],
)
def test_bad_hyperparameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_of_another_network_are_refused():
    net = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(2))
    params = net.init_fn(jax.random.key(0), (-1, 4))[1]
    with pytest.raises(ValueError, match="serial has 3 layers, and params is of 1"):
        net.apply_fn(params[:1], noise(0, 5, 4))
