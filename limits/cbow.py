"""Word2Vec (continuous bag of words with negative sampling) at infinite width, and the finite models it is a limit of.

A word w has a vector v_w as context and u_w as target. The score of target t after the contexts c is
u_t . h with h the mean of v_c, and (v, u) descend the logistic loss of the true target against random ones.
Under muP (v_w ~ N(0, 1/n), u_w = 0, a learning rate free of the width n) all that the training uses are inner
products v_w . v_w', which are 1 for w = w' and 0 otherwise at infinite width. Orthonormal start vectors
have the same inner products, so the limit is the same algorithm at width |vocabulary| with v = identity: exact.

In the kernel limit (NTK parametrization, or a Gaussian process) the vectors do not move: the embeddings of
different words stay orthogonal, and no word is nearer to another than any third. That is `limit` untrained.

Source: Yang & Hu 2021, arXiv:2011.14522, the limit of Word2Vec; Mikolov et al. 2013, arXiv:1310.4546.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from limits.arguments import array, instance, integer, key, number, real_dtype, takes
from ntk import show
from ntk.options import check_entries
from ntk.types import Data, Float, Integer, P, PRNGKey, R, Real, Shaped, jitted


@show.readable
class Embeddings(NamedTuple):
    """Vectors of the words, at the width of their last axis.

    Attributes:
        context: (words, n), v: the embeddings that are compared and drawn.
        target: (words, n), u.
    """

    context: Float[jax.Array, "words n"]
    target: Float[jax.Array, "words n"]

    def sample(self, key: PRNGKey, width: int) -> Embeddings:
        """A model of this width that converges to this one, before, during and after training.

        Its inner products differ from these by O(width^-1/2).
        """
        shape = (self.context.shape[1], width)
        omega = jax.random.normal(key, shape, self.context.dtype) * width**-0.5
        return Embeddings(self.context @ omega, self.target @ omega)


class Windows(NamedTuple):
    """Examples in the order of training.

    Attributes:
        target: (N,), the word in the middle, as a number.
        context: (N, C), the words around it.
        mask: (N, C), 1 where there is a word, 0 where the window has run over an end.
    """

    target: Integer[jax.Array, "N"]
    context: Integer[jax.Array, "N C"]
    mask: Shaped[jax.Array, "N C"]


@takes(words=integer, dtype=real_dtype)
def limit(words: int, dtype: DTypeLike = jnp.float32) -> Embeddings:
    """The infinitely wide model at its start: v the identity, u zero, both (words, words)."""
    if words < 2:
        raise ValueError(f"words={words} must be at least 2: there is nothing to tell apart.")
    check_entries("words", words, words**2)
    return Embeddings(jnp.eye(words, dtype=dtype), jnp.zeros((words, words), dtype))


@takes(
    embeddings=instance(Embeddings, remedy=", such as cbow.limit(words)"),
    windows=instance(Windows),
    noise=array(),
    key=key,
    learning_rate=number(),
    weight_decay=number(),
    negatives=integer,
    batch_size=integer,
)
def train(
    embeddings: Embeddings,
    windows: Windows,
    noise: Real[Data, "words"],
    key: PRNGKey,
    *,
    learning_rate: float = 0.05,
    weight_decay: float = 0.001,
    negatives: int = 25,
    batch_size: int = 1,
) -> tuple[Embeddings, Float[jax.Array, "steps"]]:
    """One pass over the windows by stochastic gradient descent; finite models and the limit alike.

    The positive target and each negative one contribute g = label - sigmoid(u . h); u moves by g h and each
    context vector by sum(g u) / (number of contexts), times the learning rate. The examples of a batch are
    taken at the same parameters and their updates are summed: batch_size 1 is the algorithm of the source, a
    small one close to it and several times faster. Compiled once per shape.

    Args:
        embeddings: where to begin.
        windows: N examples; N must be a multiple of batch_size.
        noise: (words,), probability of each word as a negative target.
        key: PRNG key of the negative targets, a new one for each call. The same key gives models of all widths
            the same targets.
        learning_rate: of one example; the same at every width.
        weight_decay: both matrices shrink by 1 - learning_rate * weight_decay each step, whatever the
            batch_size.
        negatives: random targets per example.
        batch_size: examples per step.

    Returns:
        (embeddings, losses): losses (steps,), the logistic loss of a positive and its negatives, mean over
        the batch, before each step.

    Raises:
        ValueError: N not a multiple of batch_size; noise not one probability per word; no negatives; so many
            steps of weight decay that their product underflows.
    """
    count, words = windows.target.shape[0], embeddings.context.shape[0]
    if batch_size < 1 or count % batch_size or not count:
        raise ValueError(
            f"{count} windows are not a whole number of batches of {batch_size}: drop the last"
            f" {count % max(batch_size, 1)} windows or change batch_size."
        )
    if jnp.shape(noise) != (words,):
        raise ValueError(
            f"noise has shape {jnp.shape(noise)}, expected one probability for each of the"
            f" {words} words."
        )
    _check_words(windows, words)
    if not isinstance(noise, jax.core.Tracer) and not np.all(np.asarray(noise) >= 0):
        raise ValueError("noise has negative entries; it must be a probability for each word")
    if negatives < 1:
        raise ValueError(f"negatives={negatives} must be at least 1.")
    steps = count // batch_size
    if not isinstance(learning_rate, jax.Array) and steps * learning_rate * weight_decay > 60:
        raise ValueError(
            f"{steps} steps shrink the vectors by exp(-{steps * learning_rate * weight_decay:.0f}), kept as one"
            " number: train on the windows in several calls, or decrease weight_decay."
        )
    targets = _targets(key, windows.target, jnp.cumsum(jnp.asarray(noise)), negatives)
    batches = jax.tree.map(
        lambda leaf: leaf.reshape(steps, batch_size, *leaf.shape[1:]), (windows, targets)
    )
    rates = (jnp.asarray(learning_rate, embeddings.context.dtype), weight_decay)
    return _train(embeddings, batches, rates)


def _check_words(windows: Windows, words: int) -> None:
    """Refuse numbers of words that there are not: indexing would take the last word for them."""
    for name in ("target", "context"):
        numbers = getattr(windows, name)
        if not jnp.issubdtype(numbers.dtype, jnp.integer):
            raise TypeError(
                f"windows.{name} is of {numbers.dtype}; it must be integers, numbers of words"
            )
        if not isinstance(numbers, jax.core.Tracer) and numbers.size:
            low, high = int(numbers.min()), int(numbers.max())
            if low < 0 or high >= words:
                raise ValueError(
                    f"windows.{name} has numbers from {low} to {high}; they must be below the {words} words"
                )


@jitted()
def _train(
    embeddings: Embeddings, batches: tuple[Windows, jax.Array], rates: tuple[jax.Array, float]
) -> tuple[Embeddings, jax.Array]:
    rate, decay = rates
    shrink = 1 - rate * decay

    def step(
        carry: tuple[Embeddings, jax.Array], inputs: tuple[Windows, jax.Array]
    ) -> tuple[tuple[Embeddings, jax.Array], jax.Array]:
        # Decay is kept as one factor on both matrices: shrinking them would touch every word each step.
        (v, u), scale = carry
        batch, targets = inputs
        update, loss = _update(v, u, scale, targets, batch)
        scale = scale * shrink
        dv, du = (rate / scale * x for x in update)
        v, u = v.at[batch.context].add(dv), u.at[targets].add(du)
        return (Embeddings(v, u), scale), loss

    start = embeddings, jnp.ones((), embeddings.context.dtype)
    (embeddings, scale), losses = jax.lax.scan(step, start, batches)
    return jax.tree.map(lambda x: x * scale, embeddings), losses


@jitted(static_argnames="negatives")
def _targets(key: PRNGKey, positive: jax.Array, cumulative: jax.Array, negatives: int) -> jax.Array:
    """(N, 1 + negatives): the true target, then random ones. Outside of training, where all widths share it."""
    draws = jax.random.uniform(key, (positive.shape[0], negatives)) * cumulative[-1]
    random = jnp.searchsorted(cumulative, draws, side="right").astype(positive.dtype)
    return jnp.concatenate([positive[:, None], jnp.minimum(random, cumulative.size - 1)], axis=1)


def _update(
    v: jax.Array, u: jax.Array, scale: jax.Array, targets: jax.Array, batch: Windows
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """((dv (B, C, n), du (B, K, n)), loss): minus the gradients at scale * (v, u), per example."""
    share = (batch.mask / jnp.maximum(batch.mask.sum(1, keepdims=True), 1)).astype(v.dtype)
    h = scale * jnp.einsum("bc,bcn->bn", share, v[batch.context])
    chosen = scale * u[targets]
    scores = jnp.einsum("bkn,bn->bk", chosen, h)
    sign = jnp.ones_like(scores).at[:, 1:].set(-1)
    loss = jax.nn.softplus(-sign * scores).sum(1).mean()
    g = sign * jax.nn.sigmoid(-sign * scores)  # label - sigmoid(score)
    back = jnp.einsum("bk,bkn->bn", g, chosen)
    return (share[:, :, None] * back[:, None], g[:, :, None] * h[:, None]), loss


@takes(vectors=array(2))
@jitted()
def cosines(vectors: Real[jax.Array, "words n"]) -> Float[jax.Array, "words words"]:
    """Cosines (words, words) of the vectors (words, n), by which `neighbour_rank` and `analogies` judge."""
    unit = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return unit @ unit.T


def _of_words(function: Callable[P, R]) -> Callable[P, R]:
    """Refuses numbers of no words, which a compiled function would take for the last one's."""

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        near, pairs = inspect.signature(function).bind(*args, **options).args
        words = np.shape(near)[0]
        if np.shape(near) != (words, words) or words < 3:
            raise ValueError(
                f"near has the shape {np.shape(near)}; it must be (words, words), of three words or more"
            )
        if not isinstance(pairs, jax.core.Tracer):
            low, high = np.min(pairs, initial=0), np.max(pairs, initial=0)
            if low < 0 or high >= words:
                raise ValueError(
                    f"pairs has numbers from {low} to {high}; they must be from 0 to {words - 1}"
                )
        return function(*args, **options)

    return checked


@takes(near=array(2), pairs=array(2, integers=True, columns=2))
@_of_words
@jitted()
def neighbour_rank(
    near: Real[jax.Array, "words words"], pairs: Integer[jax.Array, "P 2"]
) -> Float[jax.Array, "P"]:
    """Share of the other words that are nearer to a word than its partner is: 0 is nearest, 1/2 is chance.

    Words exactly as near count half.

    Args:
        near: (words, words), from `cosines`.
        pairs: (P, 2), numbers of word and partner.

    Returns:
        (P,), in [0, 1].
    """
    rows = near[pairs[:, 0]]
    partner = jnp.take_along_axis(rows, pairs[:, 1:], axis=1)
    others = jnp.ones(rows.shape, bool).at[jnp.arange(len(pairs))[:, None], pairs].set(False)
    better = jnp.where(rows > partner, 1.0, jnp.where(rows == partner, 0.5, 0.0))
    return (better * others).sum(1) / (near.shape[1] - 2)


@takes(near=array(2), pairs=array(2, integers=True, columns=2))
@_of_words
@jitted()
def analogies(
    near: Real[jax.Array, "words words"], pairs: Integer[jax.Array, "P 2"]
) -> Float[jax.Array, "P P-1"]:
    """Whether b - a + c is nearest to d, for all ordered pairs (a, b), (c, d) of different pairs.

    The vectors are unit vectors, a, b and c are left out of the answers, and k words exactly as near as
    each other count 1/k: equal cosines, as in the kernel limit, score as a random answer does.

    Args:
        near: (words, words), from `cosines`.
        pairs: (P, 2), at least two pairs of words with the same relation.

    Returns:
        (P, P - 1), the score of each question; row: the pair (a, b).

    Raises:
        ValueError: fewer than two pairs.

    Source: Mikolov et al. 2013, arXiv:1301.3781, section 4.1.
    """
    count = len(pairs)
    if count < 2:
        raise ValueError(f"{count} pairs make no analogy: give at least 2.")
    columns = jnp.arange(count - 1)
    others = columns[None] + (
        columns[None] >= jnp.arange(count)[:, None]
    )  # every pair but the row's own
    return jax.lax.map(lambda row: _answers(near, *row), (pairs, pairs[others]))


def _answers(near: jax.Array, pair: jax.Array, others: jax.Array) -> jax.Array:
    scores = (near[pair[1]] - near[pair[0]])[None] + near[others[:, 0]]
    asked = jnp.concatenate([jnp.broadcast_to(pair, others.shape), others[:, :1]], axis=1)
    scores = scores.at[jnp.arange(len(others))[:, None], asked].set(-jnp.inf)
    best = scores >= scores.max(1, keepdims=True) - 1e-6
    right = jnp.take_along_axis(best, others[:, 1:], axis=1)[:, 0]
    return right / best.sum(1)
