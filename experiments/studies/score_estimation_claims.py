"""What the study of score estimation claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, over_seeds, within
from experiments.judges import as_lost, completed

LEVELS = (0.3, 1.0)
SCORES, IMAGES, STEIN = "arXiv:2401.15604", "arXiv:2310.02557", "Stein 1981 (metrics.denoising)"


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(as_lost(data), "noise", LEVELS)
    return [
        *(c for s in LEVELS for c in _flow(data.sel(noise=s), s)),
        *_network(data),
        *_pairs(data),
    ]


def slope(values: xr.DataArray) -> xr.DataArray:
    """Of log(values) in log(examples), by least squares."""
    x = np.log(values.examples) - np.log(values.examples).mean()
    return (np.log(values) * x).sum("examples", skipna=False) / (x**2).sum()


def _claim(judge, values, name, source, statement, control=False, **bounds) -> Claim:
    rest = {"source": source, "statement": statement, "control": control, "reads": values}
    return over_seeds(judge, values, "mean", name=name, **rest, **bounds)


def _flow(data: xr.Dataset, s: float) -> list[Claim]:
    best, end = data.error.min("time", skipna=False), data.error.isel(time=-1)
    gain = (end / best).isel(examples=-1)
    when = data.error.fillna(np.inf).idxmin("time").where(data.error.notnull().all("time"))
    noisy, exact = {"targets": "noisy"}, {"targets": "exact"}
    last = "error at the last time over that at the best time, most examples"
    rate, growth = (
        "slope of log(error at the best time) in log(n)",
        "slope of log(best time) in log(n)",
    )
    rows = [
        (at_least, gain.sel(noisy), "1 early stopping", last, False, {"bound": 5.0}),
        (at_least, gain.sel(exact), "1 early stopping, exact targets", last, True, {"bound": 5.0}),
        (at_most, slope(best.sel(noisy)), "2 rate", rate, False, {"bound": -0.3}),
        (
            at_most,
            slope(end.sel(noisy)),
            "2 rate, at the last time",
            "the same there",
            True,
            {"bound": -0.3},
        ),
        (
            within,
            slope(end.sel(noisy)),
            "3 no rate at the end",
            "the same there",
            False,
            {"low": -0.1, "high": 0.1},
        ),
        (at_least, slope(when.sel(noisy)), "5 later with more", growth, False, {"bound": 0.2}),
    ]
    return [
        _claim(
            judge,
            values,
            f"{name}, s = {s:g}",
            SCORES,
            f"{text}, mean over seeds",
            control,
            **bounds,
        )
        for judge, values, name, text, control, bounds in rows
    ]


def _network(data: xr.Dataset) -> list[Claim]:
    ratio = data.distance.isel(width=-1) / data.distance.isel(width=0)
    text = "distance of a network from the flow of the {} kernel, widest over narrowest"
    return [
        _claim(
            at_most,
            ratio.sel(kernel=k),
            f"4 networks follow the {k}",
            SCORES,
            text.format(k),
            k != "NTK",
            bound=0.6,
        )
        for k in ("NTK", "NNGP")
    ]


def _pairs(data: xr.Dataset) -> list[Claim]:
    few, many = data.isel(images=0), data.isel(images=-1)
    seen, other, linear = "images seen", "other images", "best linear, other images"

    def gap(part, reference=seen):
        return part.risk.sel(of=other, drop=True) - part.risk.sel(of=reference, drop=True)

    agree = "cosine of the outputs of two denoisers of disjoint sets"
    gaps = "error on other images less that on images seen, over the noise"
    rows = [
        (at_least, many.cosine, few.cosine, "6 denoisers agree", IMAGES, agree, 0.9),
        (at_most, few.cosine, many.cosine, "6 memories differ", IMAGES, agree, 0.4),
        (at_most, gap(many), gap(few), "7 many generalise", IMAGES, gaps, 0.07),
        (at_least, gap(few), gap(many), "7 few are memorised", IMAGES, gaps, 0.7),
        (
            at_most,
            gap(many, linear),
            gap(few, linear),
            "8 beats linear",
            IMAGES,
            "error less the best linear one's",
            0.0,
        ),
        (at_most, *many.stein.T, "9 Stein's estimate", STEIN, "its relative error", 0.1),
        (
            at_most,
            *many.homogeneity.T,
            "10 J(y) y = f(y)",
            IMAGES,
            "largest relative difference",
            1e-5,
        ),
        (
            at_most,
            many.asymmetry,
            None,
            "11 J is symmetric",
            IMAGES,
            "antisymmetric over symmetric part",
            0.1,
        ),
    ]
    return [
        _claim(judge, values, name + ", wrong" * control, source, text, control, bound=bound)
        for judge, right, wrong, name, source, text, bound in rows
        for values, control in ((right, False), (wrong, True))
        if values is not None
    ]
