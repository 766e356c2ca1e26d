"""Scores are learnt by regression on noisy labels: kernels must stop early, networks must see many images.

Kernel gradient flow with the NTK of two layers fits x_0 from z = x_0 + s e against the exact E[x_0 | z] of a mixture;
finite networks follow it. Pairs of networks that denoise disjoint sets of images memorise few and agree on many. On
MNIST 700 images are too few of 784 pixels (the gap is 0.14 of the noise), 3900 are enough (0.02); the best linear
denoiser is not beaten there by 256 units and 2500 steps (0.015 worse).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import models
from experiments import checks, grid, tasks
from experiments.grid import Axis, Variable, train_grid
from experiments.loop import Session
from experiments.studies import score_estimation_figures as drawn
from experiments.studies.score_estimation_claims import LEVELS, RISKS, claims
from experiments.tasks import mixture
from experiments.train import fit
from metrics import denoising
from ntk import predict, stax

TITLE = "Scores are learnt by stopping early, and from many images"
PAPER = "Han et al. 2024, arXiv:2401.15604; Kadkhodaie et al. 2024, arXiv:2310.02557"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

PLACES = np.linspace(-2.5, 2.5, 61, dtype=np.float32)[:, None]
GROWING = partial(checks.several, least=2, ascending=True)
RULES = {
    "flow.noises": checks.several(checks.positive(), needs=LEVELS),
    "flow.times": GROWING(checks.positive()),
    "wide.examples": checks.whole(2),
    "denoisers.batch_size": checks.whole(),
    "denoisers.width": checks.WIDTH,
    "wide.widths": checks.widths(2),
    **dict.fromkeys(("flow.examples", "denoisers.images"), GROWING(checks.whole(2))),
    **dict.fromkeys(("flow.seeds", "wide.seeds", "denoisers.seeds"), checks.SEEDS),
    **dict.fromkeys(("wide.steps", "denoisers.steps"), checks.STEPS),
    **dict.fromkeys(("wide.noise", "wide.learning_rate"), checks.positive()),
    **dict.fromkeys(("denoisers.noise", "denoisers.learning_rate"), checks.positive()),
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through (ValueError with its key)."""
    checks.values(config, RULES)
    if task.train.x.dtype.kind != "f":
        raise ValueError(f"config.task.name is {task.name!r}: noise is added to real inputs only")
    half, wanted = len(task.train.x) // 2, config.denoisers.images
    if max(wanted) > half:
        checks.refuse("denoisers.images", wanted, f"at most {half}: two sets are disjoint")
    if checks.context("mixture", tasks.load, config.mixture).outputs != 1:
        checks.refuse("mixture.centres", config.mixture.centres, "rows of one number")
    checks.memory("config.flow.examples: the kernel", 6.0 * max(config.flow.examples) ** 2, 8)


def total_steps(config: Any) -> int:
    """Flows, networks and pairs, for the progress bar."""
    flow, wide, pairs = config.flow, config.wide, config.denoisers
    flows = len(flow.noises) * len(flow.examples) * len(flow.seeds)
    return flows + len(wide.widths) * len(wide.seeds) + len(pairs.images) * len(pairs.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Trains the study; returns the labelled measurements, refusing what `check` refuses."""
    task = tasks.load(config.task)
    check(config, task)
    parts = _flows(config, session), _networks(config, session), _pairs(config, task, session)
    return xr.merge(parts)


def network(width: int) -> Any:
    """Two layers with the first biases, in the NTK parametrization."""
    return stax.serial(stax.Dense(width, b_std=1.0), stax.Relu(), stax.Dense(1))


def points(config: Any, noise: float, examples: int, seed: int) -> tasks.Task:
    """Of the mixture, with these in place of the configuration's."""
    changes = {"noise": noise, "num_train": examples, "seed": seed}
    return tasks.load(type(config)(config.mixture.to_dict() | changes), "mixture")


def _flows(config: Any, session: Session | None) -> xr.Dataset:
    part, of = config.flow, (config.mixture.centres, config.mixture.deviation)

    def unit(data, noise, examples, seed):
        _, (z, x), (z_test, exact), *_ = points(config, noise, examples, seed)
        # Beside the points their exact means: a loss of two outputs has half the rate.
        targets = np.concatenate([x, mixture.posterior_mean(z, *of, noise)], axis=1)
        with jax.enable_x64(True):
            z, every = (jnp.asarray(a, float) for a in (z, np.concatenate([z_test, PLACES])))
            kernel, read = (network(1).kernel_fn(a, z, "ntk") for a in (z, every))
            flow = predict.gradient_descent_mse(kernel, jnp.asarray(targets, float), 2.0)
            found = np.asarray(flow(np.array(part.times), None, 0.0, read))
        error = ((found[:, : len(exact)] - exact) ** 2).mean(axis=1).T
        shown = (found[[error[0].argmin(), -1], len(exact) :, 0] - PLACES.T) / noise**2
        return {"error": error, "score": [*mixture.score(PLACES, *of, noise).T, *shown]}

    variables = {
        "error": Variable("mean squared distance from E[x_0 | z]", dims=("targets", "time")),
        "score": Variable("score", dims=("curve", "place")),
    }
    own = {
        "targets": Axis(["noisy", "exact"], "targets of the training points"),
        "time": Axis(list(part.times), "training time"),
        "curve": Axis(["exact", "best time", "end"], "what the score is of"),
        "place": Axis(PLACES[:, 0], "noisy point z"),
    }
    axes = {
        "noise": Axis(list(part.noises), "standard deviation of the noise"),
        "examples": Axis(list(part.examples), "examples n"),
        "seed": Axis(list(part.seeds), "seed of the points"),
    }
    return train_grid(axes, None, grid.Program("flow", unit, variables, own), session)


def _networks(config: Any, session: Session | None) -> xr.Dataset:
    part = config.wide
    x, y = points(config, part.noise, part.examples, 0).train
    with jax.enable_x64(True):
        z, known = np.float64(x), []
        for kind in ("ntk", "nngp"):
            kernel, read = (network(1).kernel_fn(a, z, kind) for a in (z, np.float64(PLACES)))
            flow = predict.gradient_descent_mse(kernel, y, part.learning_rate)
            known.append(np.asarray(flow(float(part.steps), None, 0.0, read)))

    def unit(data, width, net_seed):
        init, apply, _ = network(width)
        start = init(jax.random.key(net_seed), x.shape)[1]

        def loss(params, _):
            return 0.5 * jnp.mean((apply(params, x) - apply(start, x) - y) ** 2)

        given = start, optax.sgd(part.learning_rate), jax.random.key(0), part.steps
        found = apply(jax.jit(lambda: fit(loss, *given))(), PLACES) - apply(start, PLACES)
        return {"distance": [np.sqrt(np.mean((found - f) ** 2)) / f.std() for f in known]}

    what = Variable("distance from the flow, over its deviation", dims=("kernel",))
    own = {"kernel": Axis(["NTK", "NNGP"], "kernel of the flow")}
    axes = {
        "width": Axis(list(part.widths), "width"),
        "net_seed": Axis(list(part.seeds), "seed of the network"),
    }
    return train_grid(axes, None, grid.Program("wide", unit, {"distance": what}, own), session)


def _pairs(config: Any, task: tasks.Task, session: Session | None) -> xr.Dataset:
    part, s = config.denoisers, config.denoisers.noise
    pool, test = (a.x.reshape(len(a.x), -1) for a in (task.train, task.test))
    pool, test = pool - pool.mean(0), test - pool.mean(0)
    dim, covariance = pool.shape[1], np.cov(pool.T)
    wiener = np.linalg.solve(covariance + s**2 * np.eye(dim), covariance)
    linear = ((test - test @ wiener) ** 2).sum(1).mean() + s**2 * (wiener**2).sum()
    net = models.MLP(width=part.width, depth=2, outputs=dim, use_bias=False)
    optimizer = optax.adam(optax.cosine_decay_schedule(part.learning_rate, part.steps))

    def noised(x, key):
        return x + s * jax.random.normal(key, x.shape)

    @jax.jit
    def train(x, key):
        def loss(params, key):
            rows, away = jax.random.split(key)
            clean = x[jax.random.randint(rows, (part.batch_size,), 0, len(x))]
            return jnp.mean(jnp.sum((net.apply(params, noised(clean, away)) - clean) ** 2, -1))

        first, every = jax.random.split(key)
        return fit(loss, net.init(first, x[:1]), optimizer, every, part.steps)

    def shifted(params, y):
        return net.apply(params, y + 0.1)  # as biases of the first layer would

    def unit(data, images, pair_seed):
        order = np.random.default_rng(pair_seed).permutation(len(pool))
        sets = [jnp.asarray(pool[order[k : k + images]]) for k in (0, len(pool) // 2)]
        keys = jax.random.split(jax.random.key(pair_seed), 3)
        fitted = [train(x, key) for x, key in zip(sets, keys)]
        noisy = noised(test, keys[2])
        one, other = (net.apply(p, noisy) for p in fitted)
        lengths = (jnp.linalg.norm(y, axis=-1) for y in (one, other))
        often = jnp.tile(sets[0], (-(-len(test) // images), 1))
        seen = ((net.apply(fitted[0], noised(often, keys[2])) - often) ** 2).sum(-1).mean()
        error = ((one - test) ** 2).sum(-1).mean()
        stein = denoising.sure(net.apply, fitted[0], noisy, s).value
        bare = ((one - noisy) ** 2).sum(-1).mean() - dim * s**2
        read = partial(denoising.jacobian_spectrum, params=fitted[0], noisy=noisy[:50])
        spectra = [read(f) for f in (net.apply, shifted)]
        return {
            "risk": np.array([seen, error, linear]) / (dim * s**2),
            "cosine": (jnp.sum(one * other, -1) / np.prod([*lengths], axis=0)).mean(),
            "stein": [abs(estimate / error - 1) for estimate in (stein, bare)],
            "homogeneity": [found.homogeneity.max() for found in spectra],
            "asymmetry": spectra[0].asymmetry.mean(),
        }

    variables = {
        "risk": Variable("error of denoised images, over the noise", dims=("of",)),
        "cosine": Variable("cosine of the outputs of two denoisers"),
        "stein": Variable("relative error of Stein's estimate", dims=("variant",)),
        "homogeneity": Variable("relative difference of J(y) y and f(y)", dims=("variant",)),
        "asymmetry": Variable("antisymmetric over symmetric part of the Jacobian"),
    }
    own = {
        "of": Axis(list(RISKS), "error of what"),
        "variant": Axis(["right", "wrong"], "variant"),
    }
    axes = {
        "images": Axis(list(part.images), "images of each denoiser"),
        "pair_seed": Axis(list(part.seeds), "seed of the pair"),
    }
    return train_grid(axes, None, grid.Program("pairs", unit, variables, own), session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    names = "early_stopping", "learnt_score", "denoisers"
    return {name: getattr(drawn, name)(data) for name in names}
