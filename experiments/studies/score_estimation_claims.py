"""What the study of score estimation claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments import fits
from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

LEVELS = (0.3, 1.0)
RISKS = ("images seen", "other images", "best linear, other images")
SCORES, IMAGES, STEIN = "arXiv:2401.15604", "arXiv:2310.02557", "Stein 1981"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(as_lost(data), "noise", LEVELS)
    flows = [row for s in LEVELS for row in _flow(data.sel(noise=s), f", s = {s:g}")]
    made = []
    for source, name, text, judge, right, wrong in (*flows, *_rest(data)):
        common = {"source": source, "statement": f"{text}, mean over seeds"}
        made.append(over_seeds(judge, right, "mean", name=name, **common))
        if wrong is not None:
            common["control"] = True
            made.append(over_seeds(judge, wrong, "mean", name=f"{name}, wrong", **common))
    return made


def slope(values: xr.DataArray) -> xr.DataArray:
    """Of log(values) in log(examples), by least squares."""
    return fits.slope(np.log(values), np.log(values.examples))


def _flow(data: xr.Dataset, level: str) -> list[tuple]:
    found, exact = (data.error.sel(targets=t, drop=True) for t in ("noisy", "exact"))
    best, end = found.min("time", skipna=False), found.isel(time=-1)
    last = (part.isel(examples=-1) for part in (found, exact))
    gain, idle = (e.isel(time=-1) / e.min("time", skipna=False) for e in last)
    when = found.fillna(np.inf).idxmin("time").where(found.notnull().all("time"))
    ratio = "error at the last time over the least, most examples"
    falls, flat = at(at_most, -0.3), functools.partial(within, low=-0.1, high=0.1)
    rows = [
        ("1 early stopping", ratio, at(at_least, 5.0), gain, idle),
        ("2 rate", "slope of the least error in n", falls, slope(best), slope(end)),
        ("3 no rate at the end", "slope of the last error in n", flat, slope(end), slope(best)),
        ("5 later with more", "slope of the best time in n", at(at_least, 0.2), slope(when), None),
    ]
    return [(SCORES, name + level, *row) for name, *row in rows]


def _rest(data: xr.Dataset) -> list[tuple]:
    ratio = data.distance.isel(width=-1) / data.distance.isel(width=0)
    few, many = data.isel(images=0), data.isel(images=-1)
    seen, other, linear = (data.risk.sel(of=of, drop=True) for of in RISKS)
    (small, large), (worse, better) = ((other - e).isel(images=[0, -1]) for e in (seen, linear))
    alike = "cosine of the outputs of two denoisers of disjoint sets"
    beyond = "error on other images less that on images seen, over the noise"
    linear_too = "error on other images less the best linear denoiser's, over the noise"
    product, odd = "largest relative difference", "antisymmetric over symmetric part of J"
    follow = "4 networks follow the kernel"
    distant = "distance from NTK flow (wrong: NNGP), widest over narrowest"
    return [
        (SCORES, follow, distant, at(at_most, 0.6), *ratio.transpose("kernel", ...)),
        (IMAGES, "6 denoisers agree", alike, at(at_least, 0.9), many.cosine, few.cosine),
        (IMAGES, "6 memories differ", alike, at(at_most, 0.4), few.cosine, many.cosine),
        (IMAGES, "7 many generalise", beyond, at(at_most, 0.07), large, small),
        (IMAGES, "7 few are memorised", beyond, at(at_least, 0.7), small, large),
        (IMAGES, "8 beats linear", linear_too, at(at_most, 0.0), better, worse),
        (STEIN, "9 Stein's estimate", "its relative error", at(at_most, 0.1), *many.stein.T),
        (IMAGES, "10 J(y) y = f(y)", product, at(at_most, 1e-5), *many.homogeneity.T),
        (IMAGES, "11 J is symmetric", odd, at(at_most, 0.1), many.asymmetry, None),
    ]


def at(judge, bound: float):
    """The judge with its bound."""
    return functools.partial(judge, bound=bound)
