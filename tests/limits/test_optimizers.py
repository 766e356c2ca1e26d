"""Optimizers under a parametrization: every optimizer of optax has a kind and right factors, or is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from limits.coordinates import coordinate_check
from limits.optimizers import optimizer_kind
from limits.parametrization import parametrize

X = jax.random.normal(jax.random.key(5), (16, 8))


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def kernels_and_rest(params):
    return {name: "matrix" if name == "kernel" else "rest" for name in params}


OF_A_KIND = {
    "sgd": {
        "sgd": optax.sgd,
        "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
        "optimistic": optax.optimistic_gradient_descent,
        "scheduled": lambda rate: optax.sgd(optax.warmup_cosine_decay_schedule(0, rate, 5, 100)),
        "decayed": lambda rate: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(rate, 0.9)),
        "clipped norm": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate)),
        "tightly": lambda rate: optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(rate)),
        "accumulated": lambda rate: optax.MultiSteps(optax.sgd(rate), 2),
    },
    "adam": {
        **{
            name: getattr(optax, name)
            for name in ("adam", "adamw", "lion", "rmsprop", "adagrad", "nadam", "adan")
        },
        "decay of matrices": lambda rate: optax.adamw(rate, mask=matrices),
        "accumulated adamw": lambda rate: optax.MultiSteps(optax.adamw(rate), 32),
    },
    "entrywise": {
        "radam": optax.radam,
        "noisy": lambda rate: optax.noisy_sgd(rate, key=jax.random.key(0)),
        "clipped entries": lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate)),
        "loosely": lambda rate: optax.chain(optax.clip(1e3), optax.sgd(rate)),
        "adam and sgd": lambda rate: optax.multi_transform(
            {"matrix": optax.adam(rate), "rest": optax.sgd(rate)}, kernels_and_rest
        ),
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in OF_A_KIND.items() for name in table]
)
def test_the_kind_of_an_optimizer_is_found_by_trying_it(kind, name):
    factory = OF_A_KIND[kind][name]
    assert optimizer_kind(factory) == optimizer_kind(factory, kind) == kind
    other = "adam" if kind != "adam" else "sgd"
    with pytest.raises(ValueError, match=f'is of the kind "{kind}" and not "{other}"'):
        optimizer_kind(factory, other)


def centralized(rate):
    return optax.chain(optax.centralize(), optax.sgd(rate))


def sam(rate):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    opaque = optax.contrib.sam(optax.sgd(rate), ascent, opaque_mode=True)
    return optax.chain(opaque, optax.identity())


def clipped_adam(rate, most=1.0):
    return optax.chain(optax.clip_by_global_norm(most), optax.adam(rate))


def loosely_clipped_adamw(rate):
    return optax.chain(optax.clip_by_global_norm(100.0), optax.adamw(rate))


def factored(rate):
    return optax.adafactor(rate, multiply_by_parameter_scale=False, clipping_threshold=None)


contrib = optax.contrib
REFUSED = {
    "size of the parameters": (
        *(optax.adafactor, optax.lamb, optax.lars, optax.fromage, contrib.schedule_free_sgd),
    ),
    "gradient of others": (
        *(optax.novograd, optax.sm3, contrib.muon, contrib.prodigy, contrib.dadapt_adamw),
        *(centralized, clipped_adam, loosely_clipped_adamw, factored),
    ),
    "cannot be tried": (optax.lbfgs, optax.polyak_sgd),
    "radius of its own": (sam,),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_optimizers_of_no_kind_are_refused_by_name(reason):
    for factory in REFUSED[reason]:
        name = factory.__name__
        with pytest.raises(ValueError, match=f"{name} is no optimizer of a kind .*{reason}"):
            optimizer_kind(factory)


def mup(width):
    family = models.family("MLP", depth=2, outputs=1, activation=jnp.tanh)
    return parametrize(family, "mup", width=width, base_width=16, example=X)


def test_the_norm_of_all_gradients_is_of_order_one_at_every_width():
    """Where a clipped norm goes that adam follows: outside."""
    norms = []
    for width in (64, 256, 1024):
        net = mup(width)
        params = net.init(jax.random.key(0))
        loss = lambda p, net=net: jnp.mean((net.apply(p, X) - 1) ** 2)  # noqa: E731
        norms.append(float(optax.tree.norm(jax.grad(loss)(params))))
    assert max(norms) < 1.5 * min(norms)


@pytest.mark.parametrize("name", OF_A_KIND["entrywise"])
def test_under_ntk_an_optimizer_between_the_kinds_is_refused(name):
    """Their rates go with the width in two ways there, and such an optimizer would be wrong in one of them."""
    family = models.family("MLP", depth=2, outputs=1)
    net = parametrize(family, "ntk", width=64, base_width=16, example=X)
    with pytest.raises(ValueError, match="neither linear in the gradient, as sgd, nor unchanged"):
        net.optimizer(OF_A_KIND["entrywise"][name], 0.1)
    assert mup(64).optimizer(OF_A_KIND["entrywise"][name], 0.1)


def test_a_clipped_norm_means_the_same_at_every_width():
    """The squared norm that is clipped is the change of the loss in a step, sum of factor times squared gradient."""
    rate, most = 0.1, 1e-3
    for width in (16, 64, 256):
        net = mup(width)
        params = net.init(jax.random.key(0))
        tx = net.optimizer(
            lambda r: optax.chain(optax.clip_by_global_norm(most), optax.sgd(r)), rate
        )
        gradient = jax.grad(lambda p, net=net: jnp.mean((net.apply(p, X) - 1) ** 2))(params)
        update = tx.update(gradient, tx.init(params), params)[0]
        change = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, update, gradient)))
        size = sum(
            jax.tree.leaves(
                jax.tree.map(lambda f, g: f * jnp.vdot(g, g), net.lr_scale("sgd"), gradient)
            )
        )
        np.testing.assert_allclose(-change, rate * most * jnp.sqrt(size), rtol=1e-5)


RATES = {
    "nesterov": 0.3,
    "clipped norm": 0.5,
    "accumulated": 0.5,
    "radam": 0.02,
    "lion": 0.005,
    "decay of matrices": 0.02,
    "clipped entries": 0.5,
    "adam and sgd": 0.02,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_coordinates_under_every_optimizer_are_those_of_mup(name):
    """Own updates of order one at every width: the largest rate is then the same, whatever the optimizer."""
    factory = {name: f for table in OF_A_KIND.values() for name, f in table.items()}[name]
    found = coordinate_check(
        mup,
        [64, 256, 1024],
        (X, jnp.ones((len(X), 1))),
        lambda o, t: jnp.mean((o - t) ** 2),
        jax.random.key(1, impl="rbg"),
        learning_rate=RATES[name],
        optimizer=factory,
        steps=4,
        seeds=8,
    )
    assert not found.wrong, found.verdict
    # A wrong factor shifts an exponent by one half at least: the right one is the nearest.
    last = np.abs(found.own_scaling.exponent[-1])
    assert last.max() < 1 / 4, (found.layers, last)
