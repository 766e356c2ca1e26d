"""Losses of supervised tasks as functions of (params, batch); batch is a (inputs, targets) pair."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metrics import checks
from metrics.estimate import concrete
from ntk.types import Data, Scalar


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy in nats; outputs (..., classes), integer labels (...)."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Half the squared error, summed over outputs and averaged over examples; integer labels become one-hot."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    return 0.5 * jnp.square(outputs - targets).sum(axis=-1).mean()


def early_learning(
    outputs: Data,
    labels: Data,
    targets: Data,
    strength: Scalar = 3.0,
    momentum: Scalar = 0.7,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy plus strength times mean log(1 - <t, p>), and the next targets t.

    The targets are a running mean of the network's own probabilities p, t <- momentum t + (1 - momentum) p, with no
    gradient through them; the second term pulls p to the corner that t is next to, so that what was learnt early is
    kept, as long as a step changes less than the targets forget (1 / (1 - momentum) looks at an example): with larger
    steps wrong labels are learnt first and then kept. p is clipped to [1e-4, 1 - 1e-4], beyond which the term has no
    gradient; its value falls as far as -8.5 strength, so that the loss tells nothing of the fit.
    Computed in single precision at least: in half precision 1 - 1e-4 is 1.

    Args:
        outputs: (B, classes), logits.
        labels: (B,) integers 0..classes-1.
        targets: (B, classes), the t of these examples; zeros before the first step, at most 1 in sum. A batch
            that holds an example twice gives it one step of the mean.
        strength: lambda, at least 0.
        momentum: beta, at least 0 and below 1.

    Returns:
        (scalar in nats, targets of the same shape and floating type).

    Raises:
        TypeError: an argument holds no numbers.
        ValueError: shapes that do not fit; (outside of a trace) labels, targets, strength or momentum out of range.

    Source: Liu et al. (2020), arXiv:2007.00151, section 4.
    """
    kind = checks.dtype_of("targets", targets)
    outputs = checks.real("outputs", outputs, "B", "classes")
    labels = checks.labels("labels", labels, *outputs.shape)
    t = checks.real("targets", targets, *outputs.shape)
    values = concrete(targets)
    # Half precision rounds a sum of 1 by up to a hundredth.
    if values is not None and not (
        (values >= 0).all() and (values <= 1).all() and (values.sum(-1) <= 1.01).all()
    ):
        raise ValueError(
            f"targets run from {values.min():g} to {values.max():g}, rows up to {values.sum(-1).max():g} in sum; they "
            "must be between 0 and 1, and each row at most 1 in sum: start from zeros"
        )
    strength = checks.within(
        "strength", strength, lambda x: (x >= 0) & (x < jnp.inf), "at least 0 and finite"
    )
    momentum = checks.within(
        "momentum", momentum, lambda x: (x >= 0) & (x < 1), "at least 0 and below 1"
    )
    p = jnp.clip(jax.nn.softmax(outputs), 1e-4, 1 - 1e-4)
    own = jax.lax.stop_gradient(p)
    t = momentum * t + (1 - momentum) * own / own.sum(axis=-1, keepdims=True)
    kept = jnp.log(1 - (t * p).sum(axis=-1)).mean()
    kind = kind if jnp.issubdtype(kind, jnp.floating) else t.dtype
    return cross_entropy(outputs, labels) + strength * kept, t.astype(kind)


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
