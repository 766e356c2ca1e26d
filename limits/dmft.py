"""Dynamical mean-field theory: gradient descent of a narrow two-layer network on high-dimensional Gaussian data.

The network is that of `limits.mean_field`, f(x) = (alpha / N) sum_i phi(w_i . x) with phi(h) = h + (epsilon / 2) h^2,
and the target is y(z) = coefficient z^2 of one hidden direction, z = b . x. Here the input dimension D and the number
of examples P go to infinity together, P = density D, at fixed N. Then the loss curves are no longer random, and follow
from one effective example, whose fields h^t feel their own past through a response, and one effective weight, which is
Gaussian::

    h^t     = zeta^t - k sum_(s<t) R_w(t, s) g^s,    g = (f - y(z)) phi'(h),    zeta ~ GP(C_w)
    w^(t+1) = w^t - k [xi^t + sum_(s<=t) R_g(t, s) w^s + R_z(t) b],             xi   ~ GP(density E g g^T)

with C_w(t, s) = E w^t w^s, R_w(t, s) = d w^t / d w^s, R_g(t, s) = density E d g^t / d zeta^s. The second line is
linear, so that its moments are a recursion; expectations of the first line are averages over sampled paths.

Source: Mignacco et al. 2020 (arXiv 2006.06098), Celentano, Cheng & Montanari 2021 (arXiv 2112.07572); derived here for
this network by the cavity method. Kumar et al. 2024 (arXiv 2310.06110) describe grokking in this limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.special

from limits.arguments import array, integer, key, number, real, takes
from ntk import show
from ntk.types import Float, PRNGKey


@show.readable
class Dynamics(NamedTuple):
    """Order parameters at steps 0 to T."""

    train_loss: Float[np.ndarray, "times"]  # mean squared error on the training set
    test_loss: Float[np.ndarray, "times"]  # on fresh inputs
    overlap: Float[np.ndarray, "times N"]  # of every neuron with the direction, w . b / D
    correlation: Float[np.ndarray, "times N N"]  # of the neurons' weights, w_i . w_j / D


@takes(
    overlap=array(),
    key=key,
    alpha=number(positive=True),
    epsilon=real,
    learning_rate=number(),
    steps=integer,
    num_samples=integer,
    coefficient=real,
    density=real,
)
def high_dimensional_descent(
    overlap: Sequence[float],
    key: PRNGKey,
    *,
    alpha: float,
    epsilon: float,
    density: float,
    learning_rate: float,
    steps: int,
    coefficient: float = 1.0,
    num_samples: int = 2000,
) -> Dynamics:
    """Full-batch gradient descent on mean((f - y)^2) / alpha^2 as D, P = density D go to infinity at fixed width N.

    Args:
        overlap: initial w_i . b / D of each of the N neurons, between -1 and 1; otherwise weights are N(0, 1). Without
            any the direction is not found in a number of steps that does not grow with D.
        key: PRNG key of the sampled paths.
        alpha: scale of the output.
        epsilon: share of the quadratic feature.
        density: P / D.
        learning_rate: per neuron and dimension: `mean_field.gradient_descent` has D times as much.
        steps: T; work grows as T^3 num_samples N^3, memory as T^2 num_samples N^2.
        coefficient: of the target, coefficient z^2.
        num_samples: sampled paths (rounded up to a multiple of 4); the error is O(num_samples^(-1/2)). The curve of
            one network of dimension D differs by O(D^(-1/2)).

    Returns:
        Dynamics, in float64.

    Raises:
        ValueError: an overlap outside [-1, 1], or density, steps or num_samples not positive.
    """
    first = np.asarray(overlap, np.float64)
    _check(first, density, steps, num_samples)
    width, k = len(first), 2 * learning_rate / (density * alpha)
    paths = _Paths(width, steps + 1, num_samples, key)
    weights = _Weights(first, steps + 1)
    train, test = [], []
    for t in range(steps + 1):
        zeta = paths.draw(t, weights.correlation[t, : t + 1], weights.overlap[t])
        h = zeta - k * np.einsum("uij,uaj->ai", weights.response[t, :t], paths.force[:t])
        error = alpha * np.mean(h + epsilon / 2 * h**2, axis=1) - coefficient * paths.z**2
        train.append(np.mean(error**2))
        test.append(
            _test_loss(weights.correlation[t, t], weights.overlap[t], alpha, epsilon, coefficient)
        )
        paths.respond(t, h, error, -k * weights.response[t, :t], alpha, epsilon, coefficient)
        if t < steps:
            weights.step(t, k, *paths.statistics(t, density))
    diagonal = np.arange(steps + 1)
    return Dynamics(
        np.array(train), np.array(test), weights.overlap, weights.correlation[diagonal, diagonal]
    )


class _Paths:
    """Sampled fields of the effective example, their forces g, and the forces' derivatives."""

    def __init__(self, width: int, times: int, samples: int, key: PRNGKey):
        quarter = -(-samples // 4)
        white = np.array(jax.random.normal(key, (quarter, 1 + times * width)), np.float64)
        # Even quantiles of |z|, then z and the fields each with both signs: less error of the means.
        white[:, 0] = scipy.special.ndtri(0.5 + (np.arange(quarter) + 0.5) / (2 * quarter))
        flipped = white * np.append(-1, np.ones(times * width))
        noise = np.concatenate([white, -white, flipped, -flipped])
        self.noise = noise / noise.std(axis=0)  # z is the first column, each time adds a block
        self.z = self.noise[:, 0]
        samples = len(noise)
        self.factor = np.zeros((1 + times * width, 1 + times * width))  # fields = factor noise
        self.factor[0, 0] = 1
        self.force = np.zeros((times, samples, width))
        # derivative of force (time u, neuron i) with respect to zeta (time s, neuron j), and to z
        self.jacobian = np.zeros((times, width, times, samples, width))
        self.slope = np.zeros((times, width, samples))

    def draw(self, t: int, correlation: np.ndarray, overlap: np.ndarray) -> np.ndarray:
        """The Gaussian fields of time t, given those before: their covariance with all times, and with z."""
        width = len(overlap)
        rows = slice(1 + t * width, 1 + (t + 1) * width)
        new = self.factor[rows]
        new[:, 0] = overlap
        for s in range(t):
            done, block = slice(0, 1 + s * width), slice(1 + s * width, 1 + (s + 1) * width)
            rest = correlation[s] - new[:, done] @ self.factor[block, done].T
            new[:, block] = rest @ np.linalg.pinv(self.factor[block, block], rcond=1e-6).T
        rest = correlation[t] - new[:, : rows.start] @ new[:, : rows.start].T
        values, vectors = np.linalg.eigh((rest + rest.T) / 2)
        values = np.where(values > 1e-12, values, 0)  # weights at rest draw nothing new
        new[:, rows] = vectors * np.sqrt(values) @ vectors.T
        return self.noise[:, : rows.stop] @ new[:, : rows.stop].T

    def respond(
        self,
        t: int,
        h: np.ndarray,
        error: np.ndarray,
        memory: np.ndarray,
        alpha: float,
        epsilon: float,
        coefficient: float,
    ) -> None:
        """Records the force of time t and its derivatives; h = zeta + sum memory force."""
        width = h.shape[1]
        gain = 1 + epsilon * h
        self.force[t] = error[:, None] * gain
        local = alpha / width * gain[:, :, None] * gain[:, None, :]
        local[:, range(width), range(width)] += epsilon * error[:, None]
        shape = (width, t + 1, len(h), width)
        memory = np.moveaxis(memory, 1, 0).reshape(width, t * width)
        past = memory @ self.jacobian[:t, :, : t + 1].reshape(t * width, np.prod(shape[1:]))
        past = past.reshape(shape)
        past[range(width), t, :, range(width)] += 1
        self.jacobian[t, :, : t + 1] = np.einsum("aik,ksaj->isaj", local, past, optimize=True)
        through = memory @ self.slope[:t].reshape(t * width, len(h))
        direct = -2 * coefficient * self.z * gain.T
        self.slope[t] = np.einsum("aik,ka->ia", local, through) + direct

    def statistics(self, t: int, density: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariance (t + 1, N, N) of the force with those before, its response to the fields, and to z."""
        samples = len(self.z)
        covariance = np.einsum("ai,uaj->uij", self.force[t], self.force[: t + 1]) / samples
        response = np.moveaxis(self.jacobian[t, :, : t + 1].mean(axis=2), 1, 0)
        return density * covariance, density * response, density * self.slope[t].mean(axis=1)


class _Weights:
    """Moments and response of the effective weight, all times against all."""

    def __init__(self, overlap: np.ndarray, times: int):
        width = len(overlap)
        self.overlap = np.zeros((times, width))
        self.correlation = np.zeros((times, times, width, width))
        self.response = np.zeros((times, times, width, width))  # d w^t / d w^(s+1), at [t, s]
        self.noise = np.zeros((times, times, width, width))  # covariance of xi
        self.overlap[0] = overlap
        self.correlation[0, 0] = np.diag(1 - overlap**2) + np.outer(overlap, overlap)

    def step(
        self, t: int, k: float, covariance: np.ndarray, response: np.ndarray, slope: np.ndarray
    ) -> None:
        """One step of w, with the covariance of its noise and the responses of the force up to time t."""
        self.noise[t, : t + 1] = covariance
        self.noise[: t + 1, t] = np.swapaxes(covariance, 1, 2)
        past = slice(0, t + 1)
        m, c, r = self.overlap, self.correlation, self.response
        m[t + 1] = m[t] - k * (np.einsum("uij,uj->i", response, m[past]) + slope)
        felt = np.einsum("uij,usjl->sil", response, r[past, past])
        r[t + 1, past] = r[t, past] - k * felt
        r[t + 1, t] += np.eye(m.shape[1])
        # E xi^t w^s, then the column of all times up to t, and the corner
        driven = -k * np.einsum("uij,sulj->sil", self.noise[t, past], r[past, past])
        drift = np.einsum("uij,usjl->sil", response, c[past, past]) + driven
        c[t + 1, past] = c[t, past] - k * (drift + slope[:, None] * m[past, None, :])
        c[past, t + 1] = np.swapaxes(c[t + 1, past], 1, 2)
        pull = np.einsum("uij,ujl->il", response, c[past, t + 1])
        own = -k * np.einsum("uij,ulj->il", self.noise[t, past], r[t + 1, past])
        corner = c[t, t + 1] - k * (own + pull + np.outer(slope, m[t + 1]))
        c[t + 1, t + 1] = (corner + corner.T) / 2


def _test_loss(
    correlation: np.ndarray, overlap: np.ndarray, alpha: float, epsilon: float, coefficient: float
) -> float:
    """E (f - y)^2 over Gaussian fields (h, z): of b . u + u^T A u it is b^T S b + (tr AS)^2 + 2 tr ASAS."""
    width = len(overlap)
    covariance = np.block([[correlation, overlap[:, None]], [overlap[None, :], np.ones((1, 1))]])
    linear = np.append(np.full(width, alpha / width), 0)
    product = np.diag(np.append(np.full(width, alpha * epsilon / (2 * width)), -coefficient))
    product = product @ covariance
    return linear @ covariance @ linear + np.trace(product) ** 2 + 2 * np.trace(product @ product)


def _check(overlap: np.ndarray, density: float, steps: int, num_samples: int) -> None:
    if overlap.ndim != 1 or not len(overlap) or not (np.abs(overlap) <= 1).all():
        raise ValueError(f"overlap is {overlap}; expected one number in [-1, 1] for each neuron")
    for name, value in (("density", density), ("steps", steps), ("num_samples", num_samples)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
