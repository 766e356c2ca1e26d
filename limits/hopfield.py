"""Modern Hopfield networks: patterns stored by an energy whose descent is attention.

Patterns x_1 .. x_N of norm at most M are the rows of X, the state is xi, beta the inverse temperature:

    E(xi) = -lse(beta, X xi) + |xi|^2 / 2 + log(N) / beta + M^2 / 2,   lse(beta, z) = log(sum_i exp(beta z_i)) / beta
    xi <- X^T softmax(beta X xi)

The update never increases E. It is softmax attention of the query xi over keys X and values X, with beta = 1/sqrt(d_k).

Source: Ramsauer et al. 2021, arXiv:2008.02217. The constant of the retrieval bound and the capacity curve are derived
here, the curve by the annealed average of random-energy arguments as in Lucibello & Mezard 2024.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from scipy import special

from limits.arguments import array, count, number, takes
from ntk import show
from ntk.types import Array, Bool, Float, Integer, Real

_STATE = {"state": array(), "patterns": array(2), "beta": number(positive=True)}


@show.readable
class Retrieval(NamedTuple):
    """Where the updates end.

    Attributes:
        state: (..., d).
        weights: (..., N), the softmax over the patterns at that state.
        steps: updates taken, the same for all states.
        converged: (...), whether the last update moved the state by less than the tolerance.
    """

    state: Float[jax.Array, "*batch d"]
    weights: Float[jax.Array, "*batch N"]
    steps: Integer[jax.Array, ""]
    converged: Bool[jax.Array, "*batch"]


@takes(**_STATE)
def update(
    state: Real[ArrayLike, "*batch d"], patterns: Real[ArrayLike, "N d"], beta: float
) -> Float[jax.Array, "*batch d"]:
    """One update, X^T softmax(beta X xi).

    Args:
        state: xi, (..., d).
        patterns: X, (N, d).
        beta: inverse temperature.

    Raises:
        TypeError: an argument of another type.
        ValueError: no patterns, states of another dimension, or beta out of range.
    """
    state, patterns = _arrays(state, patterns)
    return jax.nn.softmax(beta * state @ patterns.T, axis=-1) @ patterns


@takes(**_STATE)
def energy(
    state: Real[ArrayLike, "*batch d"], patterns: Real[ArrayLike, "N d"], beta: float
) -> Float[jax.Array, "*batch"]:
    """E of each state, (...); not negative, and its gradient is the state less its update. Arguments as in `update`."""
    state, patterns = _arrays(state, patterns)
    lse = jax.nn.logsumexp(beta * state @ patterns.T, axis=-1) / beta
    largest = jnp.square(patterns).sum(-1).max()
    return -lse + jnp.square(state).sum(-1) / 2 + math.log(len(patterns)) / beta + largest / 2


@takes(**_STATE, tolerance=number(positive=True), max_steps=count())
def retrieve(
    state: Real[ArrayLike, "*batch d"],
    patterns: Real[ArrayLike, "N d"],
    beta: float,
    *,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> Retrieval:
    """Updates until no state moves by the tolerance: a stored pattern, the mean of a cluster, or that of all.

    Args:
        state: xi, (..., d).
        patterns: X, (N, d).
        beta: inverse temperature.
        tolerance: of the Euclidean movement in one update.
        max_steps: where to give up.

    Returns:
        Retrieval; 1 / sum_i weights_i^2 is the number of patterns that take part.

    Raises:
        TypeError: an argument of another type.
        ValueError: as in `update`, or a tolerance or max_steps out of range.
    """
    state, patterns = _arrays(state, patterns)

    def moves(carry: tuple[Array, Array, Array]) -> Array:
        _, moved, steps = carry
        return (steps < max_steps) & ~(moved < tolerance).all()

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, steps = carry
        new = jax.nn.softmax(beta * old @ patterns.T, axis=-1) @ patterns
        return new, jnp.linalg.norm(new - old, axis=-1), steps + 1

    start = state, jnp.full(state.shape[:-1], jnp.inf, state.dtype), jnp.zeros((), jnp.int32)
    state, moved, steps = jax.lax.while_loop(moves, step, start)
    weights = jax.nn.softmax(beta * state @ patterns.T, axis=-1)
    return Retrieval(state, weights, steps, moved < tolerance)


@takes(patterns=array(2))
def separation(patterns: Real[ArrayLike, "N d"]) -> Float[jax.Array, "N"]:
    """D_i = min over j != i of x_i . x_i - x_i . x_j, (N,): how far a pattern stands out; infinite for one alone.

    Args:
        patterns: X, (N, d), or the keys of an attention head: where beta D_i is large against log N it retrieves, where
            small it averages.

    Raises:
        TypeError: patterns is no array of numbers.
        ValueError: no patterns.
    """
    x = _patterns(patterns)
    overlaps = x @ x.T
    others = jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, overlaps).max(-1)
    return jnp.diagonal(overlaps) - others


@takes(patterns=array(2), beta=number(positive=True), distance=array())
def retrieval_bound(
    patterns: Real[ArrayLike, "N d"], beta: float, distance: ArrayLike = 0.0
) -> Float[jax.Array, "... N"]:
    """What |update(xi) - x_i| cannot exceed for any xi within a distance of pattern i.

        2 M (N - 1) exp(-beta (D_i - 2 M distance))

    as the weight of another pattern j is at most exp(-beta (x_i - x_j) . xi) and |x_i - x_j| at most 2 M. Above 2 M,
    the trivial bound, it says nothing.

    Args:
        patterns: X, (N, d).
        beta: inverse temperature.
        distance: of the state from the pattern, not negative; a number, or an array (..., N).

    Returns:
        (N,), or the shape of distance.

    Raises:
        TypeError: an argument of another type.
        ValueError: no patterns, or an argument out of range.

    Source: the form of Theorem 5 of the paper; this constant is derived here.
    """
    x, distance = _patterns(patterns), jnp.asarray(distance)
    if not isinstance(distance, jax.core.Tracer) and (distance < 0).any():
        raise ValueError(f"distance is {distance}; it must not be negative")
    if distance.ndim and distance.shape[-1] != len(x):
        raise ValueError(
            f"distance has the shape {distance.shape}; it must be a number or end with {len(x)}"
        )
    radius = jnp.sqrt(jnp.square(x).sum(-1).max())
    gap = separation(x)
    gap = gap.reshape((1,) * max(0, distance.ndim - 1) + gap.shape)
    return 2 * radius * (len(x) - 1) * jnp.exp(-beta * (gap - 2 * radius * distance))


@takes(beta=number(positive=True))
def capacity(beta: float, dim: int | None = None) -> float:
    """alpha_c: of N = exp(alpha d) random unit patterns at inverse temperature beta d one is retrieved below alpha_c.

    At alpha_c the own pattern has as much weight as all others together have in the mean:

        alpha_c = beta - log(E exp(beta d t)) / d,   t the overlap of two patterns
                -> beta - g(beta),  g = beta t + log(1 - t^2) / 2,  t = (sqrt(1 + 4 beta^2) - 1) / (2 beta)

    In high dimension the others' weight equals its mean there (no freezing): alpha_c > -log(1 - t^2) / 2. The limit is
    within 1.1 % of finite dimensions from 12 on, for beta of .5 and 1.

    Args:
        beta: inverse temperature over d; scores of keys and queries of norm r over the root of d have r^2 / d^(3/2).
        dim: d, 2 or more; None for the limit.

    Raises:
        TypeError: an argument of another type.
        ValueError: beta is not positive, or dim below 2.
    """
    if dim is None:
        t = (math.sqrt(1 + 4 * beta**2) - 1) / (2 * beta)
        return beta - beta * t - math.log1p(-(t**2)) / 2
    count(2)("dim", dim)
    order, z = dim / 2 - 1, beta * dim
    # E exp(z t) = Gamma(d/2) (2/z)^(d/2-1) I_(d/2-1)(z)
    log_mean = special.gammaln(dim / 2) - order * math.log(z / 2) + _log_bessel(order, z)
    return float(beta - log_mean / dim)


def _log_bessel(order: float, z: float) -> float:
    """log I_order(z); Debye's expansion to 1/order where the function itself underflows, which is at large orders."""
    scaled = special.ive(order, z)
    if scaled > 1e-280:
        return math.log(scaled) + z
    x = z / order
    p = 1 / math.hypot(1, x)
    eta = 1 / p + math.log(x / (1 + 1 / p))
    correction = math.log1p((3 * p - 5 * p**3) / (24 * order))
    return order * eta - math.log(2 * math.pi * order / p) / 2 + correction


def _patterns(patterns: ArrayLike) -> jax.Array:
    x = jnp.asarray(patterns)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    if not x.size:
        raise ValueError(f"patterns has the shape {x.shape}; it must hold a pattern or more")
    return x


def _arrays(state: ArrayLike, patterns: ArrayLike) -> tuple[jax.Array, jax.Array]:
    x = _patterns(patterns)
    state = jnp.asarray(state)
    if state.shape[-1:] != x.shape[1:]:
        raise ValueError(
            f"state has the shape {state.shape}; its last axis must be that of patterns, {x.shape}"
        )
    kind = jnp.result_type(state, x)
    return state.astype(kind), x.astype(kind)
