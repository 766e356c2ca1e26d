"""What meets weights in a traced network, what is summed over units, and linear maps of positions."""

from __future__ import annotations

from typing import Any

from ntk import axes as ax
from ntk import coordinates as co
from ntk.axes import Axis, Dims
from ntk.coordinates import (
    Coefficient,
    Finite,
    Linear,
    Number,
    Pieces,
    Process,
    Ref,
    Refusal,
    Terms,
    Value,
    Weight,
    is_random,
)
from ntk.interpret import Context, finite_step, materialised, scaled_shape
from ntk.primitives import _coefficient, _finite, elementwise, frozen
from ntk.steps import Note, Operand, code, disjoint, shape_code, terms_static

# --- processes ------------------------------------------------------------------------------------


def process_of(context: Context, body: Any) -> Ref:
    """The body as one process: the moments of a function, or of a sum."""
    if isinstance(body, Pieces):
        return _pieces(context, body)
    body = context.program.sealed(body)
    if isinstance(body, Linear) and len(body.terms) == 1:
        ref, c = body.terms[0]
        if c == Coefficient() and not ref.maps and ref.process.value is None:
            return ref
    static, inputs, axes, units = terms_static(context.program, body)
    key = ("function", static, tuple(inputs), axes, units)
    if key in context.sources:
        return context.sources[key]
    sizes = tuple(a.size[0] for a in axes)
    note = Note(axes=_text(axes))
    index = context.program.add("function", (static, sizes), inputs, note)
    terms = co.as_terms(body)
    bases = [ref.process.bases for t in terms for ref, _ in t.factors]
    linear = all(tree == co.Z for t in terms for r, tree in t.factors if r.process.value is None)
    linear = linear and all(
        sum(r.process.value is None for r, _ in t.factors) == 1
        or all(r.process.value == 0 for r, _ in t.factors)
        for t in terms
    )
    known = all(r.process.gaussian for t in terms for r, _ in t.factors)
    process = context.program.process(
        index,
        axes,
        units,
        gaussian=linear and known,
        bases=frozenset().union(*bases) if bases else frozenset(),
        averaged=linear,
    )
    context.sources[key] = Ref(process, (), axes, units)
    return context.sources[key]


def _text(axes: tuple[Axis, ...]) -> str:
    return " x ".join(str(a.size[0]) for a in axes)


def _pieces(context: Context, body: Pieces) -> Ref:
    """Layers side by side: the mean of their moments, weighted by their shares of the units."""
    refs = [process_of(context, part) for part, _ in body.parts]
    axes = max((r.axes for r in refs), key=len)
    kept = [(r, s) for r, s in zip(refs, body.shares) if s]
    pieces = tuple((tuple(axes.index(a) for a in r.axes), s) for r, s in kept)
    sizes = tuple(a.size[0] for a in axes)
    inputs = [r.process.index for r, _ in kept]
    index = context.program.add("mix", (pieces, sizes), inputs, Note("side by side"))
    bases = frozenset().union(*(r.process.bases for r in refs))
    process = context.program.process(index, axes, (body.units,), gaussian=False, bases=bases)
    return Ref(process, (), axes, (body.units,))


# --- maps of positions ------------------------------------------------------------------------------


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
    if isinstance(value.body, Finite):
        inputs = [v.body.index for v in values]
        static = (name, params, codes, shape_code(dims))
        return Value(dims, value.body._replace(index=finite_step(context, static, inputs)))
    body = value.body
    if isinstance(body, Pieces):
        raise Refusal("positions are mixed after a concatenation of layers: mix them before")
    if isinstance(body, Weight):
        value = context.as_random(value)
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
        maps = list(ref.maps)
        if ref.axes != axes:
            maps.append(("expand", sizes, tuple(axes.index(a) for a in ref.axes)))
        for index, array_dims in c.arrays:
            maps.append(("scale", Operand(index), code(array_dims, axes), sizes))
        maps.append(item)
        new = ref._replace(maps=tuple(maps), axes=after)
        terms.append((new, Coefficient(c.number, c.power)))
    return Value(dims, Linear(tuple(terms)))


def _windows(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """Pooling, padding, reversal, cumulative sums: linear along positions, whatever the units."""
    value = values[0]
    if not is_random(value.body):
        return _finite(context, one, two, values)
    for extra in values[1:]:
        if not (isinstance(extra.body, Number) and extra.body.number == 0):
            raise Refusal("activations are padded with numbers other than zero")
    shape = scaled_shape(one, two)
    dims = []
    for dim, size in zip(value.dims, shape):
        if ax.extent(dim) == size and not _touches(one, len(dims)):
            dims.append(dim)
        elif any(a.kind != "position" for a in dim):
            raise Refusal(f"{one.primitive.name} along units or samples")
        else:
            dims.append(context.fresh_dims([size], "position")[0])
    params = dict(one.params)
    if values[1:]:
        zero = Value((), Finite(context.program.constant(_zero())))
        return mapped(context, one.primitive.name, frozen(params), [value, zero], 0, tuple(dims))
    return mapped(context, one.primitive.name, frozen(params), [value], 0, tuple(dims))


def _zero() -> Any:
    import numpy as np

    return np.zeros(())


def _touches(equation: Any, k: int) -> bool:
    params, name = equation.params, equation.primitive.name
    if name == "rev":
        return k in params["dimensions"]
    if name.startswith("cum"):
        return k == params["axis"]
    if name == "pad":
        return tuple(params["padding_config"][k]) != (0, 0, 0)
    return params.get("window_dimensions", (1,) * (k + 1))[k] != 1


def _concatenate(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    axis = one.params["dimension"]
    if not any(is_random(v.body) or isinstance(v.body, Weight) for v in values):
        return _finite(context, one, two, values)
    values = [context.as_random(v) for v in values]
    if any(
        a.kind in ("unit", "free") and a.infinite for v in values for a in ax.flat((v.dims[axis],))
    ):
        return _side_by_side(context, values, axis, scaled_shape(one, two))
    total, start = None, 0
    size = scaled_shape(one, two)[axis]
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
            raise Refusal("a concatenation along an axis of units that does not grow")
        zero = Value((), Finite(context.program.constant(_zero())))
        co.register(_pad_primitive())
        dims = tuple(new if k == axis else dim for k, dim in enumerate(value.dims))
        if isinstance(value.body, Number):
            raise Refusal("constants are concatenated to activations")
        params = (("padding_config", tuple(config)),)
        part = mapped(context, "pad", params, [value, zero], 0, dims)
        if total is not None:
            first, second = _aligned(total, part)
            part = Value(first.dims, co.added(*_alike(context, first.body, second.body)))
        total = part
    return total


def _alike(context: Context, one: Any, two: Any) -> tuple[Any, Any]:
    from ntk.primitives import _termed

    one, two = _termed(one, ()), _termed(two, ())
    if isinstance(one, Linear) and isinstance(two, Linear):
        return one, two
    return context.program.sealed(one), context.program.sealed(two)


def _aligned(one: Value, two: Value) -> tuple[Value, Value]:
    dims, first, second = ax.unify(one.dims, two.dims)
    return Value(dims, co.renamed(one, first).body), Value(dims, co.renamed(two, second).body)


def _pad_primitive() -> Any:
    import jax

    return (
        jax.make_jaxpr(lambda x: jax.lax.pad(x, 0.0, [(1, 1, 0)]))(1.0 * _zero()[None])
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
        if isinstance(value.body, Finite) or not any(a.infinite for a in dim):
            dims = (*value.dims[:axis], (), *value.dims[axis + 1 :])
            if isinstance(value.body, Finite):
                continue  # a fixed number of columns beside infinitely many
            raise Refusal("a layer of fixed width is concatenated to one that grows")
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
    shares = tuple(s / sum(slopes) for s in slopes)
    dims = (*aligned[0][1][:axis], (units,), *aligned[0][1][axis + 1 :])
    return Value(dims, Pieces(tuple(aligned), shares, units))


# --- sums ------------------------------------------------------------------------------------------


def _reduce_sum(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    value = values[0]
    if isinstance(value.body, Weight):
        raise Refusal(
            f"the entries of {value.body.name} are summed (weight normalisation?): its law changes. Use an initializer "
            "of the wanted scale instead"
        )
    over = one.params["axes"]
    gone = tuple(a for k in over for a in value.dims[k])
    kept = tuple(dim for k, dim in enumerate(value.dims) if k not in over)
    if any(a.kind == "sample" for a in gone):
        raise Refusal(
            "a sum over the samples of a batch: the output of one sample depends on the others (batch normalisation by "
            "the batch at hand). Use layer normalisation, or statistics that are fixed"
        )
    if not is_random(value.body):
        number, power = ax.growth(a for a in gone if a.kind in ("unit", "free"))
        body = value.body._replace(power=value.body.power + power)
        if isinstance(body, Number):
            fixed = ax.growth(a for a in gone if a.kind == "position")[0]
            return Value(kept, Number(body.number * number * fixed, body.power))
        params = frozen(one.params)
        static = ("reduce_sum", params, (shape_code(value.dims),), shape_code(kept))
        out = Value(kept, body._replace(index=finite_step(context, static, [body.index])))
        return _scaled_number(context, out, number)
    unit_axes = [a for a in gone if a.kind == "unit"]
    if unit_axes and not any(a.infinite for a in unit_axes):
        raise Refusal(
            "a sum over units whose number does not grow (outputs, heads): it is not an average. Take the kernel before it"
        )
    position_dims = [k for k in over if any(a.kind == "position" for a in value.dims[k])]
    if position_dims:
        if any(a.kind == "unit" for k in position_dims for a in value.dims[k]):
            raise Refusal("a sum over a flattened axis of positions and units")
        dims = tuple(dim for k, dim in enumerate(value.dims) if k not in position_dims)
        params = frozen({**one.params, "axes": tuple(position_dims)})
        value = mapped(context, "reduce_sum", params, [value], 0, dims)
    if not unit_axes:
        return value
    return Value(kept, _mean(context, value.body, kept, unit_axes))


def _scaled_number(context: Context, value: Value, number: float) -> Value:
    if number == 1:
        return value
    codes = shape_code(value.dims)
    import numpy as np

    factor = context.program.constant(np.full((1,) * len(codes), number))
    shapes = (codes, ((False, 1),) * len(codes))
    static = ("mul", (), shapes, codes)
    index = finite_step(context, static, [value.body.index, factor])
    return Value(value.dims, value.body._replace(index=index))


def _mean(context: Context, body: Any, dims: Dims, gone: list[Axis]) -> Any:
    """Sum over infinitely many units: their number times an expectation."""
    number, power = ax.growth(gone)
    if isinstance(body, Pieces):
        total: Any = Value(dims, Number(0.0))
        for (part, part_dims), share in zip(body.parts, body.shares):
            part_gone = [a for a in ax.flat(part_dims) if a not in ax.flat(dims)]
            mean = _mean(context, part, dims, part_gone)
            if isinstance(mean, Number) and mean.number == 0:
                continue
            total = elementwise(context, _equation("add"), [total, Value(dims, mean)])
        return total.body
    if isinstance(body, Linear):
        # The mean of a Gaussian is zero, whatever it is multiplied with.
        left = tuple(t for t in body.terms if not t[0].process.gaussian or t[0].process.value)
        if not left:
            return Number(0.0)
        body = Linear(left)
    powers = {t.coefficient.power for t in co.as_terms(body)}
    if len(powers) > 1:
        raise Refusal("activations of different powers of the width are averaged together")
    own = powers.pop()
    body = co.scaled(body, Coefficient(1.0, -own))
    static, inputs, axes, _ = terms_static(context.program, body)
    order = code(dims, axes)
    sizes = tuple(a.size[0] for a in axes)
    present = tuple(any(a.kind == "sample" for a in dim) for dim in dims)
    index = context.program.add(
        "mean", (static, sizes, order, present, number), inputs, Note(axes=_text(axes))
    )
    return Finite(index, power + own)


def _equation(name: str) -> Any:
    import jax

    equation = jax.make_jaxpr(getattr(jax.lax, name))(1.0, 2.0).jaxpr.eqns[0]
    co.register(equation.primitive)
    return equation


def _reduce_other(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    if not is_random(values[0].body):
        over = one.params["axes"]
        kept = tuple(dim for k, dim in enumerate(values[0].dims) if k not in over)
        if any(a.kind == "sample" for k in over for a in values[0].dims[k]):
            raise Refusal("a reduction over the samples of a batch")
        if isinstance(values[0].body, Number):
            return Value(kept, values[0].body)
        body = values[0].body
        params = frozen(one.params)
        static = (one.primitive.name, params, (shape_code(values[0].dims),), shape_code(kept))
        return Value(kept, body._replace(index=finite_step(context, static, [body.index])))
    raise Refusal(
        f"{one.primitive.name} of activations (max pooling, softmax over units): only sums and means have a limit here. "
        "Use average pooling"
    )


# --- products ----------------------------------------------------------------------------------------


def _dot(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    ((left, right), (batch_left, batch_right)) = one.params["dimension_numbers"]
    first, second = values
    if isinstance(first.body, Weight) and isinstance(second.body, Weight):
        raise Refusal(
            f"a product of the parameters {first.body.name} and {second.body.name}, before any activation"
        )
    if isinstance(first.body, Weight) or isinstance(second.body, Weight):
        swap = isinstance(first.body, Weight)
        if swap:
            first, second = second, first
            left, right, batch_left, batch_right = right, left, batch_right, batch_left
        return _weighted(context, first, second, (left, right, batch_left, batch_right), swap)
    return _contracted(context, one, two, values)


def _weighted(context: Context, value: Value, weight: Value, numbers: tuple, swap: bool) -> Value:
    """An activation or data times a fresh matrix."""
    left, right, batch_left, batch_right = numbers
    name = weight.body.name
    pooled = tuple(a for k in left for a in value.dims[k])
    if any(a.kind == "sample" for a in pooled):
        raise Refusal(f"{name} mixes the samples of a batch")
    value, pooled = _free_as_positions(context, value, left)
    free = [k for k in range(len(weight.dims)) if k not in (*right, *batch_right)]
    kept = [k for k in range(len(value.dims)) if k not in (*left, *batch_left)]
    fresh = {a: (Axis("unit", a.size),) for k in free for a in weight.dims[k]}
    units = tuple(fresh[a][0] for k in free for a in weight.dims[k])
    batch = tuple(value.dims[k] for k in batch_left)
    unshared = tuple(a for dim in batch for a in dim if a.kind == "position")
    if any(a.kind == "sample" for dim in batch for a in dim):
        raise Refusal(f"{name} differs between the samples of a batch")
    rest, new = (
        [value.dims[k] for k in kept],
        [ax.substitute((weight.dims[k],), fresh)[0] for k in free],
    )
    dims = (*batch, *new, *rest) if swap else (*batch, *rest, *new)
    others = tuple(a for a in ax.flat((*batch, *rest)) if a.kind == "unit")
    if others and is_random(value.body):
        _check_zero_mean(value.body, name, others)
    return Value(dims, _affine(context, value, pooled, weight.body, units + others, unshared))


def _free_as_positions(context: Context, value: Value, over: Any) -> tuple[Value, tuple]:
    """Constant axes that are summed over, written out."""
    constant = {a for k in over for a in value.dims[k] if a.kind == "free"}
    if isinstance(value.body, Number):
        constant |= set(a for a in ax.flat(value.dims) if a.kind != "sample")
    if constant and not is_random(value.body):
        value = materialised(context, value, constant)
    return value, tuple(a for k in over for a in value.dims[k])


def _check_zero_mean(body: Any, name: str, others: tuple) -> None:
    zero = isinstance(body, Linear) and all(
        ref.process.gaussian and not ref.process.value for ref, _ in body.terms
    )
    if not zero:
        raise Refusal(
            f"{name} is shared by several groups of units (sizes {[a.size for a in others]}) whose activations have a "
            "mean: their outputs are correlated"
        )


def _affine(
    context: Context,
    value: Value,
    pooled: tuple[Axis, ...],
    weight: Weight,
    units: tuple[Axis, ...],
    unshared: tuple[Axis, ...] = (),
) -> Linear:
    """A Gaussian process with the covariance of what was multiplied with fresh weights."""
    if isinstance(value.body, Number):
        value = materialised(context, value, set(pooled))
    if weight.arrays:
        raise Refusal(f"{weight.name} is multiplied with numbers that depend on the data")
    if is_random(value.body) and not any(a.kind == "unit" and a.infinite for a in pooled):
        raise Refusal(
            f"{weight.name} sums over {ax.extent(pooled)[0]} entries, none of them along an axis that grows with the "
            "width (a bottleneck of fixed size, or mixing of positions by shared weights): the limit is not Gaussian. "
            "Let that layer grow with the width"
        )
    over = tuple(a for a in pooled if a.kind == "position")
    if is_random(value.body):
        ref = process_of(context, value.body)
        source, axes, bases_averaged = ref.process.index, ref.axes, ref
    else:
        source, axes = _data(context, value, over)
        over = ()
    context.consume(weight)
    mean, variance, power, rate = context.law(weight)
    count, grows = ax.growth(pooled)
    if mean:
        raise Refusal(
            f"{weight.name} has initial mean {mean:.3g}; a matrix that sums over units must have mean zero"
        )
    if not variance:
        raise Refusal(f"{weight.name} is zero at initialisation: nothing passes through it")
    total = variance * count
    left_over = (power + grows) / 2
    if left_over:
        context.scales.append(_scale_text(context, weight.name, variance, power, grows))
    flat = tuple(axes.index(a) for a in over if a in axes)
    kept = tuple(a for a in axes if a not in over)
    apart = tuple(kept.index(a) for a in unshared if a in kept)
    missing = tuple(a.size[0] for a in unshared if a not in kept)
    if missing:
        raise Refusal(f"{weight.name} differs between positions of a constant")
    static = (total, total * rate, flat, None, apart)
    note = Note(weight.name, axes=_text(kept), parameters=(weight.name,))
    index = context.program.add("affine", static, (source,), note)
    context.record(weight.name, variance=total, rate=total * rate, role="weights", mean=0.0)
    process = context.program.process(index, kept, units, gaussian=True)
    return Linear(((Ref(process, (), kept, units), Coefficient(1.0, left_over)),))


def _scale_text(context: Context, name: str, variance: float, power: float, grows: float) -> str:
    law = f"{name} has initial variance {variance:.3g} width^{power:g}"
    if grows:
        law += f" and sums over a number of entries of order width^{grows:g}"
    if power + grows < 0:
        why = (
            "what it computes vanishes as the width grows, as in muP and mean-field parametrizations: the kernel limit "
            "is zero or frozen there. See limits.feature_learning for their limit"
        )
    else:
        why = "what it computes grows without bound: use an initializer that divides by the fan-in"
    return f"{law}; {why}, or fix the scale at one width with infinite_width(..., base_width=...)"


def _data(context: Context, value: Value, over: tuple[Axis, ...]) -> tuple[int, tuple[Axis, ...]]:
    """Second moments of an array of numbers, averaged over the axes that a layer sums over."""
    if value.body.power:
        raise Refusal(f"numbers of size width^{value.body.power:g} meet weights")
    axes = ax.positions(value.dims)
    kept = tuple(a for a in axes if a not in over)
    coded = code(value.dims, axes)
    sizes = tuple(a.size[0] for a in axes)
    where = tuple(axes.index(a) for a in kept)
    note = Note("inner products of the data", axes=_text(kept))
    index = context.program.add("data", (coded, sizes, where), (value.body.index,), note)
    context.program.process(index, kept, (), gaussian=False, bases=frozenset())
    return index, kept


def _contracted(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """A product of two arrays, none of them a parameter."""
    from ntk.inner import inner

    ((left, right), (batch_left, batch_right)) = one.params["dimension_numbers"]
    values = [v if isinstance(v.body, Finite | Number) else _no_pieces(v) for v in values]
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
        if not any(a.infinite for a in gone if a.kind == "unit"):
            raise Refusal(
                "a product of two activations, summed over positions or over a fixed number of units: write it as an "
                "elementwise product, or let the axis grow with the width"
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
        if other.power:
            raise Refusal(f"numbers of size width^{other.power:g} weigh positions")
        return mapped(context, "dot_general", params, values, place, dims)
    power = sum(v.body.power for v in values)
    number, grows = ax.growth(a for a in gone if a.kind == "unit")
    static = ("dot_general", params, tuple(shape_code(v.dims) for v in values), shape_code(dims))
    inputs = [v.body.index for v in values]
    out = Value(dims, Finite(finite_step(context, static, inputs), power + grows))
    return _scaled_number(context, out, number)


def _no_pieces(value: Value) -> Value:
    if isinstance(value.body, Pieces):
        raise Refusal("concatenated layers are contracted with something else than weights")
    return value


def _put(dims: Dims, k: int, dim: tuple[Axis, ...]) -> Dims:
    return (*dims[:k], dim, *dims[k + 1 :])


def _distinct(value: Value, dims: list, taken: tuple[Axis, ...]) -> Value:
    """New names for free axes that the other operand has too (an array contracted with itself)."""
    clash = {a: (Axis(a.kind, a.size),) for dim in dims for a in dim if a in taken}
    return co.renamed(value, clash)


def convolution(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """A convolution with fresh weights."""
    from ntk.convolutions import convolution as rule

    return rule(context, one, two, values)


def _gather(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    from ntk.lookups import gather

    return gather(context, one, two, values)


RULES = {
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_other,
    "reduce_min": _reduce_other,
    "reduce_and": _reduce_other,
    "reduce_or": _reduce_other,
    "dot_general": _dot,
    "conv_general_dilated": convolution,
    "concatenate": _concatenate,
    "pad": _windows,
    "rev": _windows,
    "cumsum": _windows,
    "reduce_window_sum": _windows,
    "gather": _gather,
}

__all__ = ["RULES", "Process", "Terms", "_coefficient", "disjoint"]
