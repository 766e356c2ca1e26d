"""Functions of several activations at once, or of one at several positions: means over draws of their joint law.

A unit F of such a layer is a function of independent Gaussian processes g_r. With draws of these at two samples its
moments are E[F F'], and its tangent kernel is sum_r E[dF/dg_r Theta_r dF'/dg_r] plus E[dF/dp dF'/dp] of every gain p
that is trained. The draws are the same for every pair of samples, as those of random scores
(`ntk.trace.ops.score_draws`). A first layer whose weights are not normal is drawn by its weights; added to a sum over
units, it is taken for Gaussian.

How it is read is in `ntk.trace.ops.several`.

Source: Yang (2019), Tensor Programs I, theorem 5.4; Yang (2020), Tensor Programs II.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk.infinite.kernel import Array
from ntk.infinite.tiled import TILE, TILE_ELSEWHERE
from ntk.infinite.weight_laws import quantile
from ntk.trace import algebra, entries
from ntk.trace.laws import Law, Setting, broadcast, fitted, spread
from ntk.trace.ops.attention_laws import all_pairs, both_orders, kernel_of, mean_of_draws
from ntk.trace.ops.combine import Combine
from ntk.trace.ops.numbers import Numbers, apply_map, from_axes, run_numbers, to_axes
from ntk.trace.ops.score_draws import Blocks, Roots, blocks, roots
from ntk.trace.steps import Kind, Note
from ntk.types import two_of


class Operation(NamedTuple):
    """One operation on draws.

    Attributes:
        op: `Functions` or `Combine` as they are in steps, or `Primitive`.
        sources: of each place of its inputs: ("process", k), ("operation", k), or ("input", place among the inputs).
    """

    op: Any
    sources: tuple


class Primitive(NamedTuple):
    """A primitive on arrays in the shape of the trace.

    Attributes:
        numbers: what is done, see `ntk.trace.ops.numbers`.
        operands: of each that is drawn: (places of its axes of positions, sizes of all, dimensions in terms of these).
        code: dimensions of the result in terms of its axes of positions.
        sizes: of these.
    """

    numbers: Numbers
    operands: tuple
    code: tuple
    sizes: tuple[int, ...]


class Several(NamedTuple):
    """A function of several Gaussian processes.

    Attributes:
        operations: in turn; the last is the result.
        processes: place among the inputs of each of the processes, which are independent.
        gains: places of parameters that are constant at initialisation and trained.
        sizes: of its axes of positions.
        draws: their number.
    """

    operations: tuple[Operation, ...]
    processes: tuple[int, ...]
    gains: tuple[int, ...]
    sizes: tuple[int, ...]
    draws: int


def several_law(step: Any, need: Any, means: bool, operands: list, setting: Setting) -> Law:
    """Law of a function of several processes, by draws of them at each pair of samples."""
    op: Several = step.op
    seed = dict(setting.plan.context).get("attention_seed", 0)
    kernels = [broadcast(operands[place].kernel, setting.samples) for place in op.processes]
    inside = [blocks(k) for k in kernels]
    made = [operands[place].entries for place in op.processes]
    made = [None if e is None or e.normal or e.rest else e for e in made]
    laws = [None if e is None else e.laws for e in made]
    # Arrays of numbers of both batches, and whether samples coincide.
    arrays = [[None if isinstance(o, Law) else o[side] for o in operands] for side in (0, 1)]
    rates = [operands[place].kernel.ntk for place in op.gains]
    shapes = [k.var1.shape[1:] for k in kernels]

    def weighed(e: entries.Entries | None, side: int) -> Array | None:
        if e is None:
            return None
        x = (e.one, e.two)[side]
        x = jnp.broadcast_to(x, (setting.samples[side], *x.shape[1:]))
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def data(side: int) -> _Given:
        own = [b.swapped() if side else b for b in inside]
        same = setting.coincident
        same = same.T if side and same is not None else same
        weights = [(weighed(e, side), weighed(e, 1 - side)) for e in made]
        return _Given(own, weights, (arrays[side], arrays[1 - side]), same)

    one, two = both_orders(
        lambda given: _expectations(op, given, laws, rates, shapes, seed, setting),
        [data(0), data(1)],
    )

    def exchanged(x: Array) -> Array:
        return jnp.transpose(x, (1, 0, 3, 2))

    nngp = (one["nngp"] + exchanged(two["nngp"])) / 2
    ntk = None
    if setting.plan.ntk:
        ntk = jnp.zeros_like(nngp)
        if "ntk" in one:
            ntk = (one["ntk"] + exchanged(two["ntk"])) / 2
    base = kernels[0]
    out = kernel_of(base, op.sizes, nngp, ntk, one["within"], two["within"])
    found = None
    if means:
        found = two_of(x["mean"].reshape(-1, *op.sizes) for x in (one, two))
    return Law(fitted(out, need), found)


class _Given(NamedTuple):
    """What is known of the processes, the samples of one of the batches first.

    Attributes:
        inside: moments of each.
        weights: entries of those that are drawn by their weights, (N, T, d) in either batch, or None.
        arrays: numbers among the inputs, of the first and of the second batch.
        coincident: (N1, N2), or None.
    """

    inside: list[Blocks]
    weights: list[tuple[Array | None, Array | None]]
    arrays: tuple[list, list]
    coincident: Array | None


def _sources(given: _Given, laws: list) -> list[tuple[int, Callable]]:
    """Of each process how many standard normals a draw takes, and what it is of them: (M, N1, T), (M, N1, N2, T)."""
    out: list[tuple[int, Callable]] = []
    for b, (one, two), law in zip(given.inside, given.weights, laws):
        if one is not None and two is not None:
            out.append((one.shape[-1], functools.partial(_by_weights, one, two, law)))
            continue
        found = functools.partial(_gaussian, roots(b, given.coincident))
        out.append((2 * b.first.shape[-1], found))
    return out


def _gaussian(root: Roots, z: Array) -> tuple[Array, Array]:
    size = root.first.shape[-1]
    here = jnp.einsum("nab,sb->sna", root.first, z[:, :size], precision="highest")
    return here, jnp.einsum("nmab,sb->snma", root.second, z, precision="highest")


def _by_weights(one: Array, two: Array, laws: tuple, z: Array) -> tuple[Array, Array]:
    """Sums over weights of laws that are not normal."""
    ends = itertools.accumulate(count for _, count in laws[:-1])
    parts = jnp.split(jax.scipy.special.ndtr(z), list(ends), 1)
    # Phi(z) is uniform, and a quantile of it has the law of the weight: the same normals serve every law.
    w = jnp.concatenate([quantile(law, u) for (law, _), u in zip(laws, parts)], 1)
    here, there = (jnp.einsum("nad,sd->sna", x, w, precision="highest") for x in (one, two))
    samples, count, size = there.shape
    return here, jnp.broadcast_to(there[:, None], (samples, one.shape[0], count, size))


def _expectations(
    op: Several, data: _Given, laws: list, rates: list, shapes: list, seed: int, setting: Setting
) -> dict[str, Array]:
    """Means over draws, first the samples of one batch: of F F' between the batches and within the first, and of F."""
    inside, arrays = data.inside, data.arrays
    sources = _sources(data, laws)
    samples = inside[0].cross.shape[:2]
    sizes = [b.first.shape[-1] for b in inside]
    tangents = setting.plan.ntk and any(b.tangent is not None for b in inside)
    out_size = math.prod(op.sizes)

    def unit(side: int) -> Callable:
        """F and its derivatives at draws [(N, T)] of one batch: (N, O), [(T, N, O)], [(N, O)]."""

        def of(points: list[Array], gains: list[Array]) -> Array:
            split = [g.reshape(-1, *shape) for g, shape in zip(points, shapes)]
            return run(op, split, arrays[side], gains, samples[side], setting.dtype)

        def whole(*points: Array) -> dict[str, Any]:
            ones = [jnp.ones((), setting.dtype)] * len(op.gains)
            given = list(points)
            if not setting.plan.ntk:
                return {"value": of(given, ones)}
            value, moved = jax.linearize(of, given, ones)
            zeros = [jnp.zeros_like(g) for g in given]
            none = [jnp.zeros_like(g) for g in ones]
            out: dict[str, Any] = {"value": value, "slopes": [], "gains": []}
            for r, (g, b) in enumerate(zip(given, inside)):
                if b.tangent is None:
                    out["slopes"].append(None)
                    continue
                basis = jnp.eye(g.shape[-1], dtype=g.dtype)

                def column(e: Array, r: int = r) -> Array:
                    at = [
                        jnp.broadcast_to(e, z.shape) if k == r else z for k, z in enumerate(zeros)
                    ]
                    return moved(at, none)

                out["slopes"].append(jax.vmap(column)(basis))
            for k in range(len(none)):
                own = [jnp.ones_like(g) if j == k else g for j, g in enumerate(none)]
                out["gains"].append(moved(zeros, own))
            return out

        return whole

    first = jax.vmap(unit(0))
    second = jax.vmap(jax.vmap(unit(1)))

    def part(points: Array) -> dict[str, Array]:
        points = points.astype(setting.dtype)
        ends = itertools.accumulate(count for count, _ in sources[:-1])
        parts = jnp.split(points, list(ends), 1)
        drawn = [of(z) for (_, of), z in zip(sources, parts)]
        one, two = first(*(g for g, _ in drawn)), second(*(g for _, g in drawn))
        einsum = functools.partial(jnp.einsum, precision="highest")
        out = {
            "nngp": einsum("sna,snmb->nmab", one["value"], two["value"]),
            "within": einsum("sna,snb->nab", one["value"], one["value"]),
            "mean": jnp.sum(one["value"], 0),
        }
        total: Any = None
        for b, slope1, slope2 in zip(inside, one.get("slopes", ()), two.get("slopes", ())):
            if b.tangent is None:
                continue
            # E dF/dg Theta dF'/dg', over positions i, j of the process.
            half = einsum("nmij,snjmb->snimb", b.tangent, slope2)
            more = einsum("sina,snimb->nmab", slope1, half)
            total = more if total is None else total + more
        for rate, slope1, slope2 in zip(rates, one.get("gains", ()), two.get("gains", ())):
            more = rate.ravel()[0] * einsum("sna,snmb->nmab", slope1, slope2)
            total = more if total is None else total + more
        if total is not None:
            out["ntk"] = total
        return out

    count = op.draws // 2  # in both orders
    tile = TILE.get(jax.default_backend(), TILE_ELSEWHERE)
    each = samples[0] * samples[1] * out_size * (max(sizes) if tangents else 1)
    most = max(tile // each, 1)
    chunk = min(count, 2 ** (most.bit_length() - 1))
    return mean_of_draws(part, count, chunk, sum(count for count, _ in sources), seed)


def run(
    op: Several,
    processes: list[Array],
    arrays: list,
    gains: list[Array],
    samples: int,
    dtype: Any,
) -> Array:
    """F at draws of its processes, (N, O).

    Args:
        op: the function.
        processes: (N, *S) each.
        arrays: numbers among the inputs of the step, by place.
        gains: what the gains, as they are at initialisation, are multiplied with... one, but for derivatives.
        samples: N.
        dtype: of the result.
    """
    drawn = dict(zip(op.processes, processes))
    shifts = dict(zip(op.gains, gains))
    done: list[Array] = []

    def source(kind: str, k: int) -> Any:
        return done[k] if kind == "operation" else drawn.get(k, arrays[k])

    for operation, sources in op.operations:
        if isinstance(operation, Primitive):
            done.append(_primitive(operation, [source(*s) for s in sources], samples, dtype))
        elif isinstance(operation, Combine):
            done.append(_combine(operation, [source(*s) for s in sources], samples, dtype))
        else:
            done.append(_functions(operation, sources, source, shifts, samples, dtype))
    return done[-1].reshape(samples, -1)


def _primitive(op: Primitive, operands: list, samples: int, dtype: Any) -> Array:
    args = []
    for x, how in zip(operands, op.operands):
        if how is None:
            args.append(x)
            continue
        where, sizes, coded = how
        x = spread(x, 1, False, where, len(sizes))
        x = jnp.broadcast_to(x, (x.shape[0], *sizes))
        if not any("s" in dim for dim in coded):
            x = x[:1]
        args.append(from_axes(x, coded))
    if op.numbers.primitive in ("select_n", "and", "or", "not", "xor"):
        count = 1 if op.numbers.primitive == "select_n" else len(args)
        args[:count] = [a != 0 for a in args[:count]]  # draws of comparisons are zeros and ones
    z = run_numbers(op.numbers, args, samples, dtype).astype(dtype)
    return jnp.broadcast_to(to_axes(z, op.code, op.sizes), (samples, *op.sizes))


def _combine(op: Combine, operands: list, samples: int, dtype: Any) -> Array:
    total: Any = 0.0
    for place, maps, where, number, given in op.pieces:
        x = operands[place][:, None]
        for item in maps:
            x = apply_map(item, x, operands, dtype)
        x = spread(x, 2, False, where, len(op.sizes))
        x = jnp.broadcast_to(x, (*x.shape[:2], *op.sizes))[:, 0] * number
        for at, coded in given:
            x = x * to_axes(operands[at], coded, op.sizes)
        total = total + x
    return jnp.broadcast_to(total, (samples, *op.sizes))


def _functions(
    op: Any, sources: tuple, source: Callable, shifts: dict, samples: int, dtype: Any
) -> Array:
    count, total = len(op.sizes), jnp.zeros((samples, *op.sizes), dtype)

    def at(tree: Any, z: Array) -> Array:
        """The tree at z, as a function of the gains in it."""
        out = algebra.function(tree)(z)
        for place, value in algebra.parameters(tree).items():
            k = sources[place][1]
            if k in shifts:  # one at a time: exact for first derivatives
                f = algebra.function(tree, place)
                here = jax.lax.stop_gradient(z)
                out = out + f(here, value + shifts[k] - 1) - f(here, jnp.asarray(value, z.dtype))
        return out

    for number, given, factors, alone in op.terms:
        x = jnp.full((1,) * (1 + count), number, dtype)
        for place, coded in given:
            x = x * to_axes(source(*sources[place]), coded, op.sizes)
        for place, where, tree in factors:
            z = spread(source(*sources[place]), 1, False, where, count)
            x = x * at(tree, z)
        if alone is not None:
            x = x * at(alone, jnp.zeros((), dtype))
        total = total + x
    return total


def words(op: Several, note: Note) -> tuple[str, str]:
    """For a reader."""
    return f"{note.text}: mean over {op.draws} draws of the activations", "E[F F']"


KIND = Kind(
    "function of several",
    several_law,
    all_pairs,
    sizes=lambda op: op.sizes,
    words=words,
    is_linear=lambda op: False,
)
