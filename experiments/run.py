"""Runs a study: trains, writes the labelled result, the claims and the figures.

::

    python -m experiments.run --config=experiments/configs/learning_rate_transfer.py:cpu --workdir=runs/transfer

The same command again skips what has finished and goes on with what was interrupted. Exit status: 0 the study
ran (whether its claims hold is in the table), 2 it could not run (one message says why), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from experiments import claims, loop, report, rundir

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "Configuration file and preset, as experiments/configs/NAME.py:PRESET."
)
flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME-PRESET.")
flags.DEFINE_integer(
    "devices", 1, "Devices to spread the runs of a sweep (or one run's batch) over."
)
flags.DEFINE_float(
    "checkpoint_seconds", 20.0, "Seconds between checkpoints of the point in training."
)
flags.DEFINE_string(
    "tensorboard", None, "Folder to which metrics are also written for TensorBoard."
)
flags.DEFINE_string("wandb", None, "Weights & Biases project to which metrics are also sent.")


def main(arguments: list[str]) -> int:
    """Parses the command line, runs the study, prints the claims; returns the exit status."""
    logging.set_verbosity(logging.FATAL)
    try:
        _check_config_argument(arguments)
        left = FLAGS(arguments)
        if len(left) > 1:
            raise ValueError(f"unexpected arguments {left[1:]}; options are written --name=value")
        with _sinks() as sinks:
            path = run(
                FLAGS.config,
                FLAGS.workdir,
                _preset(arguments),
                devices=FLAGS.devices,
                checkpoint_seconds=FLAGS.checkpoint_seconds,
                sinks=sinks,
            )
        return report.main([str(path)])
    except (ValueError, AttributeError, flags.Error, OSError) as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2
    except KeyError as error:  # ml_collections: a key that is not declared, with the nearest name
        print(f"error: configuration: {_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def run(
    config: Any,
    workdir: str | None = None,
    preset: str = "notebook",
    *,
    devices: int = 1,
    checkpoint_seconds: float = 20.0,
    sinks: tuple[Callable[[dict[str, Any]], None], ...] = (),
) -> pathlib.Path:
    """Runs the study that ``config.study`` names, in its folder.

    Args:
        config: an ml_collections ConfigDict, every key declared.
        workdir: folder of the run; None for runs/<study>-<preset>.
        preset: name of the preset, for the manifest.
        devices: devices to spread runs over.
        checkpoint_seconds: time between checkpoints of the point that is in training.
        sinks: each is called with every row of metrics.

    Returns:
        The folder.

    Raises:
        ValueError: unknown study, or anything in the configuration that the study refuses.
    """
    study = find_study(config.study)
    path = rundir.open_run(
        workdir or f"runs/{config.study}-{preset}", config.to_dict(), config.study, preset
    )
    started = time.monotonic()
    with loop.progress(study.total_steps(config), config.study) as progress:
        session = loop.Session(path, progress, sinks, devices, checkpoint_seconds)
        data = study.run(config, session)
    rundir.finish_run(path, data, time.monotonic() - started)
    rundir.write_text(path / "claims.json", claims.to_json(study.claims(data)))
    return path


def find_study(name: str) -> Any:
    """The module experiments.studies.<name>.

    Raises:
        ValueError: there is no such study; names the nearest.
    """
    # A study has a configuration of its name; other modules there draw or judge for one.
    folder = pathlib.Path(__file__).parent
    files = {
        part: {file.stem for file in (folder / part).glob("[a-z]*.py")}
        for part in ("studies", "configs")
    }
    names = sorted(files["studies"] & files["configs"])
    if name not in names:
        raise ValueError(
            f"unknown study {name!r}{_nearest(name, names)}; there are: {', '.join(names)}"
        )
    return importlib.import_module(f"experiments.studies.{name}")


def _check_config_argument(arguments: list[str]) -> None:
    value = _config_argument(arguments)
    file = pathlib.Path(value.split(":")[0])
    if not file.exists():
        names = sorted(
            p.stem for p in (pathlib.Path(__file__).parent / "configs").glob("[a-z]*.py")
        )
        raise ValueError(
            f"there is no configuration {str(file)!r}{_nearest(file.stem, names)}; studies: {', '.join(names)}"
        )


def _config_argument(arguments: list[str]) -> str:
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument in ("--config", "-config"):
            return following
        if argument.startswith(("--config=", "-config=")):
            return argument.split("=", 1)[1]
    raise ValueError("give --config=experiments/configs/NAME.py:PRESET")


def _preset(arguments: list[str]) -> str:
    return (_config_argument(arguments) + ":cpu").split(":")[1]


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _message(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback" in text:  # what get_config raised, as config_flags quotes it
        text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    return text


@contextlib.contextmanager
def _sinks():
    sinks: list[Callable[[dict[str, Any]], None]] = []
    with contextlib.ExitStack() as stack:
        if FLAGS.tensorboard:
            writer = stack.enter_context(
                contextlib.closing(_optional("tensorboardX").SummaryWriter(FLAGS.tensorboard))
            )
            sinks.append(functools.partial(_to_tensorboard, writer))
        if FLAGS.wandb:
            wandb = _optional("wandb")
            stack.enter_context(wandb.init(project=FLAGS.wandb))
            sinks.append(wandb.log)
        yield tuple(sinks)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} is not installed; pip install 'widelimit[tracking]', or leave the option out"
        ) from error


def _to_tensorboard(writer: Any, row: dict[str, Any]) -> None:
    tag = f"{row['run']}/seed{row['seed']}/lr{row['learning_rate']:.3g}"
    for name, value in row.items():
        if isinstance(value, float) and name != "learning_rate":
            writer.add_scalar(f"{tag}/{name}", value, row["step"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
