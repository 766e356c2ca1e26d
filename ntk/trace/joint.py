"""Networks that use a matrix more than once (recurrent and tied layers): joint moments of all their processes.

Uses of one matrix on different activations are jointly Gaussian, with the covariance of these activations, however
they depend on the matrix themselves, as long as its transpose is not used; the tangent kernel follows as for matrices
of their own, with all pairs of uses. Covariances of any two processes are computed when they are asked for.

One file: for every kind of step covariances, tangents and means ask for one another.

Source: Yang (2019), Tensor Programs I, theorem 5.4 (NETSOR); Yang (2020), Tensor Programs II; Alemohammad, Wang,
Balestriero & Baraniuk (2021), "The recurrent neural tangent kernel".
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ntk.infinite import kernel as kernels
from ntk.infinite.inputs import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.trace import algebra, entries, moments, true_moments
from ntk.trace.activations import Function
from ntk.trace.coordinates import Refusal
from ntk.trace.entries import Entries
from ntk.trace.laws import Law, Setting, spread
from ntk.trace.ops import data
from ntk.trace.ops.combine import Combine, Piece
from ntk.trace.ops.data import Data
from ntk.trace.ops.dense import Dense
from ntk.trace.ops.embedding import Embedding, table_rows
from ntk.trace.ops.function import Functions
from ntk.trace.ops.numbers import apply_map, to_axes
from ntk.trace.ops.vector import Vector
from ntk.trace.rules import kind
from ntk.trace.steps import Step
from ntk.types import Scalar, two_of


def run(steps: Sequence[Step], values: dict, setting: Setting) -> Law:
    """The law that the last step computes, see `ntk.trace.kernels.run`."""
    joint = _Joint(steps, values, setting)
    for index, step in enumerate(steps):
        if not kind(step).is_process:
            operands = [joint.law(i) if _is_process(steps, i) else values[i] for i in step.inputs]
            values[index] = kind(step).law(step, Need(False, 1), True, operands, setting)
    return joint.law(len(steps) - 1)


def _is_process(steps: Sequence[Step], index: Any) -> bool:
    return isinstance(index, int) and kind(steps[index]).is_process


_WEIGHTS = (Dense, Vector, Embedding)


class _Factor(NamedTuple):
    """A function of one process: of which row of it each row of the result is."""

    process: int
    function: Function
    rows: np.ndarray


class _Term(NamedTuple):
    """Numbers times a product of functions."""

    scale: Any
    factors: tuple[_Factor, ...]


class _Joint:
    """Moments of pairs of processes; samples and positions of a process in one axis, samples first."""

    def __init__(self, steps: Sequence[Step], values: dict, setting: Setting):
        self.steps, self.values, self.setting = steps, values, setting
        self.memo: dict = {}

    def _once(self, name: str, *key: Any) -> Any:
        if (name, key) not in self.memo:
            self.memo[name, key] = getattr(self, "_" + name)(*key)
        return self.memo[name, key]

    def sizes(self, index: int) -> tuple[int, ...]:
        """Axes of positions."""
        return self._once("sizes_of", index)

    def covariance(self, i: int, j: int, a: int, b: int) -> Array:
        """E[z_i z_j] with samples of batch a and of batch b, (N_a T_i, N_b T_j)."""
        # Covariances are symmetric: each is computed in one order only.
        if (i, a) > (j, b):
            return self.covariance(j, i, b, a).T
        return self._once("moment", "cov", i, j, a, b)

    def tangent(self, i: int, j: int) -> Array:
        """Inner product of derivatives of z_i in the first and of z_j in the second batch."""
        return self._once("moment", "ntk", i, j, 0, 1)

    def variance(self, i: int, a: int) -> Array:
        """(N_a T_i,)."""
        return self._once("variance_of", i, a)

    def mean(self, i: int, a: int) -> Array:
        """(N_a T_i,)."""
        return self._once("mean_of", i, a)

    def law(self, index: int) -> Law:
        """The law of one process alone."""
        sizes, samples = self.sizes(index), self.setting.samples
        count = len(sizes)

        def pairs(x: Array, a: int, b: int) -> Array:
            x = x.reshape(samples[a], *sizes, samples[b], *sizes)
            order = [0, 1 + count]
            for k in range(count):
                order += [1 + k, 2 + count + k]
            return jnp.transpose(x, order)

        ends = []
        for a in (0, 1):
            full = pairs(self.covariance(index, index, a, a), a, a)
            ends.append(jnp.moveaxis(jnp.diagonal(full, axis1=0, axis2=1), -1, 0))
        var1, var2 = (kernels.pixel_diagonal(x, 1) if count else x for x in ends)
        kernel = Kernel(
            jnp.zeros((), var1.dtype),
            var1,
            var2,
            None,
            *(ends if count else (None, None)),
            is_gaussian=self.gaussian(index),
        )
        kernel = kernel.replace(nngp=pairs(self.covariance(index, index, 0, 1), 0, 1))
        if self.setting.plan.ntk:
            kernel = kernel.replace(ntk=pairs(self.tangent(index, index), 0, 1))
        means = None
        if not self.gaussian(index):
            means = two_of(self.mean(index, a).reshape(samples[a], *sizes) for a in (0, 1))
        made = self.entries(index)
        if made is not None:
            one, two = (x.reshape(x.shape[0], *sizes, -1) for x in (made.one, made.two))
            made = dataclasses.replace(made, one=one, two=two)
        return Law(kernel, means, made)

    # --- facts of one process -----------------------------------------------------------------------

    def _sizes_of(self, index: int) -> tuple[int, ...]:
        op, inputs = self.steps[index]
        if isinstance(op, Dense):
            return tuple(s for k, s in enumerate(self.sizes(inputs[0])) if k not in op.flat)
        return data.sizes(op) if isinstance(op, Data) else op.sizes

    def gaussian(self, index: int) -> bool:
        """Whether it is Gaussian with mean zero."""
        step = self.steps[index]
        if isinstance(step.op, Combine):
            return all(self.gaussian(i) for i in step.inputs[: step.op.count])
        return isinstance(step.op, _WEIGHTS)

    def roots(self, index: int) -> frozenset:
        """The matrices and vectors that it is a function of."""
        return self._once("roots_of", index)

    def _roots_of(self, index: int) -> frozenset:
        step = self.steps[index]
        if isinstance(step.op, _WEIGHTS):
            return frozenset([getattr(step.op, "tied", None) or index])
        found = (self.roots(i) for i in step.inputs if _is_process(self.steps, i))
        return frozenset().union(*found)

    def entries(self, index: int) -> Entries | None:
        """Entries of what sums over a fixed number of weights, see `ntk.trace.entries`."""
        return self._once("entries_of", index) if self.setting.entries else None

    def _entries_of(self, index: int) -> Entries | None:
        step = self.steps[index]
        op = step.op
        if isinstance(op, Dense):
            if not isinstance(self.steps[step.inputs[0]].op, Data):
                return None
            sides = []
            for a in (0, 1):
                x = self._data(step.inputs[0], a)
                sides.append(_flat_entries(x, self.sizes(step.inputs[0]), op.flat))
            one, two = sides
            return entries.of_weights(one, two, op.law, (op.total / one.shape[-1]) ** 0.5)
        if isinstance(op, Vector):
            count = math.prod(op.sizes)
            eye = jnp.eye(count, dtype=self.setting.dtype)
            one, two = (jnp.broadcast_to(eye, (n, count, count)) for n in self.setting.samples)
            return entries.of_weights(one, two, op.law, op.variance**0.5)
        if not isinstance(op, Combine):
            return None
        parts: list[Entries | None] = []
        for piece in op.pieces:
            source = step.inputs[piece.place]
            made = self.entries(source)
            if made is None or not self.gaussian(source):
                parts.append(None)
                continue
            sides = []
            for a, x in enumerate((made.one, made.two)):
                x = jnp.moveaxis(x.reshape(x.shape[0], *self.sizes(source), -1), -1, 1)
                y = self._piece(step, piece, a, x)
                y = jnp.moveaxis(y, 1, -1)
                sides.append(y.reshape(y.shape[0], -1, y.shape[-1]))
            parts.append(dataclasses.replace(made, one=sides[0], two=sides[1]))
        return entries.added(parts)

    def _data(self, index: int, a: int) -> Array:
        """(N, T, D)."""
        step = self.steps[index]
        x = data.rows(step.op, self.values[step.inputs[0]][a], self.setting.dtype)
        x = jnp.broadcast_to(x, (self.setting.samples[a], *x.shape[1:]))
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def _variance_of(self, i: int, a: int) -> Array:
        return jnp.diagonal(self.covariance(i, i, a, a))

    def _mean_of(self, i: int, a: int) -> Array:
        step, samples = self.steps[i], self.setting.samples[a]
        zero = jnp.zeros(samples * math.prod(self.sizes(i)), self.setting.dtype)
        if self.gaussian(i):
            return zero
        if isinstance(step.op, Combine):
            return self._expanded(i, a, lambda source: self.mean(source, a)[:, None])[:, 0]
        total = zero
        for term in self._terms(i, a):
            part = term.scale
            for factor in term.factors:
                part = part * self._factor_mean(factor, a)
            total = total + part
        return total

    # --- pairs --------------------------------------------------------------------------------------

    def _moment(self, what: str, i: int, j: int, a: int, b: int) -> Any:
        n = self.setting.samples[a] * math.prod(self.sizes(i))
        m = self.setting.samples[b] * math.prod(self.sizes(j))
        zero = jnp.zeros((n, m), self.setting.dtype)
        (one, inputs1), (two, inputs2) = self.steps[i], self.steps[j]

        def of(k: int, l: int) -> Array:
            return self.tangent(k, l) if what == "ntk" else self.covariance(k, l, a, b)

        if isinstance(one, Combine):
            return self._expanded(i, a, lambda source: of(source, j))
        if isinstance(two, Combine):
            return self._expanded(j, b, lambda source: of(i, source).T).T
        if isinstance(one, Functions) or isinstance(two, Functions):
            return self._functions(what, i, j, a, b)
        if isinstance(one, Data) and isinstance(two, Data):
            if what == "ntk":
                return zero
            x, y = self._data(i, a), self._data(j, b)
            return (
                jnp.einsum("ntd,msd->ntms", x, y, precision="highest").reshape(n, m) / x.shape[-1]
            )
        tied = getattr(one, "tied", None)
        if not (i == j or (tied is not None and tied == getattr(two, "tied", None))):
            return zero
        if isinstance(one, Vector):
            same = jnp.tile(jnp.eye(math.prod(one.sizes), dtype=zero.dtype), self._tiles(a, b))
            return (one.rate if what == "ntk" else one.variance) * same
        if isinstance(one, Embedding):
            (r, p), (s, q) = (
                [
                    self._every_sample(v, side)
                    for v in table_rows(one, self.values[inputs1[0]][side])
                ]
                for side in (a, b)
            )
            same = (r[:, None] == s[None]) * p[:, None] * q[None]
            return (one.rate if what == "ntk" else one.variance) * same.astype(zero.dtype)
        sources = inputs1[0], inputs2[0]
        # One matrix on two activations: E z z' = total E x x'; tangents add the derivatives by it at both of its uses.
        inner = self._flattened(self.covariance(*sources, a, b), i, j, a, b)
        if what == "cov":
            return one.total * inner
        return one.total * self._flattened(of(*sources), i, j, a, b) + one.rate * inner

    def _every_sample(self, values: Array, a: int) -> Array:
        """Values (N or 1, *sizes) of batch a, in a row."""
        return jnp.broadcast_to(values, (self.setting.samples[a], *values.shape[1:])).ravel()

    def _tiles(self, a: int, b: int) -> tuple[int, int]:
        return self.setting.samples[a], self.setting.samples[b]

    def _flattened(self, x: Array, i: int, j: int, a: int, b: int) -> Array:
        """Mean over equal positions along the axes that a layer of weights sums over."""
        shape, letters, count = [], [], 0
        names = iter("cdefghijklmnopq")
        summed: list[str] = []
        for side, (index, batch) in enumerate(((i, a), (j, b))):
            flat = self.steps[index].op.flat
            shape.append(self.setting.samples[batch])
            letters.append("ab"[side])
            seen = 0
            for k, size in enumerate(self.sizes(self.steps[index].inputs[0])):
                shape.append(size)
                if k not in flat:
                    letters.append(next(names).upper())
                elif side == 0:
                    summed.append(next(names))
                    letters.append(summed[-1])
                    count = count * size if count else size
                else:
                    letters.append(summed[seen])
                    seen += 1
        if not summed:
            return x
        out = [letter for letter in letters if letter not in summed]
        x = jnp.einsum("".join(letters) + "->" + "".join(out), x.reshape(shape)) / count
        n = self.setting.samples[a] * math.prod(self.sizes(i))
        return x.reshape(n, -1)

    def _expanded(self, i: int, a: int, of: Any) -> Array:
        """A sum of linear maps of positions of what `of(source)` (N T, M) gives of each of its processes."""
        step, parts = self.steps[i], []
        for piece in step.op.pieces:
            source = step.inputs[piece.place]
            x = of(source)
            x = x.reshape(self.setting.samples[a], *self.sizes(source), -1)
            y = self._piece(step, piece, a, jnp.moveaxis(x, -1, 1))
            y = jnp.moveaxis(y, 1, -1)
            parts.append(y.reshape(-1, y.shape[-1]))
        return functools.reduce(jnp.add, parts)

    def _piece(self, step: Step, piece: Piece, a: int, x: Array) -> Array:
        """One of the maps, (N, M, *S) -> (N, M, *sizes)."""
        _, maps, where, number, given = piece
        sizes = step.op.sizes
        arrays: list = [
            None if _is_process(self.steps, k) else self.values[k][a] for k in step.inputs
        ]
        for item in maps:
            x = apply_map(item, x, arrays, self.setting.dtype)
        x = spread(x, 2, False, where, len(sizes))
        x = jnp.broadcast_to(x, (*x.shape[:2], *sizes)) * number
        for place, coded in given:
            x = x * jnp.expand_dims(to_axes(arrays[place], coded, sizes), 1)
        return x

    # --- functions ----------------------------------------------------------------------------------

    def _terms(self, i: int, a: int, place: int | None = None) -> list[_Term]:
        """Terms of a function, or of its derivative by a parameter; a process itself is one term."""
        step = self.steps[i]
        if not isinstance(step.op, Functions):
            rows = np.arange(self.setting.samples[a] * math.prod(self.sizes(i)))
            return [_Term(1.0, (_Factor(i, Function(algebra.Z), rows),))]
        terms, sizes = step.op
        plain = moments.plain_terms(terms)
        chosen: Sequence[int] = range(len(terms))
        if place is not None:
            plain, chosen = moments.derivatives(terms, place)
        out = []
        for (number, factors, alone), k in zip(plain, chosen):
            _, given, coded, _ = terms[k]
            scale = number * alone
            for at, where in given:
                array = to_axes(self.values[step.inputs[at]][a], where, sizes)
                array = jnp.broadcast_to(array, (self.setting.samples[a], *sizes))
                scale = scale * array.ravel()
            found = []
            for at, where, _ in coded:
                rows = self._rows(sizes, where, self.sizes(step.inputs[at]), a)
                found.append(_Factor(step.inputs[at], factors[at], rows))
            out.append(_Term(scale, tuple(found)))
        return out

    def _rows(self, sizes: tuple, where: Sequence[int], inner: tuple, a: int) -> np.ndarray:
        """Of each (sample, position) of a function, the one of a process that it reads."""
        grid = np.indices(sizes).reshape(len(sizes), -1) if sizes else np.zeros((0, 1), int)
        own = (
            np.ravel_multi_index([grid[k] for k in where], inner)
            if inner
            else np.zeros(grid.shape[1], int)
        )
        size = math.prod(inner)
        return (size * np.arange(self.setting.samples[a])[:, None] + own[None]).ravel()

    def _functions(self, what: str, i: int, j: int, a: int, b: int) -> Array:
        first, second = self._terms(i, a), self._terms(j, b)
        total: Scalar = 0.0
        for one, two in itertools.product(first, second):
            total = total + self._product(what, one, two, a, b)
        # Gains of constant value are trained too, and may stand in both functions: E df/dp df'/dp times their rate.
        if what == "ntk":
            for place, other in self._shared_parameters(i, j):
                changed = self._terms(i, a, place), self._terms(j, b, other)
                source = self.steps[i].inputs[place]
                rate = self.steps[source].op.rate
                for one, two in itertools.product(*changed):
                    total = total + rate * self._product("cov", one, two, a, b)
        n = self.setting.samples[a] * math.prod(self.sizes(i))
        m = self.setting.samples[b] * math.prod(self.sizes(j))
        return jnp.broadcast_to(jnp.asarray(total, self.setting.dtype), (n, m))

    def _shared_parameters(self, i: int, j: int) -> list[tuple[int, int]]:
        """Places among the inputs of both of parameters that are constant at initialisation and in both."""
        found = []
        for index in (i, j):
            step = self.steps[index]
            places: dict = {}
            for _, _, factors, alone in step.op.terms if isinstance(step.op, Functions) else ():
                for tree in [t for *_, t in factors] + ([] if alone is None else [alone]):
                    places |= {step.inputs[p]: p for p in algebra.parameters(tree)}
            found.append(places)
        return [(found[0][source], found[1][source]) for source in found[0] if source in found[1]]

    def _product(self, what: str, one: _Term, two: _Term, a: int, b: int) -> Scalar:
        """Covariance or tangent kernel of two products of functions."""
        scale = jnp.reshape(one.scale, (-1, 1)) * jnp.reshape(two.scale, (1, -1))
        pairs = [
            (u, v)
            for u, v in itertools.product(one.factors, two.factors)
            if self.roots(u.process) & self.roots(v.process)
        ]
        if len({id(u) for u, _ in pairs}) < len(pairs) or len({id(v) for _, v in pairs}) < len(
            pairs
        ):
            raise Refusal(ENTANGLED)
        parts = [self._pair(u, v, a, b) for u, v in pairs]
        for u in one.factors:
            if not any(u is p for p, _ in pairs):
                parts.append((self._factor_mean(u, a)[:, None], None, None))
        for v in two.factors:
            if not any(v is q for _, q in pairs):
                parts.append((self._factor_mean(v, b)[None], None, None))
        if what == "cov":
            return scale * functools.reduce(operator.mul, (k for k, *_ in parts), 1.0)
        total: Scalar = 0.0
        for n, (_, slope, places) in enumerate(parts):
            if places is None:
                continue
            u, v = places
            rest = scale * slope * self.tangent(u.process, v.process)[u.rows][:, v.rows]
            for m, (k, *_) in enumerate(parts):
                rest = rest if m == n else rest * k
            total = total + rest
        return total

    def _pair(self, u: _Factor, v: _Factor, a: int, b: int) -> tuple:
        """E[f(u) g(v)], E[f'(u) g'(v)]."""
        cov = self.covariance(u.process, v.process, a, b)[u.rows][:, v.rows]
        q1 = self.variance(u.process, a)[u.rows][:, None]
        q2 = self.variance(v.process, b)[v.rows][None]
        rho = cov * (kernels.inverse_sqrt(q1) * kernels.inverse_sqrt(q2))
        gaussian = self.gaussian(u.process) and self.gaussian(v.process)
        m1, m2 = None, None
        if not gaussian:
            m1, m2 = self.mean(u.process, a)[u.rows][:, None], self.mean(v.process, b)[v.rows][None]
        view = self._view(u, v, a, b, (q1[:, 0], q2[0])) if gaussian else None
        block = moments._Block(rho, q1, q2, m1, m2, None, gaussian, view)
        return (*moments._pair(u.function, v.function, block), (u, v))

    def _view(
        self, u: _Factor, v: _Factor, a: int, b: int, q: tuple[Array, Array]
    ) -> true_moments.View | None:
        """Entries at both sides, where weights that are not normal show."""
        one, two = self.entries(u.process), self.entries(v.process)
        if one is None or two is None or one.normal or two.normal or one.laws != two.laws:
            return None
        sides = []
        for m, f, side in ((one, u, a), (two, v, b)):
            x = (m.one, m.two)[side]
            sides.append(x.reshape(-1, x.shape[-1])[f.rows])
        both = Entries(sides[0], sides[1], one.laws, one.rest or two.rest, one.shared)
        seed = dict(self.setting.plan.context).get("attention_seed", 0)
        return true_moments.View(both, q, "equal", seed)

    def _factor_mean(self, u: _Factor, a: int) -> Array:
        """E f(u), (rows,)."""
        q = self.variance(u.process, a)[u.rows]
        gaussian = self.gaussian(u.process)
        mean = None if gaussian else self.mean(u.process, a)[u.rows]
        view = self._view(u, u, a, a, (q, q)) if gaussian else None
        if view is not None:
            view = view._replace(layout="same")
        block = moments._Block(jnp.ones((), q.dtype), q, q, mean, mean, None, gaussian, view)
        return moments.mean_of(u.function, block, 1)


def _flat_entries(x: Array, sizes: tuple[int, ...], flat: tuple[int, ...]) -> Array:
    """(N, T, D) with some axes of positions put among the entries."""
    x = x.reshape(x.shape[0], *sizes, x.shape[-1])
    kept = [1 + k for k in range(len(sizes)) if k not in flat]
    x = jnp.transpose(x, (0, *kept, *(1 + k for k in flat), x.ndim - 1))
    count = math.prod(x.shape[1 : 1 + len(kept)])
    return x.reshape(x.shape[0], count, -1)


ENTANGLED = (
    "a product of several functions of activations that one matrix made at different places (the gates of a recurrent "
    'network): their joint law is not followed. Take means over finite networks: otherwise="sample"'
)
