"""Activations as processes, whose moments are a step of the program."""

from __future__ import annotations

from typing import Any

from ntk.trace import algebra, trees
from ntk.trace.axes import Axis
from ntk.trace.context import Context
from ntk.trace.coordinates import Coefficient, Linear, Pieces, Ref
from ntk.trace.steps import Note, terms_static


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
    note = Note(axes=sizes_text(axes))
    index = context.program.add("function", (static, sizes), inputs, note)
    terms = algebra.as_terms(body)
    bases = [ref.process.bases for t in terms for ref, _ in t.factors]
    linear = all(tree == trees.Z for t in terms for r, tree in t.factors if r.process.value is None)
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


def sizes_text(axes: tuple[Axis, ...]) -> str:
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
