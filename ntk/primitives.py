"""What each primitive does to the values of a traced network: elementwise operations, and changes of shape."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from ntk import axes as ax
from ntk import coordinates as co
from ntk.axes import Axis, Dims
from ntk.coordinates import (
    Coefficient,
    Finite,
    Linear,
    Number,
    Pieces,
    Refusal,
    Terms,
    Value,
    Weight,
    is_random,
)
from ntk.interpret import Context, finite_step, scaled_shape
from ntk.steps import shape_code

_IDENTITIES = frozenset(
    ["convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "optimization_barrier"]
)
_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0}


def rule(context: Context, one: Any, two: Any, values: list[Value]) -> list[Value]:
    """Results of one equation, read at both widths (`one`, `two`), on values.

    Raises:
        Refusal: it has no kernel.
    """
    from ntk import layers

    name = one.primitive.name
    co.register(one.primitive)
    if name in _SHAPES:
        return [_SHAPES[name](context, one, two, values)]
    if name == "split":
        return _split(context, one, two, values[0])
    if name in layers.RULES:
        return [layers.RULES[name](context, one, two, values)]
    if len(one.outvars) != 1:
        raise Refusal("this operation is not known")
    shape = one.outvars[0].aval.shape
    alike = all(_fits(v.aval.shape, shape) for v in one.invars)
    if alike and (name in _IDENTITIES or values) and not name.startswith("random"):
        return [elementwise(context, one, values)]
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return [_finite(context, one, two, values)]
    raise Refusal(
        "this operation on activations is not known: it mixes entries in a way that has no rule here. Write it with "
        "sums, products, elementwise functions, convolutions and reshapes"
    )


def frozen(params: dict) -> tuple:
    """Parameters of a primitive as hashable data."""
    return tuple(sorted(params.items(), key=lambda pair: pair[0]))


def _fits(shape: tuple, out: tuple) -> bool:
    """Whether an operand of that shape broadcasts to the result."""
    if shape == ():
        return True
    return len(shape) == len(out) and all(a in (b, 1) for a, b in zip(shape, out))


# --- elementwise ----------------------------------------------------------------------------------


def unified(values: list[Value]) -> list[Value]:
    """Values of one shape with common axes."""
    shaped = [k for k, v in enumerate(values) if v.dims and not isinstance(v.body, Number)]
    if not shaped:
        shaped = [k for k, v in enumerate(values) if v.dims][:1]
    if not shaped:
        return values
    out = list(values)
    for _ in range(2):
        for k in shaped[1:]:
            dims, first, second = ax.unify(out[shaped[0]].dims, out[k].dims)
            for j in shaped[:k]:
                out[j] = co.renamed(out[j], first)
            out[k] = co.renamed(out[k], second)
            out = [Value(dims, v.body) if j in (shaped[0], k) else v for j, v in enumerate(out)]
    dims = out[shaped[0]].dims
    return [Value(dims, v.body) if isinstance(v.body, Number) or v.dims else v for v in out]


def elementwise(context: Context, equation: Any, values: list[Value]) -> Value:
    values = unified(values)
    dims = next((v.dims for v in values if v.dims), ())
    name = equation.primitive.name
    if name == "stop_gradient" and any(is_random(v.body) for v in values):
        raise Refusal("the gradient of an activation is stopped; its tangent kernel is not known")
    if name in _IDENTITIES:
        new = equation.params.get("new_dtype", jnp.float32)
        if isinstance(values[0].body, Finite) and not jnp.issubdtype(new, jnp.floating):
            return _numbers(context, equation, values, dims)
        return Value(dims, values[0].body)
    if any(isinstance(v.body, Pieces) for v in values):
        return _in_pieces(context, equation, values, dims)
    bodies = [v.body for v in values]
    weights = [k for k, b in enumerate(bodies) if isinstance(b, Weight)]
    if weights and not (name in ("mul", "div", "neg") and _plain(bodies, name)):
        values = [context.as_random(v) for v in values]
        bodies = [v.body for v in values]
        weights = []
    if any(is_random(b) for b in bodies) or weights:
        return Value(dims, _random(context, equation, bodies, dims))
    return _numbers(context, equation, values, dims)


def _plain(bodies: list, name: str) -> bool:
    """Whether a parameter is only multiplied with numbers."""
    if name == "div" and isinstance(bodies[-1], Weight):
        return False
    rest = [b for b in bodies if not isinstance(b, Weight)]
    return len(rest) >= len(bodies) - 1 and all(isinstance(b, Number | Finite) for b in rest)


def _coefficient(body: Any, dims: Dims) -> Coefficient:
    if isinstance(body, Number):
        return Coefficient(body.number, body.power)
    return Coefficient(1.0, body.power, ((body.index, dims),))


def _random(context: Context, equation: Any, bodies: list, dims: Dims) -> Any:
    name = equation.primitive.name
    if name == "neg":
        return co.scaled(bodies[0], Coefficient(-1.0))
    if name == "mul":
        if isinstance(bodies[0], Number | Finite):
            bodies = bodies[::-1]
        if isinstance(bodies[1], Number | Finite):
            return co.scaled(bodies[0], _coefficient(bodies[1], dims))
        return _product(context, *bodies)
    if name == "div" and isinstance(bodies[1], Number | Finite):
        return co.scaled(bodies[0], _coefficient(_reciprocal(context, bodies[1], dims), dims))
    if name in ("add", "sub", "add_any"):
        first, second = bodies
        if name == "sub":
            second = (
                Number(-second.number, second.power)
                if isinstance(second, Number)
                else co.scaled(_termed(second, dims), Coefficient(-1.0))
            )
        first, second = _termed(first, dims), _termed(second, dims)
        if not (isinstance(first, Linear) and isinstance(second, Linear)):
            first, second = context.program.sealed(first), context.program.sealed(second)
        return co.added(first, second)
    if name == "select_n" and isinstance(bodies[0], Number | Finite):
        return _masked(context, equation, bodies, dims)
    args = [_absorbed(context, context.program.sealed(b)) for b in bodies]
    if name in ("square", "integer_pow") and co.univariate(args[0]) is None:
        power = equation.params.get("y", 2)
        if 2 <= power <= 4:
            out = args[0]
            for _ in range(power - 1):
                out = co.multiplied(out, args[0])
            return out
    for body in args:
        _check_law(body)
    params = frozen(equation.params)
    out = None
    if not any(isinstance(b, Finite) for b in args):
        out = co.applied(equation.primitive, params, args)
    if out is None:
        raise Refusal(
            "a nonlinearity of several activations at once, or of an activation plus numbers that differ between "
            "samples: its expectation does not factorise. Insert a layer of weights before it, or write it as sums and "
            "products of functions of one activation each"
        )
    return out


def _check_law(body: Any) -> None:
    for term in co.as_terms(body) if not isinstance(body, Finite) else ():
        for ref, _ in term.factors:
            if ref.process.averaged:
                raise Refusal(
                    "a nonlinearity acts on a sum that contains a normalised activation with a trained gain; its "
                    "tangent kernel differs between units. Insert a layer of weights, or leave out the gain "
                    "(use_scale=False)"
                )
            if not ref.process.gaussian:
                # moments of degree two are known of any process; others are refused where they are needed
                continue


def _termed(body: Any, dims: Dims) -> Any:
    if isinstance(body, Finite):
        return Terms((co.Term(Coefficient(1.0, body.power, ((body.index, dims),)), ()),))
    if isinstance(body, Number):
        return Terms(co.as_terms(body))
    return body


def _product(context: Context, one: Any, two: Any) -> Any:
    """Product of two activations; numbers that come with a parameter go to the activation."""
    one, two = (two, one) if _is_parameter(one) and not _is_parameter(two) else (one, two)
    if _is_parameter(two) and isinstance(one, Linear):
        arrays = two.terms[0][1]
        one = co.scaled(one, arrays)
        two = Linear(((two.terms[0][0], Coefficient()),))
    return co.multiplied(context.program.sealed(one), context.program.sealed(two))


def _is_parameter(body: Any) -> bool:
    return (
        isinstance(body, Linear)
        and len(body.terms) == 1
        and body.terms[0][0].process.value is not None
    )


def _is_linear(tree: Any) -> bool:
    if tree == co.Z:
        return True
    if tree[0] == "mul":
        left, right = tree[2:]
        fixed = ("number", "parameter")
        return (left[0] in fixed and _is_linear(right)) or (right[0] in fixed and _is_linear(left))
    return False


def _absorbed(context: Context, body: Any) -> Any:
    """Numbers that scale a Gaussian become part of it, so that what is left is a function of one process."""
    if not isinstance(body, Terms) or co.univariate(body) is not None:
        return body
    refs = {ref for t in body.terms for ref, _ in t.factors if ref.process.value is None}
    if len(refs) != 1:
        return body
    ref = refs.pop()
    touching = [t for t in body.terms if any(r == ref for r, _ in t.factors)]
    rest = [t for t in body.terms if t not in touching]
    arrays = {t.coefficient.arrays for t in touching}
    linear = all(_is_linear(tree) for t in touching for r, tree in t.factors if r == ref)
    if len(arrays) != 1 or not linear or any(t.coefficient.arrays for t in rest):
        return body
    scale = Coefficient(1.0, 0.0, arrays.pop())
    new = context.program.sealed(Linear(((ref, scale),))).terms[0][0]
    out = list(rest)
    for t in touching:
        factors = tuple((new if r == ref else r, tree) for r, tree in t.factors)
        out.append(co.Term(t.coefficient._replace(arrays=()), factors))
    return co.collected(out)


def _masked(context: Context, equation: Any, bodies: list, dims: Dims) -> Any:
    """select_n by numbers: each case times a mask."""
    if isinstance(bodies[0], Number):
        return bodies[1 + int(bodies[0].number)]
    total: Any = Number(0.0)
    codes = shape_code(dims)
    for k, case in enumerate(bodies[1:]):
        if isinstance(case, Number) and case.number == 0:
            continue
        inputs = [bodies[0].index]
        index = finite_step(context, ("equals", (("value", k),), (codes,), codes), inputs)
        mask = Coefficient(1.0, 0.0, ((index, dims),))
        case = _termed(case, dims)
        part = co.scaled(case, mask)
        if isinstance(total, Number):
            total = part
        elif isinstance(total, Linear) and isinstance(part, Linear):
            total = co.added(total, part)
        else:
            total = co.added(context.program.sealed(total), context.program.sealed(part))
    return total


def _in_pieces(context: Context, equation: Any, values: list[Value], dims: Dims) -> Value:
    """An elementwise operation on each of several layers side by side."""
    pieces = next(v.body for v in values if isinstance(v.body, Pieces))
    parts, start = [], 0
    for k, (body, piece_dims) in enumerate(pieces.parts):
        axis = _piece_axis(pieces, piece_dims)
        args = []
        for v in values:
            if isinstance(v.body, Pieces):
                if v.body.shares != pieces.shares:
                    raise Refusal("layers concatenated in different places meet")
                args.append(Value(v.body.parts[k][1], v.body.parts[k][0]))
            elif isinstance(v.body, Number | Finite):
                renames = {pieces.units: (axis,)}
                args.append(co.renamed(v, renames))
            else:
                args.append(take_units(context, v, pieces.units, start, axis))
        out = elementwise(context, equation, args)
        parts.append((out.body, out.dims))
        start += axis.size[0]
    return Value(dims, Pieces(tuple(parts), pieces.shares, pieces.units))


def _piece_axis(pieces: Pieces, dims: Dims) -> Axis:
    known = set(ax.flat(dims))
    return next(a for a in ax.flat(dims) if a.kind == "unit" and a in known and a.infinite)


def take_units(context: Context, value: Value, axis: Axis, start: int, new: Axis) -> Value:
    """Units `start` onwards of an array, along a new axis."""
    if isinstance(value.body, Weight):
        value = context.as_random(value)
    stop = start + new.size[0]

    def cut(ref: co.Ref) -> co.Ref:
        if axis not in ref.units:
            return ref
        part = (*ref.part, (ref.units.index(axis), start, stop))
        units = tuple(new if a is axis else a for a in ref.units)
        return ref._replace(units=units, part=part)

    body = context.program.sealed(value.body)
    if isinstance(body, Linear):
        body = Linear(tuple((cut(r), c) for r, c in body.terms))
    else:
        body = Terms(
            tuple(
                co.Term(t.coefficient, tuple((cut(r), tree) for r, tree in t.factors))
                for t in body.terms
            )
        )
    return Value(ax.substitute(value.dims, {axis: (new,)}), body)


# --- arrays of numbers ----------------------------------------------------------------------------


def _reciprocal(context: Context, body: Any, dims: Dims) -> Any:
    if isinstance(body, Number):
        return Number(1 / body.number if body.number else math.inf, -body.power)
    codes = shape_code(dims)
    static = ("power", (("exponent", -1),), (codes,), codes)
    return Finite(finite_step(context, static, [body.index]), -body.power)


def _numbers(context: Context, equation: Any, values: list[Value], dims: Dims) -> Value:
    """An elementwise primitive on numbers, with the powers of the width that they carry."""
    name = equation.primitive.name
    bodies = [v.body for v in values]
    power, bodies = _power(name, equation, bodies)
    codes = shape_code(dims)
    if all(isinstance(b, Number) for b in bodies):
        args = [jnp.asarray(b.number) for b in bodies]
        if name in ("and", "or", "not", "xor"):
            args = [a.astype(bool) for a in args]
        if name == "select_n":
            args[0] = args[0].astype(bool)
        out = co.bind(equation.primitive, equation.params, args, jnp.result_type(float))
        return Value(dims, Number(float(out), power))
    inputs, shapes = [], []
    for body in bodies:
        if isinstance(body, Number):
            ndim = len(codes)
            inputs.append(context.program.constant(_np_full(ndim, body.number)))
            shapes.append(((False, 1),) * ndim)
        else:
            inputs.append(body.index)
            shapes.append(codes)
    params = frozen(equation.params)
    static = (name, params, tuple(shapes), codes)
    return Value(dims, Finite(finite_step(context, static, inputs), power))


def _np_full(ndim: int, number: float) -> Any:
    import numpy as np

    return np.full((1,) * ndim, number)


def _power(name: str, equation: Any, bodies: list) -> tuple[float, list]:
    powers = [b.power for b in bodies]
    bare = [b._replace(power=0.0) for b in bodies]
    if not any(powers):
        return 0.0, bare
    if name == "mul":
        return sum(powers), bare
    if name == "div":
        return powers[0] - powers[1], bare
    if name in ("neg", "abs", "sign"):
        return powers[0] if name != "sign" else 0.0, bare
    if name in _POWERS or name == "integer_pow":
        return powers[0] * _POWERS.get(name, equation.params.get("y", 1)), bare
    kept = {b.power for b in bodies if not (isinstance(b, Number) and b.number == 0)}
    if name in ("add", "sub", "add_any", "max", "min") and len(kept) == 1:
        return kept.pop(), bare
    if name in ("add", "sub") and len(bodies) == 2:
        top = max(powers)
        if top > 0:  # what is larger by a power of the width is all that is left
            zeros = [b if b.power == top else Number(0.0) for b in bodies]
            return top, [b._replace(power=0.0) for b in zeros]
        zeros = [b if b.power == 0 else Number(0.0) for b in bodies]
        return 0.0, zeros
    raise Refusal(
        f"numbers of sizes {['width^%g' % p for p in powers]} meet: a multiplier is missing that keeps them of order one"
    )


def _finite(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Any other primitive on numbers, along axes that do not grow."""
    from ntk.interpret import materialised

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
    for v in values:
        if isinstance(v.body, Number):
            inputs.append(context.program.constant(_np_full(0, v.body.number).reshape(())))
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


# --- shapes ---------------------------------------------------------------------------------------


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
    if isinstance(body, Finite):
        static = (name, params, (shape_code(before),), shape_code(after))
        return Value(after, body._replace(index=finite_step(context, static, [body.index])))
    return Value(after, body)


def _broadcast(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    value, shape = values[0], scaled_shape(one, two)
    new = context.fresh_dims(shape, "free")
    dims = list(new)
    for k, axis in enumerate(one.params["broadcast_dimensions"]):
        if value.dims[k]:
            dims[axis] = value.dims[k]
    dims = tuple(dims)
    params = (("broadcast_dimensions", tuple(one.params["broadcast_dimensions"])),)
    return _reshaped(context, "broadcast_in_dim", params, value.body, value.dims, dims)


def _transpose(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    order = one.params["permutation"]
    dims = tuple(values[0].dims[k] for k in order)
    params = (("permutation", tuple(order)),)
    return _reshaped(context, "transpose", params, values[0].body, values[0].dims, dims)


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
    index = finite_step(context, ("iota", (("dimension", axis),), (), code), [])
    return Value(tuple(dims), Finite(index))


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
    from ntk import layers

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
    return layers.mapped(context, "slice", params, [value], 0, tuple(dims))


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
            piece = _piece_axis(value.body, dims)
            if at == start[0] and piece.size == size:
                return Value(dims, body)
            at += piece.size[0]
        raise Refusal("concatenated layers are sliced elsewhere than at their borders")
    return take_units(context, value, axis, start[0], Axis("unit", size))


def _split(context: Context, one: Any, two: Any, value: Value) -> list[Value]:
    axis, out = one.params["axis"], []
    start = (0, 0)
    for size in zip(one.params["sizes"], two.params["sizes"]):
        stop = (start[0] + size[0], start[1] + size[1])
        bounds = [(0, *(ax.extent(dim)[0],), 0, ax.extent(dim)[1], 1) for dim in value.dims]
        bounds[axis] = (start[0], stop[0], start[1], stop[1], 1)
        out.append(sliced(context, one, value, bounds))
        start = stop
    return out


_SHAPES = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "iota": _iota,
    "slice": _slice,
}
