"""Infinitely wide and deep networks: three kinds of classifiers, one of them Bayes-optimal (Radhakrishnan et al. 2022).

Closed-form kernels at any depth, no training: the exponents of singular kernels; error with label noise, on the
authors' Dirichlet tasks and on stripes, against Bayes' rule, the Hilbert estimate, the nearest neighbour and the
majority; the depth that NNGP and NTK need; handwritten digits. Errors are expected ones, given the test inputs,
wherever the probability of the labels is known.
"""

# One file: all experiments compare the same classifiers, on tasks that are defined beside them.

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import gammaln

from experiments import checks, tasks
from experiments.grid import Axis, Program, Variable, train_grid
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
from ntk.activations import closed_forms, polynomials

TITLE = "Wide and deep networks that classify optimally"
PAPER = "Radhakrishnan, Belkin & Uhler 2022, arXiv:2204.14126"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

# Concentrations of the two classes, by the dimension of the sphere: [authors' main.py]
DIRICHLET = {
    1: ((1, 2), (2, 1)),
    2: ((0.5, 0.5, 2.5), (2.5, 0.1, 0.5)),
    4: ((3, 1, 2, 1, 1), (1, 2, 2, 2, 3)),
    8: ((1, 2, 1, 2, 1, 1, 1, 1, 1), (1, 1, 1, 2, 3, 4, 2, 2, 1)),
}
SQUARE = polynomials.hermite_polynomial(2)
RELU = closed_forms.abrelu(0.0, 1.0)
# phi^ = .2 + .3 xi + .5 xi^3: B' = 1.8, and a fixed point between 0 and 1
INTERIOR = polynomials.polynomial_dual(
    np.polynomial.hermite_e.herme2poly([0.2**0.5, 0.3**0.5, 0, (0.5 / 6) ** 0.5])
)


def centred_relu(x):
    """ReLU less its mean."""
    return x * (x > 0) - 1 / math.sqrt(2 * math.pi)


ACTIVATIONS = {
    "x² − 1": SQUARE,
    "h₄": polynomials.hermite_polynomial(4),
    "erf": closed_forms.erf(),
    "ReLU, centred": centred_relu,
    "optimal, d = 1": depth.optimal_activation(1),
    "optimal, d = 2": depth.optimal_activation(2),
    "ReLU": RELU,
    "GELU": closed_forms.gelu(),
    "interior": INTERIOR,
}

# Networks of these, judged as the optimal ones, must fail.
WRONG = ("x² − 1", "ReLU, centred")


_DEPTHS = checks.whole(1, 10**18)
# Of one or two training examples all classifiers make the same; of few test examples a share of .99 says nothing.
_COUNT, _TEST = checks.whole(20), checks.whole(100)
_DIMENSIONS = checks.whole(1, 1000)
RULES = {
    "singular.dimensions": checks.several(_DIMENSIONS),
    "singular.distances": checks.fixed(
        checks.positive(1.0), checks.positive(1.0), checks.whole(2, 10**6)
    ),
    "noise.dimensions": checks.several(_DIMENSIONS),
    "noise.counts": checks.several(_COUNT, ascending=True, needs=(400,)),
    "noise.num_test": _TEST,
    "noise.depth": _DEPTHS,
    "noise.seeds": checks.SEEDS,
    "depth.nngp": checks.several(_DEPTHS, ascending=True, needs=(100,)),
    "depth.ntk": checks.several(_DEPTHS, ascending=True, needs=(1000, 10**15)),
    "depth.num_train": _COUNT,
    "depth.num_test": _TEST,
    "depth.seeds": checks.SEEDS,
    "dirichlet.num_train": _COUNT,
    "dirichlet.num_test": _TEST,
    "dirichlet.depth": _DEPTHS,
    "dirichlet.prior": checks.real(0, 1, inside=True),
    "dirichlet.seeds": checks.SEEDS,
    "stripes.exponents": checks.several(checks.positive(1000), needs=(0.5, 1.0, 2.0)),
    "stripes.counts": checks.several(_COUNT, 2, ascending=True),
    "stripes.num_test": _TEST,
    "stripes.seeds": checks.SEEDS,
    **{
        f"classes.{name}_depths": checks.several(checks.whole(1, 10**9), ascending=True)
        for name in ("nearest", "majority", "relu")
    },
    "classes.num_train": _COUNT,
    "classes.num_relu": _COUNT,
    "classes.num_test": _TEST,
    "classes.seeds": checks.SEEDS,
    "digits.noise": checks.several(checks.real(0, 1), ascending=True),
    "digits.exponents": checks.several(checks.positive(1000)),
    "digits.dimensions": checks.several(_DIMENSIONS, needs=(8,)),
    "digits.depth": _DEPTHS,
    "digits.seeds": checks.SEEDS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; trains nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    low, high, _ = config.singular.distances
    if not low < high:
        checks.refuse("singular.distances", config.singular.distances, "from a smaller to a larger")
    if not 0 < config.digits.noise[-1] < 1:
        allowed = (
            "a tuple that ends with a share above 0 and below 1: a claim is about noisy labels"
        )
        checks.refuse("digits.noise", config.digits.noise, allowed)
    if config.stripes.counts[-1] < 1000:
        checks.refuse("stripes.counts", config.stripes.counts, "up to 1000 examples or more")
    if config.classes.num_relu > config.classes.num_train:
        most = f"at most num_train, {config.classes.num_train}"
        checks.refuse("classes.num_relu", config.classes.num_relu, most)
    for name in ("noise", "depth", "dirichlet", "stripes", "classes"):
        part = config[name]
        count = part.counts[-1] if "counts" in part else part.num_train
        checks.memory(f"config.{name}: kernels of {count} examples", 2.0 * count * count, 8)
        checks.memory(f"config.{name}: the kernel of test examples", 2.0 * count * part.num_test, 8)
    checks.classes(task)
    if task.outputs < 4:
        raise ValueError(f"config.task: {task.name} has {task.outputs} classes; it must have 4")
    count = len(task.train.x)
    if count < 20 or len(np.unique(task.train.y)) < task.outputs:
        found = f"{count} training examples of {len(np.unique(task.train.y))} classes"
        raise ValueError(
            f"config.task: {task.name} has {found}; it must have 20 or more, of all {task.outputs} classes"
        )
    if len(task.test.x) < 100:
        raise ValueError(
            f"config.task: {task.name} has {len(task.test.x)} test examples; a share of .98 needs 100 or more"
        )
    checks.memory(f"config.digits: kernels of {count} images", 2.0 * count * count, 8)
    floor = task.train.x.min()
    if not all((part.x.reshape(len(part.x), -1) != floor).any(axis=1).all() for part in task[1:3]):
        raise ValueError(f"config.task: {task.name} has an empty image; it has no direction")


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
    check(config, tasks.load(config.task))
    parts = (
        _taxonomy,
        _singular,
        _noise,
        _wrong_activations,
        _depth,
        _dirichlet,
        _stripes,
        _classes,
        _digits,
    )
    return xr.merge([part(config, session) for part in parts])


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


# The parts of the study: axes, and what is measured at each point


def _numbers(values: Any, long_name: str, units: str = "1") -> Axis:
    return Axis(list(values), long_name, units)


CLASSIFIER = {"classifier": Axis(CLASSIFIERS, "classifier")}
DIMENSION, COUNT = "dimension of the sphere", "training examples"
LAYERS, DRAW = "depth of the network", "seed of the examples and labels"


def _taxonomy(config: Any, session: Session | None) -> xr.Dataset:
    xi = np.linspace(-1, 1, 81)

    def unit(xi, activation):
        found = depth.taxonomy(ACTIVATIONS[activation])
        names = ("kind", "alpha", "A", "A_prime", "B_prime")
        row = {name: getattr(found, name) for name in names}
        return row | {"dual": depth.dual_curve(ACTIVATIONS[activation], xi)}

    variables = {
        "kind": Variable("kind of classifier at infinite depth"),
        "alpha": Variable("exponent of the singular kernel"),
        "A": Variable("dual activation at 0"),
        "A_prime": Variable("derivative of the dual activation at 0"),
        "B_prime": Variable("derivative of the dual activation at 1"),
        "dual": Variable("dual activation", dims=("xi",)),
    }
    axes = {"activation": Axis(list(ACTIVATIONS), "activation")}
    own = {"xi": Axis(xi, "correlation of the inputs")}
    return train_grid(axes, xi, Program("taxonomy", unit, variables, own, steps=0), session)


def _singular(config: Any, session: Session | None) -> xr.Dataset:
    part = config.singular
    r = np.geomspace(*part.distances)

    def unit(r, singular_dimension):
        activation = depth.optimal_activation(singular_dimension)
        return {"log_psi": depth.singular_kernel(activation)(r**2 / 2).log}

    variables = {"log_psi": Variable("logarithm of the singular kernel", dims=("distance",))}
    axes = {"singular_dimension": _numbers(part.dimensions, DIMENSION)}
    own = {"distance": Axis(r, "distance of two inputs")}
    return train_grid(axes, r, Program("singular", unit, variables, own, steps=0), session)


def _compared(name: str) -> dict[str, Variable]:
    """What is measured of the five methods."""
    return {
        f"{name}_error": Variable("expected error", dims=("classifier",)),
        f"{name}_agreement": Variable(
            "share of inputs on which network and Hilbert estimate agree"
        ),
    }


def _wrong_activations(config: Any, session: Session | None) -> xr.Dataset:
    """How often networks of activations that are not optimal decide as the Hilbert estimate does."""
    part = config.noise
    d, count = part.dimensions[0], min(part.counts, key=lambda count: abs(count - 400))

    def unit(part, wrong_activation, noise_seed):
        random = _generator("noise", d, count, noise_seed)
        train, test = sphere(count, d, random), sphere(part.num_test, d, random)
        labels = draw(two_regions(train), random)
        activation = ACTIVATIONS[wrong_activation]
        scores = depth.deep_classifier(activation, part.depth, train, labels, test)
        return {
            "wrong_agreement": agreement(scores, depth.hilbert_estimate(train, labels, test, d))
        }

    variables = {"wrong_agreement": Variable("share of inputs on which both decide alike")}
    axes = {
        "wrong_activation": Axis(list(WRONG), "activation"),
        "noise_seed": Axis(list(part.seeds), DRAW),
    }
    program = Program("wrong-activations", unit, variables, steps=0)
    return train_grid(axes, part, program, session)


def _compare(name: str, scores: dict[str, np.ndarray], probability: np.ndarray) -> dict[str, Any]:
    return {
        f"{name}_error": [risk(scores[method], probability) for method in CLASSIFIERS],
        f"{name}_agreement": agreement(scores["deep network"], scores["Hilbert"]),
    }


def _noise(config: Any, session: Session | None) -> xr.Dataset:
    def unit(part, noise_dimension, noise_count, noise_seed):
        random = _generator("noise", noise_dimension, noise_count, noise_seed)
        train = sphere(noise_count, noise_dimension, random)
        test = sphere(part.num_test, noise_dimension, random)
        labels, probability = draw(two_regions(train), random), two_regions(test)
        scores = _five(noise_dimension, part.depth, train, labels, test, probability)
        return _compare("noise", scores, probability)

    part = config.noise
    axes = {
        "noise_dimension": _numbers(part.dimensions, DIMENSION),
        "noise_count": _numbers(part.counts, COUNT),
        "noise_seed": _numbers(part.seeds, DRAW),
    }
    return train_grid(axes, part, Program("noise", unit, _compared("noise"), CLASSIFIER), session)


def _depth(config: Any, session: Session | None) -> xr.Dataset:
    part, kernels = config.depth, ("nngp", "ntk")
    variables = {"depth_reference": Variable("expected error", dims=("reference",))}
    for kernel in kernels:
        over = (f"{kernel}_depth",)
        for name, words in (
            ("error", "expected error"),
            ("agreement", "share of inputs on which network and Hilbert estimate agree"),
            ("fit", "share of training labels that the network fits"),
        ):
            variables[f"{kernel}_{name}"] = Variable(words, dims=over)
    own = {f"{k}_depth": Axis(np.array(part[k], np.float64), LAYERS, "layers") for k in kernels}
    own["reference"] = Axis(["Bayes", "Hilbert", "1-NN"], "classifier without a network")
    steps = sum(len(part[kernel]) for kernel in kernels)
    program = Program("depth", _depth_unit, variables, own, steps=steps)
    made = train_grid({"depth_seed": _numbers(part.seeds, DRAW)}, part, program, session)
    return made.transpose(..., "depth_seed", "reference")


def _depth_unit(part: Any, depth_seed: int) -> dict[str, Any]:
    optimal, random = depth.optimal_activation(1), _generator("depth", depth_seed)
    train, test = sphere(part.num_train, 1, random), sphere(part.num_test, 1, random)
    labels, probability = draw(two_regions(train), random), two_regions(test)
    hilbert = depth.hilbert_estimate(train, labels, test, 1)
    nearest = depth.nearest_neighbor(train, labels, test)
    found = {
        "depth_reference": [risk(x, probability) for x in (probability - 0.5, hilbert, nearest)]
    }
    for kernel in ("nngp", "ntk"):
        rows = []
        for layers in part[kernel]:
            asked = np.concatenate([test, train])
            scores = depth.deep_classifier(optimal, layers, train, labels, asked, kernel=kernel)
            scores, own = np.split(scores, [len(test)])
            rows.append(
                (risk(scores, probability), agreement(scores, hilbert), agreement(own, labels))
            )
        columns = np.reshape(np.array(rows, float), (-1, 3)).T
        names = (f"{kernel}_{name}" for name in ("error", "agreement", "fit"))
        found |= dict(zip(names, columns))
    return found


def _dirichlet(config: Any, session: Session | None) -> xr.Dataset:
    def unit(part, dirichlet_dimension, dirichlet_seed):
        d, random = (
            dirichlet_dimension,
            _generator("dirichlet", dirichlet_dimension, dirichlet_seed),
        )
        train, labels, _ = dirichlet(d, part.num_train, part.prior, random)
        test, _, probability = dirichlet(d, part.num_test, part.prior, random)
        scores = _five(d, part.depth, train, labels, test, probability)
        return _compare("dirichlet", scores, probability)

    axes = {
        "dirichlet_dimension": _numbers(DIRICHLET, DIMENSION),
        "dirichlet_seed": _numbers(config.dirichlet.seeds, DRAW),
    }
    program = Program("dirichlet", unit, _compared("dirichlet"), CLASSIFIER)
    return train_grid(axes, config.dirichlet, program, session)


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


def _stripes(config: Any, session: Session | None) -> xr.Dataset:
    def unit(part, stripe_count, stripe_seed):
        random = _generator("stripes", stripe_count, stripe_seed)
        train, test = sphere(stripe_count, 1, random), sphere(part.num_test, 1, random)
        labels, probability = draw(striped(train), random), striped(test)
        scores = [depth.hilbert_estimate(train, labels, test, e) for e in part.exponents]
        return {"stripe_error": [risk(score, probability) for score in scores]}

    part = config.stripes
    axes = {
        "stripe_count": _numbers(part.counts, COUNT),
        "stripe_seed": _numbers(part.seeds, DRAW),
    }
    variables = {"stripe_error": Variable("expected error", dims=("exponent",))}
    own = {"exponent": _numbers(part.exponents, "exponent of the kernel estimate")}
    program = Program("stripes", unit, variables, own, steps=len(part.exponents))
    made = train_grid(axes, part, program, session)
    return made.transpose("stripe_count", "exponent", "stripe_seed")


def _classes(config: Any, session: Session | None) -> xr.Dataset:
    part, names = config.classes, ("nearest", "majority", "relu")
    variables = {
        f"{name}_agreement": Variable(f"agreement with the {limit}", dims=(f"{name}_depth",))
        for name, limit in zip(names, ("nearest neighbour", "majority", "majority"))
    }
    variables["relu_ratio"] = Variable("mean kernel entry over depth + 1", dims=("relu_depth",))
    own = {f"{name}_depth": _numbers(part[f"{name}_depths"], LAYERS, "layers") for name in names}
    steps = sum(len(part[f"{name}_depths"]) for name in names)
    program = Program("classes", _classes_unit, variables, own, steps=steps)
    made = train_grid({"class_seed": _numbers(part.seeds, DRAW)}, part, program, session)
    return made.transpose(..., "class_seed")


def _classes_unit(part: Any, class_seed: int) -> dict[str, Any]:
    random = _generator("classes", class_seed)
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
    found = {}
    for name, activation, depths, given, limit, kernel in cases:
        asked = test[: len(limit)]
        scores = [
            depth.deep_classifier(activation, layers, *given, asked, kernel=kernel)
            for layers in depths
        ]
        found[f"{name}_agreement"] = [agreement(score, limit) for score in scores]
    apart = depth.gaps(train[rows], train[rows])[np.triu_indices(part.num_relu, 1)]
    entries = [depth.deep_kernel(RELU, layers)(apart).log for layers in part.relu_depths]
    ratios = [np.exp(log).mean() / (n + 1) for log, n in zip(entries, part.relu_depths)]
    return found | {"relu_ratio": ratios}


NETWORKS = ("x² − 1", "interior")


def _digits(config: Any, session: Session | None) -> xr.Dataset:
    part = config.digits
    axes = {
        "label_noise": _numbers(part.noise, "share of training labels replaced at random"),
        "digit_seed": _numbers(part.seeds, DRAW),
    }
    error, agrees = "share of test images misclassified", "share of test images decided alike"
    variables = {
        "digit_nearest": Variable(error),
        "digit_limit_agreement": Variable(agrees, dims=("network",)),
        "digit_hilbert": Variable(error, dims=("digit_exponent",)),
        "digit_deep": Variable(error, dims=("digit_dimension",)),
        "digit_deep_agreement": Variable(agrees, dims=("digit_dimension",)),
    }
    own = {
        "network": Axis(NETWORKS, "activation"),
        "digit_exponent": _numbers(part.exponents, "exponent of the kernel estimate"),
        "digit_dimension": _numbers(
            part.dimensions, "dimension that the activation is optimal for"
        ),
    }
    return train_grid(axes, config, Program("digits", _digits_unit, variables, own), session)


def _digits_unit(config: Any, label_noise: float, digit_seed: int) -> dict[str, Any]:
    part = config.digits
    train, labels, test, truth = _digit_examples(config, label_noise, digit_seed)

    def wrong(scores):
        return np.mean(scores.argmax(axis=1) != truth)

    vote = depth.nearest_neighbor(train, labels, test)
    # Ten classes are all but equally many, and a vote between equals is decided at no depth.
    small = np.stack([labels[:, :3].sum(axis=1), labels[:, 3:].sum(axis=1)], axis=1)
    cases = zip(NETWORKS, (16, 80), (labels, small), (vote, depth.majority_vote(small, len(test))))
    limits = [
        agreement(depth.deep_classifier(ACTIVATIONS[name], layers, train, given, test), limit)
        for name, layers, given, limit in cases
    ]
    hilbert = {d: depth.hilbert_estimate(train, labels, test, d) for d in part.exponents}
    deep, follows = [], []
    for d in part.dimensions:
        activation = depth.optimal_activation(d)
        scores = depth.deep_classifier(activation, part.depth, train, labels, test)
        deep.append(wrong(scores))
        follows.append(agreement(scores, depth.hilbert_estimate(train, labels, test, d)))
    return {
        "digit_deep": deep,
        "digit_nearest": wrong(vote),
        "digit_limit_agreement": limits,
        "digit_hilbert": [wrong(scores) for scores in hilbert.values()],
        "digit_deep_agreement": follows,
    }


def _digit_examples(config, noise, seed):
    """Images as unit vectors of pixels, one-hot noisy labels; test images and true labels."""
    chosen = config.task.copy_and_resolve_references()
    chosen.noise, chosen.seed = noise, seed
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
