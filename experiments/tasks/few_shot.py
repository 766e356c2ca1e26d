"""Few-shot classification of images: new classes from rotations, random illumination, episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.tasks.arrays import Data


def images(
    data: Data, classes: Sequence[int], background: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Square images in four rotations, each a class, under random illumination.

    The illumination is a constant and a slope in each direction with normal coefficients, new for each image:
    something that all tasks share, so that some classes can teach that it is of no use for others.

    Args:
        data: flattened grey images (N, side^2), standardised, and their labels.
        classes: the labels to keep.
        background: standard deviation of each part of the illumination; 0 for none.
        seed: of the illumination.

    Returns:
        (inputs (4 N', side^2) divided by side, labels: four times the old one plus the number of quarter turns).

    Raises:
        ValueError: images that are not flat, grey and square.

    Source: rotations as new classes: Santoro et al. 2016, arXiv:1605.06065, section 4.
    """
    side = round(data.x.shape[-1] ** 0.5)
    if data.x.ndim != 2 or side**2 != data.x.shape[1]:
        raise ValueError(
            f"images of shape {data.x.shape[1:]} are not flat, grey and square: take digits, mnist or"
            " fashion_mnist with config.task.flatten=True"
        )
    generator = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, side) / np.sqrt(np.mean(np.linspace(-1, 1, side) ** 2))
    across = np.tile(ramp, (side, 1))
    light = np.stack([np.ones((side, side)), across, across.T])
    pictures, labels = [], []
    for name in classes:
        of_class = data.x[data.y == name].reshape(-1, side, side)
        for quarter in range(4):
            pictures.append(np.rot90(of_class, quarter, axes=(1, 2)))
            labels.append(np.full(len(of_class), 4 * name + quarter))
    x = np.concatenate(pictures)
    x = x + background * np.einsum("nl,lab->nab", generator.standard_normal((len(x), 3)), light)
    return (x.reshape(len(x), -1) / side).astype(np.float32), np.concatenate(labels)


class Episodes(NamedTuple):
    """Few-shot tasks as rows of the images, every leaf with the axes asked for in front.

    Attributes:
        support: (..., ways shots), the examples to adapt to.
        support_labels: likewise, 0 to ways - 1.
        query: (..., ways queries), the examples to be right on.
        query_labels: likewise.
    """

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


def episodes(
    labels: np.ndarray, shape: tuple[int, ...], ways: int, shots: int, queries: int, seed: int
) -> Episodes:
    """Random tasks: `ways` classes in random order, `shots` and `queries` different examples of each.

    Args:
        labels: (N,), class of each image.
        shape: how many tasks, as leading axes.
        ways: classes of a task.
        shots: examples of each class to adapt to.
        queries: examples of each class to be right on.
        seed: of the draw.

    Raises:
        ValueError: fewer classes than ways, or a class with too few examples.
    """
    generator, names = np.random.default_rng(seed), np.unique(labels)
    members, size = [np.flatnonzero(labels == name) for name in names], shots + queries
    if len(names) < ways or min(map(len, members)) < size:
        raise ValueError(
            f"{ways} ways of {shots} shots and {queries} queries need {ways} classes of {size} examples;"
            f" there are {len(names)}, the smallest of {min(map(len, members))}"
        )
    rows = np.empty((*shape, ways, size), np.int32)
    for index in np.ndindex(shape):
        classes = generator.choice(len(names), ways, replace=False)
        rows[index] = [generator.choice(members[c], size, replace=False) for c in classes]
    answers = np.broadcast_to(np.arange(ways, dtype=np.int32)[:, None], rows.shape)
    parts = [part[..., cut] for cut in (np.s_[:shots], np.s_[shots:]) for part in (rows, answers)]
    return Episodes(*(part.reshape(*shape, -1) for part in parts))
