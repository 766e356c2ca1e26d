"""The figures of the study of neural collapse: theory drawn over what was trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments import plots
from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, MUTED, PALETTE, figure, style
from experiments.studies.neural_collapse_claims import fitted, frame_errors, modes, part_of


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    made = {
        "collapse": collapse(part_of(data, "free")),
        "lengths": free_lengths(part_of(data, "free")),
        "minority": minority(part_of(data, "tail")),
        "map": lower_rank(part_of(data, "map")),
    }
    networks = {name: part_of(data, name) for name in data.attrs["networks"].split()}
    squared = {name: net for name, net in networks.items() if bool(net.squared)}
    if squared:
        made["network_lengths"] = network_lengths(squared, data.attrs["task"])
    for name, net in networks.items():
        made[f"training_{name}"] = training(net, name, data.attrs["task"])
    return made


@style()
def collapse(free: xr.Dataset) -> Figure:
    """NC1 to NC3 over training for imbalanced classes, one line a depth, with and without weight decay."""
    errors = frame_errors(free)
    panels = {
        "NC1, within-class variability": (free.nc1, 1e-8),
        "NC2, W against the frame": (errors.sel(measure="weight_gram"), 1e-4),
        "NC2, means against the frame": (errors.sel(measure="mean_gram"), 1e-4),
        "NC3, W times means": (errors.sel(measure="product"), 1e-4),
    }
    made, axes = figure(
        list(panels),
        caption="Free features and M linear layers, squared error, classes of unequal sizes: distance from the "
        "closed-form frame over training (median and range of the seeds). Dashed: what the claims ask for. Grey: "
        "the control without weight decay, balanced, which fits (last panel) but does not collapse.",
        columns=2,
        panel=(3.4, 2.3),
        sharey=False,
    )
    colors = drawing.sequential(free.depth.values)
    for ax, (values, bound) in zip(axes, panels.values()):
        for depth, color in colors.items():
            lines = values.sel(depth=depth)
            control = drawing.median(lines.sel(problem="no_decay"))
            ax.plot(free.step, control, color=MUTED, linewidth=1)
            drawing.curve(ax, lines.sel(problem="imbalanced"), "step", color, label=f"{depth}")
        ax.axhline(bound, color=INK, linewidth=1, linestyle=DASHED)
        ax.set(yscale="log", xlabel="step")
        drawing.log_ticks(ax.yaxis)
    axes[1].plot([], [], color=MUTED, linewidth=1, label="no decay")
    axes[1].plot([], [], color=INK, linewidth=1, linestyle=DASHED, label="claimed")
    drawing.legend(axes[1], "layers M")
    return made


@style()
def free_lengths(free: xr.Dataset) -> Figure:
    """Lengths of the rows of W and of the class means against class size."""
    last = free.sel(problem="imbalanced").isel(step=-1)
    decay = (float(last.decay),) * 2
    parts = {
        f"M = {depth}": (last.sel(depth=depth), int(depth), decay) for depth in last.depth.values
    }
    caption = (
        "Free features, imbalanced classes: trained lengths (points, every seed) over the closed form (lines). "
        "Directions are orthogonal; larger classes get longer rows, and their features shorter ones."
    )
    return _lengths(parts, caption)


@style()
def network_lengths(networks: dict[str, xr.Dataset], task: str) -> Figure:
    """The same for networks on images."""
    parts = {
        name: (net.isel(step=-1), int(net.linear), tuple(net.decay.values))
        for name, net in networks.items()
    }
    caption = (
        f"ReLU networks on {task} with imbalanced classes: lengths after training (points) over those of the "
        "closed form for free features (lines), which knows nothing of the images."
    )
    return _lengths(parts, caption)


def _lengths(parts: dict[str, tuple], caption: str) -> Figure:
    made, axes = figure(list(parts), caption=caption, sharey=False)
    for ax, (part, depth, decay) in zip(axes, parts.values()):
        sizes = part["size"].values.astype(float)
        total = sizes.sum()
        grid = np.geomspace(sizes.min() / 1.3, sizes.max() * 1.15, 200)
        square = total * decay[1] * modes(grid, total, depth, decay) ** depth
        theory = {
            "weight_gram": np.sqrt(square),
            "mean_gram": np.sqrt(square) / (square + total * decay[1]),
        }
        for (key, line), color, name in zip(
            theory.items(), PALETTE, ("row of W", "class mean of H")
        ):
            gram = part[key].transpose(..., "row", "column").values
            length = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1)).reshape(-1, len(sizes))
            ax.plot(grid, line, color=INK, linewidth=1, linestyle=DASHED)
            ax.plot(np.tile(sizes, (len(length), 1)), length, "o", color=color)
            ax.plot([], [], "o", color=color, label=name)
        ax.set(xscale="log", yscale="log", xlabel="class size")
        drawing.log_ticks(ax.xaxis)
        drawing.log_ticks(ax.yaxis)
    axes[-1].plot([], [], color=INK, linewidth=1, linestyle=DASHED, label="theory")
    axes[0].set_ylabel("length")
    drawing.legend(axes[-1])
    return made


@style()
def minority(tail: xr.Dataset) -> Figure:
    """Fitted output of each class against its size, across the threshold of minority collapse."""
    sizes = tail["size"].values.astype(float)
    total, threshold = sizes.sum(), float(tail.threshold)
    made, axes = figure(
        [f"M = {depth}" for depth in tail.depth.values],
        caption="Minority collapse: fitted output z of each class against its size in units of the predicted "
        "threshold, in networks trained from a perfect fit. Lines: the closed form; the global optimum (solid) falls "
        "from (M - 1)/M to 0, continuously for one layer only; beyond, a fitted class is metastable (dashed) down to "
        "the spinodal. Filled points cost less than no fit at all, open ones more.",
        panel=(2.6, 2.7),
    )
    grid = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, 2000)
    for ax, depth in zip(axes, map(int, tail.depth.values)):
        decay = (float(tail.decay.sel(depth=depth)),) * 2
        best, upper = (
            fitted(modes(grid, total, depth, decay, branch=branch), depth)
            for branch in ("global", "upper")
        )
        x = grid / threshold
        ax.plot(x, best, color=INK, linewidth=1)
        ax.plot(x, np.where(upper > best, upper, np.nan), color=INK, linewidth=1, linestyle=DASHED)
        ax.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
        own = tail.sel(depth=depth).mean("seed")
        cheaper = own.mode_loss.values <= 1 + 1e-4
        for chosen, face in ((cheaper, PALETTE[0]), (~cheaper, "white")):
            ax.plot(
                sizes[chosen] / threshold,
                own.z.values[chosen],
                "o",
                color=PALETTE[0],
                markerfacecolor=face,
                zorder=3,
            )
        ax.set(xscale="log", xlabel="class size / threshold", ylim=(-0.05, 1))
        drawing.log_ticks(ax.xaxis)
    axes[0].set_ylabel("fitted output z")
    return made


@style()
def lower_rank(cells: xr.Dataset) -> Figure:
    """Where frames of lower rank beat the simplex under cross-entropy: trained, with the closed forms written in."""
    runs = cells.stack(run=("start", "seed"))
    best = runs.isel(run=runs.loss.argmin("run"))
    saving = (100 * (1 - best.loss / cells.simplex)).transpose("depth", "classes")
    known = (100 * (1 - cells.known / cells.simplex)).transpose("depth", "classes")
    made, (ax,) = figure(
        caption="Cross-entropy on free features: how far below the simplex's loss the best of all runs ends (colour "
        "and first line, in per cent, with the rank of its logits; the simplex has rank K - 1); in brackets the best "
        "frame with a closed form. Framed: theory says the simplex is not the optimum.",
        panel=(5.4, 3.6),
    )
    image = ax.imshow(saving, origin="lower", aspect="auto", cmap=drawing.cell_colors(False))
    made.colorbar(image, ax=ax, label="loss below the simplex's (%)", drawedges=False)
    for (row, column), value in np.ndenumerate(saving.values):
        red, green, blue, _ = image.cmap(image.norm(value))
        color = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
        at = {"depth": row, "classes": column}
        text = (
            f"{abs(value):.1f}, rank {int(best['rank'].isel(at))}\n"
            f"({known.values[row, column]:.1f}, rank {int(cells.known_rank.isel(at))})"
        )
        ax.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
        if known.values[row, column] > 0.1:
            ax.add_patch(
                Rectangle(
                    (column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=PALETTE[1], lw=2
                )
            )
    drawing.cell_ticks(ax.xaxis, cells.classes.values)
    drawing.cell_ticks(ax.yaxis, cells.depth.values)
    ax.set(xlabel="classes K", ylabel="linear layers M")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return made


def training(net: xr.Dataset, name: str, task: str) -> Figure:
    """NC1 to NC4 of a network along training, layer by layer."""
    product = frame_errors(net).sel(measure="product").drop_vars("measure")
    floor = 0.5 / float(net["size"].sum())
    measures = xr.Dataset(
        {"nc1": net.nc1, "nc2": net.nc2, "nc3": product, "nc4": net.nc4.clip(min=floor)}
    )
    titles = {
        "nc1": "NC1, within-class variability",
        "nc2": "NC2, means against the frame",
        "nc3": "NC3, W times means (features)",
        "nc4": "NC4, nearest mean ≠ prediction",
    }
    for key, title in titles.items():
        measures[key].attrs["long_name"] = title
    return plots.collapse_over_training(
        measures,
        caption=f"{name} on {task}: collapse of each layer over training; every measure is 0 at collapse. Look how it "
        "stays away in the nonlinear layers and goes on from the features through the linear ones. A share of 0 "
        "in NC4 is drawn as half an example.",
    )
