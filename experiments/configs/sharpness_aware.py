"""The edge of stability of sharpness-aware minimisation, and SAM under label noise (Long & Bartlett 2023).

    make reproduce STUDY=sharpness_aware
    python -m experiments.run --config=experiments/configs/sharpness_aware.py:cpu

smoke: half a minute. cpu: two minutes. paper: a wider network on all digits, more radii and seeds.
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
    config = new_config("sharpness_aware", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.task.num_train, config.task.num_test = 1000, 797  # all that are not trained on
    config.width = 64  # of two hidden layers
    # All examples at a time (batch_size 0), tanh, squared error; with a rate meant to stay below its edge; with random
    # directions in place of the gradient's
    edge = {"num_train": 300, "batch_size": 0, "learning_rate": 0.4, "radii": (0.0, 0.03, 0.1, 0.3)}
    edge |= {"noises": (0.0,), "steps": 2000, "chunk": 40, "seeds": (0, 1, 2)}
    config.edge, config.edge_small = edge, edge | {"learning_rate": 0.05, "radii": (0.0, 0.1)}
    config.edge_random = edge | {"radii": (0.03, 0.1, 0.3)}
    # Gelu, cross-entropy, momentum .9; noises: share of labels redrawn
    batch = edge | {"num_train": 1000, "batch_size": 64, "learning_rate": 0.1}
    batch |= {"radii": (0.0, 0.1, 0.3, 0.6), "noises": (0.0, 0.2), "steps": 1500, "chunk": 150}
    config.batch = batch = batch | {"seeds": tuple(range(8))}
    config.batch_random = batch | {"radii": (0.1, 0.3), "noises": (0.0,)}
    config.formula_seeds = (0, 1, 2)
    for name in ("edge", "edge_small", "edge_random", "batch", "batch_random"):
        part = config[name]
        if preset == "smoke":
            part.num_train, part.seeds, part.steps = 200, (0, 1), part.steps // 3 // 20 * 20
            part.chunk = part.steps // 20
        elif preset == "paper":
            part.num_train, part.seeds, part.steps = 1000, tuple(range(16)), 20_000
            part.chunk = 200
    if preset == "paper":
        config.width = 512
        config.edge.radii = config.batch.radii = (0.0, 0.03, 0.05, 0.1, 0.2, 0.3, 0.6)
    return config
