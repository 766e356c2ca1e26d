"""What public models write in several ways has one kernel: tokens, tables of positions, graphs, ensembles, zeros."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import limits
import ntk

NORMAL = nn.initializers.normal(1.0)
DENSE = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
VECTORS, SEQUENCES, IMAGES = (5,), (4, 3), (4, 4, 2)
EDGES = ((0, 1, 1, 2, 3, 3, 0), (1, 0, 2, 1, 0, 2, 3))


def family(forward):
    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return forward(self, x, self.width)

    return Net


def kernels(forward, shape, **options):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, *shape)))
    out = ntk.infinite_width(family(forward), x, **options)(x, None, ("nngp", "ntk"))
    return tuple(np.asarray(k) for k in out)


def dense(n, **names):
    return nn.Dense(n, kernel_init=DENSE, **names)


def conv(n, size, **options):
    return nn.Conv(n, size, kernel_init=DENSE, **options)


def readout(h):
    return dense(1)(nn.relu(dense(h.shape[-1])(h)))


# Class tokens and positions


def with_token(spread):
    def forward(module, x, n):
        h = dense(n)(x)
        token = module.param("token", NORMAL, (1, 1, n))
        h = jnp.concatenate([spread(token, x.shape[0]), h], 1)
        h = nn.relu(dense(n)(h + module.param("positions", NORMAL, (1, h.shape[1], n))))
        return dense(1)(h[:, 0] + h.mean(1))

    return forward


TOKENS = {
    "tile": lambda token, b: jnp.tile(token, (b, 1, 1)),
    "broadcast_to": lambda token, b: jnp.broadcast_to(token, (b, 1, token.shape[-1])),
    "repeat": lambda token, b: jnp.repeat(token, b, axis=0),
    "product": lambda token, b: token * jnp.ones((b, 1, 1)),
    "sum": lambda token, b: jnp.zeros((b, 1, token.shape[-1])) + token,
}


@pytest.mark.parametrize("name", [*TOKENS][1:])
def test_class_tokens_in_every_spelling(x64, name):
    expected = kernels(with_token(TOKENS["tile"]), SEQUENCES)
    for one, two in zip(kernels(with_token(TOKENS[name]), SEQUENCES), expected):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def token_alone(module, x, n):
    token = jnp.tile(module.param("token", NORMAL, (1, 1, n)), (x.shape[0], 1, 1))
    h = jnp.concatenate([token, dense(n)(x)], 1)
    return dense(1, use_bias=False)(nn.relu(h))


def test_a_class_token_is_one_gaussian_for_all_samples(x64):
    """E relu(z)^2 = 1/2 for all pairs of samples; the tangent kernel has it once more, and E[1] = 1/2 of the token."""
    nngp, tangent = kernels(token_alone, SEQUENCES)
    np.testing.assert_allclose(nngp[:, :, 0, 0], 1 / 2, rtol=1e-12)
    np.testing.assert_allclose(tangent[:, :, 0, 0], 1, rtol=1e-12)


def test_a_table_is_pooled_before_it_meets_samples(x64):
    def pooled(module, x, n):
        return readout(dense(n)(x[:, 0]) + module.param("p", NORMAL, (1, 4, n)).mean(1))

    def vector(module, x, n):
        return readout(dense(n)(x[:, 0]) + module.param("p", NORMAL, (1, n)) / 2)

    for one, two in zip(kernels(pooled, SEQUENCES), kernels(vector, SEQUENCES)):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def with_positions(add):
    def forward(module, x, n):
        return readout(nn.LayerNorm()(add(module, dense(n)(x), n)).mean(1))

    return forward


POSITIONS = {
    "(1, T, n)": lambda m, h, n: h + m.param("p", NORMAL, (1, 4, n)),
    "(T, n), by hand": lambda m, h, n: h + jnp.expand_dims(m.param("p", NORMAL, (4, n)), 0),
    "(T, n)[None]": lambda m, h, n: h + m.param("p", NORMAL, (4, n))[None],
    "a longer table": lambda m, h, n: h + m.param("p", NORMAL, (1, 9, n))[:, :4],
    "broadcast": lambda m, h, n: h + jnp.broadcast_to(m.param("p", NORMAL, (1, 4, n)), h.shape),
    "embedding": lambda m, h, n: h + nn.Embed(9, n, embedding_init=NORMAL)(jnp.arange(4)[None]),
    "take": lambda m, h, n: h + jnp.take(m.param("p", NORMAL, (9, n)), jnp.arange(4)[None], axis=0),
}


@pytest.mark.parametrize("name", list(POSITIONS)[1:])
def test_learnt_positions_in_every_spelling(x64, name):
    expected = kernels(with_positions(POSITIONS["(1, T, n)"]), SEQUENCES)
    for one, two in zip(kernels(with_positions(POSITIONS[name]), SEQUENCES), expected):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def frequencies(n):
    return 100.0 ** (-jnp.arange(n // 2) / (n // 2))


def sines(n, length=4):
    angle = jnp.arange(length)[:, None] * frequencies(n)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def constant_sines(n, length=4):
    with jax.ensure_compile_time_eval():
        return np.asarray(sines(n, length))


def interleaved(n, length=4):
    angle = jnp.arange(length)[:, None] * frequencies(n)[None]
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(length, n)


def plain_readout(table):
    def forward(module, x, n):
        return dense(1, use_bias=False)(dense(n, use_bias=False)(x) + table(n)[None])

    return forward


@pytest.mark.parametrize("table", [sines, constant_sines, interleaved])
def test_sines_of_positions_count_by_their_mean_over_units(x64, table):
    """The mean over units of sin sin + cos cos is half the mean over frequencies of the cosine of the difference."""
    x = np.random.default_rng(1).normal(size=(3, *SEQUENCES))
    grid = 100.0 ** (-(np.arange(20000) + 0.5) / 20000)
    lag = np.arange(4)[:, None] - np.arange(4)[None]
    expected = np.cos(lag[..., None] * grid).mean(-1) / 2
    inner = np.einsum("atc,bsc->abts", x, x) / 3
    nngp, tangent = kernels(plain_readout(table), SEQUENCES)
    np.testing.assert_allclose(nngp, inner + expected, atol=1e-3)
    np.testing.assert_allclose(tangent, 2 * inner + expected, atol=1e-3)


def test_the_error_of_a_mean_over_units_is_told():
    x = np.zeros((3, *SEQUENCES), "float32")
    out = ntk.explain(family(plain_readout(sines)), x)
    (row,) = [row for row in out.steps if row.operation == "fixed table"]
    assert "means over units to 0.00" in row.what


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda n: jnp.arange(4.0 * n).reshape(4, n) / n**0.5, "have no limit"),
        (
            lambda n: (
                jax.random.normal(jax.random.key(1), (4, n), jnp.float32)
                * jnp.arange(1.0 * n)[None]
            ),
            "have no limit",
        ),
    ],
)
def test_tables_without_a_limit_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        kernels(plain_readout(table), SEQUENCES)


def test_a_nonlinearity_of_a_table_is_refused():
    def forward(module, x, n):
        return dense(1)(nn.relu(dense(n)(x) + sines(n)[None]))

    with pytest.raises(ValueError, match="constants that differ between units were added"):
        kernels(forward, SEQUENCES)


# Constants of the model


def test_a_row_looked_up_by_a_constant_is_a_vector(x64):
    def looked_up(module, x, n):
        types = jnp.zeros(x.shape[:2], jnp.int32)
        return readout(dense(n)(x) + nn.Embed(2, n, embedding_init=NORMAL)(types))

    def vector(module, x, n):
        return readout(dense(n)(x) + module.param("b", NORMAL, (1, 1, n)))

    for one, two in zip(kernels(looked_up, SEQUENCES), kernels(vector, SEQUENCES)):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def looked_up(again, **how):
    """Rows of a table of three, read by the law of a process; or by those of pairs, where a layer is used again."""

    def forward(module, x, n):
        h = jnp.take(module.param("table", NORMAL, (3, n)), x, axis=0, **how)
        if again:
            layer = dense(n)
            h = layer(nn.tanh(layer(h[:, 0])) + h[:, 1])
        return readout(h)

    return ntk.infinite_width(family(forward), jnp.array([[0, 1], [2, 1]]))


OUTSIDE = jnp.array([[0, 7], [2, 1]])


@pytest.mark.parametrize("again", [False, True])
def test_an_index_outside_of_a_table_reads_what_the_network_reads(x64, again):
    """nan, as `nn.Embed` has it, or the nearest row."""
    kernel_fn = looked_up(again)
    unknown = np.array([True, False]) if again else np.array([[False, True], [False, False]])
    expected = np.logical_or.outer(unknown, unknown)
    expected = expected if again else expected.transpose(0, 2, 1, 3)
    for kernel in kernel_fn(OUTSIDE, None, ("nngp", "ntk")):
        np.testing.assert_array_equal(np.isnan(kernel), expected)
    last = looked_up(again, mode="clip")(OUTSIDE, None, ("nngp", "ntk"))
    held = kernel_fn(jnp.minimum(OUTSIDE, 2), None, ("nngp", "ntk"))
    for one, two in zip(last, held):
        assert np.isfinite(two).all()
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_zeros_outside_of_a_table_are_no_row(x64):
    def forward(fill):
        def forward(module, x, n):
            if fill:
                h = jnp.take(module.param("table", NORMAL, (3, n)), x, axis=0, fill_value=0)
            else:
                h = jnp.take(module.param("table", NORMAL, (9, n)), x, axis=0)
                h = h * (x < 3)[..., None]
            return readout(dense(n)(h))

        return ntk.infinite_width(family(forward), jnp.array([[0, 1], [2, 1]]))

    one, two = (forward(f)(OUTSIDE, None, ("nngp", "ntk")) for f in (True, False))
    np.testing.assert_allclose(one.nngp, two.nngp, rtol=1e-12)
    np.testing.assert_allclose(one.ntk, two.ntk, rtol=1e-12)
    with pytest.raises(ValueError, match=r"table is 2\.0 at indices outside of it"):
        looked_up(False, fill_value=2.0)


def test_constants_that_the_model_draws(x64):
    def drawn(module, x, n):
        return readout(dense(n)(jnp.sin(x @ jax.random.normal(jax.random.key(7), (5, 6)))))

    fixed = np.asarray(jax.random.normal(jax.random.key(7), (5, 6)))

    def given(module, x, n):
        return readout(dense(n)(jnp.sin(x @ fixed)))

    for one, two in zip(kernels(drawn, VECTORS), kernels(given, VECTORS)):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_constants_drawn_in_single_precision_are_those_of_the_model():
    """The trace is in double precision, where a draw without a dtype has other numbers: it is refused."""

    def drawn(*dtype):
        def forward(module, x, n):
            return readout(
                dense(n)(jnp.sin(x @ jax.random.normal(jax.random.key(7), (5, 6), *dtype)))
            )

        return forward

    fixed = np.asarray(jax.random.normal(jax.random.key(7), (5, 6)))
    expected = kernels(lambda m, x, n: readout(dense(n)(jnp.sin(x @ fixed))), VECTORS)
    for one, two in zip(kernels(drawn(jnp.float32), VECTORS), expected):
        np.testing.assert_allclose(one, two, rtol=1e-5)
    with pytest.raises(ValueError, match="draws constants from a fixed key"):
        kernels(drawn(), VECTORS)


# Zeros


def zero_readout(module, x, n):
    h = nn.relu(dense(n)(nn.relu(dense(n)(x))))
    return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros)(h)


def random_readout(module, x, n):
    h = nn.relu(dense(n)(nn.relu(dense(n)(x))))
    return dense(1, use_bias=False)(h)


@pytest.mark.parametrize("options", [{}, {"base_width": 64}])
def test_a_readout_of_zeros_has_the_kernel_of_its_features(x64, options):
    """At a base width the features there are summed as they are."""
    nngp, tangent = kernels(zero_readout, VECTORS, **options)
    features = kernels(random_readout, VECTORS)[0]
    np.testing.assert_array_equal(nngp, 0)
    np.testing.assert_allclose(tangent, features * options.get("base_width", 1), rtol=1e-12)


def test_a_branch_of_zeros_adds_to_the_tangent_kernel_alone(x64):
    def branch(module, x, n):
        x = dense(n)(x)
        h = nn.relu(dense(n)(nn.relu(x)))
        return dense(1)(x + nn.Dense(n, kernel_init=nn.initializers.zeros)(h))

    nngp, tangent = kernels(branch, VECTORS)
    skip = kernels(lambda module, x, n: dense(1)(dense(n)(x)), VECTORS)
    np.testing.assert_allclose(nngp, skip[0], rtol=1e-12)
    features = kernels(
        lambda module, x, n: dense(1, use_bias=False)(nn.relu(dense(n)(nn.relu(dense(n)(x))))),
        VECTORS,
    )
    np.testing.assert_allclose(
        tangent, skip[1] + features[0] + 1, rtol=1e-12
    )  # a bias of the branch


def test_a_gain_of_zero_inside_a_nonlinearity(x64):
    """relu(relu(u) + p h) at p = 0: d/dp is h where u > 0, so that the tangent kernel gains E[1 1'] E[h h']."""

    def gained(module, x, n):
        x = nn.relu(dense(n, use_bias=False)(x))
        h = dense(n, use_bias=False)(x)
        x = nn.relu(x + h * module.param("p", nn.initializers.zeros, (1, n)))
        return dense(1, use_bias=False)(x)

    plain = kernels(
        lambda module, x, n: dense(1, use_bias=False)(nn.relu(dense(n, use_bias=False)(x))), VECTORS
    )
    x = np.random.default_rng(1).normal(size=(3, *VECTORS))
    norms = np.linalg.norm(x, axis=1)
    angle = np.arccos(np.clip(x @ x.T / np.outer(norms, norms), -1, 1))
    nngp, tangent = kernels(gained, VECTORS)
    np.testing.assert_allclose(nngp, plain[0], rtol=1e-10)
    more = (np.pi - angle) / (2 * np.pi) * plain[0]
    np.testing.assert_allclose(tangent, plain[1] + more, rtol=1e-7)


# Layers


class Member(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return readout(nn.relu(dense(self.width)(x)))[..., 0]


def test_members_of_an_ensemble_have_the_kernel_of_one(x64):
    def ensemble(module, x, n):
        split = nn.vmap(
            Member, {"params": 0}, {"params": True}, in_axes=None, out_axes=-1, axis_size=2
        )
        return split(n)(x)

    for one, two in zip(
        kernels(ensemble, VECTORS), kernels(lambda m, x, n: Member(n)(x)[..., None], VECTORS)
    ):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_a_dilated_convolution_reads_every_other_position(x64):
    def dilated(module, x, n):
        return readout(conv(n, (2,), padding="VALID", kernel_dilation=2)(dense(n)(x))[:, 0])

    def strided(module, x, n):
        return readout(conv(n, (2,), padding="VALID")(dense(n)(x)[:, ::2])[:, 0])

    for one, two in zip(kernels(dilated, (5, 3)), kernels(strided, (5, 3))):
        np.testing.assert_allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_transposed_convolution_is_one_of_positions_with_zeros_between(x64, hidden):
    def transposed(module, x, n):
        x = dense(n)(x) if hidden else x
        layer = nn.ConvTranspose(n, (3,), (2,), padding="VALID", kernel_init=DENSE)
        return readout(layer(x)).mean(1)

    def spread(module, x, n):
        x = dense(n)(x) if hidden else x
        zeros = jnp.zeros((1, x.shape[1], 1, 1))
        x = (x[:, :, None] * jnp.array([1.0, 0.0])[None, None, :, None] + zeros).reshape(
            x.shape[0], -1, x.shape[-1]
        )[:, :-1]
        return readout(conv(n, (3,), padding=((2, 2),))(x)).mean(1)

    for one, two in zip(kernels(transposed, SEQUENCES), kernels(spread, SEQUENCES)):
        np.testing.assert_allclose(one, two, rtol=1e-10)


def test_a_dense_layer_reshaped_to_pixels(x64):
    """Pixels of a generator's code have weights of their own: covariances of a convolution of independent pixels."""

    def generator(module, x, n):
        h = nn.relu(dense(4 * n)(x).reshape(x.shape[0], 4, n))
        return conv(1, (2,), padding="VALID")(h)

    def vector(module, x, n):
        return dense(1)(nn.relu(dense(n)(x)))

    nngp, tangent = kernels(generator, VECTORS)
    own = kernels(vector, VECTORS)
    for k in range(3):
        np.testing.assert_allclose(nngp[:, :, k, k], own[0], rtol=1e-12)
        np.testing.assert_allclose(tangent[:, :, k, k], own[1], rtol=1e-12)
    x = np.random.default_rng(1).normal(size=(3, *VECTORS))
    norms = np.linalg.norm(x, axis=1) / np.sqrt(5)
    apart = np.outer(norms, norms) / (2 * np.pi)  # E relu E relu
    np.testing.assert_allclose(nngp[:, :, 0, 2], apart, rtol=1e-12)


def test_layers_side_by_side_are_pooled_one_by_one(x64):
    def before(module, x, n):
        a, b = dense(n)(x), dense(n)(nn.relu(dense(n)(x)))
        return readout(jnp.concatenate([nn.relu(a).mean(1), nn.relu(b).mean(1)], -1))

    def after(module, x, n):
        a, b = dense(n)(x), dense(n)(nn.relu(dense(n)(x)))
        return readout(nn.relu(jnp.concatenate([a, b], -1)).mean(1))

    for one, two in zip(kernels(after, SEQUENCES), kernels(before, SEQUENCES)):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def graph(gather):
    def forward(module, x, n):
        for _ in range(2):
            x = nn.relu(dense(n)(x))
            x = dense(n)(x + gather(x))
        return readout(x.mean(1))

    return forward


def by_segments(x):
    senders, receivers = map(jnp.array, EDGES)
    return jax.vmap(lambda h: jax.ops.segment_sum(h[senders], receivers, 4))(x)


def by_matrix(x):
    adjacency = np.zeros((4, 4))
    adjacency[EDGES[1], EDGES[0]] = 1
    return jnp.einsum("rs,bsc->brc", adjacency, x)


def by_scatter(x):
    senders, receivers = map(jnp.array, EDGES)
    return jnp.zeros_like(x).at[:, receivers].add(x[:, senders])


@pytest.mark.parametrize("gather", [by_segments, by_scatter])
def test_a_given_graph_in_every_spelling(x64, gather):
    for one, two in zip(kernels(graph(gather), SEQUENCES), kernels(graph(by_matrix), SEQUENCES)):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_outputs_less_their_mean_are_correlated(x64):
    """With K of one output, (delta_ij - 1/3) K: outputs are told apart as positions."""

    def centred(module, x, n):
        h = dense(3, use_bias=False)(nn.relu(dense(n)(x)))
        return h - h.mean(-1, keepdims=True)

    one = kernels(lambda m, x, n: dense(3, use_bias=False)(nn.relu(dense(n)(x))), VECTORS)
    project = np.eye(3) - 1 / 3
    for found, alone in zip(kernels(centred, VECTORS), one):
        np.testing.assert_allclose(
            found, alone[:, :, None, None] * project[None, None], rtol=1e-10, atol=1e-12
        )


def test_a_branch_and_a_trunk(x64):
    """A sum of products of independent Gaussians: products of their kernels."""

    def product(module, x, n):
        one, two = dense(n, use_bias=False)(x), dense(n, use_bias=False)(x)
        return (one * two).sum(-1, keepdims=True) / n**0.5

    x = np.random.default_rng(1).normal(size=(3, *VECTORS))
    inner = x @ x.T / 5
    nngp, tangent = kernels(product, VECTORS)
    np.testing.assert_allclose(nngp, inner**2, rtol=1e-12)
    np.testing.assert_allclose(tangent, 2 * inner**2, rtol=1e-12)


def test_a_depthwise_convolution_before_a_layer_of_weights(x64):
    """Second moments are those of a convolution; a nonlinearity of it is refused."""

    def depthwise(act):
        return lambda m, x, n: dense(1)(
            act(conv(n, (3, 3), feature_group_count=n)(dense(n)(x)))
        ).mean((1, 2))

    def whole(module, x, n):
        return dense(1)(conv(n, (3, 3))(dense(n)(x))).mean((1, 2))

    for one, two in zip(kernels(depthwise(lambda h: h), IMAGES), kernels(whole, IMAGES)):
        np.testing.assert_allclose(one, two, rtol=1e-12)
    with pytest.raises(ValueError, match="Conv_0/kernel is a depthwise convolution"):
        kernels(depthwise(nn.relu), IMAGES)


def test_a_readout_of_zeros_is_used_times_the_root_of_its_fan_in(x64):
    """So that the tangent kernel of a finite network is the mean of its features' products."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, *VECTORS)), jnp.float32)
    net = limits.parametrize(family(zero_readout), "ntk", width=64, example=x)
    params = net.init(jax.random.key(0))
    assert net.multiplier["Dense_2"]["kernel"] == pytest.approx(1 / 8)
    hidden = ("Dense_1", "Dense_0")  # the inner one is made last

    def features(p):
        h = x
        for name in hidden:
            h = nn.relu(h @ (p[name]["kernel"] * net.multiplier[name]["kernel"]))
        return h

    found = ntk.empirical_ntk(net.apply, params, x)
    h = features(params)
    np.testing.assert_allclose(found[..., 0, 0], h @ h.T / 64, rtol=1e-5)


def pairs_of(h):
    """(B, N, N, k) twice: h_i and h_j of every pair."""
    shape = (*h.shape[:2], h.shape[1], h.shape[2])
    return jnp.broadcast_to(h[:, :, None], shape), jnp.broadcast_to(h[:, None], shape)


def of_sums(n, x):
    one, two = pairs_of(nn.Dense(n, use_bias=False)(x))
    return one + two


def of_differences_of_inputs(n, x):
    return x[:, :, None] - x[:, None]


def of_both(n, x):
    return jnp.concatenate(pairs_of(nn.Dense(n)(x)), -1)


@pytest.mark.parametrize(
    ("pair", "alone"),
    [
        (of_sums, lambda n, x: nn.Dense(n, use_bias=False)(x[:, 0] + x[:, 1])),
        (of_differences_of_inputs, lambda n, x: x[:, 0] - x[:, 1]),
        (of_both, lambda n, x: nn.Dense(n)(jnp.concatenate([x[:, 0], x[:, 1]], -1))),
    ],
)
def test_an_array_beside_itself_along_another_axis(pair, alone):
    """As in a network on the edges of a graph: what happens at the pair (0, 1) is that of its two nodes alone."""

    class Edges(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(pair(self.width, x))))
            return nn.Dense(1)(jnp.tanh(h)[:, 0, 1])

    class Nodes(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            h = nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(alone(self.width, x))))
            return nn.Dense(1)(jnp.tanh(h))

    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 5)), jnp.float32)
    found, expected = (
        ntk.infinite_width(m, x[:2])(x, None, ("nngp", "ntk")) for m in (Edges, Nodes)
    )
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=2e-5)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=2e-5)


@jax.custom_vjp
def own_tanh(x):
    return jnp.tanh(x)


own_tanh.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


@jax.custom_vjp
def reversal(x):
    return x


reversal.defvjp(lambda x: (x, None), lambda _, g: (-g,))


def test_a_backward_rule_is_followed_where_it_is_the_derivative():
    def model(f):
        return lambda net, x, n: dense(1)(f(dense(n)(x)))

    for one, two in zip(kernels(model(own_tanh), VECTORS), kernels(model(jnp.tanh), VECTORS)):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    with pytest.raises(ValueError, match=r"derivative rule of its own.*otherwise=\"sample\""):
        kernels(model(reversal), VECTORS)
    # The Jacobian of the first layer changes its sign, in both factors of the kernel.
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), jnp.float32)
    options = {"otherwise": "sample", "networks": 64}
    found = ntk.infinite_width(family(model(reversal)), x, **options)(x, None, "ntk")
    expected = ntk.infinite_width(family(model(lambda h: h)), x)(x, None, "ntk")
    np.testing.assert_allclose(found, expected, atol=0.05 * float(expected.max()))
