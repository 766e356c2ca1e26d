"""Operations on arrays of numbers: the data, masks, positions, and means over units."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk import primitives
from ntk.trace import axes as ax
from ntk.trace.axes import Dims
from ntk.trace.context import Context, finite_step, materialised, scaled_shape
from ntk.trace.coordinates import Finite, Number, Refusal, Value
from ntk.trace.steps import shape_code


def frozen(params: dict) -> tuple:
    """Parameters of a primitive as hashable data."""
    return tuple(sorted(params.items(), key=lambda pair: pair[0]))


def reciprocal(context: Context, body: Any, dims: Dims) -> Any:
    """1 / numbers."""
    if isinstance(body, Number):
        return Number(1 / body.number if body.number else math.inf, -body.power)
    codes = shape_code(dims)
    static = ("power", (("exponent", -1),), (codes,), codes)
    return Finite(finite_step(context, static, [body.index]), -body.power)


def elementwise_numbers(context: Context, equation: Any, values: list[Value], dims: Dims) -> Value:
    """An elementwise primitive on numbers, with the powers of the width that they carry."""
    name = equation.primitive.name
    bodies = [v.body for v in values]
    power, bodies = _power(name, equation, bodies)
    codes = shape_code(dims)
    if all(isinstance(b, Number) for b in bodies):
        args = [_like(b.number, v.aval) for b, v in zip(bodies, equation.invars)]
        out = primitives.bind(equation.primitive, equation.params, args)
        return Value(dims, Number(float(out), power))
    inputs, shapes = [], []
    ndim = len(codes)
    for body, operand in zip(bodies, equation.invars):
        if isinstance(body, Number):
            inputs.append(context.program.constant(_like(body.number, operand.aval, ndim)))
            shapes.append(((False, 1),) * ndim)
        else:
            inputs.append(body.index)
            shapes.append(codes)
    params = frozen(equation.params)
    static = (name, params, tuple(shapes), codes)
    return Value(dims, Finite(finite_step(context, static, inputs), power))


def _like(number: float, aval: Any, ndim: int = 0) -> np.ndarray:
    """A number as an array of the kind of a variable: an integer, a truth value, or a float."""
    kind = float if jnp.issubdtype(aval.dtype, jnp.floating) else aval.dtype
    return np.full((1,) * ndim, number, kind)


def _power(name: str, equation: Any, bodies: list) -> tuple[float, list]:
    powers = [b.power for b in bodies]
    bare = [b._replace(power=0.0) for b in bodies]
    if not any(powers):
        return 0.0, bare
    rule = primitives.known(name).power
    if callable(rule):
        return rule(powers, equation.params), bare
    kept = {b.power for b in bodies if not (isinstance(b, Number) and b.number == 0)}
    if rule is not None and len(kept) == 1:
        return (0.0 if rule == "order" else kept.pop()), bare
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

    values = [
        materialised(context, v, {a for a in ax.flat(v.dims) if a.kind == "free"}) for v in values
    ]
    dims = context.fresh_dims(scaled_shape(one, two), "position")
    if any(a.infinite for v in values for a in ax.flat(v.dims)) or any(
        a.infinite for a in ax.flat(dims)
    ):
        raise Refusal("an array of numbers that differ along an axis that grows with the width")
    if any(isinstance(v.body, Number) for v in values):
        values = [
            materialised(context, v, set(ax.flat(v.dims))) if isinstance(v.body, Number) else v
            for v in values
        ]
    inputs = []
    for v, operand in zip(values, one.invars):
        if isinstance(v.body, Number):
            inputs.append(context.program.constant(_like(v.body.number, operand.aval)))
        else:
            inputs.append(v.body.index)
    if any(v.body.power for v in values):
        raise Refusal("numbers that grow with the width are not of order one here")
    params = frozen(one.params)
    static = (
        one.primitive.name,
        params,
        tuple(shape_code(v.dims) for v in values),
        shape_code(dims),
    )
    return Value(dims, Finite(finite_step(context, static, inputs)))


def scaled_number(context: Context, value: Value, number: float) -> Value:
    """An array of numbers times a number."""
    if number == 1:
        return value
    codes = shape_code(value.dims)
    factor = context.program.constant(np.full((1,) * len(codes), number))
    shapes = (codes, ((False, 1),) * len(codes))
    static = ("mul", (), shapes, codes)
    index = finite_step(context, static, [value.body.index, factor])
    return Value(value.dims, value.body._replace(index=index))
