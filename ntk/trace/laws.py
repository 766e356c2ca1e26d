"""What is known of a process on two batches, and what the evaluation of a traced network shares between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need, Plan
from ntk.infinite.kernel import Array, Kernel
from ntk.trace.entries import Entries


class Sides(NamedTuple):
    """An array of numbers in the first and in the second batch."""

    one: Array
    two: Array


def sides_of(operands: list, side: int) -> list:
    """The arrays among the operands, in one of the batches; None for laws."""
    return [o[side] if isinstance(o, Sides) else None for o in operands]


class Setting(NamedTuple):
    """What an evaluation shares between steps.

    Attributes:
        samples: in either batch.
        dtype: of the kernels.
        plan: of the evaluation.
        coincident: (N1, N2), where the samples are the same; or None.
        entries: whether a weight that is not normal may show, so that entries are kept, see `ntk.trace.entries`.
    """

    samples: tuple[int, int]
    dtype: Any
    plan: Plan
    coincident: Array | None
    entries: bool = False


class Law(NamedTuple):
    """Moments of a process over both batches.

    Attributes:
        kernel: second moments and tangent kernel.
        means: its mean in either batch, (N, *S); None for mean zero.
        entries: of a Gaussian or nearly Gaussian process that sums over a fixed number of weights; None where it has
            none, or where all weights of the network are normal.
    """

    kernel: Kernel
    means: tuple[Array, Array] | None = None
    entries: Entries | None = None


def fitted(kernel: Kernel, need: Need) -> Kernel:
    """The kernel with equal positions alone, where all pairs are known but not needed."""
    if need.pairs or kernel.diagonal_spatial or kernel.var1.ndim == 1:
        return kernel
    ntk = kernel.ntk
    return kernel.replace(
        correlation=kernels.pixel_diagonal(kernel.correlation, 2),
        ntk=ntk if ntk is None or ntk.ndim == 0 else kernels.pixel_diagonal(ntk, 2),
        diagonal_spatial=True,
    )


def broadcast(kernel: Kernel, samples: tuple[int, int]) -> Kernel:
    """A kernel that depends on no sample, written out for every pair."""
    one, two = samples
    if kernel.var1.shape[0] == one and kernel.var2.shape[0] == two:
        return kernel

    def wide(x: Array | None, *lead: int) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        return jnp.broadcast_to(x, (*lead, *x.shape[len(lead) :]))

    return kernel.replace(
        correlation=wide(kernel.correlation, one, two),
        ntk=wide(kernel.ntk, one, two),
        var1=wide(kernel.var1, one),
        var2=wide(kernel.var2, two),
        within1=wide(kernel.within1, one),
        within2=wide(kernel.within2, two),
    )


def spread(x: Array, lead: int, pairs: bool, where: Sequence[int], count: int) -> Array:
    """Axes of positions put in their place among `count` axes, of size one where the process has none."""
    step = 2 if pairs else 1
    order = sorted(range(len(where)), key=where.__getitem__)
    x = jnp.transpose(x, [*range(lead), *(lead + step * k + s for k in order for s in range(step))])
    shape = [1] * (step * count)
    for rank, k in enumerate(order):
        for s in range(step):
            shape[step * where[k] + s] = x.shape[lead + step * rank + s]
    return x.reshape(*x.shape[:lead], *shape)


def gaussian(
    nngp: Array, var1: Array, var2: Array, ntk: Array | None, within: tuple, diagonal: bool
) -> Kernel:
    """The kernel of a Gaussian process of given second moments."""
    one = jnp.zeros((), nngp.dtype)
    base = Kernel(one, var1, var2, ntk, *within, is_gaussian=True, diagonal_spatial=diagonal)
    return base.replace(nngp=nngp)
