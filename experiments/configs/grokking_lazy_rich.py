"""Does a network grok because it leaves the lazy regime late? (Kumar et al. 2024)

    make reproduce STUDY=grokking_lazy_rich
    python -m experiments.run --config=experiments/configs/grokking_lazy_rich.py:cpu

smoke: under a minute, too small for the claims to mean anything. cpu: about two minutes; polynomial regression in
dimension 40, and an MLP on digits. paper: the authors' sizes (dimension 100, width 500, up to 100000 steps; one data
set size and target for all of its figures), hours on two cores, and an MLP of width 200 on 1000 MNIST images: give
--config.digits.task.data_dir=FOLDER.
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
    config = new_config("grokking_lazy_rich", preset, PRESETS)
    config.task = tasks.default_config("polynomial")
    config.epsilon = 0.25
    # c of a learning rate c * width on the loss divided by alpha^2. The authors take 0.5: the same curves, four
    # times as many steps.
    config.learning_rate = 2.0
    # A loss counts as low below this share of its first value.
    config.threshold = 0.1
    # Seeds of the data, and in widths also of the weights (in network only of these).
    config.seeds = (0, 1, 2, 3, 4)
    # Steps at which the closed dynamics are recorded.
    config.records = 100

    config.sweep = {"alphas": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0), "steps": 10000}
    config.network = {
        "width": 100,
        "alphas": (0.5, 2.0),
        "seeds": (0, 1, 2),
        "centered": True,
        # examples per step; 0 is the full batch, gradient descent
        "batch_sizes": (0, 60),
        "steps": 2000,
        "chunk": 10,
    }
    config.widths = {"widths": (16, 32, 64, 128, 256, 512, 1024), "alpha": 1.0, "steps": 300}
    config.epsilons = {
        "grid": (0.1, 0.25, 0.5, 1.0, 2.0),
        "alpha": 1.0,
        "threshold": 0.2,
        "steps": 4000,
    }
    config.examples = {
        "num_train": (60, 120, 160, 240, 400, 820),
        "alpha": 2.0,
        "steps": 2000,
        "seeds": (0, 1, 2),
    }
    # Start of weights with extra variance strength^2 along the target's direction.
    config.aligned = {"strengths": (0.0, 2.0, 4.0, 8.0, 16.0), "alpha": 4.0, "steps": 5000}
    config.map = {
        "dim": 20,
        "num_train": 120,
        "alphas": (0.5, 1.0, 2.0, 4.0, 8.0),
        "epsilons": (0.05, 0.1, 0.2, 0.4, 0.8),
        "seeds": (0, 1, 2),
        "steps": 3000,
    }
    # Dynamical mean-field theory of three neurons, whose weights overlap with the target's direction by so much.
    config.dmft = {
        "overlap": (0.4, -0.3, 0.2),
        "density": 3.0,
        "alpha": 2.0,
        "epsilon": 0.5,
        "learning_rate": 0.1,
        "steps": 40,
        "samples": 2000,
        "dims": (50, 400),
    }
    config.digits = {
        "task": tasks.default_config("digits"),
        "width": 100,
        "depth": 2,
        # standard deviation of the first weights over that of Flax's default
        "init_scale": 4.0,
        "alphas": (0.01, 0.1),
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "batch_size": 40,
        "seeds": (0, 1, 2),
        "steps": 4000,
        "chunk": 50,
    }
    config.digits.task.num_train = 200
    if preset == "smoke":
        _smoke(config)
    elif preset == "paper":
        _paper(config)
    return config


def _smoke(config):
    config.task.dim, config.task.num_train, config.task.num_test = 10, 60, 200
    config.seeds = config.examples.seeds = (0, 1)
    config.records = 30
    config.sweep.alphas, config.sweep.steps = (0.25, 1.0, 4.0, 32.0), 600
    config.network.width, config.network.steps = 50, 100
    config.network.seeds = (0,)
    config.network.alphas = (2.0,)
    config.network.batch_sizes = (0, 15)
    config.widths.widths, config.widths.steps = (16, 64, 256), 50
    config.epsilons.grid, config.epsilons.steps = (0.25, 1.0), 200
    config.examples.num_train, config.examples.steps = (15, 60), 200
    config.aligned.strengths, config.aligned.steps = (0.0, 8.0), 300
    config.map.dim, config.map.num_train, config.map.steps = 10, 60, 200
    config.map.alphas, config.map.epsilons = (0.5, 4.0), (0.25, 1.0)
    config.map.seeds = (0,)
    config.dmft.overlap, config.dmft.steps, config.dmft.samples = (0.4, -0.3), 8, 500
    config.dmft.dims = (40,)
    config.digits.width, config.digits.seeds = 32, (0,)
    config.digits.steps = 100


def _paper(config):
    """Kumar et al. 2024: Fig. 3a, b and e (centred, learning rate 0.5 N), Fig. 1 for the network, Fig. 5 for MNIST."""
    config.task.dim, config.task.num_train = 100, 450
    config.learning_rate = 0.5
    config.sweep.alphas = tuple(2.0**k for k in range(-5, 6))
    config.sweep.steps = 60000
    config.network.width, config.network.alphas, config.network.centered = 500, (1.0,), False
    config.network.batch_sizes = (0,)
    config.network.steps, config.network.chunk = 100000, 100
    config.epsilons.grid, config.epsilons.steps = (0.25, 0.5, 1.0, 2.0, 4.0), 60000
    config.examples.num_train = (150, 300, 450, 1000, 2500, 5050, 10000)
    config.examples.steps = 20000
    config.aligned.steps = 60000
    config.map.dim, config.map.num_train, config.map.steps = 100, 550, 100000
    config.map.seeds = (0,)
    config.map.alphas = tuple(0.4 * k for k in range(1, 15))
    config.map.epsilons = tuple(0.02 * k for k in range(1, 15))
    config.digits.task = tasks.default_config("mnist")
    config.digits.task.num_train = 1000
    config.digits.width, config.digits.depth, config.digits.init_scale = 200, 3, 150.0
    config.digits.alphas, config.digits.weight_decay = (1e-3, 0.01, 0.05, 0.5), 0.01
    config.digits.batch_size, config.digits.steps, config.digits.chunk = 200, 250000, 250
