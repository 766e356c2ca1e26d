"""What the study of Hopfield retrieval claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

PATTERNS = ("clustered", "unclustered")
RAMSAUER, OURS = "Ramsauer et al. 2021", "derived here, after Lucibello & Mezard 2024"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = as_lost(data)
    for dim, wanted in (("beta", (0.5, 1.0)), ("dim", (12, 16, 24)), ("patterns", PATTERNS)):
        data = completed(data, dim, wanted)
    return [*_update_claims(data), *_capacity_claims(data), *_phase_claims(data)]


def threshold(data: xr.Dataset, beta: float) -> xr.DataArray:
    """log(patterns) / dimension over the predicted capacity where the own weight falls through one half."""
    weight = data.own_weight.sel(beta=beta, drop=True)

    def crossing(values):
        if not values.max() > 0.5 > values.min():  # nan: too many patterns to draw
            return np.nan
        return np.interp(-0.5, -values, data.share.values)

    return xr.apply_ufunc(crossing, weight, input_core_dims=[["share"]], vectorize=True)


def steepness(data: xr.Dataset, dim: int) -> xr.DataArray:
    """Fall of the own weight across the capacity, at beta 0.5."""
    part = data.own_weight.sel(beta=0.5, dim=dim, drop=True)
    return (part.sel(share=0.85) - part.sel(share=1.15)).drop_vars("share", errors="ignore")


def growth(log_counts: xr.DataArray) -> xr.DataArray:
    """Slope of the logarithm of a number of patterns against the dimension."""
    d = log_counts.dim - log_counts.dim.mean()
    return (log_counts * d).sum("dim", skipna=False) / (d**2).sum()


def _update_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for number, name, source, statement, bound, wrong in (
        (
            1,
            "energy_rise",
            f"{RAMSAUER}, Thm 1",
            "largest increase of the energy in an update, float64",
            1e-12,
            "softmax at twice beta",
        ),
        (
            2,
            "error_ratio",
            f"{RAMSAUER}, Thm 5, with a constant of our own",
            "largest retrieval error over its bound",
            1.0,
            "twice the separation",
        ),
        (
            7,
            "attention",
            f"{RAMSAUER}, Sec. 2",
            "largest difference of an update from Flax's attention",
            1e-6,
            "another scale",
        ),
    ):
        for variant in ("right", "wrong"):
            control = variant == "wrong"
            made.append(
                over_seeds(
                    at_most,
                    data[name].sel(variant=variant, drop=True),
                    name=f"{number} {name.replace('_', ' ')}" + (f", {wrong}" if control else ""),
                    source=source,
                    statement=statement + (f", {wrong}" if control else ""),
                    bound=bound,
                    control=control,
                )
            )
    return made


def _capacity_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for beta in (0.5, 1.0):
        found = threshold(data.sel(dim=16, drop=True), beta)
        alpha, half = (data[name].sel(beta=beta, drop=True) for name in ("alpha", "alpha_half"))
        for measured, control in ((found, False), (found * alpha / half, True)):
            made.append(
                over_seeds(
                    within,
                    measured,
                    name=f"3 capacity, beta {beta:g}" + (", of half of it" if control else ""),
                    source=OURS,
                    statement="dimension 16: log(patterns) / dimension at which half of the weight is on the own "
                    "pattern, over its prediction" + (" for half the beta" if control else ""),
                    low=0.93,
                    high=1.07,
                    control=control,
                    reads=(alpha, half),
                )
            )
    steep = {dim: steepness(data, dim) for dim in (12, 24)}
    other = steep[12].roll(pattern_seed=1, roll_coords=False)
    for measured, words in (
        (steep[24] / steep[12], "24 over 12"),
        (other / steep[12], "12 over 12"),
    ):
        control = words == "12 over 12"
        made.append(
            at_least(
                f"4 sharper, dimension {words}",
                OURS,
                f"fall of the own weight across the capacity at beta 0.5, dimension {words}, mean over draws"
                + (" (of other patterns)" if control else ""),
                float(measured.mean(skipna=False)),
                1.5,
                control=control,
                reads=(measured,),
            )
        )
    alpha = data.alpha.sel(beta=0.5, drop=True)
    count = threshold(data, 0.5) * alpha * data.dim
    for log_count, words in ((count, "modern"), (np.log(data.hebb_count), "Hebb")):
        made.append(
            over_seeds(
                within,
                growth(log_count) / alpha,
                name=f"5 exponential, {words}",
                source=f"{RAMSAUER}, Thm 3" if words == "modern" else "Hopfield 1982",
                statement="slope of log(patterns held) against the dimension over the predicted capacity, beta 0.5"
                + (", for a memory by Hebb's rule" if words == "Hebb" else ""),
                low=0.9,
                high=1.1,
                control=words == "Hebb",
            )
        )
    return made


def _phase_claims(data: xr.Dataset) -> list[Claim]:
    def at(name, beta, patterns="clustered"):
        return data[name].sel(phase_beta=beta, patterns=patterns, drop=True)

    phase = functools.partial(over_seeds, source=f"{RAMSAUER}, Sec. 2")
    middle = functools.partial(phase, within, low=4.0, high=10.0)
    words = "patterns that take part in a fixed point (median of the patterns)"
    return [
        phase(
            at_least,
            at("participation", 1.0),
            name="6 average of all",
            statement=f"beta 1, of 64: {words}",
            bound=60.0,
        ),
        middle(at("participation", 10.0), name="6 clusters", statement=f"beta 10, of 8: {words}"),
        phase(
            at_least,
            at("inside", 10.0),
            name="6 within the cluster",
            statement="beta 10: weight of the fixed point on the own cluster",
            bound=0.95,
        ),
        phase(
            at_most,
            at("participation", 50.0),
            name="6 single patterns",
            statement=f"beta 50: {words}",
            bound=1.1,
        ),
        middle(
            at("participation", 10.0, "unclustered"),
            name="6 no clusters to find",
            statement=f"beta 10, patterns without clusters: {words}",
            control=True,
        ),
    ]
