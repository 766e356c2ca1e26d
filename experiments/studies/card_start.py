"""What a theory card measures of a model before it is trained: axes, signals, criticality, kernels, spectrum."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import limits
import ntk
from experiments.studies.card_model import (
    NOT_HERE,
    Model,
    as_matrix,
    at_width,
    gram,
    limit,
    moved,
    one_hot,
    parametrized,
    sentence,
    wide_layers,
)
from experiments.train import ONCE
from metrics import kernels

NO_CHAIN = (
    "the recursion of variances is of a chain of layers alike, with one nonlinearity and without "
    "biases drawn at random"
)


def axes(config: Any, model: Model) -> dict[str, Any]:
    """Roles and muP factors of every parameter; outputs against those of the plain network."""
    x, widths = model.x[:8], (config.base_width, config.widths[-1])
    off = np.zeros((len(config.seeds), 2))
    for end, width in enumerate(widths):
        net = parametrized(model, "mup", width, config.base_width)
        plain = at_width(model, width)

        # Apart they compile faster than as one program.
        programs = [
            [jax.jit(f, compiler_options=ONCE) for f in (one.init, one.apply)]
            for one in (net, plain)
        ]
        for row, seed in enumerate(config.seeds):
            key = jax.random.key(seed)
            pair = [apply(moved(init(key)), x) for init, apply in programs]
            change = jax.tree.map(lambda a, b: np.abs(a - b).max(), *pair)
            off[row, end] = max(map(float, jax.tree.leaves(change)))
    rows = net.summary().rows
    return {
        "plain_difference": off,
        "parameter": [row.parameter for row in rows],
        "role": [row.role for row in rows],
        "shape": [" x ".join(map(str, row.shape)) or "()" for row in rows],
        **{k: [getattr(row, k) for row in rows] for k in ("init_std", "multiplier")},
        **{k: [getattr(row, k) for row in rows] for k in ("lr_sgd", "lr_adam")},
    }


def signals(config: Any, model: Model) -> dict[str, Any]:
    """Variance and correlation of two inputs through depth, and growth of a small difference, at initialisation."""
    width, x = config.widths[-1], model.x[: config.signals.examples]
    if x.dtype.kind in "iu":
        raise ValueError("the inputs are tokens, and a small difference of two inputs is none")
    names = wide_layers(model, config.widths)
    net = at_width(model, width)
    axes = ntk.width_axes(model.family, x[:1], call=model.call)
    named = ntk.named_leaves(axes, is_leaf=lambda leaf: isinstance(leaf, ntk.ParamAxes))
    hidden = [name for name, leaf in named.items() if leaf.role == "hidden"]
    step = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)

    def scaled(params, factor):
        powers = {name: factor ** (1 + k) for k, name in enumerate(hidden)}
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: powers.get(ntk.path_name(path), 1.0) * leaf, params
        )

    @functools.partial(jax.jit, compiler_options=ONCE)
    def measure(key, factor):
        params = scaled(net.init(key), factor)
        values, moved = jax.jvp(lambda x: model.features(net, params, x), (x,), (step,))
        rows = {name: values[name].reshape(len(x), -1) for name in names}
        variance = jnp.stack([jnp.square(h).mean() for h in rows.values()])
        growth = jnp.stack([jnp.square(moved[name]).mean() for name in names])
        cosine = jnp.stack([_cosine(h) for h in rows.values()])
        return jnp.stack([variance, growth, cosine])

    def of_seeds(factor):
        return np.array([measure(jax.random.key(seed), factor) for seed in config.seeds])

    own = of_seeds(1.0)
    # The control leads away from criticality: where signals fade, weights fade too.
    factor = 1.5 if own[:, 0, -1].mean() >= own[:, 0, 0].mean() else 1 / 1.5
    found = np.stack([own, of_seeds(factor)])
    return {
        "signal_factor": factor,
        "signal_variance": found[:, :, 0],
        "signal_growth": found[:, :, 1],
        "signal_correlation": found[:, :, 2],
        "signal_layer": names,
    }


def _cosine(rows: jax.Array) -> jax.Array:
    """Mean cosine of different rows."""
    unit = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    count = len(rows)
    return (jnp.square(unit.sum(0)).sum() - count) / (count * (count - 1))


def criticality(config: Any, model: Model) -> dict[str, Any]:
    """At which weights each nonlinearity is critical; in a chain of layers the variances that follow from its own."""
    kernel_fn = limit(config, model).kernel_fn
    nonlinearities = ntk.nonlinearities(kernel_fn)
    if not nonlinearities:
        raise ValueError("the model has no nonlinearity of one preactivation")
    explained = ntk.explain(kernel_fn)
    found = [limits.criticality(f) for f in nonlinearities.values()]
    C_W = [c.C_W or math.nan for c in found]
    own = _own_variance(explained)
    chain = {"data", "weights", "function"} == {row.operation for row in explained.steps}
    predicted = variance = np.full((len(config.seeds), 2), np.nan)
    no_chain = "" if chain and len(nonlinearities) == 1 and math.isfinite(own) else NO_CHAIN
    if not no_chain:
        try:
            activation = next(iter(nonlinearities.values()))
            predicted, variance = _recursion(config, model, activation, own)
        except NOT_HERE as error:  # no outputs of layers, or fewer than two
            no_chain = sentence(error)
    return {
        "activation": list(nonlinearities),
        "critical_kind": [c.kind for c in found],
        "critical_std": np.sqrt(C_W),
        "critical_bias": [math.nan if c.C_b is None else c.C_b for c in found],
        "critical_variance": [math.nan if c.variance is None else c.variance for c in found],
        "own_std": np.full(len(found), np.sqrt(own)),
        "no_chain": no_chain,
        "next_predicted": predicted,
        "next_variance": variance,
    }


def _own_variance(explained: Any) -> float:
    """Variance times fan-in of the hidden weights, nan where layers differ."""
    values = {row.initial_variance for row in explained.parameters if row.role == "weights"}
    return next(iter(values)) if len(values) == 1 else math.nan


def _recursion(config, model, activation, C_W) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the last hidden layer over the one before, predicted at C_W and at 2 C_W; and measured."""
    width, x = config.widths[-1], model.x[: config.signals.examples]
    net = at_width(model, width)
    names = wide_layers(model, config.widths)[-2:]

    @functools.partial(jax.jit, compiler_options=ONCE)
    def variances(key):
        values = model.features(net, net.init(key), x)
        return jnp.stack([jnp.square(values[n]).reshape(len(x), -1).mean(1) for n in names])

    predicted, measured = [], []
    for seed in config.seeds:
        before, after = np.asarray(variances(jax.random.key(seed)), float)
        measured.append([after.mean()] * 2)
        ends = [
            [limits.susceptibilities(activation, K, C_W=c * C_W).K_next for K in before]
            for c in (1, 2)
        ]
        predicted.append(np.mean(ends, axis=1))
    return np.array(predicted), np.array(measured)


def kernel(config: Any, model: Model) -> dict[str, Any]:
    """The kernels of infinite width with their derivation, against those of finite networks."""
    part, x = config.kernel, model.x[: config.kernel.examples]
    kernel_fn, finite_at = limit(config, model)
    between = gram(config, model).between
    theta, nngp = (
        np.asarray(as_matrix(between[k][: len(x), : len(x)]), float) for k in ("ntk", "nngp")
    )
    off = np.full((2, part.seeds, len(config.widths)), np.nan)
    level = off.copy()
    for column, width in enumerate(config.widths):
        net = finite_at(width)

        @functools.partial(jax.jit, compiler_options=ONCE)
        def finite(key, net=net):
            params = net.init(key)
            return as_matrix(ntk.empirical_ntk(net.apply, params, x, trace_axes=(-1,)))

        for seed in range(part.seeds):
            found = np.asarray(finite(jax.random.key(seed)), float)
            for row, k in enumerate((theta, nngp)):
                if k.any():  # the NNGP is zero where the readout starts at zero
                    off[row, seed, column] = np.linalg.norm(found - k) / np.linalg.norm(k)
                    level[row, seed, column] = np.trace(found) / np.trace(k)
    explained = ntk.explain(kernel_fn)
    steps = explained.steps
    return {
        "kernel_distance": off,
        "kernel_level": level,
        "limit_ntk": theta,
        "limit_nngp": nngp,
        **{
            f"step_{k}": [getattr(row, k) or "-" for row in steps]
            for k in ("step", "operation", "what", "positions", "K", "line")
        },
        "law_parameter": [row.parameter for row in explained.parameters],
        "law": [row.initial_law for row in explained.parameters],
        "law_variance": [float(row.initial_variance) for row in explained.parameters],
    }


def spectrum(config: Any, model: Model) -> dict[str, Any]:
    """Eigenvalues of the kernel on the data, and the share of the targets that its top modes hold."""
    count = min(config.spectrum.examples, len(model.x))
    y = one_hot(model, model.y[:count])
    between = gram(config, model).between["ntk"]
    theta = np.asarray(as_matrix(between[:count, :count]), float)
    y = y.reshape(len(theta), -1)
    if len(theta) != y.shape[0]:
        raise ValueError(f"the kernel has {len(theta)} rows and the targets {y.shape[0]}")
    with jax.enable_x64(True):
        found = kernels.task_model_alignment(theta, y, centered=True)
        shuffled = [
            kernels.task_model_alignment(
                theta, np.random.default_rng(seed).permutation(y), centered=True
            ).cumulative_power
            for seed in config.seeds
        ]
    return {
        "eigenvalue": np.asarray(found.eigenvalues),
        "power": np.asarray(found.cumulative_power),
        "shuffled_power": np.asarray(shuffled),
    }
