"""Scores of single examples: EL2N, GraNd, forgetting; which to keep, wrong labels by heart, opposing signals.

    EL2N_i = |softmax(f(x_i)) - y_i|,    GraNd_i = |d loss_i / d params|

Source: Paul, Ganguli & Dziugaite 2021; Toneva et al. 2019 (forgetting); Rosenfeld & Risteski 2023, arXiv:2311.04163
(opposing signals).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from metrics import checks
from metrics.estimate import Estimate, concrete, mean_estimate, norm, power_of_two
from metrics.ranks import keep, rank_correlation, reliability
from ntk import show
from ntk.types import Bool, Data, Float, Integer, PyTree, Real, Shaped

__all__ = [
    "Forgetting",
    "Opposing",
    "el2n",
    "forgetting_scores",
    "gradient_cosine",
    "grand",
    "keep",
    "no_forgetting",
    "opposing_signals",
    "over_runs",
    "rank_correlation",
    "reliability",
    "update_forgetting",
]


@show.readable
class Forgetting(NamedTuple):
    """Running counts of every example, (N,) each."""

    correct: Bool[jax.Array, "N"]  # at its last look
    events: Integer[jax.Array, "N"]  # looks at which it went from correct to wrong
    learned: Bool[jax.Array, "N"]  # was ever correct


@show.readable
class Opposing(NamedTuple):
    """Two groups of examples whose losses move against each other up to one step."""

    # t with the largest, or the first, rise of the mean loss from t to t+1
    step: Integer[jax.Array, ""]
    rise: Float[jax.Array, ""]  # of the mean loss at that step; not positive: it never rose
    up: Integer[jax.Array, "m"]  # ids with the largest rise, largest first
    down: Integer[jax.Array, "m"]  # ids with the largest fall, largest first
    # over steps, of the two groups' mean loss changes: -1 when opposing
    correlation: Float[jax.Array, ""]
    # lag one, of the first group's change: -1 when oscillating
    autocorrelation: Float[jax.Array, ""]
    share: Float[jax.Array, ""]  # of sum |change| at the step that the two groups carry
    # whether the rise is more than rounding of the mean loss; else correlations are no evidence
    oscillates: Bool[jax.Array, ""]


@show.readable
class Memorised(NamedTuple):
    """Shares of the examples with wrong labels, which sum to 1, and of those with right ones; (...,) each.

    NaN where there are no such examples.
    """

    true: jax.Array  # wrong label, predicted as their true class
    memorised: jax.Array  # wrong label, predicted as that
    other: jax.Array  # wrong label, predicted as a third class
    labelled: jax.Array  # right label, predicted as that


def memorised(predictions: jax.Array, labels: jax.Array, clean: jax.Array) -> Memorised:
    """Whether a network has learnt wrong labels by heart, or predicts the true classes against them.

    Args:
        predictions: (..., N) integers, the predicted classes, for instance over training: (T, N).
        labels: (N,) integers, those trained on.
        clean: (N,) integers, the true ones.

    Returns:
        Memorised.

    Raises:
        TypeError: an argument holds no integers.
        ValueError: their numbers of examples differ.

    Source: Liu et al. 2020 (arXiv 2007.00151), figure 1.
    """
    given = {"predictions": predictions, "labels": labels, "clean": clean}
    predictions, labels, clean = (checks.integers(*item) for item in given.items())
    checks.check_shape("labels", labels.shape, ("N",))
    checks.same_shape(labels=labels, clean=clean)
    if predictions.shape[-1:] != labels.shape:
        raise ValueError(
            f"predictions has shape {predictions.shape}; it must be (..., {labels.size}), as labels"
        )
    shape = (1,) * (predictions.ndim - 1) + labels.shape
    labels, clean = labels.reshape(shape), clean.reshape(shape)
    wrong = labels != clean
    kept, learnt = predictions == clean, predictions == labels

    def share(hits: jax.Array, among: jax.Array) -> jax.Array:
        return (hits & among).sum(-1) / among.sum(-1)

    return Memorised(
        share(kept, wrong),
        share(learnt, wrong),
        share(~kept & ~learnt, wrong),
        share(learnt, ~wrong),
    )


def el2n(
    logits: Real[Data, "*runs N K"], targets: Integer[Data, "N"] | Real[Data, "N K"]
) -> Float[jax.Array, "*runs N"]:
    """EL2N: |softmax(f(x)) - y| of each example.

    The score is an expectation over networks early in training: average several with `over_runs`.

    Args:
        logits: (..., N, K).
        targets: (N,) integer labels, or (N, K) probabilities.

    Returns:
        (..., N), between 0 and sqrt(2); NaN inside of a trace where a label is none of 0..K-1.

    Raises:
        TypeError: logits or targets are no numbers.
        ValueError: targets do not fit the logits, or labels are not in 0..K-1.

    Source: Paul, Ganguli & Dziugaite 2021, definition 2.2.
    """
    logits, given = checks.real("logits", logits), checks.real("targets", targets)
    dtype = checks.dtype_of("targets", targets)
    if logits.ndim < 2:
        raise ValueError(f"logits has shape {logits.shape}; it must be (..., N, K)")
    rows, classes = logits.shape[-2:]
    if given.shape == (rows,) and jnp.issubdtype(dtype, jnp.integer):
        labels = checks.labels("targets", targets, rows, classes)[:, None]
        known = (labels >= 0) & (labels < classes)
        given = jnp.where(
            known, (labels == jnp.arange(classes)[None]).astype(logits.dtype), jnp.nan
        )
    if given.shape != (rows, classes):
        raise ValueError(
            f"targets are {dtype}{list(given.shape)}; they must be integers (N,) or "
            f"(N, K) for logits (..., N, K) = {logits.shape}"
        )
    extra = tuple(range(logits.ndim - 2))
    error = jax.nn.softmax(logits) - jnp.expand_dims(given, extra)
    return jnp.linalg.norm(error, axis=-1)


def grand(
    loss: Callable[..., jax.Array],
    params: PyTree,
    inputs: Shaped[Data, "N ..."],
    targets: Shaped[Data, "N ..."],
    *,
    batch_size: int = 64,
) -> Float[jax.Array, "N"]:
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
        TypeError: loss is no function of (params, x, y), batch_size no integer.
        ValueError: numbers of examples differ, batch_size is not positive, or loss returns an array.

    Source: Paul, Ganguli & Dziugaite 2021, definition 2.1.
    """
    checks.function("loss", loss, "params", "x", "y")
    for name, array in (("inputs", inputs), ("targets", targets)):
        if not np.shape(checks.real(name, array)):
            raise ValueError(f"{name} is a single number; it must be (N, ...)")
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    if inputs.shape[0] != targets.shape[0]:
        raise ValueError(f"{inputs.shape[0]} inputs and {targets.shape[0]} targets; give one each")
    if checks.integer("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be positive")
    with checks.explained("loss", params, inputs[0], targets[0]):
        shape = getattr(jax.eval_shape(loss, params, inputs[0], targets[0]), "shape", None)
    if shape != ():
        raise ValueError(f"loss of one example has shape {shape}; it must be a scalar")

    def score(example: tuple[jax.Array, jax.Array]) -> jax.Array:
        gradient = jax.grad(loss)(params, *example)
        sizes = [
            norm(g.astype(jnp.promote_types(g.dtype, jnp.float32)))
            for g in jax.tree.leaves(gradient)
        ]
        return norm(jnp.stack(sizes))

    return jax.lax.map(score, (inputs, targets), batch_size=min(batch_size, inputs.shape[0]))


def over_runs(scores: Real[Data, "R ..."]) -> Estimate:
    """Mean over R networks (seeds) and its standard error, of scores (R, ...), R >= 2."""
    scores = checks.real("scores", scores)
    runs = scores.shape[0] if scores.ndim else 1
    if runs < 2:
        raise ValueError(f"scores of {runs} run: a standard error over runs needs at least 2")
    return mean_estimate(scores)


def no_forgetting(num_examples: int) -> Forgetting:
    """Counts before training."""
    checks.integer("num_examples", num_examples, 1)
    return Forgetting(*(jnp.zeros(num_examples, kind) for kind in (bool, jnp.int32, bool)))


def update_forgetting(
    state: Forgetting, ids: Integer[Data, "B"], correct: Bool[Data, "B"]
) -> Forgetting:
    """Counts after one minibatch; usable in a scan.

    Args:
        state: so far.
        ids: (B,) integers of the examples looked at, each at most once.
        correct: (B,) booleans, before this batch's update.

    Returns:
        Forgetting.

    Raises:
        TypeError: state is no Forgetting, ids are no integers, correct no booleans.
        ValueError: shapes differ; (outside of a trace) an id is out of range, or there twice.

    Source: Toneva et al. 2019, algorithm 1.
    """
    _check_state(state)
    if not jnp.issubdtype(kind := checks.dtype_of("correct", correct), jnp.bool_):
        raise TypeError(f"correct are {kind}; they must be booleans")
    ids, correct = checks.integers("ids", ids), jnp.asarray(correct)
    checks.check_shape("ids", ids.shape, ("B",))
    checks.same_shape(ids=ids, correct=correct)
    values = concrete(ids)
    if values is not None and (values.min() < 0 or values.max() >= state.correct.size):
        raise ValueError(
            f"ids run from {values.min()} to {values.max()}; they must be 0..{state.correct.size - 1}"
        )
    if values is not None and np.unique(values).size < values.size:
        raise ValueError("ids holds an example twice; each is looked at once in a minibatch")
    lost = state.correct[ids] & ~correct
    return Forgetting(
        state.correct.at[ids].set(correct),
        state.events.at[ids].add(lost.astype(jnp.int32)),
        state.learned.at[ids].set(state.learned[ids] | correct),
    )


def forgetting_scores(state: Forgetting) -> Float[jax.Array, "N"]:
    """Forgetting events per example (N,); inf for an example that was never correct."""
    _check_state(state)
    return jnp.where(state.learned, state.events.astype(jnp.float32), jnp.inf)


def _check_state(state: Any) -> None:
    if not isinstance(state, Forgetting):
        raise TypeError(
            f"state is of type {type(state).__name__}; it must be what no_forgetting(num_examples) starts"
        )


def opposing_signals(
    losses: Real[Data, "T N"],
    group_size: int,
    *,
    window: int = 10,
    until: Literal["largest", "first"] = "largest",
) -> Opposing:
    """Examples that pull the network in opposite directions, found where training oscillates.

    At a step where the mean loss rises, the examples with the largest rises and the largest falls; then how the two
    groups' changes move together in the `window` steps up to it. Groups with opposing signals show a rise
    (`Opposing.oscillates`) and both correlations near -1. Correlations alone are no evidence: where the loss never
    rises, also below the edge of stability, groups chosen so show -.4 to -1 for both all the same (gradient descent
    that oscillates along a direction of small loss, or noise). Ask for `oscillates` first: a rise of more than four
    roundings of the mean loss in the precision of `losses`, so pass them in the precision of the training.

    Before the first rise the oscillation grows and the two groups mirror each other; the largest rise may come
    after others, whose falls move both groups together and so mix into the window.

    Args:
        losses: (T, N) loss of every example after every full-batch step, T >= 4; leave out the first steps
            (some twenty) where training begins with a rise of its own.
        group_size: m, examples in each group, at most N/2.
        window: steps before the step.
        until: "largest" rise of the mean loss, or the "first" one that is no rounding; where there is none, the
            largest change.

    Returns:
        Opposing. The correlations describe this trajectory; its steps are not independent, so no
        standard error is given.

    Raises:
        TypeError: losses are no numbers, group_size or window no integer.
        ValueError: losses is not (T, N), too short or not finite, group_size does not fit, or until is another word.

    Source: Rosenfeld & Risteski 2023 (arXiv 2311.04163).
    """
    losses = checks.real("losses", losses)
    checks.choice("until", until, ("largest", "first"))
    checks.integer("window", window, 1)
    if losses.ndim != 2 or losses.shape[0] < 4:
        raise ValueError(f"losses has shape {losses.shape}; it must be (T, N) with T >= 4")
    if not 1 <= checks.integer("group_size", group_size) <= losses.shape[1] // 2:
        raise ValueError(
            f"group_size is {group_size}; with {losses.shape[1]} examples it must be 1.."
            f"{losses.shape[1] // 2}"
        )
    values = concrete(losses)
    if values is not None and not np.isfinite(values).all():
        t, i = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"the loss of example {i} at step {t} is {values[t, i]}; stop before")
    return _opposing(losses, group_size, window, until)


@partial(jax.jit, static_argnames=("group_size", "window", "until"))
def _opposing(losses: jax.Array, group_size: int, window: int, until: str) -> Opposing:
    unit = power_of_two(losses)
    losses = losses / unit
    change = jnp.diff(losses, axis=0)
    rises = jnp.mean(change, axis=1)
    step = jnp.argmax(rises)
    # Where training has converged the mean loss rises by a rounding now and then.
    rising = rises > 4 * jnp.finfo(losses.dtype).eps * jnp.mean(jnp.abs(losses[:-1]), axis=1)
    if until == "first":
        step = jnp.where(rising.any(), jnp.argmax(rising), step)
    order = jnp.argsort(change[step], descending=True)
    up, down = order[:group_size], order[::-1][:group_size]
    before = step - jnp.arange(change.shape[0])
    near = (before >= 0) & (before <= window)
    rise, fall = jnp.mean(change[:, up], axis=1), jnp.mean(change[:, down], axis=1)
    carried = jnp.sum(jnp.abs(change[step, up])) + jnp.sum(jnp.abs(change[step, down]))
    return Opposing(
        step,
        jnp.mean(change[step]) * unit[0, 0],
        up,
        down,
        _correlation(rise, fall, near),
        _correlation(rise[1:], rise[:-1], near[1:] & near[:-1]),
        carried / jnp.sum(jnp.abs(change[step])),
        rising[step],
    )


def gradient_cosine(
    loss: Callable[..., jax.Array], params: PyTree, one: Any, other: Any
) -> Float[jax.Array, ""]:
    """Cosine of the gradients on two groups of examples; near -1 for opposing signals.

    Args:
        loss: (params, batch) -> scalar.
        params: pytree of float arrays.
        one: batch of the first group.
        other: batch of the second.

    Returns:
        Cosine; NaN where a gradient is zero.

    Raises:
        TypeError: loss is no function of params and batch.
        ValueError: a parameter is not floating point, or the loss is not a scalar.
    """
    checks.function("loss", loss, "params", "batch")
    checks.check_params(params)
    for batch in (one, other):
        checks.check_loss(loss, params, batch)
    a, b = (ravel_pytree(jax.grad(loss)(params, batch))[0] for batch in (one, other))
    a, b = (g.astype(jnp.promote_types(g.dtype, jnp.float32)) for g in (a, b))
    return jnp.sum((a / norm(a)) * (b / norm(b)))


def _correlation(a: jax.Array, b: jax.Array, use: jax.Array) -> jax.Array:
    weight = use.astype(a.dtype) / jnp.sum(use)
    a, b = a - jnp.sum(weight * a), b - jnp.sum(weight * b)
    return jnp.sum(weight * a * b) / jnp.sqrt(jnp.sum(weight * a**2) * jnp.sum(weight * b**2))
