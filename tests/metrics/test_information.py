"""Information of features: cells by hand, noise against quadrature, bounds, the bottleneck of a binary channel."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from metrics import information

KEY = jax.random.key(0)


def entropy(*p):
    p = np.asarray(p)
    return float(-(p * np.log2(p, where=p > 0, out=np.zeros_like(p))).sum())


def test_cells_by_hand():
    h = np.array([[0.1, 0.9], [0.2, 0.8], [0.2, 0.1], [0.9, 0.9], [-3.0, 0.9], [-2.0, 0.7]])
    y = np.array([[1, 0], [0.5, 0.5], [0, 1], [0, 1], [1, 0], [1, 0]])
    found = information.binned_information(h, [0.0, 0.5], label_probabilities=y)
    # Cells {0, 1}, {2}, {3}, {4, 5}; labels of the first cell .75 and .25, the others are pure.
    assert found.input_bits == pytest.approx(entropy(1 / 3, 1 / 6, 1 / 6, 1 / 3))
    whole = entropy(3.5 / 6, 2.5 / 6)
    assert found.label_bits == pytest.approx(whole - entropy(0.75, 0.25) / 3)
    assert information.binned_information(h, [0.5]).label_bits is None
    fine = information.binned_information(h, np.linspace(-3, 1, 200), label_probabilities=y)
    assert fine.input_bits == pytest.approx(math.log2(6))
    assert fine.label_bits == pytest.approx(whole - 1 / 6)


def two_points(distance):
    """I(X;T') of two points so many standard deviations apart, by quadrature."""

    def density(t):
        return (stats.norm.pdf(t) + stats.norm.pdf(t, distance)) / 2

    def integrand(t):
        return -density(t) * np.log2(density(t))

    mixed = integrate.quad(integrand, -10, distance + 10, limit=200)[0]
    return mixed - math.log2(math.sqrt(2 * math.pi * math.e))


@pytest.mark.parametrize("distance", [0.7, 2.0, 5.0])
def test_noise_on_two_points_against_quadrature(distance):
    h = np.array([[0.0], [distance * 0.3]])
    y = np.array([[1.0, 0], [0.2, 0.8]])
    found = information.noisy_information(h, 0.3, KEY, label_probabilities=y, draws=20_000)
    exact = two_points(distance)
    assert abs(float(found.input_bits.value) - exact) < 4 * float(found.input_bits.error)
    assert float(found.input_bits.error) < 0.01

    def left(t):  # H(Y | t)
        p = stats.norm.pdf(t), stats.norm.pdf(t, distance)
        one = (p[0] + 0.2 * p[1]) / sum(p)
        return entropy(one, 1 - one) * sum(p) / 2

    label = entropy(0.6, 0.4) - integrate.quad(left, -9, distance + 9, limit=200)[0]
    assert abs(float(found.label_bits.value) - label) < 4 * float(found.label_bits.error)
    bounds = information.information_bounds(h, 0.3)
    assert float(bounds.lower) <= exact <= float(bounds.upper)


def test_the_error_is_the_spread_over_repeats():
    h = np.random.default_rng(0).normal(size=(200, 3))
    y = np.eye(2)[np.arange(200) % 2]

    def once(key):
        return information.noisy_information(h, 0.4, key, label_probabilities=y, draws=100)

    found = jax.jit(jax.vmap(once))(jax.random.split(KEY, 200))
    for part in found:
        assert float(part.error.mean()) == pytest.approx(float(part.value.std(ddof=1)), rel=0.2)
    exact = information.noisy_information(h, 0.4, jax.random.key(1), draws=50_000).input_bits
    several = found.input_bits.value
    spread = math.hypot(float(several.std()) / math.sqrt(200), float(exact.error))
    assert abs(float(several.mean() - exact.value)) < 4 * spread
    single = once(jax.random.split(KEY, 200)[3])
    np.testing.assert_allclose(single.input_bits.value, several[3], rtol=1e-5)


def test_bounds_bracket_and_meet_at_clusters():
    random = np.random.default_rng(0)
    for sigma in (0.05, 0.2, 0.6):
        h = random.normal(size=(300, 2, 2))
        found = information.noisy_information(h, sigma, KEY, draws=4000).input_bits
        low, high = information.information_bounds(h, sigma)
        assert float(low) - 4 * float(found.error) <= float(found.value)
        assert float(found.value) <= float(high) + 4 * float(found.error)
        wrong = information.information_bounds(h, 2 * sigma)
        assert float(found.value) > float(wrong.upper) or sigma == 0.05
    clusters = np.repeat(np.eye(4) * 9, 8, axis=0)
    found = information.noisy_information(clusters, 0.5, KEY, label_probabilities=clusters / 9)
    for value in (*information.information_bounds(clusters, 0.5), *(f.value for f in found)):
        assert float(value) == pytest.approx(2, abs=1e-4)
    slope = jax.grad(lambda h: information.information_bounds(h, 0.5).upper)(jnp.asarray(h[:, 0]))
    assert np.abs(slope).max() > 0


def test_the_bottleneck_of_a_binary_channel():
    """Mrs Gerber's lemma: I(T;Y) = 1 - h(p * h^-1(1 - I(X;T)))."""
    p = 0.1
    joint = np.array([[1 - p, p], [p, 1 - p]]) / 2
    curve = information.bottleneck_curve(joint, [1.2, 1.7, 2.5, 5.0, 50.0, 1.8])
    for kept, told in zip(curve.input_bits[1:], curve.label_bits[1:]):
        # flips of X before the channel, at this I(X;T)
        lost = max(1 - kept, 0)
        a = optimize.brentq(lambda a, lost=lost: entropy(a, 1 - a) - lost, 0, 0.5)
        flipped = a * (1 - p) + (1 - a) * p
        assert told == pytest.approx(1 - entropy(flipped, 1 - flipped), abs=1e-6)
    # 1 / (1 - 2p)^2 = 1.5625: below it all is forgotten.
    assert curve.input_bits[0] == pytest.approx(0, abs=1e-6)
    assert 0.05 < curve.input_bits[1] < curve.input_bits[5] < curve.input_bits[2] < 1


def test_inputs_with_the_same_labels_are_one():
    random = np.random.default_rng(0)
    y = random.dirichlet(np.ones(3), size=6)
    x = random.dirichlet(np.ones(6))
    few = information.bottleneck_curve(x[:, None] * y, [2.0, 8.0])
    many = information.bottleneck_curve(
        np.repeat(x[:, None] * y, 50, axis=0) / 50, [2.0, 8.0], max_steps=5000
    )
    np.testing.assert_allclose(many.label_bits, few.label_bits, atol=1e-7)
    assert (few.label_bits <= few.input_bits + 1e-9).all()
    labels = information.bottleneck_curve(np.eye(4)[np.arange(40) % 4] / 40, [3.0])
    np.testing.assert_allclose([labels.input_bits[0], labels.label_bits[0]], 2, atol=1e-6)


@pytest.mark.parametrize("sigma", [1e-8, 1e-5, 1e-2])
def test_little_noise_cancels_nothing(sigma):
    """Features far from the origin: each input is told from each other, log2 N bits, and no draw is above."""
    h = np.random.default_rng(0).normal(size=(6, 3)) + 5
    found = information.noisy_information(h, sigma, KEY, label_probabilities=np.eye(6)).input_bits
    assert float(found.value) == pytest.approx(math.log2(6), abs=1e-5)
    assert float(found.error) < 1e-5


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_units_of_the_features_change_nothing(scale):
    h = np.random.default_rng(0).normal(size=(6, 3))
    for one in (lambda h, s: information.noisy_information(h, s, KEY).input_bits.value,
                lambda h, s: information.information_bounds(h, s).lower):  # fmt: skip
        assert float(one(scale * h, scale)) == pytest.approx(float(one(h, 1.0)), abs=1e-3)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_tolerance_is_positive(tolerance):
    with pytest.raises(ValueError, match=r"tolerance is .*; it must be positive"):
        information.bottleneck_curve(np.eye(2) / 2, [2.0], tolerance=tolerance)
