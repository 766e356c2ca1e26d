"""The figures of `gradient_noise`: accuracy against updates, growth of weights, the walk to criticality."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


@style()
def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {f.__name__.strip("_"): f(data) for f in (_updates, _growth, _walk)}


def _updates(data):
    caption = (
        "Test accuracy against the number of updates, small and large batches, and large ones at a rate that grows as "
        "the root of the batch: median and range of seeds. Dashed: where large batches have seen as many epochs as "
        "small ones at the end. Look that there they are behind, and that at as many updates they are not."
    )
    made, (ax,) = figure(caption=caption)
    for name, color in zip(("small", "large", "root"), PALETTE):
        line = data.accuracy.sel(schedule=name).isel(step=slice(1, None))
        drawing.curve(ax, line, "step", color, label="large, root rate" if name == "root" else name)
    ax.axvline(data.same_epochs, color=INK, linestyle=DASHED, linewidth=1)
    ax.set(xscale="log", xlabel="updates", ylabel="test accuracy", ylim=(0.8, 1.0))
    drawing.legend(ax, "batches")
    return made


def _growth(data):
    caption = (
        "Distance of the weights from their start over that at 50 updates: median and range of seeds. Dashed: "
        "lines in log(updates), fitted from there on. Look that full batches, without any noise, grow by the same law: "
        "the logistic loss of separated examples does that alone."
    )
    made, (ax,) = figure(caption=caption)
    for line, color, label in (
        (data.distance.sel(schedule="large"), PALETTE[0], "large batch"),
        (data.growth_distance.sel(growth_schedule="full"), PALETTE[1], "full batch"),
        (data.growth_distance.sel(growth_schedule="squared"), PALETTE[2], "squared error"),
    ):
        line = line.rename({d: "seed" for d in line.dims if d == "growth_seed"})
        line = line / line.where(line.step >= 50, drop=True).isel(step=0, drop=True)
        drawing.curve(ax, line.isel(step=slice(1, None)), "step", color, label=label)
        late = drawing.median(line).where(line.step >= 50, drop=True)
        x = np.log(late.step.values)
        ax.plot(late.step, np.polyval(np.polyfit(x, late, 1), x), color=INK, linestyle=DASHED, linewidth=1)  # fmt: skip
    ax.set(xscale="log", xlabel="updates", ylabel="|w - w(0)|, relative")
    drawing.legend(ax)
    return made


def _walk(data):
    caption = (
        "A deep ReLU network from weights that are too small: fan_in times the variance of hidden weights (left) and "
        "training loss (right) against updates, median and range of seeds. Dashed: the walk of noise alone, the "
        "critical value, and the loss of chance. Look that the loss leaves chance at three quarters of the critical "
        "value, before the walk is there, and under weak noise never."
    )
    made, axes = figure(["weights", "loss"], caption=caption, sharey=False)
    for name, color in zip(data.noise.values, PALETTE):
        part = data[["variance", "loss"]].sel(noise=name).rename(noise_seed="seed")
        drawing.curve(axes[0], part.variance, "noise_step", color)
        drawing.curve(axes[1], part.loss, "noise_step", color, label=str(name))
    for line in data.walk:
        axes[0].plot(data.noise_step, line, color=INK, linestyle=DASHED, linewidth=1)
    axes[0].axhline(data.critical, color=INK, linestyle=DASHED, linewidth=1)
    axes[1].axhline(np.log(data.outputs), color=INK, linestyle=DASHED, linewidth=1)
    for ax, words in zip(axes, ("fan_in × variance", "loss (nats)")):
        ax.set(xlabel="updates", ylabel=words)
    drawing.legend(axes[1], "noise")
    return made
