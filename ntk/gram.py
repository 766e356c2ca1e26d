"""Large Gram matrices of any kernel function: tiles over devices, one triangle, kept on disk as they come.

A kernel function is ``kernel_fn(x1, x2, get, ...)`` with x2 = None for x2 = x1: ours, one of
neural-tangents, or an empirical one. This is the only module of ntk that touches files.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk import tiles

PyTree = Any

TILE = 1024
"""Samples along one side of a tile, unless told otherwise."""
_FILES = {"manifest.json", "manifest.new", "gram.npy", "tiles.txt", "tiles.new"}


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
) -> np.ndarray:
    """Gram matrix of a kernel in the memory of the host, or in a file; never whole on a device.

    Args:
        kernel_fn: ``kernel_fn(x1, x2, get, **kwargs)``, an array (n1, n2, ...); x2 is None for x1.
            An entry may depend on its own two samples only.
        x1: n1 samples along axis 0 of an array, or of each array of a list; whole on each device.
        x2: n2 samples. With None, or the values of x1, one triangle is computed and mirrored.
        get: name of the kernel.
        tile: samples along one side of a tile. At most two tiles for each device are under way.
        devices: devices that share the work; all local ones by default.
        path: folder that keeps finished tiles. The same call computes what is missing there, also
            after a kill, to the same bits. Its ``gram.npy`` is the matrix.
        name: name and version of the kernel, which path needs to tell its folder from others'.
        progress: called as ``progress(done, total)``, in tiles, first with those found on disk.
        **kwargs: passed to kernel_fn, such as ``params`` of an empirical kernel. The tuple (a, b)
            of arrays with leading axes n1 and n2 (``pattern``) is cut as the samples are.

    Returns:
        The matrix, (n1, n2, ...); a read-only memmap if path is given. Further axes of a symmetric
        one are mirrored in the layout (k, k, l, l) or (k, l), whichever kernel_fn has.

    Raises:
        ValueError: inputs are empty or not finite; kernel_fn does not give an array of (n1, n2),
            or is not symmetric; path is without name, or the folder belongs to another job.

    Warns:
        UserWarning: tiles in path do not match their checksum; they are computed again.
    """
    if path is not None and not name:
        raise ValueError("path needs name, the kernel's name and version, such as 'relu-5-v1'")
    job = tiles.job(kernel_fn, x1, x2, (get,), kwargs, tile, devices)
    if job.traced:
        raise ValueError("gram fills an array of the host: call it outside jit, grad and vmap")
    shape, dtype = _shape(job)
    todo, folder = job.positions(), None
    total = len(todo)
    if path is None:
        out = np.empty(shape, dtype)
    else:
        folder = _open(path, _about(job, name, get, shape, dtype))
        out = folder.matrix
        kept = _verified(folder, job)
        todo = [ij for ij in todo if ij not in kept]
    done = total - len(todo)
    if progress is not None:
        progress(done, total)
    order = None
    for i, j, entries in tiles.stream(job, todo, jax.device_get):
        entries = entries[: job.kept(0, i), : job.kept(1, j)]
        if job.symmetric and order is None:
            order = mirror(entries if i == j else out[job.span(0, 0), job.span(1, 0)])
        _store(out, entries, i, j, job, order)
        if folder is not None:
            _record(folder, job, i, j)
        done += 1
        if progress is not None:
            progress(done, total)
    return out if folder is None else np.load(folder.path / "gram.npy", mmap_mode="r")


def product(
    kernel_fn: Callable[..., Any],
    x1: PyTree,
    x2: PyTree | None = None,
    get: str = "ntk",
    *,
    tile: int = TILE,
    devices: Sequence[jax.Device] | None = None,
    **kwargs: Any,
) -> Callable[[np.ndarray], np.ndarray]:
    """The map v -> K v of a Gram matrix that is stored nowhere: each call computes every tile anew.

    Args:
        kernel_fn: see `gram`; its kernel is (n1, n2).
        x1: see `gram`.
        x2: see `gram`.
        get: name of the kernel.
        tile: see `gram`.
        devices: see `gram`.
        **kwargs: passed to kernel_fn, see `gram`.

    Returns:
        A function of v, (n2,) or (n2, k), giving (n1,) or (n1, k) in the kernel's dtype, as an
        array of the host. Tiles are multiplied at the highest precision of that dtype; sums over
        tiles are in float64.

    Raises:
        ValueError: see `gram`; v does not have n2 rows.
    """
    job = tiles.job(kernel_fn, x1, x2, (get,), kwargs, tile, devices)
    (n1, n2), dtype = _shape(job, axes=2)
    times = job._replace(call=job.call._replace(result="product"))

    def matvec(v: np.ndarray) -> np.ndarray:
        v = np.asarray(v)
        if v.ndim not in (1, 2) or v.shape[0] != n2:
            raise ValueError(f"v has shape {v.shape}; it must be ({n2},) or ({n2}, k)")
        columns = tiles.padded(v.reshape(n2, -1).astype(dtype), job.tile[1], np.zeros_like)
        sides = {"one": (job.one, columns if job.symmetric else None), "two": (job.two, columns)}
        out = np.zeros((n1, columns.shape[1]))
        results = tiles.stream(times._replace(**sides), job.positions(), jax.device_get)
        for i, j, (rows, mirrored) in results:
            out[job.span(0, i)] += rows[: job.kept(0, i)]
            if mirrored is not None:
                out[job.span(1, j)] += mirrored[: job.kept(1, j)]
        return out.astype(dtype).reshape(n1, *v.shape[1:])

    return matvec


def diagonal(
    kernel_fn: Callable[..., Any],
    x: PyTree,
    get: str = "ntk",
    *,
    tile: int = 32,
    devices: Sequence[jax.Device] | None = None,
    **kwargs: Any,
) -> np.ndarray:
    """Diagonal of a Gram matrix, (n,), from the tiles on it alone; see `gram` for the arguments."""
    job = tiles.job(kernel_fn, x, None, (get,), kwargs, tile, devices)
    (n, _), dtype = _shape(job, axes=2)
    job = job._replace(call=job.call._replace(result="diagonal"))
    out = np.empty(n, dtype)
    for i, _, entries in tiles.stream(job, [(i, i) for i in range(job.counts[0])], jax.device_get):
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


def _store(
    out: np.ndarray, entries: np.ndarray, i: int, j: int, job: tiles.Job, order: Any
) -> None:
    """Writes a tile, and its mirror image; on the diagonal the upper triangle to both sides."""
    rows, columns = job.span(0, i), job.span(1, j)
    if job.symmetric and i == j:
        upper = np.triu(np.ones(entries.shape[:2], bool))
        upper = upper.reshape(upper.shape + (1,) * (entries.ndim - 2))
        entries = np.where(upper, entries, entries.transpose(order))
    out[rows, columns] = entries
    if job.symmetric and i != j:
        out[columns, rows] = entries.transpose(order)


class _Folder(NamedTuple):
    """A Gram matrix on disk: ``gram.npy``, the finished tiles in ``tiles.txt``, ``manifest.json``."""

    path: pathlib.Path
    matrix: np.memmap


def _about(job: tiles.Job, name: str, get: str, shape: tuple, dtype: np.dtype) -> dict[str, Any]:
    """What two jobs must share to share a folder."""
    inputs = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves((job.one, job.two, job.arrays)):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        inputs.update(f"{leaf.dtype}{leaf.shape}".encode())
        inputs.update(np.ascontiguousarray(leaf))
    options = [v[0] for v in job.call.static[1] if v and isinstance(v[0], str | int | float)]
    return {
        "kernel": name,
        "get": get,
        "options": repr(options),
        "inputs": inputs.hexdigest(),
        "shape": list(shape),
        "dtype": str(dtype),
        "tile": list(job.tile),
        "symmetric": job.symmetric,
    }


def _open(path: str | os.PathLike, about: dict[str, Any]) -> _Folder:
    """The folder of this job; made if it is not there."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    manifest = path / "manifest.json"
    if not manifest.exists():
        _create(path, about)
    try:
        found = json.loads(manifest.read_text())
    except ValueError:
        raise ValueError(f"{manifest} cannot be read; choose another path, or remove it") from None
    if not isinstance(found, dict) or set(found) != set(about):
        raise ValueError(f"{manifest} is of another version; choose another path")
    if found != about:
        changes = [
            f"{k} is {found[k]!r} there, {v!r} here" for k, v in about.items() if found[k] != v
        ]
        raise ValueError(
            f"{path} belongs to another job ({'; '.join(changes)}); choose another path"
        )
    matrix = np.load(path / "gram.npy", mmap_mode="r+")
    return _Folder(path, matrix)


def _create(path: pathlib.Path, about: dict[str, Any]) -> None:
    """The manifest comes last, so that a folder without one was never used."""
    strangers = sorted({p.name for p in path.iterdir()} - _FILES)
    if strangers:
        raise ValueError(
            f"{path} holds other files, such as {strangers[0]!r}; choose an empty folder"
        )
    shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
    np.lib.format.open_memmap(path / "gram.npy", "w+", dtype, shape).flush()
    (path / "tiles.txt").write_text("")
    (path / "manifest.new").write_text(json.dumps(about, indent=1) + "\n")
    os.replace(path / "manifest.new", path / "manifest.json")


def _digest(matrix: np.ndarray, job: tiles.Job, i: int, j: int) -> str:
    """Checksum of a tile, and of its mirror image."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(matrix[job.span(0, i), job.span(1, j)]))
    if job.symmetric and i != j:
        digest.update(np.ascontiguousarray(matrix[job.span(1, j), job.span(0, i)]))
    return digest.hexdigest()


def _record(folder: _Folder, job: tiles.Job, i: int, j: int) -> None:
    """Notes a tile as finished, once it is on disk."""
    folder.matrix.flush()
    with open(folder.path / "tiles.txt", "a") as file:
        file.write(f"{i} {j} {_digest(folder.matrix, job, i, j)}\n")
        file.flush()
        os.fsync(file.fileno())


def _verified(folder: _Folder, job: tiles.Job) -> set[tuple[int, int]]:
    """Finished tiles whose entries match their checksum; the journal is rewritten to these."""
    journal = folder.path / "tiles.txt"
    lines = journal.read_text().split("\n") if journal.exists() else []
    # A kill can cut the last line short.
    notes = [line.split(" ") for line in lines[:-1]]
    noted = {(int(i), int(j)): digest for i, j, digest in notes}
    good = {ij: d for ij, d in noted.items() if _digest(folder.matrix, job, *ij) == d}
    broken = sorted(set(noted) - set(good))
    if broken:
        warnings.warn(
            f"{len(broken)} of {len(noted)} tiles in {folder.path} do not match their checksum, "
            f"such as {broken[0]}; they are computed again",
            stacklevel=3,
        )
    fresh = journal.with_suffix(".new")
    fresh.write_text("".join(f"{i} {j} {d}\n" for (i, j), d in good.items()))
    os.replace(fresh, journal)
    return set(good)
