"""Laws of weights with mean 0 and variance 1: their kurtosis, and points that fill them evenly.

A layer that sums over d entries has z = sum_m a_m w_m with the law of its weights, which is Gaussian only if theirs is.

    uniform             E w^4 = 9 / 5
    truncated normal    E x^2 = 1 - 4 phi(2) / m,    E x^4 = 3 - 28 phi(2) / m,    m = P(|x| < 2)

with phi the normal density, and w = x / sqrt(E x^2).

Source: the moments by parts; Antonov & Saleev 1979 and Owen 1998 for the points.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ntk.types import Array

POINTS = 2**13
_BITS = 30
_MOST = 21201
"""Dimensions that Sobol sequences are known for."""


class Standard(NamedTuple):
    """A law with mean 0 and variance 1.

    Attributes:
        kind: "normal", "truncated normal" (at two standard deviations), "uniform", or "other".
        quantiles: of an "other" law, equally likely values in order.
    """

    kind: str
    quantiles: tuple[float, ...] = ()


NORMAL = Standard("normal")
_MASS = math.erf(math.sqrt(2))  # of a normal between -2 and 2
_DENSITY = math.exp(-2) / math.sqrt(2 * math.pi)
# By parts E w^2 = 1 - 2 a phi(a) / mass, a = 2.
_VARIANCE = 1 - 4 * _DENSITY / _MASS


def excess_kurtosis(law: Standard) -> float:
    """E w^4 - 3."""
    if law.kind == "other":
        return float(np.mean(np.array(law.quantiles) ** 4) - 3)
    fourth = 3 - (2 * 2**3 + 6 * 2) * _DENSITY / _MASS  # of the truncated normal, by parts
    return {"normal": 0.0, "uniform": -1.2, "truncated normal": fourth / _VARIANCE**2 - 3}[law.kind]


def quantile(law: Standard, u: Array) -> Array:
    """The value below which a share u of the law lies, 0 < u < 1."""
    if law.kind == "uniform":
        return math.sqrt(3) * (2 * u - 1)
    if law.kind == "other":
        table = jnp.asarray(np.array(law.quantiles), u.dtype)
        return table[jnp.floor(u * len(law.quantiles)).astype(jnp.int32)]
    normal = law.kind == "normal"
    mass, scale = (1.0, 1.0) if normal else (_MASS, math.sqrt(_VARIANCE))
    return math.sqrt(2) / scale * jax.lax.erf_inv(mass * (2 * u - 1))


def has_points(size: int) -> bool:
    """Whether there are points in that many dimensions."""
    return size <= _MOST


@functools.lru_cache(maxsize=16)
def _directions(size: int, seed: int) -> np.ndarray:
    """Scrambled Sobol points as a shift and one direction for each bit of the index, (1 + log2 POINTS, size).

    Point i is the shift xor the directions of the bits of i. The directions are read off neighbours in Gray code.

    Source: Antonov & Saleev (1979); Owen (1998), "Scrambling Sobol' and Niederreiter-Xing points".
    """
    from scipy.stats import qmc

    sobol = qmc.Sobol(size, scramble=True, bits=_BITS, rng=seed)
    before = sobol.random(1)
    rows, index = [before], 0
    for bit in range(POINTS.bit_length() - 1):
        if 2**bit - 1 > index:
            sobol.fast_forward(2**bit - 2 - index)
            before = sobol.random(1)
        after = sobol.random(1)
        rows.append((before, after))
        before, index = after, 2**bit
    numbers = [np.round(rows[0] * 2**_BITS).astype(np.uint32)]
    for one, two in rows[1:]:
        a, b = (np.round(x * 2**_BITS).astype(np.uint32) for x in (one, two))
        numbers.append(a ^ b)
    return np.concatenate(numbers)


def points(
    laws: tuple[tuple[Standard, int], ...], index: Array, seed: int, dtype: DTypeLike | None
) -> Array:
    """Weights at some of the POINTS points, (len(index), d).

    Args:
        laws: law and number of the entries, in order; d in all.
        index: which points, integers below POINTS.
        seed: of the scrambling.
        dtype: of the result.
    """
    shift, *rest = _directions(sum(count for _, count in laws), seed)
    table = (jnp.asarray(np.stack(rest)), jnp.arange(len(rest), dtype=index.dtype))

    def flip(bits: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        direction, place = row
        chosen = (index >> place) & 1 == 1
        return bits ^ jnp.where(chosen[:, None], direction[None], 0).astype(bits.dtype), None

    start = jnp.broadcast_to(jnp.asarray(shift)[None], (index.shape[0], len(shift)))
    bits = jax.lax.scan(flip, start, table)[0]
    # In the middle of its cell: never 0 or 1, whose normal quantiles are infinite.
    u = (bits.astype(dtype) + 0.5) / 2**_BITS
    parts, at = [], 0
    for law, count in laws:
        parts.append(quantile(law, u[:, at : at + count]))
        at += count
    return jnp.concatenate(parts, 1)
