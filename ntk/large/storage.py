"""A Gram matrix in a folder: what belongs to it, which tiles are finished, and who works on it.

::

    manifest.json  what the matrix is of      gram.npy   the matrix, allocated whole
    tiles.txt      finished tiles, checksums  lock       held while a job works on the folder
    tiles-1.txt    those of a job's second process, and so on

This is the only module of ntk that touches files.

One file: what is written in which order, and what a kill in between leaves, is one argument for all files of a folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import socket
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Literal, NamedTuple

import jax
import numpy as np

from ntk.large import processes, tiles

try:
    import fcntl
except ImportError:  # not on Windows: there nobody is told
    fcntl = None  # type: ignore[assignment]  # a module that is not there

Place = tuple[slice, slice]
"""Rows and columns of a file's array."""

Places = Callable[[int, int], list[Place]]

_FILES = r"manifest\.json|manifest\.new|gram\.npy|tiles(-\d+)?\.txt|tiles\.new|lock"
_FINGERPRINT = 1e-3
"""Relative to the largest entry: far above rounding on another device, far below another kernel."""


class Folder(NamedTuple):
    """An open folder.

    Attributes:
        path: where it is.
        matrix: ``gram.npy``, as a map.
        file: ``gram.npy``, as it is written, and read back.
        places: the rows and columns of a tile in the file, and those of its mirror image if it has one there.
        journal: of the tiles that this process finishes.
        held: what is open, the lock of the first process of a job among it; until `close`, or until it dies.
    """

    path: pathlib.Path
    matrix: np.memmap
    file: io.FileIO
    places: Places
    journal: pathlib.Path
    held: contextlib.ExitStack

    def put(self, where: Place, entries: np.ndarray) -> None:
        """Writes the entries of some rows and columns.

        Not through the memory map: on a network's disk two machines that write to one page of a map undo each
        other's entries.
        """
        with _named_errors(self.path / "gram.npy"):
            for at, values in zip(*_runs(self.matrix, where, entries)):
                data = memoryview(_contiguous(values, self.matrix.dtype)).cast("B")
                while data:
                    self.file.seek(at)
                    written = self.file.write(data)
                    data, at = data[written:], at + written

    def get(self, where: Place) -> np.ndarray:
        """Reads the entries of some rows and columns; pages of the map would count as memory of this process."""
        rows, columns = where
        sizes = (rows.stop - rows.start, columns.stop - columns.start)
        found = np.empty((*sizes, *self.matrix.shape[2:]), self.matrix.dtype)
        fill(self.file, self.matrix, where, found)
        return found

    def close(self) -> None:
        """Lets other jobs work on the folder."""
        self.held.close()


def open_folder(
    path: str | os.PathLike,
    job: tiles.Job,
    name: str | None,
    get: str,
    shape: tuple,
    dtype: np.dtype,
    places: Places,
) -> Folder:
    """The folder of a job; made if it is not there, with space for the whole matrix.

    Args:
        path: the folder.
        job: what is computed.
        name: name and version of the kernel.
        get: name of the kernel asked for.
        shape: of the file's array.
        dtype: of the file's array.
        places: see `Folder`.

    Raises:
        ValueError: the folder belongs to another job, is in use, or its files are damaged.
        OSError: no room on the disk, or no right to write.
    """
    path, held = pathlib.Path(path), contextlib.ExitStack()
    index = job.share.rank
    with held:
        processes.first(lambda: _prepare(path, held, job, name, get, shape, dtype), job.share)
        matrix = _matrix(path, shape, dtype)
        file = held.enter_context((path / "gram.npy").open("r+b", buffering=0))
        journal = path / (f"tiles-{index}.txt" if index else "tiles.txt")
        return Folder(path, matrix, file, places, journal, held.pop_all())


def _prepare(
    path: pathlib.Path,
    held: contextlib.ExitStack,
    job: tiles.Job,
    name: str | None,
    get: str,
    shape: tuple,
    dtype: np.dtype,
) -> None:
    """What the first process of a job does with its folder before the others open it."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; choose another path, for a folder")
    path.mkdir(parents=True, exist_ok=True)
    strangers = sorted(p.name for p in path.iterdir() if not re.fullmatch(_FILES, p.name))
    if strangers and not (path / "manifest.json").exists():
        raise ValueError(
            f"{path} holds other files, such as {strangers[0]!r}; choose an empty folder"
        )
    held.enter_context(_lock(path))
    about = _about(job, name, get, shape, dtype)
    if (path / "manifest.json").exists():
        _compare(path, about)
    if not (path / "manifest.json").exists() or not (path / "gram.npy").exists():
        _create(path, about)
    _matrix(path, shape, dtype, "r+")  # NumPy extends a file that was cut, by a hole,
    _allocate(path / "gram.npy")  # which takes its blocks here


def fill(file: io.FileIO, array: np.memmap, where: Place, out: np.ndarray) -> None:
    """Reads some rows and columns of a file's array into an array in memory."""
    for at, values in zip(*_runs(array, where, out)):
        data = memoryview(values).cast("B")
        while data:
            file.seek(at)
            read = file.readinto(data)
            if not read:
                raise OSError(f"{file.name} ends after {at} bytes: it was cut after it was opened")
            data, at = data[read:], at + read


def _runs(array: np.memmap, where: Place, entries: np.ndarray) -> tuple[Iterable[int], Any]:
    """Where the bytes of some rows and columns stand in the file, and the entries: at once where whole rows are."""
    rows, columns = where
    _, width, *rest = array.shape
    entry = int(np.prod(rest, dtype=int)) * array.itemsize
    starts = [
        array.offset + (r * width + columns.start) * entry for r in range(rows.start, rows.stop)
    ]
    whole = columns == slice(0, width)
    return (starts[:1], [entries]) if whole else (starts, entries)


def record(folder: Folder, i: int, j: int) -> None:
    """Notes a tile as finished, once it is on disk."""
    with _named_errors(folder.path / "gram.npy"):
        os.fsync(folder.file.fileno())
    with _named_errors(folder.journal), open(folder.journal, "a") as file:
        file.write(f"{i} {j} {_digest(folder, i, j)}\n")
        file.flush()
        os.fsync(file.fileno())


def verified(folder: Folder, job: tiles.Job) -> set[tuple[int, int]]:
    """Finished tiles whose entries match their checksum; the journals are rewritten, into one, to these."""
    return {(i, j) for i, j in processes.first(lambda: _verified(folder, job), job.share)}


def _verified(folder: Folder, job: tiles.Job) -> list[tuple[int, int]]:
    journals = sorted(folder.path.glob("tiles*.txt"))
    text = [journal.read_bytes().decode("ascii", errors="replace") for journal in journals]
    # A kill can cut the last line of each short.
    lines = [line for part in text for line in part.split("\n")[:-1]]
    positions = set(job.positions())
    noted = [_note(line) for line in lines]
    good = {
        ij: digest for ij, digest in noted if ij in positions and _digest(folder, *ij) == digest
    }
    # A damaged line costs its own tile, unless the tile was noted again later.
    broken = [line for line, (ij, _) in zip(lines, noted) if ij not in good]
    if broken:
        warnings.warn(
            f"{len(broken)} of {len(lines)} tiles in {folder.path} do not match their checksum, "
            f"such as {broken[0]!r}; they are computed again",
            stacklevel=7,
        )
    journal, fresh = folder.path / "tiles.txt", folder.path / "tiles.new"
    with _named_errors(journal):
        fresh.write_text("".join(f"{i} {j} {d}\n" for (i, j), d in good.items()))
        # One journal again, before the others go: a kill in between loses none of them.
        os.replace(fresh, journal)
        for other in journals:
            if other != journal:
                other.unlink()
    return list(good)


def keep_arrays(file: pathlib.Path, mark: str, arrays: dict[str, Any]) -> None:
    """Writes the state of a long computation, whole or not at all; the first process of a job does.

    Args:
        file: an npz file.
        mark: what the state belongs to.
        arrays: what `kept_arrays` gives back.
    """
    if jax.process_index() == 0:
        fresh = file.with_name(file.name + ".new")
        with _named_errors(file, "the step before is kept"), fresh.open("wb") as handle:
            np.savez(handle, mark=mark, **arrays)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(fresh, file)


def kept_arrays(file: pathlib.Path, mark: str) -> dict[str, np.ndarray] | None:
    """What `keep_arrays` wrote last, or None where there is none.

    Raises:
        ValueError: the file is damaged, or of another computation.
    """
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
            there = str(arrays.pop("mark"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); remove it, or give another path"
        ) from error
    if there != mark:
        raise ValueError(
            f"{file} belongs to another solve (other samples, targets or options); give another path"
        )
    return arrays


@contextlib.contextmanager
def _named_errors(file: pathlib.Path, kept: str = "finished tiles are kept") -> Iterator[None]:
    """An error of the system, which does not say which file could not be written, with its name."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}; {kept}, the same call goes on"
        raise OSError(error.errno, reason, str(file)) from error


def _note(line: str) -> tuple[tuple[int, int] | None, str]:
    """((row, column), checksum) of a line of the journal; None where it is damaged."""
    parts = line.split(" ")
    if len(parts) == 3 and all(p.isdecimal() and len(p) < 12 for p in parts[:2]):
        return (int(parts[0]), int(parts[1])), parts[2]
    return None, ""


def _contiguous(array: np.ndarray, dtype: np.dtype | None = None) -> Any:
    """The entries in a row: a buffer, which NumPy's types say of arrays from Python 3.12 on only."""
    return np.ascontiguousarray(array, dtype)


def _lock(path: pathlib.Path) -> IO[str]:
    """The lock of a folder; the system releases it when the process ends, however it ends."""
    file = open(path / "lock", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise ValueError(
            f"{path} is in use by {holder}; wait for it, or choose another path"
        ) from None
    except OSError:  # a file system without locks
        return file
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # on a full disk the lock holds without its words
        os.ftruncate(file.fileno(), 0)
        os.write(
            file.fileno(), f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode()
        )
    return file


def _about(
    job: tiles.Job, name: str | None, get: str, shape: tuple, dtype: np.dtype
) -> dict[str, Any]:
    """What two jobs must share to share a folder."""
    inputs = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves((job.one, job.two, job.arrays)):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        _hash(inputs, leaf, job)
    structure, rest = job.call.static
    return {
        "kernel": name,
        "get": get,
        "options": f"{structure} {[_named(v[0]) for v in rest if v]}",
        "inputs": inputs.hexdigest(),
        "shape": list(shape),
        "dtype": str(dtype),
        "tile": list(job.tile),
        "symmetric": job.symmetric,
        "versions": {package: _version(package) for package in ("widelimit", "jax")},
        "fingerprint": _fingerprint(job),
    }


def _hash(inputs: Any, leaf: Any, job: tiles.Job) -> None:
    """What a leaf holds; of samples on disk as if they were in memory, filled up to whole tiles."""
    missing = 0
    if tiles.on_disk(leaf):
        tile = job.tile[not any(leaf is v for v in jax.tree.leaves(job.one))]
        missing = -leaf.shape[0] % tile
    size = leaf.shape[0] + missing if missing else None
    shape = leaf.shape if size is None else (size, *leaf.shape[1:])
    inputs.update(f"{tiles.held(leaf)}{shape}".encode())
    for part in tiles.blocks(leaf):
        inputs.update(_contiguous(part))
    if missing:
        inputs.update(_contiguous(tiles.read(leaf, 0, missing)))


def _named(value: Any) -> str:
    """An option in words that are the same in every process: a callable by its name."""
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.items()]
        return f"partial({', '.join(map(_named, parts))})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_named, value))})"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _fingerprint(job: tiles.Job) -> list[float]:
    """The kernel between the first two samples and the last of either side."""
    rows = [sorted({0, min(1, n - 1), n - 1}) for n in job.sizes]
    one, two = (
        jax.tree.map(lambda v, r=r: tiles.taken(v, r), side)
        for side, r in zip((job.one, job.two), rows)
    )
    sizes = len(rows[0]), len(rows[1])
    few = job._replace(one=one, two=two, sizes=sizes, tile=sizes, devices=job.devices[:1])
    few = few._replace(**_on_first(few))
    (_, _, entries), *_ = tiles.stream(few, [(0, 0)], jax.device_get)
    return [float(v) for v in np.real(entries).ravel()[:1000]]


def _on_first(job: tiles.Job) -> dict[str, Any]:
    parts = {"one": job.one, "two": job.two, "arrays": job.arrays}
    return jax.device_put(parts, job.devices[0])


def _compare(path: pathlib.Path, about: dict[str, Any]) -> None:
    manifest = path / "manifest.json"
    try:
        found = json.loads(manifest.read_text())
    except (ValueError, RecursionError):
        raise ValueError(f"{manifest} cannot be read; choose another path, or remove it") from None
    if not isinstance(found, dict) or set(found) != set(about):
        raise ValueError(f"{manifest} is of another version; choose another path")
    changes = [
        f"{k} is {found[k]!r} there, {v!r} here"
        for k, v in about.items()
        if found[k] != v and k != "fingerprint"
    ]
    if changes:
        raise ValueError(
            f"{path} belongs to another job ({'; '.join(changes)}); choose another path"
        )
    if not _alike(found["fingerprint"], about["fingerprint"]):
        raise ValueError(
            f"{path} belongs to another kernel: on the first two samples and the last it is "
            f"{about['fingerprint'][:4]} here, {_short(found['fingerprint'])} there; choose another path"
        )


def _alike(there: Any, here: list[float]) -> bool:
    if not isinstance(there, list) or len(there) != len(here):
        return False
    if not all(isinstance(v, int | float) for v in there):
        return False
    scale = np.max(np.abs(np.nan_to_num(here)), initial=0)
    return np.allclose(there, here, rtol=0, atol=_FINGERPRINT * scale, equal_nan=True)


def _short(value: Any) -> str:
    return repr(value[:4] if isinstance(value, list) else value)[:200]


def _create(path: pathlib.Path, about: dict[str, Any]) -> None:
    """The manifest comes last, so that a folder without one was never used."""
    shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
    file = path / "gram.npy"
    try:
        np.lib.format.open_memmap(file, "w+", dtype, shape).flush()
        _allocate(file)
        (path / "tiles.txt").write_text("")
        (path / "manifest.new").write_text(json.dumps(about, indent=1) + "\n")
        os.replace(path / "manifest.new", path / "manifest.json")
    except OSError as error:
        for name in ("gram.npy", "tiles.txt", "manifest.new"):
            (path / name).unlink(missing_ok=True)
        size = np.prod(shape, dtype=float) * dtype.itemsize
        reason = f"{error.strerror}: the matrix needs {size / 1e9:.3g} GB, and no tile was computed"
        raise OSError(error.errno, reason, str(file)) from error


def _allocate(file: pathlib.Path) -> None:
    """Takes the blocks of a file, without which a full disk ends the process at some tile by a signal.

    Raises:
        OSError: there are not as many.
    """
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, size)
            return
        for start in range(0, size, 2**24):  # zeros where they are take their blocks too
            handle.seek(start)
            block = handle.read(2**24)
            handle.seek(start)
            handle.write(block)
        os.fsync(handle.fileno())


def _matrix(
    path: pathlib.Path, shape: tuple, dtype: np.dtype, mode: Literal["r", "r+"] = "r"
) -> np.memmap:
    file = path / "gram.npy"
    try:
        matrix = np.load(file, mmap_mode=mode)
        same = (matrix.shape, matrix.dtype) == (shape, dtype) and matrix.flags.c_contiguous
        problem = "" if same else f"it is {matrix.dtype} {matrix.shape}"
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        problem = str(error)
    if problem:
        raise ValueError(
            f"{file} is damaged ({problem}; expected {dtype} {shape}); remove it, and all tiles are computed again"
        )
    return matrix


def _digest(folder: Folder, i: int, j: int) -> str:
    """Checksum of a tile, and of its mirror image."""
    digest = hashlib.blake2b(digest_size=16)
    for where in folder.places(i, j):
        digest.update(_contiguous(folder.get(where)))
    return digest.hexdigest()
