"""The figures of `hopfield_retrieval`: predicted capacity and phases over drawn patterns."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


@style()
def capacity(data: xr.Dataset) -> Figure:
    """Weight on the own pattern against the number of patterns."""
    caption = (
        "Weight of an update on the own pattern against the number of random patterns, as log(patterns) / dimension "
        "over its predicted capacity: median and range of draws. Dashed: the prediction, where one half is left. Look "
        "that all dimensions cross one half there, and more sharply the higher the dimension: the number of patterns "
        "held is exponential in the dimension."
    )
    betas = data.beta.values
    made, axes = figure([f"β = {beta:g}" for beta in betas], caption=caption)
    for ax, beta in zip(axes, betas):
        for dim, color in drawing.sequential(data.dim.values).items():
            line = data.own_weight.sel(beta=beta, dim=dim).rename(pattern_seed="seed")
            drawing.curve(ax, line, "share", color, label=f"{dim}")
        ax.axvline(1, color=INK, linestyle=DASHED, linewidth=1)
        ax.axhline(0.5, color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xlabel="α / predicted αc", ylim=(0, 1.02))
    axes[0].set_ylabel("weight on the own pattern")
    drawing.legend(axes[-1], "dimension")
    return made


@style()
def phases(data: xr.Dataset) -> Figure:
    """Participation and weight on the own cluster against beta."""
    caption = (
        "Fixed points from each pattern against inverse temperature: how many patterns take part (median), and how "
        "much weight is on the own cluster of eight. Dashed: all patterns, one cluster, one pattern. Look that "
        "clustered patterns rest on the middle line before they are told apart, and that others jump from all to one."
    )
    made, axes = figure(
        ["patterns that take part", "weight on the own cluster"], caption=caption, sharey=False
    )
    for name, color in zip(data.patterns.values, PALETTE):
        part = data.sel(patterns=name).rename(phase_seed="seed")
        drawing.curve(axes[0], part.participation, "phase_beta", color)
        drawing.curve(axes[1], part.inside, "phase_beta", color, label=str(name))
    for level in (64, 8, 1):
        axes[0].axhline(level, color=INK, linestyle=DASHED, linewidth=0.8)
    axes[0].set(yscale="log", ylim=(0.8, 90))
    axes[0].set_yticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes[0].set_yticks([], minor=True)
    for ax in axes:
        ax.set(xscale="log", xlabel="inverse temperature β")
    drawing.legend(axes[-1])
    return made
