"""The information plane (arXiv:1703.00810) and information-theoretic bounds (arXiv:2404.03176).

    make reproduce STUDY=information_plane
    python -m experiments.run --config=experiments/configs/information_plane.py:cpu

smoke: short training. cpu: two minutes, 2000 epochs. paper: the authors' 8000 epochs, 40 networks, four rules.
"""

import ml_collections

from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("information_plane", preset, PRESETS)
    # Networks 12-10-7-5-4-3-2 on rules of these seeds; information at so many moments, with so many draws of noise
    config.network = {
        "rules": (0, 1),
        "steps": 13_600,
        "probes": 16,
        "batch_size": 512,
        "learning_rate": 4e-4,
        "train_share": 0.85,
        "gain": 400.0,
        "draws": 200,
        "seeds": tuple(range(6)),
    }
    # Gaussian classifiers with so many examples; random linear networks
    config.bounds = {"examples": (5, 10, 18, 32, 56, 100), "nets": 400}
    if preset == "smoke":
        config.network.steps, config.network.probes, config.network.draws = 1500, 8, 100
        config.network.seeds = (0, 1)
        config.bounds.nets = 50
    elif preset == "paper":
        config.network.rules, config.network.seeds = (0, 1, 2, 3), tuple(range(40))
        config.network.steps, config.network.probes, config.network.draws = 54_400, 40, 1000
    return config
