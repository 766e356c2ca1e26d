"""The figures of a theory card, one a part."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import fits, plots
from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


def coordinates(data: xr.Dataset) -> Figure:
    """Change of each layer against width under three rules."""
    found = data[["coordinate_change", "coordinate_slope"]].rename(
        coordinate_rule="parametrization", coordinate_width="width"
    )
    layers = {"layer": data.coordinate_layer.values.astype(str)}
    change, slope = (found[n].assign_coords(layers) for n in found)
    return plots.coordinate_check(change, slope, xr.zeros_like(slope))


@style()
def signals(data: xr.Dataset) -> Figure:
    """Variance, growth of a difference, and correlation through depth."""
    caption = (
        "Signals through the layers that grow with the width, at initialisation and the largest width; mean squares "
        "relative to the first. Flat lines are criticality; straight sloping ones grow or fade exponentially. Bands "
        "span the seeds; dashed: the control, each layer's weights "
        f"{float(data.signal_factor):.2g} times those of the one before."
    )
    titles = ("mean square", "squared difference", "cosine of two inputs")
    made, axes = figure(titles, caption=caption, sharey=False, panel=(3.3, 3.0))
    names = [drawing.short(name) for name in data.signal_layer.values.tolist()]
    places = np.arange(len(names))
    for ax, name in zip(axes, ("variance", "growth", "correlation")):
        values = data[f"signal_{name}"]
        if name != "correlation":
            values = values / values.isel(signal_depth=0)
            ax.set_yscale("log")
        for weights, color in zip(("own", "mistuned"), PALETTE):
            line = values.sel(weights=weights).rename(signal_seed="seed")
            line = line.assign_coords(signal_depth=places)
            dash = "-" if weights == "own" else DASHED
            drawing.curve(ax, line, "signal_depth", color, label=weights, linestyle=dash)
        ax.set_xticks(places, names, rotation=60, ha="right", fontsize=7)
        drawing.log_ticks(ax.yaxis)
    drawing.legend(axes[-1], "weights")
    return made


@style()
def kernel(data: xr.Dataset) -> Figure:
    """Distance of finite tangent kernels from the limit, with the slope that theory predicts."""
    caption = (
        "Left: relative distance of the tangent kernel of random networks from the NTK of infinite width and, the "
        "control, from the NNGP; the dashed line has slope −1/2. Right: trace over that of the limit, mean over "
        "initialisations with two standard errors; it comes to 1."
    )
    made, (left, right) = figure(
        ("distance", "trace over the limit's"), caption=caption, sharey=False, panel=(3.4, 3.0)
    )
    widths = data.kernel_width.values
    for name, color in zip(("ntk", "nngp"), PALETTE):
        line = data.kernel_distance.sel(kernel_of=name).rename(kernel_seed="seed")
        drawing.curve(left, line, "kernel_width", color, label=name.upper())
        level = data.kernel_level.sel(kernel_of=name)
        if name == "ntk":
            middle = drawing.median(line).values
            left.plot(widths, drawing.slope_line(widths, middle, -0.5), color=INK, linestyle=DASHED)
        error = 2 * fits.standard_error(level, "kernel_seed")
        right.errorbar(
            widths,
            level.mean("kernel_seed"),
            error,
            capsize=2,
            label=name.upper(),
            **drawing.stroke(right, color),
        )
    right.axhline(1, color=INK, linewidth=1, linestyle=DASHED)
    left.set(yscale="log", ylabel="relative distance", xlabel="width")
    right.set(xlabel="width", yscale="log")
    for ax in (left, right):
        drawing.width_ticks(ax, widths)
        drawing.log_ticks(ax.yaxis)
    drawing.legend(right)
    return made


@style()
def spectrum(data: xr.Dataset) -> Figure:
    """Eigenvalues of the limit kernel on the data, and where the targets lie."""
    caption = (
        "Left: eigenvalues of the centred NTK on the training examples. Right: share of the targets in the top modes; "
        "the earlier it rises, the fewer examples kernel regression needs. Dashed: shuffled targets."
    )
    made, (left, right) = figure(
        ("eigenvalues", "cumulative power"), caption=caption, sharey=False, panel=(3.4, 3.0)
    )
    mode = 1 + np.arange(data.sizes["mode"])
    keep = data.eigenvalue.values > 1e-9 * float(data.eigenvalue.max())
    left.plot(mode[keep], data.eigenvalue.values[keep], color=PALETTE[0])
    left.set(xscale="log", yscale="log", xlabel="mode", ylabel="eigenvalue")
    drawing.log_ticks(left.yaxis)
    right.plot(mode, data.power, color=PALETTE[0], label="targets")
    shuffled = data.shuffled_power.mean("spectrum_seed")
    right.plot(mode, shuffled, color=PALETTE[1], linestyle=DASHED, label="shuffled")
    right.set(xscale="log", xlabel="top modes", ylabel="share of the targets", ylim=(0, 1.02))
    right.legend(loc="upper left")
    return made


def _against_width(data, values, groups, names, caption, label):
    made, (ax,) = figure(caption=caption)
    width = next(dim for dim in values.dims if dim.endswith("_width"))
    seed = next(dim for dim in values.dims if dim.endswith("_seed"))
    for name, color in zip(names, PALETTE):
        line = values.sel({groups: name}).rename({seed: "seed"})
        drawing.curve(ax, line, width, color, label=name)
    ax.set(yscale="log", xlabel="width", ylabel=label)
    drawing.width_ticks(ax, values[width].values)
    drawing.log_ticks(ax.yaxis)
    drawing.legend(ax)
    return made


@style()
def prediction(data: xr.Dataset) -> Figure:
    """Distance of trained outputs from the predictions of the two kernels."""
    caption = (
        "Outputs on test inputs after training by gradient descent on squared error: RMS distance from what the limit "
        "kernel predicts for the same initial outputs, over how far they moved. By the NTK it falls with the width, by "
        "the NNGP, the control, it does not. Bands span the seeds."
    )
    values = data.prediction_distance
    label = "distance over change"
    return _against_width(data, values, "predicted_by", ("ntk", "nngp"), caption, label)


@style()
def laziness(data: xr.Dataset) -> Figure:
    """Change of the tangent kernel in training against width."""
    caption = (
        "Relative change of the tangent kernel in training. Under the NTK rule it falls with the width, training "
        "becomes lazy; under muP it does not. Bands span the seeds."
    )
    label = "relative change of the kernel"
    return _against_width(data, data.kernel_change, "lazy_rule", ("ntk", "mup"), caption, label)


@style()
def sharpness(data: xr.Dataset) -> Figure:
    """Sharpness along training against the edge, and the loss."""
    caption = (
        "Left: sharpness over 2/η along gradient descent; 1 is the edge of stability. Right: training loss. Bands span "
        "the seeds."
    )
    made, (left, right) = figure(
        ("sharpness over 2/η", "training loss"), caption=caption, sharey=False, panel=(3.4, 2.9)
    )
    ratio = (data.sharpness * data.sharpness_rate / 2).rename(sharpness_seed="seed")
    drawing.curve(left, ratio, "sharpness_step", PALETTE[0])
    left.axhline(1, color=INK, linewidth=1, linestyle=DASHED)
    loss = data.sharpness_loss.rename(sharpness_seed="seed")
    drawing.curve(right, loss, "sharpness_step", PALETTE[1])
    left.set(xlabel="step", ylim=(0, None))
    right.set(xlabel="step", yscale="log")
    drawing.log_ticks(right.yaxis)
    return made


def transfer(data: xr.Dataset) -> Figure:
    """Loss against learning rate at two widths under two rules."""
    names = {
        f"transfer_{part}": name
        for part, name in (
            ("rule", "parametrization"),
            ("width", "width"),
            ("rate", "learning_rate"),
            ("seed", "seed"),
        )
    }
    return plots.loss_curves(data.transfer_loss.rename(names))


@style()
def collapse(data: xr.Dataset) -> Figure:
    """Collapse of the last layer over training."""
    caption = (
        "Neural collapse of the last layer that grows with the width: each measure but the accuracy of the nearest "
        "class mean falls to 0 at collapse. Dashed: the same features with labels redrawn. Bands span the seeds."
    )
    measures = data.collapse_measure.values.tolist()
    titles = {"nc1": "NC1", "ncc_accuracy": "nearest class mean"}
    made, axes = figure(
        [titles.get(name, name) for name in measures],
        caption=caption,
        sharey=False,
        panel=(2.4, 2.5),
    )
    for ax, name in zip(axes, measures):
        for labels, color in zip(("own", "redrawn"), PALETTE):
            line = data.collapse.sel(collapse_measure=name, collapse_labels=labels)
            line = line.rename(collapse_seed="seed")
            dash = "-" if labels == "own" else DASHED
            drawing.curve(ax, line, "collapse_step", color, label=labels, linestyle=dash)
        ax.set(xlabel="step", yscale="linear" if name == "ncc_accuracy" else "log")
        drawing.log_ticks(ax.yaxis)
    drawing.legend(axes[-1], "labels")
    return made


@style()
def nothing() -> Figure:
    """An empty figure."""
    made, _ = figure(caption="No part that was asked for applies.")
    return made


FIGURES = {
    "coordinates": coordinates,
    "signals": signals,
    "kernel": kernel,
    "spectrum": spectrum,
    "prediction": prediction,
    "laziness": laziness,
    "sharpness": sharpness,
    "transfer": transfer,
    "collapse": collapse,
}
