"""Points of a Gaussian mixture seen through noise: the regression behind denoising score matching.

    z = x_0 + s e,    E[x_0 | z] = z + s^2 grad log p(z)      (Tweedie)

Components are equally likely and isotropic, so that the posterior mean and the score are closed forms.
"""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np

from experiments.tasks.arrays import INPUTS, NOISE, Data, Task, generator


def default_config() -> ml_collections.ConfigDict:
    """``centres`` of the components, ``deviation`` of each about its centre, and the deviation ``noise``, s."""
    return ml_collections.ConfigDict(
        {
            "name": "mixture",
            "centres": ((-1.0,), (1.0,)),
            "deviation": 0.3,
            "noise": 0.5,
            "num_train": 200,
            "num_test": 2000,
            "seed": 0,
        }
    )


def load(config: Any) -> Task:
    """Inputs z; the targets are the points x_0 for training, and for the test set their exact mean E[x_0 | z].

    The squared error on the test set is then the excess risk: s^4 times the squared error of the score.
    """
    for key in ("num_train", "num_test"):
        if getattr(config, key) < 1:
            raise ValueError(f"{key} is {getattr(config, key)}; it must be at least 1")
    centres = _centres(config.centres)
    _check(config.deviation, config.noise)
    n, dim = config.num_train, centres.shape[1]
    random = generator(config.seed, INPUTS)
    chosen = random.integers(len(centres), size=n + config.num_test)
    x = centres[chosen] + config.deviation * random.standard_normal((len(chosen), dim))
    z = x + config.noise * generator(config.seed, NOISE).standard_normal(x.shape)
    exact = posterior_mean(z[n:], centres, config.deviation, config.noise)
    z, x, exact = (a.astype(np.float32) for a in (z, x, exact))
    return Task(config.name, Data(z[:n], x[:n]), Data(z[n:], exact), dim, (dim,))


def posterior_mean(z: np.ndarray, centres: Any, deviation: float, noise: float) -> np.ndarray:
    """E[x_0 | z], the best denoiser in squared error.

    Args:
        z: (N, d) noisy points.
        centres: (K, d).
        deviation: standard deviation of each component, 0 or more; 0 makes this the optimal denoiser of the empirical
            measure of the centres, a softmax over them.
        noise: standard deviation s of the noise, positive.

    Returns:
        (N, d).

    Raises:
        ValueError: shapes do not fit, or a deviation is out of range.
    """
    z, share, nearest = _posterior(z, centres, deviation, noise)
    return share * z + (1 - share) * nearest


def score(z: np.ndarray, centres: Any, deviation: float, noise: float) -> np.ndarray:
    """Gradient of the log density of z = x_0 + s e; arguments as of `posterior_mean`."""
    z, _, nearest = _posterior(z, centres, deviation, noise)
    return (nearest - z) / (deviation**2 + noise**2)


def _posterior(z, centres, deviation, noise) -> tuple:
    """z, how much of z - c a point keeps, and the mean centre given z."""
    centres, z = _centres(centres), np.asarray(z, np.float64)
    _check(deviation, noise)
    if z.ndim != 2 or z.shape[1] != centres.shape[1]:
        raise ValueError(f"z has shape {z.shape}; it must be (N, {centres.shape[1]})")
    variance = deviation**2 + noise**2
    exponent = -((z[:, None] - centres) ** 2).sum(axis=-1) / (2 * variance)
    weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return z, deviation**2 / variance, weight @ centres / weight.sum(axis=1, keepdims=True)


def _centres(centres) -> np.ndarray:
    found = np.asarray(centres, np.float64)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise ValueError(
            f"centres are {centres!r}; give a row of finite numbers for each component"
        )
    return found


def _check(deviation, noise) -> None:
    if not (0 <= deviation < np.inf):
        raise ValueError(f"deviation is {deviation}; it must be 0 or larger")
    if not (0 < noise < np.inf):
        raise ValueError(
            f"noise is {noise}; without any there is nothing to denoise: make it positive"
        )
