"""Layers of weights, evaluated: affine maps and convolutions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ntk.infinite import channels, pixels
from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import entries
from ntk.trace.moments import Law
from ntk.trace.setting import Setting
from ntk.trace.steps import Step


def fitted(kernel: Kernel, need: Need) -> Kernel:
    """The kernel with equal positions alone, where all pairs are known but not needed."""
    if need.pairs or kernel.diagonal_spatial or kernel.var1.ndim == 1:
        return kernel
    ntk = kernel.ntk
    return kernel.replace(
        correlation=kernels.pixel_diagonal(kernel.correlation, 2),
        ntk=ntk if ntk is None or ntk.ndim == 0 else kernels.pixel_diagonal(ntk, 2),
        diagonal_spatial=True,
    )


def affine_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a layer of weights."""
    total, rate, flat, bias, apart, _, law = step.static
    kernel = operands[0].kernel
    if flat:
        kernel = _flatten(kernel, flat)
    kernel = fitted(kernel, need)
    out = _weighted(kernel, kernel, total, rate, bias)
    if apart and not out.diagonal_spatial:
        out = _apart(out, apart)
    return Law(out, entries=_of_data(operands[0], total, bias, law))


def _of_data(data: Law, total: float, bias: Any, law: Standard) -> entries.Entries | None:
    """Entries of a layer of weights on data, with a normal bias."""
    raw = data.entries
    if raw is None or not data.kernel.is_input:
        return None
    scale = (total / raw.one.shape[-1]) ** 0.5
    out = entries.of_weights(raw.one, raw.two, law, scale)
    if not bias or not bias[0]:
        return out
    ones = (jnp.ones((*x.shape[:-1], 1), x.dtype) for x in (raw.one, raw.two))
    return entries.added([out, entries.of_weights(*ones, NORMAL, bias[0] ** 0.5)])


def _weighted(kernel: Kernel, mean: Kernel, total: float, rate: float, bias: Any) -> Kernel:
    """W K + b of the moments `mean` of a layer's inputs."""
    if rate == total and (bias is None or bias[0] == bias[1]):
        return channels.affine(mean, total**0.5, None if bias is None else bias[0] ** 0.5)
    b_std = bias[0] ** 0.5 if bias and bias[0] else None
    out = channels.gaussian(
        mean, mean.correlation, mean.var1, mean.var2, total**0.5, b_std, normalised=True
    )
    if mean.ntk is None:
        return out
    own = out.nngp if b_std is None and rate == total else rate * mean.nngp
    return out.replace(ntk=total * mean.ntk + own + (bias[1] if bias else 0.0))


def _flatten(kernel: Kernel, flat: tuple[int, ...]) -> Kernel:
    """Mean over equal positions along some axes."""
    count = kernel.var1.ndim - 1
    if len(flat) == count:
        return pixels.flatten(kernel)
    kept = [k for k in range(count) if k not in flat]

    def mean(x: Array | None, lead: int, pairs: bool) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        if not pairs:
            return jnp.mean(x, tuple(lead + k for k in flat))
        step = [lead + 2 * k + s for k in kept for s in (0, 1)]
        x = jnp.transpose(
            x, [*range(lead), *step, *(lead + 2 * k + s for k in flat for s in (0, 1))]
        )
        for _ in flat:
            at = lead + 2 * len(kept)
            x = jnp.mean(jnp.diagonal(x, axis1=at, axis2=at + 1), -1)
        return x

    pairs = not kernel.diagonal_spatial
    return kernel.replace(
        nngp=mean(kernel.nngp, 2, pairs),
        var1=mean(kernel.var1, 1, False),
        var2=mean(kernel.var2, 1, False),
        within1=mean(kernel.within1, 1, True),
        within2=mean(kernel.within2, 1, True),
    ).replace(ntk=mean(kernel.ntk, 2, pairs))


def _apart(kernel: Kernel, apart: tuple[int, ...]) -> Kernel:
    """Positions along some axes made independent of one another."""

    def keep(x: Array | None, lead: int) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        for k in apart:
            size = x.shape[lead + 2 * k]
            shape = [1] * x.ndim
            shape[lead + 2 * k] = shape[lead + 2 * k + 1] = size
            x = jnp.where(jnp.eye(size, dtype=bool).reshape(shape), x, 0)
        return x

    return kernel.replace(
        correlation=keep(kernel.correlation, 2),
        ntk=keep(kernel.ntk, 2),
        within1=keep(kernel.within1, 1),
        within2=keep(kernel.within2, 1),
    )


def convolve_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a convolution with random weights."""
    total, rate, order, window, strides, padding, _, dilation, sizes = step.static
    kernel = operands[0].kernel
    kernel = fitted(pixels.reorder(kernel, [k for k in order if k is not None]), need)
    single = [k for k, old in enumerate(order) if old is None]
    kernel = _resized(kernel, single, jnp.expand_dims)
    gone = [k for k, size in enumerate(sizes) if size == 1]
    made = _windows(operands[0], step.static, gone)
    if rate == total:
        out = pixels.convolve(kernel, window, strides, padding, total**0.5, dilation=dilation)
        return Law(_resized(out, gone, jnp.squeeze), entries=made)
    axes = 1 if kernel.diagonal_spatial else 2

    def box(x: Array, lead: int, axes: int) -> Array:
        return pixels.window_mean(x, lead, axes, window, strides, padding, dilation=dilation)

    def mapped(x: Array | None, lead: int, axes: int) -> Array | None:
        return x if x is None or x.ndim == 0 else box(x, lead, axes)

    nngp = box(kernel.nngp, 2, axes)
    mean = kernel.replace(
        nngp=nngp,
        var1=box(kernel.var1, 1, 1),
        var2=box(kernel.var2, 1, 1),
        within1=mapped(kernel.within1, 1, 2),
        within2=mapped(kernel.within2, 1, 2),
    ).replace(ntk=mapped(kernel.ntk, 2, axes))
    out = _weighted(kernel, mean, total, rate, None)
    return Law(_resized(out, gone, jnp.squeeze), entries=made)


def _windows(data: Law, static: tuple, gone: list[int]) -> entries.Entries | None:
    """Entries of a convolution of data."""
    total, _, order, window, strides, padding, law, dilation, _ = static
    raw = data.entries
    if raw is None or not data.kernel.is_input:
        return None
    sides = []
    for x in (raw.one, raw.two):
        x = jnp.transpose(x, (0, *(1 + k for k in order if k is not None), x.ndim - 1))
        sides.append(jnp.expand_dims(x, tuple(1 + k for k, old in enumerate(order) if old is None)))
    count = raw.one.shape[-1] * math.prod(window)
    scale = (total / count) ** 0.5
    made = entries.patches(*sides, law, window, strides, padding, scale, dilation)
    one, two = (jnp.squeeze(x, tuple(1 + k for k in gone)) for x in (made.one, made.two))
    return dataclasses.replace(made, one=one, two=two)


def _resized(kernel: Kernel, places: list[int], change: Callable) -> Kernel:
    """Spatial axes of size one inserted or removed: `change` is jnp.expand_dims or jnp.squeeze."""
    if not places:
        return kernel

    def one(x: Array | None, lead: int, axes: int) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        return change(x, tuple(lead + axes * k + s for k in places for s in range(axes)))

    axes = 1 if kernel.diagonal_spatial else 2
    out = kernel.replace(
        correlation=one(kernel.correlation, 2, axes),
        ntk=one(kernel.ntk, 2, axes),
        var1=one(kernel.var1, 1, 1),
        var2=one(kernel.var2, 1, 1),
        within1=one(kernel.within1, 1, 2),
        within2=one(kernel.within2, 1, 2),
    )
    if out.var1.ndim == 1:  # no positions are left
        out = out.replace(within1=None, within2=None, diagonal_spatial=False)
    return out
