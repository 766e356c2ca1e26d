"""What each operation does to a `Kernel` in the infinite-width limit; each is derived once, for every front end."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ntk import kernel as kernels
from ntk.kernel import Array, Kernel


def elementwise(kernel: Kernel, dual) -> Kernel:
    """Moments after a nonlinearity f(u), with u the Gaussian input.

    Args:
        kernel: moments of u; must be Gaussian.
        dual: `ntk.duals.Dual` of f.

    Returns:
        E[f(u)f(v)], and the NTK multiplied by E[f'(u)f'(v)].

    Raises:
        ValueError: the input is not Gaussian.

    Source: Daniely, Frostig & Singer (2016), section 4; Jacot et al. (2018), theorem 1.
    """
    if not kernel.is_gaussian:
        raise ValueError(
            "the input of a nonlinearity must be Gaussian; put a Dense, Conv or other layer with random weights "
            "before it (two nonlinearities cannot follow one another, nor can one act on the data)"
        )
    norm1, norm2 = _norm(dual, kernel.var1), _norm(dual, kernel.var2)
    q = kernels.views(kernel.var1, kernel.var2, kernel.diagonal_spatial)
    n = kernels.views(norm1, norm2, kernel.diagonal_spatial)
    correlation, slope = _dual(dual, kernel.correlation, *q, *n)
    ntk = kernel.ntk
    if ntk is not None:
        ntk = ntk * slope
    within = []
    for cov, var, norm in ((kernel.within1, kernel.var1, norm1), (kernel.within2, kernel.var2, norm2)):
        if cov is not None:
            q, n = kernels.views_within(var), kernels.views_within(norm)
            rho = cov * (kernels.inverse_sqrt(q[0]) * kernels.inverse_sqrt(q[1]))
            cov = _dual(dual, rho, *q, *n)[0] * (jnp.sqrt(n[0]) * jnp.sqrt(n[1]))
        within.append(cov)
    return kernel.replace(
        correlation=correlation,
        var1=norm1,
        var2=norm2,
        ntk=ntk,
        within1=within[0],
        within2=within[1],
        is_gaussian=False,
    )


def _norm(dual, q: Array) -> Array:
    """E f(u)^2 at variances q."""
    if dual.homogeneous is None:
        return dual.norm(q)
    return dual.norm(jnp.ones((), q.dtype)) * q**dual.homogeneous


def _dual(dual, rho: Array, q1: Array, q2: Array, n1: Array, n2: Array) -> tuple[Array, Array]:
    """Correlation of f(u), f(v), and E[f'(u)f'(v)]."""
    rho = snap(rho)
    if dual.homogeneous is None:
        k, slope = dual.moments(q1, q2, rho)
        return k * (kernels.inverse_sqrt(n1) * kernels.inverse_sqrt(n2)), slope
    one = jnp.ones((), rho.dtype)
    k, slope = dual.moments(one, one, rho)
    power = (dual.homogeneous - 1) / 2
    if power > 0:  # degree 0 is piecewise constant: its derivative vanishes almost everywhere
        slope = slope * (q1**power * q2**power)
    return k / dual.norm(one), slope


def snap(rho: Array) -> Array:
    """Clips to [-1, 1], and rounds up to 1 what is within rounding of it, so that coincident inputs stay so."""
    top = 1 - 4 * jnp.finfo(rho.dtype).eps
    return jnp.where(rho > top, 1, jnp.maximum(rho, -1))


def affine(
    kernel: Kernel,
    W_std: float = 1.0,
    b_std: float | None = None,
    *,
    weight_scale: float = 1.0,
    bias_scale: float | None = None,
) -> Kernel:
    """Moments after a random affine map of the channels, the same at every pixel: W_std^2 K + b_std^2.

    Args:
        kernel: moments of its input.
        W_std: standard deviation of the weights times sqrt(fan in).
        b_std: standard deviation of the biases; None for no bias.
        weight_scale: factor of the NTK's contribution of the weights, W_std^2 in the NTK parametrization.
        bias_scale: factor of the contribution of the biases; None means b_std^2.

    Returns:
        The moments of a Gaussian; NTK <- W_std^2 NTK + weight_scale K + bias_scale.

    Source: Jacot et al. (2018), theorem 1; Sohl-Dickstein et al. (2020) for the standard parametrization.
    """
    raise NotImplementedError
