"""How empirical kernels take their arguments: axes of examples, keyword arguments, parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class MapAxes(NamedTuple):
    """Axes of the examples: of each array of inputs and kwargs; of all or of each of the outputs."""

    arrays: tuple[int | None, ...]
    outputs: int | tuple[int | None, ...] | None


def map_axes(vmap_axes: Any, x: PyTree, kwargs: dict) -> MapAxes:
    """Axes of the examples from an axis, or from a triple for inputs, outputs and kwargs.

    Raises:
        ValueError: kwargs that are not there, or axes for inputs without outputs or the reverse.
    """
    triple = isinstance(vmap_axes, tuple) and len(vmap_axes) == 3
    x_axes, out_axes, kw_axes = vmap_axes if triple else (vmap_axes, vmap_axes, {})
    kw_axes = {} if kw_axes is None else kw_axes
    if isinstance(kw_axes, int):
        kw_axes = dict.fromkeys(kwargs, kw_axes)
    unknown = sorted(set(kw_axes) - set(kwargs))
    if unknown:
        raise ValueError(f"vmap_axes names {unknown}, which are not among {sorted(kwargs)}")
    wanted = (x_axes, {name: kw_axes.get(name) for name in kwargs})
    axes = jax.tree.broadcast(wanted, (x, kwargs), is_leaf=lambda a: a is None)
    axes = jax.tree.leaves(axes, is_leaf=lambda a: a is None)
    values = jax.tree.leaves((x, kwargs))
    arrays = tuple(
        None if a is None else a % np.ndim(v) for a, v in zip(axes, values) if is_array(v)
    )
    if out_axes is not None and not isinstance(out_axes, int):
        out_axes = tuple(jax.tree.leaves(out_axes, is_leaf=lambda a: a is None))
    if (out_axes is None) != all(a is None for a in arrays):
        raise ValueError(
            f"vmap_axes is {vmap_axes!r}: give axes to both inputs and outputs, or none"
        )
    return MapAxes(arrays, out_axes)


def split_kwargs(kwargs: dict, x2: PyTree | None) -> tuple[dict, dict]:
    """kwargs of the two batches: pairs are divided, and ``rng`` gives each batch its own key."""
    first, second = {}, {}
    for name, value in kwargs.items():
        if isinstance(value, tuple) and len(value) == 2:
            first[name], second[name] = value
        elif name == "rng" and value is not None and x2 is not None:
            first[name], second[name] = jax.random.split(value)
        else:
            first[name] = second[name] = value
    return first, second


def is_array(value: Any) -> bool:
    """Whether the value is an array, of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def partition(tree: PyTree) -> tuple[list, tuple]:
    """Arrays, which are traced, and all else, which is static."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [v for v in leaves if is_array(v)]
    return arrays, (treedef, tuple(None if is_array(v) else (v,) for v in leaves))


def combine(arrays: list, static: tuple) -> PyTree:
    """The tree that was partitioned, with other arrays."""
    treedef, rest = static
    values = iter(arrays)
    return treedef.unflatten([next(values) if r is None else r[0] for r in rest])


def split_params(params: PyTree) -> tuple[list, Callable[[list], PyTree]]:
    """Floating-point leaves, and the function that puts others in their places."""
    leaves, treedef = jax.tree.flatten(params)
    is_float = [jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in leaves]

    def rebuild(floats: list) -> PyTree:
        values = iter(floats)
        return treedef.unflatten([next(values) if d else v for v, d in zip(leaves, is_float)])

    return [jnp.asarray(v) for v, d in zip(leaves, is_float) if d], rebuild


def broadcast(out_axes: Any, count: int) -> list[int | None]:
    """The axis of the examples in each of the outputs.

    Raises:
        ValueError: another number of axes than of outputs.
    """
    axes = list(out_axes) if isinstance(out_axes, tuple) else [out_axes] * count
    if len(axes) != count:
        raise ValueError(f"vmap_axes gives {len(axes)} output axes; f returns {count} arrays")
    return axes


def as_axes(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    """Axes as a tuple."""
    return tuple(int(a) for a in np.atleast_1d(np.asarray(axes, int)))


def hashable(f: Callable) -> Callable:
    """Compiled kernels are kept by function: one that has no hash is compiled for anew."""
    try:
        hash(f)
    except TypeError:
        return lambda *args, **kwargs: f(*args, **kwargs)
    return f


def check_inputs(x1: PyTree, x2: PyTree | None, params: PyTree) -> None:
    """Refuses what has no real kernel.

    Raises:
        ValueError: complex arrays, an empty batch, no inputs, no parameters.
    """
    for name, tree in (("x1", x1), ("x2", x2), ("params", params)):
        for leaf in jax.tree.leaves(tree):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
                raise ValueError(f"{name} is complex; kernels are of real inputs and parameters")
            if name != "params" and np.size(leaf) == 0:
                raise ValueError(
                    f"{name} has an array of shape {np.shape(leaf)}: the batch is empty"
                )
    if not jax.tree.leaves(x1):
        raise ValueError("x1 has no arrays")
    if not any(jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in jax.tree.leaves(params)):
        raise ValueError("params has no floating-point arrays to differentiate by")
