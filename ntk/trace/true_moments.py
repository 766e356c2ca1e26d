"""Moments of functions of processes that sum over a fixed number of weights, under the law of these weights.

Three roads, see `ntk.infinite.true_law`: means over weights where the excess kurtosis of an entry is above
`true_law.MOST`, its fourth cumulants below that, and the Gaussian where all weights are normal.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.activations.closed_forms import Dual
from ntk.activations.elementary import root
from ntk.infinite import channels, true_law, weight_laws
from ntk.infinite import kernel as kernels
from ntk.infinite.kernel import Array, Kernel
from ntk.infinite.true_law import Covariance, Sides
from ntk.trace.activations import Function, expectation
from ntk.trace.entries import Entries
from ntk.types import two_of

PAIRS = 2**10
"""Pairs of positions of two samples above which means over weights would take too long."""


class Moments(NamedTuple):
    """Moments of f(z) that a law changes.

    Attributes:
        rho: correlation between the batches.
        slope: E f'(z) f'(z'), or None.
        norms: E f(z)^2 in either batch.
        within: correlation within samples of either batch, or None.
        means: E f(z) in either batch, or None.
    """

    rho: Array
    slope: Array | None
    norms: tuple[Array, Array]
    within: tuple[Array | None, Array | None]
    means: tuple[Array, Array] | None


def excess(made: Entries, q: Array, side: str) -> Array:
    """Sum over weights of the size of what each adds to the excess kurtosis of z, (N, *S)."""
    return _fourth(getattr(made, side), np.abs(made.kurtosis), q)


def _fourth(x: Array, kurtosis: np.ndarray, q: Array) -> Array:
    """sum_m k_m x_m^4 / q^2."""
    relative = (x * kernels.inverse_sqrt(q)[..., None]) ** 4
    return jnp.einsum("...m,m->...", relative, jnp.asarray(kurtosis, q.dtype), precision="highest")


def can_sample(made: Entries, layout: str) -> bool:
    """Whether means over weights are at hand, and do not take too long."""
    positions = int(np.prod(made.one.shape[1:-1]))
    count = positions**2 if layout in ("pairs", "within") else positions
    return not made.rest and count <= PAIRS and weight_laws.has_points(made.one.shape[-1])


@functools.lru_cache(maxsize=256)
def _terms(f: Function) -> int:
    return true_law.terms_of(f, f.on_host)


def slope_of(f: Callable) -> Callable:
    """The derivative, almost everywhere."""
    return lambda z: jax.jvp(f, (z,), (jnp.ones_like(z),))[1]


def _squared(f: Callable) -> Callable:
    return lambda z: f(z) ** 2


def wide(made: Entries, one: Array, two: Array) -> tuple[Array, Array]:
    """Entries with the positions of variances (N, *S)."""
    size = made.one.shape[-1]
    sides = zip((made.one, made.two), (one, two))
    return two_of(jnp.broadcast_to(x, (*q.shape, size)) for x, q in sides)


def of_function(
    f: Function, dual: Dual, kernel: Kernel, made: Entries, means: bool, seed: int
) -> tuple[Kernel, tuple[Array, Array] | None]:
    """Kernel after one function of one process, and its means if asked for.

    Args:
        f: the function.
        dual: its Gaussian moments.
        kernel: of the process, second moments of any law.
        made: its entries.
        means: whether means are asked for.
        seed: of the points.
    """
    tangent = kernel.ntk is not None and kernel.ntk.ndim > 0
    layout = "equal" if kernel.diagonal_spatial or kernel.var1.ndim == 1 else "pairs"
    one, two = wide(made, kernel.var1, kernel.var2)
    found = _expanded(f, dual, kernel, made, (one, two), layout, tangent, means)
    if can_sample(made, layout):
        large = [
            excess(made, q, side) > true_law.MOST
            for q, side in ((kernel.var1, "one"), (kernel.var2, "two"))
        ]
        run = functools.partial(_sampled, f, kernel, made.laws, layout, tangent, means, seed)
        expanded = found
        found = true_law.where_needed(
            large[0].any() | large[1].any(),
            lambda: _chosen(large, run((one, two)), expanded, layout),
            expanded,
        )
    within = []
    for rho, norm in zip(found.within, found.norms):
        if rho is not None:
            a, b = kernels.views_within(root(norm))
            rho = rho * (a * b)
        within.append(rho)
    ntk = kernel.ntk
    if ntk is not None and found.slope is not None:
        ntk = ntk * found.slope
    out = kernel.replace(
        correlation=found.rho,
        var1=found.norms[0],
        var2=found.norms[1],
        ntk=ntk,
        within1=within[0],
        within2=within[1],
        is_gaussian=False,
    )
    return out, found.means


def _expanded(
    f: Function,
    dual: Dual,
    kernel: Kernel,
    made: Entries,
    sides: tuple[Array, Array],
    layout: str,
    tangent: bool,
    means: bool,
) -> Moments:
    """By fourth cumulants, as changes of the Gaussian moments."""
    asked = jnp.ones_like(kernel.correlation) if tangent else None
    base = channels.elementwise(kernel.replace(ntk=asked), dual)
    q = (kernel.var1, kernel.var2)
    kurtosis = [_fourth(x, made.kurtosis, v) for x, v in zip(sides, q)]
    # For a min(z, 0) + b max(z, 0) the correction is in closed form, where a series converges slowly.
    closed = dual.homogeneous == 1
    more = [true_law.at_one(_squared(f), v, k) for v, k in zip(q, kurtosis)]
    norms = (base.var1, base.var2)
    share = [jnp.maximum(1 + m * kernels.inverse_sqrt(n) ** 2, 0.1) for m, n in zip(more, norms)]

    def changed(
        rho: Array, new: Array, slope: Array | None, u: int, v: int, layout: str, tangent: bool
    ) -> tuple[Array, Array | None]:
        """Correlation (and slope) of one covariance, its sides from batch u and batch v."""
        c = true_law.cumulants(Sides(sides[u], sides[v], layout), made.kurtosis, q[u], q[v])
        if closed:
            unit = jnp.ones((), rho.dtype)
            # s(1) - s(-1) = (b - a)^2 / 2, which over pi is the factor (b - a)^2 / (2 pi) of s'.
            norm, ends = dual.norm(unit), [dual.moments(unit, unit, r * unit)[1] for r in (1, -1)]
            ratio, own = dual.moments(unit, unit, jnp.clip(rho, -1, 1))
            change = true_law.rectified(rho, ratio, own, (ends[0] - ends[1]) / np.pi, c, layout)
            value = change.value / norm
        else:
            fs, terms = (f, f), _terms(f)
            change = true_law.series(fs, (q[u], q[v]), rho, c, layout, terms, tangent)
            one, two = (kernels.inverse_sqrt(norms[k]) for k in (u, v))
            one, two = true_law.viewed(one, two, layout)
            value = change.value * (one * two)
        near = true_law.apart(rho, closed)
        one, two = true_law.viewed(jax.lax.rsqrt(share[u]), jax.lax.rsqrt(share[v]), layout)
        new = new + near * ((new + value) * (one * two) - new)
        new = jnp.where(new > 1, 1, jnp.where(new < -1, -1, new))  # a derivative at 1 stays whole
        if slope is None or change.slope is None:
            return new, None
        if closed:
            return new, slope + near * change.slope
        ends = [true_law.at_one(_squared(slope_of(f)), q[k], kurtosis[k]) for k in (u, v)]
        one, two = true_law.viewed(ends[0], ends[1], layout)
        # Coincident entries get the correction of E f'(z)^2, which is that of one variable.
        mean = (one + two) / 2
        return new, slope + near * change.slope + (1 - near) * mean

    rho, slope = changed(
        channels.snap(kernel.correlation), base.correlation, base.ntk, 0, 1, layout, tangent
    )
    within: list[Array | None] = [None, None]
    for k, (before, after) in enumerate(
        ((kernel.within1, base.within1), (kernel.within2, base.within2))
    ):
        if before is not None and after is not None:
            a, b = kernels.views_within(kernels.inverse_sqrt(q[k]))
            c, d = kernels.views_within(kernels.inverse_sqrt(norms[k]))
            old = channels.snap(before * (a * b))
            within[k], _ = changed(old, after * (c * d), None, k, k, "within", False)
    found = None
    if means:
        mean = expectation(dual)
        found = two_of(mean(v) + true_law.at_one(f, v, k) for v, k in zip(q, kurtosis))
    new = two_of(n * s for n, s in zip(norms, share))
    return Moments(rho, slope, new, two_of(within), found)


def _sampled(
    f: Function,
    kernel: Kernel,
    laws: tuple,
    layout: str,
    tangent: bool,
    means: bool,
    seed: int,
    sides: tuple[Array, Array],
) -> Moments:
    """By means over weights."""
    dtype = kernel.var1.dtype
    asked = [Covariance((0, 1), layout, tangent), *(Covariance((k, k), "same") for k in (0, 1))]
    known = [k for k, w in enumerate((kernel.within1, kernel.within2)) if w is not None]
    asked += [Covariance((k, k), "within") for k in known]
    found, mean = true_law.sampled((f, f), sides, laws, seed, tuple(asked), means)
    (k, slope), (one, _), (two, _) = found[:3]
    norms = (one, two)
    within: list[Array | None] = [None, None]
    for side, (cov, _) in zip(known, found[3:]):
        within[side] = true_law.normalised(cov, norms[side], norms[side], "within", dtype)
    return Moments(
        true_law.normalised(k, one, two, layout, dtype),
        None if slope is None else slope.astype(dtype),
        two_of(n.astype(dtype) for n in norms),
        two_of(within),
        two_of(m.astype(dtype) for m in mean) if means else None,
    )


def _chosen(large: list[Array], sampled: Moments, expanded: Moments, layout: str) -> Moments:
    """Of each entry the means over weights, where the kurtosis of either side is large."""

    def pick(where: Any, a: Any, b: Any) -> Any:
        return None if a is None else jnp.where(where, a, b)

    one, two = true_law.viewed(large[0], large[1], layout)
    within = []
    for k in (0, 1):
        a, b = kernels.views_within(large[k])
        within.append(pick(a | b, sampled.within[k], expanded.within[k]))
    means = sampled.means
    if means is not None and expanded.means is not None:
        means = two_of(pick(w, a, b) for w, a, b in zip(large, means, expanded.means))
    return Moments(
        pick(one | two, sampled.rho, expanded.rho),
        pick(one | two, sampled.slope, expanded.slope),
        two_of(pick(w, a, b) for w, a, b in zip(large, sampled.norms, expanded.norms)),
        two_of(within),
        means,
    )


# --- one factor of a product ----------------------------------------------------------------------


class View(NamedTuple):
    """Entries at the two sides of a covariance, with the variances there.

    Attributes:
        entries: of side one and two, which may be the same batch.
        q: variances, (N1, *S) and (N2, *S).
        layout: as in `ntk.infinite.true_law.Sides`.
        seed: of the points.
    """

    entries: Entries
    q: tuple[Array, Array]
    layout: str
    seed: int


def view(made: Entries, block: str, q: tuple[Array, Array], layout: str, seed: int) -> View:
    """The view of "12" (both batches), or of one batch with itself ("w1", "d2")."""
    one, two = (made.one, made.two) if block == "12" else (getattr(made, _SIDES[block[1]]),) * 2
    one, two = wide(dataclasses.replace(made, one=one, two=two), *q)
    return View(dataclasses.replace(made, one=one, two=two), q, layout, seed)


_SIDES = {"1": "one", "2": "two"}


def pair(
    fs: tuple[Callable, Callable], k: Array, slope: Array, rho: Array, v: View
) -> tuple[Array, Array]:
    """E f(z) g(z') and E f'(z) g'(z') from those of the Gaussian, k and slope."""
    made, q, layout, _ = v
    kurtosis = [_fourth(x, made.kurtosis, y) for x, y in zip((made.one, made.two), q)]

    def at_ends(f: Callable, g: Callable) -> Array:
        ends = [true_law.at_one(lambda z: f(z) * g(z), y, c) for y, c in zip(q, kurtosis)]
        one, two = true_law.viewed(ends[0], ends[1], layout)
        return (one + two) / 2

    ends = at_ends(*fs), at_ends(slope_of(fs[0]), slope_of(fs[1]))
    if layout == "same":
        new = k + ends[0], slope + ends[1]
    else:
        c = true_law.cumulants(true_law.Sides(made.one, made.two, layout), made.kurtosis, *q)
        terms = max(map(_terms, fs))
        change = true_law.series(fs, q, rho, c, layout, terms, True)
        near = true_law.apart(rho, False)
        assert change.slope is not None  # it was asked for
        new = (
            k + near * change.value + (1 - near) * ends[0],
            slope + near * change.slope + (1 - near) * ends[1],
        )
    shape = jnp.broadcast_shapes(*map(jnp.shape, new))
    new = two_of(jnp.broadcast_to(x, shape) for x in new)
    if not can_sample(made, layout):
        return new
    large = _large(v)
    where = functools.reduce(jnp.logical_or, true_law.viewed(large[0], large[1], layout))

    def sampled() -> tuple[Array, Array]:
        asked = (Covariance((0, 1), layout, True),)
        ((one, two),), _ = true_law.sampled(fs, (made.one, made.two), made.laws, v.seed, asked)
        assert two is not None  # it was asked for
        return two_of(jnp.where(where, x.astype(y.dtype), y) for x, y in zip((one, two), new))

    return true_law.where_needed(where.any(), sampled, new)


def mean(f: Callable, known: Array, v: View, side: int) -> Array:
    """E f(z) at one side from that of the Gaussian."""
    made, q = v.entries, v.q[side]
    x = (made.one, made.two)[side]
    new = known + true_law.at_one(f, q, _fourth(x, made.kurtosis, q))
    if not can_sample(made, "same"):
        return new
    where = _large(v)[side]

    def sampled() -> Array:
        _, (found, _) = true_law.sampled((f, f), (x, x), made.laws, v.seed, (), True)
        return jnp.where(where, found.astype(new.dtype), new)

    return true_law.where_needed(where.any(), sampled, new)


def _large(v: View) -> list[Array]:
    return [excess(v.entries, y, side) > true_law.MOST for y, side in zip(v.q, ("one", "two"))]
