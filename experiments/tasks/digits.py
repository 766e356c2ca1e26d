"""Handwritten digits: 1797 grey images of 8x8 pixels in 10 classes, embedded in scikit-learn.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test part).
"""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np

from experiments.tasks.arrays import SPLIT, Data, Task, assemble, generator, image_config

NUM_TEST = 360


def default_config() -> ml_collections.ConfigDict:
    """The keys of an image task; 0 for num_train and num_test means 1437 and 360 (one fifth)."""
    return image_config("digits")


def load(config: Any) -> Task:
    """The digits, split by seed, standardised with one mean and one deviation for all pixels."""
    from sklearn.datasets import load_digits  # a second of import that other tasks need not pay

    if config.data_dir:
        raise ValueError(
            f"task.data_dir is {config.data_dir!r}, and the digits come with scikit-learn: "
            "task.name='npz' reads an archive there, task.name='mnist' the files of MNIST"
        )
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
    num_test = config.num_test or NUM_TEST
    num_train = config.num_train or len(images) - num_test
    if num_train < 1 or num_test < 1 or num_train + num_test > len(images):
        raise ValueError(
            f"num_train {num_train} + num_test {num_test} must be positive and at most the {len(images)} digits"
        )
    order = generator(config.seed, SPLIT).permutation(len(images))
    test, train = order[:num_test], order[num_test : num_test + num_train]
    return assemble(
        Data(images[train], labels[train]), Data(images[test], labels[test]), 10, config
    )
