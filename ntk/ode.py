"""An adaptive integrator of ordinary differential equations that says when it gave up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any

# Dormand & Prince 1980, table 2: stages, fifth-order weights, and their difference to the fourth.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class _Step(NamedTuple):
    time: jax.Array
    size: jax.Array
    state: PyTree
    rate: PyTree
    count: jax.Array
    mark: PyTree  # the state at mark_time, to see what a doubling of time changes
    mark_time: jax.Array
    still: jax.Array


def integrate(
    rate: Callable[[PyTree], PyTree],
    state: PyTree,
    times: jax.Array,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> PyTree:
    """Solution of ``d state / dt = rate(state)`` from time 0, by adaptive fifth-order Runge-Kutta.

    Args:
        rate: function of the state.
        state: pytree of arrays at time 0.
        times: (t,), not negative, increasing; infinity for the fixed point, reached when a doubling of
            time moves the state by less than ten tolerances.
        rtol: relative error per step.
        atol: absolute error per step.
        max_steps: steps in all, refused ones included.

    Returns:
        States at the times, stacked; NaN at those that max_steps did not reach.

    Source: Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", RK5(4)7M.
    """

    def norm(tree, y):
        scaled = jax.tree.map(lambda e, v: (e / (atol + rtol * jnp.abs(v))) ** 2, tree, y)
        total = sum(s.sum() for s in jax.tree.leaves(scaled))
        return jnp.sqrt(total / sum(v.size for v in jax.tree.leaves(y)))

    def settled(s, end):
        return jnp.isinf(end) & s.still

    def advance(s, end):
        size = jnp.minimum(s.size, end - s.time)
        rates = [s.rate]
        for row in _STAGES:
            moved = _combine(s.state, size, row, rates)
            rates.append(rate(moved))
        error = norm(_combine(None, size, _ERROR, rates), moved)
        accept = error <= 1.0
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)  # noqa: E731
        factor = jnp.where(error > 0, 0.9 * error**-0.2, 5.0)
        factor = jnp.where(jnp.isfinite(error), jnp.clip(factor, 0.2, 5.0), 0.2)
        # A step cut short by the end of the interval says nothing against the longer one.
        grown = jnp.where(accept & (size < s.size), s.size, size * factor)
        time = jnp.where(accept, jnp.where(size < s.size, end, s.time + size), s.time)
        moved = keep(moved, s.state)
        due = time >= 2 * s.mark_time
        change = norm(jax.tree.map(jnp.subtract, moved, s.mark), moved)
        mark = jax.tree.map(lambda a, b: jnp.where(due, a, b), moved, s.mark)
        return _Step(
            time,
            grown,
            moved,
            keep(rates[-1], s.rate),
            s.count + 1,
            mark,
            jnp.where(due, time, s.mark_time),
            s.still | (due & (change < 10.0)),
        )

    def until(s, end):
        busy = lambda s: (s.time < end) & (s.count < max_steps) & ~settled(s, end)  # noqa: E731
        s = lax.while_loop(busy, lambda s: advance(s, end), s)
        reached = (s.time >= end) | settled(s, end)
        return s, jax.tree.map(lambda v: jnp.where(reached, v, jnp.nan), s.state)

    first = rate(state)
    speed = norm(first, state)
    size = jnp.where(speed > 0, 0.01 / jnp.where(speed > 0, speed, 1.0), 1.0).astype(times.dtype)
    zero, count = jnp.zeros((), times.dtype), jnp.zeros((), jnp.int32)
    # At its initial speed the state would have moved by 500 tolerances at the first mark.
    start = _Step(zero, size, state, first, count, state, 5e4 * size, speed == 0)
    return lax.scan(until, start, times)[1]


def _combine(state: PyTree | None, size: jax.Array, weights: tuple, rates: list[PyTree]) -> PyTree:
    step = jax.tree.map(lambda *r: size * sum(w * v for w, v in zip(weights, r) if w), *rates)
    return step if state is None else jax.tree.map(jnp.add, state, step)
