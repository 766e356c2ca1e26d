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

from experiments.tasks import digits, images, modular, polynomials, teachers, text
from experiments.tasks.arrays import Data, Task, check_task

__all__ = ["IMAGES", "NAMES", "Data", "Task", "default_config", "load"]

IMAGES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "npz", "image_folder")
MODULES = {
    "digits": digits,
    "teacher": teachers,
    "text": text,
    "modular": modular,
    "polynomial": polynomials,
}
NAMES = (*MODULES, *IMAGES)


def default_config(name: str) -> ml_collections.ConfigDict:
    """Every key of a task with its default; digits and the image tasks share theirs.

    Raises:
        ValueError: an unknown name.
    """
    _check_name(name)
    return images.default_config(name) if name in IMAGES else MODULES[name].default_config()


def load(config: Any) -> Task:
    """The arrays of the task that ``config.name`` names, checked.

    Args:
        config: an object with the keys of `default_config` as attributes; further keys are not read.

    Returns:
        A `Task`; the same config gives the same examples every time.

    Raises:
        ValueError: an unknown name (with the nearest), a missing key, a missing or damaged file, entries that
            are not finite, or a value outside its range.
    """
    missing = [key for key in default_config(config.name) if not hasattr(config, key)]
    if missing:
        raise ValueError(
            f"task {config.name!r} needs the keys {', '.join(missing)}, which this config does not declare; "
            f"begin from experiments.tasks.task.default_config({config.name!r})"
        )
    return check_task((images if config.name in IMAGES else MODULES[config.name]).load(config))


def _check_name(name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(NAMES)}")
