"""What the study of lottery tickets claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import xarray as xr

from experiments.claims import Claim, at_least, listed, over_seeds
from experiments.judges import as_lost, completed

ROUNDS = (0, 6, 12, 16)
NETS = ("ticket", "new weights", "random mask")
MASKS = (*NETS[:2], "random masks", "other random masks")
PAPER, OURS = "Frankle & Carbin 2019", "ours"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data: paired differences of means over seeds, two standard errors.

    Rows with "control" in their names must fail.
    """
    data = completed(as_lost(data), "round", ROUNDS)

    def net(name, count, budget):
        return data.accuracy.sel({"net": name, "round": count, "budget": budget}, drop=True)

    def less(other, count, budget, one="ticket"):
        return net(one, count, budget) - net(other, count, budget)

    def dense(one, count, budget):
        return net(one, count, budget) - net("ticket", 0, budget)

    def kernel(of, one, other):
        part = data[of].sel(round=12, drop=True)
        return part.sel(mask=one, drop=True) - part.sel(mask=other, drop=True)

    _, new, random = NETS
    *_, several, others = MASKS
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
            (less(random, 0, budget, one=new), f"4 control, dense, {budget}", PAPER, 0.02, "the same without pruning"),
        )],
        (gap["early"], "3 faster than new weights", PAPER, 0.2,
         "accuracy at the early budget, ticket after 12 rounds less the same mask with new weights"),
        (less(new, 0, "early"), "3 control, dense", PAPER, 0.2, "the same without pruning"),
        (dense("ticket", 6, "early"), "3 faster than dense", PAPER, 0.0,
         "accuracy at the early budget, ticket after 6 rounds less the dense network"),
        (gap["short"] - gap["long"], "5 longer training shrinks the gap", OURS, 0.0,
         "ticket less new weights after 12 rounds: difference at the short budget less that at the long one"),
        (kernel("kept", "ticket", several), "6 tickets keep the kernel", OURS, 0.02,
         "alignment with the dense kernel before training, 12 rounds: ticket less random masks"),
        (kernel("kept", several, others), "6 control, random masks twice", OURS, 0.02,
         "the same, random masks less other ones"),
        (kernel("kept", "ticket", new), "7 by their weights", OURS, 0.02,
         "alignment with the dense kernel before training, 12 rounds: ticket less new weights"),
        (kernel("target", "ticket", several), "8 towards the labels", OURS, 0.02,
         "alignment with the labels before training, 12 rounds: ticket less random masks"),
        (kernel("target", several, others), "8 control, random masks twice", OURS, 0.02,
         "the same, random masks less other ones"),
    ]
    # fmt: on
    keys = ("name", "source", "bound", "statement")
    return [
        over_seeds(
            at_least, values, "mean", control="control" in words[0], **dict(zip(keys, words))
        )
        for values, *words in rows
    ]
