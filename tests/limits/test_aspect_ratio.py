"""Information between outputs: its series against exact quadrature, and against a sum over samples."""

import numpy as np
import pytest

from limits.aspect_ratio import mutual_information, optimal_aspect_ratio


@pytest.mark.parametrize(("m1", "m2"), [(1, 1), (1, 3), (5, 5)])
def test_the_series_is_that_of_the_exact_information(m1, m2):
    x = np.array([0.004, 0.008, 0.012, 0.016])
    exact = mutual_information(np.expm1(x), m1, m2, order="lognormal") / (m1 * m2 / 8)
    in_x = np.polyfit(x, (exact / x**2 - 1) / x, 2)[-1]
    assert in_x == pytest.approx(-(14 + 3 * (m1 + m2)) / 6, abs=0.01)
    v = np.expm1(x)
    in_v = np.polyfit(v, (exact / v**2 - 1) / v, 2)[-1]
    series = mutual_information(v, m1, m2) / mutual_information(v, m1, m2, order=2)
    assert in_v == pytest.approx(np.mean((series - 1) / v), abs=0.02)


def test_the_optimum_is_that_of_the_series_and_the_exact_information_has_none():
    v = np.linspace(0.01, 1, 2000)
    for outputs in (2, 10):
        best = v[mutual_information(v, 1, outputs - 1).argmax()]
        assert optimal_aspect_ratio(1.0, outputs) == pytest.approx(best, abs=1e-3)
        end = 6 / (20 + 3 * outputs)
        np.testing.assert_allclose(mutual_information(end, 1, outputs - 1), 0, atol=1e-15)
        assert mutual_information(1.01 * end, 1, outputs - 1) < 0
    exact = mutual_information(np.array([0.1, 0.3, 1, 3, 10]), 5, 5, order="lognormal")
    assert (np.diff(exact) > 0).all()
    assert optimal_aspect_ratio(2 / 3, 1) == pytest.approx(0.2609, abs=1e-4)


def test_the_quadrature_against_samples():
    """Densities of two outputs averaged over G, at v = 1."""
    random = np.random.default_rng(0)
    x = np.log(2.0)
    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    G, mass = np.exp(np.sqrt(x) * nodes - x / 2), mass / mass.sum()
    scale = np.exp(np.sqrt(x) * random.standard_normal((100_000, 1)) / 2 - x / 4)
    z = scale * random.standard_normal((100_000, 2))

    def log_density(squares, count):
        each = np.exp(-squares[:, None] / (2 * G[None])) / (2 * np.pi * G[None]) ** (count / 2)
        return np.log(each @ mass)

    terms = (
        log_density((z**2).sum(1), 2) - log_density(z[:, 0] ** 2, 1) - log_density(z[:, 1] ** 2, 1)
    )
    error = terms.std() / np.sqrt(len(terms))
    exact = float(mutual_information(1.0, 1, 1, order="lognormal"))
    assert exact == pytest.approx(terms.mean(), abs=4 * error)
    assert exact > 5 * error


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="order is 4"):
        mutual_information(0.1, 1, 1, order=4)
    with pytest.raises(ValueError, match="v is"):
        mutual_information(-0.1, 1, 1)
    with pytest.raises(ValueError, match="outputs"):
        optimal_aspect_ratio(1.0, 0)
