"""Pairs of samples cut into tiles: how large they are, what a tile is given, and the results put together.

A kernel entry depends on its two samples alone, so that the pairs of samples are cut into tiles that fit the
caches, and everything between the layers stays there. Where both batches are the same, one triangle is computed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.infinite.inputs import Need, Plan
from ntk.infinite.kernel import Array, Kernel
from ntk.types import PyTree

TILE = {"cpu": 3 * 2**16}
"""Entries (pairs of samples times pairs of pixels) of one tile, by platform; on a CPU what its caches hold."""
TILE_ELSEWHERE = 2**24

SMALL, SMALL_IMAGES = 2**15, 2**18
"""Entries up to which a kernel is evaluated in double precision whatever the samples, or images, are."""

SMALL_TILE, SMALL_SIDES = 2**14, (4, 64)
"""Entries of a tile of such a kernel, which numpy evaluates little slower than one entry; least and most samples."""

BETWEEN = ("correlation", "nngp", "ntk", "coincident")
FIRST = ("var1", "cov1", "within1", "mask1")
SECOND = ("var2", "cov2", "within2", "mask2")
"""Fields of a kernel by the samples that they belong to: of both batches, of the first, of the second."""


class Result(NamedTuple):
    """A kernel without its arrays, and the arrays that were asked for."""

    kernel: Kernel
    arrays: dict[str, Array | None]


def entries_of(x: Array, batch: int, plan: Plan, area: Callable[[Need], int] | None) -> int:
    """Pairs of pixels of one pair of samples."""
    if area is not None:
        return area(plan.need)
    channel = plan.channel_axis % x.ndim
    pixels = math.prod(size for axis, size in enumerate(x.shape) if axis not in (batch, channel))
    return pixels**2 if plan.need.pairs else pixels


def is_small(sizes: tuple[int, int], entries: int) -> bool:
    """Whether a kernel is evaluated in double precision whatever its samples are."""
    return math.prod(sizes) * entries <= (SMALL if entries == 1 else SMALL_IMAGES)


def of_pairs(plan: Plan, data: tuple) -> bool:
    """Whether the result is matrices, each entry of which depends on its two samples alone."""
    matrices = {*plan.names} in ({"nngp"}, {"nngp", "ntk"})
    return matrices and not plan.need.whole and data[4] is None


# --- in one program ------------------------------------------------------------------------------


def sizes_of(sizes: tuple[int, int], entries: int, plan: Plan) -> tuple[int, int] | None:
    """Samples of each batch in a tile; None if everything is one tile."""
    target = TILE.get(jax.default_backend(), TILE_ELSEWHERE)
    if plan.need.whole or sizes[0] * sizes[1] * entries <= target:
        return None
    # With pixel pairs within each sample a tile of one pair would do three times the work.
    least = 4 if plan.need.variance == 2 else 1
    side = max(math.isqrt(target // entries), least)
    rows = _even(sizes[0], side)
    columns = rows if plan.coincident else _even(sizes[1], max(target // entries // rows, least))
    # None is one tile, which needs no loop and no copies.
    return None if (rows, columns) == sizes else (rows, columns)


def _even(size: int, most: int) -> int:
    """Largest of equal parts of at most `most` that cover `size`: nearly equal ones overlap least."""
    most = min(most, size)
    return -(-size // -(-size // most))


def run(
    network: Callable,
    plan: Plan,
    batch: int,
    sizes: tuple[int, int],
    tile: tuple[int, int],
    data: tuple,
) -> Any:
    """Runs `network` on tiles of samples and puts the results together.

    The last tile of a row starts earlier instead of being smaller, so that all have one shape.
    """
    rows, columns = tile
    counts = [-(-size // side) for size, side in zip(sizes, tile)]
    starts = [
        [min(i * side, size - side) for i in range(n)] for size, side, n in zip(sizes, tile, counts)
    ]
    upper = plan.symmetric or plan.coincident
    order = [(i, j) for i in range(counts[0]) for j in range(counts[1]) if not upper or j >= i]
    where = jnp.array([(starts[0][i], starts[1][j]) for i, j in order], jnp.int32)
    x1, x2, mask1, mask2, pattern = data
    graph1, graph2 = (None, None) if pattern is None else pattern

    def cut(tree: PyTree, start: Array, size: int, axis: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis), tree)

    def one(i: Array, j: Array) -> Any:
        graphs = None if pattern is None else (cut(graph1, i, rows, 0), cut(graph2, j, columns, 0))
        # The last tile overlaps the one before it: samples coincide by number, not by their place in a tile.
        coincident = None
        if plan.coincident:
            coincident = (i + jnp.arange(rows))[:, None] == (j + jnp.arange(columns))[None]
        return network(
            cut(x1, i, rows, batch),
            cut(x2, j, columns, batch),
            cut(mask1, i, rows, batch),
            cut(mask2, j, columns, batch),
            graphs,
            coincident,
        )

    whole = jax.eval_shape(
        network,
        *data,
        jax.ShapeDtypeStruct(sizes, bool) if plan.coincident else None,
    )
    is_result = functools.partial(_is, Result)
    frames = jax.tree.leaves(whole, is_leaf=is_result)

    def write(outs: list, tiles: list, at: tuple[Array, Array]) -> list[dict[str, Array | None]]:
        return [
            {name: _written(out[name], new[name], name, *at, frame.kernel, upper) for name in out}
            for out, new, frame in zip(outs, tiles, frames)
        ]

    def tile_at(step: Array) -> tuple[list, tuple[Array, Array]]:
        at = where[step, 0], where[step, 1]
        return [t.arrays for t in jax.tree.leaves(one(*at), is_leaf=is_result)], at

    def at_once(step: Array, outs: list) -> list:
        return write(outs, *tile_at(step))

    def in_turn(step: Array, state: tuple) -> tuple:
        return write(*state), *tile_at(step)

    zeros = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frame.arrays) for frame in frames]
    if len(jax.tree.leaves(zeros)) == 1:
        outs = jax.lax.fori_loop(0, len(order), at_once, zeros)
    else:
        # Several matrices of a tile are written a round later, from what the loop carries, which is in memory: in the
        # round that computes them, what they share is computed anew for each (2000 x 2000, 5 ReLU layers, NNGP and NTK:
        # 104 ms in place of 90). Of one matrix the copy that is carried costs more (41 ms in place of 40).
        at = where[0, 0], where[0, 1]
        shapes = jax.tree.leaves(jax.eval_shape(one, *at), is_leaf=is_result)
        nothing = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), t.arrays) for t in shapes]
        outs = write(*jax.lax.fori_loop(0, len(order), in_turn, (zeros, nothing, at)))
    filled = [
        Result(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), frame.kernel), out)
        for frame, out in zip(frames, outs)
    ]
    return jax.tree.unflatten(jax.tree.structure(whole, is_leaf=is_result), filled)


def _is(kind: type, x: Any) -> bool:
    return isinstance(x, kind)


def _written(
    out: Array | None, new: Array | None, name: str, i: Array, j: Array, kernel: Kernel, upper: bool
) -> Array | None:
    """`out` with a tile at samples i, j; with `upper` also its mirror image at j, i."""
    if out is None or new is None:
        return None
    if out.ndim == 0:
        return new
    if name not in BETWEEN:
        axis = kernel.batch_axis if name.startswith("mask") else 0
        return jax.lax.dynamic_update_slice_in_dim(out, new, i if name in FIRST else j, axis)
    rest = (jnp.zeros((), i.dtype),) * (out.ndim - 2)
    out = jax.lax.dynamic_update_slice(out, new, (i, j, *rest))
    if upper:
        # Of a tile on the diagonal its own transpose is written over it, equal up to rounding.
        mirror = jax.lax.dynamic_update_slice(out, _mirror(new, kernel), (j, i, *rest))
        out = mirror
    return out


def _mirror(x: Array, kernel: Kernel) -> Array:
    order = [1, 0]
    for axis in range(2, x.ndim):
        # K(j, i; p', p) = K(i, j; p, p'): pixels of a pair stand side by side, at an even axis and the next.
        order.append(axis if kernel.diagonal_spatial else axis ^ 1)
    return x.transpose(order)


# --- by numpy, a tile at a time -------------------------------------------------------------------


def small_sizes(sizes: tuple[int, int], entries: int) -> tuple[int, int]:
    """Samples of a tile by which matrices of any size are evaluated, so that they are traced once; else all."""
    least, most = SMALL_SIDES
    side = min(max(math.isqrt(SMALL_TILE // entries), least), most)
    return (side, side) if side**2 * entries <= 4 * SMALL_TILE else sizes


def places(plan: Plan, sizes: tuple[int, int], tile: tuple[int, int]) -> list[tuple[int, int]]:
    """First samples of the tiles; of one triangle where both batches are the same."""
    starts = itertools.product(*(range(0, size, side) for size, side in zip(sizes, tile)))
    return [(i, j) for i, j in starts if not plan.coincident or j >= i]


def cut_at(
    plan: Plan, data: tuple, batch: int, tile: tuple[int, int], i: int, j: int
) -> tuple[Any, ...]:
    """Arguments of `_evaluate` for the tile at samples i, j; after the last samples come some of zeros."""

    def cut(tree: Any, start: int, size: int) -> Any:
        return jax.tree.map(lambda x: _cut(np.asarray(x), start, size, batch), tree)

    x1, x2, mask1, mask2, pattern = data
    (x1, mask1), (x2, mask2) = cut((x1, mask1), i, tile[0]), cut((x2, mask2), j, tile[1])
    same = None
    if plan.coincident:
        same = (i + np.arange(tile[0]))[:, None] == (j + np.arange(tile[1]))[None]
    return x1, x2, mask1, mask2, pattern, same


def _cut(x: np.ndarray, start: int, size: int, axis: int) -> np.ndarray:
    part = x[(slice(None),) * axis + (slice(start, start + size),)]
    missing = size - part.shape[axis]
    widths = [(0, missing if k == axis else 0) for k in range(x.ndim)]
    return np.pad(part, widths) if missing else part


def put_together(plan: Plan, sizes: tuple[int, int], parts: dict[tuple[int, int], Any]) -> Any:
    """The matrices of all samples from those of tiles, as `run` does in a program."""
    trees = {
        at: jax.tree.flatten(part, is_leaf=functools.partial(_is, Result))
        for at, part in parts.items()
    }
    (frames, structure) = trees[0, 0]
    outs: list[dict[str, Any]] = [
        {name: np.zeros((*sizes, *a.shape[2:]), a.dtype) for name, a in frame.arrays.items()}
        for frame in frames
    ]
    for (i, j), (results, _) in trees.items():
        for out, result in zip(outs, results):
            for name, new in result.arrays.items():
                new = new[: sizes[0] - i, : sizes[1] - j]
                rows, columns = (slice(k, k + n) for k, n in zip((i, j), new.shape))
                out[name][rows, columns] = new
                if plan.coincident and i != j:
                    out[name][columns, rows] = _mirror(new, result.kernel)
    filled = [Result(frame.kernel, out) for frame, out in zip(frames, outs)]
    return jax.tree.unflatten(structure, filled)
