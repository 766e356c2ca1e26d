"""In-context linear regression by gradient descent on the examples of the prompt.

A prompt holds examples (x_i, y_i), i = 1..n, and a query q, with x ~ N(0, Lam), w ~ N(0, S) and y = w . x + noise of
variance s^2. A layer of linear self-attention predicts q^T G h, h = sum_i y_i x_i: a step of gradient descent from zero
on half the summed squared error, with a matrix G in place of a rate. The risk E (q^T G h - w . q)^2 is quadratic in G:

    E h w^T = n Lam S,    E h h^T = n (n+1) Lam S Lam + n c Lam,    c = tr(S Lam) + s^2
    R(G) = tr Lam (G E[h h^T] G^T - 2 n G Lam S + S)
    G* = S [(n+1) Lam S + c I]^{-1},    R(G*) = tr(Lam S) - n tr(Lam G* Lam S)

With Lam = S = I that is one plain step of rate 1 / (n + d + 1 + s^2), with S = Lam^{-1} the matrix Lam^{-1} over that
number; with S = I it is no multiple of Lam^{-1}. The moments need Gaussian inputs (for others with independent
coordinates `independent_rate`), and of the weights no more than their covariance.

Source: Mahankali, Hashimoto & Ma 2023, arXiv:2307.03576, for the optimality of one step where Lam or S is the identity;
the matrix for any two covariances and the rate of non-linear responses are derived here. Steps of several layers, and
"GD++": von Oswald et al. 2023, arXiv:2212.07677.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import ArrayLike as HostArray
from scipy import special

from limits.arguments import array, count, function, number, takes
from limits.quadrature import panels
from ntk import show
from ntk.activations import kinks
from ntk.types import Array, Float, HostFunction, Real


@show.readable
class OneStep(NamedTuple):
    """The best step.

    Attributes:
        matrix: G*, (d, d), symmetric.
        risk: R(G*), without the noise of the query's own label.
        baseline: R(0) = tr(Lam S), of the prediction 0.
    """

    matrix: Float[np.ndarray, "d d"]
    risk: float
    baseline: float


@takes(covariance=array(2), num_examples=count(), noise=number())
def one_step(
    covariance: Real[HostArray, "d d"],
    num_examples: int,
    *,
    weight_covariance: Real[HostArray, "d d"] | None = None,
    noise: float = 0.0,
) -> OneStep:
    """The matrix with which one step of descent predicts best, and its risk: what linear attention learns.

    Args:
        covariance: Lam of the inputs, (d, d).
        num_examples: n, in a prompt.
        weight_covariance: S, (d, d); the identity by default.
        noise: s^2, variance added to the examples' targets.

    Raises:
        TypeError: an argument of another type.
        ValueError: a matrix that is no covariance, or nothing to predict: Lam S and s^2 are zero.

    Source: see the top of this file; the risk is reached by gradient flow on one layer of linear attention from the
        start of Zhang, Frei & Bartlett 2024, JMLR 25(49).
    """
    lam, s = _covariances(covariance, weight_covariance)
    scale = float(np.trace(s @ lam)) + noise
    if scale <= 0:
        raise ValueError(
            "the responses are zero: covariance, weight_covariance and noise leave nothing to predict"
        )
    inner = (num_examples + 1) * lam @ s + scale * np.eye(len(lam))
    matrix = np.linalg.solve(inner.T, s.T).T
    matrix = (matrix + matrix.T) / 2  # symmetric but for rounding
    baseline = float(np.trace(lam @ s))
    gain = num_examples * np.trace(lam @ matrix @ lam @ s)
    return OneStep(matrix, baseline - float(gain), baseline)


@takes(matrix=array(2), covariance=array(2), num_examples=count(), noise=number())
def risk(
    matrix: Real[HostArray, "d d"],
    covariance: Real[HostArray, "d d"],
    num_examples: int,
    *,
    weight_covariance: Real[HostArray, "d d"] | None = None,
    noise: float = 0.0,
) -> float:
    """R(G) of any matrix, exact for Gaussian inputs; the other arguments as in `one_step`.

    Raises:
        TypeError: an argument of another type.
        ValueError: a matrix of another shape, or that is no covariance.
    """
    lam, s = _covariances(covariance, weight_covariance)
    g, n = np.asarray(matrix, float), num_examples
    if g.shape != lam.shape:
        raise ValueError(
            f"matrix has the shape {g.shape}; it must be that of covariance, {lam.shape}"
        )
    scale = np.trace(s @ lam) + noise
    hh = n * (n + 1) * lam @ s @ lam + n * scale * lam
    return float(np.trace(lam @ (g @ hh @ g.T - 2 * n * g @ lam @ s + s)))


@takes(
    variance=number(positive=True),
    fourth_moment=number(positive=True),
    dim=count(),
    num_examples=count(),
    noise=number(),
)
def independent_rate(
    variance: float, fourth_moment: float, dim: int, num_examples: int, *, noise: float = 0.0
) -> float:
    """Best rate of one plain step for inputs with independent, equal, centred coordinates, and weights N(0, I).

    Args:
        variance: v = E x_j^2, 1/12 for U(-1/2, 1/2).
        fourth_moment: E x_j^4, at least v^2; 1/80 for U(-1/2, 1/2), 3 v^2 for Gaussian coordinates.
        dim: d.
        num_examples: n.
        noise: s^2.

    Raises:
        TypeError: an argument of another type.
        ValueError: one out of range.
    """
    if fourth_moment < variance**2 * (1 - 1e-12):
        raise ValueError(
            f"fourth_moment is {fourth_moment}; it must be at least variance squared, {variance**2}"
        )
    own = (fourth_moment + (dim - 1) * variance**2) / variance
    return 1 / (own + (num_examples - 1) * variance + noise)


@takes(response=function, dim=count(), num_examples=count(), noise=number())
def response_rate(response: Callable, dim: int, num_examples: int, *, noise: float = 0.0) -> float:
    """Best rate of one step where y = f(w . x) + noise with x, w ~ N(0, I): the best matrix is still a multiple of I.

        eta = E[c^2] / E[f^2 g^2 + (d-1) f^2 + d s^2 + (n-1) c^2],  c = E_g[g f(|w| g)],  f = f(|w| g)

    over g ~ N(0, 1) and |w|^2 ~ chi^2_d, by quadrature that ends at the kinks and jumps of f. Even f have rate 0.

    Args:
        response: f, elementwise on arrays.
        dim: d.
        num_examples: n.
        noise: s^2.

    Returns:
        eta, to a relative 1e-6.

    Raises:
        TypeError: an argument of another type.
        ValueError: f is not finite, zero without noise, or its moments are not resolved: it grows too fast or is too
            steep.
    """

    def values(z: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(response(jnp.asarray(z)), float)

    breaks = tuple(kink.at for kink in kinks.find(values))
    rates = [_response_rate(values, breaks, dim, num_examples, noise, order) for order in (12, 24)]
    if not abs(rates[0] - rates[1]) <= 1e-6 * abs(rates[1]) + 1e-12:
        raise ValueError(
            f"the moments of response are not resolved: rates {rates[0]:g} and {rates[1]:g} by two quadratures; "
            "take one that grows slower, or is less steep"
        )
    return rates[1]


def _response_rate(
    values: HostFunction,
    breaks: tuple[float, ...],
    dim: int,
    num_examples: int,
    noise: float,
    order: int,
) -> float:
    norms, weights = _chi(dim, order)
    rules = [panels(norm, breaks) for norm in norms]
    responses = values(np.concatenate([z for z, _ in rules]))
    if not np.isfinite(responses).all():
        raise ValueError("response is not finite at every argument that w . x takes")
    ends = np.cumsum([len(z) for z, _ in rules])[:-1]
    moments = []
    for (z, mass), norm, f in zip(rules, norms, np.split(responses, ends)):
        g = z / norm
        c = mass @ (f * g)
        square = mass @ (f**2 * (g**2 + dim - 1)) + dim * noise + (num_examples - 1) * c**2
        moments.append((c**2, square))
    parts = weights[:, None] * np.array(moments)
    above, below = parts.sum(0)
    if below <= 0:
        raise ValueError("response is zero and there is no noise: every rate is as good")
    if parts[-order:, 1].sum() > 1e-9 * below:
        raise ValueError("response grows so fast that its second moments are not resolved")
    return float(above / below)


def _chi(dim: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and masses of |w|, w ~ N(0, I_d): 9 deviations around the root of d, in panels of length one."""
    ends = np.arange(max(0.0, math.sqrt(dim) - 9), math.sqrt(dim) + 9)
    nodes, weights = np.polynomial.legendre.leggauss(order)
    norms = (ends[:, None] + (nodes[None] + 1) / 2).ravel()
    log_density = (dim - 1) * np.log(norms) - norms**2 / 2 - special.gammaln(dim / 2)
    masses = np.tile(weights / 2, len(ends)) * np.exp(log_density - (dim / 2 - 1) * math.log(2))
    return norms, masses / masses.sum()


@takes(x=array(3), y=array(2), query=array(2), rate=array(), steps=count(0), correction=number())
def descend(
    x: Real[ArrayLike, "B n d"],
    y: Real[ArrayLike, "B n"],
    query: Real[ArrayLike, "B d"],
    rate: Real[ArrayLike, ""] | Real[ArrayLike, "d d"],
    steps: int,
    *,
    correction: Real[ArrayLike, ""] = 0.0,
) -> Float[jax.Array, "B"]:
    """Predictions for the queries after steps of gradient descent from zero on half the summed squared error.

    Each step y <- y - X w, w = rate X^T y, leaves the residuals as targets of the next. With a correction gamma,
    x <- x - gamma X^T X x on examples and query after each step as well ("GD++"): directions of large curvature shrink,
    so that the next step can be longer. That is a stack of linear attention layers, one a step.

    Args:
        x: (B, n, d), examples of B prompts.
        y: (B, n).
        query: (B, d).
        rate: a number, or a (d, d) matrix G that the gradient is multiplied with.
        steps: K; 0 predicts 0.
        correction: gamma; 0 is gradient descent.

    Returns:
        (B,), in the type of x.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that do not fit.
    """
    x, y, query = _prompts(x, y, query)
    rate = jnp.asarray(rate, x.dtype)
    if rate.shape not in ((), (x.shape[2],) * 2):
        raise ValueError(
            f"rate has the shape {rate.shape}; it must be a number or {(x.shape[2],) * 2}"
        )
    prediction = jnp.zeros(len(x), x.dtype)
    for _ in range(steps):
        h = jnp.einsum("bni,bn->bi", x, y)
        w = rate * h if rate.ndim == 0 else h @ rate.T
        prediction = prediction + jnp.einsum("bi,bi->b", query, w)
        y = y - jnp.einsum("bni,bi->bn", x, w)
        curvature = jnp.einsum("bni,bnj->bij", x, x)
        x = x - correction * jnp.einsum("bni,bij->bnj", x, curvature)
        query = query - correction * jnp.einsum("bi,bij->bj", query, curvature)
    return prediction


@takes(x=array(3), y=array(2), query=array(2), noise=number())
def ridge(
    x: Real[ArrayLike, "B n d"],
    y: Real[ArrayLike, "B n"],
    query: Real[ArrayLike, "B d"],
    noise: float,
    *,
    weight_covariance: Real[ArrayLike, "d d"] | None = None,
) -> Float[jax.Array, "B"]:
    """Bayes predictions: the mean of w . query given the prompt, ridge regression with the penalty s^2.

    Args:
        x: (B, n, d).
        y: (B, n).
        query: (B, d).
        noise: s^2; 0 gives the interpolant of least norm.
        weight_covariance: S, (d, d); the identity by default.

    Returns:
        (B,), in the type of x.

    Raises:
        TypeError: an argument of another type.
        ValueError: shapes that do not fit, or a matrix that is no covariance.
    """
    x, y, query = _prompts(x, y, query)
    if weight_covariance is not None:  # w = S^(1/2) v with v ~ N(0, I)
        s = _covariance("weight_covariance", weight_covariance, x.shape[2])
        values, vectors = np.linalg.eigh(s)
        root = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), x.dtype)
        x, query = x @ root, query @ root
    gram = jnp.einsum("bni,bnj->bij", x, x) + noise * jnp.eye(x.shape[2], dtype=x.dtype)[None]
    h = jnp.einsum("bni,bn->bi", x, y)
    return jnp.einsum("bi,bij,bj->b", query, jnp.linalg.pinv(gram, hermitian=True), h)


def _prompts(x: ArrayLike, y: ArrayLike, query: ArrayLike) -> tuple[Array, Array, Array]:
    x, y, query = jnp.asarray(x), jnp.asarray(y), jnp.asarray(query)
    kind = jnp.result_type(float, x, y, query) if x.dtype.kind != "f" else x.dtype
    if y.shape != x.shape[:2] or query.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"x {x.shape}, y {y.shape} and query {query.shape} do not fit; they must be (B, n, d), (B, n) and (B, d)"
        )
    return x.astype(kind), y.astype(kind), query.astype(kind)


def _covariances(
    covariance: HostArray, weight_covariance: HostArray | None
) -> tuple[np.ndarray, np.ndarray]:
    lam = _covariance("covariance", covariance, np.shape(covariance)[-1])
    if weight_covariance is None:
        return lam, np.eye(len(lam))
    return lam, _covariance("weight_covariance", weight_covariance, len(lam))


def _covariance(name: str, value: HostArray, dim: int) -> np.ndarray:
    array(2)(name, value)
    found = np.asarray(value, float)
    if found.shape != (dim, dim) or not dim:
        raise ValueError(f"{name} has the shape {found.shape}; it must be ({dim}, {dim})")
    size = np.abs(found).max()
    if (
        np.abs(found - found.T).max() > 1e-6 * size
        or np.linalg.eigvalsh(found).min() < -1e-6 * size
    ):
        raise ValueError(
            f"{name} is no covariance; it must be symmetric, without negative eigenvalues"
        )
    return found
