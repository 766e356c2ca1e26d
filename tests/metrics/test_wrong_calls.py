"""Calls that a user gets wrong: each is a ValueError or a TypeError that names the value and what is allowed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metrics
import ntk
from metrics import (
    batch_curvature,
    blocks,
    chunks,
    contrastive,
    denoising,
    examples,
    features,
    frames,
    geometry,
    information,
    kernels,
    noise,
    operators,
    probes,
    programs,
    pruning,
    scatter,
    spectra,
    stability,
)

KEY = jax.random.key(0)
X, W = jnp.ones((6, 3)), {"w": jnp.ones((3, 2))}
EYE, H, Y = jnp.eye(6), jnp.ones((6, 3)), np.array([0, 1, 2, 0, 1, 2])


class Dense(nn.Module):
    """A module where a function belongs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


def loss(params, x):
    return jnp.mean((x @ params["w"]) ** 2)


def losses(params, x):
    return jnp.mean((x @ params["w"]) ** 2, 1)


def apply(params, x):
    return x @ params["w"]


def losses_of(outputs, x):
    return jnp.mean(outputs**2)


def one(value):
    return value


HESSIAN = operators.hessian(loss)
SPECTRUM = spectra.Spectrum(jnp.ones((2, 3)), jnp.ones((2, 3)) / 3, 6)
STATE = examples.no_forgetting(6)
MEANS = scatter.ClassMeans(jnp.ones(3), jnp.eye(3))
CENTERS = scatter.class_centers(MEANS)
PROBE = probes.Linear(np.ones((3, 3)), np.ones(3))

call = functools.partial
CALLS = [
    # curvature
    (call(metrics.sharpness, Dense(), W, X), "loss is the module Dense"),
    (call(metrics.sharpness, 3, W, X), "loss is 3; it must be a function"),
    (call(metrics.sharpness, one, W, X), "loss cannot be called as loss"),
    (call(metrics.sharpness, losses, W, X), "it must return one real number"),
    (call(metrics.sharpness, loss, {"w": jnp.ones((3, 2), int)}, X), "parameter w has dtype int32"),
    (call(metrics.sharpness, loss, {}, X), "params holds no numbers"),
    (call(metrics.sharpness, loss, {"w": "a"}, X), "parameter w is 'a'"),
    (call(metrics.sharpness, loss, W, X, k=1.0), "k is 1.0; it must be an integer"),
    (call(metrics.sharpness, loss, W, X, k=True), "k is True; it must be an integer"),
    (call(metrics.sharpness, loss, W, X, k=3, num_steps=2), "k is 3; it must be between 1 and"),
    (call(metrics.sharpness, loss, W, X, num_steps=2.5), "num_steps is 2.5"),
    (
        call(metrics.sharpness, loss, W, X, num_steps=7),
        "num_steps is 7; it must be between 1 and 6",
    ),
    (call(metrics.sharpness, loss, W, X, num_steps=3, start=0), "start has shapes"),
    (call(metrics.sharpness, loss, W, X, num_steps=3, scale=-1.0), "at least 0"),
    (call(metrics.sharpness, loss, W, X, num_steps=3, scale="a"), "scale does not fit params"),
    (call(metrics.sharpness, loss, W, X, num_steps=3, which="top"), "which is 'top'"),
    (call(metrics.sharpness, loss, W, X, num_steps=3, unroll=2), "unroll is 2"),
    (call(metrics.sharpness, loss, W, None), "loss cannot be evaluated on {'w': .*}, None"),
    (call(metrics.sharpness, loss, {"v": EYE}, X), "loss cannot be evaluated on .*KeyError: 'w'"),
    (call(metrics.sharpness, loss, W, 10**20, num_steps=3), "loss cannot be evaluated on"),
    (call(metrics.eigenpairs, HESSIAN, W, None, num_steps=3), "product cannot be evaluated on"),
    (
        call(metrics.trace, lambda p, x, v: v["w"].T, W, X, KEY),
        r"product returns arrays of shapes \[\(2, 3\)\]; they must be like the parameters",
    ),
    (call(noise.gradient_noise_scale, losses, {"w": EYE}, X), "losses cannot be evaluated on"),
    (call(examples.grand, lambda p, x, y: p["v"], W, X, Y), "loss cannot be evaluated on"),
    (call(denoising.sure, apply, {"w": EYE}, X, 1.0), "apply cannot be evaluated on"),
    (call(metrics.eigenpairs, loss, W, X), "product cannot be called as product"),
    (call(metrics.eigenpairs, HESSIAN, W, X, k="1"), "k is '1'; it must be an integer"),
    # spectra
    (call(metrics.trace, HESSIAN, W, X, 0), "key is 0; it must be a PRNG key"),
    (call(metrics.trace, HESSIAN, W, X, jax.random.split(KEY)), "give one of them"),
    (call(metrics.trace, HESSIAN, W, X, KEY, num_probes=2.5), "num_probes is 2.5"),
    (call(metrics.trace, HESSIAN, W, X, KEY, num_probes=1), "it must be at least 2"),
    (call(metrics.trace, HESSIAN, W, X, KEY, method="exact"), "method is 'exact'"),
    (call(metrics.trace, loss, W, X, KEY), "product cannot be called as product"),
    (call(metrics.diagonal, HESSIAN, W, X, 1), "key is 1; it must be a PRNG key"),
    (call(metrics.diagonal, HESSIAN, W, X, KEY, num_probes=[3]), r"num_probes is \[3\]"),
    (call(metrics.spectral_density, HESSIAN, W, X, KEY, num_steps=3.0), "num_steps is 3.0"),
    (call(metrics.spectral_density, HESSIAN, W, X, None), "key is None"),
    (call(metrics.density, SPECTRUM, jnp.ones((2, 2)), 0.1), r"grid has shape \(2, 2\)"),
    (call(metrics.density, SPECTRUM, jnp.ones(2), -1.0), "width is -1.0; it must be positive"),
    (call(metrics.density, SPECTRUM, jnp.ones(2), np.nan), "width is nan; it must be positive"),
    (call(metrics.density, jnp.ones((2, 3)), jnp.ones(2), 0.1), "it must be the result of"),
    (call(spectra.trace_of_function, SPECTRUM, 2), "function is 2; it must be a function"),
    (call(spectra.trace_of_function, SPECTRUM, jnp.sum), "it must be elementwise"),
    (call(spectra.gauss_newton_spectrum, Dense(), loss, W, X), "apply is the module Dense"),
    (call(spectra.gauss_newton_spectrum, apply, lambda f, x: f, W, X), "one real number"),
    # pruning
    (call(pruning.full_mask, {"w": np.ones(2, int)}), "parameter w has dtype int"),
    (call(pruning.masked, W, {"w": jnp.ones(3)}), "differ in shape"),
    (call(pruning.magnitude_mask, W, W, 1.5), "shares is 1.5; it must be between 0 and 1"),
    (call(pruning.magnitude_mask, W, W, {"v": 0.5}), "shares has the structure"),
    (call(pruning.shuffled_mask, W, 3), "key is 3; it must be a PRNG key"),
    (call(pruning.magnitude_mask, W, W, X), "shares has shape .* one number"),
    (call(pruning.shuffled_mask, 2**40, KEY), "mask holds 1099511627776; it must be a pytree"),
    (call(pruning.density, {}), "mask holds no weights"),
    # operators
    (call(operators.hessian, [loss]), "it must be a function loss"),
    (call(operators.gauss_newton, apply, 1), "criterion is 1; it must be a function"),
    (call(operators.fisher, apply, "poisson"), "likelihood is 'poisson'"),
    (call(operators.fisher_monte_carlo, apply, "gaussian", 1.0), "num_samples is 1.0"),
    (call(operators.fisher_monte_carlo, apply, "gaussian", 0), "num_samples is 0"),
    (call(operators.per_example(loss), W, (X, X[:2])), "all need one leading axis"),
    (call(operators.per_example(loss), W, jnp.float32(1)), "all need one leading axis"),
    (call(operators.empirical_fisher(loss), W, X, W), "one number per example"),
    (call(operators.accumulated, HESSIAN, axes=1), "axes is 1; it must be 0, or a tuple"),
    (call(operators.accumulated(HESSIAN), W, jnp.float32(1), W), "leading axes"),
    (call(operators.streamed(HESSIAN), W, [], W), "batches is empty"),
    (call(operators.streamed(HESSIAN), W, 3, W), "batches is of type int"),
    (call(operators.adam_factors, W, 0), "count is 0; it must be at least 1"),
    (call(operators.adam_factors, W, 1, beta2=1.0), r"beta2 is 1.0; it must be in \[0, 1\)"),
    (call(operators.scaled(HESSIAN), W, (X, -1.0), W), "at least 0"),
    (call(blocks.partition, W, "out"), "selects no parameter"),
    (call(blocks.partition, W, 3), "select is 3; it must be a function"),
    (call(blocks.on_block, Dense()), "function is the module Dense"),
    (call(chunks.chunked, HESSIAN, 2.0), "size is 2.0; it must be an integer"),
    (call(chunks.chunked, HESSIAN, -1), "size is -1; a chunk needs"),
    (call(chunks.matrix_convolutions, Dense()), "function is the module Dense"),
    (
        call(chunks.matrix_convolutions, lambda params, batch: 0.0, overlapping=1),
        "overlapping is 1; it must be True or False",
    ),
    # stability
    (call(stability.threshold, 0.0), "learning_rate is 0.0; it must be positive"),
    (call(stability.threshold, np.nan), "learning_rate is nan"),
    (call(stability.threshold, "1"), "learning_rate is '1'; it must be an array of real"),
    (call(stability.threshold, jnp.array([0.1, -1])), "it must be positive and finite"),
    (call(stability.threshold, 0.1, "lion"), "rule is 'lion'"),
    (call(stability.threshold, 0.1, "adam", beta=1.5), "beta is 1.5"),
    (
        call(stability.threshold, 0.1, "sam", radius=0.1),
        "gradient_norm is None; the rule 'sam' needs",
    ),
    (call(stability.threshold, 0.1, "sam", radius=0.0, gradient_norm=1.0), "radius is 0.0"),
    (call(stability.threshold, 0.1, radius=0.1), "radius is 0.1; only the rule 'sam' has one"),
    (call(stability.maximal_learning_rate, jnp.ones(1)), "the result of metrics.sharpness"),
    (call(metrics.edge_of_stability, 1.0, 2.0), "time last"),
    (call(metrics.edge_of_stability, jnp.ones(40), jnp.ones((2, 40))), "does not broadcast to"),
    (call(metrics.edge_of_stability, jnp.ones(40), []), r"threshold has shape \(0,\)"),
    (
        call(metrics.edge_of_stability, jnp.ones(40), 1.0, tolerance=X[0]),
        r"tolerance has shape \(3,\); it must be one number",
    ),
    (call(denoising.sure, apply, {"w": EYE[:3, :3]}, X, X[0]), "noise has shape .* one number"),
    (call(information.information_bounds, X, []), "sigma has shape .* one number"),
    (call(examples.keep, [1.0, 2.0], []), "share has shape .* one number"),
    (call(examples.memorised, Y, Y, Y + 2**40), "clean run from .* must fit into 32 bits"),
    (call(examples.update_forgetting, STATE, [2**40], [True]), "ids run from .* 32 bits"),
    (call(features.fourier_ipr, []), r"an array of shape \(0,\) has no coordinates"),
    (call(features.inverse_participation_ratio, b"a"), "vectors is b'a'; it must be an array"),
    (call(metrics.fit_spectrum, EYE, EYE[0], KEY, ranks=X), "it must be two integers"),
    (call(metrics.learning_curve, EYE, EYE[0], KEY), "samples is an array of key<fry>"),
    (call(metrics.intrinsic_dimension, np.full((30, 2), np.nan)), r"inputs\[0, 0\] is nan"),
    (call(metrics.edge_of_stability, jnp.ones(40), 0.0), "threshold is 0.0"),
    (call(metrics.edge_of_stability, jnp.ones(40), 1.0, tail=2), "tail is 2 of 40"),
    (call(metrics.edge_of_stability, jnp.ones(40), 1.0, tail="a"), "tail is 'a'"),
    (call(metrics.edge_of_stability, jnp.ones(40), 1.0, tolerance=-1), "tolerance is -1"),
    # noise
    (call(noise.gradient_noise_scale, loss, W, X), "one number per example"),
    (call(noise.gradient_noise_scale, losses, W, X[:2]), "needs at least 3"),
    (call(noise.gradient_noise_scale, losses, W, X, chunk=2.0), "chunk is 2.0"),
    (call(noise.gradient_noise_scale, Dense(), W, X), "losses is the module Dense"),
    (call(noise.batch_sharpness_prediction, losses, W, X, 0, [2]), "key is 0"),
    (call(noise.batch_sharpness_prediction, losses, W, X, KEY, 2), "it must be a list of integers"),
    (call(noise.batch_sharpness_prediction, losses, W, X, KEY, [2.5]), "batch_size is 2.5"),
    (call(noise.batch_sharpness, losses, W, X, KEY, 7), "batch size 7 is not between"),
    (call(noise.batch_sharpness, losses, W, X, KEY, 2, num_batches=1), "num_batches is 1"),
    (call(noise.hessian_noise, losses, W, X, KEY, num_probes=1), "num_probes is 1"),
    (call(noise.inverse_batch, [0], 6), "it must be between 1 and count = 6"),
    (call(noise.inverse_batch, KEY, 6), "it must be integers"),
    (call(noise.batch_sharpness, losses, W, X, KEY, KEY), "batch_size is .* an integer"),
    (call(noise.batch_sharpness, losses, W, X, KEY, [[1], [2, 3]]), "batch_size is .* an integer"),
    (
        call(noise.batch_sharpness_prediction, losses, W, X, KEY, [2], num_steps=EYE),
        "num_steps is of type .* it must be an integer",
    ),
    (call(metrics.sharpness, loss, W, X, scale=np.ma.array([1.0], mask=[True])), "masked array"),
    (call(spectra.gauss_newton_spectrum, apply, losses_of, W, X[:0]), "batch holds an empty array"),
    (call(noise.inverse_batch, [2.5], 6), "it must be integers"),
    (call(noise.inverse_batch, [1], 1), "count is 1; it must be at least 2"),
    (call(noise.iid_batch_sharpness, 1.0, -1.0, 0.1), "noise is -1.0; it must be at least 0"),
    # batch_curvature
    (call(batch_curvature.batch_learning_rate, 2.0), "a BatchSharpness or an Estimate"),
    (
        call(batch_curvature.batch_learning_rate, metrics.Estimate(X[0], X[0]), "lion"),
        "rule is 'lion'",
    ),
    (call(batch_curvature.critical_batch, 2.0), "the result of metrics.noise"),
    (call(batch_curvature.gauss_newton_batch_sharpness, 1.0, -1.0, 0.1), "bulk is -1.0"),
    (call(batch_curvature.gauss_newton_batch_sharpness, 1.0, 2.0, 0.1), "is at least bulk"),
    (call(batch_curvature.batch_sharpness_by_size, losses, W, X, KEY, []), "batch_sizes is empty"),
    (call(batch_curvature.batch_sharpness_by_size, losses, W, X, KEY, 2), "a list of integers"),
    (call(batch_curvature.batch_sharpness_by_size, losses, W, X, KEY, [7]), "batch size 7 is not"),
    (
        call(batch_curvature.batch_sharpness_by_size, losses, W, X, KEY, [2], num_batches=1),
        "num_batches is 1",
    ),
    # collapse
    (call(metrics.neural_collapse, H, Y, 3.0), "num_classes is 3.0; it must be an integer"),
    (call(metrics.neural_collapse, "H", Y, 3), "features is 'H'"),
    (call(metrics.neural_collapse, H * 1j, Y, 3), "features is complex"),
    (call(metrics.neural_collapse, H, Y + 1, 3), "labels run from 1 to 3"),
    (call(metrics.neural_collapse, H, Y * 1.0, 3), "labels are float64"),
    (call(metrics.neural_collapse, H, Y, 3, rtol=2.0), "rtol is 2.0"),
    (call(metrics.neural_collapse, H.at[4].set(jnp.nan), Y, 3), r"examples \[4\] are not finite"),
    (call(metrics.collapse_by_layer, H, Y, 3), "it must be a dict, layer name"),
    (call(metrics.generalized_collapse, H, Y, 3, weights=jnp.ones((2, 3))), "weights has shape"),
    (call(metrics.generalized_collapse, H, Y, 3, weights=EYE[:3, :3], num_steps=0.5), "num_steps"),
    (call(metrics.ood_orthogonality, EYE[0], H), r"means has shape \(6,\)"),
    (call(metrics.ood_orthogonality, EYE, H), r"outside has shape \(6, 3\); it must be \(N, 6\)"),
    (call(scatter.class_means, H, Y[:5], 3), "labels are int64"),
    (call(scatter.class_means, H, Y, 10**20), "num_classes is 10+; it must be at most"),
    (call(scatter.class_means, H, Y - 2, 3), "labels run from -2 to 0; they must be 0..2, or -1"),
    (call(scatter.within_class, CENTERS, H, Y + 1), "labels run from 1 to 3"),
    (call(scatter.within_class, CENTERS, H, Y, predictions=Y + 1), "predictions run from 1 to 3"),
    (
        call(scatter.within_class, CENTERS, H, Y, weights=EYE[:3, :3] * np.nan),
        r"weights\[0, 0\] is nan; it must be finite",
    ),
    (call(metrics.neural_collapse, H, Y, 10**20), "num_classes is 10+"),
    (call(metrics.neural_collapse, H, Y, 7), "more than the 6 examples: some class has no"),
    (call(programs.steps_better, 3, W, X), "product is 3; it must be a function"),
    (call(programs.steps_better, loss, W, X), "product cannot be called as product"),
    (call(programs.steps_better, HESSIAN, {}, X), "params holds no numbers"),
    (call(scatter.merge_means, MEANS, H), "it must be ClassMeans"),
    (call(scatter.class_centers, MEANS, center="mean"), "center is 'mean'"),
    (call(scatter.within_class, CENTERS, jnp.ones((6, 2)), Y), "features has shape"),
    (call(geometry.frame_geometry, EYE[0]), "it must be \\(K, d\\) with K >= 2"),
    (call(geometry.frame_geometry, EYE, frame="etf"), "frame is 'etf'"),
    (call(geometry.self_duality, EYE, H), "differ in shape"),
    (call(geometry.uniformity, EYE, exponent="log"), "exponent is 'log'"),
    (call(geometry.one_vs_rest_distance, EYE, num_steps=1.5), "num_steps is 1.5"),
    (call(geometry.gram_error, EYE, EYE[:3, :3]), "nothing is broadcast"),
    (call(geometry.project_simplex, EYE, EYE), "allowed are float32; they must be booleans"),
    # frames
    (call(frames.thresholds, 1.5), "depth is 1.5; it must be an integer"),
    (call(frames.mode, [0.1, np.nan], 2), "it must be positive"),
    (call(frames.mode, 0.1, 2, branch="lower"), "branch is 'lower'"),
    (call(frames.mse_optimum, [3, 0], [0.1], 0.1), "class_sizes is"),
    (call(frames.mse_optimum, [3, 3], ["a"], 0.1), "weight_decays is"),
    (call(frames.mse_optimum, [3, 3], [0.1], 0.1, dim=1.5), "dim is 1.5"),
    (call(frames.simplex, 3.0), "num_classes is 3.0"),
    (call(frames.orthoplex, 3), "opposite pairs need an even number"),
    (call(frames.polygon, 0), "num_classes is 0"),
    (call(frames.cross_entropy_loss, np.eye(3), 1.5, [0.1], 0.1), "samples_per_class is 1.5"),
    (call(frames.cross_entropy_optimum, np.zeros((3, 3)), 1, [0.1], 0.1), "not all zero"),
    # kernels
    (call(kernels.center, H), r"kernel has shape \(6, 3\); it must be \(N, N\)"),
    (call(kernels.alignment, EYE, EYE[:1]), "they must be equal"),
    (call(kernels.alignment, "K", EYE), "one is 'K'; it must be an array"),
    (call(kernels.alignment, EYE, EYE, centered="no"), "centered is 'no'; it must be True or Fal"),
    (call(features.effective_rank, EYE, centered=EYE), "centered is of type .* True or False"),
    (call(features.pruning_mask, EYE[0], 0.5, highest=1), "highest is 1; it must be True or False"),
    (call(frames.mse_optimum, [3, 3], [0.1], 0.1, bias=None), "bias is None; it must be True or"),
    (
        call(geometry.frame_gram, 3, "simplex", "words"),
        "dtype is .words.; it must be a floating type",
    ),
    (call(geometry.project_simplex, EYE, "a"), "allowed is 'a'; it must be an array"),
    (call(metrics.neural_collapse, [], Y, 3), r"features are float\w+\[0\]; they must be floating"),
    (call(kernels.target_alignment, EYE, Y[:5]), r"targets has shape \(5,\)"),
    (call(kernels.velocity, EYE, EYE, 0), "elapsed is 0; it must be positive"),
    (call(kernels.relative_change, EYE, EYE[:1]), "nothing is broadcast"),
    (call(kernels.weight_movement, {"a": EYE}, {"a": EYE[0]}), "params/a"),
    (call(kernels.weight_movement, {"a": EYE}, {"b": EYE}), "differ in structure"),
    (call(kernels.weight_movement, {"a": "x"}, {"a": "x"}), "params/a is 'x'"),
    (call(kernels.representation_alignment, H, H[:5]), "features are of 6 and 5 examples"),
    (call(kernels.cka, H[:, 0], H), r"features has shape \(6,\)"),
    (call(kernels.cka_kernels, EYE[:4, :4], EYE[:4, :4]), "with 5 examples or more"),
    (call(kernels.cka_by_layer, H, H), "it must be a dict"),
    (call(kernels.hsic, EYE, H), "other has shape"),
    (call(kernels.cka_minibatch, 1.0, 1.0, 1.0), r"they must be one \(B,\)"),
    (call(kernels.task_model_alignment, jnp.triu(jnp.ones((6, 6))), Y), "kernel is not symmetric"),
    # features
    (call(geometry.tolerance, EYE, [0.5] * 6), "labels are"),
    (call(geometry.tolerance, EYE[0], [0]), "it must be \\(K, d\\) with K >= 2"),
    # contrastive losses and denoisers
    (call(contrastive.hardness, H, 1.0), r"similarities has shape \(6, 3\)"),
    (call(contrastive.hardness, EYE[:2, :2], 1.0), "two negatives at least"),
    (call(contrastive.hardness, EYE, 0.0), "temperature is 0.0"),
    (call(contrastive.normal_entropy, 1, 0.1, 1.0), "count is 1"),
    (call(contrastive.normal_entropy, 9, -0.1, 1.0), "spread is -0.1"),
    (call(denoising.jacobian_spectrum, Dense(), W, X), "apply is the module Dense"),
    (call(denoising.jacobian_spectrum, apply, W, X), r"returns shape \(6, 2\) for noisy"),
    (call(denoising.sure, apply, {"w": EYE[:3, :3]}, X, -1.0), "noise is -1.0"),
    (call(denoising.sure, apply, {"w": EYE[:3, :3]}, X[0], 1.0), r"noisy has shape \(3,\)"),
    (call(denoising.sure, apply, {"w": EYE[:3, :3]}, X, 1.0, key=0), "key is 0"),
    (call(denoising.sure, apply, {"w": EYE[:3, :3]}, X, 1.0, num_probes=0), "num_probes is 0"),
    (call(features.matching, H, H[:4]), "they must have as many examples"),
    (call(features.matching, EYE, H), "give the narrower network first"),
    (call(features.matching, H.at[2, 1].set(jnp.nan), H), r"one\[2, 1\] is nan"),
    (call(features.effective_rank, EYE[0]), r"matrix has shape \(6,\)"),
    (call(features.effective_rank, EYE[:0]), "not empty"),
    (call(features.inverse_participation_ratio, EYE, axis=2), "axis is 2; it must be between"),
    (call(features.inverse_participation_ratio, EYE, power=0.5), "power is 0.5"),
    (call(features.fourier_ipr, EYE * 1j), "weights is complex"),
    (call(features.fourier_tuning, EYE), r"it must be \(j, n, p\)"),
    (call(features.pruning_mask, EYE[0], 1.5), r"share is 1.5; it must be in \[0, 1\]"),
    (call(features.pruning_mask, EYE[0].at[1].set(jnp.nan), 0.5), r"scores\[1\] is nan"),
    (call(features.pruned_outputs, H, EYE, EYE[0], 3), r"readout has shape \(6, 6\)"),
    (call(features.pruned_outputs, H, EYE[:3], EYE[0, :3], 1.0), "groups is 1.0"),
    (call(features.feature_change, H, H[:1]), "they must be equal"),
    (call(features.feature_change_by_layer, H, {"a": H}), "features is of type|features is"),
    # examples
    (call(examples.el2n, H, Y + 5), "targets run from 5 to 7; they must be 0..2"),
    (call(examples.el2n, H, Y * 0 - 1), "targets run from -1"),
    (call(examples.el2n, H[0], Y), "logits has shape"),
    (call(examples.grand, Dense(), W, X, Y), "loss is the module Dense"),
    (call(examples.grand, loss, W, X, Y), "loss cannot be called as loss"),
    (call(examples.over_runs, 1.0), "scores of 1 run"),
    (call(examples.no_forgetting, 5.0), "num_examples is 5.0"),
    (call(examples.update_forgetting, STATE, [0, 6], [True, True]), "ids run from 0 to 6"),
    (call(examples.update_forgetting, STATE, [1, 1], [True, True]), "holds an example twice"),
    (call(examples.update_forgetting, STATE, [0.5], [True]), "ids are float"),
    (call(examples.update_forgetting, STATE, [0], [0.5]), "correct are float"),
    (call(examples.memorised, Y, Y, Y * 0.5), "clean are float"),
    (call(examples.memorised, Y, Y, Y[:5]), "differ in shape"),
    (call(examples.memorised, Y[:5], Y, Y), r"predictions has shape \(5,\)"),
    (call(examples.forgetting_scores, EYE), "what no_forgetting"),
    (call(examples.opposing_signals, EYE, 1.0), "group_size is 1.0"),
    (call(examples.opposing_signals, EYE, 4), r"group_size is 4; with 6 examples"),
    (call(examples.opposing_signals, EYE, 2, window=0), "window is 0"),
    (call(examples.gradient_cosine, losses, W, X, X), "it must return one real number"),
    # what to keep by the scores
    (call(examples.keep, H, 0.5), r"scores has shape \(6, 3\)"),
    (call(examples.keep, [1.0, np.nan], 0.5), r"scores\[1\] is nan"),
    (call(examples.keep, [1.0, 2.0], 1.5), "share is 1.5; it must be above 0"),
    (call(examples.keep, [1.0, 2.0], 0.1), "0 of 2 examples; keep at least one"),
    (call(examples.keep, [1.0, 2.0], 1.0, skip=0.5), "2 of 1 examples"),
    (call(examples.keep, [1.0, 2.0], 0.5, order="low"), "order is 'low'; it must be one of"),
    (call(examples.keep, [1.0, 2.0], 0.5, order="random"), "'random' and key missing"),
    (call(examples.keep, [1.0, 2.0], 0.5, key=KEY), "'hard' and key given"),
    (call(examples.rank_correlation, [1.0, 2, 3], [1.0, 2]), "differ in shape"),
    (call(examples.rank_correlation, [1.0, 2], [1.0, 2]), "a has 2 entries"),
    (call(examples.rank_correlation, [1.0, np.nan, 2], [1.0, 2, 3]), "a holds nan"),
    (call(examples.reliability, EYE[0]), r"scores has shape \(6,\)"),
    (call(examples.reliability, EYE[:2]), "must be at least"),
    (call(examples.reliability, EYE, 0), "networks is 0; it must be at least 1"),
    # linear probes
    (call(probes.naive_bayes, H, Y, 4), "no example of class 3"),
    (call(probes.naive_bayes, H, Y, 3, floor=0.0), "feature 0 has no variance"),
    (call(probes.naive_bayes, H, Y + 0.5, 3), "labels are float"),
    (call(probes.naive_bayes, H * np.nan, Y, 3), "it must be finite"),
    (call(probes.logistic, H, Y, 3, decay=0.0), "decay is 0.0; it must be positive"),
    (call(probes.logistic, EYE, Y, 3, max_steps=1), "not done after max_steps = 1"),
    (call(probes.logistic, H, Y, 1), "num_classes is 1; it must be at least 2"),
    (call(probes.accuracy, H, H, Y), "it must be a metrics.probes.Linear"),
    (call(probes.accuracy, PROBE, EYE, Y), "the probe reads 3 of them"),
    (call(probes.gaussian_error, PROBE, EYE[:2], np.ones(6)), "the probe has weights"),
    (call(probes.gaussian_error, PROBE, EYE, np.ones(6)), r"means has shape \(6, 6\)"),
    (call(probes.bayes, EYE[:2], -EYE), "smallest eigenvalue -1"),
    (call(probes.bayes, EYE[:2], EYE[:3]), r"covariance has shape \(3, 6\)"),
    (call(probes.bayes, EYE[:2], np.ones(6), [0.5, 0.6]), "two positive numbers of sum 1"),
    # information
    (call(information.binned_information, X, [1.0, 0.0]), "ascending"),
    (call(information.binned_information, X[0], [0.0]), r"features has shape \(3,\)"),
    (call(information.binned_information, X * np.nan, [0.0]), "it must be finite"),
    (call(information.binned_information, X, [0.0], label_probabilities=X), "add up to 1"),
    (call(information.noisy_information, X, 0.0, KEY), "sigma is 0.0"),
    (call(information.noisy_information, X, 1.0, 0), "key is 0; it must be a PRNG key"),
    (call(information.noisy_information, X, 1.0, KEY, draws=1), "draws is 1"),
    (call(information.noisy_information, X, 1.0, KEY, label_probabilities=X[:2]), "shape"),
    (call(information.information_bounds, X, -1.0), "sigma is -1.0"),
    (call(information.bottleneck_curve, X, [2.0]), "adds up to 18"),
    (call(information.bottleneck_curve, X / 18, [-2.0]), "betas is"),
    (call(information.bottleneck_curve, X / 18, 2.0), r"betas has shape \(\)"),
    (call(information.bottleneck_curve, X / 18, [2.0], max_steps=0), "max_steps is 0"),
    # scaling
    (call(metrics.refined_optimum, ["a", "b", "c"], [1, 2, 3]), "learning_rates is"),
    (call(metrics.refined_optimum, [1, 2, np.inf], [1, 2, 3]), "in increasing order"),
    (call(metrics.fit_power_law, [1, 2, 3], [1, 2, 3], 0), "key is 0; it must be a PRNG key"),
    (call(metrics.fit_power_law, [1, 2, 3], [1, 2, 3], KEY, num_samples=1.5), "num_samples is 1.5"),
    (call(metrics.fit_power_law, [1, 2, 3], [1, 2, 3], KEY, offset="no"), "offset is 'no'"),
    # kernels of one network
    (call(ntk.empirical_ntk, Dense(), W, X), "f is the module Dense"),
    (call(ntk.empirical_ntk, 3, W, X), "f is of type int; it must be a function"),
    (call(ntk.empirical_ntk, apply, W, "x"), "x1 holds str"),
    (call(ntk.empirical_ntk, apply, W, X * 1j), "x1 is complex"),
    (call(ntk.empirical_ntk, apply, W, X[:0]), "the batch is empty"),
    (call(ntk.empirical_ntk, apply, W, X, X[0]), "give both their axis of examples"),
    (
        call(ntk.empirical_ntk, apply, W, X, X[:, :2]),
        r"f cannot be evaluated on x2 of shapes \[\(6, 2\)\]",
    ),
    (call(ntk.empirical_ntk, apply, W, X, {"x": X}), "x1 and x2 differ in structure"),
    (call(ntk.empirical_ntk, apply, {**W, "step": 3}, X), "params/step is int32, no parameter"),
    (call(ntk.empirical_ntk, apply, {"params": W, "batch_stats": W}, X), "has the collections"),
    (call(ntk.empirical_ntk, apply, {"v": X}, X), "f cannot be evaluated on x1"),
    (call(ntk.empirical_ntk, apply, {}, X), "no floating-point arrays"),
    (call(ntk.empirical_ntk, apply, W, X, trace_axes=(1.5,)), "axes hold 1.5; axes are integers"),
    (call(ntk.empirical_ntk, apply, W, X, trace_axes=True), "axes hold True"),
    (call(ntk.empirical_ntk, apply, W, X, trace_axes=(2,)), "axis 2 is out of range"),
    (call(ntk.empirical_ntk, apply, W, X, vmap_axes=0.0), "vmap_axes has 0.0"),
    (call(ntk.empirical_ntk, apply, W, X, vmap_axes=2), "vmap_axes has 2"),
    (call(ntk.empirical_ntk, apply, W, X, implementation="fast"), "implementation is 'fast'"),
    (call(ntk.empirical_ntk, apply, W, X, implementation=1.0), "implementation is 1.0"),
    (call(ntk.empirical_nngp_fn, Dense()), "f is the module Dense"),
    (
        call(ntk.empirical_kernel_fn(apply), X, None, "ntkk", W),
        "'ntkk'; there are 'nngp' and 'ntk'",
    ),
    (call(ntk.empirical_kernel_fn(apply), X, None, 3, W), "get is 3"),
    (call(ntk.empirical_nngp_fn(apply), X, X[:, :2], W), "f cannot be evaluated on x2"),
    (call(ntk.empirical_ntk_vp_fn(apply, X, None, W), X), "the vector has shapes"),
    (call(ntk.linearize, 3, W), "f is of type int; it must be a function"),
    (call(ntk.linearize(apply, W), {"w": jnp.ones((3, 3))}, X), "new parameters have shape"),
    (call(ntk.taylor_expand, apply, W, 1.0), "degree is 1.0"),
]


@pytest.mark.parametrize(("wrong", "message"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_a_wrong_call_is_refused_by_name(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        wrong()
    module = refused.traceback[-1].frame.f_globals["__name__"].split(".")[0]
    assert module in ("metrics", "ntk"), f"raised in {module}"
