"""The inequality between errors and cross-entropies: no exception for random scores, tightness, and the inverse."""

import numpy as np
import pytest
from scipy import optimize

from limits import surrogate


def regrets(p, scores):
    """Of the error and of the cross-entropy of one input."""
    q = np.exp(scores - scores.max())
    q /= q.sum()
    return p.max() - p[scores.argmax()], float(np.sum(p * np.log(p / q)))


def test_no_scores_fall_below():
    random = np.random.default_rng(0)
    for _ in range(3000):
        classes = random.integers(2, 6)
        p = random.dirichlet(np.full(classes, random.choice([0.3, 1.0, 3.0]))) + 1e-12
        p /= p.sum()
        scores = np.log(p) + random.choice([0.1, 1.0]) * random.normal(size=classes)
        error, entropy = regrets(p, scores)
        assert entropy >= surrogate.logistic_gap(min(error, 1.0)) - 1e-12
        assert error <= surrogate.largest_regret(max(entropy, 0.0)) + 1e-9


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 0.9])
def test_two_classes_attain_it(t):
    p = np.array([(1 + t) / 2, (1 - t) / 2])
    least = optimize.minimize_scalar(
        lambda s: regrets(p, np.array([0.0, s**2 + 1e-12]))[1], bounds=(0, 3), method="bounded"
    )
    assert surrogate.logistic_gap(t) == pytest.approx(least.fun, rel=1e-4)
    assert surrogate.logistic_gap(t) == pytest.approx(regrets(p, np.zeros(2))[1], rel=1e-9)


def test_more_classes_cost_more():
    """Of a best class and a preferred one with a = .6 of the probability in all."""
    p, t = np.array([0.4, 0.2, 0.4 - 1e-9]), 0.2
    a = p[0] + p[1]
    least = ((a + t) * np.log((a + t) / a) + (a - t) * np.log((a - t) / a)) / 2
    found = optimize.minimize(
        lambda s: regrets(p, np.array([s[0], s[0] + 1e-9, s[1]]))[1], [0.0, 0.0],
        method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14},
    )  # fmt: skip
    assert found.fun == pytest.approx(least, rel=1e-5)
    assert least > surrogate.logistic_gap(t)


def test_the_inverse_inverts():
    t = np.concatenate([[0.0], np.geomspace(1e-6, 0.999, 50), [1.0]])
    np.testing.assert_allclose(surrogate.largest_regret(surrogate.logistic_gap(t)), t, rtol=1e-8)
    assert surrogate.largest_regret(5.0) == 1.0
    assert surrogate.logistic_gap(1.0) == pytest.approx(np.log(2))
    np.testing.assert_allclose(
        surrogate.logistic_gap([0.00999999, 0.01000001]), [4.9999e-5 + 8e-10] * 2, rtol=1e-4
    )
