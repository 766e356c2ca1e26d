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


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16])
def test_early_learning_of_confident_examples_in_half_precision(kind):
    outputs, targets = 20 * jnp.eye(3, dtype=kind), jnp.eye(3, dtype=kind)

    def loss(z):
        return losses.early_learning(z, jnp.arange(3), targets)

    (value, new), slope = jax.value_and_grad(loss, has_aux=True)(outputs)
    expected = losses.early_learning(20 * jnp.eye(3), jnp.arange(3), jnp.eye(3))[0]
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert np.isfinite(np.asarray(slope, float)).all()
    assert new.dtype == kind  # a loop's carry keeps its type


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 2.0}, "momentum is 2.0; it must be at least 0 and below 1"),
        ({"strength": -1.0}, "strength is -1.0; it must be at least 0 and finite"),
        ({"labels": np.array([0, 3])}, "labels run from 0 to 3"),
        ({"targets": np.full((2, 3), 1.5)}, "targets run from 1.5 to 1.5"),
        ({"targets": np.ones((2, 3))}, "at most 1 in sum"),
        ({"targets": np.zeros((2, 4))}, r"targets has shape \(2, 4\); it must be \(2, 3\)"),
        ({"outputs": np.zeros(3)}, r"outputs has shape \(3,\)"),
    ],
)
def test_early_learning_refuses(change, message):
    given = {"outputs": np.zeros((2, 3)), "labels": np.arange(2), "targets": np.zeros((2, 3))}
    with pytest.raises(ValueError, match=message):
        losses.early_learning(**given | change)


@pytest.mark.parametrize("size", [1e-23, 1.0, 1e23])
def test_sharpness_aware_steps_at_any_scale(size):
    gradient = {"w": size * jnp.array([3.0, 4.0])}
    seen = []

    def slope(params, _):
        seen.append(params["w"])
        return gradient

    start, rule = {"w": jnp.ones(2)}, train.sam(0.1, 0.5)
    step = rule.update(gradient, rule.init(start), start, grad_fn=slope)[0]
    np.testing.assert_allclose(seen[-1], [1.3, 1.4], rtol=1e-6)
    np.testing.assert_allclose(step["w"], -0.1 * gradient["w"], rtol=1e-5)


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_sharpness_aware_rests_at_a_gradient_of_zero(radius):
    start, rule = {"w": jnp.ones(2)}, train.sam(0.1, radius, 0.9)
    zero = jax.tree.map(jnp.zeros_like, start)
    step = rule.update(
        zero, rule.init(start), start, grad_fn=lambda p, _: jax.tree.map(jnp.subtract, p, start)
    )[0]
    np.testing.assert_array_equal(step["w"], 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-0.1,), ValueError, "learning_rate is -0.1; it must be at least 0 and finite"),
        ((0.1, -0.1), ValueError, "radius is -0.1"),
        ((0.1, np.nan), ValueError, "radius is nan"),
        ((0.1, 0.05, 1.5), ValueError, "momentum is 1.5; it must be at least 0 and below 1"),
        (("a",), TypeError, "learning_rate is 'a'; it must be an array of real numbers"),
    ],
)
def test_sharpness_aware_descent_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        train.sam(*arguments)


def test_sharpness_aware_descent_asks_for_the_gradient_elsewhere():
    start, rule = {"w": jnp.ones(2)}, train.sam(0.1)
    with pytest.raises(TypeError, match="sam's update needs grad_fn"):
        rule.update(start, rule.init(start), start)

    def loss(params, key):  # the noise of one step is the same at both places
        return jnp.sum(params["w"] ** 2 * jax.random.uniform(key, (2,)))

    w, key = jnp.array([1.0, 2.0]), jax.random.key(0)
    drawn = jax.random.uniform(jax.random.split(key, 1)[0], (2,))
    g = 2 * w * drawn
    expected = w - 0.1 * 2 * drawn * (w + 0.05 * g / jnp.linalg.norm(g))
    found = train.fit(loss, {"w": w}, rule, key, 1)["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
