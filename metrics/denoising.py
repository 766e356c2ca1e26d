"""Denoisers read through their Jacobian: shrinkage, degrees of freedom, and the risk without clean examples.

For y = x + s e with e ~ N(0, I_d), and a denoiser f that is continuous and differentiable almost everywhere,

    E |f(y) - x|^2 = E[ |f(y) - y|^2 + 2 s^2 tr J(y) ] - d s^2,    J = df/dy

whatever x is (Stein). Where nothing but functions homogeneous of degree one lies between linear maps without biases
(ReLU), f(y) = J(y) y: if J is symmetric too, f shrinks y along the eigenvectors of J by the eigenvalues. Neither is so
of every network, and both are measured here.

Source: Stein 1981; Mohan et al. 2020 (arXiv:1906.05478); Kadkhodaie et al. 2024 (arXiv:2310.02557).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metrics import checks
from metrics.estimate import Estimate, mean_estimate, norm
from metrics.geometry import matmul
from ntk import show
from ntk.types import Array, Float, PRNGKey, PyTree, Real, Scalar


@show.readable
class JacobianSpectrum(NamedTuple):
    """The Jacobian J of a denoiser at each of N examples of d numbers.

    Attributes:
        shrinkage: (N, d), eigenvalues of (J + J^T)/2, the largest first.
        basis: (N, d, d), their eigenvectors, in columns.
        degrees: (N,), tr J: degrees of freedom, d for the identity.
        asymmetry: (N,), |J - J^T|_F / |J + J^T|_F; only where it is small is the denoiser a shrinkage in ``basis``.
        homogeneity: (N,), |J y - f(y)| / |f(y)|, 0 up to rounding for networks without biases.
    """

    shrinkage: Float[jax.Array, "N d"]
    basis: Float[jax.Array, "N d d"]
    degrees: Float[jax.Array, "N"]
    asymmetry: Float[jax.Array, "N"]
    homogeneity: Float[jax.Array, "N"]


def jacobian_spectrum(
    apply: Callable, params: PyTree, noisy: Real[jax.Array, "N ..."]
) -> JacobianSpectrum:
    """Eigenvalues and eigenvectors of a denoiser's Jacobian at noisy examples, and what makes them a shrinkage.

    Holds N d^2 numbers; give a few examples at a time where d is large.

    Args:
        apply: ``apply(params, y) -> outputs`` of the shape of y, (N, ...), each example by itself.
        params: of the network.
        noisy: (N, ...), flattened to d numbers each.

    Raises:
        TypeError: apply is no function, or noisy are no numbers.
        ValueError: outputs have another shape than noisy.

    Source: Mohan et al. 2020, section 5; Kadkhodaie et al. 2024, section 3.
    """
    return _spectrum(apply, params, _checked(apply, params, noisy))


@partial(jax.jit, static_argnames=("apply",))
def _spectrum(apply: Callable, params: PyTree, noisy: Array) -> JacobianSpectrum:
    def at(y: Array) -> JacobianSpectrum:
        output, jacobian = _derivative(apply, params, y)
        half, rest = (jacobian + jacobian.T) / 2, (jacobian - jacobian.T) / 2
        values, vectors = jnp.linalg.eigh(half)
        error = norm(matmul(jacobian, y.reshape(-1)) - output) / norm(output)
        numbers = (jnp.trace(jacobian), norm(rest) / norm(half), error)
        return JacobianSpectrum(values[::-1], vectors[:, ::-1], *numbers)

    return jax.lax.map(at, noisy)


def sure(
    apply: Callable,
    params: PyTree,
    noisy: Real[jax.Array, "N ..."],
    noise: Scalar,
    *,
    key: PRNGKey | None = None,
    num_probes: int = 1,
) -> Estimate:
    """Stein's unbiased estimate of E |f(y) - x|^2, summed over coordinates, from noisy examples alone.

    Args:
        apply: as of `jacobian_spectrum`.
        params: of the network, fitted to other examples than these.
        noisy: (N, ...), y = x + noise * e.
        noise: standard deviation s of the noise, known.
        key: for the trace of J by random signs, of mean tr J; without it the trace is exact, at d products an example.
        num_probes: sign vectors of each example, where there is a key.

    Returns:
        Estimate: the mean over examples and its standard error, which holds the spread of the probes.

    Raises:
        TypeError: apply is no function, noisy are no numbers, key is none.
        ValueError: outputs have another shape than noisy, noise or num_probes are not positive.

    Source: Stein 1981, theorem 1; random signs: Hutchinson 1990.
    """
    noisy, noise = _checked(apply, params, noisy), checks.positive("noise", noise)
    checks.scalar("noise", noise)
    probes = checks.integer("num_probes", num_probes, 1)
    if key is None:
        traces = _traces(apply, params, noisy)
    else:
        signs = (probes, *noisy.shape)
        traces = _products(apply, params, noisy, jax.random.rademacher(checks.key(key), signs))
    residual = apply(params, noisy) - noisy
    axes = tuple(range(1, noisy.ndim))
    risk = jnp.sum(residual**2, axis=axes) + 2 * noise**2 * traces
    return mean_estimate(risk - noise**2 * (noisy.size // len(noisy)))


@partial(jax.jit, static_argnames=("apply",))
def _traces(apply: Callable, params: PyTree, noisy: Array) -> Array:
    return jax.lax.map(lambda y: jnp.trace(_derivative(apply, params, y)[1]), noisy)


@partial(jax.jit, static_argnames=("apply",))
def _products(apply: Callable, params: PyTree, noisy: Array, signs: Array) -> Array:
    """Mean over probes of <e, J e>, one for each example."""

    def product(e: Array) -> Array:
        moved = jax.jvp(partial(apply, params), (noisy,), (e.astype(noisy.dtype),))[1]
        return jnp.sum(moved * e, axis=tuple(range(1, noisy.ndim)))

    return jnp.mean(jax.lax.map(product, signs), axis=0)


def _derivative(apply: Callable, params: PyTree, y: Array) -> tuple[Array, Array]:
    """f(y) (d,) and J (d, d) of one example."""

    def flat(v: Array) -> Array:
        return apply(params, v.reshape(1, *y.shape)).reshape(-1)

    return flat(y.reshape(-1)), jax.jacfwd(flat)(y.reshape(-1))


def _checked(apply: Callable, params: PyTree, noisy: Array) -> Array:
    checks.function("apply", apply, "params", "noisy")
    noisy = checks.real("noisy", noisy, "N", "d", "...")
    with checks.explained("apply", params, noisy):
        shape = getattr(jax.eval_shape(apply, params, noisy), "shape", None)
    if shape != noisy.shape:
        raise ValueError(
            f"apply returns shape {shape} for noisy examples of shape {noisy.shape}; a denoiser keeps the shape"
        )
    return noisy
