"""Pruning by magnitude: which weights stay, how many, and random masks to compare with.

A mask is a pytree like params with 1 where a weight stays and 0 where it is gone. A pruned network is the network at
`masked(params, mask)`, for training too: gradients of that function with respect to params vanish where the mask does,
and so do the steps of every optimizer that acts on entries alone.

Source: Frankle & Carbin 2019, arXiv:1803.03635.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metrics import checks
from metrics.checks import real
from ntk.types import Data, Float, Scalar


def full_mask(params: Any) -> Any:
    """The mask that keeps everything.

    Args:
        params: pytree of float arrays.

    Raises:
        ValueError: it holds no floating-point numbers.
    """
    checks.check_params(params)
    return jax.tree.map(jnp.ones_like, params)


def masked(params: Any, mask: Any) -> Any:
    """The parameters that are left, 0 elsewhere: ``apply(masked(params, mask), x)`` is the pruned network.

    Args:
        params: pytree of float arrays.
        mask: the same structure and shapes.

    Raises:
        ValueError: structures or shapes differ.
    """
    checks.same_trees(params=params, mask=mask)
    # A product alone would keep what is not finite.
    return jax.tree.map(lambda p, m: jnp.where(jnp.asarray(m) == 0, 0, p * m), params, mask)


def magnitude_mask(params: Any, mask: Any, shares: Any) -> Any:
    """Removes from every parameter a share of the weights that are left, the smallest ones.

    Args:
        params: pytree of float arrays, as a rule after training.
        mask: what is left before.
        shares: of what is left, each in [0, 1], rounded down to whole weights: one number for all matrices and larger
            arrays (vectors, biases as a rule, are then kept), or a pytree like params with one for each.

    Returns:
        The next mask. Jit- and vmappable; inside of a trace a mask of floats is NaN for a parameter with weights left
        that are.

    Raises:
        ValueError: structures or shapes differ, a share lies outside 0 to 1, or a weight that is left is NaN.

    Source: Frankle & Carbin 2019, arXiv:1803.03635, section 2 (layer-wise, iterative).
    """
    checks.same_trees(params=params, mask=mask)
    if jax.tree.structure(shares) == jax.tree.structure(0):
        share = shares
        shares = jax.tree.map(lambda leaf: share if jnp.ndim(leaf) > 1 else 0.0, params)
    if jax.tree.structure(shares) != jax.tree.structure(params):
        raise ValueError(
            f"shares has the structure {jax.tree.structure(shares)}; it must be one number, or a "
            f"pytree like params, {jax.tree.structure(params)}"
        )
    return jax.tree.map(_pruned, params, mask, shares)


def shuffled_mask(mask: Any, key: jax.Array) -> Any:
    """A random mask that keeps as many weights of every parameter.

    Args:
        mask: pytree of arrays of 0 and 1.
        key: PRNG key.

    Raises:
        TypeError: key is none, or a leaf of mask no array.
        ValueError: mask holds no weights.
    """
    leaves, structure = jax.tree.flatten(mask)
    if not leaves:
        raise ValueError("mask holds no arrays")
    for leaf in leaves:
        if not hasattr(leaf, "shape"):
            raise TypeError(f"mask holds {leaf!r}; it must be a pytree of arrays of 0 and 1")
    keys = jax.random.split(checks.key(key), len(leaves))
    mixed = [
        jax.random.permutation(k, jnp.ravel(leaf)).reshape(jnp.shape(leaf))
        for k, leaf in zip(keys, leaves)
    ]
    return jax.tree.unflatten(structure, mixed)


def density(mask: Any) -> Float[jax.Array, ""]:
    """Share of the weights that are left.

    Args:
        mask: pytree of arrays of 0 and 1.

    Raises:
        TypeError: a leaf is no array of numbers.
        ValueError: mask holds no weights.
    """
    leaves = [real("mask", leaf) for leaf in jax.tree.leaves(mask)]
    if not sum(leaf.size for leaf in leaves):
        raise ValueError("mask holds no weights")
    first, *others = (jnp.sum(leaf) for leaf in leaves)
    return sum(others, first) / sum(leaf.size for leaf in leaves)


def _pruned(weights: Data, mask: Data, share: Scalar) -> jax.Array:
    share = checks.scalar(
        "shares", checks.within("shares", share, lambda s: (s >= 0) & (s <= 1), "between 0 and 1")
    )
    left = jnp.ravel(mask) > 0
    lost = jnp.any(left & jnp.isnan(jnp.ravel(weights)))
    if checks.flag(lost):
        raise ValueError("params holds nan where the mask keeps it; the run has diverged")
    order = jnp.argsort(jnp.where(left, jnp.abs(jnp.ravel(weights)), jnp.inf))
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    # .3 * 10 is 2.9999... in some precisions: what is whole but for rounding is whole.
    removed = jnp.floor(share * jnp.sum(left) + 1e-3)
    kept = (left & (rank >= removed)).reshape(jnp.shape(mask)).astype(jnp.asarray(mask).dtype)
    return jnp.where(lost, jnp.nan, kept) if jnp.issubdtype(kept.dtype, jnp.floating) else kept
