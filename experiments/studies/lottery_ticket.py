"""A sparse network found by training, pruning and rewinding learns faster and better than others as sparse.

Tickets against the same mask with new weights and against random masks, at a short and a long budget of steps; and the
tangent kernel of each before training, against the dense network's. Layers have no biases.

On 1000 images of MNIST, where as many rounds leave six times as many weights, tickets lead less over new weights (early
0.16, short 0.017, long 0.012) and keep less of the dense kernel than random masks (-0.05). As on the digits
they are nearer to the labels before training (0.10).
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
from experiments.grid import Axis, train_grid, variables
from experiments.loop import Session
from experiments.studies import lottery_ticket_figures as drawn
from experiments.studies.lottery_ticket_claims import MASKS, NETS, ROUNDS, claims
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
    "num_masks": checks.whole(1, 1000),
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
    descend, accuracies, tangent, compared = _programs(config, task.outputs)

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
                keys = jax.random.split(jax.random.fold_in(key, count), 2 * config.num_masks)
                mixed = [(start, pruning.shuffled_mask(mask, k)) for k in keys]
                nets = (start, mask), (fresh, mask), *mixed
                found.append({"density": pruning.density(mask)})
                found[-1]["accuracy"] = jnp.stack([accuracies(seed, *n, data) for n in nets[:3]])
                own, other = (tangent(p, pruning.full_mask(p), data) for p in (start, fresh))
                dense = own, other, *[own] * len(mixed)
                each = [compared(tangent(*net, data), k, data) for net, k in zip(nets, dense)]
                kept, target = jnp.array(each).T
                groups = [values[2:].reshape(2, -1).mean(1) for values in (kept, target)]
                for name, values, means in zip(("kept", "target"), (kept, target), groups):
                    found[-1][name] = jnp.concatenate([values[:2], means])
            trained = descend(seed, start, mask, data, config.budgets[1:2])[0]
            mask = pruning.magnitude_mask(trained, mask, shares)
        return jax.tree.map(lambda *values: jnp.stack(values), *found)

    names = variables("round", density="share of weights that are left")
    names |= variables("round net budget", accuracy="test accuracy")
    names |= variables(
        "round mask",
        kept="alignment of the initial tangent kernel with the dense one",
        target="alignment of the initial tangent kernel with the labels",
    )
    own = {
        "round": Axis(list(config.rounds), "rounds of pruning"),
        "net": Axis(list(NETS), "network"),
        "mask": Axis(list(MASKS), "network"),
        "budget": Axis(["early", "short", "long"], "budget"),
        "steps": Axis(list(config.budgets), "training steps", dims=("budget",)),
    }
    program = grid.Program("tickets", unit, names, own)
    return train_grid({"seed": Axis(list(config.seeds), "seed")}, data, program, session)


def _programs(config: Any, outputs: int) -> tuple:
    """Of parameters and a mask: training to some numbers of steps, test accuracies there, kernel; its alignments."""

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

    kernel_fn = ntk.empirical_ntk_fn(apply, (-1,), vmap_axes=(0, 0, {"mask": None}))
    predict = jax.jit(apply)

    def accuracies(seed, params, mask, data):
        (x, y), ends = data["test"], descend(seed, params, mask, data, config.budgets)
        return jnp.stack([losses.accuracy(predict(p, x, mask), y) for p in ends])

    @jax.jit
    def tangent(params, mask, data):
        return kernel_fn(data["test"][0][: config.num_kernel], None, params, mask=mask)

    @jax.jit
    def compared(kernel, full, data):
        labels = jax.nn.one_hot(data["test"][1][: config.num_kernel], outputs)
        own = kernels.target_alignment(kernel, labels)
        return kernels.alignment(kernel, full, centered=True), own

    return descend, accuracies, tangent, compared


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {"accuracy": drawn.accuracy(data), "kernels": drawn.kernels(data)}
