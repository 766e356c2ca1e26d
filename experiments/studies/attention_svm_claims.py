"""What the study of attention as a support vector machine claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools
import math

import xarray as xr

from experiments.claims import Claim, at_least, at_most, listed, over_seeds, within
from experiments.judges import as_lost, completed

TRAINED = ("W", "K, Q", "K, Q, no decay")
SOURCE = "Tarzanagh et al. 2023"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(completed(as_lost(data), "feasible_dim", (1, 2, 8)), "trained", TRAINED)
    return [
        *_direction_claims(data),
        *_layer_claims(data),
        *_selection_claims(data),
        *_solution_claims(data),
    ]


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if not 0 <= share <= 1:
        return 0.0, 1.0
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _direction_claims(data: xr.Dataset) -> list[Claim]:
    end = data.correlation.isel(step=-1, drop=True)
    made = []
    for number, trained, norm in ((1, "W", "Frobenius"), (2, "K, Q", "nuclear")):
        other = "nuclear" if norm == "Frobenius" else "Frobenius"
        for what in (norm, other):
            made.append(
                over_seeds(
                    at_least,
                    end.sel(trained=trained, norm=what, drop=True),
                    "mean",
                    name=f"{number} {trained}, {what}",
                    source=f"{SOURCE}, Thm 2" if number == 1 else f"{SOURCE}, Thm 1",
                    statement=f"correlation of the trained direction with the {what} solution, mean over seeds",
                    bound=0.99,
                    control=what == other,
                )
            )
    bare = end.sel(trained="K, Q, no decay", norm="nuclear", drop=True)
    made.append(
        over_seeds(
            at_least,
            bare,
            name="2 K, Q, nuclear, no decay",
            source=f"{SOURCE}, Thm 1",
            statement="every seed, without the authors' weight decay of 2.2e-16, gradients exact beyond underflow: "
            "correlation of the trained direction with the nuclear solution",
            bound=0.99,
        )
    )
    return made


def _layer_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    for trained in ("W", "K, Q"):
        part = data.largest_weight.sel(trained=trained, drop=True)
        for moment in ("end", "step 10"):
            made.append(
                over_seeds(
                    at_least,
                    part.sel(moment=moment, drop=True),
                    name=f"3 saturation, {trained}" + ("" if moment == "end" else ", step 10"),
                    source=SOURCE,
                    statement=f"largest attention weight, mean of the examples, {moment}",
                    bound=0.999,
                    control=moment != "end",
                )
            )
    counted = (data.singular > 0.01).where(data.singular.notnull()).sum("rank", skipna=False)
    for trained in ("K, Q", "W"):
        made.append(
            over_seeds(
                at_most,
                counted.sel(trained=trained, drop=True),
                "mean",
                name=f"5 low rank, {trained}",
                source=f"{SOURCE}, Thm 1",
                statement="singular values above 1 % of the largest, mean over seeds",
                bound=4.0,
                control=trained == "W",
                reads=(data.singular.sel(trained=trained),),
            )
        )
    return made


def _selection_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    zero = "from W = 0 on orthonormal tokens"
    for found, words in (
        (data.optimal.sel(trained="W", drop=True), ""),
        (data.optimal_orthonormal, zero),
    ):
        share = float(found.mean(skipna=False))
        made.append(
            within(
                "4 local optima" + (f", {words}" if words else ""),
                f"{SOURCE}, Thm 3",
                "share of seeds whose selected tokens are all the best ones (Wilson interval)"
                + (f", {words}" if words else ""),
                share,
                0.3,
                0.9,
                interval=wilson(share, found.size),
                control=bool(words),
                reads=(found,),
            )
        )
    for dim in (8, 1, 2):
        found = data.feasible.sel(feasible_dim=dim, drop=True)
        share = float(found.mean(skipna=False))
        made.append(
            at_least(
                f"6 separable, dimension {dim}",
                f"{SOURCE}, Thm 5",
                "share of draws in which a matrix separates the best tokens (Wilson interval)",
                share,
                0.95,
                interval=wilson(share, found.size),
                control=dim != 8,
                reads=(found,),
            )
        )
    return made


def _solution_claims(data: xr.Dataset) -> list[Claim]:
    # Every solution of every layer: the seeds stand for all of them.
    slack = data.slack.min(("trained", "norm"), skipna=False)
    solved = functools.partial(over_seeds, source="derived here: dual certificates")
    return [
        *[
            solved(
                at_least,
                slack.sel(selected=tokens, drop=True),
                name="7 constraints" + ("" if tokens == "own" else ", one token swapped"),
                statement="smallest constraint of a solution"
                + ("" if tokens == "own" else ", of the constraints with another token selected"),
                bound=1 - 1e-6,
                control=tokens != "own",
            )
            for tokens in ("own", "one swapped")
        ],
        solved(
            at_most,
            data.gap.max(("trained", "norm"), skipna=False),
            name="7 gap",
            statement="largest relative gap between a solution and its dual bound",
            bound=1e-4,
        ),
    ]
