"""Wrong labels are contradicted before they are memorised (Liu et al. 2020).

    make reproduce STUDY=early_learning
    python -m experiments.run --config=experiments/configs/early_learning.py:cpu

smoke: some seconds. cpu: a minute. paper: more dimensions and seeds, a wide network on all digits.
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
    config = new_config("early_learning", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.strengths = (0.0, 3.0)  # of the regularisation; 0 is cross-entropy, 3 the authors'
    # Two Gaussian classes: half the distance of their means, share of labels flipped; one step, and a whole training
    config.gaussian = {"num_examples": 200, "signal": 3.0, "flip": 0.3}
    config.step = {"dims": (20, 100, 400, 560, 800, 1130, 1600, 6400), "draws": 400, "seed": 0}
    config.linear = {"dims": (20, 400), "rates": (0.02, 0.5), "steps": 3000, "points": 60}
    config.linear.seeds = tuple(range(30))
    # Two hidden layers on images, share of labels redrawn; the authors' rate and weight decay
    config.network = {"num_train": 1000, "noise": 0.4, "width": 256, "batch_size": 100}
    config.network.update({"learning_rate": 0.02, "decay": 1e-3, "steps": 3000, "chunk": 50})
    config.network.seeds = (0, 1, 2, 3)
    if preset == "smoke":
        config.network.width, config.network.steps, config.network.seeds = 64, 600, (0, 1)
        config.step.draws, config.linear.seeds = 100, (0, 1, 2)
        config.linear.steps = 1000
    elif preset == "paper":
        config.network.num_train, config.network.width, config.network.steps = 1437, 1024, 15_000
        config.step.draws = 4000
        config.linear.dims = (20, 100, 400, 1600)
        config.linear.seeds = config.network.seeds = tuple(range(20))
    return config
