"""A polynomial of one hidden direction: y = sum_k c_k (b . x)^k, on Gaussian inputs.

Source: Kumar et al. 2024 (arXiv 2310.06110), whose task is c = (0, 0, 1) or (0, 0, 1/2).
"""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np

from experiments.tasks.arrays import INPUTS, NOISE, TARGETS, Data, Task, generator, noisy_targets


def default_config() -> ml_collections.ConfigDict:
    """``coefficients`` c_0, c_1, ... of the polynomial; ``noise`` the standard deviation added to training targets."""
    return ml_collections.ConfigDict(
        {
            "name": "polynomial",
            "dim": 40,
            "coefficients": (0.0, 0.0, 1.0),
            "num_train": 240,
            "num_test": 1000,
            "seed": 0,
            "noise": 0.0,
        }
    )


def load(config: Any) -> Task:
    """Inputs x ~ N(0, I/D), so that b . x has variance |b|^2/D, about 1."""
    for key in ("dim", "num_train", "num_test"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key} is {getattr(config, key)}; it must be at least 1")
    coefficients = np.asarray(config.coefficients, np.float64)
    if coefficients.ndim != 1 or not np.isfinite(coefficients).all() or not coefficients[1:].any():
        raise ValueError(
            f"coefficients are {config.coefficients}; expected finite numbers c_0, c_1, ... with one beyond c_0 not 0"
        )
    n = config.num_train
    x = generator(config.seed, INPUTS).standard_normal((n + config.num_test, config.dim)) / np.sqrt(
        config.dim
    )
    z = x @ direction(config.dim, config.seed)
    y = np.polynomial.polynomial.polyval(z, coefficients)[:, None]
    x = x.astype(np.float32)
    y_train = noisy_targets(y[:n], config.noise, generator(config.seed, NOISE))
    return Task(
        config.name, Data(x[:n], y_train), Data(x[n:], y[n:].astype(np.float32)), 1, (config.dim,)
    )


def direction(dim: int, seed: int) -> np.ndarray:
    """The hidden direction b of a seed, (dim,) float64 with independent N(0, 1) entries."""
    return generator(seed, TARGETS).standard_normal(dim)
