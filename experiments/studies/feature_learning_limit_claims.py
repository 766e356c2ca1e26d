"""What the study of feature-learning limits claims: criteria fixed before the run, and their controls."""

from __future__ import annotations

import functools

import numpy as np
import xarray as xr

from experiments.claims import (
    Claim,
    Precondition,
    absent,
    at_least,
    at_most,
    listed,
    near,
    over_seeds,
)
from experiments.judges import as_lost, completed

YANG, PI = "Yang & Hu 2021", "Yang, Santacroce, Hu 2022"
SYSTEMS = ("linear", "tanh", "linear, ntk")
LEARNS, KERNEL, UNKNOWN = "feature learning", "kernel", "diverged"


@listed
def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    data = completed(as_lost(data), "background", (0.0, 1.0))
    return [
        *_dichotomy_claims(data),
        *_convergence_claims(data),
        *_word_claims(data),
        *_few_shot_claims(data),
    ]


def measured_regimes(data: xr.Dataset) -> list[str]:
    """Feature learning where some hidden layer moves by more than n^-0.1, a kernel where all move by less."""
    moves = data.exponent.sel(quantity=data.layer.values).max("quantity", skipna=False)
    return [UNKNOWN if np.isnan(m) else LEARNS if m > -0.1 else KERNEL for m in moves.values]


def _dichotomy_claims(data: xr.Dataset) -> list[Claim]:
    hidden = data.exponent.sel(quantity=data.layer.values)
    predicted = data.predicted.rename(
        layer="quantity"
    )  # rules and layers may come in another order
    off = abs(hidden - predicted).values
    kinds = [str(kind) for kind in data.regime.values]
    wrong = sum(kind != found for kind, found in zip(kinds, measured_regimes(data)))
    swapped = sum(found != KERNEL for found in measured_regimes(data))
    lazy = np.array([kind == KERNEL for kind in kinds])
    slopes = data.exponent.sel(quantity="kernel_distance")
    some = () if lazy.any() else (absent("rule of the kernel regime"),)
    others = () if not lazy.all() else (absent("rule that learns features"),)
    return [
        at_most(
            "D1 exponents",
            f"{YANG}, dynamical dichotomy",
            "exponent in width of the change of the hidden layers: largest distance from the prediction",
            off.max(),
            0.15,
            reads=(hidden, data.predicted),
        ),
        at_most(
            "D2 dichotomy",
            f"{YANG}, dynamical dichotomy",
            "rules whose measured regime (some hidden layer moves, exponent > -0.1) is not the predicted one",
            wrong,
            0,
            reads=(hidden,),
        ),
        at_most(
            "D2 control, all kernels",
            f"{YANG}, dynamical dichotomy",
            "the same, if every rule were predicted to be a kernel machine",
            swapped,
            0,
            control=True,
            reads=(hidden,),
            preconditions=others,
        ),
        at_most(
            "D3 kernel machines",
            f"{YANG}, kernel limits",
            "distance from the network's own linearisation falls as n^-r at least: largest exponent + r, kernel rules",
            (slopes + data.r).values[lazy].max(initial=-np.inf),
            0.1,
            reads=(slopes[lazy], data.r[lazy]),
            preconditions=some,
        ),
        at_most(
            "D3 control, feature learning",
            f"{YANG}, kernel limits",
            "exponent of that distance for the rules that learn features, the largest, against n^-1/4",
            slopes.values[~lazy].max(initial=-np.inf),
            -0.25,
            control=True,
            reads=(slopes[~lazy],),
            preconditions=others,
        ),
    ]


def _convergence_claims(data: xr.Dataset) -> list[Claim]:
    held = set(map(str, data.system.values))
    lines = data[["slope", "slope_interval", "limit_loss"]].reindex(system=list(SYSTEMS))
    left = lines.limit_loss.isel(step=-1) / lines.limit_loss.isel(step=0)
    measured = {
        name: (lines.slope.sel(system=name), lines.slope_interval.sel(system=name))
        for name in SYSTEMS
    }
    measured["pi-net"] = data.pi_slope, data.pi_slope_interval
    measured["Word2Vec"] = data.gram_slope, data.gram_slope_interval
    what = {
        "pi-net": "test outputs, two hidden ReLU layers",
        "Word2Vec": "inner products of all words",
    }
    return [
        near(
            f"L {'control, ' * control}{name}",
            f"{PI}, the limit" if name == "pi-net" else f"{YANG}, explicit limits",
            f"distance of trained finite networks from the limit, exponent in width"
            f" ({what.get(name, 'test outputs, one hidden layer')})",
            float(slope),
            -0.5,
            0.1,
            interval=tuple(interval.values),
            resolve=True,
            control=control,
            reads=(slope, interval),
            preconditions=_trained(name, held, left),
        )
        for name, (slope, interval) in measured.items()
        for control in (name == "linear, ntk",)
    ]


def _trained(name: str, held: set[str], left: xr.DataArray) -> tuple[Precondition, ...]:
    """That the limit is not only where it was at the start; there every width of it is, too."""
    if name not in SYSTEMS:
        return ()
    if name not in held:
        return (absent(name),)
    share = float(left.sel(system=name))
    found = f"the limit's training loss only falls to {share:.3g} of its first value"
    return (Precondition("trained", share <= 0.9, found),)


def _word_claims(data: xr.Dataset) -> list[Claim]:
    chance = 1 / (int(data.vocabulary) - 3)
    limit, widest = data.sel(word_width=0), data.isel(word_width=-2)
    narrow = data.isel(word_width=0)
    source, claim = f"{YANG}, Word2Vec", functools.partial
    made = []
    for name, ranks, right, control in (
        ("limit", limit.word_rank, limit.analogy, False),
        ("control, shuffled text", data.shuffled_rank, data.shuffled_analogy, True),
    ):
        similar = claim(
            at_most,
            f"W1 similarity, {name}",
            source,
            "share of the vocabulary nearer to a word than its plural or past tense; chance 0.5",
            bound=0.15,
            control=control,
        )
        alike = claim(
            at_least,
            f"W2 analogies, {name}",
            source,
            f"right answers to b - a + c over those of chance ({chance:.2g})",
            bound=10,
            control=control,
        )
        made += [
            over_seeds(similar, ranks, "mean"),
            over_seeds(alike, right / chance, "mean", reads=(right,)),
        ]
    gap = widest.analogy - limit.analogy
    lost = limit.analogy - narrow.analogy
    there = claim(
        near,
        "W3 the widest is there",
        source,
        f"analogies at width {int(widest.word_width)} minus those of the limit, mean over seeds",
        target=0,
        tolerance=0.01,
    )
    better = claim(
        at_least,
        "W4 wider is better",
        source,
        f"analogies of the limit minus those at width {int(narrow.word_width)}, the worst seed",
        bound=0.01,
    )
    return [
        *made,
        over_seeds(there, gap, "mean", reads=(widest.analogy, limit.analogy)),
        over_seeds(better, lost, reads=(limit.analogy, narrow.analogy)),
    ]


def _few_shot_claims(data: xr.Dataset) -> list[Claim]:
    made, source, claim = [], f"{YANG}, MAML", functools.partial
    for background in data.background.values:
        line = data.sel(background=background)
        where = "lit digits" if background else "plain digits"
        limit, kernel = line.few_accuracy.sel(few_width=0), line.few_kernel
        gain = limit - kernel.sel(trained=1).max("kernel_rate", skipna=False)
        learned = kernel.sel(trained=1) - kernel.sel(trained=0)
        wide = line.few_accuracy.isel(few_width=-2)
        features = claim(
            at_least,
            f"M1 features help, {where}",
            source,
            "accuracy of the limit minus that of the best kernel limit, on digits not trained on, mean over seeds",
            bound=0.05,
        )
        still = claim(
            at_least,
            f"M1 control, kernel, {where}",
            source,
            "what meta-training adds to the accuracy of the kernel limit, the best rate",
            bound=0.05,
            control=True,
        )
        there = claim(
            near,
            f"M2 the widest is there, {where}",
            source,
            f"accuracy at width {int(data.few_width[-2])} minus that of the limit, mean over seeds",
            target=0,
            tolerance=0.02,
        )
        made += [
            over_seeds(features, gain, "mean", reads=(limit, kernel.sel(trained=1))),
            over_seeds(still, learned.max("kernel_rate", skipna=False), "mean", reads=(kernel,)),
            over_seeds(there, wide - limit, "mean", reads=(wide, limit)),
        ]
    return made
