"""Exact generalisation: the classifier by simulation, the Gibbs algorithm over sequences, contraction by sums."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, linalg, stats

from limits import generalization


@pytest.mark.parametrize(
    ("m", "s", "r", "n"), [(0.3 * 8**0.5, 1.5, 8, 10), (1.0, 2.0, 3, 4), (0.5, 1.0, 1, 2)]
)
def test_errors_of_the_classifier_by_simulation(m, s, r, n):
    random, runs = np.random.default_rng(0), 40_000
    mean = np.full(r, m / math.sqrt(r))
    t = mean + s * random.normal(size=(runs, n + 1, r))
    w = t[:, :n].mean(1)
    wrong = np.einsum("knr,kr->kn", t, w) < 0
    found = generalization.gaussian_gap(m, s, r, n)
    train, test = wrong[:, :n].mean(1), wrong[:, n]
    assert abs(found.train - train.mean()) < 4 * train.std() / math.sqrt(runs)
    assert abs(found.test - test.mean()) < 4 * test.std() / math.sqrt(runs)


def test_one_dimension_by_quadrature_and_no_signal():
    m, s, n = 0.8, 1.3, 5
    found = generalization.gaussian_gap(m, s, 1, n)
    right = stats.norm.cdf(m * math.sqrt(n) / s)
    error = stats.norm.sf(m / s)
    assert found.test == pytest.approx(right * error + (1 - right) * (1 - error), abs=1e-12)
    spread = s / math.sqrt(n)

    def density(w):
        return stats.norm.pdf(w, m, spread) * stats.norm.sf(abs(w) / (s * math.sqrt(1 - 1 / n)))

    parts = [integrate.quad(density, *ends)[0] for ends in ((m - 12, 0), (0, m + 12))]
    assert found.train == pytest.approx(sum(parts), abs=1e-10)
    assert generalization.gaussian_gap(0.0, 1.0, 4, 9).test == pytest.approx(0.5)
    # Large sums: with many examples both are Q(|m| / s).
    large = generalization.gaussian_gap(1.0, 1.0, 2, 20_000)
    np.testing.assert_allclose(large, stats.norm.sf(1), rtol=1e-3)


def test_the_bound_holds_and_shrinks_with_rank():
    for d, s, n in itertools.product((16, 64), (1.0, 3.0), (5, 10, 100)):
        ranks = (d, d // 4, 2, 1)
        bounds = [
            generalization.gap_bound(generalization.gaussian_information(r, n)) for r in ranks
        ]
        assert bounds == sorted(bounds, reverse=True)
        for r, bound in zip(ranks, bounds):
            train, test = generalization.gaussian_gap(math.sqrt(r / d), s, r, n)
            assert 0 < test - train <= bound
    assert generalization.gap_bound(0.5, 4) == pytest.approx(0.25)


def test_information_is_that_of_the_joint_gaussian():
    n, r = 7, 3
    both = np.kron([[1 / n, 1 / n], [1 / n, 1]], np.eye(r))
    log_det = [np.linalg.slogdet(c)[1] for c in (both[:r, :r], both[r:, r:], both)]
    found = generalization.gaussian_information(r, n)
    assert found == pytest.approx((log_det[0] + log_det[1] - log_det[2]) / 2)


def test_distances_of_layers():
    random = np.random.default_rng(0)
    layers = [random.normal(size=shape) for shape in ((6, 5), (3, 6), (4, 3))]
    s, n = 1.4, 6
    found = generalization.deep_linear(layers, s, n)
    np.testing.assert_array_equal(found.ranks, [5, 5, 3, 3])
    np.testing.assert_allclose(
        found.information, [generalization.gaussian_information(r, n) for r in (5, 5, 3, 3)]
    )
    a = layers[1] @ layers[0]
    # The distance of two Gaussians by Bures, averaged over classifiers.
    test, train = s**2 * a @ a.T, s**2 * (1 - 1 / n) * a @ a.T
    root = linalg.sqrtm(test)
    bures = np.trace(test + train - 2 * linalg.sqrtm(root @ train @ root)).real
    moved = s**2 / n * (a**2).sum()
    assert found.distance[2] ** 2 == pytest.approx(moved + bures)
    assert found.bound[2] == pytest.approx(found.distance[2] * np.linalg.norm(layers[2], 2))
    assert found.bound[3] == found.distance[3]
    inside = 0
    for seed in range(50):
        random = np.random.default_rng(seed)
        widths = random.integers(2, 12, 5)
        nets = [
            random.normal(size=(b, a)) * random.choice([0.3, 2]) / math.sqrt(a)
            for a, b in itertools.pairwise(widths)
        ]
        found = generalization.deep_linear(nets, 1.0, 5)
        assert found.bound[-1] <= found.bound.min() * (1 + 1e-12)
        inside += 0 < found.distance.argmin() < len(nets)
    assert inside > 5


@pytest.mark.parametrize("gamma", [0.5, 8.0, 128.0])
def test_gibbs_over_all_sequences(gamma):
    random = np.random.default_rng(3)
    losses, odds = random.random((4, 3)), np.array([0.5, 0.3, 0.2])
    prior, n = random.dirichlet(np.ones(4)), 4
    found = generalization.gibbs(losses, odds, n, gamma, prior=prior)
    sets = list(itertools.product(range(3), repeat=n))
    weight = np.array([odds[list(s)].prod() for s in sets])
    empirical = np.array([losses[:, list(s)].mean(1) for s in sets])
    chosen = prior * np.exp(-gamma * empirical)
    chosen /= chosen.sum(1, keepdims=True)
    mean = weight @ chosen
    joint = weight[:, None] * chosen
    apart = weight[:, None] * mean
    assert found.gap == pytest.approx((joint * (losses @ odds - empirical)).sum(), abs=1e-12)
    assert found.mutual == pytest.approx((joint * np.log(joint / apart)).sum(), abs=1e-12)
    assert found.lautum == pytest.approx((apart * np.log(apart / joint)).sum(), rel=1e-10)
    assert found.gap == pytest.approx((found.mutual + found.lautum) / gamma, abs=1e-11)
    assert found.gap <= generalization.gap_bound(found.mutual, n)
    one = generalization.gibbs(losses[:, :1], [1.0], n, gamma)
    np.testing.assert_allclose(one, 0, atol=1e-12)


def kl(p, q):
    return float(np.sum(p * np.log(p / q)))


def test_dropout_contracts_and_copies_attain_it():
    d, rate = 3, 0.4
    bits = np.array(list(itertools.product((0, 1), repeat=d)))

    def dropped(p):
        """Law of (which are kept, their values)."""
        made = []
        for mask in bits:
            odds = np.where(mask, 1 - rate, rate).prod()
            kept = (bits * mask) @ (1 << np.arange(d))
            made.append(odds * np.bincount(kept, p, 2**d))
        return np.concatenate(made)

    coefficient = generalization.dropout_contraction(rate, d)
    assert coefficient == pytest.approx(1 - 0.064)
    random = np.random.default_rng(0)
    for _ in range(50):
        p, q = random.dirichlet(np.ones(2**d), size=2)
        after = [x[x > 0] for x in (dropped(p), dropped(q))]
        assert kl(*after) <= coefficient * kl(p, q)
    p, q = (np.array([a, *[1e-300] * 6, 1 - a]) for a in (0.9, 0.4))
    after = [x[dropped(p) > 1e-200] for x in (dropped(p), dropped(q))]
    assert kl(*after) == pytest.approx(coefficient * kl(p, q))
    assert generalization.dropout_contraction(1.0, 2) == 0


@pytest.mark.parametrize("diameter", [0.5, 2.0])
def test_noise_contracts_and_the_coefficient_is_total_variation(diameter):
    sigma, t = 0.7, np.linspace(-8, 11, 4001)
    ends = [stats.norm.pdf(t, at, sigma) for at in (0, diameter)]
    coefficient = generalization.noise_contraction(diameter, sigma)
    assert coefficient == pytest.approx(
        integrate.trapezoid(abs(ends[0] - ends[1]), t) / 2, abs=1e-4
    )
    for a, b in ((0.5, 0.501), (0.9, 0.2)):
        mixed = [x * ends[0] + (1 - x) * ends[1] for x in (a, b)]
        after = integrate.trapezoid(mixed[0] * np.log(mixed[0] / mixed[1]), t)
        assert after <= coefficient * kl(np.array([a, 1 - a]), np.array([b, 1 - b]))


def test_gibbs_where_a_hypothesis_is_never_chosen():
    """exp(-gamma) underflows, and its logarithm does not: nothing depends on the data here."""
    found = generalization.gibbs([[0, 0.0], [1, 1.0]], [0.5, 0.5], 2, 1000.0)
    np.testing.assert_allclose(found, 0, atol=1e-12)
    # Cold, but not the same on every data set: the identity holds on.
    found = generalization.gibbs([[0, 1.0], [1, 0.4], [3, 3]], [0.5, 0.5], 3, 2000.0)
    assert found.gap == pytest.approx((found.mutual + found.lautum) / 2000, rel=1e-9)
