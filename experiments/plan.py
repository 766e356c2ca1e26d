"""What a study would take, before anyone runs it: units, steps, memory, flops, hours; ``--plan`` on the command line.

Of every grid one unit is measured, its cheapest, or chunks of it where it is trained; nothing is kept. The study then
goes on with that one measurement in the place of all units of the grid, so that grids whose shape depends on what came
before are met too. All that is said of units that were not measured is arithmetic, and is marked so.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import clock, contract, loop, programs, tasks

PATIENCE = 60.0
"""Seconds within which a unit, a first chunk, or what stands between two grids has to end."""
ENOUGH = 1.0  # seconds of chunks that are worth a measurement
DEVICES = (1, 8, 64)


class Part(NamedTuple):
    """One grid.

    Attributes:
        name: of the grid.
        label: of the unit that was measured.
        units: of the grid.
        steps: that one unit reports.
        seconds: of the whole unit, from what was measured of it.
        total: seconds of all units, each at its own cost where the study says costs.
        longest: seconds of the most expensive one.
        words: what was measured.
        compiled: seconds of tracing and compiling of all units, the same of each shape.
        shapes: that are compiled.
    """

    name: str
    label: str
    units: int
    steps: int
    seconds: float
    total: float
    longest: float
    words: str
    compiled: float = 0.0
    shapes: int = 0


class _Measured(NamedTuple):
    """What was measured of a unit: its variables, steps, seconds without compiling, words, seconds of a shape."""

    found: dict[str, np.ndarray]
    steps: int
    seconds: float
    words: str
    compiled: float


class _Late(BaseException):
    """Nothing came to an end; no study catches it as an error of its own."""


class Plan:
    """Measures one unit of each grid that a study comes to; the ``plan`` of a `loop.Session`."""

    def __init__(self, work: clock.Work, profile: clock.Profile | None = None) -> None:
        self.profile = profile or {}
        self.work, self.parts, self.reported, self.at = work, [], 0, ""
        self.outside, self.since = 0.0, time.monotonic()
        self.waited = 0.0  # for a unit that did not end

    def progress(self, steps: int, name: str, loss: float) -> None:
        """Steps that a study reports itself, in units or between grids."""
        self.reported += steps

    def units(
        self, program: Any, data: Any, points: Sequence[Mapping[str, Any]], labels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """What one unit measured, for each of the points; see `experiments.grid.train_grid`."""
        self.outside += time.monotonic() - self.since
        self.at = program.name
        _wait()
        if not points:
            return []
        known = [clock.cost(self.work, label) for label in labels]
        if None in known and program.name in self.profile:
            known = list(self.profile[program.name].each(len(points)))
        costs = [1.0 if cost is None else cost for cost in known]
        if None in known:
            # Nobody knows: the point whose numbers are the lowest is the smallest as a rule.
            costs = [1.0] * len(points)
            order = sorted(range(len(points)), key=lambda i: _numbers(points[i]))
        else:
            order = sorted(range(len(points)), key=costs.__getitem__)
        chosen = order[0]
        before = self.reported
        if program.trains:
            found, steps, seconds, words, compiled = _trained(program, data, points[chosen])
            shapes = len({program.unit(data, **point).shape for point in points})
        else:
            found, steps, seconds, words, compiled = _computed(program, data, points[chosen])
            steps += self.reported - before
            shapes = 1
            if len(order) > 1 and compiled > ENOUGH / 10 and seconds + compiled < PATIENCE / 4:
                again = _compiled_again(program, data, points[order[1]])
                shapes = len(points) if again > compiled / 4 else 1
        self.reported = before
        ratios = [cost / costs[chosen] if costs[chosen] else 1.0 for cost in costs]
        sums = seconds * sum(ratios), seconds * max(ratios)
        self.parts.append(
            Part(
                *(program.name, labels[chosen], len(points), steps, seconds, *sums, words),
                *(compiled * shapes, shapes),
            )
        )
        self.at, self.since = "", time.monotonic()
        _wait()
        return [found] * len(points)


def _numbers(point: Mapping[str, Any]) -> list[float]:
    return [v for v in point.values() if isinstance(v, int | float) and not isinstance(v, bool)]


def _trained(program: Any, data: Any, point: Mapping[str, Any]) -> _Measured:
    """Some chunks of some of a unit's runs, with its records filled up by the last ones."""
    training = program.unit(data, **point)
    before = programs.compile_seconds()
    compiled = training.compile()
    compile_seconds = programs.compile_seconds() - before
    _wait()
    count, chunks = len(training.seeds), 1
    together = count if compiled.runs else min(count, loop.side_by_side(compiled))
    runs = training.learning_rates[:together], training.seeds[:together]
    while True:
        start = time.monotonic()
        records = loop.train_runs(compiled, training.data, *runs, chunks=chunks, name=program.name)
        seconds = time.monotonic() - start
        if seconds > ENOUGH or chunks == training.chunks:
            break
        chunks = min(training.chunks, math.ceil(chunks * 2 * ENOUGH / seconds))
    rows, columns = (
        np.arange(count) % together,
        np.minimum(np.arange(training.chunks + 1), chunks),
    )
    kept = training.keep({key: value[rows][:, columns] for key, value in records.items()})
    share = count * training.chunks / (together * chunks)
    done = together * chunks * compiled.steps
    words = (
        f"{done:,} of its {count * training.steps:,} steps in {seconds:.3g} s "
        f"({1e3 * seconds / done:.3g} ms each); compiled in {compile_seconds:.3g} s, once a shape"
    )
    arrays = contract.arrays(f"keep of a unit of {program.name!r}", kept)
    return _Measured(arrays, count * training.steps, seconds * share, words, compile_seconds)


def _computed(program: Any, data: Any, point: Mapping[str, Any]) -> _Measured:
    """A whole unit; what of its time is tracing and compiling is told apart."""
    before, start = programs.compile_seconds(), time.monotonic()
    found = contract.arrays(f"a unit of the grid {program.name!r}", program.unit(data, **point))
    compiled = programs.compile_seconds() - before
    seconds = max(time.monotonic() - start - compiled, 0.0)
    words = f"the whole unit in {seconds:.3g} s, and {compiled:.3g} s of compiling"
    return _Measured(found, program.steps, seconds, words, compiled)


def _compiled_again(program: Any, data: Any, point: Mapping[str, Any]) -> float:
    """Seconds of compiling of another unit: where it compiles as the first did, all units do."""
    before = programs.compile_seconds()
    _wait()
    with contextlib.suppress(_Late):
        _computed(program, data, point)
    return programs.compile_seconds() - before


def text(
    study: ModuleType,
    config: Any,
    checked: Sequence[tuple[float, str]],
    devices: int = 1,
    preset: str = "",
) -> str:
    """The plan of a configuration that its study has accepted, in lines.

    Args:
        study: its module.
        config: the configuration.
        checked: (bytes, what) of the allocations that the study has checked, see `checks.allocations`.
        devices: asked for on the command line; the hours on so many are said too.
        preset: from which the configuration began.

    Raises:
        ValueError: nothing of it could be measured; says why.
    """
    total, work = contract.total_steps(study, config), contract.work(study, config)
    profile, _ = clock.measured(config.study, preset, total)
    plan = Plan(work, profile)
    rest = _follow(study, config, plan)
    if not plan.parts:
        raise ValueError(
            f"{config.study} cannot be planned: {rest or 'it has no grid of units (experiments.grid.train_grid)'}"
        )
    lines = [f"plan of {config.study}, nothing is kept; (a) marks what is only arithmetic"]
    lines += _sizes(config, plan, total, checked, rest)
    kind = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores of the host"
    lines += [
        f"measured  {p.label}: {p.words}" + f"; {p.units:,} such units" * (p.units > 1)
        for p in plan.parts
    ]
    lines.append(f"          on {kind}; between the grids {plan.outside:.3g} s")
    known = sum(p.units * p.steps for p in plan.parts) + plan.reported
    # Only of what reports steps: a grid that reports none is not a share of them. What was not met may cost anything,
    # so that the hours are then those of what was met and of the wait for the rest: at least.
    share = total / known if known and total and not rest else 1.0
    seconds = sum(p.total * (share if p.steps else 1.0) for p in plan.parts)
    longest = max(p.longest for p in plan.parts)
    if rest:
        seconds, longest = seconds + plan.waited, max(longest, plan.waited)
    compiled, shapes = sum(p.compiled for p in plan.parts), sum(p.shapes for p in plan.parts)
    units = sum(p.units for p in plan.parts)
    told = [
        f"on {n}: {_hours(max(seconds / n, longest) + compiled / min(n, max(shapes, 1)) + plan.outside)}"
        for n in _counts(devices)
    ]
    lines.append(
        f"hours     (a) {'at least, ' if rest else ''}on devices of this kind, {', '.join(told)}; longest unit "
        f"{_hours(longest)}"
    )
    lines.append(
        f"          (a) with {_hours(compiled)} of compiling for {shapes:,} shapes, each taken to need what the first "
        "does; what is kept of earlier runs is not compiled again"
    )
    several = [p for p in plan.parts if p.units > 1 and clock.cost(work, p.label) is None]
    alike = [p.name for p in several if p.name not in profile]
    before = [p.name for p in several if p.name in profile]
    weighted = [p.name for p in plan.parts if clock.cost(work, p.label) is not None]
    if weighted:
        lines.append(
            f"          (a) units of {', '.join(weighted)} are weighted by the costs that the study states"
        )
    if before:
        lines.append(
            f"          (a) units of {', '.join(before)} are weighted by what they took where a preset was measured"
        )
    if alike:
        lines.append(
            f"          (a) every unit of {', '.join(alike)} is taken to cost what the measured one does, as the study "
            "does not say: too little where sizes grow"
        )
    if abs(share - 1) > 1e-6:
        lines.append(
            f"          (a) the units that were met are {known:,} of {total:,} steps; the rest at their mean cost"
        )
    if rest:
        lines.append(
            f"          (a) of {total:,} steps the units that were met are {known:,}, which alone are counted"
        )
    rate = f"{loop.FLOPS:.0e} a second"
    if work:
        flops = loop.FLOPS * sum(steps * cost for steps, cost in work.values())
        lines.append(
            f"flops     (a) at most {flops:.2g}: the seconds that the study states, at {rate}"
        )
    else:
        flops = loop.FLOPS * seconds
        lines.append(f"flops     (a) some {flops:.2g}: the seconds above, on one device, at {rate}")
    if units < max(_counts(devices)):
        lines.append(
            f"          (a) of more than {units:,} devices, the number of units, the others are idle"
        )
    return "\n".join(lines + ([f"not met   {rest}"] if rest else []))


def _sizes(config: Any, plan: Plan, total: int, checked: Any, rest: str) -> list[str]:
    grids = ", ".join(f"{p.name} {p.units:,}" for p in plan.parts)
    unmet = ", and those that were not met" if rest else ""
    lines = [
        f"units     {sum(p.units for p in plan.parts):,} ({grids}){unmet}",
        f"steps     {total:,}",
    ]
    held = []
    if "task" in config:
        task = tasks.load(config.task)
        size = sum(np.asarray(v).nbytes for v in jax.tree.leaves((task.train, task.test)))
        held.append(f"data {_bytes(size)}")
    if checked:
        size, what = max(checked)
        held.append(f"largest allocation checked (a) {_bytes(size)}, {what}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    held.append(f"this process, with the units it measured, held {_bytes(peak)}")
    return [*lines, f"memory    {'; '.join(held)}"]


def _follow(study: ModuleType, config: Any, plan: Plan) -> str:
    """Runs the study with one unit a grid; returns why it did not come to its end, or nothing."""
    with _timely():
        try:
            session = loop.Session(plan=plan, progress=plan.progress)
            contract.called(study, "run", config, session)
        except _Late:
            plan.waited = PATIENCE
            where = f"a unit of {plan.at}" if plan.at else "what stands between its grids"
            return (
                f"{where} does not end within {PATIENCE:g} s here; what comes after it is not known"
            )
        except Exception as error:  # made-up measurements can stop any study
            if not plan.parts:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return f"what comes after {plan.parts[-1].name} needs real results ({reason})"
        finally:
            plan.outside += 0.0 if plan.at else time.monotonic() - plan.since
    return ""


@contextlib.contextmanager
def _timely() -> Iterator[None]:
    """Lets `_wait` raise `_Late` in the main thread, which alone can be told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    try:
        _wait()
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wait() -> None:
    """From now on, PATIENCE seconds."""
    if threading.current_thread() is threading.main_thread():
        # Again and again: Python drops what is raised in a garbage collector's callback.
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, 5.0)


def _counts(devices: int) -> list[int]:
    return sorted({*DEVICES, devices})


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 36 else f"{seconds:.3g} s"


def _bytes(size: float) -> str:
    return f"{size / 2**20:.3g} MiB" if size < 2**30 else f"{size / 2**30:.3g} GiB"
