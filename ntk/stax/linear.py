"""Layers without pixels: Dense, normalisation, dropout, and fixed linear maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk import rules, spatial
from ntk.evaluate import Need
from ntk.kernel import Array, Kernel
from ntk.stax.combinators import Layer, Shape, layer, pixel_axis


def Identity() -> Layer:
    """Returns its input."""
    return layer(lambda params, x, **_: x, lambda kernel, **_: kernel, "Identity", remask=False)


def parameterized(parameterization: str) -> bool:
    """Whether weights are standard, with their variance in the initialisation; not ntk, with it in the forward pass."""
    name = parameterization.lower()
    if name not in ("ntk", "standard"):
        raise ValueError(
            f"parameterization is {parameterization!r}; it must be 'ntk' or 'standard'"
        )
    return name == "standard"


def Dense(
    out_dim: int,
    W_std: float = 1.0,
    b_std: float | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Fully connected layer, W_std / sqrt(fan_in) W x + b_std b in the NTK parametrization.

    Args:
        out_dim: number of outputs; the kernel does not depend on it.
        W_std: standard deviation of the weights, times the square root of the fan-in.
        b_std: standard deviation of the biases; None for no bias.
        batch_axis: position of the batch.
        channel_axis: position of the channels.
        parameterization: "ntk", or "standard": the same function, with W_std and b_std in the initialisation.
        s: widths of input and output in units of the narrowest network's, for the standard parametrization.

    Returns:
        (init_fn, apply_fn, kernel_fn).

    Raises:
        ValueError: another parametrization.

    Source: Jacot et al. (2018); Sohl-Dickstein et al. (2020).
    """
    standard = parameterized(parameterization)
    width = out_dim * s[1] if standard else out_dim

    def shape(input_shape):
        at = channel_axis % len(input_shape)
        return (*input_shape[:at], width, *input_shape[at + 1 :])

    def params(key, input_shape):
        key_w, key_b = jax.random.split(key)
        fan_in = input_shape[channel_axis]
        W = jax.random.normal(key_w, (fan_in, width))
        bias_shape = [1] * len(input_shape)
        bias_shape[channel_axis] = width
        b = None if b_std is None else jax.random.normal(key_b, bias_shape)
        if standard:
            W = W * (W_std / math.sqrt(fan_in / s[0]))
            b = None if b is None else b * b_std
        return W, b

    def apply(parameters, x, **_):
        W, b = parameters
        y = jnp.moveaxis(jnp.tensordot(W, x, (0, channel_axis)), 0, channel_axis)
        y = y * (1 / math.sqrt(s[0]) if standard else W_std / math.sqrt(x.shape[channel_axis]))
        if b is None:
            return y
        return y + (b if standard else b_std * b)

    def rule(kernel: Kernel, **_) -> Kernel:
        fan_in = kernel.shape1[channel_axis] / s[0] if standard else None
        return rules.affine(kernel, W_std, b_std, fan_in=fan_in)

    return layer(
        apply,
        rule,
        ("Dense", out_dim, W_std, b_std, batch_axis, channel_axis, standard, tuple(s)),
        shape=shape,
        params=params,
        mask=lambda mask, _: jnp.all(mask, channel_axis, keepdims=True),
        axes=(batch_axis, channel_axis),
        scalar=("affine", W_std) if b_std is None and not standard else None,
    )


def LayerNorm(
    axis: int | Sequence[int] = -1,
    eps: float = 1e-12,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Layer normalisation, without learned scale and shift.

    Args:
        axis: axes that are normalised together; the channels must be among them for the kernel, the batch not.
        eps: added to the variance.
        batch_axis: position of the batch.
        channel_axis: position of the channels.

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """

    def axes_of(ndim: int) -> tuple[int, ...]:
        return tuple(sorted({a % ndim for a in ([axis] if isinstance(axis, int) else axis)}))

    def apply(params, x, mask=None, **_):
        over = axes_of(x.ndim)
        seen = jnp.ones((1,) * x.ndim, bool) if mask is None else ~mask
        seen = jnp.broadcast_to(seen, x.shape)
        mean = jnp.mean(x, over, keepdims=True, where=seen)
        var = jnp.var(x, over, keepdims=True, where=seen)
        if mask is not None:  # nothing is left of what is hidden altogether
            some = jnp.any(seen, over, keepdims=True)
            mean, var = jnp.where(some, mean, 0), jnp.where(some, var, 1)
        return (x - mean) / jnp.sqrt(eps + var)

    def rule(kernel: Kernel, **_) -> Kernel:
        over = axes_of(len(kernel.shape1))
        if kernel.channel_axis not in over or kernel.batch_axis in over:
            raise ValueError(
                f"LayerNorm over axes {over} has no infinite-width kernel: they must include the channels "
                f"({kernel.channel_axis}) and not the batch ({kernel.batch_axis})"
            )
        return rules.normalise(
            kernel, tuple(pixel_axis(kernel, a) for a in over if a != kernel.channel_axis), eps
        )

    spec = (
        "LayerNorm",
        axis if isinstance(axis, int) else tuple(axis),
        eps,
        batch_axis,
        channel_axis,
    )
    return layer(
        apply,
        rule,
        spec,
        needs=lambda out: out._replace(variance=max(out.variance, 1)),
        remask=False,
        axes=(batch_axis, channel_axis),
    )


def Dropout(rate: float, mode: str = "train") -> Layer:
    """Dropout.

    Args:
        rate: probability of keeping an entry (not of dropping it), in (0, 1].
        mode: "train", or "test": nothing is dropped.

    Returns:
        (init_fn, apply_fn, kernel_fn); apply_fn takes a key as `rng`.

    Raises:
        ValueError: rate or mode is none of these.
    """
    if mode not in ("train", "test"):
        raise ValueError(f"mode is {mode!r}; it must be 'train' or 'test'")
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it is the probability of keeping an entry, in (0, 1]")

    def apply(params, x, rng=None, **_):
        if mode == "test":
            return x
        if rng is None:
            raise ValueError(
                "Dropout in mode 'train' needs a key: call apply_fn(params, x, rng=key)"
            )
        return jnp.where(jax.random.bernoulli(rng, rate, x.shape), x / rate, 0)

    def rule(kernel: Kernel, **_) -> Kernel:
        return kernel if mode == "test" else rules.drop(kernel, rate)

    return layer(apply, rule, ("Dropout", rate, mode), remask=False)


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Layer:
    """All axes but the batch become channels.

    Args:
        batch_axis: position of the batch in the input.
        batch_axis_out: its position in the output, 0 or 1 (-2 or -1).

    Returns:
        (init_fn, apply_fn, kernel_fn).

    Raises:
        ValueError: another batch_axis_out.
    """
    if batch_axis_out not in (0, 1, -1, -2):
        raise ValueError(
            f"batch_axis_out is {batch_axis_out}; the output has two axes, so it must be 0 or 1"
        )
    first = batch_axis_out in (0, -2)

    def shape(input_shape):
        at = batch_axis % len(input_shape)
        rest = math.prod((*input_shape[:at], *input_shape[at + 1 :]))
        return (input_shape[at], rest) if first else (rest, input_shape[at])

    def flat(x: Array) -> Array:
        x = jnp.moveaxis(x, batch_axis, 0)
        x = x.reshape(x.shape[0], -1)
        return x if first else x.T

    def rule(kernel: Kernel, **_) -> Kernel:
        out = spatial.flatten(kernel)
        return out.replace(batch_axis=0 if first else 1, channel_axis=1 if first else 0)

    return layer(
        lambda params, x, **_: flat(x),
        rule,
        ("Flatten", batch_axis, batch_axis_out),
        shape=shape,
        needs=lambda out: Need(False, min(out.variance, 1), out.whole),
        mask=lambda mask, input_shape: flat(jnp.broadcast_to(mask, input_shape)),
        remask=False,
        axes=(batch_axis, 0 if batch_axis in (1, -1) and batch_axis_out else -1),
    )


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

    def rule(kernel: Kernel, **_) -> Kernel:
        rest, batch = parts(kernel)
        index = slice_layer_axes(idx, len(kernel.shape1))

        def pick(x: Array) -> Array:
            return x[(slice(None), slice(None), *rest)]

        out = spatial.linear(kernel, pick, pick, selects=True)
        before = [
            sum(not isinstance(e, int) for e in index[:a])
            for a in (kernel.batch_axis, kernel.channel_axis)
        ]
        out = out.replace(
            batch_axis=before[0],
            channel_axis=before[1],
            diagonal_spatial=out.diagonal_spatial and out.var1.ndim > 1,
        )
        return out if batch == slice(None) else spatial.take(out, batch)

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

    def rule(kernel: Kernel, **_) -> Kernel:
        if other.ndim == 0:
            return rules.scale(kernel, jnp.abs(other), jnp.abs(other))
        ndim = len(kernel.shape1)
        axes = (kernel.batch_axis, kernel.channel_axis)
        if set(axes) & {*contracted[side], *batched[side]}:
            raise ValueError(
                f"DotGeneral over the batch or the channels (axes {axes}) has no infinite-width kernel"
            )
        out_axes = tuple(place(axis, ndim) for axis in axes)

        def mapped(x: Array) -> Array:
            return jnp.moveaxis(product(jnp.moveaxis(x, (0, 1), axes)), out_axes, (0, 1))

        out = spatial.linear(kernel, mapped, mapped)
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
            other.tobytes() if other.size < 10**6 else id(other),
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
            y = flat @ graph.reshape(graph.shape[0], flat.shape[-1], flat.shape[-1])
        else:
            y = jax.vmap(_pass_messages)(flat, *_edges(pattern, x.shape[last[0] :]))
        return jnp.moveaxis(y.reshape(x.shape), last, nodes)

    def node_axes(ndim: int) -> tuple[int, ...]:
        if aggregate_axis is None:
            return tuple(
                a for a in range(ndim) if a not in (batch_axis % ndim, channel_axis % ndim)
            )
        return tuple(
            a % ndim
            for a in ([aggregate_axis] if isinstance(aggregate_axis, int) else aggregate_axis)
        )

    def apply(params, x, pattern=None, **_):
        if pattern is None:
            return x
        where = (batch_axis, channel_axis)
        pixels = [a for a in range(x.ndim) if a not in (batch_axis % x.ndim, channel_axis % x.ndim)]
        nodes = tuple(2 + pixels.index(a) for a in node_axes(x.ndim))
        return jnp.moveaxis(send(jnp.moveaxis(x, where, (0, 1)), pattern, nodes), (0, 1), where)

    def rule(kernel: Kernel, pattern=None, **_) -> Kernel:
        if pattern is None or all(p is None for p in pattern):
            return kernel
        if any(p is None for p in pattern):
            raise ValueError("pattern has a graph for one batch only; give one for each, or None")
        nodes = tuple(2 + pixel_axis(kernel, a) for a in node_axes(len(kernel.shape1)))
        return spatial.linear(
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
    number = jnp.where(jnp.all(pattern >= 0, 2), number, -1)
    return number[..., 0], number[..., 1]


def _pass_messages(x: Array, senders: Array, receivers: Array) -> Array:
    """(M, nodes) -> (M, nodes): sums along the edges."""
    valid = (senders >= 0) & (receivers >= 0)
    messages = jnp.where(valid[None], x[:, senders], 0)
    return jnp.zeros_like(x).at[:, jnp.where(valid, receivers, 0)].add(messages)
