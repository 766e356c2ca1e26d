"""NNGP and NTK of wide networks as averages over random finite networks.

    K = E[f(x1) f(x2)^T],    T = E[J(x1) J(x2)^T],    standard error sqrt(sum (k - mean)^2 / (n (n - 1))) over n draws

Source: Novak et al. 2019 (arXiv 1810.05148), for the NNGP; Welford 1962, for running means and squares.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk import arguments, show
from ntk.finite import empirical
from ntk.types import PRNGKey, PyTree


@show.readable
class Estimate(NamedTuple):
    """Mean over networks, and its standard error (NaN for one network)."""

    mean: PyTree
    standard_error: PyTree


class _Moments(NamedTuple):
    """Running mean and sum of squared deviations, of all networks so far."""

    number: int
    mean: PyTree
    squares: PyTree


def monte_carlo_kernel_fn(
    init_fn: Callable,
    apply_fn: Callable,
    key: PRNGKey,
    n_samples: int | Iterable[int],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    trace_axes: tuple[int, ...] = (-1,),
    diagonal_axes: tuple[int, ...] = (),
    vmap_axes: Any = None,
    implementation: empirical.NtkImplementation | int | str = empirical.NtkImplementation.AUTO,
    *,
    standard_error: bool = False,
) -> Callable[..., PyTree | Iterator[PyTree]]:
    """Returns ``kernel_fn(x1, x2, get)`` that averages empirical kernels over random networks.

    Args:
        init_fn: ``init_fn(key, input_shape) -> (output_shape, params)``.
        apply_fn: ``apply_fn(params, x, rng=key, **kwargs) -> outputs``.
        key: PRNG key; sample i uses ``fold_in(key, i)``, so more samples extend fewer.
        n_samples: number of networks; or numbers, for a generator of estimates after so many.
        batch_size: examples of x1 and of x2 computed at once; 0 for all. Sizes need not divide. Arguments (a, b) of
            kernel_fn that are arrays with leading axes n1 and n2, such as ``pattern``, are divided as x1 and x2 are.
        device_count: kept for neural-tangents's notebooks; arrays stay where the inputs are.
        store_on_device: False moves each finished batch to the memory of the host.
        trace_axes: output axes over which the kernels are averaged.
        diagonal_axes: output axes of which only the diagonal is kept.
        vmap_axes: see :func:`ntk.empirical.empirical_ntk_fn`; batches need examples that do not
            interact.
        implementation: see :class:`ntk.empirical.NtkImplementation`.
        standard_error: return an :class:`Estimate` instead of the mean.

    Returns:
        ``kernel_fn(x1, x2=None, get=None, **kwargs)``: means of shape and kind as from
        :func:`ntk.empirical.empirical_kernel_fn`, or a generator of them. The error of the mean is
        O(1 / sqrt(n_samples)) around the kernel of that width, itself O(1 / width) off the limit.

    Raises:
        ValueError: n_samples or batch_size is out of range; batches with the batch axis traced.
    """
    counts = [n_samples] if isinstance(n_samples, int) else sorted(set(n_samples))
    if not counts or min(counts) < 1:
        raise ValueError(f"n_samples is {n_samples!r}; it must be at least 1")
    if batch_size and 0 in (*arguments.as_axes(trace_axes), *arguments.as_axes(diagonal_axes)):
        raise ValueError(
            "the batch axis 0 is traced or diagonal: it cannot be split, use batch_size=0"
        )
    if batch_size < 0:
        raise ValueError(f"batch_size is {batch_size}; it must be 0 (all at once) or more")
    kernel_fn = empirical.empirical_kernel_fn(
        apply_fn, trace_axes, diagonal_axes, vmap_axes, implementation
    )

    @functools.partial(jax.jit, static_argnames=("get", "static"))
    def sample(
        index: int,
        x1: PyTree,
        x2: PyTree | None,
        key: PRNGKey,
        block: tuple[int, int] | None,
        arrays: list,
        get: str | tuple[str, ...] | None,
        static: tuple,
    ) -> PyTree:
        init_key, rng = jax.random.split(jax.random.fold_in(key, index))
        _, params = init_fn(init_key, jax.tree.map(jnp.shape, x1))
        kwargs = arguments.combine(arrays, static)
        if block is not None:
            # One noise for a batch in all blocks that it is in: the kernel is one of outputs, and symmetric.
            one, two = (jax.random.fold_in(rng, number) for number in block)
            rng = one if x2 is None else (one, two)
        return kernel_fn(x1, x2, get, params, rng=rng, **kwargs)

    def estimates(
        x1: PyTree, x2: PyTree | None, get: str | tuple[str, ...] | None, kwargs: dict
    ) -> Iterator[PyTree]:
        get = arguments.lower(get)
        moments = None
        for index in range(counts[-1]):

            def draw(
                a: PyTree, b: PyTree | None, given: dict, block: Any, n: int = index
            ) -> PyTree:
                arrays, static = arguments.partition(given)
                return sample(n, a, b, key, block, arrays, get, static)

            new = _in_batches(draw, x1, x2, kwargs, batch_size, store_on_device)
            moments = _add(moments, new)
            if index + 1 in counts:
                yield _estimate(moments) if standard_error else moments.mean

    def monte_carlo_kernel(
        x1: PyTree,
        x2: PyTree | None = None,
        get: str | tuple[str, ...] | None = None,
        **kwargs: Any,
    ) -> PyTree | Iterator[PyTree]:
        found = estimates(x1, x2, get, kwargs)
        return next(found) if isinstance(n_samples, int) else found

    return monte_carlo_kernel


def _in_batches(
    kernel: Callable, x1: PyTree, x2: PyTree | None, kwargs: dict, size: int, on_device: bool
) -> PyTree:
    """The kernel in blocks of at most ``size`` by ``size`` examples, put together again.

    So are arguments (a, b) with an entry for each example of x1 and of x2, such as ``pattern``.
    """
    keep = (lambda k: k) if on_device else jax.device_get
    if size == 0:
        return keep(kernel(x1, x2, kwargs, None))
    second = x1 if x2 is None else x2
    n1, n2 = (jax.tree.leaves(x)[0].shape[0] for x in (x1, second))
    pairs = {k: v for k, v in kwargs.items() if arguments.per_sample(v, n1, n2)}
    rows, columns = (
        _batches((x, {k: v[side] for k, v in pairs.items()}), size)
        for side, x in enumerate((x1, second))
    )
    blocks: list[list[PyTree]] = []
    for i, (a, one) in enumerate(rows):
        blocks.append([])
        for j, (b, two) in enumerate(columns):
            given = kwargs | {k: (one[k], two[k]) for k in pairs}
            alone, block = x2 is None and i == j, (i, j) if x2 is None else (2 * i, 2 * j + 1)
            blocks[i].append(keep(kernel(a, None if alone else b, given, block)))
    joined = [jax.tree.map(lambda *k: jnp.concatenate(k, 1), *row) for row in blocks]
    return jax.tree.map(lambda *k: jnp.concatenate(k, 0), *joined)


def _batches(x: PyTree, size: int) -> list[PyTree]:
    n = jax.tree.leaves(x)[0].shape[0]
    return [jax.tree.map(lambda v, i=i: v[i : i + size], x) for i in range(0, n, size)]


def _add(moments: _Moments | None, sample: PyTree) -> _Moments:
    """Welford's update, which does not subtract large numbers."""
    if moments is None:
        return _Moments(1, sample, jax.tree.map(jnp.zeros_like, sample))
    count = moments.number + 1
    mean = jax.tree.map(lambda m, s: m + (s - m) / count, moments.mean, sample)
    squares = jax.tree.map(
        lambda q, m, new, s: q + (s - m) * (s - new), moments.squares, moments.mean, mean, sample
    )
    return _Moments(count, mean, squares)


def _estimate(moments: _Moments) -> Estimate:
    n = moments.number

    def error(q: jax.Array) -> jax.Array:
        # Of the mean: unbiased variance q / (n - 1) of one network, over n.
        return jnp.sqrt(q / (n * (n - 1))) if n > 1 else jnp.full_like(q, jnp.nan)

    return Estimate(moments.mean, jax.tree.map(error, moments.squares))
