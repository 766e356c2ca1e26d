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
from ntk.types import Bool, Data, Float, Integer, Real, Scalar

RULES = ("gradient_descent", "momentum", "nesterov", "adam", "sam")


@overload
def threshold(
    learning_rate: float,
    rule: str = ...,
    *,
    beta: float = ...,
    radius: float | None = ...,
    gradient_norm: float | None = ...,
) -> float: ...
@overload
def threshold(
    learning_rate: Data,
    rule: str = ...,
    *,
    beta: float = ...,
    radius: float | Data | None = ...,
    gradient_norm: float | Data | None = ...,
) -> jax.Array: ...
@overload
def threshold(
    learning_rate: float,
    rule: str = ...,
    *,
    beta: float = ...,
    radius: Data,
    gradient_norm: float | Data,
) -> jax.Array: ...
@overload
def threshold(
    learning_rate: float,
    rule: str = ...,
    *,
    beta: float = ...,
    radius: float,
    gradient_norm: Data,
) -> jax.Array: ...
def threshold(
    learning_rate: float | Data,
    rule: str = "gradient_descent",
    *,
    beta: float = 0.0,
    radius: float | Data | None = None,
    gradient_norm: float | Data | None = None,
) -> float | jax.Array:
    """The sharpness above which a quadratic diverges, and around which training hovers.

    gradient_descent 2/eta; momentum (v = beta v + g, w = w - eta v) (2 + 2 beta)/eta; nesterov
    (2 + 2 beta)/((1 + 2 beta) eta); adam (2 + 2 beta)/((1 - beta) eta), which is 38/eta at .9 and
    is compared with the sharpness of P^(-1/2) H P^(-1/2), see `operators.adam_factors`. Exact for a
    quadratic and a constant preconditioner; for Adam late in training, when P moves slowly.

    sam (w = w - eta grad L(w + rho g/|g|), with momentum beta of the outer step) meets along an eigenvector of
    curvature lambda the curvature lambda (1 + rho lambda/|g|), so that its edge follows the gradient norm:

        lambda* = |g|/(2 rho) (sqrt(1 + 8 rho (1 + beta)/(eta |g|)) - 1)
                -> (2 + 2 beta)/eta as rho -> 0,   sqrt((2 + 2 beta) |g|/(eta rho)) as rho/(eta |g|) -> inf

    It ties two measured numbers to each other: on a quadratic it is |g| that comes to fit lambda, as descent ends on an
    orbit of period two whose |g| has lambda* = lambda; in a network both move.

    Args:
        learning_rate: eta, or an array of them.
        rule: one of the above.
        beta: momentum; Adam's beta1.
        radius: rho of sam, positive; a number or an array that broadcasts with the others.
        gradient_norm: |g| of sam, at the parameters and not at w + rho g/|g|; positive, as radius.

    Raises:
        TypeError: learning_rate, beta, radius or gradient_norm is no number.
        ValueError: rule is none of these, learning_rate, radius or gradient_norm is not positive and finite, beta not
            in [0, 1); sam without radius and gradient_norm, or another rule with one.

    Source: Cohen et al. (2021), arXiv:2103.00065, appendix B; (2022), arXiv:2207.14484, section 2; for sam Long &
    Bartlett (2023), arXiv:2309.12488, with beta derived here.
    """
    checks.choice("rule", rule, RULES)
    checks.within("beta", beta, lambda b: (b >= 0) & (b < 1), "in [0, 1)")
    # A Python number stays one: what is computed from it keeps its double precision.
    learning_rate = _positive("learning_rate", learning_rate)
    ratio = _radius_over_norm(rule, radius, gradient_norm)
    if rule == "gradient_descent":
        return 2 / learning_rate
    divisor = {"nesterov": 1 + 2 * beta, "adam": 1 - beta}.get(rule, 1)
    plain = (2 + 2 * beta) / (divisor * learning_rate)
    if ratio is None:
        return plain
    # The positive root of lambda (1 + rho lambda/|g|) = plain, without the cancellation of small rho.
    return 2 * plain / (1 + (1 + 4 * ratio * plain) ** 0.5)


def maximal_learning_rate(
    pairs: curvature.Sharpness,
    rule: str = "gradient_descent",
    *,
    beta: float = 0.0,
    radius: float | Data | None = None,
    gradient_norm: float | Data | None = None,
) -> Estimate:
    """The largest learning rate that is stable at this curvature: the threshold solved for eta.

    Args:
        pairs: from `metrics.curvature.sharpness`; the first value is used.
        rule: as in `threshold`.
        beta: as in `threshold`.
        radius: as in `threshold`, for sam.
        gradient_norm: as in `threshold`, for sam.

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
    checks.choice("rule", rule, RULES)
    ratio = _radius_over_norm(rule, radius, gradient_norm)
    grown = 0.0 if ratio is None else ratio * safe
    rate = threshold(1.0, "momentum" if rule == "sam" else rule, beta=beta) / (safe * (1 + grown))
    error = rate * (1 + 2 * grown) / (1 + grown) * (residual / safe)
    return Estimate(jnp.where(flat, jnp.inf, rate), error)


def _positive(name: str, value: float | Data) -> Scalar:
    array = checks.positive(name, value)
    return value if isinstance(value, int | float) else array


def _radius_over_norm(
    rule: str, radius: float | Data | None, gradient_norm: float | Data | None
) -> Scalar | None:
    """rho / |g| of sam, None for the other rules."""
    if rule != "sam":
        for name, value in (("radius", radius), ("gradient_norm", gradient_norm)):
            if value is not None:
                raise ValueError(f"{name} is {value}; only the rule 'sam' has one: leave it out")
        return None
    if radius is None or gradient_norm is None:
        missing = "radius" if radius is None else "gradient_norm"
        raise ValueError(f"{missing} is None; the rule 'sam' needs radius= and gradient_norm=")
    return _positive("radius", radius) / _positive("gradient_norm", gradient_norm)


@show.readable
class EdgeReport(NamedTuple):
    """A trajectory of sharpness against the threshold of its optimizer."""

    ratio: Float[jax.Array, "*runs T"]  # sharpness / threshold
    crossed: Integer[jax.Array, "*runs"]  # first probe at or above the threshold, -1 if none
    mean: Float[jax.Array, "*runs"]  # mean ratio over the tail
    # its standard error, from 8 block means (oscillations correlate)
    error: Float[jax.Array, "*runs"]
    above: Float[jax.Array, "*runs"]  # fraction of the tail above the threshold
    at_edge: Bool[jax.Array, "*runs"]  # crossed, and the mean is within tolerance of 1


def edge_of_stability(
    sharpness: Real[Data, "*runs T"], threshold: Any, *, tail: float = 0.5, tolerance: float = 0.1
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
    within = checks.scalar("tolerance", checks.positive("tolerance", tolerance))
    if sharpness.ndim == 0:
        raise ValueError("sharpness is one number; it must be (..., T), time last")
    checks.broadcasts("threshold", threshold, sharpness.shape)
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
    at_edge = (crossed >= 0) & (jnp.abs(mean - 1) <= within)
    return EdgeReport(ratio, crossed, mean, error, above, at_edge)
