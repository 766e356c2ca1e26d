"""The figures of `in_context_descent`: the best step drawn over trained layers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from experiments.studies.in_context_descent_claims import rate


@style()
def training(data: xr.Dataset) -> Figure:
    """Loss against training steps, with the losses of other predictors."""
    caption = (
        "Squared error of one layer of linear attention on fresh prompts while it trains (bands span the seeds), one "
        "panel a law of prompts. Lines: predictors in closed form on the same prompts. Look that the layer ends on one "
        "step of descent (dashed) and never below it, where ridge regression, the Bayes predictor of linear "
        "responses, lies. Random starts, of the anisotropic law, are drawn one line a seed."
    )
    settings = [str(name) for name in data.setting.values]
    made, axes = figure(settings, caption=caption, columns=3, sharey=False)
    for ax, name in zip(axes, settings):
        part = data.sel(setting=name)
        if name == "random start":  # may end elsewhere
            ax.plot(data.step, part.loss.values.T, color=PALETTE[0], linewidth=1)
        else:
            drawing.curve(ax, part.loss, "step", PALETTE[0])
        ax.plot([], [], color=PALETTE[0], label="linear attention")
        lines = {
            "one step": (INK, DASHED),
            "two steps": (PALETTE[4], "-"),
            "ridge": (PALETTE[2], "-"),
        }
        for predictor, (color, dash) in lines.items():
            value = float(part.predictor_loss.sel(predictor=predictor))
            ax.axhline(value, color=color, linestyle=dash, linewidth=1.2, label=predictor)
        ax.set(xlabel="training step", ylim=(0, None))
    for ax in axes[::3]:
        ax.set_ylabel("squared error")
    drawing.legend(axes[min(2, len(axes) - 1)])
    return made


@style()
def matrices(data: xr.Dataset) -> Figure:
    """The trained matrix beside the best one, anisotropic inputs."""
    caption = (
        "The matrix G with which the trained layer multiplies the gradient, first seed, and the best one in closed "
        "form. Upper row: weights N(0, I); lower row: weights of covariance Lam⁻¹. Look that left and right agree, and "
        "that the rows differ: the preconditioner depends on the law of the weights."
    )
    names = ("anisotropic", "whitened")
    titles = [f"{name}: {what}" for name in names for what in ("trained", "best")]
    made, axes = figure(titles, caption=caption, columns=2, panel=(2.9, 2.5), sharey=False)
    for row, name in enumerate(names):
        part = data.sel(setting=name)
        pair = part.matrix.isel(seed=0).values, part.best.values
        reach = max(np.abs(values).max() for values in pair)
        for ax, values in zip(axes[2 * row :], pair):
            colors = drawing.cell_colors(True)
            image = ax.imshow(values, cmap=colors, vmin=-reach, vmax=reach)
            if values.size <= 36:
                drawing.cell_values(ax, image, np.ma.masked_invalid(values))
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
    return made


@style()
def responses(data: xr.Dataset) -> Figure:
    """Rates of trained steps against the best ones, by response."""
    caption = (
        "Rate of the trained step (dots, one a seed) for linear and non-linear responses of isotropic prompts; bars: "
        "the best rate in closed form; dashed: that of linear responses. Look that the dots sit on the bars, away from "
        "the dashes."
    )
    made, (ax,) = figure(caption=caption)
    names = ("isotropic", "ReLU", "sign")
    for place, name in enumerate(names):
        part = data.sel(setting=name)
        ax.plot(place, float(rate(part.best)), "_", color=INK, markersize=40, markeredgewidth=2)
        found = rate(part.matrix)
        ax.plot(place + np.linspace(-0.1, 0.1, found.size), found, "o", color=PALETTE[0])
    linear = float(rate(data.best.sel(setting="isotropic")))
    ax.axhline(linear, color=PALETTE[1], linestyle=DASHED, linewidth=1)
    ax.set_xticks(range(3), ["linear", "ReLU", "sign"])
    ax.set(xlim=(-0.5, 2.5), ylim=(0, None), xlabel="response", ylabel="rate of the step")
    return made
