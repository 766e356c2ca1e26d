"""Layers of one's own and kernels built by hand, as public code for neural-tangents has them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk
from ntk import Kernel, stax

X1 = jax.random.normal(jax.random.key(0), (3, 5))
X2 = jax.random.normal(jax.random.key(1), (2, 5))
IMAGES1 = jax.random.normal(jax.random.key(2), (3, 4, 6, 2))
IMAGES2 = jax.random.normal(jax.random.key(3), (2, 4, 6, 2))


def spread(k):
    return k.nngp, k.ntk, k.cov1, k.cov2


def assert_same(one, two):
    for a, b in zip(spread(one), spread(two)):
        if a is None or b is None:
            assert a is b
        else:
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


@stax.layer
@stax.supports_masking(remask_kernel=True)
def Doubled(factor=2.0):
    """Twice its input, in the form of a public layer."""

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, inputs, mask=None, **kwargs):
        return factor * inputs

    @stax.requires(batch_axis=0, channel_axis=-1, diagonal_spatial=stax.Diagonal())
    def kernel_fn(k, **kwargs):
        def scaled(x):
            return None if x is None else factor**2 * x

        return k.replace(
            nngp=scaled(k.nngp), cov1=scaled(k.cov1), cov2=scaled(k.cov2), ntk=scaled(k.ntk)
        )

    return init_fn, apply_fn, kernel_fn


@pytest.mark.parametrize(("x1", "x2"), [(X1, None), (X1, X2), (IMAGES1, None), (IMAGES1, IMAGES2)])
def test_a_layer_of_ones_own_is_the_scaled_network(x1, x2):
    def network(middle, std):
        return stax.serial(
            stax.Dense(7, std, std * 0.3), *middle, stax.Relu(), stax.Flatten(), stax.Dense(1)
        )

    init_fn, apply_fn, kernel_fn = network([Doubled()], 1.0)
    # Twice the preactivations are the preactivations of twice the weights.
    expected = network([], 2.0)[2]
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(kernel_fn(x1, x2, get.upper()), expected(x1, x2, get), rtol=2e-5)
    shape, params = init_fn(jax.random.key(0), x1.shape)
    assert apply_fn(params, x1).shape == shape


def test_masks_pass_through_a_layer_of_ones_own():
    x = X1.at[1].set(100.0)
    network = stax.serial(stax.Dense(7), Doubled(), stax.Relu(), stax.Dense(1))
    kernel = network[2](x, None, "nngp", mask_constant=100.0)
    assert (kernel[1] == 0).all()
    _, params = network[0](jax.random.key(0), x.shape)
    out = network[1](params, x, mask_constant=100.0)
    assert isinstance(out, stax.MaskedArray)
    assert (out.masked_value[1] == 0).all() or bool(out.mask[1].all())


def test_requirements_are_checked():
    with pytest.raises(ValueError, match="diagonal_batch=False asks"):
        stax.requires(diagonal_batch=False)

    @stax.requires(diagonal_spatial=False)
    def whole(k):
        return k

    kernel = stax.Identity()[2](IMAGES1, None, diagonal_spatial=True)
    with pytest.raises(ValueError, match="whole requires covariances between all pixels"):
        whole(kernel)
    with pytest.raises(ValueError, match="requires channel_axis 1, and its input has 3"):
        stax.requires(channel_axis=1)(lambda k: k)(kernel)


def test_layers_have_names_and_enums_are_their_words():
    for made, name in ((stax.Relu(), "Relu"), (stax.Dense(3), "Dense"), (Doubled(), "Doubled")):
        assert {fn.__name__ for fn in made} == {name}
    one = stax.Conv(3, (3, 3), padding=stax.Padding.SAME)[2](IMAGES1, None, "nngp")
    two = stax.Conv(3, (3, 3), padding="SAME")[2](IMAGES1, None, "nngp")
    np.testing.assert_array_equal(one, two)
    stax.Aggregate(1, implementation=stax.AggregateImplementation.SPARSE)
    stax.GlobalSelfAttention(
        n_chan_out=4,
        n_chan_key=4,
        n_chan_val=4,
        n_heads=2,
        linear_scaling=True,
        attention_mechanism=stax.AttentionMechanism.IDENTITY,
        pos_emb_type=stax.PositionalEmbedding.SUM,
    )
    assert stax.Bool.YES & stax.Bool.NO == stax.Bool.NO
    assert not stax.Diagonal() & stax.Diagonal(stax.Bool.NO, stax.Bool.YES)


def test_a_layer_repeated_no_times_is_the_identity():
    block = stax.serial(stax.Dense(5), stax.Relu())
    init_fn, apply_fn, kernel_fn = stax.serial(stax.repeat(block, 0), stax.Dense(1))
    shape, params = init_fn(jax.random.key(0), X1.shape)
    np.testing.assert_allclose(apply_fn(params, X1), stax.Dense(1)[1](params[1], X1), rtol=1e-6)
    assert shape == (3, 1)
    np.testing.assert_array_equal(kernel_fn(X1, None, "ntk"), stax.Dense(1)[2](X1, None, "ntk"))


@pytest.mark.parametrize(("x1", "x2"), [(X1, None), (X1, X2), (IMAGES1, None), (IMAGES1, IMAGES2)])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_kernel_is_what_asdict_says_of_it(x1, x2, diagonal):
    kernel = stax.Dense(4, 1.5, 0.1)[2](x1, x2, diagonal_spatial=diagonal)
    fields = kernel.asdict()
    assert len(fields) == len(kernel.astuple())
    rebuilt = Kernel(**fields)
    assert_same(rebuilt, kernel)
    assert fields["x1_is_x2"] == (x2 is None)
    after = stax.serial(stax.Relu(), stax.Dense(3, 1.2, 0.3))[2]
    assert_same(after(rebuilt), after(kernel))
    leaves, tree = jax.tree.flatten(rebuilt)
    assert_same(jax.tree.unflatten(tree, leaves), kernel)


def test_arithmetic_is_that_of_activations():
    kernel = stax.serial(stax.Dense(4, 1.5, 0.1), stax.Erf(), stax.Dense(3))[2](X1, X2)
    scaled, shifted = 3 * kernel, kernel + 0.5
    np.testing.assert_allclose(scaled.nngp, 9 * kernel.nngp, rtol=1e-6)
    np.testing.assert_allclose(scaled.ntk, 9 * kernel.ntk, rtol=1e-6)
    np.testing.assert_allclose((scaled / 3).cov2, kernel.cov2, rtol=1e-6)
    np.testing.assert_allclose(shifted.nngp, kernel.nngp + 0.25, rtol=1e-6)
    np.testing.assert_allclose(shifted.cov1, kernel.cov1 + 0.25, rtol=1e-6)
    np.testing.assert_allclose(shifted.ntk, kernel.ntk, rtol=1e-6)
    changed = kernel.replace(cov1=2 * kernel.cov1)
    np.testing.assert_allclose(changed.nngp, kernel.nngp, rtol=1e-6)
    np.testing.assert_allclose(changed.cov1, 2 * kernel.cov1, rtol=1e-6)


def test_indices_and_products_are_those_of_activations():
    kernel = stax.Identity()[2](IMAGES1, IMAGES2)
    pick = np.index_exp[:, 1:3, 2]
    assert_same(kernel[pick], stax.Identity()[2](IMAGES1[pick], IMAGES2[pick]))
    weights = jax.random.normal(jax.random.key(5), (6, 4))
    product = kernel.dot_general(weights, weights, False, (((2,), (0,)), ((), ())))
    one, two = (jnp.moveaxis(x, 2, -1) @ weights for x in (IMAGES1, IMAGES2))
    one, two = (jnp.moveaxis(x, -1, 2) for x in (one, two))
    np.testing.assert_allclose(
        product.nngp, stax.Identity()[2](one, two, "nngp"), rtol=1e-4, atol=1e-5
    )
    part = stax.Identity()[2](IMAGES1).slice(slice(0, 2), slice(1, 3))
    assert_same(part, stax.Identity()[2](IMAGES1[:2], IMAGES1[1:]))
    assert part.shape1 == (2, 4, 6, 2)


def test_a_kernel_of_covariances_that_do_not_fit_is_refused():
    cov = jnp.eye(2)
    for wrong, message in (
        ({"nngp": cov}, "at least nngp= and cov1="),
        ({"nngp": cov, "cov1": cov, "diagonal_batch": False}, "one covariance per sample"),
        ({"nngp": cov, "cov1": jnp.ones(2), "x1_is_x2": False}, "cov2 is None and x1_is_x2"),
    ):
        with pytest.raises(ValueError, match=message):
            Kernel(**wrong)
    with pytest.raises(TypeError, match="Kernel has no"):
        Kernel(nngp=cov, cov1=jnp.ones(2), colour=1)


def by_hand(K):
    """A kernel as the phase diagrams of neural-tangents's notebooks build it."""
    return Kernel(
        cov1=jnp.diag(K),
        nngp=K,
        cov2=None,
        ntk=None,
        is_gaussian=True,
        is_reversed=False,
        diagonal_batch=True,
        diagonal_spatial=False,
        shape1=(K.shape[0], 1024),
        shape2=(K.shape[1], 1024),
        x1_is_x2=True,
        is_input=True,
        batch_axis=0,
        channel_axis=1,
        mask1=None,
        mask2=None,
    )


def test_a_phase_diagram_from_kernels_built_by_hand(x64):
    weights, biases = jnp.array([1.0, 2.5]), jnp.array([0.05, 0.1])

    def slopes(W, b):
        layer = stax.serial(stax.Dense(1024, jnp.sqrt(W), jnp.sqrt(b)), stax.Erf())[2]
        q = jax.lax.fori_loop(
            0, 200, lambda _, q: layer(by_hand(q.reshape(1, 1))).nngp[0, 0], jnp.ones(())
        )

        def correlation(c):
            return layer(by_hand(q * jnp.array([[1.0, c], [c, 1.0]]))).nngp[1, 0] / q

        return q, jax.grad(correlation)(1.0)

    over = jax.jit(jax.vmap(jax.vmap(slopes, (0, None)), (None, 0)))
    q, chi = over(weights, biases)
    preactivation = weights[None] * q + biases[:, None]
    # E erf(z)^2 and E erf'(z)^2 of a normal z of that variance.
    np.testing.assert_allclose(
        q, 2 / np.pi * np.arcsin(2 * preactivation / (1 + 2 * preactivation)), rtol=1e-6
    )
    np.testing.assert_allclose(
        chi, weights[None] * 4 / np.pi / np.sqrt(1 + 4 * preactivation), rtol=1e-5
    )


def test_kernels_iterated_by_hand_are_those_of_the_deep_network(x64):
    x1, x2 = (jnp.asarray(x, float) for x in (X1, X2))
    read_in = functools.partial(stax.Dense(4)[2], get=("cov1", "nngp", "cov2", "ntk"))
    layer = stax.serial(stax.Erf(), stax.Dense(4, 1.3, 0.2))[2]

    def step(kernel, _):
        given = kernel._asdict()
        out = layer(
            Kernel(
                **given,
                is_gaussian=True,
                is_reversed=False,
                diagonal_batch=True,
                diagonal_spatial=False,
                batch_axis=0,
                channel_axis=1,
                mask1=None,
                mask2=None,
                shape1=(2, 1024),
                shape2=(2, 1024),
                x1_is_x2=True,
                is_input=True,
            )
        )
        return kernel._replace(cov1=out.cov1, nngp=out.nngp, cov2=out.cov2, ntk=out.ntk), None

    found = jax.jit(lambda a, b: jax.lax.scan(step, read_in(a, b), None, 5)[0])(x1, x2)
    deep = stax.serial(stax.Dense(4), *[stax.Erf(), stax.Dense(4, 1.3, 0.2)] * 5)[2](x1, x2)
    np.testing.assert_allclose(found.ntk, deep.ntk, rtol=1e-9)
    np.testing.assert_allclose(found.nngp, deep.nngp, rtol=1e-9)


def test_names_of_kernels_in_upper_case():
    network = stax.serial(stax.Dense(4), stax.Relu(), stax.Dense(1))
    targets = jnp.ones((3, 1))
    predict = ntk.predict.gradient_descent_mse_ensemble(network[2], X1, targets, diag_reg=1e-3)
    np.testing.assert_array_equal(predict(x_test=X2, get="NTK"), predict(x_test=X2, get="ntk"))
    batched = ntk.batch(network[2], batch_size=1)
    np.testing.assert_allclose(batched(X1, X2, "NNGP"), network[2](X1, X2, "nngp"), rtol=1e-6)
