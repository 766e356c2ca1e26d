"""Word2Vec: the algorithm by autodiff, the limit by inner products alone, finite widths, scores, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limits import cbow

WORDS, CONTEXT, COUNT = 9, 4, 12
OPTIONS = {"learning_rate": 0.3, "weight_decay": 0.05, "negatives": 2, "batch_size": 3}


@pytest.fixture(autouse=True, scope="module")
def unoptimised():
    """Small arrays: compilation is all there is to save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def windows(seed=0, count=COUNT):
    rng = np.random.default_rng(seed)
    mask = rng.random((count, CONTEXT)) < 0.8
    mask[0], mask[:, 0] = False, mask[:, 0] & (np.arange(count) > 0)
    target = rng.integers(0, WORDS, count)
    context = rng.integers(0, WORDS, (count, CONTEXT))
    return cbow.Windows(target.astype(np.int32), context.astype(np.int32), mask)


NOISE = np.full(WORDS, 1 / WORDS)


def test_an_epoch_by_autodiff(x64):
    """Negatives that are all one word, so that they are known; decay of every word, each step."""
    noise = np.eye(WORDS)[4]
    rng = np.random.default_rng(1)
    start = cbow.Embeddings(*jnp.asarray(rng.standard_normal((2, WORDS, 5))))
    examples = windows()
    found, losses = cbow.train(start, examples, noise, jax.random.key(0), **OPTIONS)

    @jax.jit
    @jax.value_and_grad
    def loss(embeddings, target, context, mask):
        h = (embeddings.context[context] * mask[:, None]).sum(0) / jnp.maximum(mask.sum(), 1)
        scores = embeddings.target[jnp.array([target, 4, 4])] @ h
        return jax.nn.softplus(-scores[0]) + jax.nn.softplus(scores[1:]).sum()

    expected, size = start, OPTIONS["batch_size"]
    for step in range(COUNT // size):
        batch = [
            jax.tree.map(lambda leaf, i=i: leaf[i], examples)
            for i in range(step * size, step * size + size)
        ]
        values, slopes = zip(*(loss(expected, *row) for row in batch))
        assert losses[step] == pytest.approx(np.mean(values), rel=1e-12)
        expected = jax.tree.map(
            lambda p, *g: (1 - 0.3 * 0.05) * p - 0.3 * sum(g), expected, *slopes
        )
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_only_inner_products_matter(x64):
    """Any orthonormal start, at any width from |vocabulary| up, trains as the limit does: it is exact."""
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((WORDS + 3, WORDS)))[0].T
    limit = cbow.limit(WORDS, float)
    turned = cbow.Embeddings(jnp.asarray(frame), jnp.zeros((WORDS, WORDS + 3)))
    one, two = (
        cbow.train(start, windows(), NOISE, jax.random.key(0), **OPTIONS)
        for start in (limit, turned)
    )
    np.testing.assert_allclose(two[1], one[1], atol=1e-12)
    np.testing.assert_allclose(
        two[0].context @ two[0].target.T, one[0].context @ one[0].target.T, atol=1e-12
    )
    np.testing.assert_allclose(
        two[0].context @ two[0].context.T, one[0].context @ one[0].context.T, atol=1e-12
    )
    assert not np.allclose(one[0].context @ one[0].context.T, np.eye(WORDS), atol=0.1)


@functools.partial(jax.jit, static_argnums=1)
def distances(scale, width):
    """Of the inner products of four finite models from those of the limit, by how often too large they start."""
    limit = cbow.limit(WORDS)

    def gram(start):
        v = cbow.train(start, windows(), NOISE, jax.random.key(0), **OPTIONS)[0].context
        return v @ v.T

    def distance(key):
        start = limit.sample(key, width)
        return jnp.linalg.norm(gram(start._replace(context=scale * start.context)) - gram(limit))

    return jax.vmap(distance)(jax.random.split(jax.random.key(1), 6))


def test_finite_widths_converge_and_a_wrong_scale_does_not():
    narrow, wide = 32, 4096
    right, wrong = (
        np.log(distances(b(wide), wide).mean() / distances(b(narrow), narrow).mean())
        / np.log(wide / narrow)
        for b in (lambda n: 1.0, lambda n: (n / 32) ** 0.5)  # muP, and a variance free of the width
    )
    assert right == pytest.approx(-0.5, abs=0.12)
    assert wrong > 0


def test_a_trained_limit_can_be_sampled():
    trained, _ = cbow.train(cbow.limit(WORDS), windows(), NOISE, jax.random.key(0), **OPTIONS)
    drawn = trained.sample(jax.random.key(1), 2**14)
    for a, b in ((drawn.context, trained.context), (drawn.target, trained.target)):
        np.testing.assert_allclose(a @ drawn.context.T, b @ trained.context.T, atol=0.05)


def test_negatives_follow_the_noise():
    counts = np.zeros(3)
    noise = np.array([0.5, 0.3, 0.2])
    for seed in range(3):
        drawn = cbow._targets(
            jax.random.key(seed), jnp.zeros(1000, jnp.int32), jnp.cumsum(noise), 5
        )
        assert (np.asarray(drawn[:, 0]) == 0).all()
        counts += np.bincount(np.ravel(drawn[:, 1:]), minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), noise, atol=4 * np.sqrt(0.25 / counts.sum()))


def test_scores_of_a_perfect_and_of_an_empty_embedding():
    rng = np.random.default_rng(0)
    stems = rng.standard_normal((4, 40))
    shift = 0.5 * rng.standard_normal(40)
    words = np.concatenate([stems, stems + shift, rng.standard_normal((6, 40))])
    pairs = np.stack([np.arange(4), np.arange(4) + 4], axis=1)
    near = cbow.cosines(jnp.asarray(words, jnp.float32))
    np.testing.assert_allclose(cbow.neighbour_rank(near, pairs), 0)
    np.testing.assert_allclose(cbow.analogies(near, pairs), 1)
    empty = cbow.cosines(cbow.limit(len(words)).context)
    np.testing.assert_allclose(cbow.neighbour_rank(empty, pairs), 0.5)
    np.testing.assert_allclose(cbow.analogies(empty, pairs), 1 / (len(words) - 3), rtol=1e-6)


def test_rank_counts_the_words_between():
    near = np.array([[1.0, 0.1, 0.5, 0.1, 0.0]] + [[0.0] * 5] * 4, np.float32)
    # of the three others, word 2 is nearer than word 1, word 3 as near, word 4 farther
    np.testing.assert_allclose(cbow.neighbour_rank(near, np.array([[0, 1]])), (1 + 0.5) / 3)


def test_lists_are_taken_as_the_arrays_that_they_hold():
    near, pairs = np.random.default_rng(0).normal(size=(5, 5)), [(0, 1), (2, 3), (4, 0)]
    for function in (cbow.analogies, cbow.neighbour_rank):
        found = function(near.tolist(), pairs)
        np.testing.assert_array_equal(found, function(near, np.array(pairs)))


def test_mistakes_are_named():
    start, key = cbow.limit(WORDS), jax.random.key(0)
    with pytest.raises(ValueError, match="words=1 must be at least 2"):
        cbow.limit(1)
    with pytest.raises(ValueError, match=r"drop the last 2 windows"):
        cbow.train(start, windows(), NOISE, key, batch_size=5)
    with pytest.raises(ValueError, match=r"noise has shape \(3,\), expected one .* 9 words"):
        cbow.train(start, windows(), NOISE[:3], key)
    with pytest.raises(ValueError, match="negatives=0 must be at least 1"):
        cbow.train(start, windows(), NOISE, key, negatives=0)
    with pytest.raises(ValueError, match=r"12 steps shrink the vectors by exp\(-120\)"):
        cbow.train(start, windows(), NOISE, key, learning_rate=1.0, weight_decay=10.0)
    with pytest.raises(ValueError, match="1 pairs make no analogy"):
        cbow.analogies(jnp.eye(5), np.array([[0, 1]]))
