"""Dynamical mean-field theory against random-matrix theory, and against networks of high dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import mean_field
from limits.dmft import high_dimensional_descent
from limits.mean_field import Target

SETTING = {"alpha": 2.0, "epsilon": 0.5}
DENSITY, RATE, STEPS = 3.0, 0.1, 10


def marchenko_pastur(density, points=20_000):
    """Eigenvalues of X^T X, X of (density D, D) entries of variance 1/D, and their weights; density >= 1."""
    low, high = (np.sqrt(density) - 1) ** 2, (np.sqrt(density) + 1) ** 2
    angle = (np.arange(points) + 0.5) * np.pi / points
    values = (low + high) / 2 + (high - low) / 2 * np.cos(angle)
    return values, (high - low) ** 2 / 8 * np.sin(angle) ** 2 / values / points


def test_linear_network_is_random_matrix_theory():
    """epsilon = 0 and no target: weights shrink by 1 - k alpha lambda along every eigenvector of X^T X."""
    found = high_dimensional_descent(
        [0.3],
        jax.random.key(0),
        alpha=2.0,
        epsilon=0.0,
        density=DENSITY,
        learning_rate=0.2,
        steps=10,
        coefficient=0.0,
        num_samples=3000,
    )
    values, weights = marchenko_pastur(DENSITY)
    assert weights.sum() == pytest.approx(1, rel=1e-6)
    shrunk = (1 - 2 * 0.2 / DENSITY * values)[:, None] ** (2 * np.arange(11))[None, :]
    np.testing.assert_allclose(found.correlation[:, 0, 0], weights @ shrunk, rtol=0.02, atol=2e-3)
    np.testing.assert_allclose(found.test_loss, 4 * found.correlation[:, 0, 0], rtol=1e-10)
    train = 4 / DENSITY * (weights * values) @ shrunk
    np.testing.assert_allclose(found.train_loss, train, rtol=0.05, atol=0.01)
    assert found.train_loss[-1] < 0.5 * found.test_loss[-1], "the past must be felt"


def finite(dim, seed, overlap):
    """Losses and overlaps of one network of dimension D, by the closed dynamics."""
    rng = np.random.default_rng([seed, dim])
    beta = rng.standard_normal(dim)
    beta *= np.sqrt(dim) / np.linalg.norm(beta)
    m = np.asarray(overlap)[:, None]
    weights = rng.standard_normal((len(overlap), dim))
    weights -= (weights @ beta)[:, None] * beta / dim
    weights = jnp.asarray(m * beta + np.sqrt(1 - m**2) * weights)
    x = jnp.asarray(rng.standard_normal((round(DENSITY * dim), dim)) / np.sqrt(dim))
    path = mean_field.gradient_descent(
        mean_field.moments(weights),
        (x, (x @ beta) ** 2),
        range(STEPS + 1),
        learning_rate=RATE * dim,
        centered=False,
        **SETTING,
    )
    target = Target(jnp.zeros(dim), jnp.asarray(2 * np.outer(beta, beta)))
    return mean_field.population_loss(path, target, **SETTING).total, path.mean @ beta / dim


def test_networks_approach_the_theory_as_their_dimension_grows(x64):
    overlap = (0.4, -0.3)
    theory = high_dimensional_descent(
        overlap,
        jax.random.key(1),
        density=DENSITY,
        learning_rate=RATE,
        steps=STEPS,
        num_samples=3000,
        **SETTING,
    )

    def distances(dim):
        runs = [finite(dim, seed, overlap) for seed in range(10)]
        off = [np.mean(np.abs(loss / theory.test_loss - 1)) for loss, _ in runs]
        drift = np.mean([mean for _, mean in runs], axis=0) - theory.overlap.mean(axis=1)
        return np.median(off), np.abs(drift).max()

    (few, _), (many, drift) = distances(20), distances(300)
    assert many < 0.5 * few
    assert many < 0.05
    assert drift < 0.02
    moved = np.abs(theory.overlap[-1] - theory.overlap[0]).max()
    assert moved > 0.05, "nothing was learnt"


def test_without_overlap_the_direction_is_not_found():
    found = high_dimensional_descent(
        (0.0, 0.0),
        jax.random.key(0),
        density=DENSITY,
        learning_rate=RATE,
        steps=STEPS,
        num_samples=500,
        **SETTING,
    )
    np.testing.assert_allclose(found.overlap, 0, atol=1e-12)
    assert found.train_loss[-1] < 0.7 * found.train_loss[0]
    assert (found.test_loss > 2).all(), "the variance of z^2, which only the direction explains"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlap": [1.5]}, "overlap is"),
        ({"overlap": []}, "one number in"),
        ({"density": 0.0}, "density is 0.0"),
        ({"steps": 0}, "steps is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_mistakes_are_named(change, words):
    setting = {"overlap": [0.1], "density": 1.0, "steps": 3, "learning_rate": 0.1, "num_samples": 9}
    with pytest.raises(ValueError, match=words):
        high_dimensional_descent(key=jax.random.key(0), **(setting | change), **SETTING)
