"""Paired timings: contenders run in turn (A B A B ...), so a drift of the machine cancels in the ratio.

A contender is a function without arguments that prepares its inputs and returns ``step``, a function
without arguments that does the work once and returns its result. The first call of ``step`` is
reported apart as compile time; every later one is timed in wall and in process CPU seconds.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

RESULTS = pathlib.Path(__file__).parent / "results"


class Timing(NamedTuple):
    """Seconds of one contender: first call, then every counted run (wall and CPU)."""

    first: float
    wall: list[float]
    cpu: list[float]


class Comparison(NamedTuple):
    """One task: timings by contender, and the baseline's time over ours, pair by pair."""

    task: str
    timings: dict[str, Timing]
    ours: str
    baseline: str
    wall_ratio: list[float]
    cpu_ratio: list[float]
    notes: dict[str, Any]


def block(result: Any) -> Any:
    """Waits for arrays of JAX (and leaves others alone)."""
    return jax.block_until_ready(result)


def compare(
    task: str,
    contenders: dict[str, Callable[[], Callable[[], Any]]],
    *,
    ours: str,
    baseline: str,
    runs: int = 7,
    notes: dict[str, Any] | None = None,
) -> Comparison:
    """Times every contender ``runs`` times in turn; the ratio is baseline over ours, so above 1 we are faster.

    Args:
        task: what is computed, with its sizes.
        contenders: name -> maker of the timed function.
        ours: the contender that the ratio is about.
        baseline: the contender it is compared with.
        runs: counted runs of each.
        notes: anything to keep beside the numbers (accuracy, bytes, flops, fraction of peak).

    Raises:
        ValueError: ours or baseline is not among the contenders, or runs is not positive.
    """
    if runs < 1:
        raise ValueError(f"runs is {runs}; it must be at least 1")
    for name in (ours, baseline):
        if name not in contenders:
            raise ValueError(f"{name!r} is not a contender; there are {sorted(contenders)}")
    steps, first = {}, {}
    for name, make in contenders.items():
        step = make()
        start = time.perf_counter()
        block(step())
        first[name] = time.perf_counter() - start
        steps[name] = step
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    for _ in range(runs):
        for name, step in steps.items():
            _settle()
            start, start_cpu = time.perf_counter(), _cpu_seconds()
            block(step())
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(_cpu_seconds() - start_cpu)
    timings = {name: Timing(first[name], wall[name], cpu[name]) for name in steps}
    return Comparison(
        task,
        timings,
        ours,
        baseline,
        [b / a for a, b in zip(wall[ours], wall[baseline])],
        [b / max(a, 1e-9) for a, b in zip(cpu[ours], cpu[baseline])],
        dict(notes or {}),
    )


def _settle(most: float = 1.0) -> None:
    """Waits until this process rests: what one contender leaves behind would be counted as the next one's.

    Worker threads spin on, and memory may be freed after a result is there; see benchmarks/README.md.
    """
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.0005:
            return


def _cpu_seconds() -> float:
    """Of this process and of the ones that it has started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def machine() -> dict[str, Any]:
    """What ran: processor, cores, device, and the versions of what is installed."""
    names = (
        *("jax", "jaxlib", "flax", "optax", "numpy", "scipy"),
        *("torch", "neural-tangents", "matfree", "laplax", "kfac-jax"),
    )
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "vector_bits": _vector_bits(),
        "cores": os.cpu_count(),
        "cores_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "versions": versions,
    }


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; nothing elsewhere."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _vector_bits() -> int | None:
    """Width of the widest vector registers, on which the ratios depend; None where it is not known."""
    flags = _cpuinfo("flags").split()
    widths = {"avx512f": 512, "avx2": 256, "sse2": 128}
    return next((bits for flag, bits in widths.items() if flag in flags), None)


def describe(row: Comparison) -> str:
    """One line: medians, and the median ratio with its spread."""
    ours, base = row.timings[row.ours], row.timings[row.baseline]
    ratio = statistics.median(row.wall_ratio)
    return (
        f"{row.task}: {row.ours} {1e3 * statistics.median(ours.wall):.3g} ms, "
        f"{row.baseline} {1e3 * statistics.median(base.wall):.3g} ms, "
        f"ratio {ratio:.2f} [{min(row.wall_ratio):.2f}, {max(row.wall_ratio):.2f}] "
        f"(CPU {statistics.median(row.cpu_ratio):.2f}; first call {ours.first:.2f} s, {base.first:.2f} s)"
        + (f" {row.notes}" if row.notes else "")
    )


def save(
    name: str, rows: list[Comparison], folder: str | os.PathLike | None = None
) -> pathlib.Path:
    """Writes ``<folder>/<name>.json``: every machine with its versions and timings.

    What the file has from other machines stays, and so do rows of other tasks from this one with these versions.
    """
    folder = pathlib.Path(folder) if folder else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    new = [
        row._asdict() | {"timings": {k: t._asdict() for k, t in row.timings.items()}}
        for row in rows
    ]
    here = machine()
    others = []
    for entry in json.loads(path.read_text())["machines"] if path.exists() else []:
        if entry["machine"] == here:
            tasks = {row["task"] for row in new}
            new = [row for row in entry["rows"] if row["task"] not in tasks] + new
        elif _hardware(entry["machine"]) != _hardware(here):
            others.append(entry)
    body = {"machines": [*others, {"machine": here, "rows": new}]}
    path.write_text(json.dumps(body, indent=1, default=float) + "\n")
    return path


def _hardware(found: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(found.get(key) for key in ("processor", "vector_bits", "cores", "cores_used"))


def main(name: str, tasks: dict[str, Callable[..., Comparison]]) -> None:
    """Command line of one benchmark module: ``--only TASK --runs N``; prints a line per task, writes the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", choices=sorted(tasks), default=sorted(tasks))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--out", default=None, help="folder of the JSON (default: benchmarks/results)"
    )
    arguments = parser.parse_args()
    rows = []
    for task in tasks:
        if task in arguments.only:
            rows.append(tasks[task](runs=arguments.runs))
            print(describe(rows[-1]), flush=True)
            path = save(name, rows, arguments.out)  # each time: a benchmark may be stopped
    print(path)
