"""Neural collapse: the objective at the closed-form optimum, claims and controls on a small study."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import tasks
from experiments.configs.neural_collapse import get_config
from experiments.studies import neural_collapse as study
from experiments.studies import neural_collapse_claims as judged
from metrics import frames


def small():
    """Small enough for a test, long enough for every claim to hold."""
    config = get_config("smoke")
    config.free.balanced, config.free.imbalanced, config.free.width = (4,) * 3, (6, 4, 2), 6
    config.free.init_std, config.free.decay, config.free.steps = 0.4, 1e-2, 1500
    config.map.steps = config.map.chunk = 2500
    config.networks = ("mlp_1",)
    config.mlp_1.sizes, config.mlp_1.width, config.mlp_1.features = (1, 2) * 5, 128, 32
    config.mlp_1.weight_decay = config.mlp_1.feature_decay = 1e-2
    config.mlp_1.steps, config.mlp_1.chunk = 2000, 500
    config.fixed.width, config.fixed.steps = 64, 200
    return config


@pytest.fixture(scope="module")
def data():
    return study.run(small())


def test_claims_hold_and_controls_fail(data):
    claims = study.claims(data)
    assert [claim.name for claim in claims if not claim.passed] == []
    controls = [claim.name for claim in claims if claim.control]
    for word in ("no_decay", "as simplex", "equal lengths", "without decay", "deep as shallow"):
        assert any(word in name for name in controls)
    assert len({claim.name for claim in claims}) == len(claims)


@pytest.mark.parametrize(
    ("variable", "change", "broken"),
    [
        ("free_weight_gram", lambda v: v + 1e-3 * v.max(), {"C1 frame"}),
        ("free_nc1", lambda v: v + 1e-7, {"C1 NC1"}),
        ("free_angle", lambda v: v + 1e-3, {"C1 duality"}),
        ("free_loss", lambda v: 1.001 * v, {"C1 loss"}),
        ("tail_z", lambda v: v + 0.002, {"C2 lengths"}),
        ("tail_mode_loss", lambda v: v + 0.05, {"C2 threshold", "C2 first order"}),
        (
            "map_loss",
            lambda v: 1.5 * v,
            {"C3 simplex loss", "C3 lower rank", "C3 frames", "C3 simplex stays"},
        ),
        ("mlp_1_product", lambda v: v + 0.01 * v.max(), {"C4 frame"}),
        ("mlp_1_loss", lambda v: 1.001 * v, {"C4 loss"}),
        (
            "fixed_test",
            lambda v: v - 0.05 * (v.fixed_classifier == "equiangular"),
            {"C5 equiangular"},
        ),
    ],
)
def test_a_wrong_measurement_fails_its_claims(data, variable, change, broken):
    wrong = data.assign({variable: change(data[variable])})
    failed = {claim.name for claim in study.claims(wrong) if not claim.passed}
    for name in broken:
        assert any(claim.startswith(name) for claim in failed), name
    assert all(any(claim.startswith(name) for name in broken) for claim in failed)


def test_no_decay_fits_but_does_not_collapse(data):
    free = judged.part_of(data, "free").isel(step=-1).sel(problem="no_decay")
    outputs = free["product"].values.reshape(-1, 3, 3)
    np.testing.assert_allclose(outputs, np.broadcast_to(np.eye(3), outputs.shape), atol=1e-3)
    assert (free.nc1 > 1e-3).all()


def test_figures_draw_every_experiment(data):
    made = study.figures(data)
    names = {"collapse", "lengths", "minority", "map", "network_lengths", "training_mlp_1"}
    assert set(made) == names
    for figure in made.values():
        assert len(figure.get_label()) > 80
        assert figure.axes
        assert all(ax.lines or ax.images or ax.collections for ax in figure.axes)


def factors(best, decay, feature_decay, depth, y, width):
    """Parameters of the closed-form optimum of squared error without bias: diagonal layers."""
    classes = len(best.x)
    level = np.zeros(width)
    level[:classes] = np.sqrt(best.kappa * best.x / decay)
    length = np.zeros((classes, width))
    length[:, :classes] = np.sqrt(best.mean_gram)
    layers = {f"hidden_{l}": {"kernel": jnp.diag(level)} for l in range(depth - 1)}
    layers["readout"] = {"kernel": jnp.diag(level)[:, :classes]}
    return {"features": jnp.asarray(length[y]), "head": layers, "bias": jnp.zeros(classes)}


@pytest.mark.parametrize("depth", [1, 3])
def test_the_closed_form_is_a_stationary_point_of_what_is_trained(depth, x64):
    sizes, decay = (5, 3, 2), (0.01, 0.02)
    y = study._labels(sizes)
    network = study.free_features(len(y), 3, depth, 4)
    data = study.problem(y, sizes, depth, decay)
    data = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, data)
    data["decay"] = np.array(decay)
    data["weights"] = np.full(len(y), 1 / len(y))
    best = frames.mse_optimum(sizes, decay[:1] * depth, decay[1])
    assert best.z.min() > 0
    params = factors(best, *decay, depth, y, 4)
    loss = study.objective(network, "squared_error", data)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, data["train"])
    assert float(value) == pytest.approx(best.loss, rel=1e-12)
    gradient.pop("bias")  # held at zero
    assert max(float(abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-10
    observed = jax.jit(lambda p: study.observables(network, "squared_error", p, data, ()))
    found = observed(params)
    for name in study.MATRICES:
        expected = study.prediction("squared_error", sizes, depth, decay)[name]
        np.testing.assert_allclose(found[name], expected, atol=1e-12)
    assert float(found["angle"].max()) < 1e-10


def test_absent_classes_change_nothing():
    """A cell of the map with 3 of 5 classes is the problem of 3 classes."""
    part = get_config("smoke").map
    part.classes = (3, 5)
    wide, narrow = study.free_features(5, 5, 2, 5), study.free_features(3, 3, 2, 5)
    masked = study._map_problem(part, 2, 3, fitted=False)
    plain = study.problem(study._labels((1,) * 3), (1,) * 3, 2, (part.decay,) * 2, init_std=1.0)
    params = jax.jit(narrow.init)(jax.random.key(0), plain)
    padded = {
        "features": jnp.pad(params["features"], ((0, 2), (0, 0))),
        "head": {
            **params["head"],
            "readout": {"kernel": jnp.pad(params["head"]["readout"]["kernel"], ((0, 0), (0, 2)))},
        },
        "bias": jnp.zeros(5),
    }
    values = [
        jax.jit(study.objective(network, "cross_entropy", data))(p, data["train"])
        for network, data, p in ((wide, masked, padded), (narrow, plain, params))
    ]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-6)


def test_a_fitted_start_fits():
    sizes = (5, 3, 2)
    y = study._labels(sizes)
    network = study.free_features(len(y), 3, 3, 6)
    data = study.problem(y, sizes, 3, (0.01, 0.02), fitted=True)
    params = jax.jit(network.init)(jax.random.key(0), data)
    outputs = network.head.apply({"params": params["head"]}, params["features"])
    np.testing.assert_allclose(outputs, np.eye(3)[y], atol=1e-5)
    # balanced: every factor of a mode costs the same
    cost = (
        0.02 * (params["features"] ** 2).sum(),
        0.01 * (params["head"]["hidden_0"]["kernel"] ** 2).sum(),
    )
    assert float(cost[0]) == pytest.approx(float(cost[1]), rel=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_decay_of_the_tail_puts_the_threshold_where_it_should_be(depth):
    sizes, threshold = (40, 20, 6), 11.5
    decay = (study.tail_decay(depth, sizes, threshold),) * 2
    near = threshold * np.array([1 - 1e-6, 1 + 1e-6])
    below, above = judged.modes(near, sum(sizes), depth, decay)
    assert below == 0
    assert above > 0


def test_crossing_reads_the_threshold_off_closed_form_modes():
    sizes, depth, threshold = np.array((40, 14, 13, 12, 11, 10, 6)), 3, 11.5
    decay = study.tail_decay(depth, tuple(sizes), threshold)
    x = judged.modes(sizes, sizes.sum(), depth, (decay,) * 2, branch="upper")
    kappa = (sizes.sum() * decay ** (depth + 1)) ** (1 / depth)
    energy = 1 / (1 + x**depth) + depth * sizes.sum() * kappa / sizes * x
    tail = xr.Dataset(
        {
            "z": (("depth", "seed", "class"), judged.fitted(x, depth)[None, None]),
            "mode_loss": (("depth", "seed", "class"), energy[None, None]),
        },
        {"depth": [depth], "seed": [0], "size": ("class", sizes)},
    )
    size, z = judged.crossing(tail, depth)
    assert size == pytest.approx(threshold, rel=3e-3)
    assert z == pytest.approx(2 / 3, abs=3e-3)
    tail["mode_loss"] = tail.mode_loss + 2
    assert np.isnan(judged.crossing(tail, depth)[0])


def test_distance_is_the_error_of_one_gram_matrix():
    from metrics.geometry import gram_error

    grams = np.random.default_rng(0).normal(size=(2, 4, 4))
    found = judged.distance(grams, frames.simplex(4))
    expected = [float(gram_error(jnp.asarray(g), jnp.asarray(frames.simplex(4)))) for g in grams]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_convolutional_network_is_measured_layer_by_layer():
    config = get_config("smoke")
    part = config.cnn_1
    part.steps = part.chunk = 2
    task = tasks.load(config.task)
    net = study._network("cnn_1", part, task, study.Session())
    assert net.layer.values.tolist() == ["hidden_0", "features"]
    assert np.isfinite(net.nc1).all()
    assert not bool(net.squared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: setattr(c.free, "steps", 401),
            r"free.steps is 401; it must be a multiple of chunk",
        ),
        (lambda c: setattr(c.free, "balanced", (1, 1)), "config.free.imbalanced is"),
        (lambda c: setattr(c.mlp_1, "sizes", (5,) * 9), "9 classes, but digits has 10"),
        (lambda c: setattr(c.mlp_1, "sizes", (500,) * 10), "asks for 500 examples of class 0"),
        (
            lambda c: setattr(c.mlp_1, "loss", "hinge"),
            "mlp_1.loss is 'hinge'; it must be one of cross_entropy",
        ),
        (
            lambda c: setattr(c.mlp_1, "loss", "cross_entropy"),
            "only for these is the optimum of cross-entropy known",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    config = get_config("smoke")
    change(config)
    with pytest.raises(ValueError, match=message):
        study.run(config)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="unknown preset 'big'; there are: smoke, cpu, paper"):
        get_config("big")


@pytest.mark.parametrize("preset", ["smoke", "cpu", "paper"])
def test_presets_count_their_steps(preset):
    config = get_config(preset)
    assert study.total_steps(config) > 0
    for part in (config.free, config.tail, config.map, *(config[n] for n in config.networks)):
        assert part.steps % part.chunk == 0
