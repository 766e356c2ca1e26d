"""Linear maps of positions: pooling, padding, concatenation, entries picked and added up.

Over pairs of positions (`ntk.infinite.pixels.linear`)::

    K' = L K L^T
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ntk.trace import algebra
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context, scaled_shape
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    NumberArray,
    Pieces,
    Refusal,
    Value,
    Weight,
    is_random,
)
from ntk.trace.ops import several
from ntk.trace.ops.combine import sealed
from ntk.trace.ops.elementwise import as_sum, elementwise
from ntk.trace.ops.function import process_of
from ntk.trace.ops.mix import piece_axis
from ntk.trace.ops.numbers import Numbers, frozen, numbers_step, on_numbers
from ntk.trace.ops.vector import as_vectors
from ntk.trace.steps import Operand, code, shape_code


def mapped(
    context: Context, name: str, params: tuple, values: list[Value], place: int, dims: Dims
) -> Value:
    """A primitive that is linear in operand `place`, applied to its positions.

    Args:
        context: of the trace.
        name: of the primitive.
        params: its parameters, hashable.
        values: its operands.
        place: of the activation among them.
        dims: of the result; axes of units and samples are those of the activation.
    """
    value = values[place]
    codes = tuple(shape_code(v.dims) for v in values)
    if isinstance(value.body, NumberArray):
        inputs = [v.body.index for v in values]
        op = Numbers(name, params, codes, shape_code(dims))
        return Value(dims, value.body._replace(index=numbers_step(context, op, inputs)))
    body = value.body
    if isinstance(body, Pieces):
        return _in_pieces(context, name, params, values, place, dims)
    if isinstance(body, Weight):
        value = as_vectors(context, value)
        body = value.body
    if not isinstance(body, Linear):
        ref = process_of(context, body)
        body = Linear(((ref, Coefficient()),))
    axes = ax.positions(value.dims)
    sizes = tuple(a.size[0] for a in axes)
    after = ax.positions(dims)
    out = tuple(
        tuple(
            "s" if a.kind == "sample" else a.size[0]
            for a in dim
            if a.kind in ("sample", "position")
        )
        for dim in dims
    )
    others = tuple(Operand(v.body.index) for k, v in enumerate(values) if k != place)
    item = (
        "map",
        name,
        params,
        place,
        others,
        code(value.dims, axes),
        codes,
        shape_code(dims),
        out,
    )
    terms = []
    for ref, c in body.terms:
        # Processes and arrays that lack an axis are constant along it; a linear map of positions needs it written out.
        maps = list(ref.maps)
        if ref.axes != axes:
            maps.append(("expand", sizes, tuple(axes.index(a) for a in ref.axes)))
        for index, array_dims in c.arrays:
            maps.append(("scale", Operand(index), code(array_dims, axes), sizes))
        maps.append(item)
        new = ref._replace(maps=tuple(maps), axes=after)
        terms.append((new, Coefficient(c.number, c.power)))
    return Value(dims, Linear(tuple(terms)))


def _in_pieces(
    context: Context, name: str, params: tuple, values: list[Value], place: int, dims: Dims
) -> Value:
    """A linear map of positions of several layers side by side."""
    pieces = values[place].body
    parts = []
    for body, own in pieces.parts:
        renames = {pieces.units: (piece_axis(pieces, own),)}
        given = [*values[:place], Value(own, body), *values[place + 1 :]]
        part = mapped(context, name, params, given, place, ax.substitute(dims, renames))
        parts.append((part.body, part.dims))
    return Value(dims, Pieces(tuple(parts), pieces.shares, pieces.units))


def _windows(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Pooling, padding, reversal, cumulative sums: linear along positions, whatever the units."""
    value = values[0]
    if not is_random(value.body):
        return on_numbers(context, one, two, values)
    for extra in values[1:]:
        if not (isinstance(extra.body, Number) and extra.body.number == 0):
            raise Refusal("activations are padded with numbers other than zero")
    shape = scaled_shape(one, two)
    dims: list[tuple[Axis, ...]] = []
    for dim, size in zip(value.dims, shape):
        if ax.extent(dim) == size and not _touches(one, len(dims)):
            dims.append(dim)
        elif any(a.kind != "position" for a in dim):
            raise Refusal(
                f"{one.primitive.name} along units or samples (a flip, a shift, a cumulative sum): units are of one "
                "law and have no order, so leave it out, or do it along positions"
            )
        else:
            dims.append(context.fresh_dims([size], "position")[0])
    params = dict(one.params)
    if values[1:]:
        zero = Value((), NumberArray(context.program.constant(np.zeros(()))))
        return mapped(context, one.primitive.name, frozen(params), [value, zero], 0, tuple(dims))
    return mapped(context, one.primitive.name, frozen(params), [value], 0, tuple(dims))


def _largest(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Max pooling: the largest of each window."""
    value = values[0]
    if not is_random(value.body):
        return on_numbers(context, one, two, values)
    dims: list[tuple[Axis, ...]] = []
    for k, (dim, size) in enumerate(zip(value.dims, scaled_shape(one, two))):
        if ax.extent(dim) == size and not _touches(one, k):
            dims.append(dim)
        elif any(a.kind != "position" for a in dim):
            raise Refusal("max pooling over units or samples: let windows be along positions")
        else:
            dims.append(context.fresh_dims([size], "position")[0])
    ref = process_of(context, value.body)
    params = frozen(one.params)
    return several.primitive(context, one.primitive.name, params, [value], [ref], tuple(dims))


def _touches(equation: Any, k: int) -> bool:
    params, name = equation.params, equation.primitive.name
    if name == "rev":
        return k in params["dimensions"]
    if name.startswith("cum"):
        return k == params["axis"]
    if name == "pad":
        return tuple(params["padding_config"][k]) != (0, 0, 0)
    return params.get("window_dimensions", (1,) * (k + 1))[k] != 1


def zeros_between(context: Context, value: Value, config: list) -> Value:
    """Positions with zeros before, after and between them, as `lax.pad` has it."""
    algebra.register(_pad_primitive())
    dims = []
    for dim, (low, high, inside) in zip(value.dims, config):
        size = ax.extent(dim)[0]
        more = low + high + inside * (size - 1)
        if not more:
            dims.append(dim)
        elif any(a.kind != "position" for a in dim):
            raise Refusal("zeros are put between units or samples: let them be along positions")
        else:
            dims.append(context.fresh_dims([(size + more,) * 2], "position")[0])
    zero = Value((), NumberArray(context.program.constant(np.zeros(()))))
    params = (("padding_config", tuple(config)),)
    return mapped(context, "pad", params, [value, zero], 0, tuple(dims))


def _concatenate(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    axis = one.params["dimension"]
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return on_numbers(context, one, two, values)
    matrices = [
        v.body.name
        for v in values
        if isinstance(v.body, Weight) and sum(a.infinite for a in ax.flat(v.body.own)) > 1
    ]
    if matrices:
        raise Refusal(
            f"the matrices {', '.join(dict.fromkeys(matrices))} are put side by side before they meet activations: "
            "give each a layer of its own (nn.LSTMCell in place of nn.OptimizedLSTMCell; the gates of a recurrent "
            'network have no rule, though: take means over finite networks, otherwise="sample")'
        )
    values = [as_vectors(context, v) for v in values]
    if any(
        a.kind in ("unit", "free") and a.infinite for v in values for a in ax.flat((v.dims[axis],))
    ):
        return _side_by_side(context, values, axis, scaled_shape(one, two))
    return joined(context, values, axis, scaled_shape(one, two)[axis])


def joined(context: Context, values: list[Value], axis: int, size: ax.Size) -> Value:
    """Activations side by side along an axis of positions, of that size in all."""
    total, start = None, 0
    new = context.fresh_dims([size], "position")[0]
    length = size[0]
    for value in values:
        width = ax.extent(value.dims[axis])[0]
        config = [(0, 0, 0)] * len(value.dims)
        config[axis] = (start, length - start - width, 0)
        start += width
        renames = {a: (Axis("position", a.size),) for a in value.dims[axis] if a.kind == "free"}
        value = co.renamed(value, renames)
        if any(a.kind != "position" for a in value.dims[axis]):
            raise Refusal(
                "a concatenation along an axis of units that does not grow (outputs side by side): let the model "
                'return one of them, or take means over finite networks: otherwise="sample"'
            )
        zero = Value((), NumberArray(context.program.constant(np.zeros(()))))
        algebra.register(_pad_primitive())
        dims = tuple(new if k == axis else dim for k, dim in enumerate(value.dims))
        if isinstance(value.body, Number):
            raise Refusal("constants are concatenated to activations")
        params = (("padding_config", tuple(config)),)
        part = mapped(context, "pad", params, [value, zero], 0, dims)
        # Side by side is a sum of padded parts.
        if total is not None:
            first, second = _aligned(total, part)
            part = Value(first.dims, algebra.added(*_alike(context, first.body, second.body)))
        total = part
    assert total is not None  # a concatenation has operands
    return total


def _alike(context: Context, one: Any, two: Any) -> tuple[Any, Any]:

    one, two = as_sum(one, ()), as_sum(two, ())
    if isinstance(one, Linear) and isinstance(two, Linear):
        return one, two
    return sealed(context.program, one), sealed(context.program, two)


def _aligned(one: Value, two: Value) -> tuple[Value, Value]:
    dims, first, second = ax.unify(one.dims, two.dims)
    return Value(dims, co.renamed(one, first).body), Value(dims, co.renamed(two, second).body)


def _pad_primitive() -> Any:
    return (
        jax.make_jaxpr(lambda x: jax.lax.pad(x, 0.0, [(1, 1, 0)]))(1.0 * np.zeros(1))
        .jaxpr.eqns[-1]
        .primitive
    )


def _side_by_side(context: Context, values: list[Value], axis: int, shape: list) -> Value:
    """Layers concatenated along their units."""
    parts = []
    for value in values:
        dim = value.dims[axis]
        if isinstance(value.body, Number):
            raise Refusal("constants are concatenated to units")
        if isinstance(value.body, NumberArray) or not any(a.infinite for a in dim):
            dims = (*value.dims[:axis], (), *value.dims[axis + 1 :])
            if isinstance(value.body, NumberArray):
                continue  # a fixed number of columns beside infinitely many
            raise Refusal(
                "a layer of fixed width is concatenated to one that grows (or units are rolled: they have no order). "
                "Let both grow with the width"
            )
        if len(dim) != 1:
            raise Refusal("flattened layers are concatenated")
        if isinstance(value.body, Pieces):
            parts += list(value.body.parts)
        else:
            parts.append((value.body, value.dims))
    units = Axis("unit", shape[axis])
    aligned = [parts[0]]
    for body, dims in parts[1:]:
        rest = tuple(d for k, d in enumerate(dims) if k != axis)
        target = tuple(d for k, d in enumerate(aligned[0][1]) if k != axis)
        _, first, second = ax.unify(target, rest)
        if first:
            aligned = [(co.renamed_body(b, first), ax.substitute(d, first)) for b, d in aligned]
        aligned.append((co.renamed_body(body, second), ax.substitute(dims, second)))
    slopes = [ax.growth(dims[axis])[0] for _, dims in aligned]
    # Of infinitely many units: parts of sizes a n + b have the shares of their a.
    shares = tuple(s / sum(slopes) for s in slopes)
    dims = (*aligned[0][1][:axis], (units,), *aligned[0][1][axis + 1 :])
    return Value(dims, Pieces(tuple(aligned), shares, units))


def picked(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Positions of an activation picked by constants."""
    numbers = one.params["dimension_numbers"]
    value = values[0]
    chosen = set(numbers.start_index_map) | set(numbers.collapsed_slice_dims)
    if any(a.kind != "position" for k in chosen for a in value.dims[k]):
        raise Refusal("units or samples are indexed")
    shape = scaled_shape(one, two)
    kept = [k for k in range(len(value.dims)) if k not in numbers.collapsed_slice_dims]
    dims = list(context.fresh_dims(shape, "position"))
    for k, axis in zip(numbers.offset_dims, kept):
        if axis not in chosen:
            dims[k] = value.dims[axis]
    return mapped(context, "gather", frozen(one.params), values, 0, tuple(dims))


def _scattered(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Entries added up at places that constants tell, as messages at the nodes of a given graph."""
    operand, indices, updates = values
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return on_numbers(context, one, two, values)
    numbers = one.params["dimension_numbers"]
    places = set(numbers.scatter_dims_to_operand_dims)
    batched: tuple[int, ...] = getattr(numbers, "operand_batching_dims", ())
    gone = {*numbers.inserted_window_dims, *batched}
    dims = list(context.fresh_dims(scaled_shape(one, two), "position"))
    window = [k for k in range(len(dims)) if k not in gone]
    for source, k in zip(numbers.update_window_dims, window):
        if k not in places:
            dims[k] = updates.dims[source]
    zero = isinstance(operand.body, Number) and operand.body.number == 0
    fixed = any(a.kind != "position" for k in places for a in dims[k])
    if fixed or batched or not is_random(updates.body):
        raise Refusal(
            "activations are put at places along samples or units, or at places that differ between samples, or "
            "numbers are put among activations: add activations up along positions, at constant places"
        )
    start = Value(tuple(dims), NumberArray(context.program.constant(np.zeros((1,) * len(dims)))))
    sums = mapped(
        context, one.primitive.name, frozen(one.params), [start, indices, updates], 2, tuple(dims)
    )
    return sums if zero else elementwise(context, algebra.equation("add"), [operand, sums])


READS = {
    "concatenate": _concatenate,
    "pad": _windows,
    "rev": _windows,
    "cumsum": _windows,
    "reduce_window_sum": _windows,
    "reduce_window_max": _largest,
    "reduce_window_min": _largest,
    "scatter-add": _scattered,
}
