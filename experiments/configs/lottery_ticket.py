"""The lottery ticket hypothesis (Frankle & Carbin 2019).

    make reproduce STUDY=lottery_ticket
    python -m experiments.run --config=experiments/configs/lottery_ticket.py:cpu

smoke: seconds, one seed, short budgets. cpu: two minutes. paper: 300-100 units on MNIST, which task.data_dir must hold.
"""

import ml_collections

from experiments import tasks
from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset; a ValueError for an unknown one."""
    config = new_config("lottery_ticket", preset, PRESETS)
    config.task = tasks.default_config("mnist" if preset == "paper" else "digits")
    config.hidden = (128, 64)
    config.learning_rate, config.batch_size = 1.2e-3, 60  # of Adam, the authors'
    # Rounds of training, pruning this share of each layer (half of it of the readout) and going back to the start
    config.share = 0.2
    config.rounds = (0, 6, 12, 16)  # after which tickets are compared with other masks and weights
    # Steps after which accuracy is read; a round of pruning trains for the middle one
    config.budgets = (100, 400, 4000)
    config.num_kernel = 50  # test examples of the tangent kernels
    config.num_masks = 4  # random masks over which alignments are averaged, twice
    config.seeds = tuple(range(8))
    if preset == "smoke":
        config.seeds, config.budgets, config.num_kernel = (0, 1), (20, 60, 120), 20
        config.num_masks = 2
    elif preset == "paper":
        config.hidden, config.budgets = (300, 100), (1000, 10_000, 50_000)
        config.num_kernel, config.num_masks = 100, 10
    else:
        config.task.num_train, config.task.num_test = 1000, 797
    return config
