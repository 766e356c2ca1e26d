"""Memorisation and generalisation coexist on corrupted modular addition (Doshi et al. 2023; Gromov 2023).

A two-layer network with quadratic activation learns a + b mod p although a part of its training labels is wrong, and
those too. Its neurons tell the two apart: periodic ones (high inverse participation ratio in the Fourier basis) carry
the rule and follow the analytic solution, the others carry the wrong labels and can be pruned. Weight decay, dropout
and BatchNorm make the network forget the wrong labels instead. The controls must fail: shuffled labels, pruning in
random or reverse order, the phases of the neurons that memorise.
"""

# One file: the task, the network and the dissection of its neurons serve every experiment.

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from flax import linen as nn

import models
from experiments import checks, grid, losses, tasks
from experiments.grid import Axis, Training, Variable, train_grid
from experiments.loop import Session
from experiments.studies import grokking_corrupted_figures
from experiments.studies.grokking_corrupted_claims import (
    PERIODIC,
    SHUFFLED,
    claims,
    kept_share,
    phases,
)
from experiments.tasks import modular
from experiments.train import Probe, Program, Setup, compile_program
from metrics import features

TITLE = "To grok or not to grok: memorisation beside generalisation"
PAPER = "Doshi et al. 2023, arXiv:2310.13061; Gromov 2023, arXiv:2301.02679"

__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

KINDS = ("decay", "dropout", "batch_norm")
ACCURACIES = ("train", "corrupted", "restored", "test")


class QuadraticMLP(nn.Module):
    """f(a, b) = W (U_a + V_b)^2, Gromov's network, optionally with BatchNorm after the square.

    One-hot inputs without biases, so that both weight matrices of the input are tables of p rows.

    Attributes:
        width: neurons.
        outputs: p.
        stddev: of every weight at initialisation.
        normalise: whether squares are normalised, with the statistics of ``reference``.
    """

    width: int
    outputs: int
    stddev: float
    normalise: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array, reference: jax.Array | None = None):
        """Logits (N, p), what the readout reads (N, width), pre-activations (N, width); tokens (N, 2).

        Args:
            tokens: pairs.
            reference: pairs whose mean and variance normalise; those of tokens by default.
        """
        normal = nn.initializers.normal(self.stddev)
        left, right = (
            nn.Embed(self.outputs, self.width, embedding_init=normal, name=name)
            for name in ("left", "right")
        )

        def preactivations(pairs):
            return left(pairs[:, 0]) + right(pairs[:, 1])

        before = preactivations(tokens)
        hidden = jnp.square(before)
        if self.normalise:
            base = hidden if reference is None else jnp.square(preactivations(reference))
            gain = self.param("gain", nn.initializers.ones, (self.width,))
            shift = self.param("shift", nn.initializers.zeros, (self.width,))
            scale = gain * jax.lax.rsqrt(base.var(axis=0) + 1e-5)
            hidden = (hidden - base.mean(axis=0)[None]) * scale[None] + shift[None]
        readout = nn.Dense(self.outputs, use_bias=False, kernel_init=normal, name="readout")
        return readout(hidden), hidden, before


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    runs, phases = config.runs, config.phases
    close = sum(_steps(runs, kind) for kind, _ in runs.regularisers) + runs.steps
    cells = len(phases.fractions) * len(phases.noises)
    cells *= sum(_steps(phases, kind) for kind, _ in phases.regularisers)
    transformers = len(config.transformer.decays) * len(config.transformer.seeds)
    return close * len(runs.seeds) + cells + transformers * config.transformer.steps


def _steps(part: Any, kind: str) -> int:
    return part.minibatch_steps if kind == "batch_norm" else part.steps


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/grokking_corrupted.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: the configuration asks for something that is not there.
    """
    session = session or Session()
    check(config, tasks.load(config.task))
    return xr.merge(
        [
            _close_look(config, session),
            _phase_diagram(config, session),
            _transformer(config, session),
            _analytic(config, session),
        ]
    ).assign_attrs(
        modulus=config.task.modulus,
        label_noise=config.runs.noise,
        control_noise=config.runs.control_noise,
    )


_REGULARISERS = checks.several(
    checks.fixed(checks.choice(KINDS), checks.real(0)), needs=(("decay", 0.0),)
)
_SHARE, _INSIDE = checks.real(0, 1), checks.real(0, 1, inside=True)
_PART = {
    "regularisers": _REGULARISERS,
    "steps": checks.STEPS,
    "minibatch_steps": checks.STEPS,
    "probes": checks.STEPS,
}
RULES = {
    "task.name": checks.choice(("modular",)),
    "task.operation": checks.choice(("add",)),
    "task.encoding": checks.choice(("tokens",)),
    "network.width": checks.whole(4, 2**20),
    "network.init_scale": checks.positive(),
    "optimizer.learning_rate": checks.positive(),
    "optimizer.b1": checks.real(0, 1 - 1e-7),
    "optimizer.b2": checks.real(0, 1 - 1e-7),
    "minibatch.batch_size": checks.whole(),
    **{f"{part}.{key}": rule for part in ("runs", "phases") for key, rule in _PART.items()},
    "runs.fraction": _INSIDE,
    "runs.noise": _INSIDE,
    "runs.control_noise": _SHARE,
    "runs.seeds": checks.SEEDS,
    "runs.groups": checks.whole(2),
    "phases.fractions": checks.several(_INSIDE, ascending=True),
    "phases.noises": checks.several(_INSIDE, ascending=True),
    "phases.seed": checks.whole(0),
    "transformer.modulus": checks.whole(2, 10**4),
    "transformer.width": checks.WIDTH,
    "transformer.heads": checks.whole(),
    "transformer.fraction": _INSIDE,
    "transformer.noise": _INSIDE,
    "transformer.decays": checks.several(checks.real(0), 0, ascending=True),
    "transformer.seeds": checks.SEEDS,
    "transformer.learning_rate": checks.positive(),
    "transformer.steps": checks.STEPS,
    "transformer.cooldown": _SHARE,
    "transformer.probes": checks.STEPS,
    "transformer.groups": checks.whole(2),
    "analytic.neurons_per_frequency": checks.several(checks.whole(1, 1000), ascending=True),
    "analytic.seeds": checks.whole(1, 1000),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    for path in ("runs", "phases"):
        for kind, strength in config[path].regularisers:
            if kind == "dropout" and strength >= 1:
                checks.refuse(f"{path}.regularisers", (kind, strength), "a dropout below 1")
            if kind == "batch_norm" and strength:
                allowed = "('batch_norm', 0.0): it has no strength"
                checks.refuse(f"{path}.regularisers", (kind, strength), allowed)
        labels = [label(*regulariser) for regulariser in config[path].regularisers]
        checks.several(checks.instance(str))(f"{path}.regularisers", labels)
        checks.multiple(config, f"{path}.minibatch_steps", "probes")
    for path in ("runs", "phases", "transformer"):
        checks.multiple(config, f"{path}.steps", "probes")
    for key in ("phases.fractions", "phases.noises", "transformer.decays"):
        checks.six_digits(key, checks.at(config, key))
    if not config.runs.noise < config.runs.control_noise:
        allowed = f"above runs.noise, {config.runs.noise}: the control has more wrong labels"
        checks.refuse("runs.control_noise", config.runs.control_noise, allowed)
    for key in ("fraction", "noise", "seed"):
        if config.task[key] != tasks.default_config("modular")[key]:
            allowed = f"left alone: {key}s are set by runs, phases and transformer"
            checks.refuse(f"task.{key}", config.task[key], allowed)
    if config.network.width % config.runs.groups:
        allowed = f"a divisor of network.width, {config.network.width}"
        checks.refuse("runs.groups", config.runs.groups, allowed)
    if config.transformer.width % config.transformer.heads:
        allowed = f"a divisor of transformer.width, {config.transformer.width}"
        checks.refuse("transformer.heads", config.transformer.heads, allowed)
    _check_sizes(config)


def _check_sizes(config: Any) -> None:
    modulus, part = config.task.modulus, config.transformer
    if modulus < 3 or modulus % 2 == 0:
        checks.refuse("task.modulus", modulus, "an odd number from 3 on, for the analytic solution")
    runs, phases = config.runs, config.phases
    shares = [("runs", modulus, runs.fraction, runs.noise)]
    shares += [("transformer", part.modulus, part.fraction, part.noise)]
    shares += [
        ("phases", modulus, share, noise) for share in phases.fractions for noise in phases.noises
    ]
    for path, p, fraction, noise in shares:
        count = round(fraction * p * p)
        if not 0 < count < p * p:
            allowed = f"such that some of the {p * p} pairs are left to train and to test on"
            checks.refuse(f"{path}.fraction", fraction, allowed)
        # A redrawn label is right again with probability 1/p.
        wrong = noise * (1 - 1 / p) * count
        if not 1 <= wrong <= count - 1:
            allowed = f"such that some of the {count} labels are wrong and some right: claims are about both"
            checks.refuse(f"{path}.noise", noise, allowed)
    neurons = max(
        config.network.width, (modulus - 1) // 2 * max(config.analytic.neurons_per_frequency)
    )
    checks.memory(f"{neurons} neurons on {modulus}^2 pairs", 4.0 * neurons * modulus**2, 8)
    checks.memory(
        "config.minibatch.batch_size", 2.0 * config.minibatch.batch_size * config.network.width
    )
    layers = 12.0 * part.width**2 + 8.0 * part.width * part.modulus**2
    checks.memory("config.transformer", 4 * layers)


# Data, network, one compiled program per number of examples


def examples(config: Any, fraction: float, noise: float, seed: int) -> dict[str, Any]:
    """The data of a program: training pairs, and the table of all pairs with what became of each."""
    task = config.task.copy_and_resolve_references()
    task.fraction, task.noise, task.seed = fraction, noise, seed
    train = tasks.load(task).train
    return {"train": tuple(train), "table": modular.marked_table(train, task.modulus, "add")}


def regularised(data: dict[str, Any], kind: str, strength: float) -> dict[str, Any]:
    """The data with a regulariser's strength: an argument, so that all strengths share one program."""
    strengths = {name: np.float32(strength * (name == kind)) for name in ("decay", "dropout")}
    return data | strengths


def network(config: Any, kind: str) -> QuadraticMLP:
    """The study's network; init_scale / (2 width)^(1/3) is the standard deviation of its weights."""
    width = config.network.width
    stddev = config.network.init_scale / (2 * width) ** (1 / 3)
    return QuadraticMLP(width, config.task.modulus, stddev, normalise=kind == "batch_norm")


def dropout_loss(net: QuadraticMLP, params: Any, batch: Any, rate: jax.Array) -> jax.Array:
    """Squared error, averaged over examples and outputs and over all dropout masks, exactly.

    Dropout at rate q scales each pre-activation of each example by b / (1 - q), b = 0 or 1. The square keeps b,
    so the output has mean f / (1 - q) and variance sum_k W_k^2 h_k^4 q / (1 - q)^3: no mask is ever drawn.

    Args:
        net: without BatchNorm where rate is not 0.
        params: its parameters.
        batch: (pairs, labels).
        rate: q in [0, 1).
    """
    outputs, _, before = net.apply({"params": params}, batch[0])
    targets = jax.nn.one_hot(batch[1], outputs.shape[-1], dtype=outputs.dtype)
    error = jnp.square(outputs / (1 - rate) - targets).mean()
    if net.normalise:
        return error
    readout = jnp.square(params["readout"]["kernel"]).mean(axis=1)
    return error + (before**4 @ readout).mean() * rate / (1 - rate) ** 3


def learning_rate(config: Any, kind: str) -> float:
    """The learning rate of full batches, or that of minibatches."""
    scale = np.sqrt(config.minibatch.batch_size / 256) if kind == "batch_norm" else 1.0
    return config.optimizer.learning_rate * float(scale)


def program(
    config: Any, kind: str, data: dict[str, Any], steps: int, probes: int, groups: int = 0
) -> Program:
    """The compiled program of one number of training examples: noise, seed and strengths are arguments.

    Args:
        config: of the study.
        kind: of regulariser; BatchNorm has its own network and minibatches.
        data: of `regularised`.
        steps: between probes.
        probes: after this many the network is dissected,
        groups: pruning it in this many steps; 0 for no dissection.
    """
    net = network(config, kind)
    pair = np.zeros((1, 2), np.int32)

    def setup(data):
        return Setup(
            lambda key: net.init(key, pair)["params"],
            lambda params, batch: dropout_loss(net, params, batch, data["dropout"]),
            lambda rate: adamw(config, rate, data["decay"]),
        )

    def begin(params, key, data):
        return 0, jax.random.uniform(key, (net.width,))  # probes so far, random order of pruning

    def measure(params, carry, rate, data):
        count, order = carry
        values = summary(net, params, data)
        if groups:

            def dissect():
                return dissection(net, params, data, order, groups)

            empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(dissect))
            values |= jax.lax.cond(count == probes, dissect, lambda: empty)
        return (count + 1, order), values

    return compile_program(
        setup,
        data,
        steps=steps,
        batch_size=config.minibatch.batch_size if kind == "batch_norm" else None,
        probe=Probe(begin, measure),
    )


def adamw(config: Any, rate: Any, decay: jax.Array) -> optax.GradientTransformation:
    """AdamW with the study's moments; the decay is decoupled: rate x decay x weight."""
    return optax.adamw(rate, config.optimizer.b1, config.optimizer.b2, weight_decay=decay)


def weight_vectors(params: dict[str, Any]) -> jax.Array:
    """Each neuron's weights over the residues: U, V and W, (3, width, p)."""
    left, right = (params[name]["embedding"].T for name in ("left", "right"))
    return jnp.stack([left, right, params["readout"]["kernel"]])


def summary(net: QuadraticMLP, params: Any, data: dict[str, Any]) -> dict[str, jax.Array]:
    """Accuracies of a network, and the mean inverse participation ratio of its neurons."""
    outputs, *_ = net.apply({"params": params}, data["table"]["pairs"], data["train"][0])
    ipr = features.fourier_ipr(weight_vectors(params)).mean()
    return modular.accuracies(outputs.argmax(axis=-1), data["table"]) | {"ipr": ipr}


def dissection(net, params, data, order, groups) -> dict[str, jax.Array]:
    """Accuracies of the pruned network, and what each neuron is.

    Args:
        net: the network.
        params: its parameters.
        data: of `examples`.
        order: (width,), scores of a random order of pruning.
        groups: steps of pruning.
    """
    table = data["table"]
    _, hidden, _ = net.apply({"params": params}, table["pairs"], data["train"][0])
    weights = weight_vectors(params)
    ipr = features.fourier_ipr(weights).mean(axis=0)
    pruned = [
        features.pruned_outputs(hidden, weights[2], scores, groups).argmax(axis=-1)
        for scores in (ipr, -ipr, order)
    ]
    tuning = features.fourier_tuning(weights)
    shown = jnp.argsort(ipr)[jnp.array([-1, -2, 1, 0])]
    neurons = {
        "ipr": ipr,
        "gain": jnp.abs(params.get("gain", jnp.ones(net.width))),
        "frequency": tuning.frequency,
        "phases": tuning.phase,
    }
    return (
        {
            f"pruned_{name}": values
            for name, values in modular.accuracies(jnp.stack(pruned), table).items()
        }
        | {f"neuron_{name}": values for name, values in neurons.items()}
        | {"shown_weights": weights[:, shown].swapaxes(0, 1), "shown_neuron": shown}
    )


# One point of the phase diagram, closely


def label(kind: str, strength: float) -> str:
    """A regulariser in words."""
    if kind == "batch_norm":
        return "batch norm"
    names = {"decay": "weight decay", "dropout": "dropout"}
    return f"{names[kind]} {strength:g}" if strength else "none"


WORDS = {
    "train": "accuracy on the training set",
    "corrupted": "accuracy on the corrupted examples, with their wrong labels",
    "restored": "accuracy on the corrupted examples, with the true labels",
    "test": "accuracy on the test set",
    "ipr": "mean inverse participation ratio",
}


def _accuracies(
    prefix: str, *dims: str, names: tuple[str, ...] = ACCURACIES
) -> dict[str, Variable]:
    return {f"{prefix}{name}": Variable(WORDS[name], dims=dims) for name in names}


def _seeds(part: Any) -> Axis:
    return Axis(list(part.seeds), "seed")


def _training(config, part, kind, strength, fraction, noise, seed, keep, groups=0) -> Training:
    """One run; all of one number of examples share two programs, with and without BatchNorm."""
    data = regularised(examples(config, fraction, noise, seed), kind, strength)
    steps, minibatch = _steps(part, kind), kind == "batch_norm"
    return Training(
        lambda: program(config, kind, data, steps // part.probes, part.probes, groups),
        (fraction, minibatch),
        *(data, [learning_rate(config, kind)], [seed], part.probes, steps),
        keep=lambda records: keep({key: values[0] for key, values in records.items()}),
    )


def _close_look(config: Any, session: Session) -> xr.Dataset:
    part = config.runs
    settings = {label(*setting): (*setting, part.noise) for setting in part.regularisers}
    settings[SHUFFLED] = ("decay", 0.0, part.control_noise)
    curves = _accuracies("", "time", names=(*ACCURACIES, "ipr"))
    last = _accuracies("pruned_", "order", "share") | {
        "neuron_ipr": Variable("inverse participation ratio", dims=("neuron",)),
        "neuron_gain": Variable("gain of the neuron", dims=("neuron",)),
        "neuron_frequency": Variable("frequency of the neuron", dims=("neuron",)),
        "neuron_phases": Variable("phase of the neuron", "rad", dims=("vector", "neuron")),
        "shown_neuron": Variable("number of the neuron", dims=("shown",)),
        "shown_weights": Variable("weight", dims=("shown", "vector", "residue")),
    }

    def unit(config, regulariser, seed):
        kind, strength, noise = settings[regulariser]

        def keep(records):
            return records | {name: records[name][-1] for name in last}

        return _training(
            config, part, kind, strength, part.fraction, noise, seed, keep, part.groups
        )

    axes = {"regulariser": Axis(list(settings), "regulariser"), "seed": _seeds(part)}
    own = {
        "order": Axis(["low", "high", "random"], "which neurons are pruned first"),
        "share": Axis(np.arange(part.groups + 1) / part.groups, "share of neurons pruned"),
        "vector": Axis(["U", "V", "W"], "weights of a neuron"),
    }
    made = train_grid(
        axes, config, grid.Program("run", unit, curves | last, own, trains=True), session
    )
    steps = [np.linspace(0, _steps(part, kind), part.probes + 1) for kind, *_ in settings.values()]
    return made.assign(step=grid.array(("regulariser", "time"), steps, "training step", "steps"))


# The phase diagram


def _phase_diagram(config: Any, session: Session) -> xr.Dataset:
    part = config.phases
    settings = {label(*setting): setting for setting in part.regularisers}

    def keep(records):
        return {f"phase_{name}": records[name][-1] for name in (*ACCURACIES, "ipr")}

    def unit(config, phase_regulariser, noise, fraction):
        return _training(
            config, part, *settings[phase_regulariser], fraction, noise, part.seed, keep
        )

    axes = {
        "phase_regulariser": Axis(list(settings), "regulariser"),
        "noise": Axis(list(part.noises), "share of training labels corrupted"),
        "fraction": Axis(list(part.fractions), "share of pairs trained on"),
    }
    variables = _accuracies("phase_", names=(*ACCURACIES, "ipr"))
    return train_grid(axes, config, grid.Program("phase", unit, variables, trains=True), session)


# The Transformer


def _transformer(config: Any, session: Session) -> xr.Dataset:
    part = config.transformer
    config = config.copy_and_resolve_references()
    config.task.modulus = part.modulus

    def keep(records):
        curves = {f"transformer_{name}": records[name][0] for name in ACCURACIES}
        pruned = {name: records[f"pruned_{name}"][0, -1] for name in ACCURACIES}
        return curves | {f"transformer_pruned_{name}": value for name, value in pruned.items()}

    def unit(config, decay, transformer_seed):
        start = examples(config, part.fraction, part.noise, transformer_seed)
        data = regularised(start, "decay", decay)
        return Training(
            lambda: transformer_program(config, data),
            "one",
            *(data, [part.learning_rate], [transformer_seed], part.probes, part.steps),
            keep=keep,
        )

    axes = {"decay": Axis(list(part.decays), "weight decay"), "transformer_seed": _seeds(part)}
    order, time = ("transformer_order", "transformer_share"), "transformer_time"
    variables = _accuracies("transformer_", time) | _accuracies("transformer_pruned_", *order)
    steps = np.linspace(0, part.steps, part.probes + 1)
    own = {
        "transformer_order": Axis(["low", "high"], "which neurons are pruned first"),
        "transformer_share": Axis(
            np.arange(part.groups + 1) / part.groups, "share of neurons pruned"
        ),
        "transformer_step": Axis(steps, "training step", "steps", (time,)),
    }
    program = grid.Program("transformer", unit, variables, own, trains=True)
    return train_grid(axes, config, program, session)


def transformer(config: Any) -> models.Transformer:
    """The study's Transformer."""
    part = config.transformer
    sizes = {"width": part.width, "heads": part.heads, "vocabulary": part.modulus}
    return models.Transformer(**sizes, depth=1, context=2, activation=jax.nn.relu)


def transformer_program(config: Any, data: dict[str, Any]) -> Program:
    """The compiled program of the one-layer Transformer: cross-entropy of the answer after the second token.

    The learning rate is constant, then falls to zero over the last part, the cooldown: at a constant rate the
    accuracies of a small network go up and down to the end.
    """
    part, net = config.transformer, transformer(config)
    pair = np.zeros((1, 2), np.int32)

    def apply(params, pairs):
        return net.apply({"params": params}, pairs)[:, -1]

    def schedule(rate):
        if not part.cooldown:
            return rate
        return lambda step: rate * jnp.minimum(1, (1 - step / part.steps) / part.cooldown)

    def setup(data):
        return Setup(
            lambda key: net.init(key, pair)["params"],
            losses.supervised("cross_entropy", apply),
            lambda rate: adamw(config, schedule(rate), data["decay"]),
        )

    def measure(params, count, rate, data):
        table = data["table"]

        def answers(params):
            return apply(params, table["pairs"]).argmax(axis=-1).astype(jnp.int32)

        def prune():
            keeps = pruning_masks(features.fourier_ipr(transformer_logits(params)), part.groups)
            kept = jax.lax.map(lambda keep: answers(pruned_transformer(params, keep)), keeps)
            return kept.reshape(2, part.groups + 1, -1)

        empty = jnp.zeros((2, part.groups + 1, part.modulus**2), jnp.int32)
        predicted = jax.lax.cond(count == part.probes, prune, lambda: empty)
        pruned = modular.accuracies(predicted, table).items()
        values = modular.accuracies(answers(params), table)
        return count + 1, values | {f"pruned_{name}": curve for name, curve in pruned}

    return compile_program(
        setup,
        data,
        steps=part.steps // part.probes,
        batch_size=None,
        probe=Probe(lambda params, key, data: 0, measure),
    )


def pruning_masks(scores: jax.Array, groups: int) -> jax.Array:
    """Masks without 0, 1, ..., groups parts of the neurons, lowest score first and then highest first."""
    shares = jnp.arange(groups + 1) / groups
    orders = [
        jax.vmap(functools.partial(features.pruning_mask, s))(shares) for s in (scores, -scores)
    ]
    return jnp.concatenate(orders)


def transformer_logits(params: dict[str, Any]) -> jax.Array:
    """What each neuron of the MLP adds to the logits, up to the last norm: (neurons, p)."""
    gain = params["norm"]["scale"][:, None]
    return params["block_0"]["mlp_out"]["kernel"] @ (gain * params["readout"]["kernel"])


def pruned_transformer(params: dict[str, Any], keep: jax.Array) -> dict[str, Any]:
    """The parameters without the neurons of the MLP that the mask (neurons,) drops."""
    block = params["block_0"]
    kernel = block["mlp_out"]["kernel"] * keep[:, None]
    return params | {"block_0": block | {"mlp_out": {"kernel": kernel}}}


# The analytic solution


def _analytic(config: Any, session: Session) -> xr.Dataset:
    """Accuracy of the solution with random phases, its estimate, and the error of the exact one."""
    p, part = config.task.modulus, config.analytic
    pairs, truth = modular.table(p, "add")

    def logits(solution):
        return (solution.left[pairs[:, 0]] + solution.right[pairs[:, 1]]) ** 2 @ solution.readout

    def accuracy(solution):
        return float((logits(solution).argmax(axis=1) == truth).mean())

    def unit(p, analytic_width):
        drawn = [modular.fourier_solution(p, analytic_width, s) for s in range(part.seeds)]
        return {
            "analytic_accuracy": [accuracy(solution) for solution in drawn],
            "analytic_predicted": modular.fourier_accuracy(p, analytic_width),
        }

    widths = [count * (p - 1) // 2 for count in part.neurons_per_frequency]
    what = "accuracy of the solution with random phases"
    variables = {
        "analytic_accuracy": Variable(what, dims=("analytic_seed",)),
        "analytic_predicted": Variable(f"{what}, predicted"),
    }
    own = {"analytic_seed": Axis(np.arange(part.seeds), "seed")}
    axes = {"analytic_width": Axis(widths, "width", "neurons")}
    made = train_grid(axes, p, grid.Program("analytic", unit, variables, own, steps=0), session)
    exact = modular.fourier_solution(p, 3 * (p - 1))
    expected = modular.fourier_logits(p, 3 * (p - 1))
    expected = np.where(np.eye(p)[truth] == 1, expected.right, expected.wrong)
    error = np.abs(logits(exact) - expected).max() / expected.max()
    other = modular.fourier_solution(p, widths[-1], part.seeds).readout
    wrong = modular.fourier_solution(p, widths[-1], 0)._replace(readout=other)
    return made.assign(
        exact_error=grid.array((), error, "error of the exact solution's logits"),
        wrong_phases_accuracy=grid.array((), accuracy(wrong), "accuracy with wrong phases"),
    )


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return grokking_corrupted_figures.figures(data, phases(data), kept_share(data), PERIODIC)
