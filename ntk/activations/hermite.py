"""Dual of any activation, by the Hermite series of its values.

With c_k(q) the normalised Hermite coefficients of z -> f(sqrt(q) z), Mehler's formula gives

    E[f(u) f(v)] = sum_k c_k(q1) c_k(q2) rho^k,
    E[f'(u) f'(v)] = sum_k k c_k(q1) c_k(q2) rho^(k-1) / sqrt(q1 q2),

so one-dimensional quadrature of f alone gives both kernels; truncation keeps them positive
definite and consistent with each other. Jumps and kinks are split off first (`ntk.activations.kinks`).

The coefficients are computed at the variances of the call, which may be traced. What is fixed
beforehand is the order, the number of quadrature nodes and the kinks, all found from the values
of f in double precision, for variances up to `max_variance`; the error falls with the variance
and grows beyond it, and `Dual.error` tells how large it is at any variance.

One file: the study of f fixes the plan that the series reads, and states the error that the series then has.

Source: Daniely, Frostig & Singer 2016, lemma 11; the products with kinks are derived here.
"""

import functools
import math
import operator
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntk.activations import kinks as kinks_
from ntk.activations.closed_forms import Dual
from ntk.activations.elementary import root
from ntk.activations.kinks import Kink
from ntk.types import Array, Elementwise, HostFunction

Pairs: TypeAlias = list[tuple[Array, Array]]

_REACH = 12.0  # quadrature ends at 12 standard deviations
_MAX_ORDER = 192
_STUDY_ORDER, _STUDY_NODES = 512, 2048
_FINE_NODES = 2**16
_UNRESOLVED = 0.1
"""Share of E[f^2] beyond the longest series, from which on the function is refused."""
_CANCELS = 1e-3
"""Relative error by rounding where the parts of a function nearly cancel, from which on a precision is refused."""


class Plan(NamedTuple):
    """What of a series is fixed before the variances are known.

    Attributes:
        even: highest even order kept, -2 for none.
        odd: highest odd order kept, -1 for none.
        nodes: quadrature nodes.
        kinks: kinks split off.
        cancels: square of the sum of the sizes of the parts of f, smooth and of each kink, over E[f^2].
    """

    even: int
    odd: int
    nodes: int
    kinks: tuple[Kink, ...]
    cancels: float = 1.0


def dual(
    fn: Elementwise,
    *,
    order: int | None = None,
    tolerance: float = 1e-6,
    max_variance: float = 4.0,
    kinks: tuple[Kink, ...] | None = None,
) -> Dual:
    """Dual activation of any elementwise function, with its error.

    Args:
        fn: elementwise on real arrays; forward values are enough, no derivative is taken.
        order: highest order of the series; by default the lowest that meets `tolerance`, at most
            192. Give order and kinks if `fn` closes over traced values, which cannot be studied
            beforehand.
        tolerance: error of k relative to E[f^2]; that of kdot, relative to E[f'^2], is allowed to
            be a hundred times larger. Both are largest at rho = 1 and fall like rho^order.
        max_variance: largest variance at which the tolerance has to hold.
        kinks: jumps of f, of its slope and of its curvature as (at, jump, slope, curvature), the
            last for kinks at 0 only; found by themselves if None, within |x| <= 24. () for a
            smooth function.

    Returns:
        The dual; the study of `fn` happens at its first use, once.

    Raises:
        ValueError: fn is not elementwise, not real or not finite; not square-integrable at
            `max_variance`; steeper or narrower than any series resolves there (kinks that are found may be
            0.01 apart); order, tolerance or max_variance is not positive; a change of curvature is given together
            with a kink elsewhere than at 0. At a call, kinks so narrow that they cancel in single precision.

    Source: Daniely, Frostig & Singer 2016, lemma 11; Han et al. 2022.
    """
    for name, value in (("tolerance", tolerance), ("max_variance", max_variance)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive")
    if order is not None and order < 1:
        raise ValueError(f"order is {order}; it must be at least 1")
    check_shape(fn)
    # E u_+^2 v_+^n has a closed form at thresholds 0 alone (`kinks._at_zero`).
    if kinks is not None:
        try:
            kinks = tuple(Kink(*map(float, kink)) for kink in kinks)
        except TypeError as error:
            raise ValueError(
                f"kinks is {kinks!r}; it must hold (at, jump, slope[, curvature]) of each, such as ((0.0, 0.0, 1.0),)"
            ) from error
    if any(kink.curvature for kink in kinks or ()) and any(kink.at for kink in kinks or ()):
        raise ValueError(
            f"kinks are {kinks}; changes of curvature are split off only if all are at 0"
        )

    @functools.cache
    def plan() -> Plan:
        if order is not None and kinks is not None:
            return _fixed_plan(order, kinks)
        return _study(fn, order, tolerance, max_variance, kinks)

    def moments(q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
        return _moments(fn, plan(), q1, q2, rho)

    def mean(q: Array) -> Array:
        smooth, slopes, jumps = _coefficients(fn, plan()._replace(even=0, odd=0), q)
        return smooth[0] + slopes[0] + jumps[0]

    def norm(q: Array) -> Array:
        return _square(fn, plan(), q)

    return Dual(fn, moments, norm, None, mean, lambda q: _error(fn, plan(), q))


def check_shape(fn: Elementwise) -> None:
    """Refuses what does not map an array to a real one of its shape."""
    try:
        out = jax.eval_shape(fn, jax.ShapeDtypeStruct((3, 2), jnp.float32))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the activation cannot be applied to an array of shape (3, 2) ({type(error).__name__}: {reason}): it "
            "must be an elementwise function written in jax.numpy; of a Flax layer with parameters give "
            "lambda z: layer.apply(variables, z)"
        ) from error
    if getattr(out, "shape", None) != (3, 2):
        raise ValueError(
            f"an activation must return an array of the shape of its input: for shape (3, 2) it "
            f"returned {jax.tree.map(lambda x: x.shape, out)}"
        )
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError("the activation returned complex values; it must be real")


# --- the series at given variances --------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def _basis(order: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z of the trapezoidal rule, and the matrix that maps f(z) to Hermite coefficients.

    The rule converges faster than any power for smooth f, and geometrically for analytic f; it is
    exact to rounding for orders far below (pi nodes / 24)^2.
    """
    # Between multiples of the spacing: a node at 0 would meet the value of f right at a jump.
    z = (np.arange(nodes) + 0.5) * (2 * _REACH / nodes) - _REACH
    # Hermite functions, whose recurrence neither overflows nor amplifies rounding
    rows = [np.exp(-(z**2) / 4), z * np.exp(-(z**2) / 4)]
    for k in range(1, order):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    # The rows are h_k exp(-z^2 / 4), half of the density's exponent; the other half is here.
    weight = np.exp(-(z**2) / 4) / math.sqrt(2 * math.pi) * (2 * _REACH / nodes)
    return z, np.stack(rows[: order + 1]) * weight


def _deviation(q: Array) -> Array:
    """sqrt(q), kept above zero, where coefficients divided by it have their limit."""
    return jnp.sqrt(jnp.maximum(q, jnp.finfo(q.dtype).eps ** 0.7))


def _coefficients(fn: Elementwise, plan: Plan, q: Array) -> tuple[Array, Array, Array]:
    """Hermite coefficients of the smooth, the slope and the jump part, order 0 first.

    Those of smooth and slope part are divided by sqrt(q) from order 1 on.
    """
    order = max(plan.even, plan.odd, 2)
    z, matrix = _basis(order, plan.nodes)
    deviation = _deviation(q)
    x = jnp.asarray(z, q.dtype).reshape((-1,) + (1,) * q.ndim) * deviation[None]
    values = fn(x).astype(q.dtype) - kinks_.ramps(plan.kinks, x)
    # A constant has no part in the higher orders: without f(0), or nearly so, division by a small
    # deviation does not amplify rounding.
    centre = values[plan.nodes // 2]
    precision = jax.lax.Precision.HIGHEST
    table = jnp.asarray(matrix, q.dtype)
    smooth = jnp.tensordot(table, (values - centre[None]) / deviation[None], 1, precision=precision)
    first = np.arange(order + 1).reshape((-1,) + (1,) * q.ndim) == 0
    smooth = jnp.where(first, smooth * deviation[None] + centre[None], smooth)
    slopes, jumps = kinks_.coefficients(plan.kinks, deviation, order)
    return smooth, slopes, jumps


def _moments(fn: Elementwise, plan: Plan, q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
    return _cross(fn, fn, plan, plan, q1, q2, rho)


def cross(
    one: Elementwise,
    two: Elementwise,
    q1: Array,
    q2: Array,
    rho: Array,
    *,
    tolerance: float = 1e-6,
    max_variance: float = 4.0,
) -> tuple[Array, Array]:
    """E[f(u) g(v)] and E[f'(u) g'(v)] of two activations; arguments as in `dual` and `Dual.moments`."""
    # Coefficients of both are multiplied order by order: they need the same orders, though their kinks may differ.
    plans = [_study(fn, None, tolerance, max_variance, None) for fn in (one, two)]
    even, odd = max(p.even for p in plans), max(p.odd for p in plans)
    nodes = max(p.nodes for p in plans)
    plan1, plan2 = (Plan(even, odd, nodes, p.kinks, p.cancels) for p in plans)
    return _cross(one, two, plan1, plan2, q1, q2, rho)


def _cross(
    one: Elementwise, two: Elementwise, plan1: Plan, plan2: Plan, q1: Array, q2: Array, rho: Array
) -> tuple[Array, Array]:
    q1, q2, rho = (jnp.asarray(x, jnp.result_type(q1, q2, rho, float)) for x in (q1, q2, rho))
    _check_precision(one, plan1, rho.dtype)
    _check_precision(two, plan2, rho.dtype)
    if one is two:
        (s1, s2), (r1, r2), (j1, j2) = _of_both(
            functools.partial(_coefficients, one, plan1), q1, q2
        )
    else:
        s1, r1, j1 = _coefficients(one, plan1, q1)
        s2, r2, j2 = _coefficients(two, plan2, q2)
    # (s1 + r1) (s2 + r2) - r1 r2, the part of the series that kinks leave
    kinked = plan1.kinks or plan2.kinks
    pairs = [(s1, s2 + r2), (r1, s2)] if kinked else [(s1, s2)]
    series, kdot = _evaluate(plan1, pairs, rho)
    k = _product(pairs, 0) + (root(q1) * root(q2)) * series
    if kinked:
        d1, d2 = _deviation(q1), _deviation(q2)
        closed, slope = kinks_.moments(plan1.kinks, d1, d2, rho, plan2.kinks)
        k, kdot = k + closed, kdot + slope
        if any(kink.jump for kink in (*plan1.kinks, *plan2.kinks)):
            # Jumps times the rest, in E[f f] only: f' is the derivative almost everywhere.
            k = k + s1[0] * j2[0] + j1[0] * s2[0]
            k = k + _evaluate(plan1, [(s1 * d1[None], j2), (j1, s2 * d2[None])], rho)[0]
    return k, kdot


def _check_precision(fn: Elementwise, plan: Plan, dtype: jnp.dtype) -> None:
    if plan.cancels * float(jnp.finfo(dtype).eps) > _CANCELS:
        raise ValueError(
            f"the kinks of {getattr(fn, '__name__', fn)} are so narrow that its parts cancel to 1 / "
            f"{plan.cancels:.1g} of their size, which {dtype} does not hold: give inputs in float64 "
            "(jax.config.update('jax_enable_x64', True))"
        )


def _of_both(
    coefficients: Callable[[Array], tuple[Array, ...]], q1: Array, q2: Array
) -> list[tuple[Array, Array]]:
    """Each of the coefficients at q1 and at q2, by one program for both."""
    if q1 is q2:
        return [(c, c) for c in coefficients(q1)]
    both = coefficients(jnp.concatenate([q1.ravel(), q2.ravel()]))
    return [
        (c[:, : q1.size].reshape(-1, *q1.shape), c[:, q1.size :].reshape(-1, *q2.shape))
        for c in both
    ]


def _square(fn: Elementwise, plan: Plan, q: Array) -> Array:
    """E[f(u)^2]: the sum of the series, without powers of a correlation."""
    q = jnp.asarray(q, jnp.result_type(q, float))
    _check_precision(fn, plan, q.dtype)
    s, r, j = _coefficients(fn, plan, q)
    order = np.arange(len(s)).reshape((-1,) + (1,) * q.ndim)
    kept = (order == 0) | (order <= np.where(order % 2, plan.odd, plan.even))
    # Of (s + r + j)^2 all but (r + j)^2, which is in closed form; s and r are per sqrt(q) from order 1 on, j is not.
    size = jnp.where(order == 0, 1, root(q)[None])
    terms = (s * size) * ((s + 2 * r) * size + 2 * j)
    return jnp.where(kept, terms, 0).sum(0) + kinks_.square(plan.kinks, _deviation(q))


def _product(pairs: Pairs, k: int) -> Array:
    return functools.reduce(operator.add, (a[k] * b[k] for a, b in pairs))


def _evaluate(plan: Plan, pairs: Pairs, rho: Array) -> tuple[Array, Array]:
    """sum_k p_k rho^k without p_0, and its derivative; even and odd orders apart."""
    # Of an odd or even function one of the two is left out; and the two parities converge at different orders.
    y = rho * rho
    zero = jnp.zeros_like(_product(pairs, 0) * rho)
    value, slope = zero, zero
    for start, last in ((1, plan.odd), (2, plan.even)):
        if last < start:
            continue
        terms = [(a[start : last + 1 : 2], b[start : last + 1 : 2]) for a, b in pairs]
        p, dp = _horner(terms, y, zero)
        value = value + (rho * p if start == 1 else y * p)
        slope = slope + (p + 2 * y * dp if start == 1 else 2 * rho * (p + y * dp))
    return value, slope


def _horner(
    pairs: Pairs, y: Array, zero: Array, longest: int = 32, block: int = 16
) -> tuple[Array, Array]:
    """sum_k p_k y^k and its derivative, p_k the sum of products of the pairs' k-th coefficients."""
    length = pairs[0][0].shape[0]

    def descend(state: tuple[Array, Array], group: Pairs) -> tuple[tuple[Array, Array], None]:
        value, slope = state
        for k in reversed(range(group[0][0].shape[0])):
            slope = slope * y + value
            value = value * y + _product(group, k)
        return (value, slope), None

    if length <= longest:
        return descend((zero, zero), pairs)[0]
    # A loop over blocks: unrolled, a hundred terms take minutes to compile.
    count = -(-length // block)
    block = -(-length // count)
    fold = [(_folded(a, count, block), _folded(b, count, block)) for a, b in pairs]
    return jax.lax.scan(descend, (zero, zero), fold, reverse=True)[0]


def _folded(x: Array, count: int, block: int) -> Array:
    """The first axis as blocks, filled up with zeros."""
    x = jnp.pad(x, [(0, count * block - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(count, block, *x.shape[1:])


# --- the study of f, once, in double precision ----------------------------------------------------


def _fixed_plan(order: int, kinks: tuple[Kink, ...]) -> Plan:
    return Plan(order - order % 2, order - 1 + order % 2, _node_count(order), kinks)


def _node_count(order: int) -> int:
    """Nodes that resolve f on the scale of 1/8 standard deviation, times the last order kept."""
    return 2 * math.ceil(_REACH * (8 + math.sqrt(order)) / math.pi)


def _in_double(fn: Elementwise) -> HostFunction:
    """fn on numpy arrays, in double precision, also while a caller is being traced."""
    if hasattr(fn, "on_host"):
        return fn.on_host
    compiled = jax.jit(fn)

    def call(x: np.ndarray) -> np.ndarray:
        block = 4096  # one shape, so that fn compiles once
        padded = np.resize(x, -(-x.size // block) * block).reshape(-1, block)
        try:
            with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                out = [np.asarray(compiled(jnp.asarray(row, jnp.float64))) for row in padded]
        except (jax.errors.TracerArrayConversionError, jax.errors.UnexpectedTracerError):
            raise ValueError(
                "the activation closes over traced values, so its order and kinks cannot be "
                "found: give order= and kinks= (() for a smooth function) to Elementwise or ntk.hermite.dual"
            ) from None
        return np.concatenate(out).astype(np.float64)[: x.size].reshape(x.shape)

    return call


@functools.lru_cache(maxsize=64)
def _study(
    fn: Elementwise,
    order: int | None,
    tolerance: float,
    max_variance: float,
    kinks: tuple[Kink, ...] | None,
) -> Plan:
    """Lowest orders and fewest nodes that meet the tolerance at max_variance and below."""
    f = _in_double(fn)
    _check_values(f, max_variance)
    kinks = kinks_.find(f) if kinks is None else kinks
    even = odd = -1 if order is None else order
    worst = beyond = cancels = 0.0
    # Parts cancel most at small variances: near 0 a hard tanh is a ramp from -1 less a constant, each of size one.
    for q in max_variance * np.array([1, 0.1, 0.01]):
        tails = _tails(f, kinks, q)
        beyond, cancels = max(beyond, tails.missing), max(cancels, tails.cancels)
        if order is None:
            even_q, odd_q, error = _orders(tails, tolerance)
            even, odd, worst = max(even, even_q), max(odd, odd_q), max(worst, error)
    even, odd = even - even % 2, odd - 1 + odd % 2
    if beyond > _UNRESOLVED:
        raise ValueError(
            f"{getattr(fn, '__name__', fn)} is too steep, or too narrow, for a Hermite series: at variance "
            f"{max_variance} a share of {beyond:.2g} of E[f^2] lies beyond order {_STUDY_ORDER}. Set a smaller "
            "max_variance if the network's variances are smaller, give its kinks if it has some closer than 0.01, "
            "or use a closed form"
        )
    if worst > 10 * tolerance:
        warnings.warn(
            f"the Hermite series of {getattr(fn, '__name__', fn)} has relative error {worst:.1e} "
            f"at order {_MAX_ORDER} and variance {max_variance}, above tolerance {tolerance}: "
            "give its kinks, or a smaller max_variance, or read Dual.error",
            stacklevel=2,
        )
    nodes = _enough_nodes(f, kinks, max(even, odd, 2), max_variance, tolerance)
    return Plan(even, odd, nodes, kinks, cancels)


def _check_values(f: HostFunction, max_variance: float) -> None:
    x = math.sqrt(max_variance) * np.linspace(-_REACH, _REACH, 1025)
    values = f(x)
    # Square-integrable: f^2 times the density has to have vanished at the ends of the quadrature.
    z = x / math.sqrt(max_variance)
    with np.errstate(over="ignore", invalid="ignore"):
        mass = values**2 * np.exp(-(z**2) / 2)
    if not np.isfinite(values[np.abs(z) < 6]).all():
        bad = x[np.abs(z) < 6][~np.isfinite(values[np.abs(z) < 6])][0]
        raise ValueError(f"the activation is not finite at {bad:.4g}")
    if not (np.isfinite(mass).all() and mass[[0, 1, -2, -1]].max() <= 1e-6 * mass.max()):
        raise ValueError(
            f"the activation is not square-integrable at variance {max_variance}: f(x)^2 grows "
            "faster than the Gaussian density falls. Its kernel is infinite there; set a smaller "
            "max_variance if the network's variances are smaller"
        )
    if not np.allclose(
        f(x[::-1][:512]), values[::-1][:512], rtol=1e-6, atol=1e-6 * abs(values).max()
    ):
        raise ValueError("the activation is not elementwise: its values depend on their neighbours")


def _smooth(
    f: HostFunction, kinks: tuple[Kink, ...], q: float, order: int, nodes: int
) -> np.ndarray:
    z, matrix = _basis(order, nodes)
    x = z * math.sqrt(q)
    return matrix @ (f(x) - kinks_.ramps(kinks, x))


class _Tails(NamedTuple):
    """What the orders of a series carry of k and of q kdot at rho = 1.

    Attributes:
        terms: size of the term of each order in k, up to 512.
        slopes: the same in q kdot.
        total: all of k.
        total_slope: all of q kdot.
        missing: share of k beyond these orders, from a quadrature that is 32 times finer.
        missing_slope: share of q kdot.
        cancels: as in `Plan`.
    """

    terms: np.ndarray
    slopes: np.ndarray
    total: float
    total_slope: float
    missing: float
    missing_slope: float
    cancels: float


def _tails(f: HostFunction, kinks: tuple[Kink, ...], q: float) -> _Tails:
    s = _smooth(f, kinks, q, _STUDY_ORDER, _STUDY_NODES)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        split = kinks_.coefficients(kinks, jnp.sqrt(jnp.float64(q)), _STUDY_ORDER)
        r, j = (np.array(part) for part in split)
    r[1:] *= math.sqrt(q)
    terms = s * s + 2 * np.abs(s * (r + j))
    k = np.arange(len(s))
    slopes = k * (s * s + 2 * np.abs(s * r))

    # No node at 0, or another simple number, where the value of f may be that right at a jump.
    edge = np.linspace(-_REACH, _REACH, _FINE_NODES + 1) + 1e-4
    z = (edge[1:] + edge[:-1]) / 2
    weight = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (edge[1] - edge[0])
    x, deviation = z * math.sqrt(q), math.sqrt(q)
    parts = [kinks_.ramps((kink,), x) for kink in kinks]
    values = f(x)
    rest = values - sum(parts, np.zeros_like(x))
    edges = f(edge * deviation) - kinks_.ramps(kinks, edge * deviation)
    # f' almost everywhere by differences on the fine grid: of the rest, which is continuous, plus that of the ramps.
    bend = np.diff(edges) / (edge[1] - edge[0])
    ramp = sum(
        (
            deviation * (x > at) * (slope + curvature * (x - at))
            for at, _, slope, curvature in kinks
        ),
        np.zeros_like(x),
    )
    total, total_slope = weight @ values**2, weight @ (bend + ramp) ** 2
    # A derivative that vanishes almost everywhere, as of a sign, has no relative error.
    total, total_slope = max(total, 1e-300), max(total_slope, 1e-9 * total, 1e-300)
    size = [weight @ part**2 for part in (rest, *parts)]
    cancels = sum(map(math.sqrt, size)) ** 2 / total
    missing = _share(size[0] - s @ s, total)
    missing_slope = _share(weight @ bend**2 - k @ (s * s), total_slope)
    return _Tails(terms, slopes, total, total_slope, missing, missing_slope, cancels)


def _share(missing: float, total: float) -> float:
    """missing / total, and 0 where that is the error of the quadratures."""
    return missing / total if missing > 1e-6 * total else 0.0


def _orders(tails: _Tails, tolerance: float) -> tuple[int, int, float]:
    """Orders from which on both relative tails are small, for even and odd; the error there."""
    # kdot, whose terms are those of k times their order, is allowed a hundred times the tolerance.
    size = np.maximum(tails.terms / tails.total, 0.01 * tails.slopes / tails.total_slope)
    kept = []
    for parity in (0, 1):
        tail = np.cumsum(size[parity::2][::-1])[::-1]
        kept.append(parity + 2 * int((tail > tolerance / 2).sum()) - 2)
    even, odd = (min(order, _MAX_ORDER - parity) for parity, order in enumerate(kept))
    beyond = max(tails.missing, 0.01 * tails.missing_slope)
    return even, odd, size[even + 2 :: 2].sum() + size[odd + 2 :: 2].sum() + beyond


def _enough_nodes(
    f: HostFunction, kinks: tuple[Kink, ...], order: int, q: float, tolerance: float
) -> int:
    """Fewest nodes whose coefficients are those of the finest rule."""
    fine = _smooth(f, kinks, q, order, _STUDY_NODES)
    for nodes in (64, 96, 128, 192, 256, 384, 512, 1024):
        coarse = _smooth(f, kinks, q, order, nodes)
        if np.abs(coarse - fine).max() <= 1e-2 * tolerance * np.abs(fine).max():
            return nodes
    return _STUDY_NODES


def _error(fn: Elementwise, plan: Plan, q: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors of k and kdot at rho = 1, from the orders left out."""
    f, out = _in_double(fn), []
    for value in np.ravel(np.asarray(q, np.float64)):
        tails = _tails(f, plan.kinks, max(value, 1e-12))
        left = np.ones(len(tails.terms))
        left[0 : plan.even + 1 : 2] = left[1 : plan.odd + 1 : 2] = 0
        k = (left * tails.terms).sum() / tails.total + tails.missing
        kdot = (left * tails.slopes).sum() / tails.total_slope + tails.missing_slope
        out.append((k, kdot))
    k, kdot = np.array(out).T
    return k.reshape(np.shape(q)), kdot.reshape(np.shape(q))
