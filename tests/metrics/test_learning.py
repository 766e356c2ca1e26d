"""Predicted learning curves against regression on every training set, cross-validation against test errors."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metrics
import models
import ntk
from metrics import learning
from ntk import solve


def problem(seed=0, points=500, dim=8, outputs=4):
    """A Laplace kernel on points of a sphere, and a target that it can learn."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(points, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.sqrt(np.maximum(2 - 2 * x @ x.T, 0))
    return np.exp(-distance / 4), np.tanh(2 * x @ random.normal(size=(dim, outputs)))


def regress(kernel, y, n, ridge, sigma, seed, trials=12):
    """Mean test and training error over training sets."""
    random, found = np.random.default_rng(seed), []
    for _ in range(trials):
        order = random.permutation(len(y))
        a, b = order[:n], order[n:]
        noisy = y + np.sqrt(sigma) * random.normal(size=y.shape)
        dual = np.linalg.solve(kernel[np.ix_(a, a)] + ridge * np.eye(n), noisy[a])
        test = ((kernel[np.ix_(b, a)] @ dual - noisy[b]) ** 2).sum(1).mean()
        found.append((test, ((ridge * dual) ** 2).sum(1).mean()))
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("ridge", "sigma"), [(0.0, 0.0), (0.02, 0.0), (0.0, 0.3), (0.02, 0.3)])
def test_the_curve_is_that_of_regressions(ridge, sigma):
    kernel, y = problem()
    counts = np.array([25, 60, 120])
    curve = metrics.learning_curve(kernel, y, counts, ridge=ridge, noise=sigma)
    assert curve.test.shape == (3,)
    assert curve.learnability.shape == (3, 500)
    for n, test, train in zip(counts, curve.test, curve.train):
        measured = regress(kernel, y, n, ridge, sigma, seed=int(n))
        assert measured[0] == pytest.approx(test, rel=0.06)
        assert measured[1] == pytest.approx(train, rel=0.08, abs=1e-12)


def test_held_out_points_are_worse_than_a_population_with_the_training_points():
    kernel, y = problem()
    held, whole = (metrics.learning_curve(kernel, y, 100, held_out=h).test for h in (True, False))
    assert held == pytest.approx(500 / 400 * whole, rel=1e-12)  # without ridge and noise


def test_permuted_targets_are_not_learnt():
    kernel, y = problem()
    shuffled = np.random.default_rng(3).permutation(y)
    curves = [metrics.learning_curve(kernel, t, 120).test for t in (y, shuffled)]
    assert curves[1] > 2 * curves[0]
    assert regress(kernel, shuffled, 120, 0.0, 0.0, 0)[0] == pytest.approx(curves[1], rel=0.06)


def test_a_models_own_kernel():
    """Single precision, from a Flax family; eigenvalues that are rounding do not matter."""
    x = jax.random.normal(jax.random.key(0), (120, 5))
    y = jnp.sin(x[:, 0])
    kernel = ntk.infinite_width(lambda n: models.MLP(width=n, depth=1, outputs=1), x)(
        x, None, "ntk"
    )
    found = metrics.learning_curve(kernel, y, [10, 30])
    assert found.test.dtype == np.float64
    exact = metrics.learning_curve(np.asarray(kernel, np.float64), y, [10, 30])
    np.testing.assert_allclose(found.test, exact.test, rtol=1e-3)
    assert (np.diff(found.test) < 0).all()


def test_a_kernel_of_low_rank_is_linear_regression():
    """Modes that are rounding do not count: with as many samples more than features all is learnt."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 5))
    found = metrics.learning_curve(x @ x.T, x @ random.normal(size=5), [20, 60], noise=0.5)
    assert (found.kappa == 0).all()
    # n / (n - d) sigma^2 at a pool of 300, where mean squares of unlearnt modes are 295 / 300
    np.testing.assert_allclose(found.test, [0.5 * 20 / 15, 0.5 * 60 / 55], rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_many_samples_as_dimensions_learn_a_linear_target_exactly(dtype):
    """Where nothing is lost the peak has no height: rounding along directions without eigenvalue is no noise."""
    x = np.random.default_rng(0).normal(size=(80, 6))
    kernel, target = (x @ x.T).astype(dtype), x @ np.arange(6.0)
    found = learning.learning_curve(kernel, target, [3, 6, 12]).test / (target**2).mean()
    assert found[0] > 0.1
    assert (found[1:] < 1e-6).all()
    noisy = learning.learning_curve(kernel, target, [6], noise=0.1)
    assert np.isinf(noisy.test).all()


def test_a_target_of_zeros_costs_its_noise():
    x = np.random.default_rng(0).normal(size=(40, 8))
    found = learning.learning_curve(x @ x.T, np.zeros(40), [5, 10], ridge=0.1, noise=[0.0, 0.5])
    assert found.test[0] == 0
    assert found.test[1] > 0.5


def test_a_warning_beyond_a_quarter():
    kernel, y = problem(points=100)
    with pytest.warns(UserWarning, match="up to 30 of 100 points"):
        metrics.learning_curve(kernel, y, [10, 30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.learning_curve(kernel, y, [10, 25])


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_cross_validation_estimates_the_test_error_and_its_spread(sigma):
    kernel, y = problem(points=500)
    random, ratios = np.random.default_rng(2), []
    ridges = np.array([0.01, 0.05, 0.3])
    for _ in range(12):
        order = random.permutation(len(y))
        a, b = order[:120], order[120:]
        noisy = y + np.sqrt(sigma) * random.normal(size=y.shape)
        found = metrics.estimated_risk(kernel[np.ix_(a, a)], noisy[a], ridges)
        for i, ridge in enumerate(ridges):
            dual = np.linalg.solve(kernel[np.ix_(a, a)] + ridge * np.eye(120), noisy[a])
            test = ((kernel[np.ix_(b, a)] @ dual - noisy[b]) ** 2).sum(1).mean()
            ratios.append((found.value[i] / test, found.error[i] / test))
    ratios = np.array(ratios).reshape(12, 3, 2)
    np.testing.assert_allclose(ratios[..., 0].mean(0), 1, atol=0.06)
    spread = ratios[..., 0].std(0, ddof=1)
    assert (spread < 2.2 * ratios[..., 1].mean(0)).all()
    assert (spread > 0.4 * ratios[..., 1].mean(0)).all()


def test_cross_validation_by_explicit_inverses():
    kernel, y = problem(points=40)
    for ridge in (0.0, 0.3):
        inverse = np.linalg.inv(kernel + ridge * np.eye(40))
        expected = ((inverse @ y) ** 2).sum(1).mean() / (np.trace(inverse) / 40) ** 2
        found = metrics.estimated_risk(kernel, y, ridge)
        assert float(found.value) == pytest.approx(expected, rel=1e-8)
        left = np.asarray(
            solve.cholesky(
                kernel,
                y,
                ridge,
                diag_reg_absolute_scale=True,
                leave_one_out=True,
                dtype=jnp.float64,
            ).leave_one_out
        )
        assert float(found.value) == pytest.approx((left**2).sum(1).mean(), rel=0.15)


def test_exponents_of_a_known_spectrum():
    random, count = np.random.default_rng(0), 600
    q = np.linalg.qr(random.normal(size=(count, count)))[0]
    i = np.arange(1, count + 1.0)
    kernel, y = (q * i**-1.7) @ q.T, q @ (i**-0.6)
    found = metrics.fit_spectrum(kernel, y, jax.random.key(0))
    assert found.eigenvalues.exponent == pytest.approx(-1.7, abs=1e-3)
    assert found.power.exponent == pytest.approx(-1.2, abs=0.01)
    narrow = metrics.fit_spectrum(kernel, y, jax.random.key(0), ranks=(30, 200))
    assert narrow.eigenvalues.exponent == pytest.approx(-1.7, abs=1e-3)


@pytest.mark.parametrize("d", [1, 3, 5])
def test_the_dimension_of_spheres_and_its_spread(d):
    """In an ambient space of 20, turned and scaled; the error is the spread over draws."""
    found = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        x = random.normal(size=(600, d + 1))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        found.append(metrics.intrinsic_dimension(7 * x @ random.normal(size=(d + 1, 20))))
    values, errors = np.transpose(found)
    assert values.mean() == pytest.approx(d, rel=0.04)
    assert 0.5 * errors.mean() < values.std(ddof=1) < 1.6 * errors.mean()


def test_the_dimension_of_many_uniform_coordinates_is_read_too_low():
    x = np.random.default_rng(0).uniform(size=(2000, 20))
    assert metrics.intrinsic_dimension(x).value == pytest.approx(15, abs=0.5)


EYE = np.eye(300)
ONES = np.ones(300)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: learning.learning_curve(EYE, ONES, 300), "pool is 300"),
        (lambda: learning.learning_curve(EYE, ONES[:9], 10), "targets has shape"),
        (lambda: learning.learning_curve(EYE, np.nan * ONES, 10), r"targets\[0\] is nan"),
        (
            lambda: learning.learning_curve(np.where(EYE > 0, np.inf, 0), ONES, 10),
            r"kernel\[0, 0\] is inf",
        ),
        (lambda: learning.estimated_risk(EYE, np.nan * ONES, 0.1), r"targets\[0\] is nan"),
        (
            lambda: learning.learning_curve(EYE - 2, ONES, 10),
            "beyond rounding; it must be positive",
        ),
        (lambda: learning.learning_curve(np.triu(EYE + 1), ONES, 10), "kernel is not symmetric"),
        (lambda: learning.learning_curve(EYE[None], ONES, 10), "it must be"),
        (lambda: learning.learning_curve(EYE, ONES, 10, ridge=-1), "ridge has the entry -1"),
        (lambda: learning.estimated_risk(EYE, ONES[:9], 0.1), "targets has shape"),
        (lambda: learning.estimated_risk(EYE, ONES, -1.0), "ridge is -1.0"),
        (lambda: learning.estimated_risk(0 * EYE + 1, ONES, 0.0), "the kernel is singular"),
        (lambda: learning.estimated_risk(np.triu(EYE + 1), ONES, 0.1), "kernel is not symmetric"),
        (lambda: learning.estimated_risk(EYE[0], ONES, 0.1), "kernel has shape"),
        (
            lambda: learning.fit_spectrum(EYE[:50, :50], ONES[:50], jax.random.key(0)),
            "ranks go from 10",
        ),
        (
            lambda: learning.fit_spectrum(0 * EYE + 1, ONES, jax.random.key(0)),
            "eigenvalue 30 is zero",
        ),
        (lambda: learning.fit_spectrum(EYE, ONES + EYE[0], 0), "key is 0"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()
