"""Modern Hopfield networks retrieve, average and cluster (Ramsauer et al. 2021).

    make reproduce STUDY=hopfield_retrieval
    python -m experiments.run --config=experiments/configs/hopfield_retrieval.py:cpu

smoke: some seconds. cpu: half a minute. paper: more draws and dimensions. Nothing is trained.
"""

import ml_collections

from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("hopfield_retrieval", preset, PRESETS)
    # Single updates: energy, retrieval error, attention
    config.single = {"count": 300, "dim": 32, "seeds": (0, 1, 2)}
    # Weight on the own pattern against the number of patterns, in units of the predicted capacity
    config.capacity = {
        "betas": (0.5, 1.0),
        "dims": (12, 16, 20, 24),
        "shares": (0.5, 0.7, 0.85, 1.0, 1.15),
        "states": 100,
        "largest": 120_000,  # patterns; beyond it a point is left out
        "seeds": (0, 1, 2, 3),
    }
    # Fixed points of clustered patterns and of others
    config.phases = {
        "clusters": 8,
        "dim": 32,
        "spread": 0.08,
        "betas": (0.1, 1.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, 50.0, 100.0),
        "seeds": (0, 1, 2),
    }
    if preset == "smoke":
        config.single.count, config.capacity.states = 50, 20
        config.capacity.seeds = (0, 1)
    elif preset == "paper":
        config.capacity.dims, config.capacity.largest = (12, 16, 20, 24, 28), 2_000_000
        config.capacity.seeds = config.phases.seeds = tuple(range(10))
    return config
