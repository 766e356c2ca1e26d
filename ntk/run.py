"""The steps of a traced network, evaluated on two batches of inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ntk import kernel as kernels
from ntk import moments, rules, spatial
from ntk.activations import Function, known
from ntk.inputs import Need, Plan, inputs_to_kernel, join
from ntk.kernel import Array, Kernel
from ntk.moments import Law
from ntk.numbers import apply_map, from_axes, run_finite, to_axes
from ntk.steps import Step


class Sides(NamedTuple):
    """An array of numbers in the first and in the second batch."""

    one: Array
    two: Array


class Setting(NamedTuple):
    """What an evaluation shares between steps."""

    samples: tuple[int, int]
    dtype: Any
    plan: Plan
    coincident: Array | None


_PROCESSES = (
    "data",
    "vector",
    "lookup",
    "affine",
    "convolve",
    "combine",
    "function",
    "mix",
    "attend",
)


def needs_of(steps: Sequence[Step], output: int, need: Need) -> dict[int, Need]:
    """What must be known of each process, from what is asked of the output."""
    nothing = Need(False, 0)
    needs = {output: need}
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        own = needs.get(index, nothing)
        given = _need_of_inputs(step, own)
        for source in step.inputs:
            if isinstance(source, int) and steps[source].operation in _PROCESSES:
                needs[source] = join(needs.get(source, nothing), given)
    return needs


def _need_of_inputs(step: Step, own: Need) -> Need:
    if step.operation == "combine":
        if any(maps for _, maps, *_ in step.static[1]):
            return Need(True, 2 if own.variance else 0)
        return own
    if step.operation == "function":
        return Need(own.pairs, max(own.variance, 1))
    if step.operation == "mean":
        return Need(False, 1)
    if step.operation == "affine" and step.static[2]:
        return Need(own.pairs, min(own.variance, 2 if own.pairs else 1))
    if step.operation in ("scores", "attend", "inner"):
        return Need(True, 2)
    return own


def evaluate(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides | Law:
    """The value of one step."""
    return _RULES[step.operation](step, need, means, operands, setting)


def _finite(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides:
    one = run_finite(step.static, [s.one for s in operands], setting.samples[0], setting.dtype)
    two = run_finite(step.static, [s.two for s in operands], setting.samples[1], setting.dtype)
    return Sides(one, two)


def _data(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    coded, sizes, where = step.static
    plan = setting.plan._replace(need=need, batch_axis=0, channel_axis=-1)
    arrays = []
    for array in operands[0]:
        x = to_axes(array.astype(setting.dtype), coded, sizes)
        rest = [1 + k for k in range(len(sizes)) if k not in where]
        x = jnp.transpose(x, (0, *(1 + k for k in where), *rest))
        arrays.append(x.reshape(*x.shape[: 1 + len(where)], -1))
    coincident = setting.coincident if arrays[0].shape[0] > 1 else None
    return Law(inputs_to_kernel(*arrays, None, None, coincident, plan))


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


def _vector(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    variance, rate, sizes = step.static
    same = jnp.ones((1, 1), setting.dtype)
    for size in sizes:
        eye = jnp.eye(size, dtype=setting.dtype) if need.pairs else jnp.ones(size, setting.dtype)
        same = same[(..., *(None,) * eye.ndim)] * eye
    var = jnp.full((1, *sizes), variance, setting.dtype)
    within = (None, None)
    if need.variance == 2 and sizes:
        eyes = jnp.ones((1,), setting.dtype)
        for size in sizes:
            eyes = eyes[..., None, None] * jnp.eye(size, dtype=setting.dtype)
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
        )
    )


def _lookup(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    variance, rate, coded, sizes = step.static
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
    return Law(kernel)


def fitted(kernel: Kernel, need: Need) -> Kernel:
    """The kernel with equal positions alone, where all pairs are known but not needed."""
    if need.pairs or kernel.diagonal_spatial or kernel.var1.ndim == 1:
        return kernel
    ntk = kernel.ntk
    return kernel.replace(
        correlation=kernels.pixel_diagonal(kernel.correlation, 2),
        ntk=ntk if ntk is None or ntk.ndim == 0 else kernels.pixel_diagonal(ntk, 2),
        diagonal_spatial=True,
    )


def _affine(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    total, rate, flat, bias, apart = step.static
    kernel = operands[0].kernel
    if flat:
        kernel = _flatten(kernel, flat)
    kernel = fitted(kernel, need)
    out = _weighted(kernel, kernel, total, rate, bias)
    if apart and not out.diagonal_spatial:
        out = _apart(out, apart)
    return Law(out)


def _weighted(kernel: Kernel, mean: Kernel, total: float, rate: float, bias: Any) -> Kernel:
    """W K + b of the moments `mean` of a layer's inputs."""
    if rate == total and (bias is None or bias[0] == bias[1]):
        return rules.affine(mean, total**0.5, None if bias is None else bias[0] ** 0.5)
    b_std = bias[0] ** 0.5 if bias and bias[0] else None
    out = rules.gaussian(
        mean, mean.correlation, mean.var1, mean.var2, total**0.5, b_std, normalised=True
    )
    if mean.ntk is None:
        return out
    own = out.nngp if b_std is None and rate == total else rate * mean.nngp
    return out.replace(ntk=total * mean.ntk + own + (bias[1] if bias else 0.0))


def _flatten(kernel: Kernel, flat: tuple[int, ...]) -> Kernel:
    """Mean over equal positions along some axes."""
    count = kernel.var1.ndim - 1
    if len(flat) == count:
        return spatial.flatten(kernel)
    kept = [k for k in range(count) if k not in flat]

    def mean(x: Array | None, lead: int, pairs: bool) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        if not pairs:
            return jnp.mean(x, tuple(lead + k for k in flat))
        step = [lead + 2 * k + s for k in kept for s in (0, 1)]
        x = jnp.transpose(
            x, [*range(lead), *step, *(lead + 2 * k + s for k in flat for s in (0, 1))]
        )
        for _ in flat:
            at = lead + 2 * len(kept)
            x = jnp.mean(jnp.diagonal(x, axis1=at, axis2=at + 1), -1)
        return x

    pairs = not kernel.diagonal_spatial
    return kernel.replace(
        nngp=mean(kernel.nngp, 2, pairs),
        var1=mean(kernel.var1, 1, False),
        var2=mean(kernel.var2, 1, False),
        within1=mean(kernel.within1, 1, True),
        within2=mean(kernel.within2, 1, True),
    ).replace(ntk=mean(kernel.ntk, 2, pairs))


def _apart(kernel: Kernel, apart: tuple[int, ...]) -> Kernel:
    """Positions along some axes made independent of one another."""

    def keep(x: Array | None, lead: int) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        for k in apart:
            size = x.shape[lead + 2 * k]
            shape = [1] * x.ndim
            shape[lead + 2 * k] = shape[lead + 2 * k + 1] = size
            x = jnp.where(jnp.eye(size, dtype=bool).reshape(shape), x, 0)
        return x

    return kernel.replace(
        correlation=keep(kernel.correlation, 2),
        ntk=keep(kernel.ntk, 2),
        within1=keep(kernel.within1, 1),
        within2=keep(kernel.within2, 1),
    )


def _convolve(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    total, rate, order, others, window, strides, padding, dilation, sizes = step.static
    kernel = operands[0].kernel
    if others or None in order or any(d != 1 for d in dilation):
        raise NotImplementedError
    kernel = fitted(spatial.reorder(kernel, list(order)), need)
    axes = 1 if kernel.diagonal_spatial else 2

    def box(x: Array, lead: int, axes: int) -> Array:
        return spatial.window_mean(x, lead, axes, window, strides, padding)

    def mapped(x: Array | None, lead: int, axes: int) -> Array | None:
        return x if x is None or x.ndim == 0 else box(x, lead, axes)

    nngp = box(kernel.nngp, 2, axes)
    mean = kernel.replace(
        nngp=nngp,
        var1=box(kernel.var1, 1, 1),
        var2=box(kernel.var2, 1, 1),
        within1=mapped(kernel.within1, 1, 2),
        within2=mapped(kernel.within2, 1, 2),
    ).replace(ntk=mapped(kernel.ntk, 2, axes))
    return Law(_weighted(kernel, mean, total, rate, None))


def _combine(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    count, pieces, sizes = step.static
    groups: dict[int, list] = {}
    for piece in pieces:
        groups.setdefault(piece[0], []).append(piece)
    laws = [
        _mapped(operands[place], group, sizes, operands, need, setting)
        for place, group in groups.items()
    ]
    if len(laws) == 1:
        return laws[0]
    return _sum_laws(laws, need, setting)


def _sides(operands: list, side: int) -> list:
    return [o[side] if isinstance(o, Sides) else None for o in operands]


def _mapped(
    law: Law, pieces: list, sizes: tuple, operands: list, need: Need, setting: Setting
) -> Law:
    """One process after a sum of linear maps of its positions."""
    if len(pieces) == 1 and not pieces[0][1]:
        return _scaled(law, pieces[0], sizes, operands, need)
    kernel = _broadcast(law.kernel, setting)

    def total(side: int) -> Callable[[Array], Array]:
        arrays = _sides(operands, side)

        def run(x: Array) -> Array:
            out = 0.0
            for _, maps, where, number, given in pieces:
                y = x
                for item in maps:
                    y = apply_map(item, y, arrays, setting.dtype)
                y = moments.spread(y, 2, False, where, len(sizes))
                y = jnp.broadcast_to(y, (*y.shape[:2], *sizes)) * number
                for place, coded in given:
                    y = y * jnp.expand_dims(to_axes(arrays[place], coded, sizes), 1)
                out = out + y
            return out

        return run

    out = spatial.linear(kernel, total(0), total(1))
    new = None
    if law.means is not None:
        new = tuple(
            total(k)(jnp.broadcast_to(m, (setting.samples[k], *m.shape[1:]))[:, None])[:, 0]
            for k, m in enumerate(law.means)
        )
    return Law(fitted(out, need), new)


def _broadcast(kernel: Kernel, setting: Setting) -> Kernel:
    """A kernel that depends on no sample, written out for every pair."""
    one, two = setting.samples
    if kernel.var1.shape[0] == one and kernel.var2.shape[0] == two:
        return kernel

    def wide(x: Array | None, *lead: int) -> Array | None:
        if x is None or x.ndim == 0:
            return x
        return jnp.broadcast_to(x, (*lead, *x.shape[len(lead) :]))

    return kernel.replace(
        correlation=wide(kernel.correlation, one, two),
        ntk=wide(kernel.ntk, one, two),
        var1=wide(kernel.var1, one),
        var2=wide(kernel.var2, two),
        within1=wide(kernel.within1, one),
        within2=wide(kernel.within2, two),
    )


def _scaled(law: Law, piece: tuple, sizes: tuple, operands: list, need: Need) -> Law:
    """A process times numbers, with its positions in their place among others."""
    _, _, where, number, given = piece
    kernel = fitted(law.kernel, need)
    count = len(sizes)
    if tuple(where) != tuple(range(count)):
        pairs = not kernel.diagonal_spatial

        def put(x: Array | None, lead: int, pairs: bool) -> Array | None:
            if x is None or x.ndim == 0:
                return x
            x = moments.spread(x, lead, pairs, where, count)
            full = [s for size in sizes for s in ((size, size) if pairs else (size,))]
            return jnp.broadcast_to(x, (*x.shape[:lead], *full))

        diagonal = count > 0 and not need.pairs
        pairs = not diagonal
        kernel = kernel.replace(
            correlation=put(kernel.correlation, 2, pairs),
            ntk=put(kernel.ntk, 2, pairs),
            var1=put(kernel.var1, 1, False),
            var2=put(kernel.var2, 1, False),
            within1=put(_within(kernel, 1, need), 1, True),
            within2=put(_within(kernel, 2, need), 1, True),
            diagonal_spatial=diagonal,
        )
    means = law.means
    if number == 1 and not given:
        return Law(kernel, means)
    factors = []
    for side in (0, 1):
        factor = jnp.full((1,) * (1 + count), number, kernel.var1.dtype)
        for place, coded in given:
            factor = factor * to_axes(operands[place][side], coded, sizes)
        factors.append(factor)
    if means is not None:
        means = tuple(m * f for m, f in zip(means, factors))
    shapes = [
        jnp.broadcast_shapes(f.shape, v.shape) for f, v in zip(factors, (kernel.var1, kernel.var2))
    ]
    if any(s[0] != v.shape[0] for s, v in zip(shapes, (kernel.var1, kernel.var2))):
        setting = Setting((shapes[0][0], shapes[1][0]), None, None, None)
        kernel = _broadcast(kernel, setting)
    out = rules.scale(kernel, *(jnp.abs(f) for f in factors))
    signs = kernels.views(*(jnp.sign(f) for f in factors), kernel.diagonal_spatial)
    ntk = out.ntk
    if ntk is not None and ntk.ndim:
        ntk = ntk * (signs[0] * signs[1])
    within = []
    for cov, f in ((out.within1, factors[0]), (out.within2, factors[1])):
        if cov is not None:
            a, b = kernels.views_within(jnp.sign(f))
            cov = cov * (a * b)
        within.append(cov)
    out = out.replace(correlation=out.correlation * (signs[0] * signs[1]), ntk=ntk)
    return Law(out.replace(within1=within[0], within2=within[1]), means)


def _within(kernel: Kernel, side: int, need: Need) -> Array | None:
    within = kernel.within1 if side == 1 else kernel.within2
    if within is None and need.variance == 2:
        return kernel.var1 if side == 1 else kernel.var2  # a process without positions
    return within


def _sum_laws(laws: list[Law], need: Need, setting: Setting) -> Law:
    """Independent processes added."""
    ks = [law.kernel for law in laws]
    base = max(ks, key=lambda k: k.var1.shape[0] * k.var1.size)

    def add(parts: list) -> Array | None:
        parts = [p for p in parts if p is not None]
        if not parts:
            return None
        return functools.reduce(jnp.add, parts)

    nngp = add([k.nngp for k in ks])
    var1, var2 = add([k.var1 for k in ks]), add([k.var2 for k in ks])
    within = [None, None]
    if need.variance == 2 and var1.ndim > 1:
        within = [add([k.within1 for k in ks]), add([k.within2 for k in ks])]
    known_means = [law.means for law in laws if law.means is not None]
    means = None
    if known_means:
        means = tuple(add([m[k] for m in known_means]) for k in (0, 1))
    if len(known_means) > 1:  # cross terms of what has a mean
        diagonal = base.diagonal_spatial

        def cross(views: Callable) -> Array:
            whole = views(*means)
            own = add([a * b for a, b in (views(*m) for m in known_means)])
            return whole[0] * whole[1] - own

        nngp = nngp + cross(lambda a, b: kernels.views(a, b, diagonal))
        var1 = var1 + cross(lambda a, b: (a, a))
        var2 = var2 + cross(lambda a, b: (b, b))
        if within[0] is not None:
            within[0] = within[0] + cross(lambda a, b: kernels.views_within(a))
            within[1] = within[1] + cross(lambda a, b: kernels.views_within(b))
    ntk = add([k.ntk for k in ks])
    out = base.replace(
        var1=var1,
        var2=var2,
        within1=within[0],
        within2=within[1],
        is_gaussian=all(k.is_gaussian for k in ks),
        is_input=False,
    )
    return Law(out.replace(nngp=nngp, ntk=ntk), means)


def _function(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    terms, sizes = step.static
    laws = [o if isinstance(o, Law) else None for o in operands]
    fast = _single(step, laws, need, means)
    if fast is not None:
        return fast
    diagonal = not need.pairs
    return moments.function_law(
        terms,
        sizes,
        laws,
        (_sides(operands, 0), _sides(operands, 1)),
        diagonal=diagonal,
        variance=need.variance,
        ntk=setting.plan.ntk,
        means=means,
    )


def _single(step: Step, laws: list, need: Need, means: bool) -> Law | None:
    """One function of one Gaussian: the rule that all front ends share."""
    terms, sizes = step.static
    if len(terms) != 1 or len(laws) != 1:
        return None
    number, given, factors, alone = terms[0]
    if given or alone is not None or len(factors) != 1 or not laws[0].kernel.is_gaussian:
        return None
    place, where, tree = factors[0]
    if tuple(where) != tuple(range(len(sizes))):
        return None
    one = known(Function(tree))
    kernel = fitted(laws[0].kernel, need)
    mean = None
    if means:
        mean = tuple(number * one.dual.mean(v) for v in (kernel.var1, kernel.var2))
    out = rules.elementwise(kernel, one.dual)
    if number != 1:
        out = rules.scale(out, abs(number), abs(number))
    return Law(out, mean)


def _mean(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides:
    terms, sizes, order, present, number = step.static
    laws = [o if isinstance(o, Law) else None for o in operands]
    out = []
    for side in (1, 2):
        value = moments.mean_law(terms, sizes, laws, _sides(operands, side - 1), side)
        value = jnp.broadcast_to(number * value, (value.shape[0], *sizes))
        if any(present):
            value = jnp.broadcast_to(value, (setting.samples[side - 1], *sizes))
        out.append(from_axes(value, order))
    return Sides(*out)


def _mix(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Units of several layers side by side: moments averaged by their shares."""
    pieces, sizes = step.static
    laws = [
        _scaled(law, (0, (), where, share**0.5, ()), sizes, operands, need)
        for law, (where, share) in zip(operands, pieces)
    ]
    out = _sum_laws([Law(law.kernel) for law in laws], need, setting)
    new = None
    if means:
        new = tuple(
            sum(share * law.means[k] for law, (_, share) in zip(operands, pieces) if law.means)
            for k in (0, 1)
        )
    return Law(out.kernel.replace(is_gaussian=False), new)


_RULES = {
    "finite": _finite,
    "data": _data,
    "vector": _vector,
    "lookup": _lookup,
    "affine": _affine,
    "convolve": _convolve,
    "combine": _combine,
    "function": _function,
    "mean": _mean,
    "mix": _mix,
}


def run(
    steps: Sequence[Step], loops: Sequence, values: dict, needs: dict[int, Need], setting: Setting
) -> Law:
    """The law that the last step computes.

    Args:
        steps: of the program.
        loops: blocks that repeat, see `ntk.loops`.
        values: inputs and constants.
        needs: see `needs_of`.
        setting: of the evaluation.
    """
    means = _with_means(steps)
    nothing = Need(False, 0)
    for index, step in enumerate(steps):
        operands = [values[i] for i in step.inputs]
        need = needs.get(index, nothing)
        values[index] = evaluate(step, need, index in means, operands, setting)
    return values[len(steps) - 1]


def _with_means(steps: Sequence[Step]) -> set[int]:
    """Steps whose mean a later one may read."""
    out = set()
    for step in steps:
        if step.operation in ("combine", "function", "mean", "mix"):
            out |= {i for i in step.inputs if isinstance(i, int)}
    return out
