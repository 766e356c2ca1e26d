"""The kernel function of a traced network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk.infinite import pixels
from ntk.infinite.evaluate import KernelFn
from ntk.infinite.inputs import Need, Plan
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import joint, trees
from ntk.trace import run as running
from ntk.trace.matrices import fitted
from ntk.trace.mixtures import broadcast
from ntk.trace.setting import Setting, Sides
from ntk.trace.steps import Step
from ntk.trace.traced import Traced


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
        if step.operation == "function" and not all(_is_straight(t) for t in step.static[0]):
            return True
        if step.operation in ("function", "combine", "mix", "copies"):
            left += [i for i in step.inputs if isinstance(i, int)]
    return False


def _is_straight(term: tuple) -> bool:
    _, _, factors, _ = term
    return not factors or (len(factors) == 1 and trees.is_linear(factors[0][2]))


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
        needs = running.needs_of(traced.steps, len(traced.steps) - 1, need)
        entries = [1]
        for index, step in enumerate(traced.steps):
            size = math.prod(sizes_of(step))
            entries.append(size**2 if index in needs and needs[index].pairs else size)
        return max(entries)

    scored = any(step.operation == "attend" for step in traced.steps)
    reads = frozenset({"attention_seed"} if scored or _has_entries(traced.steps) else ())
    return KernelFn(
        refuse, lambda need: need, ("traced", id(traced)), None, None, pair, area, reads
    )


def sizes_of(step: Step) -> tuple[int, ...]:
    """Axes of positions of what a step computes, where it says."""
    if step.operation == "data":
        return tuple(step.static[1][k] for k in step.static[2])
    if step.operation == "convolve":
        return step.static[-1]
    if step.operation == "attend":
        return step.static.out
    if step.operation in ("copies", "table"):
        return step.static
    if step.operation in ("combine", "function", "mean"):
        return step.static[2 if step.operation == "combine" else 1]
    return ()


def _has_entries(steps: Sequence[Step]) -> bool:
    """Whether a layer sums over a fixed number of weights that are not normal."""
    return any(isinstance(x, Standard) and x != NORMAL for step in steps for x in _static(step))


def _static(step: Step) -> tuple:
    if step.operation == "tied":
        return step.static[0]
    return step.static if step.operation in ("affine", "convolve", "vector", "lookup") else ()


def _evaluated(traced: Traced, x1: Any, x2: Any, coincident: Any, plan: Plan) -> Kernel:
    firsts, seconds = (x if isinstance(x, tuple) else (x,) for x in (x1, x2))
    if len(firsts) != len(traced.dtypes):
        raise ValueError(f"the network takes {len(traced.dtypes)} inputs, and got {len(firsts)}")
    dtype = next((x.dtype for x in firsts if jnp.issubdtype(x.dtype, jnp.floating)), jnp.float32)
    samples = firsts[0].shape[0], seconds[0].shape[0]
    setting = Setting(samples, dtype, plan, coincident, _has_entries(traced.steps))
    needs = running.needs_of(traced.steps, len(traced.steps) - 1, plan.need)
    values: dict[Any, Any] = {}
    for k, (one, two, kind) in enumerate(zip(firsts, seconds, traced.dtypes)):
        if not np.issubdtype(kind, np.floating):
            one, two = one.astype(jnp.int32), two.astype(jnp.int32)
        values["input", k] = Sides(one, two)
    for k, array in enumerate(traced.constants):
        array = jnp.asarray(array, dtype if array.dtype.kind == "f" else None)
        values["constant", k] = Sides(array, array)
    if any(step.operation == "tied" for step in traced.steps):
        law = joint.run(traced.steps, values, setting)
    else:
        law = running.run(traced.steps, traced.loops, values, needs, setting)
    kernel = broadcast(law.kernel, setting)
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
