"""A dense layer as random features: f(w . x + b) as a product of features of inputs and features of weights.

For one frequency, f(u) = Re tau e^(i s u), with a = i s and g ~ N(0, I)::

    phi(x) = e^(sqrt(a) g . x - a |x|^2 / 2)        E phi(x) phi(w) = e^(i s x . w)
    E |phi(x) phi(w) - e^(i s x . w)|^2 = e^(s |x + w|^2) - 1

so that the mean over m draws of g is unbiased at any m, and its error grows with norms as e^(s |x + w|^2 / 2): keep
them below .7 or so, or take very many features. A layer before a linear map, W2 f(W1 x), is then W' phi(x) with
W' = W2 psi(W1), of a size that does not depend on the layer's width: layers can be bundled.

Source: Sehanobish et al. 2024, arXiv:2310.13225 (universal random features); the variance is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk.options import check_count, check_real
from ntk.types import PRNGKey

SINE: Mapping[float, complex] = {1.0: -1j}
COSINE: Mapping[float, complex] = {1.0: 1.0}


class LayerFeatures(NamedTuple):
    """Real features of one draw: f(w . x + b) is about phi(x) . psi(w, b).

    Attributes:
        phi: inputs (..., d) -> (..., k), k = 2 x features x frequencies.
        psi: weights (..., d) and biases (...) or None -> (..., k).
        variance: inputs (n, d), weights (h, d), biases (h,) or None -> (n, h), exact variance of phi(x) . psi(w, b)
            over draws.
    """

    phi: Callable[[jax.Array], jax.Array]
    psi: Callable[..., jax.Array]
    variance: Callable[..., jax.Array]


def layer_features(
    key: PRNGKey, inputs: int, features: int, *, atoms: Mapping[float, complex] = SINE
) -> LayerFeatures:
    """Draws features for a layer of the activation f(u) = Re sum over atoms of tau e^(i s u).

    Args:
        key: PRNG key of the draw.
        inputs: d.
        features: m, complex ones of each frequency.
        atoms: {frequency s > 0: coefficient tau}; sin u by default.

    Returns:
        LayerFeatures.

    Raises:
        TypeError: counts that are no integers, or frequencies that are no numbers.
        ValueError: counts or frequencies that are not positive, or no frequency.
    """
    d, m = check_count("inputs", inputs), check_count("features", features)
    if not atoms:
        raise ValueError(
            "atoms is empty; give {frequency: coefficient}, such as {1.0: -1j} for sin"
        )
    frequencies = [check_real("a frequency of atoms", s, positive=True) for s in atoms]
    g = jax.random.normal(key, (len(frequencies), m, d))

    def one(number: int, x: jax.Array) -> jax.Array:
        """Complex features (..., m) of one frequency, without their coefficient."""
        s = frequencies[number]
        angle = 1j * s * jnp.sum(x**2, -1, keepdims=True) / 2
        root = math.sqrt(s / 2) * (1 + 1j)  # sqrt(i s)
        return jnp.exp(root * (x @ g[number].T) - angle) / math.sqrt(m)

    def phi(x: jax.Array) -> jax.Array:
        parts = [one(number, jnp.asarray(x)) for number in range(len(frequencies))]
        return jnp.concatenate([part for p in parts for part in (p.real, p.imag)], -1)

    def psi(w: jax.Array, b: jax.Array | None = None) -> jax.Array:
        w, parts = jnp.asarray(w), []
        for number, (s, tau) in enumerate(atoms.items()):
            shift = 1.0 if b is None else jnp.exp(1j * s * jnp.asarray(b))[..., None]
            p = complex(tau) * shift * one(number, w)
            # Re (phi psi) = Re phi Re psi - Im phi Im psi: real features side by side.
            parts += [p.real, -p.imag]
        return jnp.concatenate(parts, -1)

    def variance(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
        x, w = jnp.asarray(x), jnp.asarray(w)
        inner = x @ w.T
        norms = jnp.sum(x**2, -1, keepdims=True) + jnp.sum(w**2, -1)[None]
        shift = jnp.zeros((1, len(w))) if b is None else jnp.asarray(b)[None]
        # Z = tau e^(i s b) phi(x) phi(w): E |Z|^2 = |tau|^2 e^(s |x + w|^2), and with a = i s, E g g^T = 1,
        # E Z^2 = tau^2 e^(2 i s b) e^(2 a |x + w|^2 - a (|x|^2 + |w|^2)).
        total = jnp.zeros_like(inner)
        for s, tau in atoms.items():
            # Re Z has the variance (E |Z|^2 + Re E Z^2) / 2 - (Re E Z)^2.
            size = abs(tau) ** 2 * jnp.exp(s * (norms + 2 * inner))
            square = complex(tau) ** 2 * jnp.exp(1j * s * (2 * shift + norms + 4 * inner))
            mean = complex(tau) * jnp.exp(1j * s * (inner + shift))
            total += ((size + square.real) / 2 - mean.real**2) / m
        return total

    return LayerFeatures(phi, psi, variance)
