import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ntk
from ntk import empirical, jaxprs, reference, stax
from ntk.finite import contraction, layer_factors
from ntk.finite.empirical import empirical_ntk, empirical_ntk_fn


@functools.partial(jax.jit, static_argnums=0)
def by_definition(f, params, x1, x2=None):
    """sum_w df(x1)/dw df(x2)/dw, from the whole Jacobians, axes in pairs."""

    def rows(x):
        jacobian = jax.tree.leaves(jax.jacobian(f)(params, x))
        out = jax.eval_shape(f, params, x)
        return jnp.concatenate([j.reshape(*out.shape, -1) for j in jacobian], axis=-1)

    j1, j2 = rows(x1), rows(x1 if x2 is None else x2)
    n = j1.ndim - 1
    kernel = jnp.tensordot(j1, j2, (-1, -1))
    return kernel.transpose([i + k * n for i in range(n) for k in range(2)])


def close(a, b, rtol=1e-10):
    np.testing.assert_allclose(a, b, rtol=0, atol=rtol * float(jnp.abs(b).max()))


def noise(i, *shape):
    return jnp.asarray(np.random.default_rng(i).standard_normal(shape))


def count_layers(f, params, x):
    """Weights and biases found as layers in the network on one example."""
    leaves, tree = jax.tree.flatten(params)
    flat = jaxprs.flatten(lambda *p: f(tree.unflatten(p), x[:1]), *leaves)
    layers = layer_factors.find_layers(flat, range(len(leaves)))
    return len(layers), sum(layer.bias is not None for layer in layers)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.Conv(6, (3, 2), strides=(2, 1), padding="VALID", feature_group_count=2)(x)
        x = nn.Conv(3, (2, 2), kernel_dilation=(1, 2), padding="CIRCULAR")(nn.gelu(x))
        x = nn.ConvTranspose(2, (2, 2), strides=(2, 2))(nn.tanh(x))
        x = nn.LayerNorm()(nn.avg_pool(x, (2, 2), (2, 2)))
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class SmallConvolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.Conv(6, (3, 2), strides=(2, 1), padding="VALID", feature_group_count=2)(x)
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, 4)(ids)
        x = x + self.param("position", nn.initializers.normal(), (1, 5, 4))
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + nn.Dense(4)(nn.silu(nn.Dense(6)(nn.LayerNorm()(x))))
        return nn.Dense(3, use_bias=False)(x.mean(1))


def mlp(params, x):
    """Scaled as the NTK parametrization scales it, weights and biases."""
    for i, (w, b) in enumerate(params):
        x = (1.5 / w.shape[0] ** 0.5) * jnp.dot(x, w) + 0.1 * jnp.expand_dims(b, 0)
        x = x if i == len(params) - 1 else jnp.tanh(x)
    return x


def mlp_params(*widths):
    return [
        (noise(i, a, b), noise(9 + i, b)) for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]


def flax_case(model, x):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(shapes)
    params = [0.5 * noise(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return model.apply, tree.unflatten(params), x


CASES = {
    "mlp": lambda: (mlp, mlp_params(3, 5, 4, 2), noise(1, 4, 3)),
    "small convolutions": lambda: flax_case(SmallConvolutions(), noise(1, 3, 4, 4, 2)),
    "convolutions": lambda: flax_case(Convolutions(), noise(1, 3, 4, 4, 2)),
    "transformer": lambda: flax_case(Transformer(), jnp.arange(15).reshape(3, 5) % 7),
}
LAYERS = {
    "mlp": (3, 3),
    "small convolutions": (3, 3),
    "convolutions": (5, 5),
    "transformer": (8, 6),
}


@pytest.mark.parametrize(
    "name",
    ["mlp", "small convolutions"]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("convolutions", "transformer")],
)
def test_layers_are_found_and_give_the_kernel_by_definition(name, x64):
    f, params, x = CASES[name]()
    assert count_layers(f, params, x) == LAYERS[name]
    expected = by_definition(f, params, x, x[:2])
    close(empirical_ntk(f, params, x, x[:2]), expected)


def test_traced_and_symmetric_kernels_of_layers(x64):
    f, params, x = CASES["mlp"]()
    expected = by_definition(f, params, x)
    traced = jnp.trace(expected, axis1=2, axis2=3) / expected.shape[-1]
    close(empirical_ntk(f, params, x, trace_axes=(-1,)), traced)


def attention(p, ids):
    """Look-up, heads by a three-dimensional weight, softmax over positions."""
    x = jnp.take(p["table"], ids, axis=0)
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
    return jnp.einsum("bhts,bshk,hko->bto", weights, v, p["out"]).mean(1)


def attention_params():
    shapes = {"table": (5, 4), "q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "out": (2, 3, 2)}
    return {name: noise(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def reused(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"])


def tied_embedding(p, ids):
    return jnp.tanh(jnp.take(p["w"], ids, axis=0)).mean(1) @ p["w"].T


def looped(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]


def weight_normalised(p, x):
    return x @ (p["w"] / jnp.linalg.norm(p["w"]))


def learned_scale(p, x):
    return x @ (p["w"] * p["s"] / 3.0) + p["s"]


def scale_from_input(p, x):
    return (jnp.sin(x[:, :1]) * (x @ p["w"]) * 2.0) + p["b"]


def low_rank(p, x):
    return jnp.tanh(x @ (p["u"] @ p["v"]) + p["b"])


def transposed(p, x):
    return jnp.einsum("oi,bi->ob", p["w"].T.reshape(4, 3), x).T + p["b"]


def bias_shared_by_two(p, x):
    return jnp.tanh(x @ p["w"] + p["b"]) + p["b"]


def bias_per_position(p, x):
    return (jnp.stack([x, 2 * x], 1) @ p["w"] + jnp.expand_dims(p["q"], 0)).sum(1) ** 2


def clipped_rows(p, ids):
    return jnp.take(p["w"], 3 * ids, axis=0, mode="clip").sum(1)


def dropped_rows(p, ids):
    rows = jnp.take(p["w"], 3 * ids, axis=0, mode="fill", fill_value=0.0)
    return jnp.sin(rows).sum(1)


@jax.checkpoint
def recomputed(p, x):
    return jnp.tanh(x @ p["w"] + p["b"])


def stopped(p, x):
    return x @ jax.lax.stop_gradient(p["w"]) + p["b"]


@jax.custom_jvp
def odd_product(x, w):
    return x @ w


odd_product.defjvp(
    lambda primals, tangents: (odd_product(*primals), 3.0 * (primals[0] @ tangents[1]))
)


def custom_rule(p, x):
    return odd_product(x, p["w"])


def X():
    return noise(1, 4, 3)


def IDS():
    return jnp.arange(12).reshape(4, 3) % 5


TRICKS = {
    attention: (attention_params, IDS, 5),
    reused: (lambda: {"w": noise(2, 3, 3)}, X, 0),
    tied_embedding: (lambda: {"w": noise(2, 5, 4)}, IDS, 0),
    looped: (lambda: {"w": noise(2, 2, 3, 3)}, X, 0),
    weight_normalised: (lambda: {"w": noise(2, 3, 3)}, X, 0),
    learned_scale: (lambda: {"w": noise(2, 3, 3), "s": jnp.ones(()) * 1.3}, X, 1),
    scale_from_input: (lambda: {"w": noise(2, 3, 2), "b": noise(3, 1, 2)}, X, 1),
    low_rank: (lambda: {"u": noise(2, 3, 2), "v": noise(3, 2, 4), "b": noise(4, 1, 4)}, X, 2),
    transposed: (lambda: {"w": noise(2, 3, 4), "b": noise(3, 1, 4)}, X, 1),
    bias_shared_by_two: (lambda: {"w": noise(2, 3, 4), "b": noise(3, 1, 4)}, X, 1),
    bias_per_position: (lambda: {"w": noise(2, 3, 4), "q": noise(3, 2, 4)}, X, 1),
    clipped_rows: (lambda: {"w": noise(2, 5, 4)}, IDS, 1),
    dropped_rows: (lambda: {"w": noise(2, 5, 4)}, IDS, 1),
    recomputed: (lambda: {"w": noise(2, 3, 4), "b": noise(3, 1, 4)}, X, 1),
    stopped: (lambda: {"w": noise(2, 3, 4), "b": noise(3, 1, 4)}, X, 0),
    custom_rule: (lambda: {"w": noise(2, 3, 4)}, X, 0),
}


@pytest.mark.parametrize("f", TRICKS, ids=lambda f: f.__name__)
def test_unusual_uses_of_weights_are_never_silently_wrong(f, x64):
    make, inputs, layers = TRICKS[f]
    params, x = make(), inputs()
    assert count_layers(f, params, x)[0] == layers
    close(empirical_ntk(f, params, x, x[1:3]), by_definition(f, params, x, x[1:3]))


@pytest.mark.parametrize("f", [attention, clipped_rows, dropped_rows], ids=lambda f: f.__name__)
def test_rows_of_a_large_table_are_kept_as_their_numbers(f, x64, monkeypatch):
    monkeypatch.setattr(layer_factors, "_SMALL_TABLE", 0)
    make, inputs, _ = TRICKS[f]
    params, x = make(), inputs()
    close(empirical_ntk(f, params, x, x[1:3]), by_definition(f, params, x, x[1:3]))


def elementwise_then_dense(p, x):
    return jnp.tanh(jnp.expand_dims(x, 1) * jnp.expand_dims(p["a"], 0)) @ p["w"]


AXES = [((), (-1,)), ((0,), (2,)), ((2,), (0,)), ((0, 1), ())]


def reduced(kernel, trace_axes, diagonal_axes):
    """Traces over size, and diagonals, of pairs of axes."""
    ndim = kernel.ndim // 2
    letters = [["ab", "cd", "ef"][i] for i in range(ndim)]
    traced, diagonal = ([a % ndim for a in axes] for axes in (trace_axes, diagonal_axes))
    pairs = ["".join(2 * p[0] if i in traced + diagonal else p) for i, p in enumerate(letters)]
    kept = [p[0] if i in diagonal else p for i, p in enumerate(letters) if i not in traced]
    size = np.prod([kernel.shape[2 * a] for a in traced])
    return jnp.einsum(f"{''.join(pairs)}->{''.join(kept)}", kernel) / size


@pytest.fixture(scope="module")
def three_axes():
    params = {"a": noise(3, 3, 4), "w": noise(4, 4, 2)}
    return params, noise(5, 3, 4), noise(6, 3, 4)


@pytest.mark.parametrize(("trace_axes", "diagonal_axes"), AXES)
@pytest.mark.parametrize("implementation", ["auto", "ntk_vector_products"])
def test_traced_and_diagonal_axes(trace_axes, diagonal_axes, implementation, three_axes):
    params, x1, x2 = three_axes
    full = by_definition(elementwise_then_dense, params, x1, x2)
    expected = reduced(full, trace_axes, diagonal_axes)
    axes = (trace_axes, diagonal_axes, None if implementation == "auto" else 0)
    fn = empirical_ntk_fn(elementwise_then_dense, *axes, implementation=implementation)
    ours = fn(x1, x2, params)
    assert ours.shape == expected.shape
    close(ours, expected, 1e-5)


@pytest.mark.parametrize("implementation", [0, 1])
def test_conventions_are_those_of_neural_tangents(implementation, three_axes):
    nt = reference.neural_tangents()
    params, x1, x2 = three_axes
    for axes in (((0,), (2,)), ((-1,), ())):
        theirs = jax.jit(nt.empirical_ntk_fn(elementwise_then_dense, *axes, 0))
        ours = empirical_ntk_fn(elementwise_then_dense, *axes, 0, implementation)
        second = x2 if implementation else None
        close(ours(x1, second, params), theirs(x1, second, params), 1e-5)
        nngp = empirical.empirical_nngp_fn(elementwise_then_dense, *axes)
        theirs = nt.empirical_nngp_fn(elementwise_then_dense, *axes)
        close(nngp(x1, second, params), theirs(x1, second, params), 1e-5)


def test_stax_network_of_neural_tangents():
    stax = reference.neural_tangents().stax
    init, f, _ = stax.serial(stax.Dense(5, 1.5, 0.1), stax.Relu(), stax.Dense(2, 1.0, 0.3))
    x = noise(1, 4, 3)
    _, params = init(jax.random.key(0), x.shape)
    theirs = jax.jit(reference.neural_tangents().empirical_ntk_fn(f, (), (), 0))
    expected = theirs(x, None, params)
    close(empirical_ntk_fn(f, (), (), 0)(x, None, params), expected, 1e-5)


def test_symmetric_kernel_is_mirrored_exactly(monkeypatch, x64):
    f, params, x = mlp, mlp_params(3, 5, 4, 2), noise(1, 9, 3)
    whole = empirical_ntk(f, params, x, x)
    monkeypatch.setattr(contraction, "_MIN_SYMMETRIC", 0)
    mirrored = empirical_ntk(functools.partial(f), params, x)
    close(mirrored, whole)
    np.testing.assert_array_equal(mirrored, mirrored.transpose(1, 0, 3, 2))


def test_both_contractions_of_a_layer_agree(x64):
    one = [noise(1, 3, 2, 4, 5), noise(2, 3, 2, 1, 3, 2, 4, 6)]
    two = [noise(3, 2, 2, 7, 5), noise(4, 2, 2, 1, 3, 2, 7, 6)]
    jacobians = (contraction._jacobian(*layer) for layer in (one, two))
    close(contraction._by_gram(*one, *two), contraction._rows_product(*jacobians))


def test_outputs_and_inputs_as_trees_kwargs_and_axes(x64):
    def f(p, x, scale, mode):
        h = x["a"] @ p["w"] if mode == "wide" else None
        return {"y": jnp.tanh(h * scale), "z": (x["b"] * p["v"]).T}

    params = {"w": noise(1, 3, 2), "v": noise(2, 1, 2)}
    x = {"a": noise(3, 4, 3), "b": noise(4, 4, 2)}
    scale = jnp.expand_dims(noise(5, 4), 1)
    fn = empirical_ntk_fn(f, (), (), ({"a": 0, "b": 0}, {"y": 0, "z": 1}, {"scale": 0}))
    out = fn(x, None, params, scale=scale, mode="wide")
    whole = empirical_ntk_fn(f, (), (), None)(x, None, params, scale=scale, mode="wide")
    assert out["z"].shape == (2, 2, 4, 4)
    for name in out:
        close(out[name], whole[name])
    halves = fn(x, x, params, scale=(scale, 2 * scale), mode="wide")
    doubled = {"a": 2 * x["a"], "b": x["b"]}
    close(halves["y"] / 2.0, fn(x, doubled, params, scale=scale, mode="wide")["y"] / 2.0, 2.0)
    expected = by_definition(
        lambda p, s: f({**p, "v": params["v"]}, x, s, "wide")["y"],
        {"w": params["w"]},
        scale,
        2 * scale,
    )
    close(halves["y"], expected)


def test_none_among_inputs_and_outputs_has_no_axis(x64):
    x = {"first": (None, jax.random.normal(jax.random.key(0), (3, 4))), "second": jnp.arange(4.0)}
    params = jax.random.normal(jax.random.key(1), (3, 2))

    def f(params, x):
        return {
            "out": (jnp.tanh(x["first"][1].T @ params), None),
            "other": x["second"] * params[0, 0],
        }

    axes = ({"first": (None, 1), "second": 0}, {"out": (0, None), "other": 0}, {})
    mapped = empirical_ntk_fn(f, trace_axes=(), vmap_axes=axes)(x, None, params)
    whole = empirical_ntk_fn(f, trace_axes=())(x, None, params)
    assert jax.tree.structure(mapped) == jax.tree.structure(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mapped, whole)


def test_inside_jit_grad_and_vmap_without_constants(x64):
    params, x = mlp_params(3, 5, 2), noise(1, 4, 3)
    plain = empirical_ntk(mlp, params, x)
    close(jax.jit(lambda p: empirical_ntk(mlp, p, x))(params), plain)
    many = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), params)
    close(jax.vmap(lambda p: empirical_ntk(mlp, p, x))(many)[0], plain)

    def total(p):
        return empirical_ntk(mlp, p, x).sum()

    direction = jax.tree.map(lambda v: noise(v.size, *v.shape), params)
    slope = jax.jvp(total, (params,), (direction,))[1]
    shifted = [
        total(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction)) for s in (1e-5, -1e-5)
    ]
    np.testing.assert_allclose(slope, (shifted[0] - shifted[1]) / 2e-5, rtol=1e-6)


def test_products_are_rows_of_the_kernel(x64):
    params, x1, x2 = mlp_params(3, 5, 2), noise(1, 4, 3), noise(2, 3, 3)
    v = noise(3, 3, 2)
    product = empirical.empirical_ntk_vp_fn(mlp, x1, x2, params)(v)
    kernel = empirical_ntk(mlp, params, x1, x2)
    close(product, jnp.einsum("nmkl,ml->nk", kernel, v))


def test_kernels_by_name():
    params, x = mlp_params(3, 5, 2), noise(1, 4, 3)
    fn = empirical.empirical_kernel_fn(mlp, (-1,), (), 0)
    both = fn(x, None, None, params)
    assert both._fields == ("nngp", "ntk")
    close(fn(x, None, "nngp", params), mlp(params, x) @ mlp(params, x).T / 2, 1e-6)
    close(both.ntk, fn(x, None, "ntk", params), 1e-6)
    assert fn(x, None, ("ntk",), params)._fields == ("ntk",)


def test_low_precision_accumulates_in_float32():
    params = jax.tree.map(lambda v: v.astype(jnp.bfloat16), mlp_params(3, 5, 2))
    kernel = empirical_ntk(mlp, params, noise(1, 4, 3).astype(jnp.bfloat16))
    assert kernel.dtype == jnp.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x1": jnp.ones((2, 3), jnp.complex64)}, "x1 is complex"),
        ({"x1": jnp.ones((0, 3))}, "batch is empty"),
        ({"params": {"w": jnp.arange(3)}}, "params/w is int32, no parameter"),
        ({"trace_axes": (3,)}, "axis 3 is out of range"),
        ({"trace_axes": (1,), "diagonal_axes": (-1,)}, "both in trace_axes and diagonal_axes"),
        ({"trace_axes": (0,), "x2": jnp.ones((5, 3))}, "differs in size"),
        ({"implementation": "fast"}, "implementation is 'fast'"),
        ({"vmap_axes": (0, None, {})}, "both inputs and outputs"),
        ({"vmap_axes": (0, 0, {"mask": 0})}, "vmap_axes names"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"params": mlp_params(3, 5, 2), "x1": noise(1, 4, 3)} | change
    f = (lambda p, x: x @ p["w"]) if "params" in change else mlp
    with pytest.raises(ValueError, match=message):
        empirical_ntk(f, **arguments)


def test_unknown_kernel_name():
    with pytest.raises(ValueError, match="get has 'ntkgp'"):
        empirical.empirical_kernel_fn(mlp)(noise(1, 4, 3), None, "ntkgp", mlp_params(3, 5, 2))


def test_integer_outputs_are_refused():
    with pytest.raises(ValueError, match="f returns int32"):
        empirical_ntk(
            lambda p, x: jnp.argmax(x @ p, -1, keepdims=True), noise(1, 3, 2), noise(2, 4, 3)
        )


class Normalised(nn.Module):
    """Batch normalisation between two dense layers, with statistics of the batch or kept ones."""

    kept: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=self.kept)(nn.Dense(5)(x))
        return nn.Dense(2)(nn.relu(x))


def test_examples_that_interact_are_refused_and_right_without_an_axis_of_examples(x64):
    x, model = noise(1, 6, 3), Normalised()
    variables = model.init(jax.random.key(0), x)

    def apply(p, x):
        return model.apply({**variables, "params": p}, x, mutable=["batch_stats"])[0]

    params = variables["params"]
    for batches in ((x, None), (x[:1], x)):
        with pytest.raises(
            ValueError, match=r"examples interact: f\(x\)\[:1\] is not f\(x\[:1\]\)"
        ):
            empirical_ntk(apply, params, *batches)
    close(empirical_ntk(apply, params, x, vmap_axes=None), by_definition(apply, params, x), 1e-6)
    with pytest.raises(ValueError, match=r"collections \['params', 'batch_stats'\]; only 'params'"):
        empirical_ntk(Normalised(True).apply, variables, x)

    def kept(p, x):
        return Normalised(True).apply({**variables, "params": p}, x)

    close(empirical_ntk(kept, params, x), by_definition(kept, params, x), 1e-6)


@pytest.mark.parametrize(
    "mix",
    [
        lambda y: y - y.mean(0, keepdims=True),
        lambda y: y[::-1],
        lambda y: y / jnp.linalg.norm(y),
        lambda y: y + 1e-2 * jnp.roll(y, 1, 0),
        lambda y: y * jax.random.bernoulli(jax.random.key(0), 0.5, y.shape),
    ],
    ids=["mean", "order", "norm", "weak", "mask"],
)
def test_any_mixing_of_examples_is_seen(mix):
    with pytest.raises(ValueError, match="examples interact"):
        empirical_ntk(lambda p, x: mix(x @ p), noise(1, 3, 2), noise(2, 5, 3))


def test_variables_of_nnx_that_are_no_parameters_are_refused():
    model = nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    with pytest.raises(ValueError, match=r"variables of kind \['BatchStat'\]"):
        empirical_ntk(lambda s, x: nnx.merge(graph, s)(x), state, noise(1, 4, 3))


def scanned(p, x):
    step = lambda h, _: (jax.nn.relu(h @ p["w"]), None)  # noqa: E731
    return jax.lax.scan(step, x, None, length=2)[0] @ p["v"]


@jax.custom_vjp
def own_reverse(x):
    return x**2


own_reverse.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def test_loops_with_rectifiers_and_rules_for_reverse_mode_only(x64):
    """Against the Jacobian; the second has no forward mode, which products with the kernel use."""
    params, x = {"w": noise(1, 3, 3), "v": noise(2, 3, 2)}, noise(3, 4, 3)
    close(empirical_ntk(scanned, params, x), by_definition(scanned, params, x))

    def f(p, x):
        return own_reverse(x @ p["w"]) @ p["v"]

    expected = by_definition(lambda p, x: (x @ p["w"]) ** 2 @ p["v"], params, x)
    for implementation in ("auto", "ntk_vector_products"):
        close(empirical_ntk(f, params, x, implementation=implementation), expected)
    vector = noise(4, 4, 2)
    product = empirical.empirical_ntk_vp_fn(f, x, None, params)(vector)
    close(product, jnp.einsum("aibj,bj->ai", expected.transpose(0, 2, 1, 3), vector))


class Unhashable:
    """A network that no cache of functions holds."""

    __hash__ = None

    def __init__(self, f):
        self.f = f

    def __call__(self, params, x):
        return self.f(params, x)


def test_what_wraps_a_network_passes_its_inputs_on_as_it_takes_them():
    """A tuple of inputs is one argument of a stax network, and of a family's that is called with keywords."""
    net = stax.serial(stax.parallel(stax.Dense(4), stax.Dense(4)), stax.FanInSum())
    x = noise(0, 3, 2), noise(1, 3, 5)
    params = net.init_fn(jax.random.key(0), ((3, 2), (3, 5)))[1]
    expected = empirical_ntk(net.apply_fn, params, x)
    for f in (stax.unmask_fn(net.apply_fn), Unhashable(net.apply_fn)):
        np.testing.assert_array_equal(empirical_ntk(f, params, x), expected)

    def family(width):
        def init(key):
            return params

        def apply(params, x, train=True):
            return net.apply_fn(params, x) * (2 if train else 1)

        return init, apply

    called = ntk.network(family, 4, x, call={"train": False})
    np.testing.assert_array_equal(empirical_ntk(called.apply, params, x), expected)
