"""Features of layers: unbiased, with the variance that is stated, and bundled with the linear map behind them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk.finite import layer_features as features


def points(seed, count, dim, norm):
    x = np.random.default_rng(seed).normal(size=(count, dim))
    return norm * x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("atoms", "function"),
    [
        (features.SINE, np.sin),
        (features.COSINE, np.cos),
        (
            {0.5: 2.0, 1.5: 0.3 - 0.4j},
            lambda u: 2 * np.cos(u / 2) + 0.3 * np.cos(1.5 * u) + 0.4 * np.sin(1.5 * u),
        ),
    ],
)
def test_features_are_unbiased_with_their_variance(x64, atoms, function):
    x, w, b = points(0, 3, 5, 0.5), points(1, 4, 5, 0.6), np.array([0.0, 0.4, -1.0, 2.0])

    def draw(key):
        made = features.layer_features(key, 5, 8, atoms=atoms)
        return made.phi(x) @ made.psi(w, b).T

    found = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000)))
    error = found.std(0, ddof=1) / math.sqrt(4000)
    assert (abs(found.mean(0) - function(x @ w.T + b)) < 4 * error).all()
    stated = features.layer_features(jax.random.key(0), 5, 8, atoms=atoms).variance(x, w, b)
    np.testing.assert_allclose(found.var(0, ddof=1), stated, rtol=0.2)
    np.testing.assert_allclose((found.var(0, ddof=1) / stated).mean(), 1, atol=0.05)


def test_the_complex_error_of_both_parts_together():
    """Sine and cosine are the two parts of one number: m E |error|^2 = e^(|x + w|^2) - 1."""
    x, w = points(0, 2, 6, 0.7), points(1, 3, 6, 0.4)
    parts = [
        features.layer_features(jax.random.key(0), 6, 16, atoms=atoms).variance(x, w)
        for atoms in (features.SINE, features.COSINE)
    ]
    expected = np.expm1(((x[:, None] + w[None]) ** 2).sum(-1)) / 16
    np.testing.assert_allclose(parts[0] + parts[1], expected, rtol=1e-4)


def test_a_layer_and_the_linear_map_behind_it_are_one_matrix():
    x, w1 = points(0, 20, 8, 0.5), points(1, 30, 8, 0.5)
    w2 = np.random.default_rng(2).normal(size=(4, 30)) / math.sqrt(30)
    made = features.layer_features(jax.random.key(3), 8, 20_000)
    bundled = w2 @ np.asarray(made.psi(w1))
    assert bundled.shape == (4, 40_000)
    exact = np.sin(x @ w1.T) @ w2.T
    np.testing.assert_allclose(np.asarray(made.phi(x)) @ bundled.T, exact, atol=0.05)
    assert jnp.issubdtype(made.phi(jnp.ones(8)).dtype, jnp.floating)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": 0}, "inputs is 0"),
        ({"features": 2.5}, "features is 2.5"),
        ({"atoms": {}}, "atoms is empty"),
        ({"atoms": {-1.0: 1.0}}, "a frequency of atoms is -1.0"),
        ({"atoms": {"s": 1.0}}, "a frequency of atoms is 's'"),
    ],
)
def test_mistakes_are_named(change, message):
    settings = {"inputs": 3, "features": 4} | change
    with pytest.raises((ValueError, TypeError), match=message):
        features.layer_features(jax.random.key(0), **settings)
