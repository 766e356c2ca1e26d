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
