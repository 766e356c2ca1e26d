"""Convolutions with fresh weights in a traced network."""

from __future__ import annotations

from typing import Any

from ntk.infinite.weight_laws import NORMAL
from ntk.trace import axes as ax
from ntk.trace.axes import Axis
from ntk.trace.context import Context, materialised, scaled_shape, snapped
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    Ref,
    Refusal,
    Value,
    Weight,
    bases_of,
    is_random,
)
from ntk.trace.positions import zeros_between
from ntk.trace.processes import process_of, separated
from ntk.trace.products import data_moments, scale_text
from ntk.trace.shapes import one_axis
from ntk.trace.steps import Note


def convolution(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Second moments averaged over windows moved together, see `ntk.infinite.pixels.convolve`."""
    value, kernel = values
    if not isinstance(kernel.body, Weight):
        raise Refusal(
            "a convolution with a kernel that is not a parameter (a layer of unshared weights, such as ConvLocal, "
            "has no rule here): use Conv"
        )
    weight, params = kernel.body, one.params
    numbers = params["dimension_numbers"]
    batch, feature, *spatial = numbers.lhs_spec
    out_feature, _in_feature, *window_dims = numbers.rhs_spec
    out_batch, out_channel, *out_spatial = numbers.out_spec
    depthwise = _is_depthwise(two, value, feature, kernel, out_feature, _in_feature)
    if not depthwise and (params["feature_group_count"] != 1 or params["batch_group_count"] != 1):
        raise Refusal(
            f"{weight.name} is a grouped convolution: each unit sums over few entries, and the limit is not Gaussian. "
            "Use feature_group_count=1"
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
    mean, variance, power, rate = context.law(weight)
    window = tuple(kernel.dims[k][0].size[0] if kernel.dims[k] else 1 for k in window_dims)
    count, grows = (1.0, 0.0) if depthwise else ax.growth(channels)
    for size in window:
        count *= size
    if mean:
        raise Refusal(
            f"{weight.name} has initial mean {mean:.3g}; weights that sum over units must have mean zero"
        )
    total, own = snapped(variance * count), snapped(variance * count) * rate
    left_over = (power + grows) / 2
    if not variance:
        (total, own), left_over = context.zero(weight, count, grows), 0.0
    if left_over:
        context.scales.append(scale_text(context, weight.name, variance, power, grows))
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
    static = (
        total,
        own,
        tuple(order),
        window,
        tuple(params["window_strides"]),
        tuple(map(tuple, params["padding"])),
        law,
        tuple(params["rhs_dilation"]),
        tuple(shape[out][0] for out in out_spatial),
    )
    note = Note(
        weight.name,
        axes=" x ".join(str(a.size[0]) for a in after),
        parameters=(weight.name,),
    )
    index = context.program.add("convolve", static, (source,), note)
    context.record(
        weight.name,
        variance=total,
        rate=own,
        role="weights",
        mean=0.0,
        fixed=law != NORMAL,
    )
    bases = None
    if depthwise:
        bases = bases_of(ref) | {(index, ())}
        context.unlike[index] = (
            f"{weight.name} is a depthwise convolution, whose outputs are no Gaussians: each is a product of few "
            "weights and a unit. Only a norm and a layer of weights have a rule after it, as in ConvNeXt"
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
