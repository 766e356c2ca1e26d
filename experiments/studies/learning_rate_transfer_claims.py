"""What the study of learning-rate transfer claims: criteria P1-P6, fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

import metrics
from experiments.claims import Claim, Precondition, absent, at_least, at_most, listed, within
from experiments.judges import as_lost, completed, over_seeds

NOCI, YANG = "Noci et al. 2024", "Yang & Hu 2021"
# What must not transfer. The standard rule under SGD and cross-entropy is no control: there too large a rate is
# survived (loss rises, gradients shrink, training goes on), which holds the optimum in place up to width 512.
CONTROLS = {("standard", "adam"), ("ntk", "sgd"), ("ntk", "adam")}


LEARNT = 0.9  # share of its first value below which a loss counts as trained, not as initialised
EDGE = 0.7  # sharpness over 2/eta from which a network counts as at the edge of stability


def optima(data: xr.Dataset) -> xr.Dataset:
    """Refined optimum of every sweep: log2 of the rate (and each seed's), over optimizer, rule and width.

    A rate at which a seed diverges counts as infinitely bad; ``edge`` says why an optimum is none (see
    `metrics.Optimum`).
    """
    dims = ("optimizer", "parametrization", "width")
    shape = tuple(data.sizes[dim] for dim in dims)
    best, spread, edge = np.empty(shape), np.empty(shape), np.empty(shape, object)
    seeds = np.empty((*shape, data.sizes["seed"]))
    for index in np.ndindex(shape):
        losses = data.sweep_loss.values[index]
        found = metrics.refined_optimum(data.learning_rate.values[index[0]], losses.T)
        best[index], spread[index] = found.log2_rate, found.standard_error
        edge[index], seeds[index] = found.edge, found.per_seed
    coordinates = {dim: data[dim] for dim in (*dims, "seed")}
    return xr.Dataset(
        {
            "log2_rate": (dims, best),
            "standard_error": (dims, spread),
            "edge": (dims, edge),
            "per_seed": ((*dims, "seed"), seeds),
        },
        coordinates,
    )


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    return [
        *_transfer_claims(data),
        *_sharpness_claims(data),
        *_coordinate_claims(data),
    ]


def _transfer_claims(data: xr.Dataset) -> list[Claim]:
    best = optima(data)
    return [
        _transfer_claim(data, best, optimizer, rule)
        for optimizer in ("sgd", "adam")
        for rule in ("standard", "ntk", "mup")
        if rule == "mup" or (rule, optimizer) in CONTROLS
    ]


def _transfer_claim(data: xr.Dataset, best: xr.Dataset, optimizer: str, rule: str) -> Claim:
    name = f"P1 transfer, {rule}, {optimizer}"
    source = f"{YANG}, Fig. 1; {NOCI}, Fig. 1"
    low, high = data.width.values[[0, -1]]
    statement = (
        f"the best learning rate of the mean over seeds moves by |log2| from width {low} to {high}; a rate at which a "
        "seed diverges counts as infinitely bad"
    )
    if optimizer not in data.optimizer or rule not in data.parametrization:
        needs, control = (absent(f"sweep of {rule} with {optimizer}"),), rule != "mup"
        return at_most(name, source, statement, np.nan, 0.5, control=control, preconditions=needs)
    line = best.sel(optimizer=optimizer, parametrization=rule, width=[low, high])
    rates = data.learning_rate.sel(optimizer=optimizer).values
    losses = data.sweep_loss.sel(optimizer=optimizer, parametrization=rule, width=[low, high])
    moved, error = _move(rates, losses.transpose("width", "seed", "rate").values)
    drift, step = abs(moved), float(np.diff(np.log2(rates)).max())
    # Beside divergence no parabola can be drawn: the optimum lies within one step of the grid.
    error += step * int((line.edge == "divergence").sum())
    ends = [
        f"{edge} at width {n}"
        for edge, n in zip(line.edge.values, line.width.values)
        if edge not in ("", "divergence")
    ]
    inside = Precondition("inside the grid", not ends, f"the best rate lies at: {', '.join(ends)}")
    return at_most(
        name,
        source,
        statement,
        drift,
        0.5,
        interval=(max(drift - error, 0.0), drift + error) if error >= 0 else None,
        resolve=True,
        control=rule != "mup",
        preconditions=(inside,),
    )


def _move(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """log2 of the best rate at the second width over that at the first, and twice its error; losses (2, seeds, rates).

    The best rate of the losses' mean over seeds, with the jackknife's error: a seed's own optimum is far noisier, and
    the mean of such optima is drawn to the flatter side of the minimum. The same seeds at both widths see the same
    batches, so that they are left out together.
    """

    def move(kept: np.ndarray) -> float:
        first, last = (metrics.refined_optimum(rates, own[kept]).log2_rate for own in losses)
        return last - first

    everyone = np.arange(losses.shape[1])
    if everyone.size < 2:
        return move(everyone), np.nan
    without = np.array([move(np.delete(everyone, seed)) for seed in everyone])
    spread = np.square(without - without.mean()).mean() * (everyone.size - 1)
    return move(everyone), 2 * float(np.sqrt(spread))


def _sharpness_claims(data: xr.Dataset) -> list[Claim]:
    rules = {"trajectory_parametrization": ["mup", "ntk"]}
    data = data[["sharpness", "trajectory_loss", "trajectory_learning_rate"]].reindex(rules)
    scaled = data.sharpness * data.trajectory_learning_rate / 2
    scaled = scaled.mean("trajectory_seed", skipna=False)
    mup, ntk = (scaled.sel(trajectory_parametrization=rule) for rule in ("mup", "ntk"))
    sharpness = {
        rule: data.sharpness.sel(trajectory_parametrization=rule) for rule in ("mup", "ntk")
    }
    return [
        *_edge_claims(mup, sharpness["mup"]),
        *_fading_claims(ntk, sharpness["ntk"]),
        *_stays_claims({"mup": mup, "ntk": ntk}, sharpness),
        _width_claim(data),
    ]


def _edge_claims(mup: xr.DataArray, sharpness: xr.DataArray) -> list[Claim]:
    """What muP's sharpness does at the edge of stability, once it is there."""
    late = mup.isel(step=slice(3 * mup.sizes["step"] // 4, None)).mean("step", skipna=False)
    widths = late.trajectory_width.values
    spread, chosen = _spread(mup)
    octaves = np.log2(widths)
    begins = Precondition(
        "below the edge at first",
        bool((mup.isel(step=0) < 1).all()),
        f"sharpness over 2/eta is {float(mup.isel(step=0).max()):.3g} before training",
    )
    lowest = float(mup.max("step", skipna=False).min(skipna=False))
    reached = Precondition(
        "at the edge", lowest >= EDGE, f"at a width sharpness over 2/eta comes to {lowest:.3g} only"
    )
    options = {"reads": (sharpness,), "preconditions": (begins, reached)}
    return [
        at_most(
            "P2 spread, mup",
            f"{NOCI}, Fig. 2",
            f"median over mid-training of (max - min) / mean of sharpness over the widths {chosen}",
            spread,
            0.25,
            **options,
        ),
        at_most(
            "P2 slope, mup",
            f"{NOCI}, Fig. 2",
            "late sharpness changes by |slope of its log2| per doubling of the width",
            _slope(octaves, np.log2(late.values)),
            0.1,
            **options,
        ),
        within(
            "P3 edge of stability",
            f"{NOCI}, Fig. 2",
            f"late sharpness over 2/eta under muP with squared error, of the widths {_list(widths)} the one farthest "
            "from 1",
            float(late.values[np.argmax(np.abs(np.log(late.values)))]),
            EDGE,
            1.5,
            interval=(float(late.min(skipna=False)), float(late.max(skipna=False))),
            reads=(sharpness,),
            preconditions=(begins, _settled(mup)),
        ),
    ]


def _settled(mup: xr.DataArray) -> Precondition:
    """That sharpness has come to where it stays: between the last two quarters it changes by a fifth at most."""
    quarter = mup.sizes["step"] // 4
    parts = (slice(-2 * quarter, -quarter), slice(-quarter, None))
    before, after = (mup.isel(step=part).mean("step", skipna=False) for part in parts)
    change = float(abs(after / before - 1).max(skipna=False))
    found = f"sharpness still changes by {change:.2g} between the last two quarters of training"
    return Precondition("settled", change <= 0.2, found)


def _fading_claims(ntk: xr.DataArray, sharpness: xr.DataArray) -> list[Claim]:
    change = abs(ntk.isel(step=-1) / ntk.isel(step=0) - 1)
    widths = change.trajectory_width.values
    moved = float(change[0])
    sharpens = Precondition(
        "sharpening", moved >= 0.1, f"sharpness changes by {moved:.2g} at width {widths[0]} too"
    )
    options = {"reads": (sharpness,), "preconditions": (sharpens,)}
    return [
        at_most(
            "P4 sharpening fades, ntk",
            f"{NOCI}, Sec. 4",
            f"relative change of sharpness over training at width {widths[-1]} over that at {widths[0]}",
            float(change[-1] / change[0]),
            0.25,
            **options,
        ),
        at_most(
            "P4 fades steadily, ntk",
            f"{NOCI}, Sec. 4",
            f"largest ratio of that change between a width and the next smaller one of {_list(widths)}",
            (change.values[1:] / change.values[:-1]).max() if len(widths) > 1 else np.nan,
            1.0,
            **options,
        ),
    ]


def _stays_claims(scaled: dict, sharpness: dict) -> list[Claim]:
    made = []
    for rule, curve in scaled.items():
        widest = curve.isel(trajectory_width=-1)
        start = float(widest.isel(step=0))
        room = Precondition(
            "room to sharpen",
            start <= 1 / 1.5,
            f"sharpness over 2/eta is {start:.3g} before training; from 1/1.5 on it cannot grow by 1.5",
        )
        made.append(
            at_least(
                f"P4 sharpening stays, {rule}",
                f"{NOCI}, Sec. 4",
                f"final over initial sharpness at width {int(widest.trajectory_width)}",
                float(widest.isel(step=-1)) / start,
                1.5,
                control=rule == "ntk",
                reads=(sharpness[rule].isel(trajectory_width=-1),),
                preconditions=(room,),
            )
        )
    return made


def _width_claim(data: xr.Dataset) -> Claim:
    curves = data.trajectory_loss.sel(trajectory_parametrization="mup")
    losses = curves.isel(step=-1)
    wider = losses.mean("trajectory_seed", skipna=False)
    left = float((wider / curves.isel(step=0).mean("trajectory_seed", skipna=False)).max())
    trained = Precondition(
        "trained",
        left <= LEARNT,
        f"at a width the loss only falls to {left:.3g} of its first value",
    )
    # Of neighbouring widths the ratio is noisier than what a factor of two gains; the exponent is of all of them.
    widths, x = wider.trajectory_width.values, np.log(wider.trajectory_width.values)
    logs = np.log(losses.transpose("trajectory_width", "trajectory_seed").values)
    return over_seeds(
        at_most,
        np.polyfit(x, logs, 1)[0]
        if len(widths) > 1
        else np.full(losses.trajectory_seed.size, np.nan),
        "mean",
        name="P5 wider is better, mup",
        source=f"{NOCI}, Sec. 3",
        statement=f"exponent of the final loss in the width over {_list(widths)}, mean over seeds",
        bound=0.0,
        reads=(losses,),
        preconditions=(trained,),
    )


def _list(widths) -> str:
    return ", ".join(map(str, widths))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(abs(np.polyfit(x, y, 1)[0])) if np.isfinite(y).all() and len(x) > 1 else np.nan


def _spread(scaled: xr.DataArray) -> tuple[float, str]:
    """The median spread over the widths from 128 on, where there are two, and these widths."""
    steps = scaled.sizes["step"]
    middle = scaled.isel(step=slice(steps // 4, 3 * steps // 4))
    smallest = min(128, int(middle.trajectory_width.values[-2:][0]))
    middle = middle.sel(trajectory_width=slice(smallest, None))
    low, high, mean = (
        getattr(middle, name)("trajectory_width", skipna=False) for name in ("min", "max", "mean")
    )
    return float(((high - low) / mean).median(skipna=False)), _list(middle.trajectory_width.values)


def _coordinate_claims(data: xr.Dataset) -> list[Claim]:
    if "slope" not in data:
        return [
            at_most(
                "P6 coordinates",
                f"{YANG}, Thm 3.4",
                "exponent of the change of the layers in width: largest distance from the prediction",
                np.nan,
                0.15,
                preconditions=(absent("coordinate check"),),
            )
        ]
    data = completed(data, "coordinate_parametrization", ("ntk", "mup"))
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
                reads=(line.slope, line.slope_interval, line.change),
            )
        )
        if rule != "mup":
            made.append(
                at_most(
                    f"P6 control, {rule} as muP",
                    f"{YANG}, Thm 3.4",
                    "the same distance, from what muP would give",
                    float(abs(line.slope - flat).max(skipna=False)),
                    0.15,
                    control=True,
                    reads=(line.slope, line.change),
                )
            )
    return made
