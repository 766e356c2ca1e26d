"""What the study of learning-rate transfer claims: criteria P1-P6, fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

import metrics
from experiments.claims import Claim, at_least, at_most, within

NOCI, YANG = "Noci et al. 2024", "Yang & Hu 2021"
# What must not transfer. The standard rule under SGD and cross-entropy is no control: there too large a rate is
# survived (loss rises, gradients shrink, training goes on), which holds the optimum in place up to width 512.
CONTROLS = {("standard", "adam"), ("ntk", "sgd"), ("ntk", "adam")}


def optima(data: xr.Dataset) -> xr.Dataset:
    """Refined optimum of every sweep: log2 of the rate (and each seed's), over optimizer, rule and width."""
    dims = ("optimizer", "parametrization", "width")
    shape = tuple(data.sizes[dim] for dim in dims)
    best, spread = np.empty(shape), np.empty(shape)
    for index in np.ndindex(shape):
        losses = data.sweep_loss.values[index]
        found = metrics.refined_optimum(data.learning_rate.values[index[0]], losses.T)
        best[index], spread[index] = found.log2_rate, found.standard_error
    coordinates = {dim: data[dim] for dim in dims}
    return xr.Dataset({"log2_rate": (dims, best), "standard_error": (dims, spread)}, coordinates)


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    return [
        *_transfer_claims(data),
        *_sharpness_claims(data),
        *_coordinate_claims(data),
    ]


def _transfer_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    best = optima(data)
    for optimizer in data.optimizer.values:
        for rule in data.parametrization.values:
            if rule != "mup" and (rule, optimizer) not in CONTROLS:
                continue
            line = best.sel(optimizer=optimizer, parametrization=rule)
            drift = float(abs(line.log2_rate[-1] - line.log2_rate[0]))
            error = float(np.hypot(line.standard_error[-1], line.standard_error[0]))
            widths = f"{data.width.values[0]} to {data.width.values[-1]}"
            made.append(
                at_most(
                    f"P1 transfer, {rule}, {optimizer}",
                    f"{YANG}, Fig. 1; {NOCI}, Fig. 1",
                    f"the best learning rate moves by |log2| from width {widths}",
                    drift,
                    0.5,
                    interval=(max(drift - 2 * error, 0.0), drift + 2 * error),
                    control=rule != "mup",
                )
            )
    return made


def _sharpness_claims(data: xr.Dataset) -> list[Claim]:
    rate = data.trajectory_learning_rate
    scaled = (data.sharpness * rate / 2).mean("trajectory_seed")
    mup, ntk = (scaled.sel(trajectory_parametrization=rule) for rule in ("mup", "ntk"))
    steps = data.sizes["step"]
    late = mup.isel(step=slice(3 * steps // 4, None)).mean("step")
    made = [
        at_most(
            "P2 spread, mup",
            f"{NOCI}, Fig. 2",
            "median over mid-training of (max - min) / mean of sharpness over the widths >= 128",
            _spread(mup),
            0.25,
        )
    ]
    octaves = np.log2(late.trajectory_width.values)
    made.append(
        at_most(
            "P2 slope, mup",
            f"{NOCI}, Fig. 2",
            "late sharpness changes by |slope of its log2| per doubling of the width",
            float(abs(np.polyfit(octaves, np.log2(late.values), 1)[0])),
            0.1,
        )
    )
    made.append(
        within(
            "P3 edge of stability",
            f"{NOCI}, Fig. 2",
            "late sharpness over 2/eta under muP with squared error, the width farthest from 1",
            float(late.values[np.argmax(np.abs(np.log(late.values)))]),
            0.7,
            1.5,
            interval=(float(late.min()), float(late.max())),
        )
    )
    change = abs(ntk.isel(step=-1) / ntk.isel(step=0) - 1)
    made.append(
        at_most(
            "P4 sharpening fades, ntk",
            f"{NOCI}, Sec. 4",
            "relative change of sharpness over training at the largest width over that at the smallest",
            float(change[-1] / change[0]),
            0.25,
        )
    )
    made.append(
        at_most(
            "P4 fades steadily, ntk",
            f"{NOCI}, Sec. 4",
            "largest ratio of that change between a width and the next smaller one",
            float((change.values[1:] / change.values[:-1]).max()),
            1.0,
        )
    )
    for rule, curve in (("mup", mup), ("ntk", ntk)):
        widest = curve.isel(trajectory_width=-1)
        made.append(
            at_least(
                f"P4 sharpening stays, {rule}",
                f"{NOCI}, Sec. 4",
                "final over initial sharpness at the largest width",
                float(widest.isel(step=-1) / widest.isel(step=0)),
                1.5,
                control=rule == "ntk",
            )
        )
    final = data.trajectory_loss.mean("trajectory_seed").isel(step=-1)
    wider = final.sel(trajectory_parametrization="mup").values
    made.append(
        at_most(
            "P5 wider is better, mup",
            f"{NOCI}, Sec. 3",
            "largest ratio of the final loss of a width to that of the next smaller one",
            float((wider[1:] / wider[:-1]).max()),
            1.0,
        )
    )
    return made


def _spread(scaled: xr.DataArray) -> float:
    steps = scaled.sizes["step"]
    middle = scaled.isel(step=slice(steps // 4, 3 * steps // 4))
    smallest = min(128, int(middle.trajectory_width.values[-2]))
    middle = middle.sel(trajectory_width=slice(smallest, None))
    over = [middle.reduce(reduction, "trajectory_width") for reduction in (np.max, np.min, np.mean)]
    return float(((over[0] - over[1]) / over[2]).median())


def _coordinate_claims(data: xr.Dataset) -> list[Claim]:
    if "slope" not in data:
        return []
    made = []
    flat = data.slope_predicted.sel(coordinate_parametrization="mup")
    for rule in data.coordinate_parametrization.values:
        line = data.sel(coordinate_parametrization=rule)
        off = abs(line.slope - line.slope_predicted)
        worst = int(np.argmax(off.values))
        error = np.abs(line.slope_interval.values[worst] - line.slope.values[worst]).max()
        measured = float(off[worst])
        made.append(
            at_most(
                f"P6 coordinates, {rule}",
                f"{YANG}, Thm 3.4",
                "exponent of the change of the layers in width: largest distance from the prediction",
                measured,
                0.15,
                interval=(max(measured - error, 0.0), measured + error),
            )
        )
        if rule != "mup":
            made.append(
                at_most(
                    f"P6 control, {rule} as muP",
                    f"{YANG}, Thm 3.4",
                    "the same distance, from what muP would give",
                    float(abs(line.slope - flat).max()),
                    0.15,
                    control=True,
                )
            )
    return made
