"""neural-tangents's ``batch``: a kernel function computed in batches of samples over devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import arguments
from ntk.large import gram, tiles
from ntk.types import PyTree


def batch(
    kernel_fn: Callable[..., Any],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
) -> Callable[..., Any]:
    """A kernel function computed in batches of samples over devices, and put together again.

    Args:
        kernel_fn: ``kernel_fn(x1, x2=None, *args, **kwargs)``, whose result is any pytree of arrays:
            one kernel, the named tuple of several, or a whole ``Kernel``.
        batch_size: samples of x1 and of x2 in one batch, which need not divide their numbers; 0 for
            no more batches than devices ask for.
        device_count: how many devices share the work; -1 for all local ones, 0 for the default one.
        store_on_device: whether the result is put together on the first device or on the host.

    Returns:
        A function of the same arguments and results. Samples lie along axis 0 of the inputs. With
        x2 = None one triangle is computed. Arguments are passed on whole, except for tuples (a, b)
        of arrays with leading axes n1 and n2, such as ``pattern``. A ``Kernel`` in place of x1 is
        passed on whole too. Inside jit or grad one device works, and computes the whole square.

    Raises:
        ValueError: batch_size is negative, or device_count is more than there are.

    Source: Novak et al. 2020, "Neural Tangents" (arXiv 1912.02803), section 3.2.
    """
    available = jax.local_devices()
    if not -1 <= device_count <= len(available):
        raise ValueError(
            f"device_count is {device_count}; there are {len(available)} devices (-1 takes all)"
        )
    if batch_size < 0:
        raise ValueError(f"batch_size is {batch_size}; it must be 0 (no batches) or more")
    devices = available if device_count == -1 else available[: max(device_count, 1)]

    def batched(x1: PyTree, x2: PyTree | None = None, *args: Any, **kwargs: Any) -> Any:
        arguments.refuse_unknown("batch(kernel_fn)", kwargs, arguments.keyword_names(kernel_fn))
        if not isinstance(x1, list | tuple | np.ndarray | jax.Array):
            return kernel_fn(x1, x2, *args, **kwargs)
        rows = batch_size or -(-tiles.samples(x1, "x1") // len(devices))
        columns = batch_size or (rows if x2 is None else tiles.samples(x2, "x2"))
        job = tiles.job(kernel_fn, x1, x2, args, kwargs, (rows, columns), devices)
        return _assembled(job, store_on_device)

    return batched


class _Leaf(NamedTuple):
    """Where the samples are in one array of a kernel: axes of rows and columns, None for none."""

    rows: int | None
    columns: int | None


def _assembled(job: tiles.Job, on_device: bool) -> PyTree:
    """All tiles in one pytree, structured as kernel_fn's own result for the whole batches."""
    frame, structure = _flat(tiles.shape_of(job, job.sizes, job.symmetric))
    layout = _layout(job)
    outs = {}
    for path, leaf in frame.items():
        zeros = (jnp if on_device else np).zeros(leaf.shape, leaf.dtype)
        outs[path] = (
            jax.device_put(zeros, job.devices[0]) if on_device and not job.traced else zeros
        )
    orders: dict[str, tuple[int, ...]] = {}
    for i, j, found in tiles.stream(job, job.positions(), lambda out: out):
        parts, _ = _flat(found)
        for path in outs:
            leaf, part = layout[path], parts.get(path)
            if part is None or not _wanted(leaf, i, j, job.symmetric):
                continue
            part = _cropped(part, leaf, job, i, j)
            square = None not in leaf
            if square and job.triangle and path not in orders:
                orders[path] = _order(part, leaf)
            outs[path] = _put(outs[path], part, leaf, job, i, j)
            if square and job.triangle and i != j:
                outs[path] = _put(outs[path], part.transpose(orders[path]), leaf, job, j, i)
    return structure.unflatten(outs.values())


def _flat(tree: PyTree) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, structure


def _layout(job: tiles.Job) -> dict[str, _Leaf]:
    """Axes of every array that grow with the numbers of samples, by tracing at two pairs of sizes."""

    def growing(diagonal: bool, first: tuple[int, int], second: tuple[int, int]) -> dict[str, list]:
        small, large = (_flat(tiles.shape_of(job, s, diagonal))[0] for s in (first, second))
        return {path: list(zip(small[path].shape, large[path].shape)) for path in small}

    def axis(pairs: list, *sizes: tuple[int, int]) -> int | None:
        return next((axis for axis, pair in enumerate(pairs) if pair in sizes), None)

    # Four different sizes: an axis that grows from 2 to 5 counts rows, one that grows from 3 to 7 columns.
    pairs = growing(False, (2, 3), (5, 7))
    found = {path: _Leaf(axis(p, (2, 5)), axis(p, (3, 7))) for path, p in pairs.items()}
    if job.symmetric:
        for path, p in growing(True, (2, 2), (5, 5)).items():
            if path not in found:  # only on the diagonal, and zero elsewhere
                rows = axis(p, (2, 5))
                columns = None if rows is None else axis(p[rows + 1 :], (2, 5))
                found[path] = _Leaf(
                    rows, None if rows is None or columns is None else rows + 1 + columns
                )
    return found


def _wanted(leaf: _Leaf, i: int, j: int, symmetric: bool) -> bool:
    """Whether the tile at (i, j) is the one to read an array from that others have too."""
    if leaf.rows is None and leaf.columns is None:
        return i == j == 0
    if leaf.rows is None or leaf.columns is None:
        other = i if leaf.rows is None else j
        return i == j if symmetric else other == 0
    return True


def _cropped(part: jax.Array, leaf: _Leaf, job: tiles.Job, i: int, j: int) -> jax.Array:
    """Without the samples that fill up the last tile."""
    kept = [slice(None)] * part.ndim
    for side, (axis, index) in enumerate(zip(leaf, (i, j))):
        if axis is not None:
            kept[axis] = slice(job.kept(side, index))
    return part[tuple(kept)]


def _order(part: jax.Array, leaf: _Leaf) -> tuple[int, ...]:
    """Order of axes of the mirror image, of an array whose leading axes are the samples."""
    if leaf != (0, 1):
        raise ValueError(f"a kernel has its samples at axes {tuple(leaf)}; they must be 0 and 1")
    return gram.mirror(np.asarray(part))


def _put(out: Any, part: jax.Array, leaf: _Leaf, job: tiles.Job, i: int, j: int) -> Any:
    """`out` with a tile written into it, in place."""
    start = [0] * out.ndim
    for side, (axis, index) in enumerate(zip(leaf, (i, j))):
        if axis is not None:
            start[axis] = job.span(side, index).start
    if isinstance(out, np.ndarray):
        out[tuple(slice(s, s + size) for s, size in zip(start, part.shape))] = part
        return out
    if not job.traced:
        part = jax.device_put(part, out.sharding)
    return _update(out, part, np.array(start, np.int32))


@functools.partial(jax.jit, donate_argnums=0)
def _update(out: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(out, part.astype(out.dtype), tuple(start))
