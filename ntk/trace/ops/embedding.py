"""Rows of a table of weights, looked up by numbers.

Of the indices i, j::

    K(i, j) = variance 1(i = j),    T(i, j) = rate 1(i = j)

An index outside of the table has the row that the program's look-up gives it: nan, zeros, or the nearest row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import axes as ax
from ntk.trace import entries
from ntk.trace.axes import Axis
from ntk.trace.context import Context
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    NumberArray,
    Ref,
    Refusal,
    Value,
    Weight,
    is_random,
)
from ntk.trace.laws import Law, Setting, gaussian
from ntk.trace.ops.numbers import Numbers, frozen, numbers_step, on_numbers, to_axes
from ntk.trace.ops.positions import picked
from ntk.trace.steps import Kind, Note, Step, code, shape_code


class Embedding(NamedTuple):
    """Rows of a table of weights.

    Attributes:
        variance: of an entry.
        rate: what the table adds to the tangent kernel.
        code: dimensions of the indices in terms of their axes of positions.
        sizes: of these.
        law: of an entry, in standard units.
        rows: of the table.
        outside: what an index that is not in the table reads: 'nan', 'zero', or the 'nearest' row.
    """

    variance: float
    rate: float
    code: tuple
    sizes: tuple[int, ...]
    law: Standard
    rows: int
    outside: str


_ROWS = 4096  # of a table of normal weights whose entries are kept


def gather(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Rows of a table, or positions of an activation."""
    table, indices = values
    if isinstance(table.body, Weight):
        return _embedding(context, one, two, table, indices)
    if is_random(table.body):
        return picked(context, one, two, values)
    return on_numbers(context, one, two, values)


def _embedding(context: Context, one: Any, two: Any, table: Value, indices: Value) -> Value:
    numbers = one.params["dimension_numbers"]
    weight = table.body
    row = _row_axis(one, two, table)
    if row is None or weight.arrays or getattr(numbers, "operand_batching_dims", ()):
        raise Refusal(f"{weight.name} is indexed in another way than row by row")
    units = [k for k in range(len(table.dims)) if k != row]
    if isinstance(indices.body, Number):
        constant = np.full((1,) * len(indices.dims), int(indices.body.number), np.int32)
        indices = Value(indices.dims, NumberArray(context.program.constant(constant)))
    indices = _column(context, indices, numbers.start_index_map.index(row))
    rows = list(indices.dims[:-1])
    fresh = {a: (Axis("unit", a.size),) for k in units for a in table.dims[k]}
    columns = {k: ax.substitute((table.dims[k],), fresh)[0] for k in units}
    kept = [k for k in range(len(table.dims)) if k not in numbers.collapsed_slice_dims]
    dims, rows_left = [], list(rows)
    for k in range(len(one.outvars[0].aval.shape)):
        if k in numbers.offset_dims:
            dims.append(columns.get(kept.pop(0), ()))
        else:
            dims.append(rows_left.pop(0))
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
    shape = tuple(a.size[0] for a in axes)
    count = ax.extent(table.dims[row])[0]
    law = context.standard(weight)
    op = Embedding(variance, variance * rate, coded, shape, law, count, _outside(one, weight))
    index = context.add_layer(weight.name, op, indices.body.index, axes, variance, role="table")
    new = tuple(a for dim in columns.values() for a in dim)
    process = context.program.process(index, axes, new, gaussian=True)
    ref = Ref(process, (), axes, new)
    return Value(tuple(dims), Linear(((ref, Coefficient()),)))


def _outside(one: Any, weight: Weight) -> str:
    """What an index that is not in the table reads."""
    if one.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return "nearest"  # and where the caller has promised that there is none, nothing is asked
    fill = one.params["fill_value"]
    if fill is None or np.isnan(fill):
        return "nan"
    if fill:
        raise Refusal(f"{weight.name} is {fill} at indices outside of it; let it be nan or 0 there")
    return "zero"


def table_rows(op: Embedding, indices: jax.Array) -> tuple[Array, Array]:
    """Of indices: which rows (N, *sizes) they read, and the factor of these: 1, and nan or 0 where there is none."""
    rows = to_axes(indices, op.code, op.sizes)
    rows = jnp.broadcast_to(rows, (rows.shape[0], *op.sizes))
    if op.outside == "nearest":
        rows = jnp.clip(rows, 0, op.rows - 1)
    known = (rows >= 0) & (rows < op.rows)
    return rows, jnp.where(known, 1.0, jnp.nan if op.outside == "nan" else 0.0)


def _row_axis(one: Any, two: Any, table: Value) -> int | None:
    """The axis of a table along which rows are looked up; None for another look-up.

    Along other axes slices are whole. Where such an axis has a start too, as in a look-up by a scalar under vmap, that
    start is clipped to 0.
    """
    numbers = one.params["dimension_numbers"]
    sizes = list(zip(one.params["slice_sizes"], two.params["slice_sizes"]))
    cut = [k for k, dim in enumerate(table.dims) if sizes[k] != ax.extent(dim)]
    axes = numbers.start_index_map
    chosen = cut or list(axes[:1])
    clipped = one.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP
    if len(chosen) != 1 or chosen[0] not in axes or not (clipped or len(axes) == 1):
        return None
    return chosen[0] if sizes[chosen[0]] == (1, 1) else None


def _column(context: Context, indices: Value, place: int) -> Value:
    """One number of each vector of indices, which are along the last dimension."""
    count = ax.extent(indices.dims[-1])[0]
    if count == 1:
        return indices
    codes, dims = shape_code(indices.dims), (*indices.dims[:-1], ())
    start, stop = [0] * len(codes), [size for _, size in codes]
    start[-1], stop[-1] = place, place + 1
    params = {"start_indices": tuple(start), "limit_indices": tuple(stop), "strides": None}
    op = Numbers("slice", frozen(params), (codes,), shape_code(dims))
    return Value(dims, NumberArray(numbers_step(context, op, [indices.body.index])))


def embedding_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of an embedding: rows are independent, equal indices have equal rows."""
    variance, rate, _, sizes, law, count, _ = step.op
    rows, known = zip(*(table_rows(step.op, a) for a in operands[0]))
    known = tuple(k.astype(setting.dtype) for k in known)
    diagonal = bool(sizes) and not need.pairs

    def equal(views: Callable) -> Array:
        """Rows are independent: K is the variance where both indices are equal, else zero."""
        a, b = views(rows)
        p, q = views(known)
        return (a == b) * p * q

    same = equal(lambda pair: kernels.views(pair[0], pair[1], diagonal))
    within: list[Array | None] = [None, None]
    if need.variance == 2 and sizes:
        for k in range(2):
            within[k] = variance * equal(lambda pair, k=k: kernels.views_within(pair[k]))
    var1, var2 = (variance * k * k for k in known)
    ntk = rate * same if setting.plan.ntk else None
    kernel = gaussian(variance * same, var1, var2, ntk, tuple(within), diagonal)
    table = None
    # A look-up is a sum over one-hot entries, of which all but one are zero.
    if setting.entries and (law != NORMAL or count <= _ROWS):
        one, two = (
            jax.nn.one_hot(r.astype(jnp.int32), count, dtype=setting.dtype) * k[..., None]
            for r, k in zip(rows, known)
        )
        table = entries.of_weights(one, two, law, variance**0.5)
    return Law(kernel, entries=table)


def words(op: Embedding, note: Note) -> tuple[str, str]:
    """For a reader."""
    return note.text, f"{op.variance:.6g}"


KIND = Kind("embedding", embedding_law, words=words, joint=True)
