"""Layers side by side along their units, and parts of a layer's units.

With s_k the share of layer k in all units::

    K = sum_k s_k K_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ntk.infinite.inputs import Need
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context
from ntk.trace.coordinates import Linear, Pieces, Ref, Terms, Value, Weight
from ntk.trace.laws import Law, Setting
from ntk.trace.ops.combine import Piece, scaled, sealed, sum_laws
from ntk.trace.ops.vector import as_random
from ntk.trace.steps import Kind, Note, Step


class Mix(NamedTuple):
    """Several layers side by side.

    Attributes:
        pieces: of each, the places of its axes of positions, and its share of the units.
        sizes: of all axes of positions.
    """

    pieces: tuple[tuple[tuple[int, ...], float], ...]
    sizes: tuple[int, ...]


def side_by_side(context: Context, body: Pieces, refs: list[Ref]) -> Ref:
    """Layers side by side: the mean of their moments, weighted by their shares of the units."""
    # A layer that is constant along an axis of another lacks it.
    longest = max((r.axes for r in refs), key=len)
    axes = tuple(dict.fromkeys((*longest, *(a for r in refs for a in r.axes))))
    kept = [(r, s) for r, s in zip(refs, body.shares) if s]
    pieces = tuple((tuple(axes.index(a) for a in r.axes), s) for r, s in kept)
    sizes = tuple(a.size[0] for a in axes)
    inputs = [r.process.index for r, _ in kept]
    index = context.program.add(Mix(pieces, sizes), inputs, Note("side by side"))
    # Units of the whole are numbered otherwise than those of its pieces.
    bases = frozenset((i, (*p, (None, 0, 0))) for r in refs for i, p in r.process.bases)
    process = context.program.process(index, axes, (body.units,), gaussian=False, bases=bases)
    return Ref(process, (), axes, (body.units,))


def piece_axis(pieces: Pieces, dims: Dims) -> Axis:
    """Axis of units of one of several layers side by side."""
    known = set(ax.flat(dims))
    return next(a for a in ax.flat(dims) if a.kind == "unit" and a in known and a.infinite)


def take_units(context: Context, value: Value, axis: Axis, start: int, new: Axis) -> Value:
    """Units `start` onwards of an array, along a new axis."""
    if isinstance(value.body, Weight):
        value = as_random(context, value)
    context.program.cut = True
    stop = start + new.size[0]

    def cut(ref: co.Ref) -> co.Ref:
        if axis not in ref.units:
            return ref
        part = (*ref.part, (ref.units.index(axis), start, stop))
        units = tuple(new if a is axis else a for a in ref.units)
        return ref._replace(units=units, part=part)

    body = sealed(context.program, value.body)
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


def mix_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Units of several layers side by side: moments averaged by their shares."""
    pieces, sizes = step.op
    laws = [
        # Units of all layers average to sum_k share_k K_k: the moments of independent processes times share_k^(1/2).
        scaled(law, Piece(0, (), where, share**0.5, ()), sizes, operands, need)
        for law, (where, share) in zip(operands, pieces)
    ]
    out = sum_laws([Law(law.kernel) for law in laws], need, setting)
    new = None
    if means:
        new = tuple(
            sum(share * law.means[k] for law, (_, share) in zip(operands, pieces) if law.means)
            for k in (0, 1)
        )
    return Law(out.kernel.replace(is_gaussian=False), new)


def means_read(step: Step, asked: bool) -> Sequence:
    """Those of all layers, if its own is asked for."""
    return step.inputs if asked else ()


KIND = Kind("side by side", mix_law, means=means_read, is_linear=lambda op: True)
