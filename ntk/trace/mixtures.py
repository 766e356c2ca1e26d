"""Sums, maps of positions and functions of processes, evaluated."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp

from ntk.activations.closed_forms import Dual
from ntk.infinite import channels, pixels
from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.trace import entries, moments, true_moments
from ntk.trace.activations import Function, known
from ntk.trace.matrices import fitted
from ntk.trace.moments import Law
from ntk.trace.numbers import apply_map, from_axes, to_axes
from ntk.trace.setting import Setting, Sides
from ntk.trace.steps import Step


def combine_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a sum of processes, each after a linear map of its positions."""
    _count, pieces, sizes = step.static
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
    if _sums_all(pieces, sizes) and law.kernel.var1.ndim > 1 and law.means is None:
        kernel = pixels.pool_all(broadcast(law.kernel, setting), mean=False)
        number = abs(pieces[0][3])
        whole = tuple(range(2, law.kernel.var1.ndim + 1))
        pooled = [lambda x: pieces[0][3] * jnp.sum(x, whole)] * 2
        return Law(
            channels.scale(kernel, number, number), entries=entries.mapped(law.entries, pooled)
        )
    kernel = broadcast(law.kernel, setting)
    made = law.entries

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

    out = pixels.linear(kernel, total(0), total(1))
    new = None
    if law.means is not None:
        new = tuple(
            total(k)(jnp.broadcast_to(m, (setting.samples[k], *m.shape[1:]))[:, None])[:, 0]
            for k, m in enumerate(law.means)
        )
    return Law(fitted(out, need), new, entries.mapped(made, [total(0), total(1)]))


def _sums_all(pieces: list, sizes: tuple) -> bool:
    """Whether the map is a number times the sum over all positions."""
    if sizes or len(pieces) != 1:
        return False
    _, maps, _, _, given = pieces[0]
    return not given and len(maps) == 1 and maps[0][:2] == ("map", "reduce_sum")


def broadcast(kernel: Kernel, setting: Setting) -> Kernel:
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
    means, made = law.means, law.entries
    if tuple(where) != tuple(range(count)):
        made = entries.mapped(made, [lambda x: moments.spread(x, 2, False, where, count)] * 2)
    if number == 1 and not given:
        return Law(kernel, means, made)
    factors = []
    for side in (0, 1):
        factor = jnp.full((1,) * (1 + count), number, kernel.var1.dtype)
        for place, coded in given:
            factor = factor * to_axes(operands[place][side], coded, sizes)
        factors.append(factor)
    if means is not None:
        means = tuple(m * f for m, f in zip(means, factors))
    made = entries.scaled(made, factors)
    shapes = [
        jnp.broadcast_shapes(f.shape, v.shape) for f, v in zip(factors, (kernel.var1, kernel.var2))
    ]
    if any(s[0] != v.shape[0] for s, v in zip(shapes, (kernel.var1, kernel.var2))):
        setting = Setting((shapes[0][0], shapes[1][0]), None, None, None, False)
        kernel = broadcast(kernel, setting)
    out = channels.scale(kernel, *(jnp.abs(f) for f in factors))
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
    return Law(out.replace(within1=within[0], within2=within[1]), means, made)


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
    made = None
    if setting.entries and out.is_gaussian:
        made = entries.added([law.entries for law in laws])
    return Law(out.replace(nngp=nngp, ntk=ntk), means, made)


def function_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a sum of products of functions of processes."""
    terms, sizes = step.static
    laws = [o if isinstance(o, Law) else None for o in operands]
    fast = _single(step, laws, need, means, setting)
    if fast is not None:
        return fast
    diagonal = not need.pairs
    seed = dict(setting.plan.context).get("attention_seed", 0)
    return moments.function_law(
        terms,
        sizes,
        laws,
        (_sides(operands, 0), _sides(operands, 1)),
        diagonal=diagonal,
        variance=need.variance,
        ntk=setting.plan.ntk,
        means=means,
        seed=seed,
    )


def single(step: Step) -> Dual | None:
    """Dual of a step that is one function of one process at its own positions; None for other steps."""
    terms, sizes = step.static
    if len(terms) != 1:
        return None
    number, given, factors, alone = terms[0]
    if given or alone is not None or len(factors) != 1 or number != 1:
        return None
    _, where, tree = factors[0]
    if tuple(where) != tuple(range(len(sizes))):
        return None
    return known(Function(tree)).dual


def _single(step: Step, laws: list, need: Need, means: bool, setting: Setting) -> Law | None:
    """One function of one Gaussian: the rule that all front ends share."""
    dual = single(step)
    if dual is None or len(laws) != 1 or not laws[0].kernel.is_gaussian:
        return None
    kernel = fitted(laws[0].kernel, need)
    made = laws[0].entries
    if made is not None and not made.normal:
        f = Function(step.static[0][0][2][0][2])
        seed = dict(setting.plan.context).get("attention_seed", 0)
        return Law(*true_moments.of_function(f, dual, kernel, made, means, seed))
    mean = tuple(dual.mean(v) for v in (kernel.var1, kernel.var2)) if means else None
    return Law(channels.elementwise(kernel, dual), mean)


def mean_sides(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Sides:
    """Means over units in both batches."""
    terms, sizes, order, present, number = step.static
    laws = [o if isinstance(o, Law) else None for o in operands]
    out = []
    for side in (1, 2):
        seed = dict(setting.plan.context).get("attention_seed", 0)
        value = moments.mean_law(terms, sizes, laws, _sides(operands, side - 1), side, seed)
        value = jnp.broadcast_to(number * value, (value.shape[0], *sizes))
        if any(present):
            value = jnp.broadcast_to(value, (setting.samples[side - 1], *sizes))
        out.append(from_axes(value, order))
    return Sides(*out)


def mix_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
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


def copies_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """A fixed number of units as positions, in the last place: copies of one law that are independent."""
    *_, size = step.static
    law = operands[0]
    kernel = fitted(law.kernel, need)
    eye = jnp.eye(size, dtype=kernel.var1.dtype)
    pairs = need.pairs

    def one(x: Array) -> Array:
        return jnp.broadcast_to(x[..., None], (*x.shape, size))

    def two(x: Array, apart: Array | float) -> Array:
        same = eye.reshape((1,) * x.ndim + eye.shape)
        return x[..., None, None] * same + jnp.asarray(apart)[..., None, None] * (1 - same)

    cross = jnp.zeros((1,) * kernel.correlation.ndim, kernel.var1.dtype)
    inside = [jnp.zeros((1,) * (2 * kernel.var1.ndim - 1), kernel.var1.dtype)] * 2
    if law.means is not None:
        a, b = kernels.views(*law.means, not pairs)
        cross = a * b
        inside = [a * b for a, b in (kernels.views_within(m) for m in law.means)]
    within = [None, None]
    if need.variance == 2:
        for k, (cov, var) in enumerate(
            ((kernel.within1, kernel.var1), (kernel.within2, kernel.var2))
        ):
            within[k] = two(var if cov is None else cov, inside[k])
    ntk = kernel.ntk
    if ntk is not None and ntk.ndim:
        ntk = two(ntk, jnp.zeros((1,) * ntk.ndim)) if pairs else one(ntk)
    nngp = two(kernel.nngp, cross) if pairs else one(kernel.nngp)
    out = kernel.replace(
        var1=one(kernel.var1),
        var2=one(kernel.var2),
        within1=within[0],
        within2=within[1],
        diagonal_spatial=not pairs,
        is_input=False,
        coincident=None,
    )
    found = None if law.means is None else tuple(one(m) for m in law.means)
    return Law(out.replace(nngp=nngp, ntk=ntk), found, entries.copied(law.entries, size))
