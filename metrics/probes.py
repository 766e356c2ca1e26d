"""Linear probes of features: naive Bayes and logistic regression, and the exact error of a linear rule.

Computed on the host in double precision; features are those of any layer of any network, or the inputs themselves.

    naive Bayes    log p_k + sum_i (x_i m_ki - m_ki^2 / 2) / v_i
    logistic       min over W, b of sum_n cross-entropy(W x_n + b) + decay / 2 |W|^2

Source: Ng & Jordan 2001.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from scipy import linalg, optimize, special

from metrics import checks
from ntk import show
from ntk.types import Float, Integer, Real, Rows


@show.readable
class Linear(NamedTuple):
    """Scores ``features @ weights + bias``, of which the largest is predicted.

    Attributes:
        weights: (d, K).
        bias: (K,).
    """

    weights: Float[np.ndarray, "d K"]
    bias: Float[np.ndarray, "K"]


def naive_bayes(
    features: Real[ArrayLike, "N d"],
    labels: Integer[ArrayLike, "N"],
    num_classes: int,
    *,
    floor: float = 1e-9,
) -> Linear:
    """Gaussian naive Bayes with one variance a feature: the generative classifier that is linear.

    log p_k + sum_i (x_i m_ki - m_ki^2 / 2) / v_i, with the class means m_k, the shares p_k and v the mean of the
    classes' variances weighted by p_k. It takes features as independent within a class; where they are not, its
    error stays above the best linear one however many examples there are.

    Args:
        features: (N, d).
        labels: (N,) integers 0..K-1, each of them there.
        num_classes: K.
        floor: added to the variances.

    Returns:
        Linear.

    Raises:
        TypeError: features are no numbers, num_classes no integer.
        ValueError: shapes or labels do not fit, a class without examples, or a feature without variance and no floor.

    Source: Ng & Jordan 2001; Zheng et al. 2023, arXiv:2302.02334, equation 4.
    """
    x, y = _examples(features, labels, num_classes)
    checks.within("floor", floor, lambda value: value >= 0, "not negative")
    members = np.eye(num_classes)[y]
    shares = members.mean(axis=0)
    means = members.T @ x / (len(y) * shares[:, None])
    variances = np.square(x - means[y]).mean(axis=0) + floor
    if not (variances > 0).all():
        raise ValueError(
            f"feature {variances.argmin()} has no variance within classes; drop it, or give a floor"
        )
    return Linear((means / variances).T, np.log(shares) - (means**2 / variances).sum(1) / 2)


def logistic(
    features: Real[ArrayLike, "N d"],
    labels: Integer[ArrayLike, "N"],
    num_classes: int,
    *,
    decay: float = 1.0,
    max_steps: int = 1000,
) -> Linear:
    """Logistic regression: the least sum of cross-entropies plus decay/2 |weights|^2, by L-BFGS.

    The bias is not decayed. scikit-learn's C is 1/decay, and 2/decay where it fits one weight vector to two classes.

    Args:
        features: (N, d).
        labels: (N,) integers 0..K-1, each of them there.
        num_classes: K.
        decay: of the sum over examples, 1e-100 or more.
        max_steps: where to give up.

    Returns:
        Linear, whose weights sum to zero over classes.

    Raises:
        TypeError: features are no numbers, num_classes or max_steps no integer.
        ValueError: shapes or labels do not fit, a class without examples, a decay that is not positive or too
            small for double precision, or no minimum within max_steps.
    """
    x, y = _examples(features, labels, num_classes)
    checks.positive("decay", decay)
    checks.within("decay", decay, lambda value: value >= 1e-100, "at least 1e-100")
    checks.integer("max_steps", max_steps, 1)
    center = x.mean(
        axis=0
    )  # a bias of its own makes the place of the origin free: the middle is best conditioned
    x = np.hstack([x - center, np.ones((len(x), 1))])
    shape = x.shape[1], num_classes
    own = np.arange(len(y)), y
    # Tolerances are absolute below 1, but of separable classes the whole objective is of the decay's order.
    unit = min(1.0, float(decay))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        scores = x @ w
        # From what the other classes have, which is small: a difference from 1 would round.
        others = scores - scores[own][:, None]
        others[own] = -np.inf
        lost = np.logaddexp(0, special.logsumexp(others, axis=1))
        wrong = special.softmax(scores, axis=1)
        wrong[own] = 0
        wrong[own] = -wrong.sum(axis=1)
        gradient = x.T @ wrong
        gradient[:-1] += decay * w[:-1]
        return (lost.sum() + decay / 2 * np.sum(w[:-1] ** 2)) / unit, gradient.ravel() / unit

    options = {"maxiter": max_steps, "maxfun": 10 * max_steps, "gtol": 1e-6, "ftol": 1e-13}
    found = optimize.minimize(
        objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options
    )
    if found.nit >= max_steps:
        raise ValueError(
            f"logistic regression is not done after max_steps = {max_steps}; raise it or decay, or standardise"
        )
    w = found.x.reshape(shape)
    return Linear(w[:-1], w[-1] - center @ w[:-1])


def accuracy(
    probe: Linear, features: Real[ArrayLike, "N d"], labels: Integer[ArrayLike, "N"]
) -> float:
    """Share of examples whose largest score is the label.

    Args:
        probe: as the fits give it.
        features: (N, d).
        labels: (N,) integers 0..K-1.

    Raises:
        TypeError: probe is no Linear.
        ValueError: shapes or labels do not fit, or a weight is not finite.
    """
    weights, bias = _probe(probe)
    x, y = _examples(features, labels, bias.size, every=False)
    if x.shape[1] != len(weights):
        raise ValueError(f"features has shape {x.shape}; the probe reads {len(weights)} of them")
    return float(((x @ weights + bias).argmax(axis=1) == y).mean())


def gaussian_error(
    probe: Linear,
    means: Real[ArrayLike, "2 d"],
    covariance: Real[ArrayLike, "d d"] | Real[ArrayLike, "d"],
    shares: Real[Rows, "2"] = (0.5, 0.5),
) -> float:
    """Exact error of a linear rule on two Gaussian classes with one covariance: no test set, no noise.

    With w and c the differences of weights and biases it is the mean over classes of a normal tail beyond
    (w.m_k + c) / sqrt(w.S.w). The best rule is ``bayes``'s.

    Args:
        probe: of two classes.
        means: (2, d).
        covariance: S, (d, d), or (d,) for its diagonal.
        shares: (2,), of the classes, of sum 1.

    Raises:
        TypeError: probe is no Linear, or an argument no array of numbers.
        ValueError: not two classes, shapes that do not fit, a covariance that is none, or shares of another sum.
    """
    weights, bias = _probe(probe)
    m, s, p = _gaussians(means, covariance, shares)
    if weights.shape != (m.shape[1], 2):
        raise ValueError(
            f"the probe has weights {weights.shape}; for means {m.shape} they must be {(m.shape[1], 2)}"
        )
    w, c = weights[:, 1] - weights[:, 0], bias[1] - bias[0]
    deviation = np.sqrt(w @ (s * w if s.ndim == 1 else s @ w))
    # A rule without weights decides for one class: an infinite distance, or where biases are equal too a coin's
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.nan_to_num((m @ w + c) / deviation, nan=0.0)
    return float(p @ special.ndtr(distance * [1, -1]))


def bayes(
    means: Real[ArrayLike, "2 d"],
    covariance: Real[ArrayLike, "d d"] | Real[ArrayLike, "d"],
    shares: Real[Rows, "2"] = (0.5, 0.5),
) -> Linear:
    """The best rule for two Gaussian classes with one covariance; arguments and errors as of `gaussian_error`."""
    m, s, p = _gaussians(means, covariance, shares)
    weights = m / s if s.ndim == 1 else linalg.solve(s, m.T, assume_a="pos").T
    return Linear(weights.T, np.log(p) - (m * weights).sum(1) / 2)


def _examples(
    features: ArrayLike, labels: ArrayLike, num_classes: int, every: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    x = checks.doubles("features", features)
    checks.check_shape("features", x.shape, ("N", "d"))
    checks.finite("features", x)
    checks.integer("num_classes", num_classes, 2)
    y = np.asarray(checks.labels("labels", labels, len(x), num_classes))
    absent = np.flatnonzero(np.bincount(y, minlength=num_classes) == 0)
    if every and absent.size:
        raise ValueError(f"labels holds no example of class {absent[0]}; each class needs one")
    return x, y


def _probe(probe: Linear) -> Linear:
    if not isinstance(probe, Linear):
        raise TypeError(
            f"probe is of type {type(probe).__name__}; it must be a metrics.probes.Linear"
        )
    w, b = (
        checks.finite(name, checks.doubles(name, value))
        for name, value in zip(probe._fields, probe)
    )
    checks.check_shape("weights", w.shape, ("d", "K"))
    checks.check_shape("bias", b.shape, (w.shape[1],))
    return Linear(w, b)


def _gaussians(
    means: ArrayLike, covariance: ArrayLike, shares: Rows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, s, p = (
        checks.doubles(name, value)
        for name, value in (("means", means), ("covariance", covariance), ("shares", shares))
    )
    checks.check_shape("means", m.shape, (2, "d"))
    d = m.shape[1]
    if s.shape not in ((d,), (d, d)):
        raise ValueError(f"covariance has shape {s.shape}; it must be ({d},) or ({d}, {d})")
    lowest = s.min() if s.ndim == 1 else np.linalg.eigvalsh((s + s.T) / 2).min()
    if not lowest > 0 or (s.ndim == 2 and not np.allclose(s, s.T)):
        raise ValueError(
            f"covariance is no covariance: smallest eigenvalue {lowest:.3g}; it must be symmetric and positive"
        )
    if p.shape != (2,) or not (p > 0).all() or abs(p.sum() - 1) > 1e-9:
        raise ValueError(f"shares are {p}; they must be two positive numbers of sum 1")
    return m, s, p
