"""Descent against autodiff, its limit against the perceptron, margins against geometry, bounds that hold."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import perceptron


def separable(seed, n=40, d=6, least=0.05):
    random = np.random.default_rng(seed)
    w = random.normal(size=d)
    x = random.normal(size=(n, d))
    b = x * np.sign(x @ w)[:, None]
    return b + least * w / np.linalg.norm(w)


def adversarial(n, mu):
    """Easy copies e_1 + mu e_2 and one hard -e_1 + 3 mu e_2."""
    return np.vstack([np.tile([1.0, mu], (n - 1, 1)), [[-1.0, 3 * mu]]])


@pytest.mark.parametrize(("step_size", "normalised"), [(0.5, False), (20.0, False), (3.0, True)])
def test_descent_is_that_of_autodiff(step_size, normalised):
    b = separable(0)
    with jax.enable_x64(True):
        x = jnp.asarray(b)

        def loss(w):
            return jnp.mean(jax.nn.softplus(-x @ w))

        w, losses = jnp.zeros(b.shape[1]), []
        for _ in range(4):
            value, gradient = jax.value_and_grad(loss)(w)
            scale = jnp.mean(jax.nn.sigmoid(-x @ w)) if normalised else 1.0
            losses.append(float(value))
            w = w - step_size * gradient / scale
        w = np.asarray(w)
    path = perceptron.descend(b, step_size, normalised=normalised, max_steps=4)
    assert path.steps == 4
    assert not path.separated
    np.testing.assert_allclose(path.losses, losses, rtol=1e-12)
    np.testing.assert_allclose(path.weights, w, rtol=1e-10)
    assert path.misclassified[0] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_the_limit_of_large_steps_is_a_perceptron_written_by_hand(seed):
    b = separable(seed)
    w, steps = 0.5 * b.mean(0), 1
    while (b @ w <= 0).any():
        w = w + b[b @ w <= 0].sum(0) / len(b)
        steps += 1
    limit = perceptron.descend(b, math.inf)
    large = perceptron.descend(b, 1e11)
    assert limit.separated
    assert limit.steps == large.steps == steps
    np.testing.assert_allclose(limit.weights, w, rtol=1e-12)
    np.testing.assert_allclose(large.weights / 1e11, w, rtol=1e-6)
    np.testing.assert_allclose(large.losses[1:] / 1e11, limit.losses[1:], rtol=1e-6, atol=1e-10)


def test_a_start_and_a_continued_descent_are_one():
    b = separable(1)
    whole = perceptron.descend(b, 0.7, max_steps=6)
    half = perceptron.descend(b, 0.7, max_steps=3)
    rest = perceptron.descend(b, 0.7, max_steps=3, start=half.weights)
    np.testing.assert_allclose(rest.weights, whole.weights, rtol=1e-14)


def test_margins_of_pairs_are_the_distance_of_a_segment():
    """Of two unit vectors at an angle the widest margin is the cosine of half of it."""
    for angle in (0.1, 1.0, 2.5):
        pair = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])
        found = perceptron.margin(3 * pair)
        assert found.value == pytest.approx(3 * math.cos(angle / 2), rel=1e-10)
        assert 0 <= found.gap + 1e-12 < 1e-9


def test_margins_are_the_best_over_all_directions():
    random = np.random.default_rng(0)
    angles = np.linspace(0, 2 * math.pi, 200_001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    for b in (adversarial(30, 0.1), random.normal([4.0, 1.0], size=(9, 2))):
        best = (b @ circle).min(0).max()
        found = perceptron.margin(b)
        step = np.linalg.norm(b, axis=1).max() * angles[1]  # what the grid of angles can miss
        assert best <= found.value * (1 + 1e-12)
        assert found.value <= best + step
        assert (b @ found.direction).min() == pytest.approx(found.value)
        assert np.linalg.norm(found.direction) == pytest.approx(1)


@pytest.mark.parametrize("normalised", [False, True])
def test_bounds_hold_and_are_not_idle(normalised):
    """The largest ratio of steps to bound: below one, and at least .04 (plain) and .1, as measured."""
    ratios = []
    for b in [separable(seed) for seed in range(5)] + [adversarial(n, 0.05) for n in (2, 10, 100)]:
        mu, radius = perceptron.margin(b).value, np.linalg.norm(b, axis=1).max()
        for step_size in (0.3, 1.0, 10.0, 100.0, 1e6, math.inf):
            path = perceptron.descend(b, step_size, normalised=normalised)
            bound = perceptron.step_bound(len(b), radius, mu, step_size, normalised=normalised)
            assert path.separated
            ratios.append(path.steps / bound)
    assert (0.1 if normalised else 0.04) < max(ratios) <= 1


def test_one_example_meets_the_normalised_bound_and_plain_steps_break_it():
    """With half of it the first would fail; the factor n of plain steps is needed."""
    assert perceptron.descend([[2.0, 0.0]], math.inf, normalised=True).steps == 1
    assert perceptron.step_bound(1, 2.0, 2.0, math.inf, normalised=True) == 1
    b = adversarial(1000, 0.05)
    mu, radius = perceptron.margin(b).value, np.linalg.norm(b, axis=1).max()
    steps = perceptron.descend(b, 1e8).steps
    assert steps > 3 * perceptron.step_bound(1000, radius, mu, 1e8, normalised=True)
    assert perceptron.descend(b, 1000.0, normalised=True).steps <= 10


def test_what_a_step_can_gain():
    m = np.linspace(0, 5, 500_001)
    assert pytest.approx((m / (1 + np.exp(m))).max(), rel=1e-9) == perceptron.CORRELATION


def test_bounds_meet_the_limits_of_small_and_large_steps():
    bound = perceptron.step_bound
    assert bound(7, 2.0, 0.1, math.inf) == pytest.approx(2 * 7 * 4 / 0.01)
    assert bound(7, 2.0, 0.1, math.inf, normalised=True) == pytest.approx(400)
    assert bound(7, 2.0, 0.1, 1e-6) / bound(7, 2.0, 0.1, 1e-5) == pytest.approx(10, rel=1e-4)
    assert bound(1, 2.0, 0.1, 1e-6, normalised=True) == pytest.approx(400)


def test_mistakes_are_named():
    b = separable(0)
    with pytest.raises(ValueError, match="step_size is -1"):
        perceptron.descend(b, -1)
    with pytest.raises(TypeError, match="step_size is 'large'"):
        perceptron.descend(b, "large")
    with pytest.raises(ValueError, match=r"start has the shape \(2,\)"):
        perceptron.descend(b, 1.0, start=[0, 0])
    with pytest.raises(ValueError, match="an example or more"):
        perceptron.descend(np.zeros((0, 3)), 1.0)
    with pytest.raises(ValueError, match="signed has entries that are not finite"):
        perceptron.descend([[np.nan, 1.0]], 1.0)
    with pytest.raises(ValueError, match="max_steps is 0"):
        perceptron.descend(b, 1.0, max_steps=0)
    with pytest.raises(ValueError, match="no hyperplane through the origin"):
        perceptron.margin([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match=r"margin is 3.0; it must be at most the radius"):
        perceptron.step_bound(3, 1.0, 3.0, 1.0)
