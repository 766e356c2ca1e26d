"""Kernels, empirical kernels, Gram matrices, convolutional kernels, a sweep and sharpness on one accelerator.

    make bench-gpu          python -m benchmarks.accelerator [--only PART ...] [--size small|gpu] [--seconds S]

Every part is timed on its own: the first call, which compiles, then the median of the calls that fit into its share
of the time, three at most. There are no peers: the numbers are for this project's own estimates of hours, and say
which device they are of. A part that fails, or for which no time is left, is named in the JSON, and the exit status
is then 1. Sizes are for a device of 16 GB or more, or small, for a look at whether it runs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metrics
import models
from benchmarks import harness, kernels
from experiments import losses, train
from ntk import empirical_kernel_fn, gram, stax

SECONDS = 530.0
"""Of all parts together."""
Part = tuple[Callable[[], Any], dict[str, Any]]
"""What is timed, and what is said of it: sizes, and operations where they are counted."""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def relu(depth: int) -> Callable[..., Any]:
    return stax.serial(*[stax.Dense(1, 2**0.5, 0.1), stax.Relu()] * depth, stax.Dense(1))[2]


def analytic(size: str) -> Part:
    """NTK of a ReLU MLP of five layers, whole on the device."""
    n = {"small": 512, "gpu": 16384}[size]
    kernel_fn, x = jax.jit(relu(5), static_argnums=(1, 2)), jnp.asarray(normal(n, 784))
    flops = n * (n + 1) / 2 * (2 * 784 + 5 * 45)
    return lambda: kernel_fn(x, None, "ntk"), {"samples": n, "layers": 5, "flops": flops}


def empirical(size: str) -> Part:
    """Empirical NTK of an MLP, 10 outputs, every pair of them, in tiles of examples."""
    n, width, tile = {"small": (32, 256, 16), "gpu": (1000, 2048, 125)}[size]
    net = models.MLP(width=width, depth=3, outputs=10)
    x = normal(n, 3072)
    params = net.init(jax.random.key(0), x[:1])
    kernel_fn = empirical_kernel_fn(net.apply, trace_axes=(), vmap_axes=0)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    say = {"samples": n, "outputs": 10, "parameters": count, "tile": tile}
    return lambda: gram.gram(kernel_fn, x, None, "ntk", tile=tile, params=params), say


def matrix(size: str) -> Part:
    """Gram matrix in the host's memory, ReLU MLP of three layers."""
    n, tile = {"small": (1024, 256), "gpu": (32768, 4096)}[size]
    kernel_fn, x = relu(3), normal(n, 784)
    flops = n * (n + tile) / 2 * (2 * 784 + 3 * 45)
    say = {"samples": n, "layers": 3, "tile": tile, "flops": flops}
    return lambda: gram.gram(kernel_fn, x, tile=tile), say


def product(size: str) -> Part:
    """One product of conjugate gradients, 10 outputs, with a matrix that is stored nowhere."""
    n, tile = {"small": (2048, 512), "gpu": (131072, 8192)}[size]
    x, v = normal(n, 784), normal(n, 10)
    times = gram.product(relu(3), x, tile=tile)
    flops = n * (n + tile) / 2 * (2 * 784 + 3 * 45 + 40)
    return lambda: times(v), {"samples": n, "outputs": 10, "tile": tile, "flops": flops}


def convolutional(size: str, pooling: bool) -> Part:
    """CNTK of 21 convolutions of 3 x 3, as of 50,000 images, on one tile of it."""
    n = {"small": 1 if pooling else 8, "gpu": 16 if pooling else 128}[size]
    pixels = 32
    block = [stax.Conv(1, (3, 3), padding="SAME", W_std=2**0.5), stax.Relu()]
    top = stax.GlobalAvgPool() if pooling else stax.Flatten()
    kernel_fn = jax.jit(stax.serial(*block * 21, top, stax.Dense(1))[2], static_argnums=2)
    x1, x2 = (
        jnp.asarray(normal(n, pixels, pixels, 3)),
        jnp.asarray(normal(n, pixels, pixels, 3)[::-1]),
    )
    entries = n * n * pixels ** (4 if pooling else 2)
    say = {"images": n, "pixels": pixels, "layers": 21, "pooling": pooling}
    # A moment is summed over the filter along both sides, and passed through a ReLU, NNGP and NTK together.
    return lambda: kernel_fn(x1, x2, "ntk"), say | {"flops": float(entries * 21 * (2 * 18 + 45))}


def pooled(size: str) -> Part:
    """`convolutional` with global average pooling: every pair of pixels."""
    return convolutional(size, True)


def flattened(size: str) -> Part:
    """`convolutional`, flattened: pixels at the same place."""
    return convolutional(size, False)


def sweep(size: str) -> Part:
    """Training steps of 32 runs at once, an MLP with Adam, batches of 64."""
    width, steps = {"small": (64, 20), "gpu": (1024, 500)}[size]
    x = normal(1024, 784)
    data = {"train": (x, np.arange(1024, dtype=np.int32) % 10)}
    net = models.MLP(width=width, depth=3, outputs=10)
    loss = losses.supervised("cross_entropy", lambda params, x: net.apply({"params": params}, x))
    program = train.compile_program(
        lambda data: train.Setup(
            lambda key: net.init(key, data["train"][0][:1])["params"], loss, optax.adam
        ),
        data,
        steps=steps,
        batch_size=64,
        probe=train.Probe(lambda *_: (), lambda params, carry, *_: (carry, {})),
        runs=32,
    )
    rates, seeds = np.geomspace(1e-5, 1e-2, 32).astype(np.float32), np.arange(32, dtype=np.uint32)
    flops = 32 * steps * 6 * 64 * (784 * width + 2 * width**2 + 10 * width)
    say = {"runs": 32, "width": width, "steps": steps, "flops": float(flops)}
    say["compile_seconds"] = program.compile_seconds
    return lambda: program.advance(program.start(rates, seeds, data), rates, seeds, data)[1], say


def sharpness(size: str) -> Part:
    """Largest eigenvalue of a CNN's Hessian, 20 products."""
    n, width, pixels = {"small": (32, 8, 8), "gpu": (1024, 64, 32)}[size]
    net = models.CNN(width=width, depth=4, outputs=10)
    batch = jnp.asarray(normal(n, pixels, pixels, 3)), jnp.arange(n) % 10
    params = net.init(jax.random.key(0), batch[0][:1])["params"]
    loss = losses.supervised("cross_entropy", lambda params, x: net.apply({"params": params}, x))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    say = {"images": n, "pixels": pixels, "parameters": count, "products": 20}
    return lambda: metrics.sharpness(loss, params, batch, num_steps=20).value, say


PARTS = {
    "kernels": analytic,
    "empirical": empirical,
    "gram": matrix,
    "product": product,
    "cntk_flattened": flattened,
    "cntk_pooled": pooled,
    "sweep": sweep,
    "sharpness": sharpness,
}


def measure(name: str, size: str, until: float) -> dict[str, Any]:
    """One part: no call begins after ``until``, but the first two."""
    begin = time.perf_counter()
    step, say = PARTS[name](size)
    harness.block(step())
    first, seconds = time.perf_counter() - begin, []
    while len(seconds) < 3 and not (seconds and time.perf_counter() + seconds[-1] > until):
        start = time.perf_counter()
        harness.block(step())
        seconds.append(time.perf_counter() - start)
    row = {"part": name, **say, "first_seconds": first, "seconds": statistics.median(seconds)}
    row["calls"] = len(seconds)
    if "flops" in say:
        row["gflops_a_second"] = say["flops"] / row["seconds"] / 1e9
    # Of all parts so far: a device says only the most it ever held; a CPU says nothing.
    held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return row | ({} if held is None else {"device_gibibytes_so_far": held / 2**30})


def main(arguments: list[str]) -> int:
    """Runs the parts one after the other; 1 where one failed or was left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS), default=list(PARTS))
    cpu = jax.default_backend() == "cpu"
    parser.add_argument("--size", choices=("small", "gpu"), default="small" if cpu else "gpu")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all parts together")
    parser.add_argument("--out", help="folder of the JSON (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    folder = pathlib.Path(options.out or pathlib.Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {"machine": harness.machine(), "size": options.size, "rows": []}
    body["peak_gflops"] = kernels.peak_flops(1024 if cpu else 8192) / 1e9
    failed: dict[str, str] = {}
    for place, name in enumerate(options.only):
        now = time.perf_counter() - begin
        share = (options.seconds - now) / (len(options.only) - place)
        if share <= 0:
            failed[name] = f"no time was left after {now:.0f} s"
        else:
            try:
                body["rows"].append(measure(name, options.size, begin + now + share))
                print(json.dumps(body["rows"][-1]), flush=True)
            except Exception as error:  # the others are still worth their time
                failed[name] = f"{type(error).__name__}: {error}"[:500]
                print(f"{name} failed: {failed[name]}", file=sys.stderr, flush=True)
            jax.clear_caches()  # and what compiled programs hold on the device
        body |= {"not_measured": failed, "seconds": time.perf_counter() - begin}
        file = folder / f"accelerator_{options.size}.json"
        file.write_text(json.dumps(body, indent=1) + "\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
