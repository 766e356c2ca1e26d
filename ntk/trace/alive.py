"""Dead code: equations of a model that its output does not depend on, such as the unused head of two.

A program is walked back from its outputs, into the programs nested in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from ntk.infinite.immediate import CALLS, body, carried


class Alive(NamedTuple):
    """What of a program is used.

    Attributes:
        equations: those that an output depends on, in order, each with the outputs of its own that are used.
        inputs: for each input of the program, whether it is.
    """

    equations: tuple[tuple[Any, tuple[bool, ...]], ...]
    inputs: tuple[bool, ...]


def alive(jaxpr: jex.Jaxpr, wanted: Sequence[bool]) -> Alive:
    """The part of a program that the wanted outputs depend on."""
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


def _reads(equation: Any, outs: Sequence[bool]) -> Sequence[bool]:
    """Which operands of an equation the wanted ones of its outputs depend on."""
    name = equation.primitive.name
    if name in CALLS:
        return alive(body(equation), outs).inputs
    if name == "scan":
        return alive(body(equation), wanted_of_loop(equation, outs)).inputs
    return (True,) * len(equation.invars)


def wanted_of_loop(equation: Any, outs: Sequence[bool]) -> tuple[bool, ...]:
    """Outputs of a loop's body that are used: those wanted, and carried values that a later round reads."""
    fixed, carry = carried(equation)
    wanted = tuple(outs)
    while True:
        inputs = alive(body(equation), wanted).inputs
        more = tuple(w or inputs[fixed + k] for k, w in enumerate(wanted[:carry]))
        if more == wanted[:carry]:
            return wanted
        wanted = (*more, *wanted[carry:])
