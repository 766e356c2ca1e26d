"""The derivation of a traced kernel as tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from ntk.infinite import true_law, weight_laws
from ntk.infinite.weight_laws import NORMAL
from ntk.trace import networks
from ntk.trace.activations import Function
from ntk.trace.ops.combine import Combine
from ntk.trace.ops.convolution import Convolution
from ntk.trace.ops.dense import Dense
from ntk.trace.ops.function import Functions
from ntk.trace.ops.numbers import Numbers
from ntk.trace.rules import kind
from ntk.trace.steps import Note, Step
from ntk.trace.traced import Traced


class StepRow(NamedTuple):
    """One step of a derivation."""

    step: str
    operation: str
    what: str
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


class Explanation(NamedTuple):
    """A derivation as two tables; prints in a terminal and renders in a notebook."""

    steps: list[StepRow]
    parameters: list[ParameterRow]

    def __str__(self) -> str:
        return f"{_table(self.steps, StepRow)}\n\n{_table(self.parameters, ParameterRow)}"

    def _repr_html_(self) -> str:
        return _html(self.steps, StepRow) + _html(self.parameters, ParameterRow)


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
    rows, index = [], 0
    starts = {loop.start: loop for loop in traced.loops}
    while index < len(traced.steps):
        loop = starts.get(index)
        length, count = (loop.length, loop.count) if loop else (1, 1)
        for k in range(index, index + length):
            if not isinstance(traced.steps[k].op, Numbers):
                number = f"{k}" + (f" (x {count})" if count > 1 else "")
                row = _step_row(number, traced.steps[k], traced.notes[k])
                steep = _is_steep(traced.steps, traced.steps[k])
                rows.append(row._replace(what=row.what + _STEEP) if steep else row)
        index += length * count
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
    return Explanation(rows, parameters)


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
        StepRow("0", "no rule", kernel_fn.reason, "", "", ""),
        StepRow("1", "sampled", f"networks: {drawn}", "", "mean at each width", ""),
        StepRow(
            "2",
            "limit",
            "by a line in 1/width; its standard error: ntk.attention_error",
            "",
            "K + a/n",
            "",
        ),
    ]
    parameters = [
        ParameterRow(name, "drawn", _kind(net, name), net.variances[name] or 0.0, rate)
        for name, rate in net.rates.items()
    ]
    return Explanation(rows, parameters)


def _kind(net: networks.Finite, name: str) -> str:
    known = net.variances[name]
    if known is None:
        return f"entries that depend on one another, or have a mean, at width {net.width}"
    return f"its own, at width {net.width}" if known else "constant"


def _law_text(facts: dict) -> str:
    if not facts["variance"]:
        return f"constant {facts['mean']:g}"
    law = facts["law"]
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


def _is_steep(steps: Sequence[Step], step: Step) -> bool:
    """Whether a function is of a first layer whose weights are not normal, and too steep for the stated errors."""
    if not isinstance(step.op, Functions):
        return False
    for _, _, factors, _ in step.op.terms:
        for place, _, tree in factors:
            variance = _own_law(steps, step.inputs[place])
            if variance and true_law.steep(Function(tree).on_host, variance):
                return True
    return False


def _own_law(steps: Sequence[Step], source: Any) -> float:
    """Variance at inputs of unit mean square of a sum over weights that are not normal; 0 where there is none."""
    if not isinstance(source, int):
        return 0.0
    op, inputs = steps[source]
    if isinstance(op, Combine):
        return sum(_own_law(steps, one) for one in inputs)
    if not isinstance(op, Dense | Convolution):
        return 0.0
    return 0.0 if op.law == NORMAL else float(op.total)


def _step_row(number: str, step: Step, note: Note) -> StepRow:
    what, formula = kind(step).words(step.op, note)
    title = kind(step).title + (" used again" if getattr(step.op, "tied", None) else "")
    return StepRow(number, title, what, note.axes, formula, note.line)
