"""Which examples to keep, and how far scores agree: by hand, against scipy, and errors against spreads."""

import jax
import numpy as np
import pytest
from scipy import stats

from metrics import examples

SCORES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, np.inf, 0.0])


def test_which_are_kept_by_hand():
    assert examples.keep(SCORES, 0.3).tolist() == [8, 5, 7]
    assert examples.keep(SCORES, 0.3, skip=0.2).tolist() == [7, 4, 2]
    assert examples.keep(SCORES, 0.3, order="easy").tolist() == [9, 1, 3]
    assert examples.keep(SCORES, 1.0, order="easy").tolist() == [9, 1, 3, 6, 0, 2, 4, 7, 5, 8]
    assert examples.keep(SCORES, 0.5, order="easy", skip=0.5).tolist() == [9, 1, 3, 6, 0]


def test_random_examples_are_drawn_from_all_that_are_not_skipped():
    kept = [
        examples.keep(SCORES, 0.4, order="random", skip=0.3, key=key)
        for key in jax.random.split(jax.random.key(0), 200)
    ]
    assert all(len(set(ids.tolist())) == 4 for ids in kept)
    counts = np.bincount(np.concatenate(kept), minlength=10)
    assert (counts[[8, 5, 7]] == 0).all()
    drawn = counts[[0, 1, 2, 3, 4, 6, 9]]
    assert (abs(drawn - 200 * 4 / 7) < 4 * np.sqrt(200 * 4 / 7 * 3 / 7)).all()


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys_and_its_jackknife_that_of_leaving_out(ties):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 40))
    b += a
    if ties:
        a, b = np.round(a), np.round(2 * b) / 2
    found = examples.rank_correlation(a, b)
    assert found.value == pytest.approx(stats.spearmanr(a, b).statistic)
    without = [stats.spearmanr(np.delete(a, i), np.delete(b, i)).statistic for i in range(40)]
    assert found.error == pytest.approx(np.sqrt(39 * np.var(without)))


def test_blocks_change_nothing(monkeypatch):
    a, b = np.random.default_rng(1).normal(size=(2, 50))
    whole = examples.rank_correlation(a, b)
    monkeypatch.setattr("metrics.ranks._BLOCK", 300)
    np.testing.assert_allclose(examples.rank_correlation(a, b), whole, rtol=1e-12)


def test_equal_scores_have_no_correlation():
    assert np.isnan(examples.rank_correlation(np.ones(5), np.arange(5)).value)


def noisy(random, networks, noise, size=400):
    return random.normal(size=size) + noise * random.normal(size=(networks, size))


def test_reliability_is_the_correlation_of_halves():
    """The second road: means of half of the networks against means of the others."""
    random = np.random.default_rng(0)
    predicted, measured = [], []
    for _ in range(20):
        scores = noisy(random, 8, 2.0)
        predicted.append(examples.reliability(scores, 4).value)
        halves = scores[:4].mean(0), scores[4:].mean(0)
        measured.append(examples.rank_correlation(*halves).value)
    assert np.mean(predicted) == pytest.approx(np.mean(measured), abs=0.02)
    assert np.mean(predicted) == pytest.approx(0.5, abs=0.03)  # 1 / (1 + 2^2 / 4)
    assert examples.reliability(scores, 1).value < examples.reliability(scores).value
    assert abs(examples.reliability(np.random.default_rng(1).normal(size=(8, 400))).value) < 0.3


@pytest.mark.parametrize("kind", ["correlation", "reliability"])
def test_errors_are_spreads(kind):
    random, found = np.random.default_rng(2), []
    truth = random.normal(size=60)
    for _ in range(400):
        if kind == "correlation":
            a = random.normal(size=30)
            found.append(examples.rank_correlation(a, a + random.normal(size=30)))
        else:
            scores = truth + random.normal(size=(6, 60)) * random.lognormal(0, 0.5, size=(6, 1))
            found.append(examples.reliability(scores, 2))
    values, errors = np.array(found).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=0.2)


def test_a_reliability_that_is_no_correlation_is_nan():
    """Of noise and many networks: below r = -1/(2n - 1) the formula is below -1, later past its pole above 1."""
    random = np.random.default_rng(0)
    found = np.array(
        [examples.reliability(random.normal(size=(4, 50)), 40).value for _ in range(60)]
    )
    there = found[~np.isnan(found)]
    assert 10 < there.size < 50
    assert np.abs(there).max() <= 1
