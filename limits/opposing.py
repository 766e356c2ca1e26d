"""Outliers with opposing signals in a two-layer linear network: sharpness grows until gradient descent oscillates.

Inputs x = (x_b, x_o): x_b is white, x_o = +-sqrt(alpha / p) for a share p of examples and 0 for the others; targets
y = beta . x_b + magnitude |x_o|; f(x) = w2^T W1 x with loss E (y - f)^2 / 2. As E x_o y = 0 the optimum ignores x_o,
yet the curvature along the weights of x_o is S = alpha u, u = |w2|^2. From a small balanced start gradient flow has

    u' = 2 u (R - u),    u(t) = R / (1 + (R / u(0) - 1) exp(-2 R t)),    R = |beta|

so that S rises from nearly nothing to alpha R, linear in the signal, and crosses 2 / learning rate where
alpha R > 2 / learning rate: there the two kinds of outliers, whose errors have opposite signs, begin to oscillate.

Source: Rosenfeld & Risteski 2024 (arXiv 2311.04163) for the setting, reconstructed from its published description; the
logistic law is derived here. It stops being valid at the crossing, and up to it needs learning rate x R << 1 and
initial weights small against sqrt(R).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from limits.arguments import array, boolean, count, integer, key, number, takes
from ntk import show
from ntk.types import Float, Integer, PRNGKey, Real


@show.readable
class Outliers(NamedTuple):
    """Examples of the setting above; the ids of the two opposing groups are equally many."""

    inputs: Float[jax.Array, "n d"]  # x_o last
    targets: Float[jax.Array, "n"]
    positive: Integer[np.ndarray, "half"]  # ids with x_o > 0
    negative: Integer[np.ndarray, "half"]  # ids with x_o < 0


@takes(
    alpha=number(positive=True),
    signal=number(positive=True),
    start=number(positive=True),
    times=array(),
)
def sharpness_path(
    alpha: float, signal: float, start: float, times: Real[ArrayLike, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Curvature alpha u(t) along the outliers' weights under gradient flow.

    Args:
        alpha: E x_o^2.
        signal: R = |beta|.
        start: u = |w2|^2 at time 0.
        times: any shape, in units of learning rate x steps; negative ones look back.

    Returns:
        float64, of the shape of times; the largest Hessian eigenvalue within 3 % where u >= R / 2 and alpha >= 20. nan
        where none exists: a start above R was infinite at time log(1 - R / start) / (2 R).
    """
    times = np.asarray(times, float)
    small, excess = np.exp(-2 * signal * np.abs(times)), signal / start - 1
    if excess == 0:
        return np.full(times.shape, alpha * signal)
    # Over exp(-2 R t) before the start, where that overflows.
    above, below = (
        np.where(times < 0, small, 1),
        np.where(times < 0, small + excess, 1 + excess * small),
    )
    return alpha * signal * above / np.where(below > 0, below, np.nan)


@takes(
    alpha=number(positive=True),
    signal=number(positive=True),
    start=number(positive=True),
    learning_rate=number(positive=True),
)
def crossing_time(alpha: float, signal: float, start: float, learning_rate: float) -> float:
    """Time (learning rate x steps) at which the sharpness reaches 2 / learning rate, the edge of stability.

    Arguments as in `sharpness_path`.

    Returns:
        0 where it starts there; inf where alpha signal learning_rate <= 2 and it never arrives.
    """
    edge = 2 / (learning_rate * alpha)
    if start >= edge:
        return 0.0
    if edge >= signal:
        return math.inf
    return math.log(edge * (signal - start) / (start * (signal - edge))) / (2 * signal)


@takes(
    key=key,
    examples=count(4),
    dim=integer,
    alpha=number(positive=True),
    signal=number(positive=True),
    share=number(positive=True),
    magnitude=number(),
    consistent=boolean,
)
def outliers(
    key: PRNGKey,
    examples: int,
    dim: int,
    *,
    alpha: float,
    signal: float,
    share: float = 0.02,
    magnitude: float = 0.3,
    consistent: bool = False,
) -> Outliers:
    """Examples whose second moments are those of the population exactly, so that the law holds at any n.

    Args:
        key: PRNG key of x_b and of the direction of beta.
        examples: n.
        dim: d, of x_b; at most n - 2.
        alpha: E x_o^2.
        signal: |beta|.
        share: p; the number of outliers is the even number nearest to n p.
        magnitude: of |x_o| in the targets.
        consistent: targets with magnitude x_o instead: a signal that can be learnt, for a control.

    Returns:
        Outliers, the positive ones first, then the negative ones.

    Raises:
        ValueError: dim is not between 1 and n - 2, or share gives no pair of outliers, or only outliers.
    """
    pairs = round(examples * share / 2)
    if not 1 <= dim <= examples - 2:
        raise ValueError(f"dim is {dim}; it must be between 1 and examples - 2 = {examples - 2}")
    if not 0 < 2 * pairs < examples:
        raise ValueError(
            f"share is {share}: of {examples} examples {2 * pairs} are outliers; some must be, and some must not"
        )
    sign = np.repeat([1.0, -1.0, 0.0], [pairs, pairs, examples - 2 * pairs])
    outlier = sign * math.sqrt(alpha * examples / (2 * pairs))
    white, direction = jax.random.split(key)
    random = np.asarray(jax.random.normal(white, (examples, dim)), float)
    # Orthogonal to x_o and to |x_o|: no chance correlation with either is left.
    basis = np.linalg.qr(np.column_stack([sign, np.abs(sign), random]))[0][:, 2:]
    background = basis * math.sqrt(examples)
    beta = np.asarray(jax.random.normal(direction, (dim,)), float)
    beta = beta * (signal / np.linalg.norm(beta))
    targets = background @ beta + magnitude * (outlier if consistent else np.abs(outlier))
    inputs = np.column_stack([background, outlier])
    ids = np.arange(pairs)
    return Outliers(jnp.asarray(inputs), jnp.asarray(targets), ids, ids + pairs)
