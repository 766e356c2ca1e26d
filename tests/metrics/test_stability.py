"""Thresholds on quadratics, the edge of stability in training, and the noise of mini-batches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from metrics import curvature, noise, operators, stability
from metrics.curvature import sharpness


def momentum(beta, nesterov):
    return optax.sgd(0.1, momentum=beta, nesterov=nesterov)


@pytest.mark.parametrize(
    ("rule", "beta", "transform"),
    [
        ("gradient_descent", 0.0, optax.sgd(0.1)),
        ("momentum", 0.9, momentum(0.9, False)),
        ("nesterov", 0.9, momentum(0.9, True)),
        # Adam with its second moment held at 1: the exponential average of the gradient.
        ("adam", 0.9, optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))),
    ],
)
def test_a_quadratic_diverges_just_above_its_threshold(rule, beta, transform):
    @jax.jit
    def final(curvature):
        def step(carry, _):
            x, state = carry
            update, state = transform.update(curvature * x, state)
            return (x + update, state), None

        x = jnp.ones(())
        return jax.lax.scan(step, (x, transform.init(x)), None, length=3000)[0][0]

    edge = stability.threshold(0.1, rule, beta=beta)
    assert abs(final(0.99 * edge)) < 1e-3
    assert not abs(final(1.01 * edge)) < 1e3


@pytest.mark.parametrize(("beta", "curvature"), [(0.0, 3.0), (0.0, 19.0), (0.6, 11.0)])
def test_sharpness_aware_descent_ends_where_its_threshold_is_the_curvature(beta, curvature):
    """On a quadratic with an orbit of period two; the gradient norm comes to fit."""
    rate, radius = 0.1, 0.3
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    rule = optax.contrib.sam(optax.sgd(rate, beta), ascent, opaque_mode=True)

    def step(carry, _):
        x, state = carry
        slope = functools.partial(jnp.multiply, curvature)
        update, state = rule.update(slope(x), state, x, grad_fn=lambda x, _: slope(x))
        return (x + update, state), None

    with jax.enable_x64(True):
        x = jnp.asarray(0.7)
        x, _ = jax.lax.scan(step, (x, rule.init(x)), None, length=3000)[0]
        norm = float(curvature * abs(x))
    options = {"beta": beta, "radius": radius, "gradient_norm": norm}
    assert stability.threshold(rate, "sam", **options) == pytest.approx(curvature, rel=1e-9)
    pairs = curvature_pairs(curvature)
    found = stability.maximal_learning_rate(pairs, "sam", **options).value
    assert found == pytest.approx(rate, rel=1e-6)
    # The control: the edge of plain descent is elsewhere.
    assert stability.threshold(rate, "momentum", beta=beta) > 1.02 * curvature


def curvature_pairs(value, residual=0.01):
    return curvature.Sharpness(jnp.asarray([value]), jnp.asarray([residual]), None)


def test_limits_and_errors_of_the_sharpness_aware_threshold():
    def edge(radius, **options):
        return stability.threshold(0.1, "sam", radius=radius, gradient_norm=0.5, **options)

    assert edge(1e-12) == pytest.approx(20, rel=1e-9)
    assert edge(1e-12, beta=0.5) == pytest.approx(30, rel=1e-9)
    assert edge(1e9) == pytest.approx(np.sqrt(2 * 0.5 / (0.1 * 1e9)), rel=1e-4)
    # The error is that of the derivative, by differences.
    options = {"rule": "sam", "radius": 0.2, "gradient_norm": 0.5}
    rates = [stability.maximal_learning_rate(curvature_pairs(4 + d), **options) for d in (0, 0.01)]
    assert float(rates[0].error) == pytest.approx(float(rates[0].value - rates[1].value), rel=0.01)


def test_published_thresholds():
    np.testing.assert_allclose(stability.threshold(1e-3, "adam", beta=0.9), 38000)
    np.testing.assert_allclose(stability.threshold(jnp.asarray([0.1, 0.2])), [20, 10])
    pairs = curvature.Sharpness(jnp.asarray([4.0]), jnp.asarray([0.1]), None)
    rate = stability.maximal_learning_rate(pairs)
    np.testing.assert_allclose(rate.value, 0.5)
    np.testing.assert_allclose(rate.error, 0.0125)
    flat = curvature.Sharpness(jnp.asarray([-1.0]), jnp.asarray([0.1]), None)
    assert np.isinf(stability.maximal_learning_rate(flat).value)


DESCENT = optax.sgd(1.0)  # `track` has the learning rate: one compiled program for all


def network_loss(params, batch):
    x, y = batch
    for kernel in params[:-1]:
        x = jnp.tanh(x @ kernel)
    return jnp.mean((x @ params[-1] - y) ** 2)


def problem(outputs=1, width=16, samples=64):
    rng = np.random.default_rng(0)
    shapes = [(8, width), (width, width), (width, outputs)]
    params = [jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32) for s in shapes]
    x = jnp.asarray(rng.normal(size=(samples, 8)), jnp.float32)
    return params, (x, jnp.asarray(rng.normal(size=(samples, outputs)), jnp.float32))


@functools.partial(jax.jit, static_argnames=("transform", "preconditioned", "probes"))
def track(params, batch, learning_rate, transform, preconditioned=None, probes=120):
    """Sharpness every tenth step from 4 warm-started products, and from 40 of a cold start."""

    def update(carry, _):
        params, state = carry
        gradient = jax.grad(network_loss)(params, batch)
        change, state = transform.update(gradient, state)
        change = jax.tree.map(lambda c: learning_rate * c, change)
        return (optax.apply_updates(params, change), state), None

    def probe(carry, _):
        params, state, vector = carry
        params, state = jax.lax.scan(update, (params, state), None, length=10)[0]
        scale = None if preconditioned is None else preconditioned(state)
        top = sharpness(network_loss, params, batch, num_steps=4, start=vector, scale=scale)
        truth = sharpness(network_loss, params, batch, num_steps=40, scale=scale)
        return (params, state, top.vector), (top.value[0], truth.value[0])

    zeros = jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params)
    return jax.lax.scan(probe, (params, transform.init(params), zeros), None, length=probes)[1]


def test_four_warm_products_every_tenth_step_at_the_edge_of_stability():
    """It settles at 2/eta. Half of the probes to 1e-3; all while the top eigenvalue is alone."""
    params, batch = problem()
    tracked, truth = track(params, batch, 0.1, DESCENT)
    error = np.abs(tracked / truth - 1)[3:]  # the first probes are cold
    assert np.median(error) < 1e-3
    report = stability.edge_of_stability(tracked, stability.threshold(0.1))
    assert report.at_edge
    assert abs(report.mean - 1) < 0.02
    assert 10 < report.crossed < 60
    assert np.max(error[: int(report.crossed) - 3]) < 1e-3
    # The control: a fifth of the learning rate is still far below its own threshold.
    slow = track(params, batch, 0.01, DESCENT)[0]
    calm = stability.edge_of_stability(slow, stability.threshold(0.01))
    assert not calm.at_edge
    assert calm.crossed == -1


def adam_scale(state):
    return operators.adam_factors(state[0].nu, state[0].count, beta2=0.99, epsilon=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "least"), [(0.5, 0.95), (0.9, 0.9)])
def test_adam_s_preconditioned_sharpness_settles_at_its_own_threshold(beta, least):
    params, batch = problem(outputs=3)
    transform = optax.adam(1.0, b1=beta, b2=0.99, eps=1e-7)
    values = track(params, batch, 3e-3, transform, adam_scale, 200)[1]
    edge = stability.threshold(3e-3, "adam", beta=beta)
    report = stability.edge_of_stability(values, edge)
    assert least < report.mean < 1.08
    # The control: the threshold of gradient descent is off by the momentum factor.
    assert not stability.edge_of_stability(values, stability.threshold(3e-3)).at_edge


def classifier_losses(params, batch):
    logits = jnp.tanh(batch[0] @ params["in"]) @ params["out"]
    return -jnp.sum(jax.nn.log_softmax(logits) * batch[1], -1)


@functools.cache
def trained(samples=512):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 6))
    labels = np.argmax(x @ rng.normal(size=(6, 3)) + 0.5 * rng.normal(size=(samples, 3)), 1)
    batch = (jnp.asarray(x, jnp.float32), jnp.asarray(np.eye(3)[labels], jnp.float32))
    params = {
        "in": jnp.asarray(rng.normal(size=(6, 8)) / np.sqrt(6), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(8, 3)) / np.sqrt(8), jnp.float32),
    }

    @jax.jit
    def descend(params, batch):
        def step(_, p):
            g = jax.grad(lambda p: classifier_losses(p, batch).mean())(p)
            return jax.tree.map(lambda p, g: p - 0.3 * g, p, g)

        return jax.lax.fori_loop(0, 30, step, params)

    return descend(params, batch), batch


@functools.cache
def example_hessians():
    """(N, n, n) of the trained classifier: the second road."""
    params, batch = trained()
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def hessians(flat, batch):
        def one(w, x, y):
            return classifier_losses(unravel(w), (x[None], y[None]))[0]

        return jax.vmap(jax.hessian(one), (None, 0, 0))(flat, *batch)

    return np.asarray(hessians(flat, batch), np.float64)


SIZES = (64, 128, 256)


@pytest.mark.slow
def test_batch_sharpness_excess_and_noise_against_their_definitions():
    params, batch = trained()
    H = example_hessians()
    values, U = np.linalg.eigh(H.mean(0))
    coupling = np.einsum("ja,iab,b->ij", U.T[:-1], H, U[:, -1], optimize=True)
    excess = np.mean(np.sum(coupling**2 / (values[-1] - values[:-1])[None], 1))
    ours = noise.batch_sharpness_prediction(
        classifier_losses, params, batch, jax.random.key(0), SIZES, num_probes=12
    )
    np.testing.assert_allclose(ours.top, values[-1], rtol=1e-5)
    np.testing.assert_allclose(ours.gap, values[-1] - values[-2], rtol=1e-3)
    assert abs(ours.excess.value - excess) < 3 * ours.excess.error < 0.9 * excess
    np.testing.assert_allclose(
        ours.value, ours.top + ours.excess.value * noise.inverse_batch(SIZES, len(H))
    )
    sigma = noise.hessian_noise(classifier_losses, params, batch, jax.random.key(1), num_probes=12)
    exact = np.mean(np.sum((H - H.mean(0)) ** 2, (1, 2))) / len(values)
    assert abs(sigma.value - exact) < 3 * sigma.error < 0.9 * exact


@pytest.mark.slow
def test_law_of_batch_sharpness_within_two_standard_errors():
    """200 random batches of each size; the published law for independent noise is the control."""
    params, batch = trained()
    key, H = jax.random.key(0), example_hessians()
    ours = noise.batch_sharpness_prediction(
        classifier_losses, params, batch, key, SIZES, num_probes=24
    )
    sigma = noise.hessian_noise(classifier_losses, params, batch, key, num_probes=24)
    iid = noise.iid_batch_sharpness(ours.top, sigma.value, noise.inverse_batch(SIZES, len(H)))
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        tops = [
            np.linalg.eigvalsh(H[rng.permutation(len(H))[:size]].mean(0))[-1] for _ in range(200)
        ]
        measured, error = np.mean(tops), np.std(tops, ddof=1) / np.sqrt(200)
        assert abs(ours.value[i] - measured) < 2 * np.hypot(error, ours.error[i]), size
        assert (iid[i] - ours.top) < 0.2 * (measured - ours.top)


def test_measured_batch_sharpness_is_the_mean_of_the_batches():
    params, batch = trained()
    H, key = example_hessians(), jax.random.key(2)
    ours = noise.batch_sharpness(classifier_losses, params, batch, key, 32, num_batches=4)
    tops = [
        np.linalg.eigvalsh(H[np.asarray(jax.random.permutation(draw, len(H))[:32])].mean(0))[-1]
        for draw in jax.random.split(key, 4)
    ]
    np.testing.assert_allclose(ours.value, np.mean(tops), rtol=1e-4)
    np.testing.assert_allclose(ours.error, np.std(tops, ddof=1) / 2, rtol=1e-2)


@pytest.mark.usefixtures("x64")
def test_gradient_noise_scale_of_a_mean_and_its_jackknife_error():
    """Losses |w - x_i|^2 / 2 at w = 0 have gradients -x_i: the scale is tr Cov(x) / |E x|^2."""

    def losses(w, x):
        return jnp.sum((w[None] - x) ** 2, -1) / 2

    mean, results = np.array([0.6, -0.3, 0.2]), []
    for seed in range(60):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(200, 3)) + mean[None])
        results.append(noise.gradient_noise_scale(losses, jnp.zeros(3), x, chunk=60))
    last = results[-1]
    trace = np.trace(np.cov(x.T))
    signal = np.sum(np.mean(x, 0) ** 2) - trace / 200
    np.testing.assert_allclose([last.noise, last.signal], [trace, signal])
    np.testing.assert_allclose(last.value, trace / signal)
    values = np.array([r.value for r in results])
    errors = np.array([r.error for r in results])
    assert abs(values.mean() - 3 / np.sum(mean**2)) < 4 * values.std() / np.sqrt(60)
    assert 0.7 < errors.mean() / values.std() < 1.4
    balanced = jnp.concatenate([x, -x])
    lost = noise.gradient_noise_scale(losses, jnp.zeros(3), balanced)
    assert np.isinf(lost.value)
    assert np.isinf(lost.error)


def test_a_diverged_run_is_not_at_the_edge():
    runs = jnp.stack([jnp.full(40, jnp.nan), jnp.full(40, 20.0), jnp.full(40, 30.0)])
    report = stability.edge_of_stability(runs, stability.threshold(0.1))
    assert report.at_edge.tolist() == [False, True, False]
    assert report.crossed.tolist() == [-1, 0, 0]


def test_refused():
    with pytest.raises(ValueError, match="rule is 'lion'; it must be one of"):
        stability.threshold(0.1, "lion")
    with pytest.raises(ValueError, match=r"beta is 1.0; it must be in \[0, 1\)"):
        stability.threshold(0.1, "momentum", beta=1.0)
    with pytest.raises(ValueError, match=r"tail is 0.5 of 20 probes; .* at least 16 probes"):
        stability.edge_of_stability(jnp.ones(20), 1.0)
    params, batch = trained()
    arguments = (classifier_losses, params, batch, jax.random.key(0))
    with pytest.raises(ValueError, match="batch size 513 is not between 1 and the 512 examples"):
        noise.batch_sharpness_prediction(*arguments, [8, 513])
    with pytest.raises(ValueError, match="num_batches is 1; it must be at least 2"):
        noise.batch_sharpness(*arguments, 8, num_batches=1)
    with pytest.raises(ValueError, match=r"losses returns shape \(\); it must return one number"):
        noise.batch_sharpness(lambda p, b: classifier_losses(p, b).mean(), *arguments[1:], 8)
    few = jax.tree.map(lambda x: x[:2], batch)
    with pytest.raises(ValueError, match=r"the batch has 2 examples; .* at least 3"):
        noise.gradient_noise_scale(classifier_losses, params, few)


def test_variance_of_a_mean_of_examples_drawn_without_replacement():
    """Over all 20 batches of 3 out of 6 numbers: the variance of the batch means over that of the numbers."""
    numbers = np.array([1.0, 2.0, 4.0, 7.0, 11.0, 16.0])
    for size in (1, 3, 6):
        means = [np.mean(part) for part in itertools.combinations(numbers, size)]
        expected = np.var(means) / np.var(numbers)
        np.testing.assert_allclose(noise.inverse_batch([size], 6), [expected], atol=1e-6)


def test_error_of_the_edge_is_that_of_eight_block_means():
    blocks = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 1.2, 0.8, 1.0])
    report = stability.edge_of_stability(jnp.repeat(jnp.asarray(blocks), 4), 1.0, tail=1.0)
    np.testing.assert_allclose(report.error, blocks.std(ddof=1) / np.sqrt(8), rtol=1e-5)
    np.testing.assert_allclose(report.above, np.mean(blocks >= 1))
