"""Outliers with opposing signals (Rosenfeld & Risteski 2024): where they come from, and what training does to them.

A two-layer linear network in which all is known (`limits.opposing`): the sharpness that the outliers bring follows a
logistic law and crosses the edge of stability when predicted; there the two groups' losses begin to mirror each other.
Then networks on images: groups that were planted are found by their losses alone (`metrics.examples`), and so are
groups that were there all along. Controls: outliers whose signal can be learnt, rates below the edge, random groups.

Taking the natural groups away brings calm for good in two seeds of eight; in the others other examples take their
place, between 9 steps earlier and 12 later, so that the median delay (7.5 steps) falls short of ten.
"""

# One file: what is predicted of the linear network is sought in the networks on images, by the same descent.

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import metrics
import models
from experiments import checks, grid, tasks
from experiments.grid import Axis, Program, Variable, train_grid
from experiments.loop import Session
from experiments.studies import opposing_signals_figures as drawn
from experiments.studies.opposing_signals_claims import claims
from limits import opposing
from metrics.examples import gradient_cosine, opposing_signals

TITLE = "Outliers with opposing signals"
PAPER = "Rosenfeld & Risteski 2024, arXiv:2311.04163"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]


class Setting(NamedTuple):
    """E x_o^2, |beta|, learning rate, whether the outliers have a signal that can be learnt, and the optimizer."""

    alpha: float
    signal: float
    rate: float
    consistent: bool = False
    optimizer: Callable[[float], optax.GradientTransformation] = optax.sgd


FLOW = {
    "α = 20": Setting(20.0, 3.0, 1e-3),
    "α = 40": Setting(40.0, 3.0, 1e-3),
    "consistent": Setting(40.0, 3.0, 1e-3, True),
}
LINEAR = {
    "R = 3": Setting(40.0, 3.0, 0.025),
    "R = 4": Setting(40.0, 4.0, 0.02),
    "α = 20": Setting(20.0, 3.0, 0.05),
    "below the edge": Setting(40.0, 3.0, 0.0125),
    "consistent": Setting(40.0, 3.0, 0.025, True),
    "Adam": Setting(40.0, 3.0, 0.004, optimizer=optax.adam),
}
EVERY = 10  # steps of the flow between two looks
RULES = {
    "linear.examples": checks.whole(100, 10**6),
    "linear.dim": checks.whole(1, 1000),
    "linear.share": checks.real(0, 1, inside=True),
    "linear.width": checks.WIDTH,
    "linear.start": checks.positive(1.0),
    "linear.flow_steps": checks.whole(100, 10**6),
    "linear.steps": checks.whole(150, 10**5),
    "linear.seeds": checks.SEEDS,
    "images.steps": checks.whole(50, 10**6),
    "images.skip": checks.whole(0),
    "images.group": checks.whole(1),
    "images.calm_rate": checks.positive(),
    "planted.classes": checks.several(checks.whole(0), 2, most=2),
    "planted.each": checks.whole(2),
    "planted.norms": checks.positive(),
    "planted.rates": checks.several(checks.positive(), ascending=True),
    "planted.seeds": checks.SEEDS,
    "natural.rate": checks.positive(),
    "natural.seeds": checks.several(checks.whole(0), 2),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.classes(task)
    images, planted, count = config.images, config.planted, len(task.train.y)
    if config.linear.flow_steps % EVERY:
        checks.refuse("linear.flow_steps", config.linear.flow_steps, f"a multiple of {EVERY}")
    if images.skip > images.steps - 20:
        checks.refuse("images.skip", images.skip, "at least 20 less than images.steps")
    if planted.each > images.group or 2 * images.group > count:
        allowed = f"planted.each, {planted.each}, or more, and at most half of {count} examples"
        checks.refuse("images.group", images.group, allowed)
    for number in planted.classes:
        if (task.train.y == number).sum() < 2 * planted.each:
            allowed = f"classes with {2 * planted.each} examples or more"
            checks.refuse("planted.classes", planted.classes, allowed)
    checks.memory("config.images.steps: losses of every example", float(images.steps) * count)
    linear = config.linear
    steps = max(linear.steps, linear.flow_steps // EVERY)
    checks.memory("config.linear: losses of every example", float(steps) * linear.examples)
    one = functools.partial(opposing.outliers, jax.random.key(0), linear.examples, linear.dim)
    checks.context("linear", one, alpha=1.0, signal=1.0, share=linear.share)
    checks.context("model", _network, config, task)


def total_steps(config: Any) -> int:
    """Units of the study, for the progress bar."""
    linear = (len(FLOW) + len(LINEAR)) * len(config.linear.seeds)
    return linear + len(config.planted.seeds) + len(config.natural.seeds)


@functools.partial(jax.jit, static_argnames=("losses", "probe", "optimizer", "steps", "every"))
def descend(losses, params, batch, rate, probe=None, optimizer=optax.sgd, *, steps, every=1):
    """Full-batch training: every example's loss and what the probe sees, before every so many steps."""
    gradient = jax.grad(lambda params: losses(params, batch).mean())
    rule = optimizer(rate)

    def step(_, state):
        params, memory = state
        change, memory = rule.update(gradient(params), memory, params)
        return optax.apply_updates(params, change), memory

    def look(state, _):
        seen = probe(state[0], batch) if probe else {}
        seen["losses"] = losses(state[0], batch)
        return jax.lax.fori_loop(0, every, step, state), seen

    return jax.lax.scan(look, (params, rule.init(params)), None, length=steps // every)[1]


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Raises:
        ValueError: see `check`.
    """
    session, task = session or Session(), tasks.load(config.task)
    check(config, task)
    return xr.merge([_linear(config, session), _images(config, task, session)])


# The linear network


def linear_losses(weights: Any, batch: Any) -> jax.Array:
    """(y - w2 W1 x)^2 / 2 of every example."""
    x, y = batch
    return (y - x @ weights["first"].T @ weights["second"]) ** 2 / 2


def _mean_loss(weights, batch):
    return linear_losses(weights, batch).mean()


def _sharpness(weights, batch):
    top = metrics.sharpness(_mean_loss, weights, batch, num_steps=10)
    return {"sharpness": top.value[0], "readout": jnp.sum(weights["second"] ** 2)}


def _descent(config, setting, seed, steps, every=1):
    """The outliers, and what `descend` saw of them."""
    part = config.linear
    made = opposing.outliers(
        *(jax.random.key(seed), part.examples, part.dim),
        alpha=setting.alpha,
        signal=setting.signal,
        share=part.share,
        consistent=setting.consistent,
    )
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    shapes = {"first": (part.width, part.dim + 1), "second": (part.width,)}
    weights = {n: part.start * jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items())}
    batch = made.inputs, made.targets
    rule = _sharpness, setting.optimizer
    seen = descend(linear_losses, weights, batch, setting.rate, *rule, steps=steps, every=every)
    return made, {name: np.asarray(values, float) for name, values in seen.items()}


def _predicted(setting, readout, times):
    """The logistic law from |w2|^2 = 0.1 on, where the small weights are balanced, and when that is."""
    start = int(np.argmax(readout > 0.1))
    law = opposing.sharpness_path(
        setting.alpha, setting.signal, readout[start], times - times[start]
    )
    return law, start


def _flow_unit(config: Any, flow: str, seed: int) -> dict[str, Any]:
    setting, steps = FLOW[flow], config.linear.flow_steps
    _, seen = _descent(config, setting, seed, steps, EVERY)
    law, start = _predicted(setting, seen["readout"], _flow_times(config))
    off = abs(setting.alpha * seen["readout"] - law)[start:] / (setting.alpha * setting.signal)
    late = seen["readout"] >= setting.signal / 2
    ratio = seen["sharpness"] / (setting.alpha * seen["readout"])
    return {
        "flow_off": off.max(),
        "flow_end": seen["sharpness"][-1] / (setting.alpha * setting.signal),
        "flow_ratio": abs(ratio - 1)[late].max() if late.any() else np.nan,
        "flow_sharpness": seen["sharpness"],
        "flow_law": law,
    }


def _flow_times(config):
    return np.arange(config.linear.flow_steps // EVERY) * EVERY * 1e-3


def _linear_unit(config: Any, setting: str, seed: int) -> dict[str, Any]:
    at, steps = LINEAR[setting], config.linear.steps
    made, seen = _descent(config, at, seed, steps)
    losses, scaled = seen["losses"], seen["sharpness"] * at.rate / 2
    groups = [np.asarray(made.positive), np.asarray(made.negative)]
    curves = np.stack([losses[:, ids].mean(1) for ids in groups])
    if not np.isfinite(losses).all():
        return dict.fromkeys(EDGE, np.nan) | {
            "sharpness": scaled,
            "law": np.nan * scaled,
            "group_loss": curves,
        }
    law, start = _predicted(at, seen["readout"], at.rate * np.arange(steps))
    crosses = (scaled > 1).any()
    crossed = int(np.argmax(scaled > 1)) if crosses else start
    predicted = opposing.crossing_time(at.alpha, at.signal, seen["readout"][start], at.rate)
    found = opposing_signals(np.float32(losses[crossed:]), len(groups[0]), until="first")
    rise = crossed + int(found.step)
    changes = np.diff(curves[:, crossed : rise + 5])
    moved, planted = abs(np.diff(losses, axis=0)[rise]), np.concatenate(groups)
    others = np.random.default_rng(seed).choice(len(moved), len(planted), replace=False)
    rest = np.delete(losses, planted, axis=1).mean(1)
    return {
        "crossing": crossed if crosses else np.nan,
        "crossing_predicted": start + predicted / at.rate if np.isfinite(predicted) else np.nan,
        "largest": scaled.max(),
        "tail": scaled[-100:].mean(),
        "correlation": np.corrcoef(changes)[0, 1],
        "recall": recall(found, *groups),
        "share": moved[planted].sum() / moved.sum(),
        "random_share": moved[others].sum() / moved.sum(),
        "progress": np.argmax(rest < 0.1 * rest[0]) if rest.min() < 0.1 * rest[0] else np.nan,
        "spike": curves.mean(0).max() / curves[:, 0].mean(),
        "sharpness": scaled,
        "law": law * at.rate / 2,
        "group_loss": curves,
    }


EDGE = {
    "crossing": "step at which sharpness reaches 2 / η",
    "crossing_predicted": "the same, predicted",
    "largest": "largest sharpness × η / 2",
    "tail": "sharpness × η / 2, mean of the last 100 steps",
    "correlation": "correlation of the groups' loss changes",
    "recall": "share of the planted groups that was found",
    "share": "outliers' share of all |loss changes| at the first rise",
    "random_share": "share of as many random examples",
    "progress": "step at which the others' loss is a tenth of the first",
    "spike": "largest loss of the outliers over the first",
}


def recall(found: Any, one: np.ndarray, other: np.ndarray) -> float:
    """Share of two planted groups that is in the two groups found, one in each; nan where nothing was found."""
    if found is None:
        return np.nan
    hits = [
        [np.isin(ids, np.asarray(group)).sum() for group in (found.up, found.down)]
        for ids in (one, other)
    ]
    return max(hits[0][0] + hits[1][1], hits[0][1] + hits[1][0]) / (len(one) + len(other))


def _linear(config, session):
    seeds = {"seed": Axis(list(config.linear.seeds), "seed")}
    flow = Program(
        "flow",
        _flow_unit,
        {
            "flow_off": Variable(
                "largest distance of the outliers' curvature from the law, over αR"
            ),
            "flow_end": Variable("sharpness at the end, over αR"),
            "flow_ratio": Variable("largest |sharpness / (α u) - 1| where u ≥ R / 2"),
            "flow_sharpness": Variable("sharpness", dims=("flow_step",)),
            "flow_law": Variable("sharpness, predicted", dims=("flow_step",)),
        },
        {"flow_step": Axis(_flow_times(config), "learning rate × steps")},
    )
    edge = Program(
        "linear",
        _linear_unit,
        grid.variables("", **EDGE)
        | {
            "sharpness": Variable("sharpness × η / 2", dims=("step",)),
            "law": Variable("sharpness × η / 2, predicted", dims=("step",)),
            "group_loss": Variable("mean loss of a group", dims=("side", "step")),
        },
        {"step": Axis(range(config.linear.steps), "step")},
    )
    grids = (("flow", FLOW, flow), ("setting", LINEAR, edge))
    return xr.merge(
        [
            train_grid({dim: Axis(list(values), "setting")} | seeds, config, program, session)
            for dim, values, program in grids
        ]
    )


# Networks on images


class Images(NamedTuple):
    """What the units of both grids read; batches are (x, y), and pairs of groups for the cosines of their gradients."""

    config: Any
    x: np.ndarray
    y: np.ndarray
    init: Callable
    losses: Callable
    cosines: Callable


NORM = 8.0  # of an image, root mean square: that of the digits


def scaled_images(x: np.ndarray) -> np.ndarray:
    """Images with the norm of the digits: the edge of stability is then at similar rates for images of any size."""
    return np.asarray(x * np.float32(NORM / np.sqrt((x**2).sum() / len(x))))


def _network(config, task):
    fields = dict(config.model.to_dict())
    width = fields.pop("width")
    net = models.family(fields.pop("name"), outputs=task.outputs, **fields)(width)

    def init(seed, x):
        return net.init(jax.random.key(seed), x[:1])["params"]

    def losses(params, batch):
        outputs = net.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])

    def mean(params, batch):
        return losses(params, batch).mean()

    def cosines(params, batch):
        x, y, pairs = batch
        both = [gradient_cosine(mean, params, *((x[i], y[i]) for i in pair)) for pair in pairs]
        return {"cosines": jnp.stack(both)}

    return init, losses, cosines


def _trained(data, seed, rate, *, x=None, keep=slice(None), pairs=None):
    """Losses (steps, examples) after the first steps, and the cosines of the pairs' gradients."""
    images, x = data.config.images, data.x if x is None else x
    batch = (jnp.asarray(x[keep]), jnp.asarray(data.y[keep]))
    start, probe = data.init(seed, batch[0]), None
    if pairs is not None:
        batch, probe = (*batch, jnp.asarray(pairs)), data.cosines
    seen = descend(data.losses, start, batch, rate, probe, steps=images.steps)
    return np.asarray(seen["losses"])[images.skip :], np.asarray(seen.get("cosines"))


def _found(data, losses, until="largest"):
    """Opposing groups; None where training diverged."""
    group = data.config.images.group
    return opposing_signals(losses, group, until=until) if np.isfinite(losses).all() else None


def _purity(data, found):
    """Share of the largest class in a found group, mean over both; nan where nothing was found."""
    if found is None:
        return np.nan
    groups = [data.y[np.asarray(ids)] for ids in (found.up, found.down)]
    return np.mean([np.bincount(labels).max() / len(labels) for labels in groups])


def _planted_unit(data: Images, planted_seed: int) -> dict[str, Any]:
    part, images = data.config.planted, data.config.images
    random = np.random.default_rng(planted_seed)
    drawn_ids = [random.permutation(np.flatnonzero(data.y == c)) for c in part.classes]
    groups, others = (
        np.stack([ids[at : at + part.each] for ids in drawn_ids]) for at in (0, part.each)
    )
    direction = random.normal(size=data.x[0].shape)
    size = part.norms * NORM / np.linalg.norm(direction)
    x = data.x.copy()
    x[groups.ravel()] += np.float32(size * direction)
    calm, cosines = _trained(
        data, planted_seed, images.calm_rate, x=x, pairs=np.stack([groups, others])
    )
    measured = dict.fromkeys(PLANTED, np.nan) | {
        "calm_recall": recall(_found(data, calm), *groups),
        "calm_cosine": cosines[images.skip :, 0].mean(),
        "other_cosine": cosines[images.skip :, 1].mean(),
        "planted_loss": np.full((2, images.steps - images.skip), np.nan),
        "planted_change": np.full(len(x), np.nan),
        "is_planted": np.isin(np.arange(len(x)), groups),
    }
    for rate in part.rates:
        losses, _ = _trained(data, planted_seed, rate, x=x)
        found = _found(data, losses)
        if found is None or not found.oscillates:
            continue
        plain, _ = _trained(data, planted_seed, rate)
        return measured | {
            "planted_rate": rate,
            "planted_step": images.skip + int(found.step),
            "planted_recall": recall(found, *groups),
            "planted_correlation": float(found.correlation),
            "planted_share": float(found.share),
            "unplanted_recall": recall(_found(data, plain), *groups),
            "planted_loss": np.stack([losses[:, ids].mean(1) for ids in groups]),
            "planted_change": np.diff(losses, axis=0)[int(found.step)],
        }
    return measured


PLANTED = {
    "planted_rate": "smallest rate at which the loss rises",
    "planted_step": "step of the largest rise",
    "planted_recall": "share of the planted groups that was found",
    "planted_correlation": "correlation of the found groups' loss changes",
    "planted_share": "found groups' share of all |loss changes|",
    "unplanted_recall": "the same share, nothing planted",
    "calm_recall": "the same share, at a rate without oscillation",
    "calm_cosine": "cosine of the planted groups' gradients, mean over steps",
    "other_cosine": "the same of other groups of their classes",
}
NATURAL = {
    "natural_purity": "share of the largest class in a found group",
    "natural_correlation": "correlation of the found groups' loss changes",
    "calm_purity": "share of the largest class at a rate without oscillation",
    "rise_step": "step of the first rise",
    "removed_step": "step of the first rise without the found groups",
    "random_step": "step of the first rise without as many random examples",
}


def _first_rise(data, losses):
    """Step of the first rise of the mean loss; the end of the run where it never comes."""
    images, found = data.config.images, _found(data, losses, "first")
    if found is None:
        return np.nan
    return images.skip + int(found.step) if found.oscillates else images.steps


def _natural_unit(data: Images, natural_seed: int) -> dict[str, Any]:
    images, rate, everyone = data.config.images, data.config.natural.rate, np.arange(len(data.x))
    losses, _ = _trained(data, natural_seed, rate)
    calm, _ = _trained(data, natural_seed, images.calm_rate)
    found = _found(data, losses, "first")
    if found is None or not found.oscillates:
        groups = np.zeros((2, images.group), int)
        measured = dict.fromkeys(NATURAL, np.nan)
    else:
        groups = np.stack([found.up, found.down])
        random = np.random.default_rng(natural_seed).permutation(everyone)[: groups.size]
        rest = [
            _trained(data, natural_seed, rate, keep=np.setdiff1d(everyone, ids))[0]
            for ids in (groups, random)
        ]
        measured = {
            "natural_purity": _purity(data, found),
            "natural_correlation": float(found.correlation),
            "calm_purity": _purity(data, _found(data, calm)),
            "rise_step": _first_rise(data, losses),
            "removed_step": _first_rise(data, rest[0]),
            "random_step": _first_rise(data, rest[1]),
        }
    return measured | {
        "natural_loss": np.stack([losses[:, ids].mean(1) for ids in groups]),
        "image": np.stack([data.x[ids[:SHOWN]].mean(-1) for ids in groups]),
    }


SHOWN = 8  # images of each group in the figure


def _images(config, task, session):
    x, y = scaled_images(task.train.x), np.asarray(task.train.y)
    data = Images(config, x, y, *_network(config, task))
    steps = {"image_step": Axis(range(config.images.skip, config.images.steps), "step")}
    curves = {"dims": ("side", "image_step")}
    planted = Program(
        "planted",
        _planted_unit,
        grid.variables("", **PLANTED)
        | {
            "planted_loss": Variable("mean loss of a planted group", **curves),
            "planted_change": Variable("change of an example's loss", dims=("example",)),
            "is_planted": Variable("whether it was planted", dims=("example",)),
        },
        steps,
    )
    natural = Program(
        "natural",
        _natural_unit,
        grid.variables("", **NATURAL)
        | {
            "natural_loss": Variable("mean loss of a found group", **curves),
            "image": Variable("images of a found group", dims=("side", "rank", "row", "column")),
        },
        steps,
    )
    return xr.merge(
        [
            train_grid({f"{name}_seed": Axis(list(part.seeds), "seed")}, data, program, session)
            for name, part, program in (
                ("planted", config.planted, planted),
                ("natural", config.natural, natural),
            )
        ]
    )


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "mirror_images": drawn.mirror_images(data),
        "sharpness": drawn.sharpness(data),
        "found_images": drawn.found_images(data),
        "who_moves": drawn.who_moves(data),
    }
