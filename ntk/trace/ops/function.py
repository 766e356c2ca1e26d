"""Functions of processes: activations as processes of their own, whose moments are E[f(u) f(v)].

    K' = E[f(u) f(v)],    T' = T E[f'(u) f'(v)]

and the same of sums of products (`ntk.trace.moments`). One file: what a body of functions is, independent of one
another or not, is decided where it is read, by the same terms that the step holds and evaluates.

Source: Jacot et al. (2018), theorem 1; Yang (2020), Tensor Programs II.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from ntk.activations.closed_forms import Dual
from ntk.infinite import channels
from ntk.infinite.inputs import Need
from ntk.trace import algebra, moments, true_moments
from ntk.trace import axes as ax
from ntk.trace.activations import Function, described, expectation, known, name_of
from ntk.trace.axes import Axis, positions
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
    Tree,
    bases_of,
    overlap,
    refs_of,
)
from ntk.trace.laws import Law, Setting, fitted, sides_of
from ntk.trace.ops.combine import sealed
from ntk.trace.ops.mix import side_by_side
from ntk.trace.ops.several import by_draws
from ntk.trace.steps import CORRELATED, FEW, GATES, Kind, Note, Program, Step, code, place_of
from ntk.types import two_of


class Factor(NamedTuple):
    """A function of one process.

    Attributes:
        place: of the process among the inputs of the step.
        where: places of its axes of positions among those of the result.
        tree: the function.
    """

    place: int
    where: tuple[int, ...]
    tree: Tree


class Summand(NamedTuple):
    """Numbers times a product of functions, each of one process.

    Attributes:
        number: factor.
        arrays: numbers that depend on sample and position: (place among the inputs, dimensions in terms of axes).
        factors: the functions.
        alone: a function of parameters alone that are constant at initialisation, or None.
    """

    number: float
    arrays: tuple
    factors: tuple[Factor, ...]
    alone: Tree | None


class Functions(NamedTuple):
    """A sum of products of functions.

    Attributes:
        terms: what is added.
        sizes: of its axes of positions.
    """

    terms: tuple[Summand, ...]
    sizes: tuple[int, ...]


# --- read ----------------------------------------------------------------------------------------


def process_of(context: Context, body: Any) -> Ref:
    """The body as one process: the moments of a function, or of a sum."""
    with context.origin(body):
        return _process_of(context, body)


def _process_of(context: Context, body: Any) -> Ref:
    if isinstance(body, Pieces):
        return side_by_side(context, body, [process_of(context, part) for part, _ in body.parts])
    if any(ref.process.index in context.fluctuations for ref in refs_of(body)):
        context.check_scores(body)
    body = sealed(context.program, body, whole=True)
    if isinstance(body, Linear) and len(body.terms) == 1:
        ref, c = body.terms[0]
        if c == Coefficient() and not ref.maps and ref.process.value is None:
            return ref
    body = _one_function(body)
    if is_joint(context.program, algebra.as_terms(body)):
        return _by_draws(context, body)
    summands, inputs, axes, units, parts = summands_of(context.program, body)
    key = ("function", summands, tuple(inputs), axes, units)
    # The same function of the same processes is one process: its products with itself are squares, not independent.
    if key in context.sources:
        return context.sources[key]
    _check_heads(context, algebra.as_terms(body))
    _check_laws(context, algebra.as_terms(body))
    sizes = tuple(a.size[0] for a in axes)
    note = Note(axes=ax.sizes_text(axes))
    index = context.program.add(Functions(summands, sizes), inputs, note)
    context.program.parts[index] = parts
    terms = algebra.as_terms(body)
    bases = [bases_of(ref) for t in terms for ref, _ in t.factors]
    linear = is_linear(terms)
    gaussian = all(r.process.gaussian for t in terms for r, _ in t.factors)
    steps = context.program.steps
    valued = [r.process.index for t in terms for r, _ in t.factors if r.process.value]
    valued += [i for t in terms for _, tree in t.factors for i in algebra.parameters(tree)]
    process = context.program.process(
        index,
        axes,
        units,
        gaussian=linear and gaussian,
        bases=frozenset().union(*bases) if bases else frozenset(),
        averaged=linear and any(steps[i].op.rate for i in valued),
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
    tree = algebra.times_number(tree, c.number)
    return Terms((Term(c._replace(number=1.0), ((ref, tree),)),))


def is_linear(terms: tuple) -> bool:
    """Whether terms are a sum of processes, each times parameters and numbers."""
    for t in terms:
        free = [tree for r, tree in t.factors if r.process.value is None]
        zeros = bool(t.factors) and all(r.process.value == 0 for r, _ in t.factors)
        if not (zeros or (len(free) == 1 and algebra.is_linear(free[0]))):
            return False
    return True


def is_joint(program: Program, terms: tuple, mean: bool = False) -> bool:
    """Whether the law of a body is that of several activations at once, or of one that is not Gaussian.

    Of a nonlinearity of what is not Gaussian, or whose tangent kernel differs between units; of products of what is
    not independent; of functions of one process and of another that it is made of. With `mean` its mean alone is asked
    for, which squares have by second moments.
    """
    if program.joint:
        return False
    free = [[(r, tree) for r, tree in t.factors if r.process.value is None] for t in terms]
    for ref, tree in (factor for factors in free for factor in factors):
        if ref.maps:
            return True
        own = not ref.process.gaussian or (ref.process.averaged and not mean)
        if own and not _is_polynomial(tree, 2 if mean else 1):
            return True
    refs = {ref for factors in free for ref, _ in factors}
    return any(
        one is not two and one != two and overlap(bases_of(one), bases_of(two))
        for one, two in itertools.combinations(refs, 2)
    )


def _is_polynomial(tree: Tree, degree: int) -> bool:
    if algebra.is_linear(tree):
        return True
    try:
        polynomial = known(Function(tree)).polynomial
    except ValueError:  # not finite everywhere, as the root of a variance
        return False
    return polynomial is not None and len(polynomial) <= degree + 1


def _by_draws(context: Context, body: Any) -> Ref:
    """A sum of products of functions whose processes depend on one another, as a process."""
    whole: dict[Ref, Ref] = {}
    for term in algebra.as_terms(body):
        for ref, _ in term.factors:
            if ref.maps:
                whole[ref] = sealed(context.program, Linear(((ref, Coefficient()),))).terms[0][0]
    body = Terms(
        tuple(
            t._replace(factors=tuple((whole.get(r, r), tree) for r, tree in t.factors))
            for t in algebra.as_terms(body)
        )
    )
    summands, inputs, axes, _, parts = summands_of(context.program, body, independent=False)
    op = Functions(summands, tuple(a.size[0] for a in axes))
    names = dict.fromkeys(name_of(f.tree) for s in summands for f in s.factors)
    text = f"{', '.join(names)} of activations that depend on one another"
    return by_draws(
        context,
        lambda writer: writer.operation(op, writer.sources(tuple(inputs), parts)),
        refs_of(body),
        axes,
        text,
    )


def _check_laws(context: Context, terms: tuple) -> None:
    """Refuses nonlinearities of what has no Gaussian law, in its own words."""
    for term in terms:
        for ref, tree in term.factors:
            if ref.process.gaussian or ref.process.value is not None or algebra.is_linear(tree):
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
            if not algebra.is_linear(tree):
                context.check_heads(Linear(((ref, term.coefficient),)), mean=True)


def summands_of(
    program: Program, body: Any, independent: bool = True
) -> tuple[tuple[Summand, ...], list, tuple[Axis, ...], tuple[Axis, ...], dict[int, tuple]]:
    """The terms of a body as a step holds them, and the step's inputs, axes, units and parts of units.

    Args:
        program: of the trace.
        body: of activations.
        independent: whether processes that depend on one another are refused.

    Returns:
        (terms, inputs, axes of positions, axes of units, {place of a process: part of its units}).
    """
    terms = algebra.as_terms(sealed(program, body)) if isinstance(body, Linear) else body.terms
    found: dict[Axis, None] = {}
    units: tuple[Axis, ...] = ()
    inputs: list = []
    places: dict = {}  # different units of one layer are different processes of one law
    out = []
    for t in terms:
        for ref, _ in t.factors:
            found |= dict.fromkeys(ref.axes)
            units = max(units, ref.units, key=len)
        for _, dims in t.coefficient.arrays:
            found |= dict.fromkeys(positions(dims))
    axes = tuple(found)
    wide = any(a.infinite for t in terms for ref, _ in t.factors for a in ref.units)
    for t in terms:
        if t.coefficient.power:
            raise Refusal(
                f"a layer reads an activation of size width^{t.coefficient.power:g}: initial standard deviations or "
                "multipliers do not keep it of order one, or it is a readout's weights (a derivative by the inputs). "
                'Take means over finite networks: otherwise="sample"'
            )
        factors: list[tuple[Ref, Tree]] = []
        fixed: list[tuple[Ref, Tree]] = []
        for ref, tree in t.factors:
            (fixed if ref.process.value is not None else factors).append((ref, tree))
        if independent:
            _check_independent(program, [ref for ref, _ in factors])
        product = None
        for ref, tree in fixed:
            if ref.axes and ref.process.value:
                raise Refusal(
                    "a parameter that differs between positions and is not zero at initialisation"
                )
            leaf = algebra.at_parameter(tree, ref)
            product = leaf if product is None else ("mul", (), product, leaf)
        zero = any(ref.process.value == 0 for ref, _ in fixed)
        coded = []
        for ref, tree in factors:
            if wide and not any(a.infinite for a in ref.units):
                raise Refusal(FEW)
            if ref.maps or ref.units != units:
                raise Refusal(CORRELATED)
            if product is not None and not (zero and len(factors) > 1):
                tree, product = ("mul", (), product, tree), None
            where = tuple(axes.index(a) for a in ref.axes)
            key = (ref.process.index, ref.part)
            if key not in places:
                places[key] = len(inputs)
                inputs.append(ref.process.index)
            coded.append(Factor(places[key], where, _local(tree, inputs)))
        arrays = tuple((place_of(inputs, i), code(dims, axes)) for i, dims in t.coefficient.arrays)
        alone = None if product is None else _local(product, inputs)
        out.append(Summand(t.coefficient.number, arrays, tuple(coded), alone))
    refs = {ref for t in terms for ref, _ in t.factors if ref.process.value is None}
    if independent and not program.joint:
        _check_independent(program, list(refs))
    return tuple(out), inputs, axes, units, {place: part for (_, part), place in places.items()}


def _check_independent(program: Program, refs: list[Ref]) -> None:
    for i, one in enumerate(refs):
        for two in refs[:i]:
            if _same_matrix(program, one, two):
                raise Refusal(GATES)
            if overlap(bases_of(one), bases_of(two)):
                raise Refusal(CORRELATED)


def _same_matrix(program: Program, one: Ref, two: Ref) -> bool:
    """Whether two layers of one matrix are behind two processes."""
    groups = program.groups
    return any(
        i != j and i in groups and groups[i] == groups.get(j)
        for i, _ in one.process.bases
        for j, _ in two.process.bases
    )


def _local(tree: Any, inputs: list) -> Any:
    """A tree with parameters numbered by their place among the inputs of the step."""
    if tree[0] == "parameter":
        return ("parameter", place_of(inputs, tree[1]), tree[2])
    if tree[0] in ("z", "number"):
        return tree
    return (*tree[:2], *(_local(child, inputs) for child in tree[2:]))


# --- evaluated -----------------------------------------------------------------------------------


def function_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a sum of products of functions of processes."""
    terms, sizes = step.op
    laws = [o if isinstance(o, Law) else None for o in operands]
    fast = _single(step, laws, need, means, setting)
    if fast is not None:
        return fast
    diagonal = not need.pairs
    seed = dict(setting.plan.context).get("attention_seed", 0)
    return moments.function_law(
        terms,
        sizes,
        laws,
        (sides_of(operands, 0), sides_of(operands, 1)),
        diagonal=diagonal,
        variance=need.variance,
        ntk=setting.plan.ntk,
        means=means,
        seed=seed,
    )


def single(step: Step) -> Dual | None:
    """Dual of a step that is one function of one process at its own positions; None for other steps."""
    terms, sizes = step.op
    if len(terms) != 1:
        return None
    number, given, factors, alone = terms[0]
    if given or alone is not None or len(factors) != 1 or number != 1:
        return None
    _, where, tree = factors[0]
    if tuple(where) != tuple(range(len(sizes))):
        return None
    return known(Function(tree)).dual


def _single(step: Step, laws: list, need: Need, means: bool, setting: Setting) -> Law | None:
    """One function of one Gaussian: the rule that all front ends share."""
    dual = single(step)
    if dual is None or len(laws) != 1 or not laws[0].kernel.is_gaussian:
        return None
    kernel = fitted(laws[0].kernel, need)
    made = laws[0].entries
    if made is not None and not made.normal:
        f = Function(step.op.terms[0].factors[0].tree)
        seed = dict(setting.plan.context).get("attention_seed", 0)
        return Law(*true_moments.of_function(f, dual, kernel, made, means, seed))
    # Of a Gaussian of mean zero all follows from its variance.
    mean = two_of(map(expectation(dual), (kernel.var1, kernel.var2))) if means else None
    return Law(channels.elementwise(kernel, dual), mean)


def needs(op: Functions, own: Need) -> Need:
    """The variance too."""
    return Need(own.pairs, max(own.variance, 1))


def words(op: Any, note: Note) -> tuple[str, str]:
    """For a reader."""
    terms = [text for text in map(described, op.terms) if text != "0"]
    return " + ".join(terms) or "0", "E[f(u) f(v)]"


def _is_straight(term: Summand) -> bool:
    factors = term.factors
    return not factors or (len(factors) == 1 and algebra.is_linear(factors[0].tree))


KIND = Kind(
    "function",
    function_law,
    needs,
    sizes=lambda op: op.sizes,
    means=lambda step, asked: step.inputs,
    words=words,
    is_linear=lambda op: all(map(_is_straight, op.terms)),
    joint=True,
)
