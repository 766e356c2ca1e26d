"""One line draws a result: `plot` finds the figure by the result's type, and has one for every NamedTuple of arrays.

The results themselves know no figures: ntk, limits and metrics do not import matplotlib. Their method `.plot()` asks
for this function by its name (`ntk.show.plot`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import limits
import metrics
import ntk
from experiments.judges import Claim, verdict
from experiments.plots import curvature, drawing, training
from experiments.plots import features as of_features
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from metrics import collapse, examples, features, kernels, spectra, stability


def plot(result: Any, **options: Any) -> Figure:
    """The figure of a result.

    Args:
        result: of ntk, limits or metrics, or a claim; or several by name, {layer: result}; or a list of claims.
        **options: of the figure that its type has, such as caption.

    Returns:
        A Figure, which a notebook shows.

    Raises:
        TypeError: nothing in it can be drawn, or an option that its figure does not have.
    """
    one = result
    if isinstance(result, Mapping) and result:
        one = next(iter(result.values()))
    if isinstance(result, list | tuple) and not hasattr(result, "_fields") and result:
        one = result[0]
    draw = FIGURES.get(type(one))
    if draw is not None:
        return draw(result, **options)
    if result is one and hasattr(result, "_fields"):
        return (kernel if _is_kernel(result) else fields)(result, **options)
    if callable(result) and hasattr(result, "plot"):
        raise TypeError(
            f"{type(result).__name__} is a function and has no figure of its own; what it gives has one: "
            "kernel_fn(x).plot()"
        )
    raise TypeError(
        f"{type(result).__name__} has no figure; plot takes results of ntk, limits and metrics, such as "
        f"{', '.join(sorted({kind.__name__ for kind in FIGURES})[:6])}"
    )


@style()
def fields(result: Any, *, caption: str = "") -> Figure:
    """Every number of a NamedTuple: single ones as dots, vectors as lines, matrices as maps; a panel each.

    Args:
        result: a NamedTuple with numbers.
        caption: replaces the default one.

    Raises:
        TypeError: it holds no numbers.
    """
    kind = type(result).__name__
    caption = caption or f"The numbers of this {kind}, by the names of its fields."
    arrays = {name: _numbers(value) for name, value in zip(result._fields, result)}
    arrays = {name: a for name, a in arrays.items() if a is not None and a.size}
    single = {name: float(a) for name, a in arrays.items() if a.ndim == 0}
    several = {name: a for name, a in arrays.items() if a.ndim}
    if not arrays:
        raise TypeError(f"{kind} holds no numbers that could be drawn: {result!r}")
    titles = [kind] * bool(single) + [name.replace("_", " ") for name in several]
    made, axes = figure(titles, caption=caption, sharey=False, columns=3)
    if single:
        _dots(axes[0], single)
    for ax, array in zip(axes[bool(single) :], several.values()):
        rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array[None]
        if array.ndim == 2 and min(array.shape) > 4:
            image = ax.imshow(array, aspect="auto", cmap=drawing.cell_colors(False))
            made.colorbar(image, ax=ax)
            ax.set(xlabel="column", ylabel="row")
            ax.grid(False)
            continue
        shown = drawing.sequential(range(min(len(rows), LINES)))
        for (number, color), row in zip(shown.items(), rows):
            ax.plot(row, label=str(number), **drawing.stroke(ax, color, row))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="index")
        if len(rows) > 1:
            more = f", {LINES} of {len(rows)}" if len(rows) > LINES else ""
            drawing.legend(ax, f"row{more}")
    return made


LINES = 6
"""Rows of an array that are drawn in one panel."""


def _is_kernel(result: Any) -> bool:
    """Whether it is a NamedTuple of kernels, as ``kernel_fn(x, None, ("nngp", "ntk"))`` gives."""
    matrices = [getattr(result, name) for name in ("nngp", "ntk") if name in result._fields]
    return bool(matrices) and all(getattr(m, "ndim", 0) >= 2 for m in matrices)


def _numbers(value: Any) -> np.ndarray | None:
    """Real numbers as an array, else None."""
    if hasattr(value, "_fields") and value._fields[0] in ("value", "mean"):  # an estimate
        value = value[0]
    row = isinstance(value, tuple) and value and all(np.isscalar(v) for v in value)
    alone = np.isscalar(value) or hasattr(value, "dtype")
    if isinstance(value, str | bool) or not (row or alone):
        return None
    if jax.dtypes.issubdtype(getattr(value, "dtype", np.dtype(float)), jax.dtypes.extended):
        return None
    array = np.asarray(value)
    return array.astype(float) if array.dtype.kind in "fiub" else None


def _dots(ax: Any, values: Mapping[str, float], errors: Sequence[Any] = ()) -> None:
    """Named numbers, one a row, each written beside its dot."""
    places = np.arange(len(values))[::-1]
    numbers = np.array([*values.values()], float)
    ax.axvline(0, color=drawing.FAINT, linewidth=1)
    ax.plot(numbers, places, "o", color=PALETTE[0])
    for k, (low, high) in enumerate(errors):
        ax.plot([low, high], [places[k]] * 2, color=PALETTE[0], linewidth=1.2)
    for number, place in zip(numbers, places):
        at = (number if np.isfinite(number) else 0, place)
        ax.annotate(f"{number:.4g}", at, (0, 5), textcoords="offset points", ha="center")
    ax.set_yticks(places, [name.replace("_", " ") for name in values])
    ax.set(ylim=(-0.6, len(values) - 0.2), xlabel="value")
    ax.margins(x=0.2)


@style()
def power_law(law: metrics.PowerLaw, *, caption: str = "") -> Figure:
    """Exponent, prefactor and offset of a fitted law, with their intervals."""
    caption = caption or (
        f"Fitted law y = {law.prefactor:.3g} x^{law.exponent:.3g}"
        + (f" + {law.offset:.3g}" if law.offset else "")
        + ": its numbers with their confidence intervals. Its curve over the points: plots.scaling_law."
    )
    names = ("exponent", "prefactor", "offset")
    made, axes = figure(names, caption=caption, sharey=False, panel=(2.6, 1.6))
    for ax, name in zip(axes, names):
        _dots(ax, {name: getattr(law, name)}, [getattr(law, f"{name}_interval")])
        ax.set_yticks([])
    return made


@style()
def optimum(found: metrics.Optimum, *, caption: str = "") -> Figure:
    """Best learning rate of a sweep, of each seed and of their mean."""
    caption = caption or (
        "Best learning rate of each seed (dots) and of their mean loss (line, with the band of one standard error)"
        + (f"; the sweep ends there: {found.edge}." if found.edge else ".")
    )
    made, (ax,) = figure(caption=caption)
    seeds = np.arange(len(found.per_seed))
    ax.plot(seeds, found.per_seed, "o", color=PALETTE[0])
    ax.axhline(found.log2_rate, color=INK, linewidth=1, linestyle=DASHED)
    error = np.nan_to_num(found.standard_error)
    ax.axhspan(found.log2_rate - error, found.log2_rate + error, color=INK, alpha=0.1, linewidth=0)
    ax.set(xlabel="seed", ylabel="log₂ of the best learning rate")
    ax.set_xticks(seeds)
    return made


def coordinate_check(check: limits.CoordinateCheck, *, caption: str = "") -> Figure:
    """Change of every layer against width after the last step, over what the regime predicts."""
    layers, widths = list(check.layers), check.widths
    change = np.exp(np.log(check.change[:, :, -1]).mean(axis=1))
    expected = check.predicted.change
    if len(expected) != len(layers):  # several layers of one place, as in attention
        expected = [expected[0]] * (len(layers) - 1) + [expected[-1]]
    predicted = [float(exponent) for exponent in expected]
    return training.coordinate_check(
        xr.DataArray(change, dims=("width", "layer"), coords={"width": widths, "layer": layers}),
        xr.DataArray(check.change_scaling.exponent[-1], dims="layer", coords={"layer": layers}),
        xr.DataArray(predicted, dims="layer", coords={"layer": layers}),
        caption=caption or check.verdict,
    )


@style()
def kernel(found: Any, *, caption: str = "") -> Figure:
    """NNGP and NTK of two batches as maps; of outputs at several positions their mean.

    Args:
        found: an `ntk.Kernel`, or what has one of its fields or both.
        caption: replaces the default one.
    """
    parts = {name.upper(): getattr(found, name, None) for name in ("nngp", "ntk")}
    arrays = {k: np.asarray(v, float) for k, v in parts.items() if np.ndim(v) >= 2}
    caption = caption or "Kernels of two batches of inputs; rows and columns are examples."
    made, axes = figure(list(arrays), caption=caption, sharey=False)
    for ax, array in zip(axes, arrays.values()):
        shown = array.mean(axis=tuple(range(2, array.ndim)))
        image = ax.imshow(shown, cmap=drawing.cell_colors(False))
        made.colorbar(image, ax=ax, shrink=0.8)
        ax.set(xlabel="example of x2", ylabel="example of x1")
        ax.grid(False)
    return made


@style()
def regime(found: limits.Regime, *, caption: str = "") -> Figure:
    """How everything scales with the width, layer by layer: initial size, change, the layer's own update."""
    caption = caption or (
        "Exponents e of the size n^e of each layer's pre-activations, and of the outputs, at width n: at 0 (dashed) a "
        "size stays as the network widens, below it vanishes, above it blows up. A layer whose change vanishes learns "
        f"no features; r is by how much the hidden ones do. Here: {'; '.join(found.reasons)}."
    )
    names = [f"layer {l}" for l in range(1, len(found.layers))] + ["outputs"]
    lines = {
        "at initialisation": found.initial,
        "change in training": found.change,
        "change by the layer's own update": [0.0 - r for r in found.layers],
    }
    return _over_layers(names, lines, f"regime: {found.kind}", "exponent of the width", caption)


@style()
def exponents(found: limits.ABC, *, caption: str = "") -> Figure:
    """Exponents of multiplier, initial deviation and learning rate over the layers."""
    caption = caption or (
        "An abc-parametrization at width n: layer l uses n^-a times its weights, which start with deviation n^-b and "
        "learn at a rate that goes as n^-c."
    )
    names = [f"layer {l}" for l in range(1, len(found.a))] + ["readout"]
    lines = {"a, multiplier": found.a, "b, initial deviation": found.b, "c, learning rate": found.c}
    return _over_layers(names, lines, "", "exponent", caption)


@style()
def rule(found: limits.Rule, *, caption: str = "") -> Figure:
    """Exponents of a rule for input, hidden and output weights."""
    name = drawing.NAMES.get(found.name, found.name)
    caption = caption or (
        f"{name} at width n: weights of each role are used times n^-a, start with deviation n^-b, and learn at rates "
        "that go as n^-c with SGD and with Adam."
    )
    roles = (found.input, found.hidden, found.output)
    labels = {"a": "a, multiplier", "b": "b, initial deviation", "sgd": "c, SGD", "adam": "c, Adam"}
    lines = {label: [getattr(e, part) for e in roles] for part, label in labels.items()}
    lines[labels["sgd"]] = [
        e.sgd + e.sgd_out for e in roles
    ]  # the readout's start is part of the rate, as in abc
    return _over_layers(["input", "hidden", "output"], lines, name, "exponent", caption)


def _over_layers(names: Sequence[str], lines: Mapping, title: str, label: str, caption: str):
    """Numbers of each layer beside one another, as far from zero (dashed) as they are large."""
    made, (ax,) = figure([title], caption=caption)
    ax.axhline(0, color=INK, linewidth=1, linestyle=DASHED)
    for number, ((name, values), color) in enumerate(zip(lines.items(), PALETTE)):
        places = np.arange(len(names)) + 0.18 * (number - (len(lines) - 1) / 2)
        ax.vlines(places, 0, values, color=color, linewidth=2)
        how = drawing.stroke(ax, color)
        ax.plot(places, values, label=name, linestyle="none", markersize=6.5, **how)
    ax.set_xticks(range(len(names)), names)
    ax.grid(False, axis="x")
    every = np.concatenate([np.asarray(values, float) for values in lines.values()])
    ax.set(ylabel=label, ylim=(min(every.min(), 0) - 0.25, max(every.max(), 0) + 0.25))
    drawing.legend(ax)
    return made


@style()
def dual(found: ntk.Dual, *, caption: str = "") -> Figure:
    """Kernel of an activation against the correlation of its inputs, over its value at coincident ones."""
    caption = caption or (
        "Dual activation at unit variance: E[f(u) f(v)] of correlated standard Gaussians u, v over E[f(u)²], and "
        "E[f'(u) f'(v)], which carries the NTK, over its value at correlation 1."
    )
    rho = np.linspace(-1, 1, 101)
    one = jnp.ones(rho.size)
    made, (ax,) = figure(caption=caption)
    names = ("E[f(u) f(v)]", "E[f'(u) f'(v)]")
    for name, color, values in zip(names, PALETTE, found.moments(one, one, jnp.asarray(rho))):
        line = np.asarray(values, float) / float(values[-1])
        ax.plot(rho, line, label=name, **drawing.stroke(ax, color, line))
    ax.set(xlabel="correlation of u and v", ylabel="over the value at 1")
    drawing.legend(ax)
    return made


@style()
def parametrized(net: limits.Parametrized, *, caption: str = "") -> Figure:
    """What a rule does to every parameter: multiplier, initialisation, learning rates."""
    rule = drawing.NAMES.get(net.rule.name, net.rule.name)
    caption = caption or (
        f"Factors of {rule} at width {net.width} on a logarithmic scale; 1 leaves the model as it is."
    )
    titles = {"multiplier": "multiplier", "init": "initialisation", "sgd": "SGD", "adam": "Adam"}
    made, axes = figure(list(titles.values()), caption=caption, panel=(2.2, 3.0))
    names = list(net.factors["multiplier"])
    places = np.arange(len(names))[::-1]
    for ax, field in zip(axes, titles):
        values = [net.factors[field][name] for name in names]
        ax.axvline(1, color=INK, linewidth=1, linestyle=DASHED)
        ax.plot(values, places, "o", color=PALETTE[0])
        ax.set(xscale="log", xlabel="factor")
        drawing.log_ticks(ax.xaxis)
    axes[0].set_yticks(places, names)
    return made


@style()
def claims(found: Claim | Sequence[Claim], *, caption: str = "") -> Figure:
    """How far each claim lies inside its criterion, or outside."""
    caption = caption or (
        "Distance of what was measured from the nearest end of its criterion, over the larger of the two: right of the "
        "line the criterion is met. Open dots are controls, which must lie left of it."
    )
    found = [found] if isinstance(found, Claim) else list(found)
    made, (ax,) = figure(caption=caption, panel=(6.0, 0.8 + 0.22 * len(found)))
    for place, claim in enumerate(reversed(found)):
        if isinstance(claim.measured, str):
            share = 0.5 if claim.passed != claim.control else -0.5
        else:
            size = max(abs(claim.margin) + abs(claim.measured), 1e-300)  # 0 <= 0 lies on the line
            share = claim.margin / size if np.isfinite(claim.margin) else np.nan
        color = PALETTE[2] if claim.passed else PALETTE[1]
        color = drawing.MUTED if verdict(claim) == "NOT MEASURED" else color
        fill = "white" if claim.control else color
        ax.plot(share, place, "o", color=color, markerfacecolor=fill, markersize=6)
        ax.annotate(verdict(claim), (1.02, place), xycoords=("axes fraction", "data"), va="center")
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(found)), [claim.name for claim in reversed(found)])
    ax.set(xlim=(-1.05, 1.05), ylim=(-0.6, len(found) - 0.4), xlabel="margin")
    return made


def _estimate(found: Any, **options: Any) -> Figure:
    """A number or several with their errors; trees of them as `curvature.diagonal` draws them."""
    if isinstance(found, Mapping):
        return curvature.estimates(found, "value", **options)
    if all(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(found)):
        return curvature.estimates({"estimate": found}, "value", **options)
    if hasattr(found[0], "shape"):
        return fields(found, **options)
    return curvature.diagonal(found, **options)


def _indices(found: Any, **options: Any) -> Figure:
    """What holds numbers of axes, which no figure says better than their table."""
    raise TypeError(f"{type(found).__name__} holds no numbers that could be drawn: {found!r}")


FIGURES: dict[type, Callable[..., Figure]] = {
    Claim: claims,
    ntk.Dual: dual,
    ntk.Kernel: kernel,
    ntk.ParamAxes: _indices,
    limits.ABC: exponents,
    limits.CoordinateCheck: coordinate_check,
    limits.Parametrized: parametrized,
    limits.Regime: regime,
    limits.Rule: rule,
    metrics.Collapse: of_features.neural_collapse,
    metrics.Estimate: _estimate,
    metrics.Optimum: optimum,
    metrics.PowerLaw: power_law,
    metrics.Sharpness: curvature.eigenpairs,
    collapse.Generalized: of_features.generalized_collapse,
    examples.Forgetting: curvature.forgetting,
    features.Change: of_features.feature_change,
    features.Rank: of_features.effective_rank,
    kernels.Movement: of_features.weight_movement,
    kernels.Spectrum: of_features.kernel_spectrum,
    spectra.Spectrum: curvature.spectral_density,
    stability.EdgeReport: curvature.edge_of_stability,
}
