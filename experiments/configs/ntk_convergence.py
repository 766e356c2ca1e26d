"""The tangent kernel converges, stays, and predicts (Jacot, Gabriel & Hongler 2018).

    make reproduce STUDY=ntk_convergence
    python -m experiments.run --config=experiments/configs/ntk_convergence.py:cpu

smoke: under a minute, narrow networks and few seeds. cpu: all experiments in some two minutes. paper: the authors'
widths, for a GPU; their MNIST from files with --config.task.name=mnist --config.task.data_dir=...
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
    config = new_config("ntk_convergence", preset, PRESETS)
    # Three hidden layers and a readout (L = 4 in the paper), biases times beta
    config.model = {"depth": 3, "beta": 0.1}
    config.task = tasks.default_config("digits")
    # Sec. 6.1: one row of the kernel at initialisation, on the circle and on digits
    config.start = {
        "inputs": ("circle", "digits"),
        "widths": (64, 128, 256, 512, 1024),
        "points": 32,
        "seeds": tuple(range(20)),
    }
    # Sec. 6.1: the row after gradient descent on x1 x2
    config.drift = {
        "widths": (64, 128, 256, 512),
        "control_widths": (64, 256),
        "num_train": 64,
        "learning_rate": 1.0,
        "steps": 200,
        "seeds": tuple(range(10)),
    }
    # Sec. 6.2: outputs of many networks trained on four points of the circle
    config.ensemble = {
        "widths": (50, 256),
        "learning_rate": 1.0,
        "steps": 1000,
        "angles": 48,
        "seeds": tuple(range(30)),
    }
    # Sec. 6.3: training along the second principal component of the kernel
    config.component = {
        "inputs": ("sphere", "digits"),
        "widths": (64, 256, 512),
        "num_train": 128,
        "dim": 10,
        "steps": 100,
        "chunk": 10,
        "end": 2.0,  # in units of 1 / lambda_2
        "seeds": tuple(range(10)),
    }
    if preset == "smoke":
        _smoke(config)
    elif preset == "paper":
        _paper(config)
    return config


def _smoke(config):
    config.start.inputs, config.component.inputs = ("circle",), ("digits",)
    config.start.widths, config.start.seeds = (16, 64, 256), tuple(range(8))
    config.drift.widths, config.drift.control_widths = (16, 32, 128), (16, 128)
    config.drift.steps, config.drift.seeds = 100, (0, 1, 2, 3)
    config.ensemble.widths, config.ensemble.seeds = (64,), tuple(range(20))
    config.ensemble.steps = 300
    config.component.widths, config.component.seeds = (32, 128), (0, 1)
    config.component.steps, config.component.num_train = 60, 64


def _paper(config):
    """Widths of Jacot et al. 2018, Sec. 6; 512 examples of the image task."""
    config.start.widths = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    config.drift.widths = (500, 1000, 2000, 10000)
    config.drift.control_widths = (500, 2000)
    config.ensemble.widths, config.ensemble.seeds = (50, 1000), tuple(range(100))
    config.component.widths = (100, 1000, 10000)
    config.component.num_train = 512
    config.component.steps, config.component.chunk = 1000, 50
