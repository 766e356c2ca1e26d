"""Spectral density, trace and diagonal of curvature operators, each with its standard error.

Stochastic estimates take probes: random vectors, one matrix-vector product or one Lanczos run
each. matfree (PyPI) has more of these for plain matrices (XTrace, XNysTrace, XDiag, Chebyshev
and differentiable functions of matrices); use it where the matrix is a closure and fits a notebook.

    tr A = E z^T A z,    diag A = E z * (A z),    density(t) = E sum_j w_j delta(t - theta_j)

for random signs z, and nodes theta_j and weights w_j of the Lanczos matrix that starts from z / |z|.

One file: trace, diagonal and density take the same probes, programs and errors.

Source: Hutchinson (1989); Bekas, Kokiopoulou & Saad (2007); Ubaru, Chen & Saad (2017); Meyer et al. (2021).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metrics import checks, curvature, operators, programs
from metrics.estimate import Estimate, mean_estimate, power_of_two
from metrics.geometry import matmul
from ntk import show
from ntk.types import Data, Float, PRNGKey, PyTree, Real


@show.readable
class Spectrum(NamedTuple):
    """Quadrature nodes and weights of a spectral density, one row per probe; weights add up to 1."""

    nodes: Float[jax.Array, "probes steps"]  # Ritz values
    weights: Float[jax.Array, "probes steps"]
    size: int  # n, the dimension of the operator


def trace(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    *,
    num_probes: int = 30,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    unroll: bool | None = None,
) -> Estimate:
    """Trace of a curvature operator from matrix-vector products.

    Args:
        product: ``product(params, batch, vector)`` from `metrics.operators`.
        params: pytree of float arrays, n entries.
        batch: what the product needs.
        key: PRNG key of the probes.
        num_probes: products in all.
        method: "hutchinson" averages z^T A z over signs z. "hutch++" spends a third of the products
            on a basis Q of the range, a third on the exact trace there, and a third on the rest:
            better where few eigenvalues carry the trace, as they do in trained networks. It stores
            n x num_probes/3 numbers.
        unroll: as in `metrics.curvature.sharpness`.

    Returns:
        Estimate(value, error). Hutchinson's variance is 2 (|A|_F^2 - |diag A|^2) per probe. The error includes
        the rounding of a product in half precision.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import metrics
        >>> loss = lambda p, batch: (batch * p**2).sum() / 2  # a diagonal Hessian: signs see it exactly
        >>> curvatures = jnp.array([1.0, 5.0, 3.0])
        >>> hessian = metrics.operators.hessian(loss)
        >>> found = metrics.trace(hessian, jnp.ones(3), curvatures, jax.random.key(0))
        >>> round(float(found.value), 4), round(float(found.error), 4)
        (9.0, 0.0)

    Raises:
        TypeError: product is no function, key no PRNG key, num_probes no integer.
        ValueError: fewer than 2 probes (6 for Hutch++), or more than Hutch++ can use (3 n); the result
            is not finite (seen outside of a trace only).

    Source: Hutchinson (1989); Meyer, Musco, Musco & Woodruff (2021), arXiv:2010.09649.
    """
    checks.choice("method", method, ("hutchinson", "hutch++"))
    params, n = _checked(product, params, batch, key, num_probes, 6 if method == "hutch++" else 2)
    unroll = _unrolled(product, params, batch, unroll)
    if method == "hutch++" and num_probes // 3 > n:
        raise ValueError(f"num_probes is {num_probes}; Hutch++ can use at most 3 n = {3 * n}")
    estimate = _hutchinson if method == "hutchinson" else _hutch_plus_plus
    result = estimate(product, params, batch, key, num_probes, unroll)
    checks.check_finite(result.value, product, params, batch)
    return _with_rounding(result, product, params, batch)


def diagonal(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    *,
    num_probes: int = 30,
    unroll: bool | None = None,
) -> Estimate:
    """Diagonal of a curvature operator: the mean of z * (A z) over random signs z.

    Args:
        product: as in `trace`.
        params: as in `trace`.
        batch: as in `trace`.
        key: as in `trace`.
        num_probes: products in all.
        unroll: as in `trace`.

    Returns:
        Estimate of two pytrees like params. An entry's variance per probe is the sum of the squares
        of its row's other entries.

    Raises:
        TypeError: as in `trace`.
        ValueError: fewer than 2 probes, or the result is not finite, as in `trace`.

    Source: Bekas, Kokiopoulou & Saad (2007), An estimator for the diagonal of a matrix.
    """
    params, _ = _checked(product, params, batch, key, num_probes, 2)
    unroll = _unrolled(product, params, batch, unroll)
    result = _diagonal(product, params, batch, key, num_probes, unroll)
    checks.check_finite(result.value, product, params, batch)
    return _with_rounding(result, product, params, batch)


def spectral_density(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    *,
    num_probes: int = 4,
    num_steps: int = 50,
    unroll: bool | None = None,
) -> Spectrum:
    """Spectral density by stochastic Lanczos quadrature.

    Every probe gives the Gauss quadrature of the density seen from a random vector of signs, exact
    for polynomials of degree 2 num_steps - 1; the outermost nodes are eigenvalues.

    Args:
        product: as in `trace`.
        params: as in `trace`.
        batch: as in `trace`.
        key: as in `trace`.
        num_probes: Lanczos runs.
        num_steps: products per run, at most n.
        unroll: as in `trace`.

    Returns:
        Spectrum(nodes, weights, size), for `density` and `trace_of_function`.

    Raises:
        TypeError: as in `trace`.
        ValueError: fewer than 2 probes, or num_steps is not between 1 and n; the result is not finite, as
            in `trace`.

    Source: Ubaru, Chen & Saad (2017); Ghorbani, Krishnan & Xiao (2019), arXiv:1901.10159.
    """
    params, n = _checked(product, params, batch, key, num_probes, 2)
    checks.check_steps(num_steps, n)
    unroll = _unrolled(product, params, batch, unroll)

    def probe(key: PRNGKey) -> tuple[jax.Array, jax.Array]:
        vector = _signs(key, params)
        space = curvature.krylov(
            product, params, batch, key, vector, num_steps=num_steps, unroll=unroll
        )
        return _quadrature(space)

    # One run at a time: the basis of a run is the memory, and a run fills the device.
    rows = [probe(k) for k in jax.random.split(key, num_probes)]
    checks.check_finite(rows, product, params, batch)
    return Spectrum(jnp.stack([r[0] for r in rows]), jnp.stack([r[1] for r in rows]), n)


def density(spectrum: Spectrum, grid: Real[Data, "G"], width: float | jax.Array) -> Estimate:
    """The spectral density on a grid, every node widened to a Gaussian; it integrates to 1.

    Args:
        spectrum: from `spectral_density`.
        grid: points (G,).
        width: standard deviation of the Gaussians; a hundredth of the spectrum's range is a start.

    Returns:
        Estimate of shape (G,).

    Raises:
        TypeError: spectrum is no Spectrum.
        ValueError: grid is not (G,), or width not a positive number.
    """
    _check_spectrum(spectrum)
    grid, width = checks.real("grid", grid, "G"), checks.positive("width", width)
    if width.ndim:
        raise ValueError(f"width has shape {width.shape}; it must be one number")
    at = (grid[None, None] - spectrum.nodes[:, :, None]) / width
    bumps = jnp.exp(-(at**2) / 2) / jnp.sqrt(2 * jnp.pi)
    return mean_estimate(jnp.sum(spectrum.weights[:, :, None] * bumps, 1) / width)


def trace_of_function(spectrum: Spectrum, function: Callable) -> Estimate:
    """tr f(A), for instance the squared Frobenius norm (f = square) or a log-determinant.

    Args:
        spectrum: from `spectral_density`.
        function: f, elementwise.

    Returns:
        Estimate, n times the mean quadrature of f.

    Raises:
        TypeError: spectrum is no Spectrum, or function no function of one array.
        ValueError: f does not keep the shape of its array.
    """
    _check_spectrum(spectrum)
    values = checks.function("function", function, "eigenvalues")(spectrum.nodes)
    if jnp.shape(values) != spectrum.nodes.shape:
        raise ValueError(
            f"function takes eigenvalues {spectrum.nodes.shape} to {jnp.shape(values)}; it must be elementwise"
        )
    return mean_estimate(spectrum.size * jnp.sum(spectrum.weights * values, 1))


def _check_spectrum(spectrum: Any) -> None:
    if not isinstance(spectrum, Spectrum):
        raise TypeError(
            f"spectrum is of type {type(spectrum).__name__}; it must be the result of spectral_density"
        )


def _compiled(function: Callable) -> Callable:
    """Compiled with product, num_probes and unroll static, or stepped where a loader feeds the product."""
    jitted = jax.jit(function, static_argnames=("product", "num_probes", "unroll"))

    @functools.wraps(function)
    def chosen(product: operators.Product, *arguments: Any) -> Any:
        return (function if operators.is_streamed(product) else jitted)(product, *arguments)

    return chosen


@functools.partial(jax.jit, static_argnames=("apply", "criterion"))
def _dual_gram(
    apply: Callable, criterion: Callable, params: PyTree, batch: PyTree
) -> tuple[jax.Array, jax.Array]:
    outputs, unravel = ravel_pytree(apply(params, batch))
    curved = jax.hessian(lambda f: criterion(unravel(f), batch))(outputs)
    jacobian = jax.jacrev(lambda p: ravel_pytree(apply(p, batch))[0])(params)
    rows = jnp.concatenate([j.reshape(outputs.size, -1) for j in jax.tree.leaves(jacobian)], 1)
    unit = power_of_two(curved)
    values, vectors = jnp.linalg.eigh(curved / unit)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
    dual = matmul(matmul(root.T, matmul(rows, rows.T)), root)
    return jnp.linalg.eigvalsh(dual)[::-1] * unit[0], values * unit[0]


def gauss_newton_spectrum(
    apply: Callable, criterion: Callable, params: PyTree, batch: PyTree
) -> Float[jax.Array, "N"]:
    """Every non-zero eigenvalue of the Gauss-Newton matrix, exactly, through the NTK.

    With C = R R^T the Hessian of the criterion in the N outputs, G = J^T C J shares its non-zero
    eigenvalues with R^T (J J^T) R, where J J^T is the empirical NTK. For mean cross-entropy
    R R^T = (diag(p) - p p^T) / N. It takes an N x n Jacobian and N x N matrices: for small data.

    Args:
        apply: ``apply(params, batch) -> outputs``, N numbers in all.
        criterion: ``criterion(outputs, batch)``, a convex scalar.
        params: pytree of float arrays, n entries.
        batch: the data.

    Returns:
        Eigenvalues (N,), descending; where N > n the last N - n are zero to rounding.

    Raises:
        TypeError: apply or criterion is no function of two arguments.
        ValueError: the criterion is not convex in the outputs (seen outside of a trace only).

    Source: Papyan (2019), arXiv:1901.08244; Karakida, Akaho & Amari (2019), arXiv:1806.01316.
    """
    checks.function("apply", apply, "params", "batch")
    checks.function("criterion", criterion, "outputs", "batch")
    checks.check_params(params)
    if not all(map(jnp.size, jax.tree.leaves(batch))):
        raise ValueError("batch holds an empty array; it must hold at least 1 example")
    checks.check_loss(lambda p, b: criterion(apply(p, b), b), params, batch)
    params = curvature.single_precision(operators.gauss_newton(apply, criterion), params, batch)
    values, curved = _dual_gram(apply, criterion, params, batch)
    tolerance = 100 * jnp.finfo(curved.dtype).eps * jnp.max(jnp.abs(curved))
    if checks.flag(jnp.min(curved) < -tolerance):
        raise ValueError(
            f"the criterion's Hessian in the outputs has the eigenvalue {jnp.min(curved):.3g}; it must "
            "be convex there: use eigenpairs(gauss_newton(apply, criterion), ...) instead"
        )
    checks.check_finite(values, operators.gauss_newton(apply, criterion), params, batch)
    return values


@jax.jit
def _quadrature(space: curvature.Krylov) -> tuple[jax.Array, jax.Array]:
    nodes, vectors = curvature.tridiagonal_eigh(space)
    return nodes, vectors[0] ** 2


@_compiled
def _hutchinson(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    num_probes: int,
    unroll: bool | None,
) -> Estimate:
    def probe(key: PRNGKey) -> jax.Array:
        z = _signs(key, params)
        return _dot(z, product(params, batch, z))

    return mean_estimate(_map(probe, jax.random.split(key, num_probes), unroll))


@_compiled
def _hutch_plus_plus(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    num_probes: int,
    unroll: bool | None,
) -> Estimate:
    flat, unravel = ravel_pytree(params)
    rank = num_probes // 3

    def multiply(v: jax.Array) -> jax.Array:
        return ravel_pytree(product(params, batch, unravel(v)))[0]

    def signs(key: PRNGKey, count: int) -> jax.Array:
        return jax.random.rademacher(key, (count, flat.size), flat.dtype)

    keys = jax.random.split(key)
    sketch = _map(multiply, signs(keys[0], rank), unroll)
    Q = jnp.linalg.qr((sketch / power_of_two(sketch)).T)[0]
    known = jnp.sum(_map(multiply, Q.T, unroll) * Q.T)

    def probe(z: jax.Array) -> jax.Array:
        rest = z - matmul(Q, matmul(Q.T, z))
        return jnp.sum(rest * multiply(rest))

    rest = mean_estimate(_map(probe, signs(keys[1], num_probes - 2 * rank), unroll))
    return Estimate(known + rest.value, rest.error)


@_compiled
def _diagonal(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    num_probes: int,
    unroll: bool | None,
) -> Estimate:
    """Running mean and root of the squared deviations (Welford), so memory does not grow with probes."""

    def step(
        carry: tuple[PyTree, PyTree], at: tuple[jax.Array, PRNGKey]
    ) -> tuple[tuple[PyTree, PyTree], None]:
        mean, root = carry
        count, key = at
        z = _signs(key, params)
        x = jax.tree.map(jnp.multiply, z, product(params, batch, z))
        # S_n = S_{n-1} + (x - mean)^2 (n-1)/n; the root of it, which no scale overflows.
        step = jnp.sqrt((count - 1) / count)
        root = jax.tree.map(lambda r, m, x: jnp.hypot(r, (x - m) * step), root, mean, x)
        mean = jax.tree.map(lambda m, x: m + (x - m) / count, mean, x)
        return (mean, root), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    counts = jnp.arange(1, num_probes + 1).astype(jax.tree.leaves(params)[0].dtype)
    at = (counts, jax.random.split(key, num_probes))
    mean, root = _loop(step, (zeros, zeros), at, unroll)[0]
    return Estimate(mean, jax.tree.map(lambda r: r / np.sqrt(num_probes * (num_probes - 1)), root))


def _with_rounding(
    estimate: Estimate, product: operators.Product, params: PyTree, batch: PyTree
) -> Estimate:
    """The error together with what a product in half precision costs; rounding in single precision is not counted."""
    eps = curvature.rounding(product, params, batch)
    if eps <= float(jnp.finfo(jnp.float32).eps):
        return estimate
    error = jax.tree.map(
        lambda e, v: jnp.hypot(e, eps * jnp.abs(v)), estimate.error, estimate.value
    )
    return Estimate(estimate.value, error)


def _unrolled(
    product: operators.Product, params: PyTree, batch: PyTree, unroll: bool | None
) -> bool | None:
    """How `_loop` runs: None in Python, True unrolled, False as one compiled loop."""
    checks.switch("unroll", unroll)
    if operators.is_streamed(product):
        return None
    return programs.steps_better(product, params, batch) if unroll is None else unroll


def _map(function: Callable[[PyTree], jax.Array], rows: PyTree, unroll: bool | None) -> jax.Array:
    return _loop(lambda _, row: (None, function(row)), None, rows, unroll)[1]


def _loop(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    rows: PyTree,
    unroll: bool | None,
) -> tuple[PyTree, PyTree]:
    if unroll is not None:
        return jax.lax.scan(body, carry, rows, unroll=unroll or 1)
    results = []
    for i in range(jax.tree.leaves(rows)[0].shape[0]):
        carry, result = body(carry, jax.tree.map(lambda x, i=i: x[i], rows))
        results.append(result)
    return carry, None if results[0] is None else jnp.stack(results)


def _signs(key: PRNGKey, like: PyTree) -> PyTree:
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    signs = [jax.random.rademacher(k, jnp.shape(x), x.dtype) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, signs)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
    products = map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b))
    return functools.reduce(operator.add, products)


def _checked(
    product: operators.Product,
    params: PyTree,
    batch: PyTree,
    key: PRNGKey,
    num_probes: int,
    least: int,
) -> tuple[PyTree, int]:
    """Parameters in single precision at least, and their number."""
    checks.function("product", product, "params", "batch", "vector")
    checks.key(key)
    n = checks.check_params(params)
    if checks.integer("num_probes", num_probes) < least:
        raise ValueError(
            f"num_probes is {num_probes}; it must be at least {least}, or there is no standard error"
        )
    if not operators.is_streamed(product):
        programs.check(product, params, batch)
    return curvature.single_precision(product, params, batch), n
