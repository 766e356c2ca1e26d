"""The program of a traced network: a flat list of steps, written without any width, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ntk.infinite.inputs import Need
from ntk.trace.axes import Axis, Dims
from ntk.trace.coordinates import Linear, Process, Refusal
from ntk.trace.laws import Law, Setting, Sides

Source = Any  # index of an earlier step, ("constant", k) or ("input", k)


class Step(NamedTuple):
    """One operation.

    Attributes:
        op: what it is: a NamedTuple of its kind (`ntk.trace.rules.KINDS`), hashable, of all that is known beforehand;
            equal for equal layers.
        inputs: what it reads.
    """

    op: Any
    inputs: tuple[Source, ...]

    @property
    def name(self) -> tuple[type, Any]:
        """What equal steps have in common: tuples of two kinds may hold the same fields."""
        return type(self.op), self.op


def _own_need(op: Any, own: Need) -> Need:
    return own


def _nothing(*_: Any) -> tuple:
    return ()


def _text(op: Any, note: Note) -> tuple[str, str]:
    return note.text, ""


class LawOf(Protocol):
    """What a step computes on two batches: the law of a process, arrays of numbers, or the laws of queries and keys."""

    def __call__(
        self, step: Step, need: Need, means: bool, operands: list, setting: Setting
    ) -> Law | Sides | tuple[Law, Law, int]: ...


class Kind(NamedTuple):
    """What is done with the steps of a kind; its functions stand beside its NamedTuple, in `ntk.trace.ops`.

    Attributes:
        title: of its steps, for a reader.
        law: `law(step, need, means, operands, setting)`, what it computes on two batches.
        needs: `needs(op, own)`, what must be known of its inputs, from what must be known of it.
        sizes: `sizes(op)`, axes of positions of what it computes, where it says.
        means: `means(step, asked)`, inputs whose mean it reads, from whether its own is asked for.
        words: `words(op, note)`, (what it is of, formula of its covariance) for a reader.
        is_process: whether it computes a process; others compute arrays of numbers.
        is_linear: `is_linear(op)`, whether it is a linear function of processes; None of a layer of fresh weights.
        joint: whether it has joint moments with all others, see `ntk.trace.joint`.
    """

    title: str
    law: LawOf
    needs: Callable[[Any, Need], Need] = _own_need
    sizes: Callable[[Any], tuple[int, ...]] = _nothing
    means: Callable[[Step, bool], Sequence] = _nothing
    words: Callable[[Any, Note], tuple[str, str]] = _text
    is_process: bool = True
    is_linear: Callable[[Any], bool] | None = None
    joint: bool = False


class Note(NamedTuple):
    """What a reader is told of a step: layer, axes, parameters, activation, module and line of the model."""

    text: str = ""
    axes: str = ""
    parameters: tuple[str, ...] = ()
    line: str = ""
    module: str = ""


_NOTHING = Note()


class Program:
    """Steps in the making.

    Attributes:
        steps: the steps.
        notes: one for each.
        constants: arrays that depend on no input, each once.
        processes: what is known of the process that a step computes, by its index.
        seals: the process that was made of a sum of processes, see `ntk.trace.ops.combine.sealed`.
        definitions: the sum that a process was sealed from, by its index.
        drawn: arrays of numbers that depend on random scores of attention, with the steps of these scores.
        line: line of the model that is being read.
        module: path of the module that is being read, as far as the model says.
        joint: whether some layer has the weights of another, so that covariances of all processes are computed.
        cut: whether some layer's units were split into parts.
        groups: the parameter of each layer of weights: layers with one parameter are correlated.
        parts: of sums and functions, the part of its units that each of their inputs is about, by its place.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.notes: list[Note] = []
        self.constants: list = []
        self.processes: dict[int, Process] = {}
        self.definitions: dict[int, Linear] = {}
        self.drawn: dict[int, frozenset[int]] = {}
        self.line = ""
        self.module = ""
        self.joint = False
        self.cut = False
        self.groups: dict[int, tuple] = {}  # by the step of a layer of weights: its parameter
        self.parts: dict[int, dict[int, tuple]] = {}
        self.seals: dict = {}
        self._constants: dict = {}
        self._numbers: dict = {}

    def add(
        self, op: NamedTuple, inputs: Sequence, note: Note = _NOTHING, *, averages: bool = False
    ) -> int:
        """Number of a new step; `averages` over the draws of random scores, if it reads any."""
        if self._drawn_of(inputs) and not averages:
            raise Refusal(DRAWN)
        self.steps.append(Step(op, tuple(inputs)))
        self.notes.append(note._replace(line=self.line, module=self.module))
        return len(self.steps) - 1

    def numbers(self, op: NamedTuple, inputs: Sequence) -> int:
        """Number of a step on arrays of numbers; what is there already is not computed again."""
        key = (op, tuple(inputs))
        if key not in self._numbers:
            self._numbers[key] = index = self.add(op, inputs, averages=True)
            if drawn := self._drawn_of(inputs):
                self.drawn[index] = drawn
        return self._numbers[key]

    def _drawn_of(self, inputs: Sequence) -> frozenset[int]:
        return frozenset().union(*(self.drawn.get(i, ()) for i in inputs))

    def constant(self, array: Any) -> tuple[str, int]:
        # By content: constants that a model writes twice are one.
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


DRAWN = (
    "attention weights that depend on random scores (scaled by 1/sqrt(d)) do something else than average values over "
    "positions, head by head, or are added to what is trained (biases of scores): only E[W V] has a rule here. Freeze "
    "biases that start at zero (learning_rates={name: 0}), average values alone, or scale scores by 1/d "
    "(attention_scale='1/d' in `models`), under which they vanish, or take means over finite networks: "
    'otherwise="sample"'
)


CORRELATED = (
    "functions of the same Gaussian at different positions, or of a sum and of its part, meet in one unit; their joint "
    "law is not followed. Insert a layer of weights (a Dense or Conv) on one of the branches, or take means over "
    'finite networks: otherwise="sample"'
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


def place_of(inputs: list, index: Any) -> int:
    """Place of an input among those of a step; a new one is added."""
    if index not in inputs:
        inputs.append(index)
    return inputs.index(index)


class Operand(NamedTuple):
    """Stands for a value in a map of positions, until the step that holds the map is written."""

    index: Any


def with_places(x: Any, inputs: list) -> Any:
    """A map of positions with places among the inputs of the step in place of operands."""
    if isinstance(x, Operand):
        return ("operand", place_of(inputs, x.index))
    if type(x) is tuple:  # others are parameters of primitives
        return tuple(with_places(y, inputs) for y in x)
    return x


def code(dims: Dims, axes: tuple[Axis, ...]) -> tuple:
    """Dimensions of an array in terms of `axes`: "s" for the samples, -1 for axes along which it is constant."""
    out = []
    for dim in dims:
        entry: list[str | int] = []
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
