"""What the study of connectivity claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from experiments.claims import Claim, at_least, at_most, listed, over_seeds
from experiments.judges import as_lost, completed
from limits import linear_rank

RANKS = (1, 2, 5, 10, 20)
PAPER, OURS = "Liu et al. 2023", "derived here (limits.linear_rank)"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data; rows with "control" in their names must fail."""
    data = completed(as_lost(data), "rank", RANKS)
    keys = ("name", "source", "bound", "statement")
    return [
        over_seeds(judge, values, by, control="control" in words[0], **dict(zip(keys, words)))
        for judge, by, values, *words in [*_linear(data), *_networks(data)]
    ]


def _linear(data: xr.Dataset) -> list[tuple]:
    start = {str(name): data.sel(start=name, drop=True) for name in data.start.values}
    ka = {name: part.alignment for name, part in start.items()}
    plain, closed, gauss = ka["zero readout"], start["zero readout"].closed, ka["Gaussian spectrum"]

    def gap(one, other, ranks=RANKS):
        return abs(one - other).sel(rank=list(ranks)).max("rank", skipna=False)

    def ratio(values, high, low):
        return values.sel(rank=high, drop=True) / values.sel(rank=low, drop=True)

    def rise(values, low):
        return values.sel(rank=20, drop=True) - values.sel(rank=low, drop=True)

    def formula(overlap):
        sizes = {"weight_norm": np.geomspace(0.05, 200, 20) ** 0.5, "target_norm": 1.0}
        found = linear_rank.laziness(np.arange(1, 21)[:, None], 20, overlap=overlap, **sizes)
        return [np.diff(found.kernel_alignment, axis=0).min()]

    moved, standard = start["zero readout"].moved, start["standard readout"]
    mean = moved.mean("seed", skipna=False).sel(rank=list(RANKS[1:]))
    order = [stats.spearmanr(RANKS[1:], mean).statistic]
    one = {name: ka[name].sel(rank=1, drop=True) for name in ("aligned task", "zero readout")}
    middle = [each.mean("seed", skipna=False) for each in (gauss, data.closed_spread, closed)]
    middle[1] = middle[1].sel(start="Gaussian spectrum", drop=True)
    spread, itself = ([gap(middle[0], other, RANKS[2:])] for other in middle[1:])
    # fmt: off
    return [
        (at_most, "worst", gap(plain, closed, RANKS[2:]), "1 closed form", OURS, 0.005,
         "kernel alignment, ranks 5 to 20: largest difference from the closed form of a readout that starts at 0"),
        (at_most, "worst", gap(standard.alignment, closed, RANKS[2:]), "1 control, standard readout", OURS, 0.005,
         "the same for readouts that start at size 1"),
        (at_least, "mean", rise(plain, 5), "2 higher rank is lazier", PAPER, 0.15,
         "kernel alignment of rank 20 less that of rank 5"),
        (at_least, "mean", rise(ka["aligned task"], 1), "2 control, aligned tasks", PAPER, 0.15,
         "kernel alignment of rank 20 less that of rank 1, weights aligned with the task"),
        (at_least, "worst", formula(None), "2 at every size", OURS, 0.0,
         "formula, mean of tasks: smallest rise of kernel alignment to the next rank, d = 20, F^2/b from 0.05 to 200"),
        (at_least, "worst", formula(1.0), "2 control, formula of aligned tasks", OURS, 0.0, "the same for c = 1"),
        (at_least, "worst", one["aligned task"], "3 aligned low rank is lazy", PAPER, 0.95,
         "kernel alignment of rank 1 in the direction of the task"),
        (at_least, "worst", one["zero readout"], "3 control, random direction", PAPER, 0.95,
         "kernel alignment of rank 1 in a random direction"),
        (at_least, "mean", ratio(moved, 2, 20), "4 low rank moves further", OURS, 2.0,
         "distance of the weights from the start, rank 2 over rank 20"),
        (at_least, "mean", ratio(standard.moved, 2, 20), "4 control, standard readout", OURS, 2.0,
         "the same for readouts that start at size 1"),
        (at_most, "worst", order, "4 with every rank", OURS, -1 + 1e-9,
         "rank correlation of the mean distance and the rank, 2 to 20"),
        (at_most, "worst", gap(ka["both larger"], plain, RANKS[2:]), "5 only F^2/b matters", OURS, 0.001,
         "ranks 5 to 20: largest change of kernel alignment where F^2 and b are four times larger"),
        (at_most, "worst", gap(ka["weights larger"], plain, RANKS[2:]), "5 control, F^2 alone", OURS, 0.001,
         "ranks 5 to 20: largest change of kernel alignment where F^2 is four times larger"),
        (at_least, "mean", (plain - gauss).sel(rank=20, drop=True), "6 isotropy counts", OURS, 0.1,
         "kernel alignment at full rank, equal singular values less Gaussian ones"),
        (at_most, "worst", spread, "6 participation is the rank", OURS, 0.05,
         "mean kernel alignment of Gaussian ones, ranks 5 to 20: largest difference from the formula at participation"),
        (at_most, "worst", itself, "6 control, rank itself", OURS, 0.05, "the same from the formula at the rank"),
        (at_least, "mean", rise(standard.features, 1), "8 control, linear networks, standard readout", PAPER, 0.0,
         "representation alignment of rank 20 less that of rank 1, linear networks"),
    ]
    # fmt: on


def _networks(data: xr.Dataset) -> list[tuple]:
    rows = []
    for task in data.task.values:
        part, words = data.sel(task=task, drop=True), str(task).replace("_", " ")
        low, full = (part.isel(net_rank=place, drop=True) for place in (0, -1))
        half, ka = full.sizes["net_seed"] // 2, full.net_alignment
        halves = ka.values[:half] - ka.values[half : 2 * half]
        # fmt: off
        rows += [
            (at_least, "mean", ka - low.net_alignment, f"7 recurrent, {words}", PAPER, 0.2,
             "kernel alignment of the recurrent weights, full rank less rank 1"),
            (at_least, "mean", halves, f"7 control, {words}, full rank twice", PAPER, 0.2,
             "the same, half of the seeds of full rank less the other half"),
            (at_least, "mean", full.net_features - low.net_features, f"8 features, {words}", PAPER, 0.0,
             "representation alignment, full rank less rank 1"),
            (at_least, "worst", part.net_accuracy, f"9 trained, {words}", PAPER, 0.95, "test accuracy, all networks"),
        ]
        # fmt: on
    return rows
