"""Modular arithmetic: the full table of a operation b mod p, part of it for training, part of that corrupted.

Source: Power et al. 2022 (arXiv 2201.02177); Gromov 2023 (arXiv 2301.02679); Doshi et al. 2024 (arXiv 2310.13061).
"""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np

from experiments.tasks.arrays import NOISE, SPLIT, Data, Task, generator, noisy_labels

OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "square_sum": lambda a, b: a * a + b * b,
}


def default_config() -> ml_collections.ConfigDict:
    """``modulus`` p, and the ``fraction`` of the p^2 pairs that is trained on.

    ``noise`` is the fraction of training labels that are redrawn.
    ``encoding`` is "onehot" for float32 inputs (N, 2p), or "tokens" for int32 inputs (N, 2).
    """
    return ml_collections.ConfigDict(
        {
            "name": "modular",
            "modulus": 59,
            "operation": "add",
            "fraction": 0.7,
            "noise": 0.0,
            "encoding": "onehot",
            "seed": 0,
        }
    )


def load(config: Any) -> Task:
    """Every pair once, in the training or in the test set; test labels are always right."""
    if config.encoding not in ("onehot", "tokens"):
        raise ValueError(f"encoding is {config.encoding!r}; expected 'onehot' or 'tokens'")
    p = config.modulus
    x, y = table(p, config.operation)
    num_train = round(config.fraction * len(x))
    if not 0 < num_train < len(x):
        raise ValueError(
            f"fraction is {config.fraction}; it must leave some of the {len(x)} pairs for training and some for test"
        )
    if config.encoding == "onehot":
        x = np.eye(p, dtype=np.float32)[x].reshape(len(x), 2 * p)
    order = generator(config.seed, SPLIT).permutation(len(x))
    train, test = order[:num_train], order[num_train:]
    y_train = noisy_labels(y[train], config.noise, p, generator(config.seed, NOISE))
    return Task(config.name, Data(x[train], y_train), Data(x[test], y[test]), p, x.shape[1:])


def table(modulus: int, operation: str) -> Data:
    """All pairs (a, b), int32 (p^2, 2), and their answers, int32 (p^2,).

    Raises:
        ValueError: an unknown operation, or a modulus below 2.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation is {operation!r}; expected one of {', '.join(OPERATIONS)}")
    if modulus < 2:
        raise ValueError(f"modulus is {modulus}; it must be at least 2")
    a, b = np.divmod(np.arange(modulus * modulus), modulus)
    y = OPERATIONS[operation](a, b) % modulus
    return Data(np.stack([a, b], axis=1).astype(np.int32), y.astype(np.int32))


def answers(x: np.ndarray, modulus: int, operation: str) -> np.ndarray:
    """The right labels of a task's inputs in either encoding: compare with y to find the corrupted ones."""
    if x.shape[1:] == (2 * modulus,):
        x = np.argmax(x.reshape(-1, 2, modulus), axis=2)
    return (
        OPERATIONS[operation](x[:, 0].astype(np.int64), x[:, 1].astype(np.int64)) % modulus
    ).astype(np.int32)
