"""Convolutions with random weights: shared, transposed, or of their own at every position.

    y(p) = W_std / sqrt(channels x window) sum_d W(d) x(p + d) + b_std b,    d over the window

and what it does to a kernel in `ntk.infinite.pixels.convolve`.

Source: Novak et al. (2019); Xiao et al. (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.infinite import pixels
from ntk.infinite.kernel import Array, Kernel
from ntk.stax.fixed import spread_mask
from ntk.stax.layers import Layer, Shape, check_counts, check_scales, layer
from ntk.stax.linear import parameterized
from ntk.stax.pooling import AvgPool as AvgPool
from ntk.stax.pooling import GlobalAvgPool as GlobalAvgPool
from ntk.stax.pooling import GlobalSumPool as GlobalSumPool
from ntk.stax.pooling import ImageResize as ImageResize
from ntk.stax.pooling import SumPool as SumPool
from ntk.stax.pooling import centres, check_padding
from ntk.types import PRNGKey


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
        ValueError: another padding or parametrization; sizes that are not positive, scales not finite.
    """
    arguments = out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers
    return _conv(*arguments, parameterization, s, shared=True, transpose=False)


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
    arguments = out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers
    return _conv(*arguments, parameterization, s, shared=True, transpose=True)


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
    arguments = out_chan, filter_shape, strides, padding, W_std, b_std, dimension_numbers
    return _conv(*arguments, parameterization, s, shared=False, transpose=False)


def _conv(
    out_chan: int,
    filter_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: str,
    W_std: float,
    b_std: float | None,
    dimension_numbers: tuple[str, str, str] | None,
    parameterization: str,
    s: tuple[int, int],
    *,
    shared: bool,
    transpose: bool,
) -> Layer:
    window = tuple(filter_shape)
    strides = tuple(strides or (1,) * len(window))
    check_padding(padding)
    check_counts(out_chan=out_chan, filter_shape=window, strides=strides)
    check_scales(W_std=W_std, b_std=b_std)
    standard = parameterized(parameterization)
    width = out_chan * (s[1] if standard else 1)
    specs = _specs(len(window), dimension_numbers)
    lhs, rhs, out_spec = specs
    spatial = [c for c in lhs if c not in "NC"]
    filter_axes = [c for c in rhs if c not in "IO"]
    order = [filter_axes.index(c) for c in spatial]  # filters may name the axes in another order
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

    def shape(input_shape: Shape) -> Shape:
        x = jax.ShapeDtypeStruct(tuple(input_shape), jnp.float32)
        W = jax.ShapeDtypeStruct(weight_shape(input_shape), jnp.float32)
        return jax.eval_shape(
            lambda x, W: plain(x, W, "VALID" if padding == "VALID" else "SAME"), x, W
        ).shape

    def params(key: PRNGKey, input_shape: Shape) -> tuple[Array, Array | None]:
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
            b = None if b is None or b_std is None else b * b_std
        return W, b

    def apply(parameters: tuple[Array, Array | None], x: Array, **_: Any) -> Array:
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
                y = pixels.wrap(y, axis, out_shape[axis])
        y = norm * y
        return y if b is None or b_std is None else y + (b if standard else b_std * b)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        if len(kernel.shape1) != len(lhs):
            raise ValueError(
                f"a convolution with filters {window} acts on {len(lhs)} axes ({lhs}), "
                f"and got activations of shape {kernel.shape1}"
            )
        out = pixels.convolve(
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
        out = pixels.reorder(out, [spatial.index(c) for c in names])
        return out.replace(batch_axis=out_spec.index("N"), channel_axis=out_spec.index("C"))

    def mask_fn(mask: Array, input_shape: Shape) -> Array:
        mask = jnp.all(mask, lhs.index("C"), keepdims=True)
        mask = spread_mask(mask, input_shape, lhs.index("C"))
        hidden = jnp.moveaxis(mask, (lhs.index("N"), lhs.index("C")), (0, 1))
        if transpose:
            pads = "VALID" if padding == "VALID" else "SAME"
            reached = hidden.astype(jnp.float32)
            hidden = (
                pixels.window_mean(reached, 2, 1, kernel_window, kernel_strides, pads, True) > 0
            )
        else:
            # As neural-tangents has it: a window is as visible as the pixel in its middle.
            hidden = centres(hidden, kernel_window, kernel_strides, padding)
        names = [c for c in out_spec if c not in "NC"]
        hidden = jnp.transpose(hidden, (0, 1, *(2 + spatial.index(c) for c in names)))
        return jnp.moveaxis(hidden, (0, 1), (out_spec.index("N"), out_spec.index("C")))

    return layer(
        apply,
        rule,
        (
            "Conv",
            width,
            window,
            strides,
            padding,
            W_std,
            b_std,
            specs,
            standard,
            tuple(s),
            shared,
            transpose,
        ),
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
        # The padding that "SAME" would have filled with zeros.
        pads[axis] = pad
    return jnp.pad(x, pads, "wrap")
