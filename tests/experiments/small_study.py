"""A program for the tests: a small study through the command line, ended at random moments, in forks of one process.

python small_study.py FOLDER SIGNAL COUNT SEED [OPTION ...]   prints one JSON object

SIGNAL is a number, FULL for files that cannot grow beyond a random size, or TWO for two processes in one folder.
"""

import json
import os
import pathlib
import random
import resource
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments import claims, grid, run, train
from experiments.grid import Axis, Variable, train_grid

CONFIG = """
import ml_collections

def get_config(preset="smoke"):
    return ml_collections.ConfigDict({"study": "small", "rates": (0.1, 0.2), "units": 6})
"""
CHUNKS = 40


def compile(runs=None):
    def loss(params, batch):
        return jnp.mean((batch @ params["w"] - 1) ** 2)

    def measure(params, carry, rate, data):
        return carry, {"loss": loss(params, data["train"])}

    return train.compile_program(
        lambda data: train.Setup(
            lambda key: {"w": jax.random.normal(key, (3,))}, loss, lambda r: optax.adam(r)
        ),
        {"train": np.ones((4, 3), np.float32)},
        steps=2,
        batch_size=2,
        probe=train.Probe(lambda *_: (), measure),
        runs=runs,
    )


def trained(data, scale):
    return grid.Training(
        compile,
        "one",
        {"train": np.full((4, 3), scale, np.float32)},
        data,
        range(len(data)),
        chunks=CHUNKS,
        steps=2 * CHUNKS,
        keep=lambda records: {"loss": records["loss"]},
    )


def together(data, of):
    """Three runs in one program for four, one of which diverges."""
    one = trained((*data, 1e38), of)
    return one._replace(
        compile=lambda: compile(4),
        shape="four",
        keep=lambda records: {"vectorised": records["loss"]},
    )


def computed(data, unit):
    time.sleep(0.02)
    return {"square": unit**2}


def study(config, session):
    scales = {"scale": Axis([1.0, 2.0], "scale")}
    units = {"unit": Axis(range(config.units), "unit")}
    loss = {"loss": Variable("loss", dims=("run", "chunk"))}
    square = {"square": Variable("square")}
    lanes = {"vectorised": Variable("loss", dims=("lane", "chunk"))}
    return xr.merge(
        [
            train_grid(units, None, grid.Program("units", computed, square), session),
            train_grid(
                scales,
                config.rates,
                grid.Program("runs", trained, loss, trains=True),
                session,
            ),
            train_grid(
                {"of": Axis([1.0, 3.0], "scale")},
                config.rates,
                grid.Program("together", together, lanes, trains=True),
                session,
            ),
        ]
    )


def make_module():
    module = types.ModuleType("experiments.studies.small")
    module.TITLE, module.PAPER, module.run = "A small study", "nobody", study
    module.check = lambda config, task: None
    module.total_steps = lambda config: (4 + 6) * 2 * CHUNKS + config.units
    module.claims = lambda data: [
        claims.at_most("S1", "nobody", "losses", float(data.loss[..., -1].max()), 1.0)
    ]
    module.figures = lambda data: {}
    return module


def child(folder, options, most=resource.RLIM_INFINITY):
    """Process of the study's command, in a fork: nothing is imported twice; no file may be larger than ``most``."""
    process = os.fork()
    if process:
        return process
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing raises OSError then
    with open(folder.parent / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.argv = ["run", f"--config={folder.parent}/small.py:smoke", f"--workdir={folder}"]
        sys.argv += options
        status = 99
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            status = run.main(sys.argv)
        finally:
            log.flush()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def wait(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return sorted(lines)


def main(folder, number, count, seed, *options):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.py").write_text(CONFIG)
    module = make_module()
    sys.modules[module.__name__] = module
    run.find_study = lambda name: module
    begin = time.monotonic()
    assert wait(child(folder / "whole", options)) == 0, (folder / "log.txt").read_text()
    longest = time.monotonic() - begin
    draw, ends, same = random.Random(int(seed)), [], []
    for trial in range(int(count)):
        path = folder / f"trial-{trial}"
        often, late = ["--checkpoint_seconds=0.05", *options], draw.uniform(0, longest)
        if number == "FULL":
            (folder / "log.txt").rename(folder / f"log-{trial}.txt")  # which may grow
            sizes = [file.stat().st_size for file in (folder / "whole").iterdir() if file.is_file()]
            ends.append(wait(child(path, often, draw.randrange(64, max(sizes)))))
        elif number == "TWO":
            both = child(path, often), time.sleep(late) or child(path, options)
            ends += [wait(process) for process in both]
        else:
            process = child(path, often)
            time.sleep(late)
            os.kill(process, int(number))
            ends.append(wait(process))
        assert wait(child(path, options)) == 0, (folder / "log.txt").read_text()
        same.append(
            (path / "data.nc").read_bytes() == (folder / "whole" / "data.nc").read_bytes()
            and rows(path) == rows(folder / "whole")
        )
    print(json.dumps({"ends": ends, "same": same, "seconds": longest}))


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    main(*sys.argv[1:])
