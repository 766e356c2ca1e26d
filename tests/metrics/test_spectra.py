"""Trace, diagonal, density and the dual spectrum: exact cases, standard errors, two roads."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import operators, spectra

SIZE = 40


def matrix(values, seed=0):
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return jnp.asarray(Q * np.asarray(values)[None] @ Q.T, jnp.result_type(float))


def product(params, A, v):
    """A product on a tree of two leaves."""
    flat = A @ jnp.concatenate([v["a"], v["b"]])
    return {"a": flat[:15], "b": flat[15:]}


def params():
    return {"a": jnp.zeros(15), "b": jnp.zeros(SIZE - 15)}


DECAYING = 2.0 ** -np.arange(SIZE)


@pytest.mark.usefixtures("x64")
def test_estimates_are_exact_where_they_must_be():
    """Signs see a diagonal matrix exactly; Hutch++ a matrix of low rank; all steps all moments."""
    D = jnp.diag(jnp.linspace(-1, 2, SIZE))
    key = jax.random.key(0)
    value, error = spectra.trace(product, params(), D, key, num_probes=3)
    np.testing.assert_allclose([value, error], [SIZE / 2, 0], atol=1e-12)
    value, error = spectra.diagonal(product, params(), D, key, num_probes=3)
    np.testing.assert_allclose(value["b"], jnp.diag(D)[15:], atol=1e-12)
    np.testing.assert_allclose(error["a"], 0, atol=1e-12)
    low = matrix(np.r_[3.0, 2.0, 1.0, np.zeros(SIZE - 3)])
    value, error = spectra.trace(product, params(), low, key, num_probes=12, method="hutch++")
    np.testing.assert_allclose([value, error], [6, 0], atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_standard_error_of_the_trace_is_the_spread_over_keys(method):
    A = matrix(DECAYING)
    draws = [
        spectra.trace(product, params(), A, jax.random.key(i), num_probes=18, method=method)
        for i in range(60)
    ]
    values = np.array([d.value for d in draws])
    errors = np.array([d.error for d in draws])
    truth = DECAYING.sum()
    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(60)
    assert 0.6 < errors.mean() / values.std() < 1.5
    # The control: Hutch++ is worth its name on a decaying spectrum.
    assert (values.std() < 0.05) == (method == "hutch++")


@pytest.mark.usefixtures("x64")
def test_diagonal_lies_within_its_standard_errors():
    A = matrix(DECAYING, seed=1)
    value, error = spectra.diagonal(product, params(), A, jax.random.key(0), num_probes=200)
    pulls = (np.r_[value["a"], value["b"]] - np.diag(A)) / np.r_[error["a"], error["b"]]
    assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.4


@pytest.mark.usefixtures("x64")
def test_density_moments_and_mass():
    A = matrix(np.linspace(-1, 2, SIZE))
    key = jax.random.key(0)
    spectrum = spectra.spectral_density(product, params(), A, key, num_probes=8, num_steps=8)
    np.testing.assert_allclose(spectrum.weights.sum(1), 1)
    square = spectra.trace_of_function(spectrum, jnp.square)
    assert abs(square.value - jnp.sum(A**2)) < 3 * square.error < 0.5 * square.value
    grid = jnp.linspace(-3, 4, 1401)
    curve = spectra.density(spectrum, grid, 0.1)
    np.testing.assert_allclose(jnp.trapezoid(curve.value, grid), 1, rtol=1e-6)
    # Quadrature of degree 2 m - 1 sees a probe's fourth moment exactly, so m does not matter.
    few = spectra.spectral_density(product, params(), A, key, num_probes=8, num_steps=3)
    moments = [spectra.trace_of_function(s, lambda x: x**4).value for s in (few, spectrum)]
    np.testing.assert_allclose(moments[0], moments[1], rtol=1e-10)


def network(params, batch):
    return jnp.tanh(batch["x"] @ params["in"]) @ params["out"]


def cross_entropy(logits, batch):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * batch["y"], -1))


@pytest.mark.usefixtures("x64")
def test_gauss_newton_shares_its_spectrum_with_the_tangent_kernel():
    """Two roads: n x n matrix in parameter space, N C x N C matrix in output space."""
    rng = np.random.default_rng(0)
    weights = {
        "in": jnp.asarray(rng.normal(size=(4, 10))),
        "out": jnp.asarray(rng.normal(size=(10, 3))),
    }
    batch = {
        "x": jnp.asarray(rng.normal(size=(6, 4))),
        "y": jnp.asarray(np.eye(3)[rng.integers(0, 3, 6)]),
    }
    dual = spectra.gauss_newton_spectrum(network, cross_entropy, weights, batch)
    G = operators.gauss_newton(network, cross_entropy)

    @jax.jit
    def dense(weights, batch):
        flat, unravel = jax.flatten_util.ravel_pytree(weights)
        column = jax.vmap(lambda v: jax.flatten_util.ravel_pytree(G(weights, batch, unravel(v)))[0])
        return jnp.linalg.eigvalsh(column(jnp.eye(flat.size)))

    np.testing.assert_allclose(dual, dense(weights, batch)[::-1][:18], atol=1e-12)
    # Softmax has a null direction per example: 6 of the 18 vanish.
    assert np.sum(dual > 1e-8) == 12
    with pytest.raises(
        ValueError, match="criterion's Hessian in the outputs has the eigenvalue -2"
    ):
        spectra.gauss_newton_spectrum(network, lambda f, b: -jnp.sum(f**2), weights, batch)


@pytest.mark.skipif(importlib.util.find_spec("matfree") is None, reason="matfree is not installed")
@pytest.mark.usefixtures("x64")
def test_the_same_quadrature_as_matfree():
    from matfree import decomp

    A = matrix(np.linspace(-1, 2, SIZE))
    key = jax.random.key(0)
    spectrum = spectra.spectral_density(product, params(), A, key, num_probes=2, num_steps=8)
    start = spectra._signs(jax.random.split(key, 2)[0], params())
    start = jnp.concatenate([start["a"], start["b"]])
    result = decomp.tridiag_sym(8, reortho="full", materialize=True)(lambda v: A @ v, start)
    np.testing.assert_allclose(spectrum.nodes[0], jnp.linalg.eigvalsh(result.J_small), atol=1e-10)


def test_refused():
    A, key = jnp.eye(SIZE), jax.random.key(0)
    with pytest.raises(ValueError, match="num_probes is 1; it must be at least 2"):
        spectra.trace(product, params(), A, key, num_probes=1)
    with pytest.raises(ValueError, match="num_probes is 5; it must be at least 6"):
        spectra.trace(product, params(), A, key, num_probes=5, method="hutch++")
    with pytest.raises(ValueError, match=r"num_probes is 123; Hutch\+\+ can use at most 3 n = 120"):
        spectra.trace(product, params(), A, key, num_probes=123, method="hutch++")
    with pytest.raises(ValueError, match="method is 'exact'; it must be"):
        spectra.trace(product, params(), A, key, method="exact")
    with pytest.raises(ValueError, match="num_steps is 50; it must be between 1 and 40"):
        spectra.spectral_density(product, params(), A, key)


def test_what_is_not_finite_is_refused_outside_of_a_trace_only():
    A, key = jnp.eye(SIZE).at[3, 3].set(jnp.nan), jax.random.key(0)
    for estimate in (
        lambda A: spectra.trace(product, params(), A, key, num_probes=3).value,
        lambda A: spectra.diagonal(product, params(), A, key, num_probes=3).value,
        lambda A: spectra.spectral_density(product, params(), A, key, num_steps=3).nodes,
    ):
        with pytest.raises(ValueError, match="the curvature operator's products are not finite"):
            estimate(A)
    traced = jax.jit(lambda A: spectra.trace(product, params(), A, key, num_probes=3).value)
    assert np.isnan(traced(A))

    def loss(w, x):
        return jnp.mean((x @ w) ** 2)

    x = jnp.ones((3, 4)).at[1].set(jnp.inf)
    with pytest.raises(ValueError, match=r"the loss is inf; so it is on examples \[1\]"):
        spectra.trace(operators.hessian(loss), jnp.ones(4), x, key, num_probes=3)
