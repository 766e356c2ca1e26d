"""How precisely a network's moments are evaluated, and what their derivatives are.

Where two samples nearly coincide, 1 - correlation is a small difference of numbers near one: single precision has lost
it once a correlation is rounded, whatever comes afterwards. There a network is evaluated in double precision, from the
inputs on, and rounded once. `jax_enable_x64` is on only while that part is being traced.

With K exact up to that rounding, u = 2^-24 the unit roundoff and s = K11 + K22 - 2 K12, the result has an error of at
most u (K11 + K22 + 2 |K12|), so of 4 u max(K11, K22), half a unit in the last place of each entry. An s below that, as
that of a smooth NNGP at relative distance 1e-4, has no single-precision value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk.types import Array

NEAR = 1 - 1e-3
"""Correlation of samples, at relative distance .045, from which on single precision does not do."""


def split(value: Callable[..., Any], slopes: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the values of one function and the derivatives, of every order, of another.

    Args:
        value: function of pytrees of arrays; it may close over traced values.
        slopes: function of the same arguments with a result of the same structure.
    """

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)

        def flat(fn: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *leaves: fn(*jax.tree.unflatten(tree, leaves))

        values, hidden = _opened(flat(value), leaves)
        if hidden:  # hyperparameters: a custom rule does not see their tangents
            fixed = jax.lax.stop_gradient((*leaves, *hidden))
            return jax.tree.map(_grafted, _guarded(values)(*fixed), slopes(*args))
        known = jax.custom_jvp(_guarded(values))

        @known.defjvp
        def _(primals: tuple, tangents: tuple) -> tuple:
            return known(*primals), jax.jvp(flat(slopes), primals, tangents)[1]

        return known(*leaves)

    return call


def doubled(network: Callable[..., Any]) -> Callable[..., Any]:
    """`network` evaluated in double precision; its results, and the arguments, are in single."""

    def wide(*args: Any) -> Any:
        with jax.enable_x64(True):
            out = network(*jax.tree.map(lambda x: _cast(x, jnp.float32, jnp.float64), args))
            return jax.tree.map(lambda x: _cast(x, jnp.float64, jnp.float32), out)

    return wide


def near(correlation: Array, same: Array | None) -> Array:
    """Whether a correlation (N1, N2) of different samples exceeds `NEAR`; opposite samples count, too."""
    size = abs(correlation)
    size = size if same is None else jnp.where(same, 0, size)
    return jnp.any(jnp.max(size, 0) > NEAR)  # a maximum over both axes would not be vectorised


def near_samples(x1: Any, x2: Any, same: Array | None, batch_axis: int) -> Array:
    """`near` of samples of any shape, from a quarter of 64 numbers or more: sums of four with random signs.

    These are a contraction, so that no pair is missed, and some are taken that are twice as far apart.
    """
    one, two = (_folded(_directions(x, batch_axis)) for x in (x1, x2))
    # x . x' = y . y' + z . z' with z the part that the sums lose, and z . z' <= (|z|^2 + |z'|^2) / 2.
    lost = [(1 - jnp.sum(y * y, 1)) / 2 for y in (one, two)]
    bound = abs(jnp.matmul(one, two.T, precision="highest")) + (lost[0][:, None] + lost[1][None])
    return near(bound, same)


any_near = jax.jit(near_samples, static_argnums=3)


def _directions(x: Any, batch_axis: int) -> Array:
    parts = [jnp.moveaxis(part, batch_axis, 0) for part in jax.tree.leaves(x)]
    x = jnp.concatenate([p.reshape(p.shape[0], -1) for p in parts], 1)
    size = jnp.sum(x * x, 1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(size > 0, size, 1))


def _folded(x: Array) -> Array:
    if x.shape[1] < 64:
        return x
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % 4)])
    # Entries of +-1/2 in fours: the rows of the map are orthonormal, and it is a projection.
    signs = np.random.default_rng(0).choice([-0.5, 0.5], x.shape[1])
    return jnp.sum((x * jnp.asarray(signs, x.dtype)[None]).reshape(x.shape[0], 4, -1), 1)


def _opened(fn: Callable[..., Any], leaves: list) -> tuple[Callable[..., Any], list]:
    """fn(*leaves, *hidden), and the hidden values: those that fn closes over and a transformation has not told.

    `jax.closure_convert` leaves out those of a vmap.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*leaves)
    unknown = [k for k, x in enumerate(closed.consts) if isinstance(x, jax.core.Tracer)]

    def call(*args: Any) -> Any:
        known = list(closed.consts)
        for k, x in zip(unknown, args[len(leaves) :]):
            known[k] = x
        out = jex.jaxpr_as_fun(jex.ClosedJaxpr(closed.jaxpr, known))(*args[: len(leaves)])
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return call, [closed.consts[k] for k in unknown]


def _cast(x: Array, old: Any, new: Any) -> Array:
    return x.astype(new) if jnp.result_type(x) == old else x


def _guarded(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn, whose batching is traced with double precision on: rules name the types of their results."""

    def inside(*operands: Array) -> Any:
        with jax.enable_x64(True):
            return fn(*operands)

    call = jax.custom_batching.custom_vmap(inside)

    @call.def_vmap
    def _(_: int, batched: list[bool], *operands: Array) -> tuple[Any, Any]:
        out = _guarded(jax.vmap(fn, [0 if b else None for b in batched]))(*operands)
        return out, jax.tree.map(lambda _: True, out)

    return call


@jax.custom_jvp
def _grafted(value: Array, _: Array) -> Array:
    """The first argument, with the derivatives of the second."""
    return value


@_grafted.defjvp
def _grafted_jvp(primals: tuple, tangents: tuple) -> tuple:
    return _grafted(*primals), tangents[1]
