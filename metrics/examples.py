"""Scores of single examples: EL2N, GraNd, forgetting; and groups with opposing signals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metrics.estimate import Estimate, concrete


class Forgetting(NamedTuple):
    """Running counts of every example, (N,) each."""

    correct: jax.Array  # at its last look
    events: jax.Array  # looks at which it went from correct to wrong
    learned: jax.Array  # was ever correct


class Opposing(NamedTuple):
    """Two groups of examples whose losses move against each other around one step."""

    step: jax.Array  # t with the largest rise of the mean loss from t to t+1
    rise: jax.Array  # of the mean loss at that step; not positive: training never oscillated
    up: jax.Array  # (m,) ids with the largest rise, largest first
    down: jax.Array  # (m,) ids with the largest fall, largest first
    correlation: jax.Array  # over steps, of the two groups' mean loss changes: -1 when opposing
    autocorrelation: jax.Array  # lag one, of the first group's change: -1 when oscillating
    share: jax.Array  # of sum |change| at the step that the two groups carry


def el2n(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """EL2N: |softmax(f(x)) - y| of each example.

    The score is an expectation over networks early in training: average several with `over_runs`.

    Args:
        logits: (..., N, K).
        targets: (N,) integer labels, or (N, K) probabilities.

    Returns:
        (..., N), between 0 and sqrt(2).

    Raises:
        ValueError: targets do not fit the logits.

    Source: Paul, Ganguli & Dziugaite 2021, definition 2.2.
    """
    targets = jnp.asarray(targets)
    if targets.shape == logits.shape[-2:-1] and jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    if targets.shape != logits.shape[-2:]:
        raise ValueError(
            f"targets are {targets.dtype}{list(targets.shape)}; they must be integers (N,) or "
            f"(N, K) for logits (..., N, K) = {logits.shape}"
        )
    extra = tuple(range(logits.ndim - 2))
    error = jax.nn.softmax(logits) - jnp.expand_dims(targets, extra)
    return jnp.linalg.norm(error, axis=-1)


def grand(
    loss: Callable[..., jax.Array],
    params: Any,
    inputs: jax.Array,
    targets: jax.Array,
    *,
    batch_size: int = 64,
) -> jax.Array:
    """GraNd: norm of the gradient of each example's loss with respect to all parameters.

    batch_size gradients are held at once (each as large as params). An expectation over networks
    early in training, as `el2n`.

    Args:
        loss: (params, x, y) -> scalar loss of one example, x and y without batch axis.
        params: pytree of float arrays.
        inputs: (N, ...).
        targets: (N, ...).
        batch_size: examples differentiated at once.

    Returns:
        (N,) scores.

    Raises:
        ValueError: numbers of examples differ, batch_size is not positive, or loss returns an array.

    Source: Paul, Ganguli & Dziugaite 2021, definition 2.1.
    """
    if inputs.shape[0] != targets.shape[0]:
        raise ValueError(f"{inputs.shape[0]} inputs and {targets.shape[0]} targets; give one each")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be positive")
    shape = jax.eval_shape(loss, params, inputs[0], targets[0]).shape
    if shape != ():
        raise ValueError(f"loss of one example has shape {shape}; it must be a scalar")

    def score(example):
        gradient = jax.grad(loss)(params, *example)
        return jnp.sqrt(sum(jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(gradient)))

    return jax.lax.map(score, (inputs, targets), batch_size=min(batch_size, inputs.shape[0]))


def over_runs(scores: jax.Array) -> Estimate:
    """Mean over R networks (seeds) and its standard error, of scores (R, ...), R >= 2."""
    runs = scores.shape[0]
    if runs < 2:
        raise ValueError(f"scores of {runs} run: a standard error over runs needs at least 2")
    return Estimate(jnp.mean(scores, 0), jnp.std(scores, 0, ddof=1) / jnp.sqrt(runs))


def no_forgetting(num_examples: int) -> Forgetting:
    """Counts before training."""
    return Forgetting(*(jnp.zeros(num_examples, kind) for kind in (bool, jnp.int32, bool)))


def update_forgetting(state: Forgetting, ids: jax.Array, correct: jax.Array) -> Forgetting:
    """Counts after one minibatch; usable in a scan.

    Args:
        state: so far.
        ids: (B,) integers of the examples looked at, each at most once.
        correct: (B,) booleans, before this batch's update.

    Returns:
        Forgetting.

    Source: Toneva et al. 2019, algorithm 1.
    """
    correct = correct.astype(bool)
    lost = state.correct[ids] & ~correct
    return Forgetting(
        state.correct.at[ids].set(correct),
        state.events.at[ids].add(lost.astype(jnp.int32)),
        state.learned.at[ids].set(state.learned[ids] | correct),
    )


def forgetting_scores(state: Forgetting) -> jax.Array:
    """Forgetting events per example (N,); inf for an example that was never correct."""
    return jnp.where(state.learned, state.events.astype(jnp.float32), jnp.inf)


def opposing_signals(losses: jax.Array, group_size: int, *, window: int = 10) -> Opposing:
    """Examples that pull the network in opposite directions, found where training oscillates.

    At the step of the largest rise of the mean loss, the examples with the largest rises and the
    largest falls; then how the two groups' changes move together within `window` steps of it. Groups
    with opposing signals show rise > 0 and both correlations near -1; below the edge of stability the
    loss does not rise and the autocorrelation is not negative.

    Args:
        losses: (T, N) loss of every example after every full-batch step, T >= 4.
        group_size: m, examples in each group, at most N/2.
        window: steps before and after.

    Returns:
        Opposing. The correlations describe this trajectory; its steps are not independent, so no
        standard error is given.

    Raises:
        ValueError: losses is not (T, N), too short or not finite, or group_size does not fit.

    Source: Rosenfeld & Risteski 2023 (arXiv 2311.04163).
    """
    if losses.ndim != 2 or losses.shape[0] < 4:
        raise ValueError(f"losses has shape {losses.shape}; it must be (T, N) with T >= 4")
    if not 1 <= group_size <= losses.shape[1] // 2:
        raise ValueError(
            f"group_size is {group_size}; with {losses.shape[1]} examples it must be 1.."
            f"{losses.shape[1] // 2}"
        )
    values = concrete(losses)
    if values is not None and not np.isfinite(values).all():
        t, i = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"the loss of example {i} at step {t} is {values[t, i]}; stop before")
    return _opposing(losses, group_size, window)


@partial(jax.jit, static_argnames=("group_size", "window"))
def _opposing(losses, group_size, window):
    change = jnp.diff(losses, axis=0)
    step = jnp.argmax(jnp.mean(change, axis=1))
    order = jnp.argsort(change[step], descending=True)
    up, down = order[:group_size], order[::-1][:group_size]
    near = jnp.abs(jnp.arange(change.shape[0]) - step) <= window
    rise, fall = jnp.mean(change[:, up], axis=1), jnp.mean(change[:, down], axis=1)
    carried = jnp.sum(jnp.abs(change[step, up])) + jnp.sum(jnp.abs(change[step, down]))
    return Opposing(
        step,
        jnp.mean(change[step]),
        up,
        down,
        _correlation(rise, fall, near),
        _correlation(rise[1:], rise[:-1], near[1:] & near[:-1]),
        carried / jnp.sum(jnp.abs(change[step])),
    )


def gradient_cosine(loss: Callable[..., jax.Array], params: Any, one: Any, other: Any) -> jax.Array:
    """Cosine of the gradients on two groups of examples; near -1 for opposing signals.

    Args:
        loss: (params, batch) -> scalar.
        params: pytree of float arrays.
        one: batch of the first group.
        other: batch of the second.

    Returns:
        Cosine.
    """
    a, b = (jax.tree.leaves(jax.grad(loss)(params, batch)) for batch in (one, other))

    def inner(u, v):
        return sum(jnp.vdot(x, y) for x, y in zip(u, v))

    return inner(a, b) / jnp.sqrt(inner(a, a) * inner(b, b))


def _correlation(a, b, use):
    weight = use.astype(a.dtype) / jnp.sum(use)
    a, b = a - jnp.sum(weight * a), b - jnp.sum(weight * b)
    return jnp.sum(weight * a * b) / jnp.sqrt(jnp.sum(weight * a**2) * jnp.sum(weight * b**2))
