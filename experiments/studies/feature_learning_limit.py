"""A parametrization either learns features or is a kernel machine, and the former can be trained in its limit.

Yang & Hu 2021 in four parts: the dynamical dichotomy of abc-parametrizations; finite networks against their
explicit limits; Word2Vec and first-order MAML in the limit. The controls are the kernel limit, which must fail
what needs features, and Word2Vec on a text whose words are shuffled.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import limits
from experiments import losses, tasks
from experiments.loop import Session
from experiments.studies import feature_learning_limit_networks as networks
from experiments.studies.feature_learning_limit_claims import claims
from experiments.studies.feature_learning_limit_figures import figures
from experiments.tasks import few_shot, word_pairs
from limits import cbow
from limits import feature_learning as one_layer

TITLE = "Feature learning at infinite width"
PAPER = "Yang & Hu 2021, arXiv:2011.14522; pi-nets: Yang, Santacroce, Hu 2022"

__all__ = ["PAPER", "TITLE", "claims", "figures", "run", "total_steps"]


def total_steps(config: Any) -> int:
    """Steps of the progress bar, one for each result that is kept on disk."""
    return (
        len(config.dichotomy.widths)
        + len(config.convergence.systems)
        + 1  # pi-nets
        + len(config.words.seeds)
        + len(config.few_shot.backgrounds) * len(config.few_shot.seeds)
    )


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/feature_learning_limit.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: an unknown rule or system, fewer than three widths, too few images for the pi-nets, a text without
            pairs of words.
    """
    session = session or Session()
    _check(config)
    task = tasks.load(config.task)
    parts = (
        networks.dichotomy(config, task, session),
        networks.convergence(config, task, session),
        networks.pi_nets(config, task, session),
        _words(config, session),
        _few_shot(config, task, session),
    )
    few = config.few_shot
    return xr.merge(parts).assign_attrs(task=config.task.name, ways=few.ways, shots=few.shots)


def _check(config: Any) -> None:
    for name in set(config.convergence.systems) - set(networks.SYSTEMS):
        raise ValueError(f"unknown system {name!r}; there are: {'; '.join(networks.SYSTEMS)}")
    for name in config.dichotomy.rules:
        limits.named_rule(networks.RULES.get(name, name))
    for name in ("dichotomy", "convergence", "words"):
        widths = tuple(config[name].widths)
        if len(set(widths)) < 3:
            raise ValueError(f"{name}.widths={widths} must be three or more, to fit an exponent")


# Word2Vec


def scores(source: word_pairs.Corpus, vectors: jax.Array) -> tuple[float, float]:
    """(rank of the partner by cosine, mean over pairs; share of analogies that are right, mean over questions)."""
    near, pairs = cbow.cosines(vectors), list(source.relations.values())
    ranks = cbow.neighbour_rank(near, np.concatenate(pairs))
    right = [np.ravel(cbow.analogies(near, p)) for p in pairs]
    return float(np.mean(ranks)), float(np.concatenate(right).mean())


def _words(config: Any, session: Session) -> xr.Dataset:
    part = config.words
    source = word_pairs.corpus(part.data_dir, part.vocabulary, part.analogies)
    noise = jnp.asarray(source.frequency**0.75)
    untrained = cbow.limit(len(source.words))
    columns = [*part.widths, 0]  # 0 is the limit
    shape = (len(part.seeds), len(columns))
    measured = {name: np.full(shape, np.nan) for name in ("rank", "analogy", "gram")}
    shuffled = {"rank": [], "analogy": []}
    pictures = None
    for s, seed in enumerate(part.seeds):
        train = functools.partial(_word_run, part, source, noise, untrained, seed)
        found = networks.kept(session, f"words-{seed}", train)
        for name, values in measured.items():
            values[s] = found[name]
        for name, values in shuffled.items():
            values.append(found[f"shuffled_{name}"])
        pictures = found["plane"] if pictures is None else pictures
    kernel = scores(source, untrained.context)
    law = networks.fit(part.widths, measured["gram"][:, :-1])
    shown, group = _shown(source)
    labels = [f"width {n}" for n in _pictured(part)] + ["limit", "kernel limit"]
    return xr.Dataset(
        {
            "word_rank": (("word_seed", "word_width"), measured["rank"]),
            "analogy": (("word_seed", "word_width"), measured["analogy"]),
            "gram_distance": (("word_seed", "word_width"), measured["gram"]),
            "gram_slope": law.exponent,
            "gram_slope_interval": ("end", law.exponent_interval),
            "shuffled_rank": ("word_seed", np.array(shuffled["rank"], float)),
            "shuffled_analogy": ("word_seed", np.array(shuffled["analogy"], float)),
            "kernel_rank": kernel[0],
            "kernel_analogy": kernel[1],
            "plane": (("panel", "word", "axis"), pictures),
            "vocabulary": len(source.words),
            "pairs": sum(map(len, source.relations.values())),
        },
        {
            "word_width": columns,
            "word_seed": list(part.seeds),
            "panel": labels,
            "word": [source.words[partner] for _, partner in shown],
            "group": ("word", group),
        },
    )


def _word_run(part, source, noise, untrained, seed) -> dict[str, Any]:
    """Scores of every width and of the limit for one seed, trained on the same examples and random targets."""
    thinned = {"epochs": part.epochs, "subsample": part.subsample, "multiple": part.batch_size}

    def windows(text):
        return cbow.Windows(*word_pairs.windows(text, part.window, seed, **thinned))

    examples = windows(source)
    init, draws = jax.random.split(jax.random.key(seed))
    options = {
        "learning_rate": part.learning_rate,
        "weight_decay": part.weight_decay,
        "negatives": part.negatives,
        "batch_size": part.batch_size,
    }
    limit = cbow.train(untrained, examples, noise, draws, **options)[0].context
    # The control: the same words as often, in an order that says nothing about them.
    order = np.random.default_rng([seed, 1]).permutation(source.ids)
    mixed = windows(source._replace(ids=order))
    wrong = scores(source, cbow.train(untrained, mixed, noise, draws, **options)[0].context)
    shown, _ = _shown(source)
    found = {"shuffled_rank": wrong[0], "shuffled_analogy": wrong[1]}
    found |= {"rank": [], "analogy": [], "gram": [], "plane": []}
    for number, width in enumerate((*part.widths, 0)):
        vectors = limit
        if width:
            start = networks.sample(untrained, jax.random.fold_in(init, number), width)
            vectors = cbow.train(start, examples, noise, draws, **options)[0].context
        rank, analogy = scores(source, vectors)
        found["rank"].append(rank)
        found["analogy"].append(analogy)
        found["gram"].append(_gram_distance(vectors, limit))
        if width in (*_pictured(part), 0):
            found["plane"].append(_plane(vectors, shown))
    still = networks.sample(untrained, init, max(part.widths)).context
    found["plane"].append(_plane(still, shown))
    return found


@jax.jit
def _gram_distance(vectors, limit):
    """Norm of the difference of the inner products of all words, over that of the limit's."""
    goal = limit @ limit.T
    return jnp.linalg.norm(vectors @ vectors.T - goal) / jnp.linalg.norm(goal)


def _pictured(part) -> tuple[int, ...]:
    return part.widths[len(part.widths) // 3], part.widths[-1]


def _shown(source: word_pairs.Corpus, most: int = 30) -> tuple[np.ndarray, list[str]]:
    """Pairs (P, 2) of the two largest relations, and the name of each one's relation."""
    largest = sorted(source.relations, key=lambda name: -len(source.relations[name]))[:2]
    parts = {name: source.relations[name][:most] for name in largest}
    return np.concatenate(list(parts.values())), [n for n, pairs in parts.items() for _ in pairs]


def _plane(vectors: jax.Array, pairs: np.ndarray) -> np.ndarray:
    """First two principal components (P, 2) of the differences of the unit vectors of each pair."""
    words = np.asarray(vectors)
    words = words / np.linalg.norm(words, axis=1, keepdims=True)
    steps = words[pairs[:, 1]] - words[pairs[:, 0]]
    left, sizes, _ = np.linalg.svd(steps - steps.mean(axis=0), full_matrices=False)
    return left[:, :2] * sizes[:2]


# First-order MAML on digits: half of the digits to meta-train on, the other half to be tested on
META_TRAIN, META_TEST = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)


def _few_shot(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part = config.few_shot
    data = tasks.Data(*(np.concatenate(leaves) for leaves in zip(task.train, task.test)))
    shape = (len(part.backgrounds), len(part.seeds))
    columns = [*part.widths, 0]
    limit = np.full((*shape, len(columns)), np.nan)
    kernel = np.full((*shape, len(part.kernel_rates), 2), np.nan)
    for b, background in enumerate(part.backgrounds):
        for s, seed in enumerate(part.seeds):
            train = functools.partial(_few_shot_run, part, data, background, seed)
            found = networks.kept(session, f"few-shot-{b}-{seed}", train)
            limit[b, s], kernel[b, s] = found["accuracy"], found["kernel"]
    dims = ("background", "few_seed")
    return xr.Dataset(
        {
            "few_accuracy": ((*dims, "few_width"), limit),
            "few_kernel": ((*dims, "kernel_rate", "trained"), kernel),
        },
        {
            "background": list(part.backgrounds),
            "few_seed": list(part.seeds),
            "few_width": columns,
            "kernel_rate": list(part.kernel_rates),
            "trained": [0, 1],
        },
    )


def _few_shot_run(part, data, background, seed) -> dict[str, Any]:
    """Accuracy on new digits of every width, of the limit (last), and of the kernel limit before and after training."""
    x, labels = few_shot.images(data, META_TRAIN, background, seed)
    x_test, labels_test = few_shot.images(data, META_TEST, background, seed + 10_000)
    sizes = part.ways, part.shots, part.queries
    train, test = (
        one_layer.Episodes(*few_shot.episodes(names, shape, *sizes, seed))
        for names, shape in ((labels, (part.steps, part.tasks)), (labels_test, (part.test_tasks,)))
    )
    options = {"outer_rate": part.outer_rate, "clip": part.clip}

    def accuracy(net, rate):
        steps = {"inner_rate": rate, "inner_steps": part.test_steps}
        outputs = one_layer.adapted_outputs(net, x_test, test, **steps)
        return losses.accuracy(outputs, test.query_labels)

    def trained(net, rate):
        return one_layer.meta_train(net, x, train, inner_rate=rate, **options)[0]

    limit = networks.linear_limit(x.shape[1], part.ways)
    key = jax.random.key(seed)
    nets = [networks.sample(limit, jax.random.fold_in(key, n), n) for n in part.widths]
    start = one_layer.kernel_limit(x.shape[1], part.ways)
    rates = [part.inner_rate * factor for factor in part.kernel_rates]
    return {
        "accuracy": [
            accuracy(trained(net, part.inner_rate), part.inner_rate) for net in [*nets, limit]
        ],
        "kernel": [
            [accuracy(net, rate) for net in (start, trained(start, rate))] for rate in rates
        ],
    }
