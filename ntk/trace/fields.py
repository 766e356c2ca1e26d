"""Gaussian fields over pairs of positions, as the scores of queries and keys are: drawn at two samples at once.

A score is a sum over many units of a query times a key, so that the scores of one head are Gaussian with covariance
E[G(x)[a, e] G(x')[c, f]] = K_q(x, x')[a, c] K_k(x, x')[e, f]. With L_q and L_k roots of the covariances of queries and
keys over the positions of both samples, G = L_q Z L_k^T with Z standard normal has just that covariance; no matrix
over pairs of positions is formed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from ntk.kernel import Array, Kernel


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
    first = _root(b.first)
    n1, n2, size, _ = b.cross.shape
    flat = jnp.moveaxis(b.cross, 1, 2).reshape(n1, size, n2 * size)
    part = solve_triangular(first, flat, lower=True).reshape(n1, size, n2, size)
    part = jnp.transpose(part, (0, 2, 3, 1))
    left = b.second[None] - part @ jnp.swapaxes(part, 2, 3)
    if coincident is None:
        return Roots(first, jnp.concatenate([part, _root(left)], -1))
    same = coincident[:, :, None, None]
    left = jnp.where(same, jnp.eye(size, dtype=left.dtype)[None, None], left)
    part = jnp.where(same, first[:, None], part)
    return Roots(first, jnp.concatenate([part, jnp.where(same, 0, _root(left))], -1))


def _root(cov: Array) -> Array:
    """Lower triangular L with L L^T the covariance, its eigenvalues raised to just above zero.

    Covariances that were estimated from draws are no covariances to the last digit. Derivatives are those of the
    covariance as it is.
    """
    size = cov.shape[-1]
    scale = jnp.trace(cov, axis1=-2, axis2=-1)[..., None] / size
    epsilon = 4 * size * jnp.finfo(cov.dtype).eps
    least = jax.lax.stop_gradient(epsilon * jnp.maximum(scale, 1e-20))
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(cov))
    raised = (vectors * (jnp.maximum(values, least) - values)[..., None, :]) @ jnp.swapaxes(
        vectors, -1, -2
    )
    more = least[..., None] * jnp.eye(size, dtype=cov.dtype).reshape(
        (1,) * (cov.ndim - 2) + (size, size)
    )
    return jnp.linalg.cholesky(cov + raised + more)


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


def draw(key: Any, index: Array, q: Blocks, k: Blocks, q_root: Roots, k_root: Roots) -> Draw:
    """Scores with mirror images: 2 M draws from M indices.

    Directions need the right covariance between the samples only, so that signs at the first one serve; their
    products are Hutchinson's estimate of a trace.
    """
    sizes = q.first.shape[-1], k.first.shape[-1]
    z, signs = jax.vmap(lambda i: _normals(jax.random.fold_in(key, i), sizes))(index)
    z, signs = z.astype(q.first.dtype), signs.astype(q.first.dtype)
    near = z[:, : sizes[0], : sizes[1]]
    first = jnp.einsum("nab,sbe,nfe->snaf", q_root.first, near, k_root.first)
    second = jnp.einsum("nmab,sbe->snmae", q_root.second, z)
    second = jnp.einsum("snmae,nmfe->snmaf", second, k_root.second)
    parts = []
    if k.tangent is not None:
        parts.append((q.cross, k.tangent))
    if q.tangent is not None:
        parts.append((q.tangent, k.cross))
    one = two = None
    if parts:
        moved = sum(
            jnp.einsum("snmbe,nmef->snmbf", jnp.einsum("nmab,sae->snmbe", a, signs), b)
            for a, b in parts
        )
        one = jnp.broadcast_to(signs[:, None], (signs.shape[0], first.shape[1], *sizes))
        one, two = jnp.concatenate([one, one]), jnp.concatenate([moved, moved])
    return Draw(jnp.concatenate([first, -first]), jnp.concatenate([second, -second]), one, two)


def _normals(key: Any, sizes: tuple[int, int]) -> tuple[Array, Array]:
    """Normals over the positions of two samples, and signs over those of one; the same in every precision."""
    rows, columns = sizes
    one, two = jax.random.split(key)
    z = jax.random.normal(one, (2 * rows, 2 * columns), jnp.float32)
    return z, jnp.where(jax.random.bits(two, sizes, jnp.uint32) % 2 == 0, 1.0, -1.0)
