"""The figures of `random_features`: theory drawn over regressions."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import fits
from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, MUTED, PALETTE, figure, style
from limits import eigenlearning


@style()
def more_is_better(data: xr.Dataset) -> Figure:
    """Test and training error against the number of features and of samples, one colour a ridge."""
    caption = (
        "Ridge regression on Gaussian random features: theory (lines) and the mean over trials with its standard "
        "error (dots), one colour a ridge. Left pair against the number of features, right pair of samples, the "
        "other one fixed. Black: the best ridge. Look that small ridges have a peak where features and samples are "
        "as many, and that the black line falls all the way."
    )
    names = [f"{what} error" for what in ("test", "training")]
    made, axes = figure(
        [f"{n}, {s}" for s in ("features", "samples") for n in names],
        caption=caption,
        columns=2,
        sharey=False,
    )
    colors = drawing.sequential(data.rf_ridge.values)
    for number, ax in enumerate(axes):
        sweep, kind = ("features", "samples")[number // 2], ("test", "train")[number % 2]
        part = data.sel(sweep=sweep)
        x = part["count"].values
        fine, curves = _theory(data, sweep, kind)
        for ridge, color, curve in zip(colors, colors.values(), curves):
            line = part.sel(rf_ridge=ridge)
            ax.plot(fine, curve, color=color, label=f"{ridge:g}")
            values = line[f"rf_{kind}"]
            error = fits.standard_error(values, "rf_seed")
            ax.errorbar(x, values.mean("rf_seed"), 2 * error, fmt="o", color=color, elinewidth=1)
        if kind == "test":
            ax.plot(x, part.theory_best, color=INK, label="best")
            ax.plot(x, part.rf_best.mean("rf_seed"), "o", color=INK)
        ax.set(xscale="log", yscale="log", xlabel=f"number of {sweep}")
        ax.set_ylim(bottom=5e-4 if kind == "train" else None)
        drawing.width_ticks(ax, x)
        drawing.log_ticks(ax.yaxis)
    axes[0].set_ylabel("squared error")
    axes[2].set_ylabel("squared error")
    handles, texts = axes[2].get_legend_handles_labels()
    axes[-1].legend(
        handles[::-1], texts[::-1], title="ridge", loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    return made


def _theory(data: xr.Dataset, sweep: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of features or samples, and the error at them, a row for each ridge."""
    l = np.arange(1, data.attrs["modes"] + 1.0) ** -data.attrs["exponent"]
    first, last = data["count"].values[[0, -1]]
    fine = np.union1d(np.geomspace(first, last, 60), data["count"].values)
    sizes = (data.attrs["fixed"], fine) if sweep == "features" else (fine, data.attrs["fixed"])
    options = {"ridge": data.rf_ridge.values[:, None], "noise": data.attrs["noise"]}
    return fine, getattr(eigenlearning.random_features(l, l, *sizes, **options), kind)


@style()
def obligatory(data: xr.Dataset) -> Figure:
    """Training over test error at the best ridge against beta, one panel a noise level, formula over numbers."""
    caption = (
        "Training over test error at the best ridge, against the exponent of the target, one colour an exponent of "
        "the kernel's eigenvalues: full equations with 10^14 modes (dots), the formula (lines). Dashed: where "
        "overfitting becomes obligatory, beta = alpha + alpha (alpha - 1) r. Look that dots are exactly 0 right of "
        "it, and that noise moves it right."
    )
    titles = [f"noise r = {r:g}" for r in data.phase_noise.values]
    made, axes = figure(titles, caption=caption)
    low, high = data.beta.values[[0, -1]]
    fine = np.linspace(low, high, 60)
    for ax, r in zip(axes, data.phase_noise.values):
        for color, a in zip(PALETTE, data.alpha.values):
            line = [eigenlearning.fitting_ratio(float(a), float(b), float(r)) for b in fine]
            ax.plot(fine, line, color=color, label=f"{a:g}")
            ax.plot(
                data.beta, data.ratio.sel(phase_noise=r, alpha=a), "o", color=color, clip_on=False
            )
            edge = a + a * (a - 1) * r
            if low < edge < high:
                ax.axvline(edge, color=color, linewidth=1, linestyle=DASHED)
        ax.set(xlabel="exponent of the target β")
    axes[0].set_ylabel("training error / test error")
    drawing.legend(axes[-1], "α")
    return made


@style()
def images(data: xr.Dataset) -> Figure:
    """Learning curves of images over their predictions."""
    caption = (
        "Test error of kernel ridge regression on held-out images (dots, mean over draws; bars from smallest to "
        "largest) and its prediction from the kernel's spectrum, without a regression (lines), one colour a ridge "
        "(in units of the kernel's diagonal). Dashed grey: predicted for permuted targets, no ridge. Look that "
        "without noise the smallest ridge is best, with noise it is not."
    )
    noises = data.image_noise.values
    made, axes = figure([f"label noise {v:g}" for v in noises], caption=caption, sharey=False)
    x = data.image_count.values
    for ax, noise in zip(axes, noises):
        part = data.sel(image_noise=noise)
        for ridge, color in drawing.sequential(data.image_ridge.values).items():
            values = part.image_test.sel(image_ridge=ridge)
            middle = values.mean("image_seed").values
            ax.plot(x, part.image_predicted.sel(image_ridge=ridge), color=color, label=f"{ridge:g}")
            bars = (
                middle - values.min("image_seed").values,
                values.max("image_seed").values - middle,
            )
            ax.errorbar(x, middle, bars, fmt="o", color=color, elinewidth=1)
        ax.plot(
            x, part.image_permuted.isel(image_ridge=0), color=MUTED, linewidth=1, linestyle=DASHED
        )
        ax.set(xscale="log", yscale="log", xlabel="training images")
        ax.set_xticks(x, [f"{n}" for n in x])
        ax.minorticks_off()
        drawing.log_ticks(ax.yaxis)
    axes[0].set_ylabel("squared error, sum over classes")
    drawing.legend(axes[-1], "ridge")
    return made


@style()
def layers(data: xr.Dataset) -> Figure:
    """Error of a layer's random features against their number, and the variance by norms."""
    caption = (
        "Left: relative RMS error of a layer of sines as random features, of two layers with the first bundled, and"
        " with both (dots, median of seeds; lines of slope -1/2 through them). Right: m times the variance of the "
        "features of e^(iu), e^(|x + w|²) - 1, against the norms of x and w at three angles between them: beyond "
        "norms of 1 no number of features is enough. Look at the slope, and at what the second layer costs."
    )
    made, axes = figure(["error", "variance"], caption=caption, sharey=False, panel=(3.4, 2.9))
    ax, x = axes[0], data.layer_features.values
    rms = data.layer_error.median("bundle_seed")
    for color, bundle in zip(PALETTE, data.bundle.values):
        values = rms.sel(bundle=bundle).values
        ax.plot(x, values, "o", color=color, label=str(bundle))
        ax.plot(x, drawing.slope_line(x, values, -0.5), color=color, linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="random features m", ylabel="RMS error / RMS")
    ax.set_xticks(x, [f"{n}" for n in x])
    ax.minorticks_off()
    drawing.log_ticks(ax.yaxis)
    ax.legend(loc="lower left")
    norms = np.linspace(0.05, 2, 100)
    for color, (text, cosine) in zip(
        PALETTE[3:], (("parallel", 1), ("orthogonal", 0), ("at 120°", -0.5))
    ):
        axes[1].plot(norms, np.expm1(norms**2 * (2 + 2 * cosine)), color=color, label=text)
    axes[1].set(yscale="log", xlabel="norm of x and of w", ylabel="m × variance")
    axes[1].legend(loc="upper left")
    return made
