"""Products of two arrays without weights: queries and keys, and what attention makes of them.

Of queries and keys with n units, and weights of their own::

    scores q . k = n^(1/2) g,    g Gaussian of covariance K_q K_k

One file: which product of two arrays is one of scores, of attention or a fixed map is one decision.

Source: Hron et al. (2020), "Infinite attention", section 3.
"""

from __future__ import annotations

import math
from typing import Any

from ntk.primitives import TABLE
from ntk.trace import algebra
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    NumberArray,
    Pieces,
    Ref,
    Refusal,
    Terms,
    Value,
    Weight,
    bases_of,
    is_random,
    overlap,
)
from ntk.trace.ops.attention_laws import Attend, Draws, Scores
from ntk.trace.ops.combine import sealed
from ntk.trace.ops.function import is_linear, process_of
from ntk.trace.ops.numbers import Numbers, frozen, materialised, numbers_step, scaled_number
from ntk.trace.ops.positions import mapped
from ntk.trace.steps import DRAWN, Note, code, shape_code
from ntk.types import two_of


def contracted(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """A product of two arrays, none of them a parameter."""
    ((left, right), (batch_left, batch_right)) = one.params["dimension_numbers"]
    values = [v if isinstance(v.body, NumberArray | Number) else _no_pieces(v) for v in values]
    random = [is_random(v.body) for v in values]
    # Batch and contracted dimensions are the same axes in both operands.
    pairs = [*zip(batch_left, batch_right), *zip(left, right)]
    first, second = values
    for i, j in pairs:
        dims, s1, s2 = ax.unify((first.dims[i],), (second.dims[j],))
        first, second = co.renamed(first, s1), co.renamed(second, s2)
        first = Value(_put(first.dims, i, dims[0]), first.body)
        second = Value(_put(second.dims, j, dims[0]), second.body)
    gone = tuple(a for i in left for a in first.dims[i])
    free_left = [k for k in range(len(first.dims)) if k not in (*left, *batch_left)]
    free_right = [k for k in range(len(second.dims)) if k not in (*right, *batch_right)]
    second = _distinct(second, [second.dims[k] for k in free_right], ax.flat(first.dims))
    dims = (
        *(first.dims[k] for k in batch_left),
        *(first.dims[k] for k in free_left),
        *(second.dims[k] for k in free_right),
    )
    if all(random):
        summed = [a for a in gone if a.kind == "unit"]
        own = summed or (left and not gone)  # a size of one has no axis
        if not own or not any(a.infinite for a in (*summed, *ax.units(dims))):
            raise Refusal(
                "a product of two activations, summed over positions, or over a fixed number of units while nothing "
                "else grows: write it as an elementwise product, or let the number of units or of heads grow with the "
                'width, or take means over finite networks: otherwise="sample"'
            )
        return inner(context, first, second, dims, gone)
    spread = {
        a
        for v in (first, second)
        for a in ax.flat(v.dims)
        if a.kind == "free" and not is_random(v.body)
    }
    values = [
        v if is_random(v.body) else materialised(context, v, spread & set(ax.flat(v.dims)))
        for v in (first, second)
    ]
    params = frozen(one.params)
    if any(random):
        place = random.index(True)
        if any(a.kind in ("unit", "sample") for a in gone):
            raise Refusal("units or samples are contracted with numbers")
        other = values[1 - place].body
        if other.index in context.program.drawn:
            return attend(context, one, values, place, dims)
        if other.power:
            raise Refusal(f"numbers of size width^{other.power:g} weigh positions")
        return mapped(context, "dot_general", params, values, place, dims)
    power = sum(v.body.power for v in values)
    number, grows = ax.growth(a for a in gone if a.kind == "unit")
    op = Numbers("dot_general", params, tuple(shape_code(v.dims) for v in values), shape_code(dims))
    inputs = [v.body.index for v in values]
    out = Value(dims, NumberArray(numbers_step(context, op, inputs), power + grows))
    return scaled_number(context, out, number)


def _no_pieces(value: Value) -> Value:
    if isinstance(value.body, Pieces):
        raise Refusal(
            "layers side by side (concatenated units, as the halves that rotary positions turn) are multiplied with "
            "something else than weights. Put a layer of weights between, use learnt positions, or take means over "
            'finite networks: otherwise="sample"'
        )
    return value


def _put(dims: Dims, k: int, dim: tuple[Axis, ...]) -> Dims:
    return (*dims[:k], dim, *dims[k + 1 :])


def _distinct(value: Value, dims: list, taken: tuple[Axis, ...]) -> Value:
    """New names for free axes that the other operand has too (an array contracted with itself)."""
    clash = {a: (Axis(a.kind, a.size),) for dim in dims for a in dim if a in taken}
    return co.renamed(value, clash)


def inner(
    context: Context, first: Value, second: Value, dims: Dims, gone: tuple[Axis, ...]
) -> Value:
    """sum over units of first * second: their number times the expectation of the product, if it is not zero.

    Where it is, as for queries and keys with weights of their own, what is left is Gaussian and of the order of the
    square root of the number of units: it vanishes under a factor 1/d, and stays random under 1/sqrt(d). It is one
    draw per head then, and the mean over heads has a limit (`attend`). Over a fixed number of units it stays random
    too, as a sum of products of Gaussians; here the number of heads grows.

    Source: Yang (2019), Tensor Programs I, appendix A; Hron et al. (2020), section 3.
    """
    if any(a.kind == "position" for a in gone):
        raise Refusal("a product of two activations summed over units and positions at once")
    (one, power1), (two, power2) = map(algebra.order_one, (first.body, second.body))
    one, two = _as_sum(context, one), _as_sum(context, two)
    if not (_centred(one) and _centred(two)) or _shared(one, two):
        raise Refusal(
            "a product of two activations that are correlated or have a mean, summed over units: similarities of "
            "activations have a rule only if each side has weights of its own (queries and keys) and no nonlinearity "
            'after them. Or take means over finite networks: otherwise="sample"'
        )
    left, right = process_of(context, one), process_of(context, two)
    axes = ax.positions(dims)
    units = ax.units(dims)
    # n products of mean zero: their sum is n^(1/2) times a Gaussian, see above.
    number, power = ax.growth(gone)
    note = Note("scores", axes=ax.sizes_text(axes))
    where = two_of(tuple(axes.index(a) for a in ref.axes) for ref in (left, right))
    few = 0 if any(a.infinite for a in gone) else round(number)
    op = Scores(number, where, tuple(a.size[0] for a in axes), few)
    inputs = (left.process.index, right.process.index)
    index = _field(context, op, inputs, {(r.process.index, r.part) for r in (left, right)}, note)
    process = context.program.process(index, axes, units, gaussian=True)
    context.fluctuations.add(index)
    code(dims, axes)
    return Value(
        dims,
        Linear(((Ref(process, (), axes, units), Coefficient(1.0, power / 2 + power1 + power2)),)),
    )


def _field(context: Context, op: Scores, inputs: tuple, pair: set, note: Note) -> int:
    """Number of the step of some scores; the same products are the same random numbers."""
    key = ("scores", frozenset(pair))
    if key not in context.sources:
        index = context.program.add(op, inputs, note)
        context.sources[key] = index, op, inputs
    index, *known = context.sources[key]
    if known != [op, inputs]:
        raise Refusal("scores of the same queries and keys are computed twice, in different orders")
    return index


def _as_sum(context: Context, body: Any) -> Any:
    """A body that is linear in processes, such as queries divided by their norm, as one of them."""
    body = sealed(context.program, body)
    if isinstance(body, Terms) and is_linear(body.terms):
        return Linear(((process_of(context, body), Coefficient()),))
    return body


def _centred(body: object) -> bool:
    return isinstance(body, Linear) and all(
        ref.process.gaussian and not ref.process.value for ref, _ in body.terms
    )


def _shared(one: Linear, two: Linear) -> bool:
    return any(overlap(bases_of(a), bases_of(b)) for a, _ in one.terms for b, _ in two.terms)


def _only_shapes(name: str) -> bool:
    return TABLE[name].shape in ("order", "axes")


def drawn(context: Context, equation: Any, values: list[Value]) -> list[Value]:
    """Arguments of an equation: random scores as arrays of draws, unless it only scales or reshapes them.

    Args:
        context: of the trace.
        equation: the equation.
        values: its arguments.

    Raises:
        Refusal: it mixes heads, or acts on draws in a way that is not known.
    """
    name = equation.primitive.name
    if any(map(context.are_scores, (v.body for v in values))) and not _keeps(name, values):
        values = [_draws(context, v) if context.are_scores(v.body) else v for v in values]
    if not any(is_drawn(context, v) for v in values) or _only_shapes(name):
        return values
    if not TABLE[name].elementwise:
        _check_heads(context, equation, values)
    elif any(is_random(v.body) or _trained(context, v.body) for v in values):
        raise Refusal(DRAWN)
    return values


def _trained(context: Context, body: Any) -> bool:
    """Whether a body is a parameter that is random or trained."""
    if not isinstance(body, Weight):
        return False
    _, variance, _, rate = context.law(body)
    return bool(variance or rate)


def is_drawn(context: Context, value: Value) -> bool:
    """Whether numbers depend on the draw of random scores."""
    return isinstance(value.body, NumberArray) and value.body.index in context.program.drawn


def _keeps(name: str, values: list[Value]) -> bool:
    """Whether scores stay a Gaussian that need not be drawn yet."""
    if _only_shapes(name) or (TABLE[name].identity and name != "stop_gradient"):
        return True
    # A Gaussian times a number is one; added to something, or in a function, it is drawn.
    others = [v for v in values[1:] if not isinstance(v.body, Number)]
    plain = name in ("mul", "neg") or (name == "div" and isinstance(values[1].body, Number))
    if name == "mul" and isinstance(values[0].body, Number):
        return True
    return plain and not others


def _check_heads(context: Context, equation: Any, values: list[Value]) -> None:
    name, params = equation.primitive.name, equation.params
    value = next(v for v in values if is_drawn(context, v))
    touched = value.dims
    if name == "dot_general":
        sides = zip(values, params["dimension_numbers"][1])
        touched = tuple(
            dim
            for v, batch in sides
            if is_drawn(context, v)
            for k, dim in enumerate(v.dims)
            if k not in batch and sum(isinstance(w.body, NumberArray) for w in values) == 2
        )
    elif name.startswith("reduce_"):
        touched = tuple(value.dims[k] for k in params["axes"])
    elif name == "slice":
        touched = tuple(
            dim
            for dim, start, stop in zip(
                value.dims, params["start_indices"], params["limit_indices"]
            )
            if (start, stop) != (0, ax.extent(dim)[0])
        )
    if ax.units(touched):
        raise Refusal(DRAWN)


def _draws(context: Context, value: Value) -> Value:
    """Scores as an array of numbers that depends on their draw."""
    parts: list[int] = []
    for ref, c in value.body.terms:
        # Of order width^power: nothing is left of it beside scores of order one.
        if c.power < 0:
            continue
        if c.arrays or any(item[0] != "reshape" for item in ref.maps):
            raise Refusal(DRAWN)
        index = ref.process.index
        count, where, sizes, few = context.program.steps[index].op
        shape = tuple(a.size[0] for a in ref.axes)
        scale = (
            1.0 if few else count**0.5
        )  # a draw has variance one for each unit, or is the sum over them
        draws = Draws(scale * c.number, where, sizes, shape, code(value.dims, ref.axes))
        codes = shape_code(value.dims)
        part = numbers_step(context, Numbers("draws", draws, (), codes), [index])
        context.program.drawn[part] = frozenset([index])
        if parts:
            part = numbers_step(
                context, Numbers("add", (), (codes, codes), codes), [parts[-1], part]
            )
        parts.append(part)
    return Value(value.dims, NumberArray(parts[-1]))


def _fixed_heads(weights: Value, dims: Dims) -> int:
    """The number of heads, one if no axis tells them apart; 0 where it grows."""
    heads = [a for a in ax.units(dims) if a in ax.units(weights.dims)]
    return 0 if any(a.infinite for a in heads) else math.prod(a.size[0] for a in heads)


def attend(context: Context, equation: Any, operands: list[Value], place: int, dims: Dims) -> Value:
    """Values averaged over positions with weights that are a function of random scores.

    A head has its own scores, given which its units are Gaussian; a layer that sums over all heads sees the mean over
    scores, as the number of heads grows too.

    Args:
        context: of the trace.
        equation: a product of numbers that depend on the draw of scores with activations.
        operands: its operands.
        place: of the activations among them.
        dims: of the result.

    Source: Hron et al. (2020), "Infinite attention", theorem 3.
    """
    program = context.program
    weights, values, gone = _aligned(equation, operands, place)
    if weights.body.power:
        raise Refusal(f"attention weights of size width^{weights.body.power:g}")
    ref = process_of(context, values.body)
    fields = sorted(program.drawn[weights.body.index])
    inputs: list = [ref.process.index, *fields]
    axes = ax.positions(weights.dims)
    groups: list[list[int]] = [
        [],
        [],
        [],
        [],
    ]  # of both, of weights, summed over, summed over weights alone
    for k, axis in enumerate(axes):
        summed, shared = axis in gone, axis in ref.axes
        groups[(2 if shared else 3) if summed else (0 if shared else 1)].append(k)
    places = [tuple(ref.axes.index(axes[k]) for k in groups[g]) for g in (0, 2)]
    rest = tuple(k for k in range(len(ref.axes)) if k not in places[0] + places[1])
    out = (
        *(axes[k] for k in groups[0]),
        *(axes[k] for k in groups[1]),
        *(ref.axes[k] for k in rest),
    )
    op = Attend(
        _equations(context, weights.body.index, inputs),
        code(weights.dims, axes),
        tuple(a.size[0] for a in axes),
        tuple(map(tuple, groups)),
        (*places, rest),
        tuple(a.size[0] for a in out),
        tuple(range(1, 1 + len(fields))),
        context.attention_samples,
        _fixed_heads(weights, dims),
    )
    note = Note("mean over heads", axes=ax.sizes_text(out))
    index = program.add(op, inputs, note, averages=True)
    units = ax.units(dims)
    heads = tuple(k for k, a in enumerate(units) if a in ax.units(weights.dims))
    context.heads[index] = (len(units), heads)
    bases = bases_of(ref) | {(i, ()) for i in (index, *fields)}
    process = program.process(index, out, units, gaussian=False, bases=bases)
    return Value(dims, Linear(((Ref(process, (), out, units), Coefficient()),)))


def _aligned(
    equation: Any, operands: list[Value], place: int
) -> tuple[Value, Value, tuple[Axis, ...]]:
    """Weights, values with the same axes where they meet, and the axes summed over."""
    summed, batch = equation.params["dimension_numbers"]
    weights, values = operands[1 - place], operands[place]
    own = list(weights.dims)
    for mine, theirs in zip(
        (*summed[1 - place], *batch[1 - place]), (*summed[place], *batch[place])
    ):
        own[mine] = values.dims[theirs]
    gone = tuple(a for k in summed[place] for a in values.dims[k])
    return Value(tuple(own), weights.body), values, gone


def _equations(context: Context, index: int, inputs: list) -> tuple:
    """The equations from scores to weights; what they read besides is put among the inputs."""
    program = context.program
    found: list[tuple] = []
    places: dict[int, int] = {}

    def visit(index: int) -> None:
        sources = []
        for source in program.steps[index].inputs:
            if source in program.drawn:
                if source not in places:
                    visit(source)
                sources.append(("s", places[source]))
                continue
            if source not in inputs:
                inputs.append(source)
            sources.append(("o", inputs.index(source)))
        places[index] = len(found)
        found.append((program.steps[index].op, tuple(sources)))

    visit(index)
    return tuple(found)
