"""The compiled loop: replay, chunk length, vmapped or looped or sharded, one compilation per shape."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import loop, signals, train

N, D = 24, 5


def make_data(seed=0):
    x = jax.random.normal(jax.random.key(seed), (N, D))
    return {"train": (x, jnp.sin(x.sum(axis=1)))}


def loss(params, batch):
    hidden = jnp.tanh(batch[0] @ params["w"])
    return jnp.mean((hidden @ params["v"] - batch[1]) ** 2)


def init(key):
    w, v = jax.random.split(key)
    return {"w": jax.random.normal(w, (D, 8)), "v": jax.random.normal(v, (8,))}


PROBE = train.Probe(
    lambda params, key, data: jax.random.normal(key, ()),
    lambda params, carry, rate, data: (
        carry + 1,
        {"loss": loss(params, data["train"]), "carry": carry},
    ),
)


@functools.cache  # compiling is most of what these tests cost
def program(**changes):
    settings = {"steps": 3, "batch_size": 8, "probe": PROBE} | changes
    optimizer = settings.pop("optimizer", lambda rate: optax.sgd(rate, momentum=0.9))
    return train.compile_program(
        lambda data: train.Setup(init, loss, optimizer), make_data(), **settings
    )


GRID = ([0.01, 0.1, 0.03], [0, 1, 7])


def train_all(compiled, chunks=2):
    return loop.train_runs(compiled, make_data(), *GRID, chunks=chunks, name="t")


def drawn(seed, step):
    """The examples of a step: stream 1 of the seed, folded with the step."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    return jax.random.randint(key, (8,), 0, N)


def test_minibatches_are_uniform_and_independent_over_steps_and_seeds():
    rows = jax.vmap(
        jax.vmap(lambda seed, step: train.draw_batch(seed, step, jnp.arange(N), 8), (None, 0)),
        (0, None),
    )(jnp.arange(20, dtype=jnp.uint32), jnp.arange(60))
    assert len({tuple(batch) for batch in np.reshape(rows, (-1, 8)).tolist()}) == 20 * 60
    counts = np.bincount(np.ravel(rows), minlength=N)
    expected = rows.size / N
    # chi squared with N - 1 degrees of freedom: mean N - 1, variance 2 (N - 1)
    assert abs(((counts - expected) ** 2 / expected).sum() - (N - 1)) < 4 * (2 * (N - 1)) ** 0.5
    same = (np.asarray(rows[:, 1:]) == np.asarray(rows[:, :-1])).mean()
    assert abs(same - 1 / N) < 4 * (1 / N / (20 * 59 * 8)) ** 0.5


def test_a_run_is_the_plain_training_loop():
    records = train_all(program(), chunks=2)
    for run, (rate, seed) in enumerate(zip(*GRID)):
        optimizer = optax.sgd(rate, momentum=0.9)
        params = init(train.stream(jnp.uint32(seed), train.INIT))
        state = optimizer.init(params)
        for step in range(6):
            rows, (x, y) = drawn(seed, step), make_data()["train"]
            batch = x[rows], y[rows]
            updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
            params = optax.apply_updates(params, updates)
        expected = loss(params, make_data()["train"])
        np.testing.assert_allclose(records["loss"][run, -1], expected, rtol=1e-5)


def test_chunk_length_does_not_change_a_run():
    long, short = train_all(program(steps=6), chunks=1), train_all(program(steps=2), chunks=3)
    np.testing.assert_array_equal(long["loss"][:, -1], short["loss"][:, -1])


@pytest.mark.parametrize("devices", [1, 3])
def test_vmapped_and_sharded_runs_equal_looped_ones(devices):
    looped = train_all(program())
    together = train_all(program(runs=3, devices=devices))
    np.testing.assert_allclose(together["loss"], looped["loss"], rtol=2e-5)


def test_runs_are_padded_to_the_devices():
    padded = train_all(program(runs=8, devices=8))
    assert padded["loss"].shape == (3, 3)
    np.testing.assert_allclose(padded["loss"], train_all(program())["loss"], rtol=2e-5)


def test_a_batch_sharded_over_eight_devices_equals_one():
    np.testing.assert_allclose(
        train_all(program(devices=8))["loss"], train_all(program())["loss"], rtol=2e-5
    )


def test_the_probe_carries_its_state():
    carry = train_all(program())["carry"]
    np.testing.assert_allclose(np.diff(carry, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"runs": 3}])
def test_a_probe_may_measure_arrays(changes):
    probe = train.Probe(lambda *_: (), lambda params, *_: ((), {"w": params["w"]}))
    records = train_all(program(probe=probe, **changes))
    assert records["w"].shape == (3, 3, D, 8)
    for run, seed in enumerate(GRID[1]):
        expected = init(train.stream(jnp.uint32(seed), train.INIT))["w"]
        np.testing.assert_allclose(records["w"][run, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("compiled", [program, lambda: program(runs=3, devices=1)])
def test_divergence_is_recorded_and_the_other_runs_go_on(compiled):
    rates = [0.01, 1e30, 0.02]
    records = loop.train_runs(compiled(), make_data(), rates, [0, 0, 0], chunks=3, name="t")
    assert np.isnan(records["loss"][1, 1:]).all()
    assert np.isfinite(records["loss"][[0, 2]]).all()
    assert np.isfinite(records["loss"][1, 0])


def test_runs_side_by_side_are_the_runs_one_after_the_other(monkeypatch):
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(loop, "side_by_side", lambda _, threads=threads: threads)
        found.append(train_all(program()))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_side_by_side_on_a_cpu_only_for_programs_of_one_device():
    assert loop.side_by_side(program()) == min(os.cpu_count(), 4)
    assert loop.side_by_side(program()._replace(devices=2)) == 1


def test_an_error_in_one_run_ends_the_others(monkeypatch):
    monkeypatch.setattr(loop, "side_by_side", lambda _: 2)
    trained = []

    def full(steps, name, loss):
        trained.append(name)
        if name == "t-000":
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        loop.train_runs(
            program(),
            make_data(),
            [0.1] * 40,
            range(40),
            chunks=50,
            name="t",
            session=loop.Session(progress=full),
        )
    assert len(set(trained)) < 40


@pytest.mark.parametrize("changes", [{}, {"runs": 3}])
def test_a_resumed_run_is_the_uninterrupted_one_in_every_row(tmp_path, changes):
    """An error after a row of metrics was written and before the checkpoint that belongs to it."""
    compiled = program(**changes)

    def broken(row):
        if row["chunk"] == 3:
            raise OSError("the connection is lost")

    def trained(path, **options):
        session = loop.Session(path, checkpoint_seconds=0.0, **options)
        return loop.train_runs(compiled, make_data(), *GRID, chunks=5, name="t", session=session)

    for folder in ("broken", "whole"):
        (tmp_path / folder / "points").mkdir(parents=True)
    with pytest.raises(OSError, match="the connection is lost"):
        trained(tmp_path / "broken", sinks=(broken,))
    assert any((tmp_path / "broken" / "checkpoints").iterdir())
    resumed, whole = trained(tmp_path / "broken"), trained(tmp_path / "whole")
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name])
    lines = [
        sorted((tmp_path / folder / "metrics.jsonl").read_text().splitlines())
        for folder in ("broken", "whole")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 3 * 5


@pytest.mark.parametrize("dropped", [False, True])
def test_an_interrupt_saves_the_points_in_training(tmp_path, monkeypatch, dropped):
    """One that Python drops in the main thread is seen by those that train."""
    (tmp_path / "points").mkdir()
    monkeypatch.setattr(signals, "_NOTED", [])
    seen = []

    def interrupt(steps, name, loss):
        seen.append(name)
        if len(seen) == 5 and dropped:
            signals._NOTED.append(signal.SIGINT)
        elif len(seen) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    def trained(progress):
        session = loop.Session(tmp_path, progress, checkpoint_seconds=1e9, configuration="made")
        return loop.train_runs(
            program(), make_data(), [0.1], [0], chunks=1000, name="t", session=session
        )

    with pytest.raises(KeyboardInterrupt):
        trained(interrupt)
    (checkpoint,) = (tmp_path / "checkpoints" / "t-000").iterdir()
    assert 5 <= int(checkpoint.name) < 1000
    signals._NOTED.clear()
    steps = []
    records = trained(lambda done, name, loss: steps.append(done))
    assert steps[0] == 3 * int(checkpoint.name)
    expected = loop.train_runs(program(), make_data(), [0.1], [0], chunks=1000, name="t")
    np.testing.assert_array_equal(records["loss"], expected["loss"])


def test_a_sweep_compiles_once_per_shape():
    """Learning rates and seeds are arguments: after the program is made nothing compiles, whatever they are."""
    compiled, data = program(), make_data()
    loop.train_runs(compiled, data, [0.1], [0], chunks=1, name="warm")
    events = []

    def listen(event, _duration, **_):
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        loop.train_runs(
            compiled, data, np.geomspace(1e-3, 1, 33), list(range(33)), chunks=2, name="s"
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)  # alone: others listen, too
    assert events == []


def convolution_loss(params, batch):
    x = batch[0].reshape(-1, 5, 1)
    y = jax.lax.conv_general_dilated(
        x, params["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jnp.mean((y.sum(axis=(1, 2)) - batch[1]) ** 2)


def test_convolutions_are_found_and_stepped_on_a_cpu():
    params = {"w": jnp.ones((3, 1, 2))}
    nested = jax.jit(lambda p, b: jax.lax.map(lambda _: convolution_loss(p, b), jnp.arange(2)))
    assert train.contains_convolution(nested, params, make_data()["train"])
    assert not train.contains_convolution(loss, init(jax.random.key(0)), make_data()["train"])
    compiled = train.compile_program(
        lambda data: train.Setup(
            lambda key: {"w": jax.random.normal(key, (3, 1, 2))}, convolution_loss, optax.sgd
        ),
        make_data(),
        steps=4,
        batch_size=None,
        probe=train.Probe(
            lambda *_: (), lambda params, carry, rate, data: (carry, {"s": params["w"].sum()})
        ),
    )
    rate, seed = np.float32(0.01), np.uint32(0)
    state, losses = compiled.advance(
        compiled.start(rate, seed, make_data()), rate, seed, make_data()
    )
    assert isinstance(losses, np.ndarray)  # stepped from Python, not scanned
    assert losses.shape == (4,)
    assert losses[-1] < losses[0]
    assert state.step == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 9}, "devices is 9, but there are 8"),
        ({"runs": 3, "devices": 2}, "3 runs cannot be split over 2 devices"),
        ({"batch_size": 7, "devices": 2}, "a batch of 7 cannot be split over 2 devices"),
        ({"batch_size": None, "devices": 5}, "a full batch of 24 cannot be split over 5 devices"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        program(**changes)


def test_seeds_and_rates_must_pair_up():
    with pytest.raises(ValueError, match="2 learning rates but 1 seeds"):
        loop.train_runs(program(), make_data(), [0.1, 0.2], [0], chunks=1, name="t")
