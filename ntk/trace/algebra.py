"""Functions of Gaussian processes, unit by unit: trees of primitives, their sums and products.

A nonlinearity of an activation plus what is zero at initialisation, as of a branch whose last gain starts at zero, is
f(u + p h) = f(u) + f'(u) p h to first order in p, which is all that the kernels of a network read of it: values at
p = 0, and derivatives there. Where f has a kink that u meets with positive probability, as a ReLU of a ReLU does at 0,
the derivative is the one that JAX takes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk import jaxprs
from ntk.primitives import TABLE
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    Pieces,
    Ref,
    Refusal,
    Term,
    Terms,
    Tree,
    Weight,
)

Z: Tree = ("z",)
_PRIMITIVES: dict[str, Any] = {}
_USUAL: dict[str, dict] = {}  # parameters of a primitive, for trees that leave them out


# --- trees: functions of one Gaussian ------------------------------------------------------------


def replace(tree: Tree, leaf: Tree) -> Tree:
    """The tree with z replaced."""
    if tree == Z:
        return leaf
    if tree[0] in ("number", "parameter"):
        return tree
    return (*tree[:2], *(replace(child, leaf) for child in tree[2:]))


def is_linear(tree: Tree) -> bool:
    """Whether a tree is z times numbers and parameters."""
    if tree == Z:
        return True
    if tree[0] == "mul":
        left, right = tree[2:]
        # Parameters are constant at initialisation: a product with one is linear in z.
        fixed = ("number", "parameter")
        return (left[0] in fixed and is_linear(right)) or (right[0] in fixed and is_linear(left))
    return False


def times_number(tree: Tree, number: float) -> Tree:
    """number * tree."""
    return tree if number == 1 else ("mul", (), ("number", number), tree)


def register(primitive: Any) -> None:
    """Makes a primitive known by its name."""
    _PRIMITIVES[primitive.name] = primitive


def bind(primitive: Any, params: dict, args: list, dtype: Any) -> Any:
    """One primitive on arrays, floating-point ones in `dtype` whatever the trace had."""
    if primitive.name == "convert_element_type":
        return _of_kind(args[0].astype(params["new_dtype"]), dtype)
    row = TABLE[primitive.name]
    if row.identity:
        return args[0]
    kind = params.get("dtype")
    if kind is not None:
        floats = jnp.issubdtype(kind, jnp.floating)
        params = params | {
            "dtype": dtype if floats else {jnp.dtype("int64"): jnp.int32}.get(kind, kind)
        }
    args = [_of_kind(a, dtype) for a in args]
    if row.arithmetic and any(a.dtype == dtype for a in args):
        args = [a.astype(dtype) for a in args]
    out = primitive.bind(*args, **_USUAL.get(primitive.name, {}) | params)
    return out[0] if isinstance(out, list | tuple) and len(out) == 1 else out


def _of_kind(x: jax.Array, dtype: Any) -> jax.Array:
    """Floating-point numbers in `dtype`, integers in 32 bits, others as they are."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    return x.astype(jnp.int32) if x.dtype == jnp.int64 else x


def primitive_of(name: str) -> Any:
    """A primitive by its name, once it was met."""
    return _PRIMITIVES[name]


@functools.lru_cache(maxsize=1024)
def function(tree: Tree, parameter: int | None = None) -> Any:
    """The tree as a function of z, or of (z, p) with p the value of one of its parameters."""
    known = dict(_PRIMITIVES)

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
            memo[node] = bind(known[node[0]], dict(node[1]), args, z.dtype)
        return memo[node]

    if parameter is None:
        return lambda z: evaluate(tree, jnp.asarray(z), None, {})
    return lambda z, p: evaluate(tree, jnp.asarray(z), p, {})


@functools.lru_cache(maxsize=1024)
def on_host(tree: Tree, parameter: int | None = None) -> Any:
    """The same function on numpy arrays, in double precision; nothing is compiled."""

    def evaluate(node: Tree, z: np.ndarray, p: Any, memo: dict) -> np.ndarray:
        if node == Z:
            return z
        if node[0] == "number":
            return np.full(z.shape, node[1])
        if node[0] == "parameter":
            return np.full(z.shape, p if node[1] == parameter else node[2], float)
        if node not in memo:
            args = [evaluate(child, z, p, memo) for child in node[2:]]
            params = dict(node[1])
            new = params.get("new_dtype")
            if new is not None and jnp.issubdtype(new, jnp.floating):
                params["new_dtype"] = np.dtype(float)
            memo[node] = jaxprs.bind(_PRIMITIVES[node[0]], params, args)
        return memo[node]

    return lambda z, p=None: evaluate(tree, np.asarray(z, float), p, {})


def parameters(tree: Tree) -> dict[int, float]:
    """Values of the parameters in a tree, by their index."""
    if tree[0] == "parameter":
        return {tree[1]: tree[2]}
    out: dict = {}
    for child in tree[2:] if tree[0] not in ("z", "number") else ():
        out |= parameters(child)
    return out


# --- sums of products of them --------------------------------------------------------------------


def order_one(body: Any) -> tuple[Any, float]:
    """A body without the power of the width that it carries, as of queries divided by sqrt(d), and that power."""
    if isinstance(body, Linear):
        powers = {c.power for _, c in body.terms}
    else:
        powers = {t.coefficient.power for t in body.terms} if isinstance(body, Terms) else {0.0}
    power = powers.pop() if len(powers) == 1 else 0.0
    return (scaled(body, Coefficient(1.0, -power)) if power else body), power


def scaled(body: Any, c: Coefficient) -> Any:
    """The body times a coefficient; a number where that is zero."""
    if not c.number and isinstance(body, Number | Linear | Terms):
        return Number(0.0)
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
    """A number as a term."""
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
    alone = not refs and len(everything) == 1 and len(terms) == 1  # a parameter
    if alone and not terms[0].coefficient.arrays and not terms[0].coefficient.power:
        tree = terms[0].factors[0][1]
        return next(iter(everything)), times_number(tree, terms[0].coefficient.number)
    if len(refs) != 1 or any(t.coefficient.arrays or t.coefficient.power for t in terms):
        return None
    total: Tree | None = None
    for t in terms:
        tree = times_number(_product(t.factors), t.coefficient.number)
        total = tree if total is None else ("add", (), total, tree)
    return next(iter(refs)), total


def at_parameter(tree: Tree, ref: Ref) -> Tree:
    """A function of a parameter that is constant at initialisation, as a leaf of a function of something else."""
    return replace(tree, ("parameter", ref.process.index, ref.process.value))


def _product(factors: tuple) -> Tree:
    trees = [
        tree if ref.process.value is None else at_parameter(tree, ref) for ref, tree in factors
    ]
    if not trees:
        return ("number", 1.0)
    return functools.reduce(lambda a, b: ("mul", (), a, b), trees)


def collected(terms: Any) -> Terms:
    """Terms with those that are functions of one process alone, and have one coefficient, put together."""
    groups: dict[tuple, list[Term]] = {}
    key: tuple
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
    free = {ref for ref in refs if ref.process.value is None} or set(list(refs)[:1])
    found = [f if f is None or f[0] in free else (f[0], at_parameter(f[1], f[0])) for f in found]
    refs = free
    if not refs:
        return None
    if len(refs) != 1 or any(isinstance(a, Number) and a.power for a in args):
        return None
    register(primitive)
    leaves = [("number", a.number) if f is None else f[1] for f, a in zip(found, args)]
    return Terms((Term(Coefficient(), ((refs.pop(), (primitive.name, params, *leaves)),)),))


def applied_beside_zero(primitive: Any, params: tuple, args: list, custom: bool) -> Terms | None:
    """A primitive on an activation plus what is zero at initialisation (and numbers).

    None where there is no such sum, or its derivative is not known.

    Args:
        primitive: with one argument that is random.
        params: its parameters.
        args: its arguments.
        custom: whether it is inside a function with a derivative rule of its own, as `jax.nn.relu` is.
    """
    places = [k for k, a in enumerate(args) if isinstance(a, Linear | Terms)]
    if len(places) != 1 or any(isinstance(a, Number) and a.power for a in args):
        return None
    terms = as_terms(args[places[0]])
    zeros = [t for t in terms if any(ref.process.value == 0 for ref, _ in t.factors)]
    rest = [t for t in terms if t not in zeros]
    if not zeros or not rest:
        return None
    alone = univariate(Terms(tuple(rest)))
    if alone is None or alone[0].process.value is not None:
        return None
    ref, tree = alone
    leaves = [
        tree if k == places[0] else ("number", getattr(a, "number", None))
        for k, a in enumerate(args)
    ]
    derivative = TABLE[primitive.name].slope
    if derivative is None:
        return None
    own = (primitive.name, params, *leaves)
    x, other = leaves[places[0]], leaves[1 - places[0]] if len(leaves) > 1 else None
    slope = derivative(own, x, other, custom)
    value = applied(
        primitive, params, [Terms(tuple(rest)) if k == places[0] else a for k, a in enumerate(args)]
    )
    # f(u + p h) = f(u) + f'(u) p h at p = 0, where the network is taken and differentiated.
    moved = Terms((Term(Coefficient(), ((ref, slope),)),))
    return added(value, multiplied(moved, Terms(tuple(zeros))))


def equation(name: str, arguments: int = 2) -> Any:
    """An equation of a primitive of one or two arguments, whose name is known by then."""
    made = jax.make_jaxpr(getattr(jax.lax, name))(*(1.0, 2.0)[:arguments]).jaxpr.eqns[0]
    register(made.primitive)
    _USUAL[name] = made.params
    return made


for _name, _count in (
    ("mul", 2),
    ("add", 2),
    ("neg", 1),
    ("sign", 1),
    ("max", 2),
    ("exp", 1),
    ("cos", 1),
    ("sin", 1),
):
    equation(_name, _count)
