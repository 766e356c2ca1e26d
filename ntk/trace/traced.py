"""A family after tracing: the steps that its output depends on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ntk.infinite.weight_laws import NORMAL
from ntk.trace.loops import Loop
from ntk.trace.steps import Note, Program, Step


class Traced(NamedTuple):
    """A family after tracing.

    Attributes:
        steps: the steps that the output depends on.
        notes: what a reader is told of each.
        constants: arrays of the model.
        order: for each axis of positions of the output, its place among those of the last step.
        dtypes: of the inputs of the model.
        parameters: what was found of each parameter, by its path.
        loops: runs of equal blocks of steps.
    """

    steps: tuple[Step, ...]
    notes: tuple[Note, ...]
    constants: tuple[np.ndarray, ...]
    order: tuple[int, ...]
    dtypes: tuple[Any, ...]
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
        if step.operation != "combine":
            continue
        _count, pieces, _ = step.static
        first = step.inputs[0]
        vectors = [steps[i] for i in step.inputs[1:] if isinstance(i, int)]
        plain = all(not maps and not given and number == 1 for _, maps, _, number, given in pieces)
        layer = steps[first] if isinstance(first, int) else None
        fits = (
            plain
            and layer is not None
            and layer.operation == "affine"
            and layer.static[3] is None
            and uses[first] == 1
            and len(vectors) == 1 == len(pieces) - 1
            and vectors[0].operation == "vector"
            and not vectors[0].static[2]
            and vectors[0].static[3] == NORMAL
            and pieces[0][2] == tuple(range(len(pieces[0][2])))
        )
        if fits:
            variance, rate, *_ = vectors[0].static
            static = (*layer.static[:3], (variance, rate), *layer.static[4:])
            steps[index] = Step("affine", static, layer.inputs)
            names = notes[first].parameters + notes[step.inputs[1]].parameters
            notes[index] = notes[first]._replace(parameters=names)
    return steps, notes
