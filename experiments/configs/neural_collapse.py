"""Neural collapse in deep linear networks: from balanced to imbalanced data (Dang et al. 2023).

    make reproduce STUDY=neural_collapse
    python -m experiments.run --config=experiments/configs/neural_collapse.py:cpu

smoke: under a minute, trained too briefly for the claims to hold. cpu: the study at larger weight decay than the
authors', so that a tenth of the steps is enough, and on digits. paper: the authors' sizes, decays and steps, with the
MLP of their imbalanced CIFAR-10 experiment, for a GPU; give --config.task.data_dir.
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
    config = new_config("neural_collapse", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.task.flatten = False

    # Squared error, unconstrained features, from small random weights.
    config.free = {
        "depths": (1, 3, 6),  # linear layers M above the features
        "balanced": (20, 20, 20, 20),
        "imbalanced": (40, 20, 10, 10),
        "width": 32,
        "decay": 5e-3,  # of every layer and of the features
        "init_std": 0.18,  # 1 / sqrt(width)
        "learning_rate": 0.1,  # gradient descent with momentum 0.9
        "steps": 3000,
        "chunk": 150,
        "seeds": (0, 1, 2),
    }
    # Squared error, class sizes on both sides of the threshold of minority collapse, from a fitted network.
    config.tail = {
        "depths": (1, 2, 3, 4),
        "sizes": (100, 60, 40, 30, 24, 20, 18, 16, 14, 13, 12, 11, 10, 9, 8, 6),
        "threshold": 11.5,  # the class size that theory says collapses; sets the decay of each depth
        "width": 16,
        "init_std": 0.01,
        "learning_rate": 0.3,
        "steps": 6000,
        "chunk": 6000,
        "seeds": (0, 1),
    }
    # Cross-entropy, one sample a class, from random weights and from the simplex.
    config.map = {
        "depths": (1, 2, 3, 4),
        "classes": (3, 4, 5, 6, 8, 10),
        "decay": 1e-3,
        "init_std": 0.25,
        "simplex_std": 0.01,  # of the noise in the start from the simplex
        "learning_rate": 0.02,  # Adam, decayed to zero
        "steps": 2500,
        "chunk": 2500,
        "seeds": tuple(range(16)),
    }
    # Networks on images, full batch; decay of the linear layers and of the features alone, as in the theory.
    config.networks = ("mlp_1", "mlp_3", "cnn_1")
    config.mlp_1 = {
        "model": {"name": "MLP", "depth": 3},
        "width": 128,
        "linear": 1,
        "features": 64,
        "loss": "squared_error",
        "sizes": (10, 10, 20, 20, 30, 30, 40, 40, 50, 50),
        "weight_decay": 2e-3,
        "feature_decay": 1e-3,
        # Adam; in units of its edge at initialisation (experiments/rates.py), on the digits 2e-3, or of "one"
        "learning_rate": 0.512,
        "rate_unit": "edge",
        "drops": (0.6, 0.85),  # shares of the steps at which the rate falls to a tenth
        "steps": 5000,
        "chunk": 200,
        "seed": 0,
    }
    config.mlp_3 = config.mlp_1.copy_and_resolve_references()
    config.mlp_3.linear, config.mlp_3.learning_rate = 3, 1.024
    config.cnn_1 = config.mlp_1.copy_and_resolve_references()
    config.cnn_1.update(
        {
            "model": {
                "name": "CNN",
                "depth": 2,
                "pooling": "flatten",
                "strides": 2,
            },
            "width": 64,
            "loss": "cross_entropy",
            "sizes": (10,) * 10,
            "weight_decay": 5e-3,
            "feature_decay": 5e-3,
            "steps": 3000,
            "chunk": 100,
        }
    )
    # Networks below a learnt readout and below fixed class vectors, full batch; no seeds leave them out.
    config.fixed = {
        "model": {"name": "MLP", "depth": 2},
        "width": 128,
        "features": 64,
        "temperature": 0.07,  # of the cosines; the authors'
        "learning_rate": 2e-3,  # Adam
        "steps": 400,
        "seeds": (0, 1, 2),
    }
    if preset == "smoke":
        _smoke(config)
    elif preset == "paper":
        _paper(config)
    return config


def _smoke(config):
    config.free.depths = (2,)
    config.free.steps, config.free.chunk, config.free.seeds = 1500, 300, (0, 1)
    config.tail.depths = (1, 2)
    config.tail.sizes, config.tail.threshold = (40, 20, 12, 8, 6, 5, 4, 3), 5.5
    config.tail.steps = config.tail.chunk = 2000
    config.tail.seeds = (0,)
    config.map.depths, config.map.classes = (3,), (3, 10)
    config.map.steps = config.map.chunk = 1000
    config.networks = ("mlp_1", "cnn_1")
    for name in config.networks:
        part = config[name]
        part.model.depth, part.width, part.features, part.sizes = 1, 16, 16, (5, 10) * 5
        part.steps, part.chunk = 60, 20
    config.cnn_1.sizes = (5,) * 10
    config.fixed.width, config.fixed.steps, config.fixed.seeds = 32, 60, (0, 1)


def _paper(config):
    """Dang et al. 2023: direct optimisation with decay 5e-4; MLP of width 2048 on a subset of CIFAR-10."""
    config.task = tasks.default_config("cifar10")
    config.task.flatten = False
    config.free.depths = (1, 3, 6, 9)
    config.free.balanced, config.free.imbalanced = (100,) * 4, (200, 100, 50, 50)
    config.free.width, config.free.decay, config.free.init_std = 64, 5e-4, 0.1
    config.free.steps, config.free.chunk = 30_000, 500
    config.map.classes = tuple(range(3, 13))
    config.map.depths = (1, 2, 3, 4, 5, 6)
    config.map.seeds = tuple(range(64))
    config.fixed.width, config.fixed.steps, config.fixed.seeds = 2048, 4000, tuple(range(5))
    config.networks = ("mlp_1", "mlp_3", "mlp_6")
    config.mlp_6 = config.mlp_3.copy_and_resolve_references()
    for name, linear in zip(config.networks, (1, 3, 6)):
        part = config[name]
        part.model = {"name": "MLP", "depth": 5}  # six ReLU layers: five and the features
        part.width = part.features = 2048
        part.linear = linear
        part.sizes = (100, 100, 200, 200, 300, 300, 400, 400, 500, 500)
        part.weight_decay = part.feature_decay = 1e-5
        part.learning_rate, part.rate_unit, part.drops = 1e-4, "one", (0.5,)
        part.steps, part.chunk = 12_000, 200
