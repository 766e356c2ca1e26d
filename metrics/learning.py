"""Learning curves of measured kernels, predicted without training; the test risk from the training set alone.

Any kernel matrix serves: of an infinitely wide network, of one network before or after training, of an ensemble. Its
eigenvalues and the targets' power in them are put into the risk of `ntk.regression.risk`.

Source: Simon et al. 2023, arXiv:2110.03922; Golub, Heath & Wahba 1979; Levina & Bickel 2004.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import spatial

from metrics import checks
from metrics.estimate import Estimate
from metrics.kernels import task_model_alignment
from metrics.scaling import PowerLaw, fit_power_law
from ntk import show
from ntk.regression import risk
from ntk.regression.risk import Risk
from ntk.types import Data, PRNGKey, Real, Rows

_ROUNDING = 8  # eigenvalues below so many eps of the largest are no numbers but rounding
_POINTS = 12  # bins of ranks through which a power law is drawn


@show.readable
class SpectrumLaws(NamedTuple):
    """Power laws of a kernel and a target; exponents are negative, -alpha and -beta."""

    eigenvalues: PowerLaw  # of rank
    power: PowerLaw


def learning_curve(
    kernel: Real[Data, "N N"],
    targets: Real[Data, "N *K"],
    samples: ArrayLike,
    *,
    ridge: ArrayLike = 0.0,
    noise: ArrayLike = 0.0,
    held_out: bool = True,
) -> Risk:
    """Test and training error of ridge regression with a kernel against the number of samples, without training once.

    All N points are read, to know the kernel's spectrum and the target's power in it; the curve is the mean over
    training sets of n of them. On handwritten digits, with the NTK of two layers, it is within 7 % of the held-out
    error up to N / 9 samples and 11 % below it at N / 4 without ridge; within 2 % where the labels are noisy (study
    `random_features`). Beyond N / 4 modes are missing that act like a ridge, and a warning says so.

    Args:
        kernel: (N, N), of all points, in the units of K (its eigenvalues are divided by N here). Those below the
            rounding of its own dtype, float16 too, count as zero.
        targets: (N,) or (N, K); centre them if the regression does. Errors are sums over the K outputs.
        samples: n, any shape; samples, ridge and noise broadcast, and the fields of Risk have their shape.
        ridge: delta, added to the diagonal of the kernel of the n samples.
        noise: variance of noise added to the labels, each of the K outputs.
        held_out: whether samples are drawn from the N points without replacement and tested on the others; else N
            stands for an infinite population, and test points may be training points.

    Returns:
        Risk, on labels with noise.

    Raises:
        TypeError: no numbers.
        ValueError: a kernel that is not square or not symmetric, or has negative eigenvalues; targets of another
            number; either not finite; samples that leave none to test on.
    """
    values, power, outputs = _spectrum(kernel, targets)
    samples, count = checks.doubles("samples", samples), len(values)
    if (samples > count / 4).any() and (samples < count).all():
        warnings.warn(
            f"samples go up to {samples.max():g} of {count} points; beyond a quarter of them predictions may "
            "be too low by more than 10 %: give the kernel of more points",
            stacklevel=2,
        )
    ridge, noise = checks.doubles("ridge", ridge), outputs * checks.doubles("noise", noise)
    pool = count if checks.boolean("held_out", held_out) else math.inf
    return risk.kernel_regression(values, power, samples, ridge=ridge, noise=noise, pool=pool)


def estimated_risk(
    kernel: Real[Data, "n n"], targets: Real[Data, "n *K"], ridge: float | Rows
) -> Estimate:
    """Test error of kernel ridge regression from its training set alone: generalised cross-validation.

    R_train / ((delta / n) tr (K + delta)^-1)^2: in `ntk.regression.risk` the training error is (d / n)^2 times the test
    error, and d / n is that trace. `ntk.solve.cholesky(leave_one_out=True)` is the other road.

    Args:
        kernel: (n, n), of the training set.
        targets: (n,) or (n, K), with their noise; errors are sums over the K outputs.
        ridge: delta >= 0, a number or an array: one decomposition serves them all. Without one the limit is taken.

    Returns:
        Estimate, of the shape of ridge; the error is that of a mean over n independent residuals. Those of neighbours
        are not independent where there is little noise: the spread over training sets is then up to twice as large.

    Raises:
        TypeError: no numbers.
        ValueError: a kernel that is not square or not symmetric, a negative ridge, or none with a singular kernel.

    Source: Golub, Heath & Wahba 1979; Simon et al. 2023, arXiv:2110.03922.
    """
    values, vectors, y, floor = _decomposed(kernel, targets)
    delta = checks.doubles("ridge", ridge)
    if not (delta >= 0).all():
        raise ValueError(f"ridge is {ridge}; it must not be negative")
    if (delta == 0).any() and values.min() <= floor:
        raise ValueError("the kernel is singular; give a positive ridge: without one it fits all")
    inverse = 1 / (np.maximum(values, 0) + delta[..., None])
    residuals = np.einsum("nm,...m,mk->...nk", vectors, inverse, vectors.T @ y)
    squares = (residuals**2).sum(axis=-1) / inverse.mean(axis=-1)[..., None] ** 2
    error = np.asarray(np.nan)
    if len(values) > 1:
        error = squares.std(axis=-1, ddof=1) / math.sqrt(len(values))
    return Estimate(squares.mean(axis=-1), error)


def fit_spectrum(
    kernel: Real[Data, "N N"],
    targets: Real[Data, "N *K"],
    key: PRNGKey,
    *,
    ranks: tuple[int, int] | None = None,
) -> SpectrumLaws:
    """Exponents of a kernel's eigenvalues and of the target's power in them, on real data.

    Power laws through geometric means of eigenvalues, and means of power, over bins of ranks. For
    `limits.eigenlearning.fitting_ratio(alpha, beta, noise)`.

    Args:
        kernel: (N, N), N >= 200.
        targets: (N,) or (N, K).
        key: PRNG key of the bootstrap.
        ranks: first and last, (10, N / 10) by default: modes beyond N / 10 are not resolved by N points.

    Returns:
        SpectrumLaws.

    Raises:
        TypeError: no numbers, or no key.
        ValueError: as `learning_curve`; ranks that are not two increasing ones; eigenvalues that are zero there.
    """
    values, power, _ = _spectrum(kernel, targets)
    if ranks is not None and not (isinstance(ranks, tuple | list) and len(ranks) == 2):
        raise TypeError(f"ranks is {ranks}; it must be two integers, the first and the last")
    first, last = (
        (10, len(values) // 10)
        if ranks is None
        else (checks.integer("ranks", rank) for rank in ranks)
    )
    if not 1 <= first < last <= len(values) or last < 2 * first:
        raise ValueError(
            f"ranks go from {first} to {last} of {len(values)}; they must increase, the last at least twice the first"
        )
    edges = np.unique(np.round(np.geomspace(first - 1, last, _POINTS + 1)).astype(int))
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    middle = [np.exp(np.log(np.arange(p.start, p.stop) + 1.0).mean()) for p in parts]
    if values[last - 1] <= 0:
        raise ValueError(f"eigenvalue {last} is zero; end ranks at {int((values > 0).sum())}")
    laws = [
        [np.exp(np.log(values[p]).mean()) for p in parts],
        [power[p].mean() for p in parts],
    ]
    return SpectrumLaws(*(fit_power_law(middle, y, key) for y in laws))


def intrinsic_dimension(inputs: Real[ArrayLike, "N ..."], *, neighbors: int = 10) -> Estimate:
    """Dimension of the manifold that the inputs fill, from the distances of nearest neighbours.

    The number that a learning curve is cursed by (`limits.eigenlearning.learning_exponent`), not that of coordinates.
    Exact in mean for points of uniform density at the scale of the neighbours; curvature and noise add to it, edges
    and dimensions of the order of log N take from it: 20 uniform dimensions read as 15 at N = 2000.

    Args:
        inputs: (N, ...), flattened; N larger than neighbors.
        neighbors: k, of each point, at least 2.

    Returns:
        Estimate; its error has twice the variance that neighbourhoods without overlap would have, as measured on
        spheres of 1 to 20 dimensions.

    Raises:
        TypeError: no numbers.
        ValueError: too few points, fewer than 2 neighbors, or a point that is there k times.

    Source: Levina & Bickel 2004, averaged as in MacKay & Ghahramani 2005; error bounds of networks in these terms:
    Konz & Mazurowski 2024, arXiv:2401.08865.
    """
    x = checks.finite("inputs", checks.doubles("inputs", inputs))
    k = checks.integer("neighbors", neighbors, 2)
    if x.ndim < 2 or len(x) <= k:
        raise ValueError(
            f"inputs has shape {x.shape}; it must be (N, ...) with N above neighbors, {k}"
        )
    near = spatial.cKDTree(x.reshape(len(x), -1)).query(x.reshape(len(x), -1), k + 1)[0][:, 1:]
    if not near[:, 0].all():
        copies = int((near[:, 0] == 0).sum())
        raise ValueError(
            f"{copies} of the inputs are there twice; drop copies: np.unique(inputs, axis=0)"
        )
    inverse = np.log(near[:, -1:] / near[:, :-1]).mean(axis=1)
    mean = inverse.mean()
    error = inverse.std(ddof=1) * math.sqrt(2 / len(x))
    return Estimate(1 / mean, error / mean**2)


def _spectrum(kernel: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray, int]:
    """Eigenvalues of K / N, descending; mean square of the targets along each mode; outputs. Double precision."""
    given = checks.finite("kernel", checks.doubles("kernel", kernel))
    y = checks.finite("targets", checks.doubles("targets", targets))
    with jax.enable_x64(True):
        found = task_model_alignment(jnp.asarray(given), jnp.asarray(y))
        values, share = np.asarray(found.eigenvalues), np.asarray(found.power)
    size, values = (y**2).sum() / len(y), _positive(values, kernel)
    if size == 0:
        return values, np.zeros_like(values), y.size // len(y)
    # Power in no direction of the kernel is rounding too where it is as small: at the peak it would be infinite.
    lost = np.where(values > 0, 0, share)
    if lost.sum() < len(y) * _relative_floor(kernel) ** 2:
        share = share - lost
    return values, share * size, y.size // len(y)


def _decomposed(
    kernel: ArrayLike, targets: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Eigenvalues of K, eigenvectors, targets (n, K), and the size of rounding."""
    given = checks.finite("kernel", checks.doubles("kernel", kernel))
    y = checks.finite("targets", checks.doubles("targets", targets))
    if given.ndim != 2 or given.shape[0] != given.shape[1] or not given.size:
        raise ValueError(f"kernel has shape {given.shape}; it must be (n, n)")
    if y.ndim not in (1, 2) or len(y) != len(given):
        raise ValueError(
            f"targets has shape {y.shape}; it must be ({len(given)},) or ({len(given)}, K)"
        )
    if abs(given - given.T).max() > 1e-3 * abs(given).max():
        raise ValueError("kernel is not symmetric; it must be of a set of examples with itself")
    values, vectors = np.linalg.eigh((given + given.T) / 2)
    return values, vectors, y.reshape(len(y), -1), _floor(values, kernel)


def _floor(values: np.ndarray, kernel: ArrayLike) -> float:
    return _relative_floor(kernel) * float(abs(values).max())


def _relative_floor(kernel: ArrayLike) -> float:
    dtype = getattr(kernel, "dtype", np.dtype(float))
    eps = jnp.finfo(dtype).eps if jnp.issubdtype(dtype, jnp.floating) else np.finfo(float).eps
    return _ROUNDING * float(eps)


def _positive(values: np.ndarray, kernel: ArrayLike) -> np.ndarray:
    """The eigenvalues, with zero for rounding."""
    floor = _floor(values, kernel)
    if values.min() < -100 * floor:
        raise ValueError(
            f"kernel has the eigenvalue {values.min() * len(values):.3g}, beyond rounding; it must be positive "
            "semi-definite"
        )
    return np.where(values > floor, values, 0.0)
