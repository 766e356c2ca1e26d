"""The figures of `data_pruning`: errors of pruned perceptrons, accuracies of pruned images, and their scores."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments import fits
from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from limits.pruning import CRITICAL_DENSITY


def figures(data: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study by name."""
    return {"perceptron": perceptron(data), "images": images(data), "scores": scores(data)}


@style()
def perceptron(data: xr.Dataset) -> Figure:
    """Error against kept examples a dimension, theory and simulations."""
    caption = (
        "Error of the perceptron against kept examples a dimension, by share kept: theory (lines) and simulations "
        "(points, two standard errors). Dashed: the best share. Dotted: 2, where students that know nothing stop to "
        "separate the examples next to the boundary. Look that a perfect probe falls there, and an imperfect one less."
    )
    made, axes = figure([f"probe at {a:g}°" for a in data.angle.values], caption=caption)
    colors = drawing.sequential(data.line_share.values)
    mean = data.simulated.mean("seed")
    bars = 2 * fits.standard_error(data.simulated, "seed")
    for ax, angle in zip(axes, data.angle.values):
        for share, color in colors.items():
            line = data.line.sel(angle=angle, line_share=share)
            ax.plot(data.kept, line, color=color, label=f"{share:g}")
            at = (data["at"] == xr.DataArray([angle, 0, share, 1], dims="part")).values
            there = at[:, [0, 2, 3]].all(1)
            place = data["at"].sel(part="kept").values[there]
            ax.errorbar(place, mean[there], bars[there], fmt="o", color=color, capsize=2)
        best = data.frontier.sel(angle=angle)
        ax.plot(data.kept, best, color=INK, linestyle=DASHED, linewidth=1, label="best")
        ax.axvline(CRITICAL_DENSITY, color=INK, linestyle=":", linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="kept examples / dimension")
        drawing.log_ticks(ax.xaxis)
    axes[0].set_ylabel("error")
    drawing.legend(axes[-1], "share kept")
    return made


@style()
def images(data: xr.Dataset) -> Figure:
    """Test accuracy against the share kept."""
    caption = (
        "Test accuracy against the share of images kept, networks trained for the same number of steps: median and "
        "range of seeds. Dashed: all images. Look that with right labels the hard half is as good as all, and with "
        "some wrong ones it must be taken from below the highest scores; few examples are another matter."
    )
    made, axes = figure([str(name) for name in data.labels.values], caption=caption)
    for ax, labels in zip(axes, data.labels.values):
        for order, color in zip(data.order.values, PALETTE):
            line = data.accuracy.sel(labels=labels, order=order).rename(image_seed="seed")
            drawing.curve(ax, line, "share", color, label=str(order))
        full = float(data.full.sel(labels=labels).median())
        ax.axhline(full, color=INK, linestyle=DASHED, linewidth=1, label="all")
        drawing.width_ticks(ax, data.share.values)
        ax.set_xlabel("share kept")
    axes[0].set_ylabel("test accuracy")
    drawing.legend(axes[-1])
    return made


@style()
def scores(data: xr.Dataset) -> Figure:
    """EL2N against GraNd."""
    caption = (
        "EL2N against GraNd of each image, right labels, means over networks, with Spearman's correlation ρ. Look that "
        "one epoch makes one score of the two."
    )
    part = data.sel(labels=data.labels.values[0])
    names = [
        f"epoch {e}, ρ = {float(part.agreement.sel(epoch=e)[0]):.2f}" for e in part.epoch.values
    ]
    made, axes = figure(names, caption=caption, sharey=False)
    for ax, epoch in zip(axes, part.epoch.values):
        ax.plot(*part.score.sel(epoch=epoch), "o", markersize=2, color=PALETTE[0], alpha=0.5)
        ax.set_xlabel("EL2N")
    axes[0].set_ylabel("GraNd")
    return made
