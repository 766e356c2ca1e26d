"""The rank of initial weights and laziness (Liu et al. 2023).

    make reproduce STUDY=connectivity_rank
    python -m experiments.run --config=experiments/configs/connectivity_rank.py:cpu

smoke: seconds, networks of 20 units that learn nothing. cpu: two minutes. paper: the authors' 300 units, three tasks.
"""

import ml_collections

from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset; a ValueError for an unknown one."""
    config = new_config("connectivity_rank", preset, PRESETS)
    # Linear networks of as many hidden units as inputs; squared Frobenius norm of the weights over norm of the task
    config.linear = {"dim": 20, "ranks": (1, 2, 5, 10, 20), "task_norm": 4.0, "ratio": 5.0}
    config.linear.seeds = tuple(range(8))
    # Recurrent networks: tasks of so many steps in time; gain of the recurrent weights before the cut to a rank
    config.networks = {"tasks": ("two_alternative",), "length": 8, "num_trials": 20_000}
    config.networks.update({"width": 100, "ranks": (1, 10, 100), "gain": 1.25})
    config.networks.update({"learning_rate": 3e-3, "batch_size": 32, "steps": 3000, "chunk": 1000})
    config.networks.seeds = tuple(range(8))
    if preset == "smoke":
        config.linear.seeds = config.networks.seeds = (0, 1)
        config.networks.update({"width": 20, "ranks": (1, 20), "num_trials": 1000})
        config.networks.steps = config.networks.chunk = 50
    elif preset == "paper":
        config.networks.tasks = ("two_alternative", "delayed_match", "context")
        config.networks.update({"width": 300, "ranks": (1, 30, 100, 300)})
        config.networks.update({"steps": 10_000, "num_trials": 100_000})
    return config
