"""Functions of several activations at once, or of one at several positions, read from a program.

A unit F of such a layer (a maximum over a window, a gate that multiplies what it depends on, an instance norm, a ReLU
of a product) is a function of independent Gaussian processes. Here F is written as operations on these, back to the
layers of weights behind it; its moments are in `ntk.trace.ops.several_laws`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from ntk.trace import axes as ax
from ntk.trace.axes import Dims
from ntk.trace.context import Context
from ntk.trace.coordinates import (
    UNEVEN,
    Coefficient,
    Linear,
    Ref,
    Refusal,
    Value,
    overlap,
)
from ntk.trace.ops.combine import Combine
from ntk.trace.ops.numbers import Numbers
from ntk.trace.ops.several_laws import Operation, Primitive, Several
from ntk.trace.steps import CORRELATED, FEW, GATES, Note, code, shape_code

DRAWS = 4
"""Draws for each of those of attention scores: a function of few numbers takes less time.

With 4096 an entry has a standard error of 0.1 % for a maximum, 1 to 2 % for a function that grows like a square: at
most a fourth of that of independent draws, or half of it where the function jumps.
"""
MOST_POSITIONS = 256
"""Positions of all processes of a function, above which draws at pairs of samples take too long."""


class _Writer:
    """The operations between a result and the independent Gaussian processes behind it."""

    def __init__(self, context: Context, opened: frozenset):
        self.context, self.opened = context, opened
        self.operations: list[Operation] = []
        self.inputs: list = []
        self.roots: dict[tuple, int] = {}  # (process, part of its units): place among the inputs
        self.known: dict[tuple, tuple] = {}
        self.others: dict[Any, int] = {}  # place of numbers, and of gains

    def process(self, index: int, part: tuple) -> tuple:
        """Where a process comes from: a root, or an operation."""
        key = (index, part)
        if key not in self.known:
            self.known[key] = self._process(index, part)
        return self.known[key]

    def _process(self, index: int, part: tuple) -> tuple:
        program = self.context.program
        process, step = program.processes[index], program.steps[index]
        if process.gaussian and not process.averaged and (index, part) not in self.opened:
            place = len(self.inputs)
            self.inputs.append(index)
            self.roots[index, part] = place
            return ("process", place)
        if isinstance(step.op, Several):
            return self._inlined(index, part)
        if index not in program.parts:
            raise Refusal(
                "a nonlinearity, or a maximum, of activations that are no functions of Gaussian layers unit by unit "
                "(layers side by side, parts of a nonlinearity): insert a layer of weights, or take means over finite "
                'networks: otherwise="sample"'
            )
        return self.operation(step.op, self.sources(step.inputs, program.parts[index], part))

    def sources(self, inputs: tuple, parts: dict, part: tuple = ()) -> tuple:
        """Where the inputs of a step come from; parts are of the units of those that are processes."""
        return tuple(
            self.process(source, parts[place] + part) if place in parts else self.other(source)
            for place, source in enumerate(inputs)
        )

    def other(self, source: Any) -> tuple:
        """Where numbers come from, or a parameter that is constant at initialisation."""
        if source not in self.others:
            self.others[source] = len(self.inputs)
            self.inputs.append(source)
        return ("input", self.others[source])

    def operation(self, op: Any, sources: tuple) -> tuple:
        self.operations.append(Operation(op, sources))
        return ("operation", len(self.operations) - 1)

    def _inlined(self, index: int, part: tuple) -> tuple:
        program = self.context.program
        step = program.steps[index]
        given = self.sources(step.inputs, program.parts[index], part)
        done: list[tuple] = []
        for op, sources in step.op.operations:
            found = []
            for kind, k in sources:
                found.append(done[k] if kind == "operation" else given[k])
            done.append(self.operation(op, tuple(found)))
        return done[-1]


def _check(context: Context, index: int) -> None:
    """Refuses processes whose joint law with others is not Gaussian."""
    process = context.program.processes[index]
    if process.uneven:
        raise Refusal(UNEVEN)
    context.check_heads(
        Linear(((Ref(process, (), process.axes, process.units), Coefficient()),)), mean=True
    )
    for base, _ in process.bases:
        if base in context.fluctuations:
            context.check_scores(
                Linear(((Ref(context.program.processes[base], (), (), ()), Coefficient()),))
            )
        if base in context.unlike:
            raise Refusal(context.unlike[base])


def _independent(context: Context, found: dict) -> set:
    """Processes to take apart, since others share something with them; none if all are independent."""
    program = context.program
    bases = {
        (index, part): frozenset((i, own + part) for i, own in program.processes[index].bases)
        for index, part in found
    }
    out = set()
    for pair in itertools.combinations(bases, 2):
        one, two = (bases[key] for key in pair)
        if overlap(one, two):
            able = [key for key in pair if isinstance(program.steps[key[0]].op, Combine)]
            if not able:
                raise Refusal(CORRELATED)
            out |= set(able)
            continue
        first, second = ({program.groups.get(i) for i, _ in own} - {None} for own in (one, two))
        if first & second and not any(part for _, part in one | two):
            raise Refusal(GATES)
    return out


def by_draws(context: Context, write: Callable, refs: list[Ref], axes: tuple, text: str) -> Ref:
    """A function of several processes as a process of its own.

    Args:
        context: of the trace.
        write: `write(writer)` writes the last operation.
        refs: the processes that it reads.
        axes: axes of positions of the result.
        text: what it is, for a reader.

    Raises:
        Refusal: the processes have no joint Gaussian law, or their units are not alike.
    """
    for ref in refs:
        _check(context, ref.process.index)
    free = [ref for ref in refs if ref.process.value is None]
    if not free:
        raise Refusal("a nonlinearity of parameters alone")
    units = max((ref.units for ref in free), key=len)
    if any(ref.units != units for ref in free):
        wide = [any(a.infinite for a in ref.units) for ref in free]
        raise Refusal(CORRELATED if all(wide) else FEW)
    # Sums that share a process with another are taken apart into their terms, until the roots are independent.
    opened: frozenset = frozenset()
    while True:
        writer = _Writer(context, opened)
        write(writer)
        more = _independent(context, writer.roots)
        if not more:
            break
        opened |= more
    sizes = tuple(a.size[0] for a in axes)
    program = context.program
    known = (program.processes[index].axes for index, _ in writer.roots)
    positions = sum(math.prod(a.size[0] for a in own) for own in known)
    if positions > MOST_POSITIONS:
        raise Refusal(
            f"{text}: their joint law, at {positions} positions in all, would be drawn at every pair of samples, which "
            f"is done up to {MOST_POSITIONS} positions. Use smaller inputs, average pooling in place of max pooling, "
            'or take means over finite networks: otherwise="sample"'
        )
    gains = tuple(
        place
        for index, place in writer.others.items()
        if index in program.processes and program.steps[index].op.rate
    )
    op = Several(
        tuple(writer.operations),
        tuple(writer.roots.values()),
        gains,
        sizes,
        DRAWS * context.attention_samples,
    )
    key = ("several", op, tuple(writer.inputs), tuple(writer.roots), axes, units)
    if key not in context.sources:
        index = program.add(op, writer.inputs, Note(text, axes=ax.sizes_text(axes)))
        program.parts[index] = {place: part for (_, part), place in writer.roots.items()}
        bases = frozenset(
            (i, own + part)
            for index_of, part in writer.roots
            for i, own in program.processes[index_of].bases
        )
        process = program.process(index, axes, units, gaussian=False, bases=bases)
        context.sources[key] = Ref(process, (), axes, units)
    return context.sources[key]


def primitive(
    context: Context, name: str, params: tuple, values: list[Value], refs: list, dims: Dims
) -> Value:
    """A primitive that acts on each unit alone, whatever it does with positions, of processes and numbers.

    Args:
        context: of the trace.
        name: of the primitive.
        params: its parameters, hashable.
        values: its operands.
        refs: of each operand the process that it is, None for numbers.
        dims: of the result.
    """
    axes = ax.positions(dims)
    sizes = tuple(a.size[0] for a in axes)
    codes = tuple(shape_code(v.dims) if v.dims else ((False, 1),) * len(dims) for v in values)
    operands: list = []
    for value, ref in zip(values, refs):
        if ref is None:
            operands.append(None)
            continue
        own = ax.positions(value.dims)
        where = tuple(own.index(a) for a in ref.axes)
        operands.append((where, tuple(a.size[0] for a in own), code(value.dims, own)))
    op = Primitive(
        Numbers(name, params, codes, shape_code(dims)), tuple(operands), code(dims, axes), sizes
    )

    def write(writer: _Writer) -> None:
        sources = []
        for value, ref in zip(values, refs):
            if ref is not None:
                sources.append(writer.process(ref.process.index, ref.part))
                continue
            sources.append(writer.other(value.body.index))
        writer.operation(op, tuple(sources))

    known = [ref for ref in refs if ref is not None]
    ref = by_draws(context, write, known, axes, f"{name} of several activations")
    return Value(dims, Linear(((ref, Coefficient()),)))
