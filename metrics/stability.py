"""Sharpness against the learning rate: thresholds, stable steps, the edge of stability.

A step of gradient descent multiplies the component along an eigenvector of curvature l by 1 - eta l: it grows where
l > 2 / eta. With momentum and preconditioners the bound is `threshold`.

Source: Cohen et al. (2021), arXiv:2103.00065; (2022), arXiv:2207.14484.
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from metrics import checks, curvature
from metrics.estimate import Estimate, concrete
from ntk import show
from ntk.types import Data

RULES = ("gradient_descent", "momentum", "nesterov", "adam")


@overload
def threshold(learning_rate: float, rule: str = ..., *, beta: float = ...) -> float: ...
@overload
def threshold(learning_rate: Data, rule: str = ..., *, beta: float = ...) -> jax.Array: ...
def threshold(
    learning_rate: float | Data, rule: str = "gradient_descent", *, beta: float = 0.0
) -> float | jax.Array:
    """The sharpness above which a quadratic diverges, and around which training hovers.

    gradient_descent 2/eta; momentum (v = beta v + g, w = w - eta v) (2 + 2 beta)/eta; nesterov
    (2 + 2 beta)/((1 + 2 beta) eta); adam (2 + 2 beta)/((1 - beta) eta), which is 38/eta at .9 and
    is compared with the sharpness of P^(-1/2) H P^(-1/2), see `operators.adam_factors`. Exact for a
    quadratic and a constant preconditioner; for Adam late in training, when P moves slowly.

    Args:
        learning_rate: eta, or an array of them.
        rule: one of the above.
        beta: momentum; Adam's beta1.

    Raises:
        TypeError: learning_rate or beta is no number.
        ValueError: rule is none of these, learning_rate is not positive and finite, or beta not in [0, 1).

    Source: Cohen et al. (2021), arXiv:2103.00065, appendix B; (2022), arXiv:2207.14484, section 2.
    """
    checks.choice("rule", rule, RULES)
    checks.within("beta", beta, lambda b: (b >= 0) & (b < 1), "in [0, 1)")
    # A Python number stays one: what is computed from it keeps its double precision.
    positive = checks.positive("learning_rate", learning_rate)
    rate = learning_rate if isinstance(learning_rate, int | float) else positive
    if rule == "gradient_descent":
        return 2 / rate
    divisor = {"momentum": 1, "nesterov": 1 + 2 * beta, "adam": 1 - beta}[rule]
    return (2 + 2 * beta) / (divisor * rate)


def maximal_learning_rate(
    pairs: curvature.Sharpness, rule: str = "gradient_descent", *, beta: float = 0.0
) -> Estimate:
    """The largest learning rate that is stable at this curvature: the threshold solved for eta.

    Args:
        pairs: from `metrics.curvature.sharpness`; the first value is used.
        rule: as in `threshold`.
        beta: as in `threshold`.

    Returns:
        Estimate(value, error): the error is the residual's. Infinite where no curvature is positive.

    Raises:
        TypeError: pairs is no Sharpness.
        ValueError: as `threshold`.
    """
    if not isinstance(pairs, curvature.Sharpness):
        raise TypeError(
            f"pairs is of type {type(pairs).__name__}; it must be the result of metrics.sharpness"
        )
    top, residual = pairs.value[..., 0], pairs.residual[..., 0]
    flat = top <= 0  # not so for NaN, which stays
    safe = jnp.where(flat, 1, top)
    rate = threshold(1.0, rule, beta=beta) / safe
    return Estimate(jnp.where(flat, jnp.inf, rate), rate * (residual / safe))


@show.readable
class EdgeReport(NamedTuple):
    """A trajectory of sharpness against the threshold of its optimizer."""

    ratio: jax.Array  # (..., T): sharpness / threshold
    crossed: jax.Array  # (...,): first probe at or above the threshold, -1 if none
    mean: jax.Array  # (...,): mean ratio over the tail
    error: jax.Array  # (...,): its standard error, from 8 block means (oscillations correlate)
    above: jax.Array  # (...,): fraction of the tail above the threshold
    at_edge: jax.Array  # (...,): crossed, and the mean is within tolerance of 1


def edge_of_stability(
    sharpness: Data, threshold: Any, *, tail: float = 0.5, tolerance: float = 0.1
) -> EdgeReport:
    """Whether training sits at the edge of stability.

    Args:
        sharpness: (..., T), one probe per entry, time last.
        threshold: from `threshold`; a number, or an array that broadcasts to sharpness.
        tail: last fraction of the probes that counts as late; at least 16 probes.
        tolerance: of the mean ratio around 1.

    Returns:
        EdgeReport. A diverged run (not finite) is not at the edge; its mean, error and above are NaN.

    Raises:
        TypeError: sharpness or threshold are no numbers.
        ValueError: tail is not in (0, 1], or holds fewer than 16 probes; threshold is not positive, or does not
            broadcast to sharpness; tolerance is not positive.

    Source: Cohen et al. (2021), arXiv:2103.00065.
    """
    sharpness = checks.real("sharpness", sharpness)
    threshold = checks.positive("threshold", threshold)
    checks.positive("tolerance", tolerance)
    if (
        sharpness.ndim == 0
        or jnp.broadcast_shapes(sharpness.shape, threshold.shape) != sharpness.shape
    ):
        raise ValueError(
            f"sharpness has shape {sharpness.shape} and threshold {threshold.shape}; they must be (..., T), time "
            "last, and a number or what broadcasts to it"
        )
    probes = sharpness.shape[-1]
    checks.real("tail", tail)
    fraction = concrete(tail)
    if fraction is None or fraction.ndim:
        raise TypeError(f"tail is {tail}; it must be a number, known before anything is compiled")
    late = int(fraction * probes) // 8 * 8 if np.isfinite(fraction) else 0
    if not 0 < fraction <= 1 or late < 16:
        raise ValueError(
            f"tail is {tail} of {probes} probes; it must be in (0, 1] and hold at least 16 probes: "
            "probe more often, or train longer"
        )
    ratio = sharpness / threshold
    over = ratio >= 1
    crossed = jnp.where(over.any(-1), jnp.argmax(over, -1), -1)
    last = ratio[..., -late:]
    mean = last.mean(-1)
    blocks = last.reshape(*last.shape[:-1], 8, -1).mean(-1)
    error = jnp.std(blocks, -1, ddof=1) / jnp.sqrt(8)
    above = jnp.where(jnp.isnan(mean), jnp.nan, over[..., -late:].mean(-1))
    at_edge = (crossed >= 0) & (jnp.abs(mean - 1) <= tolerance)
    return EdgeReport(ratio, crossed, mean, error, above, at_edge)
