"""Sharpness-aware minimisation (SAM) has an edge of stability of its own, which follows the gradient norm.

Where plain descent sits at sharpness 2/eta, SAM sits at `metrics.stability.threshold("sam", ...)`, which needs no fit.
It ties two measured numbers: on a quadratic, whose sharpness cannot move, the gradient norm comes to fit, and so it
does at small learning rates, where plain descent would stay below its edge. Beside it what SAM does with batches:
sharpness, size of the weights, accuracy under label noise.

The edge is that of a quadratic. On MNIST at the same rate sharpness ends 13 % above 2/eta without SAM and 14 to 22 %
above the edge with it, so that claims 1 (largest radius) and 2 miss their bounds there; without SAM the excess falls
with the rate (3 % at 0.15), with a radius of 0.3 hardly (17 %).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import metrics
import models
import ntk
from experiments import checks, grid, losses, tasks
from experiments.grid import Axis, Training, train_grid, variables
from experiments.loop import Session
from experiments.studies.sharpness_aware_claims import PARTS, claims
from experiments.studies.sharpness_aware_figures import figures
from experiments.tasks.arrays import generator, noisy_labels
from experiments.train import Probe, Setup, compile_program, sam
from metrics import stability

TITLE = "Sharpness-aware minimisation sits at an edge that follows the gradient norm"
PAPER = "Long & Bartlett 2023, arXiv:2309.12488; Chen, Hsieh & Gong 2022, arXiv:2106.01548"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

NORM = 2.2  # root mean square of an input's norm, about that of centred digits between 0 and 1
RULES = {"width": checks.WIDTH, "formula_seeds": checks.SEEDS} | {
    f"{part}.{key}": rule
    for part, (radii, noises) in PARTS.items()
    for key, rule in {
        "num_train": checks.whole(2),
        "batch_size": checks.whole(0),
        "learning_rate": checks.positive(),
        "radii": checks.several(checks.real(0, 100), ascending=True, needs=radii),
        "noises": checks.several(checks.real(0, 1), ascending=True, needs=noises),
        "steps": checks.STEPS,
        "chunk": checks.STEPS,
        "seeds": checks.several(checks.whole(0), 2),
    }.items()
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.classes(task)
    for part in PARTS:
        checks.multiple(config, f"{part}.steps", "chunk")
        checks.whole(2, len(task.train.x))(f"{part}.num_train", config[part].num_train)
    paired = checks.several(checks.whole(0), needs=config.batch.seeds)
    paired("batch_random.seeds", config.batch_random.seeds)
    below = checks.real(0, config.edge.learning_rate, inside=True)
    below("edge_small.learning_rate", config.edge_small.learning_rate)


def total_steps(config: Any) -> int:
    """Training steps of all runs."""
    parts = [config[name] for name in PARTS]
    return sum(len(p.radii) * len(p.noises) * len(p.seeds) * p.steps for p in parts)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains and measures the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/sharpness_aware.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: as of `check`.
    """
    session, task = session or Session(), tasks.load(config.task)
    check(config, task)
    parts = [_trained(config, task, session, name) for name in PARTS]
    return xr.merge([*parts, _formula(config, session)])


def inputs(task: tasks.Task, num_train: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test inputs, centred, of one size for all images: the edge is then at similar rates."""
    train, test = (part.x.reshape(len(part.x), -1) for part in (task.train, task.test))
    train, mean = train[:num_train], train[:num_train].mean(0)
    scale = NORM / np.sqrt(np.square(train - mean).sum(1).mean())
    return np.float32(scale * (train - mean)), np.float32(scale * (test - mean))


def random_sam(learning_rate: Any, radius: Any, momentum: float | None) -> Any:
    """SAM whose gradient is taken along a random direction, another one each step."""
    noise = optax.add_noise(1.0, 0.0, jax.random.key(0))
    ascent = optax.chain(optax.set_to_zero(), noise, optax.contrib.normalize(), optax.sgd(radius))
    outer = optax.sgd(learning_rate, momentum)
    return optax.contrib.sam(outer, ascent, reset_state=False, opaque_mode=True)


def _trained(config: Any, task: tasks.Task, session: Session, name: str) -> xr.Dataset:
    """Sharpness, gradient norm, edge, accuracy and weights along training."""
    part, full = config[name], name.startswith("edge")
    x, x_test = inputs(task, part.num_train)
    fields = {"depth": 2, "outputs": task.outputs, "activation": jnp.tanh if full else jax.nn.gelu}
    net = ntk.network(models.family("MLP", **fields), config.width, x[:1])
    loss = losses.supervised("squared_error" if full else "cross_entropy", net.apply)
    descend, momentum = random_sam if name.endswith("random") else sam, None if full else 0.9

    def measure(params, vector, rate, data):
        pairs = metrics.sharpness(loss, params, data["train"], num_steps=10, start=vector)
        return pairs.vector, {
            "sharpness": pairs.value[0],
            "gradient_norm": optax.tree.norm(jax.grad(loss)(params, data["train"])),
            "accuracy": losses.accuracy(net.apply(params, data["test"][0]), data["test"][1]),
            "weights": optax.tree.norm(params),
        }

    def unit(data, **point):
        radius, share = point[f"{name}_radius"], point[f"{name}_noise"]
        clean = task.train.y[: part.num_train]
        labels = noisy_labels(clean, share, task.outputs, generator(0, 1))
        data = data | {"train": (x, labels), "radius": np.float32(radius)}

        def setup(data):
            rule = functools.partial(descend, radius=data["radius"], momentum=momentum)
            return Setup(net.init, loss, rule)

        def keep(found):
            norms = jnp.maximum(found["gradient_norm"], 1e-30)
            rule = {"rule": "sam", "radius": radius, "gradient_norm": norms} if radius else {}
            edge = stability.threshold(part.learning_rate, beta=momentum or 0.0, **rule)
            found["edge"] = np.where(np.isnan(norms), np.nan, edge)
            return {f"{name}_{key}": found[key] for key in NAMES}

        probe = Probe(
            lambda params, *_: jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params), measure
        )
        sizes = {"steps": part.chunk, "batch_size": part.batch_size or None, "probe": probe}
        return Training(
            functools.partial(compile_program, setup, data, **sizes),
            *(None, data, [part.learning_rate] * len(part.seeds), list(part.seeds)),
            *(part.steps // part.chunk, part.steps, keep),
        )

    own = {
        f"{name}_seed": Axis(list(part.seeds), "seed"),
        f"{name}_step": Axis(np.arange(0, part.steps + 1, part.chunk), "training step"),
    }
    what = variables(" ".join(own), **{f"{name}_{key}": text for key, text in NAMES.items()})
    axes = {
        f"{name}_noise": Axis(list(part.noises), "share of labels redrawn"),
        f"{name}_radius": Axis(list(part.radii), "radius of SAM"),
    }
    program = grid.Program(name, unit, what, own, trains=True)
    return train_grid(axes, {"test": (x_test, task.test.y)}, program, session)


NAMES = {
    "sharpness": "largest eigenvalue of the Hessian",
    "edge": "edge of stability at the gradient norm",
    "gradient_norm": "norm of the gradient",
    "accuracy": "test accuracy",
    "weights": "norm of all weights",
}


def _formula(config: Any, session: Session) -> xr.Dataset:
    """The edge as a formula, and descent on quadratics of fixed curvature, in double precision."""

    def edge(rate, radius, norm):
        return stability.threshold(rate, "sam", radius=radius, gradient_norm=norm)

    def unit(_, formula_seed):
        random = np.random.default_rng(formula_seed)
        with jax.enable_x64(True):
            rate, radius, norm = 10 ** random.uniform(-3, 1, (3, 1000))
            top = edge(rate, radius, norm)
            ends = [(1e-6, 2 / rate), (1e9, np.sqrt(2e-9) / rate)]
            curvature = jnp.sort(random.uniform(2, 18, 6))
            rule, w = sam(0.1, 0.2), jnp.asarray(random.normal(size=6))

            def step(carry, _):
                w, state = carry
                slope = {"grad_fn": lambda w, _: curvature * w}
                update, state = rule.update(curvature * w, state, w, **slope)
                return (w + update, state), None

            w = jax.lax.scan(step, (w, rule.init(w)), None, length=5000)[0][0]
            reached = edge(0.1, 0.2, jnp.linalg.norm(curvature * w))
            return {
                "residual": [
                    float(jnp.abs(rate * top * (1 + sign * radius * top / norm) - 2).max())
                    for sign in (1, -1)
                ],
                "limits": max(
                    float(jnp.abs(edge(rate, size * rate * norm, norm) / end - 1).max())
                    for size, end in ends
                ),
                "quadratic": [float(curvature[-1] / each) for each in (reached, 2 / 0.1)],
            }

    what = variables("sign", residual="largest error of the equation of the edge")
    what |= variables("", limits="largest relative distance of the edge from its limits")
    what |= variables("edge_of", quadratic="curvature of a quadratic over the edge")
    own = {
        "sign": Axis([1, -1], "sign of the radius in the equation"),
        "edge_of": Axis(["SAM", "plain descent"], "edge"),
    }
    axes = {"formula_seed": Axis(list(config.formula_seeds), "seed")}
    return train_grid(axes, None, grid.Program("formula", unit, what, own, steps=0), session)
