"""A traced function evaluated with numpy at once, without compiling it.

XLA compiles a small kernel in .3 to 3 s and evaluates it in .0001 s; numpy compiles nothing and takes some .005 s. Who
asks for a few of them, as in a notebook, would wait for the compiler alone. A `Program` is walked through equation by
equation; what numpy does not have is run by JAX, one primitive at a time. It tells beforehand what that takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import jaxprs, primitives

COMPILING = 2**21
"""What it takes to compile one equation, in entries that numpy computes meanwhile: some 1 ms."""

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
        with np.errstate(all="ignore"):
            out = _run(self.jaxpr, [np.asarray(x) for x in leaves])
        # jnp.asarray would compile a copy for every shape.
        return jax.tree.unflatten(self.tree, jax.device_put(out))


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
    if (inside := jaxprs.inner(eqn)) is not None:
        return _cost(inside.jaxpr)
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


def _run(program: Any, args: Sequence[Any]) -> list[np.ndarray]:
    """A program, closed or not, on numpy arrays."""
    program = jaxprs.program(program)
    program = program._replace(consts=[np.asarray(c) for c in program.consts])
    env = jaxprs.values(program, args, _equation, keep=False)
    return [
        np.asarray(x, v.aval.dtype)
        for x, v in zip(jaxprs.outputs(program, env), program.jaxpr.outvars)
    ]


def _equation(eqn: Any, args: list) -> list[np.ndarray]:
    args = [np.asarray(x, v.aval.dtype) if _literal(v) else x for x, v in zip(args, eqn.invars)]
    name = eqn.primitive.name
    if name in _LOOPS:
        return _LOOPS[name](eqn, args)
    if (inside := jaxprs.inner(eqn)) is not None:
        return _run(inside, args)
    if eqn.primitive.multiple_results or primitives.known(name).numpy is None:
        return _by_jax(eqn, args)
    return [primitives.bind(eqn.primitive, eqn.params, args)]


def _literal(v: Any) -> bool:
    return hasattr(v, "val")


def _by_jax(eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    """One equation run by JAX, in the types that it was traced in."""
    wide = any(v.aval.dtype.itemsize == 8 for v in (*eqn.invars, *eqn.outvars))
    with jax.ensure_compile_time_eval(), jax.enable_x64(wide or jax.config.jax_enable_x64):
        out = eqn.primitive.bind(*map(jnp.asarray, args), **eqn.params)
    return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]


def _scan(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params, (fixed, count) = equation.params, jaxprs.carried(equation)
    consts, carry, xs = args[:fixed], args[fixed : fixed + count], args[fixed + count :]
    body, length = params["jaxpr"], params["length"]
    rows = []
    for k in range(length)[:: -1 if params["reverse"] else 1]:
        out = _run(body, [*consts, *carry, *(x[k] for x in xs)])
        carry = out[:count]
        rows.append(out[count:])
    if params["reverse"]:
        rows.reverse()
    shapes = [v.aval for v in getattr(body, "jaxpr", body).outvars[count:]]
    stacked = [np.stack(ys) for ys in zip(*rows)] if length else None
    return [*carry, *(stacked or [np.zeros((0, *a.shape), a.dtype) for a in shapes])]


def _while(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params = equation.params
    one, two = params["cond_nconsts"], params["body_nconsts"]
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    carry = args[one + two :]
    while _run(test, [*args[:one], *carry])[0]:
        carry = _run(body, [*args[one : one + two], *carry])
    return carry


def _cond(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params = equation.params
    which = int(np.clip(args[0], 0, len(params["branches"]) - 1))
    branch = params["branches"][which]
    return _run(branch, args[1:])


_LOOPS: dict[str, Callable] = {"scan": _scan, "while": _while, "cond": _cond}
