"""What a cross-entropy says of an error: the H-consistency inequality of the logistic loss.

For K classes, any conditional probabilities p and any scores, with the regrets (excesses over the best)

    cross-entropy regret >= Psi(0-1 regret),   Psi(t) = ((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2   nats

At one input the 0-1 regret of a predicted class j is t = p_max - p_j. Scores that prefer j cost least where its
probability equals that of the best class: with a = p_max + p_j then ((a + t) log((a + t) / a) + (a - t) log((a - t) /
a)) / 2, which falls in a <= 1 to Psi(t). Psi is convex, so the inequality holds of expectations too (Jensen), for
scores of any model: a regret within a smaller class of functions is larger by what that class cannot do.

Source: Mao, Mohri & Zhong 2023, arXiv:2304.07288, for the general bound; derived here for the logistic loss, where it
is tight for two classes. Used by Zheng et al. 2023, arXiv:2302.02334.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from limits.arguments import array, takes
from ntk.types import Float, Real


@takes(regret=array())
def logistic_gap(regret: Real[ArrayLike, "*shape"]) -> Float[np.ndarray, "*shape"] | float:
    """Psi: the least excess cross-entropy, in nats, of scores whose excess error is ``regret``.

    Args:
        regret: t, excess of the error over the Bayes error, from 0 to 1; (...).

    Returns:
        (...), from 0 to log 2; about t^2 / 2 for small t.

    Raises:
        TypeError: regret is no number.
        ValueError: it is not between 0 and 1.
    """
    t = np.asarray(regret, float)
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"regret is {t}; it must be between 0 and 1")
    found = _gap(t)
    return found if found.shape else float(found)


@takes(excess=array())
def largest_regret(excess: Real[ArrayLike, "*shape"]) -> Float[np.ndarray, "*shape"] | float:
    """The inverse of `logistic_gap`: the largest excess error of scores with so much excess cross-entropy.

    Args:
        excess: cross-entropy over that of the true conditional probabilities, in nats, not negative; (...).

    Returns:
        (...), 1 from log 2 on, where nothing is said.

    Raises:
        TypeError: excess is no number.
        ValueError: it is negative.
    """
    e = np.asarray(excess, float)
    if not (e >= 0).all():
        raise ValueError(f"excess is {e}; it must not be negative")
    t = np.minimum(np.sqrt(2 * e), 1.0)  # above the answer, as Psi(t) >= t^2 / 2
    for _ in range(60):  # Newton's steps on a convex function come from above
        slope = np.arctanh(np.minimum(t, 1 - 1e-16))
        step = np.divide(_gap(t) - e, slope, out=np.zeros_like(t), where=slope > 0)
        t = np.clip(t - step, 0.0, 1.0)
    t = np.where(e >= np.log(2), 1.0, t)
    return t if t.shape else float(t)


def _gap(t: np.ndarray) -> np.ndarray:
    # The two terms cancel to second order: a series, of which t^2 / 2 and t^4 / 12 are the first terms
    series = t**2 / 2 + t**4 / 12 + t**6 / 30 + t**8 / 56
    whole = (special.xlog1py(1 + t, t) + special.xlog1py(1 - t, -t)) / 2
    return np.where(t < 1e-2, series, whole)
