"""This checkout against another one of the project, in turn: what a change has cost.

    python -m benchmarks.revisions FOLDER [--only TASK ...] [--runs N]

FOLDER holds the other checkout (``git worktree add FOLDER COMMIT``). Each runs the kernels of `benchmarks.kernels` and
`benchmarks.empirical`, as this checkout defines them, in a process of its own that waits while the other one works.
The ratio is the other one's time over ours: below 0.95 we have become more than 5 % slower.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent.parent


def _task(name: str) -> Callable[[], Any]:
    """One evaluation, by the library that this process imports."""
    import jax
    import numpy as np

    from benchmarks import empirical, kernels

    if name in empirical.TASKS:
        fn, *args = empirical.TASKS[name].ours()
        compiled = jax.jit(fn).lower(*args).compile()
        return lambda: compiled(*args)
    from ntk import stax

    task = kernels.tasks()[name]
    x = np.asarray(jax.random.normal(jax.random.key(0), task.shape))
    net, data = task.ours(stax), jax.numpy.asarray(x)
    return lambda: kernels.kernel(net, data)


def work() -> None:
    """Reads names of tasks and prints the seconds of one evaluation of each, wall and CPU."""
    import jax

    steps: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in steps:
            steps.clear()
            steps[name] = _task(name)
            for _ in range(2):
                jax.block_until_ready(steps[name]())
        start, start_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(steps[name]())
        print(time.perf_counter() - start, time.process_time() - start_cpu, flush=True)


class Checkout:
    """A process that imports one checkout's library, with the benchmarks of this one."""

    def __init__(self, folder: pathlib.Path) -> None:
        code = (
            f"import sys; sys.path.insert(0, {str(folder)!r}); import ntk, ntk.stax; "
            f"sys.path.insert(0, {str(HERE)!r}); from benchmarks import revisions; revisions.work()"
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def seconds(self, task: str) -> list[float]:
        """Of one evaluation: wall, CPU."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(task, file=self.process.stdin, flush=True)
        return [float(word) for word in self.process.stdout.readline().split()]


def main(arguments: list[str]) -> None:
    """Prints a line a task; nothing is written."""
    from benchmarks import empirical, harness, kernels

    names = [*kernels.tasks(), *empirical.TASKS]
    parser = harness.argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args(arguments)
    print(harness.machine())
    ours, other = Checkout(HERE), Checkout(options.folder.resolve())
    for name in options.only:
        runs = [(ours.seconds(name), other.seconds(name)) for _ in range(options.runs)]
        words = []
        for k, kind in enumerate(("wall", "CPU")):
            ratio = [b[k] / a[k] for a, b in runs]
            best = [min(run[side][k] for run in runs) for side in (0, 1)]
            spread = f"{statistics.median(ratio):.3f} [{min(ratio):.3f}, {max(ratio):.3f}]"
            times = f"{kind} {1e3 * best[0]:.4g} ms, other {1e3 * best[1]:.4g} ms"
            words.append(f"{times}, other / ours {spread}, of the best {best[1] / best[0]:.3f}")
        print(f"{name}: {'; '.join(words)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
