import numpy as np
import pytest
from scipy.optimize import minimize

from metrics import frames

TIGHT = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 30}


def unpack(vector, shapes):
    sizes = np.cumsum([a * b for a, b in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, sizes), shapes)]


def train(classes, n, decays, feature_decay, width, seed, *, loss="mse", bias=False, scale=0.6):
    """L-BFGS on W_M .. W_1, H and b from random weights; returns loss, W, class means of H, b, NC1."""
    y = np.repeat(np.arange(classes), n)
    total, depth = y.size, len(decays)
    shapes = [(classes, width)] + [(width, width)] * (depth - 1) + [(width, total), (classes, 1)]
    onehot = np.eye(classes)[:, y]
    decay = [*decays[::-1], feature_decay]

    def value(vector):
        *factors, b = unpack(vector, shapes)
        prefix = [np.eye(classes)]
        for factor in factors:
            prefix.append(prefix[-1] @ factor)
        outputs = prefix[-1] + (b if bias else 0)
        if loss == "mse":
            fit, slope = np.sum((outputs - onehot) ** 2) / (2 * total), (outputs - onehot) / total
        else:
            e = np.exp(outputs - outputs.max(0))
            p = e / e.sum(0)
            fit, slope = -np.mean(np.log(p[y, np.arange(total)])), (p - onehot) / total
        gradient, suffix = [], np.eye(total)
        for i in range(depth, -1, -1):
            gradient.append(prefix[i].T @ slope @ suffix.T + decay[i] * factors[i])
            suffix = factors[i] @ suffix
        gradient = [*gradient[::-1], slope.sum(1, keepdims=True) * bias]
        penalty = sum(d / 2 * np.sum(f**2) for d, f in zip(decay, factors))
        return fit + penalty, np.concatenate([g.ravel() for g in gradient])

    size = sum(a * b for a, b in shapes)
    start = scale * np.random.default_rng(seed).standard_normal(size)
    start[-classes:] = 0
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=TIGHT)
    *factors, b = unpack(found.x, shapes)
    h = factors[-1]
    w = np.linalg.multi_dot(factors[:-1]) if depth > 1 else factors[0]
    means = np.stack([h[:, y == k].mean(1) for k in range(classes)], 1)
    return found.fun, w, means, b[:, 0], np.sum((h - means[:, y]) ** 2) / np.sum(h**2), factors


def best(runs):
    return min(runs, key=lambda run: run[0])


@pytest.mark.parametrize(
    ("n", "decays", "feature_decay", "options"),
    [
        ((6, 6, 6), (0.02,), 0.01, {}),
        ((10, 6, 4, 2, 1), (0.02,), 0.01, {}),  # general orthogonal frame, one layer
        ((10, 6, 4, 2), (0.004, 0.012), 0.006, {}),  # unequal decays
        ((10, 6, 4, 2), (0.002, 0.004, 0.006), 0.004, {}),
        ((10, 6, 6, 3), (0.01, 0.01), 0.005, {"dim": 3}),  # bottleneck keeps the largest
        ((5, 5, 5, 5), (0.01, 0.01), 0.01, {"bias": True}),
        ((9, 5, 3, 1), (0.01, 0.005), 0.01, {"bias": True}),  # imbalanced with bias
    ],
)
def test_mean_squared_error_optimum_equals_direct_optimisation(n, decays, feature_decay, options):
    exact = frames.mse_optimum(n, decays, feature_decay, **options)
    width, bias = options.get("dim", len(n)), options.get("bias", False)
    loss, w, means, b, spread, factors = best(
        train(len(n), n, decays, feature_decay, width, seed, bias=bias) for seed in range(3)
    )
    assert exact.unique
    assert loss == pytest.approx(exact.loss, rel=1e-9)
    np.testing.assert_allclose(w @ w.T, exact.weight_gram, atol=1e-7 * exact.weight_gram.max())
    np.testing.assert_allclose(means.T @ means, exact.mean_gram, atol=1e-7 * exact.mean_gram.max())
    np.testing.assert_allclose(w @ means, exact.outputs, atol=1e-7)
    np.testing.assert_allclose(b, exact.bias, atol=1e-7)
    assert spread < 1e-12  # NC1 = 0
    layers = [d * np.sum(f**2) for d, f in zip((*decays[::-1], feature_decay), factors)]
    np.testing.assert_allclose(layers, exact.kappa * exact.x.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("decays", "feature_decay", "z"),
    [
        ((0.05,), 0.02, (0.630, 0.477, 0.173, 0, 0)),
        ((0.012,) * 2, 0.012, (0.922, 0.874, 0.756, 0.577, 0)),
        ((0.008,) * 3, 0.008, (0.962, 0.935, 0.866, 0.760, 0)),
    ],
)
def test_minority_collapse_follows_the_class_sizes(decays, feature_decay, z):
    n = np.array((40, 20, 8, 4, 2))
    exact = frames.mse_optimum(n, decays, feature_decay)
    np.testing.assert_allclose(exact.z, z, atol=6e-4)
    limit = frames.thresholds(len(decays)).collapse
    threshold = len(decays) * n.sum() * exact.kappa / limit
    np.testing.assert_array_equal(exact.z == 0, n <= threshold)
    assert np.linalg.matrix_rank(exact.weight_gram) == np.sum(np.array(z) > 0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_collapse_is_first_order_from_two_layers_on(depth):
    limit = frames.thresholds(depth)
    below, above = frames.mode(limit.collapse * np.array([1 - 1e-9, 1 + 1e-9]), depth)
    z = below**depth / (1 + below**depth)
    assert above == 0
    assert z == pytest.approx((depth - 1) / depth, abs=1e-7)
    assert limit.jump == pytest.approx((depth - 1) / depth)
    assert limit.collapse == pytest.approx((depth - 1) ** ((depth - 1) / depth) / depth)
    if depth > 1:
        beta = limit.spinodal * np.array([1 - 1e-6, 1 + 1e-6])
        assert (frames.mode(beta, depth, branch="upper") > 0).tolist() == [True, False]
        assert limit.spinodal > limit.collapse
    assert frames.thresholds(2).spinodal == pytest.approx(0.6495, abs=5e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_mode_is_the_minimiser_on_a_grid(depth):
    x = np.linspace(0, 20, 400_001)
    beta = frames.thresholds(depth).collapse * np.array([0.05, 0.6, 0.97, 1.03, 1.4])
    for b, found in zip(beta, frames.mode(beta, depth)):
        assert found == pytest.approx(x[np.argmin(1 / (x**depth + 1) + b * x)], abs=1e-4)
    # the control: the largest stationary point without comparing with 0 is not the optimum
    upper = frames.mode(beta[3], depth, branch="upper")
    if depth > 1:
        assert 1 / (upper**depth + 1) + beta[3] * upper > 1


def test_the_upper_branch_is_where_a_fitted_network_stays():
    n, decays = (4, 4), (0.13, 0.13)
    # beta = 1.15 beta*: M N kappa / n_k with kappa = sqrt(N lambda_H) lambda
    kappa = 1.15 * frames.thresholds(2).collapse * 4 / (2 * 8)
    feature_decay = (kappa / 0.13) ** 2 / 8
    gone = frames.mse_optimum(n, decays, feature_decay)
    stays = frames.mse_optimum(n, decays, feature_decay, branch="upper")
    assert not gone.z.any()
    np.testing.assert_allclose(gone.beta, 1.15 * 0.5)
    assert 0.25 < stays.z.min() < 0.5  # z at the spinodal and at the threshold
    assert stays.loss > gone.loss


def test_ties_at_a_bottleneck_are_not_unique():
    assert not frames.mse_optimum((5, 5, 5), (0.01,), 0.01, dim=2).unique


@pytest.mark.parametrize("classes", [3, 4, 6])
def test_simplex_is_the_cross_entropy_optimum_of_one_layer(classes):
    decays, feature_decay, n = (2e-3,), 1e-3, 2
    exact = frames.cross_entropy_optimum(frames.simplex(classes), n, decays, feature_decay)
    loss, w, means, *_ = best(
        train(classes, [n] * classes, decays, feature_decay, classes, s, loss="ce")
        for s in range(3)
    )
    assert loss == pytest.approx(exact.loss, rel=1e-9)
    np.testing.assert_allclose(w @ w.T, exact.weight_gram, atol=1e-5 * exact.weight_gram.max())
    np.testing.assert_allclose(means.T @ means, exact.mean_gram, atol=1e-5 * exact.mean_gram.max())
    assert exact.rank == classes - 1


def test_one_layer_cross_entropy_scale_in_closed_form():
    # log(1 + (K-1) e^-g) + r g is least at g = log((K-1)(1-r)/r), r = (K-1) sqrt(n lam lamH)
    k, n, a, b = 5, 3, 4e-3, 2e-3
    r = (k - 1) * np.sqrt(n * a * b)
    exact = frames.cross_entropy_optimum(frames.simplex(k), n, (a,), b)
    assert exact.scale == pytest.approx(np.log((k - 1) * (1 - r) / r), abs=1e-6)
    collapsed = frames.cross_entropy_optimum(frames.simplex(k), n, (1.0,), 1.0)
    assert collapsed.loss == pytest.approx(np.log(k))
    assert collapsed.rank == 0


@pytest.mark.parametrize(
    ("classes", "depth", "pattern", "lower", "simplex"),
    [
        (4, 3, frames.orthoplex(4), 0.01660, 0.01798),
        (6, 2, frames.orthoplex(6), 0.02957, 0.03149),
        (10, 2, frames.orthoplex(10), 0.05002, 0.05668),
        (10, 3, frames.pair_subsets(5), 0.04115, 0.05392),
        (10, 4, frames.pair_subsets(5), 0.03765, 0.05467),
    ],
)
def test_deep_cross_entropy_prefers_low_rank(classes, depth, pattern, lower, simplex):
    decays = (1e-3,) * depth
    etf = frames.cross_entropy_optimum(frames.simplex(classes), 1, decays, 1e-3)
    low = frames.cross_entropy_optimum(pattern, 1, decays, 1e-3)
    assert etf.loss == pytest.approx(simplex, abs=6e-6)
    assert low.loss == pytest.approx(lower, abs=6e-6)
    assert low.loss < etf.loss
    assert low.rank < etf.rank


@pytest.mark.parametrize(
    ("depth", "pattern"), [(2, frames.orthoplex(10)), (3, frames.pair_subsets(5))]
)
def test_training_finds_the_low_rank_frame_not_the_simplex(depth, pattern):
    decays = (1e-3,) * depth
    runs = [train(10, [1] * 10, decays, 1e-3, 10, s, loss="ce") for s in range(6)]
    loss, w, means, *_ = best(runs)
    low = frames.cross_entropy_optimum(pattern, 1, decays, 1e-3)
    assert loss == pytest.approx(low.loss, rel=1e-8)
    assert np.linalg.matrix_rank(w @ means, tol=1e-3) == low.rank
    assert frames.cross_entropy_loss(w @ means, 1, decays, 1e-3) == pytest.approx(loss, rel=1e-8)


def test_three_classes_keep_the_simplex_at_every_depth():
    for depth in (1, 2, 3, 4):
        losses = [
            frames.cross_entropy_optimum(p(3), 1, (1e-3,) * depth, 1e-3).loss
            for p in (frames.simplex, frames.polygon)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)  # the triangle is the simplex


@pytest.mark.parametrize("classes", [2, 3, 4, 6, 7, 10, 15])
def test_known_frames_are_logits_that_classify_correctly(classes):
    known = frames.known_frames(classes)
    for pattern in known.values():
        assert pattern.shape == (classes, classes)
        assert (pattern.argmax(0) == np.arange(classes)).all()
        np.testing.assert_allclose(pattern.sum(0), 0, atol=1e-12)
    assert ("pairs" in known) == (classes in (10, 15))
    assert ("orthoplex" in known) == (classes % 2 == 0)


def test_gram_matrices_multiply_to_the_logits():
    found = frames.cross_entropy_optimum(frames.orthoplex(6), 3, (1e-3, 4e-3), 2e-3)
    product = found.weight_gram @ found.mean_gram
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvals(product).real)[::-1], found.singular_values**2, atol=1e-9
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frames.mse_optimum((5,), (0.1,), 0.1), "two positive numbers"),
        (lambda: frames.mse_optimum((5, 0), (0.1,), 0.1), "two positive numbers"),
        (lambda: frames.mse_optimum((5, 5), (), 0.1), "one positive number per layer"),
        (lambda: frames.mse_optimum((5, 5), (0.1, 0.0), 0.1), "one positive number per layer"),
        (lambda: frames.mse_optimum((5, 5), (0.1,), 0.0), "feature_decay is 0.0"),
        (lambda: frames.mse_optimum((5, 5), (0.1,), 0.1, dim=0), "dim is 0"),
        (lambda: frames.mode(0.1, 2, branch="lower"), "branch is 'lower'"),
        (lambda: frames.mode(0.0, 2), "beta is 0.0"),
        (lambda: frames.thresholds(0), "depth is 0"),
        (lambda: frames.orthoplex(5), "num_classes is 5"),
        (lambda: frames.pair_subsets(2), "num_points is 2"),
        (lambda: frames.cross_entropy_loss(np.ones((2, 3)), 1, (0.1,), 0.1), r"\(2, 3\)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mode_at_its_threshold_is_not_unique_unless_it_vanishes_there():
    """beta = M N kappa / n_k = 2 * 8 * (1/8) / 4 is the threshold 1/2 of two layers, to the bit."""
    at = frames.mse_optimum((4, 4), (1 / 8, 1 / 8), 1 / 8)
    assert at.beta[0] == frames.thresholds(2).collapse
    assert not at.unique
    assert frames.mse_optimum((4, 4), (1 / 8, 1 / 8), 1.001 / 8).unique
    assert frames.mse_optimum((4, 4), (1 / 8, 1 / 8), 0.999 / 8).unique
    single = frames.mse_optimum((4, 4), (1 / 2,), 1 / 8)  # of one layer, whose mode vanishes there
    assert single.beta[0] == frames.thresholds(1).collapse == 1
    assert single.x[0] == 0
    assert single.unique
