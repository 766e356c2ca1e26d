"""Gaussian fields over pairs of positions, as the scores of queries and keys are: drawn at two samples at once.

A score is a sum over many units of a query times a key, so that the scores of one head are Gaussian with covariance
E[G(x)[a, e] G(x')[c, f]] = K_q(x, x')[a, c] K_k(x, x')[e, f]. With L_q and L_k roots of the covariances of queries and
keys over the positions of both samples, G = L_q Z L_k^T with Z standard normal has just that covariance; no matrix
over pairs of positions is formed. A score that sums over a fixed number of units, the size of a head, is no Gaussian:
its queries and keys are drawn themselves.

Source: Hron et al. (2020), "Infinite attention", theorem 3; the roots and directions are derived here.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ntk.infinite.kernel import Array, Kernel


class Blocks(NamedTuple):
    """Moments of one process over the positions of two samples, positions in one axis of length T.

    Attributes:
        first: within samples of the first batch, (N1, T, T).
        cross: between the batches, (N1, N2, T, T).
        second: within samples of the second batch, (N2, T, T).
        tangent: the tangent kernel between the batches, (N1, N2, T, T), or None.
    """

    first: Array
    cross: Array
    second: Array
    tangent: Array | None

    def swapped(self) -> Blocks:
        """The same with the batches exchanged."""
        tangent = None if self.tangent is None else exchanged(self.tangent)
        return Blocks(self.second, exchanged(self.cross), self.first, tangent)


def exchanged(x: Array) -> Array:
    """(N1, N2, T, T') -> (N2, N1, T', T)."""
    return jnp.transpose(x, (1, 0, 3, 2))


def blocks(kernel: Kernel, order: tuple[int, ...] | None = None) -> Blocks:
    """Moments with all axes of positions in one, `order` of them."""
    count = kernel.var1.ndim - 1
    order = tuple(range(count)) if order is None else order

    def flat(x: Array, lead: int) -> Array:
        pairs = [lead + 2 * k + side for side in (0, 1) for k in order]
        size = 1
        for k in order:
            size *= x.shape[lead + 2 * k]
        return jnp.transpose(x, (*range(lead), *pairs)).reshape(*x.shape[:lead], size, size)

    def within(cov: Array | None, var: Array) -> Array:
        return flat(var if cov is None else cov, 1)  # without positions there is nothing within

    ntk = kernel.ntk
    return Blocks(
        within(kernel.within1, kernel.var1),
        flat(kernel.nngp, 2),
        within(kernel.within2, kernel.var2),
        flat(ntk, 2) if ntk is not None and ntk.ndim else None,
    )


class Roots(NamedTuple):
    """Roots of a covariance over the positions of two samples: x = first z, x' = second (z, z').

    Attributes:
        first: (N1, T, T).
        second: (N1, N2, T, 2 T).
    """

    first: Array
    second: Array


def roots(b: Blocks, coincident: Array | None) -> Roots:
    """The triangular root, first the positions of the first sample.

    What is drawn at the first sample does not depend on the second, and a sample that coincides with the first, or
    comes close to it, has the same draws.
    """
    size = b.cross.shape[-1]
    first = jnp.broadcast_to(b.first[:, None], b.cross.shape)
    second = jnp.broadcast_to(b.second[None], b.cross.shape)
    whole = jnp.concatenate(
        [
            jnp.concatenate([first, b.cross], -1),
            jnp.concatenate([jnp.swapaxes(b.cross, 2, 3), second], -1),
        ],
        -2,
    )
    root = _root(whole)
    first, second = root[:, 0, :size, :size], root[:, :, size:]
    if coincident is not None:
        same = jnp.concatenate([first, jnp.zeros_like(first)], -1)[:, None]
        second = jnp.where(coincident[:, :, None, None], same, second)
    return Roots(first, second)


def _root(cov: Array) -> Array:
    """Lower triangular L with L L^T the covariance, by Cholesky's recursion.

    Covariances that were estimated from draws are no covariances to the last digit: no entry of L is let be larger than
    what is left of the variance of its row, so that variances are kept whatever the rest. That also is why no routine
    of a library is called; those of XLA can wait for one another forever besides, where few cores share many matrices.

    Source: Golub & Van Loan, Matrix Computations, section 4.2.
    """
    size = cov.shape[-1]
    variance = jnp.diagonal(cov, axis1=-2, axis2=-1)
    least = 4 * size * jnp.finfo(cov.dtype).eps * jnp.maximum(variance, 1e-20)
    rows = jnp.arange(size).reshape((1,) * (cov.ndim - 2) + (size,))

    def step(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple, None]:
        root, left = state
        index, column = now
        own = jax.lax.dynamic_index_in_dim(root, index, -2)  # (..., 1, n)
        # Cholesky, column by column: C_:k less what earlier columns account for, over the root of the pivot.
        column = column - jnp.sum(root * own, -1)
        pivot = jax.lax.dynamic_index_in_dim(left, index, -1)
        floor = jax.lax.dynamic_index_in_dim(least, index, -1)
        positive = pivot > floor
        column = column * jax.lax.rsqrt(jnp.where(positive, pivot, 1))
        most = jnp.sqrt(jnp.maximum(left, floor))
        column = jnp.where(positive & (rows >= index), jnp.clip(column, -most, most), 0)
        here = (rows == index).astype(cov.dtype)
        root = root + column[..., None] * jnp.expand_dims(here, -2)
        return (root, left - column**2), None

    columns = jnp.moveaxis(cov, -1, 0)
    start = (jnp.zeros_like(cov), variance)
    (root, _), _ = jax.lax.scan(step, start, (jnp.arange(size), columns))
    return root


class Draw(NamedTuple):
    """Scores of some heads at the first sample and at pairs, with a direction in which each moves.

    Attributes:
        first: (M, N1, T_q, T_k).
        second: (M, N1, N2, T_q, T_k).
        direction1: as `first`, or None.
        direction2: as `second`; the mean of direction1 direction2 over draws is the tangent kernel of the scores.
    """

    first: Array
    second: Array
    direction1: Array | None = None
    direction2: Array | None = None


class Field(NamedTuple):
    """Moments and roots of the queries and keys of one field of scores; `few` units if their number is fixed."""

    q: Blocks
    k: Blocks
    q_root: Roots
    k_root: Roots
    few: int = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """Positions of queries and of keys."""
        return self.q.first.shape[-1], self.k.first.shape[-1]

    @property
    def normals(self) -> int:
        """Standard normals of one draw."""
        rows, columns = self.sizes
        # Roots over two samples take 2 rows x 2 columns of them, and directions rows x columns of signs.
        return 3 * self.few * (rows + columns) if self.few else 5 * rows * columns


def draw(field: Field, points: Array) -> Draw:
    """Scores from M points of independent standard normals, (M, field.normals).

    Directions need the right covariance between the samples only, so that signs at the first one serve; their
    products are Hutchinson's estimate of a trace.
    """
    if field.few:
        return _of_few(field, points)
    q, k, q_root, k_root, _ = field
    rows, columns = field.sizes
    points = points.astype(q.first.dtype)
    z = points[:, : 4 * rows * columns].reshape(-1, 2 * rows, 2 * columns)
    signs = jnp.sign(points[:, 4 * rows * columns :]).reshape(-1, rows, columns)
    first = jnp.einsum("nab,sbe,nfe->snaf", q_root.first, z[:, :rows, :columns], k_root.first)
    second = jnp.einsum("nmab,sbe->snmae", q_root.second, z)
    second = jnp.einsum("snmae,nmfe->snmaf", second, k_root.second)
    pairs = []
    if k.tangent is not None:
        # Cov of dG: Theta_q K_k + K_q Theta_k, as G is a product. One side moves by random signs s, the other by
        # A^T s B: entries (a, e) and (b, f) have the mean product A_ab B_ef over draws.
        pairs.append((q.cross, k.tangent))
    if q.tangent is not None:
        pairs.append((q.tangent, k.cross))
    if not pairs:
        return Draw(first, second)
    moved = (
        jnp.einsum("snmbe,nmef->snmbf", jnp.einsum("nmab,sae->snmbe", a, signs), b)
        for a, b in pairs
    )
    direction = jnp.broadcast_to(signs[:, None], first.shape)
    return Draw(first, second, direction, functools.reduce(jnp.add, moved))


def _of_few(field: Field, points: Array) -> Draw:
    """Scores that sum over a fixed number of units: queries times keys, G = Q K^T, dG = dQ K^T + Q dK^T."""
    moved: list[tuple[Array, Array] | None] = []
    ends: list[tuple[Array, Array]] = []
    start = 0
    points = points.astype(field.q.first.dtype)
    for b, root in ((field.q, field.q_root), (field.k, field.k_root)):
        size = b.first.shape[-1]
        z = points[:, start : start + 2 * size * field.few].reshape(-1, 2 * size, field.few)
        start += 2 * size * field.few
        signs = jnp.sign(points[:, start : start + size * field.few]).reshape(-1, size, field.few)
        start += size * field.few
        first = jnp.einsum("nab,sbd->snad", root.first, z[:, :size])
        second = jnp.einsum("nmab,sbd->snmad", root.second, z)
        ends.append((first, second))
        if b.tangent is None:
            moved.append(None)
            continue
        direction = jnp.broadcast_to(signs[:, None], first.shape)
        moved.append((direction, jnp.einsum("nmab,sad->snmbd", b.tangent, signs)))

    def scores(queries: Array, keys: Array) -> Array:
        return jnp.einsum("...ad,...ed->...ae", queries, keys)

    (q1, q2), (k1, k2) = ends
    out = [scores(q1, k1), scores(q2, k2)]
    if all(m is None for m in moved):
        return Draw(*out)
    directions: list[Array] = [jnp.zeros_like(g) for g in out]
    if moved[0] is not None:
        directions = [d + scores(dq, k) for d, dq, k in zip(directions, moved[0], (k1, k2))]
    if moved[1] is not None:
        directions = [d + scores(q, dk) for d, q, dk in zip(directions, (q1, q2), moved[1])]
    return Draw(*out, *directions)


MOST = 2**23
"""Random numbers above which draws are made as the kernel runs: to keep them would take more than they save."""


@functools.lru_cache(maxsize=4)
def low_discrepancy(count: int, size: int, seed: int) -> np.ndarray:
    """Standard normals (count, size) from a scrambled Sobol sequence, in single precision.

    At a few positions they have the error of fifty times as many independent draws.

    Source: Owen (1998), "Scrambling Sobol' and Niederreiter-Xing points".
    """
    from scipy.stats import qmc

    points = qmc.Sobol(size, scramble=True, rng=seed).random_base2(count.bit_length() - 1)
    return special.ndtri(np.clip(points, 1e-9, 1 - 1e-9)).astype(np.float32)


def independent(seed: int, index: Array, size: int) -> Array:
    """Standard normals (M, size), those of each index always the same."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (size,), jnp.float32))(
        index
    )
