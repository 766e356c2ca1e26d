"""Sums of processes, each after a linear map of its positions and times numbers.

    z = sum_k M_k z_k,    K = sum_k M_k K_k M_k^T

for independent z_k of mean zero, M_k a sum of maps of positions times numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk.infinite import channels, pixels
from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.trace import algebra, entries
from ntk.trace import coordinates as co
from ntk.trace.coordinates import Coefficient, Linear, Ref, Refusal, bases_of, overlap
from ntk.trace.laws import Law, Setting, broadcast, fitted, sides_of, spread
from ntk.trace.ops.numbers import apply_map, to_axes
from ntk.trace.steps import CORRELATED, FEW, Kind, Note, Program, Step, code, place_of, with_places
from ntk.types import two_of


class Piece(NamedTuple):
    """One process of a sum.

    Attributes:
        place: of the process among the inputs of the step.
        maps: linear maps of its positions, in turn, see `ntk.trace.ops.numbers.apply_map`.
        where: places of its axes of positions, after the maps, among those of the sum.
        number: factor.
        arrays: numbers that it is multiplied with: (place among the inputs, dimensions in terms of axes).
    """

    place: int
    maps: tuple
    where: tuple[int, ...]
    number: float
    arrays: tuple


class Combine(NamedTuple):
    """A sum of processes.

    Attributes:
        count: number of its processes, which come first among the inputs.
        pieces: what is added.
        sizes: of its axes of positions.
    """

    count: int  # type: ignore[assignment]  # a field, not the method of a tuple
    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...]


# --- read ----------------------------------------------------------------------------------------


def sealed(program: Program, body: Any, whole: bool = False) -> Any:
    """A sum of processes as a number times one (plus parameters that are constant and not zero at initialisation).

    The number is that of the first term, so that functions of a sum and of its multiples are of one process; with
    `whole` it is 1.
    """
    if not isinstance(body, Linear):
        return body
    random = tuple(t for t in body.terms if not t[0].process.value)
    rest = tuple(t for t in body.terms if t[0].process.value)
    if not random:
        return body
    number = 1.0 if whole else random[0][1].number
    if number != 1:
        # 2 (h + x) and h + x are one process then, whose functions have a joint law.
        random = tuple((r, c._replace(number=_digits(c.number / number))) for r, c in random)
    ref = random[0][0]
    if len(random) > 1 or random[0][1] != Coefficient() or ref.maps:
        if random not in program.seals:
            program.seals[random] = _combined(program, Linear(_shortened(program, random)))
        ref = program.seals[random]
    return Linear(((ref, Coefficient(number)), *rest))


def sealed_as(program: Program, ref: Ref, coefficient: Coefficient) -> Ref | None:
    """The process that was made of a process times a coefficient, if there is one."""
    return program.seals.get(((ref, coefficient),))


def _shortened(program: Program, terms: tuple) -> tuple:
    """Terms with the longest sum among them that has a step already, up to a factor, in its place.

    A residual stream would otherwise be added up from its start in every block.
    """
    left = dict(terms)
    if len(left) < len(terms):
        return terms
    for old in sorted(program.seals, key=len, reverse=True):
        if len(old) < 2 or len(old) >= len(terms) or any(ref not in left for ref, _ in old):
            continue
        factors = {_ratio(left[ref], c) for ref, c in old}
        factor = factors.pop() if len(factors) == 1 else None
        if factor is not None:
            gone = {ref for ref, _ in old}
            rest = tuple(t for t in terms if t[0] not in gone)
            return _shortened(program, ((program.seals[old], Coefficient(factor)), *rest))
    return terms


def _combined(program: Program, body: Linear) -> Ref:
    body = _expanded(program, body)
    axes, units = co.axes_of(body)
    # Different units of one layer are different processes of one law. Arrays follow the processes.
    order: dict[tuple[int, tuple], int] = {}
    for ref, _ in body.terms:
        order.setdefault((ref.process.index, ref.part), len(order))
    pieces, inputs = [], [index for index, _ in order]
    gaussian, averaged = True, False
    for ref, c in body.terms:
        if c.power:
            raise Refusal(
                f"what is of size width^{c.power:g} enters a nonlinearity: an activation that initial standard "
                "deviations or multipliers do not keep of order one (base_width= keeps those of a width), a readout's "
                "weights (a derivative by the inputs), or weights that a function acts on, such as tanh(W), which has "
                'no rule. otherwise="sample" takes means over finite networks'
            )
        if any(a.infinite for a in units) and not any(a.infinite for a in ref.units):
            raise Refusal(FEW)
        if ref.units != units:
            raise Refusal(
                "units of one layer are added in different orders (a transposed or shuffled axis of units)"
            )
        gaussian &= ref.process.gaussian
        averaged |= ref.process.averaged
        place = order[ref.process.index, ref.part]
        maps = tuple(with_places(item, inputs) for item in ref.maps)
        arrays = tuple((place_of(inputs, i), code(dims, axes)) for i, dims in c.arrays)
        where = tuple(axes.index(a) for a in ref.axes)
        pieces.append(Piece(place, maps, where, c.number, arrays))
    sizes = tuple(a.size[0] for a in axes)
    index = program.add(Combine(len(order), tuple(pieces), sizes), inputs, Note("sum"))
    program.parts[index] = {place: part for (_, part), place in order.items()}
    bases = frozenset().union(*(bases_of(ref) for ref, _ in body.terms))
    process = program.process(index, axes, units, gaussian=gaussian, bases=bases, averaged=averaged)
    program.definitions[index] = body
    return Ref(process, (), axes, units)


def _expanded(program: Program, body: Linear) -> Linear:
    """Sealed processes written out where they share a source with another term."""
    while True:
        if program.joint:
            return body  # covariances of all processes are followed
        for i, (ref, c) in enumerate(body.terms):
            shared = any(
                other.process.index != ref.process.index and overlap(bases_of(other), bases_of(ref))
                for other, _ in body.terms
            )
            if shared and ref.process.index in program.definitions and not ref.maps:
                inner = program.definitions[ref.process.index]
                renames = dict(zip(co.axes_of(inner)[0], ((a,) for a in ref.axes)))
                renames |= dict(zip(co.axes_of(inner)[1], ((a,) for a in ref.units)))
                inner = algebra.scaled(co.renamed_body(inner, renames), c)
                rest = Linear(body.terms[:i] + body.terms[i + 1 :])
                body = algebra.added(rest, inner)
                break
            if shared and not (ref.process.gaussian and ref.process.index in program.definitions):
                others = [
                    o.process
                    for o, _ in body.terms
                    if o.process.index != ref.process.index and overlap(bases_of(o), bases_of(ref))
                ]
                if not any(o.index in program.definitions for o in others):
                    raise Refusal(CORRELATED)
        else:
            return body


def _digits(x: float) -> float:
    """x without what rounding added to it."""
    return float(f"{x:.14g}")


def _ratio(one: Coefficient, two: Coefficient) -> float | None:
    """one / two as a number; None where they differ in more than that."""
    if one[1:] != two[1:]:
        return None
    return _digits(one.number / two.number)


# --- evaluated -----------------------------------------------------------------------------------


def combine_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a sum of processes, each after a linear map of its positions."""
    groups: dict[int, list] = {}
    for piece in step.op.pieces:
        groups.setdefault(piece.place, []).append(piece)
    laws = [
        _mapped(operands[place], group, step.op.sizes, operands, need, setting)
        for place, group in groups.items()
    ]
    if len(laws) == 1:
        return laws[0]
    return sum_laws(laws, need, setting)


def _mapped(
    law: Law, pieces: list, sizes: tuple, operands: list, need: Need, setting: Setting
) -> Law:
    """One process after a sum of linear maps of its positions."""
    if len(pieces) == 1 and not pieces[0].maps:
        return scaled(law, pieces[0], sizes, operands, need)
    if _sums_all(pieces, sizes) and law.kernel.var1.ndim > 1 and law.means is None:
        kernel = pixels.pool_all(broadcast(law.kernel, setting.samples), mean=False)
        number = abs(pieces[0].number)
        whole = tuple(range(2, law.kernel.var1.ndim + 1))
        pooled = [lambda x: pieces[0].number * jnp.sum(x, whole)] * 2
        return Law(
            channels.scale(kernel, number, number), entries=entries.mapped(law.entries, pooled)
        )
    kernel = broadcast(law.kernel, setting.samples)
    made = law.entries

    def total(side: int) -> Callable[[Array], Array]:
        arrays = sides_of(operands, side)

        def run(x: Array) -> Array:
            parts = []
            for _, maps, where, number, given in pieces:
                y = x
                for item in maps:
                    y = apply_map(item, y, arrays, setting.dtype)
                y = spread(y, 2, False, where, len(sizes))
                y = jnp.broadcast_to(y, (*y.shape[:2], *sizes)) * number
                for place, coded in given:
                    y = y * jnp.expand_dims(to_axes(arrays[place], coded, sizes), 1)
                parts.append(y)
            return functools.reduce(jnp.add, parts)

        return run

    out = pixels.linear(kernel, total(0), total(1))
    new = None
    if law.means is not None:
        new = two_of(
            total(k)(jnp.broadcast_to(m, (setting.samples[k], *m.shape[1:]))[:, None])[:, 0]
            for k, m in enumerate(law.means)
        )
    return Law(fitted(out, need), new, entries.mapped(made, [total(0), total(1)]))


def _sums_all(pieces: list, sizes: tuple) -> bool:
    """Whether the map is a number times the sum over all positions."""
    maps, given = pieces[0].maps, pieces[0].arrays
    return (
        not sizes
        and len(pieces) == 1
        and not given
        and len(maps) == 1
        and maps[0][:2] == ("map", "reduce_sum")
    )


def scaled(law: Law, piece: Piece, sizes: tuple, operands: list, need: Need) -> Law:
    """A process times numbers, with its positions in their place among others."""
    _, _, where, number, given = piece
    kernel = fitted(law.kernel, need)
    count = len(sizes)
    if tuple(where) != tuple(range(count)):

        def put(x: Array, lead: int, axes: int) -> Array:
            x = spread(x, lead, axes == 2, where, count)
            full = [s for size in sizes for s in (size,) * axes]
            return jnp.broadcast_to(x, (*x.shape[:lead], *full))

        kernel = kernel.replace(
            diagonal_spatial=count > 0 and not need.pairs,
            within1=_within(kernel, 1, need),
            within2=_within(kernel, 2, need),
        )
        kernel = kernels.mapped(put, kernel, moves=True)
    means, made = law.means, law.entries
    if tuple(where) != tuple(range(count)):
        made = entries.mapped(made, [lambda x: spread(x, 2, False, where, count)] * 2)
    if number == 1 and not given:
        return Law(kernel, means, made)
    factors = []
    for side in (0, 1):
        factor = jnp.full((1,) * (1 + count), number, kernel.var1.dtype)
        for place, coded in given:
            factor = factor * to_axes(operands[place][side], coded, sizes)
        factors.append(factor)
    if means is not None:
        means = two_of(m * f for m, f in zip(means, factors))
    made = entries.scaled(made, factors)
    shapes = [
        jnp.broadcast_shapes(f.shape, v.shape) for f, v in zip(factors, (kernel.var1, kernel.var2))
    ]
    if any(s[0] != v.shape[0] for s, v in zip(shapes, (kernel.var1, kernel.var2))):
        kernel = broadcast(kernel, (shapes[0][0], shapes[1][0]))
    # `scale` takes sizes, which leave correlations; signs turn them, and covariances and tangents with them.
    out = channels.scale(kernel, *(jnp.abs(f) for f in factors))
    one, two = (jnp.sign(f) for f in factors)
    one, two = kernels.views(one, two, kernel.diagonal_spatial)
    ntk = out.ntk
    if ntk is not None and ntk.ndim:
        ntk = ntk * (one * two)
    within = []
    for cov, f in ((out.within1, factors[0]), (out.within2, factors[1])):
        if cov is not None:
            a, b = kernels.views_within(jnp.sign(f))
            cov = cov * (a * b)
        within.append(cov)
    out = out.replace(correlation=out.correlation * (one * two), ntk=ntk)
    return Law(out.replace(within1=within[0], within2=within[1]), means, made)


def _within(kernel: Kernel, side: int, need: Need) -> Array | None:
    within = kernel.within1 if side == 1 else kernel.within2
    if within is None and need.variance == 2:
        return kernel.var1 if side == 1 else kernel.var2  # a process without positions
    return within


def sum_laws(laws: list[Law], need: Need, setting: Setting) -> Law:
    """Independent processes added."""
    ks = [law.kernel for law in laws]
    base = max(ks, key=lambda k: k.var1.shape[0] * k.var1.size)

    def add(parts: list[Array]) -> Array:
        return functools.reduce(jnp.add, parts)

    def add_known(parts: list[Array | None]) -> Array | None:
        known = [p for p in parts if p is not None]
        return add(known) if known else None

    nngp = add([k.nngp for k in ks])
    var1, var2 = add([k.var1 for k in ks]), add([k.var2 for k in ks])
    within1, within2 = None, None
    if need.variance == 2 and var1.ndim > 1:
        within1, within2 = add_known([k.within1 for k in ks]), add_known([k.within2 for k in ks])
    known_means = [law.means for law in laws if law.means is not None]
    means = None
    if known_means:
        means = add([m for m, _ in known_means]), add([m for _, m in known_means])
    if means is not None and len(known_means) > 1:  # cross terms of what has a mean
        diagonal, whole = base.diagonal_spatial, means

        def cross(views: Callable[[Array, Array], tuple[Array, Array]]) -> Array:
            # E (sum a)(sum b) = sum E a b plus the products of means of different terms, which are independent.
            one, two = views(*whole)
            return one * two - add([a * b for a, b in (views(*m) for m in known_means)])

        nngp = nngp + cross(lambda a, b: kernels.views(a, b, diagonal))
        var1 = var1 + cross(lambda a, b: (a, a))
        var2 = var2 + cross(lambda a, b: (b, b))
        if within1 is not None and within2 is not None:
            within1 = within1 + cross(lambda a, b: kernels.views_within(a))
            within2 = within2 + cross(lambda a, b: kernels.views_within(b))
    ntk = add_known([k.ntk for k in ks])
    out = base.replace(
        var1=var1,
        var2=var2,
        within1=within1,
        within2=within2,
        is_gaussian=all(k.is_gaussian for k in ks),
        is_input=False,
    )
    made = None
    if setting.entries and out.is_gaussian:
        made = entries.added([law.entries for law in laws])
    return Law(out.replace(nngp=nngp, ntk=ntk), means, made)


def needs(op: Combine, own: Need) -> Need:
    """All pairs of positions, where a map mixes them, or a process is added to itself along another axis."""
    along = {(piece.place, tuple(piece.where)) for piece in op.pieces}
    again = len(along) > len({place for place, _ in along})
    if again or any(piece.maps for piece in op.pieces):
        return Need(True, 2 if own.variance else 0)
    return own


def means_read(step: Step, asked: bool) -> Sequence:
    """A sum of several processes has cross terms of their means."""
    return step.inputs if asked or step.op.count > 1 else ()


KIND = Kind(
    "sum",
    combine_law,
    needs,
    sizes=lambda op: op.sizes,
    means=means_read,
    is_linear=lambda op: True,
    joint=True,
)
