"""Learning rates and sharpness as functions of the batch size (Granziol, Zohren & Roberts 2022).

    make reproduce STUDY=batch_curvature
    python -m experiments.run --config=experiments/configs/batch_curvature.py:cpu

smoke: under a minute, few batches and rates. cpu: all of it, some three minutes. paper: their images from files with
--config.task.name=cifar10 --config.task.data_dir=..., more seeds and rates, for a GPU.
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
    config = new_config("batch_curvature", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.model = {"width": 48}
    # Random matrices with one eigenvalue this many times the transition
    config.synthetic = {
        "size": 400,
        "spikes": (0.7, 1.5, 3.0),
        "matrices": 16,
        "seeds": (0, 1, 2, 3),
    }
    # Sharpness of batches after full-batch descent, and of all examples early in it
    config.sharpness = {
        "batch_sizes": (16, 32, 64, 128, 256, 512, 1024),
        "learning_rate": 0.2,
        "steps": 120,
        "early": 20,
        "probes": 128,
        "batches": 64,
        "seeds": (0, 1, 2, 3),
    }
    # Largest and best learning rates: powers of two from, to, how many
    config.rates = {
        "batch_sizes": (1, 2, 4, 16, 64, 256),
        "log2_sgd": (-5.0, 5.0, 21),
        "log2_adam": (-8.0, 2.0, 21),
        "steps": 400,
        "seeds": (0, 1, 2),
    }
    if preset == "smoke":
        config.synthetic.size, config.synthetic.matrices = 100, 8
        config.synthetic.seeds = (0, 1)
        config.sharpness.batch_sizes, config.sharpness.seeds = (16, 64, 256), (0, 1)
        config.sharpness.probes, config.sharpness.batches = 4, 6
        config.rates.batch_sizes, config.rates.seeds = (1, 4, 64, 256), (0, 1)
        config.rates.log2_sgd, config.rates.log2_adam = (-4.0, 3.0, 8), (-7.0, 0.0, 8)
        config.rates.steps = 200
    elif preset == "paper":
        config.model.width = 256
        config.sharpness.batch_sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
        config.sharpness.probes, config.sharpness.batches = 64, 64
        config.rates.batch_sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
        config.rates.steps = 2000
        config.rates.seeds = config.sharpness.seeds = (0, 1, 2, 3, 4)
    return config
