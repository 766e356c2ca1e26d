"""One folder per run: what was asked, what was measured, what was claimed. Every write is atomic.

::

    config.json    the configuration, every key        manifest.json  command, versions, device, times
    metrics.jsonl  one line per probe, appended        points/        finished points of the sweep
    checkpoints/   state of the interrupted points     data.nc        the labelled result
    claims.json    verdicts                            figures/       drawn by experiments.report
    lock           which process is at work here

Points, checkpoints and data.nc carry the hash of the configuration that made them and a checksum (`experiments.seals`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from experiments import manifest as manifests
from experiments import seals
from experiments.files import named, read_json, read_object, replace, write_json, write_text

SOURCES = {"study": "study_sha256", "model": "model_sha256"}
"""Keys of config.json: the hash of the file of a study, of the files of models, that are none of this package."""


@contextlib.contextmanager
def lock(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes the folder of a run when missing, and holds it: for one process at a time, until its end or death.

    Raises:
        ValueError: another process holds it.
        OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    file = path / "lock"
    with named(file):
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            raise ValueError(
                f"{path} is in use by {holder or 'another process'}; wait for its end, or give another --workdir"
            ) from None
        with named(file):
            os.ftruncate(descriptor, 0)
            holder = f"process {os.getpid()} on {platform.node()} since {manifests.now()}\n"
            os.pwrite(descriptor, holder.encode(), 0)
        yield path
    finally:
        os.close(descriptor)


def open_run(
    path: str | os.PathLike, config: dict[str, Any], study: str, variant: str
) -> pathlib.Path:
    """Makes the files of a run, or opens them to go on.

    Args:
        path: the folder; made when missing.
        config: plain JSON-able dictionary, every key of the configuration.
        study: name of the study module.
        variant: which preset the configuration began from.

    Raises:
        ValueError: the folder holds a run of another configuration or of an older version, or its config.json or
            manifest.json is damaged.
    """
    path = pathlib.Path(path)
    config = json.loads(json.dumps(config))
    configuration = seals.digest(config)
    known, manifest = path / "config.json", path / "manifest.json"
    if manifest.exists():
        read_manifest(path)
    _refuse_another(path, config, configuration)
    for folder in ("points", "checkpoints"):
        with named(path / folder):
            (path / folder).mkdir(parents=True, exist_ok=True)
    if not known.exists():
        write_text(known, json.dumps(config, indent=1) + "\n")
    if not manifest.exists():
        write_json(manifest, manifests.new(study, variant, configuration))
    return path


def _refuse_another(path: pathlib.Path, config: dict[str, Any], configuration: str) -> None:
    """Compares config.json, or where it is lost the results themselves, with what is asked."""
    another = f"{path} holds a run of another configuration"
    remedy = "give another --workdir, or delete that folder to start again"
    if (path / "config.json").exists():
        before = read_object(path / "config.json")
        if seals.digest(before) != configuration:
            unread = dict.fromkeys(SOURCES.values())
            if before | unread == config | unread:
                same = before.get(SOURCES["study"]) == config.get(SOURCES["study"])
                changed = "the file of a model" if same else config["study"]
                raise ValueError(
                    f"{changed} has changed since the points in {path} were made; {remedy}"
                )
            raise ValueError(f"{another} ({_first_difference(before, config)}); {remedy}")
        return
    manifest = path / "manifest.json"
    if manifest.exists() and read_manifest(path)["configuration"] != configuration:
        raise ValueError(f"{another} (config.json is lost, and by manifest.json); {remedy}")
    for file in sorted((path / "points").glob("*.npz")):
        if _sealed(file).get("configuration") != configuration:
            raise ValueError(
                f"{another} (config.json is lost, and by points/{file.name}); {remedy}"
            )


def _sealed(file: pathlib.Path) -> dict[str, str]:
    try:
        return seals.archive_seal(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} {error}; delete it and run again") from error


def forget(path: pathlib.Path) -> None:
    """Takes back `open_run` where nothing was measured since, so that another configuration can begin there."""
    if any(any(path.glob(kept)) for kept in ("points/*.npz", "checkpoints/*/*", "data.nc")):
        return
    for name in ("config.json", "manifest.json", "metrics.jsonl"):
        (path / name).unlink(missing_ok=True)


def changes(path: pathlib.Path) -> list[str]:
    """What differs from when the run began (versions, commit, device), in sentences; kept in the manifest too."""
    manifest = read_manifest(path)
    found = manifests.changes(manifest)
    new = [sentence for sentence in found if sentence not in manifest["changes"]]
    if new:
        write_json(path / "manifest.json", manifest | {"changes": manifest["changes"] + new})
    return found


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of the run in a folder.

    Raises:
        ValueError: it is missing, damaged, or of an older version.
    """
    return manifests.check(read_json(path / "manifest.json"), path / "manifest.json")


@contextlib.contextmanager
def timed(path: pathlib.Path) -> Iterator[None]:
    """Adds the seconds of a session to the manifest, however it ends, if it has left any result."""
    before, begin = _state(path), time.monotonic()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, ValueError):  # what ended the session is said, not this
            _add_seconds(path, before, begin)
        raise
    _add_seconds(path, before, begin)


def _add_seconds(path: pathlib.Path, before: dict[pathlib.Path, int], begin: float) -> None:
    if _state(path) != before:
        manifest = read_manifest(path)
        seconds = manifest["seconds"] + time.monotonic() - begin
        write_json(path / "manifest.json", manifest | {"seconds": seconds})


def _state(path: pathlib.Path) -> dict[pathlib.Path, int]:
    """The points and checkpoints, with the times at which they were written."""
    files = [*path.glob("points/*.npz"), *path.glob("checkpoints/*/*/*.npz")]
    return {file: file.stat().st_mtime_ns for file in files}


def finish_run(
    path: pathlib.Path,
    data: xr.Dataset,
    configuration: str,
    grids: Mapping[str, Any] | None = None,
) -> None:
    """Writes data.nc, and into the manifest when that was, from which points, and what the grids took where known."""
    write_dataset(path / "data.nc", data, configuration)
    points = sorted(file.stem for file in path.glob("points/*.npz"))
    manifest = read_manifest(path) | {"finished": manifests.now(), "points": points}
    manifest |= {"grids": dict(grids)} if grids is not None else {}
    write_json(path / "manifest.json", manifest)


def finished(path: pathlib.Path, configuration: str) -> xr.Dataset | None:
    """The result of a run that needs nothing more, or None; its points are read, too.

    Raises:
        ValueError: a point is damaged.
    """
    manifest = read_manifest(path)
    points = {name: load_point(path, name, configuration) for name in manifest.get("points", ())}
    if not manifest["finished"] or any(arrays is None for arrays in points.values()):
        return None
    try:
        return read_dataset(path / "data.nc", configuration)
    except ValueError:  # made again from the points
        return None


def write_dataset(path: pathlib.Path, data: xr.Dataset, configuration: str = "") -> None:
    """Writes NetCDF 3, whose bytes depend on the data and the configuration alone.

    Args:
        path: the file.
        data: what it will hold.
        configuration: hash of the configuration that made it.
    """
    replace(path, seals.pack_dataset(data, configuration))


def read_dataset(path: pathlib.Path, configuration: str = "") -> xr.Dataset:
    """Reads data.nc into memory.

    Args:
        path: the file.
        configuration: the hash that it has to carry, if it carries one; empty for any.

    Raises:
        ValueError: the file is missing, damaged, or of another configuration.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is missing: the run has not finished; run its command again to go on"
        )
    try:
        data, found = seals.unpack_dataset(path.read_bytes())
        if configuration and found and found != configuration:
            raise ValueError(seals.FOREIGN)
        return data
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read: it {error}; delete it and run the command again"
        ) from error


def save_point(
    path: pathlib.Path, name: str, arrays: dict[str, np.ndarray], configuration: str = ""
) -> None:
    """Keeps a finished point of the sweep, sealed; a later run loads it instead of training."""
    replace(path / "points" / f"{name}.npz", seals.pack_arrays(arrays, configuration, name))


def load_point(
    path: pathlib.Path, name: str, configuration: str = ""
) -> dict[str, np.ndarray] | None:
    """The arrays of a finished point, or None when it is not there yet.

    Raises:
        ValueError: the file does not match its checksum, or was made by another configuration.
    """
    file = path / "points" / f"{name}.npz"
    if not file.exists():
        return None
    try:
        return seals.unpack_arrays(file.read_bytes(), configuration, name)
    except ValueError as error:
        raise ValueError(
            f"{file} {error}; delete it and run again: only this point is trained again"
        ) from error


# The metrics of each file that this process wrote last: its size, and the last chunk of each run
_LAST: dict[pathlib.Path, tuple[int, dict[str, int]]] = {}


def append_metrics(
    path: pathlib.Path, rows: list[dict[str, Any]], name: str = "metrics.jsonl"
) -> None:
    """Appends one JSON object per line to a file of metrics."""
    file = path / name
    file.parent.mkdir(exist_ok=True)
    before = _size(file)
    with named(file), open(file, "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    size, last = _LAST.get(file, (0, {}))
    if size == before:
        last.update(_last_chunks(rows))
        _LAST[file] = _size(file), last


def drop_metrics(path: pathlib.Path, run: str, after: int, name: str = "metrics.jsonl") -> None:
    """Drops the rows of a run after a chunk, which will be trained again; the file is only read when it must be.

    Raises:
        ValueError: a line other than the last is not a row of metrics.
    """
    file = path / name
    if _LAST.get(file, (None,))[0] != _size(file):
        keep_metrics(path, lambda row: True, name)
    if _LAST[file][1].get(run, 0) > after:
        keep_metrics(path, lambda row: row["run"] != run or row.get("chunk", 0) <= after, name)


def read_metrics(path: pathlib.Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a file of metrics; a cut last line is none."""
    file = path / name
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return list(_rows(file, text))


def keep_metrics(path: pathlib.Path, keep, name: str = "metrics.jsonl") -> None:
    """Rewrites a file of metrics with the rows for which ``keep(row)`` holds; a cut last line is dropped.

    Raises:
        ValueError: a line other than the last is not a row of metrics.
    """
    file = path / name
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    rows = [row for row in _rows(file, text) if keep(row)]
    kept = "".join(json.dumps(row) + "\n" for row in rows)
    if kept != text:
        write_text(file, kept)
    _LAST[file] = _size(file), _last_chunks(rows)


def _rows(file: pathlib.Path, text: str) -> Iterator[dict[str, Any]]:
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row, wrong = None, "not JSON"
        else:
            wrong = "no row of metrics"
        if (
            isinstance(row, dict)
            and isinstance(row.get("run"), str)
            and isinstance(row.get("chunk", 0), int)
        ):
            yield row
        elif number < len(lines) or text.endswith("\n"):
            raise ValueError(
                f"{file}, line {number} is {wrong}; delete the file (the results themselves lie in points/) "
                "and run again"
            )


def _last_chunks(rows: list[dict[str, Any]]) -> dict[str, int]:
    last: dict[str, int] = {}
    for row in rows:
        last[row["run"]] = max(row.get("chunk", 0), last.get(row["run"], 0))
    return last


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _first_difference(before: dict, now: dict, prefix: str = "") -> str:
    for key in sorted(set(before) | set(now)):
        if key not in before or key not in now:
            return f"{prefix}{key} is only in one of them"
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            if before[key] != now[key]:
                return _first_difference(before[key], now[key], f"{prefix}{key}.")
        elif before[key] != now[key]:
            return f"{prefix}{key}: {before[key]!r} there, {now[key]!r} asked"
    return "no difference"
