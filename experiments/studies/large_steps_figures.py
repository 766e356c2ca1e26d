"""The figures of `large_steps`: steps, losses and hard examples over what theory says of them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


@style()
def steps(data: xr.Dataset) -> Figure:
    """Steps to separation against the step size."""
    caption = (
        "Steps until every example is on its side against the step size, Gaussian sets: median and range. Dashed: the "
        "line 1 / step size through the first point, and the median of the perceptron. Look that plain steps follow "
        "the line down to the perceptron's level and stay there: no step size diverges."
    )
    made, (ax,) = figure(caption=caption)
    for normalised, color in ((0, PALETTE[0]), (1, PALETTE[1])):
        line = data.steps.sel(normalised=normalised)
        drawing.curve(ax, line, "step_size", color, label="normalised" if normalised else "plain")
    size = data.step_size.values
    first = float(data.steps.sel(normalised=0).isel(step_size=0).median())
    level = float(data.perceptron_steps.median())
    there = size <= first * size[0] / level
    line = first * size[0] / size[there]
    ax.plot(size[there], line, color=INK, linestyle=DASHED, linewidth=1, label="1 / step size")
    ax.axhline(level, color=PALETTE[2], linestyle=DASHED, linewidth=1, label="perceptron")
    ax.set(xscale="log", yscale="log", xlabel="step size", ylabel="steps to separation")
    drawing.legend(ax)
    return made


@style()
def losses(data: xr.Dataset) -> Figure:
    """Steps and mean loss before separation against the step size, pairs of classes."""
    caption = (
        "Pairs of classes: steps to separation (left) and the mean loss before it (right) against the step size. "
        "Dashed: 1 / step size and the step size itself, through the ends of the first pair. Look that where the loss "
        "is highest separation comes first: the loss misleads."
    )
    made, axes = figure(
        ["steps to separation", "mean loss before it"], caption=caption, sharey=False
    )
    size = data.pair_step_size.values
    for pair, color in zip(data.pair.values, PALETTE):
        part = data.sel(pair=pair)
        axes[0].plot(size, part.pair_steps, "o-", color=color)
        axes[1].plot(size, part.pair_loss, "o-", color=color, label=str(pair))
    first = data.isel(pair=0)
    guides = (
        float(first.pair_steps[0]) * size[0] / size,
        float(first.pair_loss[-1]) * size / size[-1],
    )
    for ax, guide, label in zip(axes, guides, ("steps", "loss (nats)")):
        ax.plot(size, guide, color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="step size", ylabel=label)
    smallest = float(data.pair_steps.min()), float(data.pair_loss.min())
    for ax, least in zip(axes, smallest):
        ax.set_ylim(bottom=least / 2)
    drawing.legend(axes[-1])
    return made


@style()
def hard(data: xr.Dataset) -> Figure:
    """Steps against the number of examples of which one is hard."""
    caption = (
        "Steps to separation against the number n of examples of which one is hard. Dashed: slope 1 through plain "
        "steps of size 1e8, the perceptron's. Look that plain steps grow with n and normalised ones do not."
    )
    made, (ax,) = figure(caption=caption)
    n, labels = data.examples.values.astype(float), []
    for method, color in zip(range(data.sizes["method"]), PALETTE):
        line = data.hard_steps.isel(method=method)
        ax.plot(n, line, "o-", color=color)
        labels.append((float(line[-1]), str(data.method_name.values[method]), color))
    plain = data.hard_steps.isel(method=0).values
    ax.plot(n, drawing.slope_line(n, plain, 1.0), color=INK, linestyle=DASHED, linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="examples n", ylabel="steps to separation")
    drawing.log_ticks(ax.xaxis)
    labels = [(np.nan_to_num(end, nan=1.0), text, color) for end, text, color in labels]
    drawing.end_labels(ax, labels)
    return made
