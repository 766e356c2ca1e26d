"""One coordinate of a wide layer as a function of Gaussian processes, and the algebra of such functions.

In a Tensor Program every unit of a wide layer is an independent copy of one random variable, a function of jointly
Gaussian ones and of numbers that depend on the sample. Here such a function is a sum of `Term`s: each a number
(`Coefficient`) times functions (`tree`s) of one Gaussian process each. Sums of processes stay `Linear` until a
nonlinearity needs their law.

Source: Yang (2019), Tensor Programs I-III.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from ntk.axes import Axis, Dims, Splits, substitute

Tree = (
    Any  # ("z",) | ("number", c) | ("parameter", value index, c) | (primitive name, params, *trees)
)
Z: Tree = ("z",)
_PRIMITIVES: dict[str, Any] = {}


class Refusal(ValueError):
    """Something in a network that has no kernel here, with what to do."""


class Coefficient(NamedTuple):
    """number width^power times arrays that depend on the sample and the position.

    Attributes:
        number: a float.
        power: of the width.
        arrays: (value index, dimensions) of each array.
    """

    number: float = 1.0
    power: float = 0.0
    arrays: tuple[tuple[Any, Dims], ...] = ()

    def times(self, other: Coefficient) -> Coefficient:
        arrays = self.arrays + other.arrays
        return Coefficient(self.number * other.number, self.power + other.power, arrays)


class Process(NamedTuple):
    """What is known of a process before its moments are computed.

    Attributes:
        index: of the step that computes them.
        axes: axes of positions, in the order of its moments.
        units: axes of units, in their own order.
        gaussian: whether it is Gaussian with mean zero.
        bases: the independent processes that it is a function of.
        value: of a parameter that is constant at initialisation; None for others.
        frozen_law: its tangent kernel is a mean over units, so that no nonlinearity may act on it.
    """

    index: int
    axes: tuple[Axis, ...]
    units: tuple[Axis, ...]
    gaussian: bool
    bases: frozenset
    value: float | None = None
    averaged: bool = False


class Ref(NamedTuple):
    """A process as it appears in an array.

    Attributes:
        process: the process.
        maps: linear maps of its positions, applied in turn.
        axes: its positions after the maps, in order.
        units: the axes of units in the order of the process.
        part: which of its units.
    """

    process: Process
    maps: tuple
    axes: tuple[Axis, ...]
    units: tuple[Axis, ...]
    part: tuple = ()


class Number(NamedTuple):
    """An array with one value, number width^power."""

    number: float
    power: float = 0.0


class Finite(NamedTuple):
    """An array of numbers: the data, or what follows from it; `index` names its value."""

    index: Any
    power: float = 0.0


class Weight(NamedTuple):
    """A parameter that has not met an activation yet.

    Attributes:
        name: path of the parameter.
        number, power, arrays: what it was multiplied with, as in `Coefficient`.
        part: slices taken of it, as (dimension, start, stop) at the first width.
        own: for each of its dimensions, its axes in the array now.
    """

    name: str
    number: float = 1.0
    power: float = 0.0
    arrays: tuple = ()
    part: tuple = ()
    own: Dims = ()


class Linear(NamedTuple):
    """A sum of processes with coefficients."""

    terms: tuple[tuple[Ref, Coefficient], ...]


class Term(NamedTuple):
    """A coefficient times a product of functions, each of one process."""

    coefficient: Coefficient
    factors: tuple[tuple[Ref, Tree], ...]


class Terms(NamedTuple):
    """A sum of terms."""

    terms: tuple[Term, ...]


class Pieces(NamedTuple):
    """Several arrays side by side along the axis of units, with the share of each; and all their units."""

    parts: tuple[tuple[Any, Dims], ...]
    shares: tuple[float, ...]
    units: Axis


class Value(NamedTuple):
    """An array of the traced program."""

    dims: Dims
    body: Any


def is_random(body: Any) -> bool:
    """Whether it differs between units."""
    return isinstance(body, Linear | Terms | Pieces)


# --- renaming of axes -----------------------------------------------------------------------------


def renamed(value: Value, splits: Splits) -> Value:
    """The value with axes replaced by the axes that they split into."""
    if not splits:
        return value
    return Value(substitute(value.dims, splits), renamed_body(value.body, splits))


def renamed_body(body: Any, splits: Splits) -> Any:
    if isinstance(body, Linear):
        return Linear(
            tuple((_renamed_ref(r, splits), _renamed_number(c, splits)) for r, c in body.terms)
        )
    if isinstance(body, Terms):
        return Terms(
            tuple(
                Term(
                    _renamed_number(t.coefficient, splits),
                    tuple((_renamed_ref(r, splits), tree) for r, tree in t.factors),
                )
                for t in body.terms
            )
        )
    if isinstance(body, Weight):
        arrays = tuple((i, substitute(dims, splits)) for i, dims in body.arrays)
        return body._replace(arrays=arrays, own=substitute(body.own, splits))
    if isinstance(body, Pieces):
        if body.units in splits and len(splits[body.units]) > 1:
            raise Refusal("layers that were concatenated are split again: split them before")
        parts = tuple((renamed_body(b, splits), substitute(dims, splits)) for b, dims in body.parts)
        return Pieces(parts, body.shares, splits.get(body.units, (body.units,))[0])
    return body


def _renamed_number(c: Coefficient, splits: Splits) -> Coefficient:
    return c._replace(arrays=tuple((i, substitute(dims, splits)) for i, dims in c.arrays))


def _renamed_ref(ref: Ref, splits: Splits) -> Ref:
    if not any(axis in splits for axis in ref.axes + ref.units):
        return ref
    axes = tuple(new for axis in ref.axes for new in splits.get(axis, (axis,)))
    units = tuple(new for axis in ref.units for new in splits.get(axis, (axis,)))
    maps = ref.maps
    if len(axes) != len(ref.axes):
        shape = tuple(axis.size[0] for axis in axes)
        maps = (*maps, ("reshape", shape))
    return ref._replace(maps=maps, axes=axes, units=units)


# --- algebra --------------------------------------------------------------------------------------


def scaled(body: Any, c: Coefficient) -> Any:
    """The body times a coefficient."""
    if isinstance(body, Number):
        return Number(body.number * c.number, body.power + c.power)
    if isinstance(body, Linear):
        return Linear(tuple((ref, old.times(c)) for ref, old in body.terms))
    if isinstance(body, Weight):
        new = Coefficient(body.number, body.power, body.arrays).times(c)
        return body._replace(number=new.number, power=new.power, arrays=new.arrays)
    if isinstance(body, Pieces):
        parts = tuple((scaled(b, c), dims) for b, dims in body.parts)
        return body._replace(parts=parts)
    return collected(t._replace(coefficient=t.coefficient.times(c)) for t in body.terms)


def constant_term(number: float, power: float = 0.0) -> Term:
    return Term(Coefficient(number, power), ())


def as_terms(body: Any) -> tuple[Term, ...]:
    """Terms of a body; a sum of processes must have been sealed into one."""
    if isinstance(body, Terms):
        return body.terms
    if isinstance(body, Linear):
        return tuple(Term(c, ((ref, Z),)) for ref, c in body.terms)
    if isinstance(body, Number):
        return (constant_term(body.number, body.power),) if body.number else ()
    raise TypeError(body)


def univariate(body: Any) -> tuple[Ref, Tree] | None:
    """(process, function) if the body is a function of one process without further numbers, else None."""
    terms = as_terms(body)
    everything = {ref for t in terms for ref, _ in t.factors}
    refs = {ref for ref in everything if ref.process.value is None}
    if not refs and len(everything) == 1 and len(terms) == 1:  # a parameter alone
        if not terms[0].coefficient.arrays and not terms[0].coefficient.power:
            tree = terms[0].factors[0][1]
            return next(iter(everything)), times_number(tree, terms[0].coefficient.number)
    if len(refs) != 1 or any(t.coefficient.arrays or t.coefficient.power for t in terms):
        return None
    total: Tree | None = None
    for t in terms:
        tree = times_number(_product(t.factors), t.coefficient.number)
        total = tree if total is None else ("add", (), total, tree)
    return next(iter(refs)), total


def _product(factors: tuple) -> Tree:
    trees = [
        tree if ref.process.value is None else at_parameter(tree, ref) for ref, tree in factors
    ]
    if not trees:
        return ("number", 1.0)
    return functools.reduce(lambda a, b: ("mul", (), a, b), trees)


def at_parameter(tree: Tree, ref: Ref) -> Tree:
    """A function of a parameter that is constant at initialisation, as a leaf of a function of something else."""
    return replace(tree, ("parameter", ref.process.index, ref.process.value))


def replace(tree: Tree, leaf: Tree) -> Tree:
    """The tree with z replaced."""
    if tree == Z:
        return leaf
    if tree[0] in ("number", "parameter"):
        return tree
    return (*tree[:2], *(replace(child, leaf) for child in tree[2:]))


def times_number(tree: Tree, number: float) -> Tree:
    return tree if number == 1 else ("mul", (), ("number", number), tree)


def collected(terms: Any) -> Terms:
    """Terms with those that are functions of one process alone, and have one coefficient, put together."""
    groups: dict = {}
    for t in terms:
        free = [ref for ref, _ in t.factors if ref.process.value is None]
        if len(free) > 1:
            key = (id(t),)
        else:
            key = (free[0] if free else None, t.coefficient.arrays, t.coefficient.power)
            if not free and t.factors:
                key = (*key, t.factors)
        groups.setdefault(key, []).append(t)
    out = []
    alone = {key[0] for key in groups if len(key) > 1 and key[0] is not None and not any(key[1:3])}
    if len(alone) == 1 and (None, (), 0.0) in groups:  # a constant joins the only function there is
        target = (next(iter(alone)), (), 0.0)
        groups[target] = groups[target] + groups.pop((None, (), 0.0))
    for key, group in groups.items():
        if len(group) == 1 or len(key) == 1:
            out.extend(group)
            continue
        if key[0] is None:
            number = sum(t.coefficient.number for t in group)
            out.append(Term(group[0].coefficient._replace(number=number), group[0].factors))
            continue
        total = None
        for t in group:
            tree = times_number(_product(t.factors), t.coefficient.number)
            total = tree if total is None else ("add", (), total, tree)
        out.append(Term(group[0].coefficient._replace(number=1.0), ((key[0], total),)))
    return Terms(tuple(t for t in out if t.coefficient.number != 0))


def multiplied(one: Any, two: Any) -> Terms:
    """Product of two bodies, unit by unit."""
    first, second = as_terms(one), as_terms(two)
    if len(first) * len(second) > 64:
        raise Refusal("a product of long sums: insert a layer of weights between the factors")
    out = []
    for a in first:
        for b in second:
            factors = dict(a.factors)
            for ref, tree in b.factors:
                factors[ref] = ("mul", (), factors[ref], tree) if ref in factors else tree
            out.append(Term(a.coefficient.times(b.coefficient), tuple(factors.items())))
    return collected(out)


def added(one: Any, two: Any) -> Any:
    """Sum of two bodies."""
    if isinstance(one, Linear) and isinstance(two, Linear):
        total: dict = {}
        for ref, c in one.terms + two.terms:
            key = (ref, c.arrays, c.power)
            total[key] = total.get(key, 0.0) + c.number
        return Linear(
            tuple(
                (ref, Coefficient(n, power, arrays))
                for (ref, arrays, power), n in total.items()
                if n
            )
        )
    return collected(as_terms(one) + as_terms(two))


def applied(primitive: Any, params: tuple, args: list) -> Terms | None:
    """A nonlinear primitive on functions of one process; None if the arguments are not of that kind."""
    found = [None if isinstance(a, Number) else univariate(a) for a in args]
    if any(f is None and not isinstance(a, Number) for f, a in zip(found, args)):
        return None
    refs = {f[0] for f in found if f is not None}
    if not refs:
        return None
    if len(refs) != 1 or any(isinstance(a, Number) and a.power for a in args):
        return None
    _PRIMITIVES[primitive.name] = primitive
    trees = [("number", a.number) if f is None else f[1] for f, a in zip(found, args)]
    return Terms((Term(Coefficient(), ((refs.pop(), (primitive.name, params, *trees)),)),))


# --- trees as functions ---------------------------------------------------------------------------


def register(primitive: Any) -> None:
    """Makes a primitive known by its name."""
    _PRIMITIVES[primitive.name] = primitive


def bind(primitive: Any, params: dict, args: list, dtype: Any) -> Any:
    """One primitive on arrays, floating-point ones in `dtype` whatever the trace had."""
    if primitive.name == "convert_element_type":
        new = params["new_dtype"]
        return args[0].astype(dtype if jnp.issubdtype(new, jnp.floating) else new)
    if primitive.name in ("stop_gradient", "copy", "reduce_precision", "optimization_barrier"):
        return args[0]
    if jnp.issubdtype(params.get("dtype", jnp.int32), jnp.floating):
        params = params | {"dtype": dtype}
    floats = [jnp.issubdtype(a.dtype, jnp.floating) for a in args]
    args = [a.astype(dtype) if is_float else a for a, is_float in zip(args, floats)]
    out = primitive.bind(*args, **params)
    return out[0] if isinstance(out, list | tuple) and len(out) == 1 else out


def primitive(name: str) -> Any:
    """A primitive by its name, once it was met."""
    return _PRIMITIVES[name]


@functools.lru_cache(maxsize=1024)
def function(tree: Tree, parameter: int | None = None) -> Any:
    """The tree as a function of z, or of (z, p) with p the value of one of its parameters."""
    primitives = dict(_PRIMITIVES)

    def evaluate(node: Tree, z: jax.Array, p: Any, memo: dict) -> jax.Array:
        if node == Z:
            return z
        if node[0] == "number":
            value = node[1]
            return jnp.full(
                z.shape, value, z.dtype if isinstance(value, float) else jnp.result_type(value)
            )
        if node[0] == "parameter":
            value = p if node[1] == parameter else node[2]
            return jnp.broadcast_to(jnp.asarray(value, z.dtype), z.shape)
        if node not in memo:
            args = [evaluate(child, z, p, memo) for child in node[2:]]
            memo[node] = bind(primitives[node[0]], dict(node[1]), args, z.dtype)
        return memo[node]

    if parameter is None:
        return lambda z: evaluate(tree, jnp.asarray(z), None, {})
    return lambda z, p: evaluate(tree, jnp.asarray(z), p, {})


def parameters(tree: Tree) -> dict[int, float]:
    """Values of the parameters in a tree, by their index."""
    if tree[0] == "parameter":
        return {tree[1]: tree[2]}
    out: dict = {}
    for child in tree[2:] if tree[0] not in ("z", "number") else ():
        out |= parameters(child)
    return out


for _name, _fn in (("mul", jnp.multiply), ("add", jnp.add), ("neg", jnp.negative)):
    _arguments = (1.0, 2.0)[: 1 if _name == "neg" else 2]
    _jaxpr: jex.Jaxpr = jax.make_jaxpr(getattr(jax.lax, _name))(*_arguments).jaxpr
    register(_jaxpr.eqns[0].primitive)
