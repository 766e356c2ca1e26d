"""Naive Bayes beside logistic regression: how many examples each needs, and what cross-entropy says of errors.

    make reproduce STUDY=naive_bayes
    python -m experiments.run --config=experiments/configs/naive_bayes.py:cpu

smoke: seconds. cpu: under a minute. paper: the authors' dimensions and repetitions (Zheng et al. 2023).
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
    config = new_config("naive_bayes", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.decay = (
        2.0  # of logistic regression: the authors' C = 1 of one weight vector for two classes
    )
    # Independent features, half of them noisier the more there are: examples until the error is near the best
    config.needed = {
        "dims": (25, 50, 100, 200),
        "points": 40,
        "above": 0.01,
        "seeds": tuple(range(8)),
    }
    # Features correlated by rho^|i - j|: (dimension, rho, means of odd and of even features)
    config.regimes = {
        "settings": ((30, 0.3, 0.35, 0.15), (20, 0.6, 0.35, 0.1), (30, 0.0, 0.35, 0.15)),
        "counts": (6, 10, 20, 40, 80, 160, 640, 2560),
        "seeds": tuple(range(12)),
    }
    config.surrogate = {"draws": 4000, "seeds": (0, 1, 2, 3, 4)}
    # Half of the training images for a network, examples for the probes from the other half
    config.features = {
        "width": 128,
        "learning_rate": 1e-3,  # Adam, full batch
        "steps": 300,
        "shots": (1, 2, 5, 10, 20, 50),
        "seeds": tuple(range(20)),
    }
    if preset == "smoke":
        config.needed.points, config.needed.seeds = 20, (0, 1, 2)
        config.regimes.counts, config.regimes.seeds = (6, 20, 80, 640), (0, 1, 2)
        config.surrogate.draws, config.surrogate.seeds = 500, (0, 1)
        config.features.shots, config.features.seeds = (2, 20), (0, 1, 2)
    elif preset == "paper":
        config.needed.dims, config.needed.seeds = (25, 100, 200, 400, 1000), tuple(range(5))
        config.regimes.seeds = config.features.seeds = tuple(range(40))
        config.surrogate.draws = 100_000
    return config
