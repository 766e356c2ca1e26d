"""The tangent kernel of a wide network converges, stays in training, and predicts it (Jacot, Gabriel & Hongler 2018).

The experiments of the paper's section 6: a row of the kernel at initialisation and after training against the limit
kernel; the Gaussian distribution of trained outputs; training along a principal component of the kernel. Controls: the
limit of another kernel, a feature-learning parametrization, untrained outputs, another component.
"""

# One file: the three experiments share the network, its limit and the circle of inputs.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import limits
import models
import ntk
from experiments import checks, grid, losses, tasks
from experiments.grid import Axis, Training, Variable, train_grid
from experiments.loop import Session
from experiments.studies import ntk_convergence_figures as drawn
from experiments.studies.ntk_convergence_claims import (
    ALIGNED,
    claims,
    distances,
    drifts,
    fit,
    predicted_along,
)
from experiments.train import ONCE, Probe, Program, Setup, compile_program

TITLE = "The tangent kernel converges, stays and predicts"
PAPER = "Jacot, Gabriel & Hongler 2018, arXiv:1806.07572"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]


RULES = {
    "model.depth": checks.DEPTH,
    "model.beta": checks.real(0),
    "start.inputs": checks.several(
        checks.choice(("circle", "sphere", "digits")), needs=("circle",)
    ),
    "start.widths": checks.widths(3),
    "start.points": checks.whole(2),
    "start.seeds": checks.SEEDS,
    "drift.widths": checks.widths(3),
    "drift.control_widths": checks.widths(2),
    "drift.num_train": checks.whole(),
    "drift.learning_rate": checks.positive(),
    "drift.steps": checks.STEPS,
    "drift.seeds": checks.SEEDS,
    "ensemble.widths": checks.widths(),
    "ensemble.learning_rate": checks.positive(),
    "ensemble.steps": checks.STEPS,
    "ensemble.angles": checks.whole(),
    "ensemble.seeds": checks.several(checks.whole(0), 2),
    "component.inputs": checks.several(checks.choice(("sphere", "digits"))),
    "component.widths": checks.widths(),
    "component.num_train": checks.whole(2),
    "component.dim": checks.whole(2),
    "component.steps": checks.STEPS,
    "component.chunk": checks.STEPS,
    # Of the target .61 to .12 is left then: neither all nor, at the tolerance of .06, nothing.
    "component.end": checks.real(0.5, 2.1),
    "component.seeds": checks.SEEDS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.multiple(config, "component.steps", "chunk")
    start, component = config.start, config.component
    if start.points % 2:
        checks.refuse("start.points", start.points, "even: angle 0 is the point in the middle")
    there, pixels = len(task.train.x), task.train.x[0].size
    for path, part, count in (
        ("start.points", start, start.points),
        ("component.num_train", component, component.num_train),
    ):
        if "digits" in part.inputs and count > there:
            checks.refuse(path, count, f"at most {there}, the training examples of {task.name}")
    keys = ("start.points", "drift.num_train", "ensemble.angles", "component.num_train")
    for key in keys:
        count = checks.at(config, key)
        checks.memory(f"config.{key}: a kernel", float(count) ** 2 + count * component.dim, 8)
    for name in ("start", "drift", "ensemble", "component"):
        part = config[name]
        for width in part.widths:
            size = width * pixels + (config.model.depth - 1) * width**2
            runs = len(part.seeds) if width < 128 else min(len(part.seeds), 4)
            checks.memory(f"config.{name}.widths: training at {width}", 3 * size * runs)


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    drift, ensemble, component = config.drift, config.ensemble, config.component
    runs = (len(drift.widths) + len(drift.control_widths)) * len(drift.seeds)
    steps = runs * drift.steps
    steps += len(ensemble.widths) * len(ensemble.seeds) * ensemble.steps
    runs = len(component.inputs) * len(component.widths) * len(component.seeds)
    return steps + runs * component.steps


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/ntk_convergence.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: an unknown task or inputs, or steps that are no multiple of the chunk.
    """
    session = session or Session()
    check(config, tasks.load(config.task))
    return xr.merge(
        [
            _start(config, session),
            _drift(config, session),
            _ensemble(config, session),
            _components(config, session),
        ]
    )


# Networks and kernels


def network(config: Any, width: int, inputs: int, rule: str = "ntk") -> limits.Parametrized:
    """The paper's network: weights N(0, 1) over sqrt(fan-in), biases beta N(0, 1)."""
    normal = jax.nn.initializers.normal(1.0)
    family = models.family(
        "MLP", depth=config.model.depth, outputs=1, kernel_init=normal, bias_init=normal
    )
    net = limits.parametrize(
        family, rule, width=width, base_width=1, example=np.zeros((1, inputs), np.float32)
    )
    factor = {name: config.model.beta if "bias" in name else 1.0 for name in net.factors["init"]}
    factor["hidden_0/kernel"] = inputs**-0.5
    multiplier = {name: m * factor[name] for name, m in net.factors["multiplier"].items()}
    return net.with_factors(net.factors | {"multiplier": multiplier})


def limit_kernel(config: Any) -> Callable:
    """(x1, x2, get) -> NNGP and NTK of infinite width."""
    beta, layers = config.model.beta, []
    for _ in range(config.model.depth):
        layers += [ntk.stax.Dense(1, 1.0, beta), ntk.stax.Relu()]
    return ntk.stax.serial(*layers, ntk.stax.Dense(1, 1.0, beta))[2]


def tangent_kernel(net: limits.Parametrized) -> Callable:
    """(params, x1, x2) -> kernel of gradient descent, with the learning-rate factors of the rule."""
    root = jax.tree.map(math.sqrt, net.lr_scale("sgd"))

    def apply(scaled, x):
        return net.apply(jax.tree.map(jnp.multiply, root, scaled), x)

    def kernel(params, x1, x2):
        scaled = jax.tree.map(jnp.divide, params, root)
        return ntk.empirical_ntk(apply, scaled, x1, x2, trace_axes=(-1,))

    return kernel


def circle(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles in [-pi, pi) and points on the unit circle; the point of angle 0 is (1, 0)."""
    angles = -math.pi + 2 * math.pi * np.arange(count) / count
    return angles, np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def examples(config: Any, name: str, count: int) -> np.ndarray:
    """Inputs of norm sqrt(dimension): Gaussian directions, or the images of the task.

    Raises:
        ValueError: another name, or too few images.
    """
    if name == "sphere":
        x = np.random.default_rng(0).normal(size=(count, config.component.dim))
    elif name == "digits":
        x = tasks.load(config.task).train.x[:count]
        x = x.reshape(len(x), -1)
    else:
        raise ValueError(f"unknown inputs {name!r}; there are: sphere, digits (the image task)")
    if len(x) < count:
        raise ValueError(f"the task has {len(x)} training examples; {count} are asked for")
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * math.sqrt(x.shape[1])
    return x.astype(np.float32)


def _program(setup, data, steps, chunks, probe, width, count) -> Program:
    """One compiled program of full-batch descent; narrow networks train side by side."""
    side_by_side = jax.default_backend() != "cpu" or width < 128
    runs = count if side_by_side else None
    return compile_program(
        lambda _: setup, data, steps=steps // chunks, batch_size=None, probe=probe, runs=runs
    )


# The parts of the study


def _widths(widths: Any) -> Axis:
    return Axis(list(widths), "width", "neurons")


def _seeds(part: Any) -> Axis:
    return Axis(list(part.seeds), "seed")


def _start(config: Any, session: Session) -> xr.Dataset:
    part = config.start
    angles, _ = circle(part.points)
    inputs = {"start_inputs": Axis(list(part.inputs), "inputs")}
    rows = {"start_kernel": Variable("row of the tangent kernel", dims=("start_seed", "point"))}
    exact = {
        "limit_kernel": Variable("row of the limit kernel", dims=("point",)),
        "nngp_kernel": Variable("row of the NNGP kernel", dims=("point",)),
    }
    own = {"start_seed": _seeds(part), "angle": Axis(angles, "angle", "rad", ("point",))}
    axes = inputs | {"start_width": _widths(part.widths)}
    finite = grid.Program("start", _start_unit, rows, own, steps=0)
    limit = grid.Program("limit", _limit_unit, exact, steps=0)
    return xr.merge(
        [train_grid(axes, config, finite, session), train_grid(inputs, config, limit, session)]
    )


def _start_inputs(config: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    points = config.start.points
    x = circle(points)[1] if name == "circle" else examples(config, name, points)
    return x[points // 2][None], x


def _start_unit(config: Any, start_inputs: str, start_width: int) -> dict[str, Any]:
    x0, x = _start_inputs(config, start_inputs)
    net = network(config, start_width, x.shape[1])
    init, kernel = (jax.jit(f, compiler_options=ONCE) for f in (net.init, tangent_kernel(net)))
    rows = [kernel(init(jax.random.key(seed)), x0, x)[0] for seed in config.start.seeds]
    return {"start_kernel": np.array(rows, np.float64)}


def _limit_unit(config: Any, start_inputs: str) -> dict[str, Any]:
    exact = limit_kernel(config)(*_start_inputs(config, start_inputs), ("ntk", "nngp"))
    ntk_row, nngp_row = (np.asarray(k, np.float64)[0] for k in (exact.ntk, exact.nngp))
    return {"limit_kernel": ntk_row, "nngp_kernel": nngp_row}


def _drift(config: Any, session: Session) -> xr.Dataset:
    part = config.drift
    return xr.merge(
        [
            _drift_of(config, session, "drift", "ntk", part.widths),
            _drift_of(config, session, "control", "mup", part.control_widths),
        ]
    )


def _drift_of(config, session, name, rule, widths) -> xr.Dataset:
    """Rows of the kernel before and after training on x1 x2, (widths, seeds, 2, points)."""
    part = config.drift
    _, points = circle(config.start.points)
    x = np.random.default_rng(0).normal(size=(part.num_train, 2)).astype(np.float32)
    data = {"train": (x, x[:, :1] * x[:, 1:]), "points": points}
    middle, count = config.start.points // 2, len(part.seeds)

    def unit(data, **point):
        (width,) = point.values()
        net = network(config, width, 2, rule)
        kernel = tangent_kernel(net)

        def measure(params, carry, rate, data):
            points = data["points"]
            return carry, {"row": kernel(params, points[middle][None], points)[0]}

        setup = Setup(
            net.init,
            losses.supervised("squared_error", net.apply),
            lambda rate: net.optimizer(optax.sgd, rate),
        )
        probe = Probe(lambda params, key, data: (), measure)
        return Training(
            lambda: _program(setup, data, part.steps, 1, probe, width, count),
            width,
            *(data, [part.learning_rate] * count, part.seeds, 1, part.steps),
            keep=lambda records: {f"{name}_kernel": records["row"]},
        )

    dims = ("drift_seed", "moment", "point")
    variables = {f"{name}_kernel": Variable("row of the tangent kernel", dims=dims)}
    own = {"drift_seed": _seeds(part), "moment": Axis(["start", "end"], "moment of training")}
    program = grid.Program(name, unit, variables, own, trains=True)
    return train_grid({f"{name}_width": _widths(widths)}, data, program, session)


def _ensemble(config: Any, session: Session) -> xr.Dataset:
    part = config.ensemble
    angles, points = circle(part.angles)
    at = np.array([-0.75, -0.2, 0.35, 0.8]) * math.pi
    x = np.stack([np.cos(at), np.sin(at)], axis=1).astype(np.float32)
    y = x[:, :1] * x[:, 1:]
    data, count = {"train": (x, y), "points": points}, len(part.seeds)

    def unit(data, ensemble_width):
        net = network(config, ensemble_width, 2)

        def measure(params, carry, rate, data):
            return carry, {"outputs": net.apply(params, data["points"])[:, 0]}

        setup = Setup(net.init, losses.supervised("squared_error", net.apply), optax.sgd)
        probe = Probe(lambda params, key, data: (), measure)
        return Training(
            lambda: _program(setup, data, part.steps, 1, probe, ensemble_width, count),
            ensemble_width,
            *(data, [part.learning_rate] * count, part.seeds, 1, part.steps),
            keep=lambda records: {"outputs": records["outputs"][:, 1]},
        )

    dims = ("ensemble_seed", "ensemble_angle")
    variables = {"outputs": Variable("output after training", dims=dims)}
    own = {
        "ensemble_seed": _seeds(part),
        "ensemble_angle": Axis(angles, "angle", "rad"),
        "train_angle": Axis(at, "angle of the training examples", "rad"),
    }
    axes = {"ensemble_width": _widths(part.widths)}
    program = grid.Program("ensemble", unit, variables, own, trains=True)
    made = train_grid(axes, data, program, session)
    predict = ntk.predict.gradient_descent_mse_ensemble(
        limit_kernel(config), x, y, part.learning_rate, dtype=jnp.float64
    )
    theory = predict(part.steps, points, "ntk", compute_cov=True)
    deviation = np.sqrt(np.maximum(np.diagonal(np.asarray(theory.covariance)), 0))
    mean, angle = np.asarray(theory.mean)[:, 0], "ensemble_angle"
    return made.assign(
        predicted_mean=grid.array(angle, mean, "mean output, predicted"),
        predicted_sd=grid.array(angle, deviation, "standard deviation of outputs, predicted"),
        target=grid.array("train_angle", y[:, 0], "target"),
    )


def _components(config: Any, session: Session) -> xr.Dataset:
    part = config.component
    dims = ("component_seed", "chunk")
    change = {
        "along": Variable("error along the component", dims=dims),
        "off": Variable("RMS change off the component", dims=dims),
    }
    theory = {
        "eigenvalue": Variable("eigenvalue of the limit kernel", dims=("rank",)),
        "time": Variable("learning rate times steps", dims=("chunk",)),
    }
    inputs = {"component_inputs": Axis(list(part.inputs), "inputs")}
    axes = inputs | {"component_width": _widths(part.widths)}
    ranks = {"rank": Axis([1, 2], "rank of the eigenvalue")}
    seeds = {"component_seed": _seeds(part)}
    trained = grid.Program("component", _component_unit, change, seeds, trains=True)
    known = grid.Program("eigenvalues", _eigenvalues_unit, theory, ranks, steps=0)
    return xr.merge(
        [train_grid(axes, config, trained, session), train_grid(inputs, config, known, session)]
    )


def _component(config: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Inputs, eigenvalues and eigenvectors of the limit kernel, and the learning rate."""
    part = config.component
    x = examples(config, name, part.num_train)
    kernel = np.asarray(limit_kernel(config)(x, x, "ntk"), np.float64)
    values, vectors = np.linalg.eigh(kernel / part.num_train)
    return x, values, vectors, part.end / values[-2] / part.steps


def _eigenvalues_unit(config: Any, component_inputs: str) -> dict[str, Any]:
    part = config.component
    _, values, _, rate = _component(config, component_inputs)
    steps = np.arange(part.steps // part.chunk + 1) * part.chunk
    return {"eigenvalue": values[[-1, -2]], "time": steps * rate}


def _component_unit(config: Any, component_inputs: str, component_width: int) -> Training:
    part = config.component
    x, _, vectors, rate = _component(config, component_inputs)
    component = np.float32(vectors[:, -2] * math.sqrt(part.num_train))
    data = {"train": (x, ALIGNED * component[:, None]), "component": component}
    net = network(config, component_width, x.shape[1])
    return Training(
        lambda: _component_program(config, net, data),
        (component_inputs, component_width),
        *(data, [rate] * len(part.seeds), part.seeds, part.steps // part.chunk, part.steps),
    )


def _component_program(config, net, data) -> Program:
    """Descent on f* = f_0 + 0.5 f^(2): the initial function is carried along, without a gradient."""
    part = config.component

    def moved(params, x):
        return net.apply(params["now"], x) - jax.lax.stop_gradient(net.apply(params["first"], x))

    def init(key):
        params = net.init(key)
        return {"now": params, "first": params}

    def measure(params, carry, rate, data):
        change, component = moved(params, data["train"][0])[:, 0], data["component"]
        share = (change * component).mean()
        rest = change - share * component
        return carry, {"along": ALIGNED - share, "off": jnp.sqrt((rest**2).mean())}

    setup = Setup(init, losses.supervised("squared_error", moved), optax.sgd)
    probe = Probe(lambda params, key, data: (), measure)
    chunks = part.steps // part.chunk
    return _program(setup, data, part.steps, chunks, probe, net.width, len(part.seeds))


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "kernel_on_the_circle": drawn.kernel_on_the_circle(data),
        "gaussian_limit": drawn.gaussian_limit(data),
        "components": drawn.components(data, predicted_along(data)),
        "convergence": drawn.convergence(
            {
                f"distance from the limit, {name}": distances(data, name)
                for name in data.start_inputs.values
            }
            | {"change in training, circle": drifts(data)},
            fit,
        ),
    }
