"""Steps that read data or parameters: moments of the inputs, of biases and of embeddings, evaluated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need, inputs_to_kernel
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import entries
from ntk.trace.moments import Law
from ntk.trace.numbers import run_finite, to_axes
from ntk.trace.setting import Setting, Sides
from ntk.trace.steps import Step

_ROWS = 4096  # of a table of normal weights whose entries are kept


def finite_sides(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides:
    """Arrays of numbers in both batches."""
    one = run_finite(step.static, [s.one for s in operands], setting.samples[0], setting.dtype)
    two = run_finite(step.static, [s.two for s in operands], setting.samples[1], setting.dtype)
    return Sides(one, two)


def data_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Second moments of the inputs."""
    coded, sizes, where = step.static
    plan = setting.plan._replace(need=need, batch_axis=0, channel_axis=-1)
    arrays = []
    for array in operands[0]:
        x = to_axes(array.astype(setting.dtype), coded, sizes)
        rest = [1 + k for k in range(len(sizes)) if k not in where]
        x = jnp.transpose(x, (0, *(1 + k for k in where), *rest))
        arrays.append(x.reshape(*x.shape[: 1 + len(where)], -1))
    coincident = setting.coincident if arrays[0].shape[0] > 1 else None
    # A layer of weights takes the entries as they are.
    raw = entries.of_weights(*arrays, NORMAL, 1.0) if setting.entries else None
    return Law(inputs_to_kernel(*arrays, None, None, coincident, plan), entries=raw)


def _kernel(
    nngp: Array,
    var1: Array,
    var2: Array,
    ntk: Array | None,
    need: Need,
    within: tuple,
    **fields: Any,
) -> Kernel:
    one = jnp.zeros((), nngp.dtype)
    base = Kernel(one, var1, var2, ntk, *within, **fields)
    return base.replace(nngp=nngp)


def _outer(x: Array, y: Array) -> Array:
    """All products of entries of x and y."""
    return jnp.expand_dims(x, tuple(range(x.ndim, x.ndim + y.ndim))) * y.reshape(
        (1,) * x.ndim + y.shape
    )


def vector_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a parameter that acts on each unit alone."""
    variance, rate, sizes, law = step.static
    same = jnp.ones((1, 1), setting.dtype)
    for size in sizes:
        eye = jnp.eye(size, dtype=setting.dtype) if need.pairs else jnp.ones(size, setting.dtype)
        same = _outer(same, eye)
    var = jnp.full((1, *sizes), variance, setting.dtype)
    within = (None, None)
    if need.variance == 2 and sizes:
        eyes = jnp.ones((1,), setting.dtype)
        for size in sizes:
            eyes = _outer(eyes, jnp.eye(size, dtype=setting.dtype))
        within = (variance * eyes, variance * eyes)
    ntk = rate * same if setting.plan.ntk else None
    diagonal = bool(sizes) and not need.pairs
    return Law(
        _kernel(
            variance * same,
            var,
            var,
            ntk,
            need,
            within,
            is_gaussian=True,
            diagonal_spatial=diagonal,
        ),
        entries=_identity(sizes, law, variance**0.5, setting),
    )


def _identity(
    sizes: tuple[int, ...], law: Standard, scale: float, setting: Setting
) -> entries.Entries | None:
    """Entries of one weight for each position."""
    if not setting.entries:
        return None
    count = math.prod(sizes)
    eye = jnp.eye(count, dtype=setting.dtype).reshape(1, *sizes, count)
    return dataclasses.replace(entries.of_weights(eye, eye, law, scale), shared=True)


def lookup_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of an embedding: rows are independent, equal indices have equal rows."""
    variance, rate, coded, sizes, law, count = step.static
    rows = [to_axes(a, coded, sizes) for a in operands[0]]
    rows = [jnp.broadcast_to(r, (r.shape[0], *sizes)) for r in rows]
    diagonal = bool(sizes) and not need.pairs
    a, b = kernels.views(*rows, diagonal)
    same = (a == b).astype(setting.dtype)
    within = [None, None]
    if need.variance == 2 and sizes:
        for k, r in enumerate(rows):
            a, b = kernels.views_within(r)
            within[k] = variance * (a == b).astype(setting.dtype)
    variances = [jnp.full(r.shape, variance, setting.dtype) for r in rows]
    ntk = rate * same if setting.plan.ntk else None
    kernel = _kernel(
        variance * same, *variances, ntk, need, within, is_gaussian=True, diagonal_spatial=diagonal
    )
    table = None
    if setting.entries and (law != NORMAL or count <= _ROWS):
        hot = (jax.nn.one_hot(r.astype(jnp.int32), count, dtype=setting.dtype) for r in rows)
        table = entries.of_weights(*hot, law, variance**0.5)
    return Law(kernel, entries=table)
