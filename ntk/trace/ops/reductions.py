"""Sums over units, positions and numbers; means over units.

    sum_i f(u_i) = n E f(u) over n units; where E f = 0, n^(1/2) times a Gaussian of covariance E[f(u) f(v)]

Source: Yang (2019), Tensor Programs I.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk.infinite.inputs import Need
from ntk.infinite.weight_laws import NORMAL
from ntk.trace import algebra, moments
from ntk.trace import axes as ax
from ntk.trace.activations import described
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
from ntk.trace.laws import Law, Setting, Sides, sides_of
from ntk.trace.ops import several
from ntk.trace.ops.copies import separated
from ntk.trace.ops.dense import Dense
from ntk.trace.ops.elementwise import elementwise
from ntk.trace.ops.function import Summand, is_joint, process_of, summands_of
from ntk.trace.ops.numbers import Numbers, from_axes, frozen, numbers_step, scaled_number
from ntk.trace.ops.positions import mapped
from ntk.trace.ops.vector import as_vectors
from ntk.trace.steps import Kind, Note, Step, code, shape_code


class Mean(NamedTuple):
    """The mean over units of a sum of products of functions, times a number.

    Attributes:
        terms: of the sum.
        sizes: of its axes of positions.
        order: dimensions of the array in terms of these.
        samples: of each dimension, whether it counts them.
        number: factor.
    """

    terms: tuple[Summand, ...]
    sizes: tuple[int, ...]
    order: tuple
    samples: tuple[bool, ...]
    number: float


# --- read ----------------------------------------------------------------------------------------


def _reduce_sum(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    value = values[0]
    over = one.params["axes"]
    if isinstance(value.body, Weight):
        left = [a for k, dim in enumerate(value.dims) for a in dim if k not in over and a.infinite]
        summed = [a for k in over for a in value.dims[k] if a.infinite]
        if len(left) + len(summed) != 1:  # more are those of a matrix
            raise Refusal(
                f"the entries of {value.body.name} are summed (weights that are standardised or normalised before they "
                "are used): its law changes, and its gradient with it. Use an initializer of the wanted scale, or take "
                'means over finite networks: otherwise="sample"'
            )
        value = as_vectors(context, value)  # of a table of positions
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
        op = Numbers("reduce_sum", params, (shape_code(value.dims),), shape_code(kept))
        out = Value(kept, body._replace(index=numbers_step(context, op, [body.index])))
        return scaled_number(context, out, number)
    unit_axes = [a for a in gone if a.kind == "unit"]
    if unit_axes and not any(a.infinite for a in unit_axes):
        for axis in unit_axes:
            value = separated(context, value, axis)
        return _reduce_sum(context, one, two, [value])
    position_dims = [k for k in over if any(a.kind == "position" for a in value.dims[k])]
    if position_dims:
        if any(a.kind == "unit" for k in position_dims for a in value.dims[k]):
            raise Refusal("a sum over a flattened axis of positions and units")
        dims = tuple(dim for k, dim in enumerate(value.dims) if k not in position_dims)
        params = frozen({**one.params, "axes": tuple(position_dims)})
        value = mapped(context, "reduce_sum", params, [value], 0, dims)
    if not unit_axes:
        return Value(kept, value.body)
    return Value(kept, _mean(context, value.body, kept, unit_axes))


def _mean(context: Context, body: Any, dims: Dims, gone: list[Axis]) -> Any:
    """Sum over infinitely many units: their number times an expectation."""
    number, power = ax.growth(gone)
    if isinstance(body, Pieces):
        total: Any = Value(dims, Number(0.0))
        for part, part_dims in body.parts:
            part_gone = [a for a in ax.flat(part_dims) if a not in ax.flat(dims)]
            mean = _mean(context, part, dims, part_gone)
            if isinstance(mean, Number) and mean.number == 0:
                continue
            total = elementwise(context, algebra.equation("add"), [total, Value(dims, mean)])
        return total.body
    if isinstance(body, Linear):
        # The mean of a Gaussian is zero, whatever it is multiplied with.
        left = tuple(t for t in body.terms if not t[0].process.gaussian or t[0].process.value)
        if not left:
            return Number(0.0)
        body = Linear(left)
    if _is_centred(body):
        return _sum_of_products(context, body, gone)
    context.check_heads(body, gone, mean=True)
    powers = {t.coefficient.power for t in algebra.as_terms(body)}
    if len(powers) > 1:
        raise Refusal("activations of different powers of the width are averaged together")
    own = powers.pop()
    body = algebra.scaled(body, Coefficient(1.0, -own))
    if is_joint(context.program, algebra.as_terms(body), mean=True):
        body = Linear(((process_of(context, body), Coefficient()),))
    summands, inputs, axes, *_ = summands_of(context.program, body)
    order = code(dims, axes)
    sizes = tuple(a.size[0] for a in axes)
    present = tuple(any(a.kind == "sample" for a in dim) for dim in dims)
    op = Mean(summands, sizes, order, present, number)
    index = context.program.add(op, inputs, Note(axes=ax.sizes_text(axes)))
    return NumberArray(index, power + own)


def _is_centred(body: Any) -> bool:
    """Whether it is one product of which a factor is a Gaussian of mean zero that the others do not depend on."""
    if not isinstance(body, Terms) or len(body.terms) != 1:
        return False
    free = [(r, tree) for r, tree in body.terms[0].factors if r.process.value is None]
    bases = [bases_of(ref) for ref, _ in free]
    return len(free) > 1 and any(
        ref.process.gaussian
        and algebra.is_linear(tree)
        and not any(overlap(own, b) for k, b in enumerate(bases) if k != n)
        for n, ((ref, tree), own) in enumerate(zip(free, bases))
    )


def _sum_of_products(context: Context, body: Terms, gone: list[Axis]) -> Linear:
    """A sum over infinitely many units of mean zero: Gaussian, of the order of the root of their number.

    So is the output of a branch and a trunk; divided by the number of units, as in the mean of a norm, it vanishes.
    """
    number, power = ax.growth(gone)
    (term,) = body.terms
    body = Terms((term._replace(coefficient=term.coefficient._replace(power=0.0)),))
    ref = process_of(context, body)
    context.check_heads(Linear(((ref, Coefficient()),)), gone, mean=True)
    op = Dense(number, 0.0, (), None, (), len(ref.axes), NORMAL)
    note = Note("sum over units", axes=ax.sizes_text(ref.axes))
    index = context.program.add(op, (ref.process.index,), note)
    units = tuple(a for a in ref.units if a not in gone)
    process = context.program.process(
        index, ref.axes, units, gaussian=True, bases=bases_of(ref) | {(index, ())}
    )
    context.sums.add(index)
    # n terms of mean zero sum to n^(1/2) times a Gaussian with the second moments of one of them.
    scale = Coefficient(1.0, power / 2 + term.coefficient.power)
    return Linear(((Ref(process, (), ref.axes, units), scale),))


def _reduce_other(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    values = [context.limit(v) for v in values]
    if not is_random(values[0].body):
        over = one.params["axes"]
        kept = tuple(dim for k, dim in enumerate(values[0].dims) if k not in over)
        if any(a.kind == "sample" for k in over for a in values[0].dims[k]):
            raise Refusal("a reduction over the samples of a batch")
        if isinstance(values[0].body, Number):
            return Value(kept, values[0].body)
        body = values[0].body
        params = frozen(one.params)
        codes = (shape_code(values[0].dims),)
        op = Numbers(one.primitive.name, params, codes, shape_code(kept))
        return Value(kept, body._replace(index=numbers_step(context, op, [body.index])))
    context.check_scores(values[0].body)
    name, over = one.primitive.name, one.params["axes"]
    reduced = ax.extent(a for k in over for a in values[0].dims[k])[0]
    left = [a for k, dim in enumerate(values[0].dims) if k not in over for a in dim]
    gone = [a for k in over for a in values[0].dims[k]]
    if any(a.infinite for a in gone):
        raise Refusal(
            f"{name} over units, whose number grows with the width (a softmax over units): only sums and means over "
            "units have a limit here"
        )
    if not any(a.infinite for a in left):
        raise Refusal(
            f"{name} over {reduced} numbers that one network draws, and no wide layer averages (a softmax that weighs "
            "experts, neighbours or outputs): they stay random at infinite width, and so does the kernel of one "
            'network. otherwise="sample" gives its mean over networks; a softmax of the outputs belongs to the loss'
        )
    value = values[0]
    for axis in [a for a in gone if a.kind == "unit"]:
        value = separated(context, value, axis)
    kept = tuple(dim for k, dim in enumerate(value.dims) if k not in over)
    refs = [process_of(context, value.body)]
    return several.primitive(context, name, frozen(one.params), [value], refs, kept)


# --- evaluated -----------------------------------------------------------------------------------


def mean_sides(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides:
    """Means over units in both batches."""
    terms, sizes, order, present, number = step.op
    laws = [o if isinstance(o, Law) else None for o in operands]
    out = []
    for side in (1, 2):
        seed = dict(setting.plan.context).get("attention_seed", 0)
        value = moments.mean_law(terms, sizes, laws, sides_of(operands, side - 1), side, seed)
        # The sum is number times width^power times the mean; the power is kept beside the array.
        value = jnp.broadcast_to(number * value, (value.shape[0], *sizes))
        if any(present):
            value = jnp.broadcast_to(value, (setting.samples[side - 1], *sizes))
        out.append(from_axes(value, order))
    return Sides(*out)


def words(op: Mean, note: Note) -> tuple[str, str]:
    """For a reader."""
    return " + ".join(described(term) for term in op.terms), ""


KIND = Kind(
    "mean over units",
    mean_sides,
    lambda op, own: Need(False, 1),
    sizes=lambda op: op.sizes,
    means=lambda step, asked: step.inputs,
    words=words,
    is_process=False,
    joint=True,
)


READS = {
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_other,
    "reduce_min": _reduce_other,
    "reduce_and": _reduce_other,
    "reduce_or": _reduce_other,
}
