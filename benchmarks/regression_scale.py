"""Kernel regression with more samples than a matrix fits for: conjugate gradients on tiles, and inducing points.

    python -m benchmarks.regression_scale [--cg N ...] [--plain N ...] [--kept N ...] [--kept_plain N ...]
        [--inducing N ...] [--disk N ...] [--seconds S] [--keep FOLDER] [--tiles FOLDER]

`cg` is `solve.conjugate_gradient` on `gram.product`, `plain` the same without its preconditioner, `kept` the same with
tiles that are computed once and read from disk (2 n^2 bytes), with a preconditioner of higher rank, and `kept_plain`
without one. `inducing` is `solve.inducing`, `disk` one product with samples in a file, of which a tile is read at a
time. The kernel is the NTK of a ReLU MLP of three hidden layers; inputs are drawn here, 784 numbers whose covariance
falls as MNIST's does (9, 50 and 90 % of the variance in 1, 8 and 69 directions; there in 1, 11 and 87), the 10 targets
are those of a ReLU network with noise. Every line is a process of its own, so that its peak of resident memory is its
own (of `disk` without the pages of the file, which the system may drop); the bound on it is checked, not assumed.
Growth is fitted to what was measured, and nothing is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import numpy as np

INPUTS, OUTPUTS, HIDDEN, LAYERS, NOISE = 784, 10, 512, 3, 0.1
RELU = (
    45  # operations of a ReLU layer on one entry, NNGP and NTK together, as in benchmarks.kernels
)
TEST = 1000
GIBIBYTES = 2.0  # of resident memory, for each process
ROADS = ("plain", "cg", "kept", "kept_plain", "inducing", "disk")


def data(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, and TEST more samples with targets free of noise; the first n are the same for every n."""
    fixed, drawn = np.random.default_rng(0), np.random.default_rng(1)
    spread = 1 / (np.arange(INPUTS) + 9.0)
    turn = np.linalg.qr(fixed.standard_normal((INPUTS, INPUTS)))[0]
    mix = (spread[:, None] * turn.T).astype(np.float32)
    first = fixed.standard_normal((INPUTS, HIDDEN)).astype(np.float32) / INPUTS**0.5
    last = fixed.standard_normal((HIDDEN, OUTPUTS)).astype(np.float32) / HIDDEN**0.5

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = drawn.standard_normal((count, INPUTS), np.float32) @ mix
        x *= INPUTS**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
        clean = np.maximum(x @ first, 0) @ last
        return x, clean, drawn.standard_normal(clean.shape, np.float32)

    x_test, clean_test, _ = draw(TEST)
    x, y = np.empty((n, INPUTS), np.float32), np.empty((n, OUTPUTS), np.float32)
    mean, std = clean_test.mean(0), clean_test.std(0)
    for start in range(0, n, TEST):
        rows = slice(start, min(start + TEST, n))
        part, clean, noise = draw(TEST)
        count = rows.stop - start
        x[rows], y[rows] = part[:count], ((clean - mean) / std + NOISE * noise)[:count]
    return x, y, x_test, (clean_test - mean) / std


def one(road: str, n: int, options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Fits n samples by one road in this process; keeps its predictions in the folder."""
    from ntk import gram, solve, stax

    hidden = [stax.Dense(1, 2**0.5), stax.Relu()] * LAYERS
    kernel_fn = stax.serial(*hidden, stax.Dense(1))[2]
    stored = folder / f"x-{n}.npy"
    if road == "disk" and stored.exists():
        x, y = np.load(stored, mmap_mode="r"), np.load(folder / f"y-{n}.npy")
    else:
        x, y, x_test, clean = data(n)
    row: dict[str, Any] = {"road": road, "samples": n}
    begin = time.perf_counter()
    if road == "disk":
        return row | _on_disk(kernel_fn, x, y, folder)
    if road == "inducing":
        points = x[np.random.default_rng(2).permutation(n)[: options.points]]
        fit = solve.inducing(kernel_fn, x, y, points, diag_reg=options.diag_reg)
        row |= {"points": len(points), "unseen": fit.unseen, "jitter": fit.jitter}
        row |= {"residual": float(np.max(fit.residual))}
        row["fit_seconds"] = time.perf_counter() - begin
        predicted = fit.predict(x_test)
    else:
        row |= _by_gradients(road, kernel_fn, x, y, options, folder)
        predicted = gram.product(kernel_fn, x_test, x)(row.pop("coefficients"))
    row["test_error"] = float(np.sqrt(np.mean((predicted - clean) ** 2)))
    np.save(folder / f"{road}-{n}.npy", predicted)
    row["peak_gibibytes"] = max(row.get("peak_gibibytes", 0.0), memory())
    row["within_memory"] = row["peak_gibibytes"] < GIBIBYTES
    return row


def _by_gradients(
    road: str, kernel_fn: Any, x: Any, y: Any, options: Any, folder: pathlib.Path
) -> dict[str, Any]:
    """Conjugate gradients, every product noted; as many more steps as fit into --seconds."""
    import jax

    from benchmarks import kernels
    from ntk import gram, solve
    from ntk.large import tiles

    n = len(x)
    state = pathlib.Path(options.keep) / f"{road}-{n}.npz" if options.keep else None
    notes = _Notes(state and state.with_suffix(".jsonl"), kernels.peak_flops())
    rank = {"cg": options.rank, "kept": options.kept_rank}.get(road, 0)
    more: dict[str, Any] = {}
    if road.startswith("kept"):
        product, more = _kept(kernel_fn, x, pathlib.Path(options.tiles or folder) / f"tiles-{n}")
        more["rank"] = rank
    else:
        product = gram.product(kernel_fn, x)

    def times(v: Any) -> np.ndarray:
        start = time.perf_counter()
        out = product(v)
        notes.add(v.shape[1], time.perf_counter() - start)
        return out

    if notes.each() is None:
        times(y)  # compiles
        times(y)
    before = 0
    if state is not None and state.exists():
        with np.load(state) as there:
            before = int(there["step"])
    reg = options.diag_reg * float(gram.diagonal(kernel_fn, x).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # not converged: the row says so
        found = solve.conjugate_gradient(
            times,
            y,
            reg,
            diag_reg_absolute_scale=True,
            rank=rank,
            tolerance=options.tolerance,
            max_steps=before + max(int(options.seconds / notes.each()), 1),
            path=state,
        )
    tile = tiles.even_tile(min(gram.TILE, n), n)
    count = -(-n // tile)
    # Whole tiles of one triangle are computed; each entry serves two products but on the diagonal.
    entries = count * (count + 1) // 2 * tile**2
    evaluated = 0 if road.startswith("kept") else entries * (2 * INPUTS + LAYERS * RELU)
    flops = evaluated + 2 * OUTPUTS * count**2 * tile**2
    return {
        "coefficients": np.asarray(jax.device_get(found.coefficients)),
        "residual": float(np.max(found.residual)),
        "converged": bool(found.converged),
        "iterations": int(found.iterations),
        "tile": tile,
        "condition": float(found.condition),
        **notes.summary(flops),
        **more,
    }


def _kept(kernel_fn: Any, x: np.ndarray, path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The product of tiles on disk, and what it took to have them there, compilation included."""
    from ntk import gram

    calls: list[tuple[int, int]] = []
    start = time.perf_counter()
    product = gram.product(
        kernel_fn,
        x,
        path=path,
        name=f"relu-{LAYERS}",
        progress=lambda *now: calls.append(now),
    )
    seconds = time.perf_counter() - start
    # Of tiles that an earlier process left there only the rest is computed.
    return product, {
        "evaluate_seconds": seconds,
        "tiles": calls[-1][1],
        "tiles_found": calls[0][0],
        "disk_gibibytes": (path / "gram.npy").stat().st_size / 2**30,
    }


class _Notes:
    """The products of a solve, one a line, also of processes before this one where there is a file."""

    def __init__(self, file: pathlib.Path | None, peak: float):
        self.file, self.peak, self.lines, self.last = file, peak, [], time.perf_counter()
        self.process = 0
        if file is not None and file.exists():
            self.lines = [json.loads(line) for line in file.read_text().splitlines()]
            self.process = self.lines[-1]["process"] + 1

    def add(self, columns: int, seconds: float) -> None:
        """One product: its seconds, and those since the product before it."""
        now = time.perf_counter()
        line = {"process": self.process, "columns": columns, "seconds": seconds}
        line |= {"since": now - self.last, "peak": self.peak, "memory": memory()}
        self.lines.append(line)
        self.last = now
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as handle:
                handle.write(json.dumps(line) + "\n")

    def of(self, name: str) -> list[float]:
        """One number of every product with the targets, without the first, which compiles."""
        return [line[name] for line in self.lines[1:] if line["columns"] == OUTPUTS]

    def each(self) -> float | None:
        """Seconds of a product; None before the second."""
        return statistics.median(self.of("seconds")) if self.of("seconds") else None

    def summary(self, flops: float) -> dict[str, Any]:
        """The row's entries, of products of so many operations."""
        sketches = [line["seconds"] for line in self.lines if line["columns"] != OUTPUTS]
        shares = [flops / s / p for s, p in zip(self.of("seconds"), self.of("peak"))]
        return {
            "products": len(self.lines),
            "processes": self.process + 1,
            "seconds_per_product": self.each(),
            "seconds_of_preconditioner": sum(sketches),
            "peak_gflops": statistics.median(self.of("peak")) / 1e9,
            "share_of_peak": statistics.median(shares),
            "fit_seconds": sum(line["since"] for line in self.lines),
            "peak_gibibytes": max(line["memory"] for line in self.lines),
        }


def _on_disk(kernel_fn: Any, x: np.ndarray, y: np.ndarray, folder: pathlib.Path) -> dict[str, Any]:
    """One product, compilation included, in a process that has never held the samples."""
    from ntk import gram

    file = folder / f"x-{len(x)}.npy"
    if not file.exists():  # the caller starts another process
        np.save(file, x)
        np.save(folder / f"y-{len(x)}.npy", y)
        return {}
    here = _Anonymous()
    start = time.perf_counter()
    gram.product(kernel_fn, x)(y)
    seconds = time.perf_counter() - start
    peak = here.stop()
    return {
        "product_seconds": seconds,
        "samples_gibibytes": x.nbytes / 2**30,
        "peak_gibibytes": peak,
        "within_memory": peak < GIBIBYTES,
    }


class _Anonymous:
    """The most memory of a process that is no file's, in GiB: pages of a mapped file are the system's to drop."""

    def __init__(self) -> None:
        self.most, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(0.05):
            lines = pathlib.Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, int(line.split()[1]) / 2**20)

    def stop(self) -> float:
        """The most since the beginning."""
        self.done.set()
        self.thread.join()
        return self.most


def memory() -> float:
    """The most resident memory that this process has held, in GiB."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Exponents in n, by least squares on logarithms, where a road was measured at two sizes or more."""
    found = {}
    for road in ROADS:
        names = (
            "product_seconds",
            "seconds_per_product",
            "iterations",
            "fit_seconds",
            "peak_gibibytes",
        )
        for name in names:
            # The iterations of a solve that was cut are those that it was allowed.
            of = [
                (r["samples"], r[name])
                for r in rows
                if r["road"] == road and name in r and (name != "iterations" or r["converged"])
            ]
            if name == "fit_seconds" and road != "inducing":
                continue
            if len({n for n, _ in of}) > 1:
                slope = np.polyfit(*np.log(np.array(of)).T, 1)[0]
                found[f"{road} {name}"] = {"exponent": float(slope), "at": sorted(n for n, _ in of)}
    return found


def _differences(rows: list[dict[str, Any]], folder: pathlib.Path) -> None:
    """How far inducing points predict from the whole kernel machine, root mean square over that of the latter."""
    for row in rows:
        exact = [folder / f"{road}-{row['samples']}.npy" for road in ("cg", "kept")]
        exact = [file for file in exact if file.exists()]
        if row["road"] == "inducing" and exact:
            whole = np.load(exact[0])
            gap = np.load(folder / f"inducing-{row['samples']}.npy") - whole
            row["from_whole"] = float(np.sqrt(np.mean(gap**2) / np.mean(whole**2)))


def _save(path: pathlib.Path, body: dict[str, Any]) -> None:
    """Rows of the same machine and settings that the file has of other sizes stay."""
    if path.exists():
        old = json.loads(path.read_text())
        if all(old[key] == body[key] for key in ("machine", "settings")):
            new = {(row["road"], row["samples"]) for row in body["rows"]}
            kept = [row for row in old["rows"] if (row["road"], row["samples"]) not in new]
            rows = kept + body["rows"]
            body["rows"] = sorted(rows, key=lambda r: (ROADS.index(r["road"]), r["samples"]))
    body["growth"] = growth(body["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    here = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for road in ROADS:
        sizes = {"plain": [1000, 2000], "kept_plain": [1000, 2000], "disk": [4000]}.get(
            road, [1000, 2000, 4000]
        )
        here.add_argument(f"--{road}", type=int, nargs="*", default=sizes, metavar="N")
    here.add_argument("--points", type=int, default=500, help="inducing points")
    here.add_argument("--rank", type=int, default=100, help="of the preconditioner")
    here.add_argument("--kept_rank", type=int, default=300, help="the same where tiles are kept")
    here.add_argument("--diag_reg", type=float, default=1e-2, help="in units of the mean diagonal")
    here.add_argument("--tolerance", type=float, default=1e-3, help="of the residual")
    here.add_argument("--seconds", type=float, default=60.0, help="of products, for each solve")
    here.add_argument("--keep", help="folder from which the next run goes on with solves cut short")
    here.add_argument("--tiles", help="folder of kept tiles, which stay (default: a temporary one)")
    here.add_argument("--out", help="folder of the JSON (default: benchmarks/results)")
    here.add_argument("--one", nargs=3, metavar=("ROAD", "N", "FOLDER"), help=argparse.SUPPRESS)
    return here


def main(arguments: list[str]) -> int:
    """Runs every size of every road; 1 where a process held more memory than it may."""
    options = parser().parse_args(arguments)
    if options.one:
        road, n, folder = options.one
        print(json.dumps(one(road, int(n), options, pathlib.Path(folder))))
        return 0
    from benchmarks import harness

    names = ("points", "rank", "diag_reg", "tolerance")
    settings = {name: getattr(options, name) for name in names} | {
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "layers": LAYERS,
        "bound_gibibytes": GIBIBYTES,
    }
    folder = pathlib.Path(options.out or pathlib.Path(__file__).parent / "results")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        for road in ROADS:
            for n in getattr(options, road):
                command = [sys.executable, "-m", "benchmarks.regression_scale", *arguments]
                command += ["--one", road, str(n), kept]
                for _ in range(1 + (road == "disk")):  # the first writes the file
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                _differences(rows, pathlib.Path(kept))
                print(json.dumps(rows[-1]), flush=True)
                body = {"machine": harness.machine(), "settings": settings, "rows": [*rows]}
                _save(folder / "regression_scale.json", body)
    return int(not all(row["within_memory"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
