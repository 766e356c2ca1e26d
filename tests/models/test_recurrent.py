"""Recurrent networks: the textbook loop, kernels of infinite width, width axes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import limits
import models
import ntk
from models.initializers import low_rank
from models.recurrent import RNN

X = jax.random.normal(jax.random.key(0), (3, 4, 2))


@pytest.mark.parametrize("use_bias", [False, True])
def test_it_is_the_textbook_loop(use_bias):
    model = RNN(width=5, outputs=2, activation=jnp.tanh, use_bias=use_bias)
    params = jax.jit(model.init)(jax.random.key(1, impl="rbg"), X)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    assert set(params["recurrent"]) == {"kernel"}
    assert ("bias" in params["input"]) == ("bias" in params["readout"]) == use_bias
    found, features = model.apply({"params": params}, X, features=True)
    assert list(features) == ["input", "recurrent", "readout"]
    w = jax.tree.map(np.asarray, params)
    h = np.zeros((3, 5))
    for t in range(4):
        z = np.asarray(X[:, t]) @ w["input"]["kernel"] + w["input"].get("bias", 0)
        z = z + h @ w["recurrent"]["kernel"]
        h = np.tanh(z)
        out = h @ w["readout"]["kernel"] + w["readout"].get("bias", 0)
        np.testing.assert_allclose(features["recurrent"][:, t], z, rtol=2e-5)
        np.testing.assert_allclose(found[:, t], out, rtol=2e-5)
    np.testing.assert_array_equal(found, features["readout"])


def test_its_kernel_of_infinite_width_is_the_recursion_of_two_steps():
    """Identity activation: every step adds its inputs' products to the covariance of the readout."""

    def last(width):
        class Last(nn.Module):
            @nn.compact
            def __call__(self, x):
                net = RNN(width, 1, activation=lambda z: z, kernel_init=ONE, recurrent_init=ONE)
                return net(x)[:, -1]

        return Last()

    ONE = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    x = X[:, :2]
    found = ntk.infinite_width(last, x)(x, None, ("nngp", "ntk"))
    first, second = (np.asarray(x[:, t] @ x[:, t].T) / 2 for t in (0, 1))
    np.testing.assert_allclose(found.nngp, first + second, rtol=1e-5)
    # f = o (W U x_0 + U x_1): readout, U and W give K, K and the share of step 0
    np.testing.assert_allclose(found.ntk, 2 * (first + second) + first, rtol=1e-5)


def test_widths_grow_along_both_axes_of_the_recurrent_matrix():
    family = models.family("RNN", outputs=2)
    axes = ntk.width_axes(family, X)
    kernels = {name: axes[name]["kernel"] for name in ("input", "recurrent", "readout")}
    grown = {name: np.divide(a.shapes[-1], a.shapes[0]) > 1 for name, a in kernels.items()}
    assert {name: tuple(map(bool, g)) for name, g in grown.items()} == {
        "input": (False, True),
        "recurrent": (True, True),
        "readout": (True, False),
    }
    net = limits.parametrize(family, "mup", width=64, base_width=16, example=X)
    assert net.apply(jax.jit(net.init)(jax.random.key(0)), X).shape == (3, 4, 2)


def test_the_recurrent_matrix_has_an_initializer_of_its_own():
    model = RNN(8, 1, recurrent_init=low_rank(2))
    params = model.init(jax.random.key(0), X)["params"]
    assert np.linalg.matrix_rank(np.asarray(params["recurrent"]["kernel"]), tol=1e-4) == 2
    assert np.linalg.matrix_rank(np.asarray(params["input"]["kernel"]), tol=1e-4) == 2


def test_nested_lists_are_inputs():
    model = RNN(4, 1)
    params = model.init(jax.random.key(0), X)
    np.testing.assert_array_equal(model.apply(params, X.tolist()), model.apply(params, X))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="RNN: width=0 must be at least 1"):
        RNN(0, 1)
    with pytest.raises(TypeError, match="recurrent_init='zeros' must be a function"):
        RNN(4, 1, recurrent_init="zeros")
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 2\) must be \(N, T, d\)"):
        RNN(4, 1).init(jax.random.key(0), X[0])
