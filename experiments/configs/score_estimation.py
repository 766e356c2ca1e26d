"""Kernels that learn a score stop early, networks that denoise need many images (arXiv:2401.15604, arXiv:2310.02557).

    make reproduce STUDY=score_estimation
    python -m experiments.run --config=experiments/configs/score_estimation.py:cpu

smoke: seconds. cpu: two minutes. paper: more of all, CIFAR-10 (config.task.data_dir) in place of the digits; the
authors' convolutional networks of 80x80 faces are not built.
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
    config = new_config("score_estimation", preset, PRESETS)
    small, large = preset == "smoke", preset == "paper"
    config.task = tasks.default_config("cifar10" if large else "digits")
    config.mixture = tasks.default_config("mixture")
    # Kernel gradient flow on so many points; times are learning rate times steps
    config.flow = {
        "noises": (0.3, 1.0),
        "examples": (50, 200) if small else (50, 200, 800, 3200)[: 3 + large],
        "times": tuple(10.0 ** (k / 4) for k in range(-4, 29)),
        "seeds": (0, 1) if small else tuple(range(6)),
    }
    # Networks of finite width, all on one set of points
    config.wide = {
        "widths": (64, 1024) if small else (64, 256, 1024, 4096),
        "examples": 40,
        "noise": 0.5,
        "learning_rate": 0.5,
        "steps": 500 if small else 2000,
        "seeds": (0, 1, 2) if small else tuple(range(6)),
    }
    # Pairs of denoisers on disjoint sets of so many images; noise in deviations of all pixels
    config.denoisers = {
        "images": (5, 300) if small else (10, 1000, 25_000) if large else (5, 50, 700),
        "noise": 0.8,
        "width": 128 if small else 2048 if large else 256,
        "learning_rate": 2e-3,
        "steps": 300 if small else 50_000 if large else 2500,
        "batch_size": 128,
        "seeds": (0, 1) if small else (0, 1, 2),
    }
    return config
