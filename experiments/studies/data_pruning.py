"""Which examples to keep: the perceptron with a perfect and an imperfect probe, and images by EL2N and GraNd.

The theory of `limits.pruning` against simulated max-margin classifiers, and networks on pruned images, trained for the
same number of steps, with right labels and with some that are wrong.

On 784 pixels of MNIST as many networks leave EL2N less certain (halves correlate by .88 of the .9 asked) and GraNd at
the start more (.85, where digits have .46); leaving out the top gains 1.8 % of the 3 asked; with 5 % kept easy examples
are neither better nor worse. Whatever the theory of perceptrons says, and all controls, are the same.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import models
import ntk
from experiments import checks, grid, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.losses import accuracy, cross_entropy
from experiments.studies.data_pruning_claims import COMPARED, LABELS, ORDERS, THEORY, claims
from experiments.studies.data_pruning_figures import figures
from experiments.train import BATCHES, INIT, stream
from limits import perceptron
from limits.pruning import frontier
from limits.pruning import perceptron as pruned
from metrics import examples

TITLE = "Which examples to keep: pruned perceptrons, and scores of images"
PAPER = "Sorscher et al. 2022, arXiv:2206.14486; Paul, Ganguli & Dziugaite 2021, arXiv:2107.07075"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

SHARE, ANGLE, KEPT, COUNT = (
    checks.real(1e-4, 1),
    checks.real(0, 90),
    checks.real(0.1, 1e3),
    checks.whole(),
)
NEEDED = ((0.0, 1.5, 0.1, 1.0), (0.0, 2.5, 0.1, 1.0))
SETTING = checks.fixed(ANGLE, KEPT, SHARE, checks.choice((0.0, 1.0)))
RULES = {
    "angles": checks.several(ANGLE, ascending=True),
    "shares": checks.several(SHARE),
    "kept": checks.several(KEPT, ascending=True),
    "settings": checks.several(SETTING, COMPARED, needs=NEEDED),
    "dim": checks.whole(10, 2000),
    "seeds": checks.several(checks.whole(0), 2),
    "images.learning_rate": checks.positive(),
    "images.epochs": checks.several(checks.whole(0), ascending=True, needs=(0, 1, 10)),
    "images.score_seeds": checks.several(checks.whole(0), 4),
    "images.seeds": checks.several(checks.whole(0), 2),
    "images.shares": checks.several(SHARE, ascending=True, needs=(0.05, 0.5)),
    "images.skip": checks.real(0, 0.5),
    "images.wrong": checks.real(0, 0.5, inside=True),
    **dict.fromkeys(("images.width", "images.batch_size", "images.steps"), COUNT),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing."""
    checks.values(config, RULES)
    checks.classes(task)
    part, count = config.images, len(task.train.x)
    if set(part.seeds) & set(part.score_seeds):
        checks.refuse("images.score_seeds", part.score_seeds, "others than images.seeds")
    if part.shares[-1] + part.skip > 1 or part.shares[0] * count < 1:
        checks.refuse("images.shares", part.shares, f"of 1 of {count} examples to 1 - images.skip")
    most = max(kept / share for _, kept, share, _ in config.settings) * config.dim**2
    checks.memory("config.settings: examples of config.dim", 2 * most, 8)


def total_steps(config: Any) -> int:
    """Units of the study, for the progress bar."""
    return len(config.angles) + 1 + len(config.settings) + len(LABELS)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates and trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/data_pruning.py makes it.
        session: files and progress; none are kept by default.
    """
    session, task = session or Session(), tasks.load(config.task)
    check(config, task)
    parts = [part(config, session) for part in (_lines, _theory, _simulated)]
    return xr.merge([*parts, _images(config, task, session)])


def _lines(config: Any, session: Session) -> xr.Dataset:
    kept, shares = np.array(config.kept), np.array(config.shares)

    def unit(data, angle):
        theta = math.radians(angle)
        lines = pruned(kept / shares[:, None], shares[:, None], probe_angle=theta)
        best = frontier(kept, theta, least=shares.min(), points=5)
        return {"line": lines.error, "frontier": best.error}

    what = grid.variables("line_share kept", line="error by theory")
    what |= grid.variables("kept", frontier="error at the best share")
    own = {"line_share": Axis(shares, "share"), "kept": Axis(kept, "kept examples a dimension")}
    axes = {"angle": Axis(list(config.angles), "angle of the probe", "degrees")}
    return train_grid(axes, None, grid.Program("lines", unit, what, own), session)


def _theory(config: Any, session: Session) -> xr.Dataset:
    """The numbers of the theory that claims are about, in the order of THEORY."""

    def crossing(total, angle):
        easy, hard = (
            pruned(total, 0.4, keep_hard=h, probe_angle=angle).error for h in (False, True)
        )
        return easy - hard

    def slope(kept, angle, least):
        errors = frontier(kept, angle, least=least, points=5).error
        return math.log(errors[1] / errors[0]) / math.log(kept[1] / kept[0])

    def turn(kept):
        shares = np.array([1e-2, 1e-4])
        at = pruned(kept / shares, shares).error / shares
        return at[1] / at[0]

    def unit(data):
        all_kept, blind = pruned(10.0, 1.0).error, math.pi / 2
        over = [pruned(10.0, 0.4, keep_hard=h).error / all_kept for h in (True, False)]
        one = np.diff(np.log(pruned([50.0, 100.0], 1.0).error)).item() / math.log(2)
        pairs = [crossing(t, angle) for t in (2.0, 10.0) for angle in (0.0, blind)]
        ends = slope([6.0, 12.0], math.radians(30), 0.05), slope([1.9, 2.2], 0.0, 1e-6)
        return {"number": [one, *pairs, *over, *map(turn, (3.0, 2.0, 1.5)), *ends]}

    own = {"quantity": Axis(list(THEORY), "quantity")}
    what = grid.variables("quantity", number="numbers of the theory")
    return train_grid({}, None, grid.Program("theory", unit, what, own), session)


def student(dim: int, angle: float, kept: float, share: float, hard: float, seed: int) -> float:
    """Error of the max-margin classifier of the kept examples of a random set."""
    random, theta = np.random.default_rng(seed), math.radians(angle)
    x = random.standard_normal((round(kept / share * dim), dim))
    distance = np.abs(math.cos(theta) * x[:, 0] + math.sin(theta) * x[:, 1])
    ids = examples.keep(-distance, share, order="hard" if hard else "easy")
    signed = x[ids] * np.sign(x[ids, :1])  # the teacher is the first axis
    return math.acos(min(perceptron.margin(signed).direction[0], 1.0)) / math.pi


def _simulated(config: Any, session: Session) -> xr.Dataset:
    def unit(data, setting):
        angle, kept, share, hard = config.settings[setting]
        angles = np.radians([angle, angle + 30 if angle <= 60 else angle - 30])
        theory = pruned(kept / share, share, keep_hard=hard > 0, probe_angle=angles).error
        return {
            "simulated": [student(config.dim, *config.settings[setting], s) for s in config.seeds],
            "predicted": [*theory, pruned(kept, 1.0).error],
            "at": config.settings[setting],
        }

    what = {
        "simulated": Variable("simulated error", dims=("seed",)),
        "predicted": Variable("error by theory", dims=("of",)),
        "at": Variable("angle, kept examples a dimension, share, hard", dims=("part",)),
    }
    own = {
        "seed": Axis(list(config.seeds), "seed"),
        "of": Axis(["own angle", "wrong angle", "no pruning"], "of which student"),
        "part": Axis(["angle", "kept", "share", "hard"], "part of the setting"),
    }
    axes = {"setting": Axis(range(len(config.settings)), "setting")}
    return train_grid(axes, None, grid.Program("simulated", unit, what, own), session)


def _images(config: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    part, x, count = config.images, jnp.asarray(task.train.x), len(task.train.x)
    family = models.family("MLP", depth=2, outputs=task.outputs)
    init, apply = ntk.network(family, part.width, task.train.x[:1])
    optimizer = optax.sgd(part.learning_rate, 0.9, nesterov=True)
    test = tuple(map(jnp.asarray, task.test))

    def loss(params, batch):
        return cross_entropy(apply(params, batch[0]), batch[1])

    @jax.jit
    def train(seeds, ids, size, labels, steps):
        """A network a seed on its first so many ids, of as many as there are examples: one program for all sets."""

        def one(seed, ids):
            def step(number, state):
                key = jax.random.fold_in(stream(seed, BATCHES), number)
                rows = ids[jax.random.randint(key, (part.batch_size,), 0, size)]
                gradient = jax.grad(loss)(state[0], (x[rows], labels[rows]))
                updates, moments = optimizer.update(gradient, state[1])
                return optax.apply_updates(state[0], updates), moments

            params = init(stream(seed, INIT))
            return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]

        return jax.vmap(one)(seeds, ids)

    @jax.jit
    def scores(nets, labels):
        def grand(params):
            one = lambda params, x, y: loss(params, (x[None], y[None]))  # noqa: E731
            return examples.grand(one, params, x, labels)

        outputs = jax.vmap(apply, (0, None))(nets, x)
        return jnp.stack([examples.el2n(outputs, labels), jax.lax.map(grand, nets)])

    judge = jax.jit(jax.vmap(lambda params: accuracy(apply(params, test[0]), test[1])))
    seeds, score_seeds = np.array(part.seeds), np.array(part.score_seeds)
    everything = np.arange(count)

    def unit(data, labels):
        random, y = np.random.default_rng([config.task.seed, 17]), np.array(task.train.y)
        wrong = random.permutation(count)[: round(part.wrong * count) * (labels != LABELS[0])]
        y[wrong] = (y[wrong] + random.integers(1, task.outputs, wrong.size)) % task.outputs

        def trained(ids):
            padded = [np.pad(own, (0, count - own.size)) for own in ids]
            return judge(train(seeds, np.stack(padded), ids[0].size, y, part.steps))

        found = []  # (epoch, score, network, example)
        for epoch in part.epochs:
            ids = np.tile(everything, (len(score_seeds), 1))
            steps = math.ceil(epoch * count / part.batch_size)
            found.append(np.asarray(scores(train(score_seeds, ids, count, y, steps), y)))
        mean, half = np.mean(found, axis=2), len(score_seeds) // 2

        def kept(order, share):
            if order == "random":
                keys = [stream(seed, 17) for seed in seeds]
                return [examples.keep(mean[-1, 0], share, order="random", key=k) for k in keys]
            by = mean[0, 1] if order == "GraNd at the start" else mean[-1, 0]
            how = {"order": "easy"} if order == "EL2N, easy" else {}
            how |= {"skip": part.skip} if order == "EL2N, top skipped" else {}
            return [examples.keep(by, share, **how)] * len(seeds)

        tenths = [examples.keep(mean[-1, 0], 0.1, order=order) for order in ("hard", "easy")]
        norm = np.linalg.norm(task.train.x.reshape(count, -1), axis=1)
        return {
            "accuracy": [[trained(kept(o, share)) for o in ORDERS] for share in part.shares],
            "full": trained([everything] * len(seeds)),
            "score": mean,
            "agreement": [examples.rank_correlation(*both) for both in mean],
            "reliability": [[examples.reliability(s, half) for s in both] for both in found],
            "mislabelled": [np.isin(ids, wrong).mean() for ids in tenths],
            "norm": examples.rank_correlation(mean[0, 1], norm),
        }

    what = {
        "accuracy": Variable("test accuracy", dims=("share", "order", "image_seed")),
        "full": Variable("test accuracy without pruning", dims=("image_seed",)),
        "score": Variable("mean score of the networks", dims=("epoch", "by", "example")),
        "agreement": Variable("Spearman's correlation of EL2N and GraNd", dims=("epoch", "end")),
        "reliability": Variable("of means of half the networks", dims=("epoch", "by", "end")),
        "mislabelled": Variable("share of wrong labels", dims=("tenth",)),
        "norm": Variable("Spearman's correlation of GraNd at the start and |x|", dims=("end",)),
    }
    own = {
        "share": Axis(list(part.shares), "share kept"),
        "order": Axis(list(ORDERS), "kept examples"),
        "image_seed": Axis(list(part.seeds), "seed"),
        "epoch": Axis(list(part.epochs), "epoch"),
        "by": Axis(["EL2N", "GraNd"], "score"),
        "end": Axis(["value", "error"], "value and standard error"),
        "tenth": Axis(["top", "bottom"], "tenth of the scores"),
    }
    axes = {"labels": Axis(list(LABELS), "labels")}
    return train_grid(axes, None, grid.Program("images", unit, what, own), session)
