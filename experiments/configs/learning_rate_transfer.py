"""Why do learning rates transfer? (Noci et al. 2024; Yang & Hu 2021)

    make reproduce STUDY=learning_rate_transfer
    python -m experiments.run --config=experiments/configs/learning_rate_transfer.py:cpu

smoke: under a minute, too small for the claims to mean anything. cpu: the whole study on digits with a ReLU MLP.
paper: the authors' ConvNet, ResNet and ViT on CIFAR-10 and a Transformer on text, for a GPU; choose the network
with paper_convnet (also plain paper), paper_resnet, paper_vit, paper_transformer, and give --config.task.data_dir.
"""

import ml_collections

from experiments import tasks
from experiments.configs import new_config

PRESETS = (
    "smoke",
    "cpu",
    "paper",
    "paper_convnet",
    "paper_resnet",
    "paper_vit",
    "paper_transformer",
)


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("learning_rate_transfer", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.model = {"name": "MLP"}  # or FILE.py:NAME, FILE.py:NAME:FIELD, see experiments.families
    config.parametrizations = ("standard", "ntk", "mup")

    # Every rule is the plain Flax network at base_width; larger widths are scaled from it.
    config.sweep = {
        "depth": 3,
        "base_width": 64,
        "widths": (64, 128, 256, 512, 1024),
        "optimizers": ("sgd", "adam"),
        "loss": "cross_entropy",
        # log2 of the first rate, of the last rate, and how many (as many for each optimizer), in units of the
        # optimizer's edge at initialisation (experiments/rates.py): on the digits 1/2 and 1/32
        "log2_rates": {"sgd": (-2.0, 4.0, 7), "adam": (-5.0, 1.0, 7)},
        # Eight: with Adam a seed's own optimum moves by a third of an octave, and their mean must be known to a fifth.
        "seeds": tuple(range(8)),
        "batch_size": 64,
        "num_test": 1024,
        # Two passes over the digits. After five, the loss near its optimum is a plateau of noise and has no sharp
        # minimum; here the optimum lies between too slow and unstable.
        "steps": 60,
        "chunk": 20,
        # "linear" decay to zero: the loss at the end is then not the noise of the last steps
        "schedule": "linear",
    }
    config.trajectory = {
        "depth": 2,
        # Base width 1: the readout starts small at every width, as in the paper (gamma = sqrt(width)).
        "base_width": 1,
        "widths": (64, 128, 256, 512, 1024),
        "parametrizations": ("ntk", "mup"),
        "loss": "squared_error",
        # in units of 2 over the initial sharpness of the widest network, so that they fit any data
        "learning_rates": {"ntk": 0.37, "mup": 0.37},
        # Four: at width 64 the sharpness of the initial network varies by a factor of two between seeds.
        "seeds": (0, 1, 2, 3),
        "num_train": 256,
        "steps": 150,
        "chunk": 25,
        "lanczos_steps": 6,
    }
    config.coordinates = {
        "depth": 2,
        "base_width": 64,
        "widths": (64, 128, 256, 512, 1024),
        "parametrizations": ("ntk", "mup"),
        "loss": "cross_entropy",
        "learning_rate": 0.1,
        "batch_size": 64,
        "seeds": 4,
        "steps": 3,
    }
    if preset == "smoke":
        _smoke(config)
    elif preset.startswith("paper"):
        _paper(config, preset.removeprefix("paper").removeprefix("_") or "convnet")
    return config


def _smoke(config):
    config.task.num_train = 256
    config.sweep.base_width = config.coordinates.base_width = 16
    config.sweep.depth = 2
    config.sweep.widths = config.trajectory.widths = (16, 64)
    config.coordinates.widths, config.coordinates.parametrizations = (16, 32, 64), ("mup",)
    config.sweep.log2_rates = {"sgd": (-4.0, 4.0, 5), "adam": (-6.0, 2.0, 5)}
    config.sweep.steps, config.sweep.chunk = 20, 10
    config.sweep.seeds = (0, 1)
    config.trajectory.num_train = 128
    config.trajectory.seeds = (0,)
    config.trajectory.steps, config.trajectory.chunk = 20, 10
    config.coordinates.seeds = 2


def _paper(config, network):
    """Noci et al. 2024, Sec. 3: SGD without momentum, batch 128 (256 for ViT), sharpness on 1024 examples."""
    config.task = tasks.default_config("text" if network == "transformer" else "cifar10")
    if network != "transformer":
        config.task.flatten = False
    config.model = {
        "convnet": {"name": "CNN"},
        "resnet": {"name": "ResNet", "branch_scale": 3**-0.5},
        "vit": {"name": "ViT", "heads": 4, "attention_scale": "1/d", "patch": 4},
        "transformer": {"name": "Transformer", "heads": 4, "attention_scale": "1/d"},
    }[network]
    config.sweep.depth = config.trajectory.depth = 3
    config.sweep.base_width = config.trajectory.base_width = 32
    config.sweep.widths = config.trajectory.widths = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    config.coordinates.widths = ()
    config.sweep.seeds = config.trajectory.seeds = (0, 1, 2)
    config.sweep.batch_size = 256 if network == "vit" else 128
    config.sweep.steps, config.sweep.chunk = 7800, 390
    config.trajectory.num_train = 1024
    config.trajectory.steps, config.trajectory.chunk = 5000, 50
