"""What can be learnt with wide CNNs, and what curses a learning curve: patches, or the dimension of the data.

    make reproduce STUDY=cnn_learning_curves
    python -m experiments.run --config=experiments/configs/cnn_learning_curves.py:cpu

smoke: half a minute, few samples. cpu: all experiments in some two minutes. paper: up to 8192 samples, for a machine
with 64 GB of memory.
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
    config = new_config("cnn_learning_curves", preset, PRESETS)
    # Eigenvalues on two circles, by the Fourier transform of a row of the kernel on a grid
    config.spectrum = {"grid": 1024, "modes": (10, 60)}
    # Gaussian teachers and students of other depths on one, two and four circles (patches of two pixels)
    config.curves = {
        "samples": (64, 128, 256, 512, 1024),
        "fit_from": 128,
        "num_test": 512,
        "teachers": 8,
        "seeds": (0, 1, 2, 3),
    }
    # A fully connected kernel on tori that lie, curved, in many more dimensions
    config.manifold = {
        "dimensions": (1, 2, 3),
        "ambient": (16, 64),
        "samples": (64, 128, 256, 512, 1024),
        "seeds": tuple(range(12)),
    }
    # Their dimension for real images, with the exponent of their learning curve
    config.task = tasks.default_config("digits")
    config.images = {"points": 1797, "samples": (32, 64, 128, 256, 448)}
    if preset == "smoke":
        config.spectrum.grid, config.spectrum.modes = 512, (10, 30)
        config.curves.samples, config.curves.num_test = (64, 128, 256), 128
        config.curves.fit_from, config.curves.seeds = 64, (0, 1)
        config.manifold.samples, config.manifold.seeds = (64, 128, 256), (0, 1)
        config.images.points, config.images.samples = 600, (32, 64, 128)
    elif preset == "paper":
        config.spectrum.grid, config.spectrum.modes = 2048, (20, 120)
        config.curves.samples = (128, 256, 512, 1024, 2048, 4096, 8192)
        config.curves.num_test, config.curves.fit_from = 8192, 256
        config.manifold.samples = (128, 256, 512, 1024, 2048, 4096)
    return config
