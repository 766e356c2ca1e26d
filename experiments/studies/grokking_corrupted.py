"""Memorisation and generalisation coexist on corrupted modular addition (Doshi et al. 2023; Gromov 2023).

A two-layer network with quadratic activation learns a + b mod p although a part of its training labels is wrong, and
those too. Its neurons tell the two apart: periodic ones (high inverse participation ratio in the Fourier basis) carry
the rule and follow the analytic solution, the others carry the wrong labels and can be pruned. Weight decay, dropout
and BatchNorm make the network forget the wrong labels instead. The controls must fail: shuffled labels, pruning in
random or reverse order, the phases of the neurons that memorise.
"""

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
from experiments import losses, tasks
from experiments.claims import Claim, at_least, at_most
from experiments.loop import Session, train_runs
from experiments.studies import grokking_corrupted_figures
from experiments.tasks import modular
from experiments.train import Probe, Program, Setup, compile_program
from metrics import features

TITLE = "To grok or not to grok: memorisation beside generalisation"
PAPER = "Doshi et al. 2023, arXiv:2310.13061; Gromov 2023, arXiv:2301.02679"

KINDS = ("decay", "dropout", "batch_norm")
DOSHI, GROMOV = "Doshi et al. 2023", "Gromov 2023"
ACCURACIES = ("train", "corrupted", "restored", "test")
SHUFFLED = "shuffled labels"
# Phases: accuracy on test pairs of a network that generalises, on wrong labels of one that has learnt or dropped them.
GENERALISES, MEMORISES, FORGETS = 0.9, 0.85, 0.1
# Inverse participation ratio of a periodic neuron: above 1/2 no second frequency is as strong as the first.
PERIODIC = 0.5


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
    _check(config)
    return xr.merge(
        [
            _close_look(config, session),
            _phase_diagram(config, session),
            _transformer(config, session),
            _analytic(config),
        ]
    ).assign_attrs(modulus=config.task.modulus, label_noise=config.runs.noise)


def _check(config: Any) -> None:
    for kind, strength in (*config.runs.regularisers, *config.phases.regularisers):
        if kind not in KINDS:
            raise ValueError(f"unknown regulariser {kind!r}; there are: {', '.join(KINDS)}")
        if kind == "dropout" and not 0 <= strength < 1:
            raise ValueError(f"dropout is {strength}; it must lie in [0, 1)")
    for part in (config.runs, config.phases):
        names = [label(*regulariser) for regulariser in part.regularisers]
        if "none" not in names or len(set(names)) < len(names):
            raise ValueError(
                f"regularisers are {names}; name each once, and ('decay', 0.0), the network without"
            )
    if config.task.encoding != "tokens" or config.task.operation != "add":
        raise ValueError(
            f"task is {config.task.operation!r} of {config.task.encoding!r}; "
            "this study is about operation 'add' and encoding 'tokens'"
        )
    every = [(config.transformer.steps, config.transformer.probes)]
    for part in (config.runs, config.phases):
        every += [(part.steps, part.probes), (part.minibatch_steps, part.probes)]
    for steps, probes in every:
        if steps % probes:
            raise ValueError(f"steps ({steps}) must be a multiple of probes ({probes})")
    if config.network.width % config.runs.groups:
        raise ValueError(
            f"width ({config.network.width}) must be a multiple of groups ({config.runs.groups})"
        )


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


def _train(config, session, compiled, part, point, *, groups=0) -> dict[str, np.ndarray]:
    """Records of one run; ``compiled`` keeps the programs, with and without BatchNorm, of one number of examples."""
    name, kind, strength, fraction, noise, seed = point
    probes = part.probes
    data = regularised(examples(config, fraction, noise, seed), kind, strength)
    minibatch = kind == "batch_norm"
    if minibatch not in compiled:
        steps = _steps(part, kind) // probes
        compiled[minibatch] = program(config, kind, data, steps, probes, groups)
    rate = learning_rate(config, kind)
    records = train_runs(
        compiled[minibatch], data, [rate], [seed], chunks=probes, name=name, session=session
    )
    return {key: values[0] for key, values in records.items()}


def _close_look(config: Any, session: Session) -> xr.Dataset:
    part = config.runs
    settings = [(label(*setting), *setting, part.noise) for setting in part.regularisers]
    settings.append((SHUFFLED, "decay", 0.0, part.control_noise))
    compiled: dict[bool, Program] = {}
    records = [
        [
            _train(
                *(config, session, compiled, part),
                (f"{name}-{seed}".replace(" ", "-"), kind, strength, part.fraction, noise, seed),
                groups=part.groups,
            )
            for seed in part.seeds
        ]
        for name, kind, strength, noise in settings
    ]
    stacked = {
        key: np.stack([[run[key] for run in runs] for runs in records]) for key in records[0][0]
    }
    last = {key: values[:, :, -1] for key, values in stacked.items()}
    run = ("regulariser", "seed")
    curves = {name: ((*run, "time"), stacked[name]) for name in (*ACCURACIES, "ipr")}
    pruned = {
        f"pruned_{name}": ((*run, "order", "share"), last[f"pruned_{name}"]) for name in ACCURACIES
    }
    neurons = {
        name: ((*run, "neuron"), last[name])
        for name in ("neuron_ipr", "neuron_gain", "neuron_frequency")
    }
    others = {
        "neuron_phases": ((*run, "vector", "neuron"), last["neuron_phases"]),
        "shown_neuron": ((*run, "shown"), last["shown_neuron"]),
        "shown_weights": ((*run, "shown", "vector", "residue"), last["shown_weights"]),
        "step": (
            ("regulariser", "time"),
            [np.linspace(0, _steps(part, kind), part.probes + 1) for _, kind, *_ in settings],
        ),
    }
    coordinates = {
        "regulariser": [name for name, *_ in settings],
        "seed": list(part.seeds),
        "order": ["low", "high", "random"],
        "share": np.arange(part.groups + 1) / part.groups,
        "vector": ["U", "V", "W"],
    }
    return xr.Dataset(curves | pruned | neurons | others, coordinates)


# The phase diagram


def _phase_diagram(config: Any, session: Session) -> xr.Dataset:
    part = config.phases
    names = [label(*setting) for setting in part.regularisers]
    shape = (len(names), len(part.noises), len(part.fractions))
    results = {name: np.full(shape, np.nan) for name in (*ACCURACIES, "ipr")}
    for f, fraction in enumerate(part.fractions):
        compiled: dict[bool, Program] = {}
        for r, (kind, strength) in enumerate(part.regularisers):
            for n, noise in enumerate(part.noises):
                name = f"phase-{names[r]}-{fraction:g}-{noise:g}".replace(" ", "-")
                point = (name, kind, strength, fraction, noise, part.seed)
                records = _train(config, session, compiled, part, point)
                for key, values in results.items():
                    values[r, n, f] = records[key][-1]
    dims = ("phase_regulariser", "noise", "fraction")
    return xr.Dataset(
        {f"phase_{name}": (dims, values) for name, values in results.items()},
        {
            "phase_regulariser": names,
            "noise": list(part.noises),
            "fraction": list(part.fractions),
        },
    )


def phase(test: float, corrupted: float) -> str:
    """The phase of a network, from its accuracies on test pairs and on wrong training labels."""
    if test >= GENERALISES:
        if corrupted >= MEMORISES:
            return "coexistence"
        return "full inversion" if corrupted <= FORGETS else "partial inversion"
    return "memorisation" if corrupted > 0.5 else "forgetting"


# The Transformer


def _transformer(config: Any, session: Session) -> xr.Dataset:
    part = config.transformer
    if not part.decays:
        return xr.Dataset()
    config = config.copy_and_resolve_references()
    config.task.modulus = part.modulus
    compiled = None
    records = []
    for decay in part.decays:
        by_seed = []
        for seed in part.seeds:
            data = regularised(examples(config, part.fraction, part.noise, seed), "decay", decay)
            compiled = compiled or transformer_program(config, data)
            found = train_runs(
                compiled,
                data,
                [part.learning_rate],
                [seed],
                chunks=part.probes,
                name=f"transformer-{decay:g}-{seed}",
                session=session,
            )
            by_seed.append({key: values[0] for key, values in found.items()})
        records.append(by_seed)
    run = ("decay", "transformer_seed")

    def stack(key):
        return np.array([[run[key] for run in by_seed] for by_seed in records])

    curves = {
        f"transformer_{name}": ((*run, "transformer_time"), stack(name)) for name in ACCURACIES
    }
    pruned = {
        f"transformer_pruned_{name}": (
            (*run, "transformer_order", "transformer_share"),
            stack(f"pruned_{name}")[:, :, -1],
        )
        for name in ACCURACIES
    }
    return xr.Dataset(
        curves | pruned,
        {
            "decay": list(part.decays),
            "transformer_seed": list(part.seeds),
            "transformer_order": ["low", "high"],
            "transformer_share": np.arange(part.groups + 1) / part.groups,
            "transformer_step": (
                "transformer_time",
                np.linspace(0, part.steps, part.probes + 1),
            ),
        },
    )


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


def _analytic(config: Any) -> xr.Dataset:
    """Accuracy of the solution with random phases, its estimate, and the error of the exact one."""
    p, part = config.task.modulus, config.analytic
    pairs, truth = modular.table(p, "add")

    def logits(solution):
        return (solution.left[pairs[:, 0]] + solution.right[pairs[:, 1]]) ** 2 @ solution.readout

    def accuracy(solution):
        return float((logits(solution).argmax(axis=1) == truth).mean())

    widths = [count * (p - 1) // 2 for count in part.neurons_per_frequency]
    measured = [
        [accuracy(modular.fourier_solution(p, width, seed)) for seed in range(part.seeds)]
        for width in widths
    ]
    exact = modular.fourier_solution(p, 3 * (p - 1))
    expected = modular.fourier_logits(p, 3 * (p - 1))
    expected = np.where(np.eye(p)[truth] == 1, expected.right, expected.wrong)
    other = modular.fourier_solution(p, widths[-1], part.seeds).readout
    wrong = modular.fourier_solution(p, widths[-1], 0)._replace(readout=other)
    return xr.Dataset(
        {
            "analytic_accuracy": (("analytic_width", "analytic_seed"), measured),
            "analytic_predicted": (
                "analytic_width",
                [modular.fourier_accuracy(p, width) for width in widths],
            ),
            "exact_error": np.abs(logits(exact) - expected).max() / expected.max(),
            "wrong_phases_accuracy": accuracy(wrong),
        },
        {"analytic_width": widths, "analytic_seed": np.arange(part.seeds)},
    )


# Claims, with criteria fixed before the run


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data; of several seeds the worst counts."""
    return [
        *_coexistence_claims(data),
        *_pruning_claims(data),
        *_regularisation_claims(data),
        *_phase_claims(data),
        *_analytic_claims(data),
        *_transformer_claims(data),
    ]


def kept_share(data: xr.Dataset) -> float:
    """Expected share of training labels that are right: a redrawn one is with probability 1/p."""
    return 1 - data.attrs["label_noise"] * (1 - 1 / data.attrs["modulus"])


def _worst(judge, name, source, statement, values, bound, control=False) -> Claim:
    """A claim about the worst of the seeds, with their range as its interval."""
    low, high = float(values.min()), float(values.max())
    measured = low if judge is at_least else high
    return judge(name, source, statement, measured, bound, interval=(low, high), control=control)


def _coexistence_claims(data: xr.Dataset) -> list[Claim]:
    plain, source = data.sel(regulariser="none"), f"{DOSHI}, abstract (i)"
    last, shuffled = plain.isel(time=-1), data.sel(regulariser=SHUFFLED).isel(time=-1)
    learnt = plain.test.isel(time=(plain.train >= 0.99).argmax("time"))
    rule = "test accuracy, without regularisation,"
    mixed, redrawn = f"{rule} despite wrong labels", f"{rule} when every label is redrawn"
    memory = "share of the wrong training labels that the same network has learnt"
    delay = "test accuracy when 99% of the training labels are learnt"
    return [
        _worst(at_least, "C1 generalises", source, mixed, last.test, 0.95),
        _worst(at_least, "C1 control, shuffled", source, redrawn, shuffled.test, 0.95, True),
        _worst(at_least, "C2 memorises", source, memory, last.corrupted, 0.85),
        _worst(at_most, "C3 delayed", f"{GROMOV}, Fig. 1", delay, learnt, 0.5),
    ]


def _pruning_claims(data: xr.Dataset) -> list[Claim]:
    plain, source = data.sel(regulariser="none"), f"{DOSHI}, abstract (ii)"
    half = plain.sel(share=0.5, method="nearest")
    low, random, high = (half.sel(order=order) for order in ("low", "random", "high"))
    rule = "test accuracy without half of the neurons:"
    memory = "share of the wrong labels still given without half of the neurons:"
    off = "distance of the training accuracy, without the least periodic half, from the right share"
    least, chance, most = "the least periodic", "a random half", "the most periodic"
    gap = abs(low.pruned_train - kept_share(data))
    kept = plain.pruned_test.where(plain.pruned_corrupted >= MEMORISES).min("share")
    alone = f"least test accuracy while {MEMORISES:.0%} of the wrong labels stay, pruning first"
    return [
        _worst(at_least, "P1 rule stays", source, f"{rule} {least}", low.pruned_test, 0.98),
        _worst(
            at_least,
            "P1 control, random",
            source,
            f"{rule} {chance}",
            random.pruned_test,
            0.98,
            True,
        ),
        _worst(
            at_least, "P1 control, reverse", source, f"{rule} {most}", high.pruned_test, 0.98, True
        ),
        _worst(at_most, "P2 memory goes", source, f"{memory} {least}", low.pruned_corrupted, 0.1),
        _worst(
            at_most,
            "P2 control, random",
            source,
            f"{memory} {chance}",
            random.pruned_corrupted,
            0.1,
            True,
        ),
        _worst(at_most, "P3 right share", source, off, gap, 0.03),
        _worst(at_most, "P4 memory alone", source, f"{alone} {most}", kept.sel(order="high"), 0.2),
        _worst(
            at_most,
            "P4 control, reverse",
            source,
            f"{alone} {least}",
            kept.sel(order="low"),
            0.2,
            True,
        ),
    ]


def _regularisation_claims(data: xr.Dataset) -> list[Claim]:
    last, stages = data.isel(time=-1), f"{DOSHI}, abstract"
    restored = "share of the wrongly labelled training pairs that are answered right"
    peak = "highest training accuracy on the way, wrong labels included"
    off = "distance of the last training accuracy from the share of right labels"
    periodic = "mean inverse participation ratio of all neurons"
    made = []
    for name in map(str, data.regulariser.values):
        if name == SHUFFLED:
            continue
        run, bare = last.sel(regulariser=name), name in ("none", "batch norm")
        if name != "batch norm":
            made.append(
                _worst(
                    at_least,
                    "R1 control, none" if bare else f"R1 unlearns, {name}",
                    f"{DOSHI}, abstract (iii)",
                    *(restored, run.restored, 0.95, bare),
                )
            )
        made.append(
            _worst(
                at_least,
                f"R2 control, {name}" if bare else f"R2 periodic, {name}",
                f"{DOSHI}, abstract (iv)",
                *(periodic, run.ipr, 0.6, bare),
            )
        )
        if bare:
            continue
        train = data.train.sel(regulariser=name)
        gap = abs(train.isel(time=-1) - kept_share(data))
        made.append(
            _worst(at_least, f"R3 first learns, {name}", stages, peak, train.max("time"), 0.95)
        )
        made.append(_worst(at_most, f"R3 then unlearns, {name}", stages, off, gap, 0.03))
    if "batch norm" in data.regulariser:
        normed = last.sel(regulariser="batch norm")
        follow = xr.corr(normed.neuron_gain, normed.neuron_ipr, "neuron")
        words = (
            "correlation over neurons of BatchNorm's |gain| with the inverse participation ratio"
        )
        made += [
            _worst(
                at_least,
                "R4 generalises, batch norm",
                f"{DOSHI}, abstract (iii)",
                *("test accuracy", normed.test, 0.95),
            ),
            _worst(
                at_least,
                "R5 gains, batch norm",
                f"{DOSHI}, abstract (iv)",
                *(words, follow, 0.7),
            ),
        ]
    return made


def phases(data: xr.Dataset) -> xr.DataArray:
    """The phase of every cell of the phase diagram, in words."""
    named = np.vectorize(phase, otypes=[object])
    return xr.apply_ufunc(named, data.phase_test, data.phase_corrupted)


def _phase_claims(data: xr.Dataset) -> list[Claim]:
    source = f"{DOSHI}, phase diagrams"
    every = (
        "number of phases met, of coexistence, partial and full inversion, memorisation, forgetting"
    )
    made = [at_least("D1 phases", source, every, len(set(phases(data).values.flat)), 5)]
    plain = data.phase_test.sel(phase_regulariser="none")
    falls = np.concatenate(
        [-plain.diff("fraction").values.ravel(), plain.diff("noise").values.ravel()]
    )
    made.append(
        at_most(
            "D2 order, none",
            source,
            "largest fall of the test accuracy from a cell to the next with more data or less noise",
            falls.max() if falls.size else np.nan,
            0.1,
        )
    )
    inverted = "share of the cells that generalise in which no wrong label is kept (full inversion)"
    reach = "number of cells that generalise, over that without regularisation"
    cells = int((plain >= GENERALISES).sum())
    for name in map(str, data.phase_regulariser.values):
        run, bare = data.sel(phase_regulariser=name), name == "none"
        generalises = run.phase_test >= GENERALISES
        if name == "batch norm" or not (bare or generalises.any()):
            continue
        full = (generalises & (run.phase_corrupted <= FORGETS)).sum() / max(generalises.sum(), 1)
        title = "D3 control, none" if bare else f"D3 inversion, {name}"
        made.append(at_least(title, source, inverted, float(full), 0.5, control=bare))
        if not bare:
            ratio = float(generalises.sum()) / max(cells, 1)
            made.append(at_least(f"D4 reach, {name}", source, reach, ratio, 1.0))
    return made


def _phase_mismatch(data: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean cosine of W's phase minus those of U and V, over the periodic neurons and over the others, by seed."""
    u, v, w = (data.neuron_phases.sel(vector=name) for name in "UVW")
    cosine, periodic = np.cos(w - u - v), data.neuron_ipr >= PERIODIC
    return cosine.where(periodic).mean("neuron"), cosine.where(~periodic).mean("neuron")


def _analytic_claims(data: xr.Dataset) -> list[Claim]:
    source = f"{GROMOV}, analytic solution"
    follow = "mean cosine of phase(W) - phase(U) - phase(V), which is 0 in the solution, over the"
    above, below = f"neurons of ratio {PERIODIC:g} or more", f"neurons of ratio below {PERIODIC:g}"
    exact = "largest relative error of the logits of 3 (p - 1) neurons with phases on the lattice"
    random = "largest distance of the mean accuracy with random phases from the predicted one"
    wrong = "accuracy of the analytic solution"
    best = float(data.analytic_accuracy.isel(analytic_width=-1).min())
    off = abs(data.analytic_accuracy.mean("analytic_seed") - data.analytic_predicted)
    made = []
    for name in map(str, data.regulariser.values):
        periodic, others = _phase_mismatch(data.sel(regulariser=name))
        if (
            name == "none"
        ):  # its periodic neurons hold some of the wrong labels too: drawn, not judged
            words = f"{follow} {below}, no regularisation"
            made.append(_worst(at_least, "A1 control, none", source, words, others, 0.95, True))
        elif name not in (SHUFFLED, "batch norm"):
            words = f"{follow} {above}"
            made.append(_worst(at_least, f"A1 phases, {name}", source, words, periodic, 0.95))
    fails = float(data.wrong_phases_accuracy)
    unphased = f"{wrong} with the readout's phases drawn anew"
    return [
        *made,
        at_most("A2 exact", "derived", exact, float(data.exact_error), 1e-10),
        at_least("A3 solves", source, f"{wrong}, random phases, largest width", best, 0.99),
        at_least("A3 control", source, unphased, fails, 0.99, control=True),
        at_most("A4 predicted", "derived", random, float(off.max()), 0.05),
    ]


def _transformer_claims(data: xr.Dataset) -> list[Claim]:
    if "decay" not in data.coords:
        return []
    last, source = data.isel(transformer_time=-1), f"{DOSHI}, Transformers"
    made = []
    for decay in data.decay.values:
        run, control = last.sel(decay=decay), bool(decay == 0)
        name = "T1 control, no decay" if control else f"T1 generalises, decay {decay:g}"
        words = "test accuracy of the Transformer"
        made.append(_worst(at_least, name, source, words, run.transformer_test, 0.9, control))
    memory = "share of the wrong training labels that the same Transformer has learnt"
    made.append(_worst(at_least, "T2 memorises", source, memory, run.transformer_corrupted, 0.85))
    words = (
        "less the same when the most periodic go first, mean over the shares pruned and the seeds"
    )
    for quantity, what in (("test", "test accuracy"), ("corrupted", "share of wrong labels given")):
        curves = run[f"transformer_pruned_{quantity}"].isel(transformer_share=slice(1, -1))
        gap = curves.sel(transformer_order="low") - curves.sel(transformer_order="high")
        by_seed = gap.mean("transformer_share")
        made.append(
            at_least(
                "T3 the rule is periodic" if quantity == "test" else "T3 control, memory",
                source,
                f"{what}, when the least periodic neurons are pruned, {words}",
                float(by_seed.mean()),
                0.1,
                interval=(float(by_seed.min()), float(by_seed.max())),
                control=quantity != "test",
            )
        )
    return made


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return grokking_corrupted_figures.figures(data, phases(data), kept_share(data), PERIODIC)
