"""Linear probes: against scikit-learn, by hand, and exact errors against samples."""

import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from metrics import probes

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4)) * [1, 2, 0.5, 30] + [0, 0, 0, 100]
LABELS = RANDOM.integers(0, 3, 60)
X[:, 1] += LABELS


def test_naive_bayes_is_bayes_rule_of_its_gaussians():
    """Differences of log posteriors, by the densities themselves."""
    found = probes.naive_bayes(X, LABELS, 3)
    means = np.array([X[k == LABELS].mean(0) for k in range(3)])
    shares = np.array([(k == LABELS).mean() for k in range(3)])
    variances = sum(shares[k] * X[k == LABELS].var(0) for k in range(3))
    density = -np.square(X[:, None] - means) / (2 * variances)
    posterior = density.sum(2) + np.log(shares)
    scores = X @ found.weights + found.bias
    np.testing.assert_allclose(scores - scores[:, :1], posterior - posterior[:, :1], atol=1e-6)


@pytest.mark.parametrize("decay", [0.1, 10.0])
def test_logistic_is_scikit_learns(decay):
    found = probes.logistic(X, LABELS, 3, decay=decay)
    other = LogisticRegression(C=1 / decay, tol=1e-8, max_iter=5000).fit(X - X.mean(0), LABELS)
    scores = X @ found.weights + found.bias
    expected = (X - X.mean(0)) @ other.coef_.T + other.intercept_
    expected -= expected.mean(1, keepdims=True)
    np.testing.assert_allclose(scores - scores.mean(1, keepdims=True), expected, atol=2e-3)
    np.testing.assert_allclose(found.weights.sum(1), 0, atol=1e-8)


def test_two_classes_are_one_vector_of_half_the_decay():
    y = (LABELS > 0).astype(int)
    found = probes.logistic(X, y, 2, decay=2.0)
    other = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(X - X.mean(0), y)
    np.testing.assert_allclose(found.weights[:, 1] - found.weights[:, 0], other.coef_[0], atol=1e-3)


def test_accuracy_by_hand():
    probe = probes.Linear(np.eye(2), np.array([0.0, 0.5]))
    assert probes.accuracy(probe, [[1, 0], [1, 0.6], [0, 1.0]], [0, 1, 0]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.8)])
def test_the_exact_error_is_that_of_samples_and_bayes_has_the_least(shares):
    random = np.random.default_rng(1)
    means, root = random.normal(size=(2, 3)), random.normal(size=(3, 3))
    covariance = root @ root.T + np.eye(3)
    y = (random.random(200_000) < shares[1]).astype(int)
    x = means[y] + random.multivariate_normal(np.zeros(3), covariance, size=y.size)
    best = probes.bayes(means, covariance, shares)
    least = probes.gaussian_error(best, means, covariance, shares)
    for probe in (best, probes.Linear(random.normal(size=(3, 2)), random.normal(size=2))):
        error = probes.gaussian_error(probe, means, covariance, shares)
        measured = 1 - probes.accuracy(probe, x, y)
        assert abs(error - measured) < 4 * np.sqrt(error * (1 - error) / y.size)
        assert error >= least
    nearby = best._replace(bias=best.bias + np.array([0, 0.1]))
    assert probes.gaussian_error(nearby, means, covariance, shares) > least


def test_a_diagonal_covariance_is_its_matrix_and_rules_without_weights_guess():
    means, variances = np.array([[0.0, 1], [1, 0]]), np.array([2.0, 3.0])
    probe = probes.bayes(means, variances)
    np.testing.assert_allclose(probe.weights, probes.bayes(means, np.diag(variances)).weights)
    assert probes.gaussian_error(probe, means, variances) == pytest.approx(
        probes.gaussian_error(probe, means, np.diag(variances))
    )
    nothing = probes.Linear(np.zeros((2, 2)), np.zeros(2))
    assert probes.gaussian_error(nothing, means, variances) == 0.5
    one = nothing._replace(bias=np.array([0.0, 1.0]))
    assert probes.gaussian_error(one, means, variances, (0.3, 0.7)) == pytest.approx(0.3)


@pytest.mark.parametrize("decay", [1e-4, 1e-6, 1e-8, 1e-20])
def test_logistic_of_separable_classes_goes_to_its_minimum(decay):
    """One example of each class on its own axis: by symmetry one number a, the gap of two scores is 15 a."""

    def slope(a):
        return decay * a - 20 / (np.exp(15 * a) + 2)

    expected = optimize.brentq(slope, 0, 10)
    found = probes.logistic(10 * np.eye(3), np.arange(3), 3, decay=decay).weights
    np.testing.assert_allclose(np.diag(found), expected, rtol=1e-3)


def test_a_probe_of_nan_has_no_accuracy():
    probe = probes.Linear(np.full((2, 2), np.nan), np.zeros(2))
    with pytest.raises(ValueError, match=r"weights\[0, 0\] is nan; it must be finite"):
        probes.accuracy(probe, np.eye(2), [0, 0])


def test_a_decay_below_double_precision_is_refused():
    with pytest.raises(ValueError, match="decay is 1e-250; it must be at least 1e-100"):
        probes.logistic(10 * np.eye(3), np.arange(3), 3, decay=1e-250)
