"""Programs of JAX walked equation by equation: the one place that knows which equations hold further programs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Primitives that call a program, and the parameter that holds it."""

_INNER = CALLS | {"custom_vmap_call": "call", "scan": "jaxpr"}
"""And a function with a rule of its own for batches, and a loop, which repeats one."""


class Program(NamedTuple):
    """A function as a list of equations."""

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]


def program(jaxpr: Any) -> Program:
    """A jaxpr, closed or not."""
    return Program(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()))


def inner(equation: Any) -> Program | None:
    """The program that an equation calls, or repeats; None for those that hold none, or several."""
    key = _INNER.get(equation.primitive.name)
    return None if key is None else program(equation.params[key])


def equations(jaxpr: jex.Jaxpr) -> Iterator[Any]:
    """Every equation of a jaxpr, and of those nested in it."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part, "eqns"):
                yield from equations(part)


def contains(jaxpr: jex.Jaxpr, primitives: Collection[str]) -> bool:
    """Whether a jaxpr has one of the primitives, at any depth."""
    return any(equation.primitive.name in primitives for equation in equations(jaxpr))


# --- evaluation ----------------------------------------------------------------------------------


def flatten(fun: Callable, *args: Any) -> Program:
    """Traces ``fun(*args)``, where args are flat arrays or shapes, and writes out the calls in it."""
    nested = program(jax.make_jaxpr(fun)(*args))
    return program(jax.make_jaxpr(lambda *xs: evaluate(nested, xs, _written_out))(*args))


def _written_out(equation: Any, operands: list) -> list | None:
    name = equation.primitive.name
    if name not in CALLS or name.startswith("custom"):  # a derivative rule would be lost
        return None
    return evaluate(inner(equation), operands, _written_out)


def evaluate(program: Program, args: Sequence, rule: Callable) -> list:
    """Outputs of a program, see `values`."""
    return outputs(program, values(program, args, rule))


def outputs(program: Program, env: dict) -> list:
    """Outputs of a program among the values of its variables."""
    return [read(env, v) for v in program.jaxpr.outvars]


def values(program: Program, args: Sequence, rule: Callable, keep: bool = True) -> dict:
    """Values of the variables of a program.

    Args:
        program: the program.
        args: its inputs.
        rule: `rule(equation, operands)`, the results of an equation; None for one that is evaluated as it stands.
        keep: whether to keep those that are not among the outputs and that no later equation reads.
    """
    jaxpr = program.jaxpr
    env = dict(zip(jaxpr.constvars, program.consts)) | dict(zip(jaxpr.invars, args))
    last: dict = {}
    if not keep:
        last = {v: k for k, eqn in enumerate(jaxpr.eqns) for v in variables(eqn.invars)}
        last |= dict.fromkeys(variables(jaxpr.outvars), len(jaxpr.eqns))
    for k, equation in enumerate(jaxpr.eqns):
        operands = [read(env, v) for v in equation.invars]
        results = rule(equation, operands)
        env.update(
            zip(equation.outvars, apply(jaxpr, equation, operands) if results is None else results)
        )
        for v in set(variables(equation.invars)) if last else ():
            if last[v] == k:
                del env[v]
    return env


def read(env: dict, atom: Any) -> Any:
    """Value of a variable or literal."""
    return atom.val if isinstance(atom, jex.Literal) else env[atom]


def variables(atoms: Sequence) -> list:
    """Those that are no literals."""
    return [v for v in atoms if not isinstance(v, jex.Literal)]


def apply(jaxpr: jex.Jaxpr, equation: Any, operands: Sequence) -> list:
    """Results of one equation of the jaxpr, evaluated alone."""
    known = {v: x for v, x in zip(equation.invars, operands) if not isinstance(v, jex.Literal)}
    alone = jaxpr.replace(
        constvars=[], invars=list(known), outvars=list(equation.outvars), eqns=[equation]
    )
    return list(jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, []))(*known.values()))


# --- dead code -----------------------------------------------------------------------------------


class Alive(NamedTuple):
    """What of a program is used.

    Attributes:
        equations: those that an output depends on, in order, each with the outputs of its own that are used.
        inputs: for each input of the program, whether it is.
    """

    equations: tuple[tuple[Any, tuple[bool, ...]], ...]
    inputs: tuple[bool, ...]


def alive(jaxpr: jex.Jaxpr, wanted: Sequence[bool]) -> Alive:
    """The part of a program that the wanted outputs depend on, such as all but the unused head of two.

    It is walked back from its outputs, into the programs nested in it.
    """
    used = {v for v, want in zip(jaxpr.outvars, wanted) if want and not isinstance(v, jex.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        outs = tuple(v in used for v in equation.outvars)
        if not any(outs):
            continue
        kept.append((equation, outs))
        reads = _reads(equation, outs)
        used |= {
            v for v, read in zip(equation.invars, reads) if read and not isinstance(v, jex.Literal)
        }
    return Alive(tuple(reversed(kept)), tuple(v in used for v in jaxpr.invars))


def living(whole: Any, wanted: Sequence[bool] | None = None) -> Program:
    """A program without the equations that no wanted output depends on; None wants all."""
    jaxpr, consts = program(whole)
    wanted = (True,) * len(jaxpr.outvars) if wanted is None else wanted
    kept = [equation for equation, _ in alive(jaxpr, wanted).equations]
    return Program(jaxpr.replace(eqns=kept), consts)


def _reads(equation: Any, outs: Sequence[bool]) -> Sequence[bool]:
    """Which operands of an equation the wanted ones of its outputs depend on."""
    name = equation.primitive.name
    if name in CALLS:
        return alive(inner(equation).jaxpr, outs).inputs
    if name == "scan":
        return alive(inner(equation).jaxpr, wanted_of_loop(equation, outs)).inputs
    return (True,) * len(equation.invars)


def wanted_of_loop(equation: Any, outs: Sequence[bool]) -> tuple[bool, ...]:
    """Outputs of a loop's body that are used: those wanted, and carried values that a later round reads."""
    fixed, carry = carried(equation)
    wanted = tuple(outs)
    while True:
        inputs = alive(inner(equation).jaxpr, wanted).inputs
        more = tuple(w or inputs[fixed + k] for k, w in enumerate(wanted[:carry]))
        if more == wanted[:carry]:
            return wanted
        wanted = (*more, *wanted[carry:])


def carried(equation: Any) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan.

    By shapes, because the names of these numbers differ between versions of JAX: rows of what is looped over come last.
    """
    body = inner(equation).jaxpr
    last = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.invars, body.invars))
    carry = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, body.outvars))
    return last - carry, carry
