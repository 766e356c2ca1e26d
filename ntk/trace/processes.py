"""Activations as processes, whose moments are a step of the program."""

from __future__ import annotations

from typing import Any

from ntk.trace import algebra, trees
from ntk.trace.activations import Function, known
from ntk.trace.axes import Axis, substitute
from ntk.trace.context import Context
from ntk.trace.coordinates import (
    UNEVEN,
    Coefficient,
    Linear,
    Pieces,
    Ref,
    Refusal,
    Term,
    Terms,
    Value,
    bases_of,
    is_random,
    refs_of,
    renamed_body,
)
from ntk.trace.steps import Note, terms_static


def process_of(context: Context, body: Any) -> Ref:
    """The body as one process: the moments of a function, or of a sum."""
    if isinstance(body, Pieces):
        return _pieces(context, body)
    if any(ref.process.index in context.fluctuations for ref in refs_of(body)):
        context.check_scores(body)
    body = context.program.sealed(body, whole=True)
    if isinstance(body, Linear) and len(body.terms) == 1:
        ref, c = body.terms[0]
        if c == Coefficient() and not ref.maps and ref.process.value is None:
            return ref
    body = _one_function(body)
    static, inputs, axes, units = terms_static(context.program, body)
    key = ("function", static, tuple(inputs), axes, units)
    if key in context.sources:
        return context.sources[key]
    _check_tangents(algebra.as_terms(body))
    _check_heads(context, algebra.as_terms(body))
    _check_laws(context, algebra.as_terms(body))
    sizes = tuple(a.size[0] for a in axes)
    note = Note(axes=sizes_text(axes))
    index = context.program.add("function", (static, sizes), inputs, note)
    terms = algebra.as_terms(body)
    bases = [bases_of(ref) for t in terms for ref, _ in t.factors]
    linear = is_linear(terms)
    known = all(r.process.gaussian for t in terms for r, _ in t.factors)
    steps = context.program.steps
    valued = [r.process.index for t in terms for r, _ in t.factors if r.process.value]
    valued += [i for t in terms for _, tree in t.factors for i in trees.parameters(tree)]
    process = context.program.process(
        index,
        axes,
        units,
        gaussian=linear and known,
        bases=frozenset().union(*bases) if bases else frozenset(),
        averaged=linear and any(steps[i].static[1] for i in valued),
    )
    context.sources[key] = Ref(process, (), axes, units)
    return context.sources[key]


def _one_function(body: Any) -> Any:
    """A number times one function as that function."""
    terms = algebra.as_terms(body)
    if len(terms) != 1 or len(terms[0].factors) != 1 or terms[0].coefficient.number == 1:
        return body
    c, ((ref, tree),) = terms[0]
    if ref.process.value is not None:
        return body
    tree = trees.times_number(tree, c.number)
    return Terms((Term(c._replace(number=1.0), ((ref, tree),)),))


def is_linear(terms: tuple) -> bool:
    """Whether terms are a sum of processes, each times parameters and numbers."""
    for t in terms:
        free = [tree for r, tree in t.factors if r.process.value is None]
        zeros = bool(t.factors) and all(r.process.value == 0 for r, _ in t.factors)
        if not (zeros or (len(free) == 1 and trees.is_linear(free[0]))):
            return False
    return True


def _check_tangents(terms: tuple) -> None:
    for term in terms:
        for ref, tree in term.factors:
            if ref.process.averaged and not trees.is_linear(tree):
                raise Refusal(
                    "a nonlinearity acts on a sum of activations one of which was multiplied by a trained parameter "
                    "(the gain of a norm, a layer scale): its tangent kernel differs between units. Insert a layer of "
                    "weights, leave out the gain (use_scale=False), or freeze it: learning_rates={'*/scale': 0}"
                )


def _check_laws(context: Context, terms: tuple) -> None:
    """Refuses nonlinearities of what has no Gaussian law, in its own words."""
    for term in terms:
        for ref, tree in term.factors:
            if ref.process.gaussian or ref.process.value is not None or trees.is_linear(tree):
                continue
            polynomial = known(Function(tree)).polynomial
            if polynomial is not None and len(polynomial) <= 2:
                continue
            if ref.process.uneven:
                raise Refusal(UNEVEN)
            for index, _ in ref.process.bases:
                if index in context.unlike:
                    raise Refusal(context.unlike[index])


def _check_heads(context: Context, terms: tuple) -> None:
    for term in terms:
        for ref, tree in term.factors:
            if not trees.is_linear(tree):
                context.check_heads(Linear(((ref, term.coefficient),)), mean=True)


def sizes_text(axes: tuple[Axis, ...]) -> str:
    """Sizes of axes for a reader."""
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
    # Units of the whole are numbered otherwise than those of its pieces.
    bases = frozenset((i, (*p, (None, 0, 0))) for r in refs for i, p in r.process.bases)
    process = context.program.process(index, axes, (body.units,), gaussian=False, bases=bases)
    return Ref(process, (), axes, (body.units,))


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
            ((whole, number),) = context.program.sealed(Linear(((ref, Coefficient()),))).terms
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
        index = context.program.add("copies", sizes, (ref.process.index,), note)
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
