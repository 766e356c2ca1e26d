"""The figures of `opposing_signals`: theory over measurement, mirror images, the groups themselves."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style

AROUND = 22  # steps drawn before and after an event


@style()
def mirror_images(data: xr.Dataset) -> Figure:
    """Mean losses of the two groups around the rise at which they were found."""
    caption = (
        "Mean loss of two groups of examples around the rise of the mean loss at which they were found (dotted; first "
        "seed, first group in blue). Look that the curves mirror each other: a step that helps one group hurts the "
        "other. The outliers of the linear network whose signal can be learnt move together."
    )
    linear = data.group_loss.isel(seed=0)
    steps = data.image_step.values
    panels = {
        "linear network": (data.step.values, linear.sel(setting="R = 3"), None),
        "linear, can be learnt": (data.step.values, linear.sel(setting="consistent"), None),
        "planted images": (
            steps,
            data.planted_loss.isel(planted_seed=0),
            float(data.planted_step[0]),
        ),
        "nothing planted": (
            steps,
            data.natural_loss.isel(natural_seed=0),
            float(data.rise_step[0]),
        ),
    }
    made, axes = figure(list(panels), caption=caption, sharey=False)
    for ax, (at, curves, event) in zip(axes, panels.values()):
        values = curves.values
        if event is None:
            event = at[np.argmax(np.abs(np.diff(values, axis=1)).sum(0))]
        near = abs(at - event) <= AROUND
        for group, color, width in zip(values, PALETTE, (2.2, 0.9)):
            ax.plot(at[near], group[near], "o-", color=color, markersize=2.5, linewidth=width)
        ax.axvline(event, color=INK, linewidth=1, linestyle=":")
        ax.set_xlabel("step")
    axes[0].set_ylabel("mean loss of a group")
    return made


@style()
def sharpness(data: xr.Dataset) -> Figure:
    """Sharpness of the linear network over training against the logistic law and the edge of stability."""
    caption = (
        "Sharpness of the linear network in units of the edge of stability 2/η over training (one line a seed), and "
        "the logistic law α|w₂|² (dashed, drawn to the edge). Look that the lines follow the dashes to the edge where "
        "αR lies beyond it, then stay near the edge; and level off where it does not."
    )
    names = [str(name) for name in data.setting.values if name not in ("Adam", "consistent")]
    made, axes = figure(names, caption=caption)
    for ax, name in zip(axes, names):
        part = data.sel(setting=name)
        for seed in range(part.sizes["seed"]):
            measured, law = part.sharpness[seed].values, part.law[seed].values
            until = int(np.argmax(law > 1)) if (law > 1).any() else len(law)
            ax.plot(part.step, measured, color=PALETTE[0], linewidth=0.9)
            ax.plot(part.step[: until + 1], law[: until + 1], color=INK, linestyle=DASHED, zorder=4)
        ax.axhline(1, color=PALETTE[1], linewidth=1)
        ax.set(xlabel="step", xlim=(0, 150), ylim=(0, 2))
    axes[0].set_ylabel("sharpness × η / 2")
    for color, line, text in (
        (PALETTE[0], "-", "measured"),
        (INK, DASHED, "theory"),
        (PALETTE[1], "-", "edge"),
    ):
        axes[-1].plot([], [], color=color, linestyle=line, label=text)
    drawing.legend(axes[-1])
    return made


@style()
def found_images(data: xr.Dataset) -> Figure:
    """Images whose losses rise and fall most where training oscillates."""
    caption = (
        "Nothing planted, first seed: the images whose losses rise (top) and fall (bottom) most at the first rise of "
        "the mean loss, found by their losses alone. Look what each row has in common."
    )
    images = data.image.isel(natural_seed=0)
    made, axes = figure(
        [""] * images[..., 0, 0].size,
        caption=caption,
        panel=(0.85, 0.85),
        columns=images.sizes["rank"],
    )
    for ax, (side, rank) in zip(axes, np.ndindex(*images.shape[:2])):
        ax.imshow(images[side, rank], cmap="gray")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if rank == 0:
            ax.set_ylabel(("rise", "fall")[side])
    return made


@style()
def who_moves(data: xr.Dataset) -> Figure:
    """Changes of all examples' losses at one step, the planted ones marked."""
    caption = (
        "Change of every example's loss at the largest rise of the mean loss (first seed): planted images (orange) "
        "and all others. Look that a few examples far out on both sides make most of the change."
    )
    made, (ax,) = figure(caption=caption)
    change, planted = (
        data[n].isel(planted_seed=0).values for n in ("planted_change", "is_planted")
    )
    reach = np.nanmax(abs(change), initial=1e-12)
    scale = np.nanquantile(abs(change), 0.9) + 1e-12
    bins = scale * np.sinh(np.linspace(-1, 1, 41) * np.arcsinh(reach / scale))
    kinds = (
        (~planted.astype(bool), PALETTE[0], "others"),
        (planted.astype(bool), PALETTE[1], "planted"),
    )
    for chosen, color, text in kinds:
        ax.hist(change[chosen], bins, color=color, alpha=0.75, label=text)
    ax.set_xscale("symlog", linthresh=scale)
    decades = 10.0 ** np.arange(np.ceil(np.log10(3 * scale)), np.floor(np.log10(reach)) + 1)
    ticks = [*-decades[::-1], 0, *decades]
    ax.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    ax.minorticks_off()
    ax.set(yscale="log", xlabel="change of the loss", ylabel="examples")
    drawing.legend(ax)
    return made
