"""Initializers of a chosen rank for the kernel of any layer."""

from __future__ import annotations

import math
from typing import Annotated as Float

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from models.fields import check_number
from models.mlp import Initializer

LECUN = nn.initializers.lecun_normal()


def low_rank(
    rank: int,
    base: Initializer = LECUN,
    *,
    flat: bool = False,
    directions: Float[jax.Array, "inputs k"] | None = None,
) -> Initializer:
    """An initializer of kernels of a rank at most: a draw's leading singular vectors, at the draw's Frobenius norm.

    Kernels are matrices (inputs, outputs), all axes but the last taken together. The mean square of the entries is the
    draw's own, so rules about fan-in stand, at every rank; one that has no more rows or columns than the rank keeps
    its spectrum.

    Args:
        rank: 1 or more.
        base: draws the full kernel, by default with variance 1 / fan_in.
        flat: whether the singular values that remain become equal.
        directions: (inputs, k), independent, k of at most rank: they span the directions of the inputs that the
            leading k singular values read, which are random otherwise.

    Returns:
        ``(key, shape, dtype) -> kernel``; `directions` fit kernels with so many inputs only.

    Raises:
        TypeError: rank is no integer, or base no function.
        ValueError: rank is not positive; directions are no matrix, too many, not finite or dependent; a kernel has one
            axis, or other inputs.

    Source: Liu et al. 2023, arXiv:2310.08513 (truncated, of equal norm); flat and directions are for
    `limits.linear_rank`.
    """
    check_number("low_rank", "rank", rank, 1)
    if not callable(base):
        raise TypeError(f"low_rank: base={base!r} must be an initializer, such as lecun_normal().")
    given = None if directions is None else jnp.asarray(directions)
    if given is not None:
        _check_directions(given, rank)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        if len(shape) < 2:
            raise ValueError(f"low_rank: a kernel of shape {shape} has no rank; it needs two axes.")
        if given is not None and math.prod(shape[:-1]) != given.shape[0]:
            raise ValueError(
                f"low_rank: directions of shape {given.shape} do not fit a kernel of shape {shape}."
            )
        # Half precision has no singular value decomposition.
        full = base(key, shape, dtype).astype(jnp.promote_types(dtype, jnp.float32))
        full = full.reshape(-1, shape[-1])
        left, values, right = jnp.linalg.svd(full, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        if flat:
            values = jnp.ones_like(values)
        if given is not None:
            # Given directions first, the rest made orthogonal to them.
            joined = jnp.concatenate([given.astype(full.dtype), left], axis=1)
            left = jnp.linalg.qr(joined)[0][:, : len(values)]
        before, after = jnp.linalg.norm(full), jnp.linalg.norm(values)
        scale = before / jnp.where(after == 0, 1, after)  # a base of zeros stays one
        return ((left * (scale * values)[None]) @ right).reshape(shape).astype(dtype)

    return init


def _check_directions(given: jax.Array, rank: int) -> None:
    """Refuses directions that are no matrix, too many, or (outside of a trace) not finite or dependent."""
    if given.ndim != 2 or not 1 <= given.shape[1] <= rank:
        raise ValueError(
            f"low_rank: directions of shape {given.shape} must be (inputs, k) with k of 1 to rank={rank}."
        )
    if isinstance(given, jax.core.Tracer):
        return
    columns = np.asarray(given, np.float64)
    if not np.isfinite(columns).all():
        raise ValueError("low_rank: directions have entries that are not finite.")
    largest = np.abs(columns).max(axis=0)
    units = columns / np.where(largest == 0, 1, largest)
    precision = np.finfo(np.float32).eps * max(units.shape)
    if (found := np.linalg.matrix_rank(units, rtol=precision)) < units.shape[1]:
        raise ValueError(
            f"low_rank: {units.shape[1]} directions span only {found}; they must be independent."
        )
