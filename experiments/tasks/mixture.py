"""Points of a Gaussian mixture seen through noise: the regression behind denoising score matching.

    z = x_0 + s e,    E[x_0 | z] = z + s^2 grad log p(z)      (Tweedie)

Components are equally likely and isotropic, so that the posterior mean and the score are closed forms.
"""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.tasks.arrays import INPUTS, NOISE, Data, Task, generator
from limits.arguments import real, takes


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


@takes()
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
        TypeError: a deviation is no number, or an argument is traced.
        ValueError: shapes do not fit, or a deviation is out of range.
    """
    z, share, nearest = _posterior(z, centres, deviation, noise)
    return share * z + (1 - share) * nearest


@takes()
def score(z: np.ndarray, centres: Any, deviation: float, noise: float) -> np.ndarray:
    """Gradient of the log density of z = x_0 + s e; arguments as of `posterior_mean`."""
    z, _, nearest = _posterior(z, centres, deviation, noise)
    unit = np.hypot(deviation, noise)
    return (nearest - z) / unit / unit


def _posterior(z, centres, deviation, noise) -> tuple:
    """z, how much of z - c a point keeps, and the mean centre given z."""
    centres, z = _centres(centres), _numbers("z", z, "point")
    _check(deviation, noise)
    if z.ndim != 2 or z.shape[1] != centres.shape[1]:
        raise ValueError(f"z has shape {z.shape}; it must be (N, {centres.shape[1]})")
    unit = np.hypot(deviation, noise)
    away = np.abs(z[:, None] - centres)
    # Distances by their largest coordinate, and their squares by how much farther than the nearest centre one is:
    # squares themselves could overflow.
    largest = np.maximum(away.max(axis=-1, keepdims=True), np.finfo(float).tiny)
    distance = np.sqrt(np.square(away / largest).sum(axis=-1)) * largest[..., 0]
    nearest = distance.min(axis=1, keepdims=True)
    farther = distance - nearest
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = -(farther / unit) * ((distance + nearest) / unit) / 2
    weight = np.exp(np.where(farther == 0, 0, exponent))
    return z, (deviation / unit) ** 2, weight @ centres / weight.sum(axis=1, keepdims=True)


def _centres(centres) -> np.ndarray:
    found = _numbers("centres", centres, "component")
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
        raise ValueError(
            f"centres are {centres!r}; give a row of finite numbers for each component"
        )
    return found


def _numbers(name: str, value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        if isinstance(error, jax.errors.TracerArrayConversionError):
            raise
        raise ValueError(
            f"{name} are {value!r}; give a row of finite numbers for each {what}"
        ) from error


def _check(deviation, noise) -> None:
    for name, value in (("deviation", deviation), ("noise", noise)):
        real(name, value)
    if not (0 <= deviation < np.inf):
        raise ValueError(f"deviation is {deviation}; it must be 0 or larger")
    if not (0 < noise < np.inf):
        raise ValueError(
            f"noise is {noise}; without any there is nothing to denoise: make it positive"
        )
