"""What a person at a notebook waits for, in fresh processes: ``python -m benchmarks.first_call``.

``session``: four networks, six sizes from 5 to 64 samples, three kernels each ("ntk", "nngp", both), as a person tries
them, imports included. ``first_*``: the first kernel of one network of 20 samples after the import, the import not
counted; of ``traced``, a Flax model here and the same network of theirs, reading the model is. neural-tangents is
imported through `ntk.reference`, without TensorFlow.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

SIZES = (5, 8, 16, 20, 32, 64)
GETS = ("ntk", "nngp", ("nngp", "ntk"))
IMAGE, VECTOR = (8, 8, 3), (8,)


def _deep(activation: str) -> Callable[[Any], Any]:
    def net(s: Any) -> Any:
        layers = [s.Dense(512, 1.4, 0.1), getattr(s, activation)()]
        return s.serial(*layers * 2, s.Dense(1, 1.0, 0.1))

    return net


def _convolutional(s: Any) -> Any:
    layers = [s.Conv(16, (3, 3), padding="SAME", W_std=1.4), s.Relu()]
    return s.serial(*layers * 2, s.Flatten(), s.Dense(1))


def _relu(s: Any) -> Any:
    layers = [s.Dense(512, 2**0.5), s.Relu()]
    return s.serial(*layers * 3, s.Dense(1))


def _flax() -> Any:
    """The network of `_relu`, read from its code."""
    from flax import linen as nn

    import ntk

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(3):
                x = nn.relu(nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(x))
            return nn.Dense(1)(x)

    return lambda x: ntk.infinite_width(lambda width: Net(width), x[:1])


NETWORKS = {
    "relu": (_deep("Relu"), VECTOR),
    "gelu": (_deep("Gelu"), VECTOR),
    "erf": (_deep("Erf"), VECTOR),
    "convolution": (_convolutional, IMAGE),
    "traced": (_relu, (16,)),
}


def _stax(library: str) -> Any:
    if library == "ours":
        from ntk import stax
    else:
        from ntk.reference import neural_tangents

        stax = neural_tangents().stax
    return stax


def session(library: str) -> None:
    """Every network at every size, run in this process."""
    import jax

    stax = _stax(library)
    for name in ("relu", "gelu", "erf", "convolution"):
        net, shape = NETWORKS[name]
        kernel_fn = net(stax)[2]
        x = jax.random.normal(jax.random.key(0), (max(SIZES), *shape))
        for size in SIZES:
            for get in GETS:
                harness.block(kernel_fn(x[:size], None, get))


def first(library: str, name: str) -> None:
    """Prints the seconds of the first kernel of a network in this process."""
    import jax

    net, shape = NETWORKS[name]
    stax = _stax(library)
    read = _flax() if (library, name) == ("ours", "traced") else lambda x: net(stax)[2]
    x = harness.block(jax.random.normal(jax.random.key(0), (20, *shape)))
    start = time.perf_counter()
    harness.block(read(x)(x, None, "ntk"))
    print(time.perf_counter() - start)


def _fresh(*command: str) -> str:
    words = [sys.executable, "-m", "benchmarks.first_call", *command]
    # As users have it: the bytecode of both libraries is there, whatever this shell says of writing it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout


def _session_row(runs: int) -> harness.Comparison:
    contenders = {
        name: lambda name=name: functools.partial(_fresh, "session", name)
        for name in ("ours", "neural-tangents")
    }
    return harness.compare(
        "session", contenders, ours="ours", baseline="neural-tangents", runs=runs
    )


def _first_row(name: str, runs: int) -> harness.Comparison:
    """The seconds that the processes print, not those of the processes."""
    seconds: dict[str, list[float]] = {"ours": [], "neural-tangents": []}
    for _ in range(runs):
        for library, found in seconds.items():
            found.append(float(_fresh("first", library, name)))
    timings = {
        library: harness.Timing(statistics.median(found), found, found)
        for library, found in seconds.items()
    }
    ratio = [b / a for a, b in zip(seconds["ours"], seconds["neural-tangents"])]
    return harness.Comparison(
        f"first_{name}", timings, "ours", "neural-tangents", ratio, ratio, {"samples": 20}
    )


TASKS = {"session": _session_row} | {
    f"first_{name}": functools.partial(_first_row, name) for name in NETWORKS
}

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["session", library]:
            session(library)
        case ["first", library, name]:
            first(library, name)
        case _:
            harness.main("first_call", TASKS)
