"""Temperature as a weight of hard negatives: the gradient itself, its limits, and the entropy of chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import contrastive, geometry


def loss(similarities, temperature):
    """Of all anchors, positives on the diagonal."""
    return -jnp.trace(jax.nn.log_softmax(similarities / temperature, axis=1))


@pytest.mark.parametrize("temperature", [0.07, 0.5, 10.0])
def test_weights_are_shares_of_the_gradient(temperature):
    s = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (7, 7)), jnp.float32)
    found = contrastive.hardness(s, temperature)
    gradient = np.array(jax.grad(loss)(s, temperature))
    np.fill_diagonal(gradient, 0)
    expected = gradient / gradient.sum(1, keepdims=True)
    np.testing.assert_allclose(found.weights, expected, atol=2e-6)
    entropy = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in expected]
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-4)


def test_extreme_temperatures_weigh_the_hardest_or_all_alike():
    s = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (6, 6)), jnp.float32)
    off = np.where(np.eye(6), -np.inf, s)
    cold, hot = contrastive.hardness(s, 1e-4), contrastive.hardness(s, 1e4)
    assert (np.asarray(cold.weights).argmax(1) == off.argmax(1)).all()
    assert cold.entropy.max() < 1e-3
    np.testing.assert_allclose(hot.entropy, np.log(5), rtol=1e-4)


def test_chance_alone_has_the_entropy_of_the_random_energy_model():
    """4000 normal similarities at two and four times the freezing temperature; far below it little is left."""
    random = np.random.default_rng(2)
    count, spread = 4000, 0.1
    s = jnp.asarray(spread * random.standard_normal((count + 1, count + 1)), jnp.float32)
    freezing = spread / np.sqrt(2 * np.log(count))
    assert float(contrastive.hardness(s, 1.0).freezing) == pytest.approx(freezing, rel=0.01)
    for factor in (2, 4):
        found = contrastive.hardness(s, factor * freezing)
        assert float(found.entropy.mean()) == pytest.approx(float(found.normal), rel=0.02)
        by_hand = np.log(count) * (1 - 1 / factor**2)
        assert float(contrastive.normal_entropy(count, spread, factor * freezing)) == pytest.approx(
            by_hand, rel=1e-5
        )
    cold = contrastive.hardness(s, freezing / 4)
    assert float(cold.normal) == 0
    assert float(cold.entropy.mean()) < 0.1 * np.log(count)


def test_tolerance_by_hand():
    """Two classes: one of two vectors 60 degrees apart, of any length; one of three, two alike and one opposite."""
    vectors = jnp.array([[2.0, 0], [0.5, 0.5 * 3**0.5], [0, 1], [0, 3], [0, -1]])
    found = geometry.tolerance(vectors, jnp.array([0, 0, 1, 1, 1]))
    pairs = [0.5, 1, -1, -1]
    assert float(found.value) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert float(found.error) == pytest.approx(np.std(pairs), rel=1e-5)
    assert np.isnan(geometry.tolerance(vectors, jnp.arange(5)).value)


def test_a_temperature_is_one_number():
    s = np.eye(4)
    with pytest.raises(ValueError, match=r"temperature has shape \(4,\); it must be one number"):
        contrastive.hardness(s, np.array([0.1, 1, 1, 1]))
    many = jax.vmap(contrastive.hardness, (None, 0))(s, jnp.array([0.1, 1]))
    np.testing.assert_allclose(many.weights[1], contrastive.hardness(s, 1.0).weights, rtol=1e-6)
