"""The figures of `information_plane`: the plane, resolution, drift and diffusion, gaps under their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from experiments.studies.information_plane_claims import compression, last

WORDS = {"shuffled": "tanh, shuffled labels"}


@style()
def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {f.__name__.strip("_"): f(data) for f in (_plane, _resolution, _drift, _gaps)}


def _plane(data):
    caption = (
        "The information plane under noise of .1, rule 1, median of seeds: a line a hidden layer from initialisation "
        "(open) to the end of training (full). Dashed: nothing lies above min(I(X;T), I(X;Y)). Look that the deep tanh "
        "layers first learn the label and then lose the input, and that ReLU layers lose nothing."
    )
    names = [WORDS.get(str(n), str(n)) for n in data.network.values]
    made, axes = figure(names, caption=caption)
    colors = drawing.sequential(data.layer.values)
    for ax, name in zip(axes, data.network.values):
        part = data.sel(network=name, rule=1).median("seed")
        for layer, color in colors.items():
            x, y = (part[v].sel(layer=layer).values for v in ("noisy", "noisy_label"))
            ax.plot(x, y, color=color, label=f"layer {layer}")
            ax.plot(x[0], y[0], "o", color=color, markerfacecolor="white")
            ax.plot(x[-1], y[-1], "o", color=color)
        ax.plot([0, 1, 12], [0, 1, 1], color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xlabel="I(X;T), bits", xlim=(0, 12.3), ylim=(0, 1.06))
    axes[0].set_ylabel("I(T;Y), bits")
    drawing.legend(axes[-1])
    return made


def _resolution(data):
    caption = (
        "Compression of the last hidden layer, the largest less the final I(X;T), against how it is measured: "
        "median and range of seeds of both rules. Dashed: none. Look that the number is one of the resolution as much "
        "as of the network, and stays near 0 for ReLU at every one."
    )
    made, axes = figure(["cells", "noise"], caption=caption, sharey=True)
    for ax, name, words in zip(axes, ("bins", "sigma"), ("cells a unit", "deviation of the noise")):
        for network, color in zip(data.network.values, PALETTE):
            found = compression(data[f"by_{name}"].sel(network=network, drop=True))
            found = found.stack(of=("rule", "seed")).reset_index("of", drop=True).rename(of="seed")
            drawing.curve(ax, found, name, color, label=WORDS.get(str(network), str(network)))
        ax.axhline(0, color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xscale="log", xlabel=words)
        ax.set_xticks(data[name].values, [f"{v:g}" for v in data[name].values])
        ax.minorticks_off()
    axes[0].set_ylabel("compression, bits")
    drawing.legend(axes[-1], "network")
    return made


def _drift(data):
    caption = (
        "tanh: mean over deviation of gradients in batches of 128 (first and last weights) and noisy I(X;T) of "
        "the last hidden layer against the step: median and range of seeds. Dashed: 1, where drift would end. Look "
        "that information falls while the last layer still drifts, and on rule 1 the first is below 1 long before."
    )
    rules = [r for r in (0, 1) if r in data.rule.values]
    made, axes = figure([f"rule {r}" for r in rules], caption=caption)
    for ax, rule in zip(axes, rules):
        part = data.sel(network="tanh", rule=rule, drop=True).isel(step=slice(1, None))
        for line, color, label in (
            (part.signal.isel(weights=0), PALETTE[0], "gradient, first layer"),
            (part.signal.isel(weights=-1), PALETTE[1], "gradient, last layer"),
            (last(part.noisy), PALETTE[2], "I(X;T), bits"),
        ):
            drawing.curve(ax, line, "step", color, label=label)
        ax.axhline(1, color=INK, linestyle=DASHED, linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="training step")
    axes[0].set_ylabel("mean / deviation; bits")
    drawing.legend(axes[-1])
    return made


def _gaps(data):
    caption = (
        "Gaussian classes in 16 dimensions, deviation 2: the exact gap of the averaging classifier (points) and the "
        "bound by the information of one example (dashed) against the number of examples, by rank of the layer. Look "
        "that the bound holds, 1.5 to 4 times too large, and falls with the rank, and that the gap falls faster in n."
    )
    made, (ax,) = figure(caption=caption)
    names = [str(n) for n in data.classes.values if str(n).startswith("d = 16, s = 2")]
    for name, color in zip(names, drawing.sequential(names).values()):
        part = data.sel(classes=name)
        ax.plot(part.examples, part.gap, "o-", color=color, label=name.rpartition(", ")[2])
        ax.plot(part.examples, part.gap_bound.isel(bound_of=0), color=color, linestyle=DASHED, linewidth=1)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="examples n", ylabel="test - train error")
    ax.set_ylim(top=max(1.0, float(np.nanmax(data.gap))))
    for axis in (ax.xaxis, ax.yaxis):
        drawing.log_ticks(axis)
    drawing.legend(ax, "rank")
    return made
