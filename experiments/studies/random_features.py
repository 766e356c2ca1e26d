"""More is better: random-feature regression, its learning curves without training, and layers as random features.

Ridge regression on Gaussian random features against the eigenframework of Simon et al. (more features, more samples,
the right amount of overfitting); learning curves of images predicted from the spectrum of an infinite network's kernel;
a layer's random features of Sehanobish et al., alone and bundled. No network is trained.

The largest of sixty distances in the training error misses its bound by the error of the measurement, not by theory:
it is .20 +- .08 at n = k = 128 and ridge .001, where the training error is nearly zero, and .14 +- .08 in another cell
on 64 other trials; over all cells the distances are as large as their standard errors (root mean squares 1.3 and 1.0).

Least squares on 256 features reaches the .97 asked of it on digits; of 784 pixels of MNIST it classifies .80, from the
pixels themselves .77. All other verdicts are the same there.
"""

# One file: every experiment is a regression on features, by the same functions and draws.

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import jax
import numpy as np
import xarray as xr

import metrics
from experiments import checks, tasks
from experiments.grid import Axis, Program, Variable, train_grid
from experiments.loop import Session
from experiments.studies import random_features_figures as drawn
from experiments.studies.random_features_claims import claims
from limits import eigenlearning
from ntk import stax
from ntk.finite import layer_features as features

TITLE = "More is better in random-feature regression"
PAPER = "Simon et al. 2024, arXiv:2311.14646; Sehanobish et al. 2024, arXiv:2310.13225"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

_COUNTS = checks.several(checks.whole(2), 2, ascending=True)
_RIDGES = checks.several(checks.real(0), 2, ascending=True)
_SEEDS = checks.several(checks.whole(0), 2)
RULES = {
    "gaussian.modes": checks.whole(2),
    "gaussian.exponent": checks.positive(10),
    "gaussian.noise": checks.real(0),
    "gaussian.fixed": checks.whole(2),
    "gaussian.counts": _COUNTS,
    "gaussian.ridges": checks.several(checks.positive(), 2, ascending=True),
    "gaussian.seeds": _SEEDS,
    "learnability.modes": checks.whole(2),
    "learnability.samples": checks.whole(2),
    "learnability.ridges": _RIDGES,
    "learnability.seeds": _SEEDS,
    "phase.alpha": checks.several(checks.real(1, inside=True), needs=(2.0,)),
    "phase.beta": checks.several(checks.real(1, 3, inside=True), ascending=True),
    "phase.noise": checks.several(checks.real(0), needs=(0.0,)),
    "phase.samples": checks.whole(100, 1000),
    "images.points": checks.whole(100),
    "images.counts": checks.several(checks.whole(2), ascending=True, needs=(100,)),
    "images.ridges": checks.several(checks.real(0), ascending=True, needs=(0.0, 0.2)),
    "images.noise": checks.several(checks.real(0), 2, ascending=True, needs=(0.0,)),
    "images.seeds": _SEEDS,
    "layer.inputs": checks.whole(2),
    "layer.norms": checks.several(checks.positive(10), ascending=True),
    "layer.draws": checks.whole(100),
    "layer.features": checks.several(checks.whole(2), 2, ascending=True, needs=(256,)),
    "layer.train": checks.whole(10),
    "layer.seeds": _SEEDS,
    "layer.bundle_seeds": _SEEDS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; computes nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.classes(task)
    there = len(task.train.x) + len(task.test.x)
    if not 4 * config.images.counts[-1] <= config.images.points <= there:
        allowed = f"at least 4 x {config.images.counts[-1]}, the largest of counts, and at most {there}, the images"
        checks.refuse("images.points", config.images.points, allowed)
    if config.layer.train >= config.images.points:
        checks.refuse("layer.train", config.layer.train, f"below points, {config.images.points}")
    part = config.gaussian
    if part.fixed not in part.counts[1:]:
        checks.refuse("gaussian.fixed", part.fixed, f"one of counts after the first: {part.counts}")
    checks.memory("config.gaussian: the features", 3.0 * part.modes * part.counts[-1], 8)
    checks.memory("config.images: kernels", 6.0 * config.images.points**2, 8)


def total_steps(config: Any) -> int:
    """Regressions of the whole study, for the progress bar."""
    part, layer = config.gaussian, config.layer
    return (
        2 * len(part.counts) * len(part.seeds)
        + len(config.learnability.seeds)
        + len(config.images.noise) * len(config.images.seeds)
        + len(layer.features) * len(layer.seeds)
    )


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/random_features.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: an unknown task, or values that the rules refuse.
    """
    task = tasks.load(config.task)
    check(config, task)
    parts = (_gaussian, _learnability, _phase)
    made = [part(config, session) for part in parts]
    words = {name: config.gaussian[name] for name in ("modes", "exponent", "noise", "fixed")}
    return xr.merge([*made, *_images(config, task, session)]).assign_attrs(words)


# Gaussian random features


def regress(part: Any, n: int, k: int, ridges: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Test error (exact, given the fit), training error and its cross-validation at every ridge."""
    random = np.random.default_rng([n, k, seed])
    l = np.arange(1, part.modes + 1.0) ** -part.exponent
    target = np.sqrt(l)
    x = random.normal(size=(n, part.modes))
    weights = np.sqrt(l)[:, None] * random.normal(size=(part.modes, k)) / math.sqrt(k)
    y = x @ target + math.sqrt(part.noise) * random.normal(size=n)
    made = x @ weights
    values, vectors = np.linalg.eigh(made @ made.T)
    values = np.maximum(values, 0)
    turned = vectors.T @ y
    duals = vectors @ (turned[:, None] / (values[:, None] + ridges))
    off = target[:, None] - weights @ (made.T @ duals)
    inverse = (1 / (values[:, None] + ridges)).mean(0)
    return {
        "test": (off**2).sum(0) + part.noise,
        "train": ((ridges * duals) ** 2).mean(0),
        "estimated": (duals**2).mean(0) / inverse**2,
    }


def _gaussian(config: Any, session: Session | None) -> xr.Dataset:
    part = config.gaussian
    l = np.arange(1, part.modes + 1.0) ** -part.exponent
    options = {"noise": part.noise}

    def sizes(sweep, count):
        return (part.fixed, count) if sweep == "features" else (count, part.fixed)

    @functools.cache
    def best(n, k):
        return float(eigenlearning.optimal_ridge(l, l, n, features=k, **options).ridge)

    def theory(part, sweep, count):
        n, k = sizes(sweep, count)
        ridges = np.array([*part.ridges, best(n, k)])
        found = eigenlearning.random_features(l, l, n, k, ridge=ridges, **options)
        kernel = eigenlearning.kernel_regression(l, l, n, ridge=ridges, **options)
        own = {"theory_test": found.test, "theory_train": found.train, "kernel_test": kernel.test}
        return {name: v[:-1] for name, v in own.items()} | {"theory_best": found.test[-1]}

    def unit(part, sweep, count, rf_seed):
        n, k = sizes(sweep, count)
        found = regress(part, n, k, np.array([*part.ridges, best(n, k)]), rf_seed)
        return {f"rf_{name}": v[:-1] for name, v in found.items()} | {"rf_best": found["test"][-1]}

    def variables(prefix, names, words):
        return {
            f"{prefix}_{n}": Variable(f"{what}{words}", dims=("rf_ridge",))
            for n, what in names.items()
        }

    risks = {"test": "test error", "train": "training error"}
    ridge = {"rf_ridge": Axis(list(part.ridges), "ridge")}
    axes = {
        "sweep": Axis(["features", "samples"], "what is counted"),
        "count": Axis(list(part.counts), "features or samples"),
    }
    known = variables("theory", risks, ", predicted")
    known["kernel_test"] = Variable("test error, predicted for the kernel", dims=("rf_ridge",))
    known["theory_best"] = Variable("test error at the best ridge, predicted")
    measured = variables("rf", risks | {"estimated": "test error, by cross-validation"}, "")
    measured["rf_best"] = Variable("test error at the ridge predicted to be best")
    seeds = {"rf_seed": Axis(list(part.seeds), "seed")}
    return xr.merge(
        [
            train_grid(axes, part, Program("theory", theory, known, ridge, steps=0), session),
            train_grid(axes | seeds, part, Program("gaussian", unit, measured, ridge), session),
        ]
    )


def _learnability(config: Any, session: Session | None) -> xr.Dataset:
    part = config.learnability
    l = np.arange(1, part.modes + 1.0) ** -1.5
    ridges = np.array(part.ridges)
    theory = eigenlearning.kernel_regression(l, l, part.samples, ridge=ridges)

    def unit(part, learn_seed):
        x = np.random.default_rng([7, learn_seed]).normal(size=(part.samples, part.modes))
        kernel = (x * l) @ x.T
        rows = [np.linalg.solve(kernel + ridge * np.eye(part.samples), x) for ridge in ridges]
        return {"learnt": np.array([(x * row).sum(0) * l for row in rows])}

    own = {"learn_ridge": Axis(ridges, "ridge"), "mode": Axis(np.arange(1, part.modes + 1), "mode")}
    dims = ("learn_ridge", "mode")
    program = Program("learnability", unit, {"learnt": Variable("share learnt", dims=dims)}, own)
    found = train_grid({"learn_seed": Axis(list(part.seeds), "seed")}, part, program, session)
    effective = part.samples - ridges / theory.kappa
    return found.assign(
        learnable=(
            dims,
            theory.learnability,
            {"long_name": "share learnt, predicted", "units": "1"},
        ),
        conserved=(
            "learn_ridge",
            effective,
            {"long_name": "samples less ridge over kappa", "units": "1"},
        ),
    )


def _phase(config: Any, session: Session | None) -> xr.Dataset:
    part = config.phase

    def unit(part, phase_noise, alpha, beta):
        exact = {"exact": 4 * part.samples, "bins": 1500}
        l, w = eigenlearning.power_law(alpha, 1e14, **exact)
        v = eigenlearning.power_law_target(beta, 1e14, **exact)
        bare = eigenlearning.kernel_regression(l, v, part.samples, multiplicity=w).test
        best = eigenlearning.optimal_ridge(
            l, v, part.samples, noise=phase_noise * bare, multiplicity=w
        )
        return {
            "ratio": best.train / best.test,
            "ratio_predicted": eigenlearning.fitting_ratio(alpha, beta, phase_noise),
        }

    variables = {
        "ratio": Variable("training over test error at the best ridge"),
        "ratio_predicted": Variable("training over test error at the best ridge, by the formula"),
    }
    axes = {
        "phase_noise": Axis(list(part.noise), "noise over the noiseless bare risk"),
        "alpha": Axis(list(part.alpha), "exponent of the eigenvalues"),
        "beta": Axis(list(part.beta), "exponent of the target"),
    }
    return train_grid(axes, part, Program("phase", unit, variables, steps=0), session)


# Images: learning curves of a kernel, and least squares on features of layers


def image_kernel(x: np.ndarray) -> np.ndarray:
    """NTK of two hidden ReLU layers on inputs of norm sqrt(d), in double precision."""
    layers = []
    for _ in range(2):
        layers += [stax.Dense(1, W_std=math.sqrt(2), b_std=0.1), stax.Relu()]
    with jax.enable_x64(True):
        return np.asarray(stax.serial(*layers, stax.Dense(1))[2](x, None, "ntk"), np.float64)


def _images(config: Any, task: tasks.Task, session: Session | None) -> list[xr.Dataset]:
    part, layer = config.images, config.layer
    x = np.concatenate([task.train.x, task.test.x])[: part.points].reshape(part.points, -1)
    labels = np.concatenate([task.train.y, task.test.y])[: part.points]
    x = x.astype(np.float64)
    x *= math.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.eye(task.outputs)[labels] - 1 / task.outputs
    power = (y**2).sum(1).mean()
    kernel = functools.cache(lambda: image_kernel(x))

    def ridges():
        return np.array(part.ridges) * np.trace(kernel()) / len(x)

    def predict(matrix, target):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # the largest count is a quarter of the points
            scale = np.trace(matrix) / len(x)
            noise = np.array(part.noise)[:, None, None] * power / task.outputs
            options = {"ridge": np.array(part.ridges) * scale, "noise": noise}
            return metrics.learning_curve(
                matrix, target, np.array(part.counts)[:, None], **options
            ).test

    def theory(data):
        return {
            "image_predicted": predict(kernel(), y),
            "image_permuted": predict(kernel(), np.random.default_rng(0).permutation(y)),
            "image_linear": predict(x @ x.T, y),
        }

    def unit(data, image_noise, image_seed):
        random, found = np.random.default_rng([11, image_seed]), []
        order, noise = random.permutation(len(x)), image_noise * power
        noisy = y + math.sqrt(noise / task.outputs) * random.normal(size=y.shape)
        for n in part.counts:
            a, b = order[:n], order[n:]
            values, vectors = np.linalg.eigh(kernel()[np.ix_(a, a)])
            test = kernel()[np.ix_(b, a)] @ vectors
            turned = vectors.T @ noisy[a]
            fits = [test @ (turned / (values[:, None] + ridge)) for ridge in ridges()]
            found.append([((fit - y[b]) ** 2).sum(1).mean() + noise for fit in fits])
        return {"image_test": found}

    def squares(data, layer_features, layer_seed):
        random = np.random.default_rng([13, layer_seed])
        order = random.permutation(len(x))
        one, two = jax.random.split(jax.random.key(layer_seed))
        first = features.layer_features(one, x.shape[1], layer_features)
        made = first.phi(x / math.sqrt(x.shape[1]))
        second = features.layer_features(two, made.shape[1], layer_features).phi(0.7 * made)
        sets = (x / math.sqrt(x.shape[1]), made, second)
        return {"accuracy": [_accuracy(np.asarray(s, float), y, order, layer.train) for s in sets]}

    dims = ("image_count", "image_ridge")
    own = {
        "image_count": Axis(list(part.counts), "training images"),
        "image_ridge": Axis(list(part.ridges), "ridge over the mean of the kernel's diagonal"),
    }
    noises = {
        "image_noise": Axis(list(part.noise), "label noise over the mean square of the targets")
    }
    words = {
        "predicted": "",
        "permuted": ", of permuted targets",
        "linear": ", from the linear kernel",
    }
    known = {
        f"image_{n}": Variable(f"test error, predicted{what}", dims=("image_noise", *dims))
        for n, what in words.items()
    }
    measured = {"image_test": Variable("test error on held-out images", dims=dims)}
    seeds = {"image_seed": Axis(list(part.seeds), "seed")}
    stages = {"stage": Axis(["linear", "one layer", "two layers"], "features")}
    counts = {"layer_features": Axis(list(layer.features), "random features")}
    axes = counts | {"layer_seed": Axis(list(layer.seeds), "seed")}
    many = counts | {"bundle_seed": Axis(list(layer.bundle_seeds), "seed of weights and features")}
    accuracy = {"accuracy": Variable("test accuracy of least squares", dims=("stage",))}
    bundles = {"bundle": Axis(["layer", "first bundled", "both bundled"], "what is bundled")}
    error = {"layer_error": Variable("RMS error over RMS", dims=("bundle",))}
    draws = {
        "function": Axis(["sin", "cos", "relu", "arc-cosine"], "what the features should be"),
        "norm": Axis(list(layer.norms), "norm of input and weights"),
    }
    drawn_ = {
        "bias": Variable("distance of the mean from the function, in standard errors"),
        "variance": Variable("variance over draws, over the predicted one"),
    }
    programs = (
        ({}, Program("image-theory", theory, known, noises | own, steps=0)),
        (noises | seeds, Program("images", unit, measured, own)),
        (axes, Program("squares", squares, accuracy, stages)),
        (
            many,
            Program("bundles", functools.partial(bundle_errors, config), error, bundles, steps=0),
        ),
        (draws, Program("draws", functools.partial(_draws, config), drawn_, steps=0)),
    )
    return [train_grid(at, config, program, session) for at, program in programs]


def _accuracy(made, y, order, count) -> float:
    train, test = order[:count], order[count:]
    gram = made[train].T @ made[train]
    ridge = 1e-3 * np.trace(gram) / count
    fit = np.linalg.solve(gram + ridge * np.eye(len(gram)), made[train].T @ y[train])
    return np.mean((made[test] @ fit).argmax(1) == y[test].argmax(1))


def _unit_vectors(random, count, dim, norm):
    x = random.normal(size=(count, dim))
    return norm * x / np.linalg.norm(x, axis=1, keepdims=True)


def bundle_errors(config, data, layer_features, bundle_seed) -> dict[str, list[float]]:
    """sin(W1 x), sin(W2 sin(W1 x)) and a readout of it, with one, the first, and both layers as features."""
    d, random = config.layer.inputs, np.random.default_rng([17, bundle_seed])
    x, w1 = _unit_vectors(random, 200, d, 0.5), _unit_vectors(random, 32, d, 0.5)
    w2, w3 = _unit_vectors(random, 8, 32, 1.0), random.normal(size=(3, 8)) / math.sqrt(8)
    one, two = jax.random.split(jax.random.fold_in(jax.random.key(bundle_seed), layer_features))
    first = features.layer_features(one, d, layer_features)
    phi, bundled = np.asarray(first.phi(x), float), w2 @ np.asarray(first.psi(w1), float)
    second = features.layer_features(two, phi.shape[1], layer_features)
    both = np.asarray(second.phi(phi), float) @ (w3 @ np.asarray(second.psi(bundled), float)).T
    hidden = np.sin(x @ w1.T)
    deep = np.sin(hidden @ w2.T)
    pairs = (
        (phi @ np.asarray(first.psi(w1), float).T, hidden),
        (np.sin(phi @ bundled.T), deep),
        (both, deep @ w3.T),
    )
    return {"layer_error": [float(np.sqrt(np.mean((a - b) ** 2)) / b.std()) for a, b in pairs]}


def _draws(config, data, function, norm) -> dict[str, float]:
    """One input and one weight, many draws of 64 features."""
    part, random = config.layer, np.random.default_rng([19, round(1000 * norm)])
    x, w = (_unit_vectors(random, 1, part.inputs, norm) for _ in range(2))
    inner = float(x[0] @ w[0])
    if function in ("sin", "cos"):
        atoms = features.SINE if function == "sin" else features.COSINE

        def draw(key):
            made = features.layer_features(key, part.inputs, 64, atoms=atoms)
            return (made.phi(x) @ made.psi(w).T)[0, 0]

        key = jax.random.key(round(1000 * norm))
        found = np.asarray(jax.vmap(draw)(jax.random.split(key, part.draws)), float)
        stated = features.layer_features(key, part.inputs, 64, atoms=atoms).variance(x, w)
        truth, ratio = getattr(math, function)(inner), found.var(ddof=1) / float(stated[0, 0])
    else:  # max(G x, 0) . max(G w, 0) / m, as it is coded by the authors
        g = random.normal(size=(part.draws, 64, part.inputs))
        found = (np.maximum(g @ x[0], 0) * np.maximum(g @ w[0], 0)).mean(1)
        t = inner / norm**2
        arc = norm**2 * (math.sqrt(1 - t**2) + (math.pi - math.acos(t)) * t) / (2 * math.pi)
        truth, ratio = (max(inner, 0) if function == "relu" else arc), 1.0
    error = found.std(ddof=1) / math.sqrt(part.draws)
    return {"bias": abs(found.mean() - truth) / error, "variance": ratio}


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "more_is_better": drawn.more_is_better(data),
        "obligatory_overfitting": drawn.obligatory(data),
        "images": drawn.images(data),
        "layers": drawn.layers(data),
    }
