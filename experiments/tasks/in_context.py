"""Prompts for in-context learning: examples of one random function, and a query."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def regression(
    key: jax.Array,
    batch: int,
    num_examples: int,
    covariance: jax.Array,
    *,
    weight_covariance: jax.Array,
    noise: jax.Array | float = 0.0,
    response: Callable = lambda z: z,
) -> tuple[jax.Array, jax.Array]:
    """Prompts y = f(w . x) + noise with x ~ N(0, Lam) and, new for each prompt, w ~ N(0, S).

    Args:
        key: PRNG key.
        batch: number of prompts B.
        num_examples: n.
        covariance: Lam, (d, d), positive definite.
        weight_covariance: S, (d, d), positive definite.
        noise: variance added to the examples' responses.
        response: f, elementwise.

    Returns:
        (tokens (B, n + 1, d + 1), the (x_i, y_i) and last (query, 0); targets (B,), the query's responses, no noise).
    """
    inputs, weights, noises = jax.random.split(key, 3)
    d = len(covariance)
    x = jax.random.normal(inputs, (batch, num_examples + 1, d)) @ jnp.linalg.cholesky(covariance).T
    w = jax.random.normal(weights, (batch, d)) @ jnp.linalg.cholesky(weight_covariance).T
    z = response(jnp.einsum("bni,bi->bn", x, w))
    y = z.at[:, :-1].add(noise**0.5 * jax.random.normal(noises, (batch, num_examples)))
    return jnp.concatenate([x, y.at[:, -1].set(0)[..., None]], axis=-1), z[:, -1]
