"""Labelled arrays of a task, and what every loader does to them: choose, standardise, corrupt, check."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_collections
import numpy as np

LARGEST, SMALLEST = 1e15, 1e-15
"""Between them, squares of inputs are far inside the range of float32."""
SPLIT, INPUTS, TARGETS, NOISE = range(4)  # streams of `generator`: one never shifts another


class Data(NamedTuple):
    """Examples along the first axis: inputs x, targets y."""

    x: np.ndarray
    y: np.ndarray


class Task(NamedTuple):
    """What to learn: two sets of examples, the number of network outputs, the shape of one input.

    Targets are int32 labels (N,) for classification, float32 (N, outputs) for regression, and for text the
    next tokens, int32 (N, T), of the input tokens int32 (N, T).
    """

    name: str
    train: Data
    test: Data
    outputs: int
    input_shape: tuple[int, ...]


def generator(seed: int, stream: int) -> np.random.Generator:
    """The random numbers of one stream of one seed: splitting never changes what the noise draws."""
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or larger")
    return np.random.default_rng([seed, stream])


def image_config(name: str) -> ml_collections.ConfigDict:
    """Keys of every image task, so that --config.task.name switches between them.

    ``data_dir`` where the files lie; ``num_train`` and ``num_test`` examples, 0 for all there are;
    ``noise`` the fraction of training labels that are redrawn; ``flatten`` for (N, H*W*C) inputs;
    ``verify`` compares the files with the published ones (checksum, or size where no checksum is published).
    """
    return ml_collections.ConfigDict(
        {
            "name": name,
            "data_dir": "",
            "num_train": 0,
            "num_test": 0,
            "seed": 0,
            "noise": 0.0,
            "flatten": True,
            "verify": True,
        }
    )


def assemble(train: Data, test: Data, outputs: int, config: Any) -> Task:
    """From raw examples to a task: standardised, flattened, labels corrupted.

    Args:
        train: raw images (N, H, W, C) or (N, H, W), or feature vectors (N, D); labels (N,), or
            real targets (N, outputs).
        test: the same for the test set.
        outputs: number of classes, or of real targets.
        config: has the keys name, seed, noise and flatten of `image_config`.

    Returns:
        A task of float32 inputs with mean 0 and variance 1 over the training set, per channel (last axis).
    """
    x_train, x_test = standardise(_with_channel(train.x), _with_channel(test.x))
    if config.flatten:
        x_train, x_test = x_train.reshape(len(x_train), -1), x_test.reshape(len(x_test), -1)
    y_train, y_test = train.y, test.y
    if y_train.ndim == 1:
        y_train = noisy_labels(y_train, config.noise, outputs, generator(config.seed, NOISE))
    else:
        y_train = noisy_targets(y_train, config.noise, generator(config.seed, NOISE))
    return Task(
        config.name,
        Data(x_train, y_train),
        Data(x_test, y_test.astype(y_train.dtype)),
        outputs,
        x_train.shape[1:],
    )


def choose(key: str, data: Data, number: int, seed: int) -> Data:
    """Examples drawn without replacement by seed, nested in ``number``; 0 keeps all, in their order."""
    available = len(data.x)
    if not 0 <= number <= available:
        raise ValueError(
            f"{key} is {number}, but there are {available} examples (0 takes them all)"
        )
    if number == 0:
        return data
    chosen = generator(seed, SPLIT).permutation(available)[:number]
    return Data(data.x[chosen], data.y[chosen])


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtracts the training mean and divides by the training deviation of each channel (last axis).

    Numbers that single precision does not hold, such as dates in seconds, are subtracted in double precision.
    """
    axes = tuple(range(train.ndim - 1))
    mean = train.mean(axis=axes, dtype=np.float64)
    deviation = train.std(axis=axes, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)  # a constant channel becomes 0, not NaN

    def apply(x: np.ndarray) -> np.ndarray:
        if not np.can_cast(x.dtype, np.float32):
            return ((x - mean) / deviation).astype(np.float32)
        x = x.astype(np.float32)
        x -= mean.astype(np.float32)
        x /= deviation.astype(np.float32)
        return x

    return apply(train), apply(test)


def noisy_labels(
    y: np.ndarray, fraction: float, classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Redraws a fraction of the labels uniformly over all classes, so 1/classes of those stay right.

    Source: Zhang et al. 2017 (arXiv 1611.03530), section 2.1, "partially corrupted labels", with the
    number of redrawn labels fixed at round(fraction N) instead of binomial.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"noise is {fraction}; as a fraction of the labels it must lie between 0 and 1"
        )
    y = y.astype(np.int32)
    redrawn = rng.permutation(len(y))[: round(fraction * len(y))]
    y[redrawn] = rng.integers(0, classes, size=len(redrawn), dtype=np.int32)
    return y


def noisy_targets(y: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Adds independent Gaussian noise of the given standard deviation to real targets."""
    if not deviation >= 0:
        raise ValueError(f"noise is {deviation}; as a standard deviation it must be 0 or larger")
    return (y + deviation * rng.standard_normal(y.shape)).astype(np.float32)


def check_examples(what: str, data: Data) -> None:
    """Refuses empty sets, x and y of different lengths, and entries that are not finite.

    Raises:
        ValueError: naming the set and the index of the first bad entry.
    """
    if data.x.ndim < 2 or data.y.ndim < 1:
        raise ValueError(
            f"{what}: x has shape {data.x.shape} and y {data.y.shape}; expected one row an example"
        )
    if len(data.x) != len(data.y):
        raise ValueError(f"{what}: {len(data.x)} inputs, but {len(data.y)} targets")
    if len(data.x) == 0:
        raise ValueError(f"{what} is empty")
    for letter, array in zip("xy", data):
        bad = ~np.isfinite(array) if array.dtype.kind == "f" else None
        if bad is not None and bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{what}: {letter}{list(index)} is {array[index]}, the first of {int(bad.sum())} entries "
                "that are not finite; clean the data first"
            )
        most = float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 0.0
        if most > LARGEST:
            raise ValueError(
                f"{what}: {letter} has entries as large as {most:.3g}; in single precision they must "
                f"stay below {LARGEST:g}: divide them by something"
            )
        if 0 < most < SMALLEST:
            raise ValueError(
                f"{what}: the largest entry of {letter} is {most:.3g}; for single precision it must be {SMALLEST:g} or "
                "more: multiply them by something"
            )


def check_task(task: Task) -> Task:
    """The task itself, after its shapes, dtypes, label range and finiteness have been checked."""
    for part, data in (("train", task.train), ("test", task.test)):
        what = f"{task.name}, {part} set"
        check_examples(what, data)
        if data.x.shape[1:] != task.input_shape:
            raise ValueError(
                f"{what}: inputs have shape {data.x.shape[1:]}, expected {task.input_shape}"
            )
        if data.y.dtype.kind in "iu" and not (data.y.min() >= 0 and data.y.max() < task.outputs):
            raise ValueError(
                f"{what}: labels run from {data.y.min()} to {data.y.max()}, expected 0 to {task.outputs - 1}"
            )
        if data.y.dtype.kind == "f" and data.y.shape[1:] != (task.outputs,):
            raise ValueError(
                f"{what}: targets have shape {data.y.shape}, expected (N, {task.outputs})"
            )
        assert data.x.dtype in (np.float32, np.int32)
        assert data.y.dtype in (np.float32, np.int32)
    return task


def _with_channel(x: np.ndarray) -> np.ndarray:
    return x[..., None] if x.ndim == 3 else x
