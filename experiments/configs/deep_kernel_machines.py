"""Deep kernel machines learn Gram matrices (Yang et al. 2023).

    make reproduce STUDY=deep_kernel_machines
    python -m experiments.run --config=experiments/configs/deep_kernel_machines.py:cpu

smoke: under a minute, fewer points and seeds. cpu: all of it in some two minutes. paper: more points, seeds and nu.
"""

import ml_collections

from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("deep_kernel_machines", preset, PRESETS)
    # Linear layers of unequal nu against the closed form
    config.linear = {"seeds": (0, 1, 2, 3)}
    # The distance of two hidden layers from the NNGP against nu
    config.nngp = {"points": 10, "seeds": (0, 1, 2, 3)}
    # Deep Gaussian processes of so many features, their targets as often: samples after as many half of warming up
    config.posterior = {
        "points": 6,
        "copies": (4, 16, 64),
        "samples": 4000,
        "seeds": (0, 1, 2, 3),
    }
    # Nested sets of a quarter, half and all of the points as inducing points
    config.sparse = {"points": 12, "seeds": (0, 1, 2, 3)}
    # A linear layer that learns below a squared exponential kernel, by its nu
    config.prediction = {
        "points": 32,
        "num_test": 200,
        "nus": (0.1, 1.0, 10.0, 100.0, 1e4),
        "seeds": (0, 1, 2, 3),
    }
    if preset == "smoke":
        config.linear.seeds = config.nngp.seeds = config.sparse.seeds = (0, 1)
        config.posterior.samples, config.posterior.seeds = 200, (0, 1)
        config.prediction.points, config.prediction.seeds = 24, (0, 1)
        config.prediction.nus = (1.0, 10.0, 1e4)
    elif preset == "paper":
        config.nngp.points, config.sparse.points, config.prediction.points = 64, 64, 128
        config.posterior.copies, config.posterior.samples = (4, 16, 64, 256), 20000
        config.prediction.nus = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
        seeds = tuple(range(10))
        config.nngp.seeds = config.sparse.seeds = config.prediction.seeds = seeds
    return config
