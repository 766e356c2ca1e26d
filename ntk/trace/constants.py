"""Constants of a model at both widths, computed where their entries differ along an axis that grows with the width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk import primitives
from ntk.trace.axes import BATCHES
from ntk.trace.coordinates import Refusal, Table, Value


class Constants:
    """Arrays of one variable at both widths, computed when they are asked for."""

    def __init__(self, compute: Callable[[], tuple]):
        self._compute, self._kept = compute, None

    @classmethod
    def of(cls, one: Any, two: Any) -> Constants:
        """Arrays that are there."""
        return cls(lambda: (one, two))

    @classmethod
    def results(cls, one: Any, two: Any, operands: Sequence[Constants]) -> dict[Any, Constants]:
        """Results of an equation, by the variables of the first width."""
        kept: list = []

        def both() -> list:
            if not kept:
                pairs = [c.arrays() for c in operands]
                kept.extend(_bound(eqn, [p[k] for p in pairs]) for k, eqn in enumerate((one, two)))
            return kept

        return {
            v: cls(lambda k=k: tuple(out[k] for out in both())) for k, v in enumerate(one.outvars)
        }

    def arrays(self) -> tuple:
        """At both widths."""
        if self._kept is None:
            self._kept = self._compute()
        return self._kept


def _bound(equation: Any, args: list) -> list:
    with jax.ensure_compile_time_eval():
        out = equation.primitive.bind(*map(jnp.asarray, args), **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


def told_apart(one: Any, two: Any, values: Sequence[Value | None], double: bool) -> bool:
    """Whether an equation on constants is computed at both widths: it draws, counts units, or reads what does.

    Args:
        one: the equation at the first width.
        two: at the second.
        values: its operands.
        double: whether the model runs in double precision, as it is traced: other bits are drawn in single precision.

    Raises:
        Refusal: it draws other numbers than the model does as it runs.
    """
    if any(v is not None and isinstance(v.body, Table) for v in values):
        return True
    name = one.primitive.name
    draws = primitives.known(name).random == "draw"
    if draws and one.params.get("bit_width", 32) == 64 and not double:
        raise Refusal(
            "the model draws constants from a fixed key as it is called, in the precision that JAX runs in, on which "
            "the numbers depend. Say which: jax.random.normal(key, shape, jnp.float32), or draw them outside the model"
        )
    if name == "iota":
        k = one.params["dimension"]
        size = (one.outvars[0].aval.shape[k], two.outvars[0].aval.shape[k])
        return size[0] != size[1] and size != BATCHES
    return draws
