"""Programs of JAX walked equation by equation: the one place that knows which equations hold further programs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk.primitives import TABLE

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

INNER = CALLS | {"custom_vmap_call": "call", "scan": "jaxpr"}
"""And a function with a rule of its own for batches, and a loop, which repeats one."""


class Program(NamedTuple):
    """A function as a list of equations."""

    jaxpr: jex.Jaxpr
    consts: Sequence[Any]


def program_of(jaxpr: Any) -> Program:
    """A jaxpr, closed or not."""
    return Program(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()))


def inner(equation: Any) -> Program | None:
    """The program that an equation calls, or repeats; None for those that hold none, or several."""
    return body_of(equation) if equation.primitive.name in INNER else None


def body_of(equation: Any) -> Program:
    """The program of an equation of one of the primitives in `INNER`."""
    return program_of(equation.params[INNER[equation.primitive.name]])


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
    nested = program_of(jax.make_jaxpr(fun)(*args))
    return program_of(jax.make_jaxpr(lambda *xs: evaluate(nested, xs, _written_out))(*args))


def _written_out(equation: Any, operands: list) -> list | None:
    name = equation.primitive.name
    if name not in CALLS or name.startswith("custom"):  # a derivative rule would be lost
        return None
    return evaluate(body_of(equation), operands, _written_out)


def evaluate(program: Program, args: Sequence, rule: Callable) -> list:
    """Outputs of a program, see `values`."""
    return outputs(program, values(program, args, rule))


def outputs(program: Program, env: dict) -> list:
    """Outputs of a program among the values of its variables."""
    return [read(env, v) for v in program.jaxpr.outvars]


def values(
    program: Program,
    args: Sequence,
    rule: Callable,
    literal: Callable = operator.attrgetter("val"),
    keep: bool = True,
) -> dict:
    """Values of the variables of a program.

    Args:
        program: the program.
        args: its inputs.
        rule: `rule(equation, operands)`, the results of an equation; None for one that is evaluated as it stands.
        literal: the value of a literal.
        keep: whether to keep those that are not among the outputs and that no later equation reads.
    """
    jaxpr = program.jaxpr
    env = dict(zip(jaxpr.constvars, program.consts)) | dict(zip(jaxpr.invars, args))
    free = {} if keep else _last_uses(jaxpr)
    for k, equation in enumerate(jaxpr.eqns):
        operands = [literal(v) if isinstance(v, jex.Literal) else env[v] for v in equation.invars]
        results = rule(equation, operands)
        if results is None:
            results = apply(jaxpr, equation, operands)
        env.update(zip(equation.outvars, results))
        for v in free.get(k, ()):
            del env[v]
    return env


def _last_uses(jaxpr: jex.Jaxpr) -> dict[int, list]:
    """The variables that each equation is the last to read, by its place."""
    last: dict = {}
    for k, equation in enumerate(jaxpr.eqns):
        last |= dict.fromkeys((v for v in equation.invars if not isinstance(v, jex.Literal)), k)
    free: dict[int, list] = {}
    for v in last.keys() - {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}:
        free.setdefault(last[v], []).append(v)
    return free


def read(env: Mapping, atom: Any) -> Any:
    """Value of a variable or literal."""
    return atom.val if isinstance(atom, jex.Literal) else env[atom]


def type_of(atom: Any) -> jax.core.ShapedArray:
    """Shape and type of a variable or literal."""
    return atom.aval


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


def alive(jaxpr: jex.Jaxpr, wanted: Sequence[bool], whole_calls: bool = False) -> Alive:
    """The part of a program that the wanted outputs depend on, such as all but the unused head of two.

    It is walked back from its outputs, into the programs nested in it unless these are evaluated whole.
    """
    used = {v for v, want in zip(jaxpr.outvars, wanted) if want and not isinstance(v, jex.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        outs = tuple(v in used for v in equation.outvars)
        if not any(outs):
            continue
        kept.append((equation, outs))
        reads = (True,) * len(equation.invars) if whole_calls else _reads(equation, outs)
        used |= {
            v for v, use in zip(equation.invars, reads) if use and not isinstance(v, jex.Literal)
        }
    return Alive(tuple(reversed(kept)), tuple(v in used for v in jaxpr.invars))


def living(whole: Any, wanted: Sequence[bool] | None = None) -> Program:
    """A program without the equations that no wanted output depends on; None wants all. Calls in it stay whole."""
    jaxpr, consts = program_of(whole)
    wanted = (True,) * len(jaxpr.outvars) if wanted is None else wanted
    kept = [equation for equation, _ in alive(jaxpr, wanted, whole_calls=True).equations]
    return Program(jaxpr.replace(eqns=kept), consts)


def _reads(equation: Any, outs: Sequence[bool]) -> Sequence[bool]:
    """Which operands of an equation the wanted ones of its outputs depend on."""
    name = equation.primitive.name
    if name in CALLS:
        return alive(body_of(equation).jaxpr, outs).inputs
    if name == "scan":
        return alive(body_of(equation).jaxpr, wanted_of_loop(equation, outs)).inputs
    return (True,) * len(equation.invars)


def wanted_of_loop(equation: Any, outs: Sequence[bool]) -> tuple[bool, ...]:
    """Outputs of a loop's body that are used: those wanted, and carried values that a later round reads."""
    fixed, carry = carried(equation)
    wanted = tuple(outs)
    while True:
        inputs = alive(body_of(equation).jaxpr, wanted).inputs
        more = tuple(w or inputs[fixed + k] for k, w in enumerate(wanted[:carry]))
        # What one round reads the round before it must carry: until nothing is added.
        if more == wanted[:carry]:
            return wanted
        wanted = (*more, *wanted[carry:])


def carried(equation: Any) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan.

    By shapes, because the names of these numbers differ between versions of JAX: rows of what is looped over come last.
    """
    body = body_of(equation).jaxpr
    last = sum(type_of(a).ndim == type_of(b).ndim for a, b in zip(equation.invars, body.invars))
    carry = sum(type_of(a).ndim == type_of(b).ndim for a, b in zip(equation.outvars, body.outvars))
    return last - carry, carry


# --- on numpy ------------------------------------------------------------------------------------


def on_numpy(whole: Any, args: Sequence[Any]) -> list[np.ndarray]:
    """Outputs of a program, closed or not, on numpy arrays; nothing is compiled but what numpy does not have."""
    jaxpr, consts = program_of(whole)
    env = values(Program(jaxpr, [np.asarray(c) for c in consts]), args, _on_numpy, _array, False)
    return [_array(v) if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars]


def _array(literal: jex.Literal) -> np.ndarray:
    return np.asarray(literal.val, type_of(literal).dtype)


def _on_numpy(equation: Any, args: list) -> list[np.ndarray]:
    name = equation.primitive.name
    if TABLE[name].numpy is not None and not equation.primitive.multiple_results:
        return [bind(equation.primitive, equation.params, args)]
    if name in _LOOPS:
        return _LOOPS[name](equation, args)
    if (inside := inner(equation)) is not None:
        return on_numpy(inside, args)
    return _by_jax(equation, args)


def bind(primitive: Any, params: dict, args: Sequence[Any]) -> np.ndarray:
    """One primitive on arrays or numbers, by numpy; the few that it does not have are run by JAX."""
    row = TABLE[primitive.name]
    if row.numpy is None:
        with jax.ensure_compile_time_eval():
            out = primitive.bind(*map(jnp.asarray, args), **params)
        return np.asarray(out[0] if isinstance(out, list | tuple) else out)
    args = [np.asarray(x) for x in args]
    with np.errstate(all="ignore"):
        if row.plain:
            return np.asarray(row.numpy(*args)).astype(args[0].dtype, copy=False)
        return np.asarray(row.numpy(params, *args))


def _by_jax(eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    """One equation run by JAX, in the types that it was traced in."""
    # Traced in double precision, an equation needs it where it is run, whatever the caller's setting.
    wide = any(v.aval.dtype.itemsize == 8 for v in (*eqn.invars, *eqn.outvars))
    double = jnp.result_type(float) == jnp.float64
    with jax.ensure_compile_time_eval(), jax.enable_x64(wide or double):
        out = eqn.primitive.bind(*map(jnp.asarray, args), **eqn.params)
    return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]


def _scan(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params, (fixed, count) = equation.params, carried(equation)
    consts, carry, xs = args[:fixed], args[fixed : fixed + count], args[fixed + count :]
    body, length = params["jaxpr"], params["length"]
    rows = []
    for k in range(length)[:: -1 if params["reverse"] else 1]:
        out = on_numpy(body, [*consts, *carry, *(x[k] for x in xs)])
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
    while on_numpy(test, [*args[:one], *carry])[0]:
        carry = on_numpy(body, [*args[one : one + two], *carry])
    return carry


def _cond(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params = equation.params
    # XLA clips the index of a branch, too.
    which = int(np.clip(args[0], 0, len(params["branches"]) - 1))
    branch = params["branches"][which]
    return on_numpy(branch, args[1:])


_LOOPS: dict[str, Callable] = {"scan": _scan, "while": _while, "cond": _cond}
