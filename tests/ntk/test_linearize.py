import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import empirical
from ntk.finite.linearize import linearize, taylor_expand


def cubic(params, x):
    """A polynomial of degree 3 in the parameters."""
    return {"y": params["a"] ** 3 * x + params["b"] * params["a"] + 2.0, "z": params["b"] ** 2}


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


@pytest.fixture
def params():
    return {"a": jnp.float32(0.7), "b": jnp.float32(-1.2)}


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(3, 5))), "v": jnp.asarray(rng.normal(size=(5, 2)))}


@pytest.mark.parametrize("degree", [3, 4])
def test_polynomials_are_exact_at_their_degree(params, degree):
    new = {"a": jnp.float32(1.1), "b": jnp.float32(0.4)}
    x = jnp.arange(3.0)
    out, expected = taylor_expand(cubic, params, degree)(new, x), cubic(new, x)
    for name in expected:
        np.testing.assert_allclose(out[name], expected[name], rtol=1e-5)
    lower = taylor_expand(cubic, params, 2)(new, x)
    assert float(jnp.abs(lower["y"] - expected["y"]).max()) > 0.01


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_error_falls_with_the_next_power_of_the_step(x64, weights, degree):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))
    step = jax.tree.map(
        lambda v: jnp.asarray(np.random.default_rng(2).normal(size=v.shape)), weights
    )
    expansion = jax.jit(taylor_expand(network, weights, degree))
    sizes = np.array([0.08, 0.04, 0.02])
    errors = []
    for size in sizes:
        new = jax.tree.map(lambda p, d, size=size: p + size * d, weights, step)
        errors.append(float(jnp.abs(expansion(new, x) - network(new, x)).max()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope - (degree + 1)) < 0.25


def test_linear_model_is_governed_by_the_empirical_ntk(x64, weights):
    """One gradient step moves the linearized outputs by exactly -rate * NTK * gradient."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))
    model = linearize(network, weights)
    gradient = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)))
    pulled = jax.vjp(lambda p: network(p, x), weights)[1](gradient)[0]
    new = jax.tree.map(lambda p, g: p - 0.3 * g, weights, pulled)
    kernel = empirical.empirical_ntk(network, weights, x)
    moved = -0.3 * jnp.einsum("nmkl,ml->nk", kernel, gradient)
    np.testing.assert_allclose(model(new, x) - network(weights, x), moved, atol=1e-12)


def test_relu_networks_and_keyword_arguments():
    def f(p, x, scale):
        return scale * jax.nn.relu(x * p)

    out = taylor_expand(f, jnp.ones(3), 3)(jnp.full(3, 1.5), jnp.array([1.0, -1.0, 2.0]), scale=2.0)
    np.testing.assert_allclose(out, [3.0, 0.0, 6.0], rtol=1e-6)


@pytest.mark.parametrize("degree", [-1, 1.5, True])
def test_bad_degree(degree):
    with pytest.raises(ValueError, match="it must be an integer, 0 or more"):
        taylor_expand(cubic, {}, degree)


def test_other_structure(params):
    with pytest.raises(ValueError, match="new parameters have structure"):
        linearize(cubic, params)({"a": jnp.float32(1.0)}, jnp.ones(2))
