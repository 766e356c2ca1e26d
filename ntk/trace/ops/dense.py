"""Layers of weights: sums over units, or over data, with a fresh matrix.

With K the mean of the inputs' covariance over what is summed, total = number x variance of a weight::

    K' = total K + b,    T' = total T + rate K + rate_b

Source: Jacot et al. (2018), theorem 1; Yang (2020), Tensor Programs II.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk.infinite import channels, pixels
from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.weight_laws import NORMAL, Standard
from ntk.trace import axes as ax
from ntk.trace import coordinates as co
from ntk.trace import entries
from ntk.trace.axes import Axis
from ntk.trace.context import Context, snapped
from ntk.trace.coordinates import (
    Coefficient,
    Linear,
    Number,
    Ref,
    Refusal,
    Value,
    Weight,
    is_random,
)
from ntk.trace.laws import Law, Setting, fitted
from ntk.trace.ops.attention import contracted
from ntk.trace.ops.data import data_moments
from ntk.trace.ops.function import process_of
from ntk.trace.ops.numbers import materialised
from ntk.trace.ops.vector import as_vectors
from ntk.trace.steps import Kind, Note, Step


class Dense(NamedTuple):
    """A layer of weights.

    Attributes:
        total: variance of a weight times the number of entries that it sums over.
        rate: what the layer adds to the tangent kernel, of a unit of its inputs' covariance.
        flat: places of the axes of positions that it sums over.
        bias: (variance, rate) of a normal bias, or None.
        apart: places, among the axes that are left, of those along which weights differ.
        axes: number of axes of positions that are left.
        law: of a weight, in standard units.
        tied: the parameter, where several layers have the same one; else None.
    """

    total: float
    rate: float
    flat: tuple[int, ...]
    bias: tuple[float, float] | None
    apart: tuple[int, ...]
    axes: int
    law: Standard
    tied: str | None = None


# --- read ----------------------------------------------------------------------------------------


def dot(context: Context, one: Any, two: Any, values: list[Value]) -> Value:
    """A product of two arrays: weights, activations, or numbers."""
    ((left, right), (batch_left, batch_right)) = one.params["dimension_numbers"]
    first, second = values
    if isinstance(first.body, Weight) and isinstance(second.body, Weight):
        first = as_vectors(context, first)  # learnt vectors, such as latents, meet a matrix
    if isinstance(first.body, Weight) or isinstance(second.body, Weight):
        swap = isinstance(first.body, Weight)
        if swap:
            first, second = second, first
            left, right, batch_left, batch_right = right, left, batch_right, batch_left
        return _weighted(context, first, second, (left, right, batch_left, batch_right), swap)
    return contracted(context, one, two, values)


def _weighted(context: Context, value: Value, weight: Value, numbers: tuple, swap: bool) -> Value:
    """An activation or data times a fresh matrix."""
    left, right, batch_left, batch_right = numbers
    name = weight.body.name
    pooled = tuple(a for k in left for a in value.dims[k])
    if any(a.kind == "sample" for a in pooled):
        raise Refusal(f"{name} mixes the samples of a batch")
    nothing = isinstance(value.body, Number) and not value.body.number
    value, pooled = _free_as_positions(context, value, left)
    context.check_heads(value.body, pooled)
    free = [k for k in range(len(weight.dims)) if k not in (*right, *batch_right)]
    kept = [k for k in range(len(value.dims)) if k not in (*left, *batch_left)]
    fresh = {a: (Axis("unit", a.size),) for k in free for a in weight.dims[k]}
    units = tuple(fresh[a][0] for k in free for a in weight.dims[k])
    batch = tuple(value.dims[k] for k in batch_left)
    unshared = tuple(a for dim in batch for a in dim if a.kind == "position")
    if any(a.kind == "sample" for dim in batch for a in dim):
        raise Refusal(f"{name} differs between the samples of a batch")
    rest, new = (
        [value.dims[k] for k in kept],
        [ax.substitute((weight.dims[k],), fresh)[0] for k in free],
    )
    dims = (*batch, *new, *rest) if swap else (*batch, *rest, *new)
    groups = tuple(a for a in ax.flat(tuple(rest)) if a.kind == "unit")
    if any(a.infinite for a in groups) and not any(a.infinite for a in pooled):
        raise Refusal(
            f"{name} sums over {ax.extent(pooled)[0]} positions with the same weights for every unit (mixing of "
            "tokens): units are correlated through these few weights, and the kernel of one network stays random at "
            'infinite width. otherwise="sample" gives its mean over networks; attention, or an average, mixes '
            "positions with a limit"
        )
    if groups and is_random(value.body):
        _check_zero_mean(value.body, name, groups)
    # Members of an ensemble, along a batch dimension, have weights of their own.
    units = ax.units(batch) + units + groups
    if nothing:
        return Value(dims, Number(0.0))  # of an initial state of zeros
    how = _summed(weight, value, left, right, batch_right)
    return Value(dims, _affine(context, value, pooled, weight.body, units, how, unshared))


def _summed(weight: Value, value: Value, left: Any, right: Any, batch: Any) -> tuple:
    """Which of its dimensions a parameter is summed over with which units: equal for uses that are alike."""

    def own(k: int) -> tuple:
        axes = set(weight.dims[k])
        return tuple(i for i, dim in enumerate(weight.body.own) if axes & set(dim))

    orders = {
        tuple(ref.units.index(a) for k in left for a in value.dims[k] if a in ref.units)
        for ref in co.refs_of(value.body)
    }
    return (
        tuple(map(own, right)),
        tuple(map(own, batch)),
        tuple(sorted(orders)) if len(orders) > 1 or orders - {(0,)} else (),
    )


def _free_as_positions(context: Context, value: Value, over: Any) -> tuple[Value, tuple]:
    """Constant axes that are summed over, written out."""
    constant = {a for k in over for a in value.dims[k] if a.kind == "free"}
    if isinstance(value.body, Number):
        constant |= {a for a in ax.flat(value.dims) if a.kind != "sample"}
    if constant and not is_random(value.body):
        value = materialised(context, value, constant)
    return value, tuple(a for k in over for a in value.dims[k])


def _check_zero_mean(body: Any, name: str, others: tuple) -> None:
    zero = isinstance(body, Linear) and all(
        ref.process.gaussian and not ref.process.value for ref, _ in body.terms
    )
    if not zero:
        raise Refusal(
            f"{name} is shared by several groups of units (sizes {[a.size for a in others]}) whose activations have a "
            "mean: their outputs are correlated"
        )


def _affine(
    context: Context,
    value: Value,
    pooled: tuple[Axis, ...],
    weight: Weight,
    units: tuple[Axis, ...],
    how: tuple,
    unshared: tuple[Axis, ...] = (),
) -> Linear:
    """A Gaussian process with the covariance of what was multiplied with fresh weights."""
    if isinstance(value.body, Number):
        value = materialised(context, value, set(pooled))
    if weight.arrays:
        raise Refusal(f"{weight.name} is multiplied with numbers that depend on the data")
    if is_random(value.body) and not any(a.kind == "unit" and a.infinite for a in pooled):
        raise Refusal(
            f"{weight.name} sums over {ax.extent(pooled)[0]} entries, none of them along an axis that grows with the "
            "width (a bottleneck of fixed size, or mixing of positions by shared weights): the limit is not Gaussian. "
            'Let that layer grow with the width (otherwise="sample" gives the mean over networks)'
        )
    over = tuple(a for a in pooled if a.kind == "position")
    if is_random(value.body):
        ref = process_of(context, value.body)
        source, axes = ref.process.index, ref.axes
    else:
        source, axes = data_moments(context, value, over)
        over = ()
    context.consume(weight, how)
    total, rate, left_over = of_a_sum(context, weight, *ax.growth(pooled))
    flat = tuple(axes.index(a) for a in over if a in axes)
    kept = tuple(a for a in axes if a not in over)
    apart = tuple(kept.index(a) for a in unshared if a in kept)
    missing = tuple(a.size[0] for a in unshared if a not in kept)
    if missing:
        raise Refusal(f"{weight.name} differs between positions of a constant")
    # Sums over infinitely many units are Gaussian whatever the law of a weight.
    law = NORMAL if is_random(value.body) else context.standard(weight)
    if apart and law != NORMAL:
        raise Refusal(
            f"{weight.name} differs between positions of the data, and is not normal at initialisation: use a normal "
            'initializer, nn.initializers.variance_scaling(1.0, "fan_in", "normal")'
        )
    op = Dense(total, rate, flat, None, apart, len(kept), law)
    index = context.add_layer(weight.name, op, source, kept, variance=total)
    context.ties[weight.name, weight.part].append(index)
    context.program.groups[index] = (weight.name, weight.part)
    process = context.program.process(index, kept, units, gaussian=True)
    return Linear(((Ref(process, (), kept, units), Coefficient(1.0, left_over)),))


def of_a_sum(
    context: Context, weight: Weight, count: float, grows: float
) -> tuple[float, float, float]:
    """(variance, rate, power of the width) of a sum over count width^grows entries with fresh weights."""
    mean, variance, power, rate = context.law(weight)
    if mean:
        raise Refusal(
            f"{weight.name} has initial mean {mean:.3g}; weights that sum over units must have mean zero"
        )
    if not variance:
        return *context.zero(weight, count, grows), 0.0
    if power + grows:
        context.scales.append(_scale_text(weight.name, variance, power, grows))
    # Var z = count width^grows times variance width^power: its size is width^((power + grows) / 2).
    total = snapped(variance * count)
    return total, total * rate, (power + grows) / 2


def _scale_text(name: str, variance: float, power: float, grows: float) -> str:
    """What is wrong with the scale of a parameter, and what to do."""
    law = f"{name} has initial variance {variance:.3g} width^{power:g}"
    if grows:
        law += f" and sums over a number of entries of order width^{grows:g}"
    if power + grows < 0:
        why = (
            "what it computes vanishes as the width grows, as in muP and mean-field parametrizations: the kernel limit "
            "is zero or frozen there. See limits.feature_learning for their limit"
        )
    else:
        why = "what it computes grows without bound: use an initializer that divides by the fan-in"
    return f"{law}; {why}, or fix the scale at one width with infinite_width(..., base_width=...)"


# --- evaluated -----------------------------------------------------------------------------------


def dense_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a layer of weights."""
    total, rate, flat, bias, apart, _, law, _ = step.op
    kernel = operands[0].kernel
    if flat:
        kernel = _flatten(kernel, flat)
    kernel = fitted(kernel, need)
    out = weighted(kernel, kernel, total, rate, bias)
    if apart and not out.diagonal_spatial:
        out = _apart(out, apart)
    return Law(out, entries=_of_data(operands[0], total, bias, law))


def _of_data(data: Law, total: float, bias: Any, law: Standard) -> entries.Entries | None:
    """Entries of a layer of weights on data, with a normal bias."""
    raw = data.entries
    if raw is None or not data.kernel.is_input:
        return None
    # total is variance times number: the standard deviation of one weight.
    scale = (total / raw.one.shape[-1]) ** 0.5
    out = entries.of_weights(raw.one, raw.two, law, scale)
    if not bias or not bias[0]:
        return out
    one, two = (jnp.ones((*x.shape[:-1], 1), x.dtype) for x in (raw.one, raw.two))
    return entries.added([out, entries.of_weights(one, two, NORMAL, bias[0] ** 0.5)])


def weighted(kernel: Kernel, mean: Kernel, total: float, rate: float, bias: Any) -> Kernel:
    """W K + b of the moments `mean` of a layer's inputs."""
    if rate == total and (bias is None or bias[0] == bias[1]):
        return channels.affine(mean, total**0.5, None if bias is None else bias[0] ** 0.5)
    b_std = bias[0] ** 0.5 if bias and bias[0] else None
    out = channels.gaussian(
        mean, mean.correlation, mean.var1, mean.var2, total**0.5, b_std, normalised=True
    )
    if mean.ntk is None:
        return out
    # T' = total T + rate K + the rate of the bias; with rate = total the own part is the new NNGP, which is there.
    own = out.nngp if b_std is None and rate == total else rate * mean.nngp
    return out.replace(ntk=total * mean.ntk + own + (bias[1] if bias else 0.0))


def _flatten(kernel: Kernel, flat: tuple[int, ...]) -> Kernel:
    """Mean over equal positions along some axes."""
    count = kernel.var1.ndim - 1
    if len(flat) == count:
        return pixels.flatten(kernel)
    kept = [k for k in range(count) if k not in flat]

    def mean(x: Array, lead: int, axes: int) -> Array:
        if axes == 1:
            return jnp.mean(x, tuple(lead + k for k in flat))
        step = [lead + 2 * k + s for k in kept for s in (0, 1)]
        x = jnp.transpose(
            x, [*range(lead), *step, *(lead + 2 * k + s for k in flat for s in (0, 1))]
        )
        for _ in flat:
            at = lead + 2 * len(kept)
            x = jnp.mean(jnp.diagonal(x, axis1=at, axis2=at + 1), -1)
        return x

    return kernels.mapped(mean, kernel)


def _apart(kernel: Kernel, apart: tuple[int, ...]) -> Kernel:
    """Positions along some axes made independent of one another."""

    def keep(x: Array, lead: int, axes: int) -> Array:
        if axes == 1:
            return x
        for k in apart:
            size = x.shape[lead + 2 * k]
            shape = [1] * x.ndim
            shape[lead + 2 * k] = shape[lead + 2 * k + 1] = size
            x = jnp.where(jnp.eye(size, dtype=bool).reshape(shape), x, 0)
        return x

    return kernels.mapped(keep, kernel, moves=True)


def needs(op: Dense, own: Need) -> Need:
    """Flattened positions alone need no pairs of them."""
    return Need(False, min(own.variance, 1)) if op.flat and not op.axes else own


def words(op: Dense, note: Note) -> tuple[str, str]:
    """For a reader."""
    if op.tied:
        return note.text, ""
    formula = f"{op.total:.6g} K"
    if op.bias and op.bias[0]:
        formula += f" + {op.bias[0]:.6g}"
    return ", ".join(note.parameters), formula


KIND = Kind("weights", dense_law, needs, words=words, joint=True)
