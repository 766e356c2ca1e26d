"""A function as a flat list of equations, evaluated one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"})


class Program(NamedTuple):
    """A function as a flat list of equations, with nested calls written out."""

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]


def flatten(fun: Callable, *args: Any) -> Program:
    """Traces ``fun(*args)``, where args are flat arrays or shapes, and writes out the calls in it."""
    nested = jax.make_jaxpr(fun)(*args)
    flat = jax.make_jaxpr(lambda *xs: _evaluate_inlined(nested.jaxpr, nested.consts, xs))(*args)
    return Program(flat.jaxpr, flat.consts)


def _evaluate_inlined(jaxpr: jex.Jaxpr, consts: Sequence, args: Sequence) -> list:
    env = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
    for equation in jaxpr.eqns:
        operands = [read(env, v) for v in equation.invars]
        env.update(zip(equation.outvars, apply(jaxpr, equation, operands, inline=True)))
    return [read(env, v) for v in jaxpr.outvars]


def read(env: dict, atom: Any) -> Any:
    """Value of a variable or literal."""
    return atom.val if isinstance(atom, jex.Literal) else env[atom]


def apply(jaxpr: jex.Jaxpr, equation: Any, operands: list, inline: bool = False) -> list:
    """Results of one equation of the jaxpr, evaluated alone."""
    if inline and equation.primitive.name in _INLINED:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if isinstance(inner, jex.ClosedJaxpr):
            return _evaluate_inlined(inner.jaxpr, inner.consts, operands)
        return _evaluate_inlined(inner, (), operands)
    values = {v: x for v, x in zip(equation.invars, operands) if not isinstance(v, jex.Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(values), outvars=list(equation.outvars), eqns=[equation]
    )
    return list(jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))(*values.values()))


def equations(jaxpr: jex.Jaxpr) -> Iterator[Any]:
    """Every equation of a jaxpr, and of those nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "eqns"):
                yield from equations(part)
