"""Trained attention goes the way of a support vector machine that separates the tokens it selects.

One attention layer is trained by normalised gradient descent on random tokens, by W or by K and Q, and its direction is
compared with the Frobenius and the nuclear solution for the tokens that it selected. Without the authors' weight decay
of 2.2e-16 the comparison is with gradient descent itself, in exact arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from experiments import checks, grid, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import attention_svm_figures as drawn
from experiments.studies.attention_svm_claims import TRAINED, claims
from limits import attention_svm

TITLE = "Trained attention is a support vector machine on its tokens"
PAPER = "Tarzanagh, Li, Thrampoulidis & Oymak 2023, arXiv:2308.16898"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

RULES = {
    "layer.examples": checks.whole(1, 1000),
    "layer.tokens": checks.whole(3, 1000),
    "layer.dim": checks.whole(2, 1000),
    "layer.step_size": checks.positive(),
    "layer.steps": checks.whole(10, 10**7),
    "layer.decay": checks.real(0),
    "layer.points": checks.whole(1, 1000),
    "layer.seeds": checks.SEEDS,
    "selection.steps": checks.STEPS,
    "feasible.size": checks.whole(2, 100),
    "feasible.dims": checks.several(checks.whole(1, 1000), ascending=True, needs=(1, 2, 8)),
    "feasible.draws": checks.whole(),
}


def check(config: Any, task: tasks.Task | None) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.multiple(config, "layer.steps", "points")
    part, count = config.layer, config.layer.examples * config.layer.tokens
    checks.memory("config.layer: constraints", 4.0 * count * max(part.dim, count) ** 2, 8)


def total_steps(config: Any) -> int:
    """Layers that are trained, for the progress bar."""
    return len(TRAINED) * len(config.layer.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/attention_svm.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: as of `check`.
    """
    check(config, None)
    return xr.merge([part(config, session) for part in (_layers, _selection, _feasible)])


def problem(random: np.random.Generator, examples: int, tokens: int, dim: int) -> tuple:
    """Unit tokens, queries and values, and labels 1 or -1."""
    made = [
        random.standard_normal(shape) for shape in ((examples, tokens, dim), (examples, dim), dim)
    ]
    x, z, v = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in made)
    return x, z, v, random.choice([-1.0, 1.0], size=examples)


def best_tokens(x: np.ndarray, v: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each example the token of largest label times value."""
    return (labels[:, None] * (x @ v)).argmax(axis=1)


def _layers(config: Any, session: Session | None) -> xr.Dataset:
    part = config.layer
    every = part.steps // part.points

    def unit(data, trained, seed):
        random = np.random.default_rng(seed)
        x, z, v, labels = problem(random, part.examples, part.tokens, part.dim)
        start = tuple(random.uniform(-1, 1, (2, part.dim, part.dim)) / np.sqrt(part.dim))
        given = (x, z, v, labels)
        options = {"start": start[0] if trained == "W" else start, "step_size": part.step_size}
        options["decay"] = 0.0 if trained == "K, Q, no decay" else part.decay
        path = attention_svm.descend(*given, part.steps, every=every, **options)
        early = attention_svm.descend(*given, 10, **options)
        c = attention_svm.constraints(x, z, path.selected)
        # One example's second-best token in place of the selected one.
        swapped = path.selected.copy()
        swapped[0] = np.argsort(path.weights[0])[-2]
        wrong = attention_svm.constraints(x, z, swapped)
        found = [attention_svm.solve(c, norm) for norm in ("frobenius", "nuclear")]
        matrices = [np.nan_to_num(m) for m in path.matrices]
        return {
            "correlation": [
                [attention_svm.correlation(m, s.matrix) for m in matrices] for s in found
            ],
            "largest_weight": [p.weights.max(axis=1).mean() for p in (early, path)],
            "optimal": float((path.selected == best_tokens(x, v, labels)).all()),
            "singular": np.linalg.svd(path.matrices[-1] / np.linalg.norm(path.matrices[-1], 2))[1],
            "slack": [[np.tensordot(cs, s.matrix, 2).min() for s in found] for cs in (c, wrong)],
            "gap": [s.gap for s in found],
        }

    norm = ("norm",)
    variables = {
        "correlation": Variable("correlation with the solution", dims=(*norm, "step")),
        "largest_weight": Variable("largest attention weight, mean of examples", dims=("moment",)),
        "optimal": Variable("whether every selected token is the best"),
        "singular": Variable("singular values over the largest", dims=("rank",)),
        "slack": Variable("smallest constraint of the solution", dims=("selected", *norm)),
        "gap": Variable("relative gap to the dual bound", dims=norm),
    }
    own = {
        "norm": Axis(["Frobenius", "nuclear"], "norm of the solution"),
        "step": Axis(np.arange(part.points + 1) * every, "training step"),
        "moment": Axis(["step 10", "end"], "moment"),
        "selected": Axis(["own", "one swapped"], "tokens of the constraints"),
        "rank": Axis(np.arange(part.dim) + 1, "rank of the singular value"),
    }
    axes = {
        "trained": Axis(list(TRAINED), "what is trained"),
        "seed": Axis(list(part.seeds), "seed"),
    }
    return train_grid(axes, None, grid.Program("layer", unit, variables, own), session)


def _selection(config: Any, session: Session | None) -> xr.Dataset:
    """From W = 0 orthonormal tokens do not disturb each other: the best ones are ahead at every step."""
    part = config.layer
    dim = part.examples * part.tokens

    def unit(data, seed):
        random = np.random.default_rng([seed, 1])
        _, z, v, labels = problem(random, part.examples, part.tokens, dim)
        x = np.linalg.qr(random.standard_normal((dim, dim)))[0]
        x = x.reshape(part.examples, part.tokens, dim)
        options = {"start": np.zeros((dim, dim)), "step_size": part.step_size}
        path = attention_svm.descend(x, z, v, labels, config.selection.steps, **options)
        return {"optimal_orthonormal": float((path.selected == best_tokens(x, v, labels)).all())}

    what = Variable("whether every selected token is the best, from W = 0 on orthonormal tokens")
    program = grid.Program("selection", unit, {"optimal_orthonormal": what}, steps=0)
    return train_grid({"seed": Axis(list(part.seeds), "seed")}, None, program, session)


def _feasible(config: Any, session: Session | None) -> xr.Dataset:
    part = config.feasible

    def unit(data, feasible_dim):
        found = []
        for draw in range(part.draws):
            random = np.random.default_rng([draw, feasible_dim])
            x, z, v, labels = problem(random, part.size, part.size, feasible_dim)
            c = attention_svm.constraints(x, z, best_tokens(x, v, labels))
            try:
                found.append(attention_svm.solve(c).norm > 0)
            except ValueError:  # nothing separates them
                found.append(False)
        return {"feasible": np.array(found, float)}

    what = Variable("whether the best tokens can be separated", dims=("feasible_seed",))
    own = {"feasible_seed": Axis(np.arange(part.draws), "seed of the problem")}
    axes = {"feasible_dim": Axis(list(part.dims), "dimension")}
    program = grid.Program("feasible", unit, {"feasible": what}, own, steps=0)
    return train_grid(axes, None, program, session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "direction": drawn.direction(data),
        "singular_values": drawn.singular_values(data),
        "feasibility": drawn.feasibility(data),
    }
