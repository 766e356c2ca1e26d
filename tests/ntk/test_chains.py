"""Deep rectifier networks with biases by their own recursion, against layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import stax
from ntk.activations import closed_forms, polynomials
from ntk.infinite import channels, repeated
from ntk.infinite.evaluate import Plan
from ntk.infinite.inputs import Need, inputs_to_kernel

SLOPES = {"relu": (0, 1), "leaky": (0.2, 1), "abs": (-1, 1), "mixed": (-0.5, 2), "lower": (0.7, 0)}


def data(dtype=float):
    """Random samples, the zero sample, a multiple, the opposite and a near-duplicate of another."""
    x = np.random.default_rng(0).standard_normal((9, 6))
    x[5], x[6], x[7] = 0, 3 * x[0], -x[1]
    x[8] = x[2] + 1e-3 * x[3]
    return jnp.asarray(x, dtype)


def moments(x1, x2=None):
    plan = Plan((), Need(False, 0), True, x2 is None, x2 is None, 0, -1, ())
    eye = jnp.eye(len(x1), dtype=bool) if x2 is None else None
    return inputs_to_kernel(x1, x1 if x2 is None else x2, None, None, eye, plan)


def layer_by_layer(kernel, dual, W_std, b_std, depth):
    for _ in range(depth):
        kernel = channels.elementwise(channels.affine(kernel, W_std, b_std), dual)
    return kernel


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("depth", [1, 4, 10])
def test_equals_layer_by_layer(slopes, depth, x64):
    dual = closed_forms.abrelu(*slopes)
    x = data()
    for pair in ((x, None), (x[:4], x[2:])):
        kernel = moments(*pair)
        assert repeated.applies(kernel, dual, 1.5, 0.3)
        ours = repeated.chain(kernel, dual, 1.5, 0.3, depth)
        theirs = layer_by_layer(kernel, dual, 1.5, 0.3, depth)
        for name in ("nngp", "ntk", "var1", "var2"):
            a, b = getattr(ours, name), getattr(theirs, name)
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max())
        assert ours.is_gaussian == theirs.is_gaussian
        assert ours.is_input == theirs.is_input


def test_continues_a_network(x64):
    """From activations that have an NTK already, and without one."""
    dual, start = closed_forms.abrelu(0, 1), channels.affine(moments(data()), 1.2, 0.1)
    start = channels.elementwise(start, closed_forms.erf())
    for kernel in (start, start.replace(ntk=None)):
        ours = repeated.chain(kernel, dual, 1.5, 0.3, 9)
        theirs = layer_by_layer(kernel, dual, 1.5, 0.3, 9)
        np.testing.assert_allclose(ours.correlation, theirs.correlation, rtol=1e-10)
        if kernel.ntk is None:
            assert ours.ntk is None
        else:
            np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-10)


@pytest.mark.parametrize("depth", [5, 100])
def test_float32_keeps_its_digits(depth):
    """Against double precision on the same numbers; near-duplicates lose what their angle had lost at the input."""
    net = stax.serial(*[stax.Dense(1, 2**0.5, 0.1), stax.Relu()] * depth, stax.Dense(1))
    x = data(np.float32)
    ours = net[2](x, None, "ntk")
    with jax.enable_x64(True):
        exact = np.asarray(net[2](jnp.asarray(x, jnp.float64), None, "ntk"))
    error = np.abs(ours - exact) / np.abs(exact).max()
    error[2, 8] = error[8, 2] = 0
    assert error.max() < 4e-6
    np.testing.assert_allclose(np.diag(ours), np.diag(exact), rtol=1e-5)


def test_coincident_pairs_stay_so():
    kernel = moments(data(np.float32))
    out = repeated.chain(kernel, closed_forms.abrelu(0, 1), 1.5, 0.3, 50)
    assert np.array_equal(np.diag(out.correlation), np.ones(9))
    assert out.correlation.max() == 1
    assert np.isfinite(out.ntk).all()


def test_gradients_are_finite_at_coincident_points(x64):
    net = stax.serial(*[stax.Dense(1, 1.5, 0.1), stax.Relu()] * 4, stax.Dense(1))
    x = data()
    out = jax.grad(lambda x: net[2](x, None, "ntk").sum())(x)
    assert np.isfinite(out).all()
    step = 1e-6 * np.random.default_rng(1).standard_normal(x.shape)
    step[5] = 0  # the norm of the zero sample has a kink
    up, down = (float(net[2](x + s * step, None, "ntk").sum()) for s in (1, -1))
    np.testing.assert_allclose((out * step).sum(), (up - down) / 2, rtol=1e-4)


def test_what_it_is_not_for(x64):
    kernel, relu = moments(data()), closed_forms.abrelu(0, 1)
    assert repeated.applies(kernel, relu, 1.5, None)
    assert not repeated.applies(kernel, relu, 1.5, 0.0)
    assert not repeated.applies(kernel, closed_forms.erf(), 1.5, 0.1)
    assert not repeated.applies(
        kernel, polynomials.monomial(1), 1.5, 0.1
    )  # homogeneous, without a gap of its own
    assert not repeated.applies(kernel, relu, jnp.float32(1.5), 0.1)
    assert not repeated.applies(kernel.replace(within1=kernel.nngp), relu, 1.5, 0.1)
