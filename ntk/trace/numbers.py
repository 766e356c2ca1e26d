"""Arrays of numbers in a traced program: the data, masks, positions, and means over units.

They are computed in the shapes of the trace, with 1 in place of an axis of units (they are constant along it) and the
number of samples at hand in place of the traced one.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ntk import primitives
from ntk.trace import trees

Array = jax.Array


def shape_of(code: tuple, samples: int) -> tuple[int, ...]:
    """Shape of an array, see `ntk.steps.shape_code`."""
    return tuple((samples if has else 1) * size for has, size in code)


def run_finite(static: tuple, arrays: list[Array], samples: int, dtype: Any) -> Array:
    """One primitive on arrays of numbers.

    Args:
        static: (primitive, its parameters, shape code of each operand, shape code of the result).
        arrays: operands.
        samples: number of samples.
        dtype: of all floating-point results.
    """
    name, params, codes, code = static
    shape = shape_of(code, samples)
    arrays = [
        jnp.broadcast_to(a, shape_of(c, samples)) if a.ndim == len(c) else a
        for a, c in zip(arrays, codes)
    ]
    if name == "broadcast":
        return jnp.broadcast_to(arrays[0], shape)
    if name == "equals":
        return (arrays[0] == dict(params)["value"]).astype(dtype)
    if name == "power":
        exponent = dict(params)["exponent"]
        return arrays[0].astype(dtype) ** exponent
    return position_op(name, dict(params), arrays, codes, code, samples, dtype)


def position_op(
    name: str,
    params: dict,
    arrays: list[Array],
    codes: tuple,
    code: tuple,
    samples: int,
    dtype: Any,
) -> Array:
    """A primitive with the sizes in its parameters changed to those of the arrays at hand."""
    shape = shape_of(code, samples)
    if name == "reshape":
        return arrays[0].reshape(shape)
    if name == "broadcast_in_dim":
        out = [1] * len(shape)
        for axis, size in zip(params["broadcast_dimensions"], arrays[0].shape):
            out[axis] = size
        return jnp.broadcast_to(arrays[0].reshape(out), shape)
    if name == "slice":
        inside = arrays[0].shape
        whole = [a == b for a, b in zip(shape, inside)]
        start = [0 if w else s for w, s in zip(whole, params["start_indices"])]
        stop = [size if w else s for w, s, size in zip(whole, params["limit_indices"], inside)]
        strides = params["strides"] or [1] * len(shape)
        return jax.lax.slice(
            arrays[0], start, stop, [1 if w else s for w, s in zip(whole, strides)]
        )
    if name == "iota":
        kind = dtype if params.get("floating") else jnp.int32
        return jax.lax.broadcasted_iota(kind, shape, params["dimension"])
    if name == "gather":
        kept = shape_of(codes[0], samples)
        sizes = tuple(
            size if traced != 1 or size == 1 else 1
            for size, traced in zip(kept, params["slice_sizes"])
        )
        params = params | {"slice_sizes": sizes}
    if primitives.known(name).elementwise and all(len(c) == len(code) for c in codes):
        arrays = [jnp.broadcast_to(a, shape) for a in arrays]
    return trees.bind(trees.primitive(name), params, arrays, dtype)


def to_axes(array: Array, coded: tuple, sizes: tuple[int, ...]) -> Array:
    """An array of numbers as (N or 1, *S): samples first, then each of the axes (1 where it is constant).

    Args:
        array: in the shape of the trace.
        coded: its dimensions, see `ntk.steps.code`.
        sizes: of the axes.
    """
    atoms, where = [], []
    for dim, length in zip(coded, array.shape):
        rest = math.prod(sizes[a] for a in dim if a != "s")
        for axis in dim:
            where.append(0 if axis == "s" else 1 + axis)
            own = length // rest if axis == "s" else sizes[axis]
            atoms.append(1 if length == 1 else own)
    array = array.reshape(atoms)
    order = sorted(range(len(where)), key=where.__getitem__)
    array = jnp.transpose(array, order)
    present = {where[k]: atoms[k] for k in order}
    return array.reshape([present.get(k, 1) for k in range(1 + len(sizes))])


def from_axes(array: Array, coded: tuple) -> Array:
    """(N, *S) as an array in the shape of the trace; the inverse of `to_axes`."""
    order, shape = [], []
    for dim in coded:
        order += [0 if axis == "s" else 1 + axis for axis in dim]
        shape.append(math.prod(array.shape[0 if a == "s" else 1 + a] for a in dim))
    left = [k for k in range(array.ndim) if k not in order]
    array = jnp.transpose(array, [*order, *left])
    return array.reshape(shape)


def apply_map(item: tuple, x: Array, operands: list[Array], dtype: Any) -> Array:
    """One linear map of positions on (N, M, *S), the same for each of the M copies.

    Args:
        item: ("reshape", shape), or ("scale", arrays coded, sizes), or ("map", primitive, parameters, which operand,
            sizes of S, dimensions of each operand coded, shape codes, shape code of the result, its dimensions coded).
        x: activations.
        operands: other arrays of the step, by their place among its inputs.
        dtype: of the result.
    """
    if item[0] == "reshape":
        return x.reshape(*x.shape[:2], *item[1])
    if item[0] == "expand":
        _, sizes, where = item
        shape = [1] * len(sizes)
        for k, axis in enumerate(where):
            shape[axis] = x.shape[2 + k]
        order = sorted(range(len(where)), key=where.__getitem__)
        x = jnp.transpose(x, (0, 1, *(2 + k for k in order)))
        return jnp.broadcast_to(x.reshape(*x.shape[:2], *shape), (*x.shape[:2], *sizes))
    if item[0] == "scale":
        _, where, coded, sizes = item
        factor = to_axes(operands[where[1]], coded, sizes)
        return x * jnp.expand_dims(factor, 1)
    if not any("s" in dim for dim in item[5]):  # the same for every sample, as a table of positions
        lead = x.shape[:2]
        y = _mapped_copies(item, x.reshape(1, -1, *x.shape[2:]), operands, dtype)
        return y.reshape(*lead, *y.shape[2:])
    return _mapped_copies(item, x, operands, dtype)


def _mapped_copies(item: tuple, x: Array, operands: list[Array], dtype: Any) -> Array:
    _, name, params, place, others, coded, codes, code, out = item
    samples = x.shape[0]

    def one(y: Array) -> Array:
        arrays = [operands[o[1]] for o in others]
        arrays.insert(place, from_axes(y, coded))
        arrays = [
            a if k == place else jnp.broadcast_to(a, shape_of(c, samples))
            for k, (a, c) in enumerate(zip(arrays, codes))
        ]
        z = position_op(name, dict(params), arrays, codes, code, samples, dtype)
        return _atoms(z, out, samples)

    return jax.vmap(one, 1, 1)(x)


def _atoms(z: Array, out: tuple, samples: int) -> Array:
    """An array in the shape of the trace as (N, *S), S in order of appearance; `out` gives sizes, "s" for samples."""
    sizes, order = [], []
    for dim in out:
        for size in dim:
            if size == "s":
                order.insert(0, len(sizes))
                sizes.append(samples)
            else:
                order.append(len(sizes))
                sizes.append(size)
    return jnp.transpose(z.reshape(sizes), order)
