"""Figures: what is drawn is what was given; nothing leaks; every plot takes what a study has."""

import functools
import io

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import xarray as xr

from experiments import plots
from experiments.plots import drawing
from metrics import collapse, examples, features, geometry, kernels, noise, spectra, stability
from metrics.curvature import Sharpness
from metrics.estimate import Estimate

WIDTHS, RULES, RATES, STEPS = (
    [64, 128, 256],
    ["ntk", "mup"],
    2.0 ** np.arange(-4, 1),
    np.arange(0, 100, 5),
)


def array(values, **coords):
    return xr.DataArray(np.asarray(values, float), dims=tuple(coords), coords=coords)


def losses(seeds=2):
    distance = np.abs(np.arange(5) - 2.0)
    values = np.broadcast_to((1 + distance)[:, None], (2, 3, 5, seeds)).copy()
    values[0, 2, 3:] = np.nan
    return array(
        values, parametrization=RULES, width=WIDTHS, learning_rate=RATES, seed=range(seeds)
    )


def every_figure():
    slopes = array([[0.5, 0.0], [0.0, 0.0]], parametrization=RULES, layer=["hidden", "readout"])
    change = array(
        np.ones((2, 2, 3)), parametrization=RULES, layer=["hidden", "readout"], width=WIDTHS
    )
    optimum = array([[1, 2, 4], [1, 1, 1]], parametrization=RULES, width=WIDTHS)
    curves = array(
        np.exp(-STEPS / 50) * np.ones((2, 3, 1)), series=["a", "b"], seed=range(3), step=STEPS
    )
    sharpness = array(np.ones((2, 3, 20)), parametrization=RULES, width=WIDTHS, step=STEPS)
    nc = array(np.exp(-STEPS / 50) * np.ones((2, 1)), layer=["first", "last"], step=STEPS)
    density = array(np.exp(-(np.linspace(-3, 3, 50) ** 2)), eigenvalue=np.linspace(-3, 3, 50))
    phase = array([[0, 0.2, 1], [0.1, 0.9, np.nan]], wd=[0, 1], fraction=[0.1, 0.5, 0.9])
    points = array([4, 2, 1], width=WIDTHS)
    return {
        "loss": plots.loss_curves(losses()),
        "loss of one rule": plots.loss_curves(losses().sel(parametrization="mup", seed=0)),
        "optimum": plots.optimum_against_width(optimum, optimum / 2, optimum * 2),
        "sharpness": plots.sharpness_over_training(sharpness, 0.5),
        "coordinates": plots.coordinate_check(change, slopes, slopes),
        "spectrum": plots.spectral_density(density, theory=density, outliers=[4.0, 5.0]),
        "collapse": plots.collapse_over_training(xr.Dataset({"nc1": nc, "nc2": nc, "nc3": nc})),
        "dynamics": plots.training_dynamics(curves, curves.isel(seed=0, drop=True)),
        "phase": plots.heat_map(phase, contour=0.5),
        "two-sided phase": plots.heat_map(phase, center=0.5),
        "words": plots.heat_map(array(np.ones((2, 2)), rule=["a", "b"], optimizer=["sgd", "adam"])),
        "scaling": plots.scaling_law(
            points, -1.0, 256.0, low=points / 2, high=points * 2, theory=-1.0
        ),
    }


def two_layers(seed=0):
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), 8)
    means = rng.standard_normal((3, 5))
    return {
        name: jnp.asarray(means[labels] + spread * rng.standard_normal((24, 5)), jnp.float32)
        for name, spread in (("first", 0.5), ("last", 0.1))
    }, jnp.asarray(labels)


@functools.cache
def every_metric_figure():
    """Each result of `metrics`, drawn in one line."""
    hidden, labels = two_layers()
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    layers = collapse.collapse_by_layer(hidden, labels, 3, predictions=labels)
    one = collapse.neural_collapse(hidden["last"], labels, 3, weights=weights)
    general = collapse.generalized_collapse(hidden["last"], labels, 3, weights=weights)
    pairs = Sharpness(jnp.array([5.0, 1.0]), jnp.array([0.1, 0.2]), None)
    nodes = jnp.asarray([[-1.0, 0.0, 5.0], [-1.0, 0.1, 5.0]])
    spectrum = spectra.Spectrum(nodes, jnp.full((2, 3), 1 / 3), 3)
    ratio = jnp.stack([jnp.linspace(0, 1.1, 40), jnp.linspace(0, 0.5, 40)])
    sizes = [16, 64]
    predicted = noise.BatchSharpness(
        jnp.array(2.0), Estimate(1.0, 0.1), jnp.array([2.1, 2.0]), jnp.array([0.1, 0.0]), 1.0
    )
    kernel = hidden["last"] @ hidden["last"].T
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    moved = jax.tree.map(lambda p: p + 1, params)
    counts = examples.Forgetting(
        jnp.ones(5, bool), jnp.array([0, 0, 2, 0, 0]), jnp.array([1, 1, 1, 1, 0], bool)
    )
    losses = jnp.asarray(1 + np.outer(np.arange(30) % 2, [3, 2, 0, 0, -1, -1]), jnp.float32)
    estimate = Estimate(jnp.array(2.0), jnp.array(0.5))
    return {
        "estimates": plots.estimates({"a": estimate, "b": Estimate(jnp.inf, jnp.inf)}, "trace"),
        "diagonal": plots.diagonal(Estimate(params, params)),
        "eigenpairs": plots.eigenpairs({"start": pairs, "end": pairs}),
        "eigenpairs alone": plots.eigenpairs(pairs),
        "spectrum": plots.spectral_density(spectrum, outliers=[5.0]),
        "edge": plots.edge_of_stability(stability.edge_of_stability(ratio, 1.0)),
        "batch": plots.batch_sharpness(
            predicted, sizes, [estimate, estimate], published=[2.0, 2.0]
        ),
        "layers": plots.neural_collapse(layers),
        "collapse": plots.neural_collapse(one),
        "generalized": plots.generalized_collapse(general),
        "gram": plots.class_means(jnp.eye(3), geometry.frame_gram(3, "simplex")),
        "kernel": plots.kernel_spectrum(kernels.task_model_alignment(kernel, labels.astype(float))),
        "cka": plots.cka_matrix(kernels.cka_by_layer(hidden, hidden), hidden, hidden),
        "movement": plots.weight_movement(kernels.weight_movement(moved, params)),
        "change": plots.feature_change(features.feature_change_by_layer(hidden, two_layers(2)[0])),
        "rank": plots.effective_rank({n: features.effective_rank(h) for n, h in hidden.items()}),
        "participation": plots.participation(np.linspace(0, 1, 9), spread=0.2),
        "scores": plots.example_scores(np.arange(5.0), np.arange(5.0) ** 2),
        "forgetting": plots.forgetting(counts),
        "opposing": plots.opposing_signals(examples.opposing_signals(losses, 2), losses),
    }


def test_every_figure_is_drawn_captioned_and_leaves_nothing_behind():
    before = dict(matplotlib.rcParams)
    for name, figure in (every_figure() | every_metric_figure()).items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=50)
        assert content.getvalue()[:4] == b"\x89PNG", name
        assert len(figure.get_label()) > 40, name
    assert dict(matplotlib.rcParams) == before
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert pyplot.get_fignums() == []


def test_a_caption_can_be_replaced():
    assert plots.loss_curves(losses(), caption="Look here.").get_label() == "Look here."


def test_loss_curves_have_a_panel_a_rule_a_line_a_width_and_a_cross_before_divergence():
    figure = plots.loss_curves(losses())
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["NTK", "muP"]
    ntk, mup = figure.axes
    for ax in (ntk, mup):
        assert {line.get_label() for line in ax.lines} >= {"64", "128", "256"}
        dots = [line for line in ax.lines if line.get_markersize() == 8]
        assert [float(dot.get_xdata()[0]) for dot in dots] == [RATES[2]] * 3
    crosses = [line for line in ntk.lines if line.get_marker() == "x"]
    assert [float(cross.get_xdata()[0]) for cross in crosses] == [RATES[2]]
    assert not [line for line in mup.lines if line.get_marker() == "x"]
    assert [text.get_text() for text in mup.get_legend().get_texts()] == ["256", "128", "64"]


def test_a_run_that_blew_up_does_not_squash_the_others():
    values = losses()
    values[1, 0, 4] = 1e12
    low, high = plots.loss_curves(values).axes[0].get_ylim()
    assert low < 1 < 3 < high < 100


def test_what_diverged_altogether_is_still_a_figure():
    curves = array(np.full((2, 20), np.nan), series=["a", "b"], step=STEPS)
    optimum = array([np.nan, np.nan], width=WIDTHS[:2])
    for figure in (
        plots.loss_curves(losses(1) * np.nan),
        plots.training_dynamics(curves),
        plots.collapse_over_training(xr.Dataset({"nc1": curves.rename(series="layer")})),
        plots.optimum_against_width(optimum),
        plots.heat_map(array(np.full((2, 2), np.nan), a=[0, 1], b=[0, 1])),
    ):
        figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_sharpness_is_scaled_by_the_rate_of_each_rule():
    sharpness = array(np.ones((2, 3, 20)), parametrization=RULES, width=WIDTHS, step=STEPS)
    rates = array([0.5, 4.0], parametrization=RULES)
    axes = plots.sharpness_over_training(sharpness, rates).axes
    heights = [float(ax.lines[0].get_ydata()[0]) for ax in axes]
    assert heights == [0.5, 4.0]
    assert [float(ax.lines[-1].get_ydata()[0]) for ax in axes] == [2.0, 2.0]


def test_of_many_layers_those_furthest_from_the_prediction_are_named():
    layers = [f"Block_{k}/Attention_0/key" for k in range(14)]
    off = xr.DataArray(np.arange(14) / 10, coords={"layer": layers})
    change = xr.DataArray(
        np.ones((14, 2)), dims=("layer", "width"), coords={"layer": layers, "width": [8, 16]}
    )
    made = plots.coordinate_check(change, off, xr.zeros_like(off))
    found = {text.get_text() for text in made.axes[0].texts}
    assert found == {f"Block_{k}/…/key +{k / 10:.2f} (0)" for k in range(4, 14)}
    assert made.get_label().endswith("Of 14 layers the 10 whose slopes differ most are named.")


def test_coordinate_check_prints_slopes_and_marks_the_wrong_layer():
    change = array(np.ones((2, 3)), layer=["hidden", "readout"], width=WIDTHS)
    fitted, predicted = (
        array([0.02, 0.5], layer=["hidden", "readout"]),
        array([0, 0], layer=["hidden", "readout"]),
    )
    (ax,) = plots.coordinate_check(change, fitted, predicted).axes
    labels = {text.get_text(): text.get_weight() for text in ax.texts}
    assert labels == {"hidden +0.02 (0)": "normal", "readout +0.50 (0)": "bold"}


def test_optimum_intervals_are_drawn_and_a_flat_line_looks_flat():
    optimum = array([1, 1.05, 1], width=WIDTHS)
    (ax,) = plots.optimum_against_width(optimum, optimum / 2, optimum * 3).axes
    low, high = ax.get_ylim()
    assert high / low >= 16
    (bars,) = ax.containers
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, np.stack([optimum / 2, optimum * 3], axis=1))


def test_cells_of_a_heat_map_lie_where_their_coordinates_say():
    phase = array([[0, 0.25, 1], [0.5, 0.75, np.nan]], wd=[0, 1], fraction=[0.1, 0.5, 0.9])
    figure = plots.heat_map(phase)
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("fraction", "wd")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.1", "0.5", "0.9"]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    assert written == {
        (0, 0): "0.00",
        (1, 0): "0.25",
        (2, 0): "1.00",
        (0, 1): "0.50",
        (1, 1): "0.75",
    }
    assert "Grey cells" in figure.get_label()


def test_the_predicted_slope_passes_through_the_middle_of_the_points():
    x = np.array([1.0, 10.0, 100.0])
    line = drawing.slope_line(x, 5 * x**-0.5, -0.5)
    np.testing.assert_allclose(line, 5 * x**-0.5)
    np.testing.assert_allclose(drawing.slope_line(x, 5 * x**-0.5, 0.0), 5 * 10**-0.5)


def test_labels_at_the_ends_never_overlap():
    _, (ax,) = plots.figure(caption="c")
    ax.set_ylim(0, 1)
    drawing.end_labels(
        ax, [(0.5, f"line {i}", "black") for i in range(6)] + [(np.nan, "diverged", "black")]
    )
    heights = sorted(text.xy[1] for text in ax.texts)
    assert np.diff(heights).min() > 0.04
    assert heights[0] >= -0.2
    assert heights[-1] <= 1


def test_wider_is_darker_and_a_rule_keeps_its_colour():
    colors = drawing.sequential(WIDTHS)
    brightness = [sum(colors[width][:3]) for width in WIDTHS]
    assert brightness == sorted(brightness, reverse=True)
    assert drawing.rule_color("mup", 5) == drawing.rule_color("mup", 0)
    assert drawing.rule_color("other", 1) != drawing.rule_color("other", 2)


@pytest.mark.parametrize(
    ("limits", "expected"), [((0.011, 0.06), {0.02, 0.05}), ((0.9, 60), {1, 2, 5, 10, 20, 50})]
)
def test_a_short_log_axis_has_plain_numbers(limits, expected):
    with plots.style():
        _, (ax,) = plots.figure(caption="c")
        ax.set(yscale="log", ylim=limits)
        drawing.log_ticks(ax.yaxis)
    low, high = limits
    shown = {float(f"{tick:g}") for tick in ax.get_yticks() if low <= tick <= high}
    assert shown >= expected
    assert [text for text in ax.yaxis.get_ticklabels(minor=True) if text.get_text()] == []


def test_linear_time_keeps_evenly_spaced_ticks():
    nc = array(np.exp(-STEPS / 50), step=STEPS + 40)
    (ax,) = plots.collapse_over_training(xr.Dataset({"nc1": nc})).axes
    steps = np.diff(ax.get_xticks())
    np.testing.assert_allclose(steps, steps[0])


def bars(container):
    """(centre, low, high) of each error bar, along its own direction."""
    vertical = bool(container.has_yerr)
    ends = np.array([segment[:, int(vertical)] for segment in container.lines[2][0].get_segments()])
    return np.column_stack([container.lines[0].get_data()[int(vertical)], ends])


def test_metric_figures_draw_the_numbers_and_errors_they_were_given():
    figures = every_metric_figure()
    (ax,) = figures["estimates"].axes
    np.testing.assert_allclose(bars(ax.containers[0]), [[2, 1.5, 2.5]])
    assert [text.get_text() for text in ax.texts] == ["not finite"]
    (ax,) = figures["eigenpairs alone"].axes
    np.testing.assert_allclose(bars(ax.containers[0]), [[5, 4.9, 5.1], [1, 0.8, 1.2]])
    (ax,) = figures["batch"].axes
    np.testing.assert_allclose(bars(ax.containers[0]), [[2, 1.5, 2.5]] * 2)
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(drawn["predicted"], [2.1, 2.0])
    np.testing.assert_allclose(drawn["all examples"], 2.0)
    # the mean entry of 6 ones, each with error 1: at most sqrt(2 * 6) / 6
    (ax,) = figures["diagonal"].axes
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    reach = np.sqrt(2 / 6)
    kernel = bars(ax.containers[0])[names.index("dense/kernel")]
    np.testing.assert_allclose(kernel, [1, 1 - reach, 1 + reach])


def test_a_spectrum_is_drawn_with_its_outliers_and_its_error():
    nodes = jnp.asarray([[-1.0, 0.0, 5.0], [-1.0, 0.1, 5.0]])
    spectrum = spectra.Spectrum(nodes, jnp.full((2, 3), 1 / 3), 3)
    (ax,) = plots.spectral_density(spectrum, outliers=[5.0]).axes
    x, y = ax.lines[0].get_data()
    smooth = spectra.density(spectrum, jnp.asarray(x), 0.06)  # a hundredth of the range
    np.testing.assert_allclose(y, smooth.value, rtol=1e-4, atol=1e-6)
    assert np.sum(y) * (x[1] - x[0]) == pytest.approx(1, rel=1e-3)
    band = ax.collections[0].get_paths()[0].vertices
    between = np.abs(band[:, 0] - 0.05) < 0.3
    top = (smooth.value + smooth.error)[np.abs(x - 0.05) < 0.3].max()
    assert band[between, 1].max() == pytest.approx(float(top), rel=1e-3)
    assert float(smooth.error.max()) > 0.3  # the probes differ there
    assert ax.lines[1].get_xdata() == [5.0]


def test_the_edge_is_marked_where_it_is_crossed_and_bold_where_training_stays():
    ratio = jnp.stack([jnp.minimum(jnp.linspace(0, 2, 40), 1.02), jnp.linspace(0, 0.5, 40)])
    report = stability.edge_of_stability(ratio, 1.0)
    (ax,) = plots.edge_of_stability(report).axes
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [int(report.crossed[0])]
    weights = {text.get_text()[:5]: text.get_weight() for text in ax.texts}
    assert weights == {"1.020": "bold", "0.404": "normal"}


def test_probes_above_the_panel_are_marked_at_their_training_steps():
    ratio = np.where(np.arange(40) == 0, 50.0, 0.9)
    report = stability.edge_of_stability(ratio, 1.0)
    (ax,) = plots.edge_of_stability(report, steps=10 * np.arange(40)).axes
    (marked,) = (line for line in ax.lines if line.get_marker() == "^")
    assert marked.get_xdata().tolist() == [0]
    assert marked.get_ydata().tolist() == [ax.get_ylim()[1]]
    assert ax.get_xlabel() == "step"
    assert not [
        line for line in ax.lines if line.get_marker() == "o"
    ]  # the crossing is one of them


def test_collapse_panels_hold_every_number_of_every_layer():
    hidden, labels = two_layers()
    layers = collapse.collapse_by_layer(hidden, labels, 3, predictions=labels)
    nc1, nc2, nc4 = plots.neural_collapse(layers).axes
    values = np.array([[float(x) for x in c.nc1] for c in layers.values()])
    expected = np.column_stack([values[:, 0], values[:, 0] - values[:, 1], values.sum(1)])
    np.testing.assert_allclose(bars(nc1.containers[0]), expected)
    assert [tick.get_text() for tick in nc1.get_xticklabels()] == ["first", "last"]
    assert len(nc2.containers) == 4
    wrong = [1 - float(c.ncc_accuracy.value) for c in layers.values()]
    np.testing.assert_allclose(nc4.containers[0].lines[0].get_ydata(), wrong)
    assert len(every_metric_figure()["collapse"].axes) == 4  # with weights: NC3 too


def test_matrices_are_drawn_as_they_are_and_cells_say_their_error():
    figures = every_metric_figure()
    left, right, _ = figures["gram"].axes
    np.testing.assert_allclose(left.images[0].get_array(), np.eye(3) / np.sqrt(3), atol=1e-6)
    predicted = geometry.frame_gram(3, "simplex")
    np.testing.assert_allclose(
        right.images[0].get_array(), predicted / np.linalg.norm(predicted), atol=1e-6
    )
    similarity = Estimate(np.array([[1.0, 0.25], [0.5, 0.75]]), np.full((2, 2), 0.03))
    ax = plots.cka_matrix(similarity, ["a", "b"], ["c", "d"]).axes[0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    assert written[1, 0] == "0.25\n± 0.03"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["c", "d"]


def test_figures_of_features_and_examples_draw_what_they_were_given():
    figures = every_metric_figure()
    (ax,) = figures["movement"].axes
    assert [patch.get_width() for patch in ax.patches] == [1.0]  # ones moved by one
    assert [text.get_text() for text in ax.texts] == ["from zero"]
    (ax,) = figures["forgetting"].axes
    assert [patch.get_height() for patch in ax.patches] == [3, 0, 1, 1]
    assert ax.get_xticklabels()[-1].get_text() == "never\nlearned"
    (ax,) = figures["scores"].axes
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xydata()[3], [3, 9])
    assert ax.texts[0].get_text() == "rank correlation +1.00"
    (ax,) = figures["opposing"].axes
    rises, falls = (line.get_ydata() for line in ax.lines[:2])
    assert np.ptp(rises) == 2.5
    np.testing.assert_allclose(np.diff(rises), -2.5 * np.diff(falls), atol=1e-6)
    (ax,) = figures["participation"].axes
    assert sum(patch.get_height() for patch in ax.patches) == 9
    power = figures["kernel"].axes[1].lines[0].get_ydata()
    assert power[-1] == pytest.approx(1, abs=1e-5)
    assert len(figures["change"].axes) == 3
    assert len(figures["rank"].axes[0].containers) == 3
