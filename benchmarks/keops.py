"""One product with a kernel matrix that is stored nowhere, against KeOps, in one process.

    python -m benchmarks.keops [--only SIZE ...] [--runs N]

The kernel is the NTK of a ReLU MLP of three hidden layers, 10 columns, float32. Inputs are of one length, so that KeOps
can be given the kernel as a formula of the inner product alone, its best case; ours does not use that. KeOps
(`pip install pykeops`) compiles with the machine's C++ compiler, outside of the timing, as ours is compiled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks import harness
from ntk import gram, stax

SIZES = {"2000x16": (2000, 16), "4000x16": (4000, 16)}


def formula(cosine: Any) -> Any:
    """The NTK by the recursion of Cho & Saul and Jacot et al., of W_std = 2^(1/2), then 1 (a LazyTensor in and out)."""
    # Rounding leaves the interval, where the arc cosine is not defined.
    cosine = cosine.clamp(-1.0, 1.0)
    ntk = 2 * cosine
    for layer in range(3):
        angle = cosine.acos()
        grown = (math.pi - angle) / math.pi  # 2 E[step(u) step(v)]
        cosine = grown * cosine + (1 - cosine * cosine).relu().sqrt() / math.pi
        cosine = cosine.clamp(-1.0, 1.0)
        # the readout's variance is 1, that of the layers before it 2
        ntk = ntk * grown / 2 + cosine if layer == 2 else ntk * grown + 2 * cosine
    return ntk


def comparison(name: str, runs: int) -> harness.Comparison:
    """One size."""
    from pykeops.numpy import LazyTensor

    n, inputs = SIZES[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, inputs), np.float32)
    x *= inputs**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
    v = rng.standard_normal((n, 10), np.float32)
    kernel_fn = stax.serial(*[stax.Dense(1, 2**0.5), stax.Relu()] * 3, stax.Dense(1))[2]

    def ours() -> Any:
        times = gram.product(kernel_fn, x)
        return lambda: times(v)

    def peer() -> Any:
        unit = np.ascontiguousarray(x / inputs**0.5)
        kernel = formula((LazyTensor(unit[:, None]) * LazyTensor(unit[None])).sum(-1))
        return lambda: kernel @ v

    exact = ours()()
    gap = np.abs(peer()() - exact).max() / np.abs(exact).max()
    return harness.compare(
        f"product, n = {n}, {inputs} inputs",
        {"widelimit": ours, "keops": peer},
        ours="widelimit",
        baseline="keops",
        runs=runs,
        notes={"relative_difference": float(gap)},
    )


if __name__ == "__main__":
    harness.main("keops", {name: lambda runs, name=name: comparison(name, runs) for name in SIZES})
