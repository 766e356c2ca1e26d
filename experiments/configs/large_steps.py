"""Logistic regression with large steps, up to the perceptron (arXiv:2412.08424).

    make reproduce STUDY=large_steps
    python -m experiments.run --config=experiments/configs/large_steps.py:cpu

smoke: seconds, three sets. cpu: half a minute. paper: more sets, of more examples.
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
    config = new_config("large_steps", preset, PRESETS)
    config.task = tasks.default_config("digits")
    # Gaussian directions whose margin is at least this wide
    config.gaussian = {
        "num_examples": 100,
        "dim": 20,
        "margin": 0.02,
        "step_sizes": (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6),
        "seeds": tuple(range(10)),
    }
    # All examples but one are easy, and that one points the other way
    config.adversarial = {"counts": (10, 30, 100, 300, 1000), "margin": 0.05}
    # Pairs of classes of the image task, so many examples at most
    config.pairs = {
        "classes": ((3, 8), (1, 7), (4, 9)),
        "num_examples": 400,
        "step_sizes": (1.0, 10.0, 100.0, 1e3, 1e4),
    }
    config.max_steps = 200_000
    if preset == "smoke":
        config.gaussian.seeds = (0, 1, 2)
        config.pairs.num_examples = 100
    elif preset == "paper":
        config.gaussian.num_examples, config.gaussian.seeds = 1000, tuple(range(20))
        config.adversarial.counts = (10, 30, 100, 300, 1000, 3000, 10000)
    return config
