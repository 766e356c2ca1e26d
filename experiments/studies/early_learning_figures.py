"""The figures of `early_learning`: one step over its theory, and shares along training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from limits import early_learning


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    linear = data.sel(linear_dim=data.linear_dim.max(), drop=True)
    words = "Linear classifier of two Gaussian classes, learning rate"
    return {
        "first_step": first_step(data),
        **{
            f"linear_{rate:g}": shares(linear.sel(rate=rate), "linear", f"{words} {rate:g}")
            for rate in data.rate.values
        },
        "network": shares(data, "network", "Network on images"),
    }


@style()
def first_step(data: xr.Dataset) -> Figure:
    """Share of wrong labels contradicted after one step against the dimension."""
    caption = (
        "Wrong labels that a linear classifier predicts as their true class after one step, against the dimension: "
        "mean and two standard errors of the seeds. Line: theory; dashed: the dimension where it is one half. Look "
        "that early learning ends there."
    )
    made, (ax,) = figure(caption=caption)
    dims = np.unique(np.geomspace(data.dim.min(), data.dim.max(), 200).astype(int)).tolist()
    told = (data.attrs["num_examples"], data.attrs["signal"], 1.0, data.attrs["flip"])
    theory = [early_learning.first_step(dim, *told).mislabelled for dim in dims]
    ax.plot(dims, theory, color=PALETTE[1], label="theory")
    mean, error = data.step_true.mean("seed"), 2 * data.step_true.std("seed", ddof=1)
    error = error / np.sqrt(data.sizes["seed"])
    drawing.intervals(ax, mean, mean - error, mean + error, PALETTE[0])
    ax.plot(data.dim, mean, "o", color=PALETTE[0], label="measured")
    edge = float(data.critical_dim.sel(labels="flipped").isel(dim=0))
    ax.axvline(edge, color=INK, linestyle=DASHED, linewidth=1)
    ax.set(xscale="log", xlabel="dimension", ylabel="share", ylim=(-0.02, 1.04))
    drawing.legend(ax)
    return made


@style()
def shares(data: xr.Dataset, part: str, title: str) -> Figure:
    """Shares of predictions along training, without regularisation and with it."""
    caption = (
        f"{title}: what wrong labels are predicted as, and test accuracy (dashed), along training: median and range of "
        "seeds. Look that cross-entropy first predicts the true class and then learns the wrong label by heart, and "
        "how much of it the early-learning loss keeps."
    )
    data = data[[name for name in data if name.startswith(part)]]
    data = data.rename({f"{part}_seed": "seed", f"{part}_step": "step"})
    data = data.sel(step=data.step > 0)
    names = {0.0: "cross-entropy", 3.0: "early-learning loss"}
    strengths = [float(strength) for strength in data.strength.values]
    made, axes = figure([names.get(s, f"strength {s:g}") for s in strengths], caption=caption)
    keys = {"true": "true class", "memorised": "wrong label", "other": "third class"}
    for ax, strength in zip(axes, strengths):
        chosen = data.sel(strength=strength)
        for (key, label), color in zip(keys.items(), PALETTE):
            if part == "network" or key != "other":  # of two classes there is no third
                drawing.curve(ax, chosen[f"{part}_{key}"], "step", color, label=label)
        test = drawing.median(chosen[f"{part}_test"])
        ax.plot(test.step, test, color=INK, linestyle=DASHED, linewidth=1.2, label="test accuracy")
        ax.set(xscale="log", xlabel="step", ylim=(-0.02, 1.04))
    axes[0].set_ylabel("share")
    drawing.legend(axes[-1])
    return made
