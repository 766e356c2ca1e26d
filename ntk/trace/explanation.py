"""The derivation of a traced kernel as tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from ntk import show
from ntk.infinite import true_law, weight_laws
from ntk.infinite.weight_laws import NORMAL
from ntk.trace import algebra, networks
from ntk.trace.activations import Function
from ntk.trace.ops.attention_laws import Attend
from ntk.trace.ops.combine import Combine
from ntk.trace.ops.convolution import Convolution
from ntk.trace.ops.dense import Dense
from ntk.trace.ops.function import Functions
from ntk.trace.ops.numbers import Numbers
from ntk.trace.ops.several_laws import Several
from ntk.trace.ops.table import TableMeans
from ntk.trace.rules import kind
from ntk.trace.steps import Note, Step
from ntk.trace.traced import Loop, Traced


class StepRow(NamedTuple):
    """One step of a derivation.

    Attributes:
        step: its number, arrays of numbers not counted; "(x 12)" of twelve equal blocks, of which the first is shown.
        module: the module of the model that it belongs to, or of its parameter; empty where the model names none.
        operation: its kind.
        what: its parameters, its function, or what it averages.
        reads: numbers of the steps that it reads; "data" for inputs of the model.
        positions: sizes of the axes over which entries are told apart.
        K: its covariance, in terms of that of the step that it reads.
        line: of the model.
    """

    step: str
    module: str
    operation: str
    what: str
    reads: str
    positions: str
    K: str
    line: str


class ParameterRow(NamedTuple):
    """What is assumed of a parameter.

    Attributes:
        parameter: its path.
        role: "weights" sum over units, "table" is looked up, "vector" acts on each unit alone.
        initial_variance: that of an entry times the number of entries summed over.
        rate: factor of its part in the NTK.
    """

    parameter: str
    role: str
    initial_law: str
    initial_variance: float
    rate: float


@show.drawn
class Explanation(NamedTuple):
    """A derivation as two tables and what in it is not exact; prints in a terminal and renders in a notebook.

    Attributes:
        steps: of the derivation.
        parameters: what is assumed of each.
        approximations: what is not exact, each with its error; empty where the kernel is the limit itself.
    """

    steps: list[StepRow]
    parameters: list[ParameterRow]
    approximations: tuple[str, ...] = ()

    def __repr__(self) -> str:
        how = f"{len(self.approximations)} approximated" if self.approximations else "exact"
        return f"Explanation({len(self.steps)} steps, {len(self.parameters)} parameters, {how}; print it)"

    def __str__(self) -> str:
        tables = _table(self.steps, StepRow), _table(self.parameters, ParameterRow)
        return "\n\n".join([*tables, "\n".join(self._said())])

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(line)}</p>" for line in self._said())
        return _html(self.steps, StepRow) + _html(self.parameters, ParameterRow) + said

    def _said(self) -> list[str]:
        if not self.approximations:
            return [
                "Nothing is approximated: every step is exact at infinite width, but for rounding."
            ]
        return [f"Approximated: {what}." for what in self.approximations]


def _cells(row: Any) -> list[str]:
    return [f"{x:.6g}" if isinstance(x, float) else str(x) for x in row]


def _table(rows: list, kind_of_row: Any) -> str:
    lines = [list(kind_of_row._fields), *map(_cells, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(kind_of_row._fields))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _html(rows: list, kind_of_row: Any) -> str:
    head = "".join(f"<th>{name}</th>" for name in kind_of_row._fields)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def explanation(traced: Traced) -> Explanation:
    """The tables of a traced network."""
    shown = {
        k: count
        for k, count in _shown(traced.loops, len(traced.steps)).items()
        if not isinstance(traced.steps[k].op, Numbers)
    }
    numbers = {k: place for place, k in enumerate(shown)}
    top = _top(traced)
    rows, told = [], []
    for k, count in shown.items():
        step, note = traced.steps[k], traced.notes[k]
        what, formula = kind(step).words(step.op, note)
        steep = _is_steep(traced.steps, step)
        title = kind(step).title + (" used again" if getattr(step.op, "tied", None) else "")
        rows.append(
            StepRow(
                step=f"{numbers[k]}" + (f" (x {count})" if count > 1 else ""),
                module=_module(note, top),
                operation=title,
                what=what + (_STEEP if steep else ""),
                reads=", ".join(_reads(traced, k, numbers)),
                positions=note.axes,
                K=formula,
                line=_short(note.line),
            )
        )
        if (approximation := _approximation(traced, step, steep)) is not None:
            told.append((numbers[k], approximation))
    parameters = [
        ParameterRow(
            name,
            facts["role"],
            _law_text(facts),
            facts["variance"],
            facts["rate"],
        )
        for name, facts in traced.parameters.items()
    ]
    return Explanation(rows, parameters, _grouped(told))


def _shown(loops: Sequence[Loop], count: int) -> dict[int, int]:
    """The steps that are shown, with how often each is repeated: the first of equal blocks."""
    starts, index = {loop.start: loop for loop in loops}, 0
    shown: dict[int, int] = {}
    while index < count:
        loop = starts.get(index)
        length, times = (loop.length, loop.count) if loop else (1, 1)
        # The blocks of a loop are equal steps with equal references: the first stands for all.
        shown |= dict.fromkeys(range(index, index + length), times)
        index += length * times
    return shown


def _reads(traced: Traced, index: int, numbers: dict[int, int]) -> list[str]:
    """Numbers of the steps that one reads, as they are shown; arrays of numbers are what they were made of."""
    found: dict[str, None] = {}
    for source in traced.steps[index].inputs:
        if not isinstance(source, int):
            if source[0] == "input":
                found["data" if len(traced.samples) == 1 else f"data {source[1]}"] = None
        elif isinstance(traced.steps[source].op, Numbers):
            found |= dict.fromkeys(_reads(traced, source, numbers))
        else:
            found[str(numbers[_first(traced.loops, source)])] = None
    return list(found)


def _first(loops: Sequence[Loop], index: int) -> int:
    """The step of the first block of a loop that is equal to a step."""
    for loop in loops:
        if loop.start <= index < loop.stop:
            return loop.start + (index - loop.start) % loop.length
    return index


def _top(traced: Traced) -> str:
    """The scope that holds the whole model, which the paths of parameters leave out."""
    scopes = {note.module.split("/")[0] for note in traced.notes if note.module}
    (top,) = scopes if len(scopes) == 1 else ("",)
    return "" if any(name.startswith(f"{top}/") for name in traced.parameters) else top


def _module(note: Note, top: str) -> str:
    """The module of a step: of its parameter, else of the scope that it was read in."""
    if note.parameters:
        return note.parameters[0].rpartition("/")[0]
    return note.module.removeprefix(top).lstrip("/")


def _short(line: str) -> str:
    """A line of a file in or below the current folder, by its path from there."""
    return line.removeprefix(os.path.join(os.getcwd(), ""))


def _approximation(traced: Traced, step: Step, steep: bool) -> str | None:
    """What is not exact in a step, and by how much."""
    if isinstance(step.op, Attend):
        heads = step.op.heads
        few = f"; the model has {heads} head{'s' * (heads > 1)} at every width, so that its own kernels stay random"
        return (
            f"averages over random scores of attention, by {step.op.draws} draws (error of the order of "
            f"{step.op.draws**-0.5:.1g} of what depends on them; ntk.attention_error measures it), as of infinitely "
            f"many heads{few if heads else ''}"
        )
    if isinstance(step.op, Several):
        return (
            f"{step.op.draws} draws of several activations at once (error of the order of {step.op.draws**-0.5:.1g}; "
            "ntk.attention_error measures it)"
        )
    if isinstance(step.op, TableMeans):
        return "means over units of a fixed table, carried on from two widths (their error stands in its line)"
    if steep:
        return "functions too steep for the law of the few weights below them, of unknown error"
    if isinstance(step.op, Functions) and _own_laws(traced.steps, step):
        if any(_is_mixed(traced.steps, source) for source in step.inputs):
            return (
                "functions of sums of a few weights that are not normal and of a layer over units, by the fourth "
                "cumulant (error of the order of its square: .01 at one input, below .003 from three on)"
            )
        return (
            "functions of sums over few weights that are not normal, by means over weights (error below .001) or "
            "their fourth cumulant (below .003)"
        )
    return None


def _grouped(told: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """Equal approximations of several steps in one line."""
    places: dict[str, list[int]] = {}
    for k, what in told:
        places.setdefault(what, []).append(k)
    return tuple(
        f"step{'s' * (len(ks) > 1)} {', '.join(map(str, ks))}: {what}"
        for what, ks in places.items()
    )


def sampling(kernel_fn: Any) -> Explanation:
    """The tables of a kernel by finite networks."""
    net = networks.finite(
        kernel_fn.family,
        kernel_fn.widths[0],
        kernel_fn.first,
        kernel_fn.assumed,
        kernel_fn.batched,
    )
    drawn = ", ".join(f"{c} of width {n}" for n, c in zip(kernel_fn.widths, kernel_fn.counts))
    rows = [
        StepRow("0", "", "no rule", kernel_fn.reason, "", "", "", ""),
        StepRow("1", "", "sampled", f"networks: {drawn}", "data", "", "mean at each width", ""),
        StepRow("2", "", "limit", "by a line in 1/width", "1", "", "K + a/n", ""),
    ]
    parameters = [
        ParameterRow(name, "drawn", _kind(net, name), net.variances[name] or 0.0, rate)
        for name, rate in net.rates.items()
    ]
    return Explanation(rows, parameters, (_SAMPLED,))


_SAMPLED = (
    "the whole kernel, by means over finite networks carried on to infinite width; ntk.attention_error gives its "
    "standard error"
)


def _kind(net: networks.Finite, name: str) -> str:
    known = net.variances[name]
    if known is None:
        return f"entries that depend on one another, or have a mean, at width {net.width}"
    return f"its own, at width {net.width}" if known else "constant"


def _law_text(facts: dict) -> str:
    if not facts["variance"]:
        return f"constant {facts['mean']:g}"
    law = facts["law"]
    if facts.get("power"):
        return (
            f"{law}, of variance times width^{facts['power']:g}: nothing beside terms of order one"
        )
    if law in ("normal", "constant"):
        return "normal"
    if facts.get("fixed"):
        return (
            f"{law}: means over {weight_laws.POINTS} weights where an entry's excess kurtosis is above "
            f"{true_law.MOST:g} (error below .001), its fourth cumulant elsewhere (below .003)"
        )
    return f"{law}: as normal, exact in a sum over infinitely many units"


_STEEP = (
    " (steep: the errors stated for the law of its weights do not hold; see ntk.attention_error)"
)


def _own_laws(steps: Sequence[Step], step: Step) -> list[tuple[Any, float]]:
    """Curved functions in a step of sums over few weights that are not normal, each with the variance of the sum."""
    found = []
    for _, _, factors, _ in step.op.terms:
        for place, _, tree in factors:
            variance = _own_law(steps, step.inputs[place])
            if variance and not algebra.is_linear(tree):
                found.append((tree, variance))
    return found


def _is_mixed(steps: Sequence[Step], source: Any) -> bool:
    """Whether a sum is of layers over few weights that are not normal and of others."""
    if not isinstance(source, int) or not isinstance(steps[source].op, Combine):
        return False
    return len({_own_law(steps, one) > 0 for one in steps[source].inputs}) == 2


def _is_steep(steps: Sequence[Step], step: Step) -> bool:
    """Whether a function is of a first layer whose weights are not normal, and too steep for the stated errors."""
    if not isinstance(step.op, Functions):
        return False
    laws = _own_laws(steps, step)
    return any(true_law.steep(Function(tree).on_host, variance) for tree, variance in laws)


def _own_law(steps: Sequence[Step], source: Any) -> float:
    """Variance at inputs of unit mean square of a sum over weights that are not normal; 0 where there is none."""
    if not isinstance(source, int):
        return 0.0
    op, inputs = steps[source]
    if isinstance(op, Combine):
        return sum(_own_law(steps, one) for one in inputs)
    if not isinstance(op, Dense | Convolution):
        return 0.0
    # K' = total K, with K = 1 of inputs of unit mean square.
    return 0.0 if op.law == NORMAL else float(op.total)
