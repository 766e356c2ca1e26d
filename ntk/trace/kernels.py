"""The kernel function of a traced network: its steps, evaluated on two batches of inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.infinite import pixels, repeated
from ntk.infinite.evaluate import KernelFn
from ntk.infinite.inputs import Need, Plan, join
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.weight_laws import NORMAL
from ntk.stax.combinators import iterate
from ntk.trace import joint
from ntk.trace.laws import Law, Setting, Sides, broadcast, fitted
from ntk.trace.ops.attention_laws import Attend
from ntk.trace.ops.dense import Dense
from ntk.trace.ops.function import Functions, single
from ntk.trace.ops.several_laws import Several
from ntk.trace.rules import kind
from ntk.trace.steps import Step
from ntk.trace.traced import Loop, Traced


class NoRule(ValueError):
    """The refusal of a model, and not of what was asked of it."""


CURVED = (
    "no infinite-width tangent kernel: a nonlinearity acts on the outputs of the last layer of weights, and its slope "
    "there is random at every width, so that the tangent kernel differs from one initialisation to the next. Take the "
    "kernel of the readout (let the model return what the nonlinearity acts on, and put the nonlinearity into the "
    'loss), or ask for get="nngp" alone: the second moments of the outputs, which are not Gaussian'
)


def is_curved(steps: Sequence[Step]) -> bool:
    """Whether a nonlinearity, or a product of activations, follows the last layer of weights."""
    left = [len(steps) - 1]
    while left:
        step = steps[left.pop()]
        is_linear = kind(step).is_linear
        if is_linear is not None:
            if not is_linear(step.op):
                return True
            left += [i for i in step.inputs if isinstance(i, int)]
    return False


def kernel_function(traced: Traced, batched: bool = True) -> KernelFn:
    """The kernel function of a traced network."""
    curved = is_curved(traced.steps)

    def pair(x1: Any, x2: Any, coincident: Array | None, plan: Plan) -> Kernel:
        if plan.ntk and curved:
            raise NoRule(CURVED)
        return _evaluated(traced, x1, x2, coincident, plan)

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("the kernel of a traced network is a function of inputs, not of a Kernel")

    def area(need: Need) -> int:
        needs = needs_of(traced.steps, len(traced.steps) - 1, need)
        entries = [1]
        for index, step in enumerate(traced.steps):
            size = math.prod(kind(step).sizes(step.op))
            entries.append(size**2 if index in needs and needs[index].pairs else size)
        return max(entries)

    scored = any(isinstance(step.op, Attend | Several) for step in traced.steps)
    reads = frozenset({"attention_seed"} if scored or _has_entries(traced.steps) else ())
    return KernelFn(
        refuse,
        lambda need: need,
        ("traced", id(traced)),
        pair=pair,
        area=area,
        reads=reads,
        samples=traced.samples,
        traced=traced,
    )


def _has_entries(steps: Sequence[Step]) -> bool:
    """Whether a layer sums over a fixed number of weights that are not normal."""
    return any(getattr(step.op, "law", NORMAL) != NORMAL for step in steps)


def _evaluated(traced: Traced, x1: Any, x2: Any, coincident: Any, plan: Plan) -> Kernel:
    firsts, seconds = (x if isinstance(x, tuple) else (x,) for x in (x1, x2))
    dtype = next((x.dtype for x in firsts if jnp.issubdtype(x.dtype, jnp.floating)), jnp.float32)
    samples = firsts[0].shape[0], seconds[0].shape[0]
    setting = Setting(samples, dtype, plan, coincident, _has_entries(traced.steps))
    needs = needs_of(traced.steps, len(traced.steps) - 1, plan.need)
    values: dict[Any, Any] = {}
    for k, (one, two, sample) in enumerate(zip(firsts, seconds, traced.samples)):
        if not jnp.issubdtype(sample.dtype, jnp.floating):
            one, two = one.astype(jnp.int32), two.astype(jnp.int32)
        values["input", k] = Sides(one, two)
    for k, array in enumerate(traced.constants):
        both = jnp.asarray(array, dtype if array.dtype.kind == "f" else None)
        values["constant", k] = Sides(both, both)
    if any(getattr(step.op, "tied", None) for step in traced.steps):
        law = joint.run(traced.steps, values, setting)
    else:
        law = run(traced.steps, traced.loops, values, needs, setting)
    kernel = broadcast(law.kernel, setting.samples)
    kernel = pixels.reorder(fitted(kernel, plan.need), list(traced.order))
    if kernel.ntk is not None and kernel.ntk.ndim == 0:
        kernel = kernel.replace(ntk=jnp.zeros_like(kernel.correlation))
    shape = tuple(kernel.var1.shape[1:])
    return dataclasses.replace(
        kernel,
        coincident=coincident,
        mask1=None,
        mask2=None,
        shape1=(samples[0], *shape, -1),
        shape2=(samples[1], *shape, -1),
        symmetric=plan.symmetric,
        batch_axis=0,
        channel_axis=1 + len(shape),
        is_input=False,
    )


# --- the steps in turn ---------------------------------------------------------------------------


def needs_of(steps: Sequence[Step], output: int, need: Need) -> dict[int, Need]:
    """What must be known of each process, from what is asked of the output."""
    nothing = Need(False, 0)
    needs = {output: need}
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        own = needs.get(index, nothing)
        given = kind(step).needs(step.op, own)
        for source in step.inputs:
            if isinstance(source, int) and kind(steps[source]).is_process:
                # A process that several steps read must be known as well as the one of them that needs most.
                needs[source] = join(needs.get(source, nothing), given)
    return needs


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
        loops: blocks that repeat, see `ntk.trace.traced`.
        values: inputs and constants.
        needs: see `needs_of`.
        setting: of the evaluation.
    """
    means = _with_means(steps)
    nothing = Need(False, 0)

    def one(index: int, operands: list) -> Any:
        need, step = needs.get(index, nothing), steps[index]
        return kind(step).law(step, need, index in means, operands, setting)

    def whole(start: int, stop: int) -> None:
        for index in range(start, stop):
            values[index] = one(index, [values[i] for i in steps[index].inputs])

    done = 0
    for loop in loops:
        # The first and last blocks may have to be known otherwise than those between, as the last before a pool.
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
    if [type(step.op) for step in block] != [Dense, Functions]:
        return None
    affine, nonlinearity = block
    law = values[affine.inputs[0]]
    total, rate, flat, bias, apart, *_ = affine.op
    known = single(nonlinearity)
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
        read = kind(steps[index]).means(steps[index], index in out)
        out |= {i for i in read if isinstance(i, int)}
    return out
