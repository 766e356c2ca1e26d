"""A fixed number of units told apart: independent copies of one law, as positions.

Of the copies i, j::

    K'(i, j) = K for i = j, else E f E f'
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array
from ntk.trace import entries
from ntk.trace.axes import Axis, substitute
from ntk.trace.context import Context
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Pieces,
    Ref,
    Refusal,
    Value,
    bases_of,
    is_random,
    renamed_body,
)
from ntk.trace.laws import Law, Setting, fitted
from ntk.trace.ops.combine import sealed
from ntk.trace.ops.function import process_of
from ntk.trace.steps import Kind, Note, Step
from ntk.types import two_of


class Copies(NamedTuple):
    """Units as positions.

    Attributes:
        sizes: of all axes of positions; that of the units comes last.
    """

    sizes: tuple[int, ...]


def separated(context: Context, value: Value, axis: Axis) -> Value:
    """An axis of a fixed number of units as positions: units are told apart, and are independent copies of one law."""
    new = Axis("position", axis.size)
    dims = substitute(value.dims, {axis: (new,)})
    if isinstance(value.body, Pieces):
        raise Refusal("concatenated layers meet what tells a fixed number of units apart")
    if not is_random(value.body):
        return Value(dims, renamed_body(value.body, {axis: (new,)}))
    if not isinstance(value.body, Linear):
        return Value(
            dims,
            Linear(
                ((_copies(context, process_of(context, value.body), axis, new), Coefficient()),)
            ),
        )
    terms = []
    for ref, c in value.body.terms:
        if axis in ref.units:
            ((whole, number),) = sealed(context.program, Linear(((ref, Coefficient()),))).terms
            ref, c = _copies(context, whole, axis, new), c.times(number)
        terms.append((ref, c))
    return Value(dims, Linear(tuple(terms)))


def _copies(context: Context, ref: Ref, axis: Axis, new: Axis) -> Ref:
    if axis not in ref.units:
        return ref
    units = tuple(a for a in ref.units if a is not axis)
    place, size = ref.units.index(axis), axis.size[0]
    key = ("copies", ref.process.index, ref.part, place)
    if key not in context.sources:
        sizes = (*(a.size[0] for a in ref.axes), size)
        note = Note("independent units", axes=" x ".join(map(str, sizes)))
        index = context.program.add(Copies(sizes), (ref.process.index,), note)
        own = ref.process
        context.sources[key] = context.program.process(
            index,
            (*ref.axes, new),
            units,
            gaussian=own.gaussian,
            bases=bases_of(ref),
            averaged=own.averaged,
        )
    context.copied[context.sources[key].index] = (ref.process.index, ref.part, place)
    return Ref(context.sources[key], (), (*ref.axes, new), units)


def copies_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """A fixed number of units as positions, in the last place: copies of one law that are independent."""
    size = step.op.sizes[-1]
    law = operands[0]
    kernel = fitted(law.kernel, need)
    eye = jnp.eye(size, dtype=kernel.var1.dtype)
    pairs = need.pairs

    def one(x: Array) -> Array:
        return jnp.broadcast_to(x[..., None], (*x.shape, size))

    def two(x: Array, apart: Array | float) -> Array:
        # E f(u_i) f(v_j) of different copies i, j is the product of means; their derivatives have no weights in common.
        same = eye.reshape((1,) * x.ndim + eye.shape)
        return x[..., None, None] * same + jnp.asarray(apart)[..., None, None] * (1 - same)

    cross = jnp.zeros((1,) * kernel.correlation.ndim, kernel.var1.dtype)
    inside = [jnp.zeros((1,) * (2 * kernel.var1.ndim - 1), kernel.var1.dtype)] * 2
    if law.means is not None:
        a, b = kernels.views(law.means[0], law.means[1], not pairs)
        cross = a * b
        inside = [a * b for a, b in (kernels.views_within(m) for m in law.means)]
    within: list[Array | None] = [None, None]
    if need.variance == 2:
        for k, (cov, var) in enumerate(
            ((kernel.within1, kernel.var1), (kernel.within2, kernel.var2))
        ):
            within[k] = two(var if cov is None else cov, inside[k])
    ntk = kernel.ntk
    if ntk is not None and ntk.ndim:
        ntk = two(ntk, jnp.zeros((1,) * ntk.ndim)) if pairs else one(ntk)
    nngp = two(kernel.nngp, cross) if pairs else one(kernel.nngp)
    out = kernel.replace(
        var1=one(kernel.var1),
        var2=one(kernel.var2),
        within1=within[0],
        within2=within[1],
        diagonal_spatial=not pairs,
        is_input=False,
        coincident=None,
    )
    found = None if law.means is None else two_of(one(m) for m in law.means)
    return Law(out.replace(nngp=nngp, ntk=ntk), found, entries.copied(law.entries, size))


KIND = Kind(
    "units apart",
    copies_law,
    sizes=lambda op: op.sizes,
    means=lambda step, asked: step.inputs,
    is_linear=lambda op: True,
)
