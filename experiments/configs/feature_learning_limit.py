"""Feature learning in infinite-width networks (Yang & Hu 2021): the dichotomy, and training in the limit itself.

    make reproduce STUDY=feature_learning_limit
    python -m experiments.run --config=experiments/configs/feature_learning_limit.py:cpu

smoke: under a minute, too small for the claims to mean anything. cpu: digits, and Word2Vec on Python's documentation,
three minutes on two cores. All its claims hold but one, "M1 features help, plain digits": meta-training has nothing to
teach there. The limit classifies 81% of new plain digits before it and 80% after; under the random illumination
it goes from 33% to 45%. paper: Word2Vec on text8 (--config.words.data_dir=text8) with the authors' settings, for a
GPU with 40 GB; with their questions (--config.words.analogies=questions-words.txt) where the file is given. The
few-shot task stays digits, with the authors' settings of MAML.
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
    config = new_config("feature_learning_limit", preset, PRESETS)
    config.task = tasks.default_config("digits")
    config.dichotomy = {
        # "r=..." interpolate between ntk (r = 1/2) and mean_field (r = 0) at one learning rate
        "rules": ("ntk", "r=1/3", "r=1/6", "mean_field", "mup", "logits/sqrt(n)"),
        "depth": 2,
        "widths": (128, 256, 512, 1024),
        "seeds": (0, 1, 2, 3),
        "learning_rate": 1.0,
        "num_train": 64,
        "num_test": 64,
        "steps": 20,  # far enough for the readout and the features to have moved each other
    }
    config.convergence = {
        "systems": ("linear", "tanh", "linear, ntk"),
        "widths": (64, 256, 1024, 4096),
        "seeds": (0, 1, 2, 3, 4, 5),
        "learning_rate": 1.0,
        "num_train": 128,
        "num_test": 128,
        "steps": 60,
        "population": 32768,  # particles that stand for the limit of tanh
        "pi": {
            "rank": 16,
            "hidden_layers": 2,
            "learning_rate": 0.5,
            "steps": 20,
            "batch_size": 32,
        },
    }
    config.words = {
        "data_dir": "",  # a text file or folder; Python's documentation by default
        "analogies": "",  # a file of questions in the format of questions-words.txt; the text's own pairs by default
        "vocabulary": 800,
        "widths": (16, 64, 256, 512),
        "seeds": (0, 1, 2),
        "epochs": 6,
        "window": 4,
        "subsample": 1e-3,
        "negatives": 5,
        "learning_rate": 0.1,
        "weight_decay": 0.001,
        "batch_size": 32,
    }
    config.few_shot = {
        # strength of the random illumination; 0 is the plain images
        "backgrounds": (0.0, 1.0),
        "widths": (2, 8, 32, 128),
        "seeds": (0, 1, 2),
        "ways": 5,
        "shots": 1,
        "queries": 3,
        "steps": 400,
        "tasks": 16,
        "test_tasks": 300,
        "inner_rate": 0.4,
        "outer_rate": 0.1,
        "clip": 0.5,
        "test_steps": 20,
        # in units of inner_rate: 1 is the readout's kernel alone (GP), 2 the NTK
        "kernel_rates": (1.0, 2.0, 5.0),
    }
    if preset == "smoke":
        _smoke(config)
    elif preset == "paper":
        _paper(config)
    return config


def _smoke(config):
    config.task.num_train = 256
    config.dichotomy.widths, config.dichotomy.seeds = (32, 128, 512), (0, 1)
    config.dichotomy.rules = ("ntk", "mup")
    config.convergence.widths, config.convergence.seeds = (16, 64, 256), (0, 1)
    config.convergence.steps, config.convergence.systems = 12, ("linear", "linear, ntk")
    config.convergence.pi.steps = 6
    config.words.vocabulary, config.words.epochs = 300, 1
    config.words.widths, config.words.seeds = (16, 64, 300), (0, 1)
    config.few_shot.widths, config.few_shot.seeds = (8,), (0, 1)
    config.few_shot.backgrounds, config.few_shot.kernel_rates = (1.0,), (2.0,)
    config.few_shot.steps, config.few_shot.tasks, config.few_shot.test_tasks = 20, 4, 20


def _paper(config):
    """Yang & Hu 2021, section 9. The vocabulary is cut to what two square matrices in 40 GB allow."""
    config.dichotomy.widths = config.convergence.widths = (64, 256, 1024, 4096, 16384)
    config.convergence.population = 2**18
    config.words.vocabulary = 30000
    config.words.widths = (64, 256, 1024)
    config.words.epochs, config.words.window, config.words.negatives = 5, 8, 25
    config.words.subsample, config.words.learning_rate, config.words.batch_size = 1e-4, 0.05, 64
    config.few_shot.widths = (2, 8, 32, 128, 512, 2048, 8192)
    config.few_shot.steps, config.few_shot.tasks, config.few_shot.queries = 5000, 32, 5
    config.few_shot.test_tasks = 2000
