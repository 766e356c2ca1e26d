"""Analytic kernels against neural-tangents, in one process on one JAX, each in its best setting.

    python -m benchmarks.kernels [--only TASK ...] [--runs N]

The first call of a contender is trace and compile. Notes: largest error of both against float64, relative to the
largest entry; temporary memory; and how much of the machine's measured peak our run reaches.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from ntk import reference, stax


class Task(NamedTuple):
    """A network for both libraries, and its inputs.

    Attributes:
        ours: stax module -> layer.
        theirs: the same for neural-tangents, in the form that it runs fastest.
        shape: of one batch, which is compared with itself.
        layers: nonlinearities evaluated one after the other.
        flops: operations of one nonlinearity for one entry, counted in its formula, NNGP and NTK together.
    """

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]
    shape: tuple[int, ...]
    layers: int
    flops: int


def mlp(s, activation: str, depth: int, b_std: float | None, **kwargs):
    block = [s.Dense(1, 2**0.5, b_std), getattr(s, activation)(**kwargs)]
    return s.serial(*block * depth, s.Dense(1, 1.0, b_std))


def repeated(s, depth: int, b_std: float | None):
    block = s.serial(s.Relu(), s.Dense(1, 2**0.5, b_std))
    return s.serial(
        s.Dense(1, 2**0.5, b_std), s.repeat(block, depth - 1), s.Relu(), s.Dense(1, 1.0, b_std)
    )


def cnn(s, top: str):
    block = [s.Conv(1, (3, 3), padding="SAME", W_std=2**0.5), s.Relu()]
    return s.serial(*block * 3, getattr(s, top)(), s.Dense(1))


def callable_mlp(s, **kwargs):
    fn = functools.partial(jax.nn.gelu, approximate=True)
    return s.serial(*[s.Dense(1, 2**0.5), s.ElementwiseNumerical(fn, **kwargs)] * 3, s.Dense(1))


def same(net: Callable, *args: Any, **kwargs: Any) -> dict[str, Callable]:
    both = functools.partial(net, **kwargs)
    return {name: lambda s: both(s, *args) for name in ("ours", "theirs")}


def tasks(points: int = 2000, images: int = 16, pixels: int = 16) -> dict[str, Task]:
    """The tasks at given sizes; the defaults are those that are reported."""
    vectors = (points, 64)
    small = (max(points // 8, 2), 64)
    pooled = (images, pixels, pixels, 3)
    flat = (4 * images, 2 * pixels, 2 * pixels, 3)
    deep = {"ours": lambda s: mlp(s, "Relu", 100, 0.1)}
    plain = {"ours": lambda s: mlp(s, "Relu", 100, None)}
    return {
        "relu_5": Task(**same(mlp, "Relu", 5, 0.1), shape=vectors, layers=5, flops=45),
        "relu_5_no_bias": Task(**same(mlp, "Relu", 5, None), shape=vectors, layers=5, flops=45),
        "relu_100_serial": Task(**same(mlp, "Relu", 100, 0.1), shape=vectors, layers=100, flops=45),
        "relu_100_repeat": Task(
            **deep, theirs=lambda s: repeated(s, 100, 0.1), shape=vectors, layers=100, flops=45
        ),
        "relu_100_no_bias": Task(
            **plain, theirs=lambda s: repeated(s, 100, None), shape=vectors, layers=100, flops=45
        ),
        "gelu_5": Task(**same(mlp, "Gelu", 5, 0.1), shape=vectors, layers=5, flops=90),
        "erf_5": Task(**same(mlp, "Erf", 5, 0.1), shape=vectors, layers=5, flops=60),
        "callable_3": Task(**same(callable_mlp, deg=25), shape=small, layers=3, flops=130),
        "conv_pool": Task(**same(cnn, "GlobalAvgPool"), shape=pooled, layers=3, flops=65),
        "conv_flatten": Task(**same(cnn, "Flatten"), shape=flat, layers=3, flops=65),
    }


def kernel(net, x, dtype=None):
    return net[2](x if dtype is None else jnp.asarray(x, dtype), None, "ntk")


def _compiled(net, data):
    return jax.jit(functools.partial(kernel, net)).lower(data).compile()


def exact(task: Task, x: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(kernel(task.ours(stax), x, jnp.float64))


def peak_flops(size: int = 1024) -> float:
    """Operations per second of a float32 matrix product."""
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    harness.block(product(a, a))
    return 2 * size**3 / min(_seconds(lambda: product(a, a)) for _ in range(5))


def peak_bytes(size: int = 2**24) -> float:
    """Bytes per second of a streaming copy, read and written."""
    a = jnp.ones(size)
    copy = jax.jit(lambda x: x + 1)
    harness.block(copy(a))
    return 8 * size / min(_seconds(lambda: copy(a)) for _ in range(5))


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    harness.block(step())
    return time.perf_counter() - start


def measure(name: str, task: Task, runs: int) -> harness.Comparison:
    """One line of the table."""
    x = np.asarray(jax.random.normal(jax.random.key(0), task.shape))
    data = jnp.asarray(x)
    compiled: dict[str, Any] = {}
    results: dict[str, Any] = {}

    def compiles_itself(net: Any) -> Callable[[], Any]:
        results["ntk"] = kernel(net, data)
        return results["ntk"]

    def compiled_whole(net: Any) -> Callable[[], Any]:
        if "neural_tangents" not in compiled:
            compiled["neural_tangents"] = _compiled(net, data)
        results["neural_tangents"] = compiled["neural_tangents"](data)
        return results["neural_tangents"]

    theirs = task.theirs(reference.neural_tangents().stax)
    ours = task.ours(stax)
    contenders = {
        "ntk": lambda: functools.partial(compiles_itself, ours),
        "neural_tangents": lambda: functools.partial(compiled_whole, theirs),
    }
    row = harness.compare(name, contenders, ours="ntk", baseline="neural_tangents", runs=runs)
    few = min(len(x), 4 if x.ndim > 2 else 64)
    truth = exact(task, x[:few])
    compiled["ntk"] = _compiled(ours, data)
    notes: dict[str, Any] = {"shape": task.shape}
    for label in contenders:
        error = np.abs(np.asarray(results[label])[:few, :few] - truth).max() / np.abs(truth).max()
        notes[f"error_{label}"] = float(error)
        notes[f"megabytes_{label}"] = compiled[label].memory_analysis().temp_size_in_bytes / 2**20
    positions = int(np.prod(task.shape[1:-1]))
    pixels = positions**2 if "pool" in name else positions
    pairs = len(x) * (len(x) + 1) // 2 * pixels
    flops = pairs * (task.layers * task.flops + 2 * task.shape[-1])
    seconds = min(row.timings["ntk"].wall)
    rates = peak_flops(), peak_bytes()
    moved = 4 * (len(x) ** 2 + x.size)
    notes["fraction_of_peak_flops"] = flops / seconds / rates[0]
    notes["fraction_of_peak_bytes"] = moved / seconds / rates[1]
    # What no kernel of this input can do without: the products of the samples, and writing the result.
    least = pairs * 2 * task.shape[-1] / rates[0] + moved / rates[1]
    notes["fraction_of_limit"] = least / seconds
    notes["cores_busy_ntk"] = min(row.timings["ntk"].cpu) / seconds
    return row._replace(notes=notes)


if __name__ == "__main__":
    harness.main(
        "kernels",
        {
            name: lambda runs, name=name, task=task: measure(name, task, runs)
            for name, task in tasks().items()
        },
    )
