"""What the theory of wide networks says about a model of yours, measured on it.

    python -m experiments.card my_module.py:family --data digits

smoke: too small for the claims to mean anything. cpu: for two cores. paper: wider networks and more seeds, for an
accelerator. ``--config.parts="('axes', 'kernel')"`` measures these parts alone.
"""

import ml_collections

from experiments import tasks
from experiments.configs import new_config

DEPTH = 3
PRESETS = ("smoke", "cpu", "paper")
PARTS = (
    "axes",
    "coordinates",
    "signals",
    "criticality",
    "kernel",
    "spectrum",
    "prediction",
    "laziness",
    "sharpness",
    "transfer",
    "collapse",
)


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("card", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.task.flatten = False
    # An architecture of models, or FILE.py:NAME, or FILE.py:NAME:FIELD for a class whose width is FIELD. depth and
    # other fields are given to an architecture of models; a model of a file gets what it has an argument for, and
    # keeps a depth of its own unless another than this one is asked for.
    config.model = {"name": "MLP", "depth": DEPTH}
    config.call = ""  # keywords of every call of the model, such as train=False
    # "vectors", "as they are" (images, tokens), or "auto": vectors where the model takes them
    config.inputs = "auto"
    config.loss = "auto"  # cross_entropy or squared_error; auto: by the kind of the targets
    config.parts = PARTS  # what is on the card
    config.base_width = 16  # where every rule is the model itself
    config.widths = (64, 128, 256)
    config.seeds = (0, 1, 2, 3)

    # Rates are in units of 2 over the sharpness before training, so that they fit any model.
    config.coordinates = {
        "rules": ("standard", "ntk", "mup"),
        "base_width": 8,  # well below the widths, or the outputs at the start bend the fits
        "widths": (32, 128, 512),
        "seeds": 8,
        "batch": 64,
        "steps": 3,
        "learning_rate": 0.25,
    }
    config.signals = {"examples": 32}
    config.kernel = {"examples": 8, "seeds": 16}
    config.spectrum = {"examples": 200}
    config.prediction = {"examples": 48, "steps": 100, "learning_rate": 0.25}
    config.laziness = {"examples": 32, "steps": 50, "learning_rate": 0.25}
    config.sharpness = {"examples": 128, "steps": 200, "chunk": 5, "learning_rate": 0.5}
    config.transfer = {
        "batch": 64,
        "steps": 60,
        "log2_rates": (-11.0, -4.0, 8),  # of Adam: the first, the last, how many
    }
    config.collapse = {"examples": 100, "steps": 400, "learning_rate": 2.0**-8}
    if preset == "smoke":
        config.widths, config.seeds = (32, 64, 128), (0, 1)
        config.coordinates.rules, config.coordinates.seeds = ("standard", "mup"), 4
        # Of the network and the batch of the laziness: one program says the largest stable rate of both.
        config.base_width, config.coordinates.batch = config.coordinates.base_width, 16
        config.kernel.seeds, config.kernel.examples = 4, 4
        config.spectrum.examples = 40
        config.prediction.examples, config.prediction.steps = 16, 20
        config.laziness.examples, config.laziness.steps = 16, 10
        config.sharpness.examples, config.sharpness.steps = 32, 80
        config.transfer.log2_rates, config.transfer.steps = (-10.0, -4.0, 4), 20
        config.collapse.steps = 40
    if preset == "paper":
        config.widths, config.seeds = (64, 256, 1024, 4096), tuple(range(8))
        config.coordinates.rules = ("standard", "mup")
        config.kernel.seeds, config.spectrum.examples = 64, 1000
        config.transfer.steps, config.transfer.log2_rates = 500, (-12.0, -2.0, 11)
        config.sharpness.steps = 1000
    return config
