import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from metrics import collapse, geometry, scatter


def sample(seed, sizes, dim, spread, shift=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    means = rng.standard_normal((len(sizes), dim))
    return means[labels] + spread * rng.standard_normal((labels.size, dim)) + shift, labels


def dense(h, y, num_classes, center):
    """The definitions, with d x d matrices in float64."""
    mu = np.stack([h[y == k].mean(0) for k in range(num_classes)])
    g = mu.mean(0) if center == "classes" else h.mean(0)
    within = (h - mu[y]).T @ (h - mu[y]) / len(h)
    between = (mu - g).T @ (mu - g) / num_classes
    var = np.array([((h[y == k] - mu[k]) ** 2).sum(1).mean() for k in range(num_classes)])
    i, j = np.triu_indices(num_classes, 1)
    cdnv = np.mean((var[i] + var[j]) / (2 * ((mu[i] - mu[j]) ** 2).sum(1)))
    nearest = ((h[:, None] - mu[None]) ** 2).sum(2).argmin(1)
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / num_classes
    return nc1, np.trace(within) / np.trace(between), cdnv, nearest, mu - g


@pytest.mark.parametrize(("center", "dim"), [("classes", 40), ("samples", 3)])
def test_two_roads_d_by_d_definitions(x64, center, dim):
    h, y = sample(0, (70, 50, 200, 9, 300), dim, 0.5, shift=2.0)
    rng = np.random.default_rng(1)
    w, b = rng.standard_normal((5, dim)), rng.standard_normal(5)
    c = collapse.neural_collapse(h, y, 5, weights=w, bias=b, center=center)
    nc1, quotient, cdnv, nearest, m = dense(h, y, 5, center)
    assert float(c.nc1.value) == pytest.approx(nc1, rel=1e-9)
    assert float(c.quotient.value) == pytest.approx(quotient, rel=1e-11)
    assert float(c.cdnv.value) == pytest.approx(cdnv, rel=1e-11)
    assert float(c.nc4.value) == pytest.approx(
        np.mean(nearest == (h @ w.T + b).argmax(1)), abs=1e-12
    )
    assert float(c.ncc_accuracy.value) == pytest.approx(np.mean(nearest == y), abs=1e-12)
    assert int(c.rank) == min(4, dim)
    g, t = w @ m.T, np.eye(5) - 0.2
    expected = np.linalg.norm(g / np.linalg.norm(g) - t / np.linalg.norm(t))
    assert float(c.nc3.error) == pytest.approx(expected, rel=1e-11)


def test_conventions_of_the_global_mean_differ_only_when_imbalanced(x64):
    for sizes, same in (((30, 30, 30), True), ((60, 20, 10), False)):
        h, y = sample(2, sizes, 6, 0.3)
        one, other = (
            float(collapse.neural_collapse(h, y, 3, center=c).quotient.value)
            for c in ("classes", "samples")
        )
        assert (abs(one / other - 1) < 1e-10) == same


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3, 1e-4])
def test_float32_is_exact_to_three_digits(spread):
    h, y = sample(3, (200,) * 10, 64, spread, shift=1.0)
    h = h.astype(np.float32)
    c = collapse.neural_collapse(h, y, 10)
    nc1, quotient, cdnv, _, _ = dense(h.astype(np.float64), y, 10, "classes")
    for ours, truth in ((c.nc1, nc1), (c.quotient, quotient), (c.cdnv, cdnv)):
        assert float(ours.value) == pytest.approx(truth, rel=1e-3)


def test_traps_of_float32_one_pass_and_pseudo_inverse():
    h, y = sample(4, (200,) * 10, 64, 1e-6, shift=1.0)
    h = h.astype(np.float32)
    truth = dense(h.astype(np.float64), y, 10, "classes")[0]
    ours = float(collapse.neural_collapse(h, y, 10).nc1.value)
    assert truth < 1e-12
    assert 0 <= ours < 1e-11
    mu = np.stack([h[y == k].mean(0) for k in range(10)])
    centered = mu - mu.mean(0)
    between = centered.T @ centered / 10
    rest = h - mu[y]
    pseudo = np.trace(rest.T @ rest / len(h) @ np.linalg.pinv(between, rcond=1e-15)) / 10
    assert abs(pseudo) > 1e-8  # the control: the usual algorithm is wrong by many orders
    one_pass = h.T @ h / len(h) - (mu.T @ mu) / 10
    inverse = np.linalg.pinv(between, rcond=1e-5)
    assert abs(np.trace(one_pass @ inverse) / 10) > 1e3 * truth  # and so is one pass


def test_collapsed_simplex_is_zero_everywhere_and_a_perturbed_one_is_not(x64):
    k, d = 6, 11
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((d, k)))[0]
    frame = (np.eye(k) - 1 / k) @ q.T
    y = np.tile(np.arange(k), 7)
    b = -2 * frame @ np.full(d, 3.0)
    c = collapse.neural_collapse(frame[y] + 3.0, y, k, weights=2 * frame, bias=b)
    zeros = [c.nc1.value, c.cdnv.value, *c.nc2, *c.nc2_weights, *c.nc3, c.offset]
    np.testing.assert_allclose(np.array(zeros), 0, atol=1e-13)
    assert float(c.nc4.value) == float(c.ncc_accuracy.value) == 1
    bent = frame + 0.05 * np.random.default_rng(6).standard_normal(frame.shape)
    c = collapse.neural_collapse(bent[y], y, k, weights=frame)
    assert min(map(float, [*c.nc2, *c.nc3])) > 1e-4


def test_general_orthogonal_frame_of_unequal_lengths(x64):
    q = np.linalg.qr(np.random.default_rng(7).standard_normal((9, 4)))[0].T
    lengths = np.array([1.0, 0.7, 0.2, 0.0])
    y = np.tile(np.arange(4), 5)
    c = collapse.neural_collapse((lengths[:, None] * q)[y], y, 4, frame="orthogonal")
    assert float(c.nc2.general) < 1e-13
    assert float(c.nc2.error) > 0.3
    assert float(geometry.gram_error(jnp.diag(lengths**2), jnp.diag(7 * lengths**2))) < 1e-15
    assert float(geometry.frame_geometry(q, frame="orthogonal").error) < 1e-13


def test_streaming_equals_one_batch_though_a_class_is_missing_from_one(x64):
    h, y = sample(8, (90, 60, 33, 17), 12, 0.4)
    order = np.argsort(y, kind="stable")  # early batches see class 0 only
    h, y = h[order], y[order]
    w = np.random.default_rng(9).standard_normal((4, 12))
    whole = collapse.neural_collapse(h, y, 4, weights=w)
    parts = [(h[i : i + 50], y[i : i + 50]) for i in range(0, 200, 50)]
    means = scatter.class_means(*parts[0], 4)
    assert np.flatnonzero(np.asarray(means.count) == 0).tolist() == [1, 2, 3]
    for part in parts[1:]:
        means = scatter.merge_means(means, scatter.class_means(*part, 4))
    centers = scatter.class_centers(means)
    sums = [scatter.within_class(centers, *part, weights=w) for part in parts]
    within = jax.tree.map(lambda *a: sum(a), *sums)
    streamed = collapse.collapse_report(centers, within, weights=w)
    # rounding of the basis may turn; everything reported is invariant to that
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-13), whole, streamed
    )


def test_padding_is_left_out(x64):
    h, y = sample(10, (40, 30, 20), 6, 0.4)
    assert collapse.neural_collapse(h, y, 3).nc4 is None
    padded = np.concatenate([h, 1e3 * np.ones((11, 6))]), np.concatenate([y, -np.ones(11, int)])
    for one, other in zip(
        jax.tree.leaves(collapse.neural_collapse(h, y, 3)),
        jax.tree.leaves(collapse.neural_collapse(*padded, 3)),
    ):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-13)


def test_invariant_to_order_rotation_scale_and_class_names(x64):
    h, y = sample(11, (40, 30, 20), 6, 0.4)
    rng = np.random.default_rng(12)
    order, names = rng.permutation(len(h)), np.array([2, 0, 1])
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    one = collapse.neural_collapse(h, y, 3)
    other = collapse.neural_collapse(3 * h[order] @ turn + 1, names[y[order]], 3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def test_a_class_without_samples_leaves_no_number_under_jit():
    h, y = jax.random.normal(jax.random.key(0), (12, 4)), jnp.arange(12) % 3
    report = jax.jit(lambda y: collapse.neural_collapse(h, y, 3))
    whole, lacking = report(y), report(jnp.where(y == 0, 1, y))
    for name in ("nc1", "ncc_accuracy"):
        assert jnp.isfinite(getattr(whole, name).value)
        assert jnp.isnan(getattr(lacking, name).value)


def test_jit_vmap_over_seeds_and_scan_agree():
    data = [sample(seed, (300, 200, 150), 16, 0.3) for seed in range(3)]
    h = jnp.asarray(np.stack([d[0] for d in data]), jnp.float32)
    y = jnp.asarray(np.stack([d[1] for d in data]))

    def nc1(h, y):
        return collapse.neural_collapse(h, y, 3, predictions=y).nc1.value

    looped = jnp.stack([nc1(a, b) for a, b in zip(h, y)])
    np.testing.assert_allclose(jax.jit(jax.vmap(nc1))(h, y), looped, rtol=1e-5)
    _, scanned = jax.lax.scan(lambda c, hy: (c, nc1(*hy)), 0, (h, y))
    np.testing.assert_allclose(scanned, looped, rtol=1e-5)


def test_sharded_over_the_batch():
    h, y = sample(13, (300, 212), 16, 0.3)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    h = h.astype(np.float32)
    placed = jax.device_put(h, rows), jax.device_put(y, rows)
    one = collapse.neural_collapse(h, y, 2).cdnv.value
    np.testing.assert_allclose(collapse.neural_collapse(*placed, 2).cdnv.value, one, rtol=1e-5)


@pytest.mark.parametrize("rows", [7, 700])
def test_blocked_and_scattered_roads_equal_the_plain_ones(x64, rows):
    rng = np.random.default_rng(14)
    h, y = jnp.asarray(rng.standard_normal((rows, 5))), jnp.asarray(rng.integers(0, 4, rows))
    y = y.at[:4].set(jnp.arange(4)).at[-1].set(4)
    one, other = (
        jax.jit(f, static_argnums=2)(h, y, 4)
        for f in (scatter._sums_scattered, scatter._sums_one_hot)
    )
    np.testing.assert_allclose(one, other, atol=1e-12)
    centers = scatter.class_centers(scatter.class_means(h, jnp.where(y == 4, -1, y), 4))
    arguments = (centers, jnp.asarray(rng.standard_normal((4, 5))), 0, h, y, jnp.zeros_like(y))
    plain, blocked = (
        jax.jit(f)(*arguments) for f in (scatter._residuals, scatter._residuals_blocked)
    )
    np.testing.assert_allclose(plain[:, :-1], blocked[:, :-1], atol=1e-12)


def test_standard_errors_match_the_spread_over_samples_near_collapse():
    rng = np.random.default_rng(15)
    means = rng.standard_normal((4, 20))
    y = np.repeat(np.arange(4), (100, 60, 30, 10))
    noise = rng.standard_normal((400, 200, 20))
    draw = jax.jit(jax.vmap(lambda h: collapse.neural_collapse(h, y, 4)))
    near, far = (draw(jnp.asarray(means[y] + s * noise, jnp.float32)) for s in (0.02, 1.0))
    for c, valid in ((near, True), (far, False)):
        for estimate in (c.nc1, c.quotient, c.cdnv):
            ratio = float(jnp.mean(estimate.error) / jnp.std(estimate.value))
            assert (abs(ratio - 1) < 0.15) == valid


def test_layers_of_a_dict_and_predictions():
    h, y = sample(16, (30, 30), 8, 0.3)
    h = h.astype(np.float32)
    layers = {"conv": h.reshape(60, 2, 2, 2), "dense": h}
    c = collapse.collapse_by_layer(layers, y, 2, predictions=y)
    assert list(c) == ["conv", "dense"]
    np.testing.assert_allclose(c["conv"].nc1.value, c["dense"].nc1.value, rtol=1e-5)
    assert float(c["dense"].nc4.value) == float(c["dense"].ncc_accuracy.value)


def test_one_vs_rest_distance_of_the_simplex_and_against_a_quadratic_programme(x64):
    k = 5
    simplex = np.sqrt(k / (k - 1)) * (np.eye(k) - 1 / k)
    distance = geometry.one_vs_rest_distance(jnp.asarray(simplex))
    np.testing.assert_allclose(distance.value, k / (k - 1), rtol=1e-12)
    w = np.random.default_rng(17).standard_normal((7, 3))
    found = geometry.one_vs_rest_distance(jnp.asarray(w), num_steps=1000)
    for i in range(7):
        rest = np.delete(w, i, 0)
        best = minimize(
            lambda a, i=i, rest=rest: np.sum((w[i] - a @ rest) ** 2),
            np.full(6, 1 / 6),
            method="SLSQP",
            bounds=[(0, 1)] * 6,
            options={"ftol": 1e-15},
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        )
        value, error = float(found.value[i]), float(found.error[i])
        assert value - error - 1e-6 <= np.sqrt(best.fun) <= value + 1e-6
    uniform = geometry.uniformity(jnp.asarray(simplex))
    assert float(uniform.value) == pytest.approx(-0.5 * np.log(2 * k / (k - 1)))
    assert float(uniform.error) < 1e-7


def test_generalized_collapse_of_a_collapsed_circle(x64):
    angle = 2 * np.pi * np.arange(8) / 8
    w = np.stack([np.cos(angle), np.sin(angle)], 1)
    y = np.tile(np.arange(8), 5)
    g = collapse.generalized_collapse(3 * w[y], y, 8, weights=2 * w)
    assert float(g.gnc1.value) < 1e-13
    assert float(g.gnc3) < 1e-13
    assert float(g.ncc_accuracy.value) == 1
    assert float(g.gnc2.value) == pytest.approx(1 - np.cos(np.pi / 4), abs=1e-6)
    assert float(g.gnc2.error) < 1e-3


H, Y = (a.astype(t) for a, t in zip(sample(18, (20, 20, 20), 4, 0.3), (np.float32, np.int32)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((H, np.minimum(Y, 1), 3), {}, r"no samples of classes \[2\] .* merge_means"),
        ((H, Y, 2), {}, r"labels run from 0 to 2; they must be 0\.\.1"),
        ((H, Y - 2, 3), {}, "labels run from -2"),
        ((H, Y[:-1], 3), {}, r"labels are int32\[59\]; they must be integers"),
        ((H, Y.astype(np.float32), 3), {}, "labels are float32"),
        ((H[:, 0], Y, 3), {}, r"features are float32\[60\]"),
        ((Y[:, None], Y, 3), {}, "must be floating"),
        ((H, Y, 1), {}, "num_classes is 1"),
        ((H, Y, 3), {"weights": np.ones((4, 3))}, r"\(3, 4\); transpose it"),
        ((H, Y, 3), {"weights": np.ones((3, 4)), "bias": np.ones(2)}, r"bias must be \(3,\)"),
        ((H, Y, 3), {"bias": np.ones(3)}, "come with weights"),
        ((H, Y, 3), {"weights": np.ones((3, 4)), "predictions": Y}, "not both"),
        ((H, Y, 3), {"frame": "etf"}, "frame is 'etf'"),
        ((H, Y, 3), {"center": "mean"}, "center is 'mean'"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        collapse.neural_collapse(*arguments, **options)


def test_mistakes_by_layer_name_the_layer():
    with pytest.raises(ValueError, match="layer 'first': labels run"):
        collapse.collapse_by_layer({"first": H}, Y, 2)
    with pytest.raises(ValueError, match="weights belong to one layer"):
        collapse.collapse_by_layer({"first": H}, Y, 3, weights=np.ones((3, 4)))


def test_a_missing_class_inside_jit_is_nan_not_a_number_that_looks_right():
    c = jax.jit(lambda h, y: collapse.neural_collapse(h, y, 3))(H, np.minimum(Y, 1))
    assert np.isnan(c.nc1.value)
    assert np.isnan(c.cdnv.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
@pytest.mark.parametrize("wrong", [7, -5])
def test_a_label_that_is_no_class_is_not_taken_for_padding_inside_jit(wrong, dtype):
    y = Y.astype(dtype)
    bad = y.copy()
    bad[0] = np.array(wrong).astype(dtype)  # without a sign -5 is a large number, which is no class
    one = jax.jit(lambda y: collapse.neural_collapse(H, y, 3, predictions=y))
    assert np.isnan(one(bad).nc1.value)
    assert np.isnan(one(bad).nc4.value)
    guessed = jax.jit(lambda p: collapse.neural_collapse(H, y, 3, predictions=p))(bad)
    assert np.isnan(guessed.nc4.value)
    np.testing.assert_allclose(guessed.nc1.value, one(y).nc1.value, rtol=1e-5)
    means = scatter.class_means(H, y, 3)
    merged = jax.jit(lambda y: scatter.merge_means(means, scatter.class_means(H, y, 3)))(bad)
    assert np.isnan(merged.mean).all()
    if np.issubdtype(dtype, np.signedinteger):
        bad[0] = -1
        np.testing.assert_allclose(
            one(bad).nc1.value, collapse.neural_collapse(H[1:], y[1:], 3).nc1.value, rtol=1e-5
        )
    else:  # -1 without a sign
        bad[0] = np.iinfo(dtype).max
        assert np.isnan(one(bad).nc1.value)


def test_labels_of_few_bits_count_more_classes_than_they_hold():
    y = jnp.asarray(np.arange(300) % 100, jnp.int8)
    h = jnp.asarray(np.random.default_rng(0).standard_normal((300, 2)), jnp.float32)
    assert scatter.class_means(h, y, 300).count.tolist() == 100 * [3] + 200 * [0]


def test_other_data_orthogonal_to_every_class_and_the_error_of_the_measure(x64):
    rng = np.random.default_rng(30)
    means = np.eye(6)[:3] + 0.2
    draws = np.array([1.0, 0.3, 0.5, -0.4, 0.2, 0.1]) + 0.5 * rng.standard_normal((400, 200, 6))
    measured = [collapse.ood_orthogonality(means, draw) for draw in draws]
    mean = draws[0].mean(0)
    cosines = means @ mean / np.linalg.norm(means, axis=1) / np.linalg.norm(mean)
    assert float(measured[0].value) == pytest.approx(np.abs(cosines).mean(), rel=1e-12)
    spread = np.std([float(m.value) for m in measured], ddof=1)
    assert np.mean([float(m.error) for m in measured]) == pytest.approx(spread, rel=0.12)
    beyond = np.zeros((5, 6)) + np.eye(6)[5]
    assert float(collapse.ood_orthogonality(np.eye(6)[:3], beyond).value) == 0


def test_angles_are_of_pairs_and_not_of_vectors_with_themselves(x64):
    """Three unit vectors in the plane at 0, 60 and 90 degrees: cosines 1/2, 0 and cos 30."""
    angles = np.radians([0, 60, 90])
    v = np.stack([np.cos(angles), np.sin(angles)], 1)
    cosines = np.array([0.5, 0.0, np.sqrt(3) / 2])
    orthogonal = geometry.frame_geometry(v, frame="orthogonal")
    assert float(orthogonal.max_angle) == pytest.approx(cosines.mean())
    assert float(orthogonal.equiangularity) == pytest.approx(cosines.std())
    simplex = geometry.frame_geometry(3 * v, frame="simplex")
    assert float(simplex.max_angle) == pytest.approx((cosines + 0.5).mean())
    assert float(simplex.equinorm) == pytest.approx(0, abs=1e-12)


def test_standard_errors_of_collapse_by_hand(x64):
    """One feature, two classes of three: (n - 1) v / ((n - 2) (n - 1) / n) times the squared deviations, by hand."""
    h = np.array([0.0, 0.1, 0.5, 4.0, 4.2, 4.9])[:, None]
    y = np.repeat([0, 1], 3)
    found = collapse.neural_collapse(h, y, 2).quotient
    squares = [(h[y == k, 0] - h[y == k, 0].mean()) ** 2 for k in (0, 1)]
    between = np.var([h[y == k].mean() for k in (0, 1)])
    variance = sum(np.sum((s - s.mean()) ** 2) * 3 / (3 - 2) for s in squares)
    assert float(found.value) == pytest.approx(np.mean(np.concatenate(squares)) / between)
    assert float(found.error) == pytest.approx(np.sqrt(variance) / (6 * between))
    assert np.isnan(float(collapse.neural_collapse(h[:5], y[:5], 2).quotient.error))
