"""Closed forms against two-dimensional quadrature in float64, and their behaviour at the edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk.activations import closed_forms, elementary, polynomials

TRIPLES = [(0.5, 2.0, -0.7), (1.7, 0.2, 0.95), (1.0, 1.0, 0.0), (0.9, 1.1, -0.99)]

SMOOTH = {
    "erf": closed_forms.erf(),
    "erf affine": closed_forms.erf(0.7, 1.3, 0.4),
    "gelu": closed_forms.gelu(),
    "sine": closed_forms.sine(1.2, 0.9, 0.3),
    "cosine": closed_forms.sine(0.8, 1.1, math.pi / 2),
    "rbf": closed_forms.rbf(0.7),
    "gaussian": closed_forms.gaussian(1.3, -0.8),
    "gaussian growing": closed_forms.gaussian(0.5, 0.03),
    "gabor": closed_forms.gabor(),
    "exponential": closed_forms.exponential(0.6, 0.8),
    "monomial 0": polynomials.monomial(0),
    "monomial 3": polynomials.monomial(3),
    "monomial 6": polynomials.monomial(6),
    "polynomial": polynomials.polynomial_dual([0.3, -0.5, 0.0, 0.2, 0.1]),
}
KINKED = {
    "relu": closed_forms.abrelu(0, 1),
    "abrelu": closed_forms.abrelu(-0.5, 1.3),
    "abs": closed_forms.abrelu(-1, 1),
    "sign": closed_forms.sign(),
    "step": polynomials.rectified_monomial(0),
    "rectified 1": polynomials.rectified_monomial(1),
    "rectified 2": polynomials.rectified_monomial(2),
    "rectified 5": polynomials.rectified_monomial(5),
}
EVERY = SMOOTH | KINKED
# One of each formula, for what has to compile a gradient or in two precisions.
DISTINCT = [
    *("relu", "sign", "erf", "gelu", "sine", "rbf", "gaussian", "gabor", "exponential"),
    *("monomial 3", "polynomial", "rectified 2"),
]


def panels(edges, order=16):
    """Composite Gauss-Legendre nodes and weights between consecutive edges, along the last axis."""
    x, w = np.polynomial.legendre.leggauss(order)
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    nodes = low + (high - low) * (x + 1) / 2
    weights = (high - low) / 2 * w
    return nodes.reshape(*edges.shape[:-1], -1), weights.reshape(*edges.shape[:-1], -1)


def quadrature(f, q1, q2, rho, kink=0.0, reach=9.0):
    """E f(u) f(v) by nested Gauss-Legendre panels that break where u or v passes the kink."""
    spread = math.sqrt(1 - rho * rho)
    grid = np.linspace(-reach, reach, 19)
    centre = kink / math.sqrt(q2) / rho if rho else 0.0
    fine = np.clip(centre + spread * np.linspace(-8, 8, 33), -reach, reach)
    outer, w_outer = panels(np.sort(np.concatenate([grid, fine, [kink / math.sqrt(q1)]])))
    at = np.clip((kink / math.sqrt(q2) - rho * outer) / spread, -reach, reach)
    edges = np.concatenate([np.broadcast_to(grid, (outer.size, grid.size)), at[:, None]], axis=1)
    inner, w_inner = panels(np.sort(edges, axis=1))
    v = math.sqrt(q2) * (rho * outer[:, None] + spread * inner)
    weight = w_inner * np.exp(-(inner**2) / 2) / (2 * math.pi)
    conditional = (weight * np.asarray(f(jnp.asarray(v)))).sum(axis=1)
    weight = w_outer * np.exp(-(outer**2) / 2)
    return float((weight * np.asarray(f(jnp.asarray(math.sqrt(q1) * outer))) * conditional).sum())


def derivative(f):
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


@pytest.mark.parametrize("name", EVERY)
def test_moments_are_the_two_dimensional_integrals(name, x64):
    dual = EVERY[name]
    moments, fn, df = map(jax.jit, (dual.moments, dual.fn, derivative(dual.fn)))
    for q1, q2, rho in TRIPLES:
        k, kdot = map(float, moments(q1, q2, rho))
        scale = math.sqrt(dual.norm(jnp.float64(q1)) * dual.norm(jnp.float64(q2)))
        assert abs(k - quadrature(fn, q1, q2, rho)) < 2e-9 * scale
        expected = quadrature(df, q1, q2, rho)
        assert abs(kdot - expected) < 2e-9 * max(1.0, scale, abs(expected))


@pytest.mark.parametrize("name", EVERY)
def test_norm_is_the_second_moment_and_the_diagonal(name, x64):
    dual = EVERY[name]
    for q in (0.3, 1.0, 4.0):
        q = jnp.float64(q)
        k, _ = jax.jit(dual.moments)(q, q, jnp.float64(1.0))
        z, w = panels(np.sort(np.append(np.linspace(-12, 12, 40), 0.0)))
        density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        values = np.asarray(dual.fn(jnp.sqrt(q) * jnp.asarray(z)))
        np.testing.assert_allclose(dual.norm(q), k, rtol=1e-13)
        np.testing.assert_allclose(k, (w * density * values**2).sum(), rtol=1e-9)
        np.testing.assert_allclose(dual.mean(q), (w * density * values).sum(), atol=1e-9)


@pytest.mark.parametrize("name", DISTINCT)
def test_float32_agrees_with_float64_also_where_inputs_nearly_coincide(name, x64):
    dual = EVERY[name]
    q = np.float32([0.01, 0.3, 1.0, 3.0])[:, None]
    near = 1 - np.float32([0, 6e-8, 1e-6, 1e-4, 1e-2])
    rho = np.concatenate([near, -near, np.linspace(-0.9, 0.9, 13, dtype=np.float32)])[None, :]
    moments = jax.jit(dual.moments)
    single = moments(jnp.asarray(q), jnp.asarray(q), jnp.asarray(rho))
    double = moments(*map(jnp.float64, (q, q, rho)))
    for low, high in zip(single, double):
        assert low.dtype == jnp.float32
        assert high.dtype == jnp.float64
        top = np.abs(high).max(axis=1, keepdims=True)
        assert np.abs(low - high).max() <= 2e-6 * np.abs(high).max()
        assert (np.abs(low - high) <= 5e-6 * top).all()


@pytest.mark.parametrize("name", DISTINCT)
def test_values_and_gradients_are_finite_at_the_edges(name):
    q1 = jnp.asarray([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1e-30])
    q2 = jnp.asarray([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e-30])
    rho = jnp.asarray([1.0, 0.0, 1.0, -1.0, 1.0 + 1e-6, 0.0, 1.0])

    @jax.jit
    def both(*arguments):
        outputs, pull = jax.vjp(EVERY[name].moments, *arguments)
        one, zero = jnp.ones_like(rho), jnp.zeros_like(rho)
        return outputs, pull((one, zero)), pull((zero, one))

    for array in jax.tree.leaves(both(q1, q2, rho)):
        assert array.dtype == jnp.float32
        assert np.isfinite(array).all()


@pytest.mark.parametrize("name", [n for n in EVERY if EVERY[n].homogeneous is not None])
def test_homogeneous_degree(name, x64):
    dual, d = EVERY[name], EVERY[name].homogeneous
    q1, q2, rho = jnp.float64(0.4), jnp.float64(2.3), jnp.linspace(-1, 1, 9)
    k, kdot = dual.moments(q1, q2, rho)
    k1, kdot1 = dual.moments(1.0, 1.0, rho)
    np.testing.assert_allclose(k, (q1 * q2) ** (d / 2) * k1, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(kdot, (q1 * q2) ** ((d - 1) / 2) * kdot1, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in DISTINCT if n != "sign"])
def test_derivative_kernel_is_the_derivative_by_the_covariance(name, x64):
    """Price's theorem: d E[f(u) f(v)] / d cov = E[f'(u) f'(v)], by automatic differentiation."""
    dual = EVERY[name]
    q1, q2 = jnp.float64(0.8), jnp.float64(1.4)
    rho = jnp.array([-0.8, 0.0, 0.4, 0.97, 1.0, -1.0])
    slope = jax.jit(jax.grad(lambda r: dual.moments(q1, q2, r)[0].sum()))(rho)
    kdot = jax.jit(dual.moments)(q1, q2, rho)[1]
    np.testing.assert_allclose(slope / jnp.sqrt(q1 * q2), kdot, rtol=1e-9, atol=1e-12)


def test_correlation_never_exceeds_one_in_single_precision():
    """The deep ReLU and erf recursions at coincident and nearly coincident points."""
    rho0 = 1 - np.float32([0, 6e-8, 1.2e-7, 3e-7, 1e-6, 1e-5])
    for dual in (closed_forms.abrelu(0, 1), closed_forms.erf(), closed_forms.gelu()):
        one = jnp.float32(1.0)

        def layer(rho, _, dual=dual, one=one):
            k, kdot = dual.moments(one, one, rho)
            return k / dual.norm(one), (k / dual.norm(one), kdot)

        _, (rho, kdot) = jax.lax.scan(layer, jnp.asarray(rho0), length=200)
        assert np.isfinite(kdot).all()
        assert rho.max() <= 1 + 2.5e-7


@pytest.mark.parametrize("size", ["float32", "float64"])
def test_arc_functions(size, x64):
    eps = np.finfo(size).eps * (20 if size == "float64" else 1)
    x = np.concatenate([np.linspace(-1, 1, 4001), 1 - 10.0 ** -np.arange(3, 8)]).astype(size)
    exact = x.astype(np.longdouble)
    np.testing.assert_allclose(elementary.arccos(jnp.asarray(x)), np.arccos(exact), atol=4 * eps)
    gap = (1 - exact * exact).astype(size)
    arcsin = elementary.arcsin(jnp.asarray(x), 0.5 * jnp.sqrt(jnp.asarray(gap)))
    np.testing.assert_allclose(arcsin, np.arcsin(exact), rtol=4 * eps)
    small = elementary.arccos(jnp.asarray(1 - 2.0 ** -np.arange(2, 23), size))
    exact = np.arccos(1 - 2.0 ** -np.arange(2, 23).astype(np.longdouble))
    np.testing.assert_allclose(small, exact, rtol=4 * eps)


def test_gaussian_beyond_its_variance_is_infinite_not_nan():
    dual = closed_forms.gaussian(1.0, 1.0)
    k, kdot = dual.moments(jnp.float32(0.3), jnp.float32(0.3), jnp.float32(0.5))
    assert np.isinf(k)
    assert np.isinf(kdot)
    assert np.isfinite(dual.moments(0.2, 0.2, jnp.float32(0.5))[0])


def test_kernel_only_maps():
    q, rho = jnp.float32(2.0), jnp.linspace(-1, 1, 5)
    k, kdot = closed_forms.exp_normalized(0.5, -1.0).moments(q, q, rho)
    np.testing.assert_allclose(k, 2 * np.exp(0.5 * (rho - 1)), rtol=1e-6)
    np.testing.assert_allclose(kdot, 0.5 * np.exp(0.5 * (rho - 1)), rtol=1e-6)
    k, kdot = polynomials.hermite_polynomial(3).moments(1.0, 1.0, rho)
    np.testing.assert_allclose(k, rho**3, atol=1e-6)
    np.testing.assert_allclose(kdot, 3 * rho**2, atol=1e-6)


def test_users_own_integral_gives_the_derivative_kernel():
    def integral(cov12, var1, var2):
        return 2 / math.pi * jnp.arcsin(2 * cov12 / jnp.sqrt((1 + 2 * var1) * (1 + 2 * var2)))

    q1, q2 = jnp.asarray([[0.5], [1.0]]), jnp.asarray([[1.0, 2.0, 0.3]])
    rho = jnp.full((2, 3), 0.4)
    ours = closed_forms.from_covariance(jax.scipy.special.erf, integral).moments(q1, q2, rho)
    for a, b in zip(ours, closed_forms.erf().moments(q1, q2, rho)):
        np.testing.assert_allclose(a, b, rtol=1e-5)
