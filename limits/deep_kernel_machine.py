"""Deep kernel machines: Gram matrices that learn, between the NNGP and kernels fitted to the targets.

A deep Gaussian process of layers N nu_l wide, whose targets Y (P, C) are repeated N times, has as N grows the Gram
matrices G_1 .. G_L (P, P) that maximise

    log N(Y; 0, K(G_L) + noise) - sum_l nu_l KL_l,    KL_l = (tr R - log det R - P) / 2,    R = K(G_{l-1})^-1 G_l

from G_0 of the inputs. nu_l = inf fixes G_l = K(G_{l-1}): with all of them the NNGP. Here G_l = (C V)(C V)^T with C the
Cholesky factor of K(G_{l-1}) and V lower triangular, so that KL_l = (|V|^2 - 2 sum log V_jj - P) / 2 and V = 1 is the
NNGP, where the fit starts.

With inducing points i among the training points t, only their Gram matrices are fitted. A = K_ti K_ii^-1 carries the
others along, G_ti = A G_ii, diag G_tt = diag(K_tt - A K_it + A G_ii A^T), and the output is the variational bound

    log N(Y; 0, Q + noise) - C tr(K_tt - Q) / (2 noise),    Q = A K_it

a lower bound of the objective, which it equals where all points are inducing.

One file: the objective, its gradient and the machine that is fitted share one parametrization of the Gram matrices.

Source: Yang, Robeyns, Milsom, Anson, Schoots & Aitchison (2023), arXiv:2108.13097; the output bound is that of Titsias
(2009); unequal nu of linear layers (`linear_solution`) are derived here.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from numpy.typing import ArrayLike
from scipy import optimize

from limits import gram_layers
from limits.arguments import array, count, instance, number, takes
from limits.gram_layers import Kernel, Layer
from ntk import show
from ntk.types import Array, Float, Integer, Real, Rows

_Given: TypeAlias = dict[str, Any]
"""What the objective is of, by name, besides the variables."""


@show.readable
class Machine(NamedTuple):
    """A fitted machine; M is P, or the number of inducing points. Arrays are NumPy's, in double precision.

    Attributes:
        layers: the hidden ones and the output.
        inputs_gram: (M, M), G_0 with the jitter.
        grams: G_1 .. G_L, each (M, M).
        weights: (M, C); the mean of an output is ``K_*i weights``.
        precision: (M, M); its variance is ``K_** - K_*i precision K_i*``.
        jitter: added to the diagonal of G_0, absolute.
        objective: what was maximised, in nats.
        log_likelihood: its first term (with inducing points the bound on it).
        divergences: (L,), KL_l, 0 for nu = inf: how far a layer is from the NNGP of the one below.
        steps: of L-BFGS.
        gradient: largest entry of the gradient at the end, per deviation (1 + nu)^-1/2 of the variables.
        converged: whether that is at most tolerance (1 + |objective of the NNGP|).
    """

    layers: tuple[Layer, ...]
    inputs_gram: Float[np.ndarray, "M M"]
    grams: tuple[Float[np.ndarray, "M M"], ...]
    weights: Float[np.ndarray, "M C"]
    precision: Float[np.ndarray, "M M"]
    jitter: float
    objective: float
    log_likelihood: float
    divergences: Float[np.ndarray, "L"]
    steps: int
    gradient: float
    converged: bool


@show.readable
class Prediction(NamedTuple):
    """Mean (T, C) and variance (T,) of the outputs at other points; add the noise for those of targets."""

    mean: Float[np.ndarray, "T C"]
    variance: Float[np.ndarray, "T"]


@takes(
    inputs_gram=array(2),
    targets=array(2),
    noise=number(),
    jitter=number(),
    tolerance=number(positive=True),
    max_steps=count(),
)
def fit(
    inputs_gram: Real[ArrayLike, "P P"],
    targets: Real[ArrayLike, "P C"],
    layers: Sequence[Layer],
    *,
    noise: float,
    inducing: Integer[Rows, "M"] | None = None,
    jitter: float = 1e-6,
    tolerance: float = 1e-6,
    max_steps: int = 3000,
) -> Machine:
    """Fits the Gram matrices of the hidden layers by L-BFGS, in double precision.

    The objective need not be concave for nonlinear kernels: this is the maximum that is reached from the NNGP. Small nu
    (below .1, or noise below .01) let the likelihood drive the matrices to singular ones. Solves of small matrices wait
    for threads on a busy machine: OPENBLAS_NUM_THREADS=1 in the environment spares that.

    Args:
        inputs_gram: (P, P), positive semi-definite: X X^T / d, or a kernel of `ntk.infinite_width`.
        targets: (P, C).
        layers: hidden layers, then the output, whose nu is inf.
        noise: variance of the targets about the outputs, sigma^2.
        inducing: ids of inducing points among the P; all points, without approximation, by default.
        jitter: added to the diagonal of inputs_gram, relative to its mean; it is part of the model.
        tolerance: of the gradient, relative to 1 + |objective of the NNGP|; the line search ends near 1e-7, the root of
            the rounding of the objective.
        max_steps: of L-BFGS; a warning says where they do not suffice.

    Returns:
        Machine.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that do not fit, a matrix that is not symmetric and positive, a kernel that is singular, an
            output with finite nu, inducing ids that are out of range or not distinct, no noise with inducing points.
    """
    layers = gram_layers.check_layers(layers)
    start, y, ids = (
        gram_layers.check_gram("inputs_gram", inputs_gram),
        np.asarray(targets, float),
        None,
    )
    if len(y) != len(start):
        raise ValueError(f"targets has the shape {y.shape}; it must be ({len(start)}, C)")
    if inducing is not None:
        ids = gram_layers.check_ids(inducing, len(start))
        if not noise > 0:
            raise ValueError(f"noise is {noise}; with inducing points it must be positive")
    ridge = jitter * float(np.trace(start)) / len(start)
    start = start + ridge * np.eye(len(start))
    with jax.enable_x64(True):
        return _fit(layers, start, y, ids, float(noise), ridge, tolerance, max_steps)


def _fit(
    layers: tuple[Layer, ...],
    start: np.ndarray,
    y: np.ndarray,
    ids: np.ndarray | None,
    noise: float,
    ridge: float,
    tolerance: float,
    max_steps: int,
) -> Machine:
    kernels, nus, scales = zip(*layers)
    free = tuple(math.isfinite(nu) for nu in nus)
    size = len(start) if ids is None else len(ids)
    given: _Given = {
        "inner": start if ids is None else start[np.ix_(ids, ids)],
        "cross": None if ids is None else start[:, ids],
        "outer": None if ids is None else start.diagonal(),
        "y": y,
        "noise": noise,
        "nus": np.array([nu for nu in nus if math.isfinite(nu)]),
        "scales": np.array(scales),
    }

    def descend(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _slope(jnp.asarray(flat), given, kernels, free)
        value, slope = -float(value), -np.asarray(slope)
        usable = math.isfinite(value) and np.isfinite(slope).all()
        return (value, slope) if usable else (1e10 * (1 + abs(first)), np.zeros_like(slope))

    flat = np.zeros(sum(free) * size * (size + 1) // 2)
    first = float(_slope(jnp.asarray(flat), given, kernels, free)[0])
    if not math.isfinite(first):
        raise ValueError(
            "a kernel of the layers is singular in double precision (of repeated inputs, or more points than a linear "
            "kernel has dimensions): raise jitter, or give noise"
        )
    steps = 0
    if flat.size:
        options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 0.0, "maxcor": 20}
        options["gtol"] = tolerance * (1 + abs(first)) / 10
        found = optimize.minimize(descend, flat, jac=True, method="L-BFGS-B", options=options)
        flat, steps = found.x, int(found.nit)
    objective, slope = _slope(jnp.asarray(flat), given, kernels, free)
    size_of_slope = float(np.abs(np.asarray(slope)).max(initial=0.0))
    converged = size_of_slope <= tolerance * (1 + abs(first))
    if not converged:
        warnings.warn(
            f"the deep kernel machine has not converged in {steps} steps: the gradient is {size_of_slope:.2g}; raise "
            "max_steps or nu, or give more noise",
            stacklevel=4,
        )
    state = _state(jnp.asarray(flat), given, kernels, free)
    grams, divergences, likelihood, weights, precision = jax.tree.map(np.asarray, state)
    return Machine(
        layers=layers,
        inputs_gram=given["inner"],
        grams=tuple(grams),
        weights=weights,
        precision=precision,
        jitter=ridge,
        objective=float(objective),
        log_likelihood=float(likelihood),
        divergences=np.array(divergences),
        steps=steps,
        gradient=size_of_slope,
        converged=converged,
    )


@takes(machine=instance(Machine), cross_gram=array(2), diagonal=array(1))
def predict(
    machine: Machine, cross_gram: Real[ArrayLike, "T M"], diagonal: Real[ArrayLike, "T"]
) -> Prediction:
    """The posterior of the outputs at other points.

    Args:
        machine: of `fit`.
        cross_gram: (T, M), inputs_gram of the new points against the training points, or the inducing ones.
        diagonal: (T,), that of the new points with themselves. Jitter is added here as in `fit`.

    Raises:
        TypeError: machine is no Machine, or arrays hold no numbers.
        ValueError: shapes that do not fit.
    """
    given, own = np.asarray(cross_gram, float), np.asarray(diagonal, float)
    size = len(machine.inputs_gram)
    if given.shape != (len(own), size):
        raise ValueError(
            f"cross_gram has the shape {given.shape}; for a diagonal of {len(own)} it must be {len(own), size}"
        )
    with jax.enable_x64(True):
        outer, cross = jnp.asarray(own + machine.jitter), jnp.asarray(given)
        inner = jnp.asarray(machine.inputs_gram)
        for layer, gram in zip(machine.layers, machine.grams):
            fitted = jnp.asarray(gram)
            cross, outer = gram_layers.carried(
                layer.kernel, layer.scale, inner, fitted, cross, outer
            )
            inner = fitted
        output = machine.layers[-1]
        last = gram_layers.kernel_cross(
            output.kernel, output.scale, outer, jnp.diagonal(inner), cross
        )
        prior = gram_layers.kernel_diagonal(output.kernel, output.scale, outer)
        variance = prior - jnp.sum((last @ machine.precision) * last, 1)
        return Prediction(np.asarray(last @ machine.weights), np.asarray(variance))


@takes(inputs_gram=array(2))
def nngp(
    inputs_gram: Real[ArrayLike, "P P"], layers: Sequence[Layer]
) -> list[Float[np.ndarray, "P P"]]:
    """The kernels of the layers, the output's too, where none of them learns: G_l = K(G_{l-1}).

    Args:
        inputs_gram: (P, P); no jitter is added.
        layers: as in `fit`.

    Raises:
        TypeError: an argument of another type.
        ValueError: as `fit`.
    """
    layers, gram, grams = (
        gram_layers.check_layers(layers),
        gram_layers.check_gram("inputs_gram", inputs_gram),
        [],
    )
    with jax.enable_x64(True):
        for layer in layers:
            gram = np.asarray(gram_layers.kernel_gram(layer.kernel, layer.scale, jnp.asarray(gram)))
            grams.append(gram)
    return grams


@takes(
    inputs_gram=array(2),
    targets_gram=array(2),
    nus=array(1),
    output_nu=number(positive=True),
)
def linear_solution(
    inputs_gram: Real[ArrayLike, "P P"],
    targets_gram: Real[ArrayLike, "P P"],
    nus: Real[Rows, "L"],
    output_nu: float,
) -> list[Float[np.ndarray, "P P"]]:
    """The Gram matrices of the hidden layers where all kernels are linear and targets have no noise.

    G_l = G_0 R_1 .. R_l with R_l = 1 + S / nu_l, and S has the eigenvectors of G_0^-1 G_y and, for each eigenvalue w,
    the root of prod_{l=1}^{L+1} (1 + s / nu_l) = w. For equal nu G_l = G_0 (G_0^-1 G_y)^(l / (L + 1)); else narrow
    layers do more of the way.

    Args:
        inputs_gram: G_0 (P, P), positive definite.
        targets_gram: G_y = Y Y^T / C (P, P), positive definite: C >= P.
        nus: (L,), of the hidden layers.
        output_nu: C, the multiplicity of the targets.

    Returns:
        G_1 .. G_L, each (P, P).

    Raises:
        TypeError: an argument of another type.
        ValueError: a matrix that is not positive definite, shapes that differ, a nu that is not positive.
    """
    start, end = (
        gram_layers.check_gram("inputs_gram", inputs_gram),
        gram_layers.check_gram("targets_gram", targets_gram),
    )
    if start.shape != end.shape:
        raise ValueError(
            f"targets_gram has the shape {end.shape}; it must be that of inputs_gram, {start.shape}"
        )
    widths = np.append(np.asarray(nus, float), output_nu)
    if not (widths > 0).all():
        raise ValueError(f"nus is {nus}; all must be positive")
    factor = np.linalg.cholesky(gram_layers.check_definite("inputs_gram", start))
    whitened = np.linalg.solve(
        factor, np.linalg.solve(factor, gram_layers.check_definite("targets_gram", end)).T
    )
    values, vectors = np.linalg.eigh((whitened + whitened.T) / 2)
    shares = np.array([_share(w, widths) for w in values])
    basis, grown, grams = factor @ vectors, np.ones(len(values)), []
    for nu in widths[:-1]:
        grown = grown * (1 + shares / nu)
        grams.append((basis * grown) @ basis.T)
    return grams


def _share(value: float, widths: np.ndarray) -> float:
    """The root s > -min(widths) of prod (1 + s / widths) = value, from logarithms of both and of s + min(widths)."""
    least, target = widths.min(), math.log(value)

    def excess(t: float) -> float:
        return float(np.sum(np.log((widths - least + math.exp(t)) / widths)) - target)

    # s = 0 gives 0; on the other side of it every factor is beyond 1, so the narrowest alone is not beyond the value.
    ends = math.log(least) + min(0.0, target) - 1e-9, math.log(least) + max(0.0, target) + 1e-9
    return math.exp(optimize.brentq(excess, *ends, xtol=1e-15, rtol=1e-14)) - least


# The objective


def _machine(
    flat: Array, given: _Given, kernels: tuple[Kernel, ...], free: tuple[bool, ...]
) -> tuple[list[Array], list[Array], tuple[Array, Array | None, Array | None]]:
    """Gram matrices, divergences, and what the output needs: kernel at i, between t and i, and at t."""
    below, cross, outer = given["inner"], given["cross"], given["outer"]
    size, grams, divergences = len(below), [], []
    # The prior's curvature is nu: in units of its deviation all layers have one scale, and large nu no large gradient.
    units = 1 / jnp.sqrt(1 + given["nus"])
    rows = iter(flat.reshape(sum(free), size * (size + 1) // 2) * units[:, None])
    for kernel, scale, learns in zip(kernels[:-1], given["scales"], free):
        gram, divergence = gram_layers.kernel_gram(kernel, scale, below), jnp.zeros(())
        if learns:
            raw = jnp.zeros((size, size)).at[np.tril_indices(size)].set(next(rows))
            logs = jnp.diagonal(raw)
            lower = jnp.tril(raw, -1) + jnp.diag(jnp.exp(logs))
            root = jnp.linalg.cholesky(gram) @ lower
            gram = root @ root.T
            own = jnp.expm1(2 * logs) - 2 * logs  # V_jj^2 - 1 - 2 log V_jj, near 0 too
            divergence = (jnp.sum(jnp.tril(raw, -1) ** 2) + jnp.sum(own)) / 2
        if cross is not None:
            cross, outer = gram_layers.carried(kernel, scale, below, gram, cross, outer)
        grams.append(gram)
        divergences.append(divergence)
        below = gram
    kernel, scale = kernels[-1], given["scales"][-1]
    last = gram_layers.kernel_gram(kernel, scale, below)
    if cross is None:
        return grams, divergences, (last, None, None)
    across = gram_layers.kernel_cross(kernel, scale, outer, jnp.diagonal(below), cross)
    return grams, divergences, (last, across, gram_layers.kernel_diagonal(kernel, scale, outer))


def _likelihood(
    given: _Given, inner: Array, cross: Array | None, outer: Array | None
) -> tuple[Array, Array, Array]:
    """log N(Y; 0, K + noise), or its bound with inducing points; and the posterior's weights and precision."""
    y, noise = given["y"], given["noise"]
    points, outputs = y.shape
    eye = jnp.eye(len(inner))
    if cross is None or outer is None:
        root = jnp.linalg.cholesky(inner + noise * eye)
        half = solve_triangular(root, eye, lower=True)
        fitted = half @ y
        value = -jnp.sum(fitted**2) / 2 - outputs * jnp.sum(jnp.log(jnp.diagonal(root)))
        return value - y.size / 2 * math.log(2 * math.pi), half.T @ fitted, half.T @ half
    # Q + noise = noise (1 + W^T W / noise), W = root^-1 K_it (M, P), by the lemma of Woodbury.
    inverse = solve_triangular(jnp.linalg.cholesky(inner), eye, lower=True)
    w = inverse @ cross.T
    root = jnp.linalg.cholesky(eye + w @ w.T / noise)
    half = solve_triangular(root, eye, lower=True)
    fitted = half @ (w @ y) / noise
    square = jnp.sum(y**2) / noise - jnp.sum(fitted**2)
    log_det = points * jnp.log(noise) + 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    left = jnp.sum(outer) - jnp.sum(w**2)
    value = -(square + outputs * (log_det + left / noise) + y.size * math.log(2 * math.pi)) / 2
    posterior = inverse.T @ (eye - half.T @ half) @ inverse
    return value, inverse.T @ (half.T @ fitted), posterior


def _objective(
    flat: Array, given: _Given, kernels: tuple[Kernel, ...], free: tuple[bool, ...]
) -> Array:
    _, divergences, output = _machine(flat, given, kernels, free)
    learnt = [d for d, learns in zip(divergences, free) if learns]
    prior = given["nus"] @ jnp.stack(learnt) if learnt else 0.0
    return _likelihood(given, *output)[0] - prior


@functools.partial(jax.jit, static_argnames=("kernels", "free"))
def _slope(
    flat: Array, given: _Given, kernels: tuple[Kernel, ...], free: tuple[bool, ...]
) -> tuple[Array, Array]:
    return jax.value_and_grad(_objective)(flat, given, kernels, free)


@functools.partial(jax.jit, static_argnames=("kernels", "free"))
def _state(
    flat: Array, given: _Given, kernels: tuple[Kernel, ...], free: tuple[bool, ...]
) -> tuple[list[Array], list[Array], Array, Array, Array]:
    grams, divergences, output = _machine(flat, given, kernels, free)
    return grams, divergences, *_likelihood(given, *output)
