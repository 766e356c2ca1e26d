"""What the study of opposing signals claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

from functools import partial

import xarray as xr

from experiments.claims import (
    Claim,
    Precondition,
    at_least,
    at_most,
    listed,
    near,
    over_seeds,
    within,
)
from experiments.judges import as_lost, completed

ROSENFELD = "Rosenfeld & Risteski 2024"
THEOREM = f"{ROSENFELD}, two-layer linear model"
EDGES = ["R = 3", "R = 4", "α = 20"]  # alpha R > 2 / learning rate
CALM, CONSISTENT, ADAM = "below the edge", "consistent", "Adam"
FLOWS = ["α = 20", "α = 40"]


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(as_lost(data), "setting", [*EDGES, CALM, CONSISTENT, ADAM])
    data = completed(data, "flow", [*FLOWS, CONSISTENT])
    return [*_law_claims(data), *_edge_claims(data), *_planted_claims(data), *_natural_claims(data)]


def _law_claims(data: xr.Dataset) -> list[Claim]:
    law, wrong = (data.sel(flow=names) for names in (FLOWS, [CONSISTENT]))
    end = partial(near, source=THEOREM, target=1.0, tolerance=0.03)
    off = partial(at_most, source=THEOREM, bound=0.03)
    what = "largest distance of α|w₂|² from the logistic law along the flow, over αR"
    ratio = "largest |sharpness / (α|w₂|²) − 1| where |w₂|² ≥ R/2"
    return [
        over_seeds(
            end,
            law.flow_end,
            name="1 sharpness grows to αR",
            statement="sharpness at the end over αR",
        ),
        over_seeds(off, law.flow_off, name="2 logistic law", statement=what),
        over_seeds(
            off,
            wrong.flow_off,
            name="2 logistic law, signals that can be learnt",
            statement=what,
            control=True,
        ),
        over_seeds(off, law.flow_ratio, name="3 the outliers are the sharpness", statement=ratio),
    ]


def _edge_claims(data: xr.Dataset) -> list[Claim]:
    edge, calm, consistent, adam = (
        data.sel(setting=names) for names in (EDGES, [CALM], [CONSISTENT], [ADAM])
    )
    plain = data.sel(setting=EDGES[:1])
    crosses = partial(at_least, source=THEOREM, bound=1.0, statement="largest sharpness × η / 2")
    moves = (
        "correlation of the groups' loss changes, from the crossing to 3 steps after the first rise"
    )
    finds = (
        "share of the outliers found by their losses at the first rise, one group up and one down"
    )
    carries = "share of all |loss changes| at the first rise: "
    stays = partial(
        within,
        source=THEOREM,
        low=0.85,
        high=1.05,
        statement="sharpness × η / 2, mean of the last 100 steps",
    )
    opposed = partial(at_most, source=ROSENFELD, bound=-0.95, statement=moves)
    found = partial(at_least, source=ROSENFELD, statement=finds)
    share = partial(at_least, source=ROSENFELD, bound=0.9)
    spike = partial(
        at_most,
        source=f"{ROSENFELD}, Adam",
        bound=1.2,
        statement="largest loss of the outliers over their first",
    )
    slower = bool((adam.progress.values > plain.progress.values).any())
    matched = Precondition(
        "Adam learns the rest as fast", not slower, f"steps {adam.progress.values.ravel()}" * slower
    )
    return [
        over_seeds(
            partial(at_most, source=THEOREM, bound=2.0),
            abs(edge.crossing - edge.crossing_predicted),
            name="4 crossing",
            statement="|step at which the sharpness reaches 2/η − the predicted one|",
        ),
        over_seeds(crosses, edge.largest, name="4 the edge is crossed"),
        over_seeds(crosses, calm.largest, name="4 the edge is crossed, αR below it", control=True),
        over_seeds(opposed, edge.correlation, name="5 mirror images"),
        over_seeds(
            opposed,
            consistent.correlation,
            name="5 mirror images, signals that can be learnt",
            control=True,
        ),
        over_seeds(found, edge.recall, name="6 found by their losses", bound=0.95),
        over_seeds(
            found,
            consistent.recall,
            name="6 found by their losses, signals that can be learnt",
            bound=0.95,
            control=True,
        ),
        over_seeds(
            share, edge.share, name="7 few move the loss", statement=carries + "2 % outliers"
        ),
        over_seeds(
            share,
            edge.random_share,
            name="7 few move the loss, random ones",
            statement=carries + "2 % of random examples",
            control=True,
        ),
        over_seeds(stays, edge["tail"], name="8 the edge is kept"),
        over_seeds(stays, calm["tail"], name="8 the edge is kept, αR below it", control=True),
        over_seeds(
            spike,
            adam.spike,
            name="13 Adam does not spike",
            reads=(adam.progress, plain.progress),
            preconditions=(matched,),
        ),
        over_seeds(
            spike, plain.spike, name="13 Adam does not spike, gradient descent", control=True
        ),
    ]


def _planted_claims(data: xr.Dataset) -> list[Claim]:
    finds = partial(
        at_least,
        source=ROSENFELD,
        bound=0.9,
        statement="share of the planted images in the two groups found at the largest rise",
    )
    against = partial(
        at_most,
        source=ROSENFELD,
        bound=-0.9,
        statement="cosine of the two groups' gradients at a small rate, mean over training",
    )
    cases = (("", False), (", nothing planted", True), (", no oscillation", True))
    names = ("planted_recall", "unplanted_recall", "calm_recall")
    return [
        *(
            over_seeds(finds, data[name], name=f"9 planted groups{words}", control=control)
            for name, (words, control) in zip(names, cases)
        ),
        over_seeds(against, data.calm_cosine, name="10 opposing gradients"),
        over_seeds(
            against,
            data.other_cosine,
            name="10 opposing gradients, other images of the classes",
            control=True,
        ),
    ]


def _natural_claims(data: xr.Dataset) -> list[Claim]:
    pure = partial(
        at_least,
        source=f"{ROSENFELD}, Fig. 1",
        bound=0.7,
        statement="share of the largest class in a found group of 20, nothing planted",
    )
    later = partial(
        at_least,
        source=ROSENFELD,
        bound=10.0,
        statement="steps by which the first rise comes later (the end of the run counts where it never comes)",
    )
    return [
        over_seeds(pure, data.natural_purity, "mean", name="11 groups of one kind"),
        over_seeds(
            pure,
            data.calm_purity,
            "mean",
            name="11 groups of one kind, no oscillation",
            control=True,
        ),
        *(
            over_seeds(
                later,
                data[f"{name}_step"] - data.rise_step,
                "median",
                name=f"12 without them it is calm{words}",
                control=bool(words),
            )
            for name, words in (("removed", ""), ("random", ", without random ones"))
        ),
    ]
