"""The figures of `batch_curvature`: laws drawn over the sharpness of batches, and over the rates that train."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from experiments.studies.batch_curvature_claims import MEASURED, predicted_rate

COLORS = dict(zip((MEASURED, "independent Hessians", "independent gradients"), PALETTE[1:]))


def figures(data: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, by name."""
    return {"sharpness": sharpness(data), "learning_rates": learning_rates(data)}


@style()
def sharpness(data: xr.Dataset) -> Figure:
    """Largest eigenvalue of batches, and its excess over that of all examples, against batch size."""
    caption = (
        "Left: mean largest Hessian eigenvalue of random batches (points, one standard error, mean over seeds), and "
        "what the laws predict without a fit; dotted: all examples. Right: its excess times b, constant if it goes "
        "with 1/b. Look that the law with the measured noise of the Hessian follows the points from batches of some 64 "
        "on, and that those for independent noise see little of it."
    )
    made, axes = figure(["sharpness", "excess × b"], caption=caption, sharey=False)
    sizes, count = data.batch.values, data.sizes["seed"]
    error = np.sqrt((data.measured_error**2).sum("seed")) / count
    for ax, quantity, bars in (
        (axes[0], lambda x: x, error),
        (axes[1], lambda x: (x - data.top) / data.inverse, error / data.inverse),
    ):
        for kind, color in COLORS.items():
            drawing.curve(ax, quantity(data.law_top.sel(kind=kind)), "batch", color, label=kind)
        points = quantity(data.measured).mean("seed", skipna=False)
        ax.errorbar(
            sizes, points, bars, fmt="o", color=PALETTE[0], capsize=2, label="measured", zorder=4
        )
        drawing.width_ticks(ax, sizes)
        ax.set_xlabel("batch size B")
    axes[0].axhline(float(data.top.mean()), color=INK, linestyle=":", label="all examples")
    axes[0].set(ylabel="largest Hessian eigenvalue", yscale="log")
    axes[1].set_ylabel("(λ(B) − λ₁) b")
    drawing.log_ticks(axes[0].yaxis)
    handles = axes[0].get_legend_handles_labels()
    axes[1].legend(*handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return made


@style()
def learning_rates(data: xr.Dataset) -> Figure:
    """Largest and best learning rates of SGD and Adam against batch size, with the rules."""
    caption = (
        "Learning rates against batch size, median over seeds with a band of their range: the largest that trains, and "
        "the best. Dashed: the rules, linear for SGD, square root for Adam, from the smallest batch; dotted, of SGD: "
        "2 / λ(B), with the sharpness of batches predicted early in training. Look that the linear rule ends where the "
        "dotted line bends, and that the best rates follow no rule as cleanly."
    )
    made, axes = figure(["SGD", "Adam"], caption=caption, sharey=False)
    sizes = data.rate_batch.values
    for ax, optimizer, power in zip(axes, ("sgd", "adam"), (1.0, 0.5)):
        for name, color in (("largest", PALETTE[0]), ("best", PALETTE[4])):
            line = data[f"{name}_rate"].sel(optimizer=optimizer).rename(rate_seed="seed")
            drawing.curve(ax, line, "rate_batch", color, label=name)
        largest = data.largest_rate.sel(optimizer=optimizer)
        first = float(largest.isel(rate_batch=0).median())
        shown = sizes if power < 1 else sizes[sizes <= 32]
        ax.plot(
            shown, first * shown.astype(float) ** power, color=INK, linestyle=DASHED, linewidth=1,
            label="rule",
        )  # fmt: skip
        if optimizer == "sgd":
            ax.plot(sizes, predicted_rate(data), color=INK, linestyle=":", label="2 / λ(B)")
        drawing.width_ticks(ax, sizes)
        ax.set(xlabel="batch size B", yscale="log")
        drawing.log_ticks(ax.yaxis)
    axes[0].set_ylabel("learning rate")
    handles = axes[0].get_legend_handles_labels()
    axes[1].legend(*handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return made
