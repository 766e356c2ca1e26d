"""The figures of the study of feature-learning limits: the limit drawn over finite widths."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from experiments.plots import drawing


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "dichotomy": _dichotomy_figure(data),
        "limit_curves": _limit_curves(data),
        "convergence": _convergence_figure(data),
        "word_embeddings": _embeddings(data),
        "word_scores": _word_scores(data),
        "few_shot": _few_shot_figure(data),
    }


@drawing.style()
def _dichotomy_figure(data: xr.Dataset):
    titles = ["change of the features", "distance from its kernel machine"]
    made, axes = drawing.figure(
        titles,
        caption="Change of the hidden layer that moves most in training (left) and distance of the network from its"
        " own linearisation (right) against width. Dashed: the predicted n^-r, on the right the slowest fall that is"
        " predicted. A rule learns features (flat on both sides, r = 0) or becomes a kernel machine (falls on both).",
        panel=(3.6, 3.0),
        sharey=False,
    )
    layers = data.layer.values
    width = data.dichotomy_width.values
    typical = np.exp(np.log(data.change).mean("dichotomy_seed"))
    curves = typical.sel(quantity=layers).max("quantity"), typical.sel(quantity="kernel_distance")
    labels = []
    for ax, curves_of in zip(axes, curves):
        for number, rule in enumerate(data.rule.values):
            line, r = curves_of.sel(rule=rule).values, float(data.r.sel(rule=rule))
            color = drawing.PALETTE[number % len(drawing.PALETTE)]
            size = 7 - 0.8 * number  # the outer ring is seen where rules are one by symmetry
            ax.plot(width, line, "o", color=color, markersize=size)
            ax.plot(
                width, drawing.slope_line(width, line, -r), linestyle=drawing.DASHED, color=color
            )
            if ax is axes[1]:
                labels.append((line[-1], f"{drawing.NAMES.get(rule, rule)} (r = {r:.2g})", color))
        ax.set(yscale="log", xlabel="width")
        drawing.width_ticks(ax, width)
        drawing.log_ticks(ax.yaxis)
    axes[0].set_ylabel("RMS")
    axes[0].text(
        0.03, 0.03, "dashed: predicted $n^{-r}$", transform=axes[0].transAxes, color=drawing.INK
    )
    drawing.end_labels(axes[1], labels)
    return made


@drawing.style()
def _limit_curves(data: xr.Dataset):
    shown = [name for name in data.system.values if "ntk" not in name]
    made, axes = drawing.figure(
        [f"{name}, one hidden layer" for name in shown],
        caption="Training loss of finite muP networks (bands span the seeds) and of the infinitely wide network,"
        " trained as such (dashed). Look how the widths close in on it.",
        panel=(3.6, 2.9),
    )
    for ax, name in zip(axes, shown):
        line = data.loss.sel(system=name)
        for width, color in drawing.sequential(line.width.values).items():
            drawing.curve(ax, line.sel(width=width), "step", color, label=f"{width}")
        limit = data.limit_loss.sel(system=name)
        ax.plot(limit.step, limit, color=drawing.INK, linestyle=drawing.DASHED, label="limit")
        ax.set(yscale="log", xlabel="step")
    drawing.log_ticks(axes[0].yaxis)
    axes[0].set_ylabel("training loss")
    drawing.legend(axes[-1], "width")
    return made


@drawing.style()
def _convergence_figure(data: xr.Dataset):
    made, (ax,) = drawing.figure(
        caption="Distance of trained finite networks from the trained limit against width, each relative to its first"
        " point; bars span the seeds. Dashed: the slope -1/2 of the law of large numbers. The NTK parametrization"
        " (control) goes to another limit, and its distance stays."
    )
    lines = {name: data.distance.sel(system=name) for name in data.system.values}
    lines["pi-net"] = data.pi_distance
    word = data.gram_distance.isel(word_width=slice(None, -1))
    lines["Word2Vec"] = word.rename(word_width="width", word_seed="seed")
    labels = []
    for number, (name, line) in enumerate(lines.items()):
        color, line = drawing.PALETTE[number], line / float(line.isel(width=0).mean("seed"))
        middle = line.mean("seed")
        drawing.intervals(ax, middle, line.min("seed"), line.max("seed"), color)
        ax.plot(line.width, middle, "o-", color=color)
        labels.append((float(middle[-1]), name, color))
        guide = (line.width / float(line.width[0])) ** -0.5
        ax.plot(line.width, guide, color=drawing.INK, linewidth=1, linestyle=drawing.DASHED)
    ax.set(yscale="log", xlabel="width", ylabel="distance from the limit, relative")
    drawing.width_ticks(
        ax, np.unique(np.concatenate([line.width.values for line in lines.values()]))
    )
    drawing.log_ticks(ax.yaxis)
    drawing.end_labels(ax, labels)
    return made


@drawing.style()
def _embeddings(data: xr.Dataset, named: int = 5):
    made, axes = drawing.figure(
        [str(panel) for panel in data.panel.values],
        caption="First two principal components of the steps from a word to its partner (method to methods, call to"
        " called), for pairs of two relations: one seed, the same pairs in each panel, named by the partner. As the"
        " width grows the picture converges to that of the limit, where the relations are apart; in the kernel limit"
        " vectors stay as they were initialised, and the relations are mixed.",
        panel=(3.4, 3.0),
        columns=2,
        sharey=False,
    )
    limit = data.plane.sel(panel="limit").values
    groups = list(dict.fromkeys(str(name) for name in data.group.values))
    for ax, panel in zip(axes, data.panel.values):
        points = _aligned(data.plane.sel(panel=panel).values, limit)
        for number, group in enumerate(groups):
            rows = np.flatnonzero(data.group.values == group)
            ax.plot(*points[rows].T, "o", color=drawing.PALETTE[number], label=group, alpha=0.8)
            for row in rows[:named]:
                ax.annotate(
                    str(data.word.values[row]),
                    points[row],
                    (3, 3),
                    textcoords="offset points",
                    size=7,
                )
        ax.set(xticks=[], yticks=[])
    drawing.legend(axes[1 % len(axes)])
    return made


def _aligned(points: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Points turned and mirrored about the origin to lie nearest to the goal: components have no sign."""
    left, _, right = np.linalg.svd(points.T @ goal)
    return points @ left @ right


@drawing.style()
def _word_scores(data: xr.Dataset):
    titles = ["analogies that are right", "words nearer than the partner"]
    made, axes = drawing.figure(
        titles,
        caption="Word2Vec on pairs of words taken from the text itself (plural, past tense): points and bars are finite"
        " widths (mean and range of the seeds), the dashed line is the limit, the dotted one the kernel limit: chance."
        " Left, larger is better; right, smaller.",
        panel=(3.4, 2.8),
        sharey=False,
    )
    for ax, name, kernel in zip(axes, ("analogy", "word_rank"), ("kernel_analogy", "kernel_rank")):
        finite, limit = data[name].isel(word_width=slice(None, -1)), data[name].sel(word_width=0)
        middle = finite.mean("word_seed")
        drawing.intervals(
            ax, middle, finite.min("word_seed"), finite.max("word_seed"), drawing.RULES["mup"]
        )
        ax.plot(finite.word_width, middle, "o-", color=drawing.RULES["mup"], label="finite width")
        value = float(limit.mean())
        ax.axhline(value, color=drawing.INK, linestyle=drawing.DASHED, label="limit")
        ax.axhline(
            float(data[kernel]), color=drawing.RULES["ntk"], linestyle=":", label="kernel limit"
        )
        ax.set(xlabel="width", ylim=(0, None))
        drawing.width_ticks(ax, finite.word_width.values)
    axes[0].set_ylabel("share")
    drawing.legend(axes[-1])
    return made


@drawing.style()
def _few_shot_figure(data: xr.Dataset):
    titles = [f"illumination {strength:g}" for strength in data.background.values]
    made, axes = drawing.figure(
        titles,
        caption=f"{data.attrs['ways']}-way {data.attrs['shots']}-shot accuracy on digits that were not trained on,"
        " after first-order MAML: finite muP networks (mean and range of the seeds), the limit (dashed), and the"
        " best kernel limit after meta-training (dotted). Features can only help where tasks share what is of no use:"
        " the random illumination.",
        panel=(3.2, 2.9),
    )
    for ax, strength in zip(axes, data.background.values):
        line = data.sel(background=strength)
        finite = line.few_accuracy.isel(few_width=slice(None, -1))
        middle = finite.mean("few_seed")
        drawing.intervals(
            ax, middle, finite.min("few_seed"), finite.max("few_seed"), drawing.RULES["mup"]
        )
        ax.plot(finite.few_width, middle, "o-", color=drawing.RULES["mup"], label="finite width")
        limit = float(line.few_accuracy.sel(few_width=0).mean())
        kernel = float(line.few_kernel.sel(trained=1).mean("few_seed").max())
        ax.axhline(limit, color=drawing.INK, linestyle=drawing.DASHED, label="limit")
        ax.axhline(kernel, color=drawing.RULES["ntk"], linestyle=":", label="kernel limit")
        ax.axhline(1 / data.attrs["ways"], color=drawing.MUTED, linewidth=1, label="chance")
        ax.set(xlabel="width", ylim=(0, 1))
        drawing.width_ticks(ax, finite.few_width.values)
    axes[0].set_ylabel("accuracy")
    drawing.legend(axes[-1])
    return made
