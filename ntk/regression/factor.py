"""Cholesky decomposition of a kernel matrix, with jitter only where rounding asks for it.

    L L^T = K + (shift + jitter) I,    x = L^-T L^-1 b,    left out: (b - f)_i = x_i / ((K + (shift + jitter) I)^-1)_ii

Source: Rasmussen & Williams (2006), algorithm 2.1 and equation 5.12.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from ntk.types import Array


class Result(NamedTuple):
    """Solution of (matrix + (shift + jitter) I) x = b.

    Attributes:
        x: shaped as b.
        residual: |b - A x| / |b| of each column; 0 where b is 0.
        jitter: what was added to the diagonal besides the shift.
        condition: estimate of the condition number from below.
        found: whether every pivot is above the rounding of the largest entry.
        pivot: the smallest one.
        leave_one_out: x_i / (A^-1)_ii, shaped as b; or None.
    """

    x: Array
    residual: Array
    jitter: Array
    condition: Array
    found: Array
    pivot: Array
    leave_one_out: Array | None


@functools.partial(jax.jit, static_argnames="leave_one_out")
def solve(matrix: Array, b: Array, shift: Array, limit: Array, leave_one_out: bool) -> Result:
    """Solves by Cholesky; x and leave_one_out can be differentiated.

    Args:
        matrix: symmetric (n, n).
        b: right-hand sides (n, k).
        shift: added to the diagonal.
        limit: most jitter, in units of sqrt(n) times the largest entry.
        leave_one_out: whether to invert the matrix, too.
    """
    factor, jitter, pivot, found = decompose(*map(jax.lax.stop_gradient, (matrix, shift, limit)))
    shift = shift + jitter

    def times(v: Array) -> Array:
        return jnp.matmul(matrix, v, precision="highest") + shift * v

    def solved(v: Array) -> Array:
        # Differentiated as a linear system: the search for the jitter is not.
        return jax.lax.custom_linear_solve(
            times, v, lambda _, w: cho_solve((factor, True), w), symmetric=True
        )

    x, left = solved(b), None
    if leave_one_out:
        # y_i - f_(-i)(x_i) = x_i / (A^-1)_ii: no sample is fitted again.
        left = x / jnp.diagonal(solved(jnp.eye(b.shape[0], dtype=b.dtype)))[:, None]
    size = jnp.linalg.norm(b, axis=0)
    residual = jnp.linalg.norm(b - times(x), axis=0) / jnp.where(size > 0, size, 1)
    residual, condition = jax.lax.stop_gradient((residual, _condition(times, factor)))
    return Result(x, residual, jitter, condition, found, pivot, left)


def decompose(matrix: Array, shift: Array, limit: Array) -> tuple[Array, Array, Array, Array]:
    """Lower factor of matrix + (shift + jitter) I, jitter, smallest pivot, and whether it will do.

    A pivot up to sqrt(n) eps of the largest entry may be all rounding. Jitter starts at four times
    that, and grows tenfold up to the limit.
    """
    n = matrix.shape[0]
    scale = jnp.sqrt(n).astype(matrix.dtype) * jnp.abs(matrix).max()
    # Entries of random rounding errors eps K make a matrix of norm sqrt(n) eps K.
    least = scale * jnp.finfo(matrix.dtype).eps
    most = jnp.maximum(scale * limit, 4 * least).astype(matrix.dtype)
    where = jnp.arange(n)

    def failed(state: tuple) -> Array:
        _, jitter, _, found = state
        return ~found & (jitter < most)

    def attempt(state: tuple) -> tuple[Array, Array, Array, Array]:
        jitter = jnp.minimum(jnp.maximum(10 * state[1], 4 * least), most)
        jitter = jnp.where(state[1] < 0, 0, jitter)  # without any, first
        shifted = matrix.at[where, where].add(shift + jitter)
        factor = jax.lax.linalg.cholesky(shifted, symmetrize_input=False)
        pivot = jnp.min(jnp.diagonal(factor)) ** 2
        return factor, jitter, pivot, pivot > least

    none = jnp.full((), -1, matrix.dtype)
    start = (jnp.zeros_like(matrix), none, none, jnp.array(False))
    return jax.lax.while_loop(failed, attempt, start)


def _condition(times: Callable[[Array], Array], factor: Array) -> Array:
    """Largest over smallest Rayleigh quotient after twelve power iterations each way."""
    n = factor.shape[0]
    start = jnp.cos(jnp.arange(n, dtype=factor.dtype) ** 2)  # in no special direction

    def power(apply: Callable[[Array], Array]) -> Array:
        def step(_: int, v: Array) -> Array:
            w = apply(v)
            return w / jnp.linalg.norm(w)

        v = jax.lax.fori_loop(0, 12, step, start / jnp.linalg.norm(start))
        return jnp.dot(v, apply(v), precision="highest")

    return power(times) * power(lambda v: cho_solve((factor, True), v))
