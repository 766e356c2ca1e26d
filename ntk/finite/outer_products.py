"""Arrays that are products of smaller ones, followed through a program.

The derivative of output r by what one of the last layers writes, at position s, is often ``p[r, f] q[s, f]``:
what a pooled readout sends back is the same at every position, and a nonlinearity multiplies it by its slope,
which is the same for every output. A sum over positions then need be taken once, not for every output.

A factor has as many dimensions as the product, of size 1 where it does not vary.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

Factors = tuple[jax.Array, ...]

_MOST = 3  # factors that are followed


def follow(equation: Any, operands: list, known: dict) -> Factors | None:
    """Factors of the equation's result, each smaller than it; None where it has no such factors.

    Args:
        equation: with one result.
        operands: its values.
        known: factors of variables, by variable.
    """
    rule = _RULES.get(equation.primitive.name)
    if rule is None:
        return None
    factors = [None if isinstance(v, jex.Literal) else known.get(v) for v in equation.invars]
    found = rule(equation, operands, factors)
    if not found or len(found) > _MOST:
        return None
    size = equation.outvars[0].aval.size
    return found if all(f.size < size for f in found) else None


def _broadcast(equation: Any, operands: list, factors: list) -> Factors | None:
    shape, dims = equation.params["shape"], equation.params["broadcast_dimensions"]

    def placed(x: Any) -> Any:
        narrow = [1] * len(shape)
        for d, size in zip(dims, jnp.shape(x)):
            narrow[d] = size
        # What is known while the program is traced stays so: zeros are recognised.
        return (x if isinstance(x, jax.Array) else np.asarray(x)).reshape(narrow)

    return tuple(placed(f) for f in factors[0] or (operands[0],))


def _transpose(equation: Any, operands: list, factors: list) -> Factors | None:
    return factors[0] and tuple(f.transpose(equation.params["permutation"]) for f in factors[0])


def _reshape(equation: Any, operands: list, factors: list) -> Factors | None:
    """Each group of dimensions that becomes another must be whole in a factor, or absent from it."""
    if not factors[0] or equation.params["dimensions"] is not None:
        return None
    old, new = operands[0].shape, equation.params["new_sizes"]
    results = []
    for factor in factors[0]:
        shape = [1] * len(new)
        for before, after in _groups(old, new):
            # A factor that varies along some of the dimensions that are merged, not all, would have to be written out.
            sizes = {factor.shape[d] == old[d] for d in before if old[d] > 1}
            if len(sizes) > 1:
                return None
            if True in sizes:
                for d in after:
                    shape[d] = new[d]
        results.append(factor.reshape(shape))
    return tuple(results)


def _groups(old: tuple, new: tuple) -> list[tuple[list, list]]:
    """Smallest runs of dimensions of equal size before and after a reshape."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before, after = [i][: len(old) - i], [j][: len(new) - j]
        i, j = i + len(before), j + len(after)
        while (a := math.prod(old[d] for d in before)) != (b := math.prod(new[d] for d in after)):
            if a < b:
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        groups.append((before, after))
    return groups


def _multiply(equation: Any, operands: list, factors: list) -> Factors | None:
    shape = equation.outvars[0].aval.shape
    if any(jnp.ndim(x) != len(shape) for x in operands):
        return None
    return sum((f or (x,) for f, x in zip(factors, operands)), ())


def _select(equation: Any, operands: list, factors: list) -> Factors | None:
    """What is kept in some places and zero in others: the derivative through a rectifier."""
    if len(operands) != 3 or operands[0].dtype != bool or factors[0] is None or len(factors[0]) > 1:
        return None
    for zero, kept, mask in ((1, 2, factors[0][0]), (2, 1, ~factors[0][0])):
        if factors[zero] and factors[kept] and all(_is_zero(f) for f in factors[zero]):
            return (*factors[kept], mask.astype(operands[kept].dtype))
    return None


def _is_zero(x: Any) -> bool:
    """Whether the value is known, while the program is traced, to be zero."""
    return (
        getattr(x, "size", 2) == 1
        and not isinstance(x, jax.core.Tracer)
        and float(x.squeeze()) == 0
    )


def _product(equation: Any, operands: list, factors: list) -> Factors | None:
    """A matrix product of an array that is the same along some of its free dimensions."""
    contracted, batch = equation.params["dimension_numbers"]
    for k in (0, 1):
        if factors[k] is None or len(factors[k]) != 1 or factors[1 - k] is not None:
            continue
        narrow, whole = factors[k][0], operands[k]
        if all(narrow.shape[d] == whole.shape[d] for d in (*contracted[k], *batch[k])):
            both = (narrow, operands[1]) if k == 0 else (operands[0], narrow)
            return (lax.dot_general(*both, **equation.params),)
    return None


_RULES = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "mul": _multiply,
    "select_n": _select,
    "dot_general": _product,
}
