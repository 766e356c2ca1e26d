"""Shapes in annotations hold at calls of every function that has them; tests/shapes.py checks them in all tests."""

import importlib
import pkgutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import limits
import metrics
import models
import ntk
from limits import (
    aspect_ratio,
    attention_svm,
    boundary_tilting,
    cbow,
    deep_kernel_machine,
    depth,
    dmft,
    eigenlearning,
    ensembles,
    feature_learning,
    finite_width,
    generalization,
    hopfield,
    in_context,
    judgement,
    linear_rank,
    mean_field,
    opposing,
    perceptron,
    pi_net,
    surrogate,
)
from metrics import (
    contrastive,
    denoising,
    examples,
    features,
    frames,
    geometry,
    information,
    kernels,
    learning,
    noise,
    operators,
    probes,
    pruning,
    ranks,
    scaling,
    scatter,
    spectra,
)
from ntk import gram, predict, solve, stax
from ntk.regression import risk

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# Axes that a call must tell apart are of different length.
X, OTHER, IMAGES = normal(9, 3), normal(9, 5), normal(9, 2, 2)
Y, LABELS, SIGNS = normal(9, 2), np.arange(9) % 3, np.sign(normal(9))
PARAMS, K = {"w": normal(3, 2)}, normal(9, 4) @ np.eye(4, 9, dtype=np.float32)
K = K @ K.T + 9 * np.eye(9, dtype=np.float32)
COV, MEANS = np.diag([1.0, 2.0, 3.0]), normal(2, 3)
UNIT = X / np.linalg.norm(X, axis=1, keepdims=True)
SEPARABLE = np.abs(normal(9, 3))
DIFFERENCES = SEPARABLE[:, :, None] * np.ones(3) + np.eye(3)


def apply(params, x):
    return x @ params["w"]


def losses(params, batch):
    return ((apply(params, batch[0]) - batch[1]) ** 2).mean(1)


def loss(params, batch):
    return losses(params, batch).mean()


def one_loss(params, x, y):
    return ((x @ params["w"] - y) ** 2).mean()


KERNEL = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1))[2]
LAYERS = [deep_kernel_machine.Layer("linear", 1.0), deep_kernel_machine.Layer("linear")]
WINDOWS = cbow.Windows(np.zeros(6, int), np.zeros((6, 2), int), np.ones((6, 2), bool))
EPISODES = feature_learning.Episodes(
    *(np.zeros((2, 4, s), int) for s in (5, 5, 6, 6))
)  # outer steps, tasks
TASKS = jax.tree.map(lambda leaf: leaf[0], EPISODES)
START = mean_field.infinite_width(3)
SCALES = {"alpha": 1.0, "epsilon": 0.1}
BATCHES = normal(4, 9, 3), normal(4, 9, 2)
TEACHER = mean_field.Target(normal(3), np.eye(3, dtype=np.float32))

CALLS = [
    lambda: aspect_ratio.mutual_information([[0.1, 0.2]], 2, 3),
    lambda: attention_svm.constraints(normal(4, 5, 3), normal(4, 3), [0, 1, 2, 3]),
    lambda: attention_svm.correlation(normal(3, 4), normal(3, 4)),
    lambda: attention_svm.descend(
        normal(4, 5, 3), normal(4, 3), normal(3), [1, -1, 1, 1], 6, start=COV, every=2
    ),
    lambda: attention_svm.solve(DIFFERENCES),
    lambda: boundary_tilting.attacked_error(X[0], X[1], COV, 0.1),
    lambda: boundary_tilting.discriminant(X[0], COV),
    lambda: boundary_tilting.fitted(X[0], COV, 30),
    lambda: boundary_tilting.tilt(X[0], MEANS),
    lambda: cbow.analogies(normal(4, 4), jnp.array([[0, 1], [2, 3], [1, 2]])),
    lambda: cbow.cosines(normal(4, 3)),
    lambda: cbow.limit(4),
    lambda: cbow.neighbour_rank(normal(4, 4), jnp.array([[0, 1], [2, 3], [1, 2]])),
    lambda: cbow.train(cbow.limit(4), WINDOWS, np.full(4, 0.25), KEY, batch_size=2),
    lambda: limits.learning_rates(limits.criticality(jnp.tanh), 5),
    lambda: deep_kernel_machine.fit(K, Y, LAYERS, noise=0.1, inducing=[0, 3, 4, 8]),
    lambda: deep_kernel_machine.linear_solution(K, K, [1.0], 9),
    lambda: deep_kernel_machine.nngp(K, LAYERS),
    lambda: deep_kernel_machine.predict(
        deep_kernel_machine.fit(K, Y, LAYERS, noise=0.1), normal(5, 9), np.ones(5)
    ),
    lambda: depth.deep_classifier(jax.nn.relu, 2, UNIT, SIGNS, UNIT[:4]),
    lambda: depth.dual_curve(jax.nn.relu, [0.1, 0.2]),
    lambda: depth.gaps(X, X[:4]),
    lambda: depth.hilbert_estimate(UNIT, Y, UNIT[:4] + 1, 3.0),
    lambda: depth.majority_vote(Y, 4),
    lambda: depth.nearest_neighbor(UNIT, Y, UNIT[:4]),
    lambda: depth.singular_classifier(depth.optimal_activation(3), UNIT, SIGNS, -UNIT[:4]),
    lambda: dmft.high_dimensional_descent(
        [0.5, 0.1], KEY, **SCALES, density=1.0, learning_rate=0.1, steps=3, num_samples=8
    ),
    lambda: eigenlearning.power_law(1.5, 10),
    lambda: eigenlearning.power_law_target(1.5, 10),
    lambda: ensembles.sample_metrics(KEY, jnp.tanh, 8, 3, np.eye(2), C_W=1.0, networks=4),
    lambda: ensembles.sample_neurons(KEY, jnp.tanh, 8, 3, C_W=1.0, variance=1.0, networks=4),
    lambda: feature_learning.adapted_outputs(feature_learning.linear_limit(3, 2), X, TASKS),
    lambda: feature_learning.cross_entropy(X, LABELS),
    lambda: feature_learning.gradient(feature_learning.linear_limit(3, 2), (X, Y)),
    lambda: feature_learning.meta_train(feature_learning.linear_limit(3, 2), X, EPISODES),
    lambda: feature_learning.norm(*[feature_learning.linear_limit(3, 2)] * 2),
    lambda: feature_learning.squared_error(X, X),
    lambda: feature_learning.train(feature_learning.linear_limit(3, 2), BATCHES, 0.1, inputs=X),
    lambda: finite_width.covariance_of(np.eye(2), 2),
    lambda: finite_width.metric_covariance(jnp.tanh, 3, np.eye(2), C_W=1.0),
    lambda: finite_width.vertices(jnp.tanh, 3, C_W=1.0, variance=1.0),
    lambda: generalization.deep_linear([normal(4, 3), normal(2, 4)], 1.0, 9),
    lambda: generalization.gibbs(SEPARABLE[:4], [0.2, 0.3, 0.5], 5, 1.0),
    lambda: hopfield.energy(normal(2, 4, 3), X, 1.0),
    lambda: hopfield.retrieval_bound(X, 1.0),
    lambda: hopfield.retrieve(normal(2, 4, 3), X, 1.0, max_steps=3),
    lambda: hopfield.separation(X),
    lambda: hopfield.update(normal(2, 4, 3), X, 1.0),
    lambda: in_context.descend(normal(4, 9, 3), normal(4, 9), normal(4, 3), COV, 2),
    lambda: in_context.one_step(COV, 9),
    lambda: in_context.ridge(normal(4, 9, 3), normal(4, 9), normal(4, 3), 0.1),
    lambda: in_context.risk(COV, COV, 9),
    lambda: linear_rank.descend(normal(2, 4, 3), np.zeros((2, 4)), normal(2, 3)),
    lambda: mean_field.aligned(START, X[0], 1.0),
    lambda: mean_field.apply(X, normal(4, 3), **SCALES),
    lambda: mean_field.gradient_descent(START, (X, Y[:, 0]), [0, 2], **SCALES, learning_rate=0.1),
    lambda: mean_field.infinite_width(3),
    lambda: mean_field.lazy_descent(START, (X, Y[:, 0]), [1.0], epsilon=0.1, learning_rate=0.01),
    lambda: mean_field.moments(X),
    lambda: mean_field.population_loss(START, TEACHER, **SCALES),
    lambda: mean_field.predict(START, X, **SCALES),
    lambda: mean_field.subtract(START, START),
    lambda: mean_field.tangent_kernel(START, X, normal(4, 3), epsilon=0.1),
    lambda: opposing.outliers(KEY, 60, 5, alpha=1.0, signal=1.0, share=0.2),
    lambda: opposing.sharpness_path(40.0, 3.0, 0.1, [[1.0, 2.0]]),
    lambda: perceptron.descend(SEPARABLE, 1.0, start=X[0]),
    lambda: perceptron.margin(SEPARABLE),
    lambda: pi_net.train(pi_net.limit(KEY, 3, 2, rank=2, hidden_layers=1), BATCHES, 0.1),
    lambda: surrogate.largest_regret([0.1, 0.2]),
    lambda: surrogate.logistic_gap([0.1, 0.2]),
    lambda: judgement.fit(np.array([8, 16, 32]), np.abs(normal(3, 4, 2, 5)), 0.95),
    # metrics
    lambda: metrics.collapse_by_layer({"one": IMAGES, "two": X}, LABELS, 3),
    lambda: metrics.generalized_collapse(X, LABELS, 3, weights=normal(3, 3), num_steps=2),
    lambda: metrics.neural_collapse(OTHER, LABELS, 3, weights=normal(3, 5), bias=normal(3)),
    lambda: metrics.ood_orthogonality(normal(3, 4), IMAGES),
    lambda: contrastive.hardness(normal(9, 9), 1.0),
    lambda: contrastive.normal_entropy(9, X**2, 1.0),
    lambda: metrics.sharpness(loss, PARAMS, (X, Y), k=2, num_steps=4),
    lambda: metrics.eigenpairs(operators.hessian(loss), PARAMS, (X, Y), k=2, num_steps=4),
    lambda: denoising.jacobian_spectrum(lambda p, y: y * p, 2.0, IMAGES),
    lambda: denoising.sure(lambda p, y: y * p, 2.0, IMAGES, 1.0),
    lambda: examples.el2n(normal(4, 9, 3), LABELS),
    lambda: examples.el2n(X, np.eye(3)[LABELS]),
    lambda: examples.forgetting_scores(examples.no_forgetting(9)),
    lambda: examples.gradient_cosine(loss, PARAMS, (X, Y), (X[:4], Y[:4])),
    lambda: examples.grand(one_loss, PARAMS, X, Y),
    lambda: examples.opposing_signals(normal(30, 9), 4),
    lambda: examples.over_runs(normal(4, 9)),
    lambda: examples.update_forgetting(examples.no_forgetting(9), [1, 2], [True, False]),
    lambda: features.effective_rank(IMAGES),
    lambda: features.feature_change_by_layer({"one": IMAGES}, {"one": IMAGES + 1}),
    lambda: features.fourier_tuning(normal(2, 4, 7)),
    lambda: features.matching(X, OTHER),
    lambda: features.pruning_mask(normal(4), 0.5),
    lambda: features.pruned_outputs(normal(9, 4), normal(4, 2), normal(4), 2),
    lambda: frames.cross_entropy_loss(frames.simplex(4), 5, [0.1, 0.1], 0.1),
    lambda: frames.cross_entropy_optimum(frames.simplex(4), 5, [0.1, 0.1], 0.1),
    lambda: frames.known_frames(6),
    lambda: frames.mode([[0.1, 0.2]], 3),
    lambda: frames.mse_optimum([5, 4, 3], [0.01, 0.01], 0.01),
    lambda: frames.orthoplex(4),
    lambda: frames.pair_subsets(4),
    lambda: frames.polygon(5),
    lambda: geometry.frame_geometry(normal(4, 3)),
    lambda: geometry.self_duality(normal(4, 3), normal(4, 3)),
    lambda: geometry.one_vs_rest_distance(normal(4, 3), num_steps=2),
    lambda: geometry.squared_distances(normal(4, 3)),
    lambda: geometry.tolerance(X, LABELS),
    lambda: geometry.uniformity(normal(4, 3)),
    lambda: information.binned_information(
        IMAGES, [-1.0, 1.0], label_probabilities=np.eye(3)[LABELS]
    ),
    lambda: information.bottleneck_curve(np.full((5, 2), 0.1), [2.0, 3.0, 4.0]),
    lambda: information.information_bounds(IMAGES, 1.0),
    lambda: information.noisy_information(
        IMAGES, 1.0, KEY, label_probabilities=np.eye(3)[LABELS], draws=4
    ),
    lambda: kernels.alignment(X, X + 1),
    lambda: kernels.cka(X, OTHER),
    lambda: kernels.cka_by_layer({"one": X, "two": OTHER}, {"one": IMAGES}),
    lambda: kernels.cka_minibatch(np.ones(4), np.ones(4), np.ones(4)),
    lambda: kernels.hsic(K, K),
    lambda: kernels.relative_change(X, X + 1),
    lambda: kernels.representation_alignment(X, OTHER),
    lambda: kernels.target_alignment(K, Y),
    lambda: kernels.task_model_alignment(K, Y),
    lambda: kernels.velocity(K, K + 1, 1.0),
    lambda: learning.estimated_risk(K, Y, 0.1),
    lambda: learning.fit_spectrum(np.diag(np.arange(1.0, 201) ** -1.5), normal(200, 2), KEY),
    lambda: learning.intrinsic_dimension(normal(30, 2, 2), neighbors=5),
    lambda: learning.learning_curve(K, Y, [1, 2, 2]),
    lambda: noise.gradient_noise_scale(losses, PARAMS, (X, Y)),
    lambda: probes.accuracy(probes.naive_bayes(OTHER, LABELS, 3), OTHER, LABELS),
    lambda: probes.bayes(MEANS, COV),
    lambda: probes.gaussian_error(probes.bayes(MEANS, [1.0, 2.0, 3.0]), MEANS, COV),
    lambda: probes.logistic(OTHER, LABELS, 3),
    lambda: pruning.density(pruning.full_mask(PARAMS)),
    lambda: ranks.keep(Y[:, 0], 0.5),
    lambda: ranks.rank_correlation(Y[:, 0], Y[:, 1]),
    lambda: ranks.reliability(normal(4, 9)),
    lambda: scaling.fit_power_law([1, 2, 4, 8], np.abs(normal(3, 4)), KEY, num_samples=10),
    lambda: scaling.refined_optimum([0.1, 0.2, 0.4], [[2.0, 1.0, 2.0], [2.1, 1.0, 1.8]]),
    lambda: scatter.merge_means(*[scatter.class_means(OTHER, LABELS, 3)] * 2),
    lambda: metrics.density(
        metrics.spectral_density(
            operators.hessian(loss), PARAMS, (X, Y), KEY, num_probes=2, num_steps=4
        ),
        np.ones(5),
        0.1,
    ),
    lambda: spectra.gauss_newton_spectrum(apply, lambda f, x: (f**2).mean(), PARAMS, X),
    lambda: metrics.edge_of_stability(np.abs(normal(2, 40)), 1.0),
    # models and ntk
    lambda: models.initializers.low_rank(2, directions=normal(4, 2)),
    lambda: gram.diagonal(KERNEL, X),
    lambda: gram.gram(KERNEL, X, X[:4]),
    lambda: predict.max_learning_rate(K),
    lambda: risk.kernel_regression([1.0, 0.5], [1.0, 1.0], [1.0, 2.0, 3.0], ridge=0.1),
    lambda: risk.optimal_ridge([1.0, 0.5], [1.0, 1.0], [1.0, 2.0, 3.0]),
    lambda: risk.random_features([1.0, 0.5], [1.0, 1.0], [1.0, 2.0, 3.0], 4.0),
    lambda: solve.cholesky(K, Y, 0.1, leave_one_out=True),
    lambda: solve.conjugate_gradient(K, Y, 0.1, leave_one_out=[0, 2, 4]),
    lambda: solve.regression(KERNEL, X, Y, diag_reg=0.1),
]

# Called in tests of their own, which compile networks of several widths.
ELSEWHERE = {"limits.coordinates.coordinate_check"}


def test_shapes_hold_at_a_call_of_every_function_that_has_them(shapes):
    """Traced where a function allows it, which knows the shapes as well; else called."""
    for package in (ntk, limits, metrics, models):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    shapes.exercised.clear()
    for call in CALLS:
        try:
            jax.eval_shape(lambda call=call: jax.tree.leaves(call()) and None)
        except Exception:
            call()
    assert shapes.annotated - shapes.exercised == ELSEWHERE
    assert len(shapes.annotated) > 150


MODULE = """
from __future__ import annotations
from typing import NamedTuple
import numpy as np
from numpy.typing import ArrayLike
from ntk.types import Float, Integer, Real

class Pair(NamedTuple):
    sums: Float[np.ndarray, "n"]
    rows: Float[np.ndarray, "n d"]

def rows(x: Real[ArrayLike, "n d"], ids: Integer[ArrayLike, "n"] | None = None) -> Float[np.ndarray, "n"]:
    if np.ndim(x) != 2:
        raise ValueError("x is no matrix")
    return np.asarray(x, float).sum(1)

def columns(x: Real[ArrayLike, "n d"]) -> Float[np.ndarray, "n"]:
    return np.sum(x, 0, dtype=float)

def pair(x: Real[ArrayLike, "n d"], axis: int = 1) -> dict[str, Pair]:
    return {"pair": made(axis)}

def made(axis: int = 1) -> Pair:
    return Pair(np.ones((2, 3)).sum(axis), np.ones((2, 3)))
"""


@pytest.fixture
def example(shapes, monkeypatch):
    """A module of its own, with a wrong annotation in it."""
    monkeypatch.setattr(shapes, "annotated", set())
    monkeypatch.setattr(shapes, "exercised", set())
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(MODULE, vars(module))
    shapes.check(module)
    return module


def test_right_shapes_pass(example, shapes):
    example.rows([[1, 2, 3], [4, 5, 6]])
    example.rows(jnp.ones((2, 3)), ids=[1, 2])
    example.pair(np.ones((2, 3)))
    assert shapes.annotated == {f"example.{name}" for name in ("rows", "columns", "pair", "made")}
    assert shapes.exercised == {f"example.{name}" for name in ("rows", "pair", "made")}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("columns", ([[1, 2, 3]],), r"its result is \['float64\(3,\)'\], not Float.*'n'\]"),
        ("rows", ([[1, 2, 3]], [1, 2]), r"ids is \['int64\(\)', 'int64\(\)'\], not Integer"),
        ("rows", ([[1, 2, 3]], [0.5]), "ids is .* not Integer"),
        ("made", (0,), r"its result.rows is \['float64\(2, 3\)'\], not Float.*'n d'"),
        ("pair", (np.ones((4, 3)),), r"its result\['pair'\].sums is"),
    ],
    ids=["result", "two arguments", "type", "field", "field and argument"],
)
def test_wrong_shapes_are_found(example, name, arguments, message):
    with pytest.raises(AssertionError, match=message):
        getattr(example, name)(*arguments)


def test_a_refused_call_keeps_its_own_error(example):
    with pytest.raises(ValueError, match="x is no matrix"):
        example.rows([1, 2])
