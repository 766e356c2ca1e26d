"""Blocks of steps that repeat, as the blocks of a deep network do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ntk.trace.steps import Step


class Loop(NamedTuple):
    """Steps start ... start + length * count are `count` equal blocks, which refer to one another alike."""

    start: int
    length: int
    count: int


def keys(steps: Sequence[Step]) -> list[Any]:
    """What must be equal for two steps to be the same: their references counted backwards."""
    out, numbers = [], {}
    for index, step in enumerate(steps):
        inputs = tuple(index - i if isinstance(i, int) else i for i in step.inputs)
        key = (step.operation, step.static, inputs)
        out.append(numbers.setdefault(key, len(numbers)))
    return out


def loops(steps: Sequence[Step], least: int = 3) -> tuple[Loop, ...]:
    """Runs of equal blocks, found from the start, the ones that cover most first.

    Args:
        steps: of a program.
        least: fewest repetitions that make a loop.
    """
    names = keys(steps)
    where: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        where.setdefault(name, []).append(index)
    found, start = [], 0
    while start < len(names):
        best = Loop(start, 1, 1)
        for other in where[names[start]]:
            length = other - start
            if length <= 0 or length * least > len(names) - start:
                continue
            count = _repetitions(names, start, length)
            if count >= least and count * length > best.length * best.count:
                best = Loop(start, length, count)
        if best.count > 1:
            found.append(best)
        start += best.length * best.count
    return tuple(found)


def _repetitions(names: list[int], start: int, length: int) -> int:
    block, count = names[start : start + length], 1
    while names[start + count * length : start + (count + 1) * length] == block:
        count += 1
    return count
