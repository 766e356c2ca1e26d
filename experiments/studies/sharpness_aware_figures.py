"""The figures of `sharpness_aware`: measured sharpness over its edge, and accuracy under label noise."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {"edge": edge(data), "noise": noise(data)}


@style()
def edge(data: xr.Dataset) -> Figure:
    """Sharpness along training beside the moving edge."""
    caption = (
        "Sharpness of full-batch training by SAM (blue) and the edge of stability at the gradient norm of that moment "
        "(orange): median and range of seeds. Dashed: 2/η, the edge of plain descent. Look that the sharpness of each "
        "radius settles on its own edge, far below 2/η."
    )
    radii = data.edge_radius.values
    made, axes = figure([f"ρ = {radius:g}" for radius in radii], caption=caption, columns=2)
    for ax, radius in zip(axes, radii):
        part = data.sel(edge_radius=radius).isel(edge_noise=0).rename(edge_seed="seed")
        drawing.curve(ax, part.edge_edge[:, 1:], "edge_step", PALETTE[1], label="edge of SAM")
        drawing.curve(ax, part.edge_sharpness, "edge_step", PALETTE[0], label="sharpness")
        ax.axhline(
            float(data.edge_edge.sel(edge_radius=0.0).max()),
            color=INK,
            linestyle=DASHED,
            linewidth=1,
        )
        ax.set(yscale="log", xlabel="training step")
        ax.set_ylim(1, None)
        drawing.log_ticks(ax.yaxis)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("sharpness")
    drawing.legend(axes[-1])
    return made


@style()
def noise(data: xr.Dataset) -> Figure:
    """Test accuracy against the radius, with and without label noise."""
    caption = (
        "Test accuracy after training on batches against the radius of SAM: median and range of seeds. Dashed: radius "
        "0. Look that SAM gains where labels are wrong and hardly where they are right."
    )
    shares = data.batch_noise.values
    made, axes = figure(
        [f"{share:.0%} of the labels redrawn" for share in shares], caption=caption, sharey=False
    )
    for ax, share in zip(axes, shares):
        line = data.batch_accuracy.sel(batch_noise=share).isel(batch_step=-1)
        line = line.rename(batch_seed="seed")
        drawing.curve(ax, line, "batch_radius", PALETTE[0])
        ax.axhline(float(drawing.median(line)[0]), color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xlabel="radius ρ")
    axes[0].set_ylabel("test accuracy")
    return made
