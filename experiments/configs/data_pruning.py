"""Which examples to keep: a perceptron in closed form, and scores of images (Sorscher et al. 2022; Paul et al. 2021).

    make reproduce STUDY=data_pruning
    python -m experiments.run --config=experiments/configs/data_pruning.py:cpu

smoke: seconds, few runs and steps. cpu: a minute. paper: larger perceptrons, and the authors' numbers of networks
and steps for a GPU; images from files with --config.task.name=cifar10 --config.task.data_dir=... (their network was a
ResNet-18, this one is a multi-layer perceptron).
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
    config = new_config("data_pruning", preset, PRESETS)
    config.task = tasks.default_config("digits")
    # Theory: angles of the probe in degrees, shares kept, kept examples a dimension
    config.angles = (0.0, 10.0, 30.0)
    config.shares = (1.0, 0.3, 0.1, 0.01)
    config.kept = (0.7, 1.0, 1.5, 1.8, 2.0, 2.3, 2.7, 3.2, 4.0, 6.0, 9.0, 12.0)
    # Simulated students: (angle, kept examples a dimension, share kept, 1 for the hard ones and 0 for the easy ones)
    compared = [(0, 2, 0.4, 1), (0, 2, 0.4, 0), (20, 2, 0.4, 1), (20, 3, 0.3, 1), (40, 2, 0.4, 1)]
    drawn = [(a, k, f, 1) for a in config.angles for f in (1.0, 0.1) for k in (1.5, 2.5, 4.0)]
    config.settings = tuple(tuple(map(float, s)) for s in [*compared, (40, 3, 0.3, 1), *drawn])
    config.dim = 150
    config.seeds = tuple(range(16))
    # Networks with two hidden layers, which all sets train for as many steps, however small they are
    config.images = {
        "width": 128,
        "learning_rate": 0.05,  # Nesterov's momentum .9
        "batch_size": 64,
        "steps": 600,
        "epochs": (0, 1, 10),  # after which scores are taken
        "score_seeds": tuple(range(1000, 1008)),
        "seeds": tuple(range(8)),
        "shares": (0.05, 0.2, 0.5),
        "skip": 0.15,  # of the highest scores, where wrong labels are expected
        "wrong": 0.1,  # share of labels that are made wrong in half of the experiment
    }
    if preset == "smoke":
        config.kept, config.dim, config.seeds = (1.0, 2.0, 4.0, 12.0), 40, (0, 1, 2, 3)
        config.images.steps, config.images.shares = 60, (0.05, 0.5)
        config.images.seeds, config.images.score_seeds = (0, 1, 2), (1000, 1001, 1002, 1003)
    elif preset == "paper":
        config.angles = (0.0, 10.0, 20.0, 30.0, 45.0, 60.0)
        config.dim, config.seeds = 400, tuple(range(100))
        config.images.width, config.images.batch_size, config.images.steps = 512, 128, 78_000
        config.images.score_seeds = tuple(range(1000, 1010))
        config.images.shares = (0.05, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    return config
