"""Naive Bayes beside logistic regression: examples that each needs, and what a cross-entropy says of an error.

Errors of linear rules on Gaussian classes are exact (`metrics.probes.gaussian_error`): no test set, no noise of one.
Features of a trained network are the inputs that nobody made Gaussian.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import models
import ntk
from experiments import checks, grid, tasks
from experiments.grid import Axis, train_grid
from experiments.loop import Session
from experiments.losses import cross_entropy
from experiments.studies.naive_bayes_claims import SETTINGS, claims
from experiments.studies.naive_bayes_figures import figures
from limits import surrogate
from metrics import probes

TITLE = "Naive Bayes needs few examples, logistic regression ends ahead"
PAPER = "Zheng et al. 2023, arXiv:2302.02334; Mao, Mohri & Zhong 2023, arXiv:2304.07288"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

LEARNERS = ("naive Bayes", "logistic regression")
SEEDS = checks.several(checks.whole(0), 2)
SETTING = checks.fixed(checks.whole(2, 2000), checks.real(0, 0.99), *[checks.real(-10, 10)] * 2)
RULES = {
    "decay": checks.positive(),
    "needed.dims": checks.several(checks.whole(2, 10_000), 3, ascending=True, needs=(200,)),
    "needed.points": checks.whole(2, 10_000),
    "needed.above": checks.real(0, 0.5, inside=True),
    "regimes.settings": checks.fixed(*[SETTING] * len(SETTINGS)),
    "regimes.counts": checks.several(checks.whole(4), ascending=True, needs=(6, 80, 640)),
    "surrogate.draws": checks.whole(10, 10**7),
    "features.width": checks.WIDTH,
    "features.learning_rate": checks.positive(),
    "features.steps": checks.STEPS,
    "features.shots": checks.several(checks.whole(), ascending=True, needs=(2, 20)),
    **{f"{part}.seeds": SEEDS for part in ("needed", "regimes", "surrogate", "features")},
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing."""
    checks.values(config, RULES)
    checks.classes(task)
    second = task.train.y[len(task.train.y) // 2 :]
    least = np.bincount(second, minlength=task.outputs).min()
    if config.features.shots[-1] > least:
        allowed = f"at most {least}, the rarest class of the second half of the training images"
        checks.refuse("features.shots", config.features.shots, allowed)


def total_steps(config: Any) -> int:
    """Units of the study, for the progress bar."""
    units = len(config.needed.dims) * len(config.needed.seeds) + len(config.surrogate.seeds)
    counts = len(SETTINGS) * len(config.regimes.counts)
    return units + counts + len(config.features.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates and trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/naive_bayes.py makes it.
        session: files and progress; none are kept by default.
    """
    session, task = session or Session(), tasks.load(config.task)
    check(config, task)
    parts = [part(config, session) for part in (_needed, _regimes, _surrogate)]
    return xr.merge([*parts, _features(config, task, session)])


def both(x: np.ndarray, y: np.ndarray, classes: int, decay: float) -> list[probes.Linear]:
    """The two probes, in the order of LEARNERS."""
    return [probes.naive_bayes(x, y, classes), probes.logistic(x, y, classes, decay=decay)]


def _needed(config: Any, session: Session) -> xr.Dataset:
    part = config.needed

    def unit(data, dim, seed):
        variances = np.where(np.arange(dim) < dim // 2, float(dim), 1.0)
        means = np.array([-np.ones(dim), np.ones(dim)])
        best = probes.gaussian_error(probes.bayes(means, variances), means, variances)
        random, found = np.random.default_rng([seed, dim]), [np.nan, np.nan]
        for count in np.unique(np.geomspace(4, 10 * dim, part.points).round().astype(int)):
            y = np.arange(count) % 2
            x = means[y] + np.sqrt(variances) * random.standard_normal((count, dim))
            for method, probe in enumerate(both(x, y, 2, config.decay)):
                error = probes.gaussian_error(probe, means, variances)
                if np.isnan(found[method]) and error < best + part.above:
                    found[method] = count
            if not np.isnan(found).any():
                break
        return {"needed": found}

    axes = {
        "dim": Axis(list(part.dims), "dimension"),
        "seed": Axis(list(part.seeds), "seed"),
    }
    what = grid.variables("learner", needed="examples until the error is near the best")
    own = {"learner": Axis(list(LEARNERS), "learner")}
    return train_grid(axes, None, grid.Program("needed", unit, what, own), session)


def _regimes(config: Any, session: Session) -> xr.Dataset:
    part = config.regimes

    def unit(data, setting, count):
        dim, rho, odd, even = part.settings[SETTINGS.index(setting)]
        covariance = rho ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
        mean = np.where(np.arange(dim) % 2, odd, even)
        means, root = np.array([-mean, mean]), np.linalg.cholesky(covariance)
        y, errors = np.arange(count) % 2, []
        for seed in part.seeds:
            random = np.random.default_rng([seed, count, dim])
            x = means[y] + random.standard_normal((count, dim)) @ root.T
            fitted = both(x, y, 2, config.decay)
            errors.append([probes.gaussian_error(p, means, covariance) for p in fitted])
        rules = probes.bayes(means, np.ones(dim)), probes.bayes(means, covariance)
        return {
            "error": np.transpose(errors),
            "ends": [probes.gaussian_error(rule, means, covariance) for rule in rules],
        }

    what = grid.variables("learner regime_seed", error="error")
    what |= grid.variables("learner", ends="error of endlessly many examples")
    axes = {
        "setting": Axis(list(SETTINGS), "correlation of features"),
        "count": Axis(list(part.counts), "examples"),
    }
    own = {
        "learner": Axis(list(LEARNERS), "learner"),
        "regime_seed": Axis(list(part.seeds), "seed"),
    }
    return train_grid(axes, None, grid.Program("regimes", unit, what, own), session)


def _surrogate(config: Any, session: Session) -> xr.Dataset:
    part = config.surrogate

    def unit(data, surrogate_seed):
        random, found = np.random.default_rng(surrogate_seed), []
        for _ in range(part.draws):
            classes, sharp = random.integers(2, 8), random.choice([0.3, 1.0, 3.0])
            p, other = random.dirichlet(np.full(classes, sharp), size=2) + 1e-12
            # Half of the scores near the truth, where the inequality is nearly tight
            q = other if random.random() < 0.5 else p * np.exp(0.5 * random.normal(size=classes))
            p, q = p / p.sum(), q / q.sum()
            found.append([p.max() - p[q.argmax()], np.sum(p * np.log(p / q))])
        regret, excess = np.transpose(found)
        bounds = [surrogate.logistic_gap(np.clip(c * regret, 0, 1)) for c in (1.0, 1.2)]
        return {
            "violations": [np.mean(excess < bound - 1e-12) for bound in bounds],
            "pairs": np.array(found[:500]),
        }

    what = grid.variables("scaled", violations="share of scores below the bound")
    what |= grid.variables("pair regret_or_excess", pairs="0-1 regret and excess cross-entropy")
    own = {"scaled": Axis([1.0, 1.2], "factor on the regret within the bound")}
    axes = {"surrogate_seed": Axis(list(part.seeds), "seed")}
    return train_grid(axes, None, grid.Program("surrogate", unit, what, own), session)


def _features(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part, half = config.features, len(task.train.x) // 2
    family = models.family("MLP", depth=2, outputs=task.outputs)
    init, apply = ntk.network(family, part.width, task.train.x[:1])
    model, optimizer = family(part.width), optax.adam(part.learning_rate)

    @jax.jit
    def train(seed, x, y):
        def step(_, state):
            gradient = jax.grad(lambda params: cross_entropy(apply(params, x), y))(state[0])
            updates, moments = optimizer.update(gradient, state[1])
            return optax.apply_updates(state[0], updates), moments

        params = init(jax.random.key(seed))
        return jax.lax.fori_loop(0, part.steps, step, (params, optimizer.init(params)))[0]

    @jax.jit
    def hidden(params, x):
        """What the readout reads."""
        return jax.nn.relu(model.apply({"params": params}, x, features=True)[1]["hidden_1"])

    def unit(data, feature_seed):
        params = train(feature_seed, *(jnp.asarray(a[:half]) for a in task.train))
        random, found = np.random.default_rng(feature_seed), []
        order = half + random.permutation(len(task.train.x) - half)
        ranked = [order[task.train.y[order] == k] for k in range(task.outputs)]
        for read in (lambda x: np.asarray(hidden(params, x)), lambda x: x):
            x, test = read(task.train.x), read(task.test.x)
            for shots in part.shots:
                ids = np.concatenate([members[:shots] for members in ranked])
                fitted = both(x[ids], task.train.y[ids], task.outputs, config.decay)
                found.append([probes.accuracy(probe, test, task.test.y) for probe in fitted])
        return {"accuracy": np.reshape(found, (2, len(part.shots), 2))}

    what = grid.variables("inputs shots learner", accuracy="test accuracy")
    own = {
        "inputs": Axis(["features", "pixels"], "what the probe reads"),
        "shots": Axis(list(part.shots), "examples of each class"),
        "learner": Axis(list(LEARNERS), "learner"),
    }
    axes = {"feature_seed": Axis(list(part.seeds), "seed")}
    return train_grid(axes, None, grid.Program("features", unit, what, own), session)
