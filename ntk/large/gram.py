"""Large Gram matrices of any kernel function: tiles over devices, one triangle, kept on disk as they come.

A kernel function is ``kernel_fn(x1, x2, get, ...)`` with x2 = None for x2 = x1: ours, one of
neural-tangents, or an empirical one. Files are the business of `ntk.large.storage`.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ntk import arguments
from ntk.large import processes, storage, tiles
from ntk.types import PyTree, Shaped

TILE = 1024
"""Samples along one side of a tile, unless told otherwise."""


def gram(
    kernel_fn: Callable[..., Any],
    x1: PyTree,
    x2: PyTree | None = None,
    get: str = "ntk",
    *,
    tile: int = TILE,
    devices: Sequence[jax.Device] | None = None,
    path: str | os.PathLike | None = None,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> Shaped[np.ndarray, "n1 n2 ..."]:
    """Gram matrix of a kernel in the memory of the host, or in a file; never whole on a device.

    Args:
        kernel_fn: ``kernel_fn(x1, x2, get, **kwargs)``, an array (n1, n2, ...); x2 is None for x1.
            An entry may depend on its own two samples only.
        x1: n1 samples along axis 0 of an array, or of each array of a list; whole on each device. A ``np.memmap``, or
            an array that has ``chunks``, is read a tile at a time and nowhere whole.
        x2: n2 samples. With None, or the values of x1, one triangle is computed and mirrored.
        get: name of the kernel.
        tile: samples along one side of a tile. At most two tiles for each device are under way.
        devices: devices that share the work, a list or a mesh; all local ones by default. With those of all
            processes of a job (``jax.devices()`` after ``jax.distributed.initialize()``, every process
            making the same call on the same samples) each process computes its own tiles: with a path,
            which all must see, they write them there; without one each tile is sent to all.
        path: folder that keeps finished tiles. The same call computes what is missing there, also
            after a kill, to the same bits. Its ``gram.npy`` is the matrix, whose space on the disk is
            allocated before the first tile. One job at a time works on a folder; its processes share it,
            and the same call goes on with another number of them.
        name: name and version of the kernel, which path needs to tell its folder from others'.
        progress: called as ``progress(done, total)``, in tiles, first with those found on disk.
        **kwargs: passed to kernel_fn, such as ``params`` of an empirical kernel. The tuple (a, b)
            of arrays with leading axes n1 and n2 (``pattern``) is cut as the samples are.

    Returns:
        The matrix, (n1, n2, ...); a read-only memmap if path is given. Further axes of a symmetric
        one are mirrored in the layout (k, k, l, l) or (k, l), whichever kernel_fn has.

    Raises:
        TypeError: a keyword that neither gram nor kernel_fn reads.
        ValueError: inputs are empty or not finite; kernel_fn does not give an array of (n1, n2),
            or is not symmetric; path is without name, or the folder belongs to another job (its
            inputs, options, versions, or the kernel's values on three samples are others), or is
            in use by another process.
        OSError: the disk has no room for the matrix, or the folder cannot be written to.

    Warns:
        UserWarning: tiles in path do not match their checksum; they are computed again.
    """
    arguments.refuse_unread("gram", gram, kernel_fn, kwargs)
    _check_path(path, name)
    job = tiles.job(kernel_fn, x1, x2, (get,), kwargs, tile, devices)
    if job.traced:
        raise ValueError("gram fills an array of the host: call it outside jit, grad and vmap")
    shape, dtype = _shape(job)
    if path is None:
        out = np.empty(shape, dtype)
        _fill(job, _mirrored(job, out.__setitem__), None, progress)
        return out

    def places(i: int, j: int) -> list[storage.Place]:
        rows, columns = job.span(0, i), job.span(1, j)
        mirrored = [(columns, rows)] if job.symmetric and i != j else []
        return [(rows, columns), *mirrored]

    opened = storage.open_folder(path, job, name, get, shape, dtype, places)
    with contextlib.closing(opened) as folder:
        _fill(job, _mirrored(job, folder.put), folder, progress)
        processes.wait("gram", job.share)
    return np.load(folder.path / "gram.npy", mmap_mode="r")


def _check_path(path: Any, name: Any) -> None:
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {path!r}; it must be a string or a pathlib.Path, of a folder")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ValueError(f"path is {path!r}; the name of a folder is not empty, without null bytes")
    if not (name and isinstance(name, str)):
        raise ValueError("path needs name, the kernel's name and version, such as 'relu-5-v1'")


def _fill(
    job: tiles.Job,
    store: Callable[[int, int, np.ndarray], None],
    folder: storage.Folder | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Computes all tiles, or those that the folder lacks, and stores them.

    Of several processes with a folder each writes its own tiles there; without one every tile is told to all.
    """
    kept = storage.verified(folder, job) if folder else set()
    every = job.positions()
    todo, total = [ij for ij in every if ij not in kept], len(every)
    done = total - len(todo)
    if progress is not None:
        progress(done, total)
    own = tiles.stream(job, job.share.own(todo), jax.device_get)
    for i, j, entries in own if folder else _told(own, todo, job):
        store(i, j, entries)
        if folder is not None:
            storage.record(folder, i, j)
        done += 1
        if progress is not None:
            progress(done, total)


def _mirrored(job: tiles.Job, put: Callable[[Any, Any], None]) -> Callable[..., None]:
    """Stores a tile where it belongs in the matrix, and its mirror image."""
    order: tuple[int, ...] | None = None

    def store(i: int, j: int, entries: np.ndarray) -> None:
        nonlocal order
        entries = entries[: job.kept(0, i), : job.kept(1, j)]
        if job.symmetric and order is None:
            order = mirror(entries if i == j else _corner(job))
        _store(put, entries, i, j, job, order)

    return store


def _corner(job: tiles.Job) -> np.ndarray:
    """The first tile on the diagonal, for a process that is given none."""
    ((_, _, entries),) = tiles.stream(job, [(0, 0)], jax.device_get)
    return entries[: job.kept(0, 0), : job.kept(1, 0)]


def _told(
    own: Iterator[tuple[int, int, np.ndarray]], todo: list[tuple[int, int]], job: tiles.Job
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The tiles of all processes, a round at a time: one of each."""
    count = job.share.size
    entries = None
    for start in range(0, len(todo), count):
        # Gathering takes all processes, every round.
        *_, entries = next(own, (0, 0, entries))  # who has none left repeats its last
        if entries is None:
            found = tiles.shape_of(job, job.tile, job.symmetric)
            entries = np.zeros(found.shape, found.dtype)
        now = todo[start : start + count]
        yield from ((*ij, e) for ij, e in zip(now, processes.gathered(entries, job.share)))


def product(
    kernel_fn: Callable[..., Any],
    x1: PyTree,
    x2: PyTree | None = None,
    get: str = "ntk",
    *,
    tile: int = TILE,
    devices: Sequence[jax.Device] | None = None,
    path: str | os.PathLike | None = None,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> Callable[[np.ndarray], np.ndarray]:
    """The map v -> K v of a Gram matrix that is nowhere whole: of tiles computed in each call, or kept on disk.

    Args:
        kernel_fn: see `gram`; its kernel is (n1, n2).
        x1: see `gram`.
        x2: see `gram`.
        get: name of the kernel.
        tile: most samples along one side of a tile; as many tiles, of nearly the same size, are computed.
        devices: see `gram`.
        path: folder that keeps tiles: they are computed here, once, and every call reads them. Of a symmetric
            matrix one triangle is stored, and each tile serves both of its places. The same call computes what is
            missing, also after a kill, as in `gram`, whose folders hold something else.
        name: name and version of the kernel, which path needs to tell its folder from others'.
        progress: with path, see `gram`.
        **kwargs: passed to kernel_fn, see `gram`.

    Returns:
        A function of v, (n2,) or (n2, k), giving (n1,) or (n1, k) in the kernel's dtype, as an
        array of the host. Tiles are multiplied at the highest precision of that dtype; sums over
        tiles are in float64. With path it holds two tiles for each device, and no samples.

    Raises:
        ValueError: see `gram`; v does not have n2 rows; progress without path.
        OSError: see `gram`; the folder's file was removed or cut.

    Warns:
        UserWarning: see `gram`.
    """
    arguments.refuse_unread("product", product, kernel_fn, kwargs)
    _check_path(path, name)
    if progress is not None and path is None:
        raise ValueError(
            "progress tells of tiles that are kept in path, and path is None; leave it out"
        )
    # A tile may be smaller than what is asked for: as many of them, of nearly the same size.
    job = tiles.job(kernel_fn, x1, x2, (get,), kwargs, tile, devices, even=True)
    (n1, n2), dtype = _shape(job, axes=2)
    times = _computed(job)
    if path is not None:
        times = _kept(job, dtype, path, name, get, progress)
        job = job._replace(one=None, two=None, arrays=[])

    def matvec(v: np.ndarray) -> np.ndarray:
        v = np.asarray(v)
        if v.ndim not in (1, 2) or v.shape[0] != n2:
            raise ValueError(f"v has shape {v.shape}; it must be ({n2},) or ({n2}, k)")
        columns = v.reshape(n2, -1).astype(dtype, copy=False)
        columns = tiles.padded(columns, job.tile[1], np.zeros_like)
        out = np.zeros((n1, columns.shape[1]))
        for i, j, (rows, mirrored) in times(columns):
            out[job.span(0, i)] += rows[: job.kept(0, i)]
            if mirrored is not None:
                out[job.span(1, j)] += mirrored[:, : job.kept(1, j)].T
        return processes.total(out, job.share).astype(dtype).reshape(n1, *v.shape[1:])

    matvec.shape = (n1, n2)  # type: ignore[attr-defined]  # as a matrix has it, for messages
    return matvec


def _computed(job: tiles.Job) -> Callable[[Any], Iterator[tuple[int, int, Any]]]:
    """Products of tiles that are computed as they are needed."""

    def times(columns: Any) -> Iterator[tuple[int, int, Any]]:
        if not job.traced:
            (columns,) = tiles.put((columns,), job.devices)
        sides: dict[str, Any] = {
            "call": job.call._replace(result="product"),
            "one": (job.one, columns if job.symmetric else None),
            "two": (job.two, columns),
        }
        own = job.share.own(job.positions())
        return tiles.stream(job._replace(**sides), own, jax.device_get)

    return times


def _kept(
    job: tiles.Job,
    dtype: np.dtype,
    path: str | os.PathLike,
    name: str | None,
    get: str,
    progress: Callable[[int, int], None] | None,
) -> Callable[[Any], Iterator[tuple[int, int, Any]]]:
    """Products of tiles that a folder keeps, one below another, each whole; those it lacks are computed here."""
    if job.traced:
        raise ValueError("path keeps tiles on disk: call product outside jit, grad and vmap")
    (height, width), positions = job.tile, job.positions()
    numbers = {ij: number for number, ij in enumerate(positions)}

    def place(i: int, j: int) -> storage.Place:
        start = numbers[i, j] * height
        return slice(start, start + height), slice(0, width)

    shape = (len(positions) * height, width)
    opened = storage.open_folder(path, job, name, get, shape, dtype, lambda i, j: [place(i, j)])
    with contextlib.closing(opened) as folder:
        _fill(job, lambda i, j, entries: folder.put(place(i, j), entries), folder, progress)
        processes.wait("product", job.share)
    own, symmetric, devices = job.share.own(positions), job.symmetric, job.devices

    def times(columns: np.ndarray) -> Iterator[tuple[int, int, Any]]:
        def read(number: int) -> tuple[int, int, Any]:
            i, j = own[number]
            entries = buffers[number % len(buffers)]
            storage.fill(file, folder.matrix, place(i, j), entries)
            of_rows = columns[i * height : (i + 1) * height] if symmetric else None
            of_columns = columns[j * width : (j + 1) * width]
            parts = (entries, of_rows, of_columns)
            parts = jax.device_put(parts, devices[number % len(devices)])
            return i, j, tiles.products(*parts, symmetric and i == j)

        # A tile is read while those before it are multiplied, and its buffer is free once they are fetched.
        buffers = [np.empty((height, width), dtype) for _ in range(2 * len(devices))]
        with open(folder.path / "gram.npy", "rb", buffering=0) as file:
            under_way: collections.deque[tuple[int, int, Any]] = collections.deque()
            for number in range(len(own)):
                if len(under_way) == len(buffers):
                    yield jax.device_get(under_way.popleft())
                under_way.append(read(number))
            while under_way:
                yield jax.device_get(under_way.popleft())

    return times


def diagonal(
    kernel_fn: Callable[..., Any],
    x: PyTree,
    get: str = "ntk",
    *,
    tile: int = 32,
    devices: Sequence[jax.Device] | None = None,
    **kwargs: Any,
) -> Shaped[np.ndarray, "n ..."]:
    """Diagonal of a Gram matrix, (n,), from the tiles on it alone; see `gram` for the arguments."""
    arguments.refuse_unread("diagonal", diagonal, kernel_fn, kwargs)
    job = tiles.job(kernel_fn, x, None, (get,), kwargs, tile, devices)
    (n, _), dtype = _shape(job, axes=2)
    job = job._replace(call=job.call._replace(result="diagonal"))
    out = np.empty(n, dtype)
    todo = [(i, i) for i in range(job.counts[0])]
    own = tiles.stream(job, job.share.own(todo), jax.device_get)
    for i, _, entries in _told(own, todo, job):
        out[job.span(0, i)] = entries[: job.kept(0, i)]
    return out


def mirror(entries: np.ndarray) -> tuple[int, ...]:
    """Order of axes that turns K(x1, x2) into K(x2, x1), found on a block of K(x, x).

    Raises:
        ValueError: the block is not symmetric under any order.
    """
    rest = list(range(2, entries.ndim))
    orders = [(1, 0, *rest)]
    sizes = entries.shape[2:]
    if len(rest) % 2 == 0 and sizes[::2] == sizes[1::2]:
        # Output axes in pairs (k, k) swap with the samples; a single sample cannot tell.
        orders.insert(0, (1, 0, *(axis ^ 1 for axis in rest)))
    eps = np.finfo(entries.dtype).eps if np.issubdtype(entries.dtype, np.floating) else 0
    entries = np.nan_to_num(entries.astype(float))
    gaps = [np.max(np.abs(entries - entries.transpose(order))) for order in orders]
    if min(gaps) <= 100 * np.sqrt(eps) * np.max(np.abs(entries)):
        return orders[gaps.index(min(gaps))]
    raise ValueError(
        "kernel_fn(x, None) is not symmetric, though both batches are the same; "
        "check that it takes x2=None for x2=x1, and that an entry depends on its two samples alone"
    )


def _shape(job: tiles.Job, axes: int | None = None) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the matrix, from those of a tile."""
    found = tiles.shape_of(job, job.tile, job.symmetric)
    shape = getattr(found, "shape", ())
    if shape[:2] != job.tile or len(shape) != (axes or len(shape)):
        got = f"an array {shape}" if shape else f"a {type(found).__name__}"
        n1, n2 = job.tile
        raise ValueError(
            f"kernel_fn gives {got} for {n1} and {n2} samples; it must be one array "
            f"({n1}, {n2}{'' if axes else ', ...'}), so get must be one name"
        )
    return (*job.sizes, *shape[2:]), np.dtype(found.dtype)


def _store(put: Callable, entries: np.ndarray, i: int, j: int, job: tiles.Job, order: Any) -> None:
    """Writes a tile, and its mirror image; on the diagonal the upper triangle to both sides."""
    rows, columns = job.span(0, i), job.span(1, j)
    if job.symmetric and i == j:
        upper = np.triu(np.ones(entries.shape[:2], bool))
        upper = upper.reshape(upper.shape + (1,) * (entries.ndim - 2))
        # Both triangles were computed, and may differ by rounding: the matrix is symmetric to the bit.
        entries = np.where(upper, entries, entries.transpose(order))
    put((rows, columns), entries)
    if job.symmetric and i != j:
        put((columns, rows), entries.transpose(order))
