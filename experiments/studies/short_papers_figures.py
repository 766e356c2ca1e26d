"""The figure of `short_papers`: one panel a paper."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


@style()
def short_papers(data: xr.Dataset) -> Figure:
    """Tilt and error against ridge, energy and tolerance against temperature, matching against width."""
    caption = (
        "Median and range of seeds. Strength and test error of a discriminant against its ridge; dashed: the nearest "
        "centroid's strength, 1, and the error after a random tilt of the same angle. Energy of contrastive features "
        "(low is uniform) and cosine within a class; dashed: without the mean feature. "
        "Similarity of hidden units of two seeds; dashed: of untrained networks. Look that strength falls and error "
        "does not, that energy and cosine rise with temperature but at the lowest, which leaves features in one "
        "cone, and that CKA is high where single units differ."
    )
    titles = ["strength", "test error", "energy", "tolerance", "matched units", "CKA"]
    made, axes = figure(titles, caption=caption, sharey=False, columns=2, panel=(3.4, 2.3))
    random, tolerance = data.error.sel(tilt="random"), data.tolerance.sel(labels="true")
    lines = (
        ("ridge", data.strength, None),
        ("ridge", data.error.sel(tilt="its own"), random),
        *(
            ("temperature", v.sel(features="as learnt"), v.sel(features="centred"))
            for v in (data.energy, tolerance)
        ),
    )
    for ax, (dim, line, other) in zip(axes, lines):
        drawing.curve(ax, line, dim, PALETTE[0])
        if other is not None:
            ax.plot(
                data[dim], other.median("seed"), color=PALETTE[0], linestyle=DASHED, linewidth=1
            )
        ax.set(xscale="log", xlabel=dim)
    axes[0].axhline(1, color=INK, linestyle=DASHED, linewidth=1)
    axes[0].set(yscale="log")
    drawing.log_ticks(axes[0].yaxis)
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
