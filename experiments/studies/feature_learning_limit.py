"""A parametrization either learns features or is a kernel machine, and the former can be trained in its limit.

Yang & Hu 2021 in four parts: the dynamical dichotomy of abc-parametrizations; finite networks against their
explicit limits; Word2Vec and first-order MAML in the limit. The controls are the kernel limit, which must fail
what needs features, and Word2Vec on a text whose words are shuffled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import limits
from experiments import checks, losses, tasks
from experiments.fits import power_law
from experiments.grid import Axis, Program, Variable, array, train_grid
from experiments.loop import Session
from experiments.studies import feature_learning_limit_networks as networks
from experiments.studies.feature_learning_limit_claims import claims
from experiments.studies.feature_learning_limit_figures import figures
from experiments.tasks import few_shot, word_pairs
from limits import cbow
from limits import feature_learning as one_layer

TITLE = "Feature learning at infinite width"
PAPER = "Yang & Hu 2021, arXiv:2011.14522; pi-nets: Yang, Santacroce, Hu 2022"

__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]


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
    task = tasks.load(config.task)
    check(config, task)
    parts = (
        networks.dichotomy(config, task, session),
        networks.convergence(config, task, session),
        networks.pi_nets(config, task, session),
        _words(config, session),
        _few_shot(config, task, session),
    )
    few = config.few_shot
    return xr.merge(parts).assign_attrs(task=config.task.name, ways=few.ways, shots=few.shots)


RULES = {
    "dichotomy.rules": checks.several(checks.choice((*networks.RULES, *limits.exponents.RULES))),
    "dichotomy.depth": checks.DEPTH,
    "convergence.systems": checks.several(checks.choice(networks.SYSTEMS)),
    "convergence.population": checks.whole(),
    "convergence.pi.rank": checks.whole(1, 10**4),
    "convergence.pi.hidden_layers": checks.whole(1, 100),
    "convergence.pi.learning_rate": checks.positive(),
    "convergence.pi.steps": checks.STEPS,
    "convergence.pi.batch_size": checks.whole(),
    "words.vocabulary": checks.whole(8, 10**7),
    "words.epochs": checks.whole(1, 10**4),
    "words.window": checks.whole(1, 1000),
    "words.subsample": checks.positive(),
    "words.negatives": checks.whole(),
    "words.weight_decay": checks.real(0),
    "words.batch_size": checks.whole(),
    **{
        f"{part}.learning_rate": checks.positive() for part in ("dichotomy", "convergence", "words")
    },
    **{f"{part}.widths": checks.widths(3) for part in ("dichotomy", "convergence", "words")},
    **{
        f"{part}.{key}": rule
        for part in ("dichotomy", "convergence")
        for key, rule in (
            ("num_train", checks.whole()),
            ("num_test", checks.whole()),
            ("steps", checks.STEPS),
        )
    },
    **{f"{part}.seeds": checks.SEEDS for part in ("dichotomy", "convergence", "words", "few_shot")},
    "few_shot.backgrounds": checks.several(checks.real(0), ascending=True),
    "few_shot.widths": checks.widths(),
    "few_shot.ways": checks.whole(2, 20),
    **{
        f"few_shot.{key}": checks.whole()
        for key in ("shots", "queries", "steps", "tasks", "test_tasks", "test_steps")
    },
    **{f"few_shot.{key}": checks.positive() for key in ("inner_rate", "outer_rate", "clip")},
    "few_shot.kernel_rates": checks.several(checks.positive()),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.classes(task)
    if task.train.x.ndim != 2:
        raise ValueError(
            f"config.task: inputs of {task.name} have shape {task.input_shape}; expected vectors, flatten=True"
        )
    pi, there = config.convergence.pi, len(task.train.x)
    if pi.steps * pi.batch_size > there:
        raise ValueError(
            f"config.convergence.pi: {pi.steps} batches of {pi.batch_size} need more than the {there} examples:"
            " decrease pi.steps or pi.batch_size, or take more by task.num_train"
        )
    for path, data in (("num_train", task.train), ("num_test", task.test)):
        for name in ("dichotomy", "convergence"):
            checks.whole(1, len(data.x))(f"{name}.{path}", config[name][path])
    _check_sizes(config, task)
    _check_few_shot(config.few_shot, task)
    part = config.words
    source = checks.context(
        "words", word_pairs.corpus, part.data_dir, part.vocabulary, part.analogies
    )
    left = part.epochs * len(source.ids)
    if left < part.batch_size:
        checks.refuse(
            "words.batch_size", part.batch_size, f"at most {left}, the words of all epochs"
        )


def _check_sizes(config: Any, task: tasks.Task) -> None:
    inputs, part = task.train.x.shape[1], config.dichotomy
    size = part.widths[-1] * inputs + (part.depth - 1) * part.widths[-1] ** 2
    checks.memory(f"config.dichotomy.widths: training at {part.widths[-1]}", 5.0 * size)
    part = config.convergence
    widest = max(part.population, part.widths[-1])
    checks.memory("config.convergence", 3.0 * widest * (inputs + task.outputs + part.num_train))
    checks.memory("config.convergence: all batches", float(part.steps) * part.num_train)
    part, few = config.words, config.few_shot
    examples = 5e5 * part.epochs * (2 * part.window + part.negatives)
    checks.memory(
        "config.words", 6.0 * part.vocabulary * max(part.widths[-1], part.vocabulary) + examples
    )
    checks.memory("config.few_shot.widths", 4.0 * few.widths[-1] * (inputs + few.ways))
    episodes = (few.steps * few.tasks + few.test_tasks) * few.ways * (few.shots + few.queries)
    checks.memory("config.few_shot: all episodes", 4.0 * episodes)


def _check_few_shot(part: Any, task: tasks.Task) -> None:
    data = tasks.Data(*(np.concatenate(leaves) for leaves in zip(task.train, task.test)))
    first = tasks.Data(data.x[:1], data.y[:1])
    checks.context("task", few_shot.images, first, data.y[:1], 0.0, 0)
    counts = np.bincount(data.y, minlength=10)[: len(META_TRAIN + META_TEST)]
    if part.shots + part.queries > counts.min():
        raise ValueError(
            f"config.few_shot: {part.shots} shots and {part.queries} queries need as many examples of each of the"
            f" classes 0 to 9; {task.name} has {counts.min()} of class {counts.argmin()}"
        )


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
    shown, group = _shown(source)
    labels = [f"width {n}" for n in _pictured(part)] + ["limit", "kernel limit"]

    def unit(part, word_seed):
        return _word_run(part, source, noise, untrained, word_seed)

    over = ("word_width",)
    variables = {
        "word_rank": Variable("rank of the partner by cosine", dims=over),
        "analogy": Variable("share of analogies that are right", dims=over),
        "shuffled_rank": Variable("rank of the partner after training on shuffled words"),
        "shuffled_analogy": Variable("share of analogies right after training on shuffled words"),
        "gram_distance": Variable("distance of inner products from the limit's", dims=over),
        "plane": Variable("principal components", dims=("panel", "word", "axis")),
    }
    own = {
        "word_width": Axis([*part.widths, 0], "width, 0 for the limit", "neurons"),
        "panel": Axis(labels, "network"),
        "word": Axis([source.words[partner] for _, partner in shown], "word"),
        "group": Axis(group, "relation", dims=("word",)),
    }
    axes = {"word_seed": Axis(list(part.seeds), "seed")}
    made = train_grid(axes, part, Program("words", unit, variables, own), session)
    kernel = scores(source, untrained.context)
    law = power_law(part.widths, made["gram_distance"].values[:, :-1])
    slope = "exponent of the distance in the width"
    return made.assign(
        plane=made["plane"].isel(word_seed=0, drop=True),
        gram_slope=array((), law.exponent, slope),
        gram_slope_interval=array("end", law.exponent_interval, f"{slope}, 95 % interval"),
        kernel_rank=array((), kernel[0], "rank of the partner in the kernel limit"),
        kernel_analogy=array((), kernel[1], "share of analogies right in the kernel limit"),
        vocabulary=array((), len(source.words), "words of the vocabulary", "words"),
        pairs=array((), sum(map(len, source.relations.values())), "pairs of words", "pairs"),
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
    found |= {"word_rank": [], "analogy": [], "gram_distance": [], "plane": []}
    for number, width in enumerate((*part.widths, 0)):
        vectors = limit
        if width:
            start = networks.sample(untrained, jax.random.fold_in(init, number), width)
            vectors = cbow.train(start, examples, noise, draws, **options)[0].context
        rank, analogy = scores(source, vectors)
        found["word_rank"].append(rank)
        found["analogy"].append(analogy)
        found["gram_distance"].append(float(_gram_distance(vectors, limit)))
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

    def unit(part, background, few_seed):
        return _few_shot_run(part, data, background, few_seed)

    accuracy = "accuracy on new digits"
    variables = {
        "few_accuracy": Variable(accuracy, dims=("few_width",)),
        "few_kernel": Variable(f"{accuracy}, kernel limit", dims=("kernel_rate", "trained")),
    }
    own = {
        "few_width": Axis([*part.widths, 0], "width, 0 for the limit", "neurons"),
        "kernel_rate": Axis(list(part.kernel_rates), "learning rate over that of the limit"),
        "trained": Axis([0, 1], "whether the kernel limit is trained"),
    }
    axes = {
        "background": Axis(list(part.backgrounds), "background of the images"),
        "few_seed": Axis(list(part.seeds), "seed"),
    }
    return train_grid(axes, part, Program("few-shot", unit, variables, own), session)


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
        return float(losses.accuracy(outputs, test.query_labels))

    def trained(net, rate):
        return one_layer.meta_train(net, x, train, inner_rate=rate, **options)[0]

    limit = networks.linear_limit(x.shape[1], part.ways)
    key = jax.random.key(seed)
    nets = [networks.sample(limit, jax.random.fold_in(key, n), n) for n in part.widths]
    start = one_layer.kernel_limit(x.shape[1], part.ways)
    rates = [part.inner_rate * factor for factor in part.kernel_rates]
    return {
        "few_accuracy": [
            accuracy(trained(net, part.inner_rate), part.inner_rate) for net in [*nets, limit]
        ],
        "few_kernel": [
            [accuracy(net, rate) for net in (start, trained(start, rate))] for rate in rates
        ],
    }
