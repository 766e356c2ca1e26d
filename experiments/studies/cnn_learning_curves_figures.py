"""The figures of `cnn_learning_curves`: exponents of theory drawn over eigenvalues and test errors."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.fits import power_law
from experiments.plots import drawing
from experiments.plots.drawing import DASHED, INK, PALETTE, figure, style
from experiments.studies.cnn_learning_curves_claims import (
    CASES,
    SMOOTHNESS,
    error_of,
    manifold_slope,
)
from limits import eigenlearning


@style()
def sectors(data: xr.Dataset) -> Figure:
    """Eigenvalues of each sector against the wavenumber."""
    caption = (
        "Eigenvalues of wide CNNs with two hidden layers on two circles (patches of two pixels), against the "
        "wavenumber k: modes of one patch and of both (dots). Dashed: slopes 2 nu + 1, 2 nu + 2. Look at the "
        "steeper fall of the modes that need both patches; with one hidden layer they are not there at all."
    )
    titles = {"ntk": "NTK, ν = 1/2", "nngp": "NNGP, ν = 3/2"}
    made, axes = figure(list(titles.values()), caption=caption, sharey=False)
    k = data.wavenumber.values
    for ax, (kind, nu) in zip(axes, SMOOTHNESS.items()):
        labels = []
        for color, name, d in zip(PALETTE, ("one_patch", "two_patches"), (1, 2)):
            values = data[name].sel(kind=kind, layers=2).values
            ax.plot(k, values, "o", color=color, markersize=3)
            line = drawing.slope_line(k, values, -(2 * nu + d))
            ax.plot(k, line, color=INK, linewidth=1, linestyle=DASHED)
            labels.append(
                (
                    values[-1],
                    f"{name.replace('_', ' ')}\nslope {drawing.signed(-2 * nu - d)}",
                    color,
                )
            )
        ax.set(xscale="log", yscale="log", xlabel="wavenumber k")
        drawing.log_ticks(ax.xaxis)
        drawing.end_labels(ax, labels)
    axes[0].set_ylabel("eigenvalue")
    return made


@style()
def learning_curves(data: xr.Dataset) -> Figure:
    """Test error of each teacher and student, its prediction, and the slope of theory."""
    caption = (
        "Test error of ridgeless regression with the student's kernel on Gaussian functions of the teacher's (dots,"
        " median and range over seeds), the prediction from the student's spectrum (lines), and the exponents of "
        "theory (dashed). A teacher that sees one patch at a time is learnt fast even by a student that sees four; "
        "one that sees four at once curses every student."
    )
    made, axes = figure(["one and two patches", "four patches"], caption=caption, panel=(3.6, 3.0))
    x = data["sample"].values
    colors = dict(zip(CASES, PALETTE))
    for ax, wanted in zip(axes, ((1, 2), (4,))):
        for case, (patches, teacher, student) in CASES.items():
            if patches not in wanted:
                continue
            error, color = error_of(data, case), colors[case]
            middle = error.median("curve_seed").values
            ends = middle - error.min("curve_seed").values, error.max("curve_seed").values - middle
            rate = eigenlearning.learning_exponent(teacher, student)
            name = f"{teacher} by {student}" if wanted == (4,) else case.replace("d = ", "")
            ax.errorbar(
                x, middle, ends, fmt="o", color=color, elinewidth=1, label=f"{name}: {rate:.2f}"
            )
            ax.plot(x, error_of(data, case, "predicted"), color=color, linewidth=1)
            ax.plot(
                x, drawing.slope_line(x, middle, -rate), color=INK, linewidth=0.8, linestyle=DASHED
            )
        ax.set(xscale="log", yscale="log", xlabel="samples")
        ax.set_xticks(x, [f"{n}" for n in x])
        ax.minorticks_off()
        ax.legend(loc="lower left", title="d of teacher by student: β")
    low = min(float(data[f"error_{patches}"].min()) for patches in (1, 2, 4))
    axes[0].set_ylim(bottom=low / 20)
    axes[0].set_ylabel("test error")
    return made


@style()
def dimensions(data: xr.Dataset) -> Figure:
    """Learning curves and their exponents against the dimension of the data."""
    caption = (
        "Left: test error of a fully connected kernel on rough Gaussian functions, data on curved tori of d "
        "dimensions in inputs of 16 and more (marks; median over seeds; dashed: slope -1/d). Right: exponents "
        "against the dimension that neighbours measure; line: 1/d; star: images. Look that the number of "
        "coordinates does not matter."
    )
    made, (left, right) = figure(
        ["learning curves", "exponents"], caption=caption, sharey=False, panel=(3.4, 2.9)
    )
    x = data.manifold_sample.values
    for color, d in zip(PALETTE, data.dimension.values):
        for marker, a in zip("os^", data.ambient.values):
            line = data.manifold_error.sel(dimension=d, ambient=a).transpose("manifold_seed", ...)
            middle, slope = line.median("manifold_seed").values, manifold_slope(data, d, a)
            label = f"d = {d}" if marker == "o" else None
            left.plot(x, middle, marker, color=color, mfc="none", label=label)
            left.plot(
                x, drawing.slope_line(x, middle, -1 / d), color=INK, linewidth=0.8, linestyle=DASHED
            )
            seen = float(data.measured_dimension.sel(dimension=d, ambient=a).mean())
            right.plot(seen, -slope, marker, color=color, mfc="none")
    left.set(xscale="log", yscale="log", xlabel="samples", ylabel="test error")
    left.set_xticks(x, [f"{n}" for n in x])
    left.minorticks_off()
    left.set_ylim(bottom=left.get_ylim()[0] / 2)
    left.legend(loc="lower left")
    seen, law = (
        float(data.image_dimension[0]),
        power_law(data.image_sample, data.image_error.isel(get=0).values),
    )
    right.plot(seen, -law.exponent, "*", color=INK, markersize=9, label="images")
    fine = np.geomspace(0.9, max(seen, 4) * 1.2, 50)
    right.plot(fine, 1 / fine, color=INK, linewidth=1, linestyle=DASHED, label="1 / d")
    right.set(
        xscale="log", yscale="log", xlabel="measured dimension of the data", ylabel="exponent β"
    )
    drawing.log_ticks(right.xaxis)
    drawing.log_ticks(right.yaxis)
    right.legend(loc="lower left")
    return made
