"""To grok or not to grok: memorisation beside generalisation on corrupted modular addition (Doshi et al. 2023).

    make reproduce STUDY=grokking_corrupted
    python -m experiments.run --config=experiments/configs/grokking_corrupted.py:cpu

smoke: under a minute, too small for the claims to mean anything. cpu: the whole study at p = 59.
paper: the authors' p = 97, 500 neurons and 17 x 17 phase diagrams, for a GPU.
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
    config = new_config("grokking_corrupted", preset, PRESETS)
    # Its fraction, noise and seed are set by each part of the study.
    config.task = tasks.default_config("modular")
    config.task.encoding = "tokens"
    config.network = {"width": 300, "init_scale": 0.5}
    # b2 as the authors have it; weight decay is decoupled (learning rate x decay x weight)
    config.optimizer = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.98}
    # BatchNorm learns from minibatches, at a learning rate scaled by sqrt(batch_size / 256)
    config.minibatch = {"batch_size": 64}

    # The close look: one point of the phase diagram over time, neuron by neuron.
    config.runs = {
        "fraction": 0.7,
        "noise": 0.2,
        "seeds": (0, 1, 2),
        # (kind, strength); kinds: decay, dropout, batch_norm (no strength)
        "regularisers": (("decay", 0.0), ("decay", 10.0), ("dropout", 0.5), ("batch_norm", 0.0)),
        "steps": 300,
        "minibatch_steps": 900,
        "probes": 30,
        "groups": 10,
        # training on this noise must not generalise
        "control_noise": 1.0,
    }
    config.phases = {
        "fractions": (0.3, 0.5, 0.7, 0.9),
        "noises": (0.1, 0.3, 0.5),
        "regularisers": (
            ("decay", 0.0),
            ("decay", 10.0),
            ("decay", 40.0),
            ("dropout", 0.5),
            ("batch_norm", 0.0),
        ),
        "steps": 200,
        "minibatch_steps": 900,
        "probes": 1,
        "seed": 0,
    }
    # One layer, ReLU, cross-entropy; smaller than the authors' and more strongly decayed.
    config.transformer = {
        "modulus": 31,
        "width": 32,
        "heads": 4,
        "fraction": 0.8,
        "noise": 0.1,
        "decays": (0.0, 2.0),
        "seeds": (0, 1),
        "learning_rate": 0.01,
        "steps": 600,
        # last part of the steps, over which the learning rate falls to zero
        "cooldown": 0.25,
        "probes": 20,
        "groups": 5,
    }
    # The analytic solution with random phases, at multiples of (p - 1) / 2 neurons.
    config.analytic = {"neurons_per_frequency": (1, 2, 3, 4, 6, 8), "seeds": 8}
    if preset == "smoke":
        _smoke(config)
    elif preset == "paper":
        _paper(config)
    return config


def _smoke(config):
    config.task.modulus = 13
    config.network.width = 40
    config.runs.seeds = (0, 1)
    config.runs.steps, config.runs.minibatch_steps, config.runs.probes = 40, 40, 4
    config.phases.fractions, config.phases.noises = (0.5, 0.8), (0.1, 0.4)
    config.phases.regularisers = (("decay", 0.0), ("decay", 10.0))
    config.phases.steps = config.phases.minibatch_steps = 40
    config.transformer.modulus, config.transformer.width = 11, 8
    config.transformer.steps, config.transformer.probes = 20, 4
    config.transformer.seeds = (0,)


def _paper(config):
    """Doshi et al. 2023: p = 97, 500 neurons; noise .35 in Fig. 3, phase diagrams of 17 x 17 cells."""
    grid = tuple(0.1 + 0.05 * i for i in range(17))
    config.task.modulus = 97
    config.network.width = 500
    config.runs.fraction, config.runs.noise = 0.5, 0.35
    config.runs.steps, config.runs.minibatch_steps = 1000, 2000
    config.runs.probes = 100
    config.runs.regularisers = (
        *(("decay", 0.0), ("decay", 5.0), ("decay", 15.0)),
        *(("dropout", 0.3), ("dropout", 0.6), ("batch_norm", 0.0)),
    )
    config.phases.fractions = config.phases.noises = grid
    config.phases.regularisers = (
        *(("decay", 0.0), ("decay", 5.0), ("decay", 15.0), ("decay", 20.0)),
        *(("dropout", 0.3), ("dropout", 0.6), ("dropout", 0.9), ("batch_norm", 0.0)),
    )
    config.phases.steps = config.phases.minibatch_steps = 2000
    config.transformer.modulus, config.transformer.width = 97, 128
    config.transformer.decays, config.transformer.steps = (0.0, 0.5), 1000
    config.transformer.cooldown = 0.0
