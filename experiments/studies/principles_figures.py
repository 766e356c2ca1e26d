"""The figures of `principles`: recursions and closed forms drawn over simulated networks."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from experiments.studies.principles_claims import excess, extrapolated, fit, pooled


@style()
def depth_over_width(data: xr.Dataset) -> Figure:
    """Fluctuations of the metric against depth over width."""
    caption = (
        "Variance of the metric over its squared mean against depth over width: simulated networks of several widths "
        "(dots, bars of two standard errors) and first order in 1 / width (dashed). Look that the widths lie on one "
        "curve, and where it leaves the dashes: ReLU, whose fluctuations multiply, from a ratio of 0.05 on."
    )
    names = data.sampled_activation.values
    made, axes = figure([str(n) for n in names], caption=caption, sharey=False)
    value, error = pooled(data, "sampled")
    square = data.sampled_K.isel(seed=0, sampled_width=0) ** 2
    for ax, name in zip(axes, names):
        at = {"sampled_activation": name}
        for width, color in drawing.sequential(data.sampled_width.values).items():
            ratio = (data.sampled_layer.values[1:] - 1) / width
            scale = width * square.sel(at).values[1:]
            y, bar = (
                part.sel(at | {"sampled_width": width}).values[1:] / scale
                for part in (value, error)
            )
            ax.errorbar(ratio, y, 2 * bar, fmt="o", markersize=3, color=color, label=f"{width}")
        narrow = data.sampled_width.values[0]
        line = data.sampled_theory.isel(seed=0, sampled_width=0).sel(at) / square.sel(at) / narrow
        ax.plot(
            (data.sampled_layer - 1) / narrow, line, color=INK, linestyle=DASHED, label="theory"
        )
        ax.set(xlabel="layers passed / width")
    axes[0].set_ylabel("Var G / K²")
    drawing.legend(axes[-1], "width")
    return made


@style()
def flow(data: xr.Dataset) -> Figure:
    """Variance of the preactivations layer by layer, at and off criticality."""
    caption = (
        "Variance of a layer at infinite width against depth, both axes logarithmic. Look for the three classes: "
        "constant at any value or at one (ReLU, GELU), falling with slope −1 (tanh, sin; dashed 1/(−a₁ l)); and for "
        "what a wrong C_W does: exponential decay, or a constant where it should fall."
    )
    made, (ax,) = figure(caption=caption)
    names = ("ReLU", "GELU", "tanh", "sin", "ReLU, C_W = 1.8", "tanh, C_W = 1.1")
    labels, floor = [], 1e-4
    for name, color in zip(names, PALETTE):
        line = data.K.sel(activation=name)
        kept = line.values > floor
        ax.plot(data.layer[kept], line[kept], color=color)
        end = line.values[kept][-1]
        if name in ("tanh", "sin"):
            theory = 1 / (-float(data.a1.sel(activation=name)) * data.layer[10:])
            ax.plot(data.layer[10:], theory, color=INK, linestyle=DASHED, linewidth=1)
        labels.append((end, name, color))
    ax.set(xscale="log", yscale="log", ylim=(floor, 20), xlabel="layer", ylabel="K")
    drawing.end_labels(ax, labels)
    return made


@style()
def susceptibilities(data: xr.Dataset) -> Figure:
    """Both susceptibilities against the variance."""
    caption = (
        "Susceptibilities χ∥ (of the variance, solid) and χ⊥ (of differences, dashed) against the variance, at the "
        "critical C_W. Look where both are one (thin line): everywhere, at 0 only, at one K* (dotted), together "
        "nowhere."
    )
    names = ("ReLU", "tanh", "GELU", "softplus")
    made, axes = figure(list(names), caption=caption)
    for ax, name in zip(axes, names):
        part = data.sel(activation=name)
        ax.axhline(1, color=INK, linewidth=0.7)
        ax.plot(part["at"], part.parallel, color=PALETTE[0], label="χ∥")
        ax.plot(part["at"], part.perpendicular, "--", color=PALETTE[1], label="χ⊥")
        if float(part.variance) > 0:
            ax.axvline(float(part.variance), color=INK, linewidth=1, linestyle=":")
        ax.set(xscale="log", xlabel="K")
    axes[0].set_ylabel("growth in a layer")
    drawing.legend(axes[-1])
    return made


@style()
def order_of_the_error(data: xr.Dataset) -> Figure:
    """What first order in 1 / width misses, against width."""
    depth = int(data.sampled_layer[-1])
    caption = (
        f"|V of simulated networks over first order − 1| in layer {depth} against width, with bars of two standard "
        f"errors. Dashed: slope −1. ReLU's fitted slope from width 50 on is {drawing.signed(fit(data)[0])}. Look "
        "that the error is of order 1 / width, and how large it is."
    )
    made, (ax,) = figure(caption=caption)
    value, error = excess(data)
    labels, widths = [], data.sampled_width.values
    for name, color in zip(data.sampled_activation.values, PALETTE):
        y, bar = (abs(part.sel(sampled_activation=name).values) for part in (value, error))
        ax.errorbar(widths, y, 2 * bar, fmt="o-", color=color, capsize=2)
        ax.plot(
            widths, drawing.slope_line(widths, y, -1.0), color=INK, linestyle=DASHED, linewidth=1
        )
        labels.append((y[-1], str(name), color))
    ax.set(yscale="log", ylim=(1e-3, 5), xlabel="width", ylabel="|V / theory − 1|")
    drawing.width_ticks(ax, widths)
    drawing.end_labels(ax, labels)
    return made


@style()
def residual_connections(data: xr.Dataset) -> Figure:
    """V of residual networks against the strength of the skip connection."""
    caption = (
        "V of residual networks z' = γz + Ws(z) against γ: simulated at two widths and carried on to infinite width "
        "(dots, bars of two standard errors), the recursion (crosses), and the one that forgets E[z_i z_j²] (open). "
        "Look that ReLU needs that term, and tanh, an odd function, does not."
    )
    names = data.residual_activation.values
    made, axes = figure([str(n) for n in names], caption=caption, sharey=False)
    value, error = extrapolated(data)
    first = data.isel(seed=0, residual_width=0)
    for ax, name in zip(axes, names):
        at = {"residual_activation": name}
        gamma = data.gamma.values
        ax.errorbar(
            gamma,
            value.sel(at),
            2 * error.sel(at),
            fmt="o",
            color=PALETTE[0],
            capsize=2,
            label="simulated",
        )
        ax.plot(gamma, first.residual_theory.sel(at), "x", color=INK, markersize=8, label="theory")
        ax.plot(
            *(gamma, first.residual_plain.sel(at), "s"),
            color=PALETTE[1],
            markerfacecolor="none",
            markersize=7,
            label="without skew",
        )
        ax.set(xlabel="γ", xlim=(0, 1))
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("V of the last layer")
    drawing.legend(axes[-1])
    return made


@style()
def contributions(data: xr.Dataset) -> Figure:
    """What each layer adds to the tangent kernel under both rules."""
    caption = (
        "Contribution of each layer's biases (blue) and weights (orange) to the last tangent kernel over its mean, "
        "with learning rates by the equivalence principle (solid) and the same for all layers (dashed). Look that the "
        "solid lines are level."
    )
    names = data.rated.values
    made, axes = figure([str(n) for n in names], caption=caption)
    for ax, name in zip(axes, names):
        for rule, line in (("equivalent", "-"), ("constant", "--")):
            for of, color in zip(("biases", "weights"), PALETTE):
                y = data.contribution.sel(rated=name, rule=rule, of=of)
                ax.plot(y.rate_layer, y / y.mean(), line, color=color, label=f"{of}, {rule}")
        ax.set(xlabel="layer", ylim=(0, 2.2))
    axes[0].set_ylabel("contribution / mean")
    drawing.legend(axes[-1])
    return made


@style()
def information(data: xr.Dataset) -> Figure:
    """Mutual information of two groups of outputs against depth over width."""
    caption = (
        "Mutual information of two halves of the outputs at initialisation against depth over width, in units of the "
        "ratio at which its series to third order is largest (dotted): exact for a lognormal metric (solid) and the "
        "series (dashed). Look that the series' maximum is where it stops being a guide: the exact curve has none."
    )
    made, (ax,) = figure(caption=caption)
    labels = []
    for outputs, color in zip(data.outputs.values, PALETTE):
        part = data.sel(outputs=outputs)
        ax.plot(part.ratio, part.information, color=color)
        kept = part.series.values > 0
        ax.plot(part.ratio[kept], part.series[kept], "--", color=color)
        labels.append((float(part.information[-1]), f"{outputs} outputs", color))
    ax.axvline(1, color=INK, linewidth=1, linestyle=":")
    ax.set(xscale="log", yscale="log", xlabel="depth / width, over the series' optimum")
    ax.set_ylabel("information (nat)")
    ax.set_ylim(bottom=float(np.nanmin(data.information)) / 2)
    drawing.end_labels(ax, labels)
    return made
