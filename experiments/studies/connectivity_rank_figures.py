"""The figures of `connectivity_rank`: alignments and movement against the rank, and the closed form as a map."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, PALETTE, figure, style
from limits import linear_rank

SHOWN = ("zero readout", "aligned task", "Gaussian spectrum", "standard readout")
PANELS = {
    "alignment": "kernel alignment",
    "features": "representation alignment",
    "moved": "|W − W₀|",
}


def _panels(groups: list, dim: str, caption: str) -> tuple:
    """Mean and range of seeds of (label, ranks, {panel: values}), a panel each number."""
    made, axes = figure(list(PANELS.values()), caption=caption, sharey=False)
    for ax, name in zip(axes, PANELS):
        for (label, x, values), color in zip(groups, PALETTE):
            mean = values[name].mean(dim)
            bars = [mean - values[name].min(dim), values[name].max(dim) - mean]
            ax.errorbar(x, mean, bars, fmt="o", color=color, capsize=2, label=label)
        ax.set(xscale="log", xlabel="initial rank")
        ranks = groups[0][1].values
        ax.set_xticks(ranks, [str(rank) for rank in ranks])
        ax.minorticks_off()
    drawing.legend(axes[-1])
    return made, axes


@style()
def laziness(data: xr.Dataset) -> Figure:
    """Linear networks against the closed form."""
    caption = (
        "Two-layer linear networks: alignment of the final with the initial tangent kernel, the same of the hidden "
        "layer's kernel, and distance of the weights from the start, against the initial rank (Gaussian spectra: the "
        "participation of the singular values). Points: mean and range of seeds. Lines: closed form, mean of tasks; "
        "dashed: aligned tasks. Look that higher rank is lazier on average, that an aligned rank of 1 is as lazy as "
        "full rank, and that with readouts of standard size representation falls where the kernel's alignment rises."
    )
    parts = [data.sel(start=name) for name in SHOWN]
    spread = parts[2].participation.mean("seed")
    groups = [(n, spread if n == SHOWN[2] else p["rank"], p) for n, p in zip(SHOWN, parts)]
    made, axes = _panels(groups, "seed", caption)
    r, sizes = np.geomspace(1, data.dim, 200), {"target_norm": data.task_norm}
    sizes["weight_norm"] = (data.ratio * data.task_norm) ** 0.5
    for overlap, dash, color in ((None, "-", PALETTE[0]), (1.0, DASHED, PALETTE[1])):
        theory = linear_rank.laziness(r, data.dim, overlap=overlap, **sizes)
        for ax, values in zip(axes, theory):
            ax.plot(r, values, color=color, linestyle=dash)
    return made


@style()
def recurrent(data: xr.Dataset) -> Figure:
    """Recurrent networks."""
    caption = (
        "Recurrent networks: the same numbers against the rank of the initial recurrent weights at one Frobenius norm "
        "(kernel of the recurrent weights, all steps). Points: mean and range of seeds. Look that the alignments rise "
        "with the rank, and the distance hardly falls."
    )
    part = data[[f"net_{name}" for name in PANELS]].rename({f"net_{name}": name for name in PANELS})
    words = {task: str(task).replace("_", " ") for task in data.task.values}
    groups = [(text, data.net_rank, part.sel(task=task)) for task, text in words.items()]
    return _panels(groups, "net_seed", caption)[0]


@style()
def heat_map(data: xr.Dataset) -> Figure:
    """The closed form over rank and size."""
    caption = (
        "Kernel alignment by the closed form against the initial rank and F²/b: mean of random tasks, and aligned "
        "tasks. White: 0.5 and 0.9. Look that for random tasks it rises with the rank whatever the size, and that for "
        "aligned tasks large weights are enough at any rank."
    )
    made, axes = figure(["random tasks", "aligned tasks"], caption=caption)
    r, ratio = np.arange(1, data.dim + 1), np.geomspace(0.05, 200, 100)
    sizes = {"weight_norm": ratio[:, None] ** 0.5, "target_norm": 1.0}
    for ax, overlap in zip(axes, (None, 1.0)):
        z = linear_rank.laziness(r, data.dim, overlap=overlap, **sizes).kernel_alignment
        image = ax.pcolormesh(r, ratio, z, vmin=0, vmax=1, cmap=drawing.cell_colors(False))
        ax.contour(r, ratio, z, [0.5, 0.9], colors="white", linewidths=1)
        ax.set(yscale="log", xlabel="initial rank")
    axes[0].set_ylabel("F² / b")
    made.colorbar(image, ax=axes, label="kernel alignment")
    return made
