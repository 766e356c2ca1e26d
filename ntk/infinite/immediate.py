"""A traced function evaluated with numpy at once, without compiling it.

XLA compiles a small kernel in .3 to 3 s and evaluates it in .0001 s; numpy compiles nothing and takes some .005 s. Who
asks for a few of them, as in a notebook, would wait for the compiler alone. A `Program` is walked through equation by
equation; what numpy does not have is run by JAX, one primitive at a time. It tells beforehand what that takes.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.infinite import numpy_primitives

COMPILING = 2**21
"""What it takes to compile one equation, in entries that numpy computes meanwhile: some 1 ms."""

_EQUATION = 2**10
"""What one equation costs, in entries, however small its result is."""

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

_INNER = CALLS | {"custom_vmap_call": "call"}
"""And a function with a rule of its own for batches, which the tracer of models does not follow."""


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
            out = _run(self.jaxpr.jaxpr, self.jaxpr.consts, [np.asarray(x) for x in leaves])
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
    if name in _INNER:
        return _cost(params[_INNER[name]])
    if name == "scan":
        entries, count = _cost(params["jaxpr"])
        return params["length"] * entries, count
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


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[np.ndarray]:
    values = dict(zip(jaxpr.constvars, map(np.asarray, consts))) | dict(zip(jaxpr.invars, args))
    last = {v: k for k, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not _literal(v)}
    kept = {v for v in jaxpr.outvars if not _literal(v)}

    def read(v: Any) -> Any:
        return np.asarray(v.val, v.aval.dtype) if _literal(v) else values[v]

    for k, eqn in enumerate(jaxpr.eqns):
        out = _equation(eqn, [read(v) for v in eqn.invars])
        values |= zip(eqn.outvars, out)
        for v in {v for v in eqn.invars if not _literal(v)} - kept:
            if last[v] == k:
                values.pop(v, None)
    return [read(v) for v in jaxpr.outvars]


def _inside(program: Any, args: Sequence[Any]) -> list[np.ndarray]:
    """A program nested in another, closed or not."""
    return _run(getattr(program, "jaxpr", program), getattr(program, "consts", ()), args)


def _literal(v: Any) -> bool:
    return hasattr(v, "val")


def _equation(eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    name, params = eqn.primitive.name, eqn.params
    if name in _INNER:
        return _inside(params[_INNER[name]], args)
    if name in _LOOPS:
        return _LOOPS[name](eqn, args)
    if name in _SHAPES:
        return [_SHAPES[name](params, *args)]
    if eqn.primitive.multiple_results or not numpy_primitives.knows(eqn.primitive):
        return _by_jax(eqn, args)
    return [numpy_primitives.bind(eqn.primitive, params, args)]


def _by_jax(eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    """One equation run by JAX, in the types that it was traced in."""
    wide = any(v.aval.dtype.itemsize == 8 for v in (*eqn.invars, *eqn.outvars))
    wide = wide or jax.config.jax_enable_x64  # type: ignore[attr-defined, unused-ignore]  # JAX adds its options by name
    with jax.ensure_compile_time_eval(), jax.enable_x64(wide):
        out = eqn.primitive.bind(*map(jnp.asarray, args), **eqn.params)
    return [np.asarray(x) for x in (out if eqn.primitive.multiple_results else [out])]


def body(equation: Any) -> Any:
    """The program that an equation calls or repeats."""
    inner = equation.params[CALLS.get(equation.primitive.name, "jaxpr")]
    return getattr(inner, "jaxpr", inner)


def carried(equation: Any) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan.

    By shapes, because the names of these numbers differ between versions of JAX: rows of what is looped over come last.
    """
    inner = body(equation)
    last = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.invars, inner.invars))
    carry = sum(a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, inner.outvars))
    return last - carry, carry


def _scan(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params, (fixed, count) = equation.params, carried(equation)
    consts, carry, xs = args[:fixed], args[fixed : fixed + count], args[fixed + count :]
    body, length = params["jaxpr"], params["length"]
    rows = []
    for k in range(length)[:: -1 if params["reverse"] else 1]:
        out = _inside(body, [*consts, *carry, *(x[k] for x in xs)])
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
    while _inside(test, [*args[:one], *carry])[0]:
        carry = _inside(body, [*args[one : one + two], *carry])
    return carry


def _cond(equation: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    params = equation.params
    which = int(np.clip(args[0], 0, len(params["branches"]) - 1))
    branch = params["branches"][which]
    return _inside(branch, args[1:])


_LOOPS: dict[str, Callable] = {"scan": _scan, "while": _while, "cond": _cond}


def _spread(params: dict, x: np.ndarray) -> np.ndarray:
    shape = params["shape"]
    inside = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], x.shape):
        inside[axis] = size
    return np.broadcast_to(x.reshape(inside), shape)


def _reshape(params: dict, x: np.ndarray) -> np.ndarray:
    return x.reshape(params["new_sizes"])


def _slice(params: dict, x: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _pad(params: dict, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    sizes = [
        max(low + high + n + max(n - 1, 0) * inner, 0)
        for (low, high, inner), n in zip(params["padding_config"], x.shape)
    ]
    out = np.full(sizes, value)
    source, target = [], []
    for (low, _, inner), n, size in zip(params["padding_config"], x.shape, sizes):
        step = inner + 1
        places = low + step * np.arange(n)
        inside = np.flatnonzero((places >= 0) & (places < size))  # negative padding cuts off
        first, count = (inside[0], inside.size) if inside.size else (0, 0)
        source.append(slice(first, first + count))
        start = places[first] if count else 0
        target.append(slice(start, start + step * max(count - 1, 0) + bool(count), step))
    out[tuple(target)] = x[tuple(source)]
    return out


def _iota(params: dict) -> np.ndarray:
    shape, axis = params["shape"], params["dimension"]
    along = np.arange(shape[axis], dtype=params["dtype"])
    return np.broadcast_to(
        along.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape
    )


def _reduced(fn: Callable) -> Callable:
    return lambda params, x: np.asarray(fn(x, axis=tuple(params["axes"]))).astype(
        x.dtype, copy=False
    )


def _dot(params: dict, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (left, right), (batch1, batch2) = params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    one, two = ([""] * a.ndim for a in (x, y))
    for pairs in (zip(batch1, batch2), zip(left, right)):
        for i, j in pairs:
            one[i] = two[j] = next(letters)
    one, two = ([name or next(letters) for name in names] for names in (one, two))
    rest = [n for k, n in enumerate(one) if k not in (*left, *batch1)]
    rest += [n for k, n in enumerate(two) if k not in (*right, *batch2)]
    out = [one[i] for i in batch1] + rest
    kind = params["preferred_element_type"] or np.result_type(x, y)
    path = f"{''.join(one)},{''.join(two)}->{''.join(out)}"
    return np.einsum(path, x.astype(kind), y.astype(kind), optimize=True)


_SHAPES: dict[str, Callable] = {
    "broadcast_in_dim": lambda params, x, *_: _spread(params, x),
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "dot_general": _dot,
    "expand_dims": lambda params, x: np.expand_dims(x, params["dimensions"]),
    "iota": _iota,
    "pad": _pad,
    "reduce_and": _reduced(np.all),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_or": _reduced(np.any),
    "reduce_prod": _reduced(np.prod),
    "reduce_sum": _reduced(np.sum),
    "reshape": _reshape,
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "slice": _slice,
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "stack": lambda params, *xs: np.stack(xs, params["axis"]),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
}
