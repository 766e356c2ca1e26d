"""The figures of `attention_svm`: trained directions against the two solutions, spectra, feasibility."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from experiments.studies.attention_svm_claims import wilson


@style()
def direction(data: xr.Dataset) -> Figure:
    """Correlation of the trained matrix with both solutions against training steps."""
    caption = (
        "Correlation of the trained matrix with the attention SVM of least Frobenius and of least nuclear norm for the "
        "tokens that the layer selected: median and range of seeds. Dashed: 1, the direction itself. Look that W goes "
        "to the Frobenius solution and K Qᵀ to the nuclear one, and that K Qᵀ without decay goes there much slower."
    )
    names = [str(name) for name in data.trained.values]
    made, axes = figure(names, caption=caption)
    for ax, name in zip(axes, names):
        for norm, color in zip(data.norm.values, PALETTE):
            line = data.correlation.sel(trained=name, norm=norm)
            drawing.curve(ax, line, "step", color, label=str(norm))
        ax.axhline(1, color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xlabel="training step", ylim=(0, 1.04))
    axes[0].set_ylabel("correlation")
    drawing.legend(axes[-1], "solution")
    return made


@style()
def singular_values(data: xr.Dataset) -> Figure:
    """Spectra of trained matrices."""
    caption = (
        "Singular values of the trained matrix over the largest, by rank: median and range of seeds. Dashed: 1 %, what "
        "the claim counts from; values below 1e-6 are drawn there. Look that training K and Q leaves few of them, "
        "training W one an example."
    )
    made, (ax,) = figure(caption=caption)
    for name, color in zip(data.trained.values, PALETTE):
        values = np.maximum(data.singular.sel(trained=name), 1e-6)
        drawing.curve(ax, values, "rank", color, label=str(name))
    ax.axhline(0.01, color=INK, linestyle=DASHED, linewidth=1)
    ax.set(yscale="log", xlabel="rank", ylabel="singular value / largest", ylim=(5e-7, 1.5))
    ax.set_xticks(data["rank"].values)
    drawing.legend(ax, "trained")
    return made


@style()
def feasibility(data: xr.Dataset) -> Figure:
    """Share of problems whose best tokens can be separated, against the dimension."""
    caption = (
        "Share of random problems in which a matrix separates the best token of every example from the others, against "
        "the dimension, with 95 % intervals. Dashed: what the claim asks of dimension 8. Look that it rises to 1: with "
        "enough dimensions the global solution exists."
    )
    made, (ax,) = figure(caption=caption)
    shares = data.feasible.mean("feasible_seed")
    ends = np.array([wilson(float(share), data.sizes["feasible_seed"]) for share in shares])
    low, high = (shares.copy(data=ends[:, side]) for side in (0, 1))
    drawing.intervals(ax, shares, low, high, PALETTE[0])
    ax.plot(shares.feasible_dim, shares, "o-", color=PALETTE[0])
    ax.axhline(0.95, color=INK, linestyle=DASHED, linewidth=1)
    ax.set(xlabel="dimension of the tokens", ylabel="share separable", ylim=(-0.02, 1.05))
    return made
