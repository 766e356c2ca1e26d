"""Every result says itself in one line and in a table, and one line draws it."""

import importlib
import inspect
import io
import itertools
import pkgutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

import limits
import metrics
import models
import ntk
from experiments import claims, plots
from experiments.plots import drawing
from limits import (
    attention_svm,
    boundary_tilting,
    cbow,
    correlations,
    deep_kernel_machine,
    depth,
    dmft,
    early_learning,
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
    pruning,
    regimes,
    summary,
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
from ntk import model, predict, show, solve
from ntk.activations import closed_forms
from ntk.finite import monte_carlo
from ntk.infinite import depth_map, evaluate
from ntk.regression import inducing, posterior, risk
from ntk.trace import explanation, sampled

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
Y = np.arange(20) % 2
PARAMS = {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}


def loss(params, batch):
    outputs = batch[0] @ params["w"] + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


OWN_NET = ntk.stax.serial(ntk.stax.Dense(8), ntk.stax.Relu(), ntk.stax.Dense(1))


class Sorted(nn.Module):
    """A model without a rule."""

    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.sort(nn.Dense(self.width)(x), axis=-1))


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
    limits.Rule: lambda: limits.RULES["mup"],
    ntk.Dual: lambda: closed_forms.erf(),
    depth.Taxonomy: lambda: depth.taxonomy(jnp.tanh),
}
# Functions, words and tables have no figure.
WITHOUT = {
    model.Network: lambda: ntk.network(nn.Dense, 4, X[:1]),
    ntk.ParamAxes: lambda: ntk.width_axes(nn.Dense, X[:1])["kernel"],
    explanation.Explanation: lambda: ntk.explain(models.family("MLP", depth=1, outputs=2), X[:1]),
    summary.Summary: lambda: net().summary(),
    evaluate.KernelFn: lambda: ntk.stax.Dense(8).kernel_fn,
    sampled.SampledKernelFn: lambda: ntk.infinite_width(Sorted, X[:2], otherwise="sample"),
}
FILLED = [
    sampled.Estimate, inducing.Inducing, attention_svm.Separator, attention_svm.Path, correlations.DualMap,
    eigenlearning.Modes, limits.Exponents, hopfield.Retrieval, in_context.OneStep,
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
BUNDLES = {
    "AnalyticKernel": lambda: OWN_NET.kernel_fn(X[:3], None, ("nngp", "ntk")),
    "EmpiricalKernel": lambda: ntk.empirical_kernel_fn(OWN_NET.apply_fn)(
        X[:3], None, ("nngp", "ntk"), OWN_NET.init_fn(jax.random.key(0), X.shape)[1]
    ),
    "Claims": lambda: claims.Claims(
        [claims.at_most("a claim", "a paper", "a number", 0.2, 0.5)],
    ),
}
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
    assert shown_types() == {*RESULTS, *WITHOUT} - {claims.Claim}


def name_of(kind):
    return kind if isinstance(kind, str) else kind.__name__


@pytest.mark.parametrize(
    "kind",
    [*RESULTS, *WITHOUT, *BUNDLES],
    ids=lambda k: k if isinstance(k, str) else f"{k.__module__}.{k.__name__}",
)
def test_a_result_says_itself_and_is_drawn_in_one_line(kind):
    result = (RESULTS | WITHOUT | BUNDLES)[kind]()
    text = repr(result)
    assert name_of(kind) in text
    assert "\n" not in text
    assert len(text) < 700, text
    table = result._repr_html_()
    assert table.startswith("<table>")
    assert table.endswith(("</table>", "</p>"))
    if kind in WITHOUT:
        with pytest.raises(TypeError, match=f"{kind.__name__} (holds no numbers|is a function)"):
            result.plot()
        return
    figure = result.plot(caption="a caption")
    assert figure.get_label() == "a caption"
    figure = result.plot()
    assert isinstance(figure, Figure)
    assert len(figure.get_label()) > 30, "no caption"
    drawn = [ax for ax in figure.axes if ax.has_data()]
    assert drawn, "nothing is drawn"
    figure.savefig(io.BytesIO(), dpi=30)
    for ax in drawn:
        assert_is_read_without_colour(ax)
        assert is_labelled(ax), f"panel {ax.get_title(loc='left')!r} does not say what its axes are"
        legend = ax.get_legend()
        texts = [*ax.texts, *(legend.get_texts() if legend else [])]
        for words in (ax.get_title(loc="left"), *(text.get_text() for text in texts)):
            assert words not in drawing.NAMES, words


def assert_is_read_without_colour(ax):
    """Every curve is dark enough on white, and two of different colours have other marks or dashes."""
    strokes: dict = {}
    for line in ax.lines:
        if np.size(line.get_xdata()) < 2:
            continue
        color = to_hex(line.get_color())
        if color == drawing.FAINT:  # lines to hold on to, not to read
            continue
        assert contrast(color) >= 3, f"{color} on white has a contrast of {contrast(color):.2f}"
        strokes.setdefault(color, set()).add((str(line.get_linestyle()), line.get_marker()))
    for one, other in itertools.combinations(strokes, 2):
        assert strokes[one] != strokes[other], f"{one} and {other} are told apart by colour alone"


def contrast(color):
    """Of a colour on white, as WCAG 2 defines it."""
    parts = np.array(to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def is_labelled(ax):
    """Whether a panel says what is across and what is up: in a label, in a title, or in names at its ticks."""
    named = [
        any(c.isalpha() for t in a.get_ticklabels() for c in t.get_text())
        for a in (ax.xaxis, ax.yaxis)
    ]
    across = ax.get_xlabel() or named[0] or not len(ax.get_xticks())
    up = ax.get_ylabel() or named[1] or ax.get_title(loc="left")
    return bool((across or named[1]) and up) or ax.get_label() == "<colorbar>"


def test_all_colours_of_the_house_have_contrast():
    for color in (*drawing.PALETTE, *drawing.sequential(range(8)).values()):
        assert contrast(to_hex(color)) >= 3, color
    assert contrast("#56B4E9") < 3


def test_a_figure_that_cannot_be_drawn_says_what_to_install(monkeypatch):
    monkeypatch.setattr(show, "FIGURES", "no_such_package.plots")
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed: pip install"):
        limits.abc("mup", 2).plot()


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
