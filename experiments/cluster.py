"""Units of a grid as tasks of a Dask cluster: on this machine, on Slurm's nodes, or wherever a scheduler listens.

A unit that a worker was at when it died is done elsewhere, from its last checkpoint; who runs the study again goes on
from the points that are there. All processes must see the folder of the run. Dask is imported where a cluster is
asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import inspect
import logging
import os
import pathlib
import shutil
import socket
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments import files, loop, rundir, settings, signals

TOPIC = "widelimit-progress"
HERE = "127.0.0.1"
DEATHS = 1000
"""Workers that may die at one unit before it counts as the unit's fault."""

STARTS = 3
"""Times that workers of this machine are started before a death among them is a fault."""

# Programs that a worker has compiled, by grid and configuration.
_COMPILED: dict[tuple[str, str], dict[Hashable, Any]] = {}


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A client of the cluster that an address names; None for None, where nothing of Dask is needed.

    Args:
        address: ``local:N``, N processes of this machine; ``slurm:KEY=VALUE,...``, jobs of Slurm with the keywords of
            ``dask_jobqueue.SLURMCluster`` (cores, memory, queue, walltime, ...), ``jobs``, their number, and ``gpus``
            of each; every job does one unit at a time, with all its cores;
            ``tcp://HOST:PORT``, a scheduler that runs already.

    Raises:
        ValueError: another address, or a package that is not installed.
    """
    if address is None:
        yield None
        return
    kind, options = parsed(address)
    dask = settings.optional("dask", "cluster")
    chosen = {
        # A death of a worker is no news; workers read this when they are imported.
        "logging": {"distributed": "critical"},
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
        "distributed.scheduler.allowed-failures": DEATHS,
        # Else a process that takes 15 s to start anew, on a busy machine, is given up.
        "distributed.deploy.lost-worker-timeout": "1 day",
        "distributed.comm.retry.count": 3,
    }
    with dask.config.set(chosen), contextlib.ExitStack() as stack:
        distributed = settings.optional("distributed", "cluster")
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        if kind == "local":
            made = stack.enter_context(_local_cluster(distributed, **options))
        elif kind == "slurm":
            jobs = options.pop("jobs")
            made = stack.enter_context(
                settings.optional("dask_jobqueue", "cluster").SLURMCluster(**options)
            )
            made.scale(jobs=jobs)
        client = stack.enter_context(
            distributed.Client(made if kind in ("local", "slurm") else address)
        )
        where = client.dashboard_link
        print(f"cluster: {address}, dashboard {where or 'none'}", file=sys.stderr)
        yield client


def parsed(address: str) -> tuple[str, dict[str, Any]]:
    """What an address asks for: "local", "slurm", "tcp" or "tls", and its options; as `connected`."""
    kind, colon, rest = address.partition(":")
    if not colon or kind not in ("local", "slurm", "tcp", "tls"):
        raise ValueError(
            f"--cluster is {address!r}; it must be local:N, slurm:cores=1,memory=4GB,jobs=8 or tcp://HOST:PORT"
        )
    return kind, _local(rest) if kind == "local" else _slurm(rest) if kind == "slurm" else {}


def check(address: str) -> None:
    """Refuses an address before anything is made: what it asks for, packages, Slurm's command, who answers there.

    Raises:
        ValueError: another address or option; a package or a command that is not installed.
        OSError: no scheduler answers at tcp://HOST:PORT.
    """
    kind, options = parsed(address)
    settings.optional("distributed", "cluster")
    if kind == "slurm":
        settings.optional("dask_jobqueue", "cluster")
        unknown = set(options) - _slurm_options()
        if unknown:
            name = min(unknown)
            raise ValueError(
                f"--cluster=slurm: has {name!r}{settings.nearest(name, _slurm_options())}; it may have "
                f"{', '.join(sorted(_slurm_options() | {'gpus'}))}"
            )
        if shutil.which("sbatch") is None:
            raise ValueError(
                "--cluster=slurm: needs the command sbatch, which is not on the path of this machine; start the study "
                "where jobs are submitted, or take local:N"
            )
    if kind in ("tcp", "tls"):
        host, _, port = address.partition("://")[2].rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"--cluster is {address!r}; it must be {kind}://HOST:PORT")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise OSError(
                f"no scheduler answers at {address} ({error}): start one with `dask scheduler`, and workers with "
                f"`dask worker {address}`"
            ) from None


def script(address: str) -> str:
    """The script of the jobs that a ``slurm:`` address submits, which submits none."""
    from dask_jobqueue import slurm

    _, options = parsed(address)
    del options["jobs"]
    return slurm.SLURMJob(
        scheduler="tcp://SCHEDULER:PORT", name="widelimit", **options
    ).job_script()


@functools.cache
def _slurm_options() -> frozenset[str]:
    """Names that the classes of dask-jobqueue declare."""
    from dask_jobqueue import core, slurm

    kinds = (core.JobQueueCluster, slurm.SLURMJob, core.Job)
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    return frozenset(
        names - {"self", "job_kwargs", "base_class_kwargs", "scheduler", "job_cls", "loop"}
    ) | {"jobs"}


def units(
    client: Any,
    program: Any,
    data: Any,
    points: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    session: loop.Session,
) -> list[dict[str, np.ndarray]]:
    """What every unit of a grid measured, in their order; see `experiments.grid.train_grid`."""
    if session.path is None:
        raise ValueError("a cluster keeps its units in the folder of a run; give --workdir")

    def shown(event: tuple[float, Any]) -> None:
        session.progress(*event[1])

    worker = dataclasses.replace(
        session,
        progress=_ignore,
        sinks=(),
        grids={},
        cluster=None,
        clock=None,
        path=session.path.resolve(),
    )
    # Not scattered: what all workers held is lost with them, what a task gives is made again.
    everyone = client.submit(_given, data, pure=False)
    client.subscribe_topic(TOPIC, shown)
    double = jax.config.jax_enable_x64
    futures = [
        client.submit(
            _task,
            program,
            everyone,
            point,
            name,
            worker,
            double,
            key=f"{name}-{time.time_ns()}",
            pure=False,
        )
        for point, name in zip(points, labels)
    ]
    try:
        while any(not future.done() for future in futures):
            signals.check()
            if failed := next((f for f in futures if f.status == "error"), None):
                failed.result()
            time.sleep(0.05)
        found = [future.result() for future in futures]
    except BaseException:
        client.cancel(futures)
        raise
    finally:
        client.unsubscribe_topic(TOPIC)
        collect(session)
    return found


def collect(session: loop.Session) -> None:
    """Moves the metrics of units that workers trained to metrics.jsonl."""
    for file in sorted((session.path / "metrics").glob("*.jsonl")):
        with _held(session.path, file.stem):
            rows = rundir.read_metrics(session.path, f"metrics/{file.name}")
            for run in {row["run"] for row in rows}:
                rundir.drop_metrics(session.path, run, -1)
            rundir.append_metrics(session.path, rows)
            for sink in session.sinks:
                for row in rows:
                    sink(row)
            file.unlink()
    for folder in ("metrics", "locks"):
        shutil.rmtree(session.path / folder, ignore_errors=True)


def _task(program, data, point, name, session, double) -> dict[str, np.ndarray]:
    """One unit, in a worker."""
    from distributed import get_worker

    from experiments import grid

    _follow_parent()
    worker = get_worker()

    def send(steps: int, label: str, loss: float) -> None:
        worker.log_event(TOPIC, [int(steps), label, float(loss)])

    session = dataclasses.replace(session, progress=send, metrics=f"metrics/{name}.jsonl")
    compiled = _COMPILED.setdefault((program.name, session.configuration), {})
    with jax.enable_x64(double), _held(session.path, name):
        return grid.unit(program, data, point, name, session, compiled)


@contextlib.contextmanager
def _held(path: pathlib.Path, name: str) -> Iterator[None]:
    """Waits until no other process is at a unit: one whose driver was killed may be at it for a while."""
    file = path / "locks" / name
    with files.named(file):
        file.parent.mkdir(exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@functools.cache
def _follow_parent() -> None:
    """Ends a worker of this machine when the process that started it is gone, so that its cores are free."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _given(data: Any) -> Any:
    """What all units read, as a task."""
    return data


def _ignore(steps: int, name: str, loss: float) -> None:
    """What a driver's session shows is not sent to workers."""


def _local(text: str) -> dict[str, Any]:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise ValueError(
            f"--cluster is 'local:{text}'; give the number of workers, such as local:4"
        )
    return {"workers": int(text)}


def _local_cluster(distributed: Any, workers: int, starts: int = STARTS) -> Any:
    """Processes of one thread; each sees one GPU where there are some."""
    nannies = {
        i: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,
                "host": HERE,
                "env": {"CUDA_VISIBLE_DEVICES": str(i)},
            },
        }
        for i in range(workers)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": HERE, "dashboard_address": f"{HERE}:0"},
    }
    try:
        return distributed.SpecCluster(workers=nannies, scheduler=scheduler)
    except RuntimeError as error:
        # A worker that dies later is started anew by Dask; one of the first that dies while it starts ends them all.
        if starts > 1:
            return _local_cluster(distributed, workers, starts - 1)
        raise OSError(
            f"of the workers of --cluster=local:{workers} one died while it started, {STARTS} times ({error}); fewer "
            "of them may fit into memory, and the system's log may say who ended it"
        ) from error


def _slurm(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {"cores": 1, "processes": 1, "jobs": 1}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"--cluster has {part!r}; options of slurm are written KEY=VALUE, with commas between"
            )
        options[key] = int(value) if value.isdecimal() else value
    if "memory" not in options:
        raise ValueError("--cluster=slurm: needs memory=..., such as slurm:memory=4GB,jobs=8")
    if not isinstance(options["jobs"], int) or options["jobs"] < 1:
        raise ValueError(
            f"--cluster has jobs={options['jobs']}; it must be a whole number from 1 on"
        )
    if (gpus := options.pop("gpus", None)) is not None:
        options["job_extra_directives"] = [f"--gpus={gpus}"]
    # Dask takes cores for threads, of which each would be at a unit.
    options.setdefault("job_cpu", options["cores"])
    options["cores"] = options["processes"]
    return options
