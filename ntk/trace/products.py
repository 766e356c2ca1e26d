"""Products of two arrays: what meets weights, and what meets numbers."""

from __future__ import annotations

from typing import Any

from ntk.infinite.weight_laws import NORMAL
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context, finite_step, materialised, snapped
from ntk.trace.coordinates import (
    Coefficient,
    Finite,
    Linear,
    Number,
    Pieces,
    Ref,
    Refusal,
    Value,
    Weight,
    is_random,
)
from ntk.trace.finite import frozen, scaled_number
from ntk.trace.positions import mapped
from ntk.trace.processes import process_of, sizes_text
from ntk.trace.scores import attend, inner
from ntk.trace.steps import Note, code, shape_code


def dot(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """A product of two arrays: weights, activations, or numbers."""
    ((left, right), (batch_left, batch_right)) = one.params["dimension_numbers"]
    first, second = values
    if isinstance(first.body, Weight) and isinstance(second.body, Weight):
        first = context.as_vectors(first)  # learnt vectors, such as latents, meet a matrix
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
    nothing = isinstance(value.body, Number) and not value.body.number
    value, pooled = _free_as_positions(context, value, left)
    context.check_heads(value.body, pooled)
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
    groups = tuple(a for a in ax.flat(tuple(rest)) if a.kind == "unit")
    if any(a.infinite for a in groups) and not any(a.infinite for a in pooled):
        raise Refusal(
            f"{name} sums over {ax.extent(pooled)[0]} positions with the same weights for every unit (mixing of "
            "tokens): units are correlated through these few weights, and the kernel of one network stays random at "
            'infinite width. otherwise="sample" gives its mean over networks; attention, or an average, mixes '
            "positions with a limit"
        )
    if groups and is_random(value.body):
        _check_zero_mean(value.body, name, groups)
    # Members of an ensemble, along a batch dimension, have weights of their own.
    units = ax.units(batch) + units + groups
    if nothing:
        return Value(dims, Number(0.0))  # of an initial state of zeros
    how = _summed(weight, value, left, right, batch_right)
    return Value(dims, _affine(context, value, pooled, weight.body, units, how, unshared))


def _summed(weight: Value, value: Value, left: Any, right: Any, batch: Any) -> tuple:
    """Which of its dimensions a parameter is summed over with which units: equal for uses that are alike."""

    def own(k: int) -> tuple:
        axes = set(weight.dims[k])
        return tuple(i for i, dim in enumerate(weight.body.own) if axes & set(dim))

    orders = {
        tuple(ref.units.index(a) for k in left for a in value.dims[k] if a in ref.units)
        for ref in co.refs_of(value.body)
    }
    return (
        tuple(map(own, right)),
        tuple(map(own, batch)),
        tuple(sorted(orders)) if len(orders) > 1 or orders - {(0,)} else (),
    )


def _free_as_positions(context: Context, value: Value, over: Any) -> tuple[Value, tuple]:
    """Constant axes that are summed over, written out."""
    constant = {a for k in over for a in value.dims[k] if a.kind == "free"}
    if isinstance(value.body, Number):
        constant |= {a for a in ax.flat(value.dims) if a.kind != "sample"}
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
    how: tuple,
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
            'Let that layer grow with the width (otherwise="sample" gives the mean over networks)'
        )
    over = tuple(a for a in pooled if a.kind == "position")
    if is_random(value.body):
        ref = process_of(context, value.body)
        source, axes = ref.process.index, ref.axes
    else:
        source, axes = data_moments(context, value, over)
        over = ()
    context.consume(weight, how)
    mean, variance, power, rate = context.law(weight)
    count, grows = ax.growth(pooled)
    if mean:
        raise Refusal(
            f"{weight.name} has initial mean {mean:.3g}; a matrix that sums over units must have mean zero"
        )
    total, own = snapped(variance * count), snapped(variance * count) * rate
    left_over = (power + grows) / 2
    if not variance:
        (total, own), left_over = context.zero(weight, count, grows), 0.0
    if left_over:
        context.scales.append(scale_text(context, weight.name, variance, power, grows))
    flat = tuple(axes.index(a) for a in over if a in axes)
    kept = tuple(a for a in axes if a not in over)
    apart = tuple(kept.index(a) for a in unshared if a in kept)
    missing = tuple(a.size[0] for a in unshared if a not in kept)
    if missing:
        raise Refusal(f"{weight.name} differs between positions of a constant")
    law = NORMAL if is_random(value.body) else context.standard(weight)
    if apart and law != NORMAL:
        raise Refusal(
            f"{weight.name} differs between positions of the data, and is not normal at initialisation: use a normal "
            'initializer, nn.initializers.variance_scaling(1.0, "fan_in", "normal")'
        )
    static = (total, own, flat, None, apart, len(kept), law)
    note = Note(weight.name, axes=sizes_text(kept), parameters=(weight.name,))
    index = context.program.add("affine", static, (source,), note)
    context.ties[weight.name, weight.part].append(index)
    context.program.groups[index] = (weight.name, weight.part)
    context.record(
        weight.name,
        variance=total,
        rate=own,
        role="weights",
        mean=0.0,
        fixed=law != NORMAL,
    )
    process = context.program.process(index, kept, units, gaussian=True)
    return Linear(((Ref(process, (), kept, units), Coefficient(1.0, left_over)),))


def scale_text(context: Context, name: str, variance: float, power: float, grows: float) -> str:
    """What is wrong with the scale of a parameter, and what to do."""
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


def data_moments(
    context: Context, value: Value, over: tuple[Axis, ...]
) -> tuple[int, tuple[Axis, ...]]:
    """Second moments of an array of numbers, averaged over the axes that a layer sums over."""
    if value.body.power:
        raise Refusal(f"numbers of size width^{value.body.power:g} meet weights")
    axes = ax.positions(value.dims)
    kept = tuple(a for a in axes if a not in over)
    coded = code(value.dims, axes)
    sizes = tuple(a.size[0] for a in axes)
    where = tuple(axes.index(a) for a in kept)
    note = Note("inner products of the data", axes=sizes_text(kept))
    index = context.program.add("data", (coded, sizes, where), (value.body.index,), note)
    context.program.process(index, kept, (), gaussian=False, bases=frozenset())
    return index, kept


def _contracted(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """A product of two arrays, none of them a parameter."""

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
                "elementwise product, or let the axis grow with the width (of attention, keep the number of heads and "
                "let the size of a head grow: the kernel is that of many heads then), or take means over finite "
                'networks: otherwise="sample"'
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
    static = ("dot_general", params, tuple(shape_code(v.dims) for v in values), shape_code(dims))
    inputs = [v.body.index for v in values]
    out = Value(dims, Finite(finite_step(context, static, inputs), power + grows))
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
