"""Axes of the arrays of a traced network: which count samples, positions, or units of a wide layer.

Every array is followed through its program with each dimension written as a product of axes, so that a flattened
(H W C) dimension is still known to be two axes of positions and one of units. Sizes are pairs, at the two widths
(and the two batch sizes) at which the network was traced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ntk.types import two_of

# Sizes a n + b with b >= 0 grow by 4 at most between these widths, and by 5 with the batch below: what counts samples
# is never taken for units.
WIDTHS = (64, 256)


BATCHES = (2, 10)


Size = tuple[int, int]


class Axis:
    """One axis, equal to nothing but itself.

    Attributes:
        kind: "sample"; "position", over which entries are told apart; "unit", over which they are independent and
            alike; "free", over which an array is constant, or an axis of a parameter not used yet.
        size: at both widths.
    """

    __slots__ = ("kind", "size")

    def __init__(self, kind: str, size: Size):
        self.kind, self.size = kind, size

    def __repr__(self) -> str:
        return f"{self.kind}{self.size}"

    @property
    def infinite(self) -> bool:
        """Whether it grows with the width."""
        return self.kind != "sample" and self.size[0] != self.size[1]


Dims = tuple[tuple[Axis, ...], ...]


Splits = Mapping[Axis, tuple[Axis, ...]]


class Mismatch(ValueError):
    """Two dimensions that cannot be the same axes."""


def product(sizes: Iterable[Size]) -> Size:
    """Product of size pairs."""
    one, two = 1, 1
    for a, b in sizes:
        one, two = one * a, two * b
    return one, two


def extent(axes: Iterable[Axis]) -> Size:
    """Size of a dimension made of axes."""
    return product(axis.size for axis in axes)


def flat(dims: Dims) -> tuple[Axis, ...]:
    """All axes in order."""
    return tuple(axis for dim in dims for axis in dim)


def positions(dims: Dims) -> tuple[Axis, ...]:
    """The axes of positions in order."""
    return tuple(axis for axis in flat(dims) if axis.kind == "position")


def units(dims: Dims) -> tuple[Axis, ...]:
    """The axes of units in order."""
    return tuple(axis for axis in flat(dims) if axis.kind == "unit")


def growth(axes: Iterable[Axis]) -> tuple[float, float]:
    """(c, p) with size c width^p to leading order, of sizes affine in the width."""
    number, power = 1.0, 0.0
    for axis in axes:
        low, high = axis.size
        if low == high:
            number *= low
        else:
            # a n + b is a n to leading order.
            number *= (high - low) / (WIDTHS[1] - WIDTHS[0])
            power += 1
    return number, power


def substitute(dims: Dims, splits: Splits) -> Dims:
    """Axes replaced by those that they split into."""
    return tuple(tuple(new for axis in dim for new in splits.get(axis, (axis,))) for dim in dims)


def _merge(splits: dict, axis: Axis, parts: tuple[Axis, ...]) -> None:
    for key, value in splits.items():
        splits[key] = tuple(p for a in value for p in (parts if a is axis else (a,)))
    splits[axis] = parts


def split(axis: Axis, first: Size) -> tuple[Axis, Axis]:
    """An axis as (first, rest), row by row.

    Raises:
        Mismatch: sizes do not divide, or samples would be split.
    """
    if axis.kind == "sample" or any(n % d for n, d in zip(axis.size, first)):
        raise Mismatch(f"an axis of size {axis.size} cannot be cut into parts of {first}")
    rest = two_of(n // d for n, d in zip(axis.size, first))
    return Axis(axis.kind, first), Axis(axis.kind, rest)


def reshape(dims: Dims, shape: Sequence[Size]) -> tuple[Dims, dict]:
    """Dimensions after a reshape to sizes `shape`, and the axes that had to be split.

    Raises:
        Mismatch: a part of an axis would be joined with a part of another.
    """
    left, out = list(flat(dims)), []
    splits: dict[Axis, tuple[Axis, ...]] = {}
    for size in shape:
        dim, rest = [], size
        while rest != (1, 1):
            if not left:
                raise Mismatch(f"{dims} cannot be reshaped to {shape}")
            axis = left.pop(0)
            if any(n % s for n, s in zip(rest, axis.size)):
                first, second = split(axis, _common(rest, axis.size))
                _merge(splits, axis, (first, second))
                left.insert(0, second)
                axis = first
            dim.append(axis)
            rest = two_of(n // s for n, s in zip(rest, axis.size))
        out.append(tuple(dim))
    return tuple(out), splits


def _common(one: Size, two: Size) -> Size:
    size = two_of(math.gcd(a, b) for a, b in zip(one, two))
    if size == (1, 1):
        raise Mismatch(f"sizes {one} and {two} have no common part")
    return size


def unify(one: Dims, two: Dims) -> tuple[Dims, dict, dict]:
    """Common dimensions of two arrays of one shape, and what the axes of either become.

    Raises:
        Mismatch: positions of one array are units of the other, or sizes cannot be refined.
    """
    out: list[tuple[Axis, ...]] = []
    first: dict[Axis, tuple[Axis, ...]] = {}
    second: dict[Axis, tuple[Axis, ...]] = {}
    two = _apart(one, two, second)
    for dim1, dim2 in zip(one, two, strict=True):
        if (not dim1 or not dim2) and (dim1 or dim2):
            out.append(dim1 or dim2)
            continue
        left, right, dim = list(dim1), list(dim2), []
        while left and right:
            a, b = left.pop(0), right.pop(0)
            if a.size != b.size:
                common = _common(a.size, b.size)
                if common != a.size:
                    a, rest = _cut(first, a, common)
                    left.insert(0, rest)
                if common != b.size:
                    b, rest = _cut(second, b, common)
                    right.insert(0, rest)
            if a is not b:
                if a.kind != b.kind and "free" not in (a.kind, b.kind):
                    raise Mismatch(
                        f"what is told apart (inputs, positions, a constant for each head) meets units along an axis "
                        f"of size {a.size[0]} (outputs, heads): a fixed number of units is of one law, and has no rule "
                        'but for a sum over it. Take means over finite networks: otherwise="sample"'
                    )
                keep = b if a.kind == "free" else a
                if keep is not a:
                    _merge(first, a, (keep,))
                if keep is not b:
                    _merge(second, b, (keep,))
                a = keep
            dim.append(a)
        if left or right:
            raise Mismatch(f"dimensions {dim1} and {dim2} differ")
        out.append(tuple(dim))
    return tuple(out), first, second


def _apart(one: Dims, two: Dims, second: dict) -> Dims:
    """The second dimensions, with a new axis for positions that lie along another dimension in the first.

    Of x_i + x_j, the sum of an array over its positions and of itself over them across, the two are not the same.
    """
    places = {axis: place for place, dim in enumerate(one) for axis in dim}
    for place, dim in enumerate(two):
        for axis in dim:
            if axis.kind == "position" and places.get(axis, place) != place:
                second[axis] = (Axis(axis.kind, axis.size),)
    return substitute(two, second)


def _cut(splits: dict, axis: Axis, first: Size) -> tuple[Axis, Axis]:
    parts = split(axis, first)
    _merge(splits, axis, parts)
    return parts


def sizes_text(axes: tuple[Axis, ...]) -> str:
    """Sizes of axes for a reader."""
    return " x ".join(str(a.size[0]) for a in axes)
