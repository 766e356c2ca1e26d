"""Tilted boundaries, contrastive temperatures, matched neurons (arXiv:1608.07690, 2012.09740, 1511.07543).

    make reproduce STUDY=short_papers
    python -m experiments.run --config=experiments/configs/short_papers.py:cpu

smoke: seconds. cpu: a minute. paper: MNIST (config.task.data_dir) and longer; not the authors' ImageNet networks.
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
    config = new_config("short_papers", preset, PRESETS)
    config.task = tasks.default_config("mnist" if preset == "paper" else "digits")
    # Two classes; ridges of a discriminant in units of their mean variance
    config.classes, config.ridges = (3, 7), (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3)
    # Temperatures; noise of the two views in deviations of all pixels
    config.temperatures, config.noise = (0.05, 0.1, 0.2, 0.5, 1.0), 1.0
    config.widths = (32, 128) if preset == "smoke" else (32, 128, 512)
    config.steps = {"smoke": 100, "cpu": 500, "paper": 5000}[preset]
    config.seeds = (0, 1, 2) if preset == "smoke" else tuple(range(5))
    return config
