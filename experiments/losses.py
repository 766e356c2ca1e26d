"""Losses of supervised tasks as functions of (params, batch); batch is a (inputs, targets) pair."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy in nats; outputs (..., classes), integer labels (...)."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Half the squared error, summed over outputs and averaged over examples; integer labels become one-hot."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    return 0.5 * jnp.square(outputs - targets).sum(axis=-1).mean()


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of examples whose largest output is the label."""
    return (outputs.argmax(axis=-1) == labels).mean()


LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}


def supervised(name: str, apply: Callable) -> Callable:
    """The loss ``(params, (inputs, targets)) -> scalar`` of a model.

    Raises:
        ValueError: name is not a loss.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; there are: {', '.join(LOSSES)}")
    return lambda params, batch: LOSSES[name](apply(params, batch[0]), batch[1])
