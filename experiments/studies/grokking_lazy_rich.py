"""Grokking is the transition from lazy to rich training (Kumar et al. 2024).

Polynomial regression with a two-layer network whose output scale alpha sets how late features are learnt and whose
epsilon sets how far the initial ones are aligned with the target; then an MLP on digits. Gradient descent of the
two-layer network is followed through the exact closed dynamics of its weight moments (`limits.mean_field`), drawn over
explicit networks of finite width. Controls: the lazy network, features aligned from the start, too few and too many
examples, which must not grok; and a falling weight norm, which must not be the explanation.
"""

# One file, read from top to bottom: the problem, its closed dynamics, the sweeps that follow it, and their figures.

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from scipy.sparse.linalg import eigsh

import metrics
import models
from experiments import checks, grid, losses, tasks, train
from experiments.grid import Axis, Training, Variable, train_grid
from experiments.loop import Session, seconds
from experiments.studies import grokking_lazy_rich_figures
from experiments.studies.grokking_lazy_rich_claims import claims, crossing, times
from experiments.tasks import polynomials
from limits import dmft, mean_field
from limits.mean_field import Moments, Target

TITLE = "Grokking as the transition from lazy to rich training"
PAPER = "Kumar, Bordelon, Gershman & Pehlevan 2024, arXiv:2310.06110"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps", "work"]


class Problem(NamedTuple):
    """A training set, the target in closed form, and fresh examples on which kernels are measured."""

    x: jax.Array
    y: jax.Array
    target: Target
    fresh_x: jax.Array
    fresh_y: jax.Array


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    seeds, net, digits = len(config.seeds), config.network, config.digits
    parts = [
        len(config.sweep.alphas) * seeds * config.sweep.steps,
        len(config.epsilons.grid) * seeds * config.epsilons.steps,
        len(config.aligned.strengths) * seeds * config.aligned.steps,
        len(config.examples.num_train) * len(config.examples.seeds) * config.examples.steps,
        (len(config.widths.widths) + 1) * seeds * config.widths.steps,
        len(config.map.alphas)
        * len(config.map.epsilons)
        * len(config.map.seeds)
        * config.map.steps,
        len(net.alphas) * len(net.batch_sizes) * len(net.seeds) * net.steps,
        len(digits.alphas) * len(digits.seeds) * digits.steps,
    ]
    return sum(parts)


def work(config: Any) -> dict[str, tuple[int, float]]:
    """Steps of every part, and what one costs: moments of D^2 entries on P examples, or networks on their batches."""
    dim, number, digits, net = config.task.dim, config.task.num_train, config.digits, config.network
    seeds = len(config.seeds)

    def closed(count: int, part: Any, examples: int = number, size: int = dim) -> tuple:
        return count * part.steps, seconds(12.0 * examples * size**2)

    part, found = config.examples, {}
    for examples in part.num_train:
        name = grid.label("examples", (examples,))
        found[name] = closed(len(part.seeds), part, examples)
    part = config.map
    cells = len(part.alphas) * len(part.epsilons) * len(part.seeds)
    found |= {
        "sweep": closed(len(config.sweep.alphas) * seeds, config.sweep),
        "epsilon": closed(len(config.epsilons.grid) * seeds, config.epsilons),
        "aligned": closed(len(config.aligned.strengths) * seeds, config.aligned),
        "widths": closed((len(config.widths.widths) + 1) * seeds, config.widths),
        "map": closed(cells, part, part.num_train, part.dim),
    }
    for batch in net.batch_sizes:
        steps = len(net.alphas) * len(net.seeds) * net.steps
        name = grid.label("network", (batch,))
        found[name] = steps, seconds(12.0 * (batch or number) * dim * net.width)
    task = tasks.load(digits.task)
    weights = task.train.x[0].size * digits.width + digits.depth * digits.width**2
    steps = len(digits.alphas) * len(digits.seeds) * digits.steps
    probed = (
        len(task.train.x) + len(task.test.x)
    ) / digits.chunk  # examples of a probe, for each step
    return found | {"digits": (steps, seconds(6.0 * weights * (digits.batch_size + probed / 3)))}


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/grokking_lazy_rich.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: the task is no polynomial of second degree, or steps are no multiple of chunk.
    """
    session = session or Session()
    check(config, tasks.load(config.task))
    parts = (_sweep, _network, _widths, _grids, _dmft, _digits)
    data = xr.merge([part(config, session) for part in parts])
    return data.assign_attrs(
        num_train=config.task.num_train,
        threshold=config.threshold,
        network_width=config.network.width,
    )


_SHARE = checks.real(0, 1, inside=True)
_POSITIVES = checks.several(checks.positive(), ascending=True)
RULES = {
    "task.name": checks.choice(("polynomial",)),
    "task.coefficients": checks.several(checks.real(), 2, distinct=False, most=3),
    "epsilon": checks.positive(),
    "learning_rate": checks.positive(),
    "threshold": _SHARE,
    "seeds": checks.SEEDS,
    "records": checks.whole(20, 10**6),  # times are read off between them
    "sweep.alphas": checks.several(checks.positive(), ascending=True, needs=(0.25, 1.0, 4.0)),
    "network.width": checks.WIDTH,
    "network.alphas": _POSITIVES,
    "network.seeds": checks.SEEDS,
    "network.batch_sizes": checks.several(checks.whole(0), needs=(0,)),
    "network.steps": checks.STEPS,
    "network.chunk": checks.STEPS,
    "widths.widths": checks.widths(3),
    "widths.alpha": checks.positive(),
    "epsilons.grid": checks.several(checks.positive(), 2, ascending=True),
    "epsilons.alpha": checks.positive(),
    "epsilons.threshold": _SHARE,
    "examples.num_train": checks.several(checks.whole(), ascending=True),
    "examples.alpha": checks.positive(),
    "examples.seeds": checks.SEEDS,
    "aligned.strengths": checks.several(checks.real(0), 2, ascending=True, needs=(0.0,)),
    "aligned.alpha": checks.positive(),
    "map.dim": checks.whole(),
    "map.num_train": checks.whole(),
    "map.alphas": _POSITIVES,
    "map.epsilons": _POSITIVES,
    "map.seeds": checks.SEEDS,
    "dmft.overlap": checks.several(checks.real(-1, 1), distinct=False),
    "dmft.density": checks.positive(),
    "dmft.alpha": checks.positive(),
    "dmft.epsilon": checks.positive(),
    "dmft.learning_rate": checks.positive(),
    "dmft.steps": checks.whole(1, 10**4),
    "dmft.samples": checks.whole(2),
    "dmft.dims": checks.several(checks.whole(2), ascending=True),
    "digits.width": checks.WIDTH,
    "digits.depth": checks.DEPTH,
    "digits.init_scale": checks.positive(),
    "digits.alphas": checks.several(checks.positive(), 2, ascending=True),
    "digits.learning_rate": checks.positive(),
    "digits.weight_decay": checks.positive(),
    "digits.batch_size": checks.whole(),
    "digits.seeds": checks.SEEDS,
    "digits.steps": checks.STEPS,
    "digits.chunk": checks.STEPS,
}
CLOSED = ("sweep", "widths", "epsilons", "examples", "aligned", "map")
"""Parts that follow the closed dynamics, at the steps of `record_steps`."""


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    steps = {f"{part}.steps": checks.STEPS for part in CLOSED}
    checks.values(config, RULES | steps)
    if config.task.coefficients[0]:
        checks.refuse(
            "task.coefficients[0]", config.task.coefficients[0], "0: the network has no constant"
        )
    if config.task.seed != tasks.default_config("polynomial").seed:
        checks.refuse("task.seed", config.task.seed, "left alone: seeds sets those of the data")
    for part in CLOSED:
        if config.records > config[part].steps:
            checks.refuse("records", config.records, f"at most {part}.steps, {config[part].steps}")
    for path in ("network", "digits"):
        checks.multiple(config, f"{path}.steps", "chunk")
    checks.six_digits("network.alphas", config.network.alphas)
    if config.task.num_train not in config.examples.num_train:
        allowed = (
            f"a tuple that includes task.num_train, {config.task.num_train}: a claim is about it"
        )
        checks.refuse("examples.num_train", config.examples.num_train, allowed)
    if round(config.dmft.density * config.dmft.dims[0]) < 1:
        checks.refuse(
            "dmft.density", config.dmft.density, "at least one example in every dimension"
        )
    _check_sizes(config)
    _check_rate(config)
    digits = checks.context("digits.task", tasks.load, config.digits.task, "digits.task")
    checks.classes(digits)
    if len(digits.test.x) < 100:
        raise ValueError(
            f"config.digits.task: {digits.name} has {len(digits.test.x)} test examples; accuracies of .85 need 100"
        )
    size = (
        digits.train.x[0].size * config.digits.width + config.digits.depth * config.digits.width**2
    )
    batch = config.digits.batch_size * (digits.train.x[0].size + config.digits.width)
    checks.memory("config.digits", 4.0 * size + batch)


def _check_rate(config: Any) -> None:
    """The linearised network must converge on every training set on which it is followed (`lazy_loss`)."""
    part, start = config.examples, mean_field.infinite_width(config.task.dim)
    sets = {(seed, config.task.num_train) for seed in config.seeds}
    for seed, number in sorted(sets | set(itertools.product(part.seeds, part.num_train))):
        x = problem(config, seed, number, config.task.dim).x
        kernel = np.asarray(mean_field.tangent_kernel(start, x, epsilon=config.epsilon), np.float64)
        values = np.linalg.eigvalsh(kernel) if number < 50 else eigsh(kernel, 1)[0]
        limit = number / values[-1]
        if not config.learning_rate < limit:
            allowed = f"below {limit:.3g}, to converge on {number} examples of seed {seed}"
            checks.refuse("learning_rate", config.learning_rate, allowed)


def _check_sizes(config: Any) -> None:
    dim, most = config.task.dim, max(*config.examples.num_train, config.task.num_train)
    checks.memory("config.task: the moments of the weights", 2.0 * (config.records + 1) * dim**2)
    checks.memory("config.task: the examples", 2.0 * dim * (most + config.task.num_test), 8)
    part = config.map
    checks.memory(
        "config.map", 2.0 * (config.records + 1) * part.dim**2 + part.dim * part.num_train, 8
    )
    widest = max(config.network.width, *config.widths.widths)
    checks.memory("the widest network", 4.0 * widest * dim)
    checks.memory("config.network.batch_sizes", float(max(config.network.batch_sizes)) * dim)
    records = config.network.steps // config.network.chunk + 1
    checks.memory("config.network: records of its moments", float(records) * dim**2)
    part = config.dmft
    checks.memory("config.dmft.dims", (part.steps + 1.0) * part.dims[-1] ** 2)
    checks.memory("config.dmft.samples", 4.0 * part.samples * (part.steps + 1) * len(part.overlap))


# The closed dynamics

_population_loss = jax.jit(mean_field.population_loss)


def problem(config: Any, seed: int, num_train: int, dim: int, fresh: int = 200) -> Problem:
    """The training set of a data seed, and the function behind it."""
    chosen = config.task.copy_and_resolve_references()
    chosen.seed, chosen.num_train, chosen.dim = seed, num_train, dim
    task = tasks.load(chosen)
    beta = jnp.asarray(polynomials.direction(dim, seed), jnp.float32)
    _, linear, square = (*chosen.coefficients, 0.0, 0.0)[:3]
    target = Target(linear * beta, 2 * square * jnp.outer(beta, beta))
    (x, y), (fresh_x, fresh_y) = (
        jax.tree.map(jnp.asarray, data) for data in (task.train, task.test)
    )
    return Problem(x, y[:, 0], target, fresh_x[:fresh], fresh_y[:fresh, 0])


def record_steps(config: Any, steps: int) -> np.ndarray:
    """0, and ``config.records`` whole numbers up to ``steps``, about evenly spaced in their logarithm.

    Always as many, so that all experiments of one shape share their programs.
    """
    ideal = np.round(np.geomspace(1, steps, config.records)).astype(int)
    rising = np.maximum.accumulate(ideal - np.arange(config.records)) + np.arange(config.records)
    return np.concatenate([[0], rising])


def follow(
    config: Any,
    session: Session,
    steps: int,
    *,
    seed: int,
    alpha: float,
    epsilon: float | None = None,
    num_train: int | None = None,
    dim: int | None = None,
    strength: float = 0.0,
    width: int | None = None,
) -> tuple[Moments, dict[str, np.ndarray]]:
    """The closed dynamics of one network at `record_steps`; what is None is as in the config, the width infinite.

    Returns:
        The change of the moments, and `observables` along it.
    """
    epsilon = config.epsilon if epsilon is None else epsilon
    dim, num_train = dim or config.task.dim, num_train or config.task.num_train
    data = problem(config, seed, num_train, dim)
    start = mean_field.infinite_width(dim)
    if width:
        weights = np.float32(np.random.default_rng([seed, width]).standard_normal((width, dim)))
        start = Moments(weights.mean(axis=0), weights.T @ weights / width)
    if strength:
        beta = jnp.asarray(polynomials.direction(dim, seed), jnp.float32)
        start = mean_field.aligned(start, beta, strength)
    setting = {"alpha": jnp.float32(alpha), "epsilon": jnp.float32(epsilon)}
    times, rate = record_steps(config, steps), config.learning_rate
    path = mean_field.gradient_descent(
        start, (data.x, data.y), times, learning_rate=rate, **setting
    )
    curves = jax.device_get(observables(path, start, data, **setting))
    session.progress(steps, f"alpha {alpha:g}", float(curves["train"][-1]))
    return mean_field.subtract(path, start), curves


@jax.jit
def observables(path: Moments, start: Moments, data: Problem, *, alpha, epsilon) -> dict:
    """What the moments say about a centred network: losses, its kernel against the target's and its first one."""
    change = mean_field.subtract(path, start)
    outputs = jax.lax.map(
        lambda m: mean_field.predict(m, data.x, alpha=alpha, epsilon=epsilon), change
    )
    parts = mean_field.population_loss(change, data.target, alpha=alpha, epsilon=epsilon)
    first = mean_field.tangent_kernel(start, data.fresh_x, epsilon=epsilon)

    def kernels(m):
        kernel = mean_field.tangent_kernel(m, data.fresh_x, epsilon=epsilon)
        moved = metrics.kernels.relative_change(kernel, first)
        return moved, metrics.kernels.target_alignment(kernel, data.fresh_y)

    movement, cka = jax.lax.map(kernels, path)
    return {
        "train": jnp.mean((outputs - data.y[None]) ** 2, axis=1),
        "test": parts.total,
        **parts._asdict(),
        "movement": movement,
        "cka": cka,
        "norm": jnp.sqrt(jnp.trace(path.second, axis1=1, axis2=2)),
    }


WORDS = {
    "train": "training loss",
    "test": "test loss",
    "variance": "squared error of the mean output",
    "misalignment": "error in quadratic features other than the target's",
    "linear_power": "error of the linear part",
    "movement": "change of the kernel",
    "cka": "alignment of the kernel with the target",
    "norm": "norm of the weights",
}


def _seeds(values: Any) -> Axis:
    return Axis(list(values), "seed")


def _record_axis(steps: Any) -> Axis:
    return Axis(steps, "training step", "steps")


ALPHA, EPSILON = "output scale alpha", "alignment epsilon of the initial features"


def _sweep(config: Any, session: Session) -> xr.Dataset:
    part = config.sweep
    steps = record_steps(config, part.steps)

    def unit(config, seed, alpha):
        return follow(config, Session(), part.steps, seed=seed, alpha=alpha)[1]

    def lazy(config, seed):
        loss = lazy_loss(config, seed, [*steps, np.inf])
        return {"lazy_test": loss[:-1], "regression_loss": loss[-1]}

    curves = grid.variables("sweep_step", **WORDS)
    kernel = {
        "lazy_test": Variable("test loss of the linearised network", dims=("sweep_step",)),
        "regression_loss": Variable("test loss of kernel regression"),
    }
    seeds = {"seed": _seeds(config.seeds)}
    axes, own = (
        seeds | {"alpha": Axis(list(part.alphas), ALPHA)},
        {"sweep_step": _record_axis(steps)},
    )
    rich = grid.Program("sweep", unit, curves, own, steps=part.steps)
    linear = grid.Program("lazy", lazy, kernel, own, steps=0)
    return xr.merge(
        [train_grid(axes, config, rich, session), train_grid(seeds, config, linear, session)]
    )


def lazy_loss(config: Any, seed: int, steps: Any, num_train: int | None = None) -> np.ndarray:
    """Test loss of the network linearised at its start; at infinity that of kernel regression."""
    dim = config.task.dim
    data = problem(config, seed, num_train or config.task.num_train, dim)
    path = mean_field.lazy_descent(
        mean_field.infinite_width(dim),
        (data.x, data.y),
        steps,
        epsilon=config.epsilon,
        learning_rate=config.learning_rate,
    )
    loss = _population_loss(path, data.target, alpha=1.0, epsilon=config.epsilon)
    return np.asarray(loss.total)


def _delays(config, session, name, part, axes, arguments, **fixed) -> xr.Dataset:
    """Training and test times, first CKA and last over first test loss over a grid of settings.

    ``arguments`` are those of `follow` that the axes vary.
    """
    steps = record_steps(config, part.steps)
    threshold = config.threshold
    test_threshold = part.threshold if name == "epsilon" else threshold

    def unit(config, **point):
        varied = dict(zip(arguments, point.values()))
        _, curves = follow(config, Session(), part.steps, **fixed, **varied)
        test = curves["test"]
        found = {
            "train_time": crossing(steps, curves["train"], threshold),
            "test_time": crossing(steps, test, test_threshold),
            "cka": curves["cka"][0],
            "first": test[0],
            "final": test[-1] / test[0],
        }
        return {f"{name}_{key}": value for key, value in found.items()}

    variables = {
        f"{name}_train_time": Variable("step at which the training loss is low", "steps"),
        f"{name}_test_time": Variable("step at which the test loss is low", "steps"),
        f"{name}_cka": Variable("first alignment of the kernel with the target"),
        f"{name}_first": Variable("first test loss"),
        f"{name}_final": Variable("last over first test loss"),
    }
    program = grid.Program(name, unit, variables, steps=part.steps)
    return train_grid(axes, config, program, session)


def _grids(config: Any, session: Session) -> xr.Dataset:
    """Delays against epsilon, the number of examples, initial alignment, and over alpha x epsilon."""
    delays, seeds = functools.partial(_delays, config, session), _seeds(config.seeds)
    part = config.epsilons
    axes = {"epsilon": Axis(list(part.grid), EPSILON), "seed": seeds}
    found = [delays("epsilon", part, axes, ("epsilon", "seed"), alpha=part.alpha)]
    part = config.examples
    numbers = Axis(list(part.num_train), "training examples", "examples")
    axes = {"num_train": numbers, "examples_seed": _seeds(part.seeds)}
    found.append(delays("examples", part, axes, ("num_train", "seed"), alpha=part.alpha))
    found.append(_regression(config, session, axes))
    part = config.aligned
    axes = {"strength": Axis(list(part.strengths), "initial alignment"), "seed": seeds}
    found.append(delays("aligned", part, axes, ("strength", "seed"), alpha=part.alpha))
    part = config.map
    axes = {
        "map_epsilon": Axis(list(part.epsilons), EPSILON),
        "map_alpha": Axis(list(part.alphas), ALPHA),
        "map_seed": _seeds(part.seeds),
    }
    fixed = {"dim": part.dim, "num_train": part.num_train}
    found.append(delays("map", part, axes, ("epsilon", "alpha", "seed"), **fixed))
    return xr.merge(found)


def _regression(config: Any, session: Session, axes: dict[str, Axis]) -> xr.Dataset:
    def unit(config, num_train, examples_seed):
        return {"examples_regression": lazy_loss(config, examples_seed, [np.inf], num_train)[0]}

    variables = {"examples_regression": Variable("test loss of kernel regression")}
    return train_grid(axes, config, grid.Program("regression", unit, variables, steps=0), session)


# Explicit networks of finite width


def draw_weights(key: jax.Array, width: int, dim: int) -> jax.Array:
    """Weights of the finite network, (width, dim), independent N(0, 1)."""
    return jax.random.normal(key, (width, dim))


def network_setup(width: int, dim: int, centered: bool, data: dict[str, Any]) -> train.Setup:
    """The finite network: loss over alpha^2, learning rate times width, and its own start beside its weights."""

    def init(key):
        weights = draw_weights(key, width, dim)
        return {"hidden": weights, "start": weights}

    def loss(params, batch):
        return jnp.mean(_errors(params, batch, data, centered) ** 2) / data["alpha"] ** 2

    return train.Setup(init, loss, lambda rate: optax.sgd(rate * width))


def _errors(params, batch, setting, centered):
    x, y = batch
    apply = functools.partial(
        mean_field.apply, x=x, alpha=setting["alpha"], epsilon=setting["epsilon"]
    )
    first = apply(jax.lax.stop_gradient(params["start"])) if centered else 0.0
    return apply(params["hidden"]) - first - y


def _network(config: Any, session: Session) -> xr.Dataset:
    """Networks trained by (stochastic) gradient descent, and the closed dynamics from the same weights."""
    part, task = config.network, config.task
    data = problem(config, config.seeds[0], task.num_train, task.dim, fresh=task.num_test)
    arrays = {"train": (data.x, data.y), "test": (data.fresh_x, data.fresh_y)}
    steps = np.arange(0, part.steps + 1, part.chunk)

    def setting(alpha):
        return {"alpha": jnp.float32(alpha), "epsilon": jnp.float32(config.epsilon)}

    def explicit(arrays, batch_size, network_alpha):
        return _training(config, arrays | setting(network_alpha), batch_size)

    def closed(arrays, network_alpha, network_seed):
        path = _closed(config, arrays, steps, network_seed, setting(network_alpha))
        return {"closed_loss": path}

    sizes = {"batch_size": Axis(list(part.batch_sizes), "batch size, 0 for all", "examples")}
    alphas = {"network_alpha": Axis(list(part.alphas), ALPHA)}
    seeds = {"network_seed": _seeds(part.seeds)}
    own = {"data": Axis(["train", "test"], "examples"), "network_step": _record_axis(steps)}
    trained = Variable("mean squared error", dims=("network_seed", "data", "network_step"))
    followed = Variable("mean squared error, closed dynamics", dims=("data", "network_step"))
    network = grid.Program("network", explicit, {"network_loss": trained}, seeds | own, trains=True)
    theory = grid.Program("closed", closed, {"closed_loss": followed}, own, steps=0)
    return xr.merge(
        [
            train_grid(sizes | alphas, arrays, network, session),
            train_grid(alphas | seeds, arrays, theory, session),
        ]
    )


def _training(config: Any, data: dict[str, Any], batch_size: int) -> Training:
    """Losses of the explicit networks of one alpha, (seeds, 2, records); all alphas share a program."""
    part = config.network

    def measure(params, carry, rate, data):
        return carry, {
            key: jnp.mean(_errors(params, data[key], data, part.centered) ** 2)
            for key in ("train", "test")
        }

    def compile():
        return train.compile_program(
            functools.partial(network_setup, part.width, config.task.dim, part.centered),
            data,
            steps=part.chunk,
            batch_size=batch_size or None,
            probe=train.Probe(lambda params, key, data: (), measure),
        )

    def keep(records):
        return {"network_loss": np.stack([records["train"], records["test"]], axis=1)}

    rates, chunks = [config.learning_rate] * len(part.seeds), part.steps // part.chunk
    return Training(compile, batch_size, data, rates, part.seeds, chunks, part.steps, keep)


def _closed(config, arrays, steps, seed, setting) -> list[jax.Array]:
    """Training and test loss of the closed dynamics from the network's own weights."""
    part = config.network
    weights = draw_weights(train.stream(seed, train.INIT), part.width, config.task.dim)
    start = mean_field.moments(weights)
    path = mean_field.gradient_descent(
        start,
        arrays["train"],
        steps,
        learning_rate=config.learning_rate,
        centered=part.centered,
        **setting,
    )
    path = mean_field.subtract(path, start) if part.centered else path
    return [_mean_squares(path, arrays[key], setting) for key in ("train", "test")]


@jax.jit
def _mean_squares(path, batch, setting):
    x, y = batch
    return jax.lax.map(lambda m: jnp.mean((mean_field.predict(m, x, **setting) - y) ** 2), path)


def _widths(config: Any, session: Session) -> xr.Dataset:
    """How far outputs of finite networks are from those at infinite width: rms over inputs and steps, relative."""
    part, dim = config.widths, config.task.dim
    zero = Target(np.zeros(dim, np.float32), np.zeros((dim, dim), np.float32))

    def size(change):
        power = _population_loss(change, zero, alpha=part.alpha, epsilon=config.epsilon).total
        return np.sqrt(np.mean(power))

    def unit(config, seed):
        setting = {"seed": seed, "alpha": part.alpha}
        limit, *nets = (
            follow(config, Session(), part.steps, width=width, **setting)[0]
            for width in (None, *part.widths)
        )
        distances = [size(mean_field.subtract(net, limit)) / size(limit) for net in nets]
        return {"width_distance": distances}

    words = "distance of outputs from infinite width"
    variables = {"width_distance": Variable(words, dims=("width",))}
    own = {"width": Axis(list(part.widths), "width", "neurons")}
    steps = (len(part.widths) + 1) * part.steps
    program = grid.Program("widths", unit, variables, own, steps=steps)
    made = train_grid({"seed": _seeds(config.seeds)}, config, program, session)
    distances = made["width_distance"].values
    fit = metrics.fit_power_law(part.widths, distances, jax.random.key(0))
    law = [fit.exponent, *fit.exponent_interval, fit.prefactor]
    names = grid.array("law", ["exponent", "low", "high", "prefactor"], "number of the power law")
    law = grid.array("law", law, f"power law of the {words}")
    return made.transpose("width", "seed").assign(width_law=law).assign_coords(law=names)


def _dmft(config: Any, session: Session) -> xr.Dataset:
    """Narrow networks of several dimensions, without centring, and the theory of infinite dimension."""
    part = config.dmft

    def theory(part):
        path = dmft.high_dimensional_descent(
            part.overlap,
            jax.random.key(0),
            density=part.density,
            learning_rate=part.learning_rate,
            steps=part.steps,
            num_samples=part.samples,
            alpha=part.alpha,
            epsilon=part.epsilon,
        )
        return {"dmft_theory": [path.train_loss, path.test_loss]}

    def network(part, dim, seed):
        return {"dmft_network": _high_dimensional(part, dim, seed)}

    dims = ("data", "dmft_step")
    own = {
        "data": Axis(["train", "test"], "examples"),
        "dmft_step": _record_axis(np.arange(part.steps + 1)),
    }
    axes = {"dim": Axis(list(part.dims), "dimension of the inputs"), "seed": _seeds(config.seeds)}
    measured = {"dmft_network": Variable("mean squared error", dims=dims)}
    predicted = {"dmft_theory": Variable("mean squared error, infinite dimension", dims=dims)}
    finite = grid.Program("dmft-network", network, measured, own, steps=0)
    infinite = grid.Program("dmft-theory", theory, predicted, own, steps=0)
    return xr.merge(
        [train_grid(axes, part, finite, session), train_grid({}, part, infinite, session)]
    )


def _high_dimensional(part, dim, seed) -> list[jax.Array]:
    """Training and test loss of one network whose overlaps with the direction are exactly those given."""
    rng, overlap = np.random.default_rng([seed, dim]), np.array(part.overlap)[:, None]
    beta = rng.standard_normal(dim)
    beta *= np.sqrt(dim) / np.linalg.norm(beta)
    weights = rng.standard_normal((len(overlap), dim))
    weights -= (weights @ beta)[:, None] * beta / dim
    weights = overlap * beta + np.sqrt(1 - overlap**2) * weights
    x = rng.standard_normal((round(part.density * dim), dim)) / np.sqrt(dim)
    train_set = np.float32(x), np.float32((x @ beta) ** 2)
    start = Moments(
        np.float32(weights.mean(axis=0)), np.float32(weights.T @ weights / len(overlap))
    )
    setting = {"alpha": np.float32(part.alpha), "epsilon": np.float32(part.epsilon)}
    path = mean_field.gradient_descent(
        start,
        train_set,
        np.arange(part.steps + 1),
        learning_rate=part.learning_rate * dim,
        centered=False,
        **setting,
    )
    target = Target(np.zeros(dim, np.float32), np.float32(2 * np.outer(beta, beta)))
    test = _population_loss(path, target, **setting).total
    return [_mean_squares(path, train_set, setting), test]


# Real images


def _digits(config: Any, session: Session) -> xr.Dataset:
    part = config.digits
    task = tasks.load(part.task)
    data = {"train": tuple(task.train), "test": tuple(task.test)}
    module = models.MLP(part.width, part.depth, task.outputs)
    last = f"hidden_{part.depth - 1}"

    def setup(data):
        def init(key):
            params = module.init(key, data["train"][0][:1])["params"]
            return jax.tree.map(lambda leaf: part.init_scale * leaf, params)

        def apply(params, x):
            return data["alpha"] * module.apply({"params": params}, x)

        def optimizer(rate):
            return optax.adamw(rate, weight_decay=part.weight_decay)

        return train.Setup(init, losses.supervised("squared_error", apply), optimizer)

    def features(params, data):
        return module.apply({"params": params}, data["test"][0], features=True)

    def measure(params, first, rate, data):
        (outputs, layers), values = features(params, data), {}
        alignment = metrics.kernels.representation_alignment(layers[last], first, centered=True)
        for key, logits in (
            ("test", outputs),
            ("train", module.apply({"params": params}, data["train"][0])),
        ):
            values[f"{key}_loss"] = losses.squared_error(data["alpha"] * logits, data[key][1])
            values[f"{key}_accuracy"] = losses.accuracy(logits, data[key][1])
        return first, values | {"alignment": alignment, "norm": optax.global_norm(params)}

    chunks = part.steps // part.chunk

    def unit(data, digits_alpha):
        full = data | {"alpha": jnp.float32(digits_alpha)}
        probe = train.Probe(lambda params, key, data: features(params, data)[1][last], measure)
        options = {"steps": part.chunk, "batch_size": part.batch_size, "probe": probe}
        return Training(
            lambda: train.compile_program(setup, full, **options),
            "one",
            *(full, [part.learning_rate] * len(part.seeds), part.seeds, chunks, part.steps),
            keep=lambda records: {f"digits_{name}": value for name, value in records.items()},
        )

    words = {
        "test_loss": "test loss",
        "test_accuracy": "test accuracy",
        "train_loss": "training loss",
        "train_accuracy": "training accuracy",
        "alignment": "alignment of the features with the first ones",
        "norm": "norm of the weights",
    }
    over = ("digits_seed", "digits_step")
    variables = {f"digits_{name}": Variable(text, dims=over) for name, text in words.items()}
    own = {
        "digits_seed": _seeds(part.seeds),
        "digits_step": _record_axis(part.chunk * np.arange(chunks + 1)),
    }
    axes = {"digits_alpha": Axis(list(part.alphas), ALPHA)}
    program = grid.Program("digits", unit, variables, own, trains=True)
    return train_grid(axes, data, program, session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return grokking_lazy_rich_figures.figures(data, times(data))
