"""What a theory card measures of a model in training: coordinates, laziness, sharpness, transfer, collapse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import limits
import metrics
import ntk
from experiments import losses
from experiments.studies.card_model import (
    Model,
    as_matrix,
    check_loss,
    curved_loss,
    edges,
    gram,
    limit,
    one_hot,
    parametrized,
    program,
    trained,
    wide_layers,
)
from metrics import kernels

TRANSFER = ("standard", "mup")
MEASURES = ("nc1", "equinorm", "equiangularity", "ncc_accuracy")
UNDECIDED = ("none", "undecided")
TOO_LARGE = 4.0  # times the largest stable rate
CHUNKS = 8  # of the training towards collapse


def coordinates(config: Any, model: Model) -> dict[str, Any]:
    """The coordinate check of three rules, each judged against muP."""
    check_loss(model)
    part, base = config.coordinates, config.coordinates.base_width
    batch = model.x[: part.batch], model.y[: part.batch]
    plain = parametrized(model, "standard", base, base)
    rate = part.learning_rate * float(edges(model, plain, batch, config.seeds).min())
    found = []
    for rule in part.rules:
        found.append(
            limits.coordinate_check(
                lambda n, rule=rule: parametrized(model, rule, n, base),
                list(part.widths),
                batch,
                losses.LOSSES[model.loss],
                jax.random.key(0),
                learning_rate=rate,
                steps=part.steps,
                seeds=part.seeds,
                features=model.features,
            )
        )
    return {
        "coordinate_change": [
            np.exp(np.log(check.change[:, :, -1]).mean(axis=1)).T for check in found
        ],
        "coordinate_slope": [check.change_scaling.exponent[-1] for check in found],
        "coordinate_interval": [check.change_scaling.interval[-1] for check in found],
        "coordinate_verdict": [check.verdict for check in found],
        "coordinate_name": list(part.rules),
        "coordinate_wrong": [", ".join(c.wrong) or UNDECIDED[not c.passed] for c in found],
        "coordinate_layer": list(found[0].layers),
    }


def prediction(config: Any, model: Model) -> dict[str, Any]:
    """Outputs of trained networks on test inputs, against what the limit kernel says of the same initial outputs."""
    check_loss(model)
    part, count = config.prediction, len(config.seeds)
    x, y = model.x[: part.examples], one_hot(model, model.y[: part.examples])
    x_test = model.test[0][: part.examples]
    at_width, (whole, n) = limit(config, model).at_width, gram(config, model)
    within = {name: k[: len(x), : len(x)] for name, k in whole.items()}
    between = {name: k[n : n + len(x_test), : len(x)] for name, k in whole.items()}
    theta = as_matrix(within["ntk"])
    largest = ntk.predict.max_learning_rate(theta, y_train_size=len(theta))
    rate = part.learning_rate * float(largest)

    def measure(net, params, carry, data):
        outputs = {"train": net.apply(params, data["train"][0])}
        return carry, outputs | {"test": net.apply(params, data["test"])}

    off = np.zeros((2, count, len(config.widths)))
    for column, width in enumerate(config.widths):
        net = at_width(width)
        data = {"train": (x, y), "test": x_test, "factors": net.factors}
        descent = program(net, "squared_error", data, count, part.steps, measure)
        found = trained(descent, data, [rate] * count, list(config.seeds), 1)
        for row, name in enumerate(("ntk", "nngp")):
            # The loss sums over outputs, where the prediction's takes their mean.
            predict = ntk.predict.gradient_descent_mse(
                within[name], y, rate * y.shape[-1], dtype=jnp.float64
            )
            for seed in range(count):
                start, end = found["test"][seed]
                ends = found["train"][seed, 0], start, between[name]
                _, expected = predict(float(part.steps), *ends)
                distance = np.linalg.norm(end - np.asarray(expected, float))
                off[row, seed, column] = distance / np.linalg.norm(end - start)
    return {"prediction_distance": off}


def kernel_of_descent(net: Any, params: Any, x: Any) -> Any:
    """Tangent kernel of gradient descent, with the learning-rate factors of the rule, which may be traced."""
    root = jax.tree.map(jnp.sqrt, jax.tree.map(jnp.asarray, net.lr_scale("sgd")))
    held = jax.tree.map(lambda p, r: p / jnp.where(r == 0, 1, r), params, root)
    return ntk.empirical_ntk(
        lambda p, x: net.apply(jax.tree.map(jnp.multiply, root, p), x), held, x, trace_axes=(-1,)
    )


def laziness(config: Any, model: Model) -> dict[str, Any]:
    """How far training moves the kernel, under the NTK rule and under muP."""
    part, base, count = config.laziness, config.base_width, len(config.seeds)
    x, y = model.x[: part.examples], model.y[: part.examples]
    plain = parametrized(model, "standard", base, base)
    rate = part.learning_rate * float(edges(model, plain, (x, y), config.seeds).min())
    labels = one_hot(model, y).reshape(-1, model.outputs)

    def measure(net, params, carry, data):
        return carry, {"kernel": as_matrix(kernel_of_descent(net, params, data["train"][0]))}

    change = np.zeros((2, count, len(config.widths)))
    aligned, target = np.zeros_like(change), np.zeros((*change.shape, 2))
    for column, width in enumerate(config.widths):
        nets = [parametrized(model, rule, width, base) for rule in ("ntk", "mup")]
        data = {"train": (x, y), "factors": nets[0].factors}
        descent = program(nets[0], model.loss, data, count, part.steps, measure)
        for row, net in enumerate(nets):
            data = data | {"factors": net.factors}
            found = trained(descent, data, [rate] * count, list(config.seeds), 1)
            for seed in range(count):
                before, after = found["kernel"][seed].astype(np.float32)
                place = row, seed, column
                change[place] = kernels.relative_change(after, before)
                aligned[place] = kernels.alignment(after, before)
                target[place] = [kernels.target_alignment(k, labels) for k in (before, after)]
    return {"kernel_change": change, "kernel_alignment": aligned, "target_alignment": target}


def sharpness(config: Any, model: Model) -> dict[str, Any]:
    """Sharpness along gradient descent at a rate below 2 over its start, and what the loss does at twice 2 over it."""
    part, count = config.sharpness, len(config.seeds)
    net = parametrized(model, "standard", config.widths[0], config.base_width)
    batch = model.x[: part.examples], model.y[: part.examples]
    largest = edges(model, net, batch, config.seeds)
    rates = [*(part.learning_rate * largest), *(TOO_LARGE * largest)]

    def top(net, params, data, start, steps):
        loss = curved_loss(model, net.apply)
        return metrics.sharpness(loss, params, data["train"], start=start, num_steps=steps)

    def begin(net, params, key, data):
        return top(net, params, data, key, 12).vector

    def measure(net, params, start, data):
        found = top(net, params, data, start, 6)
        loss = losses.supervised(model.loss, net.apply)(params, data["train"])
        return found.vector, {"loss": loss, "sharpness": found.value[0]}

    data = {"train": batch, "factors": net.factors}
    descent = program(net, model.loss, data, 2 * count, part.chunk, measure, start=begin)
    chunks = part.steps // part.chunk
    found = trained(descent, data, rates, list(config.seeds) * 2, chunks)
    loss, mean = (found[name].reshape(2, count, -1) for name in ("loss", "batch_loss"))
    # What leaves the range of its numbers has risen without bound.
    rise = np.maximum(loss[:, :, 1], mean[:, :, 1]) / loss[:, :, 0]
    rise = np.nan_to_num(rise, nan=1e30, posinf=1e30)
    return {
        "sharpness": found["sharpness"][:count],
        "sharpness_loss": loss[0],
        "sharpness_rate": rates[:count],
        "early_rise": rise,
    }


def transfer(config: Any, model: Model) -> dict[str, Any]:
    """Loss after a short training with Adam against the learning rate, at the smallest and at the largest width."""
    check_loss(model)
    part, count, chunks = config.transfer, len(config.seeds), 10
    rates = 2.0 ** np.linspace(*part.log2_rates)
    runs = np.repeat(rates, count).tolist(), list(config.seeds) * len(rates)
    found = np.zeros((len(TRANSFER), 2, len(rates), count))
    for column, width in enumerate((config.widths[0], config.widths[-1])):
        nets = [parametrized(model, rule, width, config.base_width) for rule in TRANSFER]
        data = {"train": (model.x, model.y), "factors": nets[0].factors}
        descent = program(
            nets[0],
            model.loss,
            data,
            count * len(rates),
            part.steps // chunks,
            lambda net, params, carry, data: (carry, {}),
            optimizer=optax.adam,
            batch=part.batch,
        )
        for row, net in enumerate(nets):
            records = trained(descent, data | {"factors": net.factors}, *runs, chunks)
            last = records["batch_loss"][:, -2:].mean(1)
            found[row, column] = last.reshape(len(rates), count)
    return {"transfer_loss": found}


def collapse(config: Any, model: Model) -> dict[str, Any]:
    """Collapse of the last layer that grows with the width, before and after training, and with labels redrawn."""
    check_loss(model)
    if model.y.dtype.kind not in "iu" or model.y.ndim != 1:
        raise ValueError("the targets are no classes of whole inputs: collapse is of class means")
    part, rng, count = config.collapse, np.random.default_rng(0), len(config.seeds)
    order, per = rng.permutation(len(model.y)), max(part.examples // model.outputs, 2)
    chosen = np.concatenate([order[model.y[order] == k][:per] for k in range(model.outputs)])
    last = wide_layers(model, config.widths, least=1)[-1]
    net = parametrized(model, "standard", config.widths[0], config.base_width)

    def measure(net, params, carry, data):
        inputs, labels = data["train"]
        h = model.features(net, params, inputs)[last].reshape(len(inputs), -1)
        values = []
        for of in (labels, data["redrawn"]):
            found = metrics.neural_collapse(h, of, model.outputs)
            frame = found.nc2.equinorm, found.nc2.equiangularity
            values.append([found.nc1.value, *frame, found.ncc_accuracy.value])
        right = losses.accuracy(net.apply(params, inputs), labels)
        return carry, {"collapse": jnp.asarray(values), "accuracy": right}

    data = {"train": (model.x[chosen], model.y[chosen]), "factors": net.factors}
    data["redrawn"] = rng.permutation(data["train"][1])
    steps = part.steps // CHUNKS
    adam = program(net, model.loss, data, count, steps, measure, optimizer=optax.adam)
    found = trained(adam, data, [part.learning_rate] * count, list(config.seeds), CHUNKS)
    return {
        "collapse": found["collapse"],
        "collapse_accuracy": found["accuracy"],
        "collapse_layer": last,
    }
