"""One line, one figure: collapse, kernels and features, as `metrics` returns them, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, curve, figure, split, style
from metrics.collapse import Collapse, Generalized
from metrics.estimate import Estimate
from metrics.features import Change, Rank
from metrics.kernels import Movement, Spectrum


@style()
def collapse_over_training(
    measures: xr.Dataset, *, log_time: bool = False, caption: str = ""
) -> Figure:
    """Neural-collapse measures over training, one panel for each.

    Args:
        measures: variables such as nc1 to nc4 (title from their attribute long_name), dims (step), optionally
            layer or width (one line each) and seed.
        log_time: logarithmic time; step 0 is then not drawn.
        caption: replaces the default one.
    """
    caption = caption or (
        "Neural collapse over training, one measure a panel, on a logarithmic scale. Each measure is 0 at collapse: "
        "look which ones go on falling to the end of training, and in which layers."
    )
    names = list(measures.data_vars)
    titles = [drawing.label_of(measures[name], name) for name in names]
    made, axes = figure(titles, caption=caption, columns=2, panel=(3.4, 2.4), sharey=False)
    dim = next((dim for dim in ("layer", "width") if dim in measures.dims), "")
    for ax, name in zip(axes, names):
        lines = split(measures[name], dim)
        for (label, line), color in zip(lines, drawing.sequential(range(len(lines))).values()):
            curve(ax, line, "step", color, label=label)
        ax.set(yscale="log", xscale="log" if log_time else "linear", xlabel="step")
        drawing.log_ticks(ax.xaxis)
        drawing.log_ticks(ax.yaxis)
    drawing.legend(axes[min(1, len(axes) - 1)], dim)
    return made


@style()
def neural_collapse(collapse: Collapse | Mapping[str, Collapse], *, caption: str = "") -> Figure:
    """NC1 to NC4, one panel each, layer by layer.

    Args:
        collapse: of `metrics.neural_collapse`, or one for each layer (`metrics.collapse_by_layer`).
        caption: replaces the default one.
    """
    caption = caption or (
        "Neural collapse of each layer; every number is 0 at collapse. Collapse that deepens falls from left to right. "
        "Bars are standard errors over examples."
    )
    layers = drawing.named(collapse)
    every = list(layers.values())

    def of(part):
        return Estimate(*np.array([[float(x) for x in getattr(c, part)] for c in every]).T)

    panels = {
        "NC1: spread within classes": {part: of(part) for part in ("nc1", "quotient", "cdnv")}
    }
    panels["NC2: frame of the class means"] = _fields([c.nc2 for c in every], general=False)
    if all(c.nc3 is not None for c in every):
        panels["NC3: weights against means"] = _fields([c.nc3 for c in every])
    missed = of("ncc_accuracy")
    panels["NC4: error of the nearest class mean"] = {
        "wrong": missed._replace(value=1 - missed.value)
    }
    if all(c.nc4 is not None for c in every):
        other = of("nc4")
        panels["NC4: error of the nearest class mean"]["not the network's"] = other._replace(
            value=1 - other.value
        )
    return _panels(panels, list(layers), caption, logarithmic=len(panels) - 1)


def _fields(results, **skipped):
    """name -> Estimate over layers, of the fields of NamedTuples without errors."""
    names = [name for name in results[0]._fields if skipped.get(name, True)]
    values = {name: [float(getattr(r, name)) for r in results] for name in names}
    return {name.replace("_", " "): Estimate(np.array(v), None) for name, v in values.items()}


def _panels(panels, names, caption, *, logarithmic=0, columns=2):
    """One panel for each title, one line in it for each measure; the first few on a logarithmic scale."""
    made, axes = figure(
        list(panels), caption=caption, columns=columns, panel=(3.9, 2.5), sharey=False
    )
    for number, (ax, measures) in enumerate(zip(axes, panels.values())):
        for color, (label, estimate) in zip(PALETTE, measures.items()):
            drawing.over_names(ax, names, *estimate, color, label)
        if number < logarithmic:
            ax.set_yscale("log")
            drawing.log_ticks(ax.yaxis)
        else:
            ends = [
                e.value + s * (0 if e.error is None else e.error)
                for e in measures.values()
                for s in (-1, 1)
            ]
            low, high = np.nanmin(ends, initial=0), np.nanmax(ends, initial=0)
            room = 0.1 * (high - low) or 0.05
            ax.set_ylim(low - room * (low < 0), high + room)
        if len(measures) > 1:
            drawing.legend(ax)
    return made


@style()
def generalized_collapse(
    result: Generalized | Mapping[str, Generalized], *, caption: str = ""
) -> Figure:
    """Generalised collapse for many classes, one panel a measure.

    Args:
        result: of `metrics.generalized_collapse`, or one for each name.
        caption: replaces the default one.
    """
    caption = caption or (
        "Generalised collapse on the sphere. GNC1, GNC3 and the error fall to 0; GNC2, the distance of each class's "
        "weights to the others' hull, rises as far as the dimension allows."
    )
    groups = drawing.named(result)
    every = list(groups.values())

    def of(part):
        return Estimate(*np.array([[float(x) for x in getattr(g, part)] for g in every]).T)

    wrong = of("ncc_accuracy")
    panels = {
        "GNC1: spread within classes": of("gnc1"),
        "GNC2: one against the rest": of("gnc2"),
        "GNC3: weights against means": Estimate(np.array([float(g.gnc3) for g in every]), None),
        "nearest mean is wrong": wrong._replace(value=1 - wrong.value),
    }
    return _panels({title: {title: e} for title, e in panels.items()}, list(groups), caption)


@style()
def class_means(gram: Any, predicted: Any, *, caption: str = "") -> Figure:
    """Gram matrix of the class means beside that of the predicted frame, both of unit norm.

    Args:
        gram: (K, K) of class means (or classifier rows).
        predicted: (K, K), of `metrics.geometry.frame_gram` or `metrics.frames`, any scale.
        caption: replaces the default one.
    """
    caption = caption or (
        "Inner products of the class means and of the frame that collapse predicts, in the same colours. "
        "Collapse is where the two panels are one."
    )
    gram, predicted = (np.asarray(g, float) / np.linalg.norm(g) for g in (gram, predicted))
    distance = np.linalg.norm(gram - predicted)
    titles = [f"measured (distance {distance:.2g})", "predicted"]
    made, axes = figure(titles, caption=caption, panel=(3.0, 2.6))
    reach = max(np.abs(gram).max(), np.abs(predicted).max())
    for ax, values in zip(axes, (gram, predicted)):
        image = ax.imshow(values, cmap=drawing.cell_colors(True), vmin=-reach, vmax=reach)
        for axis in (ax.xaxis, ax.yaxis):
            drawing.cell_ticks(axis, np.arange(len(values)))
        ax.set_xlabel("class")
        ax.grid(False)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("class")
    made.colorbar(image, ax=axes, label="inner product", drawedges=False)
    return made


@style()
def kernel_spectrum(spectrum: Spectrum | Mapping[str, Spectrum], *, caption: str = "") -> Figure:
    """Eigenvalues of a kernel, and the share of the target that its top modes explain.

    Args:
        spectrum: of `metrics.kernels.task_model_alignment`, or one for each name.
        caption: replaces the default one.
    """
    caption = caption or (
        "Left: eigenvalues of the kernel. Right: cumulative power of the target in its top modes. The earlier the "
        "right curve rises, the fewer examples kernel regression needs. Modes beyond a tenth of the examples are noise."
    )
    made, axes = figure(["eigenvalues", "cumulative power"], caption=caption, sharey=False)
    groups = drawing.named(spectrum)
    for (name, s), color in zip(groups.items(), drawing.sequential(groups).values()):
        values = np.asarray(s.eigenvalues, float)
        rank = 1 + np.arange(values.size)
        positive = values > values.size * np.finfo(s.eigenvalues.dtype).eps * values[0]
        how = drawing.stroke(axes[0], color, values[positive])
        axes[0].plot(rank[positive], values[positive], label=name, **how)
        axes[1].plot(rank, s.cumulative_power, label=name, **how)
    axes[0].set(xscale="log", yscale="log", xlabel="mode", ylabel="eigenvalue")
    axes[1].set(xscale="log", xlabel="top modes", ylabel="share of the target", ylim=(0, 1.03))
    for axis in (axes[0].xaxis, axes[0].yaxis, axes[1].xaxis):
        drawing.log_ticks(axis)
    drawing.legend(axes[1])
    return made


@style()
def cka_matrix(
    similarity: Estimate, rows: Sequence[str], columns: Sequence[str], *, caption: str = ""
) -> Figure:
    """CKA of every layer of one network with every layer of another, with its standard error.

    Args:
        similarity: (len(rows), len(columns)), of `metrics.kernels.cka_by_layer`.
        rows: names of the first network's layers.
        columns: names of the second's.
        caption: replaces the default one.
    """
    caption = caption or (
        "Centred kernel alignment of layers, debiased, ± one standard error over examples: 1 for the same geometry up "
        "to rotation, 0 for unrelated features."
    )
    values, errors = (np.asarray(part, float) for part in similarity)
    made, (ax,) = figure(caption=caption)
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(
        shown, origin="lower", aspect="auto", cmap=drawing.cell_colors(False), vmin=0, vmax=1
    )
    made.colorbar(image, ax=ax, label="CKA", drawedges=False)
    if values.size <= 48:
        drawing.cell_values(ax, image, shown, errors)
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        axis.set_ticks(range(len(names)), list(names))
    if sum(map(len, columns)) > 40:
        ax.tick_params(axis="x", rotation=30)
    ax.set(xlabel="second network", ylabel="first network")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return made


@style()
def weight_movement(movement: Movement, *, caption: str = "") -> Figure:
    """How far each array of parameters moved from where it started, relative to its size.

    Args:
        movement: of `metrics.kernels.weight_movement`.
        caption: replaces the default one.
    """
    caption = caption or (
        "Relative distance of each array of parameters from its start; dashed: of all together. Lazy training moves "
        "all of them little. Arrays that started at zero have no relative distance and are named only."
    )
    made, (ax,) = figure(caption=caption)
    leaves = jax.tree_util.tree_leaves_with_path(movement.per_leaf)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    values = np.array([float(value) for _, value in leaves])
    rows, finite = np.arange(len(names)), np.isfinite(values)
    ax.barh(rows[finite], values[finite], color=PALETTE[0], height=0.7)
    for row in rows[~finite]:
        ax.annotate("from zero", (0, row), (3, 0), textcoords="offset points", va="center")
    total = float(movement.relative)
    ax.axvline(total, color=INK, linewidth=1, linestyle=DASHED)
    ax.set_title(f"all together {total:.3g}", fontweight="normal", fontsize="medium")
    ax.set_yticks(rows, names)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel="relative distance from the start")
    return made


@style()
def feature_change(change: Change | Mapping[str, Change], *, caption: str = "") -> Figure:
    """Change of features since initialisation, layer by layer, with standard errors over examples.

    Args:
        change: of `metrics.features.feature_change`, or one for each layer (`feature_change_by_layer`).
        caption: replaces the default one.
    """
    caption = caption or (
        "Change of each layer's features since the start, mean over examples with its standard error. Features are "
        "learnt where the change per coordinate stays of order one as the network widens; a lazy layer has cosine 1."
    )
    layers = drawing.named(change)
    titles = {
        "relative": "relative change",
        "coordinate": "change per coordinate",
        "cosine": "cosine",
    }
    panels = {
        title: {title: Estimate(*np.array([getattr(c, part) for c in layers.values()], float).T)}
        for part, title in titles.items()
    }
    return _panels(panels, list(layers), caption, columns=3)


@style()
def effective_rank(rank: Rank | Mapping[str, Rank], *, caption: str = "") -> Figure:
    """Three soft ranks of features or weights, layer by layer.

    Args:
        rank: of `metrics.features.effective_rank`, or one for each layer.
        caption: replaces the default one.
    """
    caption = caption or (
        "Soft ranks, from the most to the least generous (entropy, participation, stable). They agree where the "
        "singular values are even and part where a few dominate."
    )
    layers = drawing.named(rank)
    return _panels({"soft rank": _fields(list(layers.values()))}, list(layers), caption, columns=1)


@style()
def participation(ratios: Any, *, spread: float | None = None, caption: str = "") -> Figure:
    """Histogram of inverse participation ratios of neurons.

    Args:
        ratios: any shape, of `metrics.features.inverse_participation_ratio` or `fourier_ipr`.
        spread: the value of neurons without structure, for instance 4/p for a Fourier basis of Z_p.
        caption: replaces the default one.
    """
    caption = caption or (
        "Inverse participation ratios of neurons: near 1 a neuron lives on one coordinate"
        + (", at the dashed line it is spread as a random one." if spread is not None else ".")
    )
    made, (ax,) = figure(caption=caption)
    ax.hist(np.ravel(ratios), bins=np.linspace(0, 1, 41), color=PALETTE[0])
    if spread is not None:
        ax.axvline(spread, color=INK, linewidth=1, linestyle=DASHED)
    ax.set(xlabel="inverse participation ratio", ylabel="neurons", xlim=(0, 1))
    return made
