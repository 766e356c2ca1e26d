"""The steps of a traced network, evaluated on two batches of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ntk.infinite import repeated
from ntk.infinite.inputs import Need, join
from ntk.stax.combinators import iterate
from ntk.trace.heads import attend_law, scores_pair
from ntk.trace.loops import Loop
from ntk.trace.matrices import affine_law, convolve_law
from ntk.trace.mixtures import combine_law, copies_law, function_law, mean_sides, mix_law, single
from ntk.trace.moments import Law
from ntk.trace.setting import Setting, Sides
from ntk.trace.sources import data_law, finite_sides, lookup_law, vector_law
from ntk.trace.steps import Step
from ntk.trace.tables import table_law

_PROCESSES = (
    "data",
    "vector",
    "lookup",
    "table",
    "affine",
    "tied",
    "convolve",
    "combine",
    "function",
    "mix",
    "copies",
    "scores",
    "attend",
)


def needs_of(steps: Sequence[Step], output: int, need: Need) -> dict[int, Need]:
    """What must be known of each process, from what is asked of the output."""
    nothing = Need(False, 0)
    needs = {output: need}
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        own = needs.get(index, nothing)
        given = _need_of_inputs(step, own)
        for source in step.inputs:
            if isinstance(source, int) and steps[source].operation in _PROCESSES:
                needs[source] = join(needs.get(source, nothing), given)
    return needs


def _need_of_inputs(step: Step, own: Need) -> Need:
    if step.operation == "combine":
        if any(maps for _, maps, *_ in step.static[1]):
            return Need(True, 2 if own.variance else 0)
        return own
    if step.operation == "function":
        return Need(own.pairs, max(own.variance, 1))
    if step.operation == "mean":
        return Need(False, 1)
    if step.operation == "affine" and step.static[2]:
        kept = step.static[5]  # flattened positions alone need no pairs of them
        return own if kept else Need(False, min(own.variance, 1))
    if step.operation in ("scores", "attend"):
        return Need(True, 2)
    return own


def evaluate(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides | Law:
    """The value of one step."""
    return _RULES[step.operation](step, need, means, operands, setting)


_RULES = {
    "finite": finite_sides,
    "data": data_law,
    "vector": vector_law,
    "lookup": lookup_law,
    "table": table_law,
    "affine": affine_law,
    "convolve": convolve_law,
    "combine": combine_law,
    "function": function_law,
    "mean": mean_sides,
    "mix": mix_law,
    "copies": copies_law,
    "scores": scores_pair,
    "attend": attend_law,
}


def run(
    steps: Sequence[Step],
    loops: Sequence[Loop],
    values: dict,
    needs: dict[int, Need],
    setting: Setting,
) -> Law:
    """The law that the last step computes.

    Args:
        steps: of the program.
        loops: blocks that repeat, see `ntk.trace.loops`.
        values: inputs and constants.
        needs: see `needs_of`.
        setting: of the evaluation.
    """
    means = _with_means(steps)
    nothing = Need(False, 0)

    def one(index: int, operands: list) -> Any:
        return evaluate(steps[index], needs.get(index, nothing), index in means, operands, setting)

    def whole(start: int, stop: int) -> None:
        for index in range(start, stop):
            values[index] = one(index, [values[i] for i in steps[index].inputs])

    done = 0
    for loop in loops:
        first, count = _alike_blocks(loop, needs, means)
        if count < 3:
            continue
        whole(done, loop.start)
        block = steps[loop.start : loop.start + loop.length]
        short = _shortcut(block, values, loop.count) if loop.stop - 1 not in means else None
        if short is not None:
            values[loop.stop - 1], done = short, loop.stop
            continue
        whole(loop.start, loop.start + first * loop.length)
        pattern = loop.start + loop.length  # the second block stands for all

        def once(carry: tuple, loop: Loop = loop, pattern: int = pattern) -> tuple:
            inner = dict(zip((loop.start + k for k in loop.live), carry))
            for index in range(pattern, pattern + loop.length):
                operands = [inner[i] if i in inner else values[i] for i in steps[index].inputs]
                inner[index] = one(index, operands)
            return tuple(inner[pattern + k] for k in loop.live)

        before = loop.start + (first - 1) * loop.length
        carry = tuple(values.get(before + k) for k in loop.live)
        end = loop.start + (first + count) * loop.length
        while setting.entries and count and not _keeps_form(once, carry):
            carry, count = once(carry), count - 1  # the first block adds what has no entries
        carry = iterate(once, carry, count) if count else carry
        done = end
        values.update(zip((done - loop.length + k for k in loop.live), carry))
    whole(done, len(steps))
    return values[len(steps) - 1]


def _keeps_form(once: Callable, carry: tuple) -> bool:
    """Whether a block returns arrays of the kind that it takes."""
    kinds = [
        jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (carry, jax.eval_shape(once, carry))
    ]
    return kinds[0] == kinds[1]


def _alike_blocks(loop: Loop, needs: dict[int, Need], means: set[int]) -> tuple[int, int]:
    """First of the blocks of which the same must be known as of the second one, and their number."""

    def asked(block: int) -> list:
        start, out = loop.start + block * loop.length, []
        for index in range(start, start + loop.length):
            need = needs.get(index, Need(False, 0))
            out.append((need.pairs, max(need.variance, 1), index in means))
        return out

    pattern = asked(1)
    first, last = (0 if asked(0) == pattern else 1), 2
    while last < loop.count and asked(last) == pattern:
        last += 1
    return first, last - first


def _shortcut(block: Sequence[Step], values: dict, count: int) -> Law | None:
    """`count` blocks of (weights, homogeneous nonlinearity) at once, as in `ntk.stax.serial`; None for others."""
    if [step.operation for step in block] != ["affine", "function"]:
        return None
    affine, function = block
    law = values[affine.inputs[0]]
    total, rate, flat, bias, apart, *_ = affine.static
    known = single(function)
    trained = rate == total and (bias is None or bias[0] == bias[1])
    if flat or apart or not trained or law.means is not None or known is None:
        return None
    W_std, b_std = total**0.5, bias[0] ** 0.5 if bias and bias[0] else None
    kernel = repeated.shortcut(law.kernel, known, W_std, b_std, count)
    return None if kernel is None else Law(kernel)


def _with_means(steps: Sequence[Step]) -> set[int]:
    """Steps whose mean a later one reads."""
    out: set[int] = set()
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        reads = step.operation in ("function", "mean", "copies")
        if step.operation in ("combine", "mix"):
            # A sum of several processes has cross terms of their means.
            reads = index in out or (step.operation == "combine" and step.static[0] > 1)
        if reads:
            out |= {i for i in step.inputs if isinstance(i, int)}
        if step.operation == "attend" and index in out:
            out.add(step.inputs[0])
    return out
