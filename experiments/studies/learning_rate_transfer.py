"""Learning rates transfer over width under muP because sharpness does (Noci et al. 2024; Yang & Hu 2021).

Three experiments on one family: a sweep over parametrization x optimizer x width x learning rate x seed; sharpness
along training at one learning rate; a coordinate check. The controls are the standard and the NTK parametrization,
which must fail to transfer.
"""

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
import models
from experiments import losses, plotting, tasks
from experiments.loop import Session, train_runs
from experiments.studies.learning_rate_transfer_claims import claims, optima
from experiments.train import INIT, Probe, Program, Setup, compile_program, stream

TITLE = "Learning-rate transfer and the sharpness behind it"
PAPER = "Noci et al. 2024, arXiv:2402.17457; Yang & Hu 2021, arXiv:2011.14522"
__all__ = ["PAPER", "TITLE", "claims", "figures", "run", "total_steps"]

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


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/learning_rate_transfer.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: the configuration names an unknown task, model, rule, optimizer or loss.
    """
    session = session or Session()
    _check(config)
    task = tasks.load(config.task)
    return xr.merge(
        [
            _sweep(config, task, session),
            _trajectories(config, task, session),
            _coordinates(config, task),
        ]
    ).assign_attrs(task=config.task.name, model=config.model.name)


def _check(config: Any) -> None:
    for name in config.sweep.optimizers:
        if name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {name!r}; there are: {', '.join(OPTIMIZERS)}")
    counts = {name: config.sweep.log2_rates[name][2] for name in config.sweep.optimizers}
    if len(set(counts.values())) > 1:
        raise ValueError(f"log2_rates must have as many rates for each optimizer, not {counts}")
    if config.sweep.schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"unknown schedule {config.sweep.schedule!r}; there are: {known}")
    for part in (config.sweep, config.trajectory):
        if part.steps % part.chunk:
            raise ValueError(f"steps ({part.steps}) must be a multiple of chunk ({part.chunk})")
        losses.supervised(part.loss, None)


def network(config: Any, task: tasks.Task, part: Any, rule: str, width: int) -> limits.Parametrized:
    """The study's family under one rule, at one width; depth and base width are those of a part of the study."""
    fields = config.model.to_dict() | {"depth": part.depth}
    name = fields.pop("name")
    if name == "Transformer":
        fields |= {"vocabulary": task.outputs, "context": task.input_shape[0]}
    else:
        fields |= {"outputs": task.outputs}
    family = models.family(name, **fields)
    return limits.parametrize(
        family, rule, width=width, base_width=part.base_width, example=task.train.x[:1]
    )


def learning_rates(config: Any, optimizer: str) -> np.ndarray:
    """The grid of one optimizer."""
    return 2.0 ** np.linspace(*config.sweep.log2_rates[optimizer])


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
    dims = ("optimizer", "parametrization", "width", "rate", "seed")
    coordinates = {
        "optimizer": list(sweep.optimizers),
        "parametrization": list(config.parametrizations),
        "width": list(sweep.widths),
        "seed": list(sweep.seeds),
    }
    grids = np.array([learning_rates(config, name) for name in sweep.optimizers])
    shape = (*(len(values) for values in coordinates.values()), grids.shape[1])
    results = np.full((2, *shape[:3], shape[4], shape[3]), np.nan)
    for o, optimizer in enumerate(sweep.optimizers):
        for w, width in enumerate(sweep.widths):
            by_rule = _sweep_width(config, task, session, optimizer, width, grids[o])
            results[:, o, :, w] = np.moveaxis(by_rule, 0, 1)
    variables = {
        name: (dims, values) for name, values in zip(("sweep_loss", "sweep_accuracy"), results)
    }
    return xr.Dataset(variables, coordinates | {"learning_rate": (("optimizer", "rate"), grids)})


def _sweep_width(config, task, session, optimizer, width, rates) -> np.ndarray:
    """Final loss and accuracy of every rule, (rules, 2, rates, seeds); one compiled program for all rules."""
    sweep = config.sweep
    grid = [(rate, seed) for rate in rates for seed in sweep.seeds]
    program, by_rule = None, []
    for rule in config.parametrizations:
        net = network(config, task, sweep, rule, width)
        data = sweep_data(config, task, net)
        program = program or sweep_program(config, net, data, optimizer, session.devices)
        records = train_runs(
            program,
            data,
            *zip(*grid),
            chunks=sweep.steps // sweep.chunk,
            name=f"sweep-{optimizer}-{rule}-{width}",
            session=session,
        )
        # The mean over the last chunk, less noisy than the loss of one batch.
        final = np.stack([records["batch_loss"][:, -1], records["accuracy"][:, -1]])
        by_rule.append(final.reshape(2, len(rates), len(sweep.seeds)))
    return np.array(by_rule)


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
    chunks = part.steps // part.chunk
    names = ("loss", "sharpness", "sharpness_error")
    shape = (len(part.parametrizations), len(part.widths), len(part.seeds), chunks + 1)
    results = {name: np.full(shape, np.nan) for name in names}
    chosen = {rule: trajectory_rate(config, task, rule) for rule in part.parametrizations}
    for w, width in enumerate(part.widths):
        program = None
        for r, rule in enumerate(part.parametrizations):
            net = network(config, task, part, rule, width)
            data = {
                "train": tuple(leaf[: part.num_train] for leaf in task.train),
                "factors": net.factors,
            }
            program = program or trajectory_program(config, net, data)
            rates = [chosen[rule]] * len(part.seeds)
            name = f"trajectory-{rule}-{width}"
            records = train_runs(
                program, data, rates, part.seeds, chunks=chunks, name=name, session=session
            )
            for key in names:
                results[key][r, w] = records[key]
    dims = ("trajectory_parametrization", "trajectory_width", "trajectory_seed", "step")
    rates = [chosen[rule] for rule in part.parametrizations]
    return xr.Dataset(
        {
            "trajectory_loss": (dims, results["loss"]),
            "sharpness": (dims, results["sharpness"]),
            "sharpness_error": (dims, results["sharpness_error"]),
        },
        {
            "trajectory_parametrization": list(part.parametrizations),
            "trajectory_width": list(part.widths),
            "trajectory_seed": list(part.seeds),
            "step": np.arange(chunks + 1) * part.chunk,
            "trajectory_learning_rate": ("trajectory_parametrization", rates),
        },
    )


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


def _coordinates(config: Any, task: tasks.Task) -> xr.Dataset:
    part = config.coordinates
    if (
        not part.widths
    ):  # residual networks are not the chain of layers that the prediction is about
        return xr.Dataset()
    batch = tuple(leaf[: part.batch_size] for leaf in task.train)
    checks = [
        limits.coordinate_check(
            functools.partial(network, config, task, part, rule),
            part.widths,
            batch,
            losses.LOSSES[part.loss],
            jax.random.key(0),
            learning_rate=part.learning_rate,
            steps=part.steps,
            seeds=part.seeds,
            predicted=limits.classify(*limits.abc(rule, part.depth)),
        )
        for rule in part.parametrizations
    ]
    last = [check.change_scaling for check in checks]
    dims = ("coordinate_parametrization", "layer")
    return xr.Dataset(
        {
            "change": (
                ("coordinate_parametrization", "coordinate_width", "layer"),
                np.stack([np.exp(np.log(c.change[:, :, -1]).mean(axis=1)) for c in checks]),
            ),
            "slope": (dims, np.stack([fit.exponent[-1] for fit in last])),
            "slope_interval": ((*dims, "end"), np.stack([fit.interval[-1] for fit in last])),
            "slope_predicted": (dims, np.array([c.predicted.change for c in checks], float)),
        },
        {
            "coordinate_parametrization": list(part.parametrizations),
            "coordinate_width": list(part.widths),
            "layer": list(checks[0].layers),
        },
    )


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    made = {}
    best = optima(data)
    for optimizer in data.optimizer.values:
        chosen = data.sel(optimizer=optimizer).swap_dims(rate="learning_rate")
        made[f"loss_{optimizer}"] = plotting.loss_curves(
            chosen.sweep_loss.assign_attrs(long_name=f"training loss ({optimizer})")
        )
        line = best.sel(optimizer=optimizer)
        made[f"optimum_{optimizer}"] = plotting.optimum_against_width(
            2**line.log2_rate,
            2 ** (line.log2_rate - 2 * line.standard_error.fillna(0)),
            2 ** (line.log2_rate + 2 * line.standard_error.fillna(0)),
        )
    followed = _renamed(
        data.reset_coords()[["sharpness", "trajectory_learning_rate"]], "trajectory_"
    )
    made["sharpness"] = plotting.sharpness_over_training(followed.sharpness, followed.learning_rate)
    if "slope" in data:
        checked = _renamed(data[["change", "slope", "slope_predicted"]], "coordinate_")
        made["coordinates"] = plotting.coordinate_check(
            checked.change, checked.slope, checked.slope_predicted
        )
    return made


def _renamed(part: xr.Dataset, prefix: str) -> xr.Dataset:
    """The part of a data set whose names carry a prefix, without it."""
    part = part.reset_coords()
    return part.rename({name: name.removeprefix(prefix) for name in part.variables})
