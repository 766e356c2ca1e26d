"""Learning-rate transfer: rates of the trajectories follow the curvature of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import tasks
from experiments.configs.learning_rate_transfer import get_config
from experiments.studies import learning_rate_transfer as study
from experiments.train import INIT, stream


def test_the_rate_of_a_trajectory_is_in_units_of_the_edge_of_stability():
    """2 over the largest eigenvalue of the rate-scaled Hessian, by all of it, of the widest network."""
    config = get_config("smoke")
    part = config.trajectory
    part.widths, part.seeds, part.num_train, part.lanczos_steps = (2, 4), (3,), 12, 8
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 3)).astype(np.float32), random.integers(0, 3, 12, dtype=np.int32)
    for scale in (1.0, 4.0):  # the same images, brighter
        data = tasks.Data(np.float32(scale) * x, y)
        task = tasks.Task("tiny", data, data, 3, (3,))
        net = study.network(config, task, part, "mup", 4)
        weights, unravel = ravel_pytree(net.init(stream(3, INIT)))

        def loss(w, net=net, unravel=unravel, data=data):
            errors = net.apply(unravel(w), data.x) - jax.nn.one_hot(data.y, 3)
            return 0.5 * jnp.mean(jnp.sum(errors**2, axis=1))

        shares = jax.tree.map(jnp.full_like, unravel(weights), net.lr_scale("sgd"))
        root = jnp.sqrt(ravel_pytree(shares)[0])
        hessian = np.asarray(jax.hessian(loss)(weights) * root[:, None] * root[None], np.float64)
        edge = 2 / np.linalg.eigvalsh(hessian)[-1]
        assert study.trajectory_rate(config, task, "mup") == pytest.approx(0.37 * edge, rel=1e-3)
