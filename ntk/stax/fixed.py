"""Fixed linear maps: indexing, products with constants, sums over the neighbours in a graph.

    y = L x,    K' = L K L^T over pairs of positions (`ntk.infinite.pixels.linear`); of a graph L = A^T

Source: Du et al. (2019), for graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.arguments import axis_within
from ntk.infinite import channels, pixels
from ntk.infinite.evaluate import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.large import tiles
from ntk.stax.layers import Layer, Shape, layer, pixel_axis
from ntk.types import PyTree


def Identity() -> Layer:
    """Returns its input."""
    return layer(lambda params, x, **_: x, lambda kernel, **_: kernel, "Identity", remask=False)


def slice_layer_axes(idx: Any, ndim: int) -> list[Any]:
    """An index as one entry for every axis."""
    idx = list(idx) if isinstance(idx, tuple) else [idx]
    if Ellipsis in idx:
        at = idx.index(Ellipsis)
        idx[at : at + 1] = [slice(None)] * (ndim - len(idx) + 1)
    return idx + [slice(None)] * (ndim - len(idx))


def spread_mask(mask: Array, input_shape: Shape, channel_axis: int) -> Array:
    """A mask with every axis but the channels at its full size."""
    shape = list(input_shape)
    shape[channel_axis] = mask.shape[channel_axis]
    return jnp.broadcast_to(mask, shape)


class _Slice:
    def __getitem__(self, idx: Any) -> Any:
        return idx


Slice = _Slice()
"""Writes an index for `Index`: Slice[:, 1:3] is (slice(None), slice(1, 3))."""


def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """x[idx].

    Args:
        idx: what stands in the brackets; write it as Slice[...]. In the infinite-width limit the channels must be
            left alone, and the batch may be indexed by a slice only.
        batch_axis: position of the batch.
        channel_axis: position of the channels.

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """

    def parts(kernel: Kernel) -> tuple[list[Any], slice]:
        index = slice_layer_axes(idx, len(kernel.shape1))
        if index[kernel.channel_axis] != slice(None):
            raise ValueError(
                f"Index into the channels (axis {kernel.channel_axis}) has no infinite-width kernel"
            )
        batch = index[kernel.batch_axis]
        if not isinstance(batch, slice):
            raise ValueError(
                f"the batch is indexed by {batch}; in the infinite-width limit it must be a slice"
            )
        rest = [e for a, e in enumerate(index) if a not in (kernel.batch_axis, kernel.channel_axis)]
        return rest, batch

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        rest, batch = parts(kernel)
        index = slice_layer_axes(idx, len(kernel.shape1))

        def pick(x: Array) -> Array:
            return x[(slice(None), slice(None), *rest)]

        # Every output is one pixel: equal pixels stay equal, and variances are picked as they are.
        out = pixels.linear(kernel, pick, pick, selects=True)
        before = [
            sum(not isinstance(e, int) for e in index[:a])
            for a in (kernel.batch_axis, kernel.channel_axis)
        ]
        out = out.replace(
            batch_axis=before[0],
            channel_axis=before[1],
            diagonal_spatial=out.diagonal_spatial and out.var1.ndim > 1,
        )
        return out if batch == slice(None) else pixels.take(out, batch)

    def needs(out: Need) -> Need:
        # Whether the batch is sliced: an explicit index other than : at its position.
        index = idx if isinstance(idx, tuple) else (idx,)
        plain = batch_axis == 0 and (index[0] is Ellipsis or index[0] == slice(None))
        return out._replace(whole=out.whole or not plain)

    return layer(
        lambda params, x, **_: x[idx],
        rule,
        ("Index", str(idx), batch_axis, channel_axis),
        shape=lambda s: (
            jax.eval_shape(lambda x: x[idx], jax.ShapeDtypeStruct(tuple(s), jnp.float32)).shape
        ),
        needs=needs,
        mask=lambda mask, s: spread_mask(mask, s, channel_axis)[idx],
        remask=False,
        axes=(batch_axis, channel_axis),
    )


def DotGeneral(
    *,
    lhs: Array | float | None = None,
    rhs: Array | float | None = None,
    dimension_numbers: Any = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """A fixed product, `jax.lax.dot_general(inputs, rhs, ...)` or `(lhs, inputs, ...)`.

    Args:
        lhs: constant on the left; at most one of lhs and rhs is given.
        rhs: constant on the right.
        dimension_numbers: contracted and batched axes of both sides; not the channels, and, in the infinite-width
            limit, not the batch.
        precision: of the product.
        batch_axis: position of the batch.
        channel_axis: position of the channels.

    Returns:
        (init_fn, apply_fn, kernel_fn).

    Raises:
        ValueError: both lhs and rhs are given.
    """
    if lhs is not None and rhs is not None:
        raise ValueError("give lhs or rhs, not both: the other side is the input of the layer")
    if lhs is None and rhs is None:
        return Identity()
    left = rhs is None
    other = jnp.asarray(lhs if left else rhs)
    (contracted, batched), side = dimension_numbers, 1 if left else 0

    def product(x: Array) -> Array:
        pair = (other.astype(x.dtype), x) if left else (x, other.astype(x.dtype))
        return jax.lax.dot_general(*pair, dimension_numbers, precision)

    def place(axis: int, ndim: int) -> int:
        """Where an axis of the input stands in the output: batched axes, free ones of lhs, free ones of rhs."""
        axis %= ndim
        if axis in batched[side]:
            return list(batched[side]).index(axis)
        used = {*contracted[side], *batched[side]}
        before = len(batched[0]) + sum(a not in used for a in range(axis))
        return before + (other.ndim - len(contracted[0]) - len(batched[0]) if left else 0)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        # A number: signs leave second moments alone.
        if other.ndim == 0:
            return channels.scale(kernel, jnp.abs(other), jnp.abs(other))
        ndim = len(kernel.shape1)
        axes = (kernel.batch_axis, kernel.channel_axis)
        if set(axes) & {*contracted[side], *batched[side]}:
            raise ValueError(
                f"DotGeneral over the batch or the channels (axes {axes}) has no infinite-width kernel"
            )
        out_axes = tuple(place(axis, ndim) for axis in axes)

        def mapped(x: Array) -> Array:
            return jnp.moveaxis(product(jnp.moveaxis(x, (0, 1), axes)), out_axes, (0, 1))

        out = pixels.linear(kernel, mapped, mapped)
        return out.replace(
            batch_axis=out_axes[0],
            channel_axis=out_axes[1],
            diagonal_spatial=out.diagonal_spatial and out.var1.ndim > 1,
        )

    return layer(
        lambda params, x, **_: product(x),
        rule,
        (
            "DotGeneral",
            left,
            other if tiles.is_traced(other) or other.size > 10**6 else other.tobytes(),
            str(dimension_numbers),
        ),
        shape=lambda s: jax.eval_shape(product, jax.ShapeDtypeStruct(tuple(s), jnp.float32)).shape,
        needs=(lambda out: out) if other.ndim == 0 else mixes_pixels,
        mask=lambda mask, s: (
            product((~spread_mask(mask, s, channel_axis)).astype(jnp.float32)) == 0
        ),
        remask=False,
        axes=(batch_axis, channel_axis),
    )


def mixes_pixels(out: Need) -> Need:
    """What a layer needs whose outputs mix pixels: all pixel pairs, within samples only if a variance is used."""
    # The variance of a mixture takes the covariances between its parts.
    return Need(True, 2 if out.variance else 0, out.whole)


def Aggregate(
    aggregate_axis: int | Sequence[int] | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Any], Array] = lambda pattern: pattern,
    implementation: str = "DENSE",
) -> Layer:
    """Sums over the neighbours in a graph, which is given as `pattern` to apply_fn and (a pair) to kernel_fn.

    Args:
        aggregate_axis: the axes whose positions are the nodes; None for all but batch and channels.
        batch_axis: position of the batch.
        channel_axis: position of the channels.
        to_dense: turns a pattern into the dense one; only with "DENSE".
        implementation: "DENSE": pattern is the adjacency (batch, *nodes, *nodes), from sender to receiver.
            "SPARSE": it is (batch, edges, len(aggregate_axis), 2), sender and receiver of every edge (the third
            axis may be left out if there is one aggregate axis); edges with a negative node are padding.

    Returns:
        (init_fn, apply_fn, kernel_fn); without a pattern it is the identity.

    Raises:
        ValueError: another implementation.

    Source: Du et al. (2019), graph neural tangent kernel, section 3.
    """
    if implementation not in ("DENSE", "SPARSE"):
        raise ValueError(f"implementation is {implementation!r}; it must be 'DENSE' or 'SPARSE'")

    def send(x: Array, pattern: Any, nodes: tuple[int, ...]) -> Array:
        """x is (N, ..., *S) with node axes `nodes`; sums senders into receivers."""
        last = tuple(range(x.ndim - len(nodes), x.ndim))
        x = jnp.moveaxis(x, nodes, last)
        flat = x.reshape(x.shape[0], -1, math.prod(x.shape[last[0] :]))
        if implementation == "DENSE":
            graph = to_dense(pattern).astype(x.dtype)
            # Row s of the adjacency sends to its columns: x A, so that K' = A^T K A.
            y = flat @ graph.reshape(graph.shape[0], flat.shape[-1], flat.shape[-1])
        else:
            y = jax.vmap(_pass_messages)(flat, *_edges(pattern, x.shape[last[0] :]))
        return jnp.moveaxis(y.reshape(x.shape), last, nodes)

    def node_axes(ndim: int) -> tuple[int, ...]:
        if aggregate_axis is None:
            return tuple(
                a for a in range(ndim) if a not in (batch_axis % ndim, channel_axis % ndim)
            )
        given = [aggregate_axis] if isinstance(aggregate_axis, int) else aggregate_axis
        return tuple(axis_within("aggregate_axis", a, ndim) for a in given)

    def apply(params: PyTree, x: Array, pattern: Any = None, **_: Any) -> Array:
        if pattern is None:
            return x
        where = (batch_axis, channel_axis)
        spatial = [
            a for a in range(x.ndim) if a not in (batch_axis % x.ndim, channel_axis % x.ndim)
        ]
        nodes = tuple(2 + spatial.index(a) for a in node_axes(x.ndim))
        return jnp.moveaxis(send(jnp.moveaxis(x, where, (0, 1)), pattern, nodes), (0, 1), where)

    def rule(kernel: Kernel, pattern: Any = None, **_: Any) -> Kernel:
        if pattern is None or all(p is None for p in pattern):
            return kernel
        if any(p is None for p in pattern):
            raise ValueError("pattern has a graph for one batch only; give one for each, or None")
        nodes = tuple(2 + pixel_axis(kernel, a) for a in node_axes(len(kernel.shape1)))
        return pixels.linear(
            kernel, lambda x: send(x, pattern[0], nodes), lambda x: send(x, pattern[1], nodes)
        )

    return layer(
        apply,
        rule,
        (
            "Aggregate",
            aggregate_axis if aggregate_axis is None else str(aggregate_axis),
            to_dense,
            implementation,
        ),
        needs=mixes_pixels,
        axes=(batch_axis, channel_axis),
        reads=frozenset({"pattern"}),
    )


def _edges(pattern: Array, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """Senders and receivers as flat node numbers, (N, E); -1 where an edge is padding."""
    if pattern.ndim == 3 and len(sizes) == 1:
        pattern = pattern[:, :, None]
    if pattern.ndim != 4 or pattern.shape[2:] != (len(sizes), 2):
        raise ValueError(
            f"pattern has shape {pattern.shape}; a sparse one is (batch, edges, {len(sizes)}, 2): "
            "senders and receivers of the edges"
        )
    number = jnp.zeros((*pattern.shape[:2], 2), jnp.int32)
    for axis, size in enumerate(sizes):
        number = number * size + pattern[:, :, axis]
    # One negative coordinate marks the whole edge as padding.
    number = jnp.where(jnp.all(pattern >= 0, 2), number, -1)
    return number[..., 0], number[..., 1]


def _pass_messages(x: Array, senders: Array, receivers: Array) -> Array:
    """(M, nodes) -> (M, nodes): sums along the edges."""
    valid = (senders >= 0) & (receivers >= 0)
    messages = jnp.where(valid[None], x[:, senders], 0)
    return jnp.zeros_like(x).at[:, jnp.where(valid, receivers, 0)].add(messages)
