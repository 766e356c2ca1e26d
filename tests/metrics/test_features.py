import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import features


def gaussian(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def test_ranks_of_designed_spectra(x64):
    left, right = jnp.linalg.qr(gaussian(0, 12, 5))[0], jnp.linalg.qr(gaussian(1, 7, 5))[0]
    flat = features.effective_rank(left @ right.T)
    np.testing.assert_allclose(flat, [5, 5, 5], rtol=1e-12)
    s = np.array([4.0, 2.0, 1.0, 0.5, 0.0])
    p = s[:4] / s.sum()
    rank = features.effective_rank(3 * (left * s[None]) @ right.T)
    assert float(rank.entropy) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    assert float(rank.participation) == pytest.approx(np.sum(s**2) ** 2 / np.sum(s**4))
    assert float(rank.stable) == pytest.approx(np.sum(s**2) / 16)


def test_rank_of_zero_and_of_constant_features():
    np.testing.assert_array_equal(features.effective_rank(jnp.zeros((4, 3))), [0, 0, 0])
    constant = jnp.ones((6, 2, 2))
    np.testing.assert_allclose(features.effective_rank(constant), [1, 1, 1], rtol=1e-4)
    np.testing.assert_array_equal(features.effective_rank(constant, centered=True), [0, 0, 0])


@pytest.mark.parametrize("power", [2, 3])
def test_ipr_bounds_scale_and_dead_neurons(x64, power):
    v = jnp.stack([jnp.eye(8)[2], jnp.ones(8), jnp.zeros(8)])
    found = features.inverse_participation_ratio(7 * v, power=power)
    np.testing.assert_allclose(found, [1, 8.0 ** (1 - power), 0], rtol=1e-12)
    across = features.inverse_participation_ratio(v.T, axis=0, power=power)
    np.testing.assert_allclose(across, found, rtol=1e-12)
    gradient = jax.grad(lambda v: jnp.sum(features.inverse_participation_ratio(v)))(v)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("p", "random"), [(97, 0.0403), (59, 0.065), (23, 0.158)])
def test_fourier_ipr_of_the_analytic_solution_and_of_random_weights(p, random):
    phases = np.random.default_rng(2).uniform(0, 2 * np.pi, (p - 1) // 2)
    k = np.arange(1, (p - 1) // 2 + 1)
    waves = np.cos(2 * np.pi * k[:, None] * np.arange(p)[None] / p + phases[:, None])
    np.testing.assert_allclose(features.fourier_ipr(jnp.asarray(waves)), 1, atol=1e-5)
    weights = gaussian(3, 4000, p)
    assert float(jnp.mean(features.fourier_ipr(weights))) == pytest.approx(random, rel=0.05)
    assert float(features.fourier_ipr(jnp.zeros(p))) == 0


def cosines(p, frequency, phases):
    x = 2 * np.pi * np.arange(p)[None] / p
    return jnp.asarray(np.cos(frequency * x + np.asarray(phases)[:, None]))


@pytest.mark.parametrize("p", [12, 13])
def test_tuning_of_designed_neurons(x64, p):
    phases = np.array([[0.3, -2.0], [1.1, 3.0], [-0.4, 0.0]])
    weights = jnp.stack([cosines(p, 3, row) for row in phases])
    tuning = features.fourier_tuning(2.5 * weights)
    np.testing.assert_array_equal(tuning.frequency, [3, 3])
    np.testing.assert_allclose(tuning.phase, phases, atol=1e-12)
    np.testing.assert_allclose(tuning.share, 1, rtol=1e-12)
    mixed = features.fourier_tuning(weights + cosines(p, 5, np.zeros(2))[None] / 2 + 3)
    np.testing.assert_array_equal(mixed.frequency, [3, 3])
    np.testing.assert_allclose(mixed.share, 0.5 / (0.5 + 0.125 + 9), rtol=1e-12)
    dead = features.fourier_tuning(jnp.zeros((3, 1, p)))
    assert float(dead.share[0]) == 0


def test_tuning_counts_the_nyquist_frequency_once(x64):
    waves = jnp.asarray(np.cos(np.pi * np.arange(8)))[None, None] + cosines(8, 1, [0.0])[None]
    tuning = features.fourier_tuning(waves)
    assert int(tuning.frequency[0]) == 4
    np.testing.assert_allclose(tuning.share, 1 / 1.5, rtol=1e-12)


def test_pruning_masks_drop_the_asked_share_in_order():
    scores = jnp.array([0.3, 0.9, 0.1, 0.5, 0.5])
    low = features.pruning_mask(scores, 0.4)
    np.testing.assert_array_equal(low, [False, True, False, True, True])
    high = features.pruning_mask(scores, 0.4, highest=True)
    np.testing.assert_array_equal(high, [True, False, True, False, True])
    traced = jax.jit(features.pruning_mask)(scores, jnp.float32(0.4))
    np.testing.assert_array_equal(traced, low)
    assert features.pruning_mask(scores, 0.0).all()
    assert not features.pruning_mask(scores, 1.0).any()


@pytest.mark.parametrize("highest", [False, True])
def test_pruned_outputs_are_those_of_the_masked_networks(x64, highest):
    hidden, readout = gaussian(7, 9, 12), gaussian(8, 12, 5)
    scores = jnp.round(gaussian(9, 12))  # with ties
    found = features.pruned_outputs(hidden, readout, scores, 4, highest=highest)
    for group in range(5):
        keep = features.pruning_mask(scores, group / 4, highest=highest)
        np.testing.assert_allclose(found[group], (hidden * keep[None]) @ readout, atol=1e-12)
    with pytest.raises(ValueError, match="groups is 5; it must be a divisor of the 12 neurons"):
        features.pruned_outputs(hidden, readout, scores, 5)


def test_feature_change_of_a_scaling_and_of_a_rotation(x64):
    h = gaussian(4, 50, 3, 4)
    grown = features.feature_change(1.5 * h, h)
    assert float(grown.relative.value) == pytest.approx(0.5)
    assert float(grown.relative.error) < 1e-15
    assert float(grown.cosine.value) == pytest.approx(1)
    size = np.linalg.norm(np.asarray(h).reshape(50, -1), axis=1)
    assert float(grown.coordinate.value) == pytest.approx(0.5 * np.mean(size) / np.sqrt(12))
    assert float(grown.coordinate.error) == pytest.approx(
        0.5 * np.std(size, ddof=1) / np.sqrt(12 * 50)
    )
    flat = h.reshape(50, 12)
    swapped = jnp.concatenate([-flat[:, 6:], flat[:, :6]], axis=1)
    assert float(features.feature_change(swapped, flat).cosine.value) == pytest.approx(0, abs=1e-12)


def test_feature_change_of_dead_units_is_finite():
    zero = jnp.zeros((3, 2))
    change = features.feature_change(zero, zero)
    assert [float(e.value) for e in change] == [0.0, 0.0, 1.0]


def test_layers_of_a_dict():
    h = {"one": gaussian(5, 4, 3), "two": gaussian(6, 4, 2, 2)}
    change = features.feature_change_by_layer(h, h)
    assert list(change) == ["one", "two"]
    assert float(change["two"].relative.value) == 0
    with pytest.raises(ValueError, match=r"layers differ: \['one', 'two'\] and \['one'\]"):
        features.feature_change_by_layer(h, {"one": h["one"]})
    with pytest.raises(ValueError, match="must be equal"):
        features.feature_change(h["one"], h["two"])


def test_matching_finds_permuted_units_and_agrees_with_every_permutation():
    random = np.random.default_rng(0)
    one = random.standard_normal((200, 6))
    order = random.permutation(6)
    found = features.matching(one, -3 + 2 * one[:, order] + 0.1 * random.standard_normal((200, 6)))
    np.testing.assert_array_equal(order[found.partner], np.arange(6))
    assert found.correlation.min() > 0.99
    other = one @ random.standard_normal((6, 6))
    found = features.matching(one, other)
    table = np.corrcoef(one.T, other.T)[:6, 6:]
    totals = [table[range(6), p].sum() for p in itertools.permutations(range(6))]
    assert found.correlation.sum() == pytest.approx(max(totals))
    np.testing.assert_allclose(found.semi, table.max(1))
    assert (found.semi >= found.correlation - 1e-12).all()


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_matching_does_not_depend_on_the_scale(scale):
    random = np.random.default_rng(2)
    one, other = random.standard_normal((2, 30, 4))
    found, expected = features.matching(scale * one, other), features.matching(one, other)
    np.testing.assert_allclose(found.correlation, expected.correlation)
    np.testing.assert_array_equal(found.partner, expected.partner)


def test_matching_of_a_narrower_network_leaves_units_alone_and_constant_units_match_nothing():
    random = np.random.default_rng(1)
    other = random.standard_normal((50, 5))
    one = np.stack([other[:, 3], np.full(50, 0.1)], axis=1)
    found = features.matching(one, other)
    assert found.partner[0] == 3
    np.testing.assert_allclose(found.correlation, [1, 0])
    assert found.semi[1] == 0
