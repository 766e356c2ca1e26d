"""Gradient descent on logistic regression separates examples with steps of any size, and the loss misleads.

Steps until every example is on its side, from small step sizes to the perceptron: on Gaussian sets, on sets with one
hard example among n, and on pairs of digits, plain and normalised, against the bounds of `limits.perceptron`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from experiments import checks, grid, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import large_steps_figures as drawn
from experiments.studies.large_steps_claims import claims
from limits import perceptron

TITLE = "Large steps turn logistic regression into the perceptron"
PAPER = "Tyurin 2024, arXiv:2412.08424"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

LARGE = 1e10
RULES = {
    "gaussian.num_examples": checks.whole(2),
    "gaussian.dim": checks.whole(2),
    "gaussian.margin": checks.real(0, 1, inside=True),
    "gaussian.step_sizes": checks.several(
        checks.positive(), ascending=True, needs=(1.0, 10.0, 1e4, 1e5)
    ),
    "gaussian.seeds": checks.SEEDS,
    "adversarial.counts": checks.several(checks.whole(2), 3, ascending=True, needs=(1000,)),
    "adversarial.margin": checks.real(0, 0.3, inside=True),
    "pairs.classes": checks.several(
        checks.fixed(checks.whole(0), checks.whole(0)), needs=((3, 8),)
    ),
    "pairs.num_examples": checks.whole(2),
    "pairs.step_sizes": checks.several(checks.positive(), ascending=True, needs=(1.0, 1e4)),
    "max_steps": checks.STEPS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.classes(task)
    for pair in config.pairs.classes:
        if max(pair) >= task.outputs or pair[0] == pair[1]:
            checks.refuse("pairs.classes", pair, f"two different classes below {task.outputs}")
        checks.context("pairs.classes", perceptron.margin, digits(config, task, pair))


def total_steps(config: Any) -> int:
    """Sets of examples, for the progress bar."""
    return len(config.gaussian.seeds) + len(config.adversarial.counts) + len(config.pairs.classes)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/large_steps.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: as of `check`.
    """
    task = tasks.load(config.task)
    check(config, task)
    return xr.merge(
        [_gaussian(config, session), _adversarial(config, session), _pairs(config, task, session)]
    )


# Signed examples b = y x of norm at most 1


def gaussian(num_examples: int, dim: int, margin: float, seed: int) -> np.ndarray:
    """Random directions, those too near to a random hyperplane moved away from it."""
    random = np.random.default_rng(seed)
    w = random.normal(size=dim)
    w /= np.linalg.norm(w)
    x = random.normal(size=(num_examples, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    along = x @ w
    x += (np.sign(along) * np.maximum(np.abs(along), margin) - along)[:, None] * w
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x * np.sign(x @ w)[:, None]


def adversarial(num_examples: int, margin: float) -> np.ndarray:
    """Easy copies of e_1 + margin e_2, and one hard -e_1 + 3 margin e_2, all of norm 1."""
    b = np.vstack([np.tile([1.0, margin], (num_examples - 1, 1)), [[-1.0, 3 * margin]]])
    return b / np.linalg.norm(b, axis=1, keepdims=True)


def digits(config: Any, task: tasks.Task, pair: tuple[int, int]) -> np.ndarray:
    """Two classes, pixels between 0 and 1 with a constant appended, the largest of norm 1.

    Nothing is predicted: the test set is separated too.
    """
    images, labels = (np.concatenate(parts) for parts in zip(task.train, task.test))
    chosen = np.isin(labels, pair)
    x = images[chosen][: config.pairs.num_examples].astype(float)
    sign = np.where(labels[chosen][: len(x)] == pair[0], 1.0, -1.0)
    low, high = images.min(), images.max()
    x = np.column_stack([(x.reshape(len(x), -1) - low) / (high - low), np.ones(len(x))])
    return x * sign[:, None] / np.linalg.norm(x, axis=1).max()


def descent(config: Any, signed: np.ndarray, width: float, step_size: float, *, normalised=False):
    """(path, its steps or nan where it never separates, steps over the bound) of examples with a margin of width."""
    options = {"normalised": normalised, "max_steps": config.max_steps}
    path = perceptron.descend(signed, step_size, **options)
    steps = path.steps if path.separated else math.nan
    radius = float(np.linalg.norm(signed, axis=1).max())
    bound = perceptron.step_bound(len(signed), radius, width, step_size, normalised=normalised)
    return path, steps, steps / bound


def angle(u: np.ndarray, v: np.ndarray) -> float:
    """Between two vectors, accurate where it is small."""
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return 2 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v))


def _gaussian(config: Any, session: Session | None) -> xr.Dataset:
    part = config.gaussian

    def unit(data, seed):
        b = gaussian(part.num_examples, part.dim, part.margin, seed)
        width = perceptron.margin(b).value
        runs = [
            [descent(config, b, width, g, normalised=normal) for g in part.step_sizes]
            for normal in (False, True)
        ]
        limit, large = (descent(config, b, width, g) for g in (math.inf, LARGE))
        # A perceptron whose first step has weights 1, though every example is on the boundary.
        wrong = perceptron.descend(b, math.inf, start=b.mean(0), max_steps=config.max_steps)
        return {
            "steps": [[steps for _, steps, _ in row] for row in runs],
            "ratio": [[ratio for *_, ratio in row] for row in runs],
            "unsolved_loss": [path.losses.mean() for path, *_ in runs[0]],
            "perceptron_steps": limit[1],
            "large_difference": [abs(large[1] - limit[1]), abs(large[1] - wrong.steps - 1)],
            "angle": [angle(large[0].weights, found.weights) for found in (limit[0], wrong)],
        }

    sizes = ("step_size",)
    variables = {
        "steps": Variable("steps to separation", dims=("normalised", *sizes)),
        "ratio": Variable("steps over their bound", dims=("normalised", *sizes)),
        "unsolved_loss": Variable("mean loss before separation", "nats", sizes),
        "perceptron_steps": Variable("steps of the perceptron"),
        "large_difference": Variable("difference in steps from descent at 1e10", dims=("first",)),
        "angle": Variable("angle from descent at 1e10", "rad", ("first",)),
    }
    own = {
        "normalised": Axis([0, 1], "whether steps are normalised"),
        "step_size": Axis(list(part.step_sizes), "step size"),
        "first": Axis(["one half", "one"], "weight of the perceptron's first step"),
    }
    program = grid.Program("gaussian", unit, variables, own)
    return train_grid({"seed": Axis(list(part.seeds), "seed")}, None, program, session)


def _adversarial(config: Any, session: Session | None) -> xr.Dataset:
    def unit(data, examples):
        b = adversarial(examples, config.adversarial.margin)
        width, size = perceptron.margin(b).value, float(examples)
        plain, at_n = (descent(config, b, width, g) for g in (1e8, size))
        normal = descent(config, b, width, size, normalised=True)
        held = perceptron.step_bound(examples, 1.0, width, 1e8, normalised=True)
        return {
            "hard_steps": [plain[1], at_n[1], normal[1]],
            "hard_ratio": [plain[2], at_n[2], normal[2]],
            "hard_wrong": plain[1] / held,
        }

    variables = {
        "hard_steps": Variable("steps to separation", dims=("method",)),
        "hard_ratio": Variable("steps over their bound", dims=("method",)),
        "hard_wrong": Variable("steps of plain descent over the bound of normalised steps"),
    }
    own = {
        "method_name": Axis(
            ["plain, size 1e8", "plain, size n", "normalised, size n"], "method", dims=("method",)
        )
    }
    axes = {"examples": Axis(list(config.adversarial.counts), "examples")}
    return train_grid(axes, None, grid.Program("adversarial", unit, variables, own), session)


def _pairs(config: Any, task: tasks.Task, session: Session | None) -> xr.Dataset:
    part = config.pairs
    pairs = {f"{a} vs {b}": (a, b) for a, b in part.classes}

    def unit(data, pair):
        b = digits(config, task, pairs[pair])
        width = perceptron.margin(b).value
        runs = [descent(config, b, width, g) for g in part.step_sizes]
        return {
            "pair_steps": [steps for _, steps, _ in runs],
            "pair_loss": [path.losses.mean() for path, *_ in runs],
            "pair_normalised": descent(config, b, width, 1.0, normalised=True)[1],
        }

    variables = {
        "pair_steps": Variable("steps to separation", dims=("pair_step_size",)),
        "pair_loss": Variable("mean loss before separation", "nats", ("pair_step_size",)),
        "pair_normalised": Variable("steps to separation, normalised, step size 1"),
    }
    own = {"pair_step_size": Axis(list(part.step_sizes), "step size")}
    axes = {"pair": Axis(list(pairs), "classes")}
    return train_grid(axes, None, grid.Program("pairs", unit, variables, own), session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "steps_against_step_size": drawn.steps(data),
        "loss_misleads": drawn.losses(data),
        "hard_example": drawn.hard(data),
    }
