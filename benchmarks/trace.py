"""Kernels read from Flax models against the same networks written in `ntk.stax`: both compiled, in one process.

    python -m benchmarks.trace [--only TASK ...] [--runs N]

The ratio is the hand-written kernel's time over the traced one's: 1 is par, below 0.83 the traced one is more than
1.2 times slower. Notes: seconds of reading the model, and the largest difference relative to the largest entry.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

import models
import ntk
from benchmarks import harness
from ntk import stax


class Task(NamedTuple):
    """One network twice.

    Attributes:
        family: the Flax model, a function of its width.
        layer: the same in `ntk.stax`.
        shape: of the inputs, compared with themselves.
        options: of `ntk.infinite_width`.
    """

    family: Callable[[int], Any]
    layer: Any
    shape: tuple[int, ...]
    options: dict[str, Any]


# Normal, as in stax: the truncated law of he_normal shows in a first layer.
HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def mlp(activation: Any, depth: int, b_std: float | None) -> Any:
    block = [stax.Dense(1, 2**0.5, b_std), activation]
    return stax.serial(*block * depth, stax.Dense(1, 2**0.5, b_std))


def cnn(top: Any, b_std: float | None = None) -> Any:
    block = [stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5, b_std=b_std), stax.Relu()]
    return stax.serial(*block * 3, top, stax.Dense(1, 2**0.5, b_std))


def residual(depth: int) -> Any:
    branch = stax.serial(
        stax.LayerNorm(eps=1e-6), stax.Relu(), stax.Conv(1, (3, 3), padding="SAME")
    )
    block = stax.serial(stax.FanOut(2), stax.parallel(branch, stax.Identity()), stax.FanInSum())
    top = (stax.LayerNorm(eps=1e-6), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))
    return stax.serial(stax.Conv(1, (3, 3), padding="SAME"), *[block] * depth, *top)


def tasks(points: int = 2000, images: int = 16, pixels: int = 16) -> dict[str, Task]:
    """The tasks at given sizes; the defaults are those that are reported."""
    vectors, pooled = (points, 64), (images, pixels, pixels, 3)
    small = (max(points // 4, 2), 64)
    exact = functools.partial(nn.gelu, approximate=False)
    dense = functools.partial(models.family, "MLP", outputs=1, kernel_init=HE)
    conv = functools.partial(
        models.family, "CNN", depth=3, outputs=1, kernel_init=HE, use_bias=False
    )
    bias = {"bias_std": 0.1}
    silu = stax.elementwise(ntk.hermite.dual(jax.nn.silu))
    return {
        "relu_5": Task(dense(depth=5), mlp(stax.Relu(), 5, 0.1), vectors, bias),
        "relu_5_no_bias": Task(
            dense(depth=5, use_bias=False), mlp(stax.Relu(), 5, None), vectors, {}
        ),
        "relu_100": Task(dense(depth=100), mlp(stax.Relu(), 100, 0.1), vectors, bias),
        "gelu_5": Task(dense(depth=5, activation=exact), mlp(stax.Gelu(), 5, 0.1), vectors, bias),
        "silu_3": Task(dense(depth=3, activation=nn.silu), mlp(silu, 3, 0.1), small, bias),
        "conv_pool": Task(conv(), cnn(stax.GlobalAvgPool()), pooled, {}),
        "conv_flatten": Task(
            conv(pooling="flatten"), cnn(stax.Flatten()), (4 * images, *pooled[1:]), {}
        ),
        "residual_norm": Task(
            models.family(
                "ResNet", depth=4, outputs=1, block_depth=1, norm="layer", kernel_init=NORMAL
            ),
            residual(4),
            (max(images // 2, 2), *pooled[1:]),
            {"learning_rates": {"*norm*": 0}},
        ),
    }


def measure(name: str, task: Task, runs: int) -> harness.Comparison:
    """One line of the table."""
    x = jax.random.normal(jax.random.key(0), task.shape)
    start = time.process_time()
    traced = ntk.infinite_width(task.family, x[:2], **task.options)
    reading = time.process_time() - start
    results: dict[str, Any] = {}

    def contender(label: str, kernel_fn: Callable) -> Callable[[], Callable[[], Any]]:
        compiled: list[Any] = []

        def step() -> Any:
            if not compiled:
                compiled.append(jax.jit(lambda x: kernel_fn(x, None, "ntk")).lower(x).compile())
            results[label] = compiled[0](x)
            return results[label]

        return lambda: step

    contenders = {"traced": contender("traced", traced), "stax": contender("stax", task.layer[2])}
    row = harness.compare(name, contenders, ours="traced", baseline="stax", runs=runs)
    one, two = (np.asarray(results[label]) for label in ("traced", "stax"))
    difference = float(np.abs(one - two).max() / np.abs(two).max())
    notes = {"shape": task.shape, "reading_seconds": reading, "difference": difference}
    return row._replace(notes=notes)


if __name__ == "__main__":
    harness.main(
        "trace",
        {
            name: lambda runs, name=name, task=task: measure(name, task, runs)
            for name, task in tasks().items()
        },
    )
