"""Layers that act on Gram matrices: the kernel of each, on whole matrices and across points, and what is refused.

Within the points i that are kept, K_ii = scale E[f(u) f(v)], (u, v) ~ N(0, G_ii); the others t are carried along::

    G_ti = A G_ii,    diag G_tt = diag(K_tt - A K_it + A G_ii A^T),    A = K_ti K_ii^-1

Source: Yang, Robeyns, Milsom, Anson, Schoots & Aitchison (2023), arXiv:2108.13097.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from limits.arguments import array, number
from ntk.activations.closed_forms import Dual
from ntk.types import Array, Rows, Scalar

Kernel: TypeAlias = Dual | Literal["linear"]


class Layer(NamedTuple):
    """A layer: its kernel K = scale E[f(u) f(v)] of the Gram matrix below, and how wide it is.

    Attributes:
        kernel: "linear" (K = scale G), or a Dual: of `ntk.activations.closed_forms` or, for any activation,
            `ntk.hermite.dual`. Programs are compiled for it: reuse the object.
        nu: width relative to the repetitions of the targets; inf fixes the Gram matrix at K.
        scale: for ReLU 2 keeps variances.
    """

    kernel: Kernel
    nu: float = math.inf
    scale: float = 1.0


def kernel_diagonal(kernel: Kernel, scale: Scalar, g: Array) -> Array:
    """K of points with themselves, from their variances g (T,)."""
    return scale * (g if kernel == "linear" else kernel.norm(g))


def kernel_cross(kernel: Kernel, scale: Scalar, g1: Array, g2: Array, gram: Array) -> Array:
    """K of points with variances g1 (T,) and g2 (M,) and covariance gram (T, M)."""
    if kernel == "linear":
        return scale * gram
    rho = gram / (jnp.sqrt(g1)[:, None] * jnp.sqrt(g2)[None])
    return scale * kernel.moments(g1[:, None], g2[None], jnp.clip(rho, -1, 1))[0]


def kernel_gram(kernel: Kernel, scale: Scalar, gram: Array) -> Array:
    """K of a whole Gram matrix: correlations on the diagonal are 1 in spite of rounding."""
    if kernel == "linear":
        return scale * gram
    g = jnp.diagonal(gram)
    same = jnp.eye(len(g), dtype=bool)
    across = kernel_cross(kernel, scale, g, g, gram)
    return jnp.where(same, jnp.diag(kernel_diagonal(kernel, scale, g)), (across + across.T) / 2)


def carried(
    kernel: Kernel, scale: Scalar, below: Array, gram: Array, cross: Array, outer: Array
) -> tuple[Array, Array]:
    """G_ti and diag G_tt of a layer, from those of the layer below and the Gram matrices of both at i."""
    inner = kernel_gram(kernel, scale, below)
    across = kernel_cross(kernel, scale, outer, jnp.diagonal(below), cross)
    shares = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(inner), True), across.T).T
    rest = kernel_diagonal(kernel, scale, outer) - jnp.sum(shares * across, 1)
    moved = shares @ gram
    return moved, rest + jnp.sum(moved * shares, 1)


# What is refused


def check_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Hidden layers and an output without a width of its own."""
    if isinstance(layers, Layer) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(f"layers is {layers!r}; it must be a list of Layer, the output last")
    for l, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{l}] is {layer!r}; it must be a Layer")
        if not (isinstance(layer.kernel, Dual) or layer.kernel == "linear"):
            raise TypeError(
                f"layers[{l}].kernel is {layer.kernel!r}; it must be 'linear' or a Dual: ntk.hermite.dual(activation)"
            )
        if layer.nu != math.inf:
            number(positive=True)(f"layers[{l}].nu", layer.nu)
        number(positive=True)(f"layers[{l}].scale", layer.scale)
    if layers[-1].nu != math.inf:
        raise ValueError(
            f"layers[{len(layers) - 1}].nu is {layers[-1].nu}; the output's must be inf: add an output layer"
        )
    return tuple(layers)


def check_gram(name: str, given: ArrayLike) -> np.ndarray:
    """A symmetric matrix without negative eigenvalues, up to the rounding of single precision."""
    gram = np.asarray(given, float)
    if gram.shape[0] != gram.shape[1] or not gram.size:
        raise ValueError(f"{name} has the shape {gram.shape}; it must be square, (P, P)")
    largest = np.abs(gram).max()
    if np.abs(gram - gram.T).max() > 1e-6 * largest:
        raise ValueError(f"{name} is not symmetric; take (G + G.T) / 2")
    gram = (gram + gram.T) / 2
    if (low := np.linalg.eigvalsh(gram)[0]) < -1e-6 * largest:
        raise ValueError(
            f"{name} has the eigenvalue {low:.3g}; it must be positive semi-definite, as X @ X.T is"
        )
    return gram


def check_definite(name: str, gram: np.ndarray) -> np.ndarray:
    """A matrix whose eigenvalues are positive."""
    values = np.linalg.eigvalsh(gram)
    if values[0] <= 1e-12 * values[-1]:
        raise ValueError(
            f"{name} is singular (eigenvalues {values[0]:.3g} to {values[-1]:.3g}); it must be positive definite: with "
            "fewer outputs or dimensions than points the objective has no maximum"
        )
    return gram


def check_ids(inducing: Rows, points: int) -> np.ndarray:
    """Distinct ids of some of the points."""
    array(1, integers=True)("inducing", inducing)
    ids = np.asarray(inducing)
    if not ids.size or ids.min() < 0 or ids.max() >= points:
        raise ValueError(f"inducing is {inducing}; it must hold ids from 0 to {points - 1}")
    found, times = np.unique(ids, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"inducing has {found[times > 1].tolist()} more than once; take each point once"
        )
    return ids
