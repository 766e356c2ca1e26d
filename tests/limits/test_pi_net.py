"""pi-nets: the dual of relu by quadrature, a step of the limit by hand, wide nets, resuming, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import pi_net

SIZES = {"rank": 4, "hidden_layers": 2}
D, K, BATCH, STEPS, RATE = 3, 2, 4, 5, 0.5


@pytest.fixture(autouse=True, scope="module")
def unoptimised():
    """Small arrays: compilation is all there is to save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def batches(dtype=np.float32, steps=STEPS):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((steps, BATCH, m)).astype(dtype) for m in (D, K))
    return x, y


@pytest.mark.parametrize("c", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_the_dual_is_an_expectation(c, x64):
    """In polar coordinates E relu(u) relu(v) = (1 / pi) int cos(t)+ cos(t - angle)+ dt, by the trapezoidal rule."""
    angle = np.arccos(c)
    t = 2 * np.pi * np.arange(200_000) / 200_000
    expected = (np.maximum(np.cos(t), 0) * np.maximum(np.cos(t - angle), 0)).mean() * 2
    assert float(pi_net.relu_dual(jnp.asarray(c))) == pytest.approx(expected, abs=1e-8)
    slope = (np.pi - angle) / (2 * np.pi)
    assert float(jax.grad(pi_net.relu_dual)(jnp.asarray(c))) == pytest.approx(slope, abs=1e-12)


def test_one_step_by_hand(x64):
    """Of the last hidden layer: the row of an example is its direction and -eta times its length times dLoss/df."""
    x, y = batches(float, steps=1)
    net = pi_net.limit(jax.random.key(0), D, K, **SIZES, dtype=float)
    found, losses = pi_net.train(net, (x, y), RATE)
    g = x[0] @ net.first
    size = np.linalg.norm(g, axis=1, keepdims=True)
    h = size * np.asarray(pi_net.relu_dual((g / size) @ net.rows[0].b.T)) @ net.rows[0].a
    length = np.linalg.norm(h, axis=1, keepdims=True)
    assert losses[0] == pytest.approx(0.5 * (y[0] ** 2).sum() / BATCH)  # outputs start at zero
    np.testing.assert_allclose(found.rows[1].b[-BATCH:], h / length, atol=1e-12)
    np.testing.assert_allclose(found.rows[1].a[-BATCH:], RATE * length * y[0] / BATCH, atol=1e-12)
    np.testing.assert_allclose(found.rows[0].b[-BATCH:], g / size, atol=1e-12)
    np.testing.assert_allclose(
        found.rows[0].a[-BATCH:], 0, atol=1e-12
    )  # no readout yet, no gradient
    np.testing.assert_allclose(found.first, net.first, atol=1e-12)


def rms(x):
    return float(jnp.sqrt(jnp.square(x).mean()))


@pytest.mark.slow
def test_wide_nets_converge_and_another_rate_does_not():
    widths, test = (128, 8192), batches()[0][0]
    start = pi_net.limit(jax.random.key(1), D, K, **SIZES)
    trained, _ = pi_net.train(start, batches(), RATE)
    goal = trained.apply(test)
    assert rms(trained.first - start.first) > 0.02, "features must move"

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.vmap, in_axes=(None, 0, None))
    def finite(start, key, width):
        return pi_net.train(start.sample(key, width), batches(), RATE)[0].apply(test)

    keys = jax.random.split(jax.random.key(0), 6)
    outputs = np.array([finite(start, keys, n) for n in widths])
    distance = np.sqrt(np.square(outputs - np.asarray(goal)).mean(axis=(1, 2, 3)))
    slope = np.polyfit(np.log(widths), np.log(distance), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)
    other = np.asarray(pi_net.train(start, batches(), 1.5 * RATE)[0].apply(test))
    away = np.sqrt(np.square(outputs - other).mean(axis=(1, 2, 3)))
    assert away[-1] > 5 * distance[-1]


def test_a_trained_limit_can_be_sampled():
    trained, _ = pi_net.train(pi_net.limit(jax.random.key(1), D, K, **SIZES), batches(), RATE)
    x = batches()[0][0]
    drawn = trained.sample(jax.random.key(2), 2**15)
    np.testing.assert_allclose(
        drawn.apply(x), trained.apply(x), atol=0.1 * rms(trained.apply(x)) + 0.02
    )


def test_training_goes_on_where_it_stopped(x64):
    start = pi_net.limit(jax.random.key(1), D, K, **SIZES, dtype=float)
    x, y = batches(float, steps=4)
    once, losses = pi_net.train(start, (x, y), RATE)
    half, first = pi_net.train(start, (x[:2], y[:2]), RATE)
    twice, second = pi_net.train(half, (x[2:], y[2:]), RATE)
    np.testing.assert_allclose(np.concatenate([first, second]), losses, rtol=1e-10)
    np.testing.assert_allclose(twice.apply(x[0]), once.apply(x[0]), rtol=1e-8)


@pytest.mark.parametrize("rank", [3, 64])
def test_a_layer_keeps_the_norm(rank):
    """On average over the initial rows, |g_2| = |g_1|."""

    def ratio(key):
        net = pi_net.limit(key, rank, K, rank=rank, hidden_layers=2)
        x = jax.random.normal(key, (1, rank))
        _, seen = pi_net._forward(net, x)
        return (seen[1][1] / seen[0][1]) ** 2

    ratios = jax.jit(jax.vmap(ratio))(jax.random.split(jax.random.key(0), 400))
    error = float(ratios.std()) / 20
    assert float(ratios.mean()) == pytest.approx(1, abs=3 * error + 0.1)


@pytest.mark.parametrize("name", ["inputs", "outputs", "rank", "hidden_layers", "start"])
def test_mistakes_are_named(name):
    sizes = {"inputs": D, "outputs": K, **SIZES, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        pi_net.limit(jax.random.key(0), **sizes)
