import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.scaling import fit_power_law, refined_optimum

RATES = 2.0 ** np.arange(-4, 5)
WIDTHS = 2.0 ** np.arange(6, 12)
KEY = jax.random.key(0)


@settings(deadline=None)
@given(
    best=st.floats(-3, 3),
    curvature=st.floats(0.01, 1),
    floor=st.floats(-5, 5),
    steps=st.lists(st.floats(0.2, 3), min_size=2, max_size=8),
)
def test_the_vertex_of_a_parabola_is_recovered_on_any_grid(best, curvature, floor, steps):
    x = np.concatenate([[0], np.cumsum(steps)])
    x = x - x[len(x) // 2] + best + 0.1 * min(steps)  # the vertex is near the middle of the grid
    optimum = refined_optimum(2**x, np.exp(floor + curvature * (x - best) ** 2))
    assert optimum.edge == ""
    np.testing.assert_allclose(optimum.log2_rate, best, atol=1e-6)
    np.testing.assert_allclose(optimum.log_loss, floor, atol=1e-6)


def test_seeds_are_averaged_as_geometric_means_and_give_the_error():
    x, centers = np.log2(RATES), np.array([0.1, 0.3, 0.5])
    losses = np.exp(0.5 * (x - centers[:, None]) ** 2)
    optimum = refined_optimum(RATES, losses)
    np.testing.assert_allclose(optimum.per_seed, centers, atol=1e-9)
    np.testing.assert_allclose(optimum.log2_rate, 0.3, atol=1e-9)
    np.testing.assert_allclose(optimum.standard_error, 0.2 / np.sqrt(3), atol=1e-9)
    np.testing.assert_allclose(np.exp(losses.shape[0] * optimum.log_loss), np.exp(0.12 / 3 * 1.0))
    assert np.isnan(refined_optimum(RATES, losses[0]).standard_error)


@pytest.mark.parametrize(
    ("center", "diverges_from", "edge", "rate"),
    [
        (9, None, "high end", 4),
        (-9, None, "low end", -4),
        (9, 2.5, "divergence", 2),
        (0.2, 2.5, "", 0.2),
        (0, -5, "all diverged", np.nan),
    ],
)
@pytest.mark.parametrize("failure", [np.inf, np.nan])
def test_divergence_and_the_end_of_the_grid_are_reported(
    center, diverges_from, edge, rate, failure
):
    x = np.log2(RATES)
    losses = np.exp(0.1 * (x - center) ** 2)
    if diverges_from is not None:
        losses = np.where(x > diverges_from, failure, losses)
    optimum = refined_optimum(RATES, losses)
    assert optimum.edge == edge
    np.testing.assert_allclose(optimum.log2_rate, rate, atol=1e-9)


def test_one_diverging_seed_rules_a_rate_out():
    losses = np.exp(0.1 * (np.log2(RATES) - 2) ** 2)
    losses = np.stack([losses, np.where(RATES >= 4, np.inf, losses)])
    optimum = refined_optimum(RATES, losses)
    assert (optimum.log2_rate, optimum.edge) == (1.0, "divergence")
    np.testing.assert_allclose(optimum.per_seed, [2, 1], atol=1e-9)


def test_equal_losses_keep_their_grid_point():
    losses = np.array([2.0, 1.0, 1.0, 1.0, 2.0])
    assert refined_optimum(RATES[:5], losses).log2_rate in (-3.0, -2.5)
    assert refined_optimum(RATES[:3], np.ones(3)).edge == "low end"


@given(exponent=st.floats(-3, 3), log_prefactor=st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_an_exact_power_law_is_recovered(exponent, log_prefactor):
    law = fit_power_law(WIDTHS, np.exp(log_prefactor) * WIDTHS**exponent, KEY, num_samples=20)
    np.testing.assert_allclose(law.exponent, exponent, atol=1e-9)
    np.testing.assert_allclose(law.prefactor, np.exp(log_prefactor), rtol=1e-7)
    np.testing.assert_allclose(law.exponent_interval, exponent, atol=1e-9)
    assert law.offset == 0


@given(exponent=st.one_of(st.floats(-2, -0.2), st.floats(0.2, 2)), offset=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_an_exact_power_law_with_an_offset_is_recovered(exponent, offset):
    y = 3 * (WIDTHS / 64) ** exponent + offset
    law = fit_power_law(WIDTHS, y, KEY, offset=True, num_samples=20)
    np.testing.assert_allclose(law.exponent, exponent, atol=1e-4)
    np.testing.assert_allclose(law.offset, offset, rtol=1e-3)
    np.testing.assert_allclose(law.prefactor * 64**law.exponent, 3, rtol=1e-2)
    without = fit_power_law(WIDTHS, y, KEY, num_samples=20)
    assert abs(without.exponent) < abs(exponent)  # an offset that is not fitted flattens the law


def test_the_fit_is_that_of_numpy():
    y = WIDTHS**-0.5 * np.exp(0.3 * np.random.default_rng(0).normal(size=(4, 6)))
    slope, level = np.polyfit(np.log(WIDTHS), np.log(y).mean(axis=0), 1)
    law = fit_power_law(WIDTHS, y, KEY)
    np.testing.assert_allclose([law.exponent, np.log(law.prefactor)], [slope, level], rtol=1e-9)


@pytest.mark.parametrize(
    ("seeds", "offset", "trials"), [(None, False, 200), (3, False, 200), (4, True, 60)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, offset, trials):
    rng = np.random.default_rng(1)
    truth = 10 * WIDTHS**-0.5 + (0.5 if offset else 0)
    hits = 0
    for _ in range(trials):
        shape = WIDTHS.shape if seeds is None else (seeds, WIDTHS.size)
        y = truth * np.exp(0.05 * rng.normal(size=shape))
        law = fit_power_law(WIDTHS, y, KEY, offset=offset, confidence=0.8, num_samples=200)
        hits += law.exponent_interval[0] <= -0.5 <= law.exponent_interval[1]
    assert 0.7 < hits / trials < 0.9


def test_the_interval_depends_on_the_key_alone_and_grows_with_confidence():
    y = WIDTHS**-0.5 * np.exp(0.1 * np.random.default_rng(2).normal(size=6))
    first, again = fit_power_law(WIDTHS, y, KEY), fit_power_law(WIDTHS, y, KEY)
    np.testing.assert_array_equal(first.exponent_interval, again.exponent_interval)
    narrow = fit_power_law(WIDTHS, y, KEY, confidence=0.5)
    assert np.ptp(narrow.exponent_interval) < np.ptp(first.exponent_interval)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: refined_optimum(RATES[::-1], RATES), "increasing order"),
        (lambda: refined_optimum(RATES[:2], RATES[:2]), "at least three"),
        (lambda: refined_optimum(RATES, RATES[:4]), r"\(1, 4\) do not match 9 learning rates"),
        (lambda: refined_optimum(RATES, 0 * RATES), "9 losses are not positive.*earlier step"),
        (lambda: fit_power_law(WIDTHS, WIDTHS[:3], KEY), "do not match"),
        (lambda: fit_power_law(WIDTHS[:2], WIDTHS[:2], KEY), "2 different x are too few: 3"),
        (lambda: fit_power_law(WIDTHS[:3], WIDTHS[:3], KEY, offset=True), "too few: 4"),
        (lambda: fit_power_law(WIDTHS, np.inf * WIDTHS, KEY), "drop diverged runs"),
        (
            lambda: fit_power_law(WIDTHS, WIDTHS, KEY, confidence=95),
            "confidence is 95; it must be a number in",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
