"""A muP learning-rate sweep, compilation included, against PyTorch with microsoft's mup package.

The same sweep on both sides: a two-hidden-layer ReLU MLP on digits, Adam, cross-entropy, 11 learning rates x 3 seeds
at each width, base width 64, all of the machine's cores. Ours is what the study runs: one program per width,
compiled inside the timing. Also here: one training step of a small CNN inside a ``lax.scan`` against the same step
called from Python, the reason why the loop steps convolutions on a CPU.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import limits
import models
from benchmarks.harness import Comparison, compare, main
from experiments import losses, tasks
from experiments.loop import train_runs
from experiments.studies.learning_rate_transfer import vectorised_runs
from experiments.train import Probe, Setup, compile_program, training_step

RATES = 2.0 ** np.linspace(-13, -3, 11)
SEEDS = (0, 1, 2)
BATCH, BASE, DEPTH = 64, 64, 2


def digits() -> tasks.Task:
    return tasks.load(tasks.default_config("digits"))


def ours(width: int, steps: int):
    task = digits()
    data = {"train": tuple(task.train)}

    def sweep():
        net = limits.parametrize(
            models.family("MLP", depth=DEPTH, outputs=task.outputs),
            "mup",
            width=width,
            base_width=BASE,
            example=task.train.x[:1],
        )
        loss = losses.supervised("cross_entropy", net.apply)
        program = compile_program(
            lambda data: Setup(net.init, loss, lambda rate: net.optimizer(optax.adam, rate)),
            data,
            steps=steps,
            batch_size=BATCH,
            probe=Probe(
                lambda *_: (),
                lambda params, carry, rate, data: (carry, {"loss": loss(params, data["train"])}),
            ),
            runs=vectorised_runs(len(RATES) * len(SEEDS), width, 1),
        )
        grid = [(rate, seed) for rate in RATES for seed in SEEDS]
        return train_runs(program, data, *zip(*grid), chunks=1, name="sweep")["loss"][:, -1]

    return sweep


def peer(width: int, steps: int):
    import mup
    import torch

    torch.set_num_threads(os.cpu_count())
    task = digits()
    x = torch.tensor(np.asarray(task.train.x))
    y = torch.tensor(np.asarray(task.train.y), dtype=torch.long)

    def mlp(width: int):
        layers, fan_in = [], x.shape[1]
        for _ in range(DEPTH):
            layers += [torch.nn.Linear(fan_in, width), torch.nn.ReLU()]
            fan_in = width
        return torch.nn.Sequential(*layers, mup.MuReadout(width, task.outputs))

    def one_run(rate: float, seed: int) -> float:
        torch.manual_seed(seed)
        net = mlp(width)
        mup.set_base_shapes(net, mlp(BASE), delta=mlp(2 * BASE))
        optimizer = mup.MuAdam(net.parameters(), lr=rate)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (BATCH,))
            loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(net(x), y))

    return lambda: np.array([one_run(rate, seed) for rate in RATES for seed in SEEDS])


def peak_flops() -> float:
    """Measured: a large float32 matrix product, flops per second."""
    import time

    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def step_flops(width: int) -> int:
    """Flops of the matrix products of one training step: forward, and twice that backward."""
    return 6 * BATCH * (64 * width + (DEPTH - 1) * width**2 + 10 * width)


def first_short(contender: Callable, width: int, steps: int) -> Callable:
    """The whole sweep, after a first call of a few steps that only wakes the library up."""
    calls = itertools.chain([contender(width, 5)], itertools.repeat(contender(width, steps)))
    return lambda: next(calls)()


def sweep(width: int, steps: int = 500, runs: int = 1) -> Comparison:
    """One width; a "run" is the whole sweep, compilation included, so one counted run each is enough."""
    row = compare(
        f"muP sweep, width {width}, {len(RATES)} rates x {len(SEEDS)} seeds x {steps} steps, compiled anew",
        {
            "widelimit": lambda: first_short(ours, width, steps),
            "torch + mup": lambda: first_short(peer, width, steps),
        },
        ours="widelimit",
        baseline="torch + mup",
        runs=min(runs, 1),
    )
    flops = len(RATES) * len(SEEDS) * steps * step_flops(width)
    achieved = flops / min(row.timings["widelimit"].wall)
    peak = peak_flops()
    row.notes.update(peak_gflops=round(peak / 1e9, 1), fraction_of_peak=round(achieved / peak, 3))
    return row


def convolution(runs: int = 3) -> Comparison:
    """Twenty training steps of a small CNN: stepped from Python against scanned."""
    x = jax.random.normal(jax.random.key(0), (64, 16, 16, 3))
    data = {"train": (x, jnp.zeros(64, jnp.int32))}
    net = models.CNN(width=16, depth=2, outputs=10)
    loss = losses.supervised("cross_entropy", lambda p, x: net.apply({"params": p}, x))

    def setup(data):
        return Setup(lambda key: net.init(key, x[:1])["params"], loss, optax.sgd)

    program = compile_program(
        setup,
        data,
        steps=20,
        batch_size=None,
        probe=Probe(lambda *_: (), lambda params, carry, rate, data: (carry, {})),
    )
    rate, seed = np.float32(0.1), np.uint32(0)
    step = training_step(setup, None)

    def scanned():
        chunk = jax.jit(
            lambda state, data: jax.lax.scan(
                lambda s, _: step(s, rate, seed, data), state, length=20
            )
        )
        return lambda: chunk(program.start(rate, seed, data), data)[1]

    return compare(
        "20 training steps of a CNN (2 layers, 16 channels, 64 images 16x16)",
        {
            "the loop": lambda: (
                lambda: program.advance(program.start(rate, seed, data), rate, seed, data)[1]
            ),
            "lax.scan": scanned,
        },
        ours="the loop",
        baseline="lax.scan",
        runs=runs,
    )


TASKS = {f"width_{w}": functools.partial(sweep, w) for w in (64, 128, 256, 512, 1024)} | {
    "convolution": convolution
}

if __name__ == "__main__":
    main("sweep", TASKS)
