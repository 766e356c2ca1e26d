"""What finite width adds to deep networks at initialisation: coefficients of 1 / width of any activation's statistics.

Multilayer perceptrons with hidden layers of n neurons, Var b = C_b, Var W = C_W / fan-in, learning rates lambda_b of
biases and lambda_W / fan-in of weights; the symbols K, chi_par, chi_perp, h of `limits.criticality`. A layer l has the
preactivations z_i, the metric G (their variance given the layer before), the tangent kernel Theta_ij and its derivative
dH_abc = sum lambda lambda z_a'' z_b' z_c'. For neurons i != j, and one input::

    E[G] = K + G1/n    Var G = V/n    Cov(Theta_ii, Theta_jj) = A/n    E[Theta_ij^2] = B/n
    E[z_i^2 (Theta_jj - Theta)] = D/n    E[z_i z_j Theta_ij] = F/n    E[dH_ijj z_i] = P/n    E[dH_iij z_j] = Q/n

Source: Roberts, Yaida & Hanin 2022, arXiv:2106.10165, chapters 4, 8 and 11; A, P, Q, several inputs and residual
connections were derived anew and simulated. First order in 1/n: relative errors grow like depth / n. Where that ratio
is 0.1, V of ReLU networks is some 30 % too small already; `limits.ensembles.sample_metrics` has no such error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from limits import quadrature
from limits.arguments import array, boolean, count, number, takes
from limits.quadrature import Activation, Pointwise, average, pointwise
from ntk import show
from ntk.arguments import strict
from ntk.types import Float, Real


@show.readable
class Vertices(NamedTuple):
    """Coefficients of 1 / width by layer, each (depth,), see the module; None where they are not known.

    T is that of E[z_i z_j^2] = T/n, zero without skip connections. P and Q need s = 0 where s' jumps.
    """

    K: Float[np.ndarray, "depth"]
    Theta: Float[np.ndarray, "depth"] | None
    V: Float[np.ndarray, "depth"]
    G1: Float[np.ndarray, "depth"] | None
    F: Float[np.ndarray, "depth"] | None
    B: Float[np.ndarray, "depth"] | None
    D: Float[np.ndarray, "depth"] | None
    A: Float[np.ndarray, "depth"] | None
    P: Float[np.ndarray, "depth"] | None
    Q: Float[np.ndarray, "depth"] | None
    T: Float[np.ndarray, "depth"]


_SCALES = {"C_W": number(positive=True), "C_b": number()}


@takes(
    depth=count(),
    variance=number(positive=True),
    lambda_b=number(),
    lambda_W=number(),
    gamma=number(),
    skew=boolean,
    **_SCALES,
)
def vertices(
    activation: Activation,
    depth: int,
    *,
    C_W: float,
    variance: float,
    C_b: float = 0.0,
    lambda_b: float = 0.0,
    lambda_W: float = 1.0,
    gamma: float = 0.0,
    skew: bool = True,
) -> Vertices:
    """The 1 / width coefficients of one input, layer by layer: error bars of an ensemble of networks.

    Args:
        activation: elementwise function or `ntk.activations.closed_forms.Dual`, without jumps.
        depth: number of layers with weights, L; the last one is the readout.
        C_W: variance of the weights times their fan-in.
        variance: K of the first preactivations, C_b + C_W |x|^2 / inputs.
        C_b: variance of the biases.
        lambda_b: learning rate of the biases.
        lambda_W: learning rate of the weights times their fan-in.
        gamma: of skip connections z' = gamma z + W s(z) + b; with one, only K, V and T are known.
        skew: whether T, which a skip connection feeds unless s is odd, acts on V; without it V is the published one,
            half of the right one for ReLU and gamma near 1: for comparison.

    Returns:
        Vertices. The metric of layer l (from 1) at width n has mean K + G1/n and variance V/n, to O(1/n^2).

    Raises:
        TypeError: an argument of another type.
        ValueError: a number out of range, or an activation that `limits.criticality` refuses.

    Source: see the module; for gamma, V and T derived and simulated.
    """
    found = pointwise(activation)
    if variance < C_b:
        raise ValueError(
            f"variance is {variance}; it must be at least C_b, {C_b}: K = C_b + C_W |x|^2 / inputs"
        )
    layer = (
        _plain(found, C_W, C_b, lambda_b, lambda_W)
        if gamma == 0
        else _skip(found, C_W, C_b, gamma, skew)
    )
    zeros = dict.fromkeys(Vertices._fields[2:], 0.0)
    state = {"K": float(variance), "Theta": lambda_b + lambda_W * (variance - C_b) / C_W, **zeros}
    rows = [state]
    for _ in range(depth - 1):
        rows.append(layer(rows[-1]))
    known = set(Vertices._fields) if gamma == 0 else {"K", "V", "T"}
    at_kinks = [found.derivatives(np.array([k.at]))[0][0] for k in found.kinks if k.slope]
    if any(abs(s) > 1e-12 for s in at_kinks):  # s'' is a delta function there, which s would see
        known -= {"P", "Q"}
    columns: dict[str, Any] = {
        f: np.array([row[f] for row in rows]) if f in known else None for f in Vertices._fields
    }
    return Vertices(**columns)


def _plain(
    found: Pointwise, C_W: float, C_b: float, lambda_b: float, lambda_W: float
) -> Callable[[dict], dict]:
    """One layer of the recursions, as equations (4.61), (8.77) to (8.97) and (11.43) have them."""

    def layer(now: dict) -> dict:
        K, Theta, V, G1, F, B, D, A, P, Q, _ = (now[name] for name in Vertices._fields)
        mean = average(found, K)
        z, s, slope, bend = mean.z, mean.s, mean.slope, mean.curvature
        square, slopes = s**2, slope**2
        s2, d2 = mean(square), mean(slopes)
        chi = C_W * mean(square * (z**2 - K)) / (2 * K**2)
        perp = C_W * d2
        h = C_W * mean(slopes * (z**2 - K)) / (4 * K**2)
        second = mean(square * (z**4 - 6 * K * z**2 + 3 * K**2)) / (4 * K**4)
        spread = mean(square**2) - s2**2
        both = mean(square * slopes)
        bent = C_W**2 * mean(s * bend * slopes) * Theta**2
        t = lambda_W / C_W * chi + 2 * h * Theta
        omega = lambda_W * square + C_W * slopes * Theta
        next_F = chi**2 * F + C_W**2 * both * Theta
        return {
            "K": C_b + C_W * s2,
            "Theta": lambda_b + lambda_W * s2 + perp * Theta,
            "V": chi**2 * V + C_W**2 * spread,
            "G1": chi * G1 + C_W / 2 * second * V,
            "F": next_F,
            "B": perp**2 * B + C_W**2 * mean(slopes**2) * Theta**2,
            "D": chi * perp * D
            + chi * t * V
            + C_W * lambda_W * spread
            + C_W**2 * Theta * (both - s2 * d2),
            "A": perp**2 * A + t**2 * V + 2 * perp * t * D + mean(omega**2) - mean(omega) ** 2,
            "P": chi * perp * P + perp * C_W * mean(s * bend) * B + bent,
            "Q": chi * perp * Q + 2 * h * chi * Theta * F + bent + lambda_W / C_W * next_F,
            "T": 0.0,
        }

    return layer


def _skip(
    found: Pointwise, C_W: float, C_b: float, gamma: float, skew: float
) -> Callable[[dict], dict]:
    """With z' = gamma z + W s + b, the signs of a layer's neurons remember those of the layer before: T."""

    def layer(now: dict) -> dict:
        K, V, T = now["K"], now["V"], now["T"]
        mean = average(found, K)
        z, square = mean.z, mean.s**2
        s2, growth = mean(square), mean(square * (mean.z**2 - K)) / (2 * K**2)
        chi = gamma**2 + C_W * growth
        tilt = skew * mean(2 * mean.s * mean.slope)
        source = C_W**2 * (mean(square**2) - s2**2) + 4 * gamma**2 * C_W * K**2 * growth
        return now | {
            "K": gamma**2 * K + C_W * s2 + C_b,
            "V": chi**2 * V + source + 2 * C_W * chi * tilt * T,
            "T": gamma * chi * T + gamma * C_W * mean(z * square),
        }

    return layer


@show.readable
class MetricCovariance(NamedTuple):
    """Infinite-width metric (L, N, N) by layer; pairs p = (a, b), a <= b, in the order of `numpy.triu_indices`.

    At width n, Ghat_p has mean G_p + mean_shift[p] / n and Cov(Ghat_p, Ghat_q) = covariance[p, q] / n.
    """

    gram: Float[np.ndarray, "L N N"]
    covariance: Float[np.ndarray, "L pairs pairs"]
    mean_shift: Float[np.ndarray, "L pairs"]


@takes(depth=count(), gram=array(2), **_SCALES)
def metric_covariance(
    activation: Activation,
    depth: int,
    gram: Real[np.ndarray, "N N"],
    *,
    C_W: float,
    C_b: float = 0.0,
) -> MetricCovariance:
    """Fluctuations of the metric of one or two inputs: V = J V J^T + C_W^2 (Q - M M^T), layer by layer.

    Two inputs give every pair statistic of a larger batch.

    Args:
        activation: elementwise function or `ntk.activations.closed_forms.Dual`, without jumps.
        depth: number of layers with weights.
        gram: (N, N) covariance of the first preactivations of N <= 2 inputs.
        C_W: variance of the weights times their fan-in.
        C_b: variance of the biases.

    Returns:
        MetricCovariance; numbers to 1e-9 relative.

    Raises:
        ValueError: more inputs, or a gram that is not positive definite (correlations above 1 - 1e-5 are not resolved).

    Source: derived; for one input PDLT (4.61). First order in 1 / width, as `vertices`.
    """
    found, gram = pointwise(activation), covariance_of(gram, 2)
    rows, columns = np.triu_indices(len(gram))
    V, shift, layers = np.zeros((len(rows),) * 2), np.zeros(len(rows)), []
    for _ in range(depth):
        layers.append((gram, V, shift))
        if len(layers) == depth:
            break
        M, Q, J, H = _pair_moments(found, gram, rows, columns)
        J, H = C_W * J, C_W * H
        V, shift = (
            J @ V @ J.T + C_W**2 * (Q - np.outer(M, M)),
            J @ shift + np.einsum("pqr,qr->p", H, V) / 2,
        )
        gram = np.zeros_like(gram)
        gram[rows, columns] = gram[columns, rows] = C_b + C_W * M
        covariance_of(gram, 2)
    return MetricCovariance(*(np.array(part) for part in zip(*layers)))


@strict
def covariance_of(gram: Real[np.ndarray, "N N"], most: int) -> Float[np.ndarray, "N N"]:
    """The covariance matrix of at most so many inputs in double precision; refuses what is none."""
    gram = np.asarray(gram, np.float64)
    if gram.shape[0] != gram.shape[1] or not 1 <= len(gram) <= most:
        raise ValueError(
            f"gram has the shape {gram.shape}; it must be (N, N) with N of 1 to {most}"
        )
    scale = np.sqrt(np.diag(gram)) if (np.diag(gram) > 0).all() else None
    if scale is None or abs(gram - gram.T).max() > 1e-9 * abs(gram).max():
        raise ValueError("gram must be symmetric with a positive diagonal")
    if np.linalg.eigvalsh(gram / np.outer(scale, scale))[0] < 1e-5 and len(gram) > 1:
        raise ValueError(
            "two inputs are as good as parallel (correlation within 1e-5 of 1): drop one"
        )
    return gram


def _pair_moments(
    found: Pointwise, gram: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """M_p = <s_a s_b>, Q_pq = <s_p s_q>, and derivatives J, H of M in G, by Gaussian scores."""
    z, mass = _nodes(found, gram)
    s = found.derivatives(z)[0]
    products = s[rows] * s[columns]
    inverse = np.linalg.inv(gram)
    y = inverse @ z
    weight = np.where(rows == columns, 0.5, 1.0)  # a symmetric entry moves once
    score = weight[:, None] * (y[rows] * y[columns] - inverse[rows, columns][:, None])
    M = products @ mass
    Q = (products * mass) @ products.T
    J = (products * mass) @ score.T
    H = np.empty((len(rows),) * 3)
    for q in range(len(rows)):
        for r in range(len(rows)):
            indices = rows[q], columns[q], rows[r], columns[r]
            H[:, q, r] = (
                weight[q] * weight[r] * ((products * mass) @ _hermite4(y, inverse, indices))
            )
    return M, Q, J, H


def _hermite4(y: np.ndarray, inverse: np.ndarray, indices: tuple[int, int, int, int]) -> np.ndarray:
    """Fourth Hermite tensor of a Gaussian, contravariant."""
    a, b, c, d = indices
    total = y[a] * y[b] * y[c] * y[d]
    for i, j, k, m in (
        (a, b, c, d),
        (a, c, b, d),
        (a, d, b, c),
        (b, c, a, d),
        (b, d, a, c),
        (c, d, a, b),
    ):
        total = total - inverse[i, j] * y[k] * y[m]
    for i, j, k, m in ((a, b, c, d), (a, c, b, d), (a, d, b, c)):
        total = total + inverse[i, j] * inverse[k, m]
    return total


def _nodes(found: Pointwise, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, nodes) and masses of N(0, gram): panels of z_1, and of z_2 given it, that end at the kinks."""
    first = math.sqrt(gram[0, 0])
    if len(gram) == 1:
        z, mass = quadrature.panels(first, found.breaks)
        return z[None], mass
    lean = gram[0, 1] / gram[0, 0]
    rest = math.sqrt(gram[1, 1] - lean * gram[0, 1])
    # What is left after z_2 bends where its kink crosses the middle of its law, within a width rest / lean.
    crossings = [
        (at + side * rest * far) / lean
        for at in found.breaks
        for far in (0, 0.5, 1, 2, 4, 8)
        for side in (-1, 1)
        if abs(lean) > 1e-9
    ]
    z, mass = quadrature.panels(first, (*found.breaks, *crossings), step=1.0, order=12)
    step = 1.0 if rest < 1 else 1.0 / rest
    edges = np.arange(-9.0, 9.0 + step / 2, step)
    kinks = np.clip((np.array(found.breaks)[None] - lean * z[:, None]) / rest, -9.0, 9.0)
    ends = np.sort(np.concatenate([np.broadcast_to(edges, (len(z), len(edges))), kinks], 1), axis=1)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = np.diff(ends, axis=1)[..., None] / 2
    v = (ends[:, :-1, None] + half * (nodes + 1)[None, None]).reshape(len(z), -1)
    inner = (
        (half * weights[None, None]).reshape(len(z), -1)
        * np.exp(-(v**2) / 2)
        / math.sqrt(2 * math.pi)
    )
    one = np.broadcast_to(z[:, None], v.shape)
    return np.stack([one.ravel(), (lean * one + rest * v).ravel()]), (mass[:, None] * inner).ravel()
