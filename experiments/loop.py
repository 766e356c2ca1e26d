"""What surrounds the compiled loop: progress, probes, checkpoints, resume, divergence as a result."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from experiments import checkpoint, rundir, signals
from experiments.clock import Clock
from experiments.train import Program
from ntk.large import processes

# Runs that train side by side share the files, the sinks and the progress bar.
_SHARED = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Session:
    """Where a run keeps its files and shows its progress; ``Session()`` keeps and shows nothing."""

    path: pathlib.Path | None = None
    progress: Callable[[int, str, float], None] = lambda steps, name, loss: None
    sinks: tuple[Callable[[dict[str, Any]], None], ...] = ()
    devices: int = 1
    checkpoint_seconds: float = 20.0
    configuration: str = ""  # its hash, which all that is kept carries
    plan: Any = None  # an `experiments.plan.Plan`; measures one unit of each grid in place of all
    grids: dict[str, set[str]] = dataclasses.field(default_factory=dict)  # their points, by name
    cluster: Any = None  # a client of Dask; its workers do the units of grids
    metrics: str = "metrics.jsonl"
    clock: Clock | None = None  # is told what begins and ends


def train_runs(
    program: Program,
    data: Any,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    *,
    chunks: int,
    name: str,
    session: Session | None = None,
) -> dict[str, np.ndarray]:
    """Trains every (learning rate, seed) pair; finished pairs are loaded, an interrupted one continues.

    Args:
        program: compiled for one run, or for all of them at once (padded to its ``runs``).
        data: the program's data.
        learning_rates: one per run.
        seeds: one per run.
        chunks: calls of ``advance``; the probe runs before the first and after each.
        name: of this group of runs, unique within the session; names its files.
        session: files, progress, sinks; in a job of several processes the first alone writes files and calls sinks.

    Returns:
        name of a measurement -> float array (runs, chunks + 1, *its shape). ``batch_loss`` is the mean training
        loss of the chunk that ends there (nan at 0). From the chunk in which a loss was not finite on, every value
        is nan.

    Raises:
        RuntimeError: the program is one of several processes, of which another has ended.
    """
    session = session or Session()
    count = len(learning_rates)
    if len(seeds) != count:
        raise ValueError(f"{count} learning rates but {len(seeds)} seeds: give one seed per run")
    rows = [(float(rate), int(seed)) for rate, seed in zip(learning_rates, seeds)]
    units = {name: rows}
    if program.runs is None:
        units = {label: [row] for label, row in zip(_labels(name, count), rows)}
    stop = threading.Event()
    double = jax.config.jax_enable_x64  # a thread begins without the caller's context

    def train(label: str) -> dict[str, np.ndarray]:
        with jax.enable_x64(double), processes.together(program.share):
            return _train_unit(program, data, units[label], chunks, label, session, stop)

    with concurrent.futures.ThreadPoolExecutor(side_by_side(program)) as pool:
        try:
            pieces = list(pool.map(train, units))
        except BaseException:
            stop.set()
            raise
    return _join(pieces)


def load_runs(session: Session, name: str, count: int) -> dict[str, np.ndarray] | None:
    """What `train_runs` returned for a group of runs of that name, or None where one is not finished."""
    together = load(session, name)
    if together:
        return together
    pieces = [load(session, label) for label in _labels(name, count)] if session.path else []
    return _join(pieces) if pieces and all(pieces) else None


def _labels(name: str, count: int) -> list[str]:
    """The names of the runs of a group that train one by one."""
    return [f"{name}-{run:03d}" for run in range(count)]


def _join(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}


def side_by_side(program: Program) -> int:
    """How many runs of one program train at a time.

    On a CPU the steps of one run leave cores idle between its operations, and another fills them (measured on two
    cores: a third more steps a second). An accelerator takes one program at a time, and programs over several devices
    would wait for each other.
    """
    if jax.default_backend() != "cpu" or program.devices > 1:
        return 1
    return min(os.cpu_count() or 1, 4)


def _train_unit(program, data, rows, chunks, label, session, stop) -> dict[str, np.ndarray]:
    finished = load(session, label)
    _agreed(program, finished is not None, f"the point {label}")
    if finished:
        _progress(session, len(rows) * chunks * program.steps, label, np.nan)
        return finished
    rates, seeds = _arguments(program, rows)
    data = program.place(data, False)
    state = program.start(rates, seeds, data)
    state, values = _measure(program, state, rates, data)
    shapes = {"batch_loss": ()} | {key: value.shape[1:] for key, value in values.items()}
    records = {key: np.full((len(rows), chunks + 1, *rest), np.nan) for key, rest in shapes.items()}
    alive = np.ones(len(rows), bool)
    saved = _restore(session, label, (_taken(program, state, rows), records, alive))
    _agreed(program, saved[0] if saved else 0, f"the checkpoints of {label}")
    if saved:
        done, (state, records, alive) = saved
        state = _given_back(program, state, rows)
        records, alive = jax.tree.map(np.array, (records, alive))
        _progress(session, len(rows) * done * program.steps, label, np.nan)
        if session.clock is not None:
            session.clock.resumed()
    else:
        done = 0
        _record(records, 0, alive, values, np.full(len(rows), np.nan))
    last_save = time.monotonic()
    for chunk in range(done + 1, chunks + 1):
        ends = stop.is_set() or signals.noted()
        due = time.monotonic() - last_save > session.checkpoint_seconds
        ends, due = _any(program, ends, due)
        if ends or (due and chunk > done + 1):
            _save(session, label, chunk - 1, (_taken(program, state, rows), records, alive))
            last_save = time.monotonic()
        if ends:
            signals.check()
            raise concurrent.futures.CancelledError
        if not alive.any():  # nothing left to train: every record from here on is nan already
            _progress(session, len(rows) * (chunks - chunk + 1) * program.steps, label, np.inf)
            break
        state, losses = program.advance(state, rates, seeds, data)
        state, values = _measure(program, state, rates, data)
        losses = np.asarray(losses, np.float64).reshape(-1, program.steps)[: len(rows)]
        alive &= np.isfinite(losses).all(axis=1)
        _record(records, chunk, alive, values, losses.mean(axis=1))
        _report(session, records, chunk, program.steps, label, rows)
    keep(session, label, records)
    return records


def load(session: Session, label: str) -> dict[str, np.ndarray] | None:
    """The point that was kept under a label, or None."""
    return session.path and rundir.load_point(session.path, label, session.configuration)


def keep(session: Session, label: str, arrays: dict[str, np.ndarray]) -> None:
    """Keeps a finished point, in place of its checkpoints."""
    if session.path and _writes():
        rundir.save_point(session.path, label, arrays, session.configuration)
        checkpoint.drop(session.path / "checkpoints" / label)


def _writes() -> bool:
    """Whether this process keeps files: of the processes of a job the first does."""
    return jax.process_index() == 0


def _any(program: Program, *flags: bool) -> list[bool]:
    """Whether any process of the program says so, flag by flag."""
    told = processes.gathered(np.array(flags), program.share)
    return np.any(told, axis=0).tolist()


def _agreed(program: Program, number: int, what: str) -> None:
    """Refuses to go on where processes see different files."""
    seen = [int(n) for n in processes.gathered(np.array(int(number)), program.share)]
    if len(set(seen)) > 1:
        raise ValueError(
            f"the processes of the job see {what} differently ({seen}); give a folder that all of them see"
        )


def _taken(program: Program, state: Any, rows: Sequence) -> Any:
    """A state as checkpoints hold it: of the runs alone, without what fills the devices; all processes call it."""
    state = processes.whole(state)
    if program.runs in (None, len(rows)):
        return state
    return jax.tree.map(lambda leaf: leaf[: len(rows)], state)


def _given_back(program: Program, state: Any, rows: Sequence) -> Any:
    """A state of a checkpoint, on the program's devices."""
    if program.runs not in (None, len(rows)):
        order = np.minimum(
            np.arange(program.runs), len(rows) - 1
        )  # as `_arguments` repeats the last
        state = jax.tree.map(lambda leaf: leaf[order], state)
    return program.place(state, True)


def _save(session: Session, label: str, chunk: int, state: Any) -> None:
    if session.path and chunk and _writes():
        with _SHARED:
            folder = session.path / "checkpoints" / label
            checkpoint.save(folder, chunk, state, session.configuration)


def _restore(session: Session, label: str, like: Any) -> tuple[int, Any] | None:
    """The newest checkpoint; rows of metrics that come after it are dropped: they will be measured again."""
    if not session.path:
        return None
    with _SHARED:
        folder = session.path / "checkpoints" / label
        saved = checkpoint.restore(folder, like, session.configuration)
        if _writes():
            rundir.drop_metrics(session.path, label, saved[0] if saved else 0, session.metrics)
    return saved


def _arguments(program: Program, rows) -> tuple[Any, Any]:
    if program.runs is None:
        return np.float32(rows[0][0]), np.uint32(rows[0][1])
    padded = rows + [rows[-1]] * (program.runs - len(rows))
    rates, seeds = zip(*padded)
    return np.asarray(rates, np.float32), np.asarray(seeds, np.uint32)


def _measure(program, state, rates, data) -> tuple[Any, dict[str, np.ndarray]]:
    state, values = program.measure(state, rates, data)
    values = {key: np.asarray(value, np.float64) for key, value in values.items()}
    return state, values if program.runs else {key: value[None] for key, value in values.items()}


def _record(records, chunk, alive, values, batch_loss) -> None:
    for key, column in {**values, "batch_loss": batch_loss}.items():
        records[key][alive, chunk] = column[: len(alive)][alive]


def _report(session, records, chunk, steps, label, rows) -> None:
    losses = records["batch_loss"][:, chunk]
    best = np.min(losses, initial=np.inf, where=np.isfinite(losses))
    _progress(session, len(rows) * steps, label, float(best))
    if not (session.path or session.sinks) or not _writes():
        return
    lines = [
        {"run": label, "chunk": chunk, "step": chunk * steps, "learning_rate": rate, "seed": seed}
        | {key: _number(column[run, chunk]) for key, column in records.items() if column.ndim == 2}
        for run, (rate, seed) in enumerate(rows)
    ]
    with _SHARED:
        if session.path:
            rundir.append_metrics(session.path, lines, session.metrics)
        for sink in session.sinks:
            for line in lines:
                sink(line)


def _progress(session: Session, steps: int, label: str, loss: float) -> None:
    with _SHARED:
        session.progress(steps, label, loss)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


FLOPS = 4e10
"""A second, of the ordinary core that `seconds` is about."""


def seconds(flops: float, overhead: float = 1e-4) -> float:
    """About what a step takes on an ordinary core (measured on dense networks, within a factor of two).

    Args:
        flops: its floating-point operations.
        overhead: seconds that it takes however small it is.
    """
    return overhead + flops / FLOPS


def flops(function: Callable, *shapes: Any) -> float:
    """Floating-point operations of a jax function, such as a gradient, by XLA's count; nothing is compiled.

    Args:
        function: what is lowered.
        *shapes: its arguments, or their shapes.
    """
    return (jax.jit(function).lower(*shapes).cost_analysis() or {}).get("flops", 0.0)


@contextlib.contextmanager
def progress(
    total_steps: int, title: str, clock: Clock | None = None
) -> Iterator[Callable[[int, str, float], None]]:
    """A progress bar with step rate, loss and time left; plain lines when not a terminal.

    Args:
        total_steps: of the run.
        title: shown before the first step.
        clock: knows what is left; by default one to which all steps are alike.
    """
    clock = clock or Clock(total_steps)
    console = rich.console.Console(file=sys.stderr)
    if not console.is_terminal:
        yield _plain_progress(total_steps, title, clock)
        return
    columns = (
        rich.progress.TextColumn("[bold]{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[pace]}{task.fields[loss]}"),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total_steps, pace="", loss="")

        def report(steps: int, name: str, loss: float) -> None:
            pace = clock.pace(steps, name, loss)
            bar.update(task, advance=steps, description=name, pace=pace, loss=_loss(loss))

        yield report


def _plain_progress(total_steps: int, title: str, clock: Clock, every: float = 10.0) -> Callable:
    last = time.monotonic() - every / 2  # the first line after half the time
    done = 0

    def report(steps: int, name: str, loss: float) -> None:
        nonlocal done, last
        done += steps
        pace = clock.pace(steps, name, loss)
        now = time.monotonic()
        if now - last < every and done < total_steps:
            return
        last = now
        words = ", ".join(filter(None, [name, _loss(loss)]))
        print(f"{title}: {done}/{total_steps} steps, {pace}{words}", file=sys.stderr, flush=True)

    return report


def _loss(loss: float) -> str:
    """A loss in words; nothing for a unit that trains nothing, or that was loaded."""
    return "" if math.isnan(loss) else f"loss {loss:.3g}"
