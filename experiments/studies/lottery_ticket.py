"""A sparse network found by training, pruning and rewinding learns faster and better than others as sparse.

Tickets against the same mask with new weights and against random masks, at a short and a long budget of steps; and the
tangent kernel of each before training, against the dense network's. Layers have no biases.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import xarray as xr
from flax import linen as nn

import ntk
from experiments import checks, grid, losses, tasks, train
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import lottery_ticket_figures as drawn
from experiments.studies.lottery_ticket_claims import NETS, ROUNDS, claims
from metrics import kernels, pruning

TITLE = "Lottery tickets: sparse networks that train well"
PAPER = "Frankle & Carbin 2019, arXiv:1803.03635"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

RULES = {
    "hidden": checks.several(checks.WIDTH, distinct=False),
    "learning_rate": checks.positive(),
    "batch_size": checks.whole(),
    "share": checks.real(0, 1, inside=True),
    "rounds": checks.several(checks.whole(0, 100), ascending=True, needs=ROUNDS),
    "budgets": checks.several(checks.STEPS, 3, most=3, ascending=True),
    "num_kernel": checks.whole(2),
    "seeds": checks.SEEDS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through, by a ValueError that names the key."""
    checks.values(config, RULES)
    checks.classes(task)
    if config.num_kernel > len(task.test.x):
        checks.refuse("num_kernel", config.num_kernel, f"at most {len(task.test.x)}, the test set")


def total_steps(config: Any) -> int:
    """Seeds, for the progress bar."""
    return len(config.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """The labelled measurements of a configuration (by default nothing is kept); a ValueError as of `check`."""
    task = tasks.load(config.task)
    check(config, task)
    sets = {"train": task.train, "test": task.test}
    data = {
        name: (jnp.asarray(s.x.reshape(len(s.x), -1)), jnp.asarray(s.y)) for name, s in sets.items()
    }
    sizes = (data["train"][0].shape[1], *config.hidden, task.outputs)
    *names, last = layers = [f"layer_{l}" for l in range(len(sizes) - 1)]
    shares = dict.fromkeys(names, config.share) | {last: config.share / 2}
    descend, measure = _programs(config)

    def draw(key):
        keys, shapes = jax.random.split(key, len(layers)), itertools.pairwise(sizes)
        glorot = nn.initializers.glorot_normal()
        return {name: glorot(k, shape) for name, k, shape in zip(layers, keys, shapes)}

    def unit(data, seed):
        key, found = jax.random.key(seed), []
        start, fresh = map(draw, jax.random.split(key))
        mask = pruning.full_mask(start)
        for count in range(config.rounds[-1] + 1):
            if count in config.rounds:
                keys = jax.random.split(jax.random.fold_in(key, count))
                mixed = [pruning.shuffled_mask(mask, k) for k in keys]
                nets = (start, mask), (fresh, mask), *((start, m) for m in mixed)
                each = [measure(seed, *net, data) for net in nets]
                found.append(jax.tree.map(lambda *values: jnp.stack(values), *each))
                found[-1]["density"] = pruning.density(mask)
            trained = descend(seed, start, mask, data, config.budgets[1:2])[0]
            mask = pruning.magnitude_mask(trained, mask, shares)
        return jax.tree.map(lambda *values: jnp.stack(values), *found)

    each = ("round", "net")
    variables = {
        "density": Variable("share of weights that are left", dims=("round",)),
        "accuracy": Variable("test accuracy", dims=(*each, "budget")),
        "kept": Variable("alignment of the initial tangent kernel with the dense one", dims=each),
        "target": Variable("alignment of the initial tangent kernel with the labels", dims=each),
    }
    own = {
        "round": Axis(list(config.rounds), "rounds of pruning"),
        "net": Axis(list(NETS), "network"),
        "budget": Axis(["early", "short", "long"], "budget"),
        "steps": Axis(list(config.budgets), "training steps", dims=("budget",)),
    }
    program = grid.Program("tickets", unit, variables, own)
    return train_grid({"seed": Axis(list(config.seeds), "seed")}, data, program, session)


def _programs(config: Any) -> tuple:
    """(training to each of some numbers of steps, all that is measured of a network) from parameters and a mask."""

    def apply(params, x, mask):
        *hidden, readout = pruning.masked(params, mask).values()
        for weights in hidden:
            x = nn.relu(x @ weights)
        return x @ readout

    def setup(data):
        loss = losses.supervised("cross_entropy", lambda p, x: apply(p, x, data["mask"]))
        return train.Setup(None, loss, optax.adam)

    step = train.training_step(setup, config.batch_size)

    @jax.jit
    def advance(state, until, seed, data):
        def body(_, state):
            return step(state, config.learning_rate, seed, data)[0]

        return jax.lax.fori_loop(state.step, until, body, state)

    def descend(seed, params, mask, data, budgets):
        adam, found = optax.adam(config.learning_rate).init(params), []
        state = train.State(params, adam, jnp.zeros((), jnp.int32), None)
        for budget in budgets:
            state = advance(state, budget, jnp.uint32(seed), data | {"mask": mask})
            found.append(state.params)
        return found

    tangent = ntk.empirical_ntk_fn(apply, (-1,), vmap_axes=(0, 0, {"mask": None}))
    predict = jax.jit(apply)

    def measure(seed, params, mask, data):
        x, y = data["test"]
        ends = descend(seed, params, mask, data, config.budgets)
        some, dense = x[: config.num_kernel], pruning.full_mask(mask)
        kernel, full = (tangent(some, None, params, mask=m) for m in (mask, dense))
        labels = jax.nn.one_hot(y[: config.num_kernel], y.max() + 1)
        return {
            "accuracy": jnp.stack([losses.accuracy(predict(p, x, mask), y) for p in ends]),
            "kept": kernels.alignment(kernel, full, centered=True),
            "target": kernels.target_alignment(kernel, labels),
        }

    return descend, measure


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {"accuracy": drawn.accuracy(data), "kernels": drawn.kernels(data)}
