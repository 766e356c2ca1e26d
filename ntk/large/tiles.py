"""A kernel between two batches of samples as a stream of tiles, computed on all devices.

One compiled program serves all tiles away from the diagonal and one those on it: the last tile of
a side is filled up with other samples, whose entries the caller drops.

One file: a job holds what its tiles are cut from, and each step from arguments to tiles reads most of its fields.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntk import arguments
from ntk.large import processes
from ntk.types import PyTree

BLOCK = 2**24
"""Entries of samples on disk that are read at once, where all are looked at."""


class Call(NamedTuple):
    """What a tile's program is compiled for, besides shapes.

    Attributes:
        kernel_fn: the kernel function.
        static: structure and non-arrays of its further arguments.
        result: "kernel", or its "product" with vectors, or its "diagonal".
    """

    kernel_fn: Callable[..., Any]
    static: tuple
    result: str = "kernel"


class Cut(NamedTuple):
    """Samples on disk of one tile, with a leading axis of devices; others are whole on each."""

    samples: Any


class Job(NamedTuple):
    """One Gram matrix.

    Attributes:
        call: the static part of kernel_fn's arguments.
        one: (x1, per-sample arguments), filled up to whole tiles, but for what is on disk.
        two: the same of the columns.
        arrays: further arrays among the arguments.
        sizes: n1, n2.
        tile: samples along both sides of a tile.
        symmetric: the columns are the rows.
        devices: devices of this process that share the work.
        share: this process among those whose devices share the work.
        traced: called inside jit or grad.
    """

    call: Call
    one: PyTree
    two: PyTree
    arrays: list
    sizes: tuple[int, int]
    tile: tuple[int, int]
    symmetric: bool
    devices: tuple[jax.Device, ...]
    share: processes.Share
    traced: bool

    @property
    def triangle(self) -> bool:
        """Whether tiles below the diagonal are mirrored; traced ones cannot be tested for symmetry."""
        return self.symmetric and not self.traced

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles along both sides."""
        rows, columns = (-(-n // t) for n, t in zip(self.sizes, self.tile))
        return rows, columns

    def positions(self) -> list[tuple[int, int]]:
        """Tiles to compute; of a symmetric matrix those on the diagonal first."""
        rows, columns = self.counts
        every = list(itertools.product(range(rows), range(columns)))
        if not self.symmetric:
            return every
        # The diagonal first: how a tile is mirrored is found on one of them.
        return sorted(
            (ij for ij in every if ij[0] <= ij[1] or self.traced), key=lambda ij: ij[0] != ij[1]
        )

    def span(self, side: int, index: int) -> slice:
        """Samples of a tile along one side, without those that fill it up."""
        start = index * self.tile[side]
        return slice(start, min(start + self.tile[side], self.sizes[side]))

    def kept(self, side: int, index: int) -> int:
        """The number of samples in `span`."""
        span = self.span(side, index)
        return span.stop - span.start


def job(
    kernel_fn: Callable[..., Any],
    x1: PyTree,
    x2: PyTree | None,
    args: tuple,
    kwargs: dict[str, Any],
    tile: int | tuple[int, int],
    devices: Sequence[jax.Device] | None,
    even: bool = False,
) -> Job:
    """Checks inputs, sorts arguments by where they go, and puts arrays on the devices; see `even_tile` for even."""
    if not callable(kernel_fn):
        raise ValueError(f"kernel_fn is {type(kernel_fn).__name__}; it must be a function")
    n1 = samples(x1, "x1")
    symmetric = x2 is None or _same(x1, x2)
    n2 = n1 if symmetric else samples(x2, "x2")
    tile = tile if isinstance(tile, tuple | list) else (tile, tile)
    if len(tile) != 2 or not all(map(arguments.is_integer, tile)):
        raise TypeError(f"tile is {tile!r}; it must be an integer, the samples along a side")
    if min(tile) < 1:
        raise ValueError(f"tile is {min(tile)}; it must be at least 1 sample")
    if kwargs.get("mask_constant") is None:
        _check_finite(x1, "x1")
        _check_finite(x2, "x2")
    pairs = {key: v for key, v in kwargs.items() if arguments.per_sample(v, n1, n2)}
    whole = {key: v for key, v in kwargs.items() if key not in pairs}
    arrays, static = arguments.partition((args, whole))
    tile = (min(tile[0], n1), min(tile[not symmetric], n2))
    if even:
        tile = even_tile(tile[0], n1), even_tile(tile[1], n2)
    one, two = (
        jax.tree.map(
            functools.partial(padded, tile=t), (x, {key: v[side] for key, v in pairs.items()})
        )
        for side, (x, t) in enumerate(zip((x1, None if symmetric else x2), tile))
    )
    traced = any(map(is_traced, jax.tree.leaves((one, two, arrays))))
    share, devices = processes.share(devices_of(devices))
    devices = devices[: 1 if traced else None]
    if not traced:
        one, two, arrays = put((one, two, arrays), devices)
    if symmetric:
        two = (one[0], two[1])
    call = Call(kernel_fn, static)
    return Job(call, one, two, arrays, (n1, n2), tile, symmetric, devices, share, traced)


def put(tree: PyTree, devices: tuple[jax.Device, ...]) -> PyTree:
    """Arrays whole on each device; what is on disk stays there."""
    everywhere = NamedSharding(_mesh(devices), PartitionSpec())
    return jax.tree.map(lambda v: v if on_disk(v) else jax.device_put(v, everywhere), tree)


def on_disk(x: Any) -> bool:
    """Whether samples are read as they are needed: a ``np.memmap``, or an array that has ``chunks``."""
    chunked = hasattr(x, "chunks") and isinstance(getattr(x, "dtype", None), np.dtype)
    return isinstance(x, np.memmap) or chunked


def blocks(x: Any) -> Iterator[Any]:
    """All of an array, a part at a time if it is on disk, in the dtype that a device would hold."""
    if not on_disk(x):
        yield x
        return
    rows = max(BLOCK // max(int(np.prod(x.shape[1:], dtype=int)), 1), 1)
    for start in range(0, x.shape[0], rows):
        yield read(x, start, start + rows)


def read(x: Any, start: int, stop: int) -> np.ndarray:
    """Samples of an array on disk, in the dtype that a device would hold."""
    return np.asarray(x[start:stop], jax.dtypes.canonicalize_dtype(x.dtype))


def taken(x: Any, rows: Sequence[int]) -> Any:
    """Single samples."""
    if on_disk(x):
        return np.concatenate([read(x, row, row + 1) for row in rows])
    return x[np.array(rows)]


def devices_of(given: Any) -> tuple[jax.Device, ...]:
    """The devices that share the work; all local ones for None."""
    if given is None:
        return tuple(jax.local_devices())
    if isinstance(given, Mesh):
        given = given.devices.ravel()
    several = tuple(given) if isinstance(given, Sequence | np.ndarray) else ()
    if not several or not all(isinstance(device, jax.Device) for device in several):
        raise TypeError(
            f"devices is {given!r}; it must be a list of one device or more, such as "
            "jax.local_devices()[:1], a mesh, or None"
        )
    return several


def samples(x: PyTree, name: str) -> int:
    """Number of samples, the leading axis of every array."""
    leaves = jax.tree.leaves(x)
    sizes: set[tuple[int, ...]] = {
        np.shape(v)[:1] if isinstance(v, np.ndarray | jax.Array) or on_disk(v) else ()
        for v in leaves
    }
    if len(sizes) != 1 or () in sizes:
        found = [getattr(v, "shape", type(v).__name__) for v in leaves]
        raise ValueError(
            f"{name} must be an array with samples along axis 0, or a list of such; it has {found}"
        )
    if sizes == {(0,)}:
        raise ValueError(f"{name} is empty; it needs at least one sample")
    return sizes.pop()[0]


def stream(
    job: Job, positions: Sequence[tuple[int, int]], fetch: Callable[[Any], Any]
) -> Iterator[tuple[int, int, Any]]:
    """Computes tiles, each device one at a time, the next ones while the last are fetched.

    Args:
        job: the matrix.
        positions: tiles to compute, those on the diagonal of a symmetric matrix before others.
        fetch: what is done with the results of one round, such as ``jax.device_get``.

    Yields:
        Row and column of the tile, and its entries, filled-up samples included.
    """
    under_way: collections.deque[tuple[list[tuple[int, int]], PyTree]] = collections.deque()
    for diagonal, group in itertools.groupby(
        positions, lambda ij: job.symmetric and ij[0] == ij[1]
    ):
        for now in _rounds(list(group), len(job.devices)):
            under_way.append((now, _start(job, diagonal, now)))
            if len(under_way) > 1:
                yield from _finish(*under_way.popleft(), fetch)
    while under_way:
        yield from _finish(*under_way.popleft(), fetch)


def shape_of(job: Job, sizes: tuple[int, int], diagonal: bool = False) -> PyTree:
    """What kernel_fn returns for so many samples, as shapes; with diagonal for x2 = None."""

    def cut(side: int, tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda v: jax.ShapeDtypeStruct((sizes[side], *v.shape[1:]), held(v)), tree
        )

    return _evaluate.eval_shape(job.call, diagonal, cut(0, job.one), cut(1, job.two), job.arrays)


def held(x: Any) -> Any:
    """The dtype of an array on a device."""
    return jax.dtypes.canonicalize_dtype(x.dtype) if on_disk(x) else x.dtype


def padded(x: Any, tile: int, fill: Callable[[Any], Any] = lambda first: first) -> Any:
    """x with its first samples, or zeros, repeated at the end to whole tiles; what is on disk as it is."""
    missing = -x.shape[0] % tile
    if missing == 0 or on_disk(x):
        return x
    concatenate = np.concatenate if isinstance(x, np.ndarray) else jnp.concatenate
    return concatenate([x, fill(x[:missing])])


def even_tile(tile: int, n: int) -> int:
    """The smallest tile that needs no more of them for n samples, in eights: the last one is hardly filled up."""
    needed = -(-n // -(-n // tile))
    return min(tile, -(-needed // 8) * 8)


def is_traced(x: Any) -> bool:
    """Whether values are unknown, inside jit, grad or vmap."""
    if isinstance(x, np.ndarray) or on_disk(x) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return False
    try:
        np.asarray(x.ravel()[:0])
    except jax.errors.TracerArrayConversionError:
        return True
    return False


def _mesh(devices: tuple[jax.Device, ...]) -> Mesh:
    return Mesh(np.array(devices), ("tile",))


def _same(x1: PyTree, x2: PyTree) -> bool:
    """Whether both hold the same values in the same order; False where they are traced."""
    one, two = jax.tree.leaves(x1), jax.tree.leaves(x2)
    if len(one) == len(two) and all(a is b for a, b in zip(one, two)):
        return True
    if [np.shape(a) for a in one] != [np.shape(b) for b in two]:
        return False
    if any(map(is_traced, (*one, *two))):
        return False
    return all(_equal(a, b) for a, b in zip(one, two))


def _equal(a: Any, b: Any) -> bool:
    if not (on_disk(a) or on_disk(b)):
        return np.array_equal(np.asarray(a), np.asarray(b))
    start = 0
    for part in blocks(a if on_disk(a) else b):
        other = (b if on_disk(a) else a)[start : start + len(part)]
        if not np.array_equal(part, np.asarray(other)):
            return False
        start += len(part)
    return True


def _check_finite(x: PyTree, name: str) -> None:
    for v in jax.tree.leaves(x):
        if is_traced(v):
            continue
        for part in blocks(v):
            finite = np.isfinite(part) if isinstance(part, np.ndarray) else jnp.isfinite(part)
            if not finite.all():
                raise ValueError(
                    f"{name} has entries that are not finite; remove these samples first"
                )


def _rounds(positions: list, count: int) -> Iterator[list]:
    return (positions[start : start + count] for start in range(0, len(positions), count))


def _start(job: Job, diagonal: bool, now: list[tuple[int, int]]) -> PyTree:
    # Devices without a tile of their own repeat the last one, so that all rounds are one program.
    where = np.array(now + now[-1:] * (len(job.devices) - len(now)), np.int32)
    one, two = (_cut(job, side, where[:, side]) for side in (0, 1))
    if not job.traced:
        where = jax.device_put(where, NamedSharding(_mesh(job.devices), PartitionSpec("tile")))
    return _round(job.call, job.tile, diagonal, job.devices, one, two, job.arrays, where)


def _cut(job: Job, side: int, indices: np.ndarray) -> PyTree:
    """One side's samples; of those on disk the tiles of these indices, one for each device."""

    def part(v: Any) -> Any:
        if not on_disk(v):
            return v
        tile, n = job.tile[side], v.shape[0]
        found = [read(v, i * tile, min((i + 1) * tile, n)) for i in indices]
        # Filled up with the first samples, as `padded` does.
        found = [
            p if len(p) == tile else np.concatenate([p, read(v, 0, tile - len(p))]) for p in found
        ]
        if job.traced:
            return Cut(np.stack(found))
        return Cut(
            jax.device_put(
                np.stack(found), NamedSharding(_mesh(job.devices), PartitionSpec("tile"))
            )
        )

    return jax.tree.map(part, (job.one, job.two)[side])


def _finish(now: list, out: PyTree, fetch: Callable) -> Iterator[tuple[int, int, PyTree]]:
    out = fetch(out)
    for k, (i, j) in enumerate(now):
        yield i, j, jax.tree.map(lambda v, k=k: v[k], out)


@functools.partial(jax.jit, static_argnames=("call", "tile", "diagonal", "devices"))
def _round(
    call: Call,
    tile: tuple[int, int],
    diagonal: bool,
    devices: tuple[jax.Device, ...],
    one: PyTree,
    two: PyTree,
    arrays: PyTree,
    where: jax.Array,
) -> PyTree:
    """One tile on each device, stacked."""

    def local(one: PyTree, two: PyTree, arrays: PyTree, where: jax.Array) -> PyTree:
        starts = where[0] * jnp.array(tile)

        def rows(v: Any, start: jax.Array, size: int) -> jax.Array:
            return v.samples[0] if _is_cut(v) else jax.lax.dynamic_slice_in_dim(v, start, size)

        a, b = (
            jax.tree.map(lambda v, s=s, t=t: rows(v, s, t), tree, is_leaf=_is_cut)
            for tree, s, t in zip((one, two), starts, tile)
        )
        return jax.tree.map(lambda v: jnp.asarray(v)[None], _evaluate(call, diagonal, a, b, arrays))

    if len(devices) == 1:
        return local(one, two, arrays, where)
    every, each = PartitionSpec(), PartitionSpec("tile")
    sides = jax.tree.map(lambda v: each if _is_cut(v) else every, (one, two), is_leaf=_is_cut)
    return jax.shard_map(
        local,
        mesh=_mesh(devices),
        in_specs=(*sides, every, each),
        out_specs=each,
        check_vma=False,  # loops inside kernel functions start from unvarying zeros
    )(one, two, arrays, where)


def _is_cut(v: Any) -> bool:
    return isinstance(v, Cut)


@functools.partial(jax.jit, static_argnames=("call", "diagonal"))
def _evaluate(call: Call, diagonal: bool, one: PyTree, two: PyTree, arrays: list) -> PyTree:
    """The kernel between two batches, or what is made of it."""
    rows = columns = None
    if call.result == "product":
        (one, rows, *_), (two, columns, *_) = one, two
    (x1, pairs1), (x2, pairs2) = one, two
    args, kwargs = arguments.combine(arrays, call.static)
    pairs = {key: (pairs1[key], pairs2[key]) for key in pairs1}
    out = call.kernel_fn(x1, None if diagonal else x2, *args, **kwargs, **pairs)
    if call.result == "diagonal":
        return jnp.diagonal(out)
    if call.result == "product":
        return products(out, rows, columns, diagonal)
    return out


@functools.partial(jax.jit, static_argnames=("diagonal",))
def products(kernel: jax.Array, rows: Any, columns: Any, diagonal: bool) -> tuple:
    """K v, and v^T K where the mirrored tile is not computed: for K^T v XLA on a CPU would transpose the tile."""
    times = functools.partial(jnp.matmul, precision="highest")
    return times(kernel, columns), None if rows is None or diagonal else times(rows.T, kernel)
