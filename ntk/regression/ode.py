"""An adaptive integrator of ordinary differential equations that says when it gave up.

Gradients in reverse mode are those of the steps that were taken, with their sizes held: states are kept
every sqrt(max_steps) steps, and what lies between is computed again on the way back. (The adjoint equation
would integrate the state backwards, and gradient flow is unstable in that direction.)

A step of size h of dy/dt = rate(y) goes through stages k_i = rate(y + h sum_j a_ij k_j) of fifth order; the error is
h sum_i e_i k_i, the difference to the solution of fourth order, and the next size h (error)^(-1/5) times .9.

Source: Dormand & Prince 1980, RK5(4)7M.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ntk.types import PyTree

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


_SLIDING = 1e-3
"""Tolerance where the state slides along a jump of its rate."""


class _Settings(NamedTuple):
    rtol: float
    atol: float
    max_steps: int


class _Step(NamedTuple):
    time: jax.Array
    size: jax.Array
    state: PyTree
    rate: PyTree
    tried: jax.Array  # steps so far
    mark: PyTree  # the state at mark_time, to see what a doubling of time changes
    mark_time: jax.Array
    still: jax.Array
    aim: jax.Array  # number of the time that is aimed at
    refused: tuple[jax.Array, jax.Array]  # size and error of the last attempt, 0 if it was accepted
    slides: jax.Array  # along a jump of the rate
    euler: jax.Array  # whether the last step was one of Euler's


class Path(NamedTuple):
    """States at the times, stacked, NaN where `reached`, (t,), is False."""

    states: PyTree
    reached: jax.Array


def integrate(
    rate: Callable[[PyTree], PyTree],
    state: PyTree,
    times: jax.Array,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
) -> Path:
    """Solution of ``d state / dt = rate(state)`` from time 0, by adaptive fifth-order Runge-Kutta.

    Args:
        rate: function of the state. It may jump: where the solution slides along a jump, steps are
            Euler's, the last time divided by max_steps / 2 long; so is their error.
        state: pytree of arrays at time 0.
        times: (t,), not negative, increasing; infinity for the fixed point, reached when a doubling of
            time moves the state by less than ten tolerances.
        rtol: relative error per step.
        atol: absolute error per step.
        max_steps: steps in all, refused ones included.

    Returns:
        A `Path`; differentiable in reverse mode, also by what rate closes over.

    Source: Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", RK5(4)7M.
    """
    rate, constants = jax.closure_convert(rate, state)
    return _integrate(rate, _Settings(rtol, atol, max_steps), state, times, constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _integrate(
    rate: Callable[..., PyTree],
    settings: _Settings,
    state: PyTree,
    times: jax.Array,
    constants: Sequence[jax.Array],
) -> Path:
    def body(carry: tuple[_Step, PyTree]) -> tuple[_Step, PyTree]:
        s, states = carry
        return _iterate(rate, settings, s, times, constants), _written(states, s, times)

    s = _first(rate, settings, state, times, constants)
    carry = (s, _room(state, len(times)))
    s, states = lax.while_loop(lambda c: _busy(settings, c[0], times), body, carry)
    return _path(states, s, times)


def _forward(
    rate: Callable[..., PyTree],
    settings: _Settings,
    state: PyTree,
    times: jax.Array,
    constants: Sequence[jax.Array],
) -> tuple[Path, tuple]:
    """The path, and the steps at multiples of the stride."""
    stride = _stride(settings, times)

    def body(carry: tuple) -> tuple:
        s, states, kept, count = carry
        slot = jnp.where(count % stride == 0, count // stride, stride)  # out of range: not kept
        kept = jax.tree.map(lambda a, v: a.at[slot].set(v, mode="drop"), kept, s)
        s, states = _iterate(rate, settings, s, times, constants), _written(states, s, times)
        return s, states, kept, count + 1

    s = _first(rate, settings, state, times, constants)
    carry = (s, _room(state, len(times)), _room(s, stride), jnp.zeros((), jnp.int32))
    busy = lambda c: _busy(settings, c[0], times)  # noqa: E731
    s, states, kept, count = lax.while_loop(busy, body, carry)
    path = _path(states, s, times)
    return path, (path, kept, count, times, constants)


def _backward(
    rate: Callable[..., PyTree], settings: _Settings, saved: tuple, cotangents: Path
) -> tuple:
    path, kept, count, times, constants = saved
    stride = _stride(settings, times)
    given = jax.tree.map(lambda g: jnp.where(_rows(path.reached, g), g, 0), cotangents.states)

    def replayed(s: _Step, _: None) -> tuple:
        new = _iterate(rate, settings, s, times, constants)
        going = _busy(settings, s, times)
        return _where(going, new, s), (s, new, going)

    def back(carry: tuple, step: tuple) -> tuple:
        s, new, going = step
        state_bar, constants_bar = carry
        moved = going & (new.time > s.time)
        written = going & (new.aim > s.aim)
        extra = jax.tree.map(lambda g: jnp.where(written, g[s.aim], 0), given)
        state_bar = jax.tree.map(jnp.add, state_bar, extra)
        size = jnp.where(moved, new.time - s.time, 0)

        def once(y: PyTree, c: Sequence[jax.Array]) -> PyTree:
            # The step that was taken, with its size as a constant; the error estimate decides sizes alone.
            first = rate(y, *c)
            plain = _combine(y, size, (1.0,), [first])
            return _where(new.euler, plain, _stages(rate, y, first, size, c)[0])

        _, pullback = jax.vjp(once, s.state, constants)
        before, part = pullback(state_bar)
        constants_bar = jax.tree.map(lambda a, b: a + jnp.where(moved, b, 0), constants_bar, part)
        return (_where(moved, before, state_bar), constants_bar), None

    def segment(carry: tuple) -> tuple:
        k, bars = carry
        start = jax.tree.map(lambda a: a[k], kept)
        steps: tuple = lax.scan(replayed, start, None, stride)[1]
        return k - 1, lax.scan(back, bars, steps, reverse=True)[0]

    zeros = jax.tree.map(jnp.zeros_like, (jax.tree.map(lambda v: v[0], path.states), constants))
    last = (count + stride - 1) // stride - 1
    _, (state_bar, constants_bar) = lax.while_loop(lambda c: c[0] >= 0, segment, (last, zeros))
    states = jax.tree.map(lambda v: jnp.where(_rows(path.reached, v), v, 0), path.states)
    # d state(t) / dt is the rate there; a fixed point does not move with its time.
    rates = jax.vmap(lambda y: rate(y, *constants))(states)
    speed = jax.tree.map(lambda g, r: (g * r).reshape(len(times), -1).sum(1), given, rates)
    speed = jnp.where(jnp.isinf(times), 0, sum(jax.tree.leaves(speed)))
    return state_bar, speed, constants_bar


_integrate.defvjp(_forward, _backward)


def _first(
    rate: Callable[..., PyTree],
    settings: _Settings,
    state: PyTree,
    times: jax.Array,
    constants: Sequence[jax.Array],
) -> _Step:
    first = rate(state, *constants)
    speed = _norm(settings, first, state)
    # In it the state moves by .01 tolerances; from there sizes grow up to fivefold a step.
    size = jnp.where(speed > 0, 0.01 / jnp.where(speed > 0, speed, 1.0), 1.0).astype(times.dtype)
    zero, count = jnp.zeros((), times.dtype), jnp.zeros((), jnp.int32)
    # At its initial speed the state would have moved by 500 tolerances at the first mark.
    mark = (state, 5e4 * size, speed == 0)
    return _Step(zero, size, state, first, count, *mark, count, (zero, zero), zero > 0, zero > 0)


def _end(s: _Step, times: jax.Array) -> jax.Array:
    return times[jnp.minimum(s.aim, len(times) - 1)]


def _arrived(s: _Step, end: jax.Array) -> jax.Array:
    return (s.time >= end) | (jnp.isinf(end) & s.still)


def _busy(settings: _Settings, s: _Step, times: jax.Array) -> jax.Array:
    going = (s.tried < settings.max_steps) | _arrived(s, _end(s, times))
    return (s.aim < len(times)) & going


def _iterate(
    rate: Callable[..., PyTree],
    settings: _Settings,
    s: _Step,
    times: jax.Array,
    constants: Sequence[jax.Array],
) -> _Step:
    """One step towards the next time; or, where that is reached, on to the one after it."""
    end = _end(s, times)
    moved = _advance(rate, settings, s, times, constants)
    return _where(_arrived(s, end), s._replace(aim=s.aim + 1), moved)


def _advance(
    rate: Callable[..., PyTree],
    settings: _Settings,
    s: _Step,
    times: jax.Array,
    constants: Sequence[jax.Array],
) -> _Step:
    end = _end(s, times)
    size = jnp.minimum(s.size, end - s.time)
    moved, last, error = _stages(rate, s.state, s.rate, size, constants)
    error = _norm(settings, error, moved)
    least = 2 * jnp.max(jnp.where(jnp.isinf(times), 0, times)) / settings.max_steps
    short = (size <= least) & jnp.isfinite(end)
    slides = s.slides | (short & _jumps(s, size, error))
    # Many short steps: a fifth of one says whether it is for a jump, or for stiffness.
    spent = (s.tried > settings.max_steps // 10) & (s.tried % 61 == 0)
    probe = spent & short & ~slides & (error > 0.01)
    rough = slides & short & (error > 1.0) & (error * settings.rtol <= _SLIDING)
    accept = ((error <= 1.0) | rough) & ~probe
    # The weights of the stages are not all positive: they would hold on to a jump that the solution leaves.
    straight = lambda: _euler(rate, s.state, s.rate, size, constants)  # noqa: E731
    moved, last = lax.cond(rough, straight, lambda: (moved, last))
    factor = jnp.where(error > 0, 0.9 * error**-0.2, 5.0)
    factor = jnp.where(jnp.isfinite(error), jnp.clip(factor, 0.2, 5.0), 0.2)
    # A step cut short by the end of the interval says nothing against the longer one.
    grown = jnp.where(accept & (size < s.size), s.size, size * factor)
    grown = jnp.where(rough, least, jnp.where(probe, size / 5, grown))
    time = jnp.where(accept, jnp.where(size < s.size, end, s.time + size), s.time)
    moved, last = _where(accept, (moved, last), (s.state, s.rate))
    # Still: from mark to twice its time the state moved by less than ten tolerances.
    due = time >= 2 * s.mark_time
    change = _norm(settings, jax.tree.map(jnp.subtract, moved, s.mark), moved)
    return _Step(
        time,
        grown,
        moved,
        last,
        s.tried + 1,
        _where(due, moved, s.mark),
        jnp.where(due, time, s.mark_time),
        s.still | (due & (change < 10.0)),
        s.aim,
        _where(accept, (jnp.zeros_like(size), jnp.zeros_like(error)), (size, error)),
        slides,
        rough,
    )


def _jumps(s: _Step, size: jax.Array, error: jax.Array) -> jax.Array:
    """Whether the error falls with the size like the first power, as across a jump, not like the fifth."""
    old_size, old_error = s.refused
    known = (old_size > size) & (old_error > 0) & (error > 0)
    # An error of order size^p falls by ratio^p: p = 1 across a jump, 5 of a smooth rate; 2 lies between.
    drop = jnp.where(known, old_error / jnp.where(known, error, 1.0), 1.0)
    ratio = jnp.where(known, old_size / jnp.where(size > 0, size, 1.0), 1.0)
    return known & (drop < ratio**2)


def _stages(
    rate: Callable[..., PyTree],
    state: PyTree,
    first: PyTree,
    size: jax.Array,
    constants: Sequence[jax.Array],
) -> tuple[PyTree, PyTree, PyTree]:
    """The state after a step, its rate, and the estimate of the error."""
    rates = [first]
    for row in _STAGES:
        moved = _combine(state, size, row, rates)
        rates.append(rate(moved, *constants))
    return moved, rates[-1], _combine(None, size, _ERROR, rates)


def _euler(
    rate: Callable[..., PyTree],
    state: PyTree,
    first: PyTree,
    size: jax.Array,
    constants: Sequence[jax.Array],
) -> tuple[PyTree, PyTree]:
    moved = _combine(state, size, (1.0,), [first])
    return moved, rate(moved, *constants)


def _norm(settings: _Settings, tree: PyTree, y: PyTree) -> jax.Array:
    # Mean square of the errors in units of their tolerances: at most 1 is accepted.
    scale = lambda v: settings.atol + settings.rtol * jnp.abs(v)  # noqa: E731
    scaled = jax.tree.map(lambda e, v: (e / scale(v)) ** 2, tree, y)
    total = sum(s.sum() for s in jax.tree.leaves(scaled))
    return jnp.sqrt(total / sum(v.size for v in jax.tree.leaves(y)))


def _stride(settings: _Settings, times: jax.Array) -> int:
    # So many states are kept, and so many steps between two of them computed again: memory of both is least.
    return math.isqrt(settings.max_steps + len(times)) + 1


def _room(tree: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda v: jnp.zeros((count, *v.shape), v.dtype), tree)


def _written(states: PyTree, s: _Step, times: jax.Array) -> PyTree:
    """States with the one of the time that is reached; another is not written."""
    at = jnp.where(_arrived(s, _end(s, times)), s.aim, len(times))
    return jax.tree.map(lambda a, v: a.at[at].set(v, mode="drop"), states, s.state)


def _path(states: PyTree, s: _Step, times: jax.Array) -> Path:
    reached = jnp.arange(len(times)) < s.aim
    missing = lambda v: jnp.where(_rows(reached, v), v, jnp.nan)  # noqa: E731
    return Path(jax.tree.map(missing, states), reached)


def _rows(mask: jax.Array, v: jax.Array) -> jax.Array:
    return mask.reshape(-1, *(1,) * (v.ndim - 1))


def _where(condition: jax.Array, one: PyTree, two: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, two)


def _combine(state: PyTree | None, size: jax.Array, weights: tuple, rates: list[PyTree]) -> PyTree:
    step = jax.tree.map(lambda *r: size * sum(w * v for w, v in zip(weights, r) if w), *rates)
    return step if state is None else jax.tree.map(jnp.add, state, step)
