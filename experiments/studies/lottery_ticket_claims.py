"""What the study of lottery tickets claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import xarray as xr

from experiments.claims import Claim, at_least, over_seeds
from experiments.judges import as_lost, completed

ROUNDS = (0, 6, 12, 16)
NETS = ("ticket", "new weights", "random mask", "another random mask")
PAPER, OURS = "Frankle & Carbin 2019", "ours: tangent kernels"


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data: paired differences of means over seeds, two standard errors.

    Rows with "control" in their names must fail.
    """
    data = completed(as_lost(data), "round", ROUNDS)

    def net(name, count, budget=None, of="accuracy"):
        where = {"net": name, "round": count} | ({"budget": budget} if budget else {})
        return data[of].sel(where, drop=True)

    def less(other, count, budget=None, of="accuracy", one="ticket"):
        return net(one, count, budget, of) - net(other, count, budget, of)

    def dense(one, count, budget):
        return net(one, count, budget) - net("ticket", 0, budget)

    new, random, again = NETS[1:]
    gap = {budget: less(new, 12, budget) for budget in data.budget.values}
    # fmt: off
    rows = [
        *[row for budget in ("short", "long") for row in (
            (dense("ticket", 6, budget), f"1 as good as dense, {budget}", PAPER, -0.01,
             f"accuracy at the {budget} budget, ticket after 6 rounds less the dense network"),
            (dense(random, 12, budget), f"1 control, random mask, {budget}", PAPER, -0.01,
             "random mask after 12 rounds less the dense network"),
            (dense("ticket", 6, budget), f"1 better than dense, {budget}", PAPER, 0.0,
             "ticket after 6 rounds less the dense network"),
            (gap[budget], f"2 its weights matter, {budget}", PAPER, 0.02,
             "ticket after 12 rounds less the same mask with new weights"),
            (less(new, 0, budget), f"2 control, dense, {budget}", PAPER, 0.02, "the same without pruning"),
            (less(random, 16, budget, one=new), f"4 the mask matters, {budget}", PAPER, 0.02,
             "new weights after 16 rounds, mask of the ticket less random mask"),
            (less(again, 16, budget, one=random), f"4 control, two random masks, {budget}", PAPER, 0.02,
             "random mask less another after 16 rounds"),
        )],
        (gap["early"], "3 faster than new weights", PAPER, 0.2,
         "accuracy at the early budget, ticket after 12 rounds less the same mask with new weights"),
        (less(new, 0, "early"), "3 control, dense", PAPER, 0.2, "the same without pruning"),
        (dense("ticket", 6, "early"), "3 faster than dense", PAPER, 0.0,
         "accuracy at the early budget, ticket after 6 rounds less the dense network"),
        (gap["short"] - gap["long"], "5 longer training shrinks the gap", OURS, 0.0,
         "ticket less new weights after 12 rounds: difference at the short budget less that at the long one"),
        (less(random, 12, of="kept"), "6 tickets keep the kernel", OURS, 0.02,
         "alignment with the dense kernel before training, 12 rounds: ticket less random mask"),
        (less(again, 12, of="kept", one=random), "6 control, two random masks", OURS, 0.02,
         "the same, random mask less another"),
        (less(new, 12, of="kept"), "7 by their weights", OURS, 0.02,
         "alignment with the dense kernel before training, 12 rounds: ticket less new weights"),
        (less(random, 12, of="target"), "8 towards the labels", OURS, 0.02,
         "alignment with the labels before training, 12 rounds: ticket less random mask"),
        (less(again, 12, of="target", one=random), "8 control, two random masks", OURS, 0.02,
         "the same, random mask less another"),
    ]
    # fmt: on
    keys = ("name", "source", "bound", "statement")
    return [
        over_seeds(
            at_least, values, "mean", control="control" in words[0], **dict(zip(keys, words))
        )
        for values, *words in rows
    ]
