"""Wide and deep networks that classify optimally, and those that do not (Radhakrishnan, Belkin & Uhler 2022).

    make reproduce STUDY=wide_deep_optimality
    python -m experiments.run --config=experiments/configs/wide_deep_optimality.py:cpu

smoke: under a minute, the same experiments on fewer examples. cpu: all of them, some two minutes. paper: the
authors' 10000 examples, for a machine with 64 GB of memory.
"""

import ml_collections

from experiments import tasks
from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("wide_deep_optimality", preset, PRESETS)
    # Singular kernels psi(r) of the optimal activations: spheres S^d, distances from, to, how many
    config.singular = {"dimensions": (1, 2, 4, 8), "distances": (1e-6, 1e-1, 120)}
    # Two regions with label noise 0.2: error against the number of examples
    config.noise = {
        "dimensions": (1, 2, 4),
        "counts": (100, 400, 1000),
        "num_test": 600,
        "depth": 100,
        "seeds": (0, 1, 2, 3, 4),
    }
    # The same on S^1: error of NNGP and NTK against depth
    config.depth = {
        "nngp": (8, 12, 16, 20, 30, 50, 100),
        "ntk": tuple(10**k for k in range(1, 16, 2)),
        "num_train": 400,
        "num_test": 500,
        "seeds": (0, 1, 2),
    }
    # The authors' four pairs of Dirichlet distributions, with prior 0.4 of the first
    config.dirichlet = {
        "num_train": 800,
        "num_test": 800,
        "depth": 100,
        "prior": 0.4,
        "seeds": (0, 1, 2),
    }
    # Sixteen stripes on a quarter circle: Hilbert estimates of exponents around d = 1
    config.stripes = {
        "exponents": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
        "counts": (300, 1000, 3000, 10000),
        "num_test": 1000,
        "seeds": (0, 1, 2, 3),
    }
    # The two other classes on S^2, and the NTK of ReLU, against depth
    config.classes = {
        "nearest_depths": (2, 4, 6, 8, 10, 12, 16),
        "majority_depths": (5, 10, 20, 40, 80),
        "relu_depths": (10, 100, 1000, 10000),
        "num_train": 200,
        "num_relu": 50,
        "num_test": 200,
        "seeds": (0, 1, 2),
    }
    # Handwritten digits as pixel vectors on the sphere, with a fraction of the training labels redrawn
    config.task = tasks.default_config("digits")
    config.task.num_train = 800
    config.digits = {
        "noise": (0.0, 0.4),
        "exponents": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        "dimensions": (4, 8, 16),
        "depth": 100,
        "seeds": (0, 1, 2),
    }
    if preset == "smoke":
        _smoke(config)
    elif preset == "paper":
        config.noise.counts = (100, 1000, 10000)
        config.depth.num_train = 4000
        config.dirichlet.num_train = config.dirichlet.num_test = 10000
        config.stripes.counts = (300, 1000, 3000, 10000, 30000, 100000)
        config.task.num_train = 0
        config.classes.relu_depths = (10, 100, 1000, 10000, 50000)
        config.classes.num_relu = 100
    return config


def _smoke(config):
    config.singular.distances = (1e-6, 1e-1, 40)
    config.noise.dimensions = (1,)
    config.noise.counts, config.noise.seeds = (100, 400), (0, 1, 2)
    config.depth.nngp, config.depth.ntk = (16, 100), (1000, 10**15)
    config.depth.num_train, config.depth.seeds = 200, (0,)
    config.dirichlet.num_train = config.dirichlet.num_test = 300
    config.dirichlet.seeds = (0,)
    config.stripes.counts, config.stripes.seeds = (300, 3000), (0, 1)
    config.classes.nearest_depths = (4, 16)
    config.classes.majority_depths = (10, 80)
    config.classes.relu_depths = (10, 3000)
    config.classes.num_relu, config.classes.seeds = 20, (0,)
    config.task.num_train, config.digits.noise = 200, (0.4,)
    config.digits.dimensions, config.digits.seeds = (8,), (0,)
