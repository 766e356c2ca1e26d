"""Learning rates as a function of batch size (Granziol, Zohren & Roberts 2022): sharper batches, smaller stable steps.

Three parts: the random-matrix laws on random matrices; the sharpness of mini-batches of a trained network against
them and against the law with the measured noise; the largest learning rate that trains, for SGD and Adam.

Adam's exponent over all batch sizes is .63 in two sets of seeds, .59 to .64 in each of six: steeper than a square root.
SGD's rates follow 2 / lambda(B) early in training only within factors of 2.2 and 3.0: batches of 16 train at 3.4 times
that, batches of 256 at 5 to 10 times. That SGD saturates from 64 to 256 holds in three seeds (exponent 0) and does not
in three others (.5). The law with the measured noise is of second order: the excess is 1.03 times it where it is .02
of the gap below lambda_1, and 1.3 times where it is a fifth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import metrics
import models
import ntk
from experiments import checks, tasks
from experiments.grid import Axis, Program, Training, Variable, train_grid
from experiments.loop import Session
from experiments.studies.batch_curvature_claims import claims, predicted_rate
from experiments.studies.batch_curvature_figures import figures
from experiments.train import Probe, Setup, compile_program
from metrics import batch_curvature, curvature, noise, operators

TITLE = "Learning rates and sharpness as functions of the batch size"
PAPER = "Granziol, Zohren & Roberts 2022, arXiv:2006.09092"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "predicted_rate", "run", "total_steps"]

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}
LAWS = ("measured noise", "independent Hessians", "independent gradients")
BULK, RATIO = 0.1, 0.5  # of the random gradients
TRAINED = 0.5  # a rate trains if the final loss is below this share of the loss of chance

SIZES = checks.several(checks.whole(), 3, ascending=True, needs=(16, 64, 256))
RULES = {
    "model.width": checks.WIDTH,
    "synthetic.size": checks.whole(10),
    "synthetic.spikes": checks.several(checks.positive(), needs=(1.5, 3.0)),
    "synthetic.matrices": checks.whole(1),
    "synthetic.seeds": checks.several(checks.whole(0), 2),
    "sharpness.batch_sizes": SIZES,
    "sharpness.learning_rate": checks.positive(),
    "sharpness.steps": checks.STEPS,
    "sharpness.early": checks.STEPS,
    "sharpness.probes": checks.whole(2),
    "sharpness.batches": checks.whole(2),
    "sharpness.seeds": checks.several(checks.whole(0), 2),
    "rates.batch_sizes": checks.several(checks.whole(), 4, ascending=True, needs=(1, 4, 64, 256)),
    "rates.log2_sgd": checks.fixed(checks.real(-30, 30), checks.real(-30, 30), checks.whole(3)),
    "rates.log2_adam": checks.fixed(checks.real(-30, 30), checks.real(-30, 30), checks.whole(3)),
    "rates.steps": checks.STEPS,
    "rates.seeds": checks.several(checks.whole(0), 2),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing."""
    checks.values(config, RULES)
    checks.classes(task)
    largest = config.sharpness.batch_sizes[-1]
    if largest >= len(task.train.x):
        checks.refuse("sharpness.batch_sizes", largest, f"below {len(task.train.x)}, all examples")
    if config.rates.log2_sgd[2] != config.rates.log2_adam[2]:
        checks.refuse("rates.log2_adam", config.rates.log2_adam, "as many rates as of log2_sgd")
    checks.memory("config.synthetic.size: a matrix", 4 * config.synthetic.size**2, 8)


def total_steps(config: Any) -> int:
    """Training steps of the rates, and one for each network whose sharpness is measured."""
    part = config.rates
    runs = 2 * len(part.batch_sizes) * part.log2_sgd[2] * len(part.seeds)
    return runs * part.steps + len(config.sharpness.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Measures and trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/batch_curvature.py makes it.
        session: files and progress; none are kept by default.
    """
    session, task = session or Session(), tasks.load(config.task)
    check(config, task)
    parts = [_synthetic(config, session)]
    parts += [part(config, task, session) for part in (_sharpness, _rates)]
    return xr.merge(parts).assign_attrs(outputs=task.outputs)


def network(config: Any, task: tasks.Task):
    """init, apply and losses (params, (x, y)) -> (N,) of a tanh network with one hidden layer."""
    family = models.family("MLP", depth=1, outputs=task.outputs, activation=jnp.tanh)
    init, apply = ntk.network(family, config.model.width, task.train.x[:1])

    def losses(params, batch):
        outputs = apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])

    return init, apply, losses


def _synthetic(config: Any, session: Session) -> xr.Dataset:
    part = config.synthetic
    axes = {
        "law": Axis(["Hessians", "gradients"], "what is random"),
        "spike": Axis(list(part.spikes), "eigenvalue over the transition"),
        "synthetic_seed": Axis(list(part.seeds), "seed"),
    }
    variables = {
        "random_top": Variable("largest eigenvalue with noise"),
        "random_law": Variable("largest eigenvalue with noise, predicted"),
        "random_bare": Variable("largest eigenvalue without noise"),
    }
    return train_grid(axes, part, Program("synthetic", _random, variables, steps=0), session)


def _random(part: Any, law: str, spike: float, synthetic_seed: int) -> dict[str, Any]:
    random, size = np.random.default_rng(synthetic_seed), part.size
    if law == "Hessians":  # P s^2 / b = 1, the transition at 1
        top, predicted = spike, noise.iid_batch_sharpness(spike, 1.0, 1.0)

        def matrix():
            upper = np.triu(random.normal(size=(size, size)) / np.sqrt(size), 1)
            upper[0, 0] = top / 2
            return upper + upper.T
    else:
        top = spike * BULK * (1 + np.sqrt(RATIO))
        predicted = batch_curvature.gauss_newton_batch_sharpness(top, BULK, RATIO)
        deviations = np.sqrt(np.append(top, np.full(size - 1, BULK)))

        def matrix():
            gradients = random.normal(size=(int(size / RATIO), size)) * deviations
            return gradients.T @ gradients / len(gradients)

    tops = [np.linalg.eigvalsh(matrix())[-1] for _ in range(part.matrices)]
    return {"random_top": np.mean(tops), "random_law": float(predicted), "random_bare": top}


def _sharpness(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part, (init, apply, losses) = config.sharpness, network(config, task)
    batch = jnp.asarray(task.train.x), jnp.asarray(task.train.y)
    sizes = list(part.batch_sizes)
    inverse = noise.inverse_batch(sizes, len(batch[1]))

    def loss(params, batch):
        return losses(params, batch).mean()

    def entropy(outputs, batch):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()

    newton = operators.gauss_newton(lambda params, batch: apply(params, batch[0]), entropy)

    @jax.jit
    def descend(params, batch, steps):
        def step(_, params):
            slope = jax.grad(loss)(params, batch)
            return jax.tree.map(lambda p, g: p - part.learning_rate * g, params, slope)

        return jax.lax.fori_loop(0, steps, step, params)

    def unit(_, seed):
        keys = jax.random.split(jax.random.key(seed), 6)
        start = init(keys[0])
        early, params = (descend(start, batch, steps) for steps in (part.early, part.steps))
        first, law = (
            noise.batch_sharpness_prediction(
                losses, at, batch, keys[1], sizes, num_probes=part.probes
            )
            for at in (early, params)
        )
        found, least = (
            batch_curvature.batch_sharpness_by_size(
                losses, params, batch, key, of, num_batches=part.batches, which=which
            )
            for key, of, which in ((keys[2], sizes, "largest"), (keys[3], sizes[:1], "smallest"))
        )
        spread = noise.hessian_noise(losses, params, batch, keys[4]).value
        count = sum(p.size for p in jax.tree.leaves(params))
        trace = metrics.trace(newton, params, batch, keys[5], num_probes=8).value
        bulk = jnp.clip((trace - law.top) / (count - 1), 0)
        laws = (
            law.value,
            noise.iid_batch_sharpness(law.top, spread, inverse),
            batch_curvature.gauss_newton_batch_sharpness(law.top, bulk, count * inverse),
        )
        rate, edge = (
            batch_curvature.critical_batch(law),
            curvature.sharpness(loss, params, batch, which="smallest", num_steps=30),
        )
        return {
            "top": law.top, "gap": law.gap, "law_top": np.stack(laws), "law_error": law.error,
            "measured": found.value, "measured_error": found.error,
            "smallest": np.array([edge.value[0], least.value[0]]),
            "early_top": first.top, "early_excess": first.excess.value,
            "critical": rate.value,
        }  # fmt: skip

    sizes_of = {"batch": Axis(sizes, "batch size", "examples")}
    own = sizes_of | {
        "kind": Axis(list(LAWS), "law"),
        "smallest_of": Axis(["all", "batch"], "smallest eigenvalue of"),
    }
    variables = {
        "top": Variable("largest eigenvalue of all examples"),
        "gap": Variable("gap between it and the second largest"),
        "law_top": Variable("largest eigenvalue of a batch, predicted", dims=("kind", "batch")),
        "law_error": Variable("its standard error, of the measured noise", dims=("batch",)),
        "measured": Variable("largest eigenvalue of a batch", dims=("batch",)),
        "measured_error": Variable("its standard error", dims=("batch",)),
        "smallest": Variable("smallest eigenvalue", dims=("smallest_of",)),
        "early_top": Variable("largest eigenvalue early in training"),
        "early_excess": Variable("excess of the sharpness times b, early in training"),
        "critical": Variable("batch whose noise is as large as its sharpness", "examples"),
    }
    program = Program("sharpness", unit, variables, own)
    made = train_grid({"seed": Axis(list(part.seeds), "seed")}, None, program, session)
    return made.assign_coords(
        inverse=("batch", np.asarray(inverse), {"long_name": "1 / b", "units": "1"})
    )


def leading(losses: Callable, size: Any, params: Any, batch: Any) -> jax.Array:
    """The mean over the first of a batch drawn larger, so that one program serves several sizes."""
    weights = (jnp.arange(len(batch[1])) < size) / size
    return jnp.vdot(weights, losses(params, batch))


def _rates(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part, (init, _, losses) = config.rates, network(config, task)
    runs = [(number, seed) for number in range(part.log2_sgd[2]) for seed in part.seeds]
    whole = np.asarray(task.train.x), np.asarray(task.train.y)

    def rates(optimizer):
        return 2.0 ** np.linspace(*part[f"log2_{optimizer}"])

    def measure(params, carry, rate, data):
        return carry, {"loss": losses(params, data["train"]).mean()}

    def unit(data, optimizer, rate_batch):
        drawn = 16 if rate_batch <= 16 else max(part.batch_sizes)
        data = data | {"size": np.float32(rate_batch)}

        def setup(data):
            loss = functools.partial(leading, losses, data["size"])
            return Setup(init, loss, OPTIMIZERS[optimizer])

        probe = Probe(lambda params, key, data: (), measure)
        tried = rates(optimizer)

        def keep(records):
            final = records["loss"][:, -1].reshape(len(tried), len(part.seeds))
            trained = np.where(final < TRAINED * np.log(task.outputs), tried[:, None], 0).max(0)
            best = tried[np.where(np.isfinite(final), final, np.inf).argmin(0)]
            # None trains, or the last of the grid does: the largest rate is not known.
            known = (trained > 0) & (trained < tried[-1])
            return {"largest_rate": np.where(known, trained, np.nan), "best_rate": best}

        return Training(
            lambda: compile_program(
                setup, data, steps=part.steps, batch_size=drawn, probe=probe, runs=len(runs)
            ),
            (optimizer, drawn),
            *(data, [tried[number] for number, _ in runs], [seed for _, seed in runs], 1),
            *(part.steps, keep),
        )

    axes = {
        "optimizer": Axis(list(OPTIMIZERS), "optimizer"),
        "rate_batch": Axis(list(part.batch_sizes), "batch size", "examples"),
    }
    variables = {
        "largest_rate": Variable("largest learning rate that trains", dims=("rate_seed",)),
        "best_rate": Variable("learning rate of the lowest loss", dims=("rate_seed",)),
    }
    own = {"rate_seed": Axis(list(part.seeds), "seed")}
    program = Program("rates", unit, variables, own, trains=True)
    return train_grid(axes, {"train": whole}, program, session)
