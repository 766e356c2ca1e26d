"""One line, one figure: curvature, the edge of stability and single examples, as `metrics` returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, split, style
from metrics import spectra
from metrics.curvature import Sharpness
from metrics.estimate import Estimate
from metrics.examples import Forgetting, Opposing
from metrics.noise import BatchSharpness
from metrics.stability import EdgeReport


@style()
def estimates(values: Mapping[str, Any], label: str, *, caption: str = "") -> Figure:
    """Values with their errors, one row for each name: traces or noise scales of layers, of widths, of runs.

    Args:
        values: name -> anything with a scalar ``value`` and ``error``.
        label: what they are, for the axis.
        caption: replaces the default one.
    """
    caption = caption or (
        f"The {label} with one standard error (bars). Two rows differ where their bars are far apart."
    )
    made, (ax,) = figure(caption=caption)
    numbers, errors = (
        np.array([float(getattr(v, part)) for v in values.values()]) for part in ("value", "error")
    )
    rows, finite = np.arange(len(values)), np.isfinite(numbers)
    bars = np.where(np.isfinite(errors), errors, 0)[finite]
    ax.errorbar(numbers[finite], rows[finite], xerr=bars, fmt="o", color=PALETTE[0], capsize=3)
    for row in rows[~finite]:
        place = ax.get_yaxis_transform()
        ax.annotate("not finite", (0, row), (5, 0), place, "offset points", va="center")
    ax.set(ylim=(len(values) - 0.5, -0.5), xlabel=label)
    ax.set_yticks(rows, list(values))
    if drawing.spans_decades(numbers[finite]):
        ax.set_xscale("log")
        drawing.log_ticks(ax.xaxis)
    return made


def diagonal(estimate: Estimate, *, caption: str = "") -> Figure:
    """Mean entry of a curvature operator's diagonal in every array of parameters.

    Args:
        estimate: of `metrics.diagonal`, two pytrees like params.
        caption: replaces the default one.
    """
    caption = caption or (
        "Mean diagonal entry of each array of parameters: where the curvature sits. Bars bound the standard error."
    )
    errors, rows = jax.tree.leaves(estimate.error), {}
    for (path, value), error in zip(jax.tree_util.tree_leaves_with_path(estimate.value), errors):
        # Entries share their probes: the variance of their sum is at most twice the sum of variances.
        bound = np.sqrt(2 * np.sum(np.asarray(error, float) ** 2)) / value.size
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows[name] = Estimate(np.mean(np.asarray(value, float)), bound)
    return estimates(rows, "mean diagonal entry", caption=caption)


@style()
def eigenpairs(pairs: Sharpness | Mapping[str, Sharpness], *, caption: str = "") -> Figure:
    """Extremal eigenvalues in their order, with their residuals as bars.

    Args:
        pairs: of `metrics.sharpness` or `metrics.eigenpairs`, or one for each name (layer, width).
        caption: replaces the default one.
    """
    caption = caption or (
        "Extremal eigenvalues. Within each bar, the residual, lies an eigenvalue: a long bar wants more Lanczos steps."
    )
    made, (ax,) = figure(caption=caption)
    groups = drawing.named(pairs)
    values = np.concatenate([np.asarray(p.value, float).ravel() for p in groups.values()])
    for (name, p), color in zip(groups.items(), drawing.sequential(groups).values()):
        value, residual = (np.asarray(part, float) for part in (p.value, p.residual))
        rank = 1 + np.arange(value.size)
        how = drawing.stroke(ax, color)
        ax.errorbar(rank, value, yerr=residual, capsize=2, label=name, **how)
    if drawing.spans_decades(values):
        ax.set_yscale("log")
        drawing.log_ticks(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="rank", ylabel="eigenvalue")
    drawing.legend(ax)
    return made


@style()
def spectral_density(
    density: spectra.Spectrum | xr.DataArray,
    *,
    theory: xr.DataArray | None = None,
    outliers: Sequence[float] = (),
    caption: str = "",
) -> Figure:
    """Density of eigenvalues on a logarithmic vertical axis, with the outliers beside the bulk.

    Args:
        density: of `metrics.spectral_density`, each node then widened to a hundredth of the spectrum's range;
            or an estimate with dim eigenvalue, optionally width.
        theory: dim eigenvalue, the predicted density of the bulk.
        outliers: single eigenvalues, drawn as ticks.
        caption: replaces the default one.
    """
    error = None
    if isinstance(density, spectra.Spectrum):
        density, error = _widened(density)
    caption = caption or (
        "Density of Hessian eigenvalues on a logarithmic scale."
        + (" The band is one standard error over probes." if error is not None else "")
        + (
            " Look how far the estimate follows the predicted bulk (dashed)."
            if theory is not None
            else ""
        )
        + (" Ticks are single eigenvalues that left the bulk." if len(outliers) else "")
    )
    made, (ax,) = figure(caption=caption)
    peak = float(density.max())
    lines = split(density, "width")
    for (title, line), color in zip(lines, drawing.sequential(range(len(lines))).values()):
        x, low, high = line["eigenvalue"].values, 0, line.values
        ax.plot(x, line.values, label=title or "estimate", **drawing.stroke(ax, color, line))
        if error is not None:
            low, high = np.maximum(line.values - error, 1e-9 * peak), line.values + error
        shade = 0.15 / len(lines) if error is None else 0.3
        ax.fill_between(x, low, high, color=color, alpha=shade, linewidth=0)
    if theory is not None:
        bulk = theory.where(theory > 0).values
        ax.plot(
            theory["eigenvalue"].values, bulk, color=PALETTE[1], linestyle=DASHED, label="theory"
        )
    if len(outliers):
        floor, text = np.full(len(outliers), 2e-5 * peak), f"outliers ({len(outliers)})"
        ax.plot(outliers, floor, "|", color=INK, markersize=14, markeredgewidth=1.5, label=text)
    ax.set(yscale="log", ylim=(1e-5 * peak, 3 * peak), xlabel="eigenvalue", ylabel="density")
    drawing.legend(ax, "width" if "width" in density.dims else "")
    return made


def _widened(spectrum):
    low, high = float(spectrum.nodes.min()), float(spectrum.nodes.max())
    width = 0.01 * (high - low) or 1.0
    grid = np.linspace(low - 4 * width, high + 4 * width, 600)
    smooth = spectra.density(spectrum, grid, width)
    return (
        xr.DataArray(np.asarray(smooth.value), dims="eigenvalue", coords={"eigenvalue": grid}),
        np.asarray(smooth.error),
    )


@style()
def edge_of_stability(
    report: EdgeReport, *, steps: Sequence[int] | None = None, caption: str = ""
) -> Figure:
    """Sharpness over its threshold along training, where it first crosses, and its late mean.

    Args:
        report: of `metrics.edge_of_stability`, of one run or several.
        steps: training steps of the probes; without them they are counted.
        caption: replaces the default one.
    """
    caption = caption or (
        "Sharpness over the optimizer's threshold (dashed), probe by probe. Dots: the first crossing; triangles: "
        "probes above the panel. Right: the late mean with its standard error, bold where training sits at the edge."
    )
    made, (ax,) = figure(caption=caption)
    ratios = np.atleast_2d(np.asarray(report.ratio, float))
    ratios = ratios.reshape(-1, ratios.shape[-1])
    probes = np.arange(ratios.shape[-1]) if steps is None else np.asarray(steps)
    top = 1.1 * max(1.0, min(np.nanmax(ratios, initial=1), 3))
    rest = (np.ravel(a) for a in (report.crossed, report.mean, report.error, report.at_edge))
    ax.axhline(1, color=INK, linewidth=1, linestyle=DASHED)
    labels = []
    for number, (ratio, crossed, mean, error, at_edge) in enumerate(zip(ratios, *rest)):
        color = PALETTE[number % len(PALETTE)]
        ax.plot(probes, ratio, color=color, linestyle=drawing.DASHES[number % 4])
        above = probes[ratio > top]
        ax.plot(above, np.full(len(above), top), "^", color=color, clip_on=False)
        if crossed >= 0 and ratio[crossed] <= top:
            first = probes[crossed], ratio[crossed]
            ax.plot(*first, "o", color=color, markeredgecolor="white", zorder=5)
        labels.append((float(mean), f"{mean:.3f} ± {error:.3f}", color, bool(at_edge)))
    ax.set_ylim(0, top)
    drawing.end_labels(ax, labels)
    ax.set(xlabel="probe" if steps is None else "step", ylabel="sharpness / threshold")
    return made


@style()
def batch_sharpness(
    prediction: BatchSharpness,
    batch_sizes: Sequence[int],
    measured: Sequence[Estimate],
    *,
    published: Sequence[float] | None = None,
    caption: str = "",
) -> Figure:
    """Sharpness of mini-batches against their size: the random-matrix prediction over the measurement.

    Args:
        prediction: of `metrics.noise.batch_sharpness_prediction` for these sizes.
        batch_sizes: sizes B.
        measured: of `metrics.noise.batch_sharpness`, one for each size.
        published: of `metrics.noise.iid_batch_sharpness`, the law for independent noise.
        caption: replaces the default one.
    """
    caption = caption or (
        "Mean sharpness of random batches: measured (points, one standard error) and predicted from per-example "
        "curvature noise (line, band), without a fit. Dotted: all examples. It fails where the excess is large."
    )
    made, (ax,) = figure(caption=caption)
    value, error = np.asarray(prediction.value, float), np.asarray(prediction.error, float)
    ax.axhline(float(prediction.top), color=INK, linewidth=1, linestyle=":", label="all examples")
    ax.plot(batch_sizes, value, color=PALETTE[1], label="predicted")
    ax.fill_between(
        batch_sizes, value - error, value + error, color=PALETTE[1], alpha=0.25, linewidth=0
    )
    if published is not None:
        ax.plot(
            batch_sizes, published, color=PALETTE[3], linestyle=DASHED, label="independent noise"
        )
    points, bars = np.array([[float(m.value), float(m.error)] for m in measured]).T
    ax.errorbar(
        batch_sizes, points, yerr=bars, fmt="o", color=PALETTE[0], capsize=2, label="measured"
    )
    drawing.width_ticks(ax, np.asarray(batch_sizes))
    ax.set(xlabel="batch size", ylabel="largest eigenvalue")
    drawing.legend(ax)
    return made


@style()
def example_scores(el2n: Any, grand: Any, *, caption: str = "") -> Figure:
    """EL2N and GraNd scores of the same examples against each other.

    Args:
        el2n: (N,) of `metrics.examples.el2n`, or its Estimate over runs (`over_runs`).
        grand: (N,) of `metrics.examples.grand`, or its Estimate.
        caption: replaces the default one.
    """
    caption = caption or (
        "Two scores of each example, bars where they were averaged over runs. Examples at the upper right are hard by "
        "both; the rank correlation says whether the cheap score (EL2N) can stand for the dear one."
    )
    made, (ax,) = figure(caption=caption)
    pairs = [s if isinstance(s, Estimate) else Estimate(s, None) for s in (el2n, grand)]
    x, y = (np.asarray(s.value, float) for s in pairs)
    x_bar, y_bar = (None if s.error is None else np.asarray(s.error, float) for s in pairs)
    ax.errorbar(
        x, y, xerr=x_bar, yerr=y_bar, fmt="o", markersize=3, color=PALETTE[0], alpha=0.5,
        markeredgewidth=0, elinewidth=0.6,
    )  # fmt: skip
    ranks = [s.argsort().argsort() for s in (x, y)]
    text = f"rank correlation {drawing.signed(np.corrcoef(*ranks)[0, 1])}"
    ax.annotate(text, (0.03, 0.97), xycoords="axes fraction", va="top")
    ax.set(xlabel="EL2N", ylabel="GraNd")
    return made


@style()
def forgetting(state: Forgetting, *, caption: str = "") -> Figure:
    """How many examples were forgotten how often.

    Args:
        state: of `metrics.examples.update_forgetting`, at the end of training.
        caption: replaces the default one.
    """
    caption = caption or (
        "Examples by how often they went from correct to wrong. Those on the left were never forgotten once learned; "
        "those in the last bar were never learned."
    )
    made, (ax,) = figure(caption=caption)
    learned, events = np.asarray(state.learned, bool), np.asarray(state.events)
    counts = np.bincount(events[learned], minlength=1)
    ax.bar(np.arange(counts.size), counts, color=PALETTE[0], width=0.85)
    ax.bar(counts.size + 0.5, np.sum(~learned), color=PALETTE[1], width=0.85)
    ticks = np.arange(0, counts.size, max(1, -(-counts.size // 10)))
    ax.set_xticks([*ticks, counts.size + 0.5], [*map(str, ticks), "never\nlearned"])
    ax.set(xlabel="forgetting events", ylabel="examples")
    return made


@style()
def opposing_signals(result: Opposing, losses: Any, *, caption: str = "") -> Figure:
    """Losses of the two opposing groups around the step where training oscillates most.

    Args:
        result: of `metrics.examples.opposing_signals`.
        losses: (T, N), what it was made from.
        caption: replaces the default one.
    """
    caption = caption or (
        "Mean loss of the two groups (and of all examples) around the rise of the loss at which they were found "
        "(dotted). Opposing signals mirror one another: what helps one group hurts the other, step by step."
    )
    made, (ax,) = figure(caption=caption)
    losses, step = np.asarray(losses, float), int(result.step)
    steps = np.arange(max(step - 20, 0), min(step + 22, len(losses)))
    text = f"the groups carry {float(result.share):.0%} of the change; correlation "
    text += drawing.signed(float(result.correlation))
    if not result.rise > 0:
        text = "the mean loss never rose: no oscillation"
    ax.set_title(text, fontsize="medium", fontweight="normal")
    groups = {"rises": np.asarray(result.up), "falls": np.asarray(result.down)}
    for (name, ids), color in zip(groups.items(), (PALETTE[1], PALETTE[0])):
        ax.plot(steps, losses[steps][:, ids].mean(1), label=name, **drawing.stroke(ax, color))
    ax.plot(steps, losses[steps].mean(1), color=INK, linewidth=1, label="all")
    ax.axvline(step, color=INK, linewidth=1, linestyle=":")
    ax.set(xlabel="step", ylabel="loss")
    drawing.legend(ax)
    return made
