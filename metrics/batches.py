"""Means of a curvature product over batches: of arrays with a batch axis, and of a data loader."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from metrics import checks
from metrics.programs import remembered
from ntk import arguments
from ntk.types import Array, PyTree


@remembered
@arguments.strict
def accumulated(product: Callable, *, axes: Any = 0, unroll: bool = False) -> Callable:
    """The mean of a product over batches, one batch in memory at a time.

    Args:
        product: the product over one batch.
        axes: 0, or a tuple of 0 and None: None parts are shared, as in ``(batches, factors)``.
        unroll: unroll the loop over batches; XLA's CPU backend needs it for convolutions.

    Returns:
        ``product(params, batches, vector)``, where leaves of batches have a leading axis (number of
        batches). Batches are weighted equally; a shorter last one: `metrics.chunks.chunked`.

    Raises:
        TypeError: product is no function of three arguments.
        ValueError: axes are no 0 or tuple of 0 and None; (when it is called) the leading axes differ.
    """
    checks.function("product", product, "params", "batch", "vector")
    if axes != 0 and not (isinstance(axes, tuple) and 0 in axes and set(axes) <= {0, None}):
        raise ValueError(
            f"axes is {axes!r}; it must be 0, or a tuple of 0 and None, one for each part"
        )

    def mean_product(params: PyTree, batches: PyTree, vector: PyTree) -> PyTree:
        parts, axes_of = (batches, axes) if isinstance(axes, tuple) else ((batches,), (axes,))
        if not isinstance(parts, tuple) or len(parts) != len(axes_of):
            raise ValueError(f"axes is {axes}; batches must be a tuple of {len(axes_of)} parts")
        counts = {
            jnp.shape(leaf)[:1]
            for part, a in zip(parts, axes_of)
            if a == 0
            for leaf in jax.tree.leaves(part)
        }
        if len(counts) != 1 or counts == {()}:
            raise ValueError(
                f"the leaves of batches have leading axes {sorted(n for c in counts for n in c)}; all need the "
                "same, the number of batches: reshape (N, ...) to (N // B, B, ...)"
            )
        ((count,),) = counts

        def body(total: PyTree, i: Array) -> tuple[PyTree, None]:
            at = tuple(
                jax.tree.map(lambda x: x[i], part) if a == 0 else part
                for part, a in zip(parts, axes_of)
            )
            one = product(params, at if isinstance(axes, tuple) else at[0], vector)
            return jax.tree.map(jnp.add, total, one), None

        zeros = jax.tree.map(jnp.zeros_like, vector)
        total = jax.lax.scan(body, zeros, jnp.arange(count), unroll=unroll or 1)[0]
        return jax.tree.map(lambda x: x / count, total)

    return mean_product


@remembered
@arguments.strict
def streamed(product: Callable) -> Callable:
    """The mean of a product over a data loader: its batches need not fit in memory together.

    Python drives it: `metrics.curvature` and `metrics.spectra` step it, and nothing may jit it.

    Args:
        product: the product over one batch, compiled for each shape of a batch. What travels beside the
            data is in every batch: ``streamed(scaled(hessian(loss)))`` takes ``(batch, factors)``.

    Returns:
        ``product(params, batches, vector)``. Every call goes through batches: a list, a data loader, or
        a function that returns an iterator. The same examples every time, or it is no matrix. Batches of unequal
        size count by their examples: the leading axis that varies between them. What has the same shape in all
        batches, as factors and constants do, tells nothing about their number.

    Raises:
        TypeError: product is no function of three arguments, or batches are none.
        ValueError: batches is empty, or an iterator, which one pass exhausts; several leading axes vary.
    """
    checks.function("product", product, "params", "batch", "vector")

    @functools.partial(jax.jit, donate_argnames="total")
    def add(total: PyTree, params: PyTree, batch: PyTree, vector: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, total, product(params, batch, vector))

    def mean_product(params: PyTree, batches: PyTree, vector: PyTree) -> PyTree:
        totals: dict[tuple, PyTree] = {}
        counts: dict[tuple, int] = {}  # of the batches of one size each
        for batch in _opened(batches):
            shapes = tuple(map(jnp.shape, jax.tree.leaves(batch)))
            total = totals.get(shapes)
            total = jax.tree.map(jnp.zeros_like, vector) if total is None else total
            jax.block_until_ready(total)  # one batch is in work while the loader prepares the next
            totals[shapes] = add(total, params, batch, vector)
            counts[shapes] = counts.get(shapes, 0) + 1
        if not totals:
            raise ValueError("batches is empty; a mean needs at least one example")
        sizes = _sizes(list(totals))
        examples = sum(counts[shapes] * size for shapes, size in sizes.items())
        weighted = [
            jax.tree.map(lambda t, s=sizes[shapes] / examples: s * t, total)
            for shapes, total in totals.items()
        ]
        return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *weighted)

    mean_product.__dict__.update(streamed=True)
    return mean_product


def _opened(batches: PyTree) -> Iterable:
    """A pass over the batches."""
    found = batches() if callable(batches) else batches
    if found is batches and isinstance(found, Iterator):
        raise ValueError(
            "batches is an iterator, exhausted after one pass: give a list, a data loader, or a "
            "function that returns a new iterator"
        )
    if not isinstance(found, Iterable):
        raise TypeError(
            f"batches is of type {type(found).__name__}; it must be a list of batches, a data loader, or a "
            "function that returns an iterator"
        )
    return found


def _sizes(shapes: list[tuple]) -> dict[tuple, int]:
    """Examples in a batch of each kind, by the shapes of its leaves: the leading axis that varies between kinds."""
    leading = [tuple(s[0] if s else None for s in kind) for kind in shapes]
    varying = {sizes for sizes in zip(*leading) if len(set(sizes)) > 1}
    if len({len(kind) for kind in shapes}) > 1 or len(varying) > 1 or None in sum(varying, ()):
        raise ValueError(
            f"batches have leaves of shapes {[list(kind) for kind in shapes]}, and their numbers of examples do "
            "not show: give every batch the same shapes, or leave out what varies beside the examples"
        )
    return dict(zip(shapes, *(varying or [(1,) * len(shapes)])))


def is_streamed(product: Callable) -> bool:
    """Whether Python drives the product, so that it cannot be compiled into a loop."""
    return getattr(product, "streamed", False)
