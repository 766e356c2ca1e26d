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


def early_learning(
    outputs: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    strength: float = 3.0,
    momentum: float = 0.7,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy plus strength times mean log(1 - <t, p>), and the next targets t.

    The targets are a running mean of the network's own probabilities p, t <- momentum t + (1 - momentum) p, with no
    gradient through them; the second term pulls p to the corner that t is next to, so that what was learnt early is
    kept, as long as a step changes less than the targets forget (1 / (1 - momentum) looks at an example): with larger
    steps wrong labels are learnt first and then kept. p is clipped to [1e-4, 1 - 1e-4], beyond which the term has no
    gradient; its value falls as far as -8.5 strength, so that the loss tells nothing of the fit.

    Args:
        outputs: (B, classes), logits.
        labels: (B,) integers.
        targets: (B, classes), the t of these examples; zeros before the first step. A batch that holds an example
            twice gives it one step of the mean.
        strength: lambda.
        momentum: beta.

    Returns:
        (scalar in nats, targets of the same shape).

    Source: Liu et al. (2020), arXiv:2007.00151, section 4.
    """
    p = jnp.clip(jax.nn.softmax(outputs), 1e-4, 1 - 1e-4)
    own = jax.lax.stop_gradient(p)
    targets = momentum * targets + (1 - momentum) * own / own.sum(axis=-1, keepdims=True)
    kept = jnp.log(1 - (targets * p).sum(axis=-1)).mean()
    return cross_entropy(outputs, labels) + strength * kept, targets


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
