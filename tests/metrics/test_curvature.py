"""Lanczos eigenpairs: designed spectra, two roads to the Hessian, warm starts, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metrics import curvature, operators, programs
from metrics.curvature import eigenpairs, sharpness


def designed(values, seed=0):
    """A symmetric matrix with the given eigenvalues, and its eigenvectors."""
    n = len(values)
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return jnp.asarray(Q * np.asarray(values)[None] @ Q.T), Q


def matrix_product(params, A, v):
    return {"a": A @ v["a"]}


def network(params, x):
    hidden = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    return hidden @ params["out"]["kernel"]


def network_loss(params, batch):
    logits = network(params, batch["x"])
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * batch["y"], -1))


def network_problem(seed=0, samples=12, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"in": {"kernel": (4, 6), "bias": (6,)}, "out": {"kernel": (6, 3)}}
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), dtype),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    x = jnp.asarray(rng.normal(size=(samples, 4)), dtype)
    return params, {"x": x, "y": jnp.asarray(np.eye(3)[rng.integers(0, 3, samples)], dtype)}


def dense_hessian(loss, params, batch):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda w, b: loss(unravel(w), b)))(flat, batch))


# One size and one number of steps, so that the tests share compiled programs.
SIZE, STEPS = 24, 12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_designed_spectrum_and_true_residuals(which, unroll):
    values = np.concatenate([[-3.0, -1.0], np.linspace(-0.5, 1, SIZE - 4), [2.0, 5.0]])
    A, _ = designed(values)
    params = {"a": jnp.zeros(SIZE)}
    pairs = eigenpairs(matrix_product, params, A, k=3, num_steps=STEPS, which=which, unroll=unroll)
    wanted = np.sort(values)[::-1][:3] if which == "largest" else np.sort(values)[:3]
    V = np.asarray(pairs.vector["a"])
    residual = np.linalg.norm(V @ np.asarray(A) - np.asarray(pairs.value)[:, None] * V, axis=1)
    np.testing.assert_allclose(V @ V.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(pairs.residual, residual, atol=1e-11)
    assert np.all(np.abs(pairs.value[:2] - wanted[:2]) <= pairs.residual[:2])
    assert np.all(pairs.residual[:2] < 0.05)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "values", [np.linspace(-1, 2, SIZE) ** 3, np.zeros(SIZE), np.ones(SIZE)], ids=["cube", "0", "1"]
)
def test_all_steps_give_the_whole_spectrum_also_after_breakdown(values):
    A, _ = designed(values)
    pairs = eigenpairs(matrix_product, {"a": jnp.zeros(SIZE)}, A, k=3, num_steps=SIZE)
    np.testing.assert_allclose(pairs.value, values[::-1][:3], atol=1e-12)
    assert np.all(pairs.residual < 1e-10)
    assert np.all(np.isfinite(pairs.vector["a"]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unroll", [False, True])
def test_multiple_eigenvalues_after_an_early_invariant_subspace(unroll):
    A, _ = designed([5.0] * 3 + [1.0] * (SIZE - 3))
    params = {"a": jnp.zeros(SIZE)}
    pairs = eigenpairs(matrix_product, params, A, k=3, num_steps=STEPS, unroll=unroll)
    np.testing.assert_allclose(pairs.value, [5, 5, 5], atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_start_on_an_eigenvector_still_finds_a_larger_one():
    A, Q = designed([4.0, 3.0, *np.linspace(0, 1, SIZE - 2)])
    start, params = {"a": jnp.asarray(Q[:, 1])}, {"a": jnp.zeros(SIZE)}
    pairs = eigenpairs(matrix_product, params, A, k=3, num_steps=STEPS, start=start)
    np.testing.assert_allclose(pairs.value[:2], [4.0, 3.0], rtol=1e-5)


def test_one_parameter():
    pairs = sharpness(lambda p, b: 3 * p**2, jnp.asarray(1.0), None, num_steps=1)
    np.testing.assert_allclose(pairs.value, [6.0])


@pytest.mark.usefixtures("x64")
def test_without_reorthogonalisation_ghosts_appear():
    """The control: plain Lanczos repeats the top eigenvalue and misses the tenth by far."""
    values = np.concatenate([np.linspace(0, 1, 190), 10.0 * 2 ** np.arange(10)])
    A, _ = designed(values)
    A = np.asarray(A, np.float32)
    v, last, beta, alphas, betas = np.ones(200, np.float32) / np.sqrt(200), 0, 0, [], []
    for _ in range(60):
        w = A @ v - beta * last
        alphas.append(w @ v)
        w = w - alphas[-1] * v
        beta = np.linalg.norm(w)
        betas.append(beta)
        last, v = v, w / beta
    ghost = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    params = {"a": jnp.ones(200, jnp.float32)}
    ours = eigenpairs(matrix_product, params, jnp.asarray(A), k=10, num_steps=60).value
    truth = np.sort(values)[::-1][:10]
    assert ghost[::-1][9] / truth[9] > 3
    np.testing.assert_allclose(ours, truth, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_closed_form_of_a_deep_linear_network_at_a_balanced_minimum():
    """Scalar chain y = w_L ... w_1 x with every w = c: at zero loss H = x^2 c^(2L-2) 1 1^T."""
    depth, c, x = 5, 1.3, 0.7

    def loss(params, batch):
        return (jnp.prod(params) * batch[0] - batch[1]) ** 2 / 2

    pairs = sharpness(loss, jnp.full(depth, c), (x, c**depth * x), k=2, num_steps=5)
    np.testing.assert_allclose(pairs.value, [depth * x**2 * c ** (2 * depth - 2), 0], atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_two_roads_hessian_of_a_network_plain_and_scaled():
    """Dense by `jax.hessian`; the scale is the congruence with its square root."""
    params, batch = network_problem(dtype=np.float64)
    scale = {"in": {"kernel": 0.3, "bias": jnp.linspace(0, 2, 6)}, "out": 1.7}
    roots = np.sqrt(np.r_[np.linspace(0, 2, 6), np.full(24, 0.3), np.full(18, 1.7)])
    H = dense_hessian(network_loss, params, batch)
    for factors, matrix in ((None, H), (scale, roots[:, None] * H * roots[None])):
        pairs = sharpness(network_loss, params, batch, k=3, num_steps=30, scale=factors)
        np.testing.assert_allclose(pairs.value, np.linalg.eigvalsh(matrix)[::-1][:3], rtol=1e-8)


def descend(params, batch):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(network_loss)(params, batch))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def tracked(params, batch):
    """Six steps of gradient descent, the sharpness warm-started at each."""

    def step(carry, _):
        params, vector = carry
        top = sharpness(network_loss, params, batch, num_steps=5, start=vector)
        return (descend(params, batch), top.vector), top.value[0]

    zeros = jax.tree.map(lambda p: jnp.zeros((1, *p.shape)), params)
    return jax.lax.scan(step, (params, zeros), None, length=6)[1]


def test_warm_start_inside_a_vmapped_scan_equals_the_loop():
    problems = [network_problem(seed) for seed in (0, 1)]
    batch = problems[0][1]
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *[params for params, _ in problems])
    many, step = tracked(stacked, batch), jax.jit(descend)
    for row, (params, _) in zip(many, problems):
        vector = None
        for value in row:
            top = sharpness(network_loss, params, batch, num_steps=5, start=vector)
            np.testing.assert_allclose(value, top.value[0], rtol=2e-4)
            params, vector = step(params, batch), top.vector


@pytest.mark.usefixtures("x64")
def test_unrolled_inside_a_trace_equals_the_loop():
    A, _ = designed(np.linspace(0, 1, SIZE) ** 3)
    params = {"a": jnp.zeros(SIZE)}

    @jax.jit
    def top(params, A):
        return eigenpairs(matrix_product, params, A, k=3, num_steps=4, unroll=True).value

    looped = eigenpairs(matrix_product, params, A, k=3, num_steps=4).value
    np.testing.assert_allclose(top(params, A), looped, rtol=1e-12)


def test_one_compilation_serves_every_call():
    params, batch = network_problem()
    sharpness(network_loss, params, batch, num_steps=5)
    before = curvature._looped._cache_size()
    for seed in range(3):
        sharpness(network_loss, *network_problem(seed), num_steps=5, start=jax.random.key(seed))
    assert curvature._looped._cache_size() == before


def test_a_convolution_is_stepped_on_the_cpu():
    def loss(kernel, x):
        return jnp.mean(jax.lax.conv(x, kernel, (1, 1), "SAME") ** 2)

    def bent_loss(kernel, x):
        return jnp.mean(jax.lax.conv(x, kernel, (1, 1), "SAME") ** 4)

    kernel, x = jnp.ones((2, 1, 3, 3)), jnp.ones((2, 1, 5, 5))
    assert programs.steps_better(operators.hessian(loss), kernel, x)
    params, batch = network_problem()
    assert not programs.steps_better(operators.hessian(network_loss), params, batch)
    pairs = sharpness(loss, kernel, x, num_steps=5)
    looped = sharpness(loss, kernel, x, num_steps=5, unroll=False)
    np.testing.assert_allclose(pairs.value, looped.value, rtol=1e-5)
    # Other parameters run the same compiled step, though what it shares is computed anew.
    compiled = curvature._next._cache_size()
    other = sharpness(loss, 2 * kernel, x, num_steps=5)
    np.testing.assert_allclose(other.value, looped.value, rtol=1e-5)  # a quadratic loss
    bent = sharpness(bent_loss, 2 * kernel, x, num_steps=5)
    assert float(bent.value[0]) > 2 * float(sharpness(bent_loss, kernel, x, num_steps=5).value[0])
    assert curvature._next._cache_size() == compiled + 1  # the bent loss
    batches = operators.accumulated(operators.hessian(loss), unroll=True)
    assert programs.loops(batches, kernel, x[None])
    assert not programs.loops(operators.hessian(loss), kernel, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0; it must be between 1 and num_steps=20"),
        ({"k": 21}, "k is 21; it must be between 1 and num_steps=20"),
        ({"num_steps": 0}, "num_steps is 0; it must be between 1 and 48"),
        ({"num_steps": 49}, "num_steps is 49; it must be between 1 and 48"),
        ({"which": "top"}, "which is 'top'; it must be 'largest' or 'smallest'"),
        ({"scale": -1.0}, "is -1.0; learning-rate factors must be at least 0"),
        ({"scale": {"out": 1.0}}, "scale does not fit params"),
        ({"start": jnp.ones(3)}, "start has shapes"),
    ],
)
def test_refused_options(options, message):
    params, batch = network_problem()
    with pytest.raises(ValueError, match=message):
        sharpness(network_loss, params, batch, **options)


def test_refused_problems():
    params, batch = network_problem()
    with pytest.raises(ValueError, match=r"the loss returns float32\[12, 3\]; it must return one"):
        sharpness(lambda p, b: network(p, b["x"]), params, batch)
    with pytest.raises(ValueError, match=r"the loss returns \('float32\[\]', 'float32\[\]'\)"):
        sharpness(lambda p, b: (network_loss(p, b), p["in"]["bias"][0]), params, batch)
    broken = params | {"in": params["in"] | {"bias": jnp.zeros(6, int)}}
    with pytest.raises(ValueError, match="parameter in/bias has dtype int32"):
        sharpness(network_loss, broken, batch)
    with pytest.raises(ValueError, match="params holds no numbers"):
        sharpness(network_loss, {}, batch)
    poisoned = batch | {"x": batch["x"].at[3].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"the loss is nan; so it is on examples \[3\]"):
        sharpness(network_loss, params, poisoned, num_steps=5)
    with pytest.raises(ValueError, match=r"the loss is nan; so it is on examples \[3\]"):
        eigenpairs(operators.hessian(network_loss), params, poisoned, num_steps=5)
    zeros, A = {"a": jnp.zeros(SIZE)}, jnp.full((SIZE, SIZE), jnp.nan)
    with pytest.raises(ValueError, match="the curvature operator's products are not finite"):
        eigenpairs(matrix_product, zeros, A, num_steps=STEPS)
    lost = params | {"out": {"kernel": jnp.full((6, 3), jnp.nan)}}
    with pytest.raises(ValueError, match="parameter out/kernel is not finite"):
        sharpness(network_loss, lost, batch, num_steps=5)
    with pytest.raises(ValueError, match="its second derivative is not finite"):
        sharpness(lambda p, b: jnp.sqrt(p @ p), jnp.zeros(30), None, num_steps=5)


def test_a_diverged_run_inside_a_trace_is_nan_and_not_an_error():
    params, batch = network_problem()
    broken = jax.tree.map(lambda p: p * jnp.nan, params)
    top = jax.jit(lambda p, b: sharpness(network_loss, p, b, num_steps=5))(broken, batch)
    assert np.isnan(top.value[0])
    # ... and its vector does not spoil the next warm start.
    fresh = sharpness(network_loss, params, batch, num_steps=5, start=top.vector)
    cold = sharpness(network_loss, params, batch, num_steps=5)
    np.testing.assert_allclose(fresh.value, cold.value, rtol=1e-4)
