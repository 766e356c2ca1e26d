"""One figure, one function: loss curves, optima, coordinate checks and scaling laws of runs over widths."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, curve, figure, split, style


@style()
def loss_curves(losses: xr.DataArray, *, caption: str = "") -> Figure:
    """Final loss against learning rate: one panel a parametrization, one line a width.

    Args:
        losses: dims (width, learning_rate), optionally parametrization and seed; diverged runs are not finite.
        caption: replaces the default one.
    """
    caption = caption or (
        "Final loss against learning rate. Look at the large marks, the best learning rate of each width: where it "
        "transfers they stand above one another; where it does not they drift sideways. A cross ends a curve "
        "whose next learning rate diverged; bands span the seeds."
    )
    panels = split(losses, "parametrization")
    made, axes = figure([title for title, _ in panels], caption=caption)
    rates = losses["learning_rate"].values
    for ax, (_, panel) in zip(axes, panels):
        for width, color in drawing.sequential(losses["width"].values).items():
            curve(
                ax, panel.sel(width=width), "learning_rate", color, label=f"{width}", minimum=True
            )
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlim=(rates.min() / 1.3, rates.max() * 1.3), xlabel="learning rate")
    finite = losses.values[np.isfinite(losses.values)]
    if finite.size:  # far above the loss at the smallest rate lies divergence, no result
        smallest = drawing.median(losses).sel(learning_rate=rates.min()).values
        ceiling = 3 * np.max(smallest, where=np.isfinite(smallest), initial=finite.min())
        axes[0].set_ylim(
            finite.min() * 0.85, max(min(finite.max(), ceiling) * 1.15, finite.min() * 2)
        )
    drawing.log_ticks(axes[0].yaxis)
    axes[0].set_ylabel(drawing.label_of(losses, "final loss"))
    drawing.legend(axes[-1], "width")
    return made


@style()
def optimum_against_width(
    optimum: xr.DataArray,
    low: xr.DataArray | None = None,
    high: xr.DataArray | None = None,
    *,
    caption: str = "",
) -> Figure:
    """Best learning rate against width, one line a parametrization.

    Args:
        optimum: dims (width), optionally parametrization.
        low: lower end of the interval of each point, same dims.
        high: upper end.
        caption: replaces the default one.
    """
    caption = caption or (
        "Best learning rate against width, both axes logarithmic. A horizontal line is transfer: the rate tuned "
        "at the smallest width is also the best one at the largest."
        + (" Bars are intervals." if low is not None else "")
    )
    made, (ax,) = figure(caption=caption)
    labels = []
    for number, (title, line) in enumerate(split(optimum, "parametrization")):
        color, width = drawing.rule_color(title, number), line["width"].values
        ends = [end if end is None else drawing.pick(end, title) for end in (low, high)]
        drawing.intervals(ax, line, *ends, color)
        ax.plot(width, line.values, **drawing.stroke(ax, color))
        labels.append((line.values[-1], title, color))
    ax.set_yscale("log", base=2)
    drawing.width_ticks(ax, optimum["width"].values)
    positive = np.isfinite(optimum.values) & (optimum.values > 0)
    logs = np.log2(optimum.values[positive]) if positive.any() else np.zeros(1)
    middle = (logs.max() + logs.min()) / 2
    reach = max(
        (logs.max() - logs.min()) / 2 + 0.6, 2
    )  # four octaves at least, so that a flat line looks flat
    ax.set_ylim(2 ** (middle - reach), 2 ** (middle + reach))
    drawing.end_labels(ax, labels)
    ax.set(xlabel="width", ylabel="best learning rate")
    return made


@style()
def sharpness_over_training(
    sharpness: xr.DataArray,
    learning_rate: float | xr.DataArray,
    *,
    threshold: float = 2.0,
    caption: str = "",
) -> Figure:
    """Learning rate times sharpness over training, one line a width, with the line of the edge of stability.

    Args:
        sharpness: dims (width, step), optionally parametrization and seed; the largest eigenvalue of the Hessian
            scaled by the parameters' learning-rate factors.
        learning_rate: one number, or one for each parametrization.
        threshold: 2 for gradient descent, where the line is sharpness = 2/eta.
        caption: replaces the default one.
    """
    caption = caption or (
        f"Learning rate times the largest Hessian eigenvalue over training. The dashed line is sharpness = "
        f"{threshold:g}/η, the edge of stability. Look whether the widths lie on one another and rise to the line, "
        "or fan out with the widest staying where it began (kernel regime)."
    )
    scaled = sharpness * learning_rate
    panels = split(scaled, "parametrization")
    made, axes = figure([title for title, _ in panels], caption=caption)
    finite = scaled.values[np.isfinite(scaled.values)]
    top = min(np.max(finite, initial=threshold), 3 * threshold)
    for ax, (_, panel) in zip(axes, panels):
        for width, color in drawing.sequential(scaled["width"].values).items():
            curve(ax, panel.sel(width=width), "step", color, label=f"{width}")
        ax.axhline(threshold, color=INK, linewidth=1, linestyle=DASHED)
        ax.set(xlabel="step", ylim=(0, 1.2 * top))
    where, text = axes[0].get_yaxis_transform(), f"sharpness = {threshold:g}/η"
    axes[0].annotate(text, (0, threshold), (4, 5), where, "offset points")
    axes[0].set_ylabel("learning rate × sharpness")
    drawing.legend(axes[-1], "width")
    return made


NAMED = 10
"""Layers whose names have room beside a panel."""


@style()
def coordinate_check(
    change: xr.DataArray,
    fitted: xr.DataArray,
    predicted: xr.DataArray,
    *,
    tolerance: float = 0.15,
    caption: str = "",
) -> Figure:
    """Size of the change of each layer against width, with fitted and predicted slopes.

    Args:
        change: RMS change, dims (layer, width), optionally parametrization.
        fitted: slopes, same dims without width.
        predicted: slopes, same dims as fitted.
        tolerance: a larger difference of the slopes is printed in bold.
        caption: replaces the default one.
    """
    caption = caption or (
        "RMS change of each layer against width (points), its fitted power law (line) and the predicted slope "
        "(dotted). Labels: fitted slope, predicted in brackets, bold where they differ by more than "
        f"{tolerance:g}. Transfer needs slope 0: a rising line blows up with width, a falling one freezes."
    )
    if change.sizes["layer"] > NAMED:
        caption += (
            f" Of {change.sizes['layer']} layers the {NAMED} whose slopes differ most are named."
        )
    panels = split(change, "parametrization")
    made, axes = figure(
        [title for title, _ in panels], caption=caption, panel=(4.2, 3.0), columns=2
    )
    labels = []
    for ax, (title, panel) in zip(axes, panels):
        labels.append([])
        for number, (layer, line) in enumerate(split(panel, "layer")):
            color, width = PALETTE[number % len(PALETTE)], line["width"].values
            measured, expected = (
                float(drawing.pick(drawing.pick(slope, title), layer, "layer"))
                for slope in (fitted, predicted)
            )
            how = drawing.stroke(ax, color)
            ax.plot(width, line.values, **how, linestyle="none")
            fit = drawing.slope_line(width, line.values, measured)
            ax.plot(width, fit, color=color)
            ax.plot(width, drawing.slope_line(width, line.values, expected), ":", color=color)
            text = f"{drawing.short(str(layer))} {drawing.signed(measured)} ({drawing.signed(expected)})"
            off = abs(measured - expected)
            labels[-1].append((off, (fit[-1], text, color, off > tolerance)))
        ax.set(yscale="log", xlabel="width")
        drawing.width_ticks(ax, change["width"].values)
    for ax, ends in zip(axes, labels):  # the panels share their limits, which stand only now
        most = sorted(ends, key=lambda end: -np.nan_to_num(end[0], nan=np.inf))[:NAMED]
        drawing.end_labels(ax, [label for _, label in most])
    drawing.log_ticks(axes[0].yaxis)
    axes[0].set_ylabel(drawing.label_of(change, "RMS change"))
    return made


@style()
def training_dynamics(
    measured: xr.DataArray,
    theory: xr.DataArray | None = None,
    *,
    log_time: bool = True,
    caption: str = "",
) -> Figure:
    """Curves over training, measured against predicted.

    Args:
        measured: dims (series, step), optionally seed (median line, band from smallest to largest).
        theory: same dims without seed, drawn dashed.
        log_time: logarithmic time; step 0 is then not drawn.
        caption: replaces the default one.
    """
    caption = caption or (
        "Training over time (lines; bands span the seeds)."
        + (
            " Dashed: the theory's prediction. Look where the two part."
            if theory is not None
            else ""
        )
    )
    made, (ax,) = figure(caption=caption)
    labels = []
    for number, (title, line) in enumerate(split(measured, "series")):
        color = PALETTE[number % len(PALETTE)]
        curve(ax, line, "step", color)
        if theory is not None:
            predicted = drawing.pick(theory, title, "series")
            x, text = predicted["step"].values, "theory" if number == 0 else None
            ax.plot(x, predicted.values, color=INK, linewidth=1, linestyle=DASHED, label=text)
        labels.append((float(drawing.median(line).isel(step=-1)), title, color))
    ax.set(yscale="log", xscale="log" if log_time else "linear")
    drawing.log_ticks(ax.xaxis)
    drawing.log_ticks(ax.yaxis)
    drawing.end_labels(ax, labels)
    if theory is not None:
        ax.legend(loc="lower left")
    ax.set(xlabel="step", ylabel=drawing.label_of(measured, "loss"))
    return made


@style()
def heat_map(
    values: xr.DataArray,
    *,
    center: float | None = None,
    contour: float | None = None,
    caption: str = "",
) -> Figure:
    """A phase diagram: one cell for each pair of coordinates, in their order; what was not measured stays grey.

    Args:
        values: two dims, (vertical, horizontal); coordinates may be numbers or words.
        center: value of the middle colour of a two-sided scale.
        contour: value of a boundary line to draw between the cells.
        caption: replaces the default one.
    """
    missing = not np.isfinite(values.values).all()
    caption = caption or (
        f"Each cell is one experiment; colour is the {drawing.label_of(values, 'value')}."
        + (f" The line is {contour:g}." if contour is not None else "")
        + (" Grey cells were not measured or diverged." if missing else "")
    )
    vertical, horizontal = values.dims
    made, (ax,) = figure(caption=caption)
    shown = np.ma.masked_invalid(values.values)
    low, high = (float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0)
    if center is not None:
        reach = max(high - center, center - low)
        low, high = center - reach, center + reach
    colors = drawing.cell_colors(center is not None)
    image = ax.imshow(shown, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high)
    bar = made.colorbar(image, ax=ax, label=drawing.label_of(values, "value"), drawedges=False)
    if contour is not None and min(values.shape) > 1 and low < contour < high:
        bar.add_lines(ax.contour(shown, levels=[contour], colors=["white"], linewidths=2.5))
        ax.contour(shown, levels=[contour], colors=[PALETTE[1]], linewidths=1.5)
    if values.size <= 48:
        drawing.cell_values(ax, image, shown)
    for axis, dim in ((ax.xaxis, horizontal), (ax.yaxis, vertical)):
        drawing.cell_ticks(axis, values[dim].values)
        axis.set_label_text(drawing.words(dim))
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return made


@style()
def scaling_law(
    points: xr.DataArray,
    exponent: float,
    prefactor: float,
    *,
    low: xr.DataArray | None = None,
    high: xr.DataArray | None = None,
    theory: float | None = None,
    caption: str = "",
) -> Figure:
    """Measured points, the fitted power law ``prefactor x^exponent``, and the slope that theory predicts.

    Args:
        points: one dim, the horizontal axis.
        exponent: fitted slope.
        prefactor: fitted value at x = 1.
        low: lower end of the interval of each point.
        high: upper end.
        theory: predicted slope, drawn through the middle of the points.
        caption: replaces the default one.
    """
    caption = caption or (
        "Points with their intervals and the fitted power law (line), both axes logarithmic. Look whether the last "
        "points still lie on the line"
        + (", and its slope against the predicted one (dashed)." if theory else ".")
    )
    made, (ax,) = figure(caption=caption)
    (dim,) = points.dims
    x, y = points[dim].values.astype(float), points.values
    drawing.intervals(ax, points, low, high, PALETTE[0])
    ax.plot(x, y, "o", color=PALETTE[0])
    fit = prefactor * x**exponent
    ax.plot(x, fit, color=PALETTE[0])
    labels = [(fit[-1], f"fit, slope {drawing.signed(exponent)}", PALETTE[0])]
    if theory is not None:
        line = drawing.slope_line(x, y, theory)
        ax.plot(x, line, color=INK, linewidth=1, linestyle=DASHED)
        labels.append((line[-1], f"theory, slope {drawing.signed(theory)}", INK))
    ax.set(xscale="log", yscale="log")
    drawing.log_ticks(ax.xaxis)
    drawing.log_ticks(ax.yaxis)
    if dim == "width":
        drawing.width_ticks(ax, points[dim].values)
    drawing.end_labels(ax, labels)
    ax.set(xlabel=drawing.words(dim), ylabel=drawing.label_of(points, "value"))
    return made
