"""What gradient noise does: small batches are more updates, and noise that is added walks weights to criticality.

A network is trained with small and large batches for as many epochs and for as many updates, and its distance from the
start is followed; a deep one is trained from weights too small for it, with noise added to the gradients. On 1280
images of MNIST as many updates close two thirds of the gap, not all of it (.019 to .006), and growth is less exactly
logarithmic (R^2 .987); noise and its walk are the same there.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import xarray as xr

import limits
import models
import ntk
from experiments import checks, grid, losses, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies.gradient_noise_claims import claims
from experiments.studies.gradient_noise_figures import figures

TITLE = "What gradient noise does: batches, updates and added noise"
PAPER = "Hoffer, Hubara & Soudry 2017, arXiv:1705.08741; Neelakantan et al. 2015, arXiv:1511.06807"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

DECAY = 0.55
RULES = {
    "batches.small": checks.whole(),
    "batches.large": checks.whole(2),
    "batches.width": checks.WIDTH,
    "batches.learning_rate": checks.positive(),
    "batches.steps": checks.whole(100, 10**7),
    "batches.seeds": checks.several(checks.whole(0), 2),
    "batches.growth_seeds": checks.several(checks.whole(0), 2),
    "noise.depth": checks.whole(2, 1000),
    "noise.width": checks.WIDTH,
    "noise.deviation": checks.positive(),
    "noise.eta": checks.positive(),
    "noise.learning_rate": checks.positive(),
    "noise.steps": checks.whole(100, 10**7),
    "noise.seeds": checks.several(checks.whole(0), 2),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing."""
    checks.values(config, RULES)
    checks.classes(task)
    part = config.batches
    if part.large % part.small or part.steps % (part.large // part.small):
        checks.refuse("batches.large", part.large, "a multiple of small, steps one of their ratio")
    if not part.small < part.large < len(task.train.x):
        checks.refuse("batches.large", part.large, f"above small, below {len(task.train.x)}, all")
    if walk(config.noise, config.noise.eta)[-1] <= critical():
        checks.refuse("noise.eta", config.noise.eta, "large enough to reach criticality in steps")


def total_steps(config: Any) -> int:
    """Networks that are trained, for the progress bar."""
    return (
        3 * len(config.batches.seeds)
        + 2 * len(config.batches.growth_seeds)
        + 4 * len(config.noise.seeds)
    )


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements."""
    task = tasks.load(config.task)
    check(config, task)
    made = xr.merge([part(config, task, session) for part in (_batches, _noise)])
    part = config.batches
    return made.assign_attrs(
        outputs=task.outputs,
        same_epochs=part.steps // (part.large // part.small),
        critical=critical(),
        crossing=crossing(config.noise),
    )


def critical() -> float:
    """fan_in times the variance of weights at which a ReLU network keeps its signal."""
    return float(limits.criticality(jax.nn.relu).C_W)


def walk(part: Any, eta: float) -> np.ndarray:
    """fan_in times the variance of weights that only noise moves, before each step and after the last."""
    moved = part.learning_rate**2 * eta * (1.0 + np.arange(part.steps)) ** -DECAY
    return part.width * (part.deviation**2 + np.append(0, moved.cumsum()))


def crossing(part: Any) -> int:
    """The step at which the walk has reached criticality."""
    return int(np.searchsorted(walk(part, part.eta), critical()))


def marks(steps: int, *more: int) -> list[int]:
    """Steps at which something is measured, 0 and 30 at equal ratios among them."""
    return sorted({0, *np.geomspace(1, steps, 30).round().astype(int).tolist(), *more})


@functools.partial(jax.jit, static_argnums=(0, 1))
def descend(loss, size, state, first, last, rate, momentum, eta, key, data):
    """Steps from number first to before last on batches, None for all examples; gradients clipped at norm 100."""

    def step(number, state):
        params, velocity = state
        rows, noise = jax.random.split(jax.random.fold_in(key, number))
        rows = slice(None) if size is None else jax.random.randint(rows, (size,), 0, len(data[1]))
        slope = jax.grad(loss)(params, (data[0][rows], data[1][rows]))
        flat, unravel = jax.flatten_util.ravel_pytree(slope)
        flat = flat * jnp.minimum(1, 100 / (jnp.linalg.norm(flat) + 1e-12))
        deviation = jnp.sqrt(eta / (1.0 + number) ** DECAY)
        flat = jax.lax.cond(
            eta > 0, lambda g: g + deviation * jax.random.normal(noise, g.shape), lambda g: g, flat
        )
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, unravel(flat))
        return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity

    return jax.lax.fori_loop(first, last, step, state)


def _trained(loss, size, params, steps, settings, key, data):
    """Parameters at every one of the steps."""
    state, found = (params, jax.tree.map(jnp.zeros_like, params)), []
    for first, last in itertools.pairwise([0, *steps]):
        state = descend(loss, size, state, first, last, *settings, key, data)
        found.append(state[0])
    return found


def _batches(config: Any, task: tasks.Task, session: Session | None) -> xr.Dataset:
    part = config.batches
    train, test = (tuple(map(jnp.asarray, data)) for data in (task.train, task.test))
    family = models.family(
        "MLP", depth=2, outputs=task.outputs, kernel_init=jax.nn.initializers.he_normal()
    )
    init, apply = ntk.network(family, part.width, task.train.x[:1])
    entropy, squared = (losses.supervised(name, apply) for name in losses.LOSSES)
    ratio = part.large // part.small
    schedules = {
        "small": (entropy, part.small, 1.0),
        "large": (entropy, part.large, 1.0),
        "root": (entropy, part.large, ratio**0.5),
        "full": (entropy, None, 1.0),
        "squared": (squared, part.large, 1.0),
    }
    steps = marks(part.steps, part.steps // ratio)
    accuracy = jax.jit(lambda params: losses.accuracy(apply(params, test[0]), test[1]))

    def unit(schedule, seed):
        loss, batch, scale = schedules[schedule]
        start, batches = jax.random.split(jax.random.key(seed))
        settings = part.learning_rate * scale, 0.9, 0.0
        found = _trained(loss, batch, init(start), steps, settings, batches, train)
        flat = [jax.flatten_util.ravel_pytree(params)[0] for params in found]
        return {
            "accuracy": [float(accuracy(params)) for params in found],
            "distance": [float(jnp.linalg.norm(w - flat[0])) for w in flat],
        }

    own, made = {"step": Axis(steps, "updates")}, []
    for kind, of in (("", ("small", "large", "root")), ("growth_", ("full", "squared"))):
        axes = {
            f"{kind}schedule": Axis(list(of), "batches"),
            f"{kind}seed": Axis(list(part[f"{kind}seeds"]), "seed"),
        }
        variables = {
            f"{kind}accuracy": Variable("test accuracy", dims=("step",)),
            f"{kind}distance": Variable("|w - w(0)|", dims=("step",)),
        }

        def named(data, kind=kind, **point):
            return {f"{kind}{name}": value for name, value in unit(*point.values()).items()}

        program = grid.Program(f"{kind}batches", named, variables, own)
        made.append(train_grid(axes, None, program, session))
    return xr.merge(made)


def _noise(config: Any, task: tasks.Task, session: Session | None) -> xr.Dataset:
    part = config.noise
    train = tuple(map(jnp.asarray, task.train))
    settings = {
        "none": (part.deviation, 0.0),
        "weak": (part.deviation, part.eta / 30),
        "strong": (part.deviation, part.eta),
        "critical start": (None, 0.0),
    }
    unit_normal = jax.nn.initializers.normal(1.0)
    family = models.family("MLP", depth=part.depth, outputs=task.outputs, kernel_init=unit_normal)
    init, apply = ntk.network(family, part.width, task.train.x[:1])
    loss = losses.supervised("cross_entropy", apply)
    steps = marks(part.steps, crossing(part), *range(0, part.steps, part.steps // 30))

    @jax.jit
    def measure(params):
        hidden = [params[f"hidden_{l}"]["kernel"] for l in range(1, part.depth)]
        variance = jnp.square(jnp.stack(hidden)).mean() * part.width
        return variance, loss(params, train)

    def unit(data, noise, noise_seed):
        deviation, eta = settings[noise]
        start, batches = jax.random.split(jax.random.key(noise_seed))
        params = jax.tree.map(
            lambda p: p * (deviation or (critical() / p.shape[0]) ** 0.5), init(start)
        )
        rates = part.learning_rate, 0.0, eta
        found = _trained(loss, 64, params, steps, rates, batches, train)
        values = np.array([measure(params) for params in found]).T
        return dict(zip(("variance", "loss"), values))

    of_step = ("noise_step",)
    variables = {
        "variance": Variable("fan_in times the variance of hidden weights", dims=of_step),
        "loss": Variable("training loss", "nats", of_step),
    }
    own = {"noise_step": Axis(steps, "updates")}
    axes = {
        "noise": Axis(list(settings), "noise"),
        "noise_seed": Axis(list(part.seeds), "seed"),
    }
    made = train_grid(axes, None, grid.Program("noise", unit, variables, own), session)
    predicted = [walk(part, settings[name][1])[steps] for name in ("weak", "strong")]
    words = {"long_name": "fan_in times the variance, predicted", "units": "1"}
    return made.assign(walk=(("walk_noise", "noise_step"), np.array(predicted), words))
