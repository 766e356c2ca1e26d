"""The manifest of a run: its command, what it ran on, and how long; what is different when it goes on."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "xarray")
FORMAT = 2  # of run directories: since 2, all that is kept carries its configuration and a checksum


def new(study: str, variant: str, configuration: str) -> dict[str, Any]:
    """The manifest of a run that starts now."""
    return {
        "format": FORMAT,
        "study": study,
        "variant": variant,
        "configuration": configuration,
        "command": ["python", "-m", _program(), *sys.argv[1:]],
        "started": now(),
        "finished": None,
        "seconds": 0.0,
        **environment(),
        "changes": [],
    }


def _program() -> str:
    """The module that was started: a theory card has a command line of its own."""
    name = pathlib.Path(sys.argv[0]).stem
    return "experiments.card" if name == "card" else "experiments.run"


def environment() -> dict[str, Any]:
    """What a result may depend on besides its configuration."""
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "cores": os.cpu_count(),
        "git": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "*.py")),
    }


def changes(manifest: dict[str, Any]) -> list[str]:
    """One sentence for each thing that was different when the run began."""
    now = environment()
    versions = manifest.get("versions") or {}
    pairs = {name: (versions.get(name), now["versions"][name]) for name in PACKAGES}
    pairs |= {key: (manifest.get(key), now[key]) for key in ("python", "device", "devices")}
    pairs["commit"] = tuple(_commit(kept) for kept in (manifest, now))
    return [
        f"{name} is {after}, and was {before} when this run began"
        for name, (before, after) in pairs.items()
        if before != after
    ]


def check(manifest: Any, path: pathlib.Path) -> dict[str, Any]:
    """The manifest, if it is one.

    Raises:
        ValueError: it is none, or one of an older version.
    """
    if isinstance(manifest, dict) and "started" in manifest and "format" not in manifest:
        raise ValueError(
            f"{path.parent} was made by an older version, whose files carry no checksums; "
            "give another --workdir, or delete that folder to start again"
        )
    kinds = {"format": int, "configuration": str, "seconds": int | float, "changes": list}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError(
            f"{path} is damaged (it is no manifest of a run); delete it and run again: only times and versions are lost"
        )
    return manifest


def now() -> str:
    """The local time in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _commit(kept: dict[str, Any]) -> str:
    return str(kept.get("git")) + " with uncommitted changes" * bool(kept.get("dirty"))


def _git(*words: str) -> str:
    root = str(pathlib.Path(__file__).parent.parent)
    try:
        return subprocess.run(
            ["git", "-C", root, *words], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
