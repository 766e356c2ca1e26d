"""One coordinate of a wide layer as a function of Gaussian processes: its parts, and the renaming of their axes.

In a Tensor Program every unit of a wide layer is an independent copy of one random variable, a function of jointly
Gaussian ones and of numbers that depend on the sample. Here such a function is a sum of `Term`s: each a number
(`Coefficient`) times functions (`ntk.trace.algebra`) of one Gaussian process each. Sums of processes stay `Linear`
until a nonlinearity needs their law.

Source: Yang (2019), Tensor Programs I-III.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ntk.trace.axes import Axis, Dims, Splits, positions, substitute

# ("z",) | ("number", c) | ("parameter", value index, c) | (primitive name, params, *trees)
Tree = Any


class Refusal(ValueError):
    """Something in a network that has no kernel here, with what to do.

    Attributes:
        located: whether the message names the primitive and the line of the model.
    """

    located = False


class Coefficient(NamedTuple):
    """number width^power times arrays that depend on the sample and the position.

    Attributes:
        number: a float.
        power: of the width.
        arrays: (value index, dimensions) of each array.
    """

    number: float = 1.0
    power: float = 0.0
    arrays: tuple[tuple[Any, Dims], ...] = ()

    def times(self, other: Coefficient) -> Coefficient:
        arrays = self.arrays + other.arrays
        return Coefficient(self.number * other.number, self.power + other.power, arrays)


class Process(NamedTuple):
    """What is known of a process before its moments are computed.

    Attributes:
        index: of the step that computes them.
        axes: axes of positions, in the order of its moments.
        units: axes of units, in their own order.
        gaussian: whether it is Gaussian with mean zero.
        bases: the independent processes that it is a function of, each with the part of its units.
        value: of a parameter that is constant at initialisation; None for others.
        averaged: its tangent kernel is a mean over units, so that no nonlinearity may act on it.
    """

    index: int  # type: ignore[assignment]  # a field, not the method of a tuple
    axes: tuple[Axis, ...]
    units: tuple[Axis, ...]
    gaussian: bool
    bases: frozenset
    value: float | None = None
    averaged: bool = False

    @property
    def uneven(self) -> bool:
        """Whether constants that differ between units are in it, so that its units have no common law."""
        return any(index == TABLE for index, _ in self.bases)


TABLE = -1
"""Stands among bases for all constants that differ between units: they depend on one another."""


class Ref(NamedTuple):
    """A process as it appears in an array.

    Attributes:
        process: the process.
        maps: linear maps of its positions, applied in turn.
        axes: its positions after the maps, in order.
        units: the axes of units in the order of the process.
        part: which of its units.
    """

    process: Process
    maps: tuple
    axes: tuple[Axis, ...]
    units: tuple[Axis, ...]
    part: tuple = ()


def bases_of(ref: Ref) -> frozenset:
    """The independent processes behind a reference, with the part of their units that it is about."""
    return frozenset((index, part + ref.part) for index, part in ref.process.bases)


def overlap(one: frozenset, two: frozenset) -> bool:
    """Whether two sets of bases have units in common."""
    if not any(part for _, part in one | two):
        return not one.isdisjoint(two)
    return any(i == j and not _apart(p, q) for i, p in one for j, q in two)


def _apart(one: tuple, two: tuple) -> bool:
    """Whether slices of slices (axis, start, stop) of the same units have none in common."""
    for a, b in zip(one, two):
        if a != b:
            return a[0] == b[0] and (a[2] <= b[1] or b[2] <= a[1])
    return False


class Number(NamedTuple):
    """An array with one value, number width^power."""

    number: float
    power: float = 0.0


class NumberArray(NamedTuple):
    """An array of numbers: the data, or what follows from it; `index` names its value."""

    index: Any
    power: float = 0.0


class Table(NamedTuple):
    """Constants that are told apart along an axis that grows with the width, such as sines of positions.

    Attributes:
        one, two: at both widths.
    """

    one: Any
    two: Any


class Weight(NamedTuple):
    """A parameter that has not met an activation yet.

    Attributes:
        name: path of the parameter.
        number, power, arrays: what it was multiplied with, as in `Coefficient`.
        part: slices taken of it, as (dimension, start, stop) at the first width.
        own: for each of its dimensions, its axes in the array now.
    """

    name: str
    number: float = 1.0
    power: float = 0.0
    arrays: tuple = ()
    part: tuple = ()
    own: Dims = ()


class Linear(NamedTuple):
    """A sum of processes with coefficients."""

    terms: tuple[tuple[Ref, Coefficient], ...]


class Term(NamedTuple):
    """A coefficient times a product of functions, each of one process."""

    coefficient: Coefficient
    factors: tuple[tuple[Ref, Tree], ...]


class Terms(NamedTuple):
    """A sum of terms."""

    terms: tuple[Term, ...]


class Pieces(NamedTuple):
    """Several arrays side by side along the axis of units, with the share of each; and all their units."""

    parts: tuple[tuple[Any, Dims], ...]
    shares: tuple[float, ...]
    units: Axis


class Value(NamedTuple):
    """An array of the traced program."""

    dims: Dims
    body: Any


def is_random(body: Any) -> bool:
    """Whether it differs between units."""
    return isinstance(body, Linear | Terms | Pieces)


def refs_of(body: Any) -> list[Ref]:
    """All processes in a body."""
    if isinstance(body, Linear):
        return [ref for ref, _ in body.terms]
    if isinstance(body, Terms):
        return [ref for term in body.terms for ref, _ in term.factors]
    if isinstance(body, Pieces):
        return [ref for part, _ in body.parts for ref in refs_of(part)]
    return []


def axes_of(body: Linear) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """All axes of positions of a sum of processes, and its units."""
    axes: dict = {}
    for ref, c in body.terms:
        axes |= dict.fromkeys(ref.axes)
        for _, dims in c.arrays:
            axes |= dict.fromkeys(positions(dims))
    longest = max((ref.units for ref, _ in body.terms), key=len)
    return tuple(axes), longest


def renamed(value: Value, splits: Splits) -> Value:
    """The value with axes replaced by the axes that they split into."""
    if not splits:
        return value
    return Value(substitute(value.dims, splits), renamed_body(value.body, splits))


def renamed_body(body: Any, splits: Splits) -> Any:
    """A body with the axes of its parts replaced."""
    if isinstance(body, Linear):
        return Linear(
            tuple((_renamed_ref(r, splits), _renamed_number(c, splits)) for r, c in body.terms)
        )
    if isinstance(body, Terms):
        return Terms(
            tuple(
                Term(
                    _renamed_number(t.coefficient, splits),
                    tuple((_renamed_ref(r, splits), tree) for r, tree in t.factors),
                )
                for t in body.terms
            )
        )
    if isinstance(body, Weight):
        arrays = tuple((i, substitute(dims, splits)) for i, dims in body.arrays)
        return body._replace(arrays=arrays, own=substitute(body.own, splits))
    if isinstance(body, Pieces):
        if body.units in splits and len(splits[body.units]) > 1:
            raise Refusal("layers that were concatenated are split again: split them before")
        parts = tuple((renamed_body(b, splits), substitute(dims, splits)) for b, dims in body.parts)
        return Pieces(parts, body.shares, splits.get(body.units, (body.units,))[0])
    return body


UNEVEN = (
    "activations to which constants that differ between units were added (a fixed table of positions) are split into "
    "parts, reordered, or meet a nonlinearity before a layer of weights: their units have no common law. Let a norm "
    "and a layer of weights come first"
)


def _renamed_number(c: Coefficient, splits: Splits) -> Coefficient:
    return c._replace(arrays=tuple((i, substitute(dims, splits)) for i, dims in c.arrays))


def _renamed_ref(ref: Ref, splits: Splits) -> Ref:
    if not any(axis in splits for axis in ref.axes + ref.units):
        return ref
    if ref.process.uneven and any(len(splits.get(axis, (axis,))) != 1 for axis in ref.units):
        raise Refusal(UNEVEN)
    axes = tuple(new for axis in ref.axes for new in splits.get(axis, (axis,)))
    units = tuple(new for axis in ref.units for new in splits.get(axis, (axis,)))
    maps = ref.maps
    if len(axes) != len(ref.axes):
        shape = tuple(axis.size[0] for axis in axes)
        # Maps before it act on the axes as they were: the split comes after them.
        maps = (*maps, ("reshape", shape))
    return ref._replace(maps=maps, axes=axes, units=units)
