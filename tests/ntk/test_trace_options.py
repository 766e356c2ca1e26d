"""What a user may give to `ntk.infinite_width` and ask of its kernel, and what is refused with which words."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import models
import ntk
from ntk import stax

VECTORS = jax.ShapeDtypeStruct((2, 5), jnp.float64)
SEQUENCES = jax.ShapeDtypeStruct((2, 4, 5), jnp.float64)
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # as in stax
MLP = models.family("MLP", depth=1, outputs=2, kernel_init=NORMAL)
GET = ("nngp", "ntk")


def inputs(count=3, seed=0, shape=(5,), dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), (count, *shape), dtype)


def close(one, two, tolerance=1e-9):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def linen(forward):
    """A family of linen modules of `forward(module, x, width)`."""

    class Model(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.width)

    return Model


def pair(width):
    """The same MLP as plain functions."""

    def init(key):
        one, two = jax.random.split(key)
        return {
            "hidden": jax.random.normal(one, (5, width)) / 5**0.5,
            "readout": jax.random.normal(two, (width, 2)) / width**0.5,
        }

    return init, lambda params, x: jax.nn.relu(x @ params["hidden"]) @ params["readout"]


def nnx_family(width):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(5, width, kernel_init=NORMAL, rngs=rngs, use_bias=False)
            self.readout = nnx.Linear(width, 2, rngs=rngs, use_bias=False)

        def __call__(self, x):
            return self.readout(nnx.relu(self.hidden(x)))

    return lambda rngs: Model(rngs)


def test_linen_nnx_and_plain_functions_give_one_kernel(x64):
    x = inputs()
    expected = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))[2](x, None, GET)
    model = models.family("MLP", depth=1, outputs=2, use_bias=False, kernel_init=NORMAL)
    for family in (model, nnx_family, pair):
        close(ntk.infinite_width(family, VECTORS)(x, None, GET), expected)


def test_apply_of_one_example(x64):
    def single(width):
        init, apply = pair(width)
        return init, lambda params, x: apply(params, x[None])[0]

    one = jax.ShapeDtypeStruct((5,), jnp.float64)
    x = inputs()
    traced = ntk.infinite_width(single, one, batched=False)
    close(traced(x, None, GET), ntk.infinite_width(pair, VECTORS)(x, None, GET))


def test_every_field_and_form_of_the_result(x64):
    kernel_fn = ntk.infinite_width(pair, VECTORS)
    x1, x2 = inputs(), inputs(2, 1)
    both = kernel_fn(jnp.concatenate([x1, x2]), None, GET)
    assert kernel_fn(x1, x2, "ntk").shape == (3, 2)
    close(kernel_fn(x1, x2, GET), [k[:3, 3:] for k in both])
    close(jax.jit(lambda a, b: kernel_fn(a, b, GET))(x1, x2), [k[:3, 3:] for k in both])
    kernel = kernel_fn(x1, x2)
    assert isinstance(kernel, ntk.Kernel)
    np.testing.assert_allclose(kernel.cov1, np.diag(both.nngp)[:3], rtol=1e-9)
    diagonal = kernel_fn(x1, None, ("cov1",)).cov1
    np.testing.assert_allclose(diagonal, np.diag(both.nngp)[:3], rtol=1e-9)
    with pytest.raises(ValueError, match="'ntkk' is not a kernel; get may be"):
        kernel_fn(x1, None, "ntkk")


def test_single_precision(x64):
    x = inputs()
    kernel_fn = ntk.infinite_width(pair, VECTORS)
    small = kernel_fn(x.astype(jnp.float32), None, GET)
    assert small.ntk.dtype == jnp.float32
    close(small, kernel_fn(x, None, GET), 1e-5)


def test_the_kernel_is_differentiable(x64):
    kernel_fn = ntk.infinite_width(pair, VECTORS)
    x, step = inputs(), 1e-6 * inputs(seed=3)
    slope = jax.jvp(lambda x: kernel_fn(x, x[:2] + 1, "ntk"), (x,), (step,))[1]
    finite = [kernel_fn(x + s * step, (x + s * step)[:2] + 1, "ntk") for s in (-1, 1)]
    np.testing.assert_allclose(slope, (finite[1] - finite[0]) / 2, rtol=1e-4, atol=1e-12)


def test_learning_rates_are_factors_of_the_parts_of_the_ntk(x64):
    x = inputs()

    def kernel(rates):
        return ntk.infinite_width(pair, VECTORS, learning_rates=rates)(x, None, "ntk")

    parts = [kernel({"hidden": one, "readout": 1 - one}) for one in (0, 1)]
    np.testing.assert_allclose(kernel(None), sum(parts), rtol=1e-12)
    np.testing.assert_allclose(kernel({"hid*": 3}), 3 * parts[1] + parts[0], rtol=1e-12)
    nngp = ntk.infinite_width(pair, VECTORS)(x, None, "nngp")
    np.testing.assert_allclose(parts[0], nngp, rtol=1e-12)
    with pytest.raises(ValueError, match="'hiden' matches no parameter; there are"):
        kernel({"hiden": 0})


def test_biases_train_from_zero_or_have_a_given_law(x64):
    x = inputs()
    free = ntk.infinite_width(MLP, VECTORS)(x, None, GET)
    bare = models.family("MLP", depth=1, outputs=2, use_bias=False, kernel_init=NORMAL)
    bare = ntk.infinite_width(bare, VECTORS)(x, None, GET)
    np.testing.assert_allclose(free.nngp, bare.nngp, rtol=1e-12)
    assert (free.ntk > bare.ntk + 1).all()
    written = stax.serial(stax.Dense(1, 1, 0.4), stax.Relu(), stax.Dense(1, 1, 0.4))[2]
    given = ntk.infinite_width(MLP, VECTORS, bias_std=0.4)(x, None, GET)
    close(given, written(x, None, GET))


def test_the_scale_of_one_width_can_be_kept(x64):
    def family(width):
        init = nn.initializers.normal(0.1)
        return models.MLP(width=width, depth=1, outputs=2, use_bias=False, kernel_init=init)

    x = inputs()
    with pytest.raises(ValueError, match=r"size width\^0.5.*base_width"):
        ntk.infinite_width(family, VECTORS)
    kernel = ntk.infinite_width(family, VECTORS, base_width=100)(x, None, "nngp")
    written = stax.serial(stax.Dense(1, 0.1 * 5**0.5), stax.Relu(), stax.Dense(1))[2]
    np.testing.assert_allclose(kernel, written(x, None, "nngp"), rtol=1e-6)


def test_parametrizations_without_a_kernel_limit():
    for name in ("mup", "mean_field"):
        with pytest.raises(ValueError, match=r"no kernel limit.*limits\.feature_learning"):
            ntk.infinite_width(MLP, VECTORS, parametrization=name)
    with pytest.raises(ValueError, match="no kernel limit: in the standard parametrization"):
        ntk.infinite_width(MLP, VECTORS, parametrization="standard")
    with pytest.raises(ValueError, match="parametrization is 'ntkk'"):
        ntk.infinite_width(MLP, VECTORS, parametrization="ntkk")


def vanishing(module, x, n):
    return nn.Dense(1)(nn.relu(nn.Dense(n)(x))) / n**0.5


def sorting(module, x, n):
    return nn.Dense(1)(jnp.sort(nn.Dense(n)(x), axis=-1))


def tied(module, x, n):
    w = module.param("w", nn.initializers.lecun_normal(), (n, n))
    return nn.Dense(1)(nn.relu(nn.Dense(n)(x) @ w) @ w.T)


def batch_norm(module, x, n):
    h = nn.Dense(n)(x)
    return nn.Dense(1)(nn.relu(h - h.mean(0, keepdims=True)))


def bottleneck(module, x, n):
    return nn.Dense(1)(nn.relu(nn.Dense(n)(nn.Dense(3)(nn.Dense(n)(x)))))


def max_pool(module, x, n):
    return nn.Dense(n)(x).max(axis=-1)


def masked_convolution(module, x, n):
    kernel = module.param("kernel", NORMAL, (3, n, n))
    mask = jnp.array([1.0, 1.0, 0.0])[:, None, None]
    h = nn.relu(nn.Dense(n)(x))
    numbers = ("NWC", "WIO", "NWC")
    h = jax.lax.conv_general_dilated(h, kernel * mask, (1,), "SAME", dimension_numbers=numbers)
    return nn.Dense(1)(h.mean(1))


def stopped(module, x, n):
    return nn.Dense(1)(nn.relu(jax.lax.stop_gradient(nn.Dense(n)(x))))


def shared_slope(module, x, n):
    return nn.Dense(1)(nn.PReLU()(nn.Dense(n)(x)))


def wide(module, x, n):
    return nn.Dense(n)(x)


@jax.custom_jvp
def straight_through(x):
    return jnp.sign(x)


straight_through.defjvps(lambda t, ans, x: t)


REFUSED = {
    "unknown primitive": (sorting, VECTORS, r"this operation on activations is not known.*\(sort"),
    "tied weights": (tied, VECTORS, "w is used twice"),
    "batch norm": (batch_norm, VECTORS, "a sum over the samples of a batch"),
    "bottleneck": (
        bottleneck,
        VECTORS,
        "sums over 3 entries, none of them along an axis that grows",
    ),
    "max pooling over units": (max_pool, SEQUENCES, "reduce_max over units"),
    "masked convolution": (masked_convolution, SEQUENCES, r"kernel is multiplied .* \(a mask\)"),
    "stopped gradient": (stopped, VECTORS, "gradient of an activation is stopped"),
    "shared parameter": (shared_slope, VECTORS, "PReLU_0/negative_slope is shared by all units"),
    "output that grows": (wide, VECTORS, "the outputs grow with the width"),
    "output that vanishes": (vanishing, VECTORS, r"the outputs are of size width\^-0.5"),
    "rule that is no derivative": (
        lambda module, x, n: nn.Dense(1)(straight_through(nn.Dense(n)(x))),
        VECTORS,
        "a derivative rule of its own that is not its derivative",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_refused_by_name(name):
    forward, example, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ntk.infinite_width(linen(forward), example)


def stacked(width):
    """Three residual blocks by nn.scan, with stacked parameters."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(width)(nn.relu(x)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return nn.Dense(1)(blocks()(nn.Dense(width)(x), None)[0])

    return Model()


def unrolled(module, x, n):
    x = nn.Dense(n)(x)
    for _ in range(3):
        x = x + nn.Dense(n)(nn.relu(x))
    return nn.Dense(1)(x)


def test_scanned_blocks_are_blocks_one_after_the_other(x64):
    x = inputs()
    one, two = (
        ntk.infinite_width(family, VECTORS)(x, None, GET) for family in (stacked, linen(unrolled))
    )
    close(one, two, 1e-12)


def halves(module, x, n):
    one, two = jnp.split(nn.Dense(2 * n, use_bias=False, kernel_init=NORMAL)(x), 2, axis=-1)
    return nn.Dense(1, use_bias=False)(one * two)


def layers(module, x, n):
    one, two = (nn.Dense(n, use_bias=False, kernel_init=NORMAL)(x) for _ in range(2))
    return nn.Dense(1, use_bias=False)(one * two)


def test_halves_of_a_layer_are_independent(x64):
    x = inputs()
    one, two = (
        ntk.infinite_width(linen(forward), VECTORS)(x, None, GET) for forward in (halves, layers)
    )
    close(one, two, 1e-12)
    square = (x @ x.T / 5) ** 2
    np.testing.assert_allclose(one.nngp, square, rtol=1e-9)


def test_a_refusal_tells_the_line_of_the_model():
    with pytest.raises(ValueError, match="not known") as error:
        ntk.infinite_width(linen(sorting), VECTORS)
    source, first = inspect.getsourcelines(sorting)
    file, line = re.search(r"at (\S+):(\d+)\)", str(error.value)).groups()
    assert file.endswith("test_trace_options.py")
    assert first <= int(line) < first + len(source)


def test_a_kernel_is_no_input_of_a_traced_network(x64):
    kernel_fn = ntk.infinite_width(pair, VECTORS)
    with pytest.raises(ValueError, match="must be an array"):
        kernel_fn(kernel_fn(inputs()))


def test_explain_states_steps_and_parameters():
    family = models.family("MLP", depth=4, outputs=2, kernel_init=NORMAL)
    out = ntk.explain(family, VECTORS, learning_rates={"*bias": 0.5})
    rows = {row.parameter: row for row in out.parameters}
    assert rows["hidden_1/kernel"].initial_variance == pytest.approx(1)
    assert rows["hidden_1/bias"].rate == 0.5
    assert any("relu" in row.what for row in out.steps)
    assert any(row.step.endswith("(x 4)") for row in out.steps)
    assert "readout/kernel" in str(out)
    assert out._repr_html_().count("<table>") == 2
    laws = [
        row.initial_law
        for row in ntk.explain(models.family("MLP", depth=2, outputs=2), VECTORS).parameters
        if row.role == "weights"
    ]
    assert re.match(r"truncated normal: means over 8192 weights .* fourth cumulant", laws[0])
    assert (
        laws[1:] == ["truncated normal: as normal, exact in a sum over infinitely many units"] * 2
    )
    with pytest.raises(TypeError, match="explain got an unexpected keyword argument"):
        ntk.explain(family, VECTORS, bias=0.1)


def test_a_trained_embedding_and_a_trained_convolution_add_their_part(x64):
    """Linear networks: every layer adds its learning rate times the covariance to the tangent kernel."""

    def embedded(module, x, n):
        embedding = nn.initializers.normal(1.0)
        return nn.Dense(1, use_bias=False)(nn.Embed(7, n, embedding_init=embedding)(x)[:, 0])

    def convolved(module, x, n):
        h = nn.Conv(n, (3,), use_bias=False, padding="VALID", kernel_init=NORMAL)(x)
        return nn.Dense(1, use_bias=False)(h.mean(1))

    tokens, images = jnp.array([[1], [4], [1]]), inputs(shape=(5, 2))
    windows = np.stack([np.asarray(images)[:, k : k + 3].reshape(3, -1) for k in range(3)]).mean(0)
    cases = [
        (embedded, tokens, "Embed*", np.asarray(tokens == tokens.T, float)),
        (convolved, images, "Conv*", windows @ windows.T / 6),
    ]
    for forward, x, name, covariance in cases:
        for rate in (0.0, 1.0, 2.5):
            rates = {name: rate, "Dense*": 0.5}
            found = ntk.infinite_width(linen(forward), x[:1], learning_rates=rates)(x, None, "ntk")
            np.testing.assert_allclose(found, (rate + 0.5) * covariance, rtol=1e-9, atol=1e-12)


def half_linear(derivative):
    """min(max(z, -2), 2) with a given derivative rule; the clipped parts are a third of the points looked at."""
    clip = jax.custom_jvp(lambda z: jnp.clip(z, -2.0, 2.0))
    clip.defjvps(lambda t, ans, z: t * derivative(z))
    return linen(lambda module, x, n: nn.Dense(1)(clip(nn.Dense(n, kernel_init=NORMAL)(x))))


def test_a_rule_that_is_the_derivative_at_most_points_is_refused(x64):
    with pytest.raises(ValueError, match="a derivative rule of its own"):
        ntk.infinite_width(half_linear(jnp.ones_like), VECTORS)
    right = half_linear(lambda z: (jnp.abs(z) < 2).astype(z.dtype))
    assert np.isfinite(ntk.infinite_width(right, VECTORS)(inputs(), None, "ntk")).all()


def test_means_of_two_pooled_branches_meet(x64):
    """E[(a + b)(a' + b')] = 2 E[a a'] + 2 E a E a' of means over positions of two rectified layers."""

    def forward(module, x, n):
        branches = [nn.relu(nn.Dense(n, use_bias=False, kernel_init=NORMAL)(x)) for _ in range(2)]
        return nn.Dense(1, use_bias=False)(sum(b.mean(1) for b in branches))

    x = inputs(shape=(4, 5))
    found = ntk.infinite_width(linen(forward), SEQUENCES)(x, None, "nngp")
    rows = np.asarray(x).reshape(12, 5)
    k = rows @ rows.T / 5
    std = np.sqrt(np.diag(k))
    angle = np.arccos(np.clip(k / np.outer(std, std), -1, 1))
    k = np.outer(std, std) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    pooled = k.reshape(3, 4, 3, 4).mean((1, 3))
    mean = std.reshape(3, 4).mean(1) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(found, 2 * pooled + 2 * np.outer(mean, mean), rtol=1e-6)


def after_readout(module, x, n):
    return jnp.tanh(nn.Dense(1, use_bias=False)(nn.Dense(n, use_bias=False, kernel_init=NORMAL)(x)))


def test_a_nonlinearity_after_the_readout_has_no_tangent_kernel(x64):
    """Its second moments are those of tanh of a Gaussian, here by quadrature."""
    x = inputs(2)
    kernel_fn = ntk.infinite_width(linen(after_readout), VECTORS)
    for get in ("ntk", None):
        with pytest.raises(ValueError, match=r"no infinite-width tangent kernel.*readout"):
            kernel_fn(x, None, get)
    z, w = np.polynomial.hermite_e.hermegauss(80)
    k = np.asarray(x @ x.T) / 5
    expected = [w @ np.tanh(np.sqrt(v) * z) ** 2 / w.sum() for v in np.diag(k)]
    np.testing.assert_allclose(np.diag(kernel_fn(x, None, "nngp")), expected, rtol=1e-5)
    shifted = linen(lambda module, x, n: nn.Dense(1)(nn.relu(nn.Dense(n)(x))) + x[:, :1])
    assert ntk.infinite_width(shifted, VECTORS)(x, None, "ntk").shape == (2, 2)


def test_terms_that_are_zero_drop_out():
    def forward(f):
        return linen(lambda module, x, n: nn.Dense(1)(f(nn.Dense(n, kernel_init=NORMAL)(x))))

    x = inputs(2, shape=(3,), dtype=jnp.float32)
    get = ("nngp", "ntk")
    plain, more = (
        ntk.infinite_width(forward(f), x[:1])(x, None, get)
        for f in (jnp.tanh, lambda h: jnp.tanh(h) + 0.0 * h * jnp.cos(h))
    )
    close(plain, more, 1e-6)
    x = jax.random.normal(jax.random.key(0), (2, 3))
    if jax.__version_info__ >= (0, 11):  # newer ones stop a gradient inside
        with pytest.raises(ValueError, match="the gradient of an activation is stopped"):
            ntk.infinite_width(forward(jnp.sinc), x[:1])
        return
    sinc = ntk.infinite_width(forward(jnp.sinc), x[:1])(x, None, "nngp")
    z, w = np.polynomial.hermite_e.hermegauss(120)
    std = np.sqrt(np.mean(np.asarray(x) ** 2, 1))
    expected = [w @ np.sinc(s * z) ** 2 / w.sum() for s in std]
    np.testing.assert_allclose(np.diag(sinc), expected, rtol=1e-4)


def test_elementwise_functions_of_two_arguments_are_read():
    """polygamma(1, 1 + z^2), as the square of a slope of the digamma function."""
    from scipy import special

    def forward(module, x, n):
        h = nn.Dense(n, use_bias=False, kernel_init=NORMAL)(x)
        return nn.Dense(1, use_bias=False)(jax.scipy.special.polygamma(1, 1 + h**2))

    x = inputs(2, dtype=jnp.float32)
    found = ntk.infinite_width(linen(forward), VECTORS)(x, None, "nngp")
    z, w = np.polynomial.hermite_e.hermegauss(80)
    std = np.sqrt(np.mean(np.asarray(x) ** 2, 1))
    expected = [w @ special.polygamma(1, 1 + (s * z) ** 2) ** 2 / w.sum() for s in std]
    np.testing.assert_allclose(np.diag(found), expected, rtol=1e-3)
