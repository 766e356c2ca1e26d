"""A deep network whose layers act on the correlation alone, as one scalar map of it.

Homogeneous activations without biases, and inputs of equal norms, make every layer a function of
the correlation rho of its two inputs. Composed over the depth, such functions are smooth in the
angle theta = arccos(rho): for ReLU, theta_L is about theta / (1 + L theta / 3 pi). They are
tabulated once, in double precision, as Chebyshev series in theta or in theta / (theta + a), which
straightens that curve, so that the cost of a kernel matrix does not depend on the depth.

One layer, at the common variance q and with k = q rho (`_layer`)::

    q' = W_std^2 q + b_std^2,    rho' = (W_std^2 k + b_std^2) / q',    ntk' = W_std^2 ntk + weight_scale k + bias_scale

and then the activation's moments at (q', q', rho').

Source: Poole et al. 2016 for the map of correlations; Jacot et al. 2018, theorem 1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ntk import show
from ntk.activations.closed_forms import Dual
from ntk.activations.elementary import arccos, polynomial
from ntk.types import Array, Numbers

_Numbers: TypeAlias = tuple[float, float, float, float, float]
_State: TypeAlias = tuple[Array, Array, Array, Array]

_NODES = 256
# a = 3 pi / L makes the map of L ReLU layers a straight line: these serve some 3 to 9000 layers.
_SCALES = (math.inf, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_TOLERANCE = {4: 1e-7, 8: 1e-13}


@show.readable
class DepthMap(NamedTuple):
    """What `depth` layers do to two inputs of variance q and correlation rho.

    Attributes:
        maps: rho -> (correlation, ntk, gain): correlation of the outputs, their NTK where that of
            the inputs is zero, and the factor of a given input NTK, in the dtype of rho:
            NTK_out = ntk(rho) + gain(rho) NTK_in.
        variance: variance of the outputs.
        error: dtype -> largest difference of the maps' tables for that dtype from the direct
            recursion in double precision, on a fine grid, relative to each map's maximum.
    """

    maps: Callable[[Array], tuple[Array, Array, Array]]
    variance: float
    error: Callable[[Any], float]


class _Table(NamedTuple):
    """Chebyshev coefficients in x = 2 y / y(pi) - 1, y = theta / (theta + scale)."""

    scale: float
    coefficients: tuple[tuple[float, ...], ...]
    error: float


def depth_map(
    dual: Dual,
    W_std: float,
    b_std: float | None,
    depth: int,
    *,
    variance: float | None = None,
    weight_scale: float | None = None,
    bias_scale: float | None = None,
) -> DepthMap:
    """`depth` times (random affine map, activation), for every correlation at once.

    Args:
        dual: the activation.
        W_std: standard deviation of the weights times sqrt(fan-in).
        b_std: standard deviation of the biases; None for none.
        depth: number of layers, at least 1.
        variance: the variance that all inputs have. None if they differ; then the activation has
            to be homogeneous of degree 1, without biases, the result holds for unit variances,
            and for others the outputs' variance and `ntk` scale with sqrt(q1 q2).
        weight_scale: factor of the weights' own contribution to the NTK, W_std^2 if None.
        bias_scale: the same for the biases, b_std^2 if None.

    Returns:
        The map; it is tabulated at its first use, once, in a fraction of a second. Its error
        relative to the maximum of a map is about 1e-7 for float32, and for float64 between 1e-13
        and 1e-16 depth^3 (a correlation near 1 determines its angle no better than that).
        Chaotic networks (a slope above 1 at rho = 1) have maps that jump near rho = 1 and have no
        table beyond some depth.

    Raises:
        ValueError: depth below 1; inputs of different variances without a homogeneous activation;
            settings that are not numbers; from `maps`, if the error exceeds 1e-5.

    Source: Jacot et al. 2018, theorem 1; Poole et al. 2016 for the correlation map.
    """
    b_std = 0.0 if b_std is None else b_std
    if not (isinstance(depth, int) and depth >= 1):
        raise ValueError(f"depth is {depth!r}; it must be a positive integer")
    if variance is None and (dual.homogeneous != 1 or b_std != 0):
        raise ValueError(
            "inputs of different norms have one map only for homogeneous activations of degree 1 "
            f"without biases; homogeneous is {dual.homogeneous}, b_std is {b_std}: give the common "
            "variance of the inputs, or evaluate layer by layer"
        )
    weight_scale = W_std**2 if weight_scale is None else weight_scale
    bias_scale = b_std**2 if bias_scale is None else bias_scale
    given = (W_std, b_std, 1.0 if variance is None else variance, weight_scale, bias_scale)
    try:
        one, two, three, four, five = (float(x) for x in given)
    except jax.errors.ConcretizationTypeError:
        raise ValueError(
            "the whole depth can be tabulated only for numbers known beforehand: W_std, b_std or "
            "variance is traced; evaluate layer by layer"
        ) from None
    numbers = (one, two, three, four, five)

    def maps(rho: Array) -> tuple[Array, Array, Array]:
        table = _table(dual, numbers, depth, _size(rho.dtype))
        if not table.error <= 1e-5:
            raise ValueError(
                f"the map of {depth} layers is too steep near correlation 1 to be tabulated (error "
                f"{table.error:.1e}): the network is chaotic; evaluate layer by layer"
            )
        correlation, ntk, gain = _apply(table, rho)
        # By Price's theorem each layer multiplies dk by W_std^2 E f' f': dk_L / dk_0 is the gain, and rho = k / q.
        return _with_slope(correlation, gain * (numbers[2] / last), rho), ntk, gain

    def error(dtype: DTypeLike | None) -> float:
        return _table(dual, numbers, depth, _size(dtype)).error

    last = _final_variance(dual, numbers, depth)
    return DepthMap(maps, last, error)


def _size(dtype: DTypeLike | None) -> int:
    return 8 if jnp.dtype(dtype) == jnp.float64 else 4


# --- the direct recursion -------------------------------------------------------------------------


def _layer(dual: Dual, numbers: _Numbers, state: _State) -> _State:
    """One affine map and activation on (q, rho, ntk, gain); q is the common variance."""
    W_std, b_std, _, weight_scale, bias_scale = numbers
    q, rho, ntk, gain = state
    before, k = q, q * rho
    q = W_std**2 * q + b_std**2
    # A unit correlation stays one, whatever the rounding of a quotient; its angle would be 1e-8.
    rho = jnp.where(rho == 1, 1, jnp.clip((W_std**2 * k + b_std**2) / q, -1, 1))
    ntk = W_std**2 * ntk + weight_scale * k + bias_scale
    k, slope = dual.moments(q, q, rho)
    norm = dual.norm(q)
    rho = jnp.where(rho == 1, 1, jnp.clip(k / norm, -1, 1))
    return norm + 0 * before, rho, ntk * slope, gain * (W_std**2 * slope)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _recursion(dual: Dual, numbers: _Numbers, depth: int, rho: Array) -> _State:
    start = (jnp.full((), numbers[2], rho.dtype), rho, jnp.zeros_like(rho), jnp.ones_like(rho))
    return jax.lax.fori_loop(0, depth, lambda _, s: _layer(dual, numbers, s), start)


def _in_double(dual: Dual, numbers: _Numbers, depth: int, rho: np.ndarray) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        state = _recursion(dual, numbers, depth, jnp.asarray(rho, jnp.float64))
        return [np.asarray(x) for x in state]


@functools.lru_cache(maxsize=256)
def _final_variance(dual: Dual, numbers: _Numbers, depth: int) -> float:
    return float(_in_double(dual, numbers, depth, np.ones(1))[0])


# --- the table ------------------------------------------------------------------------------------


def _straighten(theta: Numbers, scale: float) -> Numbers:
    """theta -> x in [-1, 1]."""
    if math.isinf(scale):
        return theta * (2 / math.pi) - 1
    return theta / (theta + scale) * (2 * (math.pi + scale) / math.pi) - 1


def _angles(x: np.ndarray, scale: float) -> np.ndarray:
    """Inverse of _straighten."""
    if math.isinf(scale):
        return (x + 1) * (math.pi / 2)
    y = (x + 1) * (math.pi / (2 * (math.pi + scale)))
    return scale * y / (1 - y)


def _chebyshev(values: np.ndarray) -> np.ndarray:
    """Coefficients of the interpolants through values at cos(pi j / n), j = 0..n, along axis 1."""
    n = values.shape[1] - 1
    # A cosine transform, by the Fourier transform of the even continuation.
    mirrored = np.concatenate([values, values[:, -2:0:-1]], axis=1)
    coefficients = np.fft.rfft(mirrored, axis=1).real / n
    coefficients[:, [0, n]] /= 2
    return coefficients


@functools.lru_cache(maxsize=256)
def _table(dual: Dual, numbers: _Numbers, depth: int, size: int) -> _Table:
    """The shortest series that meets the tolerance, over all scales."""
    x = np.cos(np.pi * np.arange(_NODES + 1) / _NODES)
    theta = np.stack([_angles(x, scale) for scale in _SCALES])
    samples = np.stack(_in_double(dual, numbers, depth, np.cos(theta.ravel()))[1:])
    samples = samples.reshape(3, len(_SCALES), _NODES + 1)
    series = _chebyshev(samples.reshape(3 * len(_SCALES), -1)).reshape(samples.shape)
    top = np.maximum(np.abs(samples).max(axis=2, keepdims=True), 1e-300)
    size_k = np.abs(series) / top
    # Rounding of cos(theta), which the depth amplifies, ends the decay on a plateau. Where the last coefficients are
    # far larger than at another scale, they are no rounding: the series has not converged.
    plateau = 4 * np.median(size_k[:, :, 3 * _NODES // 4 :], axis=2, keepdims=True)
    rounding = (plateau < 1e-7) & (plateau <= 100 * plateau.min(axis=1, keepdims=True))
    size_k = np.where((size_k < plateau) & rounding, 0, size_k)
    tails = np.cumsum(size_k[:, :, ::-1], axis=2)[:, :, ::-1]
    lengths = np.maximum((tails.max(axis=0) > _TOLERANCE[size]).sum(axis=1), 2)
    best = int(np.argmin(lengths))
    scale, series = _SCALES[best], series[:, best, : lengths[best]]
    table = tuple(tuple(row.tolist()) for row in series)
    return _Table(scale, table, _deviation(dual, numbers, depth, scale, series))


def _deviation(
    dual: Dual, numbers: _Numbers, depth: int, scale: float, series: np.ndarray
) -> float:
    """Largest difference from the direct recursion between the nodes, relative to the maximum."""
    # Maps of many layers change fastest near angle 0, those of ReLU within 3 pi / depth.
    theta = np.concatenate([np.linspace(0, np.pi, 1537), np.geomspace(1e-5, 1, 512)])
    exact = np.stack(_in_double(dual, numbers, depth, np.cos(theta))[1:])
    x = _straighten(theta, scale)
    ours = np.stack([np.polynomial.chebyshev.chebval(x, row) for row in series])
    top = np.maximum(np.abs(exact).max(axis=1), 1e-300)
    return float((np.abs(ours - exact).max(axis=1) / top).max())


def _apply(table: _Table, rho: Array) -> tuple[Array, Array, Array]:
    x = _straighten(arccos(rho), table.scale)
    correlation, ntk, gain = (_series(row, x) for row in table.coefficients)
    return jnp.clip(correlation, -1, 1), ntk, gain


@jax.custom_jvp
def _with_slope(correlation: Array, slope: Array, rho: Array) -> Array:
    """The correlation, whose derivative by rho the series in the angle does not have at rho = 1."""
    return correlation


@_with_slope.defjvp
def _with_slope_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    return _with_slope(*primals), primals[1] * tangents[2]


def _series(coefficients: tuple[float, ...], x: Array) -> Array:
    """sum_k coefficients[k] T_k(x), by Horner's rule where powers of x are as well conditioned."""
    powers = np.polynomial.chebyshev.cheb2poly(coefficients)
    if np.abs(powers).sum() <= 4 * max(np.abs(coefficients).sum(), 1e-300):
        return polynomial([float(c) for c in powers], x)
    above = after = jnp.zeros_like(x)
    for c in coefficients[:0:-1]:
        above, after = 2 * x * above - after + c, above
    return x * above - after + coefficients[0]
