"""Criticality, 1 / width corrections and the depth-to-width ratio (Roberts, Yaida & Hanin 2022).

    make reproduce STUDY=principles
    python -m experiments.run --config=experiments/configs/principles.py:cpu

smoke: under a minute, few networks. cpu: all claims, some three minutes on two cores. paper: ten times as many and
wider networks, an hour. Nothing is trained, and no data are read: theory and networks at initialisation.
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
    config = new_config("principles", preset, PRESETS)
    config.task = tasks.default_config("digits")  # not read: every study has one
    config.seeds = (0, 1, 2)
    # Recursions at infinite width and of first order in 1 / width
    config.theory = {"depth": 1000, "variance": 1.0}
    # Networks without weights, exact in law: numbers are for each seed
    config.sampled = {"widths": (25, 50, 100, 200, 400), "depth": 11, "networks": 12000}
    config.aspect = {"networks": 12000}
    config.pairs = {"width": 400, "depth": 6, "networks": 6000}
    config.residual = {"widths": (200, 400), "depth": 11, "gammas": (0.5, 0.8), "networks": 4000}
    # Networks with weights, three layers, and their tangent kernels
    config.tangent = {"width": 128, "networks": 4000}
    config.change = {"widths": (24, 48, 96), "networks": 2000}
    config.rates = {"depth": 200}
    if preset == "smoke":
        config.seeds = (0, 1)
        config.theory.depth = 200
        config.sampled.widths, config.sampled.networks = (25, 50, 100), 2000
        config.aspect.networks = 2000
        config.pairs.width, config.pairs.networks = 100, 2500
        config.residual.widths, config.residual.networks = (50, 100), 2000
        config.tangent.width, config.tangent.networks = 48, 200
        config.change.widths, config.change.networks = (24, 48), 200
    elif preset == "paper":
        config.sampled.widths = (25, 50, 100, 200, 400, 800, 1600)
        for part in ("sampled", "aspect", "pairs", "residual", "tangent", "change"):
            config[part].networks *= 10
        config.tangent.width, config.change.widths = 256, (24, 48, 96, 192)
    return config
