"""A family after tracing: the steps that its output depends on, and blocks of them that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk.infinite.weight_laws import NORMAL
from ntk.trace.ops.combine import Combine
from ntk.trace.ops.dense import Dense
from ntk.trace.ops.vector import Vector
from ntk.trace.steps import Note, Program, Step


class Loop(NamedTuple):
    """Steps start ... start + length * count are `count` equal blocks, which refer to one another alike.

    Attributes:
        start: the first step.
        length: steps of a block.
        count: number of blocks.
        live: places in a block of the steps that the next block, or what follows, reads.
    """

    start: int
    length: int
    count: int  # type: ignore[assignment]  # a field, not the method of a tuple
    live: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The step after the last block."""
        return self.start + self.length * self.count


class Traced(NamedTuple):
    """A family after tracing.

    Attributes:
        steps: the steps that the output depends on.
        notes: what a reader is told of each.
        constants: arrays of the model.
        order: for each axis of positions of the output, its place among those of the last step.
        samples: shape and type of one sample of each input.
        parameters: what was found of each parameter, by its path.
        loops: runs of equal blocks of steps.
    """

    steps: tuple[Step, ...]
    notes: tuple[Note, ...]
    constants: tuple[np.ndarray, ...]
    order: tuple[int, ...]
    samples: tuple[jax.ShapeDtypeStruct, ...]
    parameters: dict[str, dict]
    loops: tuple[Loop, ...]


def pruned(
    program: Program, last: int, fuse: bool = True
) -> tuple[tuple[Step, ...], tuple[Note, ...]]:
    """The steps that the last one depends on, biases put into the layers that they follow if `fuse`."""
    steps, notes = _fused(program, last) if fuse else (list(program.steps), list(program.notes))
    used = {last}
    for index in range(last, -1, -1):
        if index in used:
            used |= {i for i in steps[index].inputs if isinstance(i, int)}
    new = {old: k for k, old in enumerate(sorted(used))}
    kept = tuple(
        steps[old]._replace(
            inputs=tuple(new[i] if isinstance(i, int) else i for i in steps[old].inputs)
        )
        for old in new
    )
    return kept, tuple(notes[old] for old in new)


def _fused(program: Program, last: int) -> tuple[list[Step], list[Note]]:
    steps, notes = list(program.steps), list(program.notes)
    uses: dict[Any, int] = {}
    for step in steps:
        for source in step.inputs:
            uses[source] = uses.get(source, 0) + 1
    for index, step in enumerate(steps):
        if not isinstance(step.op, Combine):
            continue
        pieces = step.op.pieces
        first = step.inputs[0]
        vectors = [steps[i] for i in step.inputs[1:] if isinstance(i, int)]
        plain = all(not maps and not given and number == 1 for _, maps, _, number, given in pieces)
        layer = steps[first] if isinstance(first, int) else None
        fits = (
            plain
            and layer is not None
            and isinstance(layer.op, Dense)
            and layer.op.bias is None
            and uses[first] == 1
            and len(vectors) == 1 == len(pieces) - 1
            and isinstance(vectors[0].op, Vector)
            and not vectors[0].op.sizes
            and vectors[0].op.law == NORMAL
            and pieces[0].where == tuple(range(len(pieces[0].where)))
        )
        if fits and layer is not None:
            # W K + b as one step: the affine map that all front ends share.
            bias = vectors[0].op.variance, vectors[0].op.rate
            steps[index] = Step(layer.op._replace(bias=bias), layer.inputs)
            names = notes[first].parameters + notes[step.inputs[1]].parameters
            notes[index] = notes[first]._replace(parameters=names)
    return steps, notes


def loops(steps: Sequence[Step], least: int = 3) -> tuple[Loop, ...]:
    """Runs of equal blocks, found from the start, the ones that cover most first.

    A block may refer to itself, to the one before it, and to what comes before all of them.

    Args:
        steps: of a program.
        least: fewest repetitions that make a loop.
    """
    numbers: dict[Any, int] = {}
    names = [numbers.setdefault(s.name, len(numbers)) for s in steps]
    where: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        where.setdefault(name, []).append(index)
    found, start = [], 0
    while start < len(steps):
        best = Loop(start, 1, 1)
        for other in where[names[start]]:
            length = other - start
            if length <= 0 or length * least > len(steps) - start:
                continue
            count = _repetitions(steps, names, start, length)
            if count >= least and count * length > best.length * best.count:
                best = Loop(start, length, count)
        live = _live(steps, best) if best.count > 1 else None
        if live is not None:
            found.append(best._replace(live=live))
            start = best.stop
        else:
            start += 1
    return tuple(found)


def _repetitions(steps: Sequence[Step], names: list[int], start: int, length: int) -> int:
    """Number of blocks from `start` that are equal to the first."""
    index = start
    while index + length < len(steps):
        one, two = steps[index].inputs, steps[index + length].inputs
        if names[index] != names[index + length] or len(one) != len(two):
            break
        if not all(_alike(a, b, start, length) for a, b in zip(one, two)):
            break
        index += 1
    return 1 + (index - start) // length


def _alike(one: Any, two: Any, start: int, length: int) -> bool:
    """Whether the references of two blocks are to the same thing before them, or to the same place in them."""
    if not (isinstance(one, int) and isinstance(two, int)):
        return one == two
    # The same place of the block before, or the same step before all blocks.
    return two - one == length or one == two < start


def _live(steps: Sequence[Step], loop: Loop) -> tuple[int, ...] | None:
    """Places whose values leave their block; None where one is read by more than the next block."""
    start, length = loop.start, loop.length
    live = set()
    for index in range(start, loop.stop):
        block = (index - start) // length
        for source in steps[index].inputs:
            if isinstance(source, int) and source >= start:
                back = block - (source - start) // length
                # A loop carries one block to the next: what is read two blocks later is not carried.
                if back > 1:
                    return None
                if back == 1:
                    live.add((source - start) % length)
    last = loop.stop - length
    for step in steps[loop.stop :]:
        for source in step.inputs:
            if isinstance(source, int) and start <= source < loop.stop:
                # After the loop only the last block is there.
                if source < last:
                    return None
                live.add(source - last)
    if loop.stop == len(steps):
        live.add(length - 1)
    return tuple(sorted(live))
