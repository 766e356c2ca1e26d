"""Early learning from wrong labels, exact for one step of a linear classifier on two Gaussian classes.

Examples x = y v + s z in R^p, y = 1 or -1, z standard normal; each of n labels is flipped with probability delta.
Gradient descent on the logistic loss from zero has w_1 proportional to the sum of label times x, whatever the step
size. With c = 1 - 2 delta, the score y x . w_1 of an example whose own label is wrong has the mean and the variance

    m  = -(|v|^2 + s^2 p) + N c |v|^2                                          N = n - 1 others
    sd^2 = N s^4 p + N s^2 |v|^2 + N (1 - c^2) |v|^4 + 2 s^4 p + s^2 |v|^2 ((N c - 2)^2 + N (1 - c^2))

and is nearly normal: Phi(m / sd) is the probability that the wrongly labelled example is predicted as its true class.
For one with its own label right the sign of the bracket in m and of the 2 in the last of sd^2 changes; for a new
example, which trained nothing, both go, as does 2 s^4 p, and N = n.

Validity, measured against the exact integral on a grid of n from 200 to 10,000, |v|/s from .1 to 1000 and delta from 0
to .4999: within .05 in any dimension; within .01 where p >= 300 and |v| <= 30 s. In few dimensions the score is a
product of two random numbers, the sum of the labels and x along v, and at larger |v|/s it follows that sum from integer
to integer.

    early learning: m > 0, or p < p* = (N c - 1) |v|^2 / s^2

Source: the question is of Liu et al. (2020), arXiv:2007.00151, section 3 and theorem 1; the formula is derived here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from scipy import special

from limits.arguments import count, number, takes
from ntk import show
from ntk.options import check_real


@show.readable
class FirstStep(NamedTuple):
    """Probabilities that an example is predicted as its true class after one step.

    Attributes:
        mislabelled: of an example of the training set whose label is wrong.
        labelled: of one whose label is right.
        test: of a new example.
        critical_dim: p*, the dimension at which mislabelled is one half; not positive where it is so in none.
    """

    mislabelled: float
    labelled: float
    test: float
    critical_dim: float


def _flip(name: str, value: Any) -> None:
    check_real(name, value)
    if not 0 <= value < 0.5:
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 0.5")


@takes(
    dim=count(),
    num_examples=count(2),
    signal=number(positive=True),
    noise=number(positive=True),
    flip=_flip,
)
def first_step(dim: int, num_examples: int, signal: float, noise: float, flip: float) -> FirstStep:
    """What one step of gradient descent from zero predicts (see the top of this file).

    Args:
        dim: p.
        num_examples: n.
        signal: |v|, half the distance of the classes' means.
        noise: s, the standard deviation of each coordinate, in the units of signal.
        flip: delta, the share of wrong labels, below one half.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range.
    """
    unit = max(signal, noise)  # squares of other numbers could overflow
    p, v, variance = dim, (signal / unit) ** 2, (noise / unit) ** 2
    c = 1 - 2 * flip

    def probability(own: int, others: int) -> float:
        mean = own * (v + variance * p) + others * c * v
        spread = others * (1 - c**2)  # variance of the sum of the others' labels times classes
        along = v * variance * ((others * c + 2 * own) ** 2 + spread)
        across = variance * others * (variance * p + v) + 2 * abs(own) * variance**2 * p
        deviation = math.sqrt(across + spread * v**2 + along)
        if not deviation:  # no noise to speak of
            return (1 + (mean > 0) - (mean < 0)) / 2
        return float(special.ndtr(mean / deviation))

    others = num_examples - 1
    gain, ratio = others * c - 1, signal / noise
    return FirstStep(
        probability(-1, others),
        probability(1, others),
        probability(0, num_examples),
        gain * ratio * ratio if gain else 0.0,
    )
