"""Small kernels at once: numpy's walk through a program is the program."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import models
import ntk
from ntk import stax
from ntk.infinite import immediate, tiled, true_law

UNIFORM = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
X = np.random.default_rng(0).normal(size=(3, 4))
POSITIVE = np.abs(X) + 0.1


def loops(x):
    def body(carry, row):
        return carry + row, carry * row

    carry, rows = lax.scan(body, x[0], x, reverse=True)
    carry = lax.fori_loop(0, 3, lambda i, c: c * (i + 1), carry)
    carry = lax.while_loop(lambda c: c.sum() < 100, lambda c: c + 1, carry)
    return lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, carry), rows


@jax.custom_jvp
def ruled(x):
    return jnp.sinc(x)


ruled.defjvp(lambda primals, tangents: (ruled(*primals), tangents[0]))


@jax.custom_batching.custom_vmap
def batched(x):
    return jnp.exp(x)


batched.def_vmap(lambda size, flags, x: (batched(x), True))


FUNCTIONS = {
    "loops": loops,
    "inner programs": lambda x: jax.jit(jnp.tanh)(jax.checkpoint(ruled)(x)),
    "vmap": lambda x: batched(x),
    "products": lambda x: (x @ x.T, jnp.einsum("ij,ik->ijk", x, x), jnp.tensordot(x, x, 2)),
    "batched product": lambda x: jnp.einsum(
        "ijk,ilk->ijl", x[..., None] * x[:, None], x[..., None] * x[:, None]
    ),
    "shapes": lambda x: (
        x.T.reshape(2, 6),
        x[::-1, 1:3],
        x[None],
        jnp.concatenate([x, x], 1),
        jnp.stack([x, x], 1),
    ),
    "pad": lambda x: lax.pad(x, 7.0, [(2, -1, 1), (-1, 1, 0)]),
    "pad to nothing": lambda x: lax.pad(x, 7.0, [(-3, 0, 0), (1, 1, 2)]),
    "iota": lambda x: x * lax.broadcasted_iota(float, x.shape, 1),
    "reductions": lambda x: (x.sum(0), x.max(), x.min(1), x.prod(), (x > 0).any(1), (x > -9).all()),
    "one after another": lambda x: (jnp.cumsum(x, 1), jnp.sort(x, 0), jnp.argmax(x, 1)),
    "look-ups": lambda x: (
        x[jnp.array([2, 0])],
        x.at[1].set(0),
        lax.dynamic_slice(x, (1, 1), (2, 2)),
    ),
    "functions": lambda x: (
        jnp.arcsin(x / 9),
        lax.rsqrt(x * x),
        x**3,
        x**-2,
        jnp.sign(x),
        jnp.expm1(x),
        lax.erf(x),
    ),
    "special": lambda x: (jax.scipy.special.i0e(x), jax.scipy.special.gammaln(x * x), jnp.round(x)),
    "choices": lambda x: (
        jnp.where(x > 0, x, -1),
        jnp.clip(x, -0.5, 0.5),
        lax.select_n(jnp.int32(1), x, -x, 2 * x),
    ),
    "window": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "VALID"),
    "decompositions": lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_program_is_its_function(name):
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        expected = FUNCTIONS[name](x)
        found = immediate.program(FUNCTIONS[name], x)(x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        np.testing.assert_allclose(one, two, rtol=1e-13, atol=1e-14)


def net(activation=stax.Relu, b_std=0.1):
    return stax.serial(
        stax.Dense(1, 1.4, b_std),
        activation(),
        stax.Dense(1, 1.4, b_std),
        activation(),
        stax.Dense(1),
    )[2]


def compilations(fn):
    """How many programs XLA compiles while fn runs."""
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: found.append(name) if "backend_compile" in name else None
    )
    fn()
    return len(found)


def test_the_first_kernel_compiles_nothing():
    kernel_fn, x = net(stax.Gelu), jnp.asarray(X, jnp.float32)
    x.block_until_ready()
    assert compilations(lambda: kernel_fn(x, None, ("nngp", "ntk"))) == 0
    assert (
        compilations(lambda: jax.jit(lambda x: kernel_fn(x, None, "ntk"))(x)) > 0
    )  # the count counts


@pytest.mark.parametrize("activation", [stax.Relu, stax.Gelu, stax.Erf, stax.Sin])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_once_and_compiled_are_the_same_numbers(activation, dtype):
    with jax.enable_x64(dtype == np.float64):
        x = jnp.asarray(X, dtype)
        kernel_fn = net(activation)
        compiled = jax.jit(lambda x: kernel_fn(x, None, ("nngp", "ntk")))(x)
        for get in ("ntk", "nngp"):
            at_once = kernel_fn(x, None, get)
            assert at_once.dtype == dtype
            expected = np.asarray(getattr(compiled, get))
            tolerance = 4 * np.finfo(dtype).eps * np.abs(expected).max()
            np.testing.assert_allclose(at_once, expected, rtol=0, atol=tolerance)


def readings(fn):
    """How many functions are traced while fn runs."""
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: found.append(name) if "jaxpr_trace" in name else None
    )
    fn()
    return len(found)


NETWORKS = {
    "dense": (net(), (4,), {}),
    "convolution": (
        stax.serial(stax.Conv(1, (3, 3), padding="SAME"), stax.Relu(), stax.Flatten())[2],
        (4, 4, 2),
        {},
    ),
    "masked": (
        stax.serial(stax.Conv(1, (3,)), stax.Erf(), stax.GlobalAvgPool(), stax.Dense(1))[2],
        (6, 2),
        {"mask_constant": 0.0},
    ),
    "pixels": (
        stax.serial(stax.Conv(1, (3, 2), padding="SAME"), stax.Relu(), stax.Conv(1, (2, 2)))[2],
        (4, 3, 2),
        {},
    ),
    "batch last": (
        stax.serial(stax.Dense(1, batch_axis=1, channel_axis=0), stax.Relu())[2],
        (4,),
        {},
    ),
    "two heads": (
        stax.serial(stax.Dense(1), stax.FanOut(2), stax.parallel(stax.Relu(), stax.Erf()))[2],
        (4,),
        {},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sides", [(4, 64), (2, 2)])  # one tile, or several
@pytest.mark.parametrize("sizes", [(3, None), (5, 2)])
def test_batches_of_other_sizes_are_evaluated_by_one_program(name, sizes, sides, monkeypatch):
    monkeypatch.setattr(tiled, "SMALL_SIDES", sides)
    kernel_fn, shape, options = NETWORKS[name]
    kernel_fn = dataclasses.replace(kernel_fn)  # without its programs
    draw = np.random.default_rng(1).normal
    one, two = (None if n is None else draw(size=(n, *shape)).astype("f") for n in sizes)
    if name == "batch last":
        one, two = (None if x is None else x.T for x in (one, two))
    if name == "masked":
        one[:, -1] = 0
    # A whole kernel is read for the sizes of its own batches.
    expected = kernel_fn(one, two, None, **options)
    for get in ("ntk", ("ntk", "nngp"), "nngp"):
        found = kernel_fn(one, two, get, **options)
        for k, head in enumerate(found if name == "two heads" else [found]):
            whole = expected[k] if name == "two heads" else expected
            for kind in [get] if isinstance(get, str) else get:
                part = head if isinstance(get, str) else getattr(head, kind)
                np.testing.assert_allclose(part, getattr(whole, kind), rtol=1e-6, atol=1e-7)
    assert len(kernel_fn._small) == 2


class Traced(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.gelu(nn.Dense(self.width)(x)))


@pytest.mark.parametrize("traced", [False, True])
def test_another_size_of_a_known_network_is_not_read_anew(traced):
    x = np.random.default_rng(0).normal(
        size=(33, 40)
    )  # of fewer inputs a traced network would draw its weights
    kernel_fn = ntk.infinite_width(lambda n: Traced(n), x) if traced else net(stax.Gelu)
    whole = kernel_fn(x, None, "ntk")
    found = []
    known = readings(lambda: found.extend(kernel_fn(x[:n], None, "ntk") for n in (1, 7, 20)))
    assert known == 0
    assert len(kernel_fn._small) == 1
    for n, part in zip((1, 7, 20), found):
        np.testing.assert_array_equal(part, whole[:n, :n])
    assert readings(lambda: kernel_fn(x, x[:2], "ntk")) > 0  # the count counts


def test_linen_models_are_read_without_nnx():
    """Importing it takes longer than reading the model."""
    code = (
        "import sys, jax.numpy as jnp; from flax import linen as nn; import ntk\n"
        "ntk.infinite_width(lambda n: nn.Sequential([nn.Dense(n), nn.relu, nn.Dense(1)]), jnp.ones((1, 2)))\n"
        "sys.exit('flax.nnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_costly_programs_are_read_for_the_size_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(immediate, "READING", 2**15)
    kernel_fn, x = net(), jnp.asarray(X)
    kernel_fn(x, None, "ntk")
    shared, own = kernel_fn._small.values()
    assert own.cost < shared.cost / 4


def test_what_is_asked_for_often_is_compiled():
    kernel_fn, x = net(), jnp.asarray(X)
    first = kernel_fn(x, None, "ntk")
    (program,), ((key, spent),) = kernel_fn._small.values(), kernel_fn._spent.items()
    assert 0 < spent == program.cost < program.limit < np.inf
    kernel_fn._spent[key] = program.limit
    found = []
    assert compilations(lambda: found.append(kernel_fn(x, None, "ntk"))) > 0
    np.testing.assert_allclose(found[0], first, rtol=1e-6)


def test_large_kernels_are_compiled(monkeypatch):
    monkeypatch.setattr(tiled, "SMALL", 8)
    kernel_fn = net()
    kernel_fn(jnp.asarray(X), None, "ntk")
    assert not kernel_fn._small


def test_hyperparameters_of_a_transformation():
    """Known inputs and unknown weights: what is compiled or differentiated is not evaluated at once."""
    x = jnp.asarray(X)

    def entry(b_std):
        return net(b_std=b_std)(x, None, "ntk")[0, 1]

    plain = [entry(b) for b in (0.1, 0.1 + 1e-2, 0.1 - 1e-2)]
    np.testing.assert_allclose(jax.jit(entry)(0.1), plain[0], rtol=1e-6)
    slope = jax.grad(entry)(0.1)
    np.testing.assert_allclose(slope, (plain[1] - plain[2]) / 2e-2, rtol=1e-2)
    np.testing.assert_allclose(jax.vmap(entry)(jnp.array([0.1, 0.11])), plain[:2], rtol=1e-5)


def test_known_inputs_inside_a_jit():
    kernel_fn, x = net(), jnp.asarray(X)
    found = jax.jit(lambda c: c * kernel_fn(x, None, "nngp"))(2.0)
    np.testing.assert_allclose(found, 2 * kernel_fn(x, None, "nngp"), rtol=1e-6)


def test_a_traced_network_at_once():
    """The weights of a first layer whose law is sampled included."""
    x = jnp.asarray(X)
    kernel_fn = ntk.infinite_width(lambda width: models.MLP(width=width, depth=2, outputs=1), x[:1])
    compiled = jax.jit(lambda x: kernel_fn(x, None, "ntk"))(x)
    np.testing.assert_allclose(kernel_fn(x, None, "ntk"), compiled, rtol=1e-6)
    assert kernel_fn._small


def test_means_over_weights_are_traced_only_where_they_are_needed(monkeypatch):
    """Sixty entries of uniform weights are close to Gaussian, two are not."""
    traced = []
    sampled = true_law.sampled
    monkeypatch.setattr(true_law, "sampled", lambda *args: traced.append(True) or sampled(*args))

    def family(width):
        return models.MLP(width=width, depth=1, outputs=1, kernel_init=UNIFORM)

    for size, needed in ((60, False), (2, True)):
        x = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (5, size)))
        compiled = jax.jit(lambda x: ntk.infinite_width(family, x[:1])(x, None, "ntk"))(x)
        traced.clear()
        kernel_fn = ntk.infinite_width(family, x[:1])
        np.testing.assert_allclose(kernel_fn(x, None, "ntk"), compiled, rtol=1e-6)
        assert bool(traced) == needed
        assert bool(kernel_fn._drawn) == needed


def test_means_over_weights_in_repeated_layers(monkeypatch):
    """Whether they are needed is not known outside of the loop: the network is read whole."""

    def family(width):
        return models.MLP(width=width, depth=6, outputs=1, kernel_init=UNIFORM)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 60)))
    kernel_fn = ntk.infinite_width(family, x[:1])
    compiled = jax.jit(lambda x: kernel_fn(x, None, "ntk"))(x)
    np.testing.assert_allclose(kernel_fn(x, None, "ntk"), compiled, rtol=1e-6)
