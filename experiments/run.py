"""Runs a study: checks all it is asked for, trains, writes the labelled result, the claims and the figures.

::

    python -m experiments --config=learning_rate_transfer:cpu --workdir=runs/transfer
    python -m experiments --config=learning_rate_transfer:cpu --config.sweep.steps=500 --check

The same command again skips what has finished and goes on with what was interrupted. Exit status: 0 the study
ran (whether its claims hold is in the table), 2 it could not run (one message says why), 128 + its number after a
signal that ends it (Ctrl-C, SIGTERM, SIGHUP): the points in training are saved first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from experiments import (
    checks,
    claims,
    contract,
    files,
    listing,
    loop,
    page,
    plan,
    programs,
    report,
    rundir,
    seals,
    settings,
    signals,
    tasks,
)
from experiments import clock as clocks
from experiments import cluster as clusters
from experiments.settings import find_study

__all__ = ["check", "find_study", "main", "run"]


def main(arguments: list[str]) -> int:
    """Parses the command line, runs the study, prints the claims; returns the exit status."""
    logging.set_verbosity(logging.FATAL)
    files.printable()
    try:
        options = settings.parse(arguments[1:])
        if options.help:
            print(listing.usage())
            return 0
        if options.list is not None:
            if options.changes:
                raise ValueError(
                    f"--list changes nothing; leave --config.{options.changes[0][0]} out"
                )
            print(listing.everything(options.config, options.list))
            return 0
        if options.config is None:
            raise ValueError(f"give --config=STUDY:PRESET; {listing.hint()}")
        config, preset = settings.load(options.config, options.changes)
        with signals.interrupting():
            return _start(config, preset, options)
    except BrokenPipeError:  # the reader of the output has gone, as of --list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: not enough memory on the device ({_first_line(error)})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _start(config: Any, preset: str, options: settings.Options) -> int:
    limits = {"devices": options.devices, "checkpoint_seconds": options.checkpoint_seconds}
    if options.plan:
        return _plan(config, preset, options)
    if options.check or options.tensorboard or options.wandb:  # which make folders too
        _check_folder(_folder(config, preset, options.workdir))
        _check_services(options)
        check(config, **limits)
    if options.check:
        print(f"{config.study}: nothing is wrong with this configuration; nothing was trained")
        if (options.cluster or "").startswith("slurm:"):
            print(f"its jobs:\n{clusters.script(options.cluster)}")
        return 0
    programs.keep()
    with _sinks(options, config, _folder(config, preset, options.workdir)) as sinks:
        path = run(config, options.workdir, preset, **limits, sinks=sinks, cluster=options.cluster)
    signals.check()
    return report.main([str(path)])


def _check_services(options: settings.Options) -> None:
    """Refuses an address that is none, packages that are not there, a folder for TensorBoard that cannot be made."""
    if options.cluster is not None:
        clusters.check(options.cluster)
    if options.tensorboard:
        settings.optional("tensorboardX", "tracking")
        _check_folder(files.expanded(options.tensorboard), "tensorboard")
    if options.wandb:
        settings.optional("wandb", "tracking")


def _plan(config: Any, preset: str, options: settings.Options) -> int:
    for name in ("cluster", "tensorboard", "wandb"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--plan measures in this process and keeps nothing; leave --{name} out"
            )
    with checks.allocations() as largest:
        study = check(config, devices=options.devices)
    print(plan.text(study, config, largest, options.devices, preset))
    return 0


def check(config: Any, *, devices: int = 1, checkpoint_seconds: float = 20.0) -> Any:
    """Everything that can be refused before the first step; nothing is trained and no file written.

    Returns:
        The study's module.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    study, there = find_study(config.study), len(jax.devices())
    if type(devices) is not int or not 1 <= devices <= there:
        raise ValueError(
            f"devices is {devices!r}, but there are {there}; ask for 1 to {there} "
            "(on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual ones)"
        )
    if not 0 <= checkpoint_seconds < float("inf"):
        raise ValueError(
            f"checkpoint_seconds is {checkpoint_seconds}; it must be a finite number from 0 on"
        )
    task = checks.context("task", tasks.load, config.task) if "task" in config else None
    contract.called(study, "check", config, task)
    settings.check_keys(config)
    contract.total_steps(study, config)
    return study


def run(
    config: Any,
    workdir: str | None = None,
    preset: str = "notebook",
    *,
    devices: int = 1,
    checkpoint_seconds: float = 20.0,
    sinks: tuple[Callable[[dict[str, Any]], None], ...] = (),
    cluster: str | None = None,
) -> pathlib.Path:
    """Runs the study that ``config.study`` names, in its folder.

    Args:
        config: an ml_collections ConfigDict, every key declared.
        workdir: folder of the run; None for runs/<study>-<preset>.
        preset: name of the preset, for the manifest.
        devices: devices to spread runs over.
        checkpoint_seconds: time between checkpoints of the point that is in training.
        sinks: each is called with every row of metrics.
        cluster: address of a cluster whose workers do the units, see `experiments.cluster.connected`; none by default.

    Returns:
        The folder.

    Raises:
        ValueError: unknown study, or anything in the configuration that the study refuses: before the folder is
            made.
    """
    folder = _folder(config, preset, workdir)
    _check_folder(folder)
    if cluster is not None:
        clusters.check(cluster)
    study = check(config, devices=devices, checkpoint_seconds=checkpoint_seconds)
    asked = _asked(config)
    configuration = seals.digest(asked)
    with rundir.lock(folder) as path:
        rundir.open_run(path, asked, config.study, preset)
        for sentence in rundir.changes(path):
            print(f"note: {path}: {sentence}", file=sys.stderr)
        data = rundir.finished(path, configuration)
        if data is None:
            with clusters.connected(cluster) as client:
                session = loop.Session(
                    path,
                    sinks=sinks,
                    devices=devices,
                    checkpoint_seconds=checkpoint_seconds,
                    configuration=configuration,
                    cluster=client,
                )
                data = _train(study, config, session)
        else:
            print(f"{path} is finished: nothing is left to train", file=sys.stderr)
        judged = contract.claims(study, contract.called(study, "claims", data), data)
        rundir.write_text(path / "claims.json", claims.to_json(judged))
    return path


def _asked(config: Any) -> dict[str, Any]:
    """The configuration, with the hashes of files that anyone may have edited since: of its study, of its models."""
    asked = config.to_dict()
    study = [pathlib.Path(config.study)] if config.study.endswith(".py") else []
    files = {"study": study, "model": settings.model_files(config).values()}
    for kind, paths in files.items():
        if contents := [path.read_bytes() for path in paths]:
            asked[rundir.SOURCES[kind]] = hashlib.sha256(b"".join(contents)).hexdigest()
    return asked


def _train(study: Any, config: Any, session: loop.Session) -> Any:
    path, title = session.path, pathlib.Path(config.study).stem
    total, work = contract.total_steps(study, config), contract.work(study, config)
    try:
        profile, same = clocks.measured(config.study, rundir.read_manifest(path)["variant"], total)
        clock = clocks.Clock(total, work, profile if same or not work else None)
        with rundir.timed(path), loop.progress(total, title, clock) as progress:
            session = dataclasses.replace(session, progress=progress, clock=clock)
            data = contract.result(study, contract.called(study, "run", config, session))
    except BaseException:
        rundir.forget(path)
        raise
    rundir.finish_run(path, data, session.configuration, clock.result())
    return data


def _folder(config: Any, preset: str, workdir: str | None) -> pathlib.Path:
    return files.expanded(workdir or f"runs/{pathlib.Path(config.study).stem}-{preset}")


def _check_folder(path: pathlib.Path, option: str = "workdir") -> None:
    """Refuses a folder that cannot be made or written to; makes none."""
    there = next(part for part in (path, *path.absolute().parents) if _exists(part))
    if not there.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, but {there} is not a folder; give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option} is {str(path)!r}, but {there} cannot be written to; give another"
        )


def _exists(path: pathlib.Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({_first_line(error)}); make widths, batches or examples smaller"
    return files.message(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _sinks(options: settings.Options, config: Any, folder: pathlib.Path):
    """Where each line of metrics.jsonl goes too; a run of Weights & Biases has the folder's name and every key."""
    sinks: list[Callable[[dict[str, Any]], None]] = []
    with contextlib.ExitStack() as stack:
        if options.tensorboard:
            writer = stack.enter_context(
                contextlib.closing(
                    settings.optional("tensorboardX", "tracking").SummaryWriter(options.tensorboard)
                )
            )
            sinks.append(functools.partial(_to_tensorboard, writer))
        if options.wandb:
            wandb = settings.optional("wandb", "tracking")
            try:
                keys = page.flatten(config.to_dict())
                stack.enter_context(
                    wandb.init(project=options.wandb, name=folder.name, config=keys)
                )
            except Exception as error:  # no login, no network, no such project
                raise ValueError(f"Weights & Biases: {_first_line(error)}") from error
            sinks.append(wandb.log)
        yield tuple(sinks)


def _to_tensorboard(writer: Any, row: dict[str, Any]) -> None:
    tag = f"{row['run']}/seed{row['seed']}/lr{row['learning_rate']:.3g}"
    for name, value in row.items():
        if isinstance(value, float) and name != "learning_rate":
            writer.add_scalar(f"{tag}/{name}", value, row["step"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
