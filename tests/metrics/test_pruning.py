"""Masks by magnitude against sorting by hand, gradients and steps under a mask, random masks, counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metrics import pruning

PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (6, 5)), "bias": jnp.ones(5)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (5, 2)), "bias": jnp.zeros(2)},
}
FULL = pruning.full_mask(PARAMS)


def by_hand(weights, mask, share):
    weights, mask = np.abs(np.asarray(weights)).ravel(), np.asarray(mask).ravel().copy()
    left = np.flatnonzero(mask)
    for i in sorted(left, key=lambda i: weights[i])[: int(share * len(left) + 1e-9)]:
        mask[i] = 0
    return mask


def test_each_round_removes_the_smallest_of_what_is_left():
    mask = expected = FULL
    for count, left in ((1, 24), (2, 20), (3, 16)):
        params = jax.tree.map(lambda p, count=count: jnp.roll(p, count), PARAMS)
        mask = pruning.magnitude_mask(params, mask, 0.2)
        expected = {
            layer: {
                "kernel": by_hand(params[layer]["kernel"], old["kernel"], 0.2),
                "bias": old["bias"],
            }
            for layer, old in expected.items()
        }
        for layer in "ab":
            found = np.asarray(mask[layer]["kernel"]).ravel()
            np.testing.assert_array_equal(found, expected[layer]["kernel"])
        assert mask["a"]["kernel"].sum() == left
        assert (mask["a"]["bias"] == 1).all()


def test_shares_of_each_parameter_and_of_ten_round_as_they_read():
    shares = {"a": {"kernel": 0.5, "bias": 0.2}, "b": {"kernel": 0.0, "bias": 0.0}}
    mask = pruning.magnitude_mask(PARAMS, FULL, shares)
    left = jax.tree.map(lambda m: int(m.sum()), mask)
    assert left == {"a": {"kernel": 15, "bias": 4}, "b": {"kernel": 10, "bias": 2}}
    assert pruning.density(mask) == pytest.approx((15 + 4 + 10 + 2) / 47)
    for tenth in range(
        1, 10
    ):  # .7 * 10 is 7.000000000000001, .3 * 10 in single precision 3.0000001
        mask = pruning.magnitude_mask(PARAMS["b"], FULL["b"], tenth / 10)
        assert mask["kernel"].sum() == 10 - tenth


def test_jit_and_vmap_give_the_same():
    many = jax.tree.map(lambda p: jnp.stack([p, -jnp.flip(p)]), PARAMS)
    masks = jax.tree.map(jnp.ones_like, many)
    prune = jax.jit(jax.vmap(pruning.magnitude_mask, (0, 0, None)), static_argnums=2)
    found = prune(many, masks, 0.3)
    for k in range(2):
        one = pruning.magnitude_mask(jax.tree.map(lambda p, k=k: p[k], many), FULL, 0.3)
        jax.tree.map(lambda m, o, k=k: np.testing.assert_array_equal(m[k], o), found, one)


@pytest.mark.parametrize("factory", [optax.sgd, optax.adam])
def test_what_is_gone_does_not_train(factory):
    mask = pruning.magnitude_mask(PARAMS, FULL, 0.5)
    x = jax.random.normal(jax.random.key(2), (4, 6))

    def loss(params):
        p = pruning.masked(params, mask)
        return jnp.square(jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"] - 1).mean()

    params, optimizer = PARAMS, factory(0.1)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        params = optax.apply_updates(params, updates)
    for layer in "ab":
        moved = np.asarray(params[layer]["kernel"] != PARAMS[layer]["kernel"])
        kept = np.asarray(mask[layer]["kernel"] > 0)
        assert not moved[~kept].any()
        assert moved[kept].any()


def test_a_shuffled_mask_keeps_its_counts_and_nothing_else():
    mask = pruning.magnitude_mask(PARAMS, FULL, 0.5)
    mixed = pruning.shuffled_mask(mask, jax.random.key(3))
    for layer in "ab":
        one, other = (m[layer]["kernel"] for m in (mask, mixed))
        assert one.sum() == other.sum()
        assert set(np.unique(other)) == {0, 1}
    assert (mask["a"]["kernel"] != mixed["a"]["kernel"]).any()
    draws = [pruning.shuffled_mask(mask, k) for k in jax.random.split(jax.random.key(4), 400)]
    mean = np.mean([d["a"]["kernel"] for d in draws], axis=0)
    assert np.abs(mean - 0.5).max() < 5 * (0.25 / 400) ** 0.5


def test_what_is_gone_is_zero_whatever_stood_there():
    params, mask = {"w": jnp.array([1.0, jnp.nan, jnp.inf, 2])}, {"w": jnp.array([1.0, 0, 0, 1])}
    np.testing.assert_array_equal(pruning.masked(params, mask)["w"], [1, 0, 0, 2])
    slope = jax.grad(lambda p: pruning.masked(p, mask)["w"].sum())(params)["w"]
    np.testing.assert_array_equal(slope, mask["w"])
    left = pruning.magnitude_mask(params, mask, {"w": 0.5})["w"]  # what is gone is not looked at
    np.testing.assert_array_equal(left, [0, 0, 0, 1])


def test_nan_is_no_large_weight():
    params, mask = {"w": jnp.array([1.0, jnp.nan, 3, 2])}, {"w": jnp.ones(4)}
    with pytest.raises(ValueError, match="params holds nan where the mask keeps it"):
        pruning.magnitude_mask(params, mask, {"w": 0.5})
    traced = jax.jit(lambda p: pruning.magnitude_mask(p, mask, {"w": 0.5}))(params)["w"]
    assert np.isnan(traced).all()
