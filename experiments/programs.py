"""Compiled programs kept on disk, so that a study, or a notebook, run again compiles nothing twice; its seconds."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import threading
import time

import jax

_LEAST = 0.2  # seconds of compilation below which a program is not worth a file


def keep() -> pathlib.Path | None:
    """Has JAX keep compiled programs in the user's cache folder; called by `python -m experiments`.

    A folder that JAX was told already (`JAX_COMPILATION_CACHE_DIR`) stays, and `JAX_ENABLE_COMPILATION_CACHE=0`
    keeps nothing. Numbers are those of the run that compiled, to the last bit.

    Returns:
        The folder, widelimit/programs of `XDG_CACHE_HOME` or ~/.cache, one for each kind of processor; None where
        none is kept.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    path = caches / "widelimit" / "programs" / _processor()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        return None
    # Processes that this one starts read the environment.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(_LEAST)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST)
    return path


_EVENTS = "/jax/core/compile/"  # tracing, lowering, and XLA's own work
_LOCK = threading.Lock()
_spans: dict[int, list[float]] = {}  # of a thread: when its latest compilations began
_lengths: dict[int, list[float]] = {}


def compile_seconds() -> float:
    """Seconds that this process has spent on tracing and compiling so far, by JAX's own events."""
    with _LOCK:
        return sum(map(sum, _lengths.values()))


def _listen(event: str, seconds: float, **_: object) -> None:
    if not event.startswith(_EVENTS):
        return
    begin = time.monotonic() - seconds
    with _LOCK:
        begins = _spans.setdefault(threading.get_ident(), [])
        lengths = _lengths.setdefault(threading.get_ident(), [])
        # A function traced within another is told first, and is part of it.
        while begins and begins[-1] >= begin - 1e-4:
            begins.pop()
            lengths.pop()
        begins.append(begin)
        lengths.append(seconds)
        if len(begins) > 1000:
            begins[:2], lengths[:2] = [begins[0]], [lengths[0] + lengths[1]]


jax.monitoring.register_event_duration_secs_listener(_listen)


def _processor() -> str:
    """A name for this kind of processor: a program compiled for another one may hold instructions that it lacks."""
    about = platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        about += "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    return f"{platform.machine()}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
