"""Neural collapse in deep linear layers, and where it stops (Dang et al. 2023; Garrod & Keating 2024).

Four experiments on M linear layers with weight decay: squared error on free features, balanced and imbalanced, against
the exact frames; class sizes on both sides of the threshold of minority collapse; cross-entropy over (K, M), where from
two layers on frames of lower rank beat the simplex; ReLU networks on images. Controls: no weight decay, frames of equal
lengths or the simplex for imbalanced classes, the shallow threshold for deep networks, networks without weight decay.
"""

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
from experiments import losses, tasks
from experiments.loop import Session, train_runs
from experiments.studies.neural_collapse_claims import ROWS, claims, distance
from experiments.studies.neural_collapse_figures import figures
from experiments.train import Probe, Program, Setup, compile_program
from metrics import frames
from metrics.scatter import class_means

TITLE = "Neural collapse in deep linear networks, from balanced to imbalanced data"
PAPER = "Dang et al. 2023, arXiv:2301.00437; Garrod & Keating 2024, arXiv:2410.23169"

__all__ = ["PAPER", "TITLE", "claims", "figures", "run", "total_steps"]

# Squared error on free features: class sizes, an unregularised bias of the outputs, weight decay
PROBLEMS = {
    "balanced": ("balanced", False, True),
    "imbalanced": ("imbalanced", False, True),
    "bias": ("balanced", True, True),
    "no_decay": ("balanced", False, False),
}
# What the theory predicts, and its dimensions
MATRICES = {"loss": (), "weight_gram": ROWS, "mean_gram": ROWS, "product": ROWS}
ABSENT = -1e9  # the logit of a class that is not there


def momentum(rate: Callable) -> optax.GradientTransformation:
    """Gradient descent with momentum 0.9."""
    return optax.sgd(rate, momentum=0.9)


def total_steps(config: Any) -> int:
    """Training steps of the whole study, for the progress bar."""
    free, tail, cells = config.free, config.tail, config.map
    return (
        len(PROBLEMS) * len(free.depths) * len(free.seeds) * free.steps
        + len(tail.depths) * len(tail.seeds) * tail.steps
        + 2 * len(cells.depths) * len(cells.classes) * len(cells.seeds) * cells.steps
        + 2 * sum(config[name].steps for name in config.networks)
    )


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/neural_collapse.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: steps no multiple of chunk, class sizes that the task does not have, an unknown model or loss.
    """
    session = session or Session()
    for part in (config.free, config.tail, config.map, *(config[n] for n in config.networks)):
        if part.steps % part.chunk:
            raise ValueError(f"steps ({part.steps}) must be a multiple of chunk ({part.chunk})")
    task = tasks.load(config.task)
    parts = {
        "free": _free(config.free, session),
        "tail": _tail(config.tail, session),
        "map": _map(config.map, session),
        **{name: _network(name, config[name], task, session) for name in config.networks},
    }
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
    body = models.family(fields.pop("name"), outputs=part.features, **fields)(part.width)
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
    collapse = metrics.collapse_by_layer(
        {name: h for name, h in {**hidden, **inner}.items() if name in layers},
        y,
        classes,
        predictions=outputs.argmax(axis=1),
        frame=frame,
    )
    if collapse:
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


def _train(program, data, part, seeds, name, session) -> dict[str, np.ndarray]:
    rates, chunks = [part.learning_rate] * len(seeds), part.steps // part.chunk
    return train_runs(program, data, rates, seeds, chunks=chunks, name=name, session=session)


# Squared error on free features


def _free(part: Any, session: Session) -> xr.Dataset:
    if sum(part.balanced) != sum(part.imbalanced):
        raise ValueError("balanced and imbalanced must add up to one number of samples")
    trained, expected = [], []
    for depth in part.depths:
        for values, rows in zip(_free_depth(part, depth, session), (trained, expected)):
            rows.append(values)
    dims = ("depth", "problem")
    variables = {
        name: ((*dims, "seed", "step", *extra), _gathered(trained, name))
        for name, extra in {**MATRICES, "nc1": ("layer",), "angle": ("class",)}.items()
    }
    variables |= {
        f"{name}_predicted": ((*dims, *extra), _gathered(expected, name))
        for name, extra in MATRICES.items()
    }
    coordinates = {
        "depth": list(part.depths),
        "problem": list(PROBLEMS),
        "seed": list(part.seeds),
        "step": np.arange(0, part.steps + 1, part.chunk),
        "size": ("class", np.array(part.imbalanced)),
    }
    return xr.Dataset(variables, coordinates).isel(layer=0).assign(decay=part.decay)


def _free_depth(part, depth, session) -> tuple[list, list]:
    """Records and predictions of every problem at one depth; one compiled program."""
    classes, samples = len(part.balanced), sum(part.balanced)
    network = free_features(samples, classes, depth, part.width)
    loss, decay = "squared_error", (part.decay,) * 2
    compiled, trained, expected = None, [], []
    for name, (sizes, bias, decayed) in PROBLEMS.items():
        sizes, y = part[sizes], _labels(part[sizes])
        expected.append(prediction(loss, sizes, depth, decay, bias))
        data = problem(y, sizes, depth, decay, bias=bias, init_std=part.init_std)
        if not decayed:
            data["decay"] = 0 * data["decay"]
        compiled = compiled or program(
            network, loss, data, momentum, part, layers=("features",), runs=len(part.seeds)
        )
        trained.append(_train(compiled, data, part, part.seeds, f"free-{name}-{depth}", session))
    return trained, expected


def _gathered(rows: list[list[dict]], name: str) -> np.ndarray:
    return np.array([[cell[name] for cell in row] for row in rows])


# Minority collapse: class sizes on both sides of the threshold


def tail_decay(depth: int, sizes: tuple[int, ...], threshold: float) -> float:
    """The decay, one for all layers and the features, below which classes smaller than a size disappear."""
    total = sum(sizes)
    kappa = frames.thresholds(depth).collapse * threshold / (depth * total)
    return float((kappa**depth / total) ** (1 / (depth + 1)))


def _tail(part: Any, session: Session) -> xr.Dataset:
    sizes, y = part.sizes, _labels(part.sizes)
    decays = [tail_decay(depth, sizes, part.threshold) for depth in part.depths]
    products, means = [], []
    for depth, decay in zip(part.depths, decays):
        network = free_features(len(y), len(sizes), depth, part.width)
        data = problem(y, sizes, depth, (decay, decay), init_std=part.init_std, fitted=True)
        compiled = program(network, "squared_error", data, momentum, part, runs=len(part.seeds))
        records = _train(compiled, data, part, part.seeds, f"tail-{depth}", session)
        products.append(records["product"][:, -1])
        means.append(np.diagonal(records["mean_gram"][:, -1], axis1=1, axis2=2))
    dims = ("depth", "seed", "class")
    rest = np.array(products) - np.eye(len(sizes))
    # The mode's part of the loss over what it is at zero: each of the M + 1 factors costs the same.
    cost = np.array([(m + 1) * len(y) * decay for m, decay in zip(part.depths, decays)])
    return xr.Dataset(
        {
            "z": (dims, np.diagonal(np.array(products), axis1=2, axis2=3)),
            "mode_loss": (dims, (rest**2).sum(2) + cost[:, None, None] * np.array(means)),
            "decay": ("depth", np.array(decays)),
            "threshold": float(part.threshold),
        },
        {"depth": list(part.depths), "seed": list(part.seeds), "size": ("class", np.array(sizes))},
    )


# Cross-entropy over (K, M)


def _map(part: Any, session: Session) -> xr.Dataset:
    most, dims = max(part.classes), ("depth", "classes")
    shape = (len(part.depths), len(part.classes))
    found = np.full((3, *shape, 2, len(part.seeds)), np.nan)
    known = np.full((3, *shape), np.nan)
    for i, depth in enumerate(part.depths):
        network, compiled = free_features(most, most, depth, most), None
        for j, classes in enumerate(part.classes):
            known[:, i, j] = _known(classes, depth, part.decay)
            for k, start in enumerate(("random", "simplex")):
                data = _map_problem(part, depth, classes, fitted=start == "simplex")
                compiled = compiled or program(
                    network, "cross_entropy", data, adam(part.steps), part, runs=len(part.seeds)
                )
                name = f"map-{depth}-{classes}-{start}"
                records = _train(compiled, data, part, part.seeds, name, session)
                found[0, i, j, k] = records["loss"][:, -1]
                logits = records["product"][:, -1, :classes, :classes]
                found[1, i, j, k] = logit_rank(logits)
                found[2, i, j, k] = distance(logits, frames.simplex(classes))
    runs = (*dims, "start", "seed")
    return xr.Dataset(
        {
            "loss": (runs, found[0]),
            "rank": (runs, found[1]),
            "simplex_error": (runs, found[2]),
            "simplex": (dims, known[0]),
            "known": (dims, known[1]),
            "known_rank": (dims, known[2]),
        },
        {
            "start": ["random", "simplex"],
            "depth": list(part.depths),
            "classes": list(part.classes),
            "seed": list(part.seeds),
        },
    )


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
    losses.supervised(part.loss, None)
    if part.loss == "cross_entropy" and len(set(part.sizes)) > 1:
        raise ValueError(
            f"{name}: the optimum of cross-entropy is known for equal sizes only, not {part.sizes}"
        )
    x, y = subset(task, part.sizes)
    decay = part.weight_decay, part.feature_decay
    network = backbone(part, task.outputs, x[:1])
    data = problem(y, part.sizes, part.linear, decay, x=x)
    layers = (*(f"hidden_{l}" for l in range(part.model.depth)), "features")
    layers += tuple(f"linear_{l}" for l in range(1, part.linear))

    def optimizer(rate):
        drops = {int(share * part.steps): 0.1 for share in part.drops}
        return optax.adam(optax.piecewise_constant_schedule(rate, drops))

    compiled = program(network, part.loss, data, optimizer, part, layers=layers)
    records = _train(compiled, data, part, (part.seed,), name, session)
    bare = _train(
        compiled,
        data | {"decay": 0 * data["decay"]},
        part,
        (part.seed,),
        f"{name}-undecayed",
        session,
    )
    by_layer = dict.fromkeys(("nc1", "nc2", "nc4"), ("layer",))
    kept = {**MATRICES, **by_layer, "angle": ("class",), "accuracy": ()}
    variables = {key: (("step", *dims), records[key][0]) for key, dims in kept.items()}
    variables |= {
        f"undecayed_{key}": (dims, bare[key][0, -1])
        for key, dims in {**MATRICES, "accuracy": ()}.items()
    }
    expected = prediction(part.loss, part.sizes, part.linear, decay)
    variables |= {f"{key}_predicted": (dims, expected[key]) for key, dims in MATRICES.items()}
    coordinates = {
        "step": np.arange(0, part.steps + 1, part.chunk),
        "layer": list(layers),
        "size": ("class", np.array(part.sizes)),
    }
    made = xr.Dataset(variables, coordinates)
    return made.assign(
        linear=part.linear, squared=part.loss == "squared_error", decay=("kind", list(decay))
    )


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
