"""One folder per run: what was asked, what was measured, what was claimed. Every write is atomic.

::

    config.json    the configuration, every key        manifest.json  command, versions, device, times
    metrics.jsonl  one line per probe, appended        points/        finished points of the sweep
    checkpoints/   state of the interrupted points     data.nc        the labelled result
    claims.json    verdicts                            figures/       drawn by experiments.report
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import xarray as xr

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "xarray", "orbax-checkpoint")


def open_run(
    path: str | os.PathLike, config: dict[str, Any], study: str, variant: str
) -> pathlib.Path:
    """Makes the folder of a run, or opens it to go on with it.

    Args:
        path: the folder; made when missing.
        config: plain JSON-able dictionary, every key of the configuration.
        study: name of the study module.
        variant: which preset the configuration began from.

    Raises:
        ValueError: the folder holds a run of another configuration, or its config.json cannot be read.
    """
    path = pathlib.Path(path)
    config = json.loads(json.dumps(config))
    known = path / "config.json"
    if known.exists():
        before = read_json(known)
        if before != config:
            raise ValueError(
                f"{path} holds a run of another configuration ({_first_difference(before, config)}); "
                "give another --workdir, or delete that folder to start again"
            )
    for folder in ("points", "checkpoints"):
        (path / folder).mkdir(parents=True, exist_ok=True)
    write_text(known, json.dumps(config, indent=1) + "\n")
    manifest = path / "manifest.json"
    if not manifest.exists():
        write_text(manifest, json.dumps(_manifest(study, variant), indent=1) + "\n")
    return path


def finish_run(path: pathlib.Path, data: xr.Dataset, seconds: float) -> None:
    """Writes data.nc and the end of the manifest (seconds add up over resumed sessions)."""
    write_dataset(path / "data.nc", data)
    manifest = read_json(path / "manifest.json")
    manifest["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    manifest["seconds"] = manifest["seconds"] + seconds
    write_text(path / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def write_dataset(path: pathlib.Path, data: xr.Dataset) -> None:
    """Writes NetCDF 3, whose bytes depend on the data alone."""
    _replace(path, bytes(data.to_netcdf(engine="scipy", format="NETCDF3_64BIT")))


def read_dataset(path: pathlib.Path) -> xr.Dataset:
    """Reads data.nc into memory.

    Raises:
        ValueError: the file is missing or is not NetCDF.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is missing: the run has not finished; run its command again to go on"
        )
    try:
        return xr.load_dataset(io.BytesIO(path.read_bytes()), engine="scipy")
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete it and run the command again"
        ) from error


def save_point(path: pathlib.Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keeps a finished point of the sweep, with a checksum; a later run loads it instead of training."""
    body = io.BytesIO()
    np.savez(body, **arrays)
    content = body.getvalue()
    _replace(path / "points" / f"{name}.npz", hashlib.sha256(content).digest() + content)


def load_point(path: pathlib.Path, name: str) -> dict[str, np.ndarray] | None:
    """The arrays of a finished point, or None when it is not there yet.

    Raises:
        ValueError: the file does not match its checksum.
    """
    file = path / "points" / f"{name}.npz"
    if not file.exists():
        return None
    raw = file.read_bytes()
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        raise ValueError(
            f"{file} is corrupt (its checksum does not match); delete it and run again: "
            "only this point is trained again"
        )
    with np.load(io.BytesIO(raw[32:])) as arrays:
        return {key: arrays[key] for key in arrays.files}


def append_metrics(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Appends one JSON object per line to metrics.jsonl."""
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def keep_metrics(path: pathlib.Path, keep) -> None:
    """Rewrites metrics.jsonl with the rows for which ``keep(row)`` holds; a cut last line is dropped.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    file = path / "metrics.jsonl"
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{file}, line {number} is not JSON; delete the file (the results themselves lie in points/) "
                "and run again"
            ) from error
        if keep(row):
            kept.append(json.dumps(row))
    write_text(file, "".join(line + "\n" for line in kept))


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file of a run.

    Raises:
        ValueError: it is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes the whole file or leaves the old one."""
    _replace(path, text.encode())


def _replace(path: pathlib.Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}); what was saved before is intact",
        ) from error


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


def _manifest(study: str, variant: str) -> dict[str, Any]:
    def git_commit() -> str:
        root = pathlib.Path(__file__).parent.parent
        try:
            return subprocess.run(
                ["git", "-C", str(root), "rev-parse", "HEAD"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {
        "study": study,
        "variant": variant,
        "command": ["python", "-m", "experiments.run", *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "finished": None,
        "seconds": 0.0,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": os.cpu_count(),
        "git": git_commit(),
    }
