"""Results at any scale of the loss, and in the precision of integers and half-precision numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metrics
from metrics import (
    contrastive,
    denoising,
    examples,
    features,
    geometry,
    kernels,
    noise,
    operators,
    spectra,
    stability,
)

KEY = jax.random.key(0)
SCALES = (1e-25, 1e25)


def gaussian(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


PARAMS = {"in": gaussian(0, 4, 5), "out": gaussian(1, 5, 2)}
X, TARGETS = gaussian(2, 12, 4), gaussian(3, 12, 2)


def batch(scale):
    """The scale travels with the examples: one compiled program for all."""
    return X, TARGETS, jnp.full(len(X), scale)


def network(params, batch):
    return jnp.tanh(batch[0] @ params["in"]) @ params["out"]


def losses(params, batch):
    return batch[2] * jnp.mean((network(params, batch) - batch[1]) ** 2, 1)


def loss(params, batch):
    return losses(params, batch).mean()


def criterion(outputs, batch):
    return jnp.mean(batch[2] * jnp.mean((outputs - batch[1]) ** 2, 1))


HESSIAN = operators.hessian(loss)


def sharpness(scale):
    found = metrics.sharpness(loss, PARAMS, batch(scale), k=2, num_steps=12)
    return [found.value, found.residual[1]]


def smallest(scale):
    return metrics.sharpness(loss, PARAMS, batch(scale), num_steps=12, which="smallest").value


def gauss_newton(scale):
    product = operators.gauss_newton(network, criterion)
    pairs = metrics.eigenpairs(product, PARAMS, batch(scale), k=2, num_steps=12)
    dual = spectra.gauss_newton_spectrum(network, criterion, PARAMS, batch(scale))
    return [pairs.value, dual[:5]]


def hutchinson(scale):
    return metrics.trace(HESSIAN, PARAMS, batch(scale), KEY, num_probes=4)


def hutch_plus_plus(scale):
    return metrics.trace(HESSIAN, PARAMS, batch(scale), KEY, num_probes=9, method="hutch++")


def diagonal(scale):
    return metrics.diagonal(HESSIAN, PARAMS, batch(scale), KEY, num_probes=4)


def density(scale):
    """In units of the inverse scale: brought to those of the others."""
    found = metrics.spectral_density(HESSIAN, PARAMS, batch(scale), KEY, num_probes=2, num_steps=6)
    curve = metrics.density(found, scale * jnp.linspace(0, 2, 3), 0.3 * scale)
    curve = jax.tree.map(lambda x: np.asarray(x, np.float64) * scale**2, curve)
    return [curve, spectra.trace_of_function(found, jnp.abs)]


def batches(scale):
    data = (losses, PARAMS, batch(scale), KEY)
    return [
        noise.batch_sharpness(*data, 5, num_batches=2, num_steps=8),
        noise.batch_sharpness_prediction(*data, [5], num_probes=2, num_steps=8),
    ]


def noise_scale(scale):
    found = noise.gradient_noise_scale(losses, PARAMS, batch(scale))
    return [found.value * jnp.float32(scale), found.error * jnp.float32(scale)]


def learning_rate(scale):
    pairs = metrics.sharpness(loss, PARAMS, batch(scale), num_steps=12)
    rate = stability.maximal_learning_rate(pairs)
    report = metrics.edge_of_stability(jnp.tile(pairs.value, 32), stability.threshold(rate.value))
    return [1 / rate.value, scale * report.ratio[0]]


def cosine(scale):
    halves = [[x[part] for x in batch(scale)] for part in (slice(6), slice(6, 12))]
    return scale * examples.gradient_cosine(loss, PARAMS, *halves)


@pytest.mark.parametrize(
    "result",
    [
        sharpness,
        smallest,
        gauss_newton,
        hutchinson,
        hutch_plus_plus,
        diagonal,
        density,
        pytest.param(batches, marks=pytest.mark.slow),
        noise_scale,
        learning_rate,
        cosine,
    ],
    ids=lambda f: f.__name__,
)
def test_results_are_those_of_a_loss_of_order_one(result):
    plain = result(1.0)
    for scale in SCALES:
        scaled = jax.tree.map(lambda x, s=scale: np.asarray(x, np.float64) / s, result(scale))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5), scaled, plain
        )


def test_squares_that_single_precision_cannot_hold_are_nan_or_refused():
    for scale in SCALES:
        found = noise.gradient_noise_scale(losses, PARAMS, batch(scale))
        assert np.isnan([found.noise, found.signal]).all()
        with pytest.raises(ValueError, match="which float32 cannot hold: scale the loss"):
            noise.hessian_noise(losses, PARAMS, batch(scale), KEY)


def test_squares_that_single_precision_holds_are_given_where_their_unit_is_beyond_it():
    plain, large = (noise.gradient_noise_scale(losses, PARAMS, batch(s)) for s in (1.0, 1e18))
    for name in ("noise", "signal"):
        a, b = (np.float64(getattr(found, name)) for found in (plain, large))
        np.testing.assert_allclose(b, 1e36 * a, rtol=2e-3)


def half(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def test_parameters_in_half_precision_and_a_loss_that_computes_so():
    """The first in single precision; the second within its residual, which is no smaller than its rounding."""
    params = half(PARAMS)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    data = batch(1.0)
    exact = metrics.sharpness(loss, wide, data, num_steps=12)
    np.testing.assert_allclose(
        metrics.sharpness(loss, params, data, num_steps=12).value, exact.value, rtol=1e-6
    )

    def coarse(p, b):
        return loss(half(p), half(b)).astype(jnp.float32)

    found = metrics.sharpness(coarse, params, data, num_steps=12)
    error = abs(found.value - exact.value)
    assert 1e-4 * exact.value < error <= found.residual <= 0.05 * exact.value
    product = operators.hessian(coarse)
    traced = metrics.trace(product, params, data, KEY, num_probes=4)
    assert traced.value.dtype == jnp.float32
    assert traced.error >= 0.007 * abs(traced.value)


def test_integers_and_half_precision_are_computed_in_single_precision():
    eye = np.eye(3)
    for kernel in (
        (eye * 10**5).astype(np.int32),
        (eye * 10**10).astype(np.int64),
        jnp.asarray(eye * 300, jnp.float16),
        jnp.asarray(eye * 1e25, jnp.float32),
        jnp.asarray(eye * 1e-25, jnp.float32),
        (10**5 * eye).tolist(),
    ):
        assert float(kernels.alignment(kernel, kernel)) == pytest.approx(1, abs=1e-6)
        assert float(features.effective_rank(kernel).entropy) == pytest.approx(3, abs=1e-5)
    counts = [jnp.full(3, value, jnp.uint8) for value in (0, 1)]
    assert float(kernels.relative_change(*counts)) == 1
    assert float(kernels.weight_movement(*counts).distance) == pytest.approx(3**0.5)
    sharp = jnp.full(64, 40000, jnp.float16)
    assert float(metrics.edge_of_stability(sharp, 40000.0).mean) == pytest.approx(1, abs=1e-3)
    labels = np.tile(np.arange(2), 6)
    h = 300 * np.eye(2)[labels] + np.arange(12)[:, None]
    exact = metrics.neural_collapse(jnp.asarray(h, jnp.float32), labels, 2)
    found = metrics.neural_collapse(jnp.asarray(h, jnp.float16), labels, 2)
    np.testing.assert_allclose(found.nc1, exact.nc1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-25, 1e15])
def test_collapse_at_any_scale_of_the_features(scale):
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(3), 8)
    h = rng.standard_normal((3, 5))[labels] + 0.05 * rng.standard_normal((24, 5))
    one, other = (
        metrics.neural_collapse(jnp.asarray(s * h, jnp.float32), labels, 3) for s in (1, scale)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), one, other)
    assert float(one.nc1.error) > 0


def test_nan_in_is_nan_out():
    h = gaussian(4, 8, 3).at[2, 1].set(jnp.nan)
    kernel, scores = h @ h.T, gaussian(5, 8, 3)
    labels = np.arange(8) % 2
    results = [
        features.effective_rank(h),
        features.inverse_participation_ratio(h)[2],
        features.fourier_ipr(h)[2],
        features.feature_change(h, scores),
        kernels.alignment(kernel, kernel),
        kernels.relative_change(kernel, kernel),
        kernels.weight_movement({"a": h}, {"a": scores}),
        kernels.cka(h, scores),
        kernels.hsic(kernel, kernel),
        geometry.frame_geometry(h),
        geometry.self_duality(h, scores),
        examples.el2n(h, labels)[2],
        examples.over_runs(h).value[1],
        jax.jit(lambda h: metrics.neural_collapse(h, labels, 2, predictions=labels).nc4)(h),
        jax.jit(lambda h: metrics.neural_collapse(h, labels, 2).ncc_accuracy)(h),
        metrics.edge_of_stability(jnp.ones(40).at[35].set(jnp.nan), 2.0)[2:5],
        noise.iid_batch_sharpness(jnp.nan, 1.0, 0.1),
        stability.maximal_learning_rate(metrics.Sharpness(h[2, 1:2], jnp.ones(1), None)),
        jax.jit(lambda labels: examples.el2n(scores, labels))(jnp.full(8, 7)),
    ]
    for i, result in enumerate(results):
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(result)), (i, result)


def test_zero_features_have_no_collapse_and_ties_are_chance():
    labels = np.tile(np.arange(4), 5)
    found = metrics.neural_collapse(jnp.zeros((20, 3)), labels, 4, predictions=labels)
    assert float(found.ncc_accuracy.value) == pytest.approx(1 / 4)
    assert float(found.nc4.value) == pytest.approx(1 / 4)
    undefined = [found.nc1.value, found.quotient.value, found.cdnv.value, *found.nc2]
    assert np.isnan(undefined).all()
    # Means that coincide around a spread: infinitely far from collapse.
    pairs = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    spread = metrics.neural_collapse(jnp.tile(pairs, (2, 1)), np.repeat(np.arange(2), 6), 2)
    assert np.isinf([spread.nc1.value, spread.quotient.value, spread.cdnv.value]).all()


def test_padded_rows_may_hold_anything():
    labels = np.r_[np.tile(np.arange(2), 5), -1]
    h = gaussian(6, 11, 3)
    one, other = (metrics.neural_collapse(h.at[-1].set(v), labels, 2) for v in (0.0, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_cka_does_not_depend_on_the_means_of_the_features():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((30, 6))
    y = x[:, :4] + rng.standard_normal((30, 4))
    with jax.enable_x64(True):
        exact = kernels.cka(jnp.asarray(x), jnp.asarray(y))
    moved = [jnp.asarray(a + 300, jnp.float32) for a in (x, y)]
    grams = [a @ a.T for a in (moved[0] - 290, moved[1] - 290)]
    for found, rtol in ((kernels.cka(*moved), 1e-4), (kernels.cka_kernels(*grams), 2e-3)):
        np.testing.assert_allclose(found.value, exact.value, rtol=rtol)
        np.testing.assert_allclose(found.error, exact.error, rtol=10 * rtol)


@pytest.mark.parametrize("scale", SCALES)
def test_results_without_a_unit_do_not_depend_on_it(scale):
    """Similarities and their temperature in any unit; a denoiser of examples in any unit."""
    similarities = gaussian(8, 6, 6)
    one, other = (
        contrastive.hardness(s * similarities, s * 0.7)._replace(freezing=0) for s in (1, scale)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), one, other)

    def denoise(params, y):
        return jax.nn.relu(y @ params["in"]) @ params["in"].T + 0.1 * params["unit"]

    spectra_of = [
        denoising.jacobian_spectrum(denoise, {**PARAMS, "unit": jnp.float32(s)}, s * X)
        for s in (1, scale)
    ]
    homogeneity = [np.asarray(found.homogeneity) for found in spectra_of]
    assert (homogeneity[0] > 1e-3).all()
    np.testing.assert_allclose(*homogeneity, rtol=1e-3)
