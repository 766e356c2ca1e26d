"""The figures of `lottery_ticket`: accuracy and tangent kernels against the density."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import PALETTE, figure, style
from experiments.studies.lottery_ticket_claims import MASKS, NETS


def _panels(data: xr.Dataset, panels: dict, names: tuple, dim: str, caption: str) -> Figure:
    """Medians and ranges of seeds of {title: values (seed, round, dim)} against the density."""
    made, axes = figure(list(panels), caption=caption, sharey=False)
    density = data.density.mean("seed").values
    for ax, values in zip(axes, panels.values()):
        for name, color in zip(names, PALETTE):
            line = values.sel({dim: name}, drop=True).assign_coords(round=density)
            drawing.curve(ax, line, "round", color, label=name)
            ax.plot(density, drawing.median(line), "o", color=color)
        ax.set(xscale="log", xlabel="share of weights left")
        drawing.log_ticks(ax.xaxis)
        ax.invert_xaxis()
    drawing.legend(axes[-1])
    return made


@style()
def accuracy(data: xr.Dataset) -> Figure:
    """Test accuracy at each budget."""
    caption = (
        "Test accuracy after some numbers of steps against the share of weights left: tickets, their masks with new "
        "weights, and random masks; median and range of seeds. Look that tickets lose least, and lead most early."
    )
    panels = {f"{int(part.steps)} steps": part for part in data.accuracy.transpose("budget", ...)}
    made = _panels(data, panels, NETS, "net", caption)
    made.axes[0].set_ylabel("test accuracy")
    return made


@style()
def kernels(data: xr.Dataset) -> Figure:
    """Tangent kernels before training."""
    caption = (
        "Tangent kernels of the pruned networks before training, centred: alignment with the dense network's kernel at "
        "the same weights, and with the labels; median and range of seeds. Look that tickets are nearer to the labels "
        "before any training, and do not keep more of the dense kernel before few weights are left."
    )
    panels = {"with the dense kernel": data.kept, "with the labels": data.target}
    made = _panels(data, panels, MASKS[:3], "mask", caption)
    made.axes[0].set_ylabel("alignment")
    return made
