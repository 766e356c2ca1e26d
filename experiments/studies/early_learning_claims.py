"""What the study of early learning claims: criteria fixed before the run, and their controls.

Two groups were added after a first look: the linear classifier at rate 0.02, when nothing was kept at 0.5, and the
network. Their bounds are those of rate 0.5 but for the network's gain.
"""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

LIU, OURS = "Liu et al. 2020", "derived here (limits.early_learning)"


def crossing(data: xr.Dataset) -> float:
    """Dimension where the share of one step falls through one half, between measured ones; nan if it does not."""
    share = data.step_true.mean("seed", skipna=False)
    if not share[0] > 0.5 > share[-1]:
        return np.nan
    return float(np.exp(np.interp(-0.5, -share, np.log(share.dim))))


def best(data: xr.Dataset, part: str, key: str) -> xr.DataArray:
    """A share at the step of the best test accuracy, of each run."""
    step, test = f"{part}_step", data[f"{part}_test"]
    at = test.fillna(-1).argmax(step)
    return data[f"{part}_{key}"].isel({step: at}).where(test.notnull().all(step)).drop_vars(step)


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(completed(as_lost(data), "strength", (0.0, 3.0)), "linear_dim", (20, 400))
    data = completed(data, "rate", (0.02, 0.5))
    return [*_step_claims(data), *_training_claims(data)]


def _step_claims(data: xr.Dataset) -> list[Claim]:
    made, reads = [], (data.step_true, data.step_theory, data.critical_dim)
    for example in ("mislabelled", "new"):
        told = data.step_theory.sel(example=example, drop=True)
        distance = np.abs(data.step_true.mean("seed", skipna=False) - told)
        made.append(
            at_most(
                f"1 one step, theory of a {example} example",
                OURS,
                "wrong labels predicted as their true class after one step: largest distance of the mean share of "
                f"the seeds from the theory of a {example} example, over all dimensions",
                float(distance.max(skipna=False)),
                0.03,
                control=example == "new",
                reads=reads,
            )
        )
    for labels in ("flipped", "right"):
        told = data.critical_dim.sel(labels=labels).isel(dim=0)
        made.append(
            within(
                f"5 phase boundary, labels {labels}",
                OURS,
                "dimension at which half of the wrong labels are predicted as their true class after one step, over "
                f"its prediction for {labels} labels",
                crossing(data) / float(told),
                0.8,
                1.2,
                control=labels == "right",
                reads=reads,
            )
        )
    return made


def _training_claims(data: xr.Dataset) -> list[Claim]:
    made, kept = [], functools.partial(at_least, bound=0.9)
    low = functools.partial(at_most, bound=0.05)

    def add(name, where, statement, judge, values, control=False):
        statement = f"{where}, mean over seeds: {statement}"
        options = {"source": LIU, "statement": statement, "control": control}
        made.append(over_seeds(judge, values, "mean", name=name, **options))

    for part, rate, dim in (
        ("linear", 0.5, 400),
        ("linear", 0.02, 400),
        ("linear", 0.5, 20),
        ("network", None, None),
    ):
        chosen = {"rate": rate, "linear_dim": dim} if rate else {}
        end = {f"{part}_step": -1}
        first, true, test = (
            [values.sel(chosen | {"strength": strength}, drop=True) for strength in (0.0, 3.0)]
            for values in (
                best(data, part, "true"),
                data[f"{part}_true"].isel(end, drop=True),
                data[f"{part}_test"].isel(end, drop=True),
            )
        )
        name = f"linear, dimension {dim}, rate {rate:g}" if rate else "network"
        where = name + ", after a first look" * (rate != 0.5)
        wrong = "wrong labels predicted as their true class, "
        gain = functools.partial(at_least, bound=0.2 if rate else 0.1)
        few = dim == 20  # fewer dimensions than examples: nothing is memorised
        if (
            not few and rate != 0.02
        ):  # the first step, the best one, has one direction for all rates
            judge = functools.partial(at_least, bound=0.7)
            add(f"2 early, {name}", where, f"{wrong}cross-entropy, best step", judge, first[0])
        add(f"2 memorised, {name}", where, f"{wrong}cross-entropy, end", low, true[0], few)
        if not few:
            add(f"3 kept, {name}", where, f"{wrong}strength 3, end", kept, true[1])
            add(
                f"3 kept, strength 0, {name}", where, f"{wrong}strength 0, end", kept, true[0], True
            )
        told = "test accuracy at the end, strength 3 less strength 0"
        add(f"4 gain, {name}", where, told, gain, test[1] - test[0], few)
    return made
