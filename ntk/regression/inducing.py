"""Kernel regression on inducing points: n samples, m << n of them as centres, n m^2 work and m^2 memory.

f(x) = k(x, Z) a minimises |y - K_nm a|^2 + reg a^T K_mm a, whose normal equations are
(K_nm^T K_nm + reg K_mm) a = K_nm^T y. With K_mm = L L^T and a = L^-T b they read
(B^T B + reg I) b = B^T y, B = K_nm L^-T: sums over samples, a block of rows at a time. With m = n this is
`ntk.solve.regression`.

Source: Rudi, Carratino & Rosasco (2017), "FALKON", equation 8 (there lambda n is our reg); Williams & Seeger (2001).
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk import arguments, show
from ntk.large import gram, processes, storage, tiles
from ntk.regression import spectra

KEPT = 16
"""Blocks of each process between two times that sums are kept in a file."""
SUMS = ("squares", "sides", "trace")


@show.readable
class Inducing(NamedTuple):
    """A kernel machine on inducing points.

    Attributes:
        predict: maps inputs to outputs (n, ...), arrays of the host.
        coefficients: a, (m, ...).
        residual: |y - f(x)| / |y| of each output over the samples it was fitted to, shape y.shape[1:].
        unseen: sum_i (k(x_i, x_i) - k(x_i, Z) K_mm^-1 k(Z, x_i)) / sum_i k(x_i, x_i): the share of the kernel's trace
            that the points do not span, in [0, 1]; 0 where the machine is the exact one.
        jitter: added to the diagonal of K_mm so that it decomposes; absolute.
    """

    predict: Callable[[Any], np.ndarray]
    coefficients: np.ndarray
    residual: np.ndarray
    unseen: float
    jitter: float


def inducing(
    kernel_fn: Callable[..., Any],
    x_train: Any,
    y_train: Any,
    points: Any,
    get: str = "ntk",
    diag_reg: float = 0.0,
    *,
    diag_reg_absolute_scale: bool = False,
    block: int = 4096,
    devices: Sequence[jax.Device] | None = None,
    path: str | os.PathLike | None = None,
    **kwargs: Any,
) -> Inducing:
    """Kernel regression with m inducing points, for samples too many for a whole matrix or for many iterations.

    Args:
        kernel_fn: see `ntk.gram.gram`; its kernel is (n1, n2).
        x_train: n samples along axis 0 of an array, which may be a ``np.memmap``: it is read a block at a time.
        y_train: targets (n, ...).
        points: the centres, m samples such as m rows of x_train drawn at random, an array.
        get: name of the kernel.
        diag_reg: regularisation in units of the kernel's mean diagonal over the points; not negative.
        diag_reg_absolute_scale: whether diag_reg is absolute instead.
        block: rows that are computed at once; block x m entries are held.
        devices: see `ntk.gram.gram`; blocks are shared by processes.
        path: file that keeps the sums over samples, from time to time: the same call goes on there after a kill, also
            with another diag_reg or another number of processes.
        **kwargs: passed to kernel_fn.

    Returns:
        An `Inducing`. Kernels come in kernel_fn's precision; sums and solves are in float64.

    Raises:
        TypeError: a keyword that nobody reads.
        ValueError: shapes do not fit, entries are not finite, diag_reg is negative, block is not positive; path is of
            another fit.
    """
    arguments.refuse_unread("inducing", inducing, kernel_fn, kwargs)
    n, m = tiles.samples(x_train, "x_train"), tiles.samples(points, "points")
    for one, sample in zip(jax.tree.leaves(points), jax.tree.leaves(x_train)):
        if one.shape[1:] != sample.shape[1:]:
            raise ValueError(
                f"points has shape {one.shape}; it must be samples as x_train has them, (m, *{sample.shape[1:]}): of "
                "indices give x_train[indices]"
            )
    y = np.asarray(y_train)
    if y.shape[:1] != (n,):
        raise ValueError(f"y_train has shape {y.shape}; with {n} samples it must be ({n}, ...)")
    spectra.check_finite("y_train", y)
    if not (np.ndim(diag_reg) == 0 and np.isfinite(diag_reg) and diag_reg >= 0):
        raise ValueError(f"diag_reg is {diag_reg}; it must be zero or positive, and finite")
    if not isinstance(block, int) or block < 1:
        raise ValueError(f"block is {block!r}; it must be a whole number of rows from 1 on")
    columns = y.reshape(n, -1).astype(np.float64)
    from scipy import linalg

    here, local = processes.share(tiles.devices_of(devices))
    options = {"get": get, "devices": local, **kwargs}
    kernel = np.asarray(gram.gram(kernel_fn, points, None, **options), np.float64)
    scale = 1.0 if diag_reg_absolute_scale else np.trace(kernel) / m
    root, jitter = _root(kernel)

    def rows(start: int) -> tuple[np.ndarray, np.ndarray]:
        x = jax.tree.map(lambda v: np.asarray(v[start : start + block]), x_train)
        k = gram.gram(kernel_fn, x, points, **options)
        b = linalg.solve_triangular(root, np.asarray(k, np.float64).T, lower=True).T
        return b, gram.diagonal(kernel_fn, x, **options)

    def sums(starts: Iterable[int]) -> tuple[np.ndarray, ...]:
        """Over blocks of samples: B^T B, B^T y, and the traces of K_nn and of what the points span of it."""
        squares, sides, trace = np.zeros((m, m)), np.zeros((m, columns.shape[1])), np.zeros(2)
        for start in starts:
            b, diagonal = rows(start)
            # Rows of B are the features L^-1 k(Z, x): |b|^2 is what the points span of k(x, x).
            squares += b.T @ b
            sides += b.T @ columns[start : start + block]
            trace += [diagonal.sum(dtype=np.float64), np.square(b).sum()]
        return squares, sides, trace

    starts = range(0, n, block)
    done, every = 0, len(starts)
    squares, sides, trace = sums(())
    if path is not None:
        file, mark = pathlib.Path(path), _mark(kernel, rows(starts[-1])[0], columns, block)
        every = KEPT * here.size
        if there := storage.kept_arrays(file, mark):
            done, (squares, sides, trace) = int(there["done"]), (there[name] for name in SUMS)
    while done < len(starts):
        part = sums(here.own(starts[done : done + every]))
        squares, sides, trace = (
            v + processes.total(w, here) for v, w in zip((squares, sides, trace), part)
        )
        done = min(done + every, len(starts))
        if path is not None:
            kept = dict(zip(SUMS, (squares, sides, trace)))
            storage.keep_arrays(file, mark, {"done": done, **kept})
    shifted = squares + diag_reg * scale * np.eye(m)
    # The solution of least norm: without regularisation B^T B is singular where samples are fewer than points.
    coefficients = linalg.lstsq(shifted, sides)[0]
    norm = np.square(columns).sum(0)
    # |y - B b|^2 from sums that are there already: no second pass over the samples.
    left = (
        norm - 2 * (sides * coefficients).sum(0) + (coefficients * (squares @ coefficients)).sum(0)
    )
    residual = np.sqrt(np.maximum(left, 0) / np.where(norm > 0, norm, 1))
    a = linalg.solve_triangular(root.T, coefficients, lower=False)

    def predict(x: Any) -> np.ndarray:
        n2 = tiles.samples(x, "x")
        parts = [
            gram.gram(
                kernel_fn, jax.tree.map(lambda v, s=s: v[s : s + block], x), points, **options
            )
            @ a
            for s in range(0, n2, block)
        ]
        return np.concatenate(parts).reshape(n2, *y.shape[1:])

    return Inducing(
        predict,
        a.reshape(m, *y.shape[1:]),
        residual.reshape(y.shape[1:]),
        float(max(1 - trace[1] / trace[0], 0)),
        jitter,
    )


def _mark(kernel: np.ndarray, last: np.ndarray, columns: np.ndarray, block: int) -> str:
    """What sums over samples belong to: the kernel between the points, their last block, targets and block."""
    mark = hashlib.blake2b(f"{block}".encode(), digest_size=16)
    for part in (kernel, last, columns):
        mark.update(f"{part.shape}".encode() + part.tobytes())
    return mark.hexdigest()


def _root(kernel: np.ndarray) -> tuple[np.ndarray, float]:
    """Cholesky factor of K_mm with the least jitter, from the rounding of single precision on, that lets it exist."""
    from scipy import linalg

    scale = np.trace(kernel) / len(kernel)
    for jitter in (0.0, *(scale * 10.0**power for power in range(-8, -2))):
        try:
            return linalg.cholesky(kernel + jitter * np.eye(len(kernel)), lower=True), jitter
        except np.linalg.LinAlgError:
            continue
    raise ValueError(
        "the kernel between the points is indefinite beyond rounding; give points that differ, or compute it in float64"
    )
