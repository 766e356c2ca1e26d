"""Arrays of numbers in a traced program: the data, masks, positions, and means over units.

They are computed in the shapes of the trace, with 1 in place of an axis of units (they are constant along it) and the
number of samples at hand in place of the traced one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import jaxprs
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array
from ntk.primitives import TABLE
from ntk.trace import algebra
from ntk.trace import axes as ax
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context, scaled_shape
from ntk.trace.coordinates import Number, NumberArray, Refusal, Value
from ntk.trace.laws import Setting, Sides
from ntk.trace.steps import Kind, Step, shape_code


class Numbers(NamedTuple):
    """One primitive on arrays of numbers.

    Attributes:
        primitive: its name; "broadcast", "equals" and "power" stand for themselves, "draws" for random scores.
        params: its parameters.
        operands: shape code of each operand.
        shape: shape code of the result.
    """

    primitive: str
    params: Any
    operands: tuple
    shape: tuple


# --- read ----------------------------------------------------------------------------------------


def numbers_step(context: Context, op: Numbers, inputs: list) -> Any:
    """Index of a step on arrays of numbers."""
    return context.program.numbers(op, inputs)


def materialised(context: Context, value: Value, axes: set) -> Value:
    """An array of numbers with some of its constant axes written out as positions."""
    if not axes:
        return value
    dims = _as_positions(value, axes).dims
    if isinstance(value.body, Number):
        array = np.full(tuple(s for _, s in shape_code(dims)), value.body.number)
        return Value(dims, NumberArray(context.program.constant(array), value.body.power))
    op = Numbers("broadcast", (), (shape_code(value.dims),), shape_code(dims))
    index = numbers_step(context, op, [value.body.index])
    return Value(dims, value.body._replace(index=index))


def _as_positions(value: Value, axes: set) -> Value:
    return Value(
        ax.substitute(value.dims, {a: (Axis("position", a.size),) for a in axes}), value.body
    )


def frozen(params: dict) -> tuple:
    """Parameters of a primitive as hashable data."""
    return tuple(sorted(params.items(), key=lambda pair: pair[0]))


def reciprocal(context: Context, body: Any, dims: Dims) -> Any:
    """1 / numbers."""
    if isinstance(body, Number):
        return Number(1 / body.number if body.number else math.inf, -body.power)
    codes = shape_code(dims)
    op = Numbers("power", (("exponent", -1),), (codes,), codes)
    return NumberArray(numbers_step(context, op, [body.index]), -body.power)


def elementwise_numbers(context: Context, equation: Any, values: list[Value], dims: Dims) -> Value:
    """An elementwise primitive on numbers, with the powers of the width that they carry."""
    name = equation.primitive.name
    bodies = [v.body for v in values]
    power, bodies = _power(name, equation, bodies)
    codes = shape_code(dims)
    if all(isinstance(b, Number) for b in bodies):
        args = [like(b.number, v.aval) for b, v in zip(bodies, equation.invars)]
        out = jaxprs.bind(equation.primitive, equation.params, args)
        return Value(dims, Number(float(out), power))
    inputs, shapes = [], []
    ndim = len(codes)
    for body, operand in zip(bodies, equation.invars):
        if isinstance(body, Number):
            inputs.append(context.program.constant(like(body.number, operand.aval, ndim)))
            shapes.append(((False, 1),) * ndim)
        else:
            inputs.append(body.index)
            shapes.append(codes)
    params = frozen(equation.params)
    op = Numbers(name, params, tuple(shapes), codes)
    return Value(dims, NumberArray(numbers_step(context, op, inputs), power))


def like(number: float, aval: Any, ndim: int = 0) -> np.ndarray:
    """A number as an array of the kind of a variable: an integer, a truth value, or a float."""
    kind = float if jnp.issubdtype(aval.dtype, jnp.floating) else aval.dtype
    return np.full((1,) * ndim, number, kind)


def _power(name: str, equation: Any, bodies: list) -> tuple[float, list]:
    powers = [b.power for b in bodies]
    bare = [b._replace(power=0.0) for b in bodies]
    if not any(powers):
        return 0.0, bare
    rule = TABLE[name].power
    if callable(rule):
        return rule(powers, equation.params), bare
    kept = {b.power for b in bodies if not (isinstance(b, Number) and b.number == 0)}
    if rule is not None and len(kept) == 1:
        return (0.0 if rule == "order" else kept.pop()), bare
    # c n^p + d n^q goes like the larger power.
    if rule == "sum":
        top = max(powers)
        if top > 0:  # what is larger by a power of the width is all that is left
            zeros = [b if b.power == top else Number(0.0) for b in bodies]
            return top, [b._replace(power=0.0) for b in zeros]
        zeros = [b if b.power == 0 else Number(0.0) for b in bodies]
        return 0.0, zeros
    raise Refusal(
        f"numbers of sizes {[f'width^{p:g}' for p in powers]} meet: a multiplier is missing that keeps them of "
        "order one"
    )


def on_numbers(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Any other primitive on numbers, along axes that do not grow."""

    free = [{a for a in ax.flat(v.dims) if a.kind == "free"} for v in values]
    values = [
        _as_positions(v, axes) if isinstance(v.body, Number) else materialised(context, v, axes)
        for v, axes in zip(values, free)
    ]
    dims = context.fresh_dims(scaled_shape(one, two), "position")
    if any(a.infinite for v in values for a in ax.flat(v.dims)) or any(
        a.infinite for a in ax.flat(dims)
    ):
        raise Refusal("an array of numbers that differ along an axis that grows with the width")
    inputs = []
    for v, operand in zip(values, one.invars):
        if isinstance(v.body, Number):  # spread over all of its axes where it is computed
            inputs.append(context.program.constant(like(v.body.number, operand.aval, len(v.dims))))
        else:
            inputs.append(v.body.index)
    if any(v.body.power for v in values):
        raise Refusal("numbers that grow with the width are not of order one here")
    params = frozen(one.params)
    op = Numbers(
        one.primitive.name,
        params,
        tuple(shape_code(v.dims) for v in values),
        shape_code(dims),
    )
    return Value(dims, NumberArray(numbers_step(context, op, inputs)))


def scaled_number(context: Context, value: Value, number: float) -> Value:
    """An array of numbers times a number."""
    if number == 1:
        return value
    codes = shape_code(value.dims)
    factor = context.program.constant(np.full((1,) * len(codes), number))
    shapes = (codes, ((False, 1),) * len(codes))
    op = Numbers("mul", (), shapes, codes)
    index = numbers_step(context, op, [value.body.index, factor])
    return Value(value.dims, value.body._replace(index=index))


# --- computed ------------------------------------------------------------------------------------


def numbers_sides(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides:
    """Arrays of numbers in both batches."""
    one = run_numbers(step.op, [s.one for s in operands], setting.samples[0], setting.dtype)
    two = run_numbers(step.op, [s.two for s in operands], setting.samples[1], setting.dtype)
    return Sides(one, two)


def shape_of(code: tuple, samples: int) -> tuple[int, ...]:
    """Shape of an array, see `ntk.trace.steps.shape_code`."""
    return tuple((samples if has else 1) * size for has, size in code)


def run_numbers(op: Numbers, arrays: list[Array], samples: int, dtype: Any) -> Array:
    """One primitive on arrays of numbers.

    Args:
        op: what is done.
        arrays: operands.
        samples: number of samples.
        dtype: of all floating-point results.
    """
    name, params, codes, code = op
    shape = shape_of(code, samples)
    arrays = [
        jnp.broadcast_to(a, shape_of(c, samples)) if a.ndim == len(c) else a
        for a, c in zip(arrays, codes)
    ]
    if name == "broadcast":
        return jnp.broadcast_to(arrays[0], shape)
    if name == "equals":
        return (arrays[0] == dict(params)["value"]).astype(dtype)
    if name == "power":
        exponent = dict(params)["exponent"]
        return arrays[0].astype(dtype) ** exponent
    return position_op(name, dict(params), arrays, codes, code, samples, dtype)


def position_op(
    name: str,
    params: dict,
    arrays: list[Array],
    codes: tuple,
    code: tuple,
    samples: int,
    dtype: Any,
) -> Array:
    """A primitive with the sizes in its parameters changed to those of the arrays at hand."""
    shape = shape_of(code, samples)
    if name == "reshape":
        return arrays[0].reshape(shape)
    if name == "broadcast_in_dim":
        out = [1] * len(shape)
        for axis, size in zip(params["broadcast_dimensions"], arrays[0].shape):
            out[axis] = size
        return jnp.broadcast_to(arrays[0].reshape(out), shape)
    if name == "slice":
        inside = arrays[0].shape
        whole = [a == b for a, b in zip(shape, inside)]
        start = [0 if w else s for w, s in zip(whole, params["start_indices"])]
        stop = [size if w else s for w, s, size in zip(whole, params["limit_indices"], inside)]
        strides = params["strides"] or [1] * len(shape)
        return jax.lax.slice(
            arrays[0], start, stop, [1 if w else s for w, s in zip(whole, strides)]
        )
    if name == "iota":
        kind = dtype if params.get("floating") else jnp.int32
        return jax.lax.broadcasted_iota(kind, shape, params["dimension"])
    if name == "gather":
        kept = shape_of(codes[0], samples)
        sizes = tuple(
            size if traced != 1 or size == 1 else 1
            for size, traced in zip(kept, params["slice_sizes"])
        )
        params = params | {"slice_sizes": sizes}
    if TABLE[name].elementwise and all(len(c) == len(code) for c in codes):
        arrays = [jnp.broadcast_to(a, shape) for a in arrays]
    return algebra.bind(algebra.primitive_of(name), params, arrays, dtype)


def to_axes(array: Array, coded: tuple, sizes: tuple[int, ...]) -> Array:
    """An array of numbers as (N or 1, *S): samples first, then each of the axes (1 where it is constant).

    Args:
        array: in the shape of the trace.
        coded: its dimensions, see `ntk.trace.steps.code`.
        sizes: of the axes.
    """
    atoms, where = [], []
    for dim, length in zip(coded, array.shape):
        rest = math.prod(sizes[a] for a in dim if a != "s")
        for axis in dim:
            where.append(0 if axis == "s" else 1 + axis)
            own = length // rest if axis == "s" else sizes[axis]
            atoms.append(1 if length == 1 else own)
    array = array.reshape(atoms)
    order = sorted(range(len(where)), key=where.__getitem__)
    array = jnp.transpose(array, order)
    present = {where[k]: atoms[k] for k in order}
    return array.reshape([present.get(k, 1) for k in range(1 + len(sizes))])


def from_axes(array: Array, coded: tuple) -> Array:
    """(N, *S) as an array in the shape of the trace; the inverse of `to_axes`."""
    order, shape = [], []
    for dim in coded:
        order += [0 if axis == "s" else 1 + axis for axis in dim]
        shape.append(math.prod(array.shape[0 if a == "s" else 1 + a] for a in dim))
    left = [k for k in range(array.ndim) if k not in order]
    array = jnp.transpose(array, [*order, *left])
    return array.reshape(shape)


def apply_map(item: tuple, x: Array, operands: list[Array], dtype: Any) -> Array:
    """One linear map of positions on (N, M, *S), the same for each of the M copies.

    Args:
        item: ("reshape", shape), or ("scale", arrays coded, sizes), or ("map", primitive, parameters, which operand,
            sizes of S, dimensions of each operand coded, shape codes, shape code of the result, its dimensions coded).
        x: activations.
        operands: other arrays of the step, by their place among its inputs.
        dtype: of the result.
    """
    if item[0] == "reshape":
        return x.reshape(*x.shape[:2], *item[1])
    if item[0] == "expand":
        _, sizes, where = item
        shape = [1] * len(sizes)
        for k, axis in enumerate(where):
            shape[axis] = x.shape[2 + k]
        order = sorted(range(len(where)), key=where.__getitem__)
        x = jnp.transpose(x, (0, 1, *(2 + k for k in order)))
        return jnp.broadcast_to(x.reshape(*x.shape[:2], *shape), (*x.shape[:2], *sizes))
    if item[0] == "scale":
        _, where, coded, sizes = item
        factor = to_axes(operands[where[1]], coded, sizes)
        return x * jnp.expand_dims(factor, 1)
    if not any("s" in dim for dim in item[5]):  # the same for every sample, as a table of positions
        lead = x.shape[:2]
        y = _mapped_copies(item, x.reshape(1, -1, *x.shape[2:]), operands, dtype)
        return y.reshape(*lead, *y.shape[2:])
    return _mapped_copies(item, x, operands, dtype)


def _mapped_copies(item: tuple, x: Array, operands: list[Array], dtype: Any) -> Array:
    _, name, params, place, others, coded, codes, code, out = item
    samples = x.shape[0]

    def one(y: Array) -> Array:
        arrays = [operands[o[1]] for o in others]
        arrays.insert(place, from_axes(y, coded))
        arrays = [
            a if k == place else jnp.broadcast_to(a, shape_of(c, samples))
            for k, (a, c) in enumerate(zip(arrays, codes))
        ]
        z = position_op(name, dict(params), arrays, codes, code, samples, dtype)
        return _atoms(z, out, samples)

    return jax.vmap(one, 1, 1)(x)


def _atoms(z: Array, out: tuple, samples: int) -> Array:
    """An array in the shape of the trace as (N, *S), S in order of appearance; `out` gives sizes, "s" for samples."""
    sizes: list[int] = []
    order: list[int] = []
    for dim in out:
        for size in dim:
            if size == "s":
                order.insert(0, len(sizes))
                sizes.append(samples)
            else:
                order.append(len(sizes))
                sizes.append(size)
    return jnp.transpose(z.reshape(sizes), order)


KIND = Kind("numbers", numbers_sides, is_process=False, joint=True)
