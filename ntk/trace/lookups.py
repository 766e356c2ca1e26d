"""Rows of a table of weights, looked up by numbers: embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntk.infinite.weight_laws import NORMAL
from ntk.trace import axes as ax
from ntk.trace.axes import Axis
from ntk.trace.context import Context, scaled_shape
from ntk.trace.coordinates import (
    Coefficient,
    Finite,
    Linear,
    Number,
    Ref,
    Refusal,
    Value,
    Weight,
    is_random,
)
from ntk.trace.elementwise import elementwise
from ntk.trace.finite import frozen, on_numbers
from ntk.trace.positions import mapped
from ntk.trace.steps import Note, code
from ntk.trace.sums import equation


def gather(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Rows of a table, or positions of an activation."""
    table, indices = values
    if isinstance(table.body, Weight):
        return _embedding(context, one, two, table, indices)
    if is_random(table.body):
        return _positions(context, one, two, values)
    return on_numbers(context, one, two, values)


def _embedding(context: Context, one: Any, two: Any, table: Value, indices: Value) -> Value:
    numbers = one.params["dimension_numbers"]
    weight = table.body
    axis = numbers.start_index_map
    sizes = one.params["slice_sizes"]
    units = [k for k in range(len(table.dims)) if k not in axis]
    whole = all(sizes[k] == ax.extent(table.dims[k])[0] for k in units)
    plain = len(axis) == 1 and sizes[axis[0]] == 1 and whole
    if not plain or weight.arrays or getattr(numbers, "operand_batching_dims", ()):
        raise Refusal(f"{weight.name} is indexed in another way than row by row")
    if isinstance(indices.body, Number):
        row = np.full((1,) * len(indices.dims), int(indices.body.number), np.int32)
        indices = Value(indices.dims, Finite(context.program.constant(row)))
    rows = list(indices.dims[:-1])
    fresh = {a: (Axis("unit", a.size),) for k in units for a in table.dims[k]}
    columns = [ax.substitute((table.dims[k],), fresh)[0] for k in units]
    offsets = set(numbers.offset_dims)
    dims, rows_left, columns_left = [], list(rows), list(columns)
    for k in range(len(one.outvars[0].aval.shape)):
        dims.append(columns_left.pop(0) if k in offsets else rows_left.pop(0))
    context.consume(weight)
    mean, variance, power, rate = context.law(weight)
    if mean or not variance:
        raise Refusal(f"{weight.name} has initial mean {mean:.3g} and variance {variance:.3g}")
    if power:
        raise Refusal(
            f"{weight.name} has initial variance {variance:.3g} width^{power:g}, but no sum over its rows: entries of "
            "an embedding need a standard deviation that does not depend on the width (nn.initializers.normal(1.0)), "
            "or fix the scale at one width with infinite_width(..., base_width=...)"
        )
    axes = ax.positions(tuple(rows))
    coded = code(tuple(indices.dims), axes)
    note = Note(
        weight.name, axes=" x ".join(str(a.size[0]) for a in axes), parameters=(weight.name,)
    )
    shape = tuple(a.size[0] for a in axes)
    count = ax.extent(table.dims[axis[0]])[0]
    law = context.standard(weight)
    static = (variance, variance * rate, coded, shape, law, count)
    index = context.program.add("lookup", static, (indices.body.index,), note)
    context.record(
        weight.name,
        variance=variance,
        rate=variance * rate,
        role="table",
        mean=0.0,
        fixed=law != NORMAL,
    )
    new = tuple(a for dim in columns for a in dim)
    process = context.program.process(index, axes, new, gaussian=True)
    ref = Ref(process, (), axes, new)
    return Value(tuple(dims), Linear(((ref, Coefficient()),)))


def scatter(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Entries added up at places that constants tell, as messages at the nodes of a given graph."""
    operand, indices, updates = values
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return on_numbers(context, one, two, values)
    numbers = one.params["dimension_numbers"]
    places = set(numbers.scatter_dims_to_operand_dims)
    gone = {*numbers.inserted_window_dims, *getattr(numbers, "operand_batching_dims", ())}
    dims = list(context.fresh_dims(scaled_shape(one, two), "position"))
    window = [k for k in range(len(dims)) if k not in gone]
    for source, k in zip(numbers.update_window_dims, window):
        if k not in places:
            dims[k] = updates.dims[source]
    zero = isinstance(operand.body, Number) and operand.body.number == 0
    fixed = any(a.kind != "position" for k in places for a in dims[k])
    if fixed or getattr(numbers, "operand_batching_dims", ()) or not is_random(updates.body):
        raise Refusal(
            "activations are put at places along samples or units, or at places that differ between samples, or "
            "numbers are put among activations: add activations up along positions, at constant places"
        )
    start = Value(tuple(dims), Finite(context.program.constant(np.zeros((1,) * len(dims)))))
    sums = mapped(
        context, one.primitive.name, frozen(one.params), [start, indices, updates], 2, tuple(dims)
    )
    return sums if zero else elementwise(context, equation("add"), [operand, sums])


def _positions(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Positions of an activation picked by constants."""
    numbers = one.params["dimension_numbers"]
    value = values[0]
    picked = set(numbers.start_index_map) | set(numbers.collapsed_slice_dims)
    if any(a.kind != "position" for k in picked for a in value.dims[k]):
        raise Refusal("units or samples are indexed")
    shape = scaled_shape(one, two)
    kept = [k for k in range(len(value.dims)) if k not in numbers.collapsed_slice_dims]
    dims = list(context.fresh_dims(shape, "position"))
    for k, axis in zip(numbers.offset_dims, kept):
        if axis not in picked:
            dims[k] = value.dims[axis]
    return mapped(context, "gather", frozen(one.params), values, 0, tuple(dims))
