"""Gradient descent on logistic regression at every step size, from gradient flow to the perceptron.

Signed examples b_i = y_i x_i, R = max |b_i|, margin mu = max_w min_i b_i . w / |w|, steps gamma from w = 0:

    w += gamma/n sum_i sigma(-b_i . w) b_i

As gamma grows, w / gamma becomes the batch perceptron, which adds the mean of the misclassified b_i; an example on the
boundary counts one half, and at w = 0 all lie there. Normalised steps are divided by the mean weight. With
c = max_m m sigma(-m) = W(1/e) the number T of steps while an example is misclassified obeys

    plain        T <= 2n (R^2 + 4 c n / gamma) / mu^2
    normalised   T <= (R^2 + 4 c (n - 1) / gamma) / mu^2

for every gamma: |w|^2 grows by at most 2 gamma c + gamma^2 R^2 G^2 a step (G the mean weight, at least 1/2n), and
w . w* by at least mu gamma G. Both hold for separable examples without noise in the steps.

Source: the setting is of "From Logistic Regression to the Perceptron Algorithm", arXiv:2412.08424; the two bounds
are derived here. Adaptive steps with the best constants: arXiv:2504.04105.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from limits.arguments import array, boolean, count, number, takes
from ntk import show
from ntk.types import Float, Real

CORRELATION = float(special.lambertw(math.exp(-1)).real)
"""max over m of m sigma(-m): what a step can gain from examples on the right side."""


@show.readable
class Path(NamedTuple):
    """A descent until all examples lie on their side.

    Attributes:
        steps: T, those taken.
        losses: (T,), mean logistic loss before each step; for the perceptron the mean of max(-margin, 0).
        misclassified: (T,), share of margins that are not positive, before each step.
        weights: (d,), after the last; for the perceptron in units of the step size.
        separated: whether all margins are positive; false where max_steps ran out.
    """

    steps: int
    losses: Float[np.ndarray, "T"]
    misclassified: Float[np.ndarray, "T"]
    weights: Float[np.ndarray, "d"]
    separated: bool


@show.readable
class Margin(NamedTuple):
    """The widest margin: it lies between ``value`` and ``value + gap``.

    Attributes:
        value: min_i b_i . direction, in the units of the examples.
        direction: (d,), of norm 1.
        gap: norm of the shortest convex combination of examples (the dual) less value.
    """

    value: float
    direction: Float[np.ndarray, "d"]
    gap: float


@takes(signed=array(2), normalised=boolean, max_steps=count())
def descend(
    signed: Real[ArrayLike, "n d"],
    step_size: float,
    *,
    normalised: bool = False,
    max_steps: int = 100_000,
    start: Real[ArrayLike, "d"] | None = None,
) -> Path:
    """Full-batch gradient descent on the logistic loss until the examples are separated, in double precision.

    Args:
        signed: (n, d), examples times their labels 1 or -1; append a constant before the product for a bias.
        step_size: gamma > 0, or infinity for the perceptron. Descent equals the perceptron as long as
            gamma >> 1 / (smallest |margin| of the perceptron's path).
        normalised: whether each step is divided by the mean of the weights sigma(-margin).
        max_steps: where to give up.
        start: (d,), zero by default; for the perceptron in units of the step size.

    Raises:
        TypeError: signed is no array of numbers.
        ValueError: no examples, a step size that is not positive, or a start of another shape.
    """
    b = _examples(signed)
    infinite = math.isinf(_step(step_size))
    w = np.zeros(b.shape[1]) if start is None else np.array(start, float)
    if w.shape != b.shape[1:]:
        raise ValueError(f"start has the shape {w.shape}; it must be {b.shape[1:]}, as an example")
    losses, misclassified = [], []
    for step in range(max_steps + 1):
        margins = b @ w
        wrong = float((margins <= 0).mean())
        if not wrong or step == max_steps:
            break
        loss = np.maximum(-margins, 0) if infinite else np.logaddexp(0, -margins)
        losses.append(loss.mean())
        misclassified.append(wrong)
        weights = np.heaviside(-margins, 0.5) if infinite else special.expit(-margins)
        rate = (1.0 if infinite else step_size) / (weights.sum() if normalised else len(b))
        w = w + rate * (weights @ b)
    return Path(len(losses), np.array(losses), np.array(misclassified), w, not wrong)


@takes(signed=array(2))
def margin(signed: Real[ArrayLike, "n d"]) -> Margin:
    """The widest margin of a hyperplane through the origin, with the gap to its dual bound.

    The dual is min |sum_i a_i b_i| over the simplex. Non-negative least squares on the same sum with one more row of
    equal entries has, up to a factor, the same minimiser: along each ray the least objective grows with the norm.

    Args:
        signed: (n, d), as for `descend`.

    Raises:
        TypeError: signed is no array of numbers.
        ValueError: no examples, or no hyperplane through the origin separates them.
    """
    b = _examples(signed)
    radius = np.linalg.norm(b, axis=1).max() or 1.0
    rows = np.vstack([b.T / radius, np.ones(len(b))])
    shares, _ = optimize.nnls(rows, np.append(np.zeros(b.shape[1]), 1.0), maxiter=30 * len(b))
    shortest = shares @ b / shares.sum()
    norm = np.linalg.norm(shortest)
    value = float((b @ shortest).min() / norm) if norm > 0 else 0.0
    if value <= 0:
        raise ValueError(
            f"no hyperplane through the origin separates the examples (a mean of them has norm {norm:.3g}); append a "
            "constant to the inputs, or more dimensions"
        )
    return Margin(value, shortest / norm, float(norm - value))


@takes(
    num_examples=count(),
    radius=number(positive=True),
    margin=number(positive=True),
    normalised=boolean,
)
def step_bound(
    num_examples: int,
    radius: float,
    margin: float,
    step_size: float,
    *,
    normalised: bool = False,
) -> float:
    """What the number of steps from zero to separation cannot exceed, at this step size (see the top of this file).

    Args:
        num_examples: n.
        radius: R, the largest norm of an example.
        margin: mu, or a smaller number, in the units of radius.
        step_size: gamma > 0, or infinity.
        normalised: as for `descend`.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that is not positive, or a margin above the radius.
    """
    if margin > radius * (1 + 1e-12):
        raise ValueError(f"margin is {margin}; it must be at most the radius, {radius}")
    _step(step_size)
    n = num_examples
    others = (n - 1 if normalised else n) / step_size
    factor = 1 if normalised else 2 * n
    return float(factor * (radius**2 + 4 * CORRELATION * others) / margin**2)


def _examples(signed: ArrayLike) -> np.ndarray:
    b = np.asarray(signed, float)
    if not b.size:
        raise ValueError(f"signed has the shape {b.shape}; it must hold an example or more")
    return b


def _step(step_size: float) -> float:
    if not (isinstance(step_size, float) and step_size == math.inf):
        number(positive=True)("step_size", step_size)
    return float(step_size)
