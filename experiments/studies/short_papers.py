"""Boundaries tilt at no cost, temperatures weigh uniformity against tolerance, and seeds share some neurons.

Discriminants of two classes of images against their ridge; features learnt by contrast at several temperatures; hidden
units of networks of two seeds, matched, against width. The formulas behind them are tested where they stand:
`limits.boundary_tilting`, `metrics.contrastive`. The lowest temperature leaves features of the
digits in one cone, which is why they are centred too; those of MNIST leave it, and need no centring.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import models
from experiments import checks, grid, losses, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import short_papers_figures as drawn
from experiments.studies.short_papers_claims import claims
from experiments.train import fit
from limits import boundary_tilting
from metrics import features, geometry, kernels

TITLE = "Tilted boundaries, contrastive temperatures, matched neurons"
PAPER = "Tanay & Griffin 2016, arXiv:1608.07690; Wang & Liu 2021, arXiv:2012.09740; Li et al. 2016, arXiv:1511.07543"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

BATCH, SHOWN = 128, 500  # examples of a step, and of the test set
NETWORKS = ("trained", "untrained", "trained, shuffled", "untrained, shuffled", "itself")
RULES = {
    "seeds": checks.SEEDS,
    "classes": checks.fixed(checks.whole(0), checks.whole(0)),
    "ridges": checks.several(checks.positive(), ascending=True, needs=(1e-4, 1e3)),
    "temperatures": checks.several(checks.positive(), ascending=True, needs=(0.05, 1.0)),
    "noise": checks.positive(),
    "widths": checks.several(checks.WIDTH, 2, ascending=True, needs=(128,)),
    "steps": checks.STEPS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through (ValueError with its key)."""
    checks.values(config, RULES)
    checks.classes(task)
    if any(len(set(y[np.isin(y, config.classes)])) < 2 for _, y in (task.train, task.test)):
        checks.refuse("classes", config.classes, "two classes that both sets hold")


def total_steps(config: Any) -> int:
    """Seeds, for the progress bar."""
    return len(config.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements, refusing what `check` refuses."""
    task = tasks.load(config.task)
    check(config, task)
    train, test = (tasks.Data(x.reshape(len(x), -1), y) for x, y in (task.train, task.test))
    test = tasks.Data(test.x[:SHOWN], test.y[:SHOWN])

    def unit(data, seed):
        parts = tilts(config, train, test, seed), contrasts(config, train, test, seed)
        return {
            **parts[0],
            **parts[1],
            "similarity": matches(config, train, test, task.outputs, seed),
        }

    variables = {
        "strength": Variable("adversarial strength", dims=("ridge",)),
        "error": Variable("test error", dims=("ridge", "tilt")),
        "energy": Variable("logarithmic energy", dims=("features", "temperature")),
        "tolerance": Variable("cosine within a class", dims=("features", "temperature", "labels")),
        "similarity": Variable("similarity of units", dims=("width", "networks", "measure")),
    }
    own = {
        "ridge": Axis(list(config.ridges), "ridge over the mean variance"),
        "tilt": Axis(["its own", "random"], "direction of the tilt, at the same angle"),
        "temperature": Axis(list(config.temperatures), "temperature"),
        "features": Axis(["as learnt", "centred"], "features"),
        "labels": Axis(["true", "shuffled"], "labels"),
        "width": Axis(list(config.widths), "width"),
        "networks": Axis(list(NETWORKS), "networks compared"),
        "measure": Axis(["bipartite", "semi", "CKA"], "measure of similarity"),
    }
    axes = {"seed": Axis(list(config.seeds), "seed")}
    return train_grid(axes, None, grid.Program("seed", unit, variables, own), session)


def tilts(config: Any, train: tasks.Data, test: tasks.Data, seed: int) -> dict[str, Any]:
    """Discriminants of half of the training examples, and boundaries tilted as much at random."""
    random = np.random.default_rng(seed)
    kept = random.permutation(len(train.x))[: len(train.x) // 2]
    parts = [train.x[kept][train.y[kept] == label].astype(float) for label in config.classes]
    means = np.array([part.mean(0) for part in parts])
    covariance = sum(np.cov(part.T) for part in parts) / 2
    middle, a, scale = (
        means.mean(0),
        means[1] - means[0],
        np.trace(covariance) / covariance.shape[0],
    )
    chosen = np.isin(test.y, config.classes)
    x, positive = test.x[chosen] - middle, test.y[chosen] == config.classes[1]
    strength, error = [], []
    for ridge in config.ridges:
        w = boundary_tilting.discriminant(a, covariance, ridge * scale)
        found, away = boundary_tilting.tilt(w, means), random.standard_normal(len(a))
        away -= away @ a / (a @ a) * a
        other = a / np.linalg.norm(a) + np.tan(found.angle) * away / np.linalg.norm(away)
        strength.append(found.strength)
        error.append([np.mean((x @ v > 0) != positive) for v in (w, other)])
    return {"strength": strength, "error": error}


def unit_rows(x: jax.Array) -> jax.Array:
    """Rows of length 1."""
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def contrasts(config: Any, train: tasks.Data, test: tasks.Data, seed: int) -> dict[str, Any]:
    """Features of a network that tells noisy views of its images apart, at each temperature."""
    net, x = models.MLP(width=128, depth=1, outputs=16), jnp.asarray(train.x)

    @jax.jit
    def learnt(key, temperature):
        def loss(params, key):
            rows, *views = jax.random.split(key, 3)
            clean = x[jax.random.randint(rows, (BATCH,), 0, len(x))]
            noisy = (clean + config.noise * jax.random.normal(view, clean.shape) for view in views)
            one, other = (unit_rows(net.apply(params, view)) for view in noisy)
            return losses.cross_entropy(one @ other.T / temperature, jnp.arange(BATCH))

        params = fit(loss, net.init(key, x[:1]), optax.adam(1e-3), key, config.steps)
        return net.apply(params, test.x)

    learned = [learnt(jax.random.key(seed), t) for t in config.temperatures]
    labels = test.y, np.random.default_rng(seed).permutation(test.y)
    # Low temperatures leave what all features share, a cone: they are measured without it too.
    both = learned, [unit_rows(z) - unit_rows(z).mean(0, keepdims=True) for z in learned]
    tolerance = [[[geometry.tolerance(z, y).value for y in labels] for z in kind] for kind in both]
    energy = [[geometry.uniformity(z).value for z in kind] for kind in both]
    return {"energy": energy, "tolerance": tolerance}


def matches(config: Any, train: tasks.Data, test: tasks.Data, outputs: int, seed: int) -> list:
    """Of hidden units of two networks on the test set: width x `NETWORKS` x three measures."""
    x, y = map(jnp.asarray, train)
    order = np.random.default_rng(seed).permutation(len(test.x))

    def compared(one, other):
        found = features.matching(one, other)
        return [found.correlation.mean(), found.semi.mean(), kernels.cka(one, other).value]

    rows = []
    for width in config.widths:
        net = models.MLP(width=width, depth=1, outputs=outputs)

        def loss(params, key, net=net):
            batch = jax.random.randint(key, (BATCH,), 0, len(x))
            return losses.cross_entropy(net.apply(params, x[batch]), y[batch])

        @jax.jit
        def both(key, net=net, loss=loss):
            start = net.init(key, x[:1])
            ended = fit(loss, start, optax.adam(1e-3), key, config.steps)
            hidden = [net.apply(p, test.x, features=True)[1]["hidden_0"] for p in (ended, start)]
            return [jax.nn.relu(h) for h in hidden]

        (one, first), (other, second) = map(both, jax.random.split(jax.random.key(seed)))
        shuffled = (one, other[order]), (first, second[order])
        couples = (one, other), (first, second), *shuffled, (one, one[:, ::-1])
        rows.append([compared(*couple) for couple in couples])
    return rows


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {"short_papers": drawn.short_papers(data)}
