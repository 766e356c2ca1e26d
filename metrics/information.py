"""Mutual information of features with the inputs and with the labels, for one of N inputs drawn at random.

A network without noise is a function of its input: of continuous features T, I(X;T) is log N or infinite, and what one
measures is a property of the resolution. Two resolutions are exact laws, not estimates of anything else::

    binned   T in cells: I(X;T) = H(cell), a number of the cells as much as of the network; give the edges with it
    noisy    T' = T + sigma n, a mixture of N Gaussians:
             I(X;T') = E[-log 1/N sum_j exp(-(|t - h_j|^2 - |t - h_i|^2) / 2 sigma^2)] over t = h_i + sigma n

Data processing, I(X;T) falling from layer to layer, holds for neither unless the network itself
has the noise. Everything is in bits.

Source: Shwartz-Ziv & Tishby 2017, arXiv:1703.00810 (cells); Saxe et al. 2018 (that the cells decide); Kolchinsky &
Tracey 2017, arXiv:1706.02419 (bounds of mixtures); Tishby, Pereira & Bialek 1999 (bottleneck).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from metrics import checks
from metrics.estimate import Estimate, concrete, mean_estimate
from ntk import show
from ntk.types import Array, Data, Float, PRNGKey, Real, Scalar


@show.readable
class Information(NamedTuple):
    """What features say of the input and of its label.

    Attributes:
        input_bits: I(X;T), at most log2 N.
        label_bits: I(T;Y); None without label probabilities.
    """

    input_bits: Estimate | float
    label_bits: Estimate | float | None


@show.readable
class Bounds(NamedTuple):
    """I(X;T') of noisy features lies between these, in bits."""

    lower: Float[jax.Array, ""]
    upper: Float[jax.Array, ""]


@show.readable
class Curve(NamedTuple):
    """The bottleneck curve.

    Attributes:
        betas: (m,), the weights of I(T;Y).
        input_bits: (m,), I(X;T).
        label_bits: (m,), I(T;Y), the largest at that I(X;T).
    """

    betas: Float[np.ndarray, "m"]
    input_bits: Float[np.ndarray, "m"]
    label_bits: Float[np.ndarray, "m"]


def binned_information(
    features: Real[Data, "N ..."],
    edges: Real[Data, "m"],
    *,
    label_probabilities: Real[Data, "N K"] | None = None,
) -> Information:
    """Information of features in cells: the entropy of the cell, and what the cell says of the label.

    Exact for these cells. Other cells give other numbers, and cells that follow the features through training give
    changes that are the cells' own: keep the edges.

    Args:
        features: (N, ...), flattened to (N, d).
        edges: (m,), ascending, of every coordinate; what lies beyond the ends is in cells of its own.
        label_probabilities: (N, K), p(y | x), rows adding up to 1.

    Returns:
        Information of two numbers.

    Raises:
        TypeError: an argument holds no numbers, or is traced.
        ValueError: a wrong shape, entries that are not finite, edges that do not ascend, or no probabilities.
    """
    h = checks.finite("features", checks.doubles("features", features))
    checks.check_shape("features", h.shape, ("N", "d", "..."))
    edges = checks.finite("edges", checks.doubles("edges", edges))
    if edges.ndim != 1 or not edges.size or (np.diff(edges) <= 0).any():
        raise ValueError(f"edges is {edges}; it must be a list of ascending numbers")
    cells = np.digitize(h.reshape(len(h), -1), edges).astype(np.min_scalar_type(len(edges)))
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    share = count / len(h)
    bits = float(special.entr(share).sum() / math.log(2))
    if label_probabilities is None:
        return Information(bits, None)
    y = np.asarray(_labels(label_probabilities, len(h)), np.float64)
    inside = np.zeros((len(count), y.shape[1]))
    np.add.at(inside, cell.ravel(), y)
    left = special.entr(inside / count[:, None]).sum(1) @ share
    return Information(bits, float((special.entr(y.mean(0)).sum() - left) / math.log(2)))


def noisy_information(
    features: Real[Data, "N ..."],
    sigma: Scalar,
    key: PRNGKey,
    *,
    label_probabilities: Real[Data, "N K"] | None = None,
    draws: int = 500,
) -> Information:
    """Information of features with Gaussian noise added, by drawing from their exact mixture.

    Runs under jit and vmap, so in the probe of a training loop. Time: draws x N x d; no N x N matrix is kept.

    Args:
        features: (N, ...), flattened to (N, d); for instance one layer of a model's ``features=True``.
        sigma: standard deviation of the noise, in units of the features. Information grows as it falls.
        key: PRNG key.
        label_probabilities: (N, K), p(y | x), rows adding up to 1; averaged over the inputs that may have given t.
        draws: samples of (input, noise).

    Returns:
        Information of two Estimates, without bias; the errors are standard errors over the draws.

    Raises:
        TypeError: an argument of another type.
        ValueError: a wrong shape, sigma not positive, fewer than 2 draws, or no probabilities.
    """
    h = _rows(features)
    checks.integer("draws", draws, 2)
    sigma, key = checks.scalar("sigma", checks.positive("sigma", sigma)), checks.key(key)
    y = None if label_probabilities is None else _labels(label_probabilities, len(h))
    return _noisy(h, sigma, key, y, draws)


@functools.partial(jax.jit, static_argnames="draws")
def _noisy(h: Array, sigma: Array, key: PRNGKey, y: Array | None, draws: int) -> Information:
    inputs, noise = jax.random.split(key)
    start = h[jax.random.randint(inputs, (draws,), 0, len(h))]
    step = jax.random.normal(noise, start.shape, h.dtype)

    def one(drawn: tuple[Array, Array]) -> Array:
        own, n = drawn
        # |t - h_j|^2 - |t - h_i|^2 from z = (h_i - h_j) / sigma: the two squares are near each other and would cancel.
        z = _apart(own, h, sigma)
        weights = -(z * (z / 2 + n[None])).sum(-1)
        bits = [math.log(len(h)) - jax.nn.logsumexp(weights)]
        if y is not None:  # H(Y | t), exactly: nothing is drawn but t
            bits.append(jax.scipy.special.entr(jax.nn.softmax(weights) @ y).sum())
        return jnp.stack(bits) / math.log(2)

    bits = mean_estimate(jax.lax.map(one, (start, step)))
    of_input = Estimate(bits.value[0], bits.error[0])
    if y is None:
        return Information(of_input, None)
    whole = jax.scipy.special.entr(y.mean(0)).sum() / math.log(2)
    return Information(of_input, Estimate(whole - bits.value[1], bits.error[1]))


def information_bounds(features: Real[Data, "N ..."], sigma: Scalar) -> Bounds:
    """Bounds of `noisy_information` from all pairs of inputs, nothing drawn.

        -E_i log E_j exp(-|h_i - h_j|^2 / 8 sigma^2)  <=  I(X;T')  <=  -E_i log E_j exp(-|h_i - h_j|^2 / 2 sigma^2)

    Both are exact where inputs lie in clusters without width far apart; else they are .1 to 1 bits from one another.
    Differentiable, and runs under jit and vmap. Time N^2 d.

    Args:
        features: (N, ...), flattened to (N, d).
        sigma: standard deviation of the noise.

    Raises:
        TypeError: features hold no numbers.
        ValueError: a wrong shape, or sigma not positive.

    Source: Kolchinsky & Tracey 2017, the Bhattacharyya and the Kullback-Leibler distance.
    """
    return _bounds(_rows(features), checks.scalar("sigma", checks.positive("sigma", sigma)))


@jax.jit
def _bounds(h: Array, sigma: Array) -> Bounds:
    def row(x: Array) -> Array:
        # One of the terms is exp(0): no sum underflows.
        near = jnp.exp(-jnp.square(_apart(x, h, sigma)).sum(-1) / 8)
        return jnp.log(jnp.stack([near.sum(), (near**4).sum()]))

    means = jax.lax.map(row, h).mean(0)
    return Bounds(*(math.log(len(h)) - means) / math.log(2))


def _apart(x: Array, h: Array, sigma: Array) -> Array:
    """(x - h_j) / sigma, (N, d), cut where its square would overflow: exp is 0 there long since."""
    return jnp.clip((x[None] - h) / sigma, -1e15, 1e15)


def bottleneck_curve(
    joint: Real[Data, "N K"],
    betas: Real[Data, "m"],
    *,
    max_steps: int = 5000,
    tolerance: float = 1e-10,
) -> Curve:
    """The largest I(T;Y) at each I(X;T) over all codes of the input, by Blahut-Arimoto from fine codes to coarse ones.

    Minimises I(X;T) - beta I(T;Y). Inputs with one p(y|x) are one input, so N may be large where few of them differ.
    Where labels are almost a function of the input the curve is almost min(I(X;T), I(X;Y)): lying on it then says that
    a layer keeps the label, nothing more (Kolchinsky et al. 2019). Each point is a code of one fixed-point iteration,
    thus a lower bound of the curve.

    Args:
        joint: (N, K), p(x, y), adding up to 1.
        betas: (m,), positive; at 1 and below all is forgotten. The curve is made from the largest on.
        max_steps: of each beta.
        tolerance: on the change of the code's probabilities in one step, positive.

    Raises:
        TypeError: an argument of another type, or traced.
        ValueError: a wrong shape, no probabilities, betas or a tolerance that are not positive, max_steps out of
            range.
    """
    joint = checks.doubles("joint", joint)
    checks.check_shape("joint", joint.shape, ("N", "K"))
    if not ((joint >= 0).all() and abs(joint.sum() - 1) < 1e-6):
        raise ValueError(f"joint adds up to {joint.sum():g}; it must be probabilities of sum 1")
    betas = checks.doubles("betas", checks.positive("betas", betas))
    checks.check_shape("betas", betas.shape, ("m",))
    checks.integer("max_steps", max_steps, 1)
    checks.positive("tolerance", tolerance)
    joint = joint[joint.sum(1) > 0]
    y, place = np.unique(
        (joint / joint.sum(1, keepdims=True)).round(12), axis=0, return_inverse=True
    )
    x = np.bincount(place.ravel(), joint.sum(1))
    code, made = np.eye(len(x)), np.empty((2, len(betas)))
    for number in np.argsort(-betas):
        for _ in range(max_steps):
            size = x @ code
            code, size = code[:, size > 1e-200], size[size > 1e-200]
            centre = (code * x[:, None]).T @ y / size[:, None]
            apart = special.rel_entr(y[:, None], centre[None]).sum(-1)
            new = special.softmax(np.log(size) - betas[number] * apart, axis=1)
            moved = np.abs(new - code).max()
            code = new
            if moved < tolerance:
                break
        size = x @ code
        centre = (code * x[:, None]).T @ y / np.maximum(size, 1e-300)[:, None]
        made[:, number] = (
            x @ special.rel_entr(code, size).sum(1),
            size @ special.rel_entr(centre, x @ y).sum(1),
        )
    return Curve(betas, *made / math.log(2))


def _rows(features: Data) -> Array:
    h = checks.finite("features", checks.real("features", features, "N", "d", "..."))
    return h.reshape(len(h), -1)


def _labels(given: Data, count: int) -> Array:
    y = checks.real("label_probabilities", given, count, "K")
    values = concrete(given)
    if values is not None and not (
        (values >= 0).all() and np.allclose(values.sum(1), 1, atol=1e-5, rtol=0)
    ):
        raise ValueError("label_probabilities must not be negative, and each row must add up to 1")
    return y
