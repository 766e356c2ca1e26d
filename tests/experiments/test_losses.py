"""Losses that remember and optimizers that look elsewhere: the compiled loop against the equations written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import losses, train

N, D, K = 12, 4, 3
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
Y = np.arange(N) % K
PROBE = train.Probe(lambda *_: (), lambda params, carry, rate, data: (carry, {"w": params["w"]}))


def init(key):
    return {"w": 0.3 * jax.random.normal(key, (D, K))}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_early_learning_by_hand():
    outputs = np.random.default_rng(1).standard_normal((N, K))
    targets = np.full((N, K), 0.2)
    value, new = losses.early_learning(jnp.asarray(outputs), Y, jnp.asarray(targets), 3.0, 0.7)
    p = softmax(outputs)
    expected = 0.7 * targets + 0.3 * p
    np.testing.assert_allclose(new, expected, rtol=1e-5)
    entropy = -np.log(p[np.arange(N), Y]).mean()
    kept = np.log(1 - (expected * p).sum(1)).mean()
    assert float(value) == pytest.approx(entropy + 3 * kept, rel=1e-5)


def test_the_gradient_does_not_pass_through_the_targets():
    outputs = jnp.asarray(np.random.default_rng(1).standard_normal((N, K)))
    zeros = jnp.zeros((N, K))

    def regulariser(z):
        full = losses.early_learning(z, Y, zeros, 1.0, 0.0)[0]
        return full - losses.cross_entropy(z, Y)

    p = softmax(np.asarray(outputs))
    own = (p * p).sum(1, keepdims=True)
    # d log(1 - <t, p>)/dz = -p (t - <t, p>) / (1 - <t, p>), at t = p
    expected = -p * (p - own) / (1 - own) / N
    np.testing.assert_allclose(jax.grad(regulariser)(outputs), expected, atol=2e-6)


def trained(setup, data, steps, batch_size=None, rate=0.2, **options):
    compiled = train.compile_program(
        lambda data: setup, data, steps=steps, batch_size=batch_size, probe=PROBE, **options
    )
    rate, seed = np.float32(rate), np.uint32(3)
    start = compiled.start(rate, seed, data)
    first = np.asarray(start.params["w"])
    return first, compiled.advance(start, rate, seed, data)[0]


def test_the_loop_carries_what_a_loss_remembers():
    data = {"train": (X, Y, np.arange(N))}

    def loss(params, batch, targets):
        x, y, ids = batch
        value, new = losses.early_learning(x @ params["w"], y, targets[ids])
        return value, targets.at[ids].set(new)

    def memory(data):
        return jnp.zeros((len(data["train"][1]), K))

    setup = train.Setup(init, loss, train.OPTIMIZERS["sgd"], memory)
    first, state = trained(setup, data, 1, batch_size=5)
    drawn = np.asarray(train.draw_batch(np.uint32(3), 0, data["train"], 5)[2])
    expected = np.zeros((N, K))
    expected[drawn] = 0.3 * softmax(X[drawn] @ first)
    np.testing.assert_allclose(state.memory, expected, atol=1e-6)
    assert len(set(drawn)) < N  # others stayed as they were

    @jax.jit
    def by_hand(w):
        targets = jnp.zeros((N, K))
        for _ in range(4):
            (_, targets), slope = jax.value_and_grad(
                lambda w, t=targets: losses.early_learning(X @ w, Y, t), has_aux=True
            )(w)
            w = w - 0.2 * slope
        return w, targets

    first, state = trained(setup, data, 4)
    for found, expected in zip((state.params["w"], state.memory), by_hand(jnp.asarray(first))):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_sharpness_aware_steps_by_hand(momentum):
    def loss(params, batch):
        return losses.cross_entropy(batch[0] @ params["w"], batch[1])

    def rule(rate):
        return train.OPTIMIZERS["sam"](rate, radius=0.5, momentum=momentum)

    first, state = trained(train.Setup(init, loss, rule), {"train": (X, Y)}, 3)
    w, velocity = np.asarray(first, float), 0.0

    def slope(w):
        return X.T @ (softmax(X @ w) - np.eye(K)[Y]) / N

    for _ in range(3):
        g = slope(w)
        velocity = (momentum or 0) * velocity + slope(w + 0.5 * g / np.linalg.norm(g))
        w = w - 0.2 * velocity
    np.testing.assert_allclose(state.params["w"], w, atol=1e-6)
    plain = train.Setup(init, loss, lambda rate: train.sam(rate, 0.0, momentum))
    flat = trained(plain, {"train": (X, Y)}, 3)[1].params["w"]
    sgd = train.Setup(init, loss, lambda rate: train.optax.sgd(rate, momentum))
    np.testing.assert_allclose(flat, trained(sgd, {"train": (X, Y)}, 3)[1].params["w"], atol=1e-7)
    assert np.abs(flat - state.params["w"]).max() > 1e-3
