"""Conjugate gradients for kernel matrices, with the randomised Nystrom preconditioner.

(K + s I) x = b with P^-1 (K + s I), where U and l are approximate eigenvectors and eigenvalues of K, l_r the last one::

    P^-1 = I + U diag((l_r + s) / (l + s) - 1) U^T

Source: Hestenes & Stiefel (1952); Frangella, Tropp & Udell (2021), arXiv:2110.02820, algorithm 2.1 and equation 5.3.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.large import storage
from ntk.types import Array, PRNGKey

Matvec = Callable[[Array], Array]


BLOCK = 2**26
"""Entries of a matrix on disk that are read at once."""

_mm = functools.partial(jnp.matmul, precision="highest")


class Preconditioner(NamedTuple):
    """P^-1 = I + U diag(weights) U^T, near a multiple of the inverse on the span of U.

    Attributes:
        basis: U, approximate eigenvectors (n, rank).
        weights: (rank,), in (-1, 0].
        top: estimate of the largest eigenvalue, regularisation included; 0 if unknown.
    """

    basis: Array
    weights: Array
    top: Array


class Result(NamedTuple):
    """Solution of A x = b for every column of b.

    Attributes:
        x: shaped as b.
        residual: |b - A x| / |b|, by one more product with A; 0 where b is 0.
        steps: products with A in the loop.
        top: estimate of A's largest eigenvalue, from below.
        indefinite: a direction of negative curvature was met, and the loop stopped.
    """

    x: Array
    residual: Array
    steps: Array
    top: Array
    indefinite: Array


class _State(NamedTuple):
    """Iterate x, residual r, direction p, r^T P^-1 r, steps, largest |A p| / |p| met, and stop."""

    x: Array
    r: Array
    p: Array
    rz: Array
    step: Array
    top: Array
    indefinite: Array


def nystrom(times: Matvec, n: int, rank: int, shift: Array, key: PRNGKey) -> Preconditioner:
    """Preconditioner of K + shift I from one product of K with `rank` random vectors.

    The condition number of the preconditioned matrix is about (eigenvalue `rank` + shift) / shift.

    Source: Frangella, Tropp & Udell (2021), algorithm 2.1 and equation 5.3.
    """
    dtype = shift.dtype
    if rank == 0:
        zero = jnp.zeros((), dtype)
        return Preconditioner(jnp.zeros((n, 0), dtype), jnp.zeros(0, dtype), zero)
    probe, _ = jnp.linalg.qr(jax.random.rademacher(key, (n, rank), dtype))
    return _nystrom(probe, times(probe), shift)


@jax.jit
def _nystrom(probe: Array, image: Array, shift: Array) -> Preconditioner:
    eps = jnp.finfo(image.dtype).eps
    # Rounding makes a singular sketch indefinite; a multiple of the identity is lent, and returned.
    lent = jnp.sqrt(probe.shape[0]) * eps * jnp.linalg.norm(image)
    image = image + lent * probe
    # K is about Y (P^T Y)^-1 Y^T = F F^T with Y = K P and F = Y (P^T Y)^(-1/2): singular values of F are roots of l.
    core = _mm(probe.T, image)
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    kept = values > eps * values[-1]
    roots = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
    q, r = jnp.linalg.qr(_mm(image, vectors * roots[None]))
    u, s, _ = jnp.linalg.svd(r)
    eigenvalues = jnp.maximum(s**2 - lent, 0)
    # On the span of U the eigenvalues l + s of K + s become l_r + s, which those of the rest do not exceed by much.
    weights = (eigenvalues[-1] + shift) / (eigenvalues + shift) - 1
    return Preconditioner(_mm(q, u), weights, eigenvalues[0] + shift)


def conjugate_gradient(
    times: Matvec,
    b: Array,
    preconditioner: Preconditioner,
    tolerance: float,
    max_steps: int,
    loop: Callable = jax.lax.while_loop,
) -> Result:
    """Preconditioned conjugate gradients, every column of b with its own coefficients.

    Args:
        times: v -> A v, symmetric positive definite.
        b: right-hand sides (n, k).
        preconditioner: from `nystrom`.
        tolerance: of the relative residual.
        max_steps: most products with A.
        loop: ``jax.lax.while_loop``, or `host_loop` where `times` leaves the device.

    Source: Hestenes & Stiefel (1952); Golub & Van Loan, Matrix Computations, algorithm 11.5.1.
    """
    size = jnp.linalg.norm(b, axis=0)
    target = tolerance * size

    def goes_on(state: _State) -> Array:
        open_ = jnp.any(jnp.linalg.norm(state.r, axis=0) > target)
        return open_ & (state.step < max_steps) & ~state.indefinite

    def body(state: _State) -> _State:
        return _step(state, times(state.p), preconditioner, target)

    rz = jnp.zeros_like(size)
    state = _State(b * 0, b, b, rz, jnp.array(0), preconditioner.top, jnp.array(False))

    def another(rounds: tuple[Array, _State]) -> Array:
        return rounds[0] < 2

    def solve_round(rounds: tuple[Array, _State]) -> tuple[Array, _State]:
        state = loop(goes_on, body, _restart(rounds[1], preconditioner))
        return rounds[0] + 1, state._replace(r=b - times(state.x))

    # The recurrence for r drifts from the true residual by rounding: the second round mends that.
    _, state = loop(another, solve_round, (jnp.array(0), state))
    residual = jnp.linalg.norm(state.r, axis=0) / jnp.where(size > 0, size, 1)
    return Result(state.x, residual, state.step, state.top, state.indefinite)


def host_loop(goes_on: Callable, body: Callable, state: Any) -> Any:
    """``jax.lax.while_loop`` in Python."""
    while goes_on(state):
        state = body(state)
    return state


class Kept(NamedTuple):
    """Where the states of an iteration are kept: by the first process of a job, after each step; read by all.

    Attributes:
        file: an npz file.
        mark: what the states belong to; those of another are not gone on with.
    """

    file: pathlib.Path
    mark: str


def _kept_loop(kept: Kept, times: Matvec, b: Array, shift: Array) -> Callable:
    """`host_loop` that keeps every state of the iteration in a file, and goes on from there.

    Raises:
        ValueError: what the file holds is no state of A x = b. A residual that the recurrence has carried is that of
            its x up to a rounding of about eps times the condition number; with another A it is not.
    """
    there = storage.kept_arrays(*kept)
    saved = None
    if there is not None:
        state = _State(*(jnp.asarray(there[name]) for name in _State._fields))
        saved = int(there["number"]), state
        drift = jnp.linalg.norm(b - times(state.x) - state.r, axis=0)
        rounding = jnp.finfo(b.dtype).eps * state.top / shift
        if not (drift <= (0.01 + rounding) * jnp.linalg.norm(b, axis=0)).all():
            raise ValueError(
                f"{kept.file} holds steps with another kernel: the residual there is not that of this one; give "
                "another path, or remove the file"
            )
    rounds = itertools.count()

    def loop(goes_on: Callable, body: Callable, state: Any) -> Any:
        if not isinstance(state, _State):
            return host_loop(goes_on, body, state)
        number = next(rounds)
        # This round was finished before the kill; the next one goes on from the state that was kept.
        if saved is not None and number < saved[0]:
            return saved[1]
        if saved is not None and number == saved[0]:
            state = saved[1]
        while goes_on(state):
            state = body(state)
            storage.keep_arrays(*kept, {"number": number, **jax.device_get(state)._asdict()})
        return state

    return loop


def _precondition(preconditioner: Preconditioner, v: Array) -> Array:
    basis, weights, _ = preconditioner
    return v + _mm(basis, weights[:, None] * _mm(basis.T, v))


@jax.jit
def _restart(state: _State, preconditioner: Preconditioner) -> _State:
    z = _precondition(preconditioner, state.r)
    return state._replace(p=z, rz=jnp.sum(state.r * z, 0))


@jax.jit
def _step(state: _State, image: Array, preconditioner: Preconditioner, target: Array) -> _State:
    """One step of the columns that have not arrived; `image` is A p."""
    curvature = jnp.sum(state.p * image, 0)
    active = jnp.linalg.norm(state.r, axis=0) > target
    forward = active & (curvature > 0)
    alpha = jnp.where(forward, state.rz / jnp.where(forward, curvature, 1), 0)
    x = state.x + alpha[None] * state.p
    r = state.r - alpha[None] * image
    # A column that has arrived has alpha = beta = 0: its iterate stays, while the others use the product.
    z = _precondition(preconditioner, r)
    rz = jnp.sum(r * z, 0)
    beta = jnp.where(forward, rz / jnp.where(forward, state.rz, 1), 0)
    # A bound on the largest eigenvalue, as Rayleigh's quotient is, and never below it.
    stretch = jnp.linalg.norm(image, axis=0) / jnp.linalg.norm(state.p, axis=0)
    return _State(
        x,
        r,
        z + beta[None] * state.p,
        rz,
        state.step + 1,
        jnp.maximum(state.top, jnp.max(jnp.where(forward, stretch, 0))),
        jnp.any(active & ~(curvature > 0)),
    )


@functools.partial(jax.jit, static_argnames=("rank",))
def solve_array(
    matrix: Array, b: Array, shift: Array, key: PRNGKey, rank: int, tolerance: float, max_steps: int
) -> tuple[Array, Result]:
    """Solves (matrix + shift I) x = b; x can be differentiated. The result holds all but x."""

    def times(v: Array) -> Array:
        return _mm(matrix, v) + shift * v

    fixed_matrix, fixed = map(jax.lax.stop_gradient, (matrix, shift))
    pre = nystrom(lambda v: _mm(fixed_matrix, v), b.shape[0], rank, fixed, key)

    def solved(apply: Callable, v: Array) -> tuple[Array, Result]:
        found = conjugate_gradient(apply, v, pre, tolerance, max_steps)
        return found.x, found._replace(x=jnp.zeros((), v.dtype))

    return jax.lax.custom_linear_solve(times, b, solved, symmetric=True, has_aux=True)


def solve_function(
    apply: Matvec,
    b: Array,
    shift: Array,
    key: PRNGKey,
    rank: int,
    tolerance: float,
    max_steps: int,
    loop: Any,
) -> tuple[Array, Result]:
    """The same of a function v -> K v; by a loop in Python where values are known, or one that is `Kept`."""

    def kernel_times(v: Array) -> Array:
        out = jnp.asarray(apply(v))
        if out.shape != v.shape:
            raise ValueError(f"kernel maps vectors {v.shape} to {out.shape}; the shapes must agree")
        return out.astype(v.dtype)

    def times(v: Array) -> Array:
        return kernel_times(v) + shift * v

    if isinstance(loop, Kept):
        loop = _kept_loop(loop, times, b, shift)
    pre = nystrom(kernel_times, b.shape[0], rank, shift, key)
    found = conjugate_gradient(times, b, pre, tolerance, max_steps, loop)
    return found.x, found


def rows_times(matrix: Any, v: Array) -> Array:
    """A matrix on disk times vectors, a block of rows at a time."""
    rows = max(BLOCK // matrix.shape[1], 1)
    blocks = (jnp.asarray(matrix[i : i + rows], v.dtype) for i in range(0, matrix.shape[0], rows))
    # Fetching each product keeps one block at a time on the device.
    return jnp.concatenate([jax.device_get(_mm(block, v)) for block in blocks])
