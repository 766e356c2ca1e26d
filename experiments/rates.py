"""Learning rates in units that follow the data: the rate at which a first step leads nowhere.

Along its first update u the loss changes by eta g.u + eta^2 u.H.u / 2, which is nothing again at the `edge`
eta = 2 |g.u| / u.H.u. Gradient descent has it at 2 over the sharpness, its worst direction (Cohen et al. 2021,
arXiv:2103.00065); Adam, whose first update is -sign(g), at 2 |g|_1 / s.H.s with s = sign(g). Larger inputs or more of
them make the curvature larger and the edge smaller, and a rate in units of it fits one data set as it fits another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metrics


def edge(optimizer: str, loss: Callable, params: Any, batch: Any) -> jax.Array:
    """The rate of an optimizer beyond which its first step raises the loss, to second order.

    Args:
        optimizer: "sgd", for which it is 2 over the sharpness, or "adam".
        loss: ``loss(params, batch)``, a scalar.
        params: pytree of arrays.
        batch: what the gradient is taken on.

    Returns:
        Scalar. Where the loss is curved downwards along Adam's update, the size of the curvature counts.
    """
    if optimizer == "sgd":
        start = jax.random.key(1)
        curvature, slope = metrics.sharpness(loss, params, batch, start=start).value[0], 1.0
    else:
        gradient = jax.grad(loss)
        g = gradient(params, batch)
        sign = jax.tree.map(jnp.sign, g)
        _, bent = jax.jvp(lambda p: gradient(p, batch), (params,), (sign,))
        slope, curvature = (_dot(sign, other) for other in (g, bent))
    return 2 * slope / jnp.abs(curvature)


def octave(optimizer: str, loss: Callable, params: Sequence[Any], batch: Any) -> float:
    """The edge rounded to a power of two, its mean in log2 over several initial networks.

    Rounded, so that a sum in another order, or one network more, moves no rate.

    Raises:
        ValueError: a gradient or a curvature is zero or not finite.
    """
    at = jax.jit(functools.partial(edge, optimizer, loss))
    found = np.array([float(at(each, batch)) for each in params])
    if not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(
            f"the learning rates of {optimizer} have no unit: edges at initialisation are {found}, from a gradient or"
            " a curvature that is zero or not finite; take other data, or another loss"
        )
    return 2.0 ** float(np.round(np.log2(found).mean()))


def _dot(a: Any, b: Any) -> jax.Array:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))
