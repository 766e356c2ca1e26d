"""Modular arithmetic: the full table of a operation b mod p, part of it for training, part of that corrupted.

Source: Power et al. 2022 (arXiv 2201.02177); Gromov 2023 (arXiv 2301.02679); Doshi et al. 2024 (arXiv 2310.13061).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from scipy.special import ndtr
from scipy.stats import pearson3

from experiments.tasks.arrays import NOISE, SPLIT, TARGETS, Data, Task, generator, noisy_labels

OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "square_sum": lambda a, b: a * a + b * b,
}


def default_config() -> ml_collections.ConfigDict:
    """``modulus`` p, and the ``fraction`` of the p^2 pairs that is trained on.

    ``noise`` is the fraction of training labels that are redrawn.
    ``encoding`` is "onehot" for float32 inputs (N, 2p), or "tokens" for int32 inputs (N, 2).
    """
    return ml_collections.ConfigDict(
        {
            "name": "modular",
            "modulus": 59,
            "operation": "add",
            "fraction": 0.7,
            "noise": 0.0,
            "encoding": "onehot",
            "seed": 0,
        }
    )


def load(config: Any) -> Task:
    """Every pair once, in the training or in the test set; test labels are always right."""
    if config.encoding not in ("onehot", "tokens"):
        raise ValueError(f"encoding is {config.encoding!r}; expected 'onehot' or 'tokens'")
    p = config.modulus
    x, y = table(p, config.operation)
    num_train = round(config.fraction * len(x))
    if not 0 < num_train < len(x):
        raise ValueError(
            f"fraction is {config.fraction}; it must leave some of the {len(x)} pairs for training and some for test"
        )
    if config.encoding == "onehot":
        x = np.eye(p, dtype=np.float32)[x].reshape(len(x), 2 * p)
    order = generator(config.seed, SPLIT).permutation(len(x))
    train, test = order[:num_train], order[num_train:]
    y_train = noisy_labels(y[train], config.noise, p, generator(config.seed, NOISE))
    return Task(config.name, Data(x[train], y_train), Data(x[test], y[test]), p, x.shape[1:])


def table(modulus: int, operation: str) -> Data:
    """All pairs (a, b), int32 (p^2, 2), and their answers, int32 (p^2,).

    Raises:
        ValueError: an unknown operation, or a modulus below 2.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation is {operation!r}; expected one of {', '.join(OPERATIONS)}")
    if modulus < 2:
        raise ValueError(f"modulus is {modulus}; it must be at least 2")
    a, b = np.divmod(np.arange(modulus * modulus), modulus)
    y = OPERATIONS[operation](a, b) % modulus
    return Data(np.stack([a, b], axis=1).astype(np.int32), y.astype(np.int32))


def answers(x: np.ndarray, modulus: int, operation: str) -> np.ndarray:
    """The right labels of a task's inputs in either encoding: compare with y to find the corrupted ones."""
    if x.shape[1:] == (2 * modulus,):
        x = np.argmax(x.reshape(-1, 2, modulus), axis=2)
    return (
        OPERATIONS[operation](x[:, 0].astype(np.int64), x[:, 1].astype(np.int64)) % modulus
    ).astype(np.int32)


def marked_table(train: Data, modulus: int, operation: str) -> dict[str, np.ndarray]:
    """All p^2 pairs and what became of each in a training set, to judge a network on every kind of pair at once.

    Args:
        train: the training set of `load`, as tokens.
        modulus: p.
        operation: as in `table`.

    Returns:
        ``pairs`` int32 (p^2, 2); ``truth`` int32 (p^2,); ``given`` its training label, of test pairs the truth;
        float32 masks ``kept`` and ``corrupted`` of training pairs whose label is right and wrong (a redrawn label
        may come out right), and ``test`` of the others.
    """
    pairs, truth = table(modulus, operation)
    rows = train.x[:, 0] * modulus + train.x[:, 1]
    given, seen = truth.copy(), np.zeros(len(truth), bool)
    given[rows], seen[rows] = train.y, True
    masks = {
        "kept": seen & (given == truth),
        "corrupted": seen & (given != truth),
        "test": ~seen,
    }
    masks = {name: mask.astype(np.float32) for name, mask in masks.items()}
    return {"pairs": pairs, "truth": truth, "given": given} | masks


def accuracies(predicted: Any, table: dict[str, Any]) -> dict[str, Any]:
    """How a network answers each kind of pair; NumPy or JAX arrays.

    Args:
        predicted: labels (..., p^2), of every pair of the table.
        table: of `marked_table`.

    Returns:
        Shares (...). train: given labels of training pairs. corrupted: wrong labels that are learnt. restored: pairs
        with a wrong label that are answered right all the same. test: right answers to pairs not trained on.
        Not a number where there are no such pairs.
    """

    def share(target, mask):
        hits = predicted == target[(None,) * (predicted.ndim - 1)]
        return hits.astype(mask.dtype) @ mask / mask.sum()

    return {
        "train": share(table["given"], table["kept"] + table["corrupted"]),
        "corrupted": share(table["given"], table["corrupted"]),
        "restored": share(table["truth"], table["corrupted"]),
        "test": share(table["truth"], table["test"]),
    }


# Addition solved by hand


class FourierSolution(NamedTuple):
    """Weights of f_q(a, b) = sum_k readout_kq (left_ak + right_bk)^2, float64."""

    left: np.ndarray  # (p, width): of the first summand
    right: np.ndarray  # (p, width)
    readout: np.ndarray  # (width, p)


class FourierLogits(NamedTuple):
    """Mean and standard deviation over random phases of the solution's logits."""

    right: float  # mean of the logit of the right answer
    wrong: float  # and of any other
    right_deviation: float
    wrong_deviation: float


def fourier_solution(modulus: int, width: int, seed: int | None = None) -> FourierSolution:
    """The analytic solution of modular addition: neuron k is a cosine of one frequency w_k = 2 pi j / p.

    left = cos(w a + s), right = cos(w b + t), readout = cos(w q + s + t); the frequencies j = 1..(p-1)/2 take
    turns. The phase of the readout, the sum of the other two, is what makes the right answer add up.

    Args:
        modulus: p, odd.
        width: number of neurons.
        seed: of uniform phases s and t, for which logits are right up to 1/sqrt(width). None puts the phases on
            a lattice, (s, t) = 2 pi (i, 4 i) / 6, on which every unwanted term cancels: the logits are then those
            of `fourier_logits` exactly.

    Raises:
        ValueError: an even modulus; without a seed, a width that is not a multiple of 3 (p - 1).

    Source: Gromov 2023 (arXiv 2301.02679), equation 5; the lattice is derived in the tests.
    """
    frequencies = _frequencies(modulus)
    neuron = np.arange(width)
    if seed is None:
        whole = 6 * len(frequencies)
        if width % whole:
            raise ValueError(
                f"width is {width}; phases cancel exactly at multiples of 3 (p - 1) = {whole}: "
                "take one, or give a seed for random phases"
            )
        turn = neuron // len(frequencies) % 6
        s, t = 2 * np.pi * np.stack([turn, 4 * turn]) / 6
    else:
        s, t = generator(seed, TARGETS).uniform(0, 2 * np.pi, (2, width))
    wave = (
        2 * np.pi / modulus * np.outer(np.arange(modulus), frequencies[neuron % len(frequencies)])
    )
    return FourierSolution(np.cos(wave + s), np.cos(wave + t), np.cos(wave + s + t).T)


def fourier_logits(modulus: int, width: int) -> FourierLogits:
    """Logits of `fourier_solution` in closed form: width (p delta(a + b - q) - 1) / (2 (p - 1)) in the mean.

    With random phases each neuron adds variance 1 + cos(2 w (a + b - q)) / 16. Exact where every frequency has
    as many neurons, that is at multiples of (p - 1) / 2, on which the deviation is 0 for phases on the lattice.

    Raises:
        ValueError: an even modulus.
    """
    _frequencies(modulus)
    spread = [math.sqrt(width * (1 + cosine / 16)) for cosine in (1, -1 / (modulus - 1))]
    return FourierLogits(width / 2, -width / (2 * (modulus - 1)), *spread)


def fourier_accuracy(modulus: int, width: int) -> float:
    """Expected accuracy of `fourier_solution` with random phases, within .03 of the measured one.

    With A and B the two phases of a neuron at a pair, its hidden unit is h^2 = (1 + cos(A + B)) (1 + cos(A - B)), and
    it adds h^2 cos(A + B) to the right logit R: mean 1/2, variance 17/16, third central moment 15/8. R is taken as a
    Pearson III variable with these. The other logits are Gaussian with the power that R leaves them: the squares
    of all p logits add up to p S, where S has the mean and, given R, the slope below (c neurons a frequency). A pair
    whose R is small has small h, hence little noise: with independent logits the estimate would be up to .05 lower.

    Args:
        modulus: p, odd.
        width: number of neurons, a multiple of (p - 1) / 2.

    Raises:
        ValueError: an even modulus.
    """
    logits = fourier_logits(modulus, width)
    skewness = 15 / 8 / (17 / 16) ** 1.5 / math.sqrt(width)
    quantiles = (np.arange(1024) + 0.5) / 1024
    right = pearson3.ppf(quantiles, skewness, logits.right, logits.right_deviation)
    c = 2 * width / (modulus - 1)
    slope = (57 / 32 + 17 / 32 * (c - 1)) / (17 / 16)
    power = width * (9 / 8 + (c - 1) / 8) + slope * (right - logits.right)
    wrong = -right / (modulus - 1)  # the logits of a pair add up to 0
    variance = (modulus * power - right**2) / (modulus - 1) - wrong**2
    below = ndtr((right - wrong) / np.sqrt(np.maximum(variance, np.finfo(float).tiny)))
    return float((below ** (modulus - 1)).mean())


def _frequencies(modulus: int) -> np.ndarray:
    if modulus < 3 or modulus % 2 == 0:
        raise ValueError(f"modulus is {modulus}; the Fourier solution is for odd moduli from 3 on")
    return np.arange(1, (modulus + 1) // 2)
