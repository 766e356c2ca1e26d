"""The program of a traced network: a flat list of steps, written without any width, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from ntk.trace import algebra
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims, growth, positions
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Process,
    Ref,
    Refusal,
    bases_of,
    overlap,
)

Source = Any  # index of an earlier step, ("constant", k) or ("input", k)


class Step(NamedTuple):
    """One operation.

    Attributes:
        operation: "finite", "data", "vector", "lookup", "table", "affine", "tied", "convolve", "combine", "function",
            "mean", "mix", "copies", "scores" or "attend".
        static: all that is known beforehand, hashable; equal for equal layers.
        inputs: what it reads.
    """

    operation: str
    static: Hashable
    inputs: tuple[Source, ...]


class Note(NamedTuple):
    """What a reader is told of a step: layer, axes, parameters, activation."""

    text: str = ""
    axes: str = ""
    parameters: tuple[str, ...] = ()
    line: str = ""


_NOTHING = Note()


class Program:
    """Steps in the making.

    Attributes:
        steps: the steps.
        notes: one for each.
        constants: arrays that depend on no input, each once.
        processes: what is known of the process that a step computes, by its index.
        definitions: the sum that a process was sealed from, by its index.
        drawn: arrays of numbers that depend on random scores of attention, with the steps of these scores.
        line: line of the model that is being read.
        joint: whether some layer has the weights of another, so that covariances of all processes are computed.
        cut: whether some layer's units were split into parts.
        groups: the parameter of each layer of weights: layers with one parameter are correlated.
    """

    def __init__(self):
        self.steps: list[Step] = []
        self.notes: list[Note] = []
        self.constants: list = []
        self.processes: dict[int, Process] = {}
        self.definitions: dict[int, Linear] = {}
        self.drawn: dict[int, frozenset[int]] = {}
        self.line = ""
        self.joint = False
        self.cut = False
        self.groups: dict[int, tuple] = {}  # by the step of a layer of weights: its parameter
        self._seals: dict = {}
        self._constants: dict = {}
        self._finite: dict = {}

    def add(self, operation: str, static: Hashable, inputs: Sequence, note: Note = _NOTHING) -> int:
        """Number of a new step; arrays of numbers that are there already are not computed again."""
        key = (static, tuple(inputs))
        if operation == "finite" and key in self._finite:
            return self._finite[key]
        drawn = frozenset().union(*(self.drawn.get(i, ()) for i in inputs))
        if operation == "finite":
            self._finite[key] = len(self.steps)
            if drawn:
                self.drawn[len(self.steps)] = drawn
        elif drawn and operation != "attend":
            raise Refusal(DRAWN)
        self.steps.append(Step(operation, static, tuple(inputs)))
        self.notes.append(note._replace(line=self.line))
        return len(self.steps) - 1

    def constant(self, array: Any) -> tuple[str, int]:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = len(self.constants)
            self.constants.append(array)
        return ("constant", self._constants[key])

    def process(
        self,
        index: int,
        axes: tuple[Axis, ...],
        units: tuple[Axis, ...],
        *,
        gaussian: bool,
        bases: frozenset | None = None,
        value: float | None = None,
        averaged: bool = False,
    ) -> Process:
        bases = frozenset([(index, ())]) if bases is None else bases
        process = Process(index, axes, units, gaussian, bases, value, averaged)
        self.processes[index] = process
        return process

    # --- sums of processes become one process ------------------------------------------------------

    def sealed(self, body: Any, whole: bool = False) -> Any:
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
            random = tuple((r, c._replace(number=_digits(c.number / number))) for r, c in random)
        ref = random[0][0]
        if len(random) > 1 or random[0][1] != Coefficient() or ref.maps:
            if random not in self._seals:
                self._seals[random] = self._combined(Linear(self._shortened(random)))
            ref = self._seals[random]
        return Linear(((ref, Coefficient(number)), *rest))

    def sealed_as(self, ref: Ref, coefficient: Coefficient) -> Ref | None:
        """The process that was made of a process times a coefficient, if there is one."""
        return self._seals.get(((ref, coefficient),))

    def _shortened(self, terms: tuple) -> tuple:
        """Terms with the longest sum among them that has a step already, up to a factor, in its place.

        A residual stream would otherwise be added up from its start in every block.
        """
        left = dict(terms)
        if len(left) < len(terms):
            return terms
        for old in sorted(self._seals, key=len, reverse=True):
            if len(old) < 2 or len(old) >= len(terms) or any(ref not in left for ref, _ in old):
                continue
            factors = {_ratio(left[ref], c) for ref, c in old}
            if len(factors) == 1 and None not in factors:
                gone = {ref for ref, _ in old}
                rest = tuple(t for t in terms if t[0] not in gone)
                return self._shortened(((self._seals[old], Coefficient(factors.pop())), *rest))
        return terms

    def _combined(self, body: Linear) -> Ref:
        body = self._expanded(body)
        axes, units = _axes(body)
        # Different units of one layer are different processes of one law. Arrays follow the processes.
        order = {(ref.process.index, ref.part): None for ref, _ in body.terms}
        order = {key: place for place, key in enumerate(order)}
        pieces, inputs = [], [index for index, _ in order]
        gaussian, averaged = True, False
        for ref, c in body.terms:
            if c.power:
                raise Refusal(
                    f"an activation of size width^{c.power:g} enters a nonlinearity: initial standard deviations or "
                    "multipliers do not keep it of order one. base_width= keeps those of one width"
                )
            if any(a.infinite for a in units) and not any(a.infinite for a in ref.units):
                raise Refusal(FEW)
            if ref.units != units:
                raise Refusal(
                    "units of one layer are added in different orders (a transposed or shuffled axis of units)"
                )
            gaussian &= ref.process.gaussian
            averaged |= ref.process.averaged
            position = order[ref.process.index, ref.part]
            maps = []
            for item in ref.maps:
                maps.append(tuple(_operand(x, inputs) for x in item))
            arrays = tuple((_place(inputs, i), code(dims, axes)) for i, dims in c.arrays)
            where = tuple(axes.index(a) for a in ref.axes)
            pieces.append((position, tuple(maps), where, c.number, arrays))
        sizes = tuple(a.size[0] for a in axes)
        index = self.add("combine", (len(order), tuple(pieces), sizes), inputs, Note("sum"))
        bases = frozenset().union(*(bases_of(ref) for ref, _ in body.terms))
        process = self.process(
            index, axes, units, gaussian=gaussian, bases=bases, averaged=averaged
        )
        self.definitions[index] = body
        return Ref(process, (), axes, units)

    def _expanded(self, body: Linear) -> Linear:
        """Sealed processes written out where they share a source with another term."""
        while True:
            if self.joint:
                return body  # covariances of all processes are followed
            for i, (ref, c) in enumerate(body.terms):
                shared = any(
                    other.process.index != ref.process.index
                    and overlap(bases_of(other), bases_of(ref))
                    for other, _ in body.terms
                )
                if shared and ref.process.index in self.definitions and not ref.maps:
                    inner = self.definitions[ref.process.index]
                    renames = dict(zip(_axes(inner)[0], ((a,) for a in ref.axes)))
                    renames |= dict(zip(_axes(inner)[1], ((a,) for a in ref.units)))
                    inner = algebra.scaled(co.renamed_body(inner, renames), c)
                    rest = Linear(body.terms[:i] + body.terms[i + 1 :])
                    body = algebra.added(rest, inner)
                    break
                if shared and not (ref.process.gaussian and ref.process.index in self.definitions):
                    others = [
                        o.process
                        for o, _ in body.terms
                        if o.process.index != ref.process.index
                        and overlap(bases_of(o), bases_of(ref))
                    ]
                    if not any(o.index in self.definitions for o in others):
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


DRAWN = (
    "attention weights that depend on random scores (scaled by 1/sqrt(d)) do something else than average values over "
    "positions, head by head, or are added to what is trained (biases of scores): only E[W V] has a rule here. Freeze "
    "biases that start at zero (learning_rates={name: 0}), average values alone, or scale scores by 1/d "
    "(attention_scale='1/d' in `models`), under which they vanish"
)


CORRELATED = (
    "functions of the same Gaussian at different positions, or of a sum and of its part, meet in one unit; their joint "
    "law is not followed. Insert a layer of weights (a Dense or Conv) on one of the branches"
)


GATES = (
    "functions of activations that one matrix made at different places are multiplied (the gates of a recurrent "
    "network): their joint law is not followed. Give each place its own parameters, or take means over finite "
    'networks: otherwise="sample"'
)


FEW = (
    "activations whose number does not grow with the width multiply those of a wide layer, or are added to them (a "
    "gate, a weight of an expert, a step that all units share): they stay random at infinite width, and so does the "
    'kernel of one network. Give each unit its own, or take means over networks: otherwise="sample"'
)


def _axes(body: Linear) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """All axes of positions, and the units."""
    axes: dict = {}
    for ref, c in body.terms:
        axes |= dict.fromkeys(ref.axes)
        for _, dims in c.arrays:
            axes |= dict.fromkeys(positions(dims))
    longest = max((ref.units for ref, _ in body.terms), key=len)
    return tuple(axes), longest


def _place(inputs: list, index: Any) -> int:
    if index not in inputs:
        inputs.append(index)
    return inputs.index(index)


class Operand(NamedTuple):
    """Stands for a value in a map of positions, until the step that holds the map is written."""

    index: Any


def _operand(x: Any, inputs: list) -> Any:
    if isinstance(x, Operand):
        return ("operand", _place(inputs, x.index))
    if type(x) is tuple:  # others are parameters of primitives
        return tuple(_operand(y, inputs) for y in x)
    return x


def code(dims: Dims, axes: tuple[Axis, ...]) -> tuple:
    """Dimensions of an array in terms of `axes`: "s" for the samples, -1 for axes along which it is constant."""
    out = []
    for dim in dims:
        entry = []
        for axis in dim:
            if axis.kind == "sample":
                entry.append("s")
            elif axis.kind == "position":
                entry.append(axes.index(axis))
        out.append(tuple(entry))
    return tuple(out)


def shape_code(dims: Dims) -> tuple[tuple[bool, int], ...]:
    """Shape of an array of numbers as computed: (whether it counts samples, size of the rest) of each dimension."""
    out = []
    for dim in dims:
        size = 1
        for axis in dim:
            size *= axis.size[0] if axis.kind == "position" else 1
        out.append((any(a.kind == "sample" for a in dim), size))
    return tuple(out)


def total(axes: Sequence[Axis]) -> tuple[float, float]:
    """(c, p): how many entries the axes have, c width^p."""
    return growth(axes)


def terms_static(program: Program, body: Any) -> tuple[tuple, list, tuple, tuple]:
    """Terms as hashable data: (terms, inputs, axes, units)."""
    terms = algebra.as_terms(program.sealed(body)) if isinstance(body, Linear) else body.terms
    axes: dict = {}
    units: tuple = ()
    inputs: list = []
    places: dict = {}  # different units of one layer are different processes of one law
    out = []
    for t in terms:
        for ref, _ in t.factors:
            axes |= dict.fromkeys(ref.axes)
            units = max(units, ref.units, key=len)
        for _, dims in t.coefficient.arrays:
            axes |= dict.fromkeys(positions(dims))
    axes = tuple(axes)
    wide = any(a.infinite for t in terms for ref, _ in t.factors for a in ref.units)
    for t in terms:
        if t.coefficient.power:
            raise Refusal(
                f"a layer reads an activation of size width^{t.coefficient.power:g}: initial standard deviations or "
                "multipliers do not keep it of order one"
            )
        factors, fixed = [], []
        for ref, tree in t.factors:
            (fixed if ref.process.value is not None else factors).append((ref, tree))
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
            coded.append((places[key], where, local(tree, inputs)))
        arrays = tuple((_place(inputs, i), code(dims, axes)) for i, dims in t.coefficient.arrays)
        alone = None if product is None else local(product, inputs)
        out.append((t.coefficient.number, arrays, tuple(coded), alone))
    refs = {ref for t in terms for ref, _ in t.factors if ref.process.value is None}
    if not program.joint:
        _check_independent(program, list(refs))
    return tuple(out), inputs, axes, units


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


def local(tree: Any, inputs: list) -> Any:
    """A tree with parameters numbered by their place among the inputs of the step."""
    if tree[0] == "parameter":
        return ("parameter", _place(inputs, tree[1]), tree[2])
    if tree[0] in ("z", "number"):
        return tree
    return (*tree[:2], *(local(child, inputs) for child in tree[2:]))
