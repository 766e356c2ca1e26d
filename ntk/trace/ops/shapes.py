"""Changes of shape: reshape, broadcast, transpose, slice, split."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context, scaled_shape
from ntk.trace.coordinates import Number, NumberArray, Pieces, Refusal, Value, Weight, is_random
from ntk.trace.ops.mix import piece_axis, take_units
from ntk.trace.ops.numbers import Numbers, numbers_step, on_numbers
from ntk.trace.ops.positions import joined, mapped
from ntk.trace.ops.vector import as_vectors
from ntk.trace.steps import shape_code


def _reshape(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    value = values[0]
    shape = scaled_shape(one, two)
    if isinstance(value.body, Number):
        return Value(context.fresh_dims(shape, "free"), value.body)
    dims, splits = ax.reshape(value.dims, shape)
    out = co.renamed(value, splits)
    return _reshaped(context, "reshape", (), out.body, value.dims, dims)


def _reshaped(
    context: Context, name: str, params: tuple, body: Any, before: Dims, after: Dims
) -> Value:
    """The step on numbers that goes with new dimensions."""
    if isinstance(body, NumberArray):
        op = Numbers(name, params, (shape_code(before),), shape_code(after))
        return Value(after, body._replace(index=numbers_step(context, op, [body.index])))
    return Value(after, body)


def _broadcast(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    value, shape = values[0], scaled_shape(one, two)
    new = context.fresh_dims(shape, "free")
    for k, axis in enumerate(one.params["broadcast_dimensions"]):
        if value.dims[k]:
            new = (*new[:axis], value.dims[k], *new[axis + 1 :])
    params = (("broadcast_dimensions", tuple(one.params["broadcast_dimensions"])),)
    return _reshaped(context, "broadcast_in_dim", params, value.body, value.dims, new)


def _transpose(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    order = one.params["permutation"]
    dims = tuple(values[0].dims[k] for k in order)
    params = (("permutation", tuple(order)),)
    return _reshaped(context, "transpose", params, values[0].body, values[0].dims, dims)


def _tile(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Copies along every axis: what is repeated does not depend on the new axes."""
    value, shape = values[0], scaled_shape(one, two)
    if isinstance(value.body, Number):
        return Value(context.fresh_dims(shape, "free"), value.body)
    if not is_random(value.body) and not isinstance(value.body, Weight):
        return on_numbers(context, one, two, values)
    # Copies of one entry are equal, not independent: along the new axis the array is constant.
    new = context.fresh_dims(list(zip(one.params["reps"], two.params["reps"])), "free")
    return Value(tuple((*a, *b) for a, b in zip(new, value.dims)), value.body)


def _squeeze(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    gone = {d % len(values[0].dims) for d in one.params["dimensions"]}
    dims = tuple(dim for k, dim in enumerate(values[0].dims) if k not in gone)
    return _reshaped(context, "reshape", (), values[0].body, values[0].dims, dims)


def _iota(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    shape = scaled_shape(one, two)
    axis = one.params["dimension"]
    dims = list(context.fresh_dims(shape, "free"))
    if any(a.infinite or a.kind == "sample" for a in dims[axis]):
        raise Refusal("numbers that count units or samples have no limit")
    dims[axis] = tuple(Axis("position", a.size) for a in dims[axis])
    code = shape_code(tuple(dims))
    floating = bool(jnp.issubdtype(one.params["dtype"], jnp.floating))
    params = (("dimension", axis), ("floating", floating))
    index = numbers_step(context, Numbers("iota", params, (), code), [])
    return Value(tuple(dims), NumberArray(index))


def _slice(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    strides = one.params["strides"] or (1,) * len(values[0].dims)
    bounds = [
        (s1, e1, s2, e2, step)
        for s1, e1, s2, e2, step in zip(
            one.params["start_indices"],
            one.params["limit_indices"],
            two.params["start_indices"],
            two.params["limit_indices"],
            strides,
        )
    ]
    return sliced(context, one, values[0], bounds)


def sliced(context: Context, equation: Any, value: Value, bounds: list) -> Value:
    """A block of an array; along units it is a choice of independent copies."""

    plain = []
    for k, (dim, (s1, e1, s2, e2, step)) in enumerate(zip(value.dims, bounds)):
        size = ax.extent(dim)
        if (s1, s2) == (0, 0) and (e1, e2) == size and step == 1:
            continue
        if isinstance(value.body, Number):
            plain.append((k, None))
        elif isinstance(value.body, Weight) or any(a.kind == "unit" for a in dim):
            if len(dim) != 1 or step != 1:
                raise Refusal("a slice of a flattened or strided axis of units")
            value = _units(context, value, k, (s1, s2), (e1, e2))
        elif any(a.kind == "sample" for a in dim):
            raise Refusal("samples are sliced: every output must depend on its own sample alone")
        else:
            plain.append((k, step))
    if isinstance(value.body, Number) and plain:
        shape = [(-(-(e1 - s1) // step), -(-(e2 - s2) // step)) for s1, e1, s2, e2, step in bounds]
        return Value(context.fresh_dims(shape, "free"), value.body)
    if not plain:
        return value
    dims = list(value.dims)
    for k, step in plain:
        s1, e1 = bounds[k][:2]
        dims[k] = context.fresh_dims([(-(-(e1 - s1) // step),) * 2], "position")[0]
    strides = tuple(b[4] for b in bounds)
    # The whole of an axis is written with its traced size, whatever was cut off by `_units`.
    code = [size for _, size in shape_code(value.dims)]
    chosen = {k for k, _ in plain}
    params = (
        ("limit_indices", tuple(b[1] if k in chosen else code[k] for k, b in enumerate(bounds))),
        ("start_indices", tuple(b[0] if k in chosen else 0 for k, b in enumerate(bounds))),
        ("strides", strides),
    )
    return mapped(context, "slice", params, [value], 0, tuple(dims))


def one_axis(context: Context, value: Value, k: int) -> Value:
    """A dimension that several axes of positions were flattened into, or repeated along, as one axis."""
    kinds = {a.kind for a in value.dims[k]}
    if (kinds <= {"position"} and len(value.dims[k]) <= 1) or not kinds <= {"position", "free"}:
        return value
    if not is_random(value.body) or any(a.infinite for a in value.dims[k]):
        return value
    renames = {a: (Axis("position", a.size),) for a in value.dims[k] if a.kind == "free"}
    value = co.renamed(value, renames)
    dims = list(value.dims)
    dims[k] = (Axis("position", ax.extent(value.dims[k])),)
    return mapped(context, "reshape", (), [value], 0, tuple(dims))


def row(context: Context, value: Value, k: int) -> Value:
    """Entry k of the first axis of an array."""
    bounds = [(0, e1, 0, e2, 1) for e1, e2 in map(ax.extent, value.dims)]
    bounds[0] = (k, k + 1, k, k + 1, 1)
    out = sliced(context, None, value, bounds)
    return _reshaped(context, "reshape", (), out.body, out.dims, out.dims[1:])


def _stack(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Arrays put together along a new axis."""
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return on_numbers(context, one, two, values)
    axis = one.params["axis"] % (len(values[0].dims) + 1)
    wide = []
    for v in (as_vectors(context, v) for v in values):
        dims = (*v.dims[:axis], (), *v.dims[axis:])
        wide.append(_reshaped(context, "reshape", (), v.body, v.dims, dims))
    return joined(context, wide, axis, (len(wide),) * 2)


def stacked(context: Context, values: list[Value]) -> Value:
    """Arrays as the rows of one, the results of every round of a loop."""
    wide = [_reshaped(context, "reshape", (), v.body, v.dims, ((), *v.dims)) for v in values]
    if all(isinstance(v.body, NumberArray | Number) for v in wide):
        raise Refusal("numbers of every round of a loop are put together, without activations")
    return joined(context, wide, 0, (len(wide),) * 2)


def _units(
    context: Context, value: Value, k: int, start: tuple[int, int], stop: tuple[int, int]
) -> Value:
    axis = value.dims[k][0]
    size = (stop[0] - start[0], stop[1] - start[1])
    if isinstance(value.body, Weight):
        own = [i for i, dim in enumerate(value.body.own) if axis in dim]
        if not own:
            return Value(
                (*value.dims[:k], (Axis(axis.kind, size),), *value.dims[k + 1 :]), value.body
            )
        if len(value.body.own[own[0]]) != 1:
            raise Refusal(f"a slice of a reshaped axis of {value.body.name}")
        new = Axis(axis.kind, size)
        renamed = co.renamed(value, {axis: (new,)} if size != (1, 1) else {axis: ()})
        at = sum(s for i, s, _ in value.body.part if i == own[0])
        part = (*value.body.part, (own[0], at + start[0], at + stop[0]))
        return Value(renamed.dims, renamed.body._replace(part=part))
    if isinstance(value.body, Pieces):
        at = 0
        for body, dims in value.body.parts:
            piece = piece_axis(value.body, dims)
            if at == start[0] and piece.size == size:
                return Value(dims, body)
            at += piece.size[0]
        raise Refusal("concatenated layers are sliced elsewhere than at their borders")
    return take_units(context, value, axis, start[0], Axis("unit", size))


def split(context: Context, one: Any, two: Any, value: Value) -> list[Value]:
    """Blocks of an array."""
    axis, out = one.params["axis"], []
    start = (0, 0)
    for size in zip(one.params["sizes"], two.params["sizes"]):
        stop = (start[0] + size[0], start[1] + size[1])
        bounds = [(0, *(ax.extent(dim)[0],), 0, ax.extent(dim)[1], 1) for dim in value.dims]
        bounds[axis] = (start[0], stop[0], start[1], stop[1], 1)
        out.append(sliced(context, one, value, bounds))
        start = stop
    return out


def unstack(context: Context, one: Any, two: Any, value: Value) -> list[Value]:
    """Entries of an array along an axis, each without that axis."""
    axis, out = one.params["axis"], []
    for k in range(len(one.outvars)):
        bounds = [(0, e1, 0, e2, 1) for e1, e2 in map(ax.extent, value.dims)]
        bounds[axis] = (k, k + 1, k, k + 1, 1)
        part = sliced(context, one, value, bounds)
        dims = (*part.dims[:axis], *part.dims[axis + 1 :])
        out.append(_reshaped(context, "reshape", (), part.body, part.dims, dims))
    return out


READS = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "tile": _tile,
    "stack": _stack,
    "iota": _iota,
    "slice": _slice,
}
