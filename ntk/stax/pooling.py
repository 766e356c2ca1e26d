"""Pooling and resizing: fixed linear maps of the pixels.

    y = L x,    K' = L K L^T over pairs of pixels (`ntk.infinite.pixels.linear`)

Source: Novak et al. (2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.infinite import pixels
from ntk.infinite.kernel import Array, Kernel
from ntk.stax.fixed import mixes_pixels, spread_mask
from ntk.stax.layers import Layer, Shape, check_counts, layer
from ntk.types import PyTree

PADDINGS = ("VALID", "SAME", "CIRCULAR")


def check_padding(padding: str) -> None:
    """Raises a ValueError for an unknown padding."""
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; it must be one of {', '.join(PADDINGS)}")


def centres(hidden: Array, window: Sequence[int], strides: Sequence[int], padding: str) -> Array:
    """(N, 1, *S) -> (N, 1, *S_out): an output is hidden if the central pixel of its window is."""
    index: list[Any] = [slice(None), slice(None)]
    for size, width, stride in zip(hidden.shape[2:], window, strides):
        pads = "VALID" if padding == "VALID" else "SAME"
        low, high = jax.lax.padtype_to_pads((size,), (width,), (stride,), pads)[0]
        count = (size + low + high - width) // stride + 1
        start = (width - 1) // 2 - low
        index.append(slice(start, start + (count - 1) * stride + 1, stride))
    return hidden[tuple(index)]


def AvgPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Mean over windows of pixels.

    Args:
        window_shape: pixels along each spatial axis.
        strides: strides along each; None for 1.
        padding: "VALID", "SAME" (zeros) or "CIRCULAR".
        normalize_edges: whether a window that overhangs a SAME edge is divided by its pixels inside, not by all.
        batch_axis: position of the batch.
        channel_axis: position of the channels.

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """
    return _pool(window_shape, strides, padding, True, normalize_edges, batch_axis, channel_axis)


def SumPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Sum over windows of pixels; arguments as for `AvgPool`."""
    return _pool(window_shape, strides, padding, False, False, batch_axis, channel_axis)


def _pool(
    window: Sequence[int],
    strides: Sequence[int] | None,
    padding: str,
    mean: bool,
    edges: bool,
    batch_axis: int,
    channel_axis: int,
) -> Layer:
    window = tuple(window)
    strides = tuple(strides or (1,) * len(window))
    check_padding(padding)
    check_counts(window_shape=window, strides=strides)

    def pool(x: Array) -> Array:
        """(N, M, *S) -> (N, M, *S_out)."""
        y = pixels.window_mean(x, 2, 1, window, strides, padding)
        if not mean:
            return y * math.prod(window)
        if edges and padding == "SAME":
            # The mean over windows of ones is the share of each window that lies inside.
            y = y / pixels.window_mean(
                jnp.ones((1, 1, *x.shape[2:]), x.dtype), 2, 1, window, strides, padding
            )
        return y

    def mask_fn(mask: Array, input_shape: Shape) -> Array:
        mask = spread_mask(mask, input_shape, channel_axis)
        hidden = jnp.moveaxis(mask, (batch_axis, channel_axis), (0, 1))
        hidden = centres(hidden, window, strides, padding)
        return jnp.moveaxis(hidden, (0, 1), (batch_axis, channel_axis))

    def on_pixels(x: Array) -> Array:
        return jnp.moveaxis(
            pool(jnp.moveaxis(x, (batch_axis, channel_axis), (0, 1))),
            (0, 1),
            (batch_axis, channel_axis),
        )

    return layer(
        lambda params, x, **_: on_pixels(x),
        # A pool is one linear map of the pixels for all channels: L K L^T.
        lambda kernel, **_: pixels.linear(kernel, pool, pool),
        ("Pool", window, strides, padding, mean, edges, batch_axis, channel_axis),
        shape=lambda s: (
            jax.eval_shape(on_pixels, jax.ShapeDtypeStruct(tuple(s), jnp.float32)).shape
        ),
        needs=mixes_pixels,
        mask=mask_fn,
        axes=(batch_axis, channel_axis),
    )


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """Mean over all pixels that are not hidden; spatial axes are removed.

    Args:
        batch_axis: position of the batch.
        channel_axis: position of the channels.
    """
    return _pool_all(True, batch_axis, channel_axis)


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """Sum over all pixels; arguments as for `GlobalAvgPool`."""
    return _pool_all(False, batch_axis, channel_axis)


def _pool_all(mean: bool, batch_axis: int, channel_axis: int) -> Layer:
    def spatial(ndim: int) -> tuple[int, ...]:
        return tuple(a for a in range(ndim) if a not in (batch_axis % ndim, channel_axis % ndim))

    def apply(params: PyTree, x: Array, mask: Array | None = None, **_: Any) -> Array:
        axes = spatial(x.ndim)
        if not mean:
            return jnp.sum(x, axes)
        if mask is None:
            return jnp.mean(x, axes)
        seen = jnp.broadcast_to(~mask, x.shape)
        return jnp.sum(jnp.where(seen, x, 0), axes) / jnp.maximum(jnp.sum(seen, axes), 1)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        first = kernel.batch_axis < kernel.channel_axis
        out = pixels.pool_all(kernel, mean)
        return out.replace(batch_axis=0 if first else 1, channel_axis=1 if first else 0)

    return layer(
        apply,
        rule,
        ("GlobalPool", mean, batch_axis, channel_axis),
        shape=lambda s: tuple(size for a, size in enumerate(s) if a not in spatial(len(s))),
        needs=mixes_pixels,
        mask=lambda mask, s: jnp.all(mask, spatial(mask.ndim)),
        remask=False,
        axes=(batch_axis, channel_axis),
    )


def ImageResize(
    shape: Sequence[int],
    method: str | jax.image.ResizeMethod,
    antialias: bool = True,
    precision: Any = jax.lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Resizes images, as `jax.image.resize`.

    Args:
        shape: of the output, -1 for an axis that stays; batch and channels must stay in the infinite-width limit.
        method: any of `jax.image.resize`; all are linear maps of the pixels, and have kernels.
        antialias: whether to smooth when an axis shrinks.
        precision: of the products.
        batch_axis: position of the batch.
        channel_axis: position of the channels.

    Returns:
        (init_fn, apply_fn, kernel_fn).
    """
    shape = tuple(shape)

    def full(input_shape: Shape) -> Shape:
        return tuple(size if new == -1 else new for size, new in zip(input_shape, shape))

    def resize(x: Array, to: Shape) -> Array:
        return jax.image.resize(x, to, method, antialias, precision)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        if shape[kernel.channel_axis] != -1 or shape[kernel.batch_axis] != -1:
            raise ValueError(
                f"ImageResize to {shape} changes the batch or the channels; put -1 at axes "
                f"{kernel.batch_axis} and {kernel.channel_axis}: only pixels have a kernel when resized"
            )
        sizes = [
            size
            for a, size in enumerate(full(kernel.shape1))
            if a not in (kernel.batch_axis, kernel.channel_axis)
        ]

        def mapped(x: Array) -> Array:
            return resize(x, (*x.shape[:2], *sizes))

        return pixels.linear(kernel, mapped, mapped)

    def mask_fn(mask: Array, input_shape: Shape) -> Array:
        mask = spread_mask(mask, input_shape, channel_axis)
        # Hidden is what no visible pixel reaches.
        return resize((~mask).astype(jnp.float32), full(mask.shape)) == 0

    return layer(
        lambda params, x, **_: resize(x, full(x.shape)),
        rule,
        ("ImageResize", shape, str(method), antialias, str(precision), batch_axis, channel_axis),
        shape=full,
        needs=mixes_pixels,
        mask=mask_fn,
        axes=(batch_axis, channel_axis),
    )
