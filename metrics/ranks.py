"""What scores of examples are good for: which examples to keep, how far two scores agree, how many networks one needs.

`metrics.examples` has the scores and these functions.

    reliability of means over n networks = n r / (1 + (n - 1) r),    r the mean correlation of two networks' ranks

Source: Spearman 1910; Brown 1910.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy import stats

from metrics import checks
from metrics.estimate import Estimate
from ntk import arguments
from ntk.types import Integer, Real

_BLOCK = 2**22  # ranks held at once by the jackknife


@arguments.strict
def keep(
    scores: Real[ArrayLike, "N"],
    share: float,
    *,
    order: Literal["hard", "easy", "random"] = "hard",
    skip: float = 0.0,
    key: jax.Array | None = None,
) -> Integer[np.ndarray, "kept"]:
    """The examples to train on: a share with the highest scores, the lowest, or at random.

    With wrong labels the highest scores are theirs: ``skip`` leaves these out and keeps the next.

    Args:
        scores: (N,), larger for harder examples; infinity for one that was never learned.
        share: how much of all N is kept, in (0, 1]; round(share N) examples.
        order: which of them.
        skip: share of all N, those of the highest scores, that is left out first.
        key: for the random order.

    Returns:
        (round(share N),) ids, the best of their order first; equal scores by position.

    Raises:
        TypeError: scores are no numbers, or the random order has no key.
        ValueError: nan scores, another order, shares out of range or of no example, a key for another order.
    """
    values = checks.doubles("scores", scores)
    checks.check_shape("scores", values.shape, ("N",))
    if np.isnan(values).any():
        raise ValueError(f"scores[{np.isnan(values).argmax()}] is nan; score every example first")
    checks.choice("order", order, ("hard", "easy", "random"))
    checks.scalar(
        "share",
        checks.within("share", share, lambda x: (x > 0) & (x <= 1), "above 0 and at most 1"),
    )
    checks.scalar(
        "skip", checks.within("skip", skip, lambda x: (x >= 0) & (x < 1), "at least 0 and below 1")
    )
    count, left = round(share * values.size), round(skip * values.size)
    if not 1 <= count <= values.size - left:
        raise ValueError(
            f"share is {share} and skip {skip}: {count} of {values.size - left} examples; keep at least one of them, "
            "and at most what is not skipped"
        )
    if (key is None) == (order == "random"):
        raise (TypeError if key is None else ValueError)(
            f"order is {order!r} and key {'missing' if key is None else 'given'}; the random order needs one, and no "
            "other does"
        )
    hardest = np.argsort(-values, kind="stable")[left:]
    if order == "easy":
        # The lowest first, equal ones by position too
        there = np.sort(hardest)
        hardest = there[np.argsort(values[there], kind="stable")]
    elif order == "random":
        hardest = hardest[np.asarray(jax.random.permutation(checks.key(key), hardest.size))]
    return hardest[:count]


@arguments.strict
def rank_correlation(a: Real[ArrayLike, "N"], b: Real[ArrayLike, "N"]) -> Estimate:
    """Spearman's correlation of two scores, equal ones with their mean rank, and its jackknife error over examples.

    The jackknife ranks again without each example: N^2 operations, in blocks.

    Args:
        a: (N,), N >= 3; infinities are the largest.
        b: (N,).

    Returns:
        Estimate; nan where all of a or of b are equal.

    Raises:
        TypeError: these are no numbers.
        ValueError: shapes differ, fewer than three examples, or nan.
    """
    a, b = _scores("a", a, ("N",)), _scores("b", b, ("N",))
    checks.same_shape(a=a, b=b)
    if a.size < 3:
        raise ValueError(f"a has {a.size} entries; a jackknife needs at least 3")
    left_out = []
    for rows in np.array_split(np.arange(a.size), -(-(a.size**2) // _BLOCK)):
        others = np.arange(a.size) != rows[:, None]
        left_out.append(_correlations(*(_ranks_without(x, rows, others) for x in (a, b))))
    found = np.concatenate(left_out)
    spread = (a.size - 1) * np.mean((found - found.mean()) ** 2)
    value = _correlations(*(stats.rankdata(x)[None] for x in (a, b)))[0]
    return Estimate(value, np.sqrt(spread))


@arguments.strict
def reliability(scores: Real[ArrayLike, "R N"], networks: int | None = None) -> Estimate:
    """Spearman's correlation between a mean over so many networks and the same over as many others.

    From the mean correlation r of any two of the R networks, by n r / (1 + (n - 1) r) for means of n (Spearman and
    Brown 1910; for ranks an approximation). A reliable score may still measure nothing that is wanted.

    Args:
        scores: (R, N), R >= 3, one row a network.
        networks: n, all R by default.

    Returns:
        Estimate; the error is the jackknife's over networks, of these N examples. nan for a mean correlation below
        -1 / (2n - 1), where the formula gives no correlation (below -1, or past its pole): pure noise has
        such means, the more often the larger n. The error is nan where a mean without one network is so.

    Raises:
        TypeError: scores are no numbers, networks no integer.
        ValueError: too few networks or examples, or nan.
    """
    scores = _scores("scores", scores, ("R", "N"))
    count = len(scores)
    if count < 3 or scores.shape[1] < 3:
        raise ValueError(f"scores has shape {scores.shape}; it must be at least (3, 3)")
    n = count if networks is None else checks.integer("networks", networks, 1)
    agreement = np.corrcoef(stats.rankdata(scores, axis=1))
    total, own = agreement.sum() - count, agreement.sum(axis=1) - 1

    def stepped(r: np.ndarray) -> np.ndarray:
        possible = (2 * n - 1) * r >= -1  # where the quotient is at least -1
        return np.where(possible, n * r / np.where(possible, 1 + (n - 1) * r, 1), np.nan)

    without = stepped((total - 2 * own) / ((count - 1) * (count - 2)))
    spread = (count - 1) * np.mean((without - without.mean()) ** 2)
    return Estimate(stepped(total / (count * (count - 1)))[()], np.sqrt(spread))


def _scores(name: str, value: Any, axes: tuple[str, ...]) -> np.ndarray:
    values = checks.doubles(name, value)
    checks.check_shape(name, values.shape, axes)
    if np.isnan(values).any():
        raise ValueError(f"{name} holds nan; score every example first")
    return values


def _ranks_without(x: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Ranks (rows, N) of the others when the example of each row is left out; nothing where it stood."""
    left = x[rows, None]
    return np.where(others, stats.rankdata(x) - (left < x) - 0.5 * (left == x), 0.0)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the rows of two arrays of ranks, in which 0 stands for no example."""
    there = a > 0
    a, b = (
        np.where(there, x - x.sum(1, keepdims=True) / there.sum(1, keepdims=True), 0)
        for x in (a, b)
    )
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.full(len(a), np.nan), where=scale > 0)
