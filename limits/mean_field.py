"""Two-layer networks of quadratic activation, whose gradient descent closes on two moments of their weights.

The network is f(x) = (alpha / N) sum_i phi(w_i . x) with phi(h) = h + (epsilon / 2) h^2 and readouts fixed at 1. It
sees its weights only through ``mean`` = (1/N) sum_i w_i and ``second`` = (1/N) sum_i w_i w_i^T, and a gradient step
is an affine map, the same for every neuron, whose coefficients need f alone. So the moments obey a closed recursion,
exact at every width and of a cost that does not depend on it; width enters through their start, which for w ~ N(0, I)
is ``infinite_width(dim)`` up to O(N^(-1/2)): the dynamical mean-field limit.

::

    start = infinite_width(dim)
    path = gradient_descent(start, (x, y), [1, 10, 100, 1000], alpha=2.0, epsilon=0.25, learning_rate=0.5)
    change = subtract(path, start)                       # the centred predictor f - f_0
    population_loss(change, target, alpha=2.0, epsilon=0.25)

Source: Kumar et al. 2024 (arXiv 2310.06110), section 3, for the model and its test loss; the recursion is derived here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from limits.arguments import (
    array,
    boolean,
    count,
    instance,
    number,
    pair,
    real,
    real_dtype,
    same_columns,
    takes,
)
from ntk import show
from ntk.types import Float, Real, Scalar


@show.readable
class Moments(NamedTuple):
    """First and second moment of the neurons' weights; may carry leading axes (recorded steps, runs)."""

    mean: Float[jax.Array, "... D"]
    second: Float[jax.Array, "... D D"]


class Target(NamedTuple):
    """A quadratic function y(x) = linear . x + x^T hessian x / 2."""

    linear: Float[jax.Array, "D"]
    hessian: Float[jax.Array, "D D"]


@show.readable
class Loss(NamedTuple):
    """Mean squared error over inputs, in the parts it is made of; their sum is the loss."""

    variance: jax.Array  # the squared error of the mean output
    misalignment: jax.Array  # quadratic features other than the target's
    linear_power: jax.Array  # what is left of, or missing in, the linear part

    @property
    def total(self) -> jax.Array:
        """Mean squared error."""
        return self.variance + self.misalignment + self.linear_power


@takes(weights=array(2), x=array(2), alpha=real, epsilon=real)
def apply(
    weights: Real[jax.Array, "N D"], x: Real[jax.Array, "P D"], *, alpha: Scalar, epsilon: Scalar
) -> Float[jax.Array, "P"]:
    """The finite network (alpha / N) sum_i phi(w_i . x), phi(h) = h + (epsilon / 2) h^2.

    Args:
        weights: (N, D), drawn from N(0, 1).
        x: (P, D), entries of variance 1/D.
        alpha: scale of the output; large is lazy, small is rich.
        epsilon: share of the quadratic feature.

    Returns:
        Outputs, (P,).
    """
    same_columns(weights=weights, x=x)
    h = x @ weights.T
    return alpha * jnp.mean(h + (epsilon / 2) * h**2, axis=1)


@takes(weights=array(2))
def moments(weights: Real[jax.Array, "N D"]) -> Moments:
    """Moments of the weights (N, D) of a finite network: where its closed dynamics start."""
    return Moments(jnp.mean(weights, axis=0), weights.T @ weights / weights.shape[0])


@takes(dim=count(), dtype=real_dtype)
def infinite_width(dim: int, dtype: DTypeLike = jnp.float32) -> Moments:
    """Moments of w ~ N(0, I) at infinite width: zero and the identity."""
    return Moments(jnp.zeros(dim, dtype), jnp.eye(dim, dtype=dtype))


@takes(one=instance(Moments), other=instance(Moments))
def subtract(one: Moments, other: Moments) -> Moments:
    """Difference of moments; outputs are linear in them, so of ``later`` and ``start`` it predicts f - f_0."""
    return jax.tree.map(
        lambda a, b: a - jnp.reshape(b, (1,) * (a.ndim - b.ndim) + b.shape), one, other
    )


@takes(moments=instance(Moments), x=array(2), alpha=real, epsilon=real)
def predict(
    moments: Moments, x: Real[jax.Array, "P D"], *, alpha: Scalar, epsilon: Scalar
) -> Float[jax.Array, "... P"]:
    """Outputs alpha mean . x + (alpha epsilon / 2) x^T second x, (P,), of inputs (P, D)."""
    same_columns(moments=moments.mean, x=x)
    quadratic = jnp.sum((x @ moments.second) * x, axis=1)
    return alpha * (x @ moments.mean + (epsilon / 2) * quadratic)


@takes(moments=instance(Moments), x1=array(2), epsilon=real)
def tangent_kernel(
    moments: Moments,
    x1: Real[jax.Array, "P1 D"],
    x2: Real[jax.Array, "P2 D"] | None = None,
    *,
    epsilon: Scalar,
) -> Float[jax.Array, "... P1 P2"]:
    """Neural tangent kernel of the weights, times N / alpha^2: x.x' [1 + eps m.(x + x') + eps^2 x^T M x'].

    Args:
        moments: mean m and second M, at any time.
        x1: (P1, D).
        x2: (P2, D); None for x1.
        epsilon: share of the quadratic feature.

    Returns:
        (P1, P2). With loss mean((f - y)^2) / alpha^2 and learning rate c N, a step changes f by -(2 c / P) K (f - y).
    """
    x2 = x1 if x2 is None else x2
    array(2)("x2", x2)
    same_columns(moments=moments.mean, x1=x1, x2=x2)
    linear = (x1 @ moments.mean)[:, None] + (x2 @ moments.mean)[None, :]
    return (x1 @ x2.T) * (1 + epsilon * linear + epsilon**2 * (x1 @ moments.second @ x2.T))


@takes(
    start=instance(Moments),
    train=pair,
    steps=array(integers=True),
    alpha=real,
    epsilon=real,
    learning_rate=number(),
    centered=boolean,
)
def gradient_descent(
    start: Moments,
    train: tuple[Real[jax.Array, "P D"], Real[jax.Array, "P"]],
    steps: Sequence[int],
    *,
    alpha: Scalar,
    epsilon: Scalar,
    learning_rate: Scalar,
    centered: bool = True,
) -> Moments:
    """The moments along full-batch gradient descent on mean((f - y)^2) / alpha^2, at the rate learning_rate * N.

    One program for all settings of one shape; float32 suffices in the lazy regime too, because it is the change of
    the moments that is accumulated. Under `jax.vmap` over start, train, alpha, epsilon or learning_rate it runs many
    networks at once.

    Args:
        start: moments at step 0.
        train: inputs (P, D) and targets (P,); everything is computed in the inputs' dtype.
        steps: increasing step numbers to record at; 0 gives the start.
        alpha: scale of the output.
        epsilon: share of the quadratic feature.
        learning_rate: c, per neuron. Stable while c < D / (1 + sqrt(D / P))^2 in the lazy regime; at small alpha the
            sharpness grows with epsilon / alpha, and too large a rate diverges (entries not finite).
        centered: train f - f_0 rather than f.

    Returns:
        Moments with a leading axis of the recorded steps.

    Raises:
        ValueError: shapes do not fit, or steps do not increase from 0 or more.

    Source: derived; a step is W -> W (I - a eps G) - a 1 v^T with residuals r, v = X^T r, G = X^T diag(r) X and
    a = 2 c / (P alpha), of which these are the moments.
    """
    x, y = train
    _check(start, x, y)
    times = np.asarray(steps)
    if times.ndim != 1 or not len(times) or times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"steps are {steps}; they must increase, from 0 or more")
    start, y, alpha, epsilon, learning_rate = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, x.dtype), (start, y, alpha, epsilon, learning_rate)
    )
    reference = start if centered else jax.tree.map(jnp.zeros_like, start)
    return _descend(start, reference, x, y, alpha, epsilon, learning_rate, jnp.asarray(times))


@jax.jit
def _descend(
    start: Moments,
    reference: Moments,
    x: jax.Array,
    y: jax.Array,
    alpha: Scalar,
    epsilon: Scalar,
    learning_rate: Scalar,
    times: jax.Array,
) -> Moments:
    a = 2 * learning_rate / (y.shape[0] * alpha)
    offset = predict(subtract(start, reference), x, alpha=alpha, epsilon=epsilon) - y

    def step(_: jax.Array, change: Moments) -> Moments:
        r = predict(change, x, alpha=alpha, epsilon=epsilon) + offset
        v, b = a * (x.T @ r), a * epsilon * (x.T @ (r[:, None] * x))
        w, m = start.mean + change.mean, start.second + change.second
        u = w - b @ w
        bm, outer = b @ m, jnp.outer(v, u)
        grown = -bm - bm.T + bm @ b - outer - outer.T + jnp.outer(v, v)
        return Moments(change.mean - b @ w - v, change.second + grown)

    def record(change: Moments, span: jax.Array) -> tuple[Moments, Moments]:
        change = jax.lax.fori_loop(span[0], span[1], step, change)
        return change, change

    spans = jnp.stack([jnp.concatenate([jnp.zeros_like(times[:1]), times[:-1]]), times], axis=1)
    _, changes = jax.lax.scan(record, jax.tree.map(jnp.zeros_like, start), spans)
    return jax.tree.map(lambda change, first: change + first[None], changes, start)


@takes(start=instance(Moments), train=pair, epsilon=real, learning_rate=number())
def lazy_descent(
    start: Moments,
    train: tuple[Real[jax.Array, "P D"], Real[jax.Array, "P"]],
    steps: Sequence[float],
    *,
    epsilon: Scalar,
    learning_rate: Scalar,
) -> Moments:
    """Gradient descent of the network linearised at its start: the limit alpha -> infinity of `gradient_descent`.

    The centred predictor then follows kernel regression with the initial tangent kernel. In closed form: one
    eigendecomposition, and a step number may be infinite.

    Args:
        start: moments at step 0.
        train: inputs (P, D) and targets (P,).
        steps: step numbers, (K,); ``inf`` is kernel regression without ridge (minimum norm where K is singular).
        epsilon: share of the quadratic feature.
        learning_rate: c, per neuron, as in `gradient_descent`.

    Returns:
        alpha times the change of the moments, to first order, with a leading axis of the steps: give it to `predict`
        and `population_loss` with alpha = 1.

    Raises:
        ValueError: shapes do not fit, or the learning rate is unstable.
    """
    x, y = train
    _check(start, x, y)
    start, y = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), (start, y))
    rate = 2 * learning_rate / y.shape[0]
    path, largest = _descend_lazily(start, x, y, epsilon, rate, jnp.asarray(steps, x.dtype))
    if not rate * largest < 2:
        raise ValueError(
            f"learning_rate {learning_rate} is unstable; it must be below {y.shape[0] / float(largest):.3g}"
        )
    return path


@jax.jit
def _descend_lazily(
    start: Moments, x: jax.Array, y: jax.Array, epsilon: Scalar, rate: Scalar, steps: jax.Array
) -> tuple[Moments, jax.Array]:
    values, vectors = jnp.linalg.eigh(tangent_kernel(start, x, epsilon=epsilon))
    seen = values > values[-1] * values.size * jnp.finfo(x.dtype).eps
    power = vectors.T @ y / jnp.where(seen, values, 1)

    def change(step: jax.Array) -> Moments:
        left = jnp.abs(1 - rate * values) ** step
        c = vectors @ jnp.where(seen, (1 - left) * power, 0)
        v, g = x.T @ c, x.T @ (c[:, None] * x)
        outer, product = jnp.outer(start.mean, v), epsilon * start.second @ g
        return Moments(v + epsilon * g @ start.mean, outer + outer.T + product + product.T)

    return jax.vmap(change)(steps), values[-1]


@takes(moments=instance(Moments), target=instance(Target), alpha=real, epsilon=real)
def population_loss(moments: Moments, target: Target, *, alpha: Scalar, epsilon: Scalar) -> Loss:
    """Test loss E (f - y)^2 over x ~ N(0, I / D), from the moments alone.

    Args:
        moments: of the network, or for the centred predictor `subtract` (later, start); leading axes allowed.
        target: the function to learn; (beta . x)^2 is Target(0, 2 beta beta^T).
        alpha: scale of the output.
        epsilon: share of the quadratic feature.

    Returns:
        Loss, each part with the leading axes of the moments. Not divided by alpha^2.

    Source: Kumar et al. 2024, section 3 (there for y = (beta . x)^2 / 2).
    """
    same_columns(moments=moments.mean, target=target.linear)
    dim = moments.mean.shape[-1]
    lead = (1,) * (moments.mean.ndim - 1)
    linear = alpha * moments.mean - target.linear.reshape(*lead, dim)
    quadratic = alpha * epsilon * moments.second - target.hessian.reshape(*lead, dim, dim)
    trace = jnp.trace(quadratic, axis1=-2, axis2=-1)
    return Loss(
        (trace / dim) ** 2 / 4,
        jnp.sum(quadratic**2, axis=(-2, -1)) / (2 * dim**2),
        jnp.sum(linear**2, axis=-1) / dim,
    )


@takes(start=instance(Moments), direction=array(1), strength=real)
def aligned(start: Moments, direction: Real[jax.Array, "D"], strength: Scalar) -> Moments:
    """A start whose features know a direction: weights w + strength g b / |b|, g ~ N(0, 1) for each neuron.

    Args:
        start: moments of w.
        direction: b, (D,).
        strength: standard deviation added along b; 0 leaves the start as it is.

    Returns:
        Moments; the second one gains strength^2 b b^T / |b|^2.
    """
    same_columns(start=start.mean, direction=direction)
    unit = direction / jnp.linalg.norm(direction)
    return start._replace(second=start.second + strength**2 * jnp.outer(unit, unit))


def _check(start: Moments, x: jax.Array, y: jax.Array) -> None:
    dim = start.mean.shape[-1]
    if x.ndim != 2 or x.shape[1] != dim or y.shape != x.shape[:1]:
        raise ValueError(
            f"inputs have shape {x.shape} and targets {y.shape}; moments of dimension {dim} need (P, {dim}) and (P,)"
        )
