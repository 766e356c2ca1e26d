"""What the curvature functions refuse, and the sentence that says what to do instead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metrics.estimate import concrete


def check_params(params: Any) -> int:
    """Counts the parameters.

    Raises:
        ValueError: there is none, or one is not real floating point.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"parameter {_name(path)} has dtype {jnp.result_type(leaf)}; curvature needs real "
                "floating-point parameters: leave counters and flags out of params"
            )
    n = sum(jnp.size(leaf) for _, leaf in leaves)
    if n == 0:
        raise ValueError("params holds no numbers; pass a pytree of float arrays")
    return n


def check_loss(loss: Callable, params: Any, batch: Any) -> None:
    """Refuses a loss that is not one real number."""
    out = jax.eval_shape(loss, params, batch)
    if not (hasattr(out, "shape") and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", out)
        raise ValueError(
            f"the loss returns {shapes}; it must return one real number: "
            "take the mean over examples, and return nothing beside it"
        )


def check_scale(scale: Any, params: Any) -> None:
    """Refuses factors that do not fit params, or (outside of a trace) are negative."""
    try:
        full = jax.tree.broadcast(scale, params)
        jax.tree.map(
            lambda d, p: jax.eval_shape(
                functools.partial(jnp.broadcast_to, shape=jnp.shape(p)), jnp.asarray(d)
            ),
            full,
            params,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            "scale does not fit params; it must be a pytree like params, or a prefix of one, of "
            f"numbers or of arrays that broadcast to the parameters: {error}"
        ) from error
    for path, factor in jax.tree_util.tree_leaves_with_path(scale):
        if flag(jnp.all(jnp.asarray(factor) >= 0)) is False:
            raise ValueError(
                f"scale {_name(path)} is {factor}; learning-rate factors must be at least 0"
            )


def check_steps(num_steps: int, n: int) -> None:
    """Refuses a number of Lanczos steps that is not positive or exceeds the dimension n."""
    if not 1 <= num_steps <= n:
        raise ValueError(
            f"num_steps is {num_steps}; it must be between 1 and {n}, the number of parameters"
        )


def is_finite(tree: Any) -> bool | None:
    """Whether every entry is finite; None inside a trace, where nobody can know."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return flag(functools.reduce(jnp.logical_and, checks))


def check_rank(k: int, rank: int) -> None:
    """Refuses more eigenvalues than a sum over so many examples can have."""
    if k > rank:
        raise ValueError(
            f"k is {k}, but the examples give this matrix only {rank} eigenvalues that are not 0: ask for "
            "fewer, or give more examples"
        )


def check_finite(result: Any, product: Callable, params: Any, batch: Any) -> None:
    """Refuses a result that is not finite, where it can be looked at, and says why."""
    if is_finite(result) is False:
        explain_non_finite(getattr(product, "loss", None), params, batch)


def explain_non_finite(loss: Callable | None, params: Any, batch: Any) -> None:
    """Says why the curvature is not finite: a parameter, the loss (of which example), or neither.

    Raises:
        ValueError: always.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_finite(leaf) is False:
            raise ValueError(f"parameter {_name(path)} is not finite: the run has diverged")
    if loss is None:
        raise ValueError(
            "the curvature operator's products are not finite: check the loss, the data and the learning rate"
        )
    value = jax.jit(loss)(params, batch)
    if is_finite(value) is not False:
        raise ValueError(
            f"the loss is {value}, but its second derivative is not finite; a square root, norm or "
            "division at 0 does this: add a small constant inside of it"
        )
    bad = _non_finite_examples(loss, params, batch)
    where = f"; so it is on examples {bad[:10]} of the batch" if bad else ""
    raise ValueError(f"the loss is {value}{where}: check the data and the learning rate")


def _non_finite_examples(loss, params, batch) -> list[int]:
    """Indices along the common leading axis, each example taken as a batch of one."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        return []

    def one(params, example):
        return loss(params, jax.tree.map(lambda leaf: leaf[None], example))

    try:
        values = jax.jit(jax.vmap(one, (None, 0)))(params, batch)
    except (TypeError, ValueError):  # a loss that needs its whole batch
        return []
    return np.flatnonzero(~np.isfinite(np.asarray(values, np.float64))).tolist()


def steps_better(product: Callable, params: Any, batch: Any) -> bool:
    """Whether a compiled loop around the product is slow: it convolves, and on a CPU."""
    return jax.default_backend() == "cpu" and _contains(
        product, params, batch, {"conv_general_dilated"}
    )


def loops(product: Callable, params: Any, batch: Any) -> bool:
    """Whether the product itself is a loop, as over batches: what it computes is then too large to keep."""
    return _contains(product, params, batch, {"scan", "while"})


def _contains(product, params, batch, primitives):
    """Walks the equations, since printing them takes as long as a Hessian product of a small network."""

    def found(jaxpr):
        return any(
            equation.primitive.name in primitives
            or any(
                hasattr(part, "eqns") and found(part)
                for part in jax.tree.leaves(list(equation.params.values()))
            )
            for equation in jaxpr.eqns
        )

    return found(jax.jit(product).trace(params, batch, params).jaxpr)


def flag(condition: Any) -> bool | None:
    """The condition as a bool; None inside a trace."""
    value = concrete(condition)
    return None if value is None else bool(value)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the only one)"
