"""MNIST-1D: 5,000 signals of 40 numbers in 10 classes, made from ten templates; nothing is downloaded.

Source: S. Greydanus and D. Kobak, "Scaling down deep learning with MNIST-1D", arXiv:2011.14439; its package makes them.
"""

from __future__ import annotations

import random
from typing import Any

import ml_collections
import numpy as np

from experiments.tasks.arrays import Data, Task, assemble, choose, image_config


def default_config() -> ml_collections.ConfigDict:
    """The keys of an image task; 0 for num_train and num_test means the 4000 and 1000 of its authors."""
    return image_config("mnist1d")


def load(config: Any) -> Task:
    """The signals as images of 40 x 1 pixels, of which the seed draws as many as are asked for."""
    if config.data_dir:
        raise ValueError(
            f"task.data_dir is {config.data_dir!r}, and MNIST-1D is made here: leave it empty, or read an archive "
            "there with task.name='npz'"
        )
    try:
        from mnist1d import data
    except ModuleNotFoundError as error:
        raise ValueError(
            f"task.name 'mnist1d' needs {error.name}, which is not installed: pip install mnist1d"
        ) from None
    # The package seeds the generators that everybody shares.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = data.make_dataset()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
    sets = [
        Data(made[x].astype(np.float32).reshape(-1, 40, 1, 1), made[y].astype(np.int32))
        for x, y in (("x", "y"), ("x_test", "y_test"))
    ]
    keys = "num_train", "num_test"
    train, test = (
        choose(f"task.{key}", part, getattr(config, key), config.seed)
        for key, part in zip(keys, sets)
    )
    return assemble(train, test, 10, config)
