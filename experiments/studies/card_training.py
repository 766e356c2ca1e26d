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
    edge,
    limit,
    loss_of,
    one_hot,
    parametrized,
    trained,
    wide_layers,
)
from experiments.studies.ntk_convergence import tangent_kernel
from metrics import kernels

RULES = ("standard", "ntk", "mup")
MEASURES = ("nc1", "equinorm", "equiangularity", "ncc_accuracy")
CHUNKS = 8  # of the training towards collapse


def coordinates(config: Any, model: Model) -> dict[str, Any]:
    """The coordinate check of three rules, each judged against muP."""
    part, base = config.coordinates, config.base_width
    batch = model.x[: part.batch], model.y[: part.batch]
    plain = parametrized(model, "standard", base, base)
    rate, found = part.learning_rate * edge(model, plain, batch), []
    for rule in RULES:
        found.append(
            limits.coordinate_check(
                lambda n, rule=rule: parametrized(model, rule, n, base),
                list(config.widths),
                batch,
                losses.LOSSES[model.loss],
                jax.random.key(0),
                learning_rate=rate,
                steps=part.steps,
                seeds=len(config.seeds),
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
        "coordinate_name": list(RULES),
        "coordinate_layer": list(found[0].layers),
    }


def prediction(config: Any, model: Model) -> dict[str, Any]:
    """Outputs of trained networks on test inputs, against what the limit kernel says of the same initial outputs."""
    part, count = config.prediction, config.prediction.examples
    x, y = model.x[:count], one_hot(model, model.y[:count])
    x_test = model.test[0][:count]
    if model.unfit:
        raise ValueError(model.unfit)
    kernel_fn, at_width = limit(config, model)
    between = {k: np.asarray(kernel_fn(x_test, x, k)) for k in ("ntk", "nngp")}
    within = {k: np.asarray(kernel_fn(x, None, k)) for k in ("ntk", "nngp")}
    rows = len(as_matrix(within["ntk"]))
    rate = part.learning_rate * float(
        ntk.predict.max_learning_rate(as_matrix(within["ntk"]), y_train_size=rows)
    )
    data, count = {"train": (x, y), "test": x_test}, len(config.seeds)
    off = np.zeros((2, count, len(config.widths)))
    for column, width in enumerate(config.widths):
        net = at_width(width)

        def measure(params, carry, rate, data, net=net):
            ends = net.apply(params, data["train"][0]), net.apply(params, data["test"])
            return carry, dict(zip(("train", "test"), ends))

        loss = losses.supervised("squared_error", net.apply)
        seeds = list(config.seeds)
        found = trained(net, loss, data, [rate] * count, seeds, part.steps, 1, measure)
        for row, name in enumerate(("ntk", "nngp")):
            # The loss sums over outputs, where the prediction's takes their mean.
            predict = ntk.predict.gradient_descent_mse(
                within[name], y, rate * y.shape[-1], dtype=jnp.float64
            )
            for seed in range(count):
                start = found["train"][seed, 0], found["test"][seed, 0]
                _, expected = predict(float(part.steps), *start, between[name])
                moved = np.linalg.norm(found["test"][seed, 1] - start[1])
                off[row, seed, column] = np.linalg.norm(found["test"][seed, 1] - expected) / moved
    return {"prediction_distance": off}


def laziness(config: Any, model: Model) -> dict[str, Any]:
    """How far training moves the kernel, under the NTK rule and under muP."""
    part, base = config.laziness, config.base_width
    x, y = model.x[: part.examples], model.y[: part.examples]
    plain = parametrized(model, "standard", base, base)
    rate, count = part.learning_rate * edge(model, plain, (x, y)), len(config.seeds)
    change = np.zeros((2, count, len(config.widths)))
    aligned, target = np.zeros_like(change), np.zeros((2, count, len(config.widths), 2))
    labels = one_hot(model, y).reshape(-1, model.outputs)
    labels = labels.reshape(len(labels), -1)
    for row, rule in enumerate(("ntk", "mup")):
        for column, width in enumerate(config.widths):
            net = parametrized(model, rule, width, base)
            of_descent = tangent_kernel(net)

            def measure(params, carry, rate, data, of_descent=of_descent):
                return carry, {"kernel": as_matrix(of_descent(params, data["train"][0], None))}

            loss, seeds = loss_of(model, net), list(config.seeds)
            data = {"train": (x, y)}
            found = trained(net, loss, data, [rate] * count, seeds, part.steps, 1, measure)
            for seed in range(count):
                before, after = found["kernel"][seed].astype(np.float32)
                change[row, seed, column] = kernels.relative_change(after, before)
                aligned[row, seed, column] = kernels.alignment(after, before)
                target[row, seed, column] = [
                    kernels.target_alignment(k, labels) for k in (before, after)
                ]
    return {"kernel_change": change, "kernel_alignment": aligned, "target_alignment": target}


def sharpness(config: Any, model: Model) -> dict[str, Any]:
    """Sharpness along gradient descent at a rate below 2 over its start, and the loss at two rates."""
    part, width = config.sharpness, config.widths[0]
    net = parametrized(model, "standard", width, config.base_width)
    batch = model.x[: part.examples], model.y[: part.examples]
    loss, data = loss_of(model, net), {"train": batch}
    largest = edge(model, net, batch)
    rates = [part.learning_rate * largest, 2 * largest]
    count, seeds = len(config.seeds), list(config.seeds)

    def first(params, key, data):
        return metrics.sharpness(loss, params, data["train"], start=key, num_steps=12).vector

    def measure(params, start, rate, data):
        top = metrics.sharpness(loss, params, data["train"], start=start, num_steps=6)
        values = {"loss": loss(params, data["train"]), "sharpness": top.value[0]}
        return top.vector, values

    chunks = part.steps // part.chunk
    runs = [rates[0]] * count, seeds, part.steps, chunks, measure
    found = trained(net, loss, data, *runs, start=first)

    def height(params, carry, rate, data):
        return carry, {"loss": loss(params, data["train"])}

    early = trained(net, loss, data, np.repeat(rates, count).tolist(), seeds * 2, 5, 5, height)
    early_loss = early["loss"].reshape(2, count, -1)
    start = early_loss[:, :, :1]
    return {
        "sharpness": found["sharpness"],
        "sharpness_loss": found["loss"],
        "sharpness_rate": rates[0],
        # A run that leaves the range of its numbers has risen without bound.
        "early_rise": np.nan_to_num(early_loss / start, nan=1e30, posinf=1e30).max(-1),
    }


def transfer(config: Any, model: Model) -> dict[str, Any]:
    """Loss after a short training with Adam against the learning rate, at the smallest and at the largest width."""
    part, count = config.transfer, len(config.seeds)
    rates = 2.0 ** np.linspace(*part.log2_rates)
    data, found = {"train": (model.x, model.y)}, []
    runs = np.repeat(rates, count).tolist(), list(config.seeds) * len(rates)
    for rule in ("standard", "mup"):
        for width in (config.widths[0], config.widths[-1]):
            net = parametrized(model, rule, width, config.base_width)
            records = trained(
                net,
                loss_of(model, net),
                data,
                *runs,
                part.steps,
                max(part.steps // 10, 1),
                lambda params, carry, rate, data: (carry, {}),
                optimizer=optax.adam,
                batch=part.batch,
            )
            found.append(records["batch_loss"][:, -2:].mean(1).reshape(len(rates), count))
    return {"transfer_loss": np.reshape(found, (2, 2, len(rates), count))}


def collapse(config: Any, model: Model) -> dict[str, Any]:
    """Collapse of the last layer that grows with the width, before and after training, and with labels redrawn."""
    part, width = config.collapse, config.widths[0]
    if model.y.dtype.kind not in "iu" or model.y.ndim != 1:
        raise ValueError("the targets are no classes of whole inputs: collapse is of class means")
    rng = np.random.default_rng(0)
    order = rng.permutation(len(model.y))
    per = max(part.examples // model.outputs, 2)
    chosen = np.concatenate([order[model.y[order] == k][:per] for k in range(model.outputs)])
    x, y = model.x[chosen], model.y[chosen]
    last = wide_layers(model, config.widths)[-1]
    net = parametrized(model, "standard", width, config.base_width)

    def measure(params, carry, rate, data):
        inputs, labels = data["train"]
        h = model.features(net, params, inputs)[last].reshape(len(inputs), -1)
        found = [metrics.neural_collapse(h, of, model.outputs) for of in (labels, data["redrawn"])]
        values = [
            [c.nc1.value, c.nc2.equinorm, c.nc2.equiangularity, c.ncc_accuracy.value] for c in found
        ]
        right = losses.accuracy(net.apply(params, inputs), labels)
        return carry, {"collapse": jnp.asarray(values), "accuracy": right}

    data = {"train": (x, y), "redrawn": rng.permutation(y)}
    count = len(config.seeds)
    found = trained(
        net,
        loss_of(model, net),
        data,
        [part.learning_rate] * count,
        list(config.seeds),
        part.steps,
        CHUNKS,
        measure,
        optimizer=optax.adam,
    )
    return {
        "collapse": found["collapse"],
        "collapse_accuracy": found["accuracy"],
        "collapse_layer": last,
    }
