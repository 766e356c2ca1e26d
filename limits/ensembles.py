"""Random networks of finite width at initialisation, drawn without their weights: exact in law at any width and depth.

Given a layer's metric, its neurons are independent and Gaussian. The symbols are those of `limits.finite_width`, whose
first order in 1 / width this has not.

    z_i ~ N(0, G) for i = 1 .. n,    G' = C_b + C_W mean_i s(z_i) s(z_i)^T

Source: Roberts, Yaida & Hanin 2022, arXiv:2106.10165, chapter 4, for the conditional law; to draw from it is ours.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limits.arguments import array, count, function, key, number, takes
from limits.finite_width import covariance_of
from limits.quadrature import Activation
from ntk import show
from ntk.types import Elementwise, Float, PRNGKey, Real

_BLOCK = 1 << 21  # normal variables drawn at a time
_SCALES = {"C_W": number(positive=True), "C_b": number()}
_SIZES = {"width": count(2), "depth": count(), "networks": count()}


@takes(key=key, activation=function, gram=array(2), **_SIZES, **_SCALES)
def sample_metrics(
    key: PRNGKey,
    activation: Activation,
    width: int,
    depth: int,
    gram: Real[np.ndarray, "N N"],
    *,
    C_W: float,
    networks: int,
    C_b: float = 0.0,
) -> Float[np.ndarray, "networks L pairs"]:
    """Metrics of random networks of finite width, without their weights: exact in law at any width and depth.

    Given a layer's metric its neurons are independent, z ~ N(0, Ghat), and the next one is
    Ghat' = C_b + C_W mean_i s(z_i) s(z_i)^T.

    Args:
        key: PRNG key.
        activation: elementwise function of JAX arrays.
        width: neurons n of every hidden layer.
        depth: number of layers with weights, L.
        gram: (N, N) covariance of the first preactivations.
        C_W: variance of the weights times their fan-in.
        networks: how many are drawn.
        C_b: variance of the biases.

    Returns:
        (networks, L, N (N + 1) / 2) of Ghat, float32, pairs as in `numpy.triu_indices`. Their variance is heavy-tailed
        where depth / width exceeds 0.2: many networks, or none, hold the largest ones.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number out of range, or a gram that is not positive definite.
    """
    gram = covariance_of(gram, 64)
    block = max(1, min(networks, _BLOCK // (width * len(gram))))
    with jax.ensure_compile_time_eval():
        parts = [
            np.asarray(
                _metrics(
                    activation, width, depth, block, jnp.asarray(gram, jnp.float32), (C_W, C_b), k
                )
            )
            for k in jax.random.split(key, -(-networks // block))
        ]
    return np.concatenate(parts)[:networks]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _metrics(
    activation: Elementwise,
    width: int,
    depth: int,
    block: int,
    gram: jax.Array,
    scales: tuple,
    key: PRNGKey,
) -> jax.Array:
    count = gram.shape[0]
    rows, columns = np.triu_indices(count)

    def layer(metric: jax.Array, key: PRNGKey) -> tuple[jax.Array, jax.Array]:
        normal = jax.random.normal(key, (block, count, width))
        z = jnp.einsum("kab,kbi->kai", _root(metric), normal)
        s = activation(z)
        following = scales[1] + scales[0] * jnp.einsum("kai,kbi->kab", s, s) / width
        return following, metric[:, rows, columns]

    start = jnp.broadcast_to(gram[None], (block, count, count))
    return jax.lax.scan(layer, start, jax.random.split(key, depth))[1].transpose(1, 0, 2)


def _root(metric: jax.Array) -> jax.Array:
    """Cholesky factor; by hand for two inputs, where a batch of small factorisations is slow."""
    if metric.shape[-1] == 1:
        return jnp.sqrt(metric)
    if metric.shape[-1] > 2:
        return jnp.linalg.cholesky(metric)
    a = jnp.sqrt(metric[:, 0, 0])
    c = metric[:, 0, 1] / a
    e = jnp.sqrt(jnp.maximum(metric[:, 1, 1] - c**2, 0))
    return jnp.stack([jnp.stack([a, 0 * a], -1), jnp.stack([c, e], -1)], -2)


@show.readable
class PairMoments(NamedTuple):
    """Averages over the neurons of one network, each (networks, depth): of z_i^2, z_i^2 z_j^2 and z_i z_j^2, i != j."""

    square: Float[np.ndarray, "networks depth"]
    squares: Float[np.ndarray, "networks depth"]
    skew: Float[np.ndarray, "networks depth"]


@takes(
    key=key,
    activation=function,
    variance=number(positive=True),
    gamma=number(),
    **_SIZES,
    **_SCALES,
)
def sample_neurons(
    key: PRNGKey,
    activation: Activation,
    width: int,
    depth: int,
    *,
    C_W: float,
    variance: float,
    networks: int,
    C_b: float = 0.0,
    gamma: float = 0.0,
) -> PairMoments:
    """Moments of the preactivations of random residual networks z' = gamma z + W s(z) + b, exact in law, one input.

    Arguments as in `sample_metrics` and `vertices`. n (mean squares - (mean square)^2) estimates V, n mean skew T.
    """
    block = max(1, min(networks, _BLOCK // width))
    scales = (C_W, C_b, gamma, variance)
    with jax.ensure_compile_time_eval():
        parts = [
            np.asarray(_neurons(activation, width, depth, block, scales, k))
            for k in jax.random.split(key, -(-networks // block))
        ]
    return PairMoments(*np.concatenate(parts, axis=1)[:, :networks])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _neurons(
    activation: Elementwise, width: int, depth: int, block: int, scales: tuple, key: PRNGKey
) -> jax.Array:
    C_W, C_b, gamma, variance = scales
    pairs = width * (width - 1)

    def layer(z: jax.Array, key: PRNGKey) -> tuple[jax.Array, jax.Array]:
        one, two, three, four = ((z**k).sum(1) for k in (1, 2, 3, 4))
        moments = jnp.stack([two / width, (two**2 - four) / pairs, (one * two - three) / pairs])
        metric = C_b + C_W * (activation(z) ** 2).mean(1)
        return gamma * z + jnp.sqrt(metric)[:, None] * jax.random.normal(key, z.shape), moments

    first, *rest = jax.random.split(key, depth + 1)
    start = jnp.sqrt(variance) * jax.random.normal(first, (block, width))
    return jax.lax.scan(layer, start, jnp.stack(rest))[1].transpose(1, 2, 0)
