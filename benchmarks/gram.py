"""Kernels in batches, and Gram matrices in tiles, against neural-tangents's ``batch`` in the same process.

    python -m benchmarks.gram [--only TASK] [--runs N]

`ragged` has sizes that batches of 50 do not divide, for which neural-tangents falls back to batches
of one; `symmetric` has x2 = None, of which it computes both triangles. Both sides have one kernel
function, neural-tangents's own, so that only the batching differs.
"""

from __future__ import annotations

import warnings

import numpy as np

from benchmarks import harness
from ntk import gram, reference
from ntk.large import batching

SIZES = {"ragged": (101, 103, 50), "symmetric": (1000, None, 250)}


def comparison(name, runs):
    n1, n2, size = SIZES[name]
    rng = np.random.default_rng(0)
    x1 = rng.standard_normal((n1, 64)).astype(np.float32)
    x2 = None if n2 is None else rng.standard_normal((n2, 64)).astype(np.float32)
    nt = reference.neural_tangents()
    layers = [nt.stax.Dense(512, 1.5, 0.1), nt.stax.Relu()] * 3
    peer = nt.stax.serial(*layers, nt.stax.Dense(1))[2]
    kernel_fn = reference.from_neural_tangents(peer)

    def ours():
        batched = batching.batch(kernel_fn, size)
        return lambda: batched(x1, x2, "ntk")

    def stored():
        return lambda: gram.gram(kernel_fn, x1, x2, "ntk", tile=size)

    def baseline():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batched = nt.batch(peer, size, 0)
        return lambda: batched(x1, x2, "ntk")

    gap = np.abs(np.asarray(baseline()()) - stored()()).max()
    return harness.compare(
        f"batch {name}",
        {"widelimit": ours, "widelimit_gram": stored, "neural_tangents": baseline},
        ours="widelimit",
        baseline="neural_tangents",
        runs=runs,
        notes={"difference": float(gap)},
    )


def task(name):
    return lambda *, runs: comparison(name, runs)


if __name__ == "__main__":
    harness.main("gram", {name: task(name) for name in SIZES})
