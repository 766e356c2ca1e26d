"""What a contrastive loss pulls and pushes: its temperature as a weight of hard negatives.

For anchor i, its positive i and negatives j, with similarities s_ij and temperature T,

    L_i = -log( exp(s_ii / T) / sum_j exp(s_ij / T) )
    dL_i/ds_ij = P_ij / T,    dL_i/ds_ii = -(1 - P_ii) / T,    P the softmax of s_i / T

so that negative j takes the share r_ij = exp(s_ij / T) / sum_{k != i} exp(s_ik / T) of the push: a Boltzmann
distribution whose entropy grows with T. Among n independent normal similarities of standard deviation a it is that
of the random energy model,

    H = log n - a^2 / (2 T^2) for T > T_c,    H / log n -> 0 below,    T_c = a / sqrt(2 log n)

below T_c a few hardest negatives take all.

Source: Wang & Liu 2021 (arXiv:2012.09740), equations 3 to 6; the entropy: Derrida 1981, for negatives here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metrics import checks
from metrics.estimate import power_of_two
from ntk import show
from ntk.types import Float, Real, Scalar


@show.readable
class Hardness(NamedTuple):
    """How a temperature weighs the negatives of N anchors.

    Attributes:
        weights: (N, N), share of each negative in the push on its anchor; rows add up to 1, 0 for the positive.
        entropy: (N,), of each row in nats; exp(entropy) negatives count.
        normal: entropy of normal similarities with the standard deviation that these have, the mean over anchors.
        freezing: T_c of the same, the mean over anchors: at lower temperatures a few hardest negatives take all.
    """

    weights: Float[jax.Array, "N N"]
    entropy: Float[jax.Array, "N"]
    normal: Float[jax.Array, ""]
    freezing: Float[jax.Array, ""]


def hardness(similarities: Real[jax.Array, "N N"], temperature: Scalar) -> Hardness:
    """Shares of negatives in the gradient of a contrastive loss, their entropy, and what chance alone would make it.

    Args:
        similarities: (N, N), of anchors (rows) and candidates, the positives on the diagonal; N >= 3.
        temperature: T, in units of the similarities, one number: vmap over several.

    Raises:
        TypeError: similarities or temperature are no numbers.
        ValueError: similarities are not square or fewer than three, or the temperature is not one
            positive number.

    Source: Wang & Liu 2021, equations 5 and 6.
    """
    s = checks.real("similarities", similarities, "N", "N")
    temperature = checks.positive("temperature", temperature)
    if temperature.ndim:
        raise ValueError(
            f"temperature has shape {temperature.shape}; it must be one number: use jax.vmap over several"
        )
    count = len(s) - 1
    if count < 2:
        raise ValueError(f"similarities has shape {s.shape}; give an anchor two negatives at least")
    negative = ~jnp.eye(len(s), dtype=bool)
    logits = jnp.where(negative, s / temperature, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=1)
    entropy = -jnp.sum(weights * jnp.where(negative, jax.nn.log_softmax(logits, axis=1), 0), axis=1)
    unit = power_of_two(s)
    spread = jnp.std(s / unit, axis=1, where=negative) * unit[0]
    normal = jnp.mean(normal_entropy(count, spread, temperature))
    return Hardness(weights, entropy, normal, jnp.mean(spread) / jnp.sqrt(2 * jnp.log(count)))


def normal_entropy(
    count: int, spread: Real[jax.Array, "*shape"], temperature: Scalar
) -> Float[jax.Array, "*shape"]:
    """Entropy in nats of the weights of n normal negatives: log n - a^2 / (2 T^2), 0 below the freezing temperature.

    Exact as log n grows at fixed T / T_c; finite n rounds the corner at T_c.

    Args:
        count: n, negatives.
        spread: a, standard deviation of the similarities, any shape.
        temperature: T.

    Raises:
        TypeError: count is no integer, spread or temperature no number.
        ValueError: count is below 2, or spread or temperature are not positive.
    """
    checks.integer("count", count, 2)
    spread = checks.within("spread", spread, lambda a: a >= 0, "at least 0")
    temperature = checks.positive("temperature", temperature)
    return jnp.maximum(jnp.log(count) - (spread / temperature) ** 2 / 2, 0)
