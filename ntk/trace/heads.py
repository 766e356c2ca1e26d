"""Attention with random scores, evaluated: the mean over heads, whose number grows.

The scores G of a head are Gaussian, its weights W = zeta(G) a function of them (softmax, masks), and over heads the
outputs have second moments E[W K_v W'^T]. The tangent kernel is E[W Theta_v W'^T] from the values, and from queries and
keys E[dW K_v dW'^T] with dW = zeta'(G) dG, dG a direction whose covariance is the tangent kernel of the scores.
Expectations are means over draws, the same draws for every pair of samples, so that an entry depends on its two
samples alone: kernels are computed in tiles, and those of test against training data fit those of training data.

Source: Hron, Bahri, Sohl-Dickstein & Novak (2020), "Infinite attention", theorem 3 and section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.inputs import Need
from ntk.kernel import Array, Kernel, pixel_diagonal
from ntk.trace.fields import Blocks, Roots, blocks, draw, roots
from ntk.trace.matrices import fitted
from ntk.trace.mixtures import broadcast
from ntk.trace.moments import Law
from ntk.trace.numbers import from_axes, run_finite, to_axes
from ntk.trace.setting import Setting, Sides
from ntk.trace.steps import Step

ENTRIES = 2**17
"""Scores of all pairs of samples that are held at once."""


class Scores(NamedTuple):
    """Queries and keys, whose products the scores are."""

    queries: Law
    keys: Law


def scores_pair(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Scores:
    """What is known of scores: the laws of queries and keys."""
    return Scores(*operands)


class Attend(NamedTuple):
    """An "attend" step: out[r, a, e] = sum_c W[r, a, c] V[r, c, e].

    Attributes:
        zeta: equations from scores to weights, each (static, operands): ("s", k) an earlier one, ("o", k) an input
            of the step.
        code: dimensions of the weights in terms of their axes of positions.
        sizes: of these axes.
        roles: places among these axes of r, a, c, and of axes that values do not have.
        values: places among the axes of the values of r, c, e.
        out: sizes of all of r, a, e.
        fields: places of the scores among the inputs.
        draws: number of draws of scores for each pair of samples.
    """

    zeta: tuple
    code: tuple
    sizes: tuple[int, ...]
    roles: tuple[tuple[int, ...], ...]
    values: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    fields: tuple[int, ...]
    draws: int


class Field(NamedTuple):
    """Moments and roots of the queries and keys of one field of scores."""

    q: Blocks
    k: Blocks
    q_root: Roots
    k_root: Roots


def attend_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of values averaged over positions with random weights."""
    attend: Attend = step.static
    kernel = broadcast(operands[0].kernel, setting)
    seed = dict(setting.plan.context).get("attention_seed", 0)
    orders = []
    for side in (0, 1):  # drawn at the first sample first, and at the second one first
        total = _expectations(attend, kernel, operands, side, seed, setting)
        orders.append(total)
    one, two = orders
    nngp = (one["nngp"] + _exchanged(two["nngp"])) / 2
    ntk = one.get("ntk")
    if ntk is not None:
        ntk = (ntk + _exchanged(two["ntk"])) / 2
    elif setting.plan.ntk:
        ntk = jnp.zeros((), nngp.dtype)
    out = _kernel(kernel, attend.out, nngp, ntk, one["within"], two["within"])
    law_means = operands[0].means
    if means and law_means is not None:
        law_means = tuple(_mean(attend, total["weights"], m) for total, m in zip(orders, law_means))
    return Law(fitted(out, need), law_means if means else None)


def _exchanged(x: Array) -> Array:
    """(N2, N1, r, a, e, r', a', e') with samples exchanged."""
    return jnp.transpose(x, (1, 0, 5, 6, 7, 2, 3, 4))


def _expectations(
    attend: Attend, kernel: Kernel, operands: list, side: int, seed: int, setting: Setting
) -> dict[str, Array]:
    """Means over draws, with the samples of batch `side` as the first ones."""
    coincident = setting.coincident
    if side and coincident is not None:
        coincident = coincident.T
    fields = [_field(operands[p], side, coincident, setting) for p in attend.fields]
    values = _values(kernel, attend, side)
    arrays = [[o[s] if isinstance(o, Sides) else None for o in operands] for s in (side, 1 - side)]
    samples = setting.samples[side], setting.samples[1 - side]
    count = attend.draws // 4  # mirrored, and in both orders
    most = max(ENTRIES // (samples[0] * samples[1] * _largest(fields)), 1)
    chunk = max(d for d in range(1, count + 1) if count % d == 0 and d <= most)
    key = jax.random.key(seed)
    tangents = any(p.tangent is not None for f in fields for p in (f.q, f.k))

    def weights(arrays: list, samples: int) -> Callable:
        return lambda *g: _weights(attend, g, arrays, samples, setting.dtype)

    first = jax.vmap(weights(arrays[0], samples[0]))
    second = jax.vmap(jax.vmap(weights(arrays[1], samples[1])))

    def part(index: Array) -> dict[str, Array]:
        drawn = [draw(jax.random.fold_in(key, n), index, *field) for n, field in enumerate(fields)]
        w1, d1 = _moved(first, [(d.first, d.direction1) for d in drawn], tangents)
        w2, d2 = _moved(second, [(d.second, d.direction2) for d in drawn], tangents)
        out = {
            "nngp": _between(w1, values.cross, w2),
            "within": _inside(w1, values.first),
            "weights": jnp.sum(w1, 0),
        }
        if values.tangent is not None:
            out["ntk"] = _between(w1, values.tangent, w2)
        if tangents:
            out["ntk"] = out.get("ntk", 0.0) + _between(d1, values.cross, d2)
        return out

    def body(total: dict, start: Array) -> tuple[dict, None]:
        new = jax.checkpoint(part)(start + jnp.arange(chunk))
        return jax.tree.map(jnp.add, total, new), None

    starts = chunk * jnp.arange(count // chunk)
    shapes = jax.eval_shape(part, jnp.arange(chunk))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, starts)
    return jax.tree.map(lambda x: x / (2 * count), total)


def _largest(fields: list[Field]) -> int:
    return max(f.q.first.shape[-1] * f.k.first.shape[-1] for f in fields)


def _field(scores: Scores, side: int, coincident: Array | None, setting: Setting) -> Field:
    q, k = (blocks(broadcast(law.kernel, setting)) for law in scores)
    if side:
        q, k = q.swapped(), k.swapped()
    return Field(q, k, roots(q, coincident), roots(k, coincident))


def _values(kernel: Kernel, attend: Attend, side: int) -> Blocks:
    """Moments of the values as (N, r, c, e, r', c', e'), with samples of batch `side` first."""
    out = blocks(kernel, tuple(k for group in attend.values for k in group))
    out = out.swapped() if side else out
    sizes = [math.prod(kernel.var1.shape[1 + k] for k in group) for group in attend.values]

    def split(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(*x.shape[:-2], *sizes, *sizes)

    return Blocks(*map(split, out))


def _moved(function: Callable, drawn: list, tangents: bool) -> tuple[Array, Array | None]:
    """Weights at drawn scores, and how they move with them."""
    points = [g for g, _ in drawn]
    if not tangents:
        return function(*points), None
    directions = [jnp.zeros_like(g) if d is None else d for g, d in drawn]
    return jax.jvp(function, points, directions)


def _weights(attend: Attend, fields: tuple, arrays: list, samples: int, dtype: Any) -> Array:
    """W (N, r, a, c) as a function of scores (N, T_q, T_k)."""
    done: list[Array] = []
    for static, sources in attend.zeta:
        if static[0] == "draws":
            done.append(_scores(static, fields[attend.fields.index(sources[0][1])]))
            continue
        operands = [done[k] if kind == "s" else arrays[k] for kind, k in sources]
        if static[0] == "stop_gradient":
            done.append(jax.lax.stop_gradient(operands[0]))
        else:
            done.append(run_finite(static, operands, samples, dtype))
    w = to_axes(done[-1], attend.code, attend.sizes)
    w = jnp.broadcast_to(w, (samples, *attend.sizes))
    w = jnp.transpose(w, (0, *(1 + k for group in attend.roles for k in group)))
    shape = [math.prod(attend.sizes[k] for k in group) for group in attend.roles]
    return jnp.sum(w.reshape(samples, *shape), -1)


def _scores(static: tuple, field: Array) -> Array:
    """Scores (N, T_q, T_k) in the shape of the trace."""
    _, (number, where, sizes, shape, coded), _, _ = static
    left, right = where
    split = field.reshape(-1, *(sizes[k] for k in left), *(sizes[k] for k in right))
    kept = sorted({*left, *right})
    ends = [0, *(1 + k for k in (*left, *right))]
    g = jnp.einsum(split, ends, [0, *(1 + k for k in kept)])  # the diagonal of axes that both have
    g = g.reshape(-1, *(size if k in kept else 1 for k, size in enumerate(sizes)))
    g = jnp.broadcast_to(g, (g.shape[0], *sizes)).reshape(g.shape[0], *shape)
    return number * from_axes(g, coded)


def _between(w1: Array, cov: Array, w2: Array) -> Array:
    """sum over draws of W K W'^T, (N1, N2, r, a, e, r', a', e')."""
    half = jnp.einsum("nmrcetdf,snmtbd->snmrcetbf", cov, w2)
    return jnp.einsum("snrac,snmrcetbf->nmraetbf", w1, half)


def _inside(w: Array, cov: Array) -> Array:
    """The same within samples, (N, r, a, e, r', a', e')."""
    half = jnp.einsum("nrcetdf,sntbd->snrcetbf", cov, w)
    return jnp.einsum("snrac,snrcetbf->nraetbf", w, half)


def _kernel(
    kernel: Kernel,
    sizes: tuple[int, ...],
    nngp: Array,
    ntk: Array | None,
    within1: Array,
    within2: Array,
) -> Kernel:
    """Moments with one axis for r, a, e each, as a `Kernel` of positions of the given sizes."""
    count = len(sizes)

    def zipped(x: Array, lead: int) -> Array:
        x = x.reshape(*x.shape[:lead], *sizes, *sizes)
        order = [lead + side * count + k for k in range(count) for side in (0, 1)]
        return jnp.transpose(x, (*range(lead), *order))

    ends = [zipped(w, 1) for w in (within1, within2)]
    var1, var2 = (pixel_diagonal(w, 1) for w in ends)
    out = kernel.replace(
        var1=var1,
        var2=var2,
        nngp=zipped(nngp, 2),
        within1=ends[0] if count else None,
        within2=ends[1] if count else None,
        is_gaussian=False,
        is_input=False,
        diagonal_spatial=False,
        coincident=None,
    )
    return out.replace(ntk=zipped(ntk, 2) if ntk is not None and ntk.ndim else ntk)


def _mean(attend: Attend, weights: Array, mean: Array) -> Array:
    """E[W] E[V]."""
    sizes = [math.prod(mean.shape[1 + k] for k in group) for group in attend.values]
    mean = jnp.transpose(mean, (0, *(1 + k for group in attend.values for k in group)))
    out = jnp.einsum("nrac,nrce->nrae", weights, mean.reshape(mean.shape[0], *sizes))
    return out.reshape(out.shape[0], *attend.out)
