"""Linear attention learns one step of gradient descent (Mahankali et al. 2023; von Oswald et al. 2023).

    make reproduce STUDY=in_context_descent
    python -m experiments.run --config=experiments/configs/in_context_descent.py:cpu

smoke: seconds, nothing converges. cpu: a minute or two. paper: the authors' 10 examples of 10 dimensions, 5000 steps.
"""

import ml_collections

from experiments.configs import new_config

PRESETS = ("smoke", "cpu", "paper")


def get_config(preset: str = "cpu") -> ml_collections.ConfigDict:
    """The configuration of one preset.

    Raises:
        ValueError: unknown preset.
    """
    config = new_config("in_context_descent", preset, PRESETS)
    # Prompts: inputs of so many dimensions, examples, variance of the noise
    config.prompt = {"dim": 4, "num_examples": 12, "noise": 0.3}
    # One layer trained with Adam and a cosine schedule, on fresh prompts
    config.train = {
        "learning_rate": 2e-2,
        "steps": 1500,
        "chunk": 150,
        "batch": 256,
        "start": 0.05,  # size of the product of output and value, and of query and key
        "seeds": (0, 1, 2),
        "num_test": 20_000,
    }
    # Descent with and without correction: n = d, inputs U(-1, 1); best rates over prompts, tested on others
    config.correction = {"dim": 10, "steps": (1, 2), "num_prompts": 1000, "seeds": (0, 1, 2)}
    # Steps of softmax regression as shifts of its weights
    config.softmax = {"classes": 20, "dim": 5, "trials": 2000, "seeds": (0, 1, 2)}
    if preset == "smoke":
        config.train.steps, config.train.chunk, config.train.batch = 60, 30, 64
        config.train.num_test, config.softmax.trials = 2000, 200
        config.correction.num_prompts, config.correction.seeds = 100, (0,)
    elif preset == "paper":
        config.prompt.dim = config.prompt.num_examples = 10
        config.train.steps, config.train.chunk = 5000, 250
        config.train.batch, config.train.learning_rate = 2048, 1e-3
        config.correction.steps = (1, 2, 5)
        config.correction.num_prompts = 10_000
    return config
