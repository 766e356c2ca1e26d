"""More is better in random-feature regression, and a layer as random features.

    make reproduce STUDY=random_features
    python -m experiments.run --config=experiments/configs/random_features.py:cpu

smoke: half a minute, few modes and images. cpu: all experiments in some two minutes. paper: the authors' 10^4 modes
and 45 trials, for a machine with 32 GB of memory.
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
    config = new_config("random_features", preset, PRESETS)
    # Gaussian features with power laws alpha = beta = 1.5 and noise 1/2: n or k is fixed, the other is counted
    config.gaussian = {
        "modes": 1500,
        "exponent": 1.5,
        "noise": 0.5,
        "fixed": 128,
        "counts": (16, 32, 64, 128, 256, 512),
        "ridges": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
        "seeds": tuple(range(64)),
    }
    # Learnabilities of the first modes, one regression for every mode at once
    config.learnability = {
        "modes": 300,
        "samples": 48,
        "ridges": (0.0, 0.1, 1.0),
        "seeds": tuple(range(64)),
    }
    # Where overfitting is obligatory: exponents of the kernel and the target, noise over the bare risk
    config.phase = {
        "alpha": (1.3, 1.5, 2.0),
        "beta": (1.2, 1.5, 1.8, 2.2, 2.6),
        "noise": (0.0, 0.5, 2.0),
        "samples": 300,
    }
    # NTK of two layers on images, predicted from its spectrum on all of them
    config.task = tasks.default_config("digits")
    config.images = {
        "points": 1797,
        "counts": (50, 100, 200, 400),
        "ridges": (0.0, 0.02, 0.2, 2.0),
        "noise": (0.0, 0.5),
        "seeds": tuple(range(8)),
    }
    # A layer of sines as random features: draws of one, errors of one and two, least squares on the images
    config.layer = {
        "inputs": 16,
        "norms": (0.3, 0.6, 1.0),
        "draws": 2000,
        "features": (64, 256, 1024),
        "train": 1200,
        "seeds": tuple(range(6)),
        "bundle_seeds": tuple(range(32)),
    }
    if preset == "smoke":
        config.gaussian.modes, config.gaussian.seeds = 500, tuple(range(4))
        config.gaussian.counts = (64, 128, 256)
        config.learnability.seeds = tuple(range(16))
        config.phase.alpha, config.phase.beta, config.phase.noise = (
            (1.5, 2.0),
            (1.2, 1.8),
            (0.0, 2.0),
        )
        config.images.points, config.images.counts = 1000, (50, 100)
        config.images.seeds = (0, 1, 2)
        config.layer.draws, config.layer.features = 500, (64, 256)
        config.layer.train, config.layer.seeds = 700, (0, 1, 2)
        config.layer.bundle_seeds = tuple(range(8))
    elif preset == "paper":
        config.gaussian.modes, config.gaussian.fixed, config.gaussian.seeds = (
            10000,
            256,
            tuple(range(45)),
        )
        config.gaussian.counts = (10, 25, 50, 100, 256, 500, 1000, 2500, 5000, 10000)
        config.gaussian.ridges = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
        config.layer.features = (64, 256, 1024, 4096)
    return config
