"""Gaussian inputs labelled by a random teacher network: the standard synthetic task of the field."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from experiments.tasks.arrays import (
    INPUTS,
    NOISE,
    TARGETS,
    Data,
    Task,
    generator,
    noisy_labels,
    noisy_targets,
)


def default_config() -> ml_collections.ConfigDict:
    """``kind`` is "regression" or "classification"; the teacher has ``depth`` hidden layers of ``width``.

    ``noise`` is the standard deviation added to training targets (which have variance 1), or for
    classification the fraction of training labels redrawn. ``teacher_seed`` draws the teacher, ``seed`` the
    examples, so that one teacher can have many training sets.
    """
    return ml_collections.ConfigDict(
        {
            "name": "teacher",
            "kind": "regression",
            "dim": 32,
            "outputs": 1,
            "width": 16,
            "depth": 1,
            "num_train": 1024,
            "num_test": 1024,
            "seed": 0,
            "teacher_seed": 0,
            "noise": 0.0,
        }
    )


def load(config: Any) -> Task:
    """Inputs N(0, 1) per coordinate; targets of the teacher, or the class of its largest output."""
    if config.kind not in ("regression", "classification"):
        raise ValueError(f"kind is {config.kind!r}; expected 'regression' or 'classification'")
    for key in ("dim", "outputs", "num_train", "num_test"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key} is {getattr(config, key)}; it must be at least 1")
    if config.kind == "classification" and config.outputs < 2:
        raise ValueError("a classification teacher needs outputs of at least 2")
    f = teacher(config.dim, config.width, config.depth, config.outputs, config.teacher_seed)
    x = generator(config.seed, INPUTS).standard_normal(
        (config.num_train + config.num_test, config.dim)
    )
    y, rng = f(x), generator(config.seed, NOISE)
    x = x.astype(np.float32)
    n = config.num_train
    if config.kind == "classification":
        y = np.argmax(y, axis=1).astype(np.int32)
        train = Data(x[:n], noisy_labels(y[:n], config.noise, config.outputs, rng))
    else:
        y = y.astype(np.float32)
        train = Data(x[:n], noisy_targets(y[:n], config.noise, rng))
    return Task(config.name, train, Data(x[n:], y[n:]), config.outputs, (config.dim,))


def teacher(
    dim: int, width: int, depth: int, outputs: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A random ReLU network with He weights and no biases.

    Returns:
        A function of inputs (N, dim) to outputs (N, outputs), each of mean 0 and variance 1 over N(0, I) inputs
        (estimated on 16384 of them). With depth 0 it is linear.
    """
    if depth < 0 or (depth > 0 and width < 1):
        raise ValueError(f"depth is {depth} and width {width}; expected depth >= 0 and width >= 1")
    rng = generator(seed, TARGETS)
    sizes = [dim, *[width] * depth, outputs]
    weights = [rng.standard_normal((n, m)) * np.sqrt(2 / n) for n, m in itertools.pairwise(sizes)]

    def forward(x: np.ndarray) -> np.ndarray:
        for weight in weights[:-1]:
            x = np.maximum(x @ weight, 0)
        return x @ weights[-1]

    reference = forward(rng.standard_normal((16384, dim)))
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    if not (deviation > 0).all():
        raise ValueError(
            f"the teacher of seed {seed}, width {width} and depth {depth} is constant: every ReLU is dead; "
            "make it wider or take another teacher_seed"
        )
    return lambda x: (forward(x) - mean) / deviation
