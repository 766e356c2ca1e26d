"""The figures of `score_estimation`: errors over time, learnt scores over exact ones, pairs of denoisers."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style


@style()
def early_stopping(data: xr.Dataset) -> Figure:
    """Error against training time for every number of examples."""
    caption = (
        "Distance of kernel gradient flow from the exact E[x_0 | z] against training time: median and range of seeds, "
        "the best time marked. Dashed: the same points with exact targets. Look that noisy targets must be left early, "
        "later with more examples, and that more examples do not help at the end."
    )
    made, axes = figure([f"noise {s:g}" for s in data.noise.values], caption=caption)
    for ax, s in zip(axes, data.noise.values):
        for n, color in drawing.sequential(data.examples.values).items():
            part = data.error.sel(noise=s, examples=n)
            drawing.curve(ax, part.sel(targets="noisy"), "time", color, label=f"{n}", minimum=True)
            exact = part.sel(targets="exact").median("seed")
            ax.plot(data.time, exact, color=color, linestyle=DASHED, linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="training time")
    axes[0].set_ylabel("squared distance")
    drawing.legend(axes[-1], "examples n")
    return made


@style()
def learnt_score(data: xr.Dataset) -> Figure:
    """Scores of the first seed, at the best time and at the end, over the exact one."""
    caption = (
        "Score learnt from the most examples, first seed, at the best time and at the last. Dashed: the exact score. "
        "Look that the last follows the noise of its points."
    )
    made, axes = figure([f"noise {s:g}" for s in data.noise.values], caption=caption, sharey=False)
    for ax, s in zip(axes, data.noise.values):
        part = data.score.sel(noise=s).isel(examples=-1, seed=0)
        for curve, color in (("end", PALETTE[1]), ("best time", PALETTE[0])):
            ax.plot(data.place, part.sel(curve=curve), color=color, label=curve)
        ax.plot(data.place, part.sel(curve="exact"), color=INK, linestyle=DASHED, label="exact")
        exact = abs(part.sel(curve="exact")).max() * 1.3
        ax.set(xlabel="noisy point z", ylim=(-exact, exact))
    axes[0].set_ylabel("score")
    drawing.legend(axes[-1])
    return made


@style()
def denoisers(data: xr.Dataset) -> Figure:
    """Agreement and errors of two denoisers against their number of images."""
    caption = (
        "Networks trained to denoise disjoint sets of images. Left: cosine of their outputs on other images. Right: "
        "error on the images seen and on others, over the noise; dashed: the best linear denoiser. Look that memories "
        "of few images have nothing in common, and that with many both networks are one function, better than linear."
    )
    made, axes = figure(["agreement", "error over noise"], caption=caption, sharey=False)
    data = data[["cosine", "risk"]].rename(pair_seed="seed")
    drawing.curve(axes[0], data.cosine, "images", PALETTE[0])
    for of, color in (("other images", PALETTE[0]), ("images seen", PALETTE[1])):
        drawing.curve(axes[1], data.risk.sel(of=of), "images", color, label=of)
    linear = data.risk.sel(of="best linear, other images").mean("seed")
    axes[1].plot(data.images, linear, color=INK, linestyle=DASHED, linewidth=1, label="best linear")
    axes[0].set(ylabel="cosine of the outputs", ylim=(0, 1))
    axes[1].set(ylim=(0, None))
    for ax in axes:
        ax.set(xscale="log", xlabel="images of each network")
    drawing.legend(axes[-1])
    return made
