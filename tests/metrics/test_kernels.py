import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metrics import kernels


def gaussian(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def test_alignment_identities(x64):
    x = gaussian(0, 30, 5)
    k = x @ x.T
    assert float(kernels.alignment(k, 3 * k)) == pytest.approx(1)
    assert float(kernels.distance(k, 3 * k)) == pytest.approx(0, abs=1e-14)
    assert float(kernels.relative_change(3 * k, k)) == pytest.approx(2)
    other = gaussian(1, 30, 4)
    l = other @ other.T
    assert float(kernels.velocity(k, l, 0.5)) == pytest.approx(2 * float(kernels.distance(k, l)))
    h = jnp.eye(30) - 1 / 30
    np.testing.assert_allclose(kernels.center(k), h @ k @ h, atol=1e-12)
    c = np.asarray(h @ k @ h), np.asarray(h @ l @ h)
    cosine = np.sum(c[0] * c[1]) / (np.linalg.norm(c[0]) * np.linalg.norm(c[1]))
    assert float(kernels.alignment(k, l, centered=True)) == pytest.approx(cosine)


@pytest.mark.parametrize("width", [4, 60])
@pytest.mark.parametrize("centered", [False, True])
def test_representation_alignment_by_gram_and_by_covariance(x64, width, centered):
    x, y = gaussian(2, 20, width), gaussian(3, 20, 7)
    k, l = x @ x.T, y @ y.T
    found = kernels.representation_alignment(x, y, centered=centered)
    assert float(found) == pytest.approx(float(kernels.alignment(k, l, centered=centered)))
    turn = jnp.linalg.qr(gaussian(4, width, width))[0]
    assert float(kernels.representation_alignment(x, 2 * x @ turn)) == pytest.approx(1)


def hsic_definition(k, l):
    """HSIC_1 with explicit matrices, Song et al. 2012 equation 5."""
    n = len(k)
    k, l = (np.asarray(a) - np.diag(np.diag(a)) for a in (k, l))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def cka_definition(k, l):
    return hsic_definition(k, l) / np.sqrt(hsic_definition(k, k) * hsic_definition(l, l))


def test_debiased_cka_and_its_jackknife_equal_the_definitions(x64):
    x = gaussian(5, 12, 4)
    y = x[:, :3] + 0.5 * gaussian(6, 12, 3)
    k, l = x @ x.T, y @ y.T
    found = kernels.cka(x, y)
    assert float(found.value) == pytest.approx(cka_definition(k, l), rel=1e-12)
    assert float(kernels.hsic(k, l).value) == pytest.approx(hsic_definition(k, l), rel=1e-12)
    left = [
        cka_definition(*(np.delete(np.delete(np.asarray(a), i, 0), i, 1) for a in (k, l)))
        for i in range(12)
    ]
    error = np.sqrt(11 / 12 * np.sum((left - np.mean(left)) ** 2))
    assert float(found.error) == pytest.approx(error, rel=1e-10)


def test_debiased_cka_of_unrelated_features_is_zero_within_its_error_where_the_biased_one_is_not():
    draw = jax.jit(jax.vmap(kernels.cka))
    x, y = gaussian(7, 200, 40, 100), gaussian(8, 200, 40, 100)
    found = draw(x, y)
    biased = jax.vmap(lambda a, b: kernels.representation_alignment(a, b, centered=True))(x, y)
    mean = float(jnp.mean(found.value))
    spread = float(jnp.std(found.value))
    assert abs(mean) < 4 * spread / np.sqrt(200)
    assert float(jnp.mean(biased)) > 0.6
    related = draw(x, x + 2 * y)
    assert float(jnp.mean(related.value)) > 10 * spread / np.sqrt(200)
    ratio = float(jnp.mean(related.error) / jnp.std(related.value))
    assert 0.8 < ratio < 1.6  # a jackknife is conservative


def test_minibatch_cka_tends_to_the_whole(x64):
    x = gaussian(9, 960, 6)
    y = jnp.tanh(x @ gaussian(10, 6, 5)) + 0.3 * gaussian(11, 960, 5)

    def parts(x, y):
        k, l = x @ x.T, y @ y.T
        return kernels.hsic(k, l).value, kernels.hsic(k, k).value, kernels.hsic(l, l).value

    sums = jax.jit(jax.vmap(parts))(x.reshape(30, 32, 6), y.reshape(30, 32, 5))
    batches, whole = kernels.cka_minibatch(*sums), jax.jit(kernels.cka)(x, y)
    assert 0 < float(batches.error) < 0.05
    assert abs(float(batches.value - whole.value)) < 3 * float(batches.error)
    biased = jnp.mean(
        jax.vmap(lambda a, b: kernels.representation_alignment(a, b, centered=True))(
            x.reshape(120, 8, 6), y.reshape(120, 8, 5)
        )
    )
    assert float(biased - whole.value) > 3 * float(batches.error)  # the control


def test_weight_movement(x64):
    start = {"a": jnp.ones((3, 3)), "b": jnp.zeros(4), "c": jnp.zeros(2)}
    end = {"a": 2 * jnp.ones((3, 3)), "b": jnp.ones(4), "c": jnp.zeros(2)}
    moved = kernels.weight_movement(end, start)
    assert float(moved.distance) == pytest.approx(np.sqrt(9 + 4))
    assert float(moved.relative) == pytest.approx(np.sqrt(13) / 3)
    assert [float(moved.per_leaf[k]) for k in "abc"] == [1.0, np.inf, 0.0]


def test_spectrum_of_a_designed_kernel(x64):
    q = jnp.linalg.qr(gaussian(12, 20, 20))[0]
    values = jnp.arange(20, 0, -1.0)
    kernel = (q * values[None]) @ q.T
    y = 3 * q[:, 0] - 4 * q[:, 5]
    s = kernels.task_model_alignment(kernel, y)
    np.testing.assert_allclose(s.eigenvalues, values / 20, atol=1e-12)
    expected = np.where(np.arange(20) < 5, 9 / 25, 1.0)
    np.testing.assert_allclose(s.cumulative_power, expected, atol=1e-12)
    # two roads: <K, y y^T> = |y|^2 sum of eigenvalue times power
    norm = float(jnp.linalg.norm(kernel))
    weighted = float(jnp.sum(values * s.power)) / norm
    assert float(kernels.target_alignment(kernel, y, centered=False)) == pytest.approx(weighted)
    assert float(kernels.target_alignment(y[:, None] * y[None], y)) == pytest.approx(1)
    shuffled = kernels.task_model_alignment(kernel, np.random.default_rng(1).permutation(y))
    assert float(shuffled.cumulative_power[5]) < 0.8  # the control


def test_jit_and_vmap_agree_with_the_plain_call():
    k, l = (a @ a.T for a in (gaussian(13, 9, 4), gaussian(14, 9, 4)))
    plain = kernels.cka_kernels(k, l)
    both = jax.jit(jax.vmap(kernels.cka_kernels))(jnp.stack([k, l]), jnp.stack([l, k]))
    np.testing.assert_allclose(both.value, jnp.stack([plain.value] * 2), rtol=2e-5)
    np.testing.assert_allclose(both.error, jnp.stack([plain.error] * 2), rtol=2e-4)


EYE = np.eye(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.alignment(EYE, np.eye(5)), "must be equal"),
        (lambda: kernels.center(np.ones((3, 4))), r"must be \(N, N\)"),
        (lambda: kernels.center(np.ones((3, 3, 2, 2))), r"transpose\(0, 2, 1, 3\)"),
        (lambda: kernels.cka(np.ones((6, 2)), np.ones((5, 2))), "6 and 5 examples"),
        (lambda: kernels.cka(np.ones((4, 2)), np.ones((4, 2))), "with 5 examples or more"),
        (lambda: kernels.hsic(EYE, np.eye(7)), "must be equal"),
        (lambda: kernels.task_model_alignment(EYE, np.ones(5)), r"must be \(6,\)"),
        (lambda: kernels.target_alignment(EYE, np.ones((6, 2, 2))), r"targets has shape"),
        (lambda: kernels.cka_minibatch(np.ones(1), np.ones(1), np.ones(1)), "B >= 2"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_layer_against_every_layer_is_a_matrix_of_single_values(x64):
    rng = np.random.default_rng(40)
    one = {"a": rng.standard_normal((30, 4)), "b": rng.standard_normal((30, 2, 3))}
    other = {"c": one["a"] + 0.5 * rng.standard_normal((30, 4)), "a": one["a"], "b": one["b"]}
    matrix = kernels.cka_by_layer(one, other)
    assert matrix.value.shape == matrix.error.shape == (2, 3)
    assert float(matrix.value[0, 1]) == pytest.approx(1)
    single = kernels.cka(one["b"], other["c"])
    np.testing.assert_allclose([matrix.value[1, 0], matrix.error[1, 0]], single, rtol=1e-10)
