"""Convolutions with fresh weights.

    K'(p, p') = total mean_d K(p + d, p' + d),    d over the window;    T' alike, plus rate / total K'

Source: Novak et al. (2019), equation 6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk.infinite import kernel as kernels
from ntk.infinite import pixels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import axes as ax
from ntk.trace import entries
from ntk.trace.axes import Axis
from ntk.trace.context import Context, scaled_shape
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    Pieces,
    Ref,
    Refusal,
    Value,
    Weight,
    bases_of,
    is_random,
)
from ntk.trace.laws import Law, Setting, fitted
from ntk.trace.ops.copies import separated
from ntk.trace.ops.data import data_moments
from ntk.trace.ops.dense import of_a_sum, weighted
from ntk.trace.ops.function import process_of
from ntk.trace.ops.numbers import materialised
from ntk.trace.ops.positions import zeros_between
from ntk.trace.ops.shapes import one_axis
from ntk.trace.steps import Kind, Note, Step


class Convolution(NamedTuple):
    """A convolution.

    Attributes:
        total: variance of a weight times the number of entries that it sums over.
        rate: what the layer adds to the tangent kernel, of a unit of its inputs' covariance.
        order: for each axis that it slides along, its place among those of its input; None for one of size one.
        window, strides, padding, dilation: along each of these.
        law: of a weight, in standard units.
        sizes: of the axes of the result.
    """

    total: float
    rate: float
    order: tuple[int | None, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    law: Standard
    dilation: tuple[int, ...]
    sizes: tuple[int, ...]


# --- read ----------------------------------------------------------------------------------------


def convolution(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Second moments averaged over windows moved together, see `ntk.infinite.pixels.convolve`."""
    value, kernel = values
    if not isinstance(kernel.body, Weight):
        raise Refusal(
            "a convolution with a kernel that is not a parameter (a layer of unshared weights, such as ConvLocal, "
            "has no rule here): use Conv"
        )
    weight, params = kernel.body, one.params
    if weight.arrays:
        raise Refusal(
            f"{weight.name} is multiplied with numbers that differ between its entries (a mask): windows are averaged "
            'whole here. Shift the input instead of masking, or take means over finite networks: otherwise="sample"'
        )
    numbers = params["dimension_numbers"]
    batch, feature, *spatial = numbers.lhs_spec
    out_feature, _in_feature, *window_dims = numbers.rhs_spec
    out_batch, out_channel, *out_spatial = numbers.out_spec
    depthwise = _is_depthwise(two, value, feature, kernel, out_feature, _in_feature)
    groups = params["feature_group_count"]
    few = groups != two.params["feature_group_count"] or not (groups == 1 or is_random(value.body))
    if not depthwise and (few or params["batch_group_count"] != 1):
        raise Refusal(
            f"{weight.name} is a grouped convolution: each unit sums over few entries, and the limit is not Gaussian. "
            "Keep the number of groups while their size grows, or take means over finite networks: "
            'otherwise="sample"'
        )
    if groups != 1 and not depthwise and isinstance(value.body, Pieces):
        raise Refusal(
            f"{weight.name} has groups, and sums over layers side by side: each has a law of its own"
        )
    if isinstance(value.body, Number):
        value = materialised(context, value, set(ax.flat(value.dims)))
    channels = value.dims[feature]
    if is_random(value.body) and not any(a.kind == "unit" and a.infinite for a in channels):
        raise Refusal(f"{weight.name} sums over channels whose number does not grow with the width")
    for k in spatial:
        for axis in value.dims[k]:
            if axis.kind == "unit" and not axis.infinite and is_random(value.body):
                value = separated(context, value, axis)
        value = one_axis(context, value, k)
    if any(d != 1 for d in params["lhs_dilation"]):
        value = _spread(context, value, spatial, params["lhs_dilation"])
    if any(
        len(value.dims[k]) > 1 or any(a.kind != "position" for a in value.dims[k]) for k in spatial
    ):
        raise Refusal(f"{weight.name} slides along units, samples, or a flattened axis")
    if is_random(value.body):
        ref = process_of(context, value.body)
        source, axes = ref.process.index, ref.axes
    else:
        source, axes = data_moments(
            context, value, tuple(a for a in channels if a.kind == "position")
        )
    context.check_heads(value.body, channels)
    missing = [k for k in spatial if value.dims[k] and value.dims[k][0] not in axes]
    if missing:
        raise Refusal(f"{weight.name} slides over an activation that is constant there")
    context.consume(weight)
    window = tuple(kernel.dims[k][0].size[0] if kernel.dims[k] else 1 for k in window_dims)
    count, grows = (1.0, 0.0) if depthwise else ax.growth(channels)
    count /= 1 if depthwise else groups  # groups whose size grows are alike
    for size in window:
        count *= size
    total, rate, left_over = of_a_sum(context, weight, count, grows)
    shape = scaled_shape(one, two)
    fresh = channels if depthwise else tuple(Axis("unit", a.size) for a in kernel.dims[out_feature])
    dims: list = [()] * len(shape)
    dims[out_batch], dims[out_channel] = value.dims[batch], fresh
    order, new = [], []
    for k, out in zip(spatial, out_spatial):
        dims[out] = context.fresh_dims([shape[out]], "position")[0]
        order.append(axes.index(value.dims[k][0]) if value.dims[k] else None)
        new.append(dims[out])
    if any(k not in order for k in range(len(axes))):
        raise Refusal(
            f"{weight.name} slides along some axes of positions of an activation that has more"
        )
    after = tuple(a for dim in new for a in dim)
    law = NORMAL if is_random(value.body) else context.standard(weight)
    op = Convolution(
        total,
        rate,
        tuple(order),
        window,
        tuple(params["window_strides"]),
        tuple(map(tuple, params["padding"])),
        law,
        tuple(params["rhs_dilation"]),
        tuple(shape[out][0] for out in out_spatial),
    )
    index = context.add_layer(weight.name, op, source, after, variance=total)
    bases = None
    if depthwise:
        bases = bases_of(ref) | {(index, ())}
        context.unlike[index] = (
            f"{weight.name} is a depthwise convolution, whose outputs are no Gaussians: each is a product of few "
            "weights and a unit. Only a norm and a layer of weights have a rule after it, as in ConvNeXt. Or take "
            'means over finite networks: otherwise="sample"'
        )
    process = context.program.process(index, after, fresh, gaussian=not depthwise, bases=bases)
    return Value(
        tuple(dims), Linear(((Ref(process, (), after, fresh), Coefficient(1.0, left_over)),))
    )


def _is_depthwise(
    two: Any, value: Value, feature: int, kernel: Value, out_feature: int, in_feature: int
) -> bool:
    """Whether every unit of an activation has a filter of its own."""
    channels = value.dims[feature]
    groups = two.params["feature_group_count"]
    return (
        is_random(value.body)
        and len(channels) == 1
        and channels[0].infinite
        and channels[0].kind == "unit"
        and groups == channels[0].size[1] == ax.extent(kernel.dims[out_feature])[1]
        and ax.extent(kernel.dims[in_feature]) == (1, 1)
        and two.params["batch_group_count"] == 1
    )


def _spread(context: Context, value: Value, spatial: list[int], dilation: tuple) -> Value:
    """The input of a transposed convolution: its positions with zeros between them."""
    config = [(0, 0, 0)] * len(value.dims)
    for k, step in zip(spatial, dilation):
        config[k] = (0, 0, step - 1)
    return zeros_between(context, value, config)


# --- evaluated -----------------------------------------------------------------------------------


def convolve_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a convolution with random weights."""
    total, rate, order, window, strides, padding, _, dilation, sizes = step.op
    kernel = operands[0].kernel
    kernel = fitted(pixels.reorder(kernel, [k for k in order if k is not None]), need)
    single = [k for k, old in enumerate(order) if old is None]
    kernel = _resized(kernel, single, jnp.expand_dims)
    gone = [k for k, size in enumerate(sizes) if size == 1]
    made = _windows(operands[0], step.op, gone)
    # The NTK parametrization: its own part is the new NNGP, as in `channels.trained`.
    if rate == total:
        out = pixels.convolve(kernel, window, strides, padding, total**0.5, dilation=dilation)
        return Law(_resized(out, gone, jnp.squeeze), entries=made)

    def box(x: Array, lead: int, axes: int) -> Array:
        return pixels.window_mean(x, lead, axes, window, strides, padding, dilation=dilation)

    # Weights of a rate other than their variance: the own part of the NTK is the rate times the mean over windows.
    mean = kernels.mapped(box, kernel)
    out = weighted(kernel, mean, total, rate, None)
    return Law(_resized(out, gone, jnp.squeeze), entries=made)


def _windows(data: Law, op: Convolution, gone: list[int]) -> entries.Entries | None:
    """Entries of a convolution of data."""
    total, _, order, window, strides, padding, law, dilation, _ = op
    raw = data.entries
    if raw is None or not data.kernel.is_input:
        return None
    sides = []
    for x in (raw.one, raw.two):
        x = jnp.transpose(x, (0, *(1 + k for k in order if k is not None), x.ndim - 1))
        sides.append(jnp.expand_dims(x, tuple(1 + k for k, old in enumerate(order) if old is None)))
    count = raw.one.shape[-1] * math.prod(window)
    scale = (total / count) ** 0.5
    one, two = sides
    made = entries.patches(one, two, law, window, strides, padding, scale, dilation)
    one, two = (jnp.squeeze(x, tuple(1 + k for k in gone)) for x in (made.one, made.two))
    return dataclasses.replace(made, one=one, two=two)


def _resized(kernel: Kernel, places: list[int], change: Callable) -> Kernel:
    """Spatial axes of size one inserted or removed: `change` is jnp.expand_dims or jnp.squeeze."""
    if not places:
        return kernel

    def one(x: Array, lead: int, axes: int) -> Array:
        return change(x, tuple(lead + axes * k + s for k in places for s in range(axes)))

    out = kernels.mapped(one, kernel, moves=True)
    if out.var1.ndim == 1:  # no positions are left
        out = out.replace(within1=None, within2=None, diagonal_spatial=False)
    return out


def words(op: Convolution, note: Note) -> tuple[str, str]:
    """For a reader."""
    return ", ".join(note.parameters), f"{op.total:.6g} K averaged over the window"


KIND = Kind("convolution", convolve_law, sizes=lambda op: op.sizes, words=words)
