"""Risks against simulation, against linear regression known in closed form, and against the published equations."""

import math

import numpy as np
import pytest
from scipy import optimize

from ntk.regression import risk

RANKS = np.arange(1, 1501.0)
EIGENVALUES = POWER = RANKS**-1.5


def published(l, v, n, k, delta, sigma):
    """The equations as Simon et al. 2024 write them, by two nested searches."""

    def kappa_of(gamma):
        return gamma * (k - np.sum(l / (l + gamma))) / k

    def samples(x):
        gamma = math.exp(x)
        return np.sum(l / (l + gamma)) + delta / kappa_of(gamma) - n

    lowest = optimize.brentq(lambda x: kappa_of(math.exp(x)) - 1e-14, -40, 20, xtol=1e-14)
    gamma = math.exp(optimize.brentq(samples, lowest + 1e-9, 30, xtol=1e-14))
    kappa = kappa_of(gamma)
    z, q = np.sum(l / (l + gamma)), np.sum((l / (l + gamma)) ** 2)
    bias = np.sum((gamma / (l + gamma) - kappa * l / (l + gamma) ** 2 * k / (k - q)) * v)
    test = (bias + sigma) / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    return test, (delta / (n * kappa)) ** 2 * test, kappa, gamma


@pytest.mark.parametrize("k", [40, 128, 700])
@pytest.mark.parametrize("delta", [0.01, 1.0])
def test_the_equations_are_the_published_ones(k, delta):
    found = risk.random_features(EIGENVALUES, POWER, 128, k, ridge=delta, noise=0.5)
    expected = published(EIGENVALUES, POWER, 128, k, delta, 0.5)
    values = found.test, found.train, found.kappa, found.gamma
    np.testing.assert_allclose(values, expected, rtol=1e-7)


def test_golden_numbers_of_the_authors_theory():
    """n = 256, 10^4 modes, alpha = beta = 1.5, noise 1/2; theirs are single precision."""
    modes = np.arange(1, 10001.0) ** -1.5
    k = [50, 251, 1000, 10000]
    found = risk.random_features(modes, modes, 256, k, ridge=[[0.001], [0.3162]], noise=0.5)
    expected = [[1.2350, 5.563, 1.2244, 1.0066], [1.1750, 0.9663, 0.8758, 0.8453]]
    np.testing.assert_allclose(found.test, expected, rtol=1e-4)
    assert found.learnability.shape == (2, 4, 10000)


def test_infinitely_many_features_are_the_kernel():
    kernel = risk.kernel_regression(EIGENVALUES, POWER, [20, 300], ridge=[[0.0], [0.1]], noise=0.3)
    for k, tolerance in ((1e9, 1e-6), (math.inf, 1e-14)):
        features = risk.random_features(
            EIGENVALUES, POWER, [20, 300], k, ridge=[[0.0], [0.1]], noise=0.3
        )
        for a, b in zip(kernel, features):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=1e-12)


def test_learnabilities_are_conserved():
    """They sum up to n - delta / kappa, to rounding, for any kernel."""
    n, delta = np.array([3.0, 40, 900]), np.array([[1e-12], [1e-3], [10.0]])
    found = risk.kernel_regression(EIGENVALUES, POWER, n, ridge=delta)
    np.testing.assert_allclose(found.learnability.sum(-1), n - delta / found.kappa, rtol=1e-10)
    bare = risk.kernel_regression(EIGENVALUES, POWER, n)
    np.testing.assert_allclose(bare.learnability.sum(-1), n, rtol=1e-12)
    assert (bare.train == 0).all()


def test_linear_regression_is_the_classical_one():
    """More samples than dimensions: test error n sigma^2 / (n - d), training error (n - d) sigma^2 / n."""
    found = risk.kernel_regression(np.ones(5), np.ones(5), [6.0, 10, 50], noise=0.5)
    n = np.array([6.0, 10, 50])
    np.testing.assert_allclose(found.test, n / (n - 5) * 0.5, rtol=1e-14)
    np.testing.assert_allclose(found.train, (n - 5) / n * 0.5, rtol=1e-14)
    assert (found.kappa == 0).all()
    peak = risk.kernel_regression(np.ones(5), np.ones(5), 5, noise=[0.0, 0.5])
    np.testing.assert_array_equal(peak.test, [0, np.inf])
    fewer = risk.kernel_regression(np.ones(5), np.ones(5), 4)
    assert float(fewer.test) == pytest.approx(1.0)  # |beta|^2 (1 - n / d)


def test_no_ridge_is_the_limit_of_small_ones():
    for n, k in ((100, 200), (200, 100), (50, math.inf)):
        bare, small = (
            risk.random_features(EIGENVALUES, POWER, n, k, ridge=r, noise=0.4) for r in (0.0, 1e-11)
        )
        np.testing.assert_allclose(bare.test, small.test, rtol=1e-5)
        np.testing.assert_allclose(bare.train, small.train, rtol=1e-5, atol=1e-10)
    peak = risk.random_features(EIGENVALUES, POWER, 128, 128, noise=0.4)
    assert peak.test == np.inf


def test_an_enormous_ridge_learns_nothing():
    for ridge in (1e200, 1e300, 1e308):
        found = risk.kernel_regression(EIGENVALUES, POWER, 5, ridge=ridge, noise=0.1)
        assert float(found.test) == pytest.approx(POWER.sum() + 0.1)
        assert float(found.train) == pytest.approx(POWER.sum() + 0.1)
        finite = risk.random_features(EIGENVALUES, POWER, 5, 20, ridge=ridge, noise=0.1)
        assert float(finite.test) == pytest.approx(POWER.sum() + 0.1)


def test_modes_that_the_kernel_lacks_are_noise():
    cut = np.where(RANKS <= 600, EIGENVALUES, 0)
    lost = POWER[600:].sum()
    short = risk.kernel_regression(EIGENVALUES[:600], POWER[:600], 128, ridge=0.1, noise=0.3 + lost)
    long = risk.kernel_regression(cut, POWER, 128, ridge=0.1, noise=0.3)
    np.testing.assert_allclose(long.test, short.test, rtol=1e-13)
    nothing = risk.kernel_regression(np.zeros(3), np.ones(3), 10, ridge=0.2)
    assert float(nothing.test) == pytest.approx(3)
    assert float(nothing.train) == pytest.approx(3)


def test_several_modes_of_one_eigenvalue():
    l, v, w = np.array([1.0, 0.1, 0.01]), np.array([1.0, 0.6, 0.4]), np.array([1, 5, 50])
    repeated = risk.kernel_regression(np.repeat(l, w), np.repeat(v / w, w), [7, 30], ridge=0.01)
    counted = risk.kernel_regression(l, v, [7, 30], ridge=0.01, multiplicity=w)
    np.testing.assert_allclose(counted.test, repeated.test, rtol=1e-13)
    np.testing.assert_allclose(counted.kappa, repeated.kappa, rtol=1e-13)


@pytest.mark.parametrize(("n", "k", "delta"), [(96, 48, 0.1), (96, 96, 0.01), (96, 300, 1.0)])
def test_random_features_by_simulation(n, k, delta):
    l = v = np.arange(1, 601.0) ** -1.5
    random, found = np.random.default_rng(0), []
    for _ in range(24):
        x, f = random.normal(size=(n, len(l))), random.normal(size=(len(l), k))
        y = x @ np.sqrt(v) + math.sqrt(0.5) * random.normal(size=n)
        weights = np.sqrt(l)[:, None] * f / math.sqrt(k)
        a = x @ weights
        dual = np.linalg.solve(a @ a.T + delta * np.eye(n), y)
        test = ((np.sqrt(v) - weights @ (a.T @ dual)) ** 2).sum() + 0.5
        found.append((test, np.mean((delta * dual) ** 2)))
    mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / math.sqrt(24)
    theory = risk.random_features(l, v, n, k, ridge=delta, noise=0.5)
    for i, expected in enumerate((theory.test, theory.train)):
        assert abs(mean[i] - expected) < 3 * error[i] + 0.02 * expected
    assert error[0] < 0.15 * mean[0]


@pytest.mark.parametrize(("n", "delta"), [(60, 0.0), (150, 0.5), (180, 0.0)])
def test_samples_without_replacement_by_simulation(n, delta):
    """Random eigenvectors; at 180 of 200 points the infinite population is wrong by more than a half."""
    count, sigma, random, found = 200, 0.3, np.random.default_rng(1), []
    l, v = np.arange(1, count + 1.0) ** -1.5, np.arange(1, count + 1.0) ** -1.2
    for _ in range(40):
        q = np.linalg.qr(random.normal(size=(count, count)))[0]
        kernel, y = (q * (l * count)) @ q.T, q @ np.sqrt(v * count)
        y = y + math.sqrt(sigma) * random.normal(size=count)
        dual = np.linalg.solve(kernel[:n, :n] + delta * np.eye(n), y[:n])
        test = np.mean((kernel[n:, :n] @ dual - y[n:]) ** 2)
        found.append((test, np.mean((delta * dual) ** 2)))
    mean, error = np.mean(found, 0), np.std(found, 0, ddof=1) / math.sqrt(40)
    theory = risk.kernel_regression(l, v, n, ridge=delta, noise=sigma, pool=count)
    for i, expected in enumerate((theory.test, theory.train)):
        assert abs(mean[i] - expected) <= 3 * error[i] + 0.02 * expected
    assert error[0] < 0.06 * mean[0]
    whole = risk.kernel_regression(l, v, n, ridge=delta, noise=sigma)
    if n == 180:
        assert whole.test > 1.5 * theory.test
    large = risk.kernel_regression(l, v, n, ridge=delta, noise=sigma, pool=1e9)
    np.testing.assert_allclose(large.test, whole.test, rtol=1e-5)


def test_the_best_ridge_is_the_best_of_many():
    ridges = np.geomspace(1e-3, 1e2, 301)
    for k in (40, 128, math.inf):
        best = risk.optimal_ridge(EIGENVALUES, POWER, 128, features=k, noise=0.5)
        swept = risk.random_features(EIGENVALUES, POWER, 128, k, ridge=ridges, noise=0.5)
        assert best.test <= swept.test.min() * (1 + 1e-12)
        assert best.test == pytest.approx(swept.test.min(), rel=1e-4)
        assert best.ridge == pytest.approx(ridges[swept.test.argmin()], rel=0.03)
        there = risk.random_features(EIGENVALUES, POWER, 128, k, ridge=best.ridge, noise=0.5)
        assert float(there.train) == pytest.approx(float(best.train), rel=1e-8)


def test_the_best_ridge_without_noise_may_be_none():
    easy = RANKS**-2.5
    best = risk.optimal_ridge(EIGENVALUES, easy, [30, 100], noise=[[0.0], [0.1]])
    assert (best.ridge[0] == 0).all()
    assert (best.train[0] == 0).all()
    assert (best.ridge[1] > 0).all()
    plain = risk.optimal_ridge(np.ones(4), np.ones(4), 10, noise=0.4)
    assert float(plain.test) < 10 / 6 * 0.4  # ridge helps isotropic regression with noise


def test_more_is_better():
    """At the best ridge the risk falls with samples and with features; at a fixed one it has a peak."""
    counts = np.array([16, 64, 128, 256, 1024])
    for options in ({"samples": 128, "features": counts}, {"samples": counts, "features": 128}):
        best = risk.optimal_ridge(EIGENVALUES, POWER, noise=0.5, **options)
        assert (np.diff(best.test) < 0).all()
        fixed = risk.random_features(EIGENVALUES, POWER, noise=0.5, ridge=1e-3, **options)
        assert fixed.test[2] > 2 * fixed.test[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eigenvalues": [1.0, -0.1]}, "eigenvalues has the entry -0.1; .* clip"),
        ({"power": [1.0]}, "have the shapes"),
        ({"power": ["a", "b"]}, "power is"),
        ({"power": [1.0, math.nan]}, "power has the entry nan"),
        ({"samples": 0}, "samples has the entry 0"),
        ({"ridge": -1.0}, "ridge has the entry -1"),
        ({"noise": math.inf}, "noise has the entry inf"),
        ({"samples": [1, 2], "ridge": [1, 2, 3]}, "do not broadcast"),
        ({"multiplicity": [1.0, 2, 3]}, "have the shapes"),
        ({"pool": 10}, "pool is 10; .* larger than samples, up to 12"),
        ({"pool": [20, 30]}, "pool has the shape"),
        ({"pool": 13, "multiplicity": [1, 20]}, "at least the number of modes, 21"),
    ],
)
def test_mistakes_are_named(change, message):
    settings = {"eigenvalues": [1.0, 0.1], "power": [1.0, 1.0], "samples": 12} | change
    with pytest.raises((ValueError, TypeError), match=message):
        risk.kernel_regression(**settings)
