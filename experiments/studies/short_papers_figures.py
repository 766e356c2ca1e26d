"""The figure of `short_papers`: one panel a paper."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments import drawing
from experiments.drawing import DASHED, INK, PALETTE, figure, style


@style()
def short_papers(data: xr.Dataset) -> Figure:
    """Tilt and error against ridge, energy and tolerance against temperature, matching against width."""
    caption = (
        "Median and range of seeds. Strength and test error of a discriminant against its ridge; dashed: the nearest "
        "centroid classifier's strength, 1. Energy of contrastive features (low is uniform) and cosine within a class. "
        "Similarity of hidden units of two seeds; dashed: of untrained networks. Look that strength falls and error "
        "does not, that both rise with temperature, and that CKA is high where single units differ."
    )
    titles = ["strength", "test error", "energy", "tolerance", "matched units", "CKA"]
    made, axes = figure(titles, caption=caption, sharey=False, columns=2, panel=(3.4, 2.3))
    lines = (
        ("ridge", data.strength, "ridge"),
        ("ridge", data.error.sel(tilt="its own"), "ridge"),
        ("temperature", data.energy, "temperature"),
        ("temperature", data.tolerance.sel(labels="true"), "temperature"),
    )
    for ax, (dim, line, label) in zip(axes, lines):
        drawing.curve(ax, line, dim, PALETTE[0])
        ax.set(xscale="log", xlabel=label)
    axes[0].axhline(1, color=INK, linestyle=DASHED, linewidth=1)
    axes[0].set(yscale="log")
    axes[1].set_ylim(0, None)
    for ax, measures in zip(axes[4:], (("bipartite", "semi"), ("CKA",))):
        for measure, color in zip(measures, PALETTE):
            part = data.similarity.sel(measure=measure)
            drawing.curve(ax, part.sel(networks="trained"), "width", color, label=measure)
            start = part.sel(networks="untrained").median("seed")
            ax.plot(data.width, start, color=color, linestyle=DASHED, linewidth=1)
        drawing.width_ticks(ax, data.width.values)
        ax.set(xlabel="width", ylim=(0, 1.02))
    drawing.legend(axes[4])
    return made
