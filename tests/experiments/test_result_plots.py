"""Every result says itself in one line and in a table, and one line draws it."""

import importlib
import inspect
import io
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import limits
import metrics
import models
import ntk
from experiments import claims, plots
from experiments.plots import drawing
from limits import (
    boundary_tilting,
    cbow,
    deep_kernel_machine,
    depth,
    dmft,
    early_learning,
    ensembles,
    feature_learning,
    finite_width,
    generalization,
    judgement,
    linear_rank,
    mean_field,
    opposing,
    perceptron,
    pi_net,
    pruning,
    regimes,
)
from limits.criticality import Susceptibilities
from metrics import (
    collapse,
    contrastive,
    curvature,
    denoising,
    estimate,
    examples,
    features,
    frames,
    geometry,
    information,
    kernels,
    learning,
    noise,
    probes,
    scaling,
    scatter,
    spectra,
    stability,
)
from ntk import model, predict, solve
from ntk.finite import monte_carlo
from ntk.infinite import depth_map
from ntk.regression import posterior, risk

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
Y = np.arange(20) % 2
PARAMS = {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}


def loss(params, batch):
    outputs = batch[0] @ params["w"] + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


def net(width=16):
    family = models.family("MLP", depth=1, outputs=2)
    return limits.parametrize(family, "mup", width=width, base_width=8, example=X[:1])


def filled(kind):
    """A result of a type with numbers in every field: what is shown does not depend on what they mean."""
    return kind(*[np.linspace(0.5, 1.5, 3 + k % 2) for k, _ in enumerate(kind._fields)])


OWN = {
    ntk.Kernel: lambda: ntk.stax.serial(ntk.stax.Dense(8), ntk.stax.Relu()).kernel_fn(X[:3], None),
    limits.Parametrized: net,
    limits.CoordinateCheck: lambda: limits.coordinate_check(
        net,
        [16, 24, 32],
        (X, Y),
        lambda f, y: (f**2).mean(),
        jax.random.key(0),
        learning_rate=0.1,
        steps=1,
        seeds=2,
    ),
    claims.Claim: lambda: claims.at_most("a claim", "a paper", "a number", 0.2, 0.5),
    curvature.Sharpness: lambda: metrics.sharpness(loss, PARAMS, (X, Y), k=2, num_steps=4),
    curvature.Krylov: lambda: filled(curvature.Krylov),
    spectra.Spectrum: lambda: metrics.spectral_density(
        metrics.operators.hessian(loss),
        PARAMS,
        (X, Y),
        jax.random.key(0),
        num_steps=4,
        num_probes=2,
    ),
    kernels.Spectrum: lambda: kernels.task_model_alignment(
        jnp.asarray(X @ X.T), jnp.asarray(Y * 1.0)
    ),
    collapse.Collapse: lambda: metrics.neural_collapse(jnp.asarray(X), jnp.asarray(Y), 2),
    collapse.Generalized: lambda: metrics.generalized_collapse(
        jnp.asarray(X), jnp.asarray(Y), 2, weights=jnp.asarray(X[:2])
    ),
    scaling.PowerLaw: lambda: metrics.fit_power_law(
        [1, 2, 4, 8], np.array([8.0, 4.1, 2.0, 1.0]), jax.random.key(0)
    ),
    scaling.Optimum: lambda: metrics.refined_optimum(
        [0.1, 0.2, 0.4], [[2.0, 1.0, 2.0], [2.1, 1.0, 1.8]]
    ),
    stability.EdgeReport: lambda: metrics.edge_of_stability(jnp.linspace(0.5, 1.1, 40), 1.0),
    estimate.Estimate: lambda: estimate.Estimate(jnp.array(1.0), jnp.array(0.1)),
    monte_carlo.Estimate: lambda: monte_carlo.Estimate(jnp.ones((2, 2)), jnp.ones((2, 2))),
    examples.Forgetting: lambda: metrics.examples.no_forgetting(5),
    features.Rank: lambda: metrics.features.effective_rank(jnp.asarray(X)),
    features.Change: lambda: metrics.features.feature_change(jnp.asarray(X), jnp.asarray(X) + 1),
    kernels.Movement: lambda: kernels.weight_movement(PARAMS, jax.tree.map(jnp.ones_like, PARAMS)),
    limits.Criticality: lambda: limits.criticality(jnp.tanh),
    Susceptibilities: lambda: limits.susceptibilities(jnp.tanh, 1.0, C_W=1.0),
    regimes.Regime: lambda: limits.classify(*limits.abc("mup", 2)),
    regimes.ABC: lambda: limits.abc("mup", 2),
    depth.Taxonomy: lambda: depth.taxonomy(jnp.tanh),
}
# Functions have no figure.
WITHOUT = {model.Network: lambda: ntk.network(nn.Dense, 4, X[:1])}
FILLED = [
    risk.Risk, risk.Optimum, learning.SpectrumLaws, deep_kernel_machine.Machine,
    deep_kernel_machine.Prediction,
    posterior.Gaussian, solve.Solution, solve.Regression, depth_map.DepthMap, predict.ODEState,
    depth.LogKernel, dmft.Dynamics, ensembles.PairMoments, feature_learning.Particles,
    feature_learning.LinearLimit, feature_learning.KernelLimit, feature_learning.Trained,
    feature_learning.Episodes, finite_width.Vertices, finite_width.MetricCovariance,
    judgement.Scaling, mean_field.Moments, mean_field.Loss, opposing.Outliers, perceptron.Path,
    perceptron.Margin, pi_net.PiNet, pi_net.PiLimit, cbow.Embeddings, examples.Opposing,
    examples.Memorised, early_learning.FirstStep, linear_rank.Laziness, features.Tuning, frames.Thresholds,
    frames.LinearOptimum, frames.CrossEntropyOptimum,
    geometry.Frame, geometry.Duality, noise.NoiseScale, noise.BatchSharpness, scatter.ClassMeans,
    scatter.Centers, scatter.WithinClass, pruning.Pruned, pruning.Frontier, probes.Linear,
    boundary_tilting.Tilt, boundary_tilting.Fitted,
    contrastive.Hardness, denoising.JacobianSpectrum, features.Matching,
    information.Information, information.Bounds,
    information.Curve, generalization.Gap, generalization.Layers, generalization.Gibbs,
]  # fmt: skip
RESULTS = OWN | {kind: (lambda kind=kind: filled(kind)) for kind in FILLED}


def shown_types():
    """Every type of ntk, limits, metrics and experiments that has a table for notebooks."""
    found = set()
    for package in (ntk, limits, metrics):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ == info.name and "_repr_html_" in vars(kind):
                    found.add(kind)
    return found


def test_every_type_is_in_the_table():
    tables = {"Explanation", "Summary"}
    assert {k for k in shown_types() if k.__name__ not in tables} == {
        *RESULTS, *WITHOUT
    } - {claims.Claim}  # fmt: skip


@pytest.mark.parametrize("kind", [*RESULTS, *WITHOUT], ids=lambda k: f"{k.__module__}.{k.__name__}")
def test_a_result_says_itself_and_is_drawn_in_one_line(kind):
    result = (RESULTS | WITHOUT)[kind]()
    text = repr(result)
    assert kind.__name__ in text
    assert "\n" not in text
    assert len(text) < 700, text
    table = result._repr_html_()
    assert table.startswith("<table>")
    assert table.endswith("</table>")
    if kind in WITHOUT:
        with pytest.raises(TypeError, match=f"{kind.__name__} holds no numbers"):
            plots.plot(result)
        return
    figure = plots.plot(result)
    assert isinstance(figure, Figure)
    assert figure.get_label(), "no caption"
    drawn = [ax for ax in figure.axes if ax.has_data()]
    assert drawn, "nothing is drawn"
    figure.savefig(io.BytesIO(), dpi=30)


def test_several_results_are_drawn_by_name_and_claims_in_a_list():
    found = metrics.neural_collapse(jnp.asarray(X), jnp.asarray(Y), 2)
    assert len(plots.plot({"one": found, "two": found}).axes) > 1
    one = claims.at_most("a claim", "a paper", "a number", 0.2, 0.5)
    control = claims.at_most("a control", "a paper", "a number", 2.0, 0.5, control=True)
    ax = plots.plot([one, control], caption="ours").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a control", "a claim"]
    left, right = (line.get_xdata()[0] for line in ax.lines[:2])
    assert left < 0 < right
    exact = claims.at_most("exact", "a paper", "a number", 0.0, 0.0)
    words = claims.equals("words", "a paper", "a word", "right", "right")
    assert len(plots.plot([exact, words]).axes[0].lines) == 3


def test_what_is_no_result_is_refused():
    for wrong in (3, np.ones(3), "text", [], {}, [1, 2]):
        with pytest.raises(TypeError, match="has no figure; plot takes results"):
            plots.plot(wrong)
    with pytest.raises(TypeError, match="captoin"):
        plots.plot(metrics.Estimate(jnp.array(1.0), jnp.array(0.1)), captoin="x")


def test_a_result_inside_jit_has_a_repr():
    said = []

    @jax.jit
    def inside(x):
        said.append(repr(metrics.Estimate(x, x.sum())))
        return x

    inside(jnp.ones(3))
    assert said == ["Estimate(value=array (3,) float32, error=array () float32)"]


def test_a_figure_shows_itself_in_a_notebook():
    """Without %matplotlib inline."""
    figure, _ = drawing.figure(caption="a caption")
    assert figure._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_numbers_of_a_repr():
    law = metrics.PowerLaw(-0.5, 2.0, 0.0, *[np.array([-0.6, -0.4])] * 3)
    assert repr(law) == (
        "PowerLaw(exponent=-0.5, prefactor=2, offset=0, exponent_interval=[-0.6, -0.4], "
        "prefactor_interval=[-0.6, -0.4], offset_interval=[-0.6, -0.4])"
    )
    claim = claims.at_most("P1", "paper", "words", 0.12345, 0.5)
    assert repr(claim) == "Claim(holds: P1, 0.1235, <= 0.5)"
    assert "&lt;= 0.5" in claim._repr_html_()
