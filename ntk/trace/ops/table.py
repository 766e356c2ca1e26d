"""Constants that differ between units, such as sines of positions: means over units as the width grows.

A layer of weights, and a norm, read such constants through their means over units. These are sums over a grid that
gets finer with the width; from two widths they are carried on to infinite width by a line in 1/width.

With K_n = (1 / n) sum_i c_i c_i^T the mean over n units, at two widths::

    K = (n_2 K_2 - n_1 K_1) / (n_2 - n_1)
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Kernel
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import Axis, Dims
from ntk.trace.context import Context
from ntk.trace.coordinates import Refusal, Table, Value
from ntk.trace.laws import Law, Setting
from ntk.trace.steps import Kind, Note, Step

MOST = 0.05
"""Largest step from the wider of both widths to the limit, relative to the largest second moment."""


class TableMeans(NamedTuple):
    """Means over units of constants and of their products.

    Attributes:
        sizes: of their axes of positions.
    """

    sizes: tuple[int, ...]


def as_process(context: Context, value: Value) -> Value:
    """Constants that differ between units as a process of means over units, see `limit`."""
    table = value.body
    if not isinstance(table, Table):
        return value
    if not any(a.infinite for a in ax.flat(value.dims)):
        one, two = table
        context.number(one.flat[0], two.flat[0])  # says what is wrong with a number
        raise Refusal(
            f"a constant array of shape {one.shape} whose entries depend on the width: only a power of the width "
            "as a factor has a limit here"
        )
    dims = ax.substitute(
        value.dims,
        {a: (Axis("unit", a.size),) for a in ax.flat(value.dims) if a.infinite},
    )
    axes, units = ax.positions(dims), ax.units(dims)
    if any(len(dim) > 1 for dim in dims) or (ax.flat(dims) and not units):
        raise Refusal("constants that differ along a flattened axis that grows with the width")
    dims = tuple(() if dim and dim[0].kind == "sample" else dim for dim in dims)
    second, mean, error = limit(table, dims)
    inputs = (context.program.constant(second), context.program.constant(mean))
    sizes = tuple(a.size[0] for a in axes)
    note = Note(
        f"constants of each unit, means over units to {error:.1g}",
        axes=" x ".join(map(str, sizes)),
    )
    index = context.program.add(TableMeans(sizes), inputs, note)
    process = context.program.process(
        index, axes, units, gaussian=False, bases=frozenset([(co.TABLE, ())])
    )
    return Value(dims, co.Linear(((co.Ref(process, (), axes, units), co.Coefficient()),)))


def limit(table: Table, dims: Dims) -> tuple[np.ndarray, np.ndarray, float]:
    """Second moments (*S, *S) and means (*S) over units at infinite width, and the step to them from the wider width.

    The step is of first order in 1/width where the limit is wrong by the second, so that it bounds the error unless
    orders cancel.

    Args:
        table: the constants.
        dims: each of one axis: of positions, of units, or () for one along which they are alike.

    Raises:
        Refusal: the means have no limit, as those of the number of a unit.
    """
    counts, seconds, means = [], [], []
    for array in (table.one, table.two):
        x = np.asarray(array, np.float64)
        alike = tuple(k for k, dim in enumerate(dims) if not dim)
        for k in alike:
            first = np.take(x, [0], k)
            if not np.array_equal(x, np.broadcast_to(first, x.shape)):
                raise Refusal("constants that differ between samples")
            x = first
        kept = [k for k, dim in enumerate(dims) if dim and dim[0].kind == "position"]
        over = [k for k, dim in enumerate(dims) if dim and dim[0].kind == "unit"]
        sizes = [x.shape[k] for k in kept]
        x = np.transpose(x, (*alike, *kept, *over)).reshape(int(np.prod(sizes)), -1)
        counts.append(x.shape[1])
        seconds.append((x @ x.T / x.shape[1]).reshape(*sizes, *sizes))
        means.append(x.mean(1).reshape(sizes))

    def carried(values: list) -> np.ndarray:
        # v_n = v + a / n at both widths: n v_n is a line in n, whose slope is v.
        return (counts[1] * values[1] - counts[0] * values[0]) / (counts[1] - counts[0])

    second, mean = carried(seconds), carried(means)
    error = float(np.abs(second - seconds[1]).max())
    if not np.isfinite(error) or error > MOST * np.abs(seconds[1]).max():
        raise Refusal(
            "constants that differ between units, whose means over units have no limit that two widths show (numbers "
            "that count units, or that were drawn): let them be functions of (number of the unit) / width"
        )
    return second, mean, error


def table_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of constants that differ between units: nothing of them is trained."""
    sizes, count = step.op.sizes, len(step.op.sizes)
    second, mean = (jnp.asarray(o.one, setting.dtype) for o in operands)
    order = [side * count + k for k in range(count) for side in (0, 1)]
    pairs = jnp.transpose(second, order)[None]
    variance = kernels.pixel_diagonal(pairs, 1) if count else pairs
    diagonal = count > 0 and not need.pairs
    within = (pairs, pairs) if need.variance == 2 and count else (None, None)
    one = jnp.zeros((), setting.dtype)
    kernel = Kernel(
        one,
        variance,
        variance,
        jnp.zeros(()) if setting.plan.ntk else None,
        *within,
        is_gaussian=False,
        diagonal_spatial=diagonal,
    )
    nngp = (variance if diagonal else pairs)[None]
    mean = mean.reshape(1, *sizes)
    return Law(kernel.replace(nngp=nngp), (mean, mean))


KIND = Kind("fixed table", table_law, sizes=lambda op: op.sizes)
