"""Products of two activations summed over infinitely many units, as between queries and keys."""

from __future__ import annotations

from typing import Any

from ntk.trace import algebra
from ntk.trace import axes as ax
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context
from ntk.trace.coordinates import Coefficient, Linear, Ref, Refusal, Value, bases_of, overlap
from ntk.trace.processes import process_of
from ntk.trace.steps import Note, code


def inner(
    context: Context, first: Value, second: Value, dims: Dims, gone: tuple[Axis, ...]
) -> Value:
    """sum over units of first * second: their number times the expectation of the product, if it is not zero.

    Where it is, as for queries and keys with weights of their own, what is left is Gaussian and of the order of the
    square root of the number of units: it vanishes under a factor 1/d, and stays random under 1/sqrt(d).

    Source: Yang (2019), Tensor Programs I, appendix A; Hron et al. (2020), section 3.
    """
    if any(a.kind == "position" for a in gone):
        raise Refusal("a product of two activations summed over units and positions at once")
    (one, power1), (two, power2) = _order_one(first.body), _order_one(second.body)
    one, two = context.program.sealed(one), context.program.sealed(two)
    if not (_centred(one) and _centred(two)) or _shared(one, two):
        raise Refusal(
            "a product of two activations that are correlated or have a mean, summed over units: similarities of "
            "activations have a rule only if each side has weights of its own (queries and keys)"
        )
    left, right = process_of(context, one), process_of(context, two)
    axes = ax.positions(dims)
    units = ax.units(dims)
    number, power = ax.growth(gone)
    note = Note("scores", axes=" x ".join(str(a.size[0]) for a in axes))
    where = tuple(tuple(axes.index(a) for a in ref.axes) for ref in (left, right))
    static = (number, where, tuple(a.size[0] for a in axes))
    inputs = (left.process.index, right.process.index)
    index = context.program.add("scores", static, inputs, note)
    process = context.program.process(index, axes, units, gaussian=True)
    context.fluctuations.add(index)
    code(dims, axes)
    return Value(
        dims,
        Linear(((Ref(process, (), axes, units), Coefficient(1.0, power / 2 + power1 + power2)),)),
    )


def _order_one(body: Any) -> tuple[Any, float]:
    """A body without the power of the width that it carries, as of queries divided by sqrt(d), and that power."""
    powers = {c.power for _, c in body.terms} if isinstance(body, Linear) else {0.0}
    power = powers.pop() if len(powers) == 1 else 0.0
    return (algebra.scaled(body, Coefficient(1.0, -power)) if power else body), power


def _centred(body: object) -> bool:
    return isinstance(body, Linear) and all(
        ref.process.gaussian and not ref.process.value for ref, _ in body.terms
    )


def _shared(one: Linear, two: Linear) -> bool:
    return any(overlap(bases_of(a), bases_of(b)) for a, _ in one.terms for b, _ in two.terms)
