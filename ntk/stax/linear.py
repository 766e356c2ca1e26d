"""Layers without pixels: Dense, normalisation, dropout, flattening.

    Dense        y = W_std / sqrt(fan_in) W x + b_std b
    LayerNorm    y = (x - mean x) / sqrt(var x + eps)

and what they do to a kernel in `ntk.infinite.channels`.

Source: Jacot et al. (2018); Sohl-Dickstein et al. (2020) for the standard parametrization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.arguments import as_axes
from ntk.infinite import channels, pixels
from ntk.infinite.evaluate import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.regression import spectra
from ntk.stax.fixed import Aggregate as Aggregate
from ntk.stax.fixed import DotGeneral as DotGeneral
from ntk.stax.fixed import Identity as Identity
from ntk.stax.fixed import Index as Index
from ntk.stax.fixed import Slice as Slice
from ntk.stax.layers import Layer, check_counts, check_scales, layer, pixel_axis
from ntk.types import PRNGKey, PyTree, Shape


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
        ValueError: another parametrization; out_dim is not positive, or a scale negative or not finite.

    Source: Jacot et al. (2018); Sohl-Dickstein et al. (2020).
    """
    check_counts(out_dim=out_dim)
    check_scales(W_std=W_std, b_std=b_std)
    standard = parameterized(parameterization)
    width = out_dim * s[1] if standard else out_dim

    def shape(input_shape: Shape) -> Shape:
        at = channel_axis % len(input_shape)
        return (*input_shape[:at], width, *input_shape[at + 1 :])

    def params(key: PRNGKey, input_shape: Shape) -> tuple[Array, Array | None]:
        key_w, key_b = jax.random.split(key)
        fan_in = input_shape[channel_axis]
        W = jax.random.normal(key_w, (fan_in, width))
        bias_shape = [1] * len(input_shape)
        bias_shape[channel_axis] = width
        b = None if b_std is None else jax.random.normal(key_b, bias_shape)
        if standard:
            # Drawn as in the narrowest network, of fan-in / s, and outputs are divided by sqrt(s): their variance is
            # that of the NTK parametrization, and x / sqrt(s) the derivative by a weight.
            W = W * (W_std / math.sqrt(fan_in / s[0]))
            b = None if b is None or b_std is None else b * b_std
        return W, b

    def apply(parameters: tuple[Array, Array | None], x: Array, **_: Any) -> Array:
        W, b = parameters
        y = jnp.moveaxis(jnp.tensordot(W, x, (0, channel_axis)), 0, channel_axis)
        y = y * (1 / math.sqrt(s[0]) if standard else W_std / math.sqrt(x.shape[channel_axis]))
        if b is None or b_std is None:
            return y
        return y + (b if standard else b_std * b)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        fan_in = kernel.shape1[channel_axis] / s[0] if standard else None
        return channels.affine(kernel, W_std, b_std, fan_in=fan_in)

    return layer(
        apply,
        rule,
        ("Dense", out_dim, W_std, b_std, batch_axis, channel_axis, standard, tuple(s)),
        shape=shape,
        params=params,
        mask=lambda mask, _: jnp.all(mask, channel_axis, keepdims=True),
        axes=(batch_axis, channel_axis),
        scalar=None if standard else (W_std, b_std),
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

    Raises:
        TypeError: an axis is no integer.
        ValueError: eps is negative or not finite; by its functions, inputs without such an axis.
    """

    check_scales(eps=eps)
    normed = as_axes(axis)

    def axes_of(ndim: int) -> tuple[int, ...]:
        if not all(-ndim <= a < ndim for a in normed):
            raise ValueError(
                f"LayerNorm has axis {normed}; its inputs have axes {-ndim} to {ndim - 1}"
            )
        return tuple(sorted({a % ndim for a in normed}))

    def apply(params: PyTree, x: Array, mask: Array | None = None, **_: Any) -> Array:
        over = axes_of(x.ndim)
        seen = jnp.ones((1,) * x.ndim, bool) if mask is None else ~mask
        seen = jnp.broadcast_to(seen, x.shape)
        mean = jnp.mean(x, over, keepdims=True, where=seen)
        var = jnp.var(x, over, keepdims=True, where=seen)
        if mask is not None:  # nothing is left of what is hidden altogether
            some = jnp.any(seen, over, keepdims=True)
            mean, var = jnp.where(some, mean, 0), jnp.where(some, var, 1)
        return (x - mean) / jnp.sqrt(eps + var)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        over = axes_of(len(kernel.shape1))
        if kernel.channel_axis not in over or kernel.batch_axis in over:
            raise ValueError(
                f"LayerNorm over axes {over} has no infinite-width kernel: they must include the channels "
                f"({kernel.channel_axis}) and not the batch ({kernel.batch_axis})"
            )
        return channels.normalise(
            kernel, tuple(pixel_axis(kernel, a) for a in over if a != kernel.channel_axis), eps
        )

    spec = (
        "LayerNorm",
        normed,
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
    if spectra.is_concrete(rate) and not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it is the probability of keeping an entry, in (0, 1]")

    def apply(params: PyTree, x: Array, rng: PRNGKey | None = None, **_: Any) -> Array:
        if mode == "test":
            return x
        if rng is None:
            raise ValueError(
                "Dropout in mode 'train' needs a key: call apply_fn(params, x, rng=key)"
            )
        return jnp.where(jax.random.bernoulli(rng, rate, x.shape), x / rate, 0)

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        return kernel if mode == "test" else channels.drop(kernel, rate)

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

    def shape(input_shape: Shape) -> Shape:
        at = batch_axis % len(input_shape)
        rest = math.prod((*input_shape[:at], *input_shape[at + 1 :]))
        return (input_shape[at], rest) if first else (rest, input_shape[at])

    def flat(x: Array) -> Array:
        x = jnp.moveaxis(x, batch_axis, 0)
        x = x.reshape(x.shape[0], -1)
        return x if first else x.T

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        out = pixels.flatten(kernel)
        return out.replace(batch_axis=0 if first else 1, channel_axis=1 if first else 0)

    return layer(
        lambda params, x, **_: flat(x),
        rule,
        ("Flatten", batch_axis, batch_axis_out),
        shape=shape,
        # The mean over equal pixels reads no pairs of pixels.
        needs=lambda out: Need(False, min(out.variance, 1), out.whole),
        mask=lambda mask, input_shape: flat(jnp.broadcast_to(mask, input_shape)),
        remask=False,
        axes=(batch_axis, 0 if batch_axis in (1, -1) and batch_axis_out else -1),
    )
