"""What the study of large steps claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

SOURCE, OURS = "arXiv:2412.08424", "derived here (limits.perceptron)"
PLAIN, AT_N, NORMALISED = range(3)


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(completed(as_lost(data), "pair", ("3 vs 8",)), "examples", (1000,))
    return [
        *_limit_claims(data),
        *_bound_claims(data),
        *_hard_claims(data),
        *_pair_claims(data),
    ]


def slope(steps: xr.DataArray) -> float:
    """Of log(steps) against log(examples), by least squares."""
    return (
        float(np.polyfit(np.log(steps.examples), np.log(steps), 1)[0])
        if steps.notnull().all()
        else np.nan
    )


def _limit_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for name, bound, words in (
        ("large_difference", 0.0, "difference in steps to separation"),
        ("angle", 1e-6, "angle between the weights at separation (rad)"),
    ):
        for first in ("one half", "one"):
            made.append(
                over_seeds(
                    at_most,
                    data[name].sel(first=first, drop=True),
                    "worst" if first == "one half" else "median",
                    name=f"1 {name.replace('_', ' ')}"
                    + ("" if first == "one half" else ", first step whole"),
                    source=SOURCE,
                    statement=f"{words}: step size 1e10 against the perceptron"
                    + ("" if first == "one half" else " whose first step has weights 1"),
                    bound=bound,
                    control=first == "one",
                )
            )
    plain = data.steps.sel(normalised=0, drop=True)
    for low, high in ((1.0, 10.0), (1e4, 1e5)):
        made.append(
            over_seeds(
                within,
                plain.sel(step_size=low, drop=True) / plain.sel(step_size=high, drop=True),
                "median",
                name=f"2 small steps, {low:g} to {high:g}",
                source=OURS,
                statement=f"steps to separation at step size {low:g} over those at {high:g}, median of the sets",
                low=9.0,
                high=11.0,
                control=low > 1,
            )
        )
    return made


def _bound_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for number, normalised in ((3, 0), (6, 1)):
        made.append(
            over_seeds(
                at_most,
                data.ratio.sel(normalised=normalised, drop=True).max("step_size", skipna=False),
                name=f"{number} bound, " + ("normalised" if normalised else "plain"),
                source=OURS,
                statement="largest ratio of steps to their bound over all step sizes",
                bound=1.0,
            )
        )
    wrong = data.hard_wrong.sel(examples=1000, drop=True)
    made.append(
        at_most(
            "3 bound of normalised steps, plain steps",
            OURS,
            "one hard example of 1000, step size 1e8: plain steps over the bound of normalised ones",
            float(wrong),
            1.0,
            control=True,
            reads=(wrong,),
        )
    )
    return made


def _hard_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for method, words in ((PLAIN, "plain, step size 1e8"), (NORMALISED, "normalised, step size n")):
        steps = data.hard_steps.isel(method=method, drop=True)
        made.append(
            within(
                f"5 steps grow with n, {words.partition(',')[0]}",
                SOURCE,
                f"slope of log(steps) in log(n), one hard example of n, {words}",
                slope(steps),
                0.9,
                1.1,
                control=method == NORMALISED,
                reads=(steps,),
            )
        )
    for method, words in ((NORMALISED, "normalised"), (AT_N, "plain")):
        steps = data.hard_steps.isel(method=method, drop=True).sel(examples=1000, drop=True)
        made.append(
            at_most(
                f"6 no factor n, {words}",
                OURS,
                f"one hard example of 1000, {words} steps of size 1000: steps to separation",
                float(steps),
                10.0,
                control=method == AT_N,
                reads=(steps,),
            )
        )
    return made


def _pair_claims(data: xr.Dataset) -> list[Claim]:
    part = data.sel(pair="3 vs 8", drop=True)
    ends = {name: part[name].sel(pair_step_size=[1.0, 1e4]) for name in ("pair_steps", "pair_loss")}
    steps, loss = (values.values for values in ends.values())
    misleads = functools.partial(at_least, source=SOURCE, bound=50.0)
    ratio = data.pair_normalised / data.pair_steps.sel(pair_step_size=1.0, drop=True)
    return [
        misleads(
            "4 fewer steps",
            statement="classes 3 and 8: steps to separation at step size 1 over those at 1e4",
            measured=float(steps[0] / steps[1]),
            reads=(ends["pair_steps"],),
        ),
        misleads(
            "4 higher loss",
            statement="classes 3 and 8: mean loss before separation at step size 1e4 over that at 1",
            measured=float(loss[1] / loss[0]),
            reads=(ends["pair_loss"],),
        ),
        misleads(
            "4 higher loss over the step size",
            statement="the same of the loss divided by the step size",
            measured=float(loss[1] / loss[0]) / 1e4,
            reads=(ends["pair_loss"],),
            control=True,
        ),
        over_seeds(
            at_most,
            ratio,
            name="7 normalised steps are fewer",
            source=OURS,
            statement="pairs of classes, step size 1: normalised steps to separation over plain ones",
            bound=0.35,
        ),
    ]
