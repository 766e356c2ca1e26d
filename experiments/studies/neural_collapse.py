"""Neural collapse in deep linear layers, and where it stops (Dang et al. 2023; Garrod & Keating 2024; Shen et al.).

Five experiments on M linear layers with weight decay: squared error on free features, balanced and imbalanced, against
the exact frames; class sizes on both sides of the threshold of minority collapse; cross-entropy over (K, M), where from
two layers on frames of lower rank beat the simplex; ReLU networks on images; a simplex in the place of the learnt
readout. Controls: no weight decay, frames of equal lengths or the simplex for imbalanced classes, the shallow threshold
for deep networks, networks without weight decay, fixed vectors at random angles in a plane.
"""

# One file: the five experiments share problem, objective, program and observables, which come first.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from flax import linen as nn

import metrics
import models
from experiments import checks, families, grid, losses, rates, tasks
from experiments.grid import Axis, Training, Variable, train_grid
from experiments.loop import Session, flops, seconds
from experiments.studies.neural_collapse_claims import CLASSIFIERS, ROWS, claims, distance
from experiments.studies.neural_collapse_figures import figures
from experiments.train import INIT, Probe, Program, Setup, compile_program, stream
from metrics import frames
from metrics.scatter import class_means

TITLE = "Neural collapse in deep linear networks, from balanced to imbalanced data"
PAPER = (
    "Dang et al. 2023, arXiv:2301.00437; Garrod & Keating 2024, arXiv:2410.23169; Shen, Sun & Wei 2023, "
    "arXiv:2303.11637"
)

__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps", "work"]

# Squared error on free features: class sizes, an unregularised bias of the outputs, weight decay
PROBLEMS = {
    "balanced": ("balanced", False, True),
    "imbalanced": ("imbalanced", False, True),
    "bias": ("balanced", True, True),
    "no_decay": ("balanced", False, False),
}
# What the theory predicts, and its dimensions
MATRICES = {"loss": (), "weight_gram": ROWS, "mean_gram": ROWS, "product": ROWS}
LAYERS = {"nc1": ("layer",), "nc2": ("layer",), "nc4": ("layer",)}
WORDS = {
    "loss": "objective",
    "weight_gram": "Gram matrix of the product of the linear layers",
    "mean_gram": "Gram matrix of the class means",
    "product": "outputs of the class means",
    "angle": "distance of the unit vectors of weights and class means",
    "nc1": "within-class variability",
    "nc2": "distance of the class means from the frame",
    "nc4": "share of examples decided unlike the nearest class mean",
    "accuracy": "training accuracy",
}
ABSENT = -1e9  # the logit of a class that is not there


def momentum(rate: Callable) -> optax.GradientTransformation:
    """Gradient descent with momentum 0.9."""
    return optax.sgd(rate, momentum=0.9)


_SIZES = checks.several(checks.whole(), 2, distinct=False)
_TRAINED = {
    "learning_rate": checks.positive(),
    "steps": checks.STEPS,
    "chunk": checks.STEPS,
}
_FREE = _TRAINED | {
    "depths": checks.several(checks.whole(1, 100), ascending=True),
    "init_std": checks.positive(),  # at 0 nothing moves, or all seeds are one
    "seeds": checks.SEEDS,
}
_NETWORK = _TRAINED | {
    "model.name": checks.instance(str),
    "model.depth": checks.DEPTH,
    "width": checks.WIDTH,
    "linear": checks.whole(1, 100),
    "features": checks.WIDTH,
    "loss": checks.choice(losses.LOSSES),
    "rate_unit": checks.choice(("edge", "one")),
    "sizes": _SIZES,
    "weight_decay": checks.positive(),
    "feature_decay": checks.positive(),
    "drops": checks.several(checks.real(0, 1, inside=True), 0, ascending=True),
    "seed": checks.whole(0),
}
RULES = {
    "fixed.model.name": checks.instance(str),
    "fixed.model.depth": checks.DEPTH,
    "fixed.width": checks.WIDTH,
    "fixed.features": checks.WIDTH,
    "fixed.temperature": checks.positive(),
    "fixed.learning_rate": checks.positive(),
    "fixed.steps": checks.STEPS,
    "fixed.seeds": checks.several(checks.whole(0), 0),
    "free.balanced": _SIZES,
    "free.imbalanced": _SIZES,
    "free.width": checks.WIDTH,
    "free.decay": checks.positive(),
    "tail.sizes": _SIZES,
    "tail.threshold": checks.positive(),
    "tail.width": checks.WIDTH,
    "map.classes": checks.several(checks.whole(3, 1000), ascending=True),
    "map.decay": checks.positive(),
    "map.simplex_std": checks.positive(),  # on the simplex itself every loss is at a critical point
    **{f"{part}.{key}": rule for part in ("free", "tail", "map") for key, rule in _FREE.items()},
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    known = [
        key for key, part in config.items() if "linear" in (part if hasattr(part, "keys") else ())
    ]
    checks.several(checks.choice(known))("networks", config.networks)
    of_networks = {f"{name}.{k}": r for name in known for k, r in _NETWORK.items()}
    checks.values(config, RULES | of_networks)
    for name in ("free", "tail", "map", *known):
        checks.multiple(config, f"{name}.steps", "chunk")
    for name in known:
        _check_part(name, config[name])
    _check_free(config)
    checks.classes(task)
    checks.whole(task.outputs, 2**20)("fixed.features", config.fixed.features)
    for name in config.networks:
        _check_network(name, config[name], task)


def _check_free(config: Any) -> None:
    free, tail, most = config.free, config.tail, max(config.map.classes)
    if len(set(free.balanced)) > 1:
        checks.refuse("free.balanced", free.balanced, "classes of one size")
    same = sum(free.balanced), len(free.balanced)
    if same != (sum(free.imbalanced), len(free.imbalanced)):
        asked = f"{same[1]} classes of {same[0]} samples in all, as balanced has"
        checks.refuse("free.imbalanced", free.imbalanced, asked)
    if len(set(free.imbalanced)) == 1:
        checks.refuse("free.imbalanced", free.imbalanced, "classes of different sizes")
    if not min(tail.sizes) < tail.threshold < max(tail.sizes):
        checks.refuse("tail.threshold", tail.threshold, "between the smallest and the largest size")
    for name, part, classes in (("free", free, free.balanced), ("tail", tail, tail.sizes)):
        checks.whole(len(classes), 2**20)(f"{name}.width", part.width)
        size = sum(classes) * part.width + max(part.depths) * part.width**2
        checks.memory(f"config.{name}", 4.0 * size * len(part.seeds))
    cells = config.map
    checks.memory("config.map", 4.0 * (max(cells.depths) + 1) * most**2 * len(cells.seeds))
    for depth in free.depths:
        for sizes in (free.balanced, free.imbalanced):
            arguments = ("squared_error", sizes, depth, (free.decay,) * 2)
            _check_optimum("free.decay", free.decay, "free", *arguments)
    for depth in tail.depths:
        checks.context("tail", tail_decay, depth, tail.sizes, tail.threshold)
    for depth in cells.depths:
        for classes in cells.classes:
            simplex, *_ = checks.context("map", _known, classes, depth, cells.decay)
            if not simplex < 0.99 * np.log(classes):
                allowed = f"small enough for {depth} layers to learn {classes} classes"
                checks.refuse("map.decay", cells.decay, allowed)


def _check_optimum(path: str, value: float, context: str, *arguments: Any) -> None:
    """Refuses a weight decay under which the best network is zero: it has no frame."""
    best = checks.context(context, prediction, *arguments)
    if not np.linalg.norm(best["product"]) > 0:
        checks.refuse(path, value, "smaller: under such a decay nothing is learnt at the optimum")


def _check_part(name: str, part: Any) -> None:
    """What can be said about a network without its data; also of one that is not asked for."""
    if part.loss == "cross_entropy" and len(set(part.sizes)) > 1:
        equal = "classes of one size: only for these is the optimum of cross-entropy known"
        checks.refuse(f"{name}.sizes", part.sizes, equal)
    fields = part.model.to_dict()
    checks.context(
        f"{name}.model", models.family, fields.pop("name"), outputs=part.features, **fields
    )
    at = [int(share * part.steps) for share in part.drops]
    if len({0, part.steps, *at}) < len(at) + 2:
        allowed = f"shares of the {part.steps} steps that are different steps inside training"
        checks.refuse(f"{name}.drops", part.drops, allowed)
    decay = part.weight_decay, part.feature_decay
    _check_optimum(
        f"{name}.weight_decay", decay[0], name, part.loss, part.sizes, part.linear, decay
    )


def _check_network(name: str, part: Any, task: tasks.Task) -> None:
    x, y = checks.context(f"{name}.sizes", subset, task, part.sizes)
    checks.whole(task.outputs, 2**20)(f"{name}.features", part.features)
    decay = part.weight_decay, part.feature_decay
    net = checks.context(f"{name}.model", backbone, part, task.outputs, x[:1])
    data = problem(y[:1], part.sizes, part.linear, decay, x=x[:1])

    def trained(key):
        params = net.init(key, data)
        return params, objective(net, part.loss, data)(params, data["train"])

    params, _ = checks.context(f"{name}.model", jax.eval_shape, trained, jax.random.key(0))
    layers = jax.eval_shape(net.layers, params, x[:1])
    expected = (*(f"hidden_{l}" for l in range(part.model.depth)), "features")
    if missing := [layer for layer in expected if layer not in layers]:
        raise ValueError(
            f"config.{name}.model: with features=True it names no layer {missing[0]!r}; the study reads hidden_0 "
            f"to hidden_{part.model.depth - 1} and readout, as models.MLP names them"
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    checks.memory(f"config.{name}", 4.0 * size + x.size)


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    free, tail, cells = config.free, config.tail, config.map
    return (
        len(PROBLEMS) * len(free.depths) * len(free.seeds) * free.steps
        + len(tail.depths) * len(tail.seeds) * tail.steps
        + 2 * len(cells.depths) * len(cells.classes) * len(cells.seeds) * cells.steps
        + 2 * sum(config[name].steps for name in config.networks)
        + len(CLASSIFIERS) * len(config.fixed.seeds) * config.fixed.steps
    )


def work(config: Any) -> dict[str, tuple[int, float]]:
    """Steps of every unit, and what one costs: the gradient of the objective, of all seeds that train at once."""
    task, found = tasks.load(config.task), {}
    free, tail, cells = config.free, config.tail, config.map

    def gradient(network, loss, data):
        params = jax.eval_shape(network.init, jax.random.key(0), data)
        return jax.grad(objective(network, loss, data)), params, data["train"]

    def cost(part, sizes, depth, loss="squared_error"):
        network = free_features(sum(sizes), len(sizes), depth, part.get("width", len(sizes)))
        data = problem(_labels(sizes), sizes, depth, (1.0, 1.0))
        function, params, batch = gradient(network, loss, data)
        # An overhead comes once a step, for all seeds.
        return seconds(flops(function, params, batch), overhead=1e-4 / len(part.seeds))

    for depth in free.depths:
        each = len(free.seeds) * free.steps, cost(free, free.balanced, depth)
        found |= {grid.label("free", (depth, name)): each for name in PROBLEMS}
    for depth in tail.depths:
        each = len(tail.seeds) * tail.steps, cost(tail, tail.sizes, depth)
        found[grid.label("tail", (depth,))] = each
    for depth in cells.depths:
        steps = 2 * len(cells.classes) * len(cells.seeds) * cells.steps
        sizes = (1,) * max(cells.classes)
        found[grid.label("map", (depth,))] = steps, cost(cells, sizes, depth, "cross_entropy")
    for name in config.networks:
        part = config[name]
        x, y = subset(task, part.sizes)
        data = problem(y, part.sizes, part.linear, (1.0, 1.0), x=x)
        function = gradient(backbone(part, task.outputs, x[:1]), part.loss, data)
        found[name] = 2 * part.steps, seconds(flops(*function))
    part = config.fixed
    shapes = jax.eval_shape(_body(part).init, jax.random.key(0), task.train.x[:1])
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    each = len(part.seeds) * part.steps, seconds(6.0 * weights * len(task.train.x))
    return found | {grid.label("fixed", (name,)): each for name in CLASSIFIERS if part.seeds}


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/neural_collapse.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: steps no multiple of chunk, class sizes that the task does not have, an unknown model or loss.
    """
    session = session or Session()
    task = tasks.load(config.task)
    check(config, task)
    parts = {
        "free": _free(config.free, session),
        "tail": _tail(config.tail, session),
        "map": _map(config.map, session),
        **{name: _network(name, config[name], task, session) for name in config.networks},
    }
    if config.fixed.seeds:
        parts["fixed"] = _fixed(config.fixed, task, session)
    prefixed = [
        part.rename({key: f"{name}_{key}" for key in {*part.variables, *part.dims}})
        for name, part in parts.items()
    ]
    return xr.merge(prefixed).assign_attrs(
        task=config.task.name, networks=" ".join(config.networks)
    )


# What is trained: features, from a network or free, below M linear layers


class Network(NamedTuple):
    """``init(key, data) -> params``; ``layers(params, x) -> {name: (N, ...)}``, last the features; the linear head."""

    init: Callable
    layers: Callable
    head: models.DeepLinear


def free_features(samples: int, classes: int, depth: int, width: int) -> Network:
    """Features that are parameters, one vector a sample, below ``depth`` linear layers.

    Everything starts normal with deviation data["init_std"]. data["fitted"] holds what is added to that for each
    class: the singular value of every layer and the length of the features of a network that fits, or zeros.
    """
    head = _head(depth, width, classes, 1.0)

    def init(key, data):
        weight, feature = data["fitted"]
        keys = jax.random.split(key)
        h = jax.random.normal(keys[0], (samples, width))
        params = {"features": h, "head": head.init(keys[1], h)["params"]}
        params = jax.tree.map(lambda leaf: data["init_std"] * leaf, params)
        onehot = jax.nn.one_hot(data["train"][1], classes)
        start = jnp.zeros((width, width)).at[jnp.arange(classes), jnp.arange(classes)].set(weight)
        rows = jnp.pad(onehot * feature[None], ((0, 0), (0, width - classes)))
        return {
            "features": params["features"] + rows,
            "head": jax.tree.map(lambda w: w + start[:, : w.shape[1]], params["head"]),
            "bias": jnp.zeros(classes),
        }

    return Network(init, lambda params, x: {"features": params["features"]}, head)


def backbone(part: Any, classes: int, example: np.ndarray) -> Network:
    """Features that a network computes, its readout without a nonlinearity, below the linear layers."""
    fields = part.model.to_dict()
    body = families.load(fields.pop("name"), fields, outputs=part.features)(part.width)
    head = _head(part.linear, part.features, classes, part.features**-0.5)

    def init(key, data):
        keys = jax.random.split(key)
        h = jnp.zeros((1, part.features))
        return {
            "body": body.init(keys[0], example)["params"],
            "head": head.init(keys[1], h)["params"],
            "bias": jnp.zeros(classes),
        }

    def layers(params, x):
        _, by_name = body.apply({"params": params["body"]}, x, features=True)
        return {name if name != "readout" else "features": h for name, h in by_name.items()}

    return Network(init, layers, head)


def _head(depth: int, width: int, classes: int, init_std: float) -> models.DeepLinear:
    kernel_init = nn.initializers.normal(init_std)
    return models.DeepLinear(width, depth=depth - 1, outputs=classes, kernel_init=kernel_init)


def problem(
    y, sizes, depth, decay, *, x=None, bias=False, init_std=0.0, fitted=False
) -> dict[str, Any]:
    """The data of a program: examples, decays, start.

    Args:
        y: labels (N,).
        sizes: of the classes.
        depth: M.
        decay: of each of the M layers, and of the features.
        x: inputs (N, ...); free features need none.
        bias: whether the outputs have an unregularised bias.
        init_std: deviation of the random start of free features and the layers above them.
        fitted: whether that start is added to a perfect fit, balanced between the layers.
    """
    weight, feature = decay
    level = (feature * np.asarray(sizes, float) / weight) ** (1 / (2 * depth + 2))
    numbers = {
        "weights": np.full(len(y), 1 / len(y)),
        "offset": np.zeros(len(sizes)),
        "decay": np.array(decay),
        "bias": np.array(float(bias)),
        "init_std": np.array(float(init_std)),
        "fitted": (fitted * level, fitted * level**-depth),
    }
    x = np.zeros((len(y), 1)) if x is None else x
    return {"train": (np.float32(x), y), **jax.tree.map(np.float32, numbers)}


def objective(network: Network, loss: str, data: dict[str, Any]) -> Callable:
    """Mean loss + decay of the linear layers and of the features: 1/2 lambda |W_i|^2, 1/2 lambda_H |H|^2."""

    def one(output, label):
        return losses.LOSSES[loss](output[None], label[None])

    def value(params, batch):
        x, y = batch
        h = network.layers(params, x)["features"]
        outputs = network.head.apply({"params": params["head"]}, h)
        outputs += (data["offset"] + data["bias"] * params["bias"])[None]
        fit = jnp.sum(data["weights"] * jax.vmap(one)(outputs, y))
        squares = optax.tree.norm(params["head"], squared=True), jnp.sum(h**2)
        return fit + 0.5 * (data["decay"][0] * squares[0] + data["decay"][1] * squares[1])

    return value


def program(network, loss, data, optimizer, part, *, layers=(), runs=None) -> Program:
    """The compiled program of one shape: class sizes, decays, starts and learning rates are its arguments."""

    def measure(params, carry, rate, data):
        return carry, observables(network, loss, params, data, layers)

    def setup(data):
        return Setup(lambda key: network.init(key, data), objective(network, loss, data), optimizer)

    probe = Probe(lambda params, key, data: (), measure)
    return compile_program(setup, data, steps=part.chunk, batch_size=None, probe=probe, runs=runs)


def observables(network, loss, params, data, layers) -> dict[str, jax.Array]:
    """Loss, Gram matrices of W = W_M ... W_1 and of the class means, outputs of the means; NC1 to NC4 of the layers."""
    x, y = data["train"]
    classes = data["offset"].size
    hidden = network.layers(params, x)
    outputs, linear = network.head.apply(
        {"params": params["head"]}, hidden["features"], features=True
    )
    w = jnp.eye(hidden["features"].shape[1])
    for name in linear:
        w = jnp.matmul(w, params["head"][name]["kernel"], precision="highest")
    means = class_means(hidden["features"], y, classes).mean
    found = {
        "loss": objective(network, loss, data)(params, data["train"]),
        "weight_gram": w.T @ w,
        "mean_gram": means @ means.T,
        "product": w.T @ means.T,
        "angle": jnp.linalg.norm(unit(w.T) - unit(means), axis=1),
        "accuracy": losses.accuracy(outputs, y),
    }
    inner = {f"linear_{i}": h for i, (name, h) in enumerate(linear.items(), 1) if name != "readout"}
    frame = "simplex" if loss == "cross_entropy" else "orthogonal"
    seen = {name: h for name, h in {**hidden, **inner}.items() if name in layers}
    if seen:
        collapse = metrics.collapse_by_layer(
            seen, y, classes, predictions=outputs.argmax(axis=1), frame=frame
        )
        each = collapse.values()
        found["nc1"] = jnp.stack([c.nc1.value for c in each])
        found["nc2"] = jnp.stack([c.nc2.general for c in each])
        found["nc4"] = jnp.stack([1 - c.nc4.value for c in each])
    return found


def unit(rows: jax.Array) -> jax.Array:
    """Rows of length one; a row of zeros stays."""
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def prediction(loss, sizes, depth, decay, bias=False) -> dict[str, Any]:
    """The closed-form optimum under the names of `observables`."""
    arguments = (decay[0],) * depth, decay[1]
    if loss == "squared_error":
        best = frames.mse_optimum(sizes, *arguments, bias=bias)
        product = best.outputs
    else:
        pattern = frames.simplex(len(sizes))
        best = frames.cross_entropy_optimum(pattern, sizes[0], *arguments)
        product = best.scale * pattern
    return {
        "loss": best.loss,
        "weight_gram": best.weight_gram,
        "mean_gram": best.mean_gram,
        "product": product,
    }


def _labels(sizes) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)


def _training(compile: Callable, shape: Any, data: Any, part: Any, seeds: Any, keep: Callable):
    rates, chunks = [part.learning_rate] * len(seeds), part.steps // part.chunk
    return Training(compile, shape, data, rates, seeds, chunks, part.steps, keep)


def _measured(names: dict[str, tuple[str, ...]], *over: str, end: str = "") -> dict[str, Variable]:
    """Variables of those names, over some dimensions and then their own."""
    return {
        name + end: Variable(WORDS[name] + end.replace("_", ", "), dims=(*over, *dims))
        for name, dims in names.items()
    }


def _depths(part: Any) -> dict[str, Axis]:
    return {"depth": Axis(list(part.depths), "linear layers", "layers")}


def _seeds(part: Any) -> dict[str, Axis]:
    return {"seed": Axis(list(part.seeds), "seed")}


def _sizes(sizes: Any) -> Axis:
    return Axis(np.array(sizes), "size of the class", "examples", ("class",))


def _steps(part: Any) -> Axis:
    return Axis(np.arange(0, part.steps + 1, part.chunk), "training step", "steps")


# Squared error on free features


def _free(part: Any, session: Session) -> xr.Dataset:
    axes = {**_depths(part), "problem": Axis(list(PROBLEMS), "problem")}
    names = {**MATRICES, "nc1": ("layer",), "angle": ("class",)}
    own = {**_seeds(part), "step": _steps(part), "size": _sizes(part.imbalanced)}
    variables = _measured(names, "seed", "step")

    def unit(part, depth, problem):
        return _free_unit(part, depth, problem)

    trained = grid.Program("free", unit, variables, own, trains=True)
    known = grid.Program("free-predicted", _free_known, _measured(MATRICES, end="_predicted"))
    made = xr.merge([train_grid(axes, part, each, session) for each in (trained, known)])
    return made.isel(layer=0).assign(decay=grid.array((), part.decay, "weight decay"))


def _free_unit(part: Any, depth: int, name: str) -> Training:
    """All problems of one depth share one compiled program."""
    sizes, bias, decayed = PROBLEMS[name]
    sizes, decay = part[sizes], (part.decay,) * 2
    data = problem(_labels(sizes), sizes, depth, decay, bias=bias, init_std=part.init_std)
    if not decayed:
        data["decay"] = 0 * data["decay"]
    network = free_features(sum(sizes), len(sizes), depth, part.width)
    options = {"layers": ("features",), "runs": len(part.seeds)}

    def compile():
        return program(network, "squared_error", data, momentum, part, **options)

    return _training(compile, depth, data, part, part.seeds, lambda records: records)


def _free_known(part: Any, depth: int, problem: str) -> dict[str, Any]:
    sizes, bias, _ = PROBLEMS[problem]
    return _predicted("squared_error", part[sizes], depth, (part.decay,) * 2, bias)


def _predicted(*arguments) -> dict[str, Any]:
    return {f"{name}_predicted": value for name, value in prediction(*arguments).items()}


# Minority collapse: class sizes on both sides of the threshold


def tail_decay(depth: int, sizes: tuple[int, ...], threshold: float) -> float:
    """The decay, one for all layers and the features, below which classes smaller than a size disappear."""
    total = sum(sizes)
    kappa = frames.thresholds(depth).collapse * threshold / (depth * total)
    return float((kappa**depth / total) ** (1 / (depth + 1)))


def _tail(part: Any, session: Session) -> xr.Dataset:
    variables = {
        "z": Variable("output of the class mean for its own class", dims=("seed", "class")),
        "mode_loss": Variable("part of the loss of one class", dims=("seed", "class")),
    }
    own = {**_seeds(part), "size": _sizes(part.sizes)}
    tail = grid.Program("tail", _tail_unit, variables, own, trains=True)
    decays = [tail_decay(depth, part.sizes, part.threshold) for depth in part.depths]
    return train_grid(_depths(part), part, tail, session).assign(
        decay=grid.array("depth", decays, "weight decay"),
        threshold=grid.array((), float(part.threshold), "threshold of the class size", "examples"),
    )


def _tail_unit(part: Any, depth: int) -> Training:
    sizes, y = part.sizes, _labels(part.sizes)
    decay = tail_decay(depth, sizes, part.threshold)
    network = free_features(len(y), len(sizes), depth, part.width)
    data = problem(y, sizes, depth, (decay, decay), init_std=part.init_std, fitted=True)

    def compile():
        return program(network, "squared_error", data, momentum, part, runs=len(part.seeds))

    def keep(records):
        product = records["product"][:, -1]
        means = np.diagonal(records["mean_gram"][:, -1], axis1=1, axis2=2)
        # The mode's part of the loss over what it is at zero: each of the M + 1 factors costs the same.
        cost = (depth + 1) * len(y) * decay
        rest = ((product - np.eye(len(sizes))) ** 2).sum(1)
        return {"z": np.diagonal(product, axis1=1, axis2=2), "mode_loss": rest + cost * means}

    return _training(compile, depth, data, part, part.seeds, keep)


# Cross-entropy over (K, M)


def _map(part: Any, session: Session) -> xr.Dataset:
    cells = {**_depths(part), "classes": Axis(list(part.classes), "classes", "classes")}
    starts = {"start": Axis(["random", "simplex"], "start of the training")}
    reached = {
        "loss": Variable("objective reached", dims=("seed",)),
        "rank": Variable("rank of the logits", dims=("seed",)),
        "simplex_error": Variable("distance of the logits from the simplex", dims=("seed",)),
    }
    known = {
        "simplex": Variable("objective of the simplex"),
        "known": Variable("objective of the best known frame"),
        "known_rank": Variable("rank of the best known frame"),
    }
    trained = grid.Program("map", _map_unit, reached, _seeds(part), trains=True)
    closed = grid.Program("map-known", _map_known, known)
    return xr.merge(
        [
            train_grid(cells | starts, part, trained, session),
            train_grid(cells, part, closed, session),
        ]
    )


def _map_unit(part: Any, depth: int, classes: int, start: str) -> Training:
    """All cells of one depth share one compiled program."""
    most = max(part.classes)
    network = free_features(most, most, depth, most)
    data = _map_problem(part, depth, classes, fitted=start == "simplex")

    def compile():
        runs = len(part.seeds)
        return program(network, "cross_entropy", data, adam(part.steps), part, runs=runs)

    def keep(records):
        logits = records["product"][:, -1, :classes, :classes]
        return {
            "loss": records["loss"][:, -1],
            "rank": np.float64(logit_rank(logits)),
            "simplex_error": distance(logits, frames.simplex(classes)),
        }

    return _training(compile, depth, data, part, part.seeds, keep)


def _map_known(part: Any, depth: int, classes: int) -> dict[str, float]:
    names = ("simplex", "known", "known_rank")
    return dict(zip(names, map(float, _known(classes, depth, part.decay))))


def _map_problem(part, depth, classes, fitted) -> dict[str, Any]:
    """One sample a class; all cells of a depth have the largest shape, with the other classes left out."""
    most, decay = max(part.classes), (part.decay,) * 2
    y, std = np.arange(most, dtype=np.int32), part.simplex_std if fitted else part.init_std
    data = problem(y, (1,) * most, depth, decay, init_std=std, fitted=fitted)
    there = np.arange(most) < classes
    data["weights"] = np.float32(there / classes)
    data["offset"] = np.float32(np.where(there, 0, ABSENT))
    return data


def adam(steps: int) -> Callable:
    """Learning rate -> Adam whose rate falls to zero over the steps."""
    return lambda rate: optax.adam(lambda step: rate * (1 - step / steps))


def _known(classes: int, depth: int, decay: float) -> tuple[float, float, float]:
    """Loss of the simplex, and loss and rank of the best frame with a closed form."""
    found = [
        frames.cross_entropy_optimum(pattern, 1, (decay,) * depth, decay)
        for pattern in frames.known_frames(classes).values()
    ]
    best = min(found, key=lambda optimum: round(optimum.loss, 12))
    return found[0].loss, best.loss, best.rank


def logit_rank(logits: np.ndarray) -> np.ndarray:
    """Number of singular values above 5 % of the largest."""
    values = np.linalg.svd(logits, compute_uv=False)
    return (values > 0.05 * values[..., :1]).sum(-1)


# Networks on images


def _network(name: str, part: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    x, y = subset(task, part.sizes)
    decay = part.weight_decay, part.feature_decay
    network = backbone(part, task.outputs, x[:1])
    data = problem(y, part.sizes, part.linear, decay, x=x)
    part = part.copy_and_resolve_references()
    part.learning_rate = network_rate(name, part, network, data)
    layers = (*(f"hidden_{l}" for l in range(part.model.depth)), "features")
    layers += tuple(f"linear_{l}" for l in range(1, part.linear))

    def optimizer(rate):
        drops = {int(share * part.steps): 0.1 for share in part.drops}
        return optax.adam(optax.piecewise_constant_schedule(rate, drops))

    def compile():
        return program(network, part.loss, data, optimizer, part, layers=layers)

    def keep(records):
        return {key: values[0] for key, values in records.items()}

    def last(records):
        return {f"undecayed_{key}": records[key][0, -1] for key in (*MATRICES, "accuracy")}

    names = {**MATRICES, **LAYERS, "angle": ("class",), "accuracy": ()}
    own = {
        "step": _steps(part),
        "layer": Axis(list(layers), "layer"),
        "size": _sizes(part.sizes),
    }
    unit = _training(compile, name, data, part, (part.seed,), keep)
    trained = grid.Program(name, lambda _: unit, _measured(names, "step"), own, trains=True)
    wrong = _training(compile, name, data | {"decay": 0 * data["decay"]}, part, (part.seed,), last)
    undecayed = {
        f"undecayed_{key}": Variable(f"{WORDS[key]}, without weight decay", dims=dims)
        for key, dims in {**MATRICES, "accuracy": ()}.items()
    }
    bare = grid.Program(f"{name}-undecayed", lambda _: wrong, undecayed, trains=True)
    known = grid.Program(
        f"{name}-predicted",
        lambda _: _predicted(part.loss, part.sizes, part.linear, decay),
        _measured(MATRICES, end="_predicted"),
    )
    made = xr.merge([train_grid({}, None, each, session) for each in (trained, bare, known)])
    return made.assign(
        linear=grid.array((), part.linear, "linear layers", "layers"),
        squared=grid.array((), part.loss == "squared_error", "whether the loss is squared error"),
        decay=grid.array("kind", list(decay), "weight decay of the layers and of the features"),
    )


def network_rate(name: str, part: Any, network: Network, data: dict[str, Any]) -> float:
    """Adam's learning rate of a network on images, where it is given as a share of the edge at initialisation."""
    if part.rate_unit == "one":
        return part.learning_rate
    params = network.init(stream(part.seed, INIT), data)
    loss = objective(network, part.loss, data)
    unit = checks.context(name, rates.octave, "adam", loss, [params], data["train"])
    return float(part.learning_rate * unit)


def subset(task: tasks.Task, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The first so many training examples of each class, class by class.

    Raises:
        ValueError: the task has another number of classes, or fewer examples of one.
    """
    if len(sizes) != task.outputs:
        raise ValueError(f"sizes has {len(sizes)} classes, but {task.name} has {task.outputs}")
    rows = [np.flatnonzero(task.train.y == label)[:size] for label, size in enumerate(sizes)]
    for label, (found, size) in enumerate(zip(rows, sizes)):
        if len(found) < size:
            raise ValueError(
                f"sizes asks for {size} examples of class {label}, but {task.name} has {len(found)}"
            )
    chosen = np.concatenate(rows)
    return task.train.x[chosen], task.train.y[chosen]


# Fixed class vectors in the place of a readout


def class_vectors(classifier: str, classes: int, dim: int) -> np.ndarray:
    """Unit vectors (K, dim): a simplex, random angles in a plane, or none, of the readout that is learnt."""
    if classifier == "equiangular":
        rows = frames.simplex(classes)
    elif classifier == "in a plane":
        angles = np.random.default_rng(0).uniform(0, 2 * np.pi, classes)
        rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    else:
        rows = np.zeros((classes, 1))
    return np.asarray(unit(jnp.pad(rows, ((0, 0), (0, dim - rows.shape[1])))))


def _body(part: Any) -> Any:
    """The network whose outputs are the features below a classifier."""
    fields = part.model.to_dict()
    return families.load(fields.pop("name"), fields, outputs=part.features)(part.width)


def _fixed(part: Any, task: tasks.Task, session: Session) -> xr.Dataset:
    """One network below logits z . w_k of a learnt readout, or cos(z, w_k) / temperature of fixed vectors."""
    body = _body(part)
    splits = {"train": task.train, "test": task.test}
    sets = {name: (np.asarray(split.x), np.asarray(split.y)) for name, split in splits.items()}

    def logits(params, data, x):
        z = body.apply({"params": params["body"]}, x)
        cosines = unit(z) @ data["vectors"].T / part.temperature
        return jnp.where(data["learnt"], z @ params["readout"], cosines)

    def setup(data):
        def init(key):
            keys = jax.random.split(key)
            start = jax.random.normal(keys[1], (part.features, task.outputs))
            made = {"body": body.init(keys[0], sets["train"][0][:1])["params"]}
            return made | {"readout": start / np.sqrt(part.features)}

        def loss(params, batch):
            x, y = batch
            return losses.LOSSES["cross_entropy"](logits(params, data, x), y)

        return Setup(init, loss, optax.adam)

    def measure(params, carry, rate, data):
        found = {
            name: losses.accuracy(logits(params, data, data[name][0]), data[name][1])
            for name in sets
        }
        return carry, found

    probe = Probe(lambda params, key, data: (), measure)

    def trained(_, classifier):
        vectors = class_vectors(classifier, task.outputs, part.features)
        data = sets | {"vectors": vectors, "learnt": np.float32(classifier == "learnt")}

        def compile():
            runs = len(part.seeds)
            options = {"steps": part.steps, "batch_size": None, "probe": probe, "runs": runs}
            return compile_program(setup, data, **options)

        arguments = [part.learning_rate] * len(part.seeds), part.seeds, 1, part.steps
        return Training(
            *(compile, "fixed", data, *arguments),
            lambda found: {k: v[:, -1] for k, v in found.items()},
        )

    variables = {
        name: Variable(f"{words} accuracy", dims=("seed",))
        for name, words in (("train", "training"), ("test", "test"))
    }
    axes = {"classifier": Axis(list(CLASSIFIERS), "classifier")}
    program = grid.Program("fixed", trained, variables, _seeds(part), trains=True)
    return train_grid(axes, None, program, session)
