"""Learning rates transfer over width under muP because sharpness does (Noci et al. 2024; Yang & Hu 2021).

Three experiments on one family: a sweep over parametrization x optimizer x width x learning rate x seed; sharpness
along training at one learning rate; a coordinate check. The controls are the standard and the NTK parametrization,
which must fail to transfer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import limits
import metrics
import models
from experiments import losses, plotting, tasks
from experiments.claims import Claim, at_least, at_most, within
from experiments.loop import Session, train_runs
from experiments.train import Probe, Program, compile_program

TITLE = "Learning-rate transfer and the sharpness behind it"
PAPER = "Noci et al. 2024, arXiv:2402.17457; Yang & Hu 2021, arXiv:2011.14522"
NOCI, YANG = "Noci et al. 2024", "Yang & Hu 2021"

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
# What must not transfer. The standard rule under SGD and cross-entropy is no control: there too large a rate is
# survived (loss rises, gradients shrink, training goes on), which holds the optimum in place up to width 512.
CONTROLS = {("standard", "adam"), ("ntk", "sgd"), ("ntk", "adam")}


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
    for part in (config.sweep, config.trajectory):
        if part.steps % part.chunk:
            raise ValueError(f"steps ({part.steps}) must be a multiple of chunk ({part.chunk})")
        losses.supervised(part.loss, None)


def network(config: Any, task: tasks.Task, rule: str, width: int) -> limits.Parametrized:
    """The study's family under one rule, at one width."""
    arguments = config.model.to_dict()
    family = models.family(arguments.pop("name"), outputs=task.outputs, **arguments)
    return limits.parametrize(
        family, rule, width=width, base_width=config.base_width, example=task.train.x[:1]
    )


def learning_rates(config: Any, optimizer: str) -> np.ndarray:
    """The grid of one optimizer."""
    return 2.0 ** np.linspace(*config.sweep.log2_rates[optimizer])


# The sweep


def _sweep(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    sweep = config.sweep
    by_optimizer = []
    for optimizer in sweep.optimizers:
        rates = learning_rates(config, optimizer)
        by_rule = [
            [
                _sweep_point(config, task, session, optimizer, rule, width, rates)
                for width in sweep.widths
            ]
            for rule in config.parametrizations
        ]
        by_optimizer.append(
            {
                key: np.array([[w[key] for w in row] for row in by_rule])
                for key in ("loss", "accuracy")
            }
        )
    dims = ("optimizer", "parametrization", "width", "rate", "seed")
    variables = {
        f"sweep_{key}": (dims, np.array([part[key] for part in by_optimizer]))
        for key in ("loss", "accuracy")
    }
    grids = np.array([learning_rates(config, name) for name in sweep.optimizers])
    coordinates = {
        "optimizer": list(sweep.optimizers),
        "parametrization": list(config.parametrizations),
        "width": list(sweep.widths),
        "seed": list(sweep.seeds),
        "learning_rate": (("optimizer", "rate"), grids),
    }
    return xr.Dataset(variables, coordinates)


def _sweep_point(config, task, session, optimizer, rule, width, rates) -> dict[str, np.ndarray]:
    sweep = config.sweep
    data = {"train": tuple(task.train), "test": tuple(task.test)}
    program = sweep_program(config, task, data, optimizer, rule, width, session.devices)
    grid = [(rate, seed) for rate in rates for seed in sweep.seeds]
    records = train_runs(
        program,
        data,
        *zip(*grid),
        chunks=sweep.steps // sweep.chunk,
        name=f"sweep-{optimizer}-{rule}-{width}",
        session=session,
    )
    shape = (len(rates), len(sweep.seeds))
    return {
        "loss": records["batch_loss"][:, -1].reshape(shape),
        "accuracy": records["accuracy"][:, -1].reshape(shape),
    }


def sweep_program(config, task, data, optimizer, rule, width, devices=1) -> Program:
    """The compiled program of one (optimizer, rule, width): every rate and seed is an argument."""
    sweep = config.sweep
    net = network(config, task, rule, width)
    loss = losses.supervised(sweep.loss, net.apply)

    def measure(params, carry, learning_rate, data):
        outputs = net.apply(params, data["test"][0])
        values = {
            "loss": loss(params, data["train"]),
            "accuracy": losses.accuracy(outputs, data["test"][1]),
        }
        return carry, values

    count = config.sweep.log2_rates[optimizer][2] * len(sweep.seeds)
    return compile_program(
        net.init,
        loss,
        lambda rate: net.optimizer(OPTIMIZERS[optimizer], rate),
        data,
        steps=sweep.chunk,
        batch_size=sweep.batch_size,
        probe=Probe(lambda params, key, data: (), measure),
        runs=vectorised_runs(count, width, devices),
        devices=devices,
    )


def vectorised_runs(count: int, width: int, devices: int) -> int | None:
    """How many runs to train in one call: all of them where that is faster, else None (one by one).

    Measured on two CPU cores: vmap wins below width 128, a loop over one compiled program above; on accelerators
    vmap wins throughout.
    """
    if jax.default_backend() == "cpu" and devices == 1 and width >= 128:
        return None
    return -(-count // devices) * devices


# Sharpness along training


def _trajectories(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part = config.trajectory
    chunks = part.steps // part.chunk
    table = {"trajectory_loss": [], "sharpness": [], "sharpness_error": []}
    for rule in part.parametrizations:
        for width in part.widths:
            records = _trajectory(config, task, session, rule, width, chunks)
            table["trajectory_loss"].append(records["loss"])
            table["sharpness"].append(records["sharpness"])
            table["sharpness_error"].append(records["sharpness_error"])
    shape = (len(part.parametrizations), len(part.widths), len(part.seeds), chunks + 1)
    dims = ("trajectory_parametrization", "trajectory_width", "trajectory_seed", "step")
    rates = [part.learning_rates[rule] for rule in part.parametrizations]
    return xr.Dataset(
        {key: (dims, np.array(value).reshape(shape)) for key, value in table.items()},
        {
            "trajectory_parametrization": list(part.parametrizations),
            "trajectory_width": list(part.widths),
            "trajectory_seed": list(part.seeds),
            "step": np.arange(chunks + 1) * part.chunk,
            "trajectory_learning_rate": ("trajectory_parametrization", rates),
        },
    )


def _trajectory(config, task, session, rule, width, chunks) -> dict[str, np.ndarray]:
    part = config.trajectory
    net = network(config, task, rule, width)
    loss = losses.supervised(part.loss, net.apply)
    scale = net.lr_scale("sgd")
    data = {"train": tuple(leaf[: part.num_train] for leaf in task.train)}

    def sharpness(params, start, data, steps):
        return metrics.sharpness(
            loss, params, data["train"], start=start, num_steps=steps, scale=scale
        )

    def begin(params, key, data):
        top = sharpness(params, key, data, 4 * part.lanczos_steps)
        return jax.tree.map(lambda leaf: leaf[0], top.vector)

    def measure(params, start, learning_rate, data):
        top = sharpness(params, start, data, part.lanczos_steps)
        values = {
            "loss": loss(params, data["train"]),
            "sharpness": top.value[0],
            "sharpness_error": top.residual[0],
        }
        return jax.tree.map(lambda leaf: leaf[0], top.vector), values

    program = compile_program(
        net.init,
        loss,
        lambda rate: net.optimizer(optax.sgd, rate),
        data,
        steps=part.chunk,
        batch_size=None,
        probe=Probe(begin, measure),
    )
    rates = [part.learning_rates[rule]] * len(part.seeds)
    name = f"trajectory-{rule}-{width}"
    return train_runs(program, data, rates, part.seeds, chunks=chunks, name=name, session=session)


# Claims: criteria P1-P6, fixed before the run


def optima(data: xr.Dataset) -> xr.Dataset:
    """Refined optimum of every sweep: log2 of the rate (and each seed's), over optimizer, rule and width."""
    dims = ("optimizer", "parametrization", "width")
    shape = tuple(data.sizes[dim] for dim in dims)
    best, spread = np.empty(shape), np.empty(shape)
    for index in np.ndindex(shape):
        losses = data.sweep_loss.values[index]
        found = metrics.refined_optimum(data.learning_rate.values[index[0]], losses.T)
        best[index], spread[index] = found.log2_rate, found.standard_error
    coordinates = {dim: data[dim] for dim in dims}
    return xr.Dataset({"log2_rate": (dims, best), "standard_error": (dims, spread)}, coordinates)


def claims(data: xr.Dataset) -> list[Claim]:
    """The criteria of the study, judged on its data."""
    return [
        *_transfer_claims(data),
        *_sharpness_claims(data),
        *_coordinate_claims(data),
    ]


def _transfer_claims(data: xr.Dataset) -> list[Claim]:
    made = []
    best = optima(data)
    for optimizer in data.optimizer.values:
        for rule in data.parametrization.values:
            if rule != "mup" and (rule, optimizer) not in CONTROLS:
                continue
            line = best.sel(optimizer=optimizer, parametrization=rule)
            drift = float(abs(line.log2_rate[-1] - line.log2_rate[0]))
            error = float(np.hypot(line.standard_error[-1], line.standard_error[0]))
            widths = f"{data.width.values[0]} to {data.width.values[-1]}"
            made.append(
                at_most(
                    f"P1 transfer, {rule}, {optimizer}",
                    f"{YANG}, Fig. 1; {NOCI}, Fig. 1",
                    f"the best learning rate moves by |log2| from width {widths}",
                    drift,
                    0.5,
                    interval=(max(drift - 2 * error, 0.0), drift + 2 * error),
                    control=rule != "mup",
                )
            )
    return made


def _sharpness_claims(data: xr.Dataset) -> list[Claim]:
    rate = data.trajectory_learning_rate
    scaled = (data.sharpness * rate / 2).mean("trajectory_seed")
    mup, ntk = (scaled.sel(trajectory_parametrization=rule) for rule in ("mup", "ntk"))
    steps = data.sizes["step"]
    late = mup.isel(step=slice(3 * steps // 4, None)).mean("step")
    made = [
        at_most(
            f"P2 spread, {rule}",
            f"{NOCI}, Fig. 2",
            "median over mid-training of (max - min) / mean of sharpness over the widths from 128",
            _spread(curve),
            0.25,
            control=rule == "ntk",
        )
        for rule, curve in (("mup", mup), ("ntk", ntk))
    ]
    octaves = np.log2(late.trajectory_width.values)
    made.append(
        at_most(
            "P2 slope, mup",
            f"{NOCI}, Fig. 2",
            "late sharpness changes by |slope of its log2| per doubling of the width",
            float(abs(np.polyfit(octaves, np.log2(late.values), 1)[0])),
            0.1,
        )
    )
    made.append(
        within(
            "P3 edge of stability",
            f"{NOCI}, Fig. 2",
            "late sharpness over 2/eta under muP with squared error, the width farthest from 1",
            float(late.values[np.argmax(np.abs(np.log(late.values)))]),
            0.7,
            1.5,
            interval=(float(late.min()), float(late.max())),
        )
    )
    change = abs(ntk.isel(step=-1) / ntk.isel(step=0) - 1)
    made.append(
        at_most(
            "P4 sharpening fades, ntk",
            f"{NOCI}, Sec. 4",
            "relative change of sharpness over training at the largest width over that at the smallest",
            float(change[-1] / change[0]),
            0.25,
        )
    )
    made.append(
        at_most(
            "P4 fades steadily, ntk",
            f"{NOCI}, Sec. 4",
            "largest ratio of that change between a width and the next smaller one",
            float((change.values[1:] / change.values[:-1]).max()),
            1.0,
        )
    )
    made.append(
        at_least(
            "P4 sharpening stays, mup",
            f"{NOCI}, Sec. 4",
            "final over initial sharpness at the largest width",
            float(mup.isel(step=-1, trajectory_width=-1) / mup.isel(step=0, trajectory_width=-1)),
            1.5,
        )
    )
    final = data.trajectory_loss.mean("trajectory_seed").isel(step=-1)
    wider = final.sel(trajectory_parametrization="mup").values
    made.append(
        at_most(
            "P5 wider is better, mup",
            f"{NOCI}, Sec. 3",
            "largest ratio of the final loss of a width to that of the next smaller one",
            float((wider[1:] / wider[:-1]).max()),
            1.0,
        )
    )
    return made


def _spread(scaled: xr.DataArray) -> float:
    steps = scaled.sizes["step"]
    middle = scaled.isel(step=slice(steps // 4, 3 * steps // 4))
    smallest = min(128, int(middle.trajectory_width.values[-2]))
    middle = middle.sel(trajectory_width=slice(smallest, None))
    over = [middle.reduce(reduction, "trajectory_width") for reduction in (np.max, np.min, np.mean)]
    return float(((over[0] - over[1]) / over[2]).median())


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
    short = {
        name: name.removeprefix("trajectory_")
        for name in ("trajectory_parametrization", "trajectory_width", "trajectory_seed")
    }
    followed = data[["sharpness", "trajectory_learning_rate"]].drop_vars(
        ["parametrization", "width", "seed"], errors="ignore"
    )
    followed = followed.rename(short)
    made["sharpness"] = plotting.sharpness_over_training(
        followed.sharpness, followed.trajectory_learning_rate
    )
    made["coordinates"] = _coordinate_figure(data)
    return made
