"""A trained attention layer is a support vector machine on its tokens (Tarzanagh et al. 2023).

    make reproduce STUDY=attention_svm
    python -m experiments.run --config=experiments/configs/attention_svm.py:cpu

smoke: seconds. cpu: a minute. paper: the authors' 100 runs, and their sweep of dimensions.
"""

import ml_collections

from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("attention_svm", preset, PRESETS)
    # Examples of so many unit tokens of so many dimensions, random labels and values
    config.layer = {
        "examples": 6,
        "tokens": 8,
        "dim": 10,
        "step_size": 0.1,
        "steps": 2000,
        "decay": 2.2e-16,  # the authors'
        "points": 40,
        "seeds": tuple(range(20)),
    }
    # Which of orthonormal tokens are selected from W = 0
    config.selection = {"steps": 400}
    # Whether the best tokens can be separated: examples and tokens each, dimensions, draws
    config.feasible = {"size": 5, "dims": (1, 2, 3, 4, 6, 8), "draws": 20}
    if preset == "smoke":
        config.layer.steps, config.layer.seeds, config.layer.points = 300, (0, 1, 2), 10
        config.feasible.draws = 6
    elif preset == "paper":
        config.layer.seeds = tuple(range(100))
        config.feasible.dims, config.feasible.draws = tuple(range(1, 21)), 100
        config.feasible.size = 15
    return config
