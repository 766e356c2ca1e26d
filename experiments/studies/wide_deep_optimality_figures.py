"""The figures of `wide_deep_optimality`: limits and Bayes' rule drawn over what deep networks do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, MUTED, PALETTE, figure, style

COLORS = dict(zip(("deep network", "Hilbert", "1-NN", "majority"), PALETTE))
KINDS = ("nearest neighbor", "singular kernel", "majority vote")


def _seeds(data: xr.DataArray, dim: str) -> xr.DataArray:
    return data.rename({dim: "seed"})


def _line(ax, height: float, text: str, style=DASHED, below: bool = False, left: bool = False):
    """A horizontal line across the panel, named at one of its ends."""
    ax.axhline(height, color=INK, linewidth=1, linestyle=style)
    offset, where = (4 if left else -2, -11 if below else 4), ax.get_yaxis_transform()
    side = "left" if left else "right"
    at = (0 if left else 1, height)
    ax.annotate(text, at, offset, where, "offset points", ha=side, color=INK)


@style()
def taxonomy(data: xr.Dataset) -> Figure:
    """Dual activations of each class, with their fixed points."""
    caption = (
        "Normalised dual activation φ̂(ξ): what one layer makes of the correlation ξ of two inputs. Fixed points lie "
        "on the diagonal; filled ones attract, open ones repel. Look where a correlation below 1 ends: at 0 with "
        "slope 0 (nearest neighbour), at 0 with a positive slope A'² (singular kernel, exponent α in brackets), or "
        "above 0 (majority vote)."
    )
    made, axes = figure(KINDS, caption=caption, panel=(3.2, 3.0))
    xi = data.xi.values
    for ax, kind in zip(axes, KINDS):
        ax.plot(xi, xi, color=MUTED, linewidth=0.8)
        names = [n for n in data.activation.values if data.kind.sel(activation=n) == kind]
        for name, color in zip(names, PALETTE):
            curve, alpha = data.dual.sel(activation=name).values, data.alpha.sel(activation=name)
            text = f"{name} ({float(alpha):.2f})" if kind == KINDS[1] else name
            ax.plot(xi, curve, color=color, label=text)
            slope = float(data.B_prime.sel(activation=name))
            for at, attracts in [*_inner(xi, curve), (1.0, slope <= 1 + 1e-9)]:
                fill, size = (color, 4.5) if attracts else ("white", 8)
                ax.plot(at, at, "o", color=color, mfc=fill, markersize=size, zorder=4 + attracts)
        ax.set(xlabel="correlation ξ", xlim=(-1, 1.04), ylim=(-1.04, 1.04))
        ax.legend(loc="lower left" if kind == KINDS[0] else "lower right", handlelength=1.2)
    axes[0].set_ylabel("correlation φ̂(ξ) a layer later")
    return made


def _inner(xi: np.ndarray, curve: np.ndarray) -> list[tuple[float, bool]]:
    """Fixed points below 1 and whether they attract, by linear interpolation."""
    off = curve - xi
    off[abs(off) < 1e-12] = 0
    found = [(x, True) for x, y in zip(xi, off) if y == 0 and x < 1 - 1e-9]
    for i in np.flatnonzero((off[:-1] > 0) & (off[1:] < 0)):
        found.append((xi[i] + (xi[i + 1] - xi[i]) * off[i] / (off[i] - off[i + 1]), True))
    return found


@style()
def singular_kernels(data: xr.Dataset, slopes: Sequence[float]) -> Figure:
    """psi against distance, over the power laws that consistency needs."""
    caption = (
        "Limit kernels ψ of the optimal activations for inputs on S^d, against the distance of two inputs. Dashed: "
        "r^-d, the weights of the consistent Hilbert estimate. Look that the lines lie on the dashes over five "
        "decades of distance; labels give the fitted slopes."
    )
    made, (ax,) = figure(caption=caption)
    labels, r = [], data.distance.values
    for number, d in enumerate(data.singular_dimension.values):
        log10 = data.log_psi.sel(singular_dimension=d).values / np.log(10)
        ax.plot(r, log10, color=PALETTE[number])
        level = np.mean(log10 + d * np.log10(r))
        text = "r^-d" if number == 0 else None
        ax.plot(r, level - d * np.log10(r), color=INK, linestyle=DASHED, linewidth=1, label=text)
        labels.append(
            (log10[-1], f"d = {d}: slope {drawing.signed(slopes[number])}", PALETTE[number])
        )
    ax.set(xscale="log", xlabel="distance r", ylabel="log₁₀ ψ(r)")
    ax.legend(loc="upper right")
    drawing.end_labels(ax, labels)
    return made


@style()
def error_against_examples(data: xr.Dataset, classifiers: Sequence[str]) -> Figure:
    """Error against the number of examples, one panel a dimension."""
    caption = (
        "Expected test error against the number of training examples, labels flipped with probability 0.2, inputs on "
        "S^d. Dots: networks of 100 layers with the optimal activation; dashed: the Hilbert estimate, their limit. "
        "Look that dots and dashes coincide and fall towards Bayes' rule, while the nearest neighbour stays at 2 · "
        "0.2 · 0.8. Bands span the seeds."
    )
    dimensions = data.noise_dimension.values
    made, axes = figure([f"d = {d}" for d in dimensions], caption=caption)
    for ax, d in zip(axes, dimensions):
        error = _seeds(data.noise_error.sel(noise_dimension=d), "noise_seed")
        counts = error.noise_count.values
        for method in ("1-NN", "deep network"):
            drawing.curve(
                ax, error.sel(classifier=method), "noise_count", COLORS[method], label=method
            )
        ax.plot(counts, drawing.median(error.sel(classifier="deep network")), "o", color=PALETTE[0])
        hilbert = drawing.median(error.sel(classifier="Hilbert"))
        ax.plot(counts, hilbert, color=INK, linestyle=DASHED, linewidth=1.2, label="Hilbert")
        _line(ax, float(error.sel(classifier="Bayes").mean()), "Bayes", "-")
        ax.set(xscale="log", xlabel="training examples")
        ax.set_xticks(counts, [f"{n}" for n in counts])
        ax.minorticks_off()
    axes[0].set_ylabel("error")
    drawing.legend(axes[-1])
    return made


@style()
def error_against_depth(data: xr.Dataset) -> Figure:
    """Error of NNGP and NTK against depth, with the limit and Bayes' rule across."""
    caption = (
        "Expected test error of kernel regression with the optimal activation for d = 1, against the number of "
        "layers. Look how soon the NNGP reaches the Hilbert estimate (dashed), and that the NTK needs more layers "
        "than the inverse square of the distances between examples: until then it votes as its nearest neighbour. "
        "Bands span the seeds."
    )
    made, (ax,) = figure(caption=caption)
    for kernel, color in (("nngp", PALETTE[0]), ("ntk", PALETTE[1])):
        error = _seeds(data[f"{kernel}_error"], "depth_seed")
        drawing.curve(ax, error, f"{kernel}_depth", color, label=kernel.upper())
        ax.plot(error[f"{kernel}_depth"], drawing.median(error), "o", color=color)
    reference = data.depth_reference.median("depth_seed")
    for name, line in (("Bayes", "-"), ("Hilbert", DASHED), ("1-NN", ":")):
        _line(ax, float(reference.sel(reference=name)), name, line, below=name == "1-NN")
    top = 1.25 * float(reference.sel(reference="1-NN"))
    ax.set(xscale="log", xlabel="layers", ylabel="error", ylim=(0.9 * float(reference.min()), top))
    drawing.legend(ax)
    return made


@style()
def dirichlet(data: xr.Dataset, classifiers: Sequence[str]) -> Figure:
    """The authors' four tasks: error of every classifier."""
    caption = (
        "Expected test error on the authors' four pairs of Dirichlet distributions (prior 0.4). Look at the order, "
        "the same in each task: Bayes' rule, the network with the activation that is optimal for the dimension, the "
        "nearest neighbour, the majority; and that the open square, the Hilbert estimate, surrounds the network. Bars"
        " span the seeds."
    )
    made, (ax,) = figure(caption=caption)
    error = _seeds(data.dirichlet_error, "dirichlet_seed")
    place = np.arange(error.sizes["dirichlet_dimension"])
    for method in classifiers:
        line = error.sel(classifier=method)
        color = COLORS.get(method, INK)
        middle = drawing.median(line).values
        if method == "Hilbert":
            ax.plot(
                place, middle, "s", color=INK, markerfacecolor="none", markersize=9, label=method
            )
            continue
        ends = [middle - line.min("seed").values, line.max("seed").values - middle]
        mark = "_" if method == "Bayes" else "o"
        ax.errorbar(
            place,
            middle,
            ends,
            fmt=mark,
            color=color,
            markersize=6 + 10 * (mark == "_"),
            label=method,
        )
    ax.set_xticks(place, [f"d = {d}" for d in error.dirichlet_dimension.values])
    ax.set(yscale="log", ylabel="error", xlim=(-0.5, len(place) - 0.5))
    drawing.log_ticks(ax.yaxis)
    drawing.legend(ax)
    return made


@style()
def stripes(data: xr.Dataset, bayes: float) -> Figure:
    """Hilbert estimates of several exponents on stripes: only alpha = d converges."""
    caption = (
        "Expected test error of Σ y / r^α on a quarter circle with sixteen stripes. Look that α = d = 1 falls towards"
        " Bayes' rule; smaller exponents average over all examples and stay at the error of a constant, larger ones "
        "follow their nearest neighbour. Bands span the seeds."
    )
    made, (ax,) = figure(caption=caption)
    error = _seeds(data.stripe_error, "stripe_seed")
    labels = []
    for exponent, color in drawing.sequential(error.exponent.values).items():
        line = error.sel(exponent=exponent)
        bold = exponent == 1
        drawing.curve(ax, line, "stripe_count", PALETTE[1] if bold else color)
        end = float(drawing.median(line)[-1])
        labels.append((end, f"α = {exponent:g}", PALETTE[1] if bold else color, bold))
    for height, text in ((bayes, "Bayes"), (0.35, "constant")):
        _line(ax, height, text, "-" if text == "Bayes" else DASHED)
    ax.set(xscale="log", xlabel="training examples", ylabel="error", ylim=(0.19, None))
    drawing.end_labels(ax, labels)
    return made


@style()
def classes(data: xr.Dataset) -> Figure:
    """The two other classes: how soon they decide as their limits do."""
    caption = (
        "Left: share of test examples decided as the limit does, against depth: the network of x² − 1 as the nearest "
        "neighbour, one with an interior fixed point and the NTK of ReLU as the majority. Right: mean off-diagonal "
        "entry of the NTK of ReLU over its diagonal; look how slowly it tends to 1/4. Bands span the seeds."
    )
    made, (left, right) = figure(
        ("agreement with the limit", "NTK of ReLU"), caption=caption, sharey=False
    )
    lines = (("nearest", "x² − 1"), ("majority", "interior"), ("relu", "ReLU, NTK"))
    for (name, text), color in zip(lines, PALETTE):
        line = _seeds(data[f"{name}_agreement"], "class_seed")
        drawing.curve(left, line, f"{name}_depth", color, label=text)
        left.plot(line[f"{name}_depth"], drawing.median(line), "o", color=color)
    ratio = _seeds(data.relu_ratio, "class_seed")
    drawing.curve(right, ratio, "relu_depth", PALETTE[2])
    right.plot(ratio.relu_depth, drawing.median(ratio), "o", color=PALETTE[2])
    _line(right, 0.25, "1/4", below=True)
    left.set(xscale="log", xlabel="layers", ylabel="agreement", ylim=(None, 1.02))
    left.legend(loc="lower right")
    right.set(xscale="log", xlabel="layers", ylabel="off-diagonal / diagonal", ylim=(0.2, None))
    return made


@style()
def digits(data: xr.Dataset) -> Figure:
    """Handwritten digits: error of networks over that of Hilbert estimates, with and without label noise."""
    caption = (
        "Handwritten digits as pixel vectors on a sphere: test error against the exponent α. Line: Hilbert estimates;"
        " dots: networks with the activation of that exponent; dotted: nearest neighbour. Look that the nearest "
        "neighbour is good without label noise and bad with it. Bands span the seeds."
    )
    panels = [f"{100 * noise:.0f} % of labels redrawn" for noise in data.label_noise.values]
    made, axes = figure(panels, caption=caption)
    for ax, noise in zip(axes, data.label_noise.values):
        part = data.sel(label_noise=noise)
        drawing.curve(
            ax, _seeds(part.digit_hilbert, "digit_seed"), "digit_exponent", INK, label="Hilbert"
        )
        deep = part.digit_deep.median("digit_seed")
        ax.plot(
            deep.digit_dimension, deep, "o", color=PALETTE[0], markersize=6, label="deep network"
        )
        _line(ax, float(part.digit_nearest.median()), "1-NN", ":", below=noise > 0, left=True)
        ax.set(xscale="log", yscale="log", xlabel="exponent α")
        ticks = part.digit_exponent.values
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
    axes[0].set_ylabel("test error")
    drawing.log_ticks(axes[0].yaxis)
    drawing.legend(axes[-1])
    return made
