"""Gaussian averages <f>_K = E f(z), z ~ N(0, K), of an activation and its derivatives, to rounding.

Gauss-Legendre panels that end at the activation's kinks, in double precision on NumPy arrays. A Gauss-Hermite rule or
a Hermite series of the same cost keeps six digits where there is a kink, or where K is large.

    <f>_K = sum_j w_j f(z_j) exp(-z_j^2 / 2 K) / sqrt(2 pi K)

with the nodes and weights of Gauss and Legendre in panels of at most half a standard deviation, 12 to each side.

Source: derived.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk.activations import closed_forms, hermite, kinks
from ntk.types import Array, Elementwise

Activation = Elementwise | closed_forms.Dual

REACH = 12.0  # deviations: a Gaussian has lost 2e-33 of its mass beyond
_NEAR = 24.0  # where kinks are looked for, and activations vary at scale one


class Pointwise(NamedTuple):
    """An activation on double-precision arrays: derivatives(z) -> (s, s', s''), and where its slope jumps."""

    derivatives: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[kinks.Kink, ...]

    @property
    def breaks(self) -> tuple[float, ...]:
        """Places of the kinks."""
        return tuple(kink.at for kink in self.kinks)


def pointwise(activation: Activation) -> Pointwise:
    """The activation, studied once.

    Raises:
        TypeError: it is neither a function nor a Dual.
        ValueError: it is not elementwise, jumps, is constant, is not finite, or is too steep for the panels.
    """
    if not (callable(activation) or isinstance(activation, closed_forms.Dual)):
        raise TypeError(f"activation is {activation!r}; it must be a function or an ntk.Dual")
    return _study(activation)


@functools.lru_cache(maxsize=64)
def _study(activation: Activation) -> Pointwise:
    fn = activation.fn if isinstance(activation, closed_forms.Dual) else activation
    if fn is None:
        raise ValueError("the Dual has no function (fn is None): give the activation itself")
    hermite.check_shape(fn)

    @jax.jit
    def compiled(z: Array) -> Array:
        def slope(z: Array) -> Array:
            return jax.jvp(fn, (z,), (jnp.ones_like(z),))[1]

        return jnp.stack([fn(z), *jax.jvp(slope, (z,), (jnp.ones_like(z),))])

    def derivatives(z: np.ndarray) -> np.ndarray:
        flat = np.ravel(z)
        padded = np.zeros(1 << max(10, (flat.size - 1).bit_length()))  # few shapes, few programs
        padded[: flat.size] = flat
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            found = np.asarray(compiled(jnp.asarray(padded)))
        return found[:, : flat.size].reshape(3, *np.shape(z))

    z, mass = panels(1.0)
    size = math.sqrt(mass @ derivatives(z)[0] ** 2)
    # Kinks are found against functions of size one; powers of two round nothing.
    unit = 2.0 ** math.floor(math.log2(size)) if 0 < size < math.inf else 1.0
    found = Pointwise(derivatives, kinks.find(lambda x: derivatives(x)[0] / unit))
    if any(kink.jump for kink in found.kinks):
        at = [kink.at for kink in found.kinks if kink.jump]
        raise ValueError(
            f"the activation jumps at {at}: its derivative has no square, no limit here"
        )
    coarse, fine = (_probe(found, step) for step in (0.5, 0.25))
    if not np.isfinite(fine).all():
        raise ValueError("the activation is not finite within 12 deviations of a normal variable")
    if not fine[1] > 0:
        raise ValueError("the activation is constant: no signal passes it")
    if np.abs(coarse / fine - 1).max() > 1e-11:
        raise ValueError(
            "the activation varies within less than 0.05: too steep for the quadrature; rescale its argument"
        )
    return found


def _probe(found: Pointwise, step: float) -> np.ndarray:
    z, mass = panels(1.0, found.breaks, step)
    s, slope, _ = found.derivatives(z)
    return np.array([mass @ s**2, mass @ slope**2])


def panels(
    deviation: float, breaks: tuple[float, ...] = (), step: float = 0.5, order: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z and masses of N(0, deviation^2), exact to rounding for what is smooth between breaks.

    Args:
        deviation: positive.
        breaks: where the integrand or its derivatives jump.
        step: length of a panel, in deviations and, within 24 of zero, in units of z.
        order: Gauss-Legendre nodes a panel.
    """
    reach = REACH * deviation
    ends = deviation * np.arange(-REACH, REACH + step / 2, step)
    if deviation > 1:
        near = np.arange(-_NEAR, _NEAR + step / 2, step)
        ends = np.concatenate([ends, near[abs(near) < reach]])
    inner = [at for at in breaks if abs(at) < reach]
    ends = np.unique(np.concatenate([ends, inner]))
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = np.diff(ends)[:, None] / 2
    z = (ends[:-1, None] + half * (nodes[None] + 1)).ravel()
    density = np.exp(-((z / deviation) ** 2) / 2) / (math.sqrt(2 * math.pi) * deviation)
    return z, (half * weights[None]).ravel() * density


class Average(NamedTuple):
    """The measure N(0, variance) on nodes z, and the activation there."""

    z: np.ndarray
    mass: np.ndarray
    s: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray

    def __call__(self, values: np.ndarray) -> float:
        """<values>, of values on the nodes."""
        return float(self.mass @ values)


def average(found: Pointwise, variance: float) -> Average:
    """Nodes and activation at one variance.

    Raises:
        ValueError: the activation grows so fast that fourth moments are not within reach.
    """
    z, mass = panels(math.sqrt(variance), found.breaks)
    s, slope, curvature = found.derivatives(z)
    with np.errstate(over="ignore", invalid="ignore"):
        weight = mass * s**4
        outside = abs(z) > (REACH - 1) * math.sqrt(variance)
        if not np.isfinite(weight).all() or weight[outside].sum() > 1e-13 * weight.sum():
            raise ValueError(
                f"<s^4> at variance {variance:g} is not resolved: the activation grows so fast that it lies beyond "
                f"{REACH:g} deviations; take a smaller variance"
            )
    return Average(z, mass, s, slope, curvature)
