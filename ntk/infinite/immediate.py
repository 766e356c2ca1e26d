"""A traced function evaluated with numpy at once, without compiling it.

XLA compiles a small kernel in .3 to 3 s and evaluates it in .0001 s; numpy compiles nothing and takes some .005 s. Who
asks for a few of them, as in a notebook, would wait for the compiler alone. A `Program` is walked through equation by
equation; what numpy does not have is run by JAX, one primitive at a time. It tells beforehand what that takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk import jaxprs

COMPILING = 2**21
"""What it takes to compile one equation, in entries that numpy computes meanwhile: some 1 ms."""

READING = 2**24
"""What it takes to trace a small network, in entries: some .1 s."""

_EQUATION = 2**10
"""What one equation costs, in entries, however small its result is."""


class Program(NamedTuple):
    """A function traced for arrays of some shapes and types; called with their leaves.

    Attributes:
        jaxpr: closed.
        tree: structure of the result.
        cost: entries that one call computes; inf where values that it closes over are not known, as inside a jit.
        limit: entries that are computed in the time of compiling it instead.
    """

    jaxpr: Any
    tree: Any
    cost: float
    limit: float

    def __call__(self, *leaves: Any) -> Any:
        """The result as numpy's arrays."""
        with np.errstate(all="ignore"):
            out = jaxprs.on_numpy(self.jaxpr, [np.asarray(x) for x in leaves])
        return jax.tree.unflatten(self.tree, out)


def program(fn: Callable[..., Any], *args: Any) -> Program:
    """fn traced for such arguments."""
    jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    if any(isinstance(x, jax.core.Tracer) for x in jaxpr.consts):
        return Program(None, None, math.inf, 0)
    entries, equations = _cost(jaxpr)
    return Program(jaxpr, jax.tree.structure(out), entries, COMPILING * equations)


def _cost(program: Any) -> tuple[float, int]:
    """Entries that the equations of a jaxpr compute, inf for a loop of unknown length; and how many they are."""
    found = [_cost_of(eqn) for eqn in getattr(program, "jaxpr", program).eqns]
    return sum(entries for entries, _ in found), sum(count for _, count in found)


def _cost_of(eqn: Any) -> tuple[float, int]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        entries, count = _cost(params["jaxpr"])
        return params["length"] * entries, count
    if name in jaxprs.INNER:
        return _cost(params[jaxprs.INNER[name]])
    if name == "while":
        return math.inf, 1
    if name == "cond":
        branches = [_cost(branch) for branch in params["branches"]]
        return max(entries for entries, _ in branches), sum(count for _, count in branches)
    entries = sum(v.aval.size for v in (*eqn.invars, *eqn.outvars))
    if name == "dot_general":
        ((left, _), _) = params["dimension_numbers"]
        summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in left)
        entries += eqn.outvars[0].aval.size * summed // 8  # a product costs less than a function
    return _EQUATION + entries, 1
