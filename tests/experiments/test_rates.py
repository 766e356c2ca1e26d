"""Units of learning rates: where a first step leads nowhere, on quadratic losses by hand and on networks by trying."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import losses, rates, settings, tasks
from experiments.studies import learning_rate_transfer as study
from experiments.studies import neural_collapse as collapse
from experiments.train import INIT, stream

CURVATURE = np.diag(np.linspace(1.0, 8.0, 24, dtype=np.float32))


def quadratic(params, batch):
    return 0.5 * params["w"] @ batch @ params["w"]


def test_gradient_descent_has_its_edge_at_two_over_the_sharpness():
    found = rates.edge("sgd", quadratic, {"w": jnp.ones(24)}, CURVATURE)
    np.testing.assert_allclose(found, 2 / 8, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_adams_first_step_at_its_edge_leads_nowhere(scale):
    start = {"w": jax.random.normal(jax.random.key(0), (24,))}
    rate = rates.edge("adam", quadratic, start, scale * CURVATURE)
    gradient = jax.grad(quadratic)(start, scale * CURVATURE)
    optimizer = optax.adam(float(rate), eps=1e-20)
    updates, _ = optimizer.update(gradient, optimizer.init(start), start)
    after = quadratic(optax.apply_updates(start, updates), scale * CURVATURE)
    np.testing.assert_allclose(after, quadratic(start, scale * CURVATURE), rtol=1e-4)
    slope = np.abs(gradient["w"]).sum() / scale
    np.testing.assert_allclose(rate, 2 * slope / np.trace(CURVATURE), rtol=1e-5)


def test_units_are_powers_of_two_and_refuse_what_has_none():
    starts = [{"w": jnp.ones(24)}, {"w": 2 * jnp.ones(24)}]
    assert rates.octave("sgd", quadratic, starts, 1.3 * CURVATURE) == 0.25  # of 0.19
    with pytest.raises(ValueError, match="have no unit"):
        rates.octave("adam", quadratic, [{"w": jnp.zeros(24)}], CURVATURE)


def test_larger_inputs_have_smaller_edges():
    config, _ = settings.load("learning_rate_transfer:smoke")
    task = tasks.load(config.task)
    net = study.network(config, task, config.sweep, "mup", 16)
    loss, params = losses.supervised("cross_entropy", net.apply), net.init(stream(0, INIT))
    x, y = (leaf[:64] for leaf in task.train)
    for optimizer, least in (("sgd", 1.5), ("adam", 1.1)):
        edges = [rates.edge(optimizer, loss, params, (size * x, y)) for size in (1, 4)]
        assert edges[0] / edges[1] > least


@pytest.mark.slow
def test_the_digits_keep_their_grid():
    config, _ = settings.load("learning_rate_transfer:cpu")
    task = tasks.load(config.task)
    for optimizer, low, high in (("sgd", -3, 3), ("adam", -10, -4)):
        found = study.learning_rates(config, task, optimizer)
        np.testing.assert_array_equal(found, 2.0 ** np.linspace(low, high, 7))


@pytest.mark.slow
def test_the_networks_on_digits_keep_their_rate():
    config, _ = settings.load("neural_collapse:cpu")
    task = tasks.load(config.task)
    for name in config.networks:
        part = config[name]
        x, y = collapse.subset(task, part.sizes)
        decay = part.weight_decay, part.feature_decay
        network = collapse.backbone(part, task.outputs, x[:1])
        data = collapse.problem(y, part.sizes, part.linear, decay, x=x)
        assert collapse.network_rate(name, part, network, data) == 2e-3
