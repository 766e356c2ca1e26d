"""Functions of one Gaussian as trees of primitives."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk import primitives

# ("z",) | ("number", c) | ("parameter", value index, c) | (primitive name, params, *trees)
Tree = Any
Z: Tree = ("z",)
_PRIMITIVES: dict[str, Any] = {}


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
    row = primitives.known(primitive.name)
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
    if (
        primitive.name == "mul"
    ):  # trees are multiplied without the parameters that its derivative reads
        return jax.lax.mul(*args)
    out = primitive.bind(*args, **params)
    return out[0] if isinstance(out, list | tuple) and len(out) == 1 else out


def _of_kind(x: jax.Array, dtype: Any) -> jax.Array:
    """Floating-point numbers in `dtype`, integers in 32 bits, others as they are."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    return x.astype(jnp.int32) if x.dtype == jnp.int64 else x


def primitive(name: str) -> Any:
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
            memo[node] = primitives.bind(_PRIMITIVES[node[0]], params, args)
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


for _name, _fn in (("mul", jnp.multiply), ("add", jnp.add), ("neg", jnp.negative)):
    _arguments = (1.0, 2.0)[: 1 if _name == "neg" else 2]
    _jaxpr: jex.Jaxpr = jax.make_jaxpr(getattr(jax.lax, _name))(*_arguments).jaxpr
    register(_jaxpr.eqns[0].primitive)
