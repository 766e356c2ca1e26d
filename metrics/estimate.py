"""A number with its standard error, at any scale, and the look at an array's values that jit forbids.

Squares of numbers beyond 1e19 overflow in single precision, and below 1e-19 they vanish: norms and
standard errors are taken in units of a power of two near the largest entry, which rounds nothing.

    mean +- sqrt(sum (x - mean)^2 / (n (n - 1))) of n independent samples
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import show
from ntk.types import Data, PyTree


@show.readable
class Estimate(NamedTuple):
    """A value and its standard error, of one shape."""

    value: Data
    error: Data


def mean_estimate(samples: Data) -> Estimate:
    """Mean of independent samples over the leading axis, and its standard error (NaN for one sample)."""
    unit = power_of_two(samples, 0)
    scaled = samples / unit
    count = samples.shape[0]
    error = jnp.std(scaled, 0, ddof=1) / jnp.sqrt(count) if count > 1 else scaled[0] * jnp.nan
    return Estimate(jnp.mean(scaled, 0) * unit[0], error * unit[0])


def power_of_two(x: Data, axis: int | Sequence[int] | None = None) -> jax.Array:
    """The power of two at or below the largest |x| along the axes, which are kept with size 1; 1/2 for zeros."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    return jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1] - 1)


def norm(x: Data, axis: int | Sequence[int] | None = None) -> jax.Array:
    """Euclidean (Frobenius) norm over the axes, at any scale."""
    unit = power_of_two(x, axis)
    return jnp.sqrt(jnp.sum(jnp.abs(x / unit) ** 2, axis=axis)) * jnp.squeeze(unit, axis)


def tree_unit(tree: PyTree) -> jax.Array:
    """`power_of_two` of all leaves together, a scalar."""
    return power_of_two(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]))[0]


def concrete(array: Any) -> np.ndarray | None:
    """The values, or None where they cannot be looked at (inside jit, vmap or scan; on other hosts).

    Checks of values run where this is not None: a compiled function cannot raise.
    """
    try:
        return np.asarray(array) if getattr(array, "is_fully_addressable", True) else None
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None
