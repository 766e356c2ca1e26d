"""The data, or numbers that follow from it, as a layer of weights reads them: their inner products.

Over the D entries that a layer sums over::

    K(p, p') = sum_c x_c(p) x'_c(p') / D
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk.infinite.inputs import Need, inputs_to_kernel
from ntk.infinite.kernel import Array
from ntk.infinite.weight_laws import NORMAL
from ntk.trace import axes as ax
from ntk.trace import entries
from ntk.trace.axes import Axis
from ntk.trace.context import Context
from ntk.trace.coordinates import Refusal, Value
from ntk.trace.laws import Law, Setting
from ntk.trace.ops.numbers import to_axes
from ntk.trace.steps import Kind, Note, Step, code


class Data(NamedTuple):
    """Second moments of an array of numbers.

    Attributes:
        code: its dimensions in terms of its axes of positions.
        axes: sizes of these.
        kept: places of those that the moments have; over all others they are means.
    """

    code: tuple
    axes: tuple[int, ...]
    kept: tuple[int, ...]


def data_moments(
    context: Context, value: Value, over: tuple[Axis, ...]
) -> tuple[int, tuple[Axis, ...]]:
    """Second moments of an array of numbers, averaged over the axes that a layer sums over."""
    if value.body.power:
        raise Refusal(f"numbers of size width^{value.body.power:g} meet weights")
    axes = ax.positions(value.dims)
    kept = tuple(a for a in axes if a not in over)
    op = Data(
        code(value.dims, axes),
        tuple(a.size[0] for a in axes),
        tuple(axes.index(a) for a in kept),
    )
    note = Note("inner products of the data", axes=ax.sizes_text(kept))
    index = context.program.add(op, (value.body.index,), note)
    context.program.process(index, kept, (), gaussian=False, bases=frozenset())
    return index, kept


def data_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Second moments of the inputs."""
    plan = setting.plan._replace(need=need, batch_axis=0, channel_axis=-1)
    one, two = (rows(step.op, array, setting.dtype) for array in operands[0])
    coincident = setting.coincident if one.shape[0] > 1 else None
    # A layer of weights takes the entries as they are.
    raw = entries.of_weights(one, two, NORMAL, 1.0) if setting.entries else None
    return Law(inputs_to_kernel(one, two, None, None, coincident, plan), entries=raw)


def rows(op: Data, array: Array, dtype: Any) -> Array:
    """An array of numbers as (N, *S, D), D of its entries summed over."""
    x = to_axes(array.astype(dtype), op.code, op.axes)
    rest = [1 + k for k in range(len(op.axes)) if k not in op.kept]
    x = jnp.transpose(x, (0, *(1 + k for k in op.kept), *rest))
    return x.reshape(*x.shape[: 1 + len(op.kept)], -1)


def sizes(op: Data) -> tuple[int, ...]:
    """Axes of positions."""
    return tuple(op.axes[k] for k in op.kept)


KIND = Kind("data", data_law, sizes=sizes, joint=True)
