"""The figures of `naive_bayes`: examples needed, errors against examples, accuracies of probes, and the inequality."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from limits.surrogate import logistic_gap


def figures(data: xr.Dataset) -> dict[str, Figure]:
    """The figures of the study by name."""
    caption = (
        "Left: examples until the exact error is .01 above the best one, against the dimension: median and range of "
        "seeds; dashed: in proportion to the dimension. Look that only logistic regression needs more in more "
        "dimensions. Right: excess cross-entropy against excess error of random scores (points), and the least "
        "that is possible (line). Look that no point is below."
    )
    with style():
        made, axes = figure(["examples needed", "the inequality"], caption=caption, sharey=False)
        for line, color in zip(data.needed.transpose("learner", ...), PALETTE):
            drawing.curve(axes[0], line, "dim", color, label=str(line.learner.values))
        dims = data.dim.values.astype(float)
        last = np.median(data.needed[:, :, 1], axis=1)[-1]
        axes[0].plot(dims, last * dims / dims[-1], color=INK, linestyle=DASHED, linewidth=1)
        axes[0].set(xlabel="dimension", ylabel="examples", yscale="log")
        drawing.width_ticks(axes[0], data.dim.values)
        axes[0].legend()
        regret, excess = data.pairs.values.reshape(-1, 2).T
        axes[1].plot(regret, excess, "o", markersize=2, color=PALETTE[0], alpha=0.3)
        t = np.linspace(0, 1, 200)
        axes[1].plot(t, logistic_gap(t), color=INK)
        axes[1].set(xlabel="excess error", ylabel="excess cross-entropy (nats)", ylim=(-0.05, 2))
    return {"needed": made, "regimes": regimes(data), "probes": few_shot(data)}


@style()
def regimes(data: xr.Dataset) -> Figure:
    """Errors against examples."""
    caption = (
        "Exact error against the number of examples: median and range of seeds. Dashed: what each tends to. Look that "
        "with mildly correlated features logistic regression wins with the fewest examples, naive Bayes next, and "
        "logistic regression in the end; that with strong correlation naive Bayes never does, and without any always "
        "but at the start."
    )
    made, axes = figure([str(name) for name in data.setting.values], caption=caption)
    for ax, setting in zip(axes, data.setting.values):
        part = data.sel(setting=setting)
        for name, color in zip(data.learner.values, PALETTE):
            line = part.error.sel(learner=name).rename(regime_seed="seed")
            drawing.curve(ax, line, "count", color, label=str(name))
            end = float(part.ends.sel(learner=name)[0])
            ax.axhline(end, color=color, linestyle=DASHED, linewidth=1)
        ax.set(xscale="log", xlabel="examples")
    axes[0].set_ylabel("error")
    drawing.legend(axes[-1])
    return made


@style()
def few_shot(data: xr.Dataset) -> Figure:
    """Accuracies of probes against examples of each class."""
    caption = (
        "Test accuracy of the probes against examples of each class, on features of a trained network and on pixels: "
        "median and range of seeds. Look which probe is ahead with few examples, and which with many."
    )
    made, axes = figure([str(name) for name in data.inputs.values], caption=caption)
    for ax, inputs in zip(axes, data.inputs.values):
        for name, color in zip(data.learner.values, PALETTE):
            line = data.accuracy.sel(inputs=inputs, learner=name).rename(feature_seed="seed")
            drawing.curve(ax, line, "shots", color, label=str(name))
        drawing.width_ticks(ax, data.shots.values)
        ax.set_xlabel("examples of each class")
    axes[0].set_ylabel("test accuracy")
    drawing.legend(axes[-1])
    return made
