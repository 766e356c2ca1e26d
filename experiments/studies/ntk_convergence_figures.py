"""The figures of `ntk_convergence`: the limit kernel and its predictions drawn over finite networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style

BAND = 1.2815515655446004  # 10th and 90th percentile of the normal distribution, in deviations


def _angle_ticks(ax) -> None:
    ax.set_xticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
    ax.set_xlabel("angle of x")


@style()
def kernel_on_the_circle(data: xr.Dataset) -> Figure:
    """The row of the kernel before and after training, narrow and wide networks."""
    caption = (
        "Tangent kernel Θ(x₀, x) for x₀ = (1, 0) and x on the unit circle, one line an initialisation, before "
        "training and after it. Dashed: the limit kernel. Look that the lines of wide networks lie closer to the "
        "dashes, and that training inflates the kernel of narrow networks only."
    )
    widths = data.drift_width.values[[0, -1]]
    made, axes = figure([f"width {n}" for n in widths], caption=caption)
    for ax, width in zip(axes, widths):
        rows = data.drift_kernel.sel(drift_width=width)
        for moment, color, text in zip(("start", "end"), PALETTE, ("before", "after")):
            lines = rows.sel(moment=moment).values
            ax.plot(data.angle, lines.T, color=color, linewidth=0.8, alpha=0.7)
            ax.plot([], [], color=color, label=f"{text} training")
        limit = data.limit_kernel.sel(start_inputs="circle")
        ax.plot(data.angle, limit, color=INK, linestyle=DASHED, label="limit", zorder=4)
        _angle_ticks(ax)
    axes[0].set_ylabel("Θ(x₀, x)")
    drawing.legend(axes[-1])
    return made


@style()
def convergence(measured: dict[str, xr.DataArray], fit: Callable) -> Figure:
    """Distance from the limit and change in training against width, with fitted slopes."""
    caption = (
        "RMS distance of a row of the tangent kernel from its limit at initialisation, and its RMS change in "
        "training, against width: median over seeds with a band of their range, fitted power laws (thin). Dashed: "
        "slope −1/2 through the first. Look that distances fall with slope −1/2 and the change faster."
    )
    made, (ax,) = figure(caption=caption)
    labels, widths = [], []
    for number, ((name, values), color) in enumerate(zip(measured.items(), PALETTE)):
        seed, width = values.dims
        drawing.curve(ax, values.rename({seed: "seed"}), width, color)
        law, n = fit(values), values[width].values
        ax.plot(n, law.prefactor * n**law.exponent, color=color, linewidth=0.8)
        labels.append(
            (
                law.prefactor * n[-1] ** law.exponent,
                f"{name}: {drawing.signed(law.exponent)}",
                color,
            )
        )
        widths = max(widths, list(n), key=len)
        if number == 0:
            middle = np.exp(np.log(values).mean(seed)).values
            ax.plot(
                n, drawing.slope_line(n, middle, -0.5), color=INK, linestyle=DASHED, linewidth=1
            )
    ax.set(yscale="log", xlabel="width", ylabel="RMS of the row")
    drawing.width_ticks(ax, np.array(widths))
    drawing.log_ticks(ax.yaxis)
    drawing.end_labels(ax, labels)
    return made


@style()
def gaussian_limit(data: xr.Dataset) -> Figure:
    """Outputs of trained networks on the circle over the percentiles of the limit."""
    caption = (
        "Outputs on the circle of networks trained on four points (dots): 10th, 50th and 90th percentile over "
        "initialisations (colour) and of the limit, a Gaussian process with known mean and covariance (dashed). Look "
        "that the band of wide networks has the dashed ends."
    )
    widths = data.ensemble_width.values
    made, axes = figure([f"width {n}" for n in widths], caption=caption)
    angle, mean, sd = data.ensemble_angle, data.predicted_mean, data.predicted_sd
    for ax, width in zip(axes, widths):
        outputs = data.outputs.sel(ensemble_width=width)
        low, middle, high = outputs.quantile([0.1, 0.5, 0.9], "ensemble_seed").values
        ax.fill_between(angle, low, high, color=PALETTE[0], alpha=0.2, linewidth=0)
        ax.plot(angle, middle, color=PALETTE[0], label="networks")
        for shift, text in ((-BAND, None), (0, "limit"), (BAND, None)):
            ax.plot(angle, mean + shift * sd, color=INK, linestyle=DASHED, linewidth=1, label=text)
        ax.plot(data.train_angle, data.target, "o", color=PALETTE[1], label="training points")
        _angle_ticks(ax)
    axes[0].set_ylabel("output")
    drawing.legend(axes[-1])
    return made


@style()
def components(data: xr.Dataset, predicted: xr.DataArray) -> Figure:
    """What is left along the component and what moved off it, over time."""
    caption = (
        "Training towards f₀ + 0.5 f⁽²⁾, f⁽²⁾ the second principal component of the limit kernel. Left of each pair: "
        "what is left along f⁽²⁾ (dashed: 0.5 exp(−λ₂ t)); right: movement off it, zero in the limit. Look that wide "
        "networks follow the dashes and narrow ones, whose kernel inflates, are faster. Bands span the seeds."
    )
    names = data.component_inputs.values
    titles = [f"{name}: {what}" for name in names for what in ("along f⁽²⁾", "off f⁽²⁾")]
    made, axes = figure(titles, caption=caption, columns=2, sharey=False)
    for row, name in enumerate(names):
        part = data.sel(component_inputs=name)
        for ax, quantity in zip(axes[2 * row :], ("along", "off")):
            lines = (
                part[quantity].assign_coords(chunk=part.time.values).rename(component_seed="seed")
            )
            for width, color in drawing.sequential(part.component_width.values).items():
                drawing.curve(
                    ax, lines.sel(component_width=width), "chunk", color, label=f"{width}"
                )
            ax.set_xlabel("time")
        theory = predicted.sel(component_inputs=name)
        axes[2 * row].plot(part.time, theory, color=INK, linestyle=DASHED, label="limit")
        axes[2 * row].set_ylabel("RMS of the output")
        axes[2 * row + 1].axhline(0, color=INK, linestyle=DASHED, linewidth=1)
    drawing.legend(axes[-1], "width")
    return made
