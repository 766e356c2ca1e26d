"""Learning rates transfer over width under muP because sharpness does (Noci et al. 2024; Yang & Hu 2021).

Three experiments on one family: a sweep over parametrization x optimizer x width x learning rate x seed; sharpness
along training at one learning rate; a coordinate check. The controls are the standard and the NTK parametrization,
which must fail to transfer.
"""

# One file: the three experiments train one family, with one setup and one grid.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import xarray as xr

import limits
import metrics
from experiments import checks, families, grid, losses, plots, rates, tasks
from experiments.grid import Axis, Training, Variable, train_grid
from experiments.loop import Session, flops, seconds
from experiments.studies.learning_rate_transfer_claims import claims, optima
from experiments.train import INIT, Probe, Program, Setup, compile_program, stream

TITLE = "Learning-rate transfer and the sharpness behind it"
PAPER = "Noci et al. 2024, arXiv:2402.17457; Yang & Hu 2021, arXiv:2011.14522"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps", "work"]

UNIT_EXAMPLES = 256  # on which the units of the learning rates are measured
OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
# steps -> (learning rate -> what optax takes for it)
SCHEDULES = {
    "constant": lambda steps: lambda rate: rate,
    "linear": lambda steps: lambda rate: lambda step: rate * (1 - step / steps),
}


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    sweep, trajectory = config.sweep, config.trajectory
    runs = sum(count for _, _, count in (sweep.log2_rates[name] for name in sweep.optimizers))
    swept = len(config.parametrizations) * len(sweep.widths) * runs * len(sweep.seeds) * sweep.steps
    followed = len(trajectory.parametrizations) * len(trajectory.widths) * len(trajectory.seeds)
    return swept + followed * trajectory.steps


def work(config: Any) -> dict[str, tuple[int, float]]:
    """Steps of every unit, and what one costs: a gradient, and on trajectories the products of the sharpness."""
    task, sweep, trajectory = tasks.load(config.task), config.sweep, config.trajectory
    found = {}
    for width in sweep.widths:
        cost = _gradient_seconds(config, task, sweep, width, sweep.batch_size)
        for optimizer in sweep.optimizers:
            steps = sweep.log2_rates[optimizer][2] * len(sweep.seeds) * sweep.steps
            for rule in config.parametrizations:
                found[grid.label("sweep", (optimizer, rule, width))] = (steps, cost)
    products = 1 + 3 * trajectory.lanczos_steps / trajectory.chunk
    for width in trajectory.widths:
        cost = _gradient_seconds(config, task, trajectory, width, trajectory.num_train)
        for rule in trajectory.parametrizations:
            steps = len(trajectory.seeds) * trajectory.steps
            found[grid.label("trajectory", (rule, width))] = (steps, products * cost)
    return found


def _gradient_seconds(config: Any, task: tasks.Task, part: Any, width: int, examples: int) -> float:
    net, batch = family(config, task, part)(width), tuple(leaf[:examples] for leaf in task.train)
    params = jax.eval_shape(net.init, jax.random.key(0), batch[0][:1])
    gradient = jax.grad(losses.supervised(part.loss, net.apply))
    return seconds(flops(gradient, params, batch))


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/learning_rate_transfer.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: the configuration names an unknown task, model, rule, optimizer or loss.
    """
    session = session or Session()
    task = tasks.load(config.task)
    check(config, task)
    return xr.merge(
        [
            _sweep(config, task, session),
            _trajectories(config, task, session),
            _coordinates(config, task, session),
        ]
    ).assign_attrs(task=config.task.name, model=config.model.name)


_PART = {
    "depth": checks.DEPTH,
    "base_width": checks.WIDTH,
    "loss": checks.choice(losses.LOSSES),
}
OPEN = ("sweep.log2_rates", "trajectory.learning_rates")  # a rate for each optimizer, each rule
_RULES = checks.several(checks.choice(limits.exponents.RULES))
RULES = {
    "parametrizations": _RULES,
    **{
        f"{part}.{k}": r
        for part in ("sweep", "trajectory", "coordinates")
        for k, r in _PART.items()
    },
    "sweep.widths": checks.widths(2),
    "sweep.optimizers": checks.several(checks.choice(OPTIMIZERS)),
    "sweep.seeds": checks.SEEDS,
    "sweep.batch_size": checks.whole(),
    "sweep.num_test": checks.whole(),
    "sweep.steps": checks.STEPS,
    "sweep.chunk": checks.STEPS,
    "sweep.schedule": checks.choice(SCHEDULES),
    "trajectory.widths": checks.widths(2),
    "trajectory.parametrizations": checks.several(
        checks.choice(limits.exponents.RULES), needs=("mup", "ntk")
    ),
    "trajectory.seeds": checks.SEEDS,
    "trajectory.num_train": checks.whole(),
    "trajectory.steps": checks.STEPS,
    "trajectory.chunk": checks.STEPS,
    "trajectory.lanczos_steps": checks.whole(1, 1000),
    "coordinates.parametrizations": checks.several(
        checks.choice(limits.exponents.RULES), needs=("mup",)
    ),
    "coordinates.learning_rate": checks.positive(),
    "coordinates.batch_size": checks.whole(),
    "coordinates.seeds": checks.whole(2, 1000),
    "coordinates.steps": checks.STEPS,
}
_RATES = checks.fixed(checks.real(-100, 100), checks.real(-100, 100), checks.whole(3, 1000))


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    # residual networks leave out the coordinates: no widths
    no_coordinates = {"coordinates.widths": lambda path, value: None}
    three = {"coordinates.widths": checks.widths(3)}
    checks.values(config, RULES | (three if config.coordinates.widths else no_coordinates))
    for name in config.trajectory.learning_rates:
        path = f"trajectory.learning_rates.{name}"
        checks.positive()(path, config.trajectory.learning_rates[name])
    for optimizer in sorted({*config.sweep.optimizers, *config.sweep.log2_rates}):
        if optimizer not in config.sweep.log2_rates:
            raise ValueError(f"config.sweep.log2_rates lacks {optimizer!r}; give it rates")
        path = f"sweep.log2_rates.{optimizer}"
        _RATES(path, config.sweep.log2_rates[optimizer])
        low, high, _ = config.sweep.log2_rates[optimizer]
        if not low < high:
            checks.refuse(path, (low, high), "a lower and a higher power of two")
    counts = {name: config.sweep.log2_rates[name][2] for name in config.sweep.optimizers}
    if len(set(counts.values())) > 1:
        checks.refuse("sweep.log2_rates", counts, "as many rates for each optimizer")
    for rule in config.trajectory.parametrizations:
        if rule not in config.trajectory.learning_rates:
            raise ValueError(f"config.trajectory.learning_rates lacks {rule!r}; give it a rate")
    for part in ("sweep", "trajectory"):
        checks.multiple(config, f"{part}.steps", "chunk")
    checks.classes(task)
    checks.whole(1, len(task.train.x))("trajectory.num_train", config.trajectory.num_train)
    runs = counts[config.sweep.optimizers[0]] * len(config.sweep.seeds)
    for path, concurrent in (("sweep", runs), ("trajectory", 1), ("coordinates", 1)):
        _check_networks(config, task, path, concurrent)


def _check_networks(config: Any, task: tasks.Task, path: str, runs: int) -> None:
    """The networks of a part, by shapes: whether they exist, take the data and fit."""
    part = config[path]
    examples = part.num_train if path == "trajectory" else part.batch_size
    checks.memory(f"config.{path}: a batch of {examples}", examples * task.train.x[0].size)
    if path != "coordinates":
        checks.memory(f"config.{path}: the records", runs * part.steps // part.chunk, 8)
    # At the base width nothing is measured: a second, not ten.
    if part.widths:
        checks.context(path, network, config, task, part, "mup", part.base_width)
    for width in part.widths:
        net = checks.context("model", family(config, task, part), width)
        inputs, targets = (leaf[:1] for leaf in task.train)
        params = checks.context("model", jax.eval_shape, net.init, jax.random.key(0), inputs)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        checks.memory(f"config.{path}.widths: training at {width}", 3 * size * min(runs, 4))
        loss = losses.supervised(part.loss, net.apply)
        checks.context("model", jax.eval_shape, loss, params, (inputs, targets))
        if path == "trajectory" and 4 * part.lanczos_steps > size:
            most = f"at most {size // 4}, a quarter of the parameters at width {width}"
            checks.refuse("trajectory.lanczos_steps", part.lanczos_steps, most)


def family(config: Any, task: tasks.Task, part: Any) -> Callable:
    """The study's networks as a function of their width; the depth is that of a part of the study.

    A model of a file gets the depth if it has an argument of that name.
    """
    fields = config.model.to_dict()
    name = fields.pop("name")
    return families.for_task(name, task, fields, depth=part.depth)


def network(config: Any, task: tasks.Task, part: Any, rule: str, width: int) -> limits.Parametrized:
    """A network of the study's family under one rule; the base width is that of a part of the study."""
    return limits.parametrize(
        family(config, task, part),
        rule,
        width=width,
        base_width=part.base_width,
        example=task.train.x[:1],
    )


def learning_rates(config: Any, task: tasks.Task, optimizer: str) -> np.ndarray:
    """The grid of one optimizer, in units of its edge at the base width, where all rules are one network."""
    sweep = config.sweep
    net = network(config, task, sweep, "mup", sweep.base_width)
    loss = losses.supervised(sweep.loss, net.apply)
    batch = tuple(leaf[:UNIT_EXAMPLES] for leaf in task.train)
    starts = [jax.jit(net.init)(stream(seed, INIT)) for seed in sweep.seeds]
    unit = checks.context("sweep.log2_rates", rates.octave, optimizer, loss, starts, batch)
    return unit * 2.0 ** np.linspace(*sweep.log2_rates[optimizer])


def setup(net: limits.Parametrized, loss: str, optimizer: str, schedule: Callable) -> Callable:
    """data -> Setup. The rule's factors are data, so that all rules at a width share one compiled program."""

    def build(data: dict[str, Any]) -> Setup:
        scaled = net.with_factors(data["factors"])
        return Setup(
            scaled.init,
            losses.supervised(loss, scaled.apply),
            lambda rate: scaled.optimizer(OPTIMIZERS[optimizer], schedule(rate)),
        )

    return build


# The sweep


def _sweep(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    sweep = config.sweep
    grids = {name: learning_rates(config, task, name) for name in sweep.optimizers}
    axes = {
        "optimizer": Axis(list(sweep.optimizers), "optimizer"),
        "parametrization": Axis(list(config.parametrizations), "parametrization"),
        "width": Axis(list(sweep.widths), "width", "neurons"),
    }
    # The mean over the last chunk, less noisy than the loss of one batch.
    variables = {
        "sweep_loss": Variable("training loss", dims=("rate", "seed")),
        "sweep_accuracy": Variable("test accuracy", dims=("rate", "seed")),
    }
    own = {
        "seed": Axis(list(sweep.seeds), "seed"),
        "learning_rate": Axis(list(grids.values()), "learning rate", dims=("optimizer", "rate")),
    }
    program = grid.Program("sweep", _sweep_unit, variables, own, trains=True)
    return train_grid(axes, (config, task, session.devices, grids), program, session)


def _sweep_unit(data: Any, optimizer: str, parametrization: str, width: int) -> Training:
    """All rates and seeds; one compiled program for all rules."""
    config, task, devices, grids = data
    sweep, chosen = config.sweep, grids[optimizer]
    net = network(config, task, sweep, parametrization, width)
    arrays = sweep_data(config, task, net)

    def keep(records):
        last = {"sweep_loss": records["batch_loss"], "sweep_accuracy": records["accuracy"]}
        return {k: v[:, -1].reshape(len(chosen), len(sweep.seeds)) for k, v in last.items()}

    return Training(
        lambda: sweep_program(config, net, arrays, optimizer, devices),
        (optimizer, width),
        arrays,
        *zip(*[(rate, seed) for rate in chosen for seed in sweep.seeds]),
        chunks=sweep.steps // sweep.chunk,
        steps=sweep.steps,
        keep=keep,
    )


def sweep_data(config, task, net) -> dict[str, Any]:
    """The data of a program of the sweep: training and test examples, and the rule's factors."""
    test = tuple(leaf[: config.sweep.num_test] for leaf in task.test)
    return {"train": tuple(task.train), "test": test, "factors": net.factors}


def sweep_program(config, net, data, optimizer, devices=1) -> Program:
    """The compiled program of one (optimizer, width): every rule, rate and seed is an argument."""
    sweep = config.sweep

    def measure(params, carry, learning_rate, data):
        outputs = net.with_factors(data["factors"]).apply(params, data["test"][0])
        return carry, {"accuracy": losses.accuracy(outputs, data["test"][1])}

    count = sweep.log2_rates[optimizer][2] * len(sweep.seeds)
    return compile_program(
        setup(net, sweep.loss, optimizer, SCHEDULES[sweep.schedule](sweep.steps)),
        data,
        steps=sweep.chunk,
        batch_size=sweep.batch_size,
        probe=Probe(lambda params, key, data: (), measure),
        runs=vectorised_runs(count, net.width, devices),
        devices=devices,
    )


def vectorised_runs(count: int, width: int, devices: int) -> int | None:
    """How many runs to train in one call: all of them where that is faster, else None (one by one).

    Measured on two CPU cores: runs side by side win from width 64 on (4.2 s against 5.6 s for 33 runs of 500 steps,
    compiled anew), vmap below; on accelerators vmap wins throughout.
    """
    if jax.default_backend() == "cpu" and devices == 1 and width >= 64:
        return None
    return -(-count // devices) * devices


# Sharpness along training


def _trajectories(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part = config.trajectory
    chosen = {rule: trajectory_rate(config, task, rule) for rule in part.parametrizations}
    chunks, names = part.steps // part.chunk, ("trajectory_parametrization", "trajectory_width")

    def unit(_, trajectory_parametrization, trajectory_width):
        net = network(config, task, part, trajectory_parametrization, trajectory_width)
        train = tuple(leaf[: part.num_train] for leaf in task.train)
        data = {"train": train, "factors": net.factors}
        rates = [chosen[trajectory_parametrization]] * len(part.seeds)
        return Training(
            lambda: trajectory_program(config, net, data),
            trajectory_width,
            *(data, rates, part.seeds, chunks, part.steps),
            keep=lambda records: records | {"trajectory_loss": records["loss"]},
        )

    over = ("trajectory_seed", "step")
    variables = {
        "trajectory_loss": Variable("training loss", dims=over),
        "sharpness": Variable("sharpness", dims=over),
        "sharpness_error": Variable("error of the sharpness", dims=over),
    }
    axes = {
        names[0]: Axis(list(part.parametrizations), "parametrization"),
        names[1]: Axis(list(part.widths), "width", "neurons"),
    }
    rates = [chosen[rule] for rule in part.parametrizations]
    own = {
        "trajectory_seed": Axis(list(part.seeds), "seed"),
        "step": Axis(np.arange(chunks + 1) * part.chunk, "training step", "steps"),
        "trajectory_learning_rate": Axis(rates, "learning rate", dims=names[:1]),
    }
    program = grid.Program("trajectory", unit, variables, own, trains=True)
    return train_grid(axes, None, program, session)


def trajectory_rate(config: Any, task: tasks.Task, rule: str) -> float:
    """The learning rate of a rule: its share of 2 over the sharpness before training, that of the widest network.

    At 1 descent would start at the edge of stability, whatever the data (mean over the seeds, `metrics.sharpness`).
    """
    part = config.trajectory
    net = network(config, task, part, rule, max(part.widths))
    batch = tuple(leaf[: part.num_train] for leaf in task.train)
    loss, scale = losses.supervised(part.loss, net.apply), net.lr_scale("sgd")

    @jax.jit
    def sharpness(key, batch):
        options = {"start": jax.random.fold_in(key, 1), "num_steps": 4 * part.lanczos_steps}
        return metrics.sharpness(loss, net.init(key), batch, scale=scale, **options).value[0]

    values = [float(sharpness(stream(seed, INIT), batch)) for seed in part.seeds]
    return part.learning_rates[rule] * 2 / float(np.mean(values))


def trajectory_program(config, net, data) -> Program:
    """Full-batch gradient descent, with the sharpness of the learning-rate-scaled Hessian between chunks."""
    part = config.trajectory

    def sharpness(params, start, data, steps):
        scaled = net.with_factors(data["factors"])
        return metrics.sharpness(
            losses.supervised(part.loss, scaled.apply),
            params,
            data["train"],
            start=start,
            num_steps=steps,
            scale=scaled.lr_scale("sgd"),
        )

    def begin(params, key, data):
        return sharpness(params, key, data, 4 * part.lanczos_steps).vector

    def measure(params, start, learning_rate, data):
        top = sharpness(params, start, data, part.lanczos_steps)
        loss = losses.supervised(part.loss, net.with_factors(data["factors"]).apply)
        values = {
            "loss": loss(params, data["train"]),
            "sharpness": top.value[0],
            "sharpness_error": top.residual[0],
        }
        return top.vector, values

    return compile_program(
        setup(net, part.loss, "sgd", lambda rate: rate),
        data,
        steps=part.chunk,
        batch_size=None,
        probe=Probe(begin, measure),
    )


# Coordinates: how much each layer moves in a few steps, against width


def _coordinates(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part = config.coordinates
    if (
        not part.widths
    ):  # residual networks are not the chain of layers that the prediction is about
        return xr.Dataset()
    slope = "exponent of the change in the width"
    variables = {
        "change": Variable("RMS change of pre-activations", dims=("coordinate_width", "layer")),
        "slope": Variable(slope, dims=("layer",)),
        "slope_interval": Variable(f"{slope}, interval", dims=("layer", "end")),
        "slope_predicted": Variable(f"{slope}, predicted", dims=("layer",)),
        "layers": Variable("layer", dims=("layer",)),
    }
    axes = {"coordinate_parametrization": Axis(list(part.parametrizations), "parametrization")}
    own = {"coordinate_width": Axis(list(part.widths), "width", "neurons")}
    program = grid.Program("coordinates", _coordinates_unit, variables, own, steps=0)
    made = train_grid(axes, (config, task), program, session)
    layers = grid.array("layer", made.layers.values[0], "layer")
    return made.drop_vars("layers").assign_coords(layer=layers)


def _coordinates_unit(data: Any, coordinate_parametrization: str) -> dict[str, Any]:
    config, task = data
    part, rule = config.coordinates, coordinate_parametrization
    check = limits.coordinate_check(
        functools.partial(network, config, task, part, rule),
        part.widths,
        tuple(leaf[: part.batch_size] for leaf in task.train),
        losses.LOSSES[part.loss],
        jax.random.key(0),
        learning_rate=part.learning_rate,
        steps=part.steps,
        seeds=part.seeds,
        predicted=limits.classify(*limits.abc(rule, part.depth)),
    )
    last = check.change_scaling
    return {
        "change": np.exp(np.log(check.change[:, :, -1]).mean(axis=1)),
        "slope": last.exponent[-1],
        "slope_interval": last.interval[-1],
        "slope_predicted": np.array(check.predicted.change, float),
        "layers": list(check.layers),
    }


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    made = {}
    best = optima(data)
    for optimizer in data.optimizer.values:
        chosen = data.sel(optimizer=optimizer).swap_dims(rate="learning_rate")
        made[f"loss_{optimizer}"] = plots.loss_curves(
            chosen.sweep_loss.assign_attrs(long_name=f"training loss ({optimizer})")
        )
        line = best.sel(optimizer=optimizer)
        made[f"optimum_{optimizer}"] = plots.optimum_against_width(
            2**line.log2_rate,
            2 ** (line.log2_rate - 2 * line.standard_error.fillna(0)),
            2 ** (line.log2_rate + 2 * line.standard_error.fillna(0)),
        )
    followed = _renamed(
        data.reset_coords()[["sharpness", "trajectory_learning_rate"]], "trajectory_"
    )
    made["sharpness"] = plots.sharpness_over_training(followed.sharpness, followed.learning_rate)
    if "slope" in data:
        checked = _renamed(data[["change", "slope", "slope_predicted"]], "coordinate_")
        made["coordinates"] = plots.coordinate_check(
            checked.change, checked.slope, checked.slope_predicted
        )
    return made


def _renamed(part: xr.Dataset, prefix: str) -> xr.Dataset:
    """The part of a data set whose names carry a prefix, without it."""
    part = part.reset_coords()
    return part.rename({name: name.removeprefix(prefix) for name in part.variables})
