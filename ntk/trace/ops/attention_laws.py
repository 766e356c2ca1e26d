"""Attention with random scores, evaluated: the mean over heads, whose number grows.

The scores G of a head are Gaussian, its weights W = zeta(G) a function of them (softmax, masks), and over heads the
outputs have second moments E[W K_v W'^T]. The tangent kernel is E[W Theta_v W'^T] from the values, and from queries and
keys E[dW K_v dW'^T] with dW = zeta'(G) dG, dG a direction whose covariance is the tangent kernel of the scores.
Expectations are means over draws, the same draws for every pair of samples, so that an entry depends on its two
samples alone: kernels are computed in tiles, and those of test against training data fit those of training data.

How it is read is in `ntk.trace.ops.attention`, how scores are drawn in `ntk.trace.ops.score_draws`.

Source: Hron, Bahri, Sohl-Dickstein & Novak (2020), "Infinite attention", theorem 3 and section 3.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel, pixel_diagonal
from ntk.infinite.tiled import TILE, TILE_ELSEWHERE
from ntk.trace.laws import Law, Setting, Sides, broadcast, fitted
from ntk.trace.ops.numbers import from_axes, run_numbers, to_axes
from ntk.trace.ops.score_draws import (
    MOST,
    Blocks,
    Field,
    blocks,
    draw,
    independent,
    low_discrepancy,
    roots,
)
from ntk.trace.steps import Kind, Note, Step
from ntk.types import two_of


class Scores(NamedTuple):
    """A "scores" step: products of queries and keys, summed over units.

    Attributes:
        number: of units, to leading order in the width.
        where: places of the axes of queries, and of those of keys, among those of the scores.
        sizes: of the latter.
        few: number of units, if it does not grow: the size of a head, of which there are more and more. Else 0.
    """

    number: float
    where: tuple[tuple[int, ...], tuple[int, ...]]
    sizes: tuple[int, ...]
    few: int = 0


class Draws(NamedTuple):
    """How scores are arrays of numbers: `number` times a draw, with the axes of `Scores`.

    Attributes:
        number: factor.
        where, sizes: as in `Scores`.
        shape: of the axes that are left.
        code: dimensions of the array in terms of these.
    """

    number: float
    where: tuple
    sizes: tuple[int, ...]
    shape: tuple[int, ...]
    code: tuple


class Attend(NamedTuple):
    """An "attend" step: out[r, a, e] = sum_c W[r, a, c] V[r, c, e].

    Attributes:
        zeta: equations from scores to weights, each (`Numbers`, operands): ("s", k) an earlier one, ("o", k) an input
            of the step.
        code: dimensions of the weights in terms of their axes of positions.
        sizes: of these axes.
        roles: places among these axes of r, a, c, and of axes that values do not have.
        values: places among the axes of the values of r, c, e.
        out: sizes of all of r, a, e.
        fields: places of the scores among the inputs.
        draws: number of draws of scores for each pair of samples.
        heads: how many there are at every width; 0 where their number grows.
    """

    zeta: tuple
    code: tuple
    sizes: tuple[int, ...]
    roles: tuple[tuple[int, ...], ...]
    values: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    fields: tuple[int, ...]
    draws: int
    heads: int


class QueriesKeys(NamedTuple):
    """Queries and keys, whose products the scores are."""

    queries: Law
    keys: Law
    few: int


def scores_pair(
    step: Step, need: Need, means: bool, operands: list, setting: Setting
) -> QueriesKeys:
    """What is known of scores: the laws of queries and keys."""
    queries, keys = operands
    return QueriesKeys(queries, keys, step.op.few)


class Operands(NamedTuple):
    """What an "attend" step reads, with the samples of one of the batches first.

    Attributes:
        values: moments of the values, (N, r, c, e, r', c', e').
        scores: moments of the queries and keys of each field of scores.
        arrays: numbers among the inputs of the step, of the first and of the second batch.
        coincident: (N1, N2), or None.
    """

    values: Blocks
    scores: tuple[tuple[Blocks, Blocks], ...]
    arrays: tuple[list, list]
    coincident: Array | None


def attend_law(step: Step, need: Need, means: bool, operands: list, setting: Setting) -> Law:
    """Law of values averaged over positions with random weights."""
    attend: Attend = step.op
    kernel = broadcast(operands[0].kernel, setting.samples)
    seed = dict(setting.plan.context).get("attention_seed", 0)
    few = [operands[p].few for p in attend.fields]
    one, two = both_orders(
        lambda data: _expectations(attend, data, few, seed, setting.dtype),
        [_data(attend, kernel, operands, side, setting) for side in (0, 1)],
    )
    # Draws are made at one sample and carried to the other: the mean of both orders is symmetric.
    nngp = (one["nngp"] + _exchanged(two["nngp"])) / 2
    ntk = one.get("ntk")
    if ntk is not None:
        ntk = (ntk + _exchanged(two["ntk"])) / 2
    elif setting.plan.ntk:
        ntk = jnp.zeros((), nngp.dtype)
    out = kernel_of(kernel, attend.out, nngp, ntk, one["within"], two["within"])
    new = operands[0].means if means else None
    if new is not None:
        new = tuple(_mean(attend, total["weights"], m) for total, m in zip((one, two), new))
    return Law(fitted(out, need), new)


def both_orders(run: Callable, datas: list[Any]) -> list[dict[str, Array]]:
    """Draws at the samples of the first batch first, and at those of the second, compiled once if they are as many."""
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), data) for data in datas]
    if shapes[0] != shapes[1]:
        return [run(data) for data in datas]
    out = jax.lax.map(run, jax.tree.map(lambda *x: jnp.stack(x), *datas))
    return [jax.tree.map(lambda x, k=k: x[k], out) for k in (0, 1)]


def _data(attend: Attend, kernel: Kernel, operands: list, side: int, setting: Setting) -> Operands:
    coincident = setting.coincident
    scores = [
        two_of(blocks(broadcast(law.kernel, setting.samples)) for law in operands[p][:2])
        for p in attend.fields
    ]
    if side:
        coincident = None if coincident is None else coincident.T
        scores = [(queries.swapped(), keys.swapped()) for queries, keys in scores]
    arrays: tuple[list, list] = two_of(
        [o[s] if isinstance(o, Sides) else None for o in operands] for s in (side, 1 - side)
    )
    return Operands(_values(kernel, attend, side), tuple(scores), arrays, coincident)


def _exchanged(x: Array) -> Array:
    """(N2, N1, r, a, e, r', a', e') with samples exchanged."""
    return jnp.transpose(x, (1, 0, 5, 6, 7, 2, 3, 4))


def _expectations(
    attend: Attend, data: Operands, few: list[int], seed: int, dtype: Any
) -> dict[str, Array]:
    """Means over draws: of W K W'^T between the batches and within the first, of the tangent kernel, and of W."""
    values = data.values
    samples = values.cross.shape[:2]
    fields = [
        Field(q, k, roots(q, data.coincident), roots(k, data.coincident), size)
        for (q, k), size in zip(data.scores, few)
    ]
    sizes = [field.sizes for field in fields]
    count = attend.draws // 2  # in both orders
    entries = TILE.get(jax.default_backend(), TILE_ELSEWHERE)
    most = max(entries // (samples[0] * samples[1] * max(a * b for a, b in sizes)), 1)
    chunk = min(count, 2 ** (most.bit_length() - 1))
    tangents = any(b.tangent is not None for pair in data.scores for b in pair)

    def weights(side: int) -> Callable:
        return lambda *g: _weights(attend, g, data.arrays[side], samples[side], dtype)

    first = jax.vmap(weights(0))
    second = jax.vmap(jax.vmap(weights(1)))

    def part(points: Array) -> dict[str, Array]:
        ends = itertools.accumulate(field.normals for field in fields[:-1])
        parts = jnp.split(points, list(ends), 1)
        draws = [draw(field, z) for field, z in zip(fields, parts)]
        w1, d1 = _moved(first, [(d.first, d.direction1) for d in draws], tangents)
        w2, d2 = _moved(second, [(d.second, d.direction2) for d in draws], tangents)
        out = {
            "nngp": _between(w1, values.cross, w2),
            "within": _inside(w1, values.first),
            "weights": jnp.sum(w1, 0),
        }
        if values.tangent is not None:
            out["ntk"] = _between(w1, values.tangent, w2)
        if d1 is not None and d2 is not None:
            out["ntk"] = out.get("ntk", 0.0) + _between(d1, values.cross, d2)
        return out

    size = sum(field.normals for field in fields)
    return mean_of_draws(part, count, chunk, size, seed)


def mean_of_draws(part: Callable, count: int, chunk: int, size: int, seed: int) -> dict[str, Array]:
    """Mean over `count` draws of what `part` sums over a chunk of them."""
    kept = jnp.asarray(low_discrepancy(count, size, seed)) if count * size <= MOST else None

    def points(start: Array | int) -> Array:
        if kept is None:
            return independent(seed, start + jnp.arange(chunk), size)
        return jax.lax.dynamic_slice_in_dim(kept, start, chunk)

    if chunk == count:
        return jax.tree.map(lambda x: x / count, part(points(0)))

    def body(total: dict, start: Array) -> tuple[dict, None]:
        # In reverse mode a chunk is drawn again, since all that chunks hold at once is too much.
        new = jax.checkpoint(lambda start: part(points(start)))(start)
        return jax.tree.map(jnp.add, total, new), None

    shapes = jax.eval_shape(lambda: part(points(0)))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, chunk * jnp.arange(count // chunk))
    return jax.tree.map(lambda x: x / count, total)


def _values(kernel: Kernel, attend: Attend, side: int) -> Blocks:
    """Moments of the values as (N, r, c, e, r', c', e'), with samples of batch `side` first."""
    out = blocks(kernel, tuple(k for group in attend.values for k in group))
    out = out.swapped() if side else out
    sizes = [math.prod(kernel.var1.shape[1 + k] for k in group) for group in attend.values]

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:-2], *sizes, *sizes)

    tangent = None if out.tangent is None else split(out.tangent)
    return Blocks(split(out.first), split(out.cross), split(out.second), tangent)


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
    for op, sources in attend.zeta:
        if op.primitive == "draws":
            done.append(_scores(op.params, fields[attend.fields.index(sources[0][1])]))
            continue
        operands = [done[k] if kind == "s" else arrays[k] for kind, k in sources]
        if op.primitive == "stop_gradient":
            done.append(jax.lax.stop_gradient(operands[0]))
        else:
            done.append(run_numbers(op, operands, samples, dtype))
    w = to_axes(done[-1], attend.code, attend.sizes)
    w = jnp.broadcast_to(w, (samples, *attend.sizes))
    w = jnp.transpose(w, (0, *(1 + k for group in attend.roles for k in group)))
    shape = [math.prod(attend.sizes[k] for k in group) for group in attend.roles]
    return jnp.sum(w.reshape(samples, *shape), -1)


def _scores(draws: Draws, field: Array) -> Array:
    """Scores (N, T_q, T_k) in the shape of the trace."""
    number, where, sizes, shape, coded = draws
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


def kernel_of(
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


def attend_means(step: Step, asked: bool) -> Sequence:
    """That of the values, if its own is asked for."""
    return step.inputs[:1] if asked else ()


def attend_words(op: Attend, note: Note) -> tuple[str, str]:
    """What is averaged over."""
    number = f"as of infinitely many ({op.heads} here)" if op.heads else "whose number grows too"
    what = f"values averaged with weights W of random scores: mean over heads, {number}, by {op.draws} draws"
    return what, "E[W K W']"


def scores_words(op: Scores, note: Note) -> tuple[str, str]:
    """For a reader."""
    return note.text, f"{op.number:.6g} K_q K_k"


def all_pairs(op: Any, own: Need) -> Need:
    """All covariances of positions, within samples too."""
    return Need(True, 2)


SCORES = Kind("scores", scores_pair, all_pairs, words=scores_words)
ATTEND = Kind(
    "attention",
    attend_law,
    all_pairs,
    sizes=lambda op: op.out,
    means=attend_means,
    words=attend_words,
)
