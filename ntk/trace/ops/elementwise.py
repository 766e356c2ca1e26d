"""Primitives that act on each entry alone: what makes sums and functions of processes.

One file: by which rule such a primitive is read depends on what its operands are, and is one decision.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ntk.primitives import TABLE
from ntk.trace import algebra
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Dims
from ntk.trace.context import Context
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    NumberArray,
    Pieces,
    Refusal,
    Terms,
    Value,
    Weight,
    is_random,
)
from ntk.trace.ops import several
from ntk.trace.ops.combine import sealed, sealed_as
from ntk.trace.ops.copies import separated
from ntk.trace.ops.function import is_linear, process_of
from ntk.trace.ops.mix import piece_axis, take_units
from ntk.trace.ops.numbers import (
    Numbers,
    elementwise_numbers,
    frozen,
    like,
    numbers_step,
    reciprocal,
)
from ntk.trace.ops.vector import Vector, as_vectors
from ntk.trace.steps import shape_code


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
    for v in values:  # numbers may be the ones that are spread over samples
        if isinstance(v.body, Number) and len(v.dims) == len(dims):
            dims = tuple(own or other for own, other in zip(dims, v.dims))
    return [Value(dims, v.body) if isinstance(v.body, Number) or v.dims else v for v in out]


def elementwise(context: Context, equation: Any, values: list[Value]) -> Value:
    """Result of a primitive that acts on each entry alone."""
    values = [_number(context, v) for v in unified(values)]
    values = _told_apart(context, values)
    dims = next((v.dims for v in values if v.dims), ())
    name = equation.primitive.name
    if name == "stop_gradient" and any(is_random(v.body) for v in values):
        raise Refusal("the gradient of an activation is stopped; its tangent kernel is not known")
    if TABLE[name].identity:
        new = equation.params.get("new_dtype", jnp.float32)
        old = equation.invars[0].aval.dtype
        floats = jnp.issubdtype(new, jnp.floating) and jnp.issubdtype(old, jnp.floating)
        if isinstance(values[0].body, NumberArray) and not floats:
            return elementwise_numbers(context, equation, values, dims)
        if jnp.issubdtype(old, jnp.floating) and not floats and is_random(values[0].body):
            raise Refusal(
                f"an activation is converted to {jnp.dtype(new).name}: leave it in floating point; write jnp.trunc, "
                "jnp.round or a comparison"
            )
        return Value(dims, values[0].body)
    if name == "select_n" and isinstance(values[0].body, Number):
        # A choice that is made already, whatever the cases that it does not take.
        return Value(dims, values[1 + int(values[0].body.number)].body)
    if any(isinstance(v.body, Pieces) for v in values):
        return _in_pieces(context, equation, values, dims)
    bodies = [v.body for v in values]
    weights = [k for k, b in enumerate(bodies) if isinstance(b, Weight)]
    if weights and not (name in ("mul", "div", "neg") and _plain(bodies, name)):
        for k in weights:
            _check_shared(context, values[k], name)
        values = unified([as_vectors(context, v) for v in values])
        dims = next((v.dims for v in values if v.dims and is_random(v.body)), dims)
        bodies = [v.body for v in values]
        weights = []
    if any(context.vanishes(b) for b in bodies) and not _keeps_order(name, bodies):
        values = [context.limit(v) for v in values]
        bodies = [v.body for v in values]
    if any(is_random(b) for b in bodies) or weights:
        return Value(dims, _random(context, equation, bodies, dims))
    return elementwise_numbers(context, equation, values, dims)


def _told_apart(context: Context, values: list[Value]) -> list[Value]:
    """Values in which units that one of them tells apart, as by a sum over them, are told apart in all."""
    known = [ref.process.index for v in values for ref in co.refs_of(v.body)]
    sources = {context.copied[index] for index in known if index in context.copied}
    if not sources:
        return values
    axes = {
        ref.units[place]
        for v in values
        for ref in co.refs_of(v.body)
        for index, part, place in sources
        if (ref.process.index, ref.part) == (index, part) and place < len(ref.units)
    }
    for axis in axes:
        values = [separated(context, v, axis) if axis in ax.flat(v.dims) else v for v in values]
        values = unified(values)
    return values


def _number(context: Context, value: Value) -> Value:
    """A parameter that is constant at initialisation and not trained, as the number that it is."""
    weight = value.body
    if not isinstance(weight, Weight) or weight.arrays:
        return value
    mean, variance, _, rate = context.law(weight)
    if variance or rate:
        return value
    context.record(weight.name, variance=0.0, mean=mean, rate=0.0, role="vector")
    return Value(value.dims, Number(mean, weight.power))


def _keeps_order(name: str, bodies: list) -> bool:
    """Whether an operation leaves what vanishes as it is: a product, or a sum with what vanishes too."""
    if name in ("mul", "div", "neg"):
        return True
    small = (isinstance(b, Linear) or (isinstance(b, Number) and b.number == 0) for b in bodies)
    return name in ("add", "sub", "add_any") and all(small)


def _without_vanishing(context: Context, body: Any) -> Any:
    """A sum without the parameters that are smaller than its other terms by a power of the width.

    So are biases of U(-n^-1/2, n^-1/2). What they add to the tangent kernel is the square of the same power.
    """
    if not isinstance(body, Linear):
        return body
    largest = max((c.power for _, c in body.terms), default=0.0)
    small = [
        (ref, c)
        for ref, c in body.terms
        if c.power < largest and isinstance(context.program.steps[ref.process.index].op, Vector)
    ]
    return Linear(tuple(t for t in body.terms if t not in small)) if small else body


def _check_shared(context: Context, value: Value, name: str) -> None:
    """Refuses a parameter that all units share: its part of the tangent kernel does not average over them."""
    weight = value.body
    wide = {a for a in ax.flat(value.dims) if a.infinite}
    if wide & set(ax.flat(weight.own)) or (not wide and name in ("add", "sub", "add_any")):
        return
    _, variance, _, rate = context.law(weight)
    own = ax.extent(a for dim in weight.own for a in dim)[0]
    if (variance or rate) and own > 1 and wide <= {a for a in wide if a.kind == "sample"}:
        raise Refusal(
            f"{weight.name} acts on {own} units, whose number does not grow with the width: what it adds to the "
            "tangent kernel is a mean over these few, which stays random. Let that layer grow with the width, or "
            f"freeze the parameter: learning_rates={{{weight.name!r}: 0}}"
        )
    if variance or rate:
        raise Refusal(
            f"{weight.name} is shared by all units of a layer: what it adds to the kernels is the square of a sum over "
            "units, which stays random at infinite width. Give each unit a parameter of its own, or, if it is constant "
            f"at initialisation, freeze it: learning_rates={{{weight.name!r}: 0}}"
        )


def _plain(bodies: list, name: str) -> bool:
    """Whether a parameter is only multiplied with numbers."""
    if name == "div" and isinstance(bodies[-1], Weight):
        return False
    rest = [b for b in bodies if not isinstance(b, Weight)]
    return len(rest) >= len(bodies) - 1 and all(isinstance(b, Number | NumberArray) for b in rest)


def coefficient_of(body: Any, dims: Dims) -> Coefficient:
    """Numbers as a coefficient."""
    if isinstance(body, Number):
        return Coefficient(body.number, body.power)
    return Coefficient(1.0, body.power, ((body.index, dims),))


def _random(context: Context, equation: Any, bodies: list, dims: Dims) -> Any:
    name = equation.primitive.name
    if name == "neg":
        return algebra.scaled(bodies[0], Coefficient(-1.0))
    if name == "mul":
        if isinstance(bodies[0], Number | NumberArray):
            bodies = bodies[::-1]
        if isinstance(bodies[1], Number | NumberArray):
            return algebra.scaled(bodies[0], coefficient_of(bodies[1], dims))
        return _product(context, *bodies)
    if name == "div" and isinstance(bodies[1], Number | NumberArray):
        return algebra.scaled(bodies[0], coefficient_of(reciprocal(context, bodies[1], dims), dims))
    if name in ("add", "sub", "add_any"):
        first, second = bodies
        if name == "sub":
            second = (
                Number(-second.number, second.power)
                if isinstance(second, Number)
                else algebra.scaled(as_sum(second, dims), Coefficient(-1.0))
            )
        if name == "add" and _is_zero(
            first
        ):  # as sum() starts; other sums with zero become one process
            return as_sum(second, dims)
        first, second = as_sum(first, dims), as_sum(second, dims)
        if isinstance(first, Linear) != isinstance(second, Linear):
            first, second = _one_process(context, first, second)
        if not (isinstance(first, Linear) and isinstance(second, Linear)):
            first, second = _alike(context, first, second)
        return _without_vanishing(context, algebra.added(first, second))
    if name == "select_n" and isinstance(bodies[0], NumberArray):
        return _masked(context, equation, bodies, dims)
    for body in bodies:
        context.check_scores(body)
    args = [sealed(context.program, b) for b in bodies]
    whole, args = args, [_absorbed(context, b) for b in args]
    if name in ("square", "integer_pow") and algebra.univariate(args[0]) is None:
        power = equation.params.get("y", 2)
        # A power of a sum of processes is a sum of products, which have moments where one function of them has not.
        if 2 <= power <= 4:
            out = args[0]
            for _ in range(power - 1):
                out = algebra.multiplied(out, args[0])
            return out
    params = frozen(equation.params)
    out = None
    if any(ref.process.averaged for a in args for ref in co.refs_of(a)):
        out = algebra.applied_beside_zero(equation.primitive, params, whole, context.custom > 0)
    if out is None and not any(isinstance(b, NumberArray) for b in args):
        out = algebra.applied(equation.primitive, params, args)
    if out is None:
        out = algebra.applied_beside_zero(equation.primitive, params, whole, context.custom > 0)
    if out is None:
        return _by_draws(context, equation, whole, dims)
    return out


def _by_draws(context: Context, equation: Any, bodies: list, dims: Dims) -> Any:
    """A nonlinearity of several activations at once, or of activations and numbers."""
    values: list[Value] = []
    refs: list = []
    for body, operand in zip(bodies, equation.invars):
        if is_random(body):
            refs.append(process_of(context, body))
            values.append(Value(dims, body))
            continue
        if body.power:
            raise Refusal(f"numbers of size width^{body.power:g} meet activations")
        refs.append(None)
        if isinstance(body, Number):
            constant = context.program.constant(like(body.number, operand.aval, len(dims)))
            values.append(Value((), NumberArray(constant)))
        else:
            values.append(Value(dims, body))
    name, params = equation.primitive.name, frozen(equation.params)
    return several.primitive(context, name, params, values, refs, dims).body


def _is_zero(body: Any) -> bool:
    return isinstance(body, Number) and body.number == 0


def _one_process(context: Context, one: Any, two: Any) -> tuple[Any, Any]:
    """A function that meets a mixture of its own positions, as one process: their sum is a mixture too."""
    mixed, other = (one, two) if isinstance(one, Linear) else (two, one)
    bases = [co.bases_of(ref) for ref in co.refs_of(other)]
    known = {
        ref.process.index
        for ref, _ in mixed.terms
        if ref.maps
        and not ref.process.gaussian
        and any(co.overlap(co.bases_of(ref), own) for own in bases)
    }
    if not known:
        return one, two

    def joined(body: Any) -> Any:
        if isinstance(body, Linear) or any(t.coefficient.power for t in body.terms):
            return body
        return _as_known(context, body, known)

    return joined(one), joined(two)


def _as_known(context: Context, body: Terms, known: set) -> Any:
    """Terms without numbers as the process that they are, if that is one of those known."""
    if not all(t.factors for t in body.terms):
        return body
    ref = process_of(context, body)
    return Linear(((ref, Coefficient()),)) if ref.process.index in known else body


def as_sum(body: Any, dims: Dims) -> Any:
    """Numbers as terms without a process; other bodies as they are."""
    if isinstance(body, NumberArray):
        return Terms((co.Term(Coefficient(1.0, body.power, ((body.index, dims),)), ()),))
    if isinstance(body, Number):
        return Terms(algebra.as_terms(body))
    return body


def _product(context: Context, one: Any, two: Any) -> Any:
    """Product of two activations; numbers that come with a parameter go to the activation."""
    one, two = (two, one) if _is_parameter(one) and not _is_parameter(two) else (one, two)
    if _is_parameter(two) and isinstance(one, Linear):
        arrays = two.terms[0][1]
        one = algebra.scaled(one, arrays)
        two = Linear(((two.terms[0][0], Coefficient()),))
    (one, power1), (two, power2) = map(algebra.order_one, (one, two))
    out = algebra.multiplied(*_alike(context, one, two))
    power = power1 + power2
    return algebra.scaled(out, Coefficient(1.0, power)) if power else out


def _alike(context: Context, one: Any, two: Any) -> list:
    """Two bodies that meet, with one process for what either of them scales by numbers and the other is a function of.

    So y * sigmoid(y) of a layer norm's y = scale(x) * h is a function of y in both factors.
    """
    bodies = [sealed(context.program, body) for body in (one, two)]
    used = {ref for body in bodies for t in algebra.as_terms(body) for ref, _ in t.factors}
    out = []
    for body in bodies:
        terms = [_rescaled(context, t, used) for t in algebra.as_terms(body)]
        changed = any(a is not b for a, b in zip(terms, algebra.as_terms(body)))
        out.append(algebra.collected(terms) if changed else body)
    return out


def _rescaled(context: Context, term: co.Term, used: set) -> co.Term:
    """A term whose numbers and activation are one of the processes in use, in terms of that process."""
    free = [(ref, tree) for ref, tree in term.factors if ref.process.value is None]
    if not term.coefficient.arrays or len(free) != 1 or not algebra.is_linear(free[0][1]):
        return term
    ref = free[0][0]
    whole = sealed_as(context.program, ref, Coefficient(1.0, 0.0, term.coefficient.arrays))
    if whole is None or whole not in used:
        return term
    factors = tuple((whole if r == ref else r, tree) for r, tree in term.factors)
    return co.Term(term.coefficient._replace(arrays=()), factors)


def _is_parameter(body: Any) -> bool:
    return (
        isinstance(body, Linear)
        and len(body.terms) == 1
        and body.terms[0][0].process.value is not None
    )


def _absorbed(context: Context, body: Any) -> Any:
    """Numbers that scale a Gaussian become part of it, so that what is left is a function of one process."""
    if not isinstance(body, Terms) or algebra.univariate(body) is not None:
        return body
    free = {r for t in body.terms for r, _ in t.factors if r.process.value is None}
    if len(free) > 1 and is_linear(body.terms):
        return Linear(((process_of(context, body), Coefficient()),))
    refs = {ref for t in body.terms for ref, _ in t.factors if ref.process.value is None}
    if len(refs) != 1:
        return body
    ref = refs.pop()
    touching = [t for t in body.terms if any(r == ref for r, _ in t.factors)]
    rest = [t for t in body.terms if t not in touching]
    arrays = {t.coefficient.arrays for t in touching}
    linear = all(algebra.is_linear(tree) for t in touching for r, tree in t.factors if r == ref)
    if len(arrays) != 1 or not linear or any(t.coefficient.arrays for t in rest):
        return body
    scale = Coefficient(1.0, 0.0, arrays.pop())
    new = sealed(context.program, Linear(((ref, scale),))).terms[0][0]
    out = list(rest)
    for t in touching:
        factors = tuple((new if r == ref else r, tree) for r, tree in t.factors)
        out.append(co.Term(t.coefficient._replace(arrays=()), factors))
    return algebra.collected(out)


def _masked(context: Context, equation: Any, bodies: list, dims: Dims) -> Any:
    """select_n by numbers: each case times a mask."""
    total: Any = Number(0.0)
    codes = shape_code(dims)
    for k, case in enumerate(bodies[1:]):
        if isinstance(case, Number) and case.number == 0:
            continue
        inputs = [bodies[0].index]
        index = numbers_step(context, Numbers("equals", (("value", k),), (codes,), codes), inputs)
        # select(m, a, b) = (m = 0) a + (m = 1) b, linear in the cases.
        mask = Coefficient(1.0, 0.0, ((index, dims),))
        case = as_sum(case, dims)
        part = algebra.scaled(case, mask)
        if isinstance(total, Number):
            total = part
        elif isinstance(total, Linear) and isinstance(part, Linear):
            total = algebra.added(total, part)
        else:
            total = algebra.added(sealed(context.program, total), sealed(context.program, part))
    return total


def _in_pieces(context: Context, equation: Any, values: list[Value], dims: Dims) -> Value:
    """An elementwise operation on each of several layers side by side."""
    pieces = next(v.body for v in values if isinstance(v.body, Pieces))
    parts, start = [], 0
    for k, (_, piece_dims) in enumerate(pieces.parts):
        axis = piece_axis(pieces, piece_dims)
        args = []
        for v in values:
            if isinstance(v.body, Pieces):
                if v.body.shares != pieces.shares:
                    raise Refusal("layers concatenated in different places meet")
                args.append(Value(v.body.parts[k][1], v.body.parts[k][0]))
            elif isinstance(v.body, Number | NumberArray):
                renames = {pieces.units: (axis,)}
                args.append(co.renamed(v, renames))
            else:
                args.append(take_units(context, v, pieces.units, start, axis))
        out = elementwise(context, equation, args)
        parts.append((out.body, out.dims))
        start += axis.size[0]
    return Value(dims, Pieces(tuple(parts), pieces.shares, pieces.units))
