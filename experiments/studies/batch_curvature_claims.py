"""What the study of batch size claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.claims import Claim, absent, at_least, at_most, listed, near, over_seeds, within
from experiments.judges import as_lost

GZR = "Granziol, Zohren & Roberts 2022"
MEASURED = "measured noise"  # of the laws; the others are controls
RANDOM = "largest eigenvalue of random matrices above the transition: largest relative distance of its mean from "
SHARPER = (
    "largest Hessian eigenvalue of batches of 64 less that of all examples, in standard errors"
)
FALLS = "largest eigenvalue at a batch size less that at the next one, in joint standard errors: smallest"
EXCESS = "exponent of the excess over all examples in 1/b, batches of 64 to 512"
SMALLEST = "smallest (most negative) eigenvalue of batches of 16 over that of all examples"
VALID = 0.25  # of the gap
LARGE = (
    "batches whose predicted excess is at most a quarter of the gap below the largest eigenvalue"
)
CLOSE = f"share of seeds and {LARGE}, whose sharpness is within 2 joint standard errors of the law"
SHARE = f"measured over predicted excess over all examples, mean over {LARGE}"
RATES = "exponent in the batch size of the largest learning rate that trains, batches of"
RATIO = "largest rate of SGD over 2 / lambda(B) early in training, batches from 16 on: largest over smallest"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    random = _random(data, "Hessians", 0.01) + _random(data, "gradients", 0.03)
    return [*random, *_sharpness(data), *_laws(data), *_rates(data)]


def predicted_rate(data: xr.Dataset) -> xr.DataArray:
    """2 / lambda(B) early in training, batches drawn with replacement as in training: 1/b = 1/B."""
    top, excess = (data[f"early_{name}"].mean("seed", skipna=False) for name in ("top", "excess"))
    return 2 / (top + excess / data.rate_batch)


def exponents(values: xr.DataArray, x: str, along: str) -> np.ndarray:
    """Slopes of log values against log of a coordinate, one a seed; nan where a value has no logarithm."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(values.transpose(along, ...).values)
    logs[~np.isfinite(logs)] = np.nan
    centred = np.log(values[x].values) - np.log(values[x].values).mean()
    return centred @ logs / (centred @ centred)


def _random(data: xr.Dataset, law: str, bound: float) -> list[Claim]:
    part = data.sel(law=law, spike=[1.5, 3.0])
    reads = part.random_top, part.random_law, part.random_bare
    found, theory, bare = (values.mean("synthetic_seed", skipna=False) for values in reads)
    made = []
    for name, expected in (("the law", theory), ("control, the eigenvalue without noise", bare)):
        off, control = float(abs(found / expected - 1).max(skipna=False)), name != "the law"
        title = f"B1 random {law}, {name}"
        options = {"control": control, "reads": reads}
        made.append(at_most(title, f"{GZR}, theorem 1", RANDOM + name, off, bound, **options))
    return made


def _sharpness(data: xr.Dataset) -> list[Claim]:
    reads = data.measured, data.measured_error, data.top

    def seeds(judge, name, statement, values, by="worst", **options):
        options = {"reads": reads} | options
        return over_seeds(judge, values, by, name=name, source=GZR, statement=statement, **options)

    excess, errors = data.measured - data.top, data.measured_error.transpose("seed", "batch").values
    falls = -np.diff(data.measured.transpose("seed", "batch").values, axis=1)
    falls = (falls / np.hypot(errors[:, :-1], errors[:, 1:])).min(1)
    sharper = (excess / data.measured_error).sel(batch=64)
    power = exponents(excess.sel(batch=slice(64, 512)), "inverse", "batch")
    smallest = data.smallest.sel(smallest_of="batch") / data.smallest.sel(smallest_of="all")
    options = {"target": 1.0, "tolerance": 0.25}
    return [
        seeds(at_least, "B2 batches are sharper", SHARPER, sharper, bound=3.0),
        seeds(at_least, "B2 the smaller the sharper", FALLS, falls, bound=-1.0),
        seeds(near, "B3 the excess is proportional to 1/b", EXCESS, power, "mean", **options),
        seeds(
            *(at_least, "B5 the smallest eigenvalue grows too", SMALLEST, smallest),
            bound=5.0,
            reads=data.smallest,
        ),
    ]


def _laws(data: xr.Dataset) -> list[Claim]:
    made, first = [], data.law_top.sel(kind=MEASURED) - data.top
    # The law is of second order: its relative error is of the order of its excess over the gap below lambda_1.
    valid = first <= VALID * data.gap
    some = bool(valid.any("batch").all())
    needs = () if some else (absent("batch of this kind, of every seed"),)
    for kind in data.kind.values:
        law, control = data.law_top.sel(kind=kind), kind != MEASURED
        reads = data.measured, data.measured_error, law, data.law_error, data.top, data.gap
        options = {"control": control, "reads": reads, "preconditions": needs}
        name = f"{'control' if control else 'law'}, {kind}"
        if kind != "independent gradients":  # what it misses is of the size of the errors
            joint = np.hypot(data.measured_error, data.law_error)
            share = float((abs(data.measured - law) <= 2 * joint).where(valid).mean())
            made.append(at_least(f"B4 errors, {name}", GZR, CLOSE, share, 0.9, **options))
        ratio = ((data.measured - data.top) / (law - data.top)).where(valid, 0)
        ratio = ratio.sum("batch", skipna=False) / valid.sum("batch")
        options |= {"name": f"B4 excess, {name}", "source": GZR, "statement": SHARE}
        made.append(over_seeds(near, ratio, "mean", target=1.0, tolerance=0.25, **options))
    return made


def _rates(data: xr.Dataset) -> list[Claim]:
    made = []
    for name, optimizer, span, low, high in (
        ("B6 SGD, linear rule", "sgd", (1, 4), 0.8, 1.2),
        ("B6 control, Adam", "adam", (1, 4), 0.8, 1.2),
        ("B6 SGD saturates", "sgd", (32, 256), -0.3, 0.3),
        ("B7 Adam, square-root rule", "adam", (1, 256), 0.4, 0.6),
        ("B7 control, SGD", "sgd", (1, 4), 0.4, 0.6),
    ):
        part = data.largest_rate.sel(optimizer=optimizer, rate_batch=slice(*span))
        options = {"low": low, "high": high, "control": "control" in name, "reads": part}
        options |= {"name": name, "source": f"{GZR}, section 5"}
        options["statement"] = f"{RATES} {span[0]} to {span[1]}, {optimizer}"
        made.append(over_seeds(within, exponents(part, *["rate_batch"] * 2), "median", **options))
    ratio = data.largest_rate.sel(optimizer="sgd") / predicted_rate(data)
    ratio = ratio.sel(rate_batch=slice(16, None))
    spread = ratio.max("rate_batch", skipna=False) / ratio.min("rate_batch", skipna=False)
    options = {"name": "B8 rates follow the sharpness of batches", "statement": RATIO, "bound": 2.0}
    options |= {"source": "derived, metrics.batch_curvature"}
    reads = ratio, data.early_top, data.early_excess
    return [*made, over_seeds(at_most, spread, "median", reads=reads, **options)]
