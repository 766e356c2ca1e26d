"""The empirical NTK of networks with ten million parameters, 10 outputs, every pair of them, in tiles of examples.

    python -m benchmarks.empirical_scale [--mlp N ...] [--cnn N ...] [--tile TILE]

Each line is a process of its own, so that its peak of resident memory is its own: the parameters, the matrix (400
bytes for a pair of examples) and what two tiles need. The bound on it is checked. The first two examples are compared
with products of explicit Jacobians.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

OUTPUTS = 10
GIBIBYTES = 4.0  # of resident memory, for each process


def network(name: str) -> tuple[Any, tuple[int, ...], dict[str, Any]]:
    """A module, the shape of an example, and what is said of it."""
    import models

    if name == "mlp":
        return models.MLP(width=1600, depth=3, outputs=OUTPUTS), (3072,), {"width": 1600}
    return models.CNN(width=520, depth=5, outputs=OUTPUTS), (16, 16, 3), {"width": 520}


def one(name: str, n: int, tile: int) -> dict[str, Any]:
    """The kernel of n examples, in this process."""
    from ntk import empirical_kernel_fn, gram

    net, shape, row = network(name)
    x = np.random.default_rng(0).standard_normal((n, *shape), np.float32)
    params = jax.jit(net.init)(jax.random.key(0), x[:1])
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    kernel_fn = empirical_kernel_fn(net.apply, trace_axes=(), vmap_axes=0)
    begin = time.perf_counter()
    found = gram.gram(kernel_fn, x, None, "ntk", tile=tile, params=params)
    seconds = time.perf_counter() - begin
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    exact = _explicit(net, params, x[:2])
    gap = np.abs(found[:2, :2] - exact).max() / np.abs(exact).max()
    return {
        "network": name,
        **row,
        "parameters": count,
        "examples": n,
        "tile": tile,
        "seconds": seconds,
        "matrix_gibibytes": found.nbytes / 2**30,
        "peak_gibibytes": peak,
        "within_memory": peak < GIBIBYTES,
        "relative_difference": float(gap),
    }


def _explicit(net: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """By Jacobians of single examples, one output at a time."""

    @jax.jit
    def gradient(params: Any, x: jax.Array, k: Any) -> jax.Array:
        slope = jax.grad(lambda params: net.apply(params, x[None])[0, k])(params)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slope)])

    rows = [gradient(params, example, k) for example in x for k in range(OUTPUTS)]
    flat = np.array([[float(a @ b) for b in rows] for a in rows])
    return flat.reshape(len(x), OUTPUTS, len(x), OUTPUTS).transpose(0, 2, 1, 3)


def main(arguments: list[str]) -> int:
    """Runs every size; 1 where a process held more memory than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mlp", type=int, nargs="*", default=[250, 1000], metavar="N")
    parser.add_argument("--cnn", type=int, nargs="*", default=[8, 16], metavar="N")
    parser.add_argument("--tile", type=int, nargs=2, default=[125, 4], help="of mlp and cnn")
    parser.add_argument("--out", help="folder of the JSON (default: benchmarks/results)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, n, tile = options.one
        print(json.dumps(one(name, int(n), int(tile))))
        return 0
    from benchmarks import harness

    folder = pathlib.Path(options.out or pathlib.Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, tile in zip(("mlp", "cnn"), options.tile):
        for n in getattr(options, name):
            command = [sys.executable, "-m", "benchmarks.empirical_scale"]
            command += ["--one", name, str(n), str(tile)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
            body = {"machine": harness.machine(), "bound_gibibytes": GIBIBYTES, "rows": rows}
            (folder / "empirical_scale.json").write_text(json.dumps(body, indent=1) + "\n")
    return int(not all(row["within_memory"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
