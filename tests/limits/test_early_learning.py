"""One step from wrong labels: the closed form against an exact integral, and against drawn examples."""

import jax
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


@pytest.mark.parametrize("signal", [0.3, 1.0, 3.0, 10.0, 20.0])
@pytest.mark.parametrize("flip", [0.2, 0.45])
def test_from_300_dimensions_on_it_is_within_a_hundredth(signal, flip):
    setting = (300, 200, signal, 1.0, flip)
    exact = [integral(*setting, own, others) for own, others in ((-1, 199), (1, 199), (0, 200))]
    np.testing.assert_allclose(early_learning.first_step(*setting)[:3], exact, atol=0.01)


def test_in_one_dimension_it_is_within_a_twentieth_and_not_a_hundredth():
    setting = (1, 200, 3.0, 1.0, 0.45)
    random = np.random.default_rng(0)
    drawn = [draw(random, *setting) for _ in range(5000)]
    shares = np.mean([[r[w].mean(), r[~w].mean(), new.mean()] for w, r, new in drawn], axis=0)
    away = np.abs(shares - early_learning.first_step(*setting)[:3])
    assert (away < 0.05).all()
    assert (away > 0.015).all()


@pytest.mark.parametrize("scale", [1e-160, 1e100, 1e300])
def test_no_scale_overflows(scale):
    found = early_learning.first_step(10, 200, 3 * scale, scale, 0.2)
    np.testing.assert_allclose(found, early_learning.first_step(10, 200, 3.0, 1.0, 0.2))


def test_signals_without_noise_and_noise_without_signal():
    far = early_learning.first_step(10, 200, 1e100, 1.0, 0.2)
    np.testing.assert_allclose(far[:3], 1, atol=1e-6)
    assert early_learning.first_step(10, 200, 1.0, 1e-200, 0.0) == (1, 1, 1, np.inf)
    # Two examples with right labels: had one a wrong label, its own pull and the other's would cancel.
    assert early_learning.first_step(10, 2, 1.0, 1e-200, 0.0) == (0.5, 1, 1, 0)
    lost = early_learning.first_step(10, 200, 1e-200, 1.0, 0.2)
    assert lost.mislabelled < lost.test == 0.5 < lost.labelled


def test_traced_numbers_are_refused_in_words():
    with pytest.raises(TypeError, match=r"signal is traced; .* outside of jit"):
        jax.jit(lambda v: early_learning.first_step(10, 200, v, 1.0, 0.2))(1.0)


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
