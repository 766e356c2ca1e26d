"""The figures of `deep_kernel_machines`: learnt Gram matrices, the way to the NNGP, finite widths, prediction."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


def figures(data: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study, by name."""
    made = {"prediction": prediction(data), "gram_matrices": gram_matrices(data)}
    return made | {"limits": limits(data)}


@style()
def prediction(data: xr.Dataset) -> Figure:
    """Test error and alignment of the hidden Gram matrix against nu, with the NNGP's level."""
    caption = (
        "A linear layer that learns below a squared exponential kernel, against its nu (small: narrow, learning), "
        "median over seeds with their range. Left: test error over the variance of the target; dashed: the NNGP. "
        "Right: centred alignment of the hidden Gram matrix with that of the one direction x₁. Look that learning pays "
        "where one direction matters, most of it from nu = 1 on, and costs where none does."
    )
    made, axes = figure(["test error", "alignment with x₁"], caption=caption, sharey=False)
    for target, color in zip(data.target.values, PALETTE):
        part = data.sel(target=target).rename(prediction_seed="seed")
        for ax, quantity in zip(axes, ("error", "alignment")):
            drawing.curve(ax, part[quantity], "learning_nu", color, label=str(target))
        level = part.nngp_error.isel(learning_nu=0).median("seed")
        axes[0].axhline(float(level), color=color, linestyle=DASHED, linewidth=1)
    for ax in axes:
        ax.set(xscale="log", xlabel="ν")
    axes[0].set(yscale="log", ylabel="error / variance")
    drawing.log_ticks(axes[0].yaxis)
    axes[1].set_ylim(0, 1.04)
    drawing.legend(axes[1], "target")
    return made


@style()
def gram_matrices(data: xr.Dataset) -> Figure:
    """The hidden Gram matrix of the first seed, from the NNGP to learnt ones."""
    caption = (
        "Hidden Gram matrix of the first seed, target of one direction, divided by its largest entry; examples in the "
        "order of that direction. Look that as nu falls it becomes that of the direction alone, x₁ x₁ᵀ: corners of one "
        "sign each."
    )
    nus = data.learning_nu.values[::-1]
    titles = [f"nu = {nu:g}" for nu in nus]
    made, axes = figure(titles, caption=caption, columns=5, panel=(2.0, 2.1))
    grams = data.gram.isel(prediction_seed=0).sel(target="one direction")
    for ax, nu in zip(axes, nus):
        gram = grams.sel(learning_nu=nu).values
        shown = gram / np.abs(gram).max()
        ax.imshow(shown, cmap=drawing.cell_colors(True), vmin=-1, vmax=1)
        ax.grid(False)
        ax.set(xticks=[], yticks=[])
    return made


@style()
def limits(data: xr.Dataset) -> Figure:
    """Distance from the NNGP against nu, and from the machine of deep Gaussian processes against their width."""
    caption = (
        "Left: relative distance of the second hidden Gram matrix from the NNGP against nu. Right: deep Gaussian "
        "processes with targets repeated as often as they are wide: relative distance of the mean Gram matrix from the "
        "machine's, and the posterior's standard deviation. Median and range over seeds; dashed: slopes −1 and −1/2. "
        "Look that wide layers are the NNGP, and processes of finite width fluctuate about the machine."
    )
    made, axes = figure(["to the NNGP", "to the machine"], caption=caption, sharey=False)
    for kernel, color in zip(data.kernel.values, PALETTE):
        line = data.distance.sel(kernel=kernel).rename(nngp_seed="seed")
        drawing.curve(axes[0], line, "nu", color, label=str(kernel))
    for name, color, text in (
        ("posterior_distance", PALETTE[0], "distance"),
        ("posterior_sd", PALETTE[1], "standard deviation"),
    ):
        line = data[name].rename(posterior_seed="seed")
        drawing.curve(axes[1], line, "copies", color, label=text)
    nu, copies = data.nu.values[-3:], data.copies.values
    last = data.distance.median("nngp_seed").isel(nu=slice(-3, None)).mean("kernel").values
    spread = data.posterior_sd.median("posterior_seed").values
    for ax, x, y, slope in ((axes[0], nu, last, -1.0), (axes[1], copies, spread, -0.5)):
        ax.plot(x, drawing.slope_line(x, y, slope), color=INK, linestyle=DASHED, linewidth=1)
        ax.set_yscale("log")
    axes[0].set(xscale="log", xlabel="ν", ylabel="relative distance")
    axes[1].set(xlabel="width and copies N", ylabel="relative distance, deviation")
    drawing.width_ticks(axes[1], copies)
    for ax in axes:
        ax.legend(loc="lower left")
        drawing.log_ticks(ax.yaxis)
    return made
