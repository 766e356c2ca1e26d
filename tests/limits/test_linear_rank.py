"""Laziness in closed form: against trained networks and their tangent kernels, sampled tasks, and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ntk
from limits import linear_rank
from metrics import kernels
from models import DeepLinear
from models.initializers import low_rank

D, SIZE, B = 6, 3.0, 2.0


def trained(rank, seed):
    """(parameters at the start, at the end, overlap, kernels of both) of a linear network on white inputs."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = np.sqrt(12) * jnp.linalg.qr(jax.random.normal(keys[0], (12, D)))[0]
    beta = jax.random.normal(keys[1], (D,))
    beta *= B / jnp.linalg.norm(beta)
    model = DeepLinear(width=8, depth=1, outputs=1)
    kernel = low_rank(rank, nn.initializers.normal(), flat=True)(keys[2], (D, 8), jnp.float64)
    kernel *= SIZE / jnp.linalg.norm(kernel)
    first = {"hidden_0": {"kernel": kernel}, "readout": {"kernel": jnp.zeros((8, 1))}}

    def apply(params, x):
        return model.apply({"params": params}, x)

    def loss(params):
        return jnp.square(apply(params, x)[:, 0] - x @ beta).mean() / 2

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 3e-3 * g, params, jax.grad(loss)(params)), None

    last = jax.jit(lambda p: jax.lax.scan(step, p, length=6000)[0])(first)
    assert loss(last) < 1e-10
    seen = jnp.linalg.svd(kernel)[0][:, :rank].T @ beta
    tangent = [ntk.empirical_ntk(apply, p, x, trace_axes=(-1,)) for p in (last, first)]
    hidden = [x @ p["hidden_0"]["kernel"] for p in (last, first)]
    return first, last, float(seen @ seen) / B**2, tangent, hidden


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_a_trained_network_moves_as_the_formula_says(rank, x64):
    first, last, overlap, tangent, hidden = trained(rank, rank)
    known = linear_rank.laziness(rank, D, weight_norm=SIZE, target_norm=B, overlap=overlap)
    moved = last["hidden_0"]["kernel"] - first["hidden_0"]["kernel"]
    found = [
        kernels.alignment(*tangent),
        kernels.representation_alignment(*hidden),
        jnp.linalg.norm(moved),
        jnp.linalg.norm(last["readout"]["kernel"]),
    ]
    np.testing.assert_allclose(known, np.array(found), rtol=2e-3)
    w = first["hidden_0"]["kernel"].T
    task = np.asarray(last["hidden_0"]["kernel"] @ last["readout"]["kernel"])[:, 0]
    descended = linear_rank.descend(w, jnp.zeros(8), task)
    np.testing.assert_allclose(descended, np.array(found), rtol=2e-3)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_overlap_given_is_the_mean_over_random_tasks(rank):
    beta = np.random.default_rng(0).normal(size=(40_000, 8))
    c = (beta[:, :rank] ** 2).sum(1) / (beta**2).sum(1)
    sizes = {"weight_norm": 2.0, "target_norm": 3.0}
    mean = linear_rank.laziness(rank, 8, **sizes)
    each = linear_rank.laziness(rank, 8, overlap=c, **sizes)
    squared = (each.weight_change**2).mean() ** 0.5
    found = each.kernel_alignment.mean(), each.representation_alignment.mean(), squared
    np.testing.assert_allclose(mean[:3], found, rtol=0.01)
    assert np.ptp(each.readout_norm) == 0


def test_it_depends_on_one_ratio_and_the_path_of_a_rank_one_network():
    one = linear_rank.laziness([1, 3, 5], 6, weight_norm=2.0, target_norm=3.0, overlap=0.4)
    other = linear_rank.laziness([1, 3, 5], 6, weight_norm=4.0, target_norm=12.0, overlap=0.4)
    np.testing.assert_allclose(one[:2], other[:2])
    np.testing.assert_allclose(np.multiply(one[2:], 2), other[2:])
    # Two weights, w a = b with w^2 - a^2 = s^2 kept: s = 1.5, b = 2 meet at w = 2.5^.5 ... by the quadratic
    w2 = np.roots([1, -(1.5**2), -4]).max()
    found = linear_rank.laziness(1, 1, weight_norm=1.5, target_norm=2.0)
    assert found.weight_change == pytest.approx(w2**0.5 - 1.5)
    assert found.readout_norm == pytest.approx(2 / w2**0.5)


def test_limits_of_large_and_small_weights():
    lazy = linear_rank.laziness([2, 5], 5, weight_norm=1e3, target_norm=1.0, overlap=1.0)
    np.testing.assert_allclose(lazy[:2], 1, atol=1e-5)
    assert (lazy.weight_change < 1e-5).all()
    # From nothing: M is b (beta beta^T + I), however the initial directions lie
    rich = linear_rank.laziness(2, 5, weight_norm=1e-6, target_norm=1.0, overlap=0.3)
    assert rich.kernel_alignment == pytest.approx((0.3 + 2) / np.sqrt(2) / np.sqrt(4 + 4))
    assert rich.weight_change == pytest.approx(1, rel=1e-4)


def test_small_changes_of_large_weights_are_resolved_at_any_scale():
    # At full rank sqrt(s^2 + A) - s = A / 2s, A = b^2 / s^2 nearly, s = F / sqrt(d)
    f = np.array([300.0, 1000.0, 1e60])
    found = linear_rank.laziness(20, 20, weight_norm=f, target_norm=1.0)
    np.testing.assert_allclose(found.weight_change, 20**1.5 / (2 * f**3), rtol=1e-6)
    np.testing.assert_allclose(found.readout_norm, 20**0.5 / f, rtol=1e-6)
    for overlap in (None, 0.3):
        far = linear_rank.laziness(1, 5, weight_norm=1e200, target_norm=1.0, overlap=overlap)
        np.testing.assert_allclose(far[:2], overlap or 0.2)  # one direction, which has to turn
        np.testing.assert_allclose(far.readout_norm, 1e-200)
        one = linear_rank.laziness(2, 5, weight_norm=20, target_norm=3, overlap=overlap)
        sizes = {"weight_norm": 20e150, "target_norm": 3e300}
        other = linear_rank.laziness(2, 5, **sizes, overlap=overlap)
        np.testing.assert_allclose(other[:2], one[:2])
        np.testing.assert_allclose(np.divide(other[2:], 1e150), one[2:])


def test_higher_rank_is_lazier_on_average_and_not_for_aligned_tasks():
    sizes = {"weight_norm": np.geomspace(0.05, 200, 20) ** 0.5, "target_norm": 1.0}
    r = np.arange(1, 21)[:, None]
    assert (np.diff(linear_rank.laziness(r, 20, **sizes).kernel_alignment, axis=0) > 0).all()
    aligned = linear_rank.laziness(r, 20, overlap=1.0, **sizes).kernel_alignment
    assert not (np.diff(aligned, axis=0) > 0).all()


def test_descent_from_any_start_takes_batches_and_small_steps_are_the_flow():
    random = np.random.default_rng(0)
    w, a, beta = (random.normal(size=shape) for shape in ((2, 3, 4, 5), (2, 3, 4), (2, 3, 5)))
    whole = linear_rank.descend(w, a, beta)
    one = linear_rank.descend(w[1, 2], a[1, 2], beta[1, 2])
    np.testing.assert_allclose([part[1, 2] for part in whole], one)
    # w w' - a a' is kept: the change of the readout's norm is that of the weights'
    fine = linear_rank.descend(w[0], a[0], beta[0], step_size=2e-3, max_steps=10**7)
    np.testing.assert_allclose([part[0] for part in whole], fine, rtol=0.01)
    stopped = linear_rank.descend(w, a, beta, max_steps=3)
    assert all(np.isnan(part).all() for part in stopped)


def test_a_small_readout_changes_low_rank_and_not_high_rank():
    """The zero readout's path is unstable at low rank: what the top of the module warns of."""
    random = np.random.default_rng(1)
    basis = [np.linalg.qr(random.normal(size=(12, 12)))[0] for _ in range(2)]
    beta, a = random.normal(size=12), 1e-3 * random.normal(size=12)
    beta *= 4 / np.linalg.norm(beta)
    change = {}
    for rank in (1, 12):
        w = 20**0.5 / rank**0.5 * basis[0][:, :rank] @ basis[1][:rank]
        starts = linear_rank.descend([w, w], [0 * a, a], [beta, beta], max_steps=10**6)
        change[rank] = np.diff(starts.kernel_alignment)[0]
    assert change[1] > 0.2
    assert abs(change[12]) < 1e-3


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"weights \(3, 2\), readout \(2,\) and target \(2,\)"):
        linear_rank.descend(np.ones((3, 2)), [1, 1], [1, 1])
    with pytest.raises(ValueError, match="target is 0 somewhere"):
        linear_rank.descend(np.ones((3, 2)), np.ones(3), [0, 0])
    call = linear_rank.laziness
    with pytest.raises(ValueError, match=r"rank is 7.* between 1 and 6"):
        call(7, 6, weight_norm=1.0, target_norm=1.0)
    with pytest.raises(ValueError, match=r"overlap is 1.5.* between 0 and 1"):
        call(2, 6, weight_norm=1.0, target_norm=1.0, overlap=1.5)
    with pytest.raises(ValueError, match=r"overlap is 0.5 at rank 6.0 of 6.* their overlap is 1"):
        call(6, 6, weight_norm=1.0, target_norm=1.0, overlap=0.5)
    with pytest.raises(ValueError, match=r"rank \(2,\), weight_norm \(3,\).* do not broadcast"):
        call([1, 2], 6, weight_norm=np.ones(3), target_norm=1.0)
    with pytest.raises(TypeError, match=r"weight_norm is traced; .* outside of jit"):
        jax.jit(lambda f: call(2, 6, weight_norm=f, target_norm=1.0))(1.0)
    with pytest.raises(ValueError, match=r"weight_norm is 0.0; it must be positive"):
        call(2, 6, weight_norm=0.0, target_norm=1.0)
    with pytest.raises(TypeError, match="rank is 'low'"):
        call("low", 6, weight_norm=1.0, target_norm=1.0)
