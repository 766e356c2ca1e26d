"""What to train on: ``load(config)`` gives arrays, whatever they come from.

::

    config = default_config("digits")
    config.noise = 0.1
    task = load(config)      # Task(name, train, test, outputs, input_shape)
"""

from __future__ import annotations

import difflib
from typing import Any

import ml_collections

from experiments import checks
from experiments.tasks import (
    digits,
    images,
    mixture,
    mnist1d,
    modular,
    polynomials,
    teachers,
    text,
)
from experiments.tasks.arrays import Data, Task, check_task

__all__ = ["IMAGES", "NAMES", "Data", "Task", "default_config", "load"]

IMAGES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "npz", "image_folder")
MODULES = {
    "digits": digits,
    "mnist1d": mnist1d,
    "teacher": teachers,
    "text": text,
    "modular": modular,
    "polynomial": polynomials,
    "mixture": mixture,
}
NAMES = (*MODULES, *IMAGES)
_COUNT = checks.whole(0)
# Of whatever task: what its own module refuses besides depends on the values together.
RULES = {
    "data_dir": checks.instance(str),
    "num_train": _COUNT,
    "num_test": _COUNT,
    "seed": _COUNT,
    "teacher_seed": _COUNT,
    "flatten": checks.instance(bool),
    "verify": checks.instance(bool),
    "image_size": checks.whole(0, 4096),
    "dim": checks.whole(),
    "outputs": checks.whole(1, 10**6),
    "width": checks.whole(0, 2**20),
    "depth": checks.whole(0, 1000),
    "modulus": checks.whole(2, 10**4),
    "fraction": checks.real(0, 1),
    "coefficients": checks.several(checks.real(-1e15, 1e15), distinct=False),
    "length": checks.whole(0),
    "vocabulary": _COUNT,
}


def default_config(name: str) -> ml_collections.ConfigDict:
    """Every key of a task with its default; digits, MNIST-1D and the image tasks share theirs.

    Raises:
        ValueError: an unknown name.
    """
    _check_name(name)
    return images.default_config(name) if name in IMAGES else MODULES[name].default_config()


def load(config: Any, path: str = "task") -> Task:
    """The arrays of the task that ``config.name`` names, checked.

    Args:
        config: an object with the keys of `default_config` as attributes; further keys are not read.
        path: dotted key of the task within a study's configuration, for messages.

    Returns:
        A `Task`; the same config gives the same examples every time.

    Raises:
        ValueError: an unknown name (with the nearest), a missing key, a missing or damaged file, entries that
            are not finite, or a value outside its range.
    """
    if not isinstance(getattr(config, "name", None), str):
        raise ValueError(
            f"config.{path} is {config!r}, without the name of a task; begin from "
            f"experiments.tasks.task.default_config(NAME), NAME one of {', '.join(NAMES)}"
        )
    missing = [key for key in default_config(config.name) if not hasattr(config, key)]
    if missing:
        raise ValueError(
            f"task {config.name!r} needs the keys {', '.join(missing)}, which this config does not declare; "
            f"begin from experiments.tasks.task.default_config({config.name!r})"
        )
    for key in default_config(config.name):
        if key in RULES:
            RULES[key](f"{path}.{key}", getattr(config, key))
    _check_memory(config)
    return check_task((images if config.name in IMAGES else MODULES[config.name]).load(config))


def _check_memory(config: Any) -> None:
    """Tasks that are made, not read, have the size that their keys say."""
    if config.name == "modular":
        checks.memory("config.task.modulus", config.modulus**2 * (2 * config.modulus + 4.0))
    if config.name in ("teacher", "polynomial"):
        rows = config.num_train + config.num_test + 16384
        width = config.width if config.name == "teacher" else 1
        checks.memory("config.task: the examples", 2.0 * rows * max(config.dim, width), 8)
        checks.memory("config.task: the teacher", float(width) * max(width, config.dim), 8)


def _check_name(name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(NAMES)}")
