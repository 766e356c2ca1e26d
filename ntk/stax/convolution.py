"""Layers that act on pixels: convolutions, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk import spatial
from ntk.kernel import Array, Kernel
from ntk.stax.fixed import mixes_pixels, spread_mask
from ntk.stax.layers import Layer, Shape, layer
from ntk.stax.linear import parameterized

PADDINGS = ("VALID", "SAME", "CIRCULAR")


def _padding(padding: str) -> str:
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; it must be one of {', '.join(PADDINGS)}")
    return padding


def _specs(pixels: int, dimension_numbers: tuple[str, str, str] | None) -> tuple[str, str, str]:
    if dimension_numbers is not None:
        return dimension_numbers
    letters = "".join(c for c in "ABDEFGHJKLM")[:pixels]
    return "N" + letters + "C", letters + "IO", "N" + letters + "C"


def Conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Convolution.

    Args:
        out_chan: number of output channels; the kernel does not depend on it.
        filter_shape: pixels of the filter along each spatial axis.
        strides: strides along each; None for 1.
        padding: "VALID", "SAME" (zeros) or "CIRCULAR".
        W_std: standard deviation of the weights, times the square root of the fan-in.
        b_std: standard deviation of the biases; None for no bias.
        dimension_numbers: layouts of input, filter and output, such as ("NHWC", "HWIO", "NHWC"), the default.
        parameterization: "ntk" or "standard", as for `Dense`.
        s: widths of input and output in units of the narrowest network's, for the standard parametrization.

    Returns:
        (init_fn, apply_fn, kernel_fn).

    Raises:
        ValueError: another padding or parametrization.
    """
    return _conv(locals(), shared=True, transpose=False)


def ConvTranspose(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Transposed convolution, `jax.lax.conv_transpose`; arguments and result as for `Conv`."""
    return _conv(locals(), shared=True, transpose=True)


def ConvLocal(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Locally connected layer: a convolution with weights and biases of its own at every position; as `Conv`."""
    return _conv(locals(), shared=False, transpose=False)


def _conv(arguments: dict[str, Any], *, shared: bool, transpose: bool) -> Layer:
    window = tuple(arguments["filter_shape"])
    strides = tuple(arguments["strides"] or (1,) * len(window))
    padding = _padding(arguments["padding"])
    W_std, b_std, s = arguments["W_std"], arguments["b_std"], arguments["s"]
    standard = parameterized(arguments["parameterization"])
    width = arguments["out_chan"] * (s[1] if standard else 1)
    specs = _specs(len(window), arguments["dimension_numbers"])
    lhs, rhs, out_spec = specs
    pixels = [c for c in lhs if c not in "NC"]
    filter_axes = [c for c in rhs if c not in "IO"]
    order = [filter_axes.index(c) for c in pixels]  # filters may name the axes in another order
    kernel_window, kernel_strides = (tuple(v[i] for i in order) for v in (window, strides))

    def fan_in(input_shape: Shape) -> int:
        return input_shape[lhs.index("C")] * math.prod(window)

    def weight_shape(input_shape: Shape) -> Shape:
        sizes = dict(zip(filter_axes, window)) | {"I": input_shape[lhs.index("C")], "O": width}
        return tuple(sizes[c] for c in rhs)

    def plain(x: Array, W: Array, pads: str) -> Array:
        if transpose:
            return jax.lax.conv_transpose(x, W, strides, pads, dimension_numbers=specs)
        return jax.lax.conv_general_dilated(x, W, strides, pads, dimension_numbers=specs)

    def shape(input_shape):
        x = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
        W = jax.ShapeDtypeStruct(weight_shape(input_shape), jnp.float32)
        return jax.eval_shape(
            lambda x, W: plain(x, W, "VALID" if padding == "VALID" else "SAME"), x, W
        ).shape

    def params(key, input_shape):
        key_w, key_b = jax.random.split(key)
        out = shape(input_shape)
        weights, bias = weight_shape(input_shape), tuple(width if c == "C" else 1 for c in out_spec)
        if not shared:
            sizes = {c: out[out_spec.index(c)] for c in filter_axes}
            sizes |= {"I": fan_in(input_shape), "O": width}
            weights = tuple(sizes[c] for c in rhs)
            bias = tuple(1 if c == "N" else size for c, size in zip(out_spec, out))
        W = jax.random.normal(key_w, weights)
        b = None if b_std is None else jax.random.normal(key_b, bias)
        if standard:
            W = W * (W_std / math.sqrt(fan_in(input_shape) / s[0]))
            b = None if b is None else b * b_std
        return W, b

    def apply(parameters, x, **_):
        W, b = parameters
        norm = 1 / math.sqrt(s[0]) if standard else W_std / math.sqrt(fan_in(x.shape))
        out_shape, pads = shape(x.shape), "VALID" if padding == "CIRCULAR" else padding
        if padding == "CIRCULAR" and not transpose:
            x = _pad_around(x, [lhs.index(c) for c in filter_axes], window, strides)
        if shared:
            y = plain(x, W, pads)
        else:
            y = jax.lax.conv_general_dilated_local(
                x, W, strides, pads, window, dimension_numbers=specs
            )
        if padding == "CIRCULAR" and transpose:
            for c in filter_axes:
                axis = out_spec.index(c)
                y = spatial.wrap(y, axis, out_shape[axis])
        y = norm * y
        return y if b is None else y + (b if standard else b_std * b)

    def rule(kernel: Kernel, **_) -> Kernel:
        if len(kernel.shape1) != len(lhs):
            raise ValueError(
                f"a convolution with filters {window} acts on {len(lhs)} axes ({lhs}), "
                f"and got activations of shape {kernel.shape1}"
            )
        out = spatial.convolve(
            kernel,
            kernel_window,
            kernel_strides,
            padding,
            W_std,
            b_std,
            fan_in=fan_in(kernel.shape1) / s[0] if standard else None,
            shared=shared,
            transpose=transpose,
        )
        names = [c for c in out_spec if c not in "NC"]
        out = spatial.reorder(out, [pixels.index(c) for c in names])
        return out.replace(batch_axis=out_spec.index("N"), channel_axis=out_spec.index("C"))

    def mask_fn(mask, input_shape):
        mask = jnp.all(mask, lhs.index("C"), keepdims=True)
        seen = jnp.moveaxis(~mask, (lhs.index("N"), lhs.index("C")), (0, 1)).astype(jnp.float32)
        pads = "VALID" if padding == "VALID" else "SAME"
        seen = jnp.broadcast_to(
            seen, (*seen.shape[:2], *(input_shape[lhs.index(c)] for c in pixels))
        )
        total = spatial.window_mean(seen, 2, 1, kernel_window, kernel_strides, pads, transpose)
        names = [c for c in out_spec if c not in "NC"]
        total = jnp.transpose(total, (0, 1, *(2 + pixels.index(c) for c in names)))
        return jnp.moveaxis(total == 0, (0, 1), (out_spec.index("N"), out_spec.index("C")))

    spec = tuple(v if not isinstance(v, list) else tuple(v) for v in arguments.values())
    return layer(
        apply,
        rule,
        ("Conv", *spec, shared, transpose),
        shape=shape,
        params=params,
        mask=mask_fn,
        axes=(lhs.index("N"), lhs.index("C")),
    )


def _pad_around(
    x: Array, axes: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> Array:
    """Continues x periodically, so that a valid convolution returns what a padded one would."""
    pads = [(0, 0)] * x.ndim
    sizes = tuple(x.shape[a] for a in axes)
    for axis, pad in zip(axes, jax.lax.padtype_to_pads(sizes, window, strides, "SAME")):
        pads[axis] = pad
    return jnp.pad(x, pads, "wrap")


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
    window, strides, padding, mean: bool, edges: bool, batch_axis: int, channel_axis: int
) -> Layer:
    window = tuple(window)
    strides = tuple(strides or (1,) * len(window))
    _padding(padding)

    def pool(x: Array) -> Array:
        """(N, M, *S) -> (N, M, *S_out)."""
        y = spatial.window_mean(x, 2, 1, window, strides, padding)
        if not mean:
            return y * math.prod(window)
        if edges and padding == "SAME":
            y = y / spatial.window_mean(
                jnp.ones((1, 1, *x.shape[2:]), x.dtype), 2, 1, window, strides, padding
            )
        return y

    def mask_fn(mask, input_shape):
        mask = spread_mask(mask, input_shape, channel_axis)
        seen = jnp.moveaxis(~mask, (batch_axis, channel_axis), (0, 1)).astype(jnp.float32)
        pads = "VALID" if padding == "VALID" else "SAME"
        total = spatial.window_mean(seen, 2, 1, window, strides, pads)
        return jnp.moveaxis(total == 0, (0, 1), (batch_axis, channel_axis))

    def on_pixels(x: Array) -> Array:
        return jnp.moveaxis(
            pool(jnp.moveaxis(x, (batch_axis, channel_axis), (0, 1))),
            (0, 1),
            (batch_axis, channel_axis),
        )

    return layer(
        lambda params, x, **_: on_pixels(x),
        lambda kernel, **_: spatial.linear(kernel, pool, pool),
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
    def pixels(ndim: int) -> tuple[int, ...]:
        return tuple(a for a in range(ndim) if a not in (batch_axis % ndim, channel_axis % ndim))

    def apply(params, x, mask=None, **_):
        axes = pixels(x.ndim)
        if not mean:
            return jnp.sum(x, axes)
        if mask is None:
            return jnp.mean(x, axes)
        seen = jnp.broadcast_to(~mask, x.shape)
        return jnp.sum(jnp.where(seen, x, 0), axes) / jnp.maximum(jnp.sum(seen, axes), 1)

    def rule(kernel: Kernel, **_) -> Kernel:
        first = kernel.batch_axis < kernel.channel_axis
        out = spatial.pool_all(kernel, mean)
        return out.replace(batch_axis=0 if first else 1, channel_axis=1 if first else 0)

    return layer(
        apply,
        rule,
        ("GlobalPool", mean, batch_axis, channel_axis),
        shape=lambda s: tuple(size for a, size in enumerate(s) if a not in pixels(len(s))),
        needs=mixes_pixels,
        mask=lambda mask, s: jnp.all(mask, pixels(mask.ndim)),
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

    def rule(kernel: Kernel, **_) -> Kernel:
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

        return spatial.linear(kernel, mapped, mapped)

    def mask_fn(mask, input_shape):
        mask = spread_mask(mask, input_shape, channel_axis)
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
