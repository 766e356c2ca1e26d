"""Trials of neuroscience as sequences: a fixation input, stimuli in noise, and a decision at the last step.

Each function draws trials: inputs (N, T, channels), float32; labels (N, T), 0 while the first channel (fixation) is 1
and the choice, 1 or 2, at the last step, where all inputs are 0. Written from the description of the tasks in Liu et
al. 2023, arXiv:2310.08513, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.tasks.arrays import INPUTS, Data, generator

COHERENCES = (0.064, 0.128, 0.256, 0.512)


def two_alternative(num_trials: int, steps: int, seed: int, *, noise: float = 0.1) -> Data:
    """Which of two stimuli is the stronger: .5 + z and .5 - z, |z| half a coherence.

    Args:
        num_trials: N.
        steps: T, at least 2.
        seed: of all random numbers.
        noise: standard deviation added to the stimuli at each step.

    Raises:
        ValueError: too few trials or steps, or noise that is negative.
    """
    random, choice = _begin(num_trials, steps, seed, noise)
    level = _signed(random, choice)
    stimuli = np.stack([0.5 + level / 2, 0.5 - level / 2], axis=-1)
    return _trials(random, np.repeat(stimuli[:, None], steps, axis=1), choice, noise)


def context(num_trials: int, steps: int, seed: int, *, noise: float = 0.1) -> Data:
    """As `two_alternative`, of two pairs of stimuli; two context inputs say which pair counts."""
    random, choice = _begin(num_trials, steps, seed, noise)
    which = random.integers(0, 2, num_trials)
    levels = np.stack([_signed(random, c) for c in (choice, random.integers(0, 2, num_trials))], 1)
    levels = np.where(which[:, None] == 0, levels, levels[:, ::-1])
    stimuli = np.concatenate([0.5 + levels / 2, 0.5 - levels / 2], axis=1)
    cue = np.eye(2)[which]
    return _trials(random, np.repeat(stimuli[:, None], steps, axis=1), choice, noise, cue)


def delayed_match(num_trials: int, steps: int, seed: int, *, noise: float = 0.1) -> Data:
    """Whether the second of two stimuli, a third of the steps each and a third apart, is the first again.

    Stimuli are the cosine and sine of one of two opposite angles, around .5.
    """
    random, choice = _begin(num_trials, steps, seed, noise)
    first, part = random.integers(0, 2, num_trials), max(1, (steps - 1) // 3)
    second = np.where(choice == 0, first, 1 - first)
    stimuli = np.zeros((num_trials, steps, 2))
    for begin, angle in ((0, first), (steps - 1 - part, second)):
        shown = 0.5 + 0.5 * np.stack([np.cos(np.pi * angle), np.sin(np.pi * angle)], axis=-1)
        stimuli[:, begin : begin + part] = shown[:, None]
    return _trials(random, stimuli, choice, noise)


TASKS: dict[str, Callable[..., Data]] = {
    "two_alternative": two_alternative,
    "context": context,
    "delayed_match": delayed_match,
}


def _begin(num_trials, steps, seed, noise):
    if num_trials < 1 or steps < 2 or not noise >= 0:
        raise ValueError(
            f"num_trials={num_trials}, steps={steps} and noise={noise} must be at least 1, 2 and 0"
        )
    random = generator(seed, INPUTS)
    return random, random.integers(0, 2, num_trials)


def _signed(random, choice):
    return np.where(choice == 0, 1, -1) * random.choice(COHERENCES, len(choice))


def _trials(random, stimuli, choice, noise, cue=None):
    count, steps, _ = stimuli.shape
    stimuli = stimuli + noise * random.standard_normal(stimuli.shape)
    shown = [np.ones((count, steps, 1)), stimuli]
    if cue is not None:
        shown.append(np.repeat(cue[:, None], steps, axis=1))
    inputs = np.concatenate(shown, axis=-1).astype(np.float32)
    inputs[:, -1] = 0
    labels = np.zeros((count, steps), np.int32)
    labels[:, -1] = choice + 1
    return Data(inputs, labels)
