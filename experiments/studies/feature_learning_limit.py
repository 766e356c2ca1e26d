"""A parametrization either learns features or is a kernel machine, and the former can be trained in its limit.

Yang & Hu 2021 in four parts: the dynamical dichotomy of abc-parametrizations; finite networks against their
explicit limits; Word2Vec and first-order MAML in the limit. The control is the kernel limit, which must fail
what needs features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import limits
import metrics
import ntk
from experiments import losses, rundir, tasks
from experiments.loop import Session, train_runs
from experiments.studies.feature_learning_limit_claims import claims
from experiments.studies.feature_learning_limit_figures import figures
from experiments.tasks import few_shot, word_pairs
from experiments.train import Probe, Program, Setup, compile_program
from limits import cbow, pi_net
from limits import feature_learning as one_layer
from limits.exponents import Exponents, Rule

TITLE = "Feature learning at infinite width"
PAPER = "Yang & Hu 2021, arXiv:2011.14522; pi-nets: Yang, Santacroce, Hu 2022"

__all__ = ["PAPER", "TITLE", "claims", "figures", "run", "total_steps"]


def uniform(q: float) -> Rule:
    """From ntk (q = 1/2) to mean_field (q = 1): readout n^-q and learning rate n^(2q - 1), so that r = 1 - q."""
    c = 1 - 2 * q
    return Rule(
        f"r={1 - q:.2g}",
        input=Exponents(sgd=c),
        hidden=Exponents(a=1 / 2, sgd=c),
        output=Exponents(a=q, sgd=c),
    )


RULES = {
    "r=1/3": uniform(2 / 3),
    "r=1/6": uniform(5 / 6),
    # feature learning with a frozen input layer
    "logits/sqrt(n)": Rule(
        "logits/sqrt(n)",
        input=Exponents(),
        hidden=Exponents(b=1 / 2),
        output=Exponents(a=1 / 2, b=1 / 2),
    ),
}
SYSTEMS = ("linear", "tanh", "linear, ntk")
TRAINED = ("net", "linear")  # the network, and its linearisation at initialisation


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar; a pass over the text or the episodes counts as one."""
    first, second = config.dichotomy, config.convergence
    words, few = config.words, config.few_shot
    return (
        len(first.rules) * len(first.widths) * len(first.seeds) * first.steps
        + len(SYSTEMS) * len(second.widths) * len(second.seeds) * second.steps
        + 1
        + len(words.seeds)
        + len(few.backgrounds) * len(few.seeds)
    )


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/feature_learning_limit.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: an unknown rule, a number of steps that chunks do not divide, a text without pairs of words.
    """
    session = session or Session()
    _check(config)
    task = tasks.load(config.task)
    parts = (
        _dichotomy(config, task, session),
        _convergence(config, task, session),
        _pi_nets(config, task, session),
        _words(config, session),
        _few_shot(config, task, session),
    )
    few = config.few_shot
    return xr.merge(parts).assign_attrs(task=config.task.name, ways=few.ways, shots=few.shots)


def _check(config: Any) -> None:
    part = config.convergence
    if part.steps % part.chunk:
        raise ValueError(f"steps ({part.steps}) must be a multiple of chunk ({part.chunk})")
    for name in config.dichotomy.rules:
        limits.named_rule(RULES.get(name, name))


def _kept(session: Session, label: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute` returns, from the files of the run where it is there already."""
    found = session.path and rundir.load_point(session.path, label)
    if not found:
        found = {name: np.asarray(value) for name, value in compute().items()}
        if session.path:
            rundir.save_point(session.path, label, found)
    session.progress(1, label, 0.0)
    return found


# The dichotomy: how far features move, and whether the network is its own linearisation


def abc_factors(rule: str, depth: int, width: int) -> dict[str, np.ndarray]:
    """Powers of the width of a rule, (depth + 1,) each: multipliers n^-a, initial deviations n^-b, rates n^-c."""
    exponents = limits.abc(RULES.get(rule, rule), depth)
    powers = (float(width) ** -np.array(values) for values in exponents)
    return dict(zip(("multiplier", "deviation", "rate"), np.array(list(powers), np.float32)))


def layers(weights: Sequence[jax.Array], x: jax.Array, multiplier: jax.Array) -> list[jax.Array]:
    """Pre-activations of every layer of a tanh network, W^l = n^-a_l w^l, the outputs last."""
    found = []
    for l, w in enumerate(weights):
        found.append(multiplier[l] * (x @ w))
        x = jnp.tanh(found[-1])
    return found


def twin_setup(shapes: Sequence[tuple[int, int]]) -> Callable:
    """data -> Setup of a network and its linearisation, trained side by side from one initialisation.

    The rule's factors are data, so that all rules at a width share one compiled program.
    """

    def build(data: dict[str, Any]) -> Setup:
        factors = data["factors"]

        def init(key):
            keys = jax.random.split(key, len(shapes))
            draws = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes)]
            weights = [b * w for b, w in zip(factors["deviation"], draws)]
            return {name: weights for name in ("start", *TRAINED)}  # noqa: C420

        def loss(params, batch):
            return sum(losses.squared_error(f(batch[0]), batch[1]) for f in _twins(params, factors))

        def optimizer(rate):
            def update(slopes, state, params=None):
                rates = dict.fromkeys(TRAINED, rate * factors["rate"]) | {
                    "start": 0 * factors["rate"]
                }
                return {k: [-r * g for r, g in zip(rates[k], slopes[k])] for k in slopes}, state

            return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

        return Setup(init, loss, optimizer)

    return build


def _twins(params, factors):
    """The network and its linearisation as functions of the inputs."""

    def outputs(weights, x):
        return layers(weights, x, factors["multiplier"])[-1]

    linear = ntk.linearize(outputs, jax.lax.stop_gradient(params["start"]))
    return (lambda x: outputs(params["net"], x)), (lambda x: linear(params["linear"], x))


def twin_program(config: Any, shapes: Sequence[tuple[int, int]], data: dict[str, Any]) -> Program:
    """The compiled program of one width; rules, rates and seeds are arguments."""

    def measure(params, carry, learning_rate, data):
        factors, x = data["factors"], data["test"]
        before, now = (layers(params[k], x, factors["multiplier"]) for k in ("start", "net"))
        moved = {f"hidden_{l}": _rms(now[l] - before[l]) for l in range(len(shapes) - 1)}
        full, linear = (f(x) for f in _twins(params, factors))
        return carry, moved | {"kernel_distance": _rms(full - linear)}

    probe = Probe(lambda params, key, data: (), measure)
    steps = config.dichotomy.steps
    return compile_program(twin_setup(shapes), data, steps=steps, batch_size=None, probe=probe)


def _rms(x):
    return jnp.sqrt(jnp.square(x).mean())


def _dichotomy(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part = config.dichotomy
    quantities = [*(f"hidden_{l}" for l in range(part.depth)), "kernel_distance"]
    shape = (len(part.rules), len(quantities), len(part.seeds), len(part.widths))
    change = np.full(shape, np.nan)
    inputs = task.train.x.shape[1]
    scale = inputs**-0.5  # pre-activations of order one
    train = task.train.x[: part.num_train] * scale, task.train.y[: part.num_train]
    data = {"train": train, "test": task.test.x[: part.num_test] * scale}
    for w, width in enumerate(part.widths):
        sizes = [inputs, *[width] * part.depth, task.outputs]
        program = None
        for r, rule in enumerate(part.rules):
            data["factors"] = abc_factors(rule, part.depth, width)
            program = program or twin_program(config, list(itertools.pairwise(sizes)), data)
            rates, name = [part.learning_rate] * len(part.seeds), f"dichotomy-{w}-{r}"
            found = train_runs(
                program, data, rates, part.seeds, chunks=1, name=name, session=session
            )
            change[r, :, :, w] = [found[q][:, -1] for q in quantities]
    fits = [[_fit(part.widths, values) for values in rows] for rows in change]
    regimes = [limits.classify(*limits.abc(RULES.get(r, r), part.depth)) for r in part.rules]
    dims = ("rule", "quantity")
    return xr.Dataset(
        {
            "change": ((*dims, "dichotomy_seed", "dichotomy_width"), change),
            "exponent": (dims, [[fit.exponent for fit in row] for row in fits]),
            "exponent_interval": (
                (*dims, "end"),
                [[fit.exponent_interval for fit in row] for row in fits],
            ),
            "predicted": (("rule", "layer"), [regime.change[: part.depth] for regime in regimes]),
            "regime": ("rule", [regime.kind for regime in regimes]),
            "r": ("rule", [regime.r for regime in regimes]),
        },
        {
            "rule": list(part.rules),
            "quantity": quantities,
            "layer": quantities[:-1],
            "dichotomy_width": list(part.widths),
            "dichotomy_seed": list(part.seeds),
        },
    )


def _fit(widths: Sequence[int], values: np.ndarray) -> metrics.PowerLaw:
    """Power law in the width through values (seeds, widths), none where a run diverged."""
    if not (np.isfinite(values) & (values > 0)).all():
        nothing = np.full(2, np.nan)
        return metrics.PowerLaw(np.nan, np.nan, np.nan, nothing, nothing, nothing)
    return metrics.fit_power_law(np.asarray(widths), values, jax.random.key(0))


# Finite networks against the explicit limit of one hidden layer


def _convergence(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part = config.convergence
    chunks = part.steps // part.chunk
    shape = (len(SYSTEMS), len(part.widths), len(part.seeds), chunks + 1)
    distance, loss = np.full(shape, np.nan), np.full(shape, np.nan)
    limit_loss = np.full((len(SYSTEMS), chunks + 1), np.nan)
    inputs, programs = task.train.x.shape[1], {}
    for s, system in enumerate(SYSTEMS):
        activation = jnp.tanh if system == "tanh" else one_layer.identity
        net = (
            one_layer.particles(jax.random.key(0), part.population, inputs, task.outputs)
            if system == "tanh"
            else one_layer.linear_limit(inputs, task.outputs)
        )
        data = convergence_data(config, task, net, activation)
        limit_loss[s] = data.pop("limit_loss")
        for w, width in enumerate(part.widths):
            # the NTK parametrization in mean-field units: readouts of order sqrt(n), slower input weights
            rule = (width**0.5, 1 / width) if system == "linear, ntk" else (1.0, 1.0)
            data["readout"], data["input_rate"] = (np.float32(x) for x in rule)
            if (activation, width) not in programs:
                programs[activation, width] = convergence_program(
                    config, type(net), width, activation, data
                )
            program = programs[activation, width]
            rates = [part.learning_rate] * len(part.seeds)
            name = f"convergence-{s}-{width}"
            found = train_runs(
                program, data, rates, part.seeds, chunks=chunks, name=name, session=session
            )
            distance[s, w], loss[s, w] = found["distance"], found["loss"]
    dims = ("system", "width", "seed", "step")
    fits = [_fit(part.widths, rows[:, :, -1].T) for rows in distance]
    return xr.Dataset(
        {
            "distance": (dims, distance),
            "loss": (dims, loss),
            "limit_loss": (("system", "step"), limit_loss),
            "slope": ("system", [fit.exponent for fit in fits]),
            "slope_interval": (("system", "end"), [fit.exponent_interval for fit in fits]),
        },
        {
            "system": list(SYSTEMS),
            "width": list(part.widths),
            "seed": list(part.seeds),
            "step": np.arange(chunks + 1) * part.chunk,
        },
    )


def convergence_data(config: Any, task: tasks.Task, net, activation: Callable) -> dict[str, Any]:
    """Examples, the limit at its start, and its outputs and loss along training."""
    part = config.convergence
    scale = task.train.x.shape[1] ** -0.5  # pre-activations of order one
    x, y = task.train.x[: part.num_train] * scale, task.train.y[: part.num_train]
    test = task.test.x[: part.num_test] * scale
    batches = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (part.steps, *leaf.shape)), (x, y))
    trained = one_layer.train(
        net,
        batches,
        part.learning_rate,
        activation=activation,
        loss=losses.squared_error,
        inputs=jnp.concatenate([test, x]),
    )
    path = trained.outputs[:: part.chunk]
    loss = [float(losses.squared_error(outputs[len(test) :], y)) for outputs in path]
    return {
        "train": (x, y),
        "test": test,
        "path": path[:, : len(test)],
        "limit": tuple(net),
        "limit_loss": loss,
    }


def convergence_program(
    config: Any, kind: type, width: int, activation: Callable, data: dict[str, Any]
) -> Program:
    """The compiled program of finite networks of one width, drawn from a limit that is data."""

    def build(data: dict[str, Any]) -> Setup:
        def init(key):
            net = kind(*data["limit"]).sample(key, width)
            return net._replace(v=net.v * data["readout"])

        def loss(net, batch):
            return losses.squared_error(net.apply(batch[0], activation), batch[1])

        def optimizer(rate):
            rates = one_layer.Particles(rate * width * data["input_rate"], rate * width)

            def update(slope, state, params=None):
                return jax.tree.map(lambda r, g: -r * g, rates, slope), state

            return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

        return Setup(init, loss, optimizer)

    def measure(net, chunk, learning_rate, data):
        outputs = net.apply(data["test"], activation)
        trained = losses.squared_error(net.apply(data["train"][0], activation), data["train"][1])
        return chunk + 1, {"distance": _rms(outputs - data["path"][chunk]), "loss": trained}

    probe = Probe(lambda params, key, data: jnp.zeros((), jnp.int32), measure)
    steps = config.convergence.chunk
    return compile_program(build, data, steps=steps, batch_size=None, probe=probe)


def _pi_nets(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    """Distance of trained pi-nets from the trained limit, deep and nonlinear."""
    part, pi = config.convergence, config.convergence.pi
    scale, shape = task.train.x.shape[1] ** -0.5, (pi.steps, pi.batch_size)
    if len(task.train.x) < pi.steps * pi.batch_size:
        raise ValueError(
            f"{pi.steps} batches of {pi.batch_size} need more than {len(task.train.x)} examples"
        )
    x, y = (
        leaf[: pi.steps * pi.batch_size].reshape(*shape, *leaf.shape[1:]) for leaf in task.train
    )
    test = task.test.x[: part.num_test] * scale

    def compute():
        sizes = {"rank": pi.rank, "hidden_layers": pi.hidden_layers}
        start = pi_net.limit(jax.random.key(0), x.shape[-1], task.outputs, **sizes)
        train = lambda net: pi_net.train(  # noqa: E731
            net, (x * scale, y), pi.learning_rate, loss=losses.squared_error
        )
        goal = train(start)[0].apply(test)
        nets = [[start.sample(jax.random.key(s), n) for n in part.widths] for s in part.seeds]
        distance = [[_rms(train(net)[0].apply(test) - goal) for net in row] for row in nets]
        return {"distance": distance, "size": _rms(goal)}

    found = _kept(session, "pi-nets", compute)
    fit = _fit(part.widths, found["distance"])
    return xr.Dataset(
        {
            "pi_distance": (("seed", "width"), found["distance"]),
            "pi_size": found["size"],
            "pi_slope": fit.exponent,
            "pi_slope_interval": ("end", fit.exponent_interval),
        },
        {"width": list(part.widths), "seed": list(part.seeds)},
    )


# Word2Vec


def scores(source: word_pairs.Corpus, vectors: jax.Array) -> tuple[float, float]:
    """(rank of the partner by cosine, mean over pairs; share of analogies that are right, mean over questions)."""
    near, pairs = cbow.cosines(vectors), source.relations.values()
    ranks = jnp.concatenate([cbow.neighbour_rank(near, p) for p in pairs])
    right = jnp.concatenate([cbow.analogies(near, p).ravel() for p in pairs])
    return float(ranks.mean()), float(right.mean())


def _words(config: Any, session: Session) -> xr.Dataset:
    part = config.words
    source = word_pairs.corpus(part.data_dir, part.vocabulary, part.analogies)
    noise = jnp.asarray(source.frequency**0.75)
    untrained = cbow.limit(len(source.words))
    columns = [*part.widths, 0]  # 0 is the limit
    shape = (len(part.seeds), len(columns))
    measured = {name: np.full(shape, np.nan) for name in ("rank", "analogy", "gram")}
    pictures = None
    for s, seed in enumerate(part.seeds):
        found = _kept(
            session,
            f"words-{seed}",
            lambda seed=seed: _word_run(part, source, noise, untrained, seed),
        )
        for name, values in measured.items():
            values[s] = found[name]
        pictures = found["plane"] if pictures is None else pictures
    kernel = scores(source, untrained.context)
    fit = _fit(part.widths, measured["gram"][:, :-1])
    shown, group = _shown(source)
    labels = [f"width {n}" for n in _pictured(part)] + ["limit", "kernel limit"]
    return xr.Dataset(
        {
            "word_rank": (("word_seed", "word_width"), measured["rank"]),
            "analogy": (("word_seed", "word_width"), measured["analogy"]),
            "gram_distance": (("word_seed", "word_width"), measured["gram"]),
            "gram_slope": fit.exponent,
            "gram_slope_interval": ("end", fit.exponent_interval),
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
            "word": [source.words[i] for i in shown],
            "group": ("word", group),
        },
    )


def _word_run(part, source, noise, untrained, seed) -> dict[str, Any]:
    """Scores of every width and of the limit for one seed, trained on the same examples and random targets."""
    thinned = {"epochs": part.epochs, "subsample": part.subsample, "multiple": part.batch_size}
    examples = cbow.Windows(*word_pairs.windows(source, part.window, seed, **thinned))
    init, draws = jax.random.split(jax.random.key(seed))
    options = {
        "learning_rate": part.learning_rate,
        "weight_decay": part.weight_decay,
        "negatives": part.negatives,
        "batch_size": part.batch_size,
    }
    limit = cbow.train(untrained, examples, noise, draws, **options)[0].context
    shown, _ = _shown(source)
    found = {"rank": [], "analogy": [], "gram": [], "plane": []}
    for number, width in enumerate((*part.widths, 0)):
        vectors = limit
        if width:
            start = untrained.sample(jax.random.fold_in(init, number), width)
            vectors = cbow.train(start, examples, noise, draws, **options)[0].context
        rank, analogy = scores(source, vectors)
        found["rank"].append(rank)
        found["analogy"].append(analogy)
        found["gram"].append(_gram_distance(vectors, limit))
        if width in (*_pictured(part), 0):
            found["plane"].append(_plane(vectors, shown))
    found["plane"].append(_plane(untrained.sample(init, max(part.widths)).context, shown))
    return found


def _gram_distance(vectors, limit) -> float:
    """Norm of the difference of the inner products of all words, over that of the limit's."""
    difference = vectors @ vectors.T - limit @ limit.T
    return float(jnp.linalg.norm(difference) / jnp.linalg.norm(limit @ limit.T))


def _pictured(part) -> tuple[int, ...]:
    return part.widths[len(part.widths) // 3], part.widths[-1]


def _shown(source: word_pairs.Corpus, most: int = 30) -> tuple[np.ndarray, list[str]]:
    """Second words of the pairs of the two largest relations, and the name of each one's relation."""
    largest = sorted(source.relations, key=lambda name: -len(source.relations[name]))[:2]
    parts = {name: source.relations[name][:most, 1] for name in largest}
    return np.concatenate(list(parts.values())), [n for n, ids in parts.items() for _ in ids]


def _plane(vectors: jax.Array, rows: np.ndarray) -> np.ndarray:
    """First two principal components of some words' unit vectors, (words, 2)."""
    chosen = np.asarray(vectors)[rows]
    chosen = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(chosen - chosen.mean(axis=0), full_matrices=False)
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
            found = _kept(
                session,
                f"few-shot-{b}-{seed}",
                lambda background=background, seed=seed: _few_shot_run(
                    part, data, background, seed
                ),
            )
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

    limit = one_layer.linear_limit(x.shape[1], part.ways)
    key = jax.random.key(seed)
    nets = [limit.sample(jax.random.fold_in(key, n), n) for n in part.widths]
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
