"""One step from wrong labels: the closed form against an exact integral, and against drawn examples."""

import numpy as np
import pytest
from scipy import special, stats

from limits import early_learning

SETTINGS = [(20, 200, 3.0, 1.0, 0.3), (400, 200, 3.0, 1.0, 0.3), (1600, 200, 3.0, 1.0, 0.3),
            (300, 400, 2.0, 0.7, 0.1), (900, 300, 3.0, 1.5, 0.4)]  # fmt: skip


def integral(dim, n, v, s, flip, own, others):
    """Given x and the others' sum A the score is normal: the expectation of its probability over both."""
    flips = np.arange(others + 1)
    weights = stats.binom.pmf(flips, others, flip)
    keep = weights > 1e-12
    total, weights = (others - 2 * flips)[keep, None, None], weights[keep, None, None]
    nodes, normal = np.polynomial.hermite_e.hermegauss(30)
    levels, uniform = np.polynomial.legendre.leggauss(40)
    rest = stats.chi2.ppf((levels + 1) / 2, dim - 1)[:, None]
    along = v + s * nodes
    norm2 = along**2 + s**2 * rest
    scores = (total * v * along + own * norm2) / (s * np.sqrt(others * norm2))
    inner = (special.ndtr(scores) * uniform[:, None] / 2).sum(1) * normal / normal.sum()
    return float((inner * weights[:, 0]).sum())


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_closed_form_is_within_a_hundredth_of_the_integral(setting):
    found = early_learning.first_step(*setting)
    n = setting[1]
    exact = [integral(*setting, own, others) for own, others in ((-1, n - 1), (1, n - 1), (0, n))]
    np.testing.assert_allclose(found[:3], exact, atol=0.01)


def draw(random, dim, n, v, s, flip):
    """(wrong, whether predicted as the true class) of the examples and of as many new ones after one step."""
    y = random.choice([-1.0, 1.0], (2, n))
    x = s * random.standard_normal((2, n, dim))
    x[:, :, 0] += v * y
    wrong = random.random(n) < flip
    w = np.where(wrong, -y[0], y[0]) @ x[0]
    right = (x @ w) * y > 0
    return wrong, right[0], right[1]


def test_drawn_examples_agree():
    setting = (700, 200, 3.0, 1.0, 0.3)
    random = np.random.default_rng(0)
    drawn = [draw(random, *setting) for _ in range(150)]
    shares = np.array([[r[w].mean(), r[~w].mean(), new.mean()] for w, r, new in drawn])
    error = shares.std(0, ddof=1) / np.sqrt(len(shares))
    found = early_learning.first_step(*setting)
    assert (np.abs(shares.mean(0) - found[:3]) < 3 * error + 0.005).all()
    assert 0.4 < found.mislabelled < 0.6  # where the formula is put to the test


def test_the_critical_dimension_is_where_a_wrong_label_is_a_coin():
    setting = (200, 3.0, 1.0, 0.3)
    edge = early_learning.first_step(10, *setting).critical_dim
    assert edge == pytest.approx((199 * 0.4 - 1) * 9)
    below, above = (early_learning.first_step(int(edge) + k, *setting) for k in (0, 1))
    assert below.mislabelled > 0.5 > above.mislabelled
    assert early_learning.first_step(10, 3, 1.0, 1.0, 0.4).critical_dim < 0


def test_units_do_not_matter():
    one, other = (early_learning.first_step(300, 100, 3.0 * k, 1.0 * k, 0.2) for k in (1, 7))
    np.testing.assert_allclose(one, other, rtol=1e-12)
