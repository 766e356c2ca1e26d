"""Taylor models of a network in its parameters: the first order is what the NTK describes.

    f_lin(p) = f(p_0) + df/dp (p - p_0),    f_taylor(p) = sum_k d^k/ds^k f(p_0 + s (p - p_0)) / k!  at s = 0

Source: Lee et al. 2019 (arXiv 1902.06720), equation 3; Bai & Lee 2020 (arXiv 1910.01619), equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ntk.jaxprs import equations
from ntk.model import check_call
from ntk.types import Out, PyTree


def linearize(
    f: Callable[..., Out], params: PyTree, *, call: Mapping[str, Any] | None = None
) -> Callable[..., Out]:
    """First-order Taylor expansion of ``f(params, ...)`` in its parameters.

    Args:
        f: ``f(params, *args, **kwargs)`` returning a pytree of arrays.
        params: pytree about which f is expanded.
        call: static keywords of every call of f, ``dict(train=False)``.

    Returns:
        ``f_lin(new_params, *args, **kwargs)``; one forward pass and one Jacobian-vector product.

    Source: Lee et al. 2019 (arXiv 1902.06720), equation 3.
    """
    return taylor_expand(f, params, 1, call=call)


def taylor_expand(
    f: Callable[..., Out], params: PyTree, degree: int, *, call: Mapping[str, Any] | None = None
) -> Callable[..., Out]:
    """Taylor expansion of ``f(params, ...)`` in its parameters, along the line to new parameters.

    Nested Jacobian-vector products: one pass that costs up to 2^degree forward passes. (Taylor-mode
    differentiation would cost degree^2, but ``jax.experimental.jet`` has no rule for relu.)

    Args:
        f: ``f(params, *args, **kwargs)`` returning a pytree of arrays.
        params: pytree about which f is expanded.
        degree: order of the polynomial, 0 for the constant.
        call: static keywords of every call of f, ``dict(train=False)``.

    Returns:
        ``f_taylor(new_params, *args, **kwargs)``. Exact up to O(|new_params - params|^(degree + 1));
        a kink of f (relu) on the way ends its validity.

    Raises:
        ValueError: degree is negative or not an integer; new parameters have another structure.

    Source: Bai & Lee 2020 (arXiv 1910.01619), equation 2.
    """
    if not callable(f):
        raise TypeError(f"f is of type {type(f).__name__}; it must be a function f(params, ...)")
    if not isinstance(degree, int) or isinstance(degree, bool) or degree < 0:
        raise ValueError(f"degree is {degree!r}; it must be an integer, 0 or more")
    check_call(call)
    keywords = dict(call or {})

    def f_taylor(new_params: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        old, new = jax.tree.structure(params), jax.tree.structure(new_params)
        if old != new:
            raise ValueError(f"new parameters have structure {new}; f is expanded about {old}")
        for one, other in zip(jax.tree.leaves(new_params), jax.tree.leaves(params)):
            if jnp.shape(one) != jnp.shape(other):
                raise ValueError(
                    f"new parameters have shape {jnp.shape(one)} where f is expanded about {jnp.shape(other)}"
                )
        step = jax.tree.map(jnp.subtract, new_params, params)

        def along(s: jax.Array) -> PyTree:
            moved = jax.tree.map(lambda p, d: p + s.astype(p.dtype) * d, params, step)
            return f(moved, *args, **{**keywords, **kwargs})

        terms = _derivatives(along, degree)(jnp.zeros(()))
        scaled = [
            jax.tree.map(lambda d, k=k: d / math.factorial(k), d) for k, d in enumerate(terms)
        ]
        return jax.tree.map(lambda *d: sum(d[1:], d[0]), *scaled)

    return f_taylor


def pushforward(
    f: Callable[[PyTree], PyTree], params: PyTree, tangent: PyTree
) -> tuple[PyTree, PyTree]:
    """Outputs and their derivative J v along a tangent, also where f has rules for reverse mode only.

    A ``jax.custom_vjp`` has no forward mode. There J v is the derivative by u of v^T J^T u, which is linear in u:
    two reverse passes.

    Args:
        f: ``f(params)`` returning a pytree of real arrays.
        params: pytree.
        tangent: shaped as params.

    Returns:
        ``f(params)``, and J v shaped as it.
    """
    names = {e.primitive.name for e in equations(jax.make_jaxpr(f)(params).jaxpr)}
    if not any(name.startswith("custom_vjp") for name in names):
        return jax.jvp(f, (params,), (tangent,))
    outputs, pullback = jax.vjp(f, params)
    zeros = jax.tree.map(jnp.zeros_like, outputs)
    return outputs, jax.vjp(lambda u: pullback(u)[0], zeros)[1](tangent)[0]


def _derivatives(curve: Callable[[jax.Array], PyTree], degree: int) -> Callable:
    """A function that gives the curve and its derivatives up to the degree, as a tuple."""
    if degree == 0:
        return lambda s: (curve(s),)
    lower = _derivatives(curve, degree - 1)

    def derivatives(s: jax.Array) -> tuple:
        # lower gives orders 0 to n - 1, and its derivative orders 1 to n: the last one is new.
        values, rates = jax.jvp(lower, (s,), (jnp.ones_like(s),))
        return (*values, rates[-1])

    return derivatives
