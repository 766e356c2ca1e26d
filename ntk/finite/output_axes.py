"""Axes of a network's output by what becomes of them in its empirical kernel: traced, diagonal or paired.

Of a kernel K[n, k, m, l] a traced axis k leaves the mean over k of K[n, k, m, k], a diagonal one K[n, k, m, k].
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax


class OutputAxes(NamedTuple):
    """Axes of one output by what becomes of them; ``example`` is the axis of the examples, or None."""

    trace: tuple[int, ...]
    diagonal: tuple[int, ...]
    rest: tuple[int, ...]
    example: int | None

    @property
    def single(self) -> bool:
        """Whether the axis of the examples is traced or diagonal: examples meet only themselves."""
        return self.example is not None and self.example not in self.rest

    def of_example(self) -> list[tuple[int, ...]]:
        """Traced, diagonal and other axes, as numbered in the output of one example."""
        e = self.example
        return [tuple(a - (e is not None and a > e) for a in axes if a != e) for axes in self[:3]]

    @property
    def example_order(self) -> tuple[int, ...]:
        """The same in one row."""
        return sum(self.of_example(), ())


def output_axes(
    shape1: tuple, shape2: tuple, trace: tuple, diagonal: tuple, example: int | None
) -> OutputAxes:
    """Sorts the axes of an output, and refuses those that do not fit its shapes.

    Raises:
        ValueError: an axis is out of range, both traced and diagonal, or differs in size.
    """
    ndim = len(shape1)
    for axis in (*trace, *diagonal, *(() if example is None else (example,))):
        if not -ndim <= axis < ndim:
            raise ValueError(f"axis {axis} is out of range for outputs of shape {tuple(shape1)}")
    traced, kept = {a % ndim for a in trace}, {a % ndim for a in diagonal}
    if traced & kept:
        raise ValueError(f"axes {sorted(traced & kept)} are both in trace_axes and diagonal_axes")
    for axis in traced | kept:
        if shape1[axis] != shape2[axis]:
            raise ValueError(
                f"axis {axis} is traced or diagonal, and differs in size: outputs of x1 have shape "
                f"{tuple(shape1)}, of x2 {tuple(shape2)}; take it out of trace_axes and diagonal_axes"
            )
    rest = tuple(a for a in range(ndim) if a not in traced | kept)
    example = None if example is None else example % ndim
    return OutputAxes(tuple(sorted(traced)), tuple(sorted(kept)), rest, example)


def arrange(kernel: jax.Array, shape1: tuple, shape2: tuple, axes: OutputAxes) -> jax.Array:
    """Brings a kernel (g, n, r, m, q) to pairs of output axes side by side, and averages.

    Args:
        kernel: see :func:`ntk.finite.contraction.contract`; where the axis of the examples is traced or diagonal,
            it has that axis in front, and n = m = 1.
        shape1: shape of the output of the first batch.
        shape2: shape of the output of the second.
        axes: of the output.
    """
    e = axes.example
    single = axes.single
    rest = [a for a in axes.rest if a != e]
    diagonal = [a for a in axes.diagonal if a != e]
    first: list[tuple[Any, int]] = [(e, 0)] * single + [(a, 0) for a in diagonal]
    for k in (0, 1):
        first += [(e, k)] * (e is not None and not single) + [(a, k) for a in rest]
    kernel = kernel.reshape([(shape1, shape2)[k][a] for a, k in first])
    kernel = kernel.transpose(sorted(range(len(first)), key=first.__getitem__))
    if single and e in axes.trace:
        kernel = kernel.sum(sorted(first).index((e, 0)))
    return kernel / math.prod(shape1[a] for a in axes.trace)
