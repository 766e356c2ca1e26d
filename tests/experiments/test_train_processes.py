"""Training shared by the processes of a job over loopback: the records of one process, also after a kill."""

import numpy as np
import pytest

# Runs of a small network: seven over a mesh of devices, or one whose batch is spread over it.
TRAIN = """
import optax
import jax.numpy as jnp
from experiments import loop, train

def train_all(path=None, only=("runs", "batch", "full"), every=1e9, chunks=6):
    x = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    data = {"train": (x, np.sin(x.sum(1)))}
    def init(key):
        w, v = jax.random.split(key)
        return {"w": jax.random.normal(w, (5, 8)), "v": jax.random.normal(v, (8,))}
    def loss(params, batch):
        return jnp.mean((jnp.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]) ** 2)
    def setup(data):
        return train.Setup(init, loss, lambda rate: optax.sgd(rate, momentum=0.9))
    probe = train.Probe(
        lambda params, key, data: jax.random.fold_in(key, 1),
        lambda params, carry, rate, data: (carry, {"v": params["v"], "loss": loss(params, data["train"])}),
    )
    found = {}
    # Seven runs are filled up to a whole number on each device.
    count = len(jax.devices())
    for name, batch, of in (("runs", 8, -(-7 // count) * count), ("batch", 8, None), ("full", None, None)):
        if name not in only:
            continue
        program = train.compile_program(
            setup, data, steps=3, batch_size=batch, probe=probe, runs=of, devices=count
        )
        session = loop.Session(path, checkpoint_seconds=every)
        rates = [0.01 * k for k in range(1, 8)] if of else [0.03]
        found |= {
            f"{name}-{key}": value
            for key, value in loop.train_runs(
                program, data, rates, range(len(rates)), chunks=chunks, name=name, session=session
            ).items()
        }
    return found
"""
ALL = """
np.savez(folder / f"records-{index}.npz", **train_all())
"""
GOES_ON = """
np.savez(folder / f"records-{index}.npz", **train_all(folder / "run", ["runs"]))
"""
# The last process dies in the runs, after two chunks of them, when a checkpoint is there.
DIES = """
from experiments import checkpoint, loop
(folder / "run" / "points").mkdir(parents=True, exist_ok=True)
taken, count_of = loop._taken, []
def counting(*arguments):
    count_of.append(1)
    if len(count_of) == 4 and index == count - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return taken(*arguments)
loop._taken = counting
train_all(folder / "run", ["runs"], every=0.0)
"""


@pytest.fixture(scope="module")
def one(job, tmp_path_factory):
    """What a single process of one device finds."""
    folder = tmp_path_factory.mktemp("one")
    assert job(1, folder, TRAIN + ALL, devices=1) == [0], (folder / "stderr-0.txt").read_text()
    return dict(np.load(folder / "records-0.npz"))


def check(folder, count, one):
    for index in range(count):
        found = np.load(folder / f"records-{index}.npz")
        assert set(found) == set(one)
        for name, value in one.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one_does(count, one, tmp_path, job):
    statuses = job(count, tmp_path, TRAIN + ALL, devices=1)
    assert statuses == [0] * count, (tmp_path / "stderr-0.txt").read_text()
    check(tmp_path, count, one)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "others"), [(3, 2), (4, 3)])
def test_training_whose_process_died_goes_on_with_another_number_of_them(
    count, others, one, tmp_path, job
):
    statuses = job(count, tmp_path, TRAIN + DIES, devices=1)
    assert statuses[-1] == -9
    assert all(status != 0 for status in statuses)  # nobody reports success
    told = [(tmp_path / f"stderr-{i}.txt").read_text() for i in range(count - 1)]
    # Who exchanges with the dead process says so; who does not, with four, is ended by JAX's runtime, which names it.
    lost = ["lost another process of the job" in text for text in told]
    assert sum(lost) >= 2, told
    assert all(here or f"Task {count - 1} heartbeat" in text for here, text in zip(lost, told)), (
        told
    )
    (checkpoint,) = (tmp_path / "run" / "checkpoints" / "runs").iterdir()
    assert int(checkpoint.name) == 2
    assert job(others, tmp_path, TRAIN + GOES_ON, devices=1) == [0] * others
    check(tmp_path, others, {name: value for name, value in one.items() if name.startswith("runs")})
    # The rows of metrics are those of an uninterrupted run, each once.
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 7 * 6
