"""What can be learnt with wide CNNs: spectra by sector, learning curves of teachers and students, dimensions of data.

Infinitely wide CNNs without overlap between patches are kernels of `ntk.stax`. Inputs are circles, one a patch of two
pixels: eigenfunctions are Fourier modes, which a deep CNN tells apart by the patches they depend on (Cagnetta, Favero &
Wyart). Then the same curse by the dimension of the data alone, on curved manifolds in many dimensions.

On the images the exponent times the dimension is 1.35, not 1: the digits have no one dimension. By 3, 10 and 40
neighbours it is 8.7, 7.4 and 6.3, and n samples out of 1797 are as far apart as 1797 / n neighbours (4 to 56); the
exponent, .18, belongs to a dimension of 5.5. With 40 neighbours the product is 1.15.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from typing import Any

import jax
import numpy as np
import scipy.linalg
import xarray as xr
from scipy.spatial import distance

import metrics
from experiments import checks, tasks
from experiments.grid import Axis, Program, Variable, train_grid
from experiments.loop import Session
from experiments.studies import cnn_learning_curves_figures as drawn
from experiments.studies.cnn_learning_curves_claims import CASES, claims
from ntk import stax

TITLE = "What can be learnt with wide CNNs, and what curses a learning curve"
PAPER = "Cagnetta, Favero & Wyart 2023, arXiv:2208.01003; Konz & Mazurowski 2024, arXiv:2401.08865"
__all__ = ["PAPER", "TITLE", "check", "claims", "figures", "run", "total_steps"]

GROUPS = {"d = 1": (), "d = 2": (2,), "d = 4": (2, 2)}
"""How many patches each further convolution joins, by the dimension of the largest patch that results."""
_COUNTS = checks.several(checks.whole(8), 3, ascending=True)
_SEEDS = checks.several(checks.whole(0), 2)
RULES = {
    "spectrum.grid": checks.whole(64, 4096),
    "spectrum.modes": checks.fixed(checks.whole(2), checks.whole(4)),
    "curves.samples": _COUNTS,
    "curves.fit_from": checks.whole(1),
    "curves.num_test": checks.whole(8),
    "curves.teachers": checks.whole(1),
    "curves.seeds": _SEEDS,
    "manifold.dimensions": checks.several(checks.whole(1, 8), 2, ascending=True),
    "manifold.ambient": checks.several(checks.whole(4), 2, ascending=True),
    "manifold.samples": _COUNTS,
    "manifold.seeds": _SEEDS,
    "images.points": checks.whole(100),
    "images.samples": _COUNTS,
}


def check(config: Any, task: tasks.Task) -> None:
    """Refuses a configuration that the study could not carry through; computes nothing.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    checks.values(config, RULES)
    checks.classes(task)
    low, high = config.spectrum.modes
    if not 2 * low <= high <= config.spectrum.grid // 8:
        allowed = f"two of a ratio of 2 or more, up to grid / 8 = {config.spectrum.grid // 8}"
        checks.refuse("spectrum.modes", config.spectrum.modes, allowed)
    if sum(n >= config.curves.fit_from for n in config.curves.samples) < 3:
        checks.refuse(
            "curves.fit_from", config.curves.fit_from, "such that three of samples are not below"
        )
    there = len(task.train.x) + len(task.test.x)
    if not 4 * config.images.samples[-1] <= config.images.points <= there:
        allowed = f"at least 4 x {config.images.samples[-1]} and at most {there}, the images"
        checks.refuse("images.points", config.images.points, allowed)
    count = max(config.curves.samples[-1], config.manifold.samples[-1]) + config.curves.num_test
    checks.memory("config.curves: kernels", 16.0 * count**2, 8)
    checks.memory("config.images: kernels", 6.0 * config.images.points**2, 8)


def total_steps(config: Any) -> int:
    """Data sets of the whole study, for the progress bar."""
    part = config.manifold
    return 3 * len(config.curves.seeds) + len(part.dimensions) * len(part.ambient) * len(part.seeds)


def run(config: Any, session: Session | None = None) -> xr.Dataset:
    """Evaluates the study; returns the labelled measurements.

    Args:
        config: as experiments/configs/cnn_learning_curves.py makes it.
        session: files and progress; none are kept by default.

    Raises:
        ValueError: an unknown task, or values that the rules refuse.
    """
    task = tasks.load(config.task)
    check(config, task)
    made = [part(config, session) for part in (_spectrum, _curves, _manifold)]
    part = config.curves
    words = {"fit_from": part.fit_from, "curve_points": part.samples[-1] + part.num_test}
    return xr.merge([*made, _images(config, task, session)]).assign_attrs(words)


# Kernels, in double precision


@functools.cache
def cnn(groups: tuple[int, ...]) -> Any:
    """Kernel of a CNN without overlap on patches of two pixels; each further convolution joins so many patches."""
    layers = [stax.Conv(1, (2,), strides=(2,), W_std=math.sqrt(2))]
    for joined in groups:
        layers += [stax.Relu(), stax.Conv(1, (joined,), strides=(joined,), W_std=math.sqrt(2))]
    return stax.serial(*layers, stax.Relu(), stax.Flatten(), stax.Dense(1, W_std=math.sqrt(2)))[2]


@functools.cache
def dense() -> Any:
    """Kernel of two layers on vectors."""
    return stax.serial(stax.Dense(1, W_std=math.sqrt(2)), stax.Relu(), stax.Dense(1))[2]


def evaluated(
    kernel_fn: Any, x1: np.ndarray, x2: np.ndarray | None = None, get: str = "ntk"
) -> np.ndarray:
    """The kernel's values."""
    with jax.enable_x64(True):
        return np.asarray(kernel_fn(x1, x2, get), np.float64)


def laplace(x: np.ndarray) -> np.ndarray:
    """exp(-|x - y| / |x|), as smooth as the NTK of ReLU but a power law from the first modes on."""
    return np.exp(-distance.cdist(x, x) / np.linalg.norm(x[0]))


def circles(angles: np.ndarray) -> np.ndarray:
    """(n, p) angles as (n, 2 p, 1) pixels."""
    return np.stack([np.cos(angles), np.sin(angles)], -1).reshape(len(angles), -1, 1)


def jittered(kernel: np.ndarray) -> np.ndarray:
    """The kernel, positive definite in double precision."""
    return kernel + 1e-10 * np.mean(np.diag(kernel)) * np.eye(len(kernel))


def regressions(teacher, student, samples, num_test, outputs, random) -> np.ndarray:
    """Test errors of ridgeless regression on Gaussian functions with the teacher's kernel, (samples,)."""
    root = scipy.linalg.cholesky(jittered(teacher), lower=True)
    y = root @ random.normal(size=(len(teacher), outputs))
    train, found = slice(num_test, None), []
    for n in samples:
        a = slice(num_test, num_test + n)
        matrix = student[train, train][:n, :n] + 1e-12 * np.eye(n)
        fit = scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), y[a])
        found.append(np.mean((student[:num_test, a] @ fit - y[:num_test]) ** 2))
    return np.array(found)


def predicted(student, teacher, samples) -> np.ndarray:
    """What the student's spectrum says of the same, on average over teachers: columns of a root of K_T as targets."""
    y = scipy.linalg.cholesky(jittered(teacher), lower=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # claims read a quarter of the points
        return metrics.learning_curve(student, y, np.array(samples)).test


# The parts of the study


def _spectrum(config: Any, session: Session | None) -> xr.Dataset:
    part = config.spectrum
    low, high = part.modes
    even = np.arange(low + low % 2, high + 1, 2)

    def unit(part, kind, layers):
        angle = 2 * np.pi * np.arange(part.grid) / part.grid
        grid = np.stack(np.meshgrid(angle, angle, indexing="ij"), -1).reshape(-1, 2)
        kernel_fn = cnn((2,) if layers == 2 else ())
        rows = np.array_split(circles(grid), max(1, part.grid**2 // 2**18))
        row = np.concatenate(
            [evaluated(kernel_fn, circles(np.zeros((1, 2))), x, kind)[0] for x in rows]
        )
        spectrum = np.fft.fft2(row.reshape(part.grid, -1)).real / part.grid**2
        return {
            "one_patch": abs(spectrum[even, 0]),
            "two_patches": abs(spectrum[even, even]),
        }

    dims = ("wavenumber",)
    variables = {
        "one_patch": Variable("eigenvalue of modes (k, 0), of one patch", dims=dims),
        "two_patches": Variable("eigenvalue of modes (k, k), of both patches", dims=dims),
    }
    axes = {"kind": Axis(["ntk", "nngp"], "kernel"), "layers": Axis([1, 2], "hidden layers")}
    own = {"wavenumber": Axis(even, "wavenumber k")}
    return train_grid(axes, part, Program("spectrum", unit, variables, own, steps=0), session)


def _curves(config: Any, session: Session | None) -> xr.Dataset:
    part, made = config.curves, []
    for patches in (1, 2, 4):
        cases = {name: case for name, case in CASES.items() if case[0] == patches}

        @functools.cache
        def pairs(seed, patches=patches, cases=cases):
            random = np.random.default_rng([patches, seed])
            x = circles(random.uniform(0, 2 * np.pi, (part.samples[-1] + part.num_test, patches)))
            kernels = functools.cache(lambda d: evaluated(cnn(GROUPS[f"d = {d}"]), x))
            return [(kernels(teacher), kernels(student)) for _, teacher, student in cases.values()]

        def theory(part, patches=patches, pairs=pairs):
            first = pairs(part.seeds[0])
            return {f"predicted_{patches}": [predicted(s, t, part.samples) for t, s in first]}

        def unit(part, curve_seed, patches=patches, pairs=pairs):
            size = part.num_test, part.teachers, np.random.default_rng([5, patches, curve_seed])
            errors = [regressions(*pair, part.samples, *size) for pair in pairs(curve_seed)]
            return {f"error_{patches}": errors}

        dims = (f"case_{patches}", "sample")
        own = {
            dims[0]: Axis(list(cases), "teacher and student"),
            "sample": Axis(list(part.samples), "samples"),
        }
        seeds = {"curve_seed": Axis(list(part.seeds), "seed")}
        known = {f"predicted_{patches}": Variable("test error, predicted", dims=dims)}
        measured = {f"error_{patches}": Variable("test error", dims=dims)}
        programs = (
            ({}, Program(f"curve-theory-{patches}", theory, known, own, steps=0)),
            (seeds, Program(f"curves-{patches}", unit, measured, own)),
        )
        made += [train_grid(axes, part, program, session) for axes, program in programs]
    return xr.merge(made)


def embedding(
    dimension: int, ambient: int, angles: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """A smooth curved torus on the sphere of so many dimensions: random sums of waves of low frequency."""
    waves = np.array(list(itertools.product((-1, 0, 1), repeat=dimension)))
    waves = waves[len(waves) // 2 + 1 :]  # one of each pair k, -k
    phase = angles @ waves.T
    features = np.concatenate([np.cos(phase), np.sin(phase)], 1)
    x = features @ random.normal(size=(features.shape[1], ambient))
    x = x + 0.5 * random.normal(size=ambient)
    return x / np.linalg.norm(x, axis=1, keepdims=True) * math.sqrt(ambient)


def _manifold(config: Any, session: Session | None) -> xr.Dataset:
    part, num_test = config.manifold, config.curves.num_test

    def unit(part, dimension, ambient, manifold_seed):
        random = np.random.default_rng([dimension, ambient, manifold_seed])
        angles = random.uniform(0, 2 * np.pi, (part.samples[-1] + num_test, dimension))
        x = embedding(dimension, ambient, angles, random)
        kernels = laplace(x), evaluated(dense(), x)
        size = num_test, config.curves.teachers, random
        return {
            "manifold_error": regressions(*kernels, part.samples, *size),
            "measured_dimension": metrics.intrinsic_dimension(x).value,
        }

    variables = {
        "manifold_error": Variable("test error", dims=("manifold_sample",)),
        "measured_dimension": Variable("dimension by nearest neighbours"),
    }
    axes = {
        "dimension": Axis(list(part.dimensions), "dimension of the data"),
        "ambient": Axis(list(part.ambient), "dimension of the inputs"),
        "manifold_seed": Axis(list(part.seeds), "seed"),
    }
    own = {"manifold_sample": Axis(list(part.samples), "samples")}
    return train_grid(axes, part, Program("manifold", unit, variables, own), session)


def _images(config: Any, task: tasks.Task, session: Session | None) -> xr.Dataset:
    """The learning curve of a Gaussian teacher on images, predicted from all of them."""
    part = config.images

    def unit(data, get):
        x = np.concatenate([task.train.x, task.test.x])[: part.points].reshape(part.points, -1)
        x = x.astype(np.float64)
        x *= math.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = evaluated(dense(), x, None, get)
        distinct = np.unique(x, axis=0)
        return {
            "image_error": predicted(kernel, laplace(x), part.samples),
            "image_dimension": metrics.intrinsic_dimension(distinct).value,
        }

    variables = {
        "image_error": Variable(
            "test error of a Gaussian teacher on images, predicted", dims=("image_sample",)
        ),
        "image_dimension": Variable("dimension of the images by nearest neighbours"),
    }
    own = {"image_sample": Axis(list(part.samples), "samples")}
    axes = {"get": Axis(["ntk"], "kernel")}
    return train_grid(axes, None, Program("images", unit, variables, own, steps=0), session)


def figures(data: xr.Dataset) -> dict[str, Any]:
    """The figures of the study by name."""
    return {
        "sectors": drawn.sectors(data),
        "learning_curves": drawn.learning_curves(data),
        "dimensions": drawn.dimensions(data),
    }
