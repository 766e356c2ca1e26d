"""Figures of the study grokking_corrupted: theory over the measurement in the same axes."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, curve, figure, style

COLORS = {"train": PALETTE[0], "corrupted": PALETTE[1], "test": PALETTE[2]}
WORDS = {
    "train": "training labels",
    "corrupted": "wrong labels learnt",
    "test": "test pairs",
}
PHASES = {
    "coexistence": PALETTE[5],
    "partial inversion": PALETTE[4],
    "full inversion": PALETTE[2],
    "memorisation": PALETTE[1],
    "forgetting": "#9aa0a6",
}


def figures(
    data: xr.Dataset, phases: xr.DataArray, kept: float, periodic: float
) -> dict[str, Figure]:
    """Every figure by name.

    Args:
        data: of the study.
        phases: phase of every cell, in words.
        kept: expected share of right training labels.
        periodic: participation ratio from which on a neuron counts as periodic.
    """
    made = {
        "accuracies": accuracies(data, kept),
        "pruning": pruning(data, kept),
        "participation": participation(data),
        "phase_diagram": phase_diagram(phases),
        "neurons": neurons(data),
        "phases_add_up": phases_add_up(data, periodic),
        "analytic": analytic(data),
    }
    if "batch norm" in data.regulariser:
        made["gains"] = gains(data)
    if "decay" in data.coords:
        made["transformer"] = transformer(data)
    return made


@style()
def accuracies(data: xr.Dataset, kept: float) -> Figure:
    """Accuracies over training, one panel a regulariser."""
    names = [str(name) for name in data.regulariser.values]
    made, axes = figure(
        names,
        columns=3,
        caption=(
            "Accuracies over training on corrupted modular addition; bands span the seeds. Without regularisation "
            "the network learns the rule and the wrong labels; weight decay and dropout let it learn them first "
            "and drop them then, so that the training accuracy falls to the share of right labels (dashed)."
        ),
    )
    for ax, name in zip(axes, names):
        run = data.sel(regulariser=name).swap_dims(time="step")
        for key, color in COLORS.items():
            curve(ax, run[key], "step", color, label=WORDS[key])
        if name != names[-1]:
            ax.axhline(kept, color=INK, linewidth=1, linestyle=DASHED, label="right labels")
        ax.set(xlabel="step", ylim=(-0.02, 1.05))
    for ax in axes[::3]:
        ax.set_ylabel("share")
    drawing.legend(axes[0 if len(axes) < 3 else 2])
    return made


def _pruning_curves(axes: list[Axes], runs: list[xr.Dataset]) -> None:
    for ax, run in zip(axes, runs):
        for key, color in COLORS.items():
            curve(ax, run[f"pruned_{key}"], "share", color, label=WORDS[key])
        ax.set(xlabel="share of neurons pruned", ylim=(-0.02, 1.05))
    axes[0].set_ylabel("share")


@style()
def pruning(data: xr.Dataset, kept: float) -> Figure:
    """Accuracies of the unregularised network as neurons are removed in three orders."""
    made, axes = figure(
        ["least periodic first", "most periodic first", "in random order"],
        caption=(
            "The network without regularisation, pruned by inverse participation ratio. Removing the least periodic "
            "neurons removes the wrong labels and leaves the rule: the training accuracy falls to the share of right "
            "labels (dashed). Removing the most periodic ones does the reverse; a random order does neither."
        ),
    )
    plain = data.sel(regulariser="none")
    _pruning_curves(axes, [plain.sel(order=order) for order in ("low", "high", "random")])
    for ax in axes:
        ax.axhline(kept, color=INK, linewidth=1, linestyle=DASHED, label="right labels")
    drawing.legend(axes[-1])
    return made


@style()
def participation(data: xr.Dataset) -> Figure:
    """Histogram of the neurons' participation ratios, one panel a regulariser."""
    names = [str(name) for name in data.regulariser.values]
    made, axes = figure(
        names,
        columns=3,
        sharey=False,
        caption=(
            "Inverse participation ratio of the neurons, all seeds: 1 is a single cosine, as in the analytic solution "
            "(dashed), about 4/p are random weights (dotted). Without regularisation and under BatchNorm there are "
            "two kinds of neurons; weight decay and dropout leave periodic ones alone."
        ),
    )
    bins = np.linspace(0, 1.02, 52)
    for ax, name in zip(axes, names):
        values = data.neuron_ipr.sel(regulariser=name).values.ravel()
        weights = np.full(values.size, 1 / values.size)
        ax.hist(values, bins, weights=weights, color=PALETTE[0])
        ax.axvline(1, color=INK, linewidth=1, linestyle=DASHED)
        ax.axvline(4 / data.attrs["modulus"], color=INK, linewidth=1, linestyle=":")
        ax.set(xlabel="inverse participation ratio")
    for ax in axes[::3]:
        ax.set_ylabel("share of neurons")
    return made


@style()
def phase_diagram(phases: xr.DataArray) -> Figure:
    """The phase of every (fraction, noise), one panel a regulariser."""
    names = [str(name) for name in phases.phase_regulariser.values]
    made, axes = figure(
        names,
        columns=3,
        caption=(
            "Phases over the fraction of all pairs that is trained on and the fraction of labels redrawn. Look how "
            "weight decay and dropout turn coexistence into full inversion (the rule alone), BatchNorm into partial "
            "inversion, and too much decay into forgetting."
        ),
    )
    order = list(PHASES)
    numbers = np.vectorize(order.index)(phases.values)
    for ax, cells in zip(axes, numbers):
        ax.imshow(
            cells,
            origin="lower",
            aspect="auto",
            cmap=ListedColormap(list(PHASES.values())),
            vmin=-0.5,
            vmax=len(order) - 0.5,
        )
        drawing.cell_ticks(ax.xaxis, phases.fraction.values)
        drawing.cell_ticks(ax.yaxis, phases.noise.values)
        ax.set_xlabel("training fraction")
        ax.grid(False)
        ax.spines[:].set_visible(False)
    for ax in axes[::3]:
        ax.set_ylabel("redrawn labels")
    handles = [Patch(color=color, label=name) for name, color in PHASES.items()]
    made.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return made


@style()
def neurons(data: xr.Dataset) -> Figure:
    """Weights of the most and the least periodic neuron, with the analytic cosines over them."""
    plain = data.sel(regulariser="none").isel(seed=0)
    shown = plain.shown_neuron.values.astype(int)
    picked = (0, data.sizes["shown"] - 1)
    titles = [
        f"{name}, ratio {float(plain.neuron_ipr[shown[i]]):.2f}" for i in picked for name in "UVW"
    ]
    made, axes = figure(
        titles,
        columns=3,
        sharey=False,
        caption=(
            "Weights (dots) of the most periodic neuron, above, and of the least, below, of a network that learnt "
            "the rule and the wrong labels. Residues are ordered by frequency x residue mod p, so that one cosine is "
            "one period. Lines are the analytic solution with the amplitudes of the weights and the phases "
            "of U and V; the phase of W is not fitted, it is the sum of the other two."
        ),
    )
    p = int(data.attrs["modulus"])
    residues, fine = np.arange(p), np.linspace(0, p, 200)
    for row, i in enumerate(picked):
        frequency = int(plain.neuron_frequency[shown[i]])
        u, v, _ = plain.neuron_phases.isel(neuron=shown[i]).values
        for column, phase in enumerate((u, v, u + v)):
            weights = plain.shown_weights.isel(shown=i, vector=column).values
            wave = np.exp(-2j * np.pi * frequency * residues / p)
            amplitude = 2 / p * abs(weights @ wave)
            ax = axes[3 * row + column]
            ax.plot(fine, amplitude * np.cos(2 * np.pi * fine / p + phase), color=PALETTE[1])
            ax.plot(frequency * residues % p, weights, ".", color=PALETTE[0])
            ax.set_xlabel(f"{frequency} {'abq'[column]} mod {p}")
        axes[3 * row].set_ylabel("weight")
    return made


@style()
def phases_add_up(data: xr.Dataset, periodic: float) -> Figure:
    """Phase of the readout against the sum of the input phases, periodic neurons and the others."""
    plain = data.sel(regulariser="none")
    u, v, w = (plain.neuron_phases.sel(vector=name).values.ravel() for name in "UVW")
    expected = np.angle(np.exp(1j * (u + v)))
    # The readout's phase on the branch nearest to the sum, so that the diagonal is one line.
    found = expected + np.angle(np.exp(1j * (w - expected)))
    above = plain.neuron_ipr.values.ravel() >= periodic
    cosines = [float(np.cos(found - expected)[chosen].mean()) for chosen in (above, ~above)]
    made, axes = figure(
        ["periodic neurons", "the others"],
        panel=(3.0, 3.0),
        caption=(
            "Phase of each neuron's readout against the sum of the phases of its inputs, at its strongest frequency; "
            "no regularisation, all seeds. The analytic solution is the diagonal: the periodic neurons (ratio "
            f"{periodic:g} or more) lie near it, the others, which hold the wrong labels, scatter (mean cosine of "
            f"the difference {cosines[0]:.2f} and {cosines[1]:.2f})."
        ),
    )
    for ax, chosen in zip(axes, (above, ~above)):
        ax.plot(expected[chosen] / np.pi, found[chosen] / np.pi, ".", color=PALETTE[0], alpha=0.5)
        ax.plot([-1, 1], [-1, 1], color=INK, linewidth=1, linestyle=DASHED)
        ax.set(xlabel="(phase of U + phase of V) / π")
    axes[0].set_ylabel("phase of W / π")
    return made


@style()
def analytic(data: xr.Dataset) -> Figure:
    """Accuracy of the analytic solution against its width, with its estimate."""
    made, (ax,) = figure(
        caption=(
            f"Accuracy of the analytic solution with random phases at p = {data.attrs['modulus']}, without any "
            "training: one dot a draw of the phases, and what the moments of its logits predict (dashed)."
        )
    )
    for seed in data.analytic_seed.values:
        ax.plot(
            data.analytic_width,
            data.analytic_accuracy.sel(analytic_seed=seed),
            "o",
            color=PALETTE[0],
            alpha=0.5,
            label="random phases" if seed == 0 else None,
        )
    ax.plot(
        data.analytic_width, data.analytic_predicted, color=INK, linestyle=DASHED, label="predicted"
    )
    ax.legend(loc="lower right")
    ax.set(xlabel="neurons", ylabel="accuracy on all pairs")
    return made


@style()
def gains(data: xr.Dataset) -> Figure:
    """BatchNorm's gains against participation ratio."""
    made, (ax,) = figure(
        caption=(
            "Gain of each neuron's BatchNorm against its inverse participation ratio, all seeds. BatchNorm does not "
            "convert the memorising neurons (left): it gives them less weight than the periodic ones (right)."
        )
    )
    run = data.sel(regulariser="batch norm")
    ax.plot(run.neuron_ipr.values.ravel(), run.neuron_gain.values.ravel(), ".", color=PALETTE[0])
    ax.set(xlabel="inverse participation ratio", ylabel="|gain|", ylim=(0, None))
    return made


@style()
def transformer(data: xr.Dataset) -> Figure:
    """The Transformer: accuracies over training, and pruned in both orders."""
    names = [name for name in data.data_vars if str(name).startswith("transformer_")]
    run = data[names].isel(decay=-1).drop_vars("seed", errors="ignore")
    run = run.rename(transformer_seed="seed")
    made, axes = figure(
        ["training", "least periodic first", "most periodic first"],
        caption=(
            f"A one-layer Transformer at weight decay {float(run.decay):g}: it too learns the rule and the wrong "
            "labels. Pruning neurons of its MLP, the rule suffers much more when those go first that write the most "
            "periodic logits; the wrong labels suffer alike."
        ),
    )
    curves = run.swap_dims(transformer_time="transformer_step")
    for key, color in COLORS.items():
        line = curves[f"transformer_{key}"]
        curve(axes[0], line, "transformer_step", color, label=WORDS[key])
        for ax, order in zip(axes[1:], ("low", "high")):
            line = run[f"transformer_pruned_{key}"].sel(transformer_order=order)
            curve(ax, line, "transformer_share", color, label=WORDS[key])
            ax.set_xlabel("share of neurons pruned")
    axes[0].set(xlabel="step", ylabel="share", ylim=(-0.02, 1.05))
    drawing.legend(axes[-1])
    return made
