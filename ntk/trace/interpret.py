"""A network's own program, equation by equation, turned into steps on processes.

`trace` reads the jaxpr of `apply` at two widths and two batch sizes side by side: what differs between them are the
axes of units and of samples. What each primitive does is in
`ntk.trace.rules`.

Source: Yang (2019), "Tensor Programs I: Wide feedforward or recurrent neural networks of any architecture are
Gaussian processes"; Yang (2020), "Tensor Programs II: Neural tangent kernel for any architecture".
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk import jaxprs
from ntk.primitives import TABLE
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace.axes import BATCHES
from ntk.trace.context import Context
from ntk.trace.coordinates import NumberArray, Refusal, Table, Value, Weight
from ntk.trace.ops.shapes import row, stacked
from ntk.trace.rules import read as read_primitive
from ntk.trace.steps import Program


@functools.cache
def _is_library(file: str) -> bool:
    """Whether a file is not the user's, but of JAX, Flax, Python or this package."""
    modules = (sys.modules.get(name) for name in ("jax", "jaxlib", "flax", "contextlib", "ntk"))
    files = [module.__file__ for module in modules if module is not None]
    folders = (os.path.join(os.path.dirname(file), "") for file in files if file)
    return file.startswith(("<", *folders))


def line_of(equation: Any) -> str:
    """File and line of the model that an equation came from, as far as its traceback tells."""
    traceback = getattr(getattr(equation, "source_info", None), "traceback", None)
    frames = getattr(traceback, "frames", None) or []
    for frame in frames:
        name = str(getattr(frame, "file_name", ""))
        if name and not _is_library(name):
            return f"{name}:{getattr(frame, 'line_num', '?')}"
    return ""


_TRANSFORMED = re.compile(r"\w+\(([^()]*)\)")
_MODULE = re.compile(r"[\w.-]+")


def module_of(equation: Any, outer: str = "") -> str:
    """Path of the module that an equation came from, as the scopes of Flax (`jax.named_scope`) tell.

    Args:
        equation: of a program, which knows the scopes inside of it.
        outer: path of the module that holds the program.
    """
    stack = str(getattr(getattr(equation, "source_info", None), "name_stack", ""))
    while _TRANSFORMED.search(stack):  # vmap(Dense_0)
        stack = _TRANSFORMED.sub(r"\1", stack)
    parts = [part for part in stack.split("/") if _MODULE.fullmatch(part)]
    return "/".join(filter(None, [outer, *parts]))


def trace(
    programs: Sequence[jex.ClosedJaxpr],
    params: Sequence[Any],
    inputs: Sequence[Any],
    context: Context,
) -> Value:
    """The output of a network as a value, with its steps in `context.program`.

    Args:
        programs: `apply` at both widths.
        params: trees of shapes at both, with the paths of `context.parameters`.
        inputs: tuples of shapes at both, with batch sizes BATCHES.
        context: parameters; the steps are added to its program.

    Raises:
        Refusal: what has no kernel, with the primitive, the line of the model, and what to do.
    """
    names = list(context.parameters)
    values = []
    leaves = [jax.tree.leaves((params[k], inputs[k])) for k in (0, 1)]
    for k, (one, two) in enumerate(zip(*leaves)):
        shape = list(zip(one.shape, two.shape))
        if k < len(names):
            dims = context.fresh_dims(shape, "free")
            values.append(Value(dims, Weight(names[k], own=dims)))
        else:
            values.append(
                Value(context.fresh_dims(shape, "position"), NumberArray(("input", k - len(names))))
            )
            if any(a.kind == "free" for a in ax.flat(values[-1].dims)):
                raise Refusal("the inputs grow with the width; they must have a fixed size")
    outs = run(context, [jaxprs.program_of(c) for c in programs], values)
    if len(outs) != 1:
        raise Refusal(
            f"no infinite-width kernel: the network returns {len(outs)} arrays; its kernel is that of one: let apply "
            "return the outputs alone"
        )
    (out,) = outs
    assert out is not None  # all outputs are wanted
    return out


def run(
    context: Context,
    programs: Sequence[jaxprs.Program],
    args: Sequence[Value | None],
    wanted: Sequence[bool] | None = None,
    fixed: Sequence[Constants | None] = (),
    found: dict | None = None,
) -> list[Value | None]:
    """Values of the outputs of a program, read at both widths at once; of the wanted ones alone.

    Args:
        context: of the trace.
        programs: at both widths.
        args: their inputs; None for those that no wanted output depends on.
        wanted: of the outputs; None for all.
        fixed: for each input, its arrays at both widths where it is a constant.
        found: filled with the constants among the outputs, by their place.
    """

    (first, consts1), (second, consts2) = programs
    wanted = (True,) * len(first.outvars) if wanted is None else tuple(wanted)
    one_alive, two_alive = (jaxprs.alive(p.jaxpr, wanted).equations for p in programs)
    if len(one_alive) != len(two_alive):
        raise Refusal("the program of the model differs between widths: it must not depend on it")
    inside = context.program.module  # scopes of an inner program begin anew
    used = {v for eqn, _ in one_alive for v in eqn.invars if not isinstance(v, jex.Literal)}
    used |= {v for v, want in zip(first.outvars, wanted) if want and not isinstance(v, jex.Literal)}
    pairs = list(zip(first.constvars, consts1, consts2))
    env: dict[jex.Var, Value | None] = {v: context.array(a, b) for v, a, b in pairs if v in used}
    env |= dict(zip(first.invars, args))
    constants = {v: Constants.of(a, b) for v, a, b in pairs}
    constants |= {v: c for v, c in zip(first.invars, fixed) if c is not None}

    def constant(one: Any, two: Any) -> Constants | None:
        return (
            Constants.of(one.val, two.val) if isinstance(one, jex.Literal) else constants.get(one)
        )

    def read(one: Any, two: Any) -> Value | None:
        if isinstance(one, jex.Literal):
            return context.array(one.val, two.val)
        return env.get(one)  # None is for what no output depends on

    for (one, outs_wanted), (two, _) in zip(one_alive, two_alive):
        name = one.primitive.name
        if name != two.primitive.name:
            raise Refusal(
                f"the program of the model differs between widths ({name}, {two.primitive.name})"
            )
        outer = context.program.line, context.program.module
        context.program.line = line_of(one) or outer[0]
        context.program.module = module_of(one, inside)
        values = [read(a, b) for a, b in zip(one.invars, two.invars)]
        given = [constant(a, b) for a, b in zip(one.invars, two.invars)]
        fixed_ones = [c for c in given if c is not None]
        known = len(fixed_ones) == len(given)
        if known and name != "scan" and name not in jaxprs.CALLS:
            constants |= Constants.results(one, two, fixed_ones)
        outs: Sequence[Value | None]
        try:
            if name == "scan":
                outs = _scan(context, one, two, values, outs_wanted)
            elif name in jaxprs.CALLS:
                outs = _call(context, one, two, values, outs_wanted, first, given, constants)
            elif known and told_apart(one, two, values, context.double):
                arrays = [constants[v].arrays() for v in one.outvars]
                outs = [context.array(*pair) for pair in arrays]
            else:
                # What is used reads all of its operands.
                outs = read_primitive(context, one, two, [v for v in values if v is not None])
        except Refusal as refusal:
            raise _located(refusal, name, context.program) from None
        except ax.Mismatch as mismatch:
            raise _located(Refusal(str(mismatch)), name, context.program) from None
        context.made(outs)
        context.program.line, context.program.module = outer
        env.update(zip(one.outvars, outs))
    if found is not None:
        for k, ends in enumerate(zip(first.outvars, second.outvars)):
            if (c := constant(*ends)) is not None:
                found[k] = c
    atoms = zip(first.outvars, second.outvars, wanted)
    return [read(a, b) if want else None for a, b, want in atoms]


# Of refusals that finite networks do not get past, or that name them already.
_ADVISED = ("otherwise=", "width^", "random numbers", "samples", "learning_rates=", "grow with the")


def _located(refusal: Refusal, name: str, program: Program) -> Refusal:
    """The refusal with the primitive, the module and the line that it is of."""
    if refusal.located:
        return refusal
    where = f" of {program.module}" if program.module else ""
    where += f" at {program.line}" if program.line else ""
    text = str(refusal).removeprefix("no infinite-width kernel: ")
    if not any(word in text for word in _ADVISED):
        text += '. Or take means over finite networks: otherwise="sample"'
    out = Refusal(f"no infinite-width kernel: {text} ({name}{where})")
    out.located = True
    return out


def _call(
    context: Context,
    one: Any,
    two: Any,
    values: list,
    wanted: Sequence[bool],
    outer: jex.Jaxpr,
    given: list,
    constants: dict,
) -> list[Value | None]:
    programs = [jaxprs.body_of(eqn) for eqn in (one, two)]
    random = any(v is not None and co.is_random(v.body) for v in values)
    custom = one.primitive.name.startswith("custom")
    if custom and random:
        _check_derivative(outer, one, jex.ClosedJaxpr(*programs[0]))
    found: dict = {}
    context.custom += custom
    outs = run(context, programs, values, wanted, given, found)
    context.custom -= custom
    constants |= {v: found[k] for k, v in enumerate(one.outvars) if k in found}
    return outs


def _scan(
    context: Context, one: Any, two: Any, values: list, wanted: Sequence[bool]
) -> list[Value | None]:
    """A loop written out, as over the stacked parameters of equal blocks."""
    programs = [jaxprs.body_of(eqn) for eqn in (one, two)]
    fixed, carries = jaxprs.carried(one)
    consts, carry, rows = values[:fixed], values[fixed : fixed + carries], values[fixed + carries :]
    count = one.params["length"]
    if count != two.params["length"]:
        raise Refusal("a loop whose length grows with the width")
    inside = jaxprs.wanted_of_loop(one, wanted)
    needed = jaxprs.alive(programs[0].jaxpr, inside).inputs
    order = range(count - 1, -1, -1) if one.params["reverse"] else range(count)
    results: list[list] = [[None] * count for _ in wanted[carries:]]
    for k in order:
        given = [row(context, x, k) if use else None for x, use in zip(rows, needed[-len(rows) :])]
        inputs = [*consts, *carry, *(given if rows else ())]
        outs = run(context, programs, inputs, inside)
        carry = outs[:carries]
        for column, out in zip(results, outs[carries:]):
            column[k] = out
    stacks = [
        stacked(context, column) if want else None
        for column, want in zip(results, wanted[carries:])
    ]
    return [*carry, *stacks]


def _check_derivative(outer: jex.Jaxpr, equation: Any, inner: jex.ClosedJaxpr) -> None:
    """Refuses a derivative rule that is not the derivative, such as a straight-through estimator."""
    if os.path.dirname(jax.__file__) in str(getattr(inner.jaxpr, "debug_info", "")):
        return  # the rules of JAX itself are derivatives
    free = list({v: None for v in equation.invars if not isinstance(v, jex.Literal)})

    def given(values: Sequence) -> list:
        """Operands of the body, with the literals of the call."""
        known = dict(zip(free, values))
        return [v.val if isinstance(v, jex.Literal) else known[v] for v in equation.invars]

    whole = jex.jaxpr_as_fun(inner)

    def call(*points: Any) -> list:
        return jaxprs.apply(outer, equation, given(points))

    def body(*points: Any) -> list:
        return whole(*given(points))

    avals = [v.aval for v in free]
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in avals):
        raise Refusal("a custom derivative rule of a function with arguments that are not floats")
    points = [
        jnp.asarray(np.resize(np.linspace(-3.05, 3, 61) + 0.01 * k, a.shape), a.dtype)
        for k, a in enumerate(avals)
    ]

    def derivative(f: Callable[..., list]) -> Sequence:
        if "vjp" not in equation.primitive.name:
            return jax.jvp(f, points, [jnp.ones_like(p) for p in points])[1]
        out, pull = jax.vjp(f, *points)  # it has no forward mode
        return pull([jnp.ones_like(y) for y in out])

    with jax.ensure_compile_time_eval():
        rules = [derivative(f) for f in (call, body)]
    for a, b in zip(*rules):
        same = np.isclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-4)
        if same.mean() < 0.95:
            raise Refusal(
                "a function has a derivative rule of its own that is not its derivative; the tangent kernel would have "
                "to follow it: write it without custom_jvp and custom_vjp"
            )


# --- constants of the model, where their entries differ along an axis that grows with the width ------


class Constants:
    """Arrays of one variable at both widths, computed when they are asked for."""

    def __init__(self, compute: Callable[[], tuple]):
        self._compute = compute
        self._kept: tuple | None = None

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

        def pick(k: int) -> tuple:
            return tuple(out[k] for out in both())

        return {v: cls(functools.partial(pick, k)) for k, v in enumerate(one.outvars)}

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
    draws = TABLE[name].random == "draw"
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
