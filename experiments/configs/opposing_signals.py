"""Outliers with opposing signals: where they are, and what they do to training (Rosenfeld & Risteski 2024).

    make reproduce STUDY=opposing_signals
    python -m experiments.run --config=experiments/configs/opposing_signals.py:cpu

smoke: under a minute. cpu: two minutes on two cores. All its claims hold but "12 without them it is calm": where the
groups found are left out, other groups of the digits take over some steps later, in most seeds. paper: 5000 images of
CIFAR-10 and a residual network, full batch, for a GPU; the images with --config.task.data_dir=...
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
    config = new_config("opposing_signals", preset, PRESETS)
    # The two-layer linear network: examples, their dimension, share of outliers, deviation of the first weights
    config.linear = {
        "examples": 500,
        "dim": 20,
        "share": 0.02,
        "width": 32,
        "start": 0.03,
        "flow_steps": 3000,  # of rate 1e-3
        "steps": 300,
        "seeds": (0, 1, 2),
    }
    # Images, full batch; what happens in the first steps, where training begins with a rise, is not looked at
    config.task = tasks.default_config("digits")
    config.task.flatten = False
    config.model = {"name": "MLP", "width": 64, "depth": 2}
    config.images = {"steps": 300, "skip": 20, "group": 20, "calm_rate": 0.01}
    # As many images of either class get one direction in common, so many norms of an image long: the sharpness that
    # they bring grows with the square, and calm_rate must stay far below its edge
    config.planted = {
        "classes": (3, 8),
        "each": 15,
        "norms": 12.0,
        "rates": (0.05, 0.0625, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25),
        "seeds": (0, 1, 2, 3),
    }
    # Nothing planted: groups that are there
    config.natural = {"rate": 0.2, "seeds": tuple(range(8))}
    if preset == "smoke":
        config.linear.flow_steps, config.linear.seeds = 3000, (0, 1)
        config.linear.examples = 400
        config.task.num_train = 700
        config.planted.seeds, config.planted.rates = (0, 1), (0.1, 0.125, 0.16, 0.2, 0.25)
        config.images.steps, config.natural.seeds = 150, (0, 1)
    elif preset == "paper":
        config.task = tasks.default_config("cifar10")
        config.task.flatten, config.task.num_train = False, 5000
        config.model = {
            "name": "ResNet",
            "width": 64,
            "depth": 8,
            "stages": 4,
            "block_depth": 2,
            "norm": "batch",
        }
        config.images.steps = 2000
    return config
