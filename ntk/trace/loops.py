"""Blocks of steps that repeat, as the blocks of a deep network do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ntk.trace.steps import Step


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
    count: int
    live: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        """The step after the last block."""
        return self.start + self.length * self.count


def loops(steps: Sequence[Step], least: int = 3) -> tuple[Loop, ...]:
    """Runs of equal blocks, found from the start, the ones that cover most first.

    A block may refer to itself, to the one before it, and to what comes before all of them.

    Args:
        steps: of a program.
        least: fewest repetitions that make a loop.
    """
    numbers: dict[Any, int] = {}
    names = [numbers.setdefault((s.operation, s.static), len(numbers)) for s in steps]
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
                if back > 1:
                    return None
                if back == 1:
                    live.add((source - start) % length)
    last = loop.stop - length
    for step in steps[loop.stop :]:
        for source in step.inputs:
            if isinstance(source, int) and start <= source < loop.stop:
                if source < last:
                    return None
                live.add(source - last)
    if loop.stop == len(steps):
        live.add(length - 1)
    return tuple(sorted(live))
