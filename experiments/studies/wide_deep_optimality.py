"""Infinitely wide and deep networks: three kinds of classifiers, one of them Bayes-optimal (Radhakrishnan et al. 2022).

Closed-form kernels at any depth, no training: the exponents of singular kernels; error with label noise, on the
authors' Dirichlet tasks and on stripes, against Bayes' rule, the Hilbert estimate, the nearest neighbour and the
majority; the depth that NNGP and NTK need; handwritten digits. Errors are expected ones, given the test inputs,
wherever the probability of the labels is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import gammaln

from experiments import tasks
from experiments.loop import Session
from experiments.studies import wide_deep_optimality_figures as drawn
from experiments.studies.wide_deep_optimality_claims import (
    CLASSIFIERS,
    FLIPPED,
    STRIPES,
    claims,
    exponents,
)
from limits import depth
from ntk import duals, powers

TITLE = "Wide and deep networks that classify optimally"
PAPER = "Radhakrishnan, Belkin & Uhler 2022, arXiv:2204.14126"
__all__ = ["PAPER", "TITLE", "claims", "figures", "run", "total_steps"]

# Concentrations of the two classes, by the dimension of the sphere: [authors' main.py]
DIRICHLET = {
    1: ((1, 2), (2, 1)),
    2: ((0.5, 0.5, 2.5), (2.5, 0.1, 0.5)),
    4: ((3, 1, 2, 1, 1), (1, 2, 2, 2, 3)),
    8: ((1, 2, 1, 2, 1, 1, 1, 1, 1), (1, 1, 1, 2, 3, 4, 2, 2, 1)),
}
SQUARE = powers.hermite_polynomial(2)
RELU = duals.abrelu(0.0, 1.0)
# phi^ = .2 + .3 xi + .5 xi^3: B' = 1.8, and a fixed point between 0 and 1
INTERIOR = powers.polynomial_dual(
    np.polynomial.hermite_e.herme2poly([0.2**0.5, 0.3**0.5, 0, (0.5 / 6) ** 0.5])
)


def centred_relu(x):
    """ReLU less its mean."""
    return x * (x > 0) - 1 / math.sqrt(2 * math.pi)


ACTIVATIONS = {
    "x² − 1": SQUARE,
    "h₄": powers.hermite_polynomial(4),
    "erf": duals.erf(),
    "ReLU, centred": centred_relu,
    "optimal, d = 1": depth.optimal_activation(1),
    "optimal, d = 2": depth.optimal_activation(2),
    "ReLU": RELU,
    "GELU": duals.gelu(),
    "interior": INTERIOR,
}

# Networks of these, judged as the optimal ones, must fail.
WRONG = ("x² − 1", "ReLU, centred")


def total_steps(config: Any) -> int:
    """Classifications of the whole study, for the progress bar."""
    parts = (config.noise, config.depth, config.dirichlet, config.stripes, config.classes)
    sizes = (
        len(config.noise.dimensions) * len(config.noise.counts),
        len(config.depth.nngp) + len(config.depth.ntk),
        len(DIRICHLET),
        len(config.stripes.exponents) * len(config.stripes.counts),
        sum(len(config.classes[f"{name}_depths"]) for name in ("nearest", "majority", "relu")),
    )
    counted = sum(len(part.seeds) * size for part, size in zip(parts, sizes))
    return counted + len(config.digits.seeds) * len(config.digits.noise)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/wide_deep_optimality.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: an unknown task, or what `limits.depth` refuses.
    """
    progress = (session or Session()).progress
    parts = (_singular, _noise, _depth, _dirichlet, _stripes, _classes, _digits)
    return xr.merge([_taxonomy(), *(part(config, progress) for part in parts)])


# Inputs and label probabilities


def sphere(count: int, dimension: int, random: np.random.Generator) -> np.ndarray:
    """Uniform points on the part of S^dimension with coordinates that are not negative."""
    points = np.abs(random.normal(size=(count, dimension + 1)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def two_regions(x: np.ndarray) -> np.ndarray:
    """P(label is 1): 0.8 on one side of x_0 = x_1, 0.2 on the other."""
    return np.where(x[:, 0] > x[:, 1], 1 - FLIPPED, FLIPPED)


def striped(x: np.ndarray) -> np.ndarray:
    """P(label is 1) on a quarter circle: 0.8 in every fourth of sixteen stripes, else 0.2."""
    stripe = np.floor(np.arctan2(x[:, 1], x[:, 0]) / (math.pi / 2) * STRIPES)
    return np.where(stripe % 4 == 0, 1 - FLIPPED, FLIPPED)


def draw(probability: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Labels 1 and -1."""
    return np.where(random.random(len(probability)) < probability, 1.0, -1.0)


def risk(scores: np.ndarray, probability: np.ndarray) -> float:
    """Expected error of sign(scores) where labels are 1 with this probability; a score of 0 is a coin."""
    return float(np.mean(0.5 - np.sign(scores) * (probability - 0.5)))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of examples on which two scores decide alike."""
    decide = (lambda s: s.argmax(axis=1)) if a.ndim == 2 else np.sign
    return float(np.mean(decide(a) == decide(b)))


def _generator(part: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([*part.encode(), *numbers])


def _five(d, layers, train, labels, test, probability, prior=None) -> dict[str, np.ndarray]:
    """Scores of the five methods, (test,) each."""
    activation = depth.optimal_activation(d)
    return {
        "Bayes": probability - 0.5,
        "deep network": depth.deep_classifier(activation, layers, train, labels, test),
        "Hilbert": depth.hilbert_estimate(train, labels, test, d),
        "1-NN": depth.nearest_neighbor(train, labels, test),
        "majority": depth.majority_vote(labels, len(test)),
    }


# The parts of the study


def _taxonomy() -> xr.Dataset:
    found = [depth.taxonomy(activation) for activation in ACTIVATIONS.values()]
    xi = np.linspace(-1, 1, 81)
    curves = [depth.dual_curve(activation, xi) for activation in ACTIVATIONS.values()]
    one = ("activation",)
    return xr.Dataset(
        {
            "kind": (one, [row.kind for row in found]),
            "alpha": (one, [row.alpha for row in found]),
            "A": (one, [row.A for row in found]),
            "A_prime": (one, [row.A_prime for row in found]),
            "B_prime": (one, [row.B_prime for row in found]),
            "dual": (("activation", "xi"), np.stack(curves)),
        },
        {"activation": list(ACTIVATIONS), "xi": xi},
    )


def _singular(config: Any, progress: Callable) -> xr.Dataset:
    part = config.singular
    r = np.geomspace(*part.distances)
    log = [
        depth.singular_kernel(depth.optimal_activation(d))(r**2 / 2).log for d in part.dimensions
    ]
    return xr.Dataset(
        {"log_psi": (("singular_dimension", "distance"), np.stack(log))},
        {"singular_dimension": list(part.dimensions), "distance": r},
    )


def _noise(config: Any, progress: Callable) -> xr.Dataset:
    part = config.noise
    dims = ("noise_dimension", "noise_count", "noise_seed")
    coordinates = dict(zip(dims, (part.dimensions, part.counts, part.seeds)))
    shape = tuple(map(len, coordinates.values()))
    error, agrees = np.empty((*shape, len(CLASSIFIERS))), np.empty(shape)
    for index in np.ndindex(shape):
        d, count, seed = (values[i] for values, i in zip(coordinates.values(), index))
        random = _generator("noise", d, count, seed)
        train, test = sphere(count, d, random), sphere(part.num_test, d, random)
        labels, probability = draw(two_regions(train), random), two_regions(test)
        scores = _five(d, part.depth, train, labels, test, probability)
        error[index] = [risk(scores[name], probability) for name in CLASSIFIERS]
        agrees[index] = agreement(scores["deep network"], scores["Hilbert"])
        progress(1, "noise", error[index][1])
    variables = {
        "noise_error": ((*dims, "classifier"), error),
        "noise_agreement": (dims, agrees),
    }
    coordinates = {dim: list(values) for dim, values in coordinates.items()}
    wrong = _wrong_activations(part)
    return xr.Dataset(variables, coordinates | {"classifier": list(CLASSIFIERS)}).merge(wrong)


def _wrong_activations(part: Any) -> xr.Dataset:
    """How often networks of activations that are not optimal decide as the Hilbert estimate does."""
    d, count = part.dimensions[0], min(part.counts, key=lambda count: abs(count - 400))
    agrees = np.empty((len(WRONG), len(part.seeds)))
    for s, seed in enumerate(part.seeds):
        random = _generator("noise", d, count, seed)
        train, test = sphere(count, d, random), sphere(part.num_test, d, random)
        labels = draw(two_regions(train), random)
        hilbert = depth.hilbert_estimate(train, labels, test, d)
        for i, name in enumerate(WRONG):
            activation = ACTIVATIONS[name]
            scores = depth.deep_classifier(activation, part.depth, train, labels, test)
            agrees[i, s] = agreement(scores, hilbert)
    coordinates = {"wrong_activation": list(WRONG), "noise_seed": list(part.seeds)}
    return xr.Dataset({"wrong_agreement": (tuple(coordinates), agrees)}, coordinates)


def _depth(config: Any, progress: Callable) -> xr.Dataset:
    part, optimal, made = config.depth, depth.optimal_activation(1), {}
    references = np.empty((len(part.seeds), 3))
    error = {kernel: np.empty((len(part[kernel]), len(part.seeds))) for kernel in ("nngp", "ntk")}
    agrees, fits = ({k: np.empty_like(values) for k, values in error.items()} for _ in range(2))
    for s, seed in enumerate(part.seeds):
        random = _generator("depth", seed)
        train, test = sphere(part.num_train, 1, random), sphere(part.num_test, 1, random)
        labels, probability = draw(two_regions(train), random), two_regions(test)
        hilbert = depth.hilbert_estimate(train, labels, test, 1)
        nearest = depth.nearest_neighbor(train, labels, test)
        references[s] = [risk(x, probability) for x in (probability - 0.5, hilbert, nearest)]
        for kernel in error:
            for i, layers in enumerate(part[kernel]):
                asked = np.concatenate([test, train])
                scores = depth.deep_classifier(optimal, layers, train, labels, asked, kernel=kernel)
                scores, own = np.split(scores, [len(test)])
                fits[kernel][i, s] = agreement(own, labels)
                error[kernel][i, s] = risk(scores, probability)
                agrees[kernel][i, s] = agreement(scores, hilbert)
                progress(1, f"depth of {kernel}", error[kernel][i, s])
    for kernel in error:
        dims = (f"{kernel}_depth", "depth_seed")
        made[f"{kernel}_error"] = (dims, error[kernel])
        made[f"{kernel}_agreement"] = (dims, agrees[kernel])
        made[f"{kernel}_fit"] = (dims, fits[kernel])
    made["depth_reference"] = (("depth_seed", "reference"), references)
    coordinates = {f"{kernel}_depth": np.array(part[kernel], np.float64) for kernel in error}
    names = {"depth_seed": list(part.seeds), "reference": ["Bayes", "Hilbert", "1-NN"]}
    return xr.Dataset(made, coordinates | names)


def _dirichlet(config: Any, progress: Callable) -> xr.Dataset:
    part = config.dirichlet
    error = np.empty((len(DIRICHLET), len(part.seeds), len(CLASSIFIERS)))
    agrees = np.empty(error.shape[:2])
    for i, d in enumerate(DIRICHLET):
        for s, seed in enumerate(part.seeds):
            random = _generator("dirichlet", d, seed)
            train, labels, _ = dirichlet(d, part.num_train, part.prior, random)
            test, _, probability = dirichlet(d, part.num_test, part.prior, random)
            scores = _five(d, part.depth, train, labels, test, probability)
            error[i, s] = [risk(scores[name], probability) for name in CLASSIFIERS]
            agrees[i, s] = agreement(scores["deep network"], scores["Hilbert"])
            progress(1, f"Dirichlet, d = {d}", error[i, s, 1])
    dims = ("dirichlet_dimension", "dirichlet_seed")
    return xr.Dataset(
        {
            "dirichlet_error": ((*dims, "classifier"), error),
            "dirichlet_agreement": (dims, agrees),
        },
        {dims[0]: list(DIRICHLET), dims[1]: list(part.seeds), "classifier": list(CLASSIFIERS)},
    )


def dirichlet(
    d: int, count: int, prior: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the task of dimension d on the sphere, their labels, and P(label is 1 | point).

    The first distribution has label 1. Draws are divided by their 2-norm, as the authors do.
    """
    parameters = np.array(DIRICHLET[d], float)
    labels = draw(np.full(count, prior), random)
    points = random.dirichlet(parameters[0], count)
    points[labels < 0] = random.dirichlet(parameters[1], int((labels < 0).sum()))
    points = np.maximum(points, 1e-300)
    density = [
        gammaln(a.sum()) - gammaln(a).sum() + ((a - 1) * np.log(points)).sum(axis=1)
        for a in parameters
    ]
    odds = density[1] - density[0] + math.log((1 - prior) / prior)
    probability = 1 / (1 + np.exp(np.clip(odds, -500, 500)))
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels, probability


def _stripes(config: Any, progress: Callable) -> xr.Dataset:
    part = config.stripes
    error = np.empty((len(part.counts), len(part.exponents), len(part.seeds)))
    for c, count in enumerate(part.counts):
        for s, seed in enumerate(part.seeds):
            random = _generator("stripes", count, seed)
            train, test = sphere(count, 1, random), sphere(part.num_test, 1, random)
            labels, probability = draw(striped(train), random), striped(test)
            for e, exponent in enumerate(part.exponents):
                scores = depth.hilbert_estimate(train, labels, test, exponent)
                error[c, e, s] = risk(scores, probability)
                progress(1, "stripes", error[c, e, s])
    dims = ("stripe_count", "exponent", "stripe_seed")
    values = (part.counts, part.exponents, part.seeds)
    return xr.Dataset({"stripe_error": (dims, error)}, {k: list(v) for k, v in zip(dims, values)})


def _classes(config: Any, progress: Callable) -> xr.Dataset:
    part = config.classes
    made = {name: [] for name in ("nearest", "majority", "relu", "ratio")}
    for seed in part.seeds:
        random = _generator("classes", seed)
        train, test = sphere(part.num_train, 2, random), sphere(part.num_test, 2, random)
        labels = draw(two_regions(train), random)
        nearest = depth.nearest_neighbor(train, labels, test)
        unequal = draw(np.where(train[:, 2] < 0.75, 0.8, 0.2), random)  # three quarters of the area
        most = depth.majority_vote(unequal, len(test))
        rows = slice(part.num_relu)
        few = draw(np.full(part.num_relu, 0.75), random)
        cases = (
            ("nearest", SQUARE, part.nearest_depths, (train, labels), nearest, "nngp"),
            ("majority", INTERIOR, part.majority_depths, (train, unequal), most, "nngp"),
            ("relu", RELU, part.relu_depths, (train[rows], few), most[rows] * 0 + few.sum(), "ntk"),
        )
        for name, activation, depths, given, limit, kernel in cases:
            found = []
            for layers in depths:
                asked = test[: len(limit)]
                scores = depth.deep_classifier(activation, layers, *given, asked, kernel=kernel)
                found.append(agreement(scores, limit))
                progress(1, f"class: {name}", 1 - found[-1])
            made[name].append(found)
        apart = depth.gaps(train[rows], train[rows])[np.triu_indices(part.num_relu, 1)]
        entries = [depth.deep_kernel(RELU, layers)(apart).log for layers in part.relu_depths]
        made["ratio"].append(
            [np.exp(log).mean() / (n + 1) for log, n in zip(entries, part.relu_depths)]
        )
    dims = {name: (f"{name}_depth", "class_seed") for name in ("nearest", "majority", "relu")}
    names = {"nearest": "nearest_agreement", "majority": "majority_agreement"}
    names |= {"relu": "relu_agreement", "ratio": "relu_ratio"}
    dims["ratio"] = dims["relu"]
    coordinates = {
        f"{name}_depth": list(part[f"{name}_depths"]) for name in dims if name != "ratio"
    }
    return xr.Dataset(
        {names[key]: (dims[key], np.array(values).T) for key, values in made.items()},
        coordinates | {"class_seed": list(part.seeds)},
    )


def _digits(config: Any, progress: Callable) -> xr.Dataset:
    part, networks = config.digits, ("x² − 1", "interior")
    shape = (len(part.noise), len(part.seeds))
    nearest, agrees = np.empty(shape), np.empty((*shape, 2))
    hilbert = np.empty((*shape, len(part.exponents)))
    deep, follows = (np.empty((*shape, len(part.dimensions))) for _ in range(2))
    for index in np.ndindex(shape):
        train, labels, test, truth = _digit_examples(config, part.noise[index[0]], index[1])

        def wrong(scores, truth=truth):
            return np.mean(scores.argmax(axis=1) != truth)

        vote = depth.nearest_neighbor(train, labels, test)
        nearest[index] = wrong(vote)
        # Ten classes are all but equally many, and a vote between equals is decided at no depth.
        small = np.stack([labels[:, :3].sum(axis=1), labels[:, 3:].sum(axis=1)], axis=1)
        limits = (vote, depth.majority_vote(small, len(test)))
        cases = zip(networks, (16, 80), (labels, small), limits)
        for n, (name, layers, given, limit) in enumerate(cases):
            scores = depth.deep_classifier(ACTIVATIONS[name], layers, train, given, test)
            agrees[(*index, n)] = agreement(scores, limit)
        for e, exponent in enumerate(part.exponents):
            hilbert[(*index, e)] = wrong(depth.hilbert_estimate(train, labels, test, exponent))
        for i, d in enumerate(part.dimensions):
            activation = depth.optimal_activation(d)
            scores = depth.deep_classifier(activation, part.depth, train, labels, test)
            deep[(*index, i)] = wrong(scores)
            limit = depth.hilbert_estimate(train, labels, test, d)
            follows[(*index, i)] = agreement(scores, limit)
        progress(1, "digits", float(deep[index].min()))
    dims = ("label_noise", "digit_seed")
    return xr.Dataset(
        {
            "digit_nearest": (dims, nearest),
            "digit_limit_agreement": ((*dims, "network"), agrees),
            "digit_hilbert": ((*dims, "digit_exponent"), hilbert),
            "digit_deep": ((*dims, "digit_dimension"), deep),
            "digit_deep_agreement": ((*dims, "digit_dimension"), follows),
        },
        {
            "label_noise": list(part.noise),
            "digit_seed": list(part.seeds),
            "network": list(networks),
            "digit_exponent": list(part.exponents),
            "digit_dimension": list(part.dimensions),
        },
    )


def _digit_examples(config, noise, seed_index):
    """Images as unit vectors of pixels, one-hot noisy labels; test images and true labels."""
    chosen = config.task.copy_and_resolve_references()
    chosen.noise, chosen.seed = noise, config.digits.seeds[seed_index]
    task = tasks.load(chosen)
    floor = task.train.x.min()  # standardised pixels: the empty ones back to 0
    inputs = [np.float64(part.x.reshape(len(part.x), -1) - floor) for part in task[1:3]]
    return inputs[0], np.eye(task.outputs)[task.train.y], inputs[1], task.test.y


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "error_against_examples": drawn.error_against_examples(data, CLASSIFIERS),
        "error_against_depth": drawn.error_against_depth(data),
        "taxonomy": drawn.taxonomy(data),
        "singular_kernels": drawn.singular_kernels(data, exponents(data)),
        "dirichlet": drawn.dirichlet(data, CLASSIFIERS),
        "stripes": drawn.stripes(data, FLIPPED),
        "classes": drawn.classes(data),
        "digits": drawn.digits(data),
    }
