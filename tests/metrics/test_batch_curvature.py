"""Laws of batch sharpness against random matrices, rates from sharpness, several batch sizes by one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import batch_curvature, noise, stability
from metrics.estimate import Estimate, mean_estimate

KEY = jax.random.key(0)


def losses(w, batch):
    x, y = batch
    return jnp.log1p(jnp.exp(-y * (jnp.tanh(x @ w["in"]) @ w["out"])))


@functools.cache
def problem():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(60, 5)), jnp.float32)
    y = jnp.sign(x[:, 0] + 0.3)
    w = {"in": random.normal(size=(5, 4)), "out": 2 * random.normal(size=4)}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), w), (x, y)


def largest(matrices):
    tops = [np.linalg.eigvalsh(m)[-1] for m in matrices]
    return np.mean(tops), np.std(tops, ddof=1) / np.sqrt(len(tops))


@pytest.mark.parametrize(("top", "expected"), [(3.0, 3.0 + 1 / 3), (1.5, 1.5 + 2 / 3), (0.7, 2.0)])
def test_the_law_of_independent_hessian_noise_on_random_matrices(top, expected):
    """P = 400, P s^2 / b = 1: one spike under symmetric noise, above the transition and below it."""
    random, size = np.random.default_rng(0), 400

    def matrix():
        upper = np.triu(random.normal(size=(size, size)) / np.sqrt(size), 1)
        noisy = upper + upper.T
        noisy[0, 0] = top
        return noisy

    measured, error = largest(matrix() for _ in range(5))
    law = float(noise.iid_batch_sharpness(top, 1.0, 1.0))
    assert law == pytest.approx(expected, rel=1e-6)
    assert abs(measured - law) < 3 * error + 0.02 * law
    assert abs(measured - top) > 0.05 * top, "the noise would not show"


@pytest.mark.parametrize(("top", "batch"), [(2.0, 300), (0.5, 300), (0.5, 1200), (0.15, 300)])
def test_the_law_of_gauss_newton_batches_on_random_gradients(top, batch):
    random, size, bulk = np.random.default_rng(1), 400, 0.1
    deviations = np.sqrt(np.append(top, np.full(size - 1, bulk)))

    def matrix():
        gradients = random.normal(size=(batch, size)) * deviations
        return gradients.T @ gradients / batch

    measured, error = largest(matrix() for _ in range(5))
    law = float(batch_curvature.gauss_newton_batch_sharpness(top, bulk, size / batch))
    assert abs(measured - law) < 3 * error + 0.03 * law
    if (top, batch) == (2.0, 300):
        assert law == pytest.approx(2 * (1 + 4 / 3 * 0.1 / 1.9), rel=1e-6)
    if top == 0.15:
        assert law == pytest.approx(0.1 * (1 + np.sqrt(4 / 3)) ** 2, rel=1e-6)


def test_the_gauss_newton_law_is_continuous_and_keeps_the_whole_batch():
    ratio = jnp.asarray([0.0, 0.5])
    found = batch_curvature.gauss_newton_batch_sharpness(2.0, 0.1, ratio)
    assert found.shape == (2,)
    assert float(found[0]) == 2.0
    edge = 0.1 * (1 + np.sqrt(0.5))
    near = [
        float(batch_curvature.gauss_newton_batch_sharpness(edge * (1 + d), 0.1, 0.5))
        for d in (-1e-5, 1e-5)
    ]
    np.testing.assert_allclose(*near, rtol=1e-4)
    assert np.isnan(batch_curvature.gauss_newton_batch_sharpness(jnp.nan, 0.1, 0.5))


@functools.cache
def hessians():
    """weights -> the Hessian of the weighted loss of `problem`, in double precision."""
    w, batch = problem()
    flat, unravel = jax.flatten_util.ravel_pytree(w)
    of = jax.jit(lambda v: jax.hessian(lambda f: jnp.vdot(v, losses(unravel(f), batch)))(flat))
    return lambda weights: np.asarray(of(weights), np.float64)


@pytest.mark.parametrize(("which", "at"), [("largest", -1), ("smallest", 0)])
def test_several_sizes_are_the_means_over_their_own_batches(which, at):
    """Second road: Hessians of the drawn examples alone, without padding, and explicit sums over the other batches."""
    w, batch = problem()
    sizes, options = [4, 60, 16], {"num_batches": 3, "which": which}
    ours = batch_curvature.batch_sharpness_by_size(losses, w, batch, KEY, sizes, **options)
    hessian = hessians()
    values, vectors = np.linalg.eigh(hessian(jnp.full(60, 1 / 60)))
    value, u = values[at], vectors[:, at]
    for i, size in enumerate(sizes):
        bare, along = [], []
        for draw in jax.random.split(jax.random.fold_in(KEY, size), 3):
            chosen = jax.random.permutation(draw, 60)[:size]
            own = hessian(jnp.zeros(60).at[chosen].set(1 / size))
            bare.append(np.linalg.eigvalsh(own)[at])
            along.append(u @ own @ u - value)
        tops = []
        for k in range(3):
            x, y = (np.delete(np.array(a), k) for a in (along, bare))
            slope = (x @ (y - y.mean()) + x @ x) / (2 * x @ x) if size < 60 else 0.0
            tops.append(bare[k] - slope * along[k])
        np.testing.assert_allclose(ours.value[i], np.mean(tops), rtol=2e-4)
        if size < 60:
            np.testing.assert_allclose(ours.error[i], np.std(tops, ddof=1) / np.sqrt(3), rtol=1e-2)
        else:
            np.testing.assert_allclose(ours.value[i], value, rtol=1e-5)
    alone = batch_curvature.batch_sharpness_by_size(losses, w, batch, KEY, [16], **options)
    np.testing.assert_allclose(alone.value[0], ours.value[2], rtol=1e-5)


def test_the_noise_of_first_order_is_taken_off_without_bias():
    """Batches whose eigenvalue is mostly that noise, hardly, and not at all: the mean stays, errors are spreads."""
    random = np.random.default_rng(0)
    for slope, gain in ((1.0, 0.3), (0.5, 0.45), (0.0, 1.3)):
        x = random.normal(size=(4000, 16))
        y = 2 + slope * x + 0.2 * random.normal(size=x.shape) + 0.01 * x**2
        taken = jax.vmap(batch_curvature._without)(jnp.asarray(x), jnp.asarray(y))
        means, errors = (np.asarray(part) for part in jax.vmap(mean_estimate)(taken))
        assert abs(means.mean() - 2.01) < 4 * means.std() / np.sqrt(4000)
        assert np.sqrt((errors**2).mean()) == pytest.approx(means.std(), rel=0.15)
        assert means.std() < gain * y.mean(1).std()


def test_on_a_network_the_mean_is_that_of_the_bare_eigenvalues():
    """Many batches by explicit Hessians."""
    w, batch = problem()
    random, hessian, size = np.random.default_rng(0), hessians(), 40
    bare = []
    for _ in range(400):
        chosen = jnp.asarray(random.choice(60, size, replace=False))
        bare.append(np.linalg.eigvalsh(hessian(jnp.zeros(60).at[chosen].set(1 / size)))[-1])
    found = batch_curvature.batch_sharpness_by_size(losses, w, batch, KEY, [size], num_batches=64)
    error = np.hypot(found.error[0], np.std(bare, ddof=1) / 20)
    assert abs(float(found.value[0]) - np.mean(bare)) < 3 * error


def test_several_sizes_compile_once():
    w, batch = problem()
    traced = []

    def counted(w, batch):
        traced.append(1)
        return losses(w, batch)

    batch_curvature.batch_sharpness_by_size(counted, w, batch, KEY, [2, 20], num_batches=2)
    first = len(traced)
    batch_curvature.batch_sharpness_by_size(counted, w, batch, KEY, [3, 5, 20], num_batches=2)
    # Checks call losses by hand: the smallest and the largest batch, and shapes; nothing is compiled again.
    assert len(traced) - first <= first // 2


def test_losses_that_couple_examples_are_refused():
    w, batch = problem()

    def normalised(w, batch):
        x, y = batch
        return losses(w, (x - x.mean(0, keepdims=True), y))

    with pytest.raises(ValueError, match="they couple examples"):
        batch_curvature.batch_sharpness_by_size(normalised, w, batch, KEY, [4, 30], num_batches=2)


def test_rates_and_the_critical_batch_follow_from_the_law():
    prediction = noise.BatchSharpness(
        jnp.asarray(2.0),
        Estimate(jnp.asarray(30.0), jnp.asarray(3.0)),
        jnp.asarray([4.0, -1.0]),
        jnp.asarray([0.4, 0.1]),
        jnp.asarray(1.0),
    )
    rate = batch_curvature.batch_learning_rate(prediction)
    np.testing.assert_allclose(rate.value, [0.5, np.inf])
    np.testing.assert_allclose(rate.error[0], 0.05)
    adam = batch_curvature.batch_learning_rate(
        Estimate(jnp.asarray(4.0), jnp.asarray(0.4)), "adam", beta=0.9
    )
    np.testing.assert_allclose(adam.value, 38 / 4, rtol=1e-6)
    assert stability.threshold(float(adam.value), "adam", beta=0.9) == pytest.approx(4, rel=1e-6)
    critical = batch_curvature.critical_batch(prediction)
    np.testing.assert_allclose(critical.value, 15.0)
    np.testing.assert_allclose(critical.error, 1.5)
    assert np.isinf(batch_curvature.critical_batch(prediction._replace(top=-jnp.ones(()))).value)


def test_the_reported_error_of_the_rate_is_its_spread():
    random = np.random.default_rng(0)
    draws = random.normal(4.0, 0.1, 4000)
    rates = batch_curvature.batch_learning_rate(Estimate(jnp.asarray(draws), jnp.zeros(4000)))
    said = batch_curvature.batch_learning_rate(Estimate(jnp.asarray(4.0), jnp.asarray(0.1)))
    assert float(said.error) == pytest.approx(np.std(np.asarray(rates.value)), rel=0.05)
