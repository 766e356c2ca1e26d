"""Compression in the information plane, and information bounds where both sides are exact.

Networks 12-10-7-5-4-3-2 learn rules on the icosahedron; what their layers say of the 4096 inputs is counted in cells
and under noise, along training. Then gaps of Gaussian classifiers and of the Gibbs algorithm against their bounds.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from scipy import stats

from experiments import checks, grid, losses
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies.information_plane_claims import claims
from experiments.studies.information_plane_figures import figures
from experiments.tasks import sphere
from limits import generalization
from metrics import information

TITLE = "Compression in the information plane, and bounds by information"
PAPER = "Shwartz-Ziv & Tishby 2017, arXiv:1703.00810; He et al. 2024, arXiv:2404.03176"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

SIZES = (12, 10, 7, 5, 4, 3, 2)
NETWORKS = {"tanh": jnp.tanh, "ReLU": jax.nn.relu, "shuffled": jnp.tanh}
BINS, SIGMAS = (10, 30, 100), (0.05, 0.1, 0.2)
# Dimension, standard deviation and rank of Gaussian classes whose means have norm 1
CLASSES = [(d, s, r) for d, s in ((16, 2.0), (16, 1.0), (64, 3.0)) for r in (d, d // 4, 2, 1)]
RULES = {
    "network.rules": checks.several(checks.whole(0), needs=(0, 1)),
    "network.steps": checks.whole(400, 10**7),
    "network.probes": checks.whole(4, 1000),
    "network.batch_size": checks.whole(),
    "network.learning_rate": checks.positive(),
    "network.train_share": checks.real(0.01, 0.99),
    "network.gain": checks.positive(),
    "network.draws": checks.whole(2),
    "network.seeds": checks.several(checks.whole(0), 2),
    "bounds.examples": checks.several(checks.whole(2, 100), ascending=True, needs=(10, 100)),
    "bounds.nets": checks.whole(10),
}


def check(config: Any, task: Any) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing."""
    checks.values(config, RULES)


def total_steps(config: Any) -> int:
    """Networks that are trained, for the progress bar."""
    return len(NETWORKS) * len(config.network.rules) * len(config.network.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains and evaluates the study; returns the labelled measurements."""
    check(config, None)
    return xr.merge([part(config, session) for part in (_networks, _bounds)])


def forward(params: Any, x: jax.Array, activation: Any) -> list[jax.Array]:
    """Activations of the hidden layers, and last the outputs."""
    layers = [x]
    for number, (w, b) in enumerate(params, 1):
        z = layers[-1] @ w + b[None]
        layers.append(z if number == len(params) else activation(z))
    return layers[1:]


def _loss(params, batch, activation):
    return losses.cross_entropy(forward(params, batch[0], activation)[-1], batch[1])


@functools.partial(jax.jit, static_argnums=(5, 6))
def advance(state, first, last, data, key, activation, part):
    """Steps of Adam from number first to before last; part: learning rate and batch size."""
    optimizer = optax.adam(part[0])

    def step(number, state):
        rows = jax.random.fold_in(key, number)
        rows = jax.random.randint(rows, (part[1],), 0, len(data[1]))
        slope = jax.grad(_loss)(state[0], (data[0][rows], data[1][rows]), activation)
        updates, moments = optimizer.update(slope, state[1])
        return optax.apply_updates(state[0], updates), moments

    return jax.lax.fori_loop(first, last, step, state)


@functools.partial(jax.jit, static_argnums=(4, 5))
def measure(params, x, data, told, activation, draws):
    """Activations; noisy information; signal over noise of each layer's gradient in batches of 128."""
    layers, key = forward(params, x, activation), jax.random.key(0)
    # A unit that is always 0 tells nothing: filled up with them all layers share one program.
    wide = [jnp.pad(h, ((0, 0), (0, SIZES[1] - h.shape[1]))) for h in layers[:-1]]
    sigmas = jnp.array([SIGMAS[1]] * len(wide) + [SIGMAS[0], SIGMAS[2]])
    found = jax.lax.map(
        lambda given: information.noisy_information(
            *given, key, label_probabilities=told, draws=draws
        ),
        (jnp.stack([*wide, wide[-1], wide[-1]]), sigmas),
    )
    bits, count = found.input_bits.value, len(wide)
    rows = jax.random.randint(key, (24, 128), 0, len(data[1]))
    slopes = jax.lax.map(
        lambda r: jax.grad(_loss)(params, (data[0][r], data[1][r]), activation), rows
    )
    return layers, {
        "noisy": bits[:count],
        "noisy_error": found.input_bits.error[:count],
        "noisy_label": found.label_bits.value[:count],
        "by_sigma": bits[jnp.array([count, count - 1, count + 1])],
        "signal": jnp.stack([
            jnp.linalg.norm(g.mean(0)) / jnp.linalg.norm(g.std(0, ddof=1)) for g, _ in slopes
        ]),
    }  # fmt: skip


def cells(h: np.ndarray, top: float, bins: int, told: Any = None) -> information.Information:
    """Information of a layer in so many cells a unit, from -top (0 where nothing is negative) to top."""
    edges = np.linspace(-top if h.min() < 0 else 0, max(top, 1e-9), bins + 1)[1:-1]
    return information.binned_information(h, edges, label_probabilities=told)


def _networks(config: Any, session: Session | None) -> xr.Dataset:
    part = config.network
    probes = np.geomspace(part.steps / 200, part.steps, part.probes).round().astype(int)
    probes = [0, *probes.tolist()]
    x, normal = jnp.asarray(2.0 * sphere.patterns() - 1), stats.truncnorm(-2, 2)

    def unit(data, network, rule, seed):
        random, activation = np.random.default_rng([rule, seed]), NETWORKS[network]
        told = sphere.label_probabilities(rule, part.gain)
        y = (random.random(len(told)) < told[:, 1]).astype(int)
        if network == "shuffled":
            y = random.permutation(y)
            told = np.eye(2)[y]
        order = random.permutation(len(y))
        train, test = np.split(order, [int(part.train_share * len(y))])
        data, start = (x[train], jnp.asarray(y[train])), np.random.default_rng(seed)
        params = [
            (jnp.asarray(normal.rvs((m, n), random_state=start) / math.sqrt(m)), jnp.zeros(n))
            for m, n in itertools.pairwise(SIZES)
        ]
        state = params, optax.adam(part.learning_rate).init(params)
        settings, key = (part.learning_rate, part.batch_size), jax.random.key(seed)
        layers, found = [], []
        for first, last in itertools.pairwise([0, *probes]):
            state = advance(state, first, last, data, key, activation, settings)
            made, measured = measure(state[0], x, data, jnp.asarray(told), activation, part.draws)
            layers.append([np.asarray(h) for h in made])
            found.append(jax.tree.map(np.asarray, measured))
        made = {name: np.stack([f[name] for f in found]) for name in found[0]}
        right = np.stack([hs[-1].argmax(1) == y for hs in layers])
        hidden, bins = [hs[:-1] for hs in layers], BINS[1]
        top = 1.0 if activation is jnp.tanh else max(h.max() for hs in hidden for h in hs)
        fixed = [[cells(h, top, bins, told) for h in hs] for hs in hidden]
        bits, label = np.moveaxis(np.array(fixed), -1, 0)
        once = [cells(h, top, bins, np.eye(2)[y]) for h in hidden[-1]]
        whole = information.binned_information(x, [0.0], label_probabilities=told).label_bits
        value, error = made["noisy"][-1, ::2], made["noisy_error"][-1, ::2] + 1e-3
        ends = [information.information_bounds(h, SIGMAS[1]) for h in hidden[-1][::2]]
        low, high = np.transpose(ends)
        # At twice the noise the upper bound is the lower one at the noise itself.
        outside = [np.maximum(low - value, value - high), value - low]
        return made | {
            "binned": bits,
            "moving": [[cells(h, abs(h).max(), bins).input_bits for h in hs] for hs in hidden],
            "by_bins": [[cells(hs[-1], top, n).input_bits for n in BINS] for hs in hidden],
            "accuracy": [right[:, rows].mean(1) for rows in (train, test)],
            "label_share": label[-1, -1] / whole,
            "excess": [
                (label - np.minimum(bits, whole)).max(),
                max(f.label_bits - min(f.input_bits, whole) for f in once),
            ],
            "outside": [(away / error).max() for away in outside],
        }

    along = grid.variables(
        "step layer",
        noisy="I(X;T) under noise of .1, bits",
        noisy_label="I(T;Y) under noise of .1, bits",
        binned="I(X;T) in 30 fixed cells a unit, bits",
        moving="I(X;T) in 30 cells up to the largest value of the moment, bits",
    )
    variables = along | {
        "by_sigma": Variable("I(X;T) of the last hidden layer by noise", "bits", ("step", "sigma")),
        "by_bins": Variable("I(X;T) of the last hidden layer by cells", "bits", ("step", "bins")),
        "signal": Variable("mean over deviation of gradients", dims=("step", "weights")),
        "accuracy": Variable("share of right answers", dims=("split", "step")),
        "label_share": Variable("I(T;Y) over I(X;Y), last hidden layer, end"),
        "excess": Variable("largest I(T;Y) - min(I(X;T), I(X;Y))", "bits", ("labels",)),
        "outside": Variable("distance out of the bounds, standard errors", dims=("bounds_of",)),
    }
    own = {
        "step": Axis(probes, "training step"),
        "layer": Axis(np.arange(1, 6), "hidden layer"),
        "sigma": Axis(list(SIGMAS), "standard deviation of the noise"),
        "bins": Axis(list(BINS), "cells a unit"),
        "weights": Axis(np.arange(1, 7), "layer of weights"),
        "split": Axis(["train", "test"], "examples"),
        "labels": Axis(["probabilities", "one draw"], "labels"),
        "bounds_of": Axis(["own noise", "twice the noise"], "bounds of"),
    }
    axes = {
        "network": Axis(list(NETWORKS), "network"),
        "rule": Axis(list(part.rules), "rule"),
        "seed": Axis(list(part.seeds), "seed"),
    }
    return train_grid(axes, None, grid.Program("networks", unit, variables, own), session)


def _bounds(config: Any, session: Session | None) -> xr.Dataset:
    """Exact gaps of Gaussian and of Gibbs classifiers, and bounds of linear networks layer by layer."""
    part, named = config.bounds, {f"d = {d}, s = {s:g}, r = {r}": (d, s, r) for d, s, r in CLASSES}

    def gaps(data, classes, examples):
        d, s, r = named[classes]
        found = generalization.gaussian_gap(math.sqrt(r / d), s, r, examples)
        known = [generalization.gaussian_information(r, n) for n in (examples, examples**2)]
        return {
            "gap": found.test - found.train,
            "gap_bound": list(map(generalization.gap_bound, known)),
        }

    def identities(data, bound_seed):
        random, last, wrong = np.random.default_rng(bound_seed), np.zeros(2), []
        for gamma in (0.5, 2, 8, 32, 128):
            found = generalization.gibbs(random.random((6, 3)), [0.5, 0.3, 0.2], 4, gamma)
            both = found.mutual + found.lautum, found.mutual
            wrong.append([abs(found.gap - bits / gamma) for bits in both])
        for _ in range(part.nets):
            sizes = itertools.pairwise(random.integers(2, 20, 6))
            net = [random.normal(0, random.choice([0.3, 1, 2]) / m**0.5, (n, m)) for m, n in sizes]
            found = generalization.deep_linear(net, 1.0, 10)
            for k, values in enumerate((found.bound, found.distance)):
                last[k] += values[-1] <= values.min() * (1 + 1e-9)
        return {"gibbs": np.max(wrong, axis=0), "last": last / part.nets}

    grids = (
        (
            {
                "classes": Axis(list(named), "classes"),
                "examples": Axis(list(part.examples), "examples"),
            },
            gaps,
            {
                "gap": Variable("test less training error"),
                "gap_bound": Variable("bound by information", dims=("bound_of",)),
            },
            {"bound_of": Axis(["n", "n^2"], "examples of the bound")},
        ),
        (
            {"bound_seed": Axis([0, 1, 2], "seed")},
            identities,
            {
                "gibbs": Variable("largest error of the gap", dims=("gibbs_by",)),
                "last": Variable("share of networks with the minimum last", dims=("of",)),
            },
            {
                "gibbs_by": Axis(["I + L", "I"], "gap by"),
                "of": Axis(["bound", "distance"], "minimum of"),
            },
        ),
    )
    return xr.merge(
        [
            train_grid(axes, None, grid.Program(f.__name__, f, what, own, steps=0), session)
            for axes, f, what, own in grids
        ]
    )
