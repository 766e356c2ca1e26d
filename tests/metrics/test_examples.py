from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from metrics import examples


def test_el2n_by_hand_and_over_runs(x64):
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [1e-9, 1.0, 1e-9]]))
    expected = [np.sqrt(0.3**2 + 0.2**2 + 0.1**2), np.sqrt(2)]
    np.testing.assert_allclose(examples.el2n(logits, jnp.array([0, 2])), expected, atol=1e-7)
    stacked = examples.el2n(jnp.stack([logits, 2 * logits]), jax.nn.one_hot(jnp.array([0, 2]), 3))
    mean = examples.over_runs(stacked)
    np.testing.assert_allclose(mean.value, stacked.mean(0))
    np.testing.assert_allclose(mean.error, np.std(stacked, axis=0, ddof=1) / np.sqrt(2))


def linear_loss(params, x, y):
    logits = x @ params["w"] + params["b"]
    return -jax.nn.log_softmax(logits)[y]


def test_grand_of_a_linear_classifier_is_el2n_times_the_input(x64):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((4, 3))), "b": jnp.zeros(3)}
    x, y = jnp.asarray(rng.standard_normal((11, 4))), jnp.asarray(rng.integers(0, 3, 11))
    scores = examples.el2n(x @ params["w"], y)
    expected = scores * jnp.sqrt(jnp.sum(x**2, axis=1) + 1)
    for batch_size in (3, 64):
        found = jax.jit(partial(examples.grand, linear_loss, batch_size=batch_size))(params, x, y)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_forgetting_counts_against_the_history():
    rng = np.random.default_rng(1)
    history = rng.random((9, 12)) < 0.5
    history[:, 3] = False
    state = examples.no_forgetting(12)
    update = jax.jit(examples.update_forgetting)
    for row in history:
        order = rng.permutation(12)
        for ids in (order[:5], order[5:]):
            state = update(state, ids, jnp.asarray(row[ids]))
    events = np.sum(history[:-1] & ~history[1:], axis=0).astype(float)
    events[~history.any(0)] = np.inf
    assert np.isinf(events[3])
    np.testing.assert_array_equal(examples.forgetting_scores(state), events)


def planted(plant):
    """Digits; eight threes and eight eights share one strong direction, with opposite pull."""
    x, y = load_digits(return_X_y=True)
    x, y = x[:600] / 16, y[:600]
    threes, eights = np.flatnonzero(y == 3)[:8], np.flatnonzero(y == 8)[:8]
    direction = np.random.default_rng(0).standard_normal(64)
    if plant:
        x[np.concatenate([threes, eights])] += 25 * direction / np.linalg.norm(direction)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y), set(threes.tolist()), set(eights.tolist())


def per_example(params, x, y):
    h = jax.nn.relu(jax.nn.relu(x @ params["first"]) @ params["second"])
    return -jnp.take_along_axis(jax.nn.log_softmax(h @ params["head"]), y[:, None], axis=1)[:, 0]


@jax.jit
def descend(params, x, y, rate):
    def mean(params):
        return jnp.mean(per_example(params, x, y))

    def step(params, _):
        new = jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(mean)(params))
        return new, (per_example(params, x, y), params)

    return jax.lax.scan(step, params, None, length=120)[1]


def run(plant, rate):
    x, y, *ids = planted(plant)
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"first": (64, 64), "second": (64, 64), "head": (64, 10)}
    params = {
        name: jax.random.normal(key, size) / np.sqrt(size[0])
        for key, (name, size) in zip(keys, sizes.items())
    }
    losses, trajectory = descend(params, x, y, rate)
    return examples.opposing_signals(losses, 12), trajectory, x, y, *ids


def ids_of(group):
    return set(np.asarray(group).tolist())


def test_opposing_signals_recover_every_planted_example():
    found, trajectory, x, y, threes, eights = run(True, 0.15)
    assert float(found.rise) > 0
    up, down = ids_of(found.up), ids_of(found.down)
    assert (threes <= up and eights <= down) or (eights <= up and threes <= down)
    assert float(found.correlation) < -0.9
    assert float(found.autocorrelation) < -0.9
    assert float(found.share) > 0.2
    params = jax.tree.map(lambda p: p[found.step], trajectory)

    def loss(params, batch):
        return jnp.mean(per_example(params, *batch))

    # at that step one group is fitted: its few unplanted members would drown its small gradient
    groups = [(x[np.array(sorted(g))], y[np.array(sorted(g))]) for g in (threes, eights)]
    assert float(examples.gradient_cosine(loss, params, *groups)) < -0.9


def test_opposing_signals_controls_find_nothing():
    below_the_edge = run(True, 0.04)[0]
    assert float(below_the_edge.rise) <= 0
    assert float(below_the_edge.autocorrelation) > -0.5
    found, *_, threes, eights = run(False, 0.15)
    assert len((threes | eights) & (ids_of(found.up) | ids_of(found.down))) <= 2


def test_opposing_signals_of_a_designed_oscillation():
    t = np.arange(30)
    losses = np.ones((30, 40)) + 1e-3 * np.random.default_rng(3).standard_normal((30, 40))
    swing = np.where(t < 10, 0.0, (-1.0) ** t)
    losses[:, :4] += 1.2 * swing[:, None]
    losses[:, 4:8] -= swing[:, None]
    found = examples.opposing_signals(jnp.asarray(losses), 4)
    assert set(np.asarray(found.up).tolist()) == {0, 1, 2, 3}
    assert set(np.asarray(found.down).tolist()) == {4, 5, 6, 7}
    assert float(found.correlation) < -0.999
    assert float(found.share) > 0.95


def test_opposing_signals_until_the_first_rise():
    """A growing oscillation of four examples against four, then a catapult that moves all eight together."""
    t = np.arange(30)
    losses = np.full((30, 40), 1.0) - 0.001 * t[:, None]
    swing = np.where(t < 15, 0.01 * t * (-1.0) ** t, 0)
    losses[:, :4] += 1.2 * swing[:, None]
    losses[:, 4:8] -= swing[:, None]
    losses[20, 8:16] += 5
    first = examples.opposing_signals(jnp.asarray(losses), 4, until="first")
    changes = np.diff(losses.mean(1))
    assert int(first.step) == np.flatnonzero(changes > 0)[0]
    assert set(np.asarray(first.up).tolist()) == {0, 1, 2, 3}
    assert set(np.asarray(first.down).tolist()) == {4, 5, 6, 7}
    assert float(first.correlation) < -0.999
    assert bool(first.oscillates)
    largest = examples.opposing_signals(jnp.asarray(losses), 4)
    assert int(largest.step) == 19
    assert set(np.asarray(largest.up).tolist()) <= set(range(8, 16))
    falling = np.ones((6, 10)) * np.array([6.0, 4, 3, 2.9, 2, 1])[:, None]
    calm = examples.opposing_signals(jnp.asarray(falling), 2, until="first")
    assert int(calm.step) == 2
    assert not bool(calm.oscillates)
    rounded = np.float32(falling)
    rounded[3:] = rounded[2] * np.array([1, 1 + 2e-7, 1 + 2e-7], np.float32)[:, None]
    calm = examples.opposing_signals(jnp.asarray(rounded), 2, until="first")
    assert float(calm.rise) > 0
    assert not bool(calm.oscillates)


def test_sharpness_along_the_opposing_coordinate_is_alpha_times_the_readout():
    """Two-layer linear network, y = beta.x_b + c|x_o|, x_o = +-sqrt(alpha/p): curvature alpha |w_2|^2."""
    alpha, rare, width = 20.0, 0.02, 12
    rng = np.random.default_rng(4)
    x = rng.standard_normal((500, 6))
    x[:, 5] = 0
    x[:10, 5] = np.sqrt(alpha / rare) * np.repeat([1, -1], 5)
    beta = np.array([3.0, 0, 0, 0, 0, 0])
    x, y = jnp.asarray(x), jnp.asarray(x @ beta + 0.5 * np.abs(x[:, 5]))

    def loss(params):
        return 0.5 * jnp.mean((x @ params["in"] @ params["out"] - y) ** 2)

    @jax.jit
    def train(params):
        def step(params, _):
            return jax.tree.map(lambda p, g: p - 2e-3 * g, params, jax.grad(loss)(params)), None

        return jax.lax.scan(step, params, None, length=4000)[0]

    keys = jax.random.split(jax.random.key(1))
    params = train(
        {
            "in": 0.05 * jax.random.normal(keys[0], (6, width)),
            "out": 0.05 * jax.random.normal(keys[1], (width,)),
        }
    )
    unit = params["out"] / jnp.linalg.norm(params["out"])
    direction = {"in": jnp.zeros((6, width)).at[5].set(unit), "out": jnp.zeros(width)}
    product = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
    sharpness = float(jnp.vdot(product["in"], direction["in"]))
    assert sharpness == pytest.approx(alpha * float(jnp.sum(params["out"] ** 2)), rel=0.03)
    assert sharpness == pytest.approx(alpha * 3.0, rel=0.05)


LOSSES = np.ones((6, 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: examples.opposing_signals(LOSSES[:3], 2), "T >= 4"),
        (lambda: examples.opposing_signals(LOSSES, 6), r"must be 1\.\.5"),
        (lambda: examples.opposing_signals(LOSSES, 2, until="last"), "until is 'last'"),
        (
            lambda: examples.opposing_signals(
                np.where(np.eye(6, 10) * np.eye(6)[4][:, None] > 0, np.nan, 1), 2
            ),
            "the loss of example 4 at step 4 is nan",
        ),
        (lambda: examples.el2n(jnp.ones((4, 3)), jnp.ones((4,))), "must be integers"),
        (lambda: examples.over_runs(jnp.ones((1, 3))), "needs at least 2"),
        (
            lambda: examples.grand(lambda p, x, y: x * p, 1.0, np.ones((4, 2)), np.ones(4)),
            r"shape \(2,\)",
        ),
        (
            lambda: examples.grand(linear_loss, {}, np.ones((4, 2)), np.ones(3)),
            "4 inputs and 3 targets",
        ),
        (
            lambda: examples.grand(linear_loss, {}, np.ones((4, 2)), np.ones(4), batch_size=0),
            "batch_size is 0",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_memorised_shares_by_hand():
    clean = np.array([0, 0, 1, 1, 2, 2])
    labels = np.array([1, 0, 2, 1, 0, 2])  # the first, third and fifth are wrong
    predictions = np.array([[0, 0, 2, 0, 1, 2], [0, 1, 1, 0, 2, 0]])
    found = examples.memorised(predictions, labels, clean)
    third = pytest.approx(1 / 3)
    assert [s[0] for s in found] == [third, third, third, pytest.approx(2 / 3)]
    assert [s[1] for s in found] == [1, 0, 0, 0]
    nothing = examples.memorised(clean, clean, clean)
    assert np.isnan(nothing.true)
    assert nothing.labelled == 1
