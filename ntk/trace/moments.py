"""Second moments and tangent kernels of functions of several independent processes.

    E[prod_r f_r(u_r) prod_r g_r(v_r)] = prod_r E[f_r(u_r) g_r(v_r)]
    T = sum_r E[f_r' g_r'] T_r prod_{s != r} E[f_s g_s] + sum over trained gains p of rate_p E[dF/dp dG/dp]

Source: Yang (2019), Tensor Programs I, theorem 5.4; Yang (2020), Tensor Programs II.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.activations import hermite
from ntk.infinite import channels, true_law
from ntk.infinite import kernel as kernels
from ntk.infinite.kernel import Array
from ntk.trace import algebra, entries, true_moments
from ntk.trace import coordinates as co
from ntk.trace.activations import Function, Known, expectation, known
from ntk.trace.laws import Law, spread
from ntk.trace.ops.numbers import to_axes
from ntk.types import two_of


class _Block(NamedTuple):
    """A process at pairs of entries: correlation, both variances, means, tangent kernel, entries if not Gaussian."""

    rho: Array
    q1: Array
    q2: Array
    m1: Array | None
    m2: Array | None
    theta: Array | None
    gaussian: bool
    view: true_moments.View | None = None


def _blocks(
    law: Law, block: str, where: Sequence[int], count: int, diagonal: bool, seed: int = 0
) -> _Block:
    out = _gaussian_blocks(law, block, where, count, diagonal)
    made = law.entries
    if made is None or made.normal or not out.gaussian:
        return out
    made = entries.mapped(made, [lambda x: spread(x, 2, False, where, count)] * 2)
    one, two = (spread(v, 1, False, where, count) for v in (law.kernel.var1, law.kernel.var2))
    if block != "12":
        one, two = (one, one) if block[1] == "1" else (two, two)
    layout = {"1": "equal" if diagonal or not count else "pairs", "d": "same", "w": "within"}[
        block[0]
    ]
    return out._replace(view=true_moments.view(made, block, (one, two), layout, seed))


def _gaussian_blocks(
    law: Law, block: str, where: Sequence[int], count: int, diagonal: bool
) -> _Block:
    kernel = law.kernel
    means = law.means or (None, None)

    def one(x: Any) -> Any:
        return None if x is None else spread(x, 1, False, where, count)

    var1, var2, m1, m2 = one(kernel.var1), one(kernel.var2), one(means[0]), one(means[1])
    if block in ("d1", "d2"):
        q, m = (var1, m1) if block == "d1" else (var2, m2)
        return _Block(jnp.ones((), q.dtype), q, q, m, m, None, kernel.is_gaussian)
    if block in ("w1", "w2"):
        var, mean = (var1, m1) if block == "w1" else (var2, m2)
        within = kernel.within1 if block == "w1" else kernel.within2
        if within is None:  # no positions
            within = (kernel.var1 if block == "w1" else kernel.var2).reshape(-1)
        cov = spread(within, 1, True, where, count)
        q1, q2 = kernels.views_within(var)
        m1, m2 = (None, None) if mean is None else kernels.views_within(mean)
        rho = cov * (kernels.inverse_sqrt(q1) * kernels.inverse_sqrt(q2))
        return _Block(rho, q1, q2, m1, m2, None, kernel.is_gaussian)
    pairs = not diagonal
    rho, theta = kernel.correlation, kernel.ntk
    if diagonal and not kernel.diagonal_spatial:
        rho = kernels.pixel_diagonal(rho, 2)
        theta = theta if theta is None or theta.ndim == 0 else kernels.pixel_diagonal(theta, 2)
    rho = spread(rho, 2, pairs, where, count)
    if theta is not None and theta.ndim:
        theta = spread(theta, 2, pairs, where, count)
    q1, q2 = kernels.views(var1, var2, diagonal)
    if m1 is not None:
        m1, m2 = kernels.views(m1, m2, diagonal)
    return _Block(rho, q1, q2, m1, m2, theta, kernel.is_gaussian)


def _pair(one: Function, two: Function, b: _Block) -> tuple[Any, Any]:
    """E[f(u) g(v)] and E[f'(u) g'(v)]."""
    first, second = known(one), known(two)
    if not b.gaussian:
        return _affine_pair(first, second, b)
    rho = channels.snap(b.rho)
    if one == two:
        out = first.dual.moments(b.q1, b.q2, rho)
    else:
        out = hermite.cross(one, two, b.q1, b.q2, rho)
    # E (c1 + a1 u)(c2 + a2 v) is the same for every law, and corrections that are zero take longest to compile.
    if b.view is None or (_degree(first) <= 1 and _degree(second) <= 1):
        return out
    return true_moments.pair((one, two), *out, rho, b.view)


def _degree(f: Known) -> float:
    return float("inf") if f.polynomial is None else len(f.polynomial) - 1


def _affine_pair(first: Known, second: Known, b: _Block) -> tuple[Any, Any]:
    (c1, a1), (c2, a2) = (_line(f) for f in (first, second))
    # E (c1 + a1 u)(c2 + a2 v) needs means and second moments alone, whatever the law.
    raw = b.rho * (jnp.sqrt(b.q1) * jnp.sqrt(b.q2))
    k = a1 * a2 * raw + c1 * c2
    if (c1 or c2) and b.m1 is not None and b.m2 is not None:
        k = k + a1 * c2 * b.m1 + c1 * a2 * b.m2
    return k, a1 * a2 * jnp.ones_like(raw)


def _line(f: Known) -> tuple[float, float]:
    coefficients = f.polynomial
    if coefficients is None or len(coefficients) > 2:
        raise co.Refusal(
            f"no infinite-width kernel: the nonlinearity {f.name} acts on a mixture of positions of another "
            "nonlinearity (pooling, then an activation, without weights between them), whose law is not Gaussian: put "
            "a layer of weights between them"
        )
    return coefficients[0], coefficients[1] if len(coefficients) == 2 else 0.0


def mean_of(f: Function, b: _Block, side: int) -> Any:
    """E f(u) of the first or second entry."""
    q, m = (b.q1, b.m1) if side == 1 else (b.q2, b.m2)
    one = known(f)
    if b.gaussian:
        expected = expectation(one.dual)
        mean = expected(q)
        if b.view is None or _degree(one) <= 2:  # a second moment is the same for every law
            return mean
        if b.view.layout == "same":
            return true_moments.mean(f, mean, b.view, side - 1)
        own = b.view.q[side - 1]
        end = true_moments.mean(f, expected(own), b.view, side - 1)
        return true_law.viewed(end, end, b.view.layout)[side - 1]
    # Up to degree 2 the mean follows from the first and second moment of any law.
    c = (*(one.polynomial or _line(one)), 0.0, 0.0)
    if any(c[3:]):
        _line(one)
    return c[0] + c[1] * (0.0 if m is None else m) + c[2] * q


def _sum(
    terms: Sequence,
    others: Sequence,
    blocks: dict,
    coefficients: tuple,
    tangent: bool,
) -> tuple[Any, Any]:
    """sum over pairs of terms of c c' prod E[f f'], and its tangent kernel."""
    total, theta = 0.0, 0.0
    for (i, one), (j, two) in itertools.product(enumerate(terms), enumerate(others)):
        (number1, factors1, alone1), (number2, factors2, alone2) = one, two
        if not number1 * number2 * alone1 * alone2:
            continue  # a parameter that is zero: its derivative comes with that of the others
        # Numbers of either side, which depend on its sample, stand outside of the expectation.
        c = number1 * number2 * alone1 * alone2 * coefficients[0][i] * coefficients[1][j]
        parts = []
        for place in {**factors1, **factors2}:
            b = blocks[place]
            # Independent processes: moments of a product multiply; one that stands on one side only enters by its mean.
            if place in factors1 and place in factors2:
                k, slope = _pair(factors1[place], factors2[place], b)
            elif place in factors1:
                k, slope = mean_of(factors1[place], b, 1), None
            else:
                k, slope = mean_of(factors2[place], b, 2), None
            parts.append((k, slope, b.theta))
        product = c
        for k, _, _ in parts:
            product = product * k
        total = total + product
        if not tangent:
            continue
        for n, (_, slope, own) in enumerate(parts):
            # The product rule: E of the rest times E f' g' Theta of one process.
            if slope is None or own is None or own.ndim == 0:
                continue
            rest = c
            for m, (k, _, _) in enumerate(parts):
                rest = rest if m == n else rest * k
            theta = theta + rest * slope * own
    return total, theta


def _constant(alone: Any) -> float:
    if alone is None:
        return 1.0
    return float(algebra.on_host(alone)(0.0))


def plain_terms(terms: Sequence) -> list:
    """Terms as (number, {place: function of its process}, what stands alone)."""
    return [
        (number, {p: Function(tree) for p, _, tree in factors}, _constant(alone))
        for number, _, factors, alone in terms
    ]


def derivatives(terms: Sequence, place: int) -> tuple[list, list]:
    """Terms differentiated by a parameter, and which of the terms they come from."""
    out, kept = [], []
    for k, (number, _, factors, alone) in enumerate(terms):
        for p, _, tree in factors:
            if place in algebra.parameters(tree):
                changed = {q: Function(t) for q, _, t in factors}
                changed[p] = Function(tree, place)
                out.append((number, changed, _constant(alone)))
                kept.append(k)
        if alone is not None and place in algebra.parameters(alone):
            with jax.ensure_compile_time_eval():
                slope = float(Function(alone, place)(jnp.zeros(())))
            out.append((number, {q: Function(t) for q, _, t in factors}, slope))
            kept.append(k)
    return out, kept


def function_law(
    terms: Sequence,
    sizes: tuple[int, ...],
    operands: list,
    arrays: tuple[list, list],
    *,
    diagonal: bool,
    variance: int,
    ntk: bool,
    means: bool,
    seed: int = 0,
) -> Law:
    """Law of a sum of products of functions.

    Args:
        terms: of a step `ntk.trace.ops.function.Functions`.
        sizes: of the axes of positions of the result.
        operands: the laws among the inputs of the step, by place (None for arrays).
        arrays: the arrays among them in the first and in the second batch.
        diagonal: whether equal positions alone are kept.
        variance: 2 if covariances within each sample are needed.
        ntk: whether the tangent kernel is.
        means: whether the mean is.
        seed: of means over weights.
    """
    count = len(sizes)
    places = {p: where for _, _, factors, _ in terms for p, where, _ in factors}
    learned = {
        p
        for _, _, factors, alone in terms
        for tree in [t for _, _, t in factors] + ([] if alone is None else [alone])
        for p in algebra.parameters(tree)
    }
    plain = plain_terms(terms)
    scales = [
        [
            _product(to_axes(arrays[side][place], coded, sizes) for place, coded in given)
            for _, given, _, _ in terms
        ]
        for side in (0, 1)
    ]

    def views(block: str) -> tuple[list, list]:
        if block == "12":
            pairs = [
                kernels.views(*_both(a, b, count), diagonal) for a, b in zip(scales[0], scales[1])
            ]
            return [p[0] for p in pairs], [p[1] for p in pairs]
        side = scales[0] if block[1] == "1" else scales[1]
        if block[0] == "d":
            return side, side
        pairs = [kernels.views_within(_full(a, count)) for a in side]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def moments(block: str, tangent: bool = False) -> tuple[Any, Any]:
        blocks = {
            p: _blocks(operands[p], block, w, count, diagonal, seed) for p, w in places.items()
        }
        scale = views(block)
        k, theta = _sum(plain, plain, blocks, scale, tangent)
        if tangent:
            # A gain p that is trained adds E df/dp df'/dp, with the rate that its own law carries as an NTK.
            for place in sorted(learned):
                changed, kept = derivatives(terms, place)
                own = tuple([s[i] for i in kept] for s in scale)
                slope, _ = _sum(changed, changed, blocks, own, False)
                rate = operands[place].kernel.ntk
                theta = theta + slope * rate.reshape(rate.shape[:2] + (1,) * (jnp.ndim(slope) - 2))
        return k, theta

    dtype = next(o.kernel.var1.dtype for o in operands if o is not None)
    n1 = max(
        [o.kernel.var1.shape[0] for o in operands if o is not None]
        + [a.shape[0] for s in scales[:1] for a in s if jnp.ndim(a)]
    )
    n2 = max(
        [o.kernel.var2.shape[0] for o in operands if o is not None]
        + [a.shape[0] for s in scales[1:] for a in s if jnp.ndim(a)]
    )
    nngp, theta = moments("12", ntk)
    shape = (n1, n2, *(sizes if diagonal else [s for size in sizes for s in (size, size)]))
    var1 = _filled(moments("d1")[0], (n1, *sizes), dtype)
    var2 = _filled(moments("d2")[0], (n2, *sizes), dtype)
    within: list[Array | None] = [None, None]
    if variance == 2 and count:
        double = [s for size in sizes for s in (size, size)]
        within = [
            _filled(moments(block)[0], (n, *double), dtype) for block, n in (("w1", n1), ("w2", n2))
        ]
    base = next(o.kernel for o in operands if o is not None)
    kernel = base.replace(
        var1=var1,
        var2=var2,
        nngp=_filled(nngp, shape, dtype),
        diagonal_spatial=diagonal and count > 0,
        within1=within[0],
        within2=within[1],
        is_gaussian=False,
        is_input=False,
        coincident=None,
    )
    kernel = kernel.replace(ntk=_filled(theta, shape, dtype) if ntk else None)
    found = None
    if means:
        found = two_of(
            mean_law(terms, sizes, operands, arrays[side - 1], side, seed) for side in (1, 2)
        )
    return Law(kernel, found)


def mean_law(
    terms: Sequence,
    sizes: tuple[int, ...],
    operands: list,
    arrays: list,
    side: int,
    seed: int = 0,
) -> Array:
    """Mean of a sum of products of functions in one of the batches, (N, *S) with ones where it is constant."""
    count = len(sizes)
    total = 0.0
    for number, given, factors, alone in terms:
        c = number * _constant(alone)
        c = c * _product(to_axes(arrays[place], coded, sizes) for place, coded in given)
        for place, where, tree in factors:
            block = _blocks(operands[place], f"d{side}", where, count, False, seed)
            c = c * mean_of(Function(tree), block, side)
        total = total + c
    return _full(jnp.asarray(total), count)


def _product(arrays: Any) -> Any:
    total: Any = 1.0
    for a in arrays:
        total = total * a
    return total


def _full(a: Any, count: int) -> Array:
    a = jnp.asarray(a)
    return a.reshape((1,) * (1 + count)) if a.ndim == 0 else a


def _both(a: Any, b: Any, count: int) -> tuple[Array, Array]:
    return _full(a, count), _full(b, count)


def _filled(x: Any, shape: Sequence[int], dtype: Any) -> Array:
    x = jnp.asarray(x, dtype)
    if x.ndim == 0:
        return jnp.full(shape, x)
    return jnp.broadcast_to(x, shape)
