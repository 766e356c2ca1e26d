"""Batches at equal epochs and equal updates (arXiv:1705.08741), noise added to gradients (arXiv:1511.06807).

    make reproduce STUDY=gradient_noise
    python -m experiments.run --config=experiments/configs/gradient_noise.py:cpu

smoke: seconds. cpu: two minutes. paper: their images from files with --config.task.name=mnist
--config.task.data_dir=..., more steps and seeds.
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
    config = new_config("gradient_noise", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.task.num_train = 1280
    # SGD with momentum; the large batch takes as many steps, of which the first make as many epochs as the small one
    config.batches = {
        "small": 32,
        "large": 640,
        "width": 128,
        "learning_rate": 0.02,
        "steps": 1200,
        "seeds": tuple(range(12)),
        "growth_seeds": (0, 1, 2),
    }
    # ReLU networks from weights too small, with Gaussian noise of variance eta / (1 + t)^.55 on gradients
    config.noise = {
        "depth": 20,
        "width": 50,
        "deviation": 0.1,
        "eta": 0.3,
        "learning_rate": 0.05,
        "steps": 1500,
        "seeds": tuple(range(24)),
    }
    if preset == "smoke":
        config.batches.steps, config.batches.width = 200, 32
        config.batches.seeds = config.batches.growth_seeds = config.noise.seeds = (0, 1)
        config.noise.depth, config.noise.steps, config.noise.eta = 6, 400, 1.0
    elif preset == "paper":
        config.task.num_train = 0
        config.batches.large, config.batches.small, config.batches.steps = 4096, 128, 20_000
        config.batches.width, config.noise.steps = 512, 10_000
        config.noise.seeds = tuple(range(40))
    return config
