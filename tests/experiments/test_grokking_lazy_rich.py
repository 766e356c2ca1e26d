"""The study of lazy and rich grokking: its two roads, its timing, and controls that must fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import tasks, train
from experiments.claims import verdict
from experiments.configs import grokking_lazy_rich as settings
from experiments.loop import Session
from experiments.studies import grokking_lazy_rich as study
from experiments.studies import grokking_lazy_rich_claims as claims
from limits import mean_field


@pytest.fixture(scope="module")
def config():
    config = settings.get_config("smoke")
    config.seeds = (0, 1)
    return config


def test_crossing_interpolates_a_power_law():
    steps = np.array([0, 1, 10, 100])
    loss = np.array([1.0, 1.0, 0.1, 0.01])
    assert claims.crossing(steps, loss, 0.1**1.5) == pytest.approx(10**1.5)
    assert claims.crossing(steps, loss, 0.5) == pytest.approx(2)
    assert claims.crossing(steps, loss, 1e-3) == np.inf
    assert claims.crossing(steps, np.array([1.0, 0.05, 0.01, 0.01]), 0.1) == 1
    assert np.isnan(claims.crossing(steps, np.array([1.0, np.nan, np.nan, np.nan]), 0.1))
    for diverged in (np.nan, np.inf):
        assert np.isnan(claims.crossing(steps, np.array([1.0, 0.5, 0.01, diverged]), 0.1))


@pytest.mark.parametrize("steps", [30, 31, 100, 60000])
def test_every_experiment_records_as_many_steps(config, steps):
    found = study.record_steps(config, steps)
    assert len(found) == config.records + 1
    assert found[0] == 0
    assert found[-1] == steps
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("centered", [True, False])
def test_networks_of_the_loop_follow_the_closed_dynamics(config, centered):
    """Two roads to the same curve, centred and not: explicit weights through the training loop, and their moments."""
    config = config.copy_and_resolve_references()
    config.network.centered, config.network.batch_sizes = centered, (0,)
    config.network.steps = 50
    data = study._network(config, Session())
    measured, closed = data.network_loss.isel(batch_size=0), data.closed_loss
    np.testing.assert_allclose(measured, closed, rtol=2e-3, atol=1e-6)
    assert float(closed.isel(network_step=-1).sel(data="train").max()) < 0.5 * float(
        closed.isel(network_step=0).sel(data="train").min()
    )


def test_the_start_is_not_trained(config):
    data = {"alpha": jnp.float32(1.0), "epsilon": jnp.float32(0.25)}
    x = jax.random.normal(jax.random.key(1), (8, 4)) / 2
    setup = study.network_setup(6, 4, True, data)
    params = setup.init(jax.random.key(0))
    gradient = jax.grad(setup.loss)(params, (x, x[:, 0] ** 2))
    np.testing.assert_array_equal(gradient["start"], 0)
    assert jnp.abs(gradient["hidden"]).max() > 0
    loss = setup.loss(params, (x, jnp.zeros(8)))
    assert loss == 0, "a centred network starts at zero"


def test_losses_of_the_sweep_are_those_of_fresh_examples(config):
    """The closed form of the test loss against the mean over drawn inputs."""
    change, curves = study.follow(config, Session(), 60, seed=0, alpha=0.5)
    data = study.problem(config, 0, config.task.num_train, config.task.dim, fresh=200)
    setting = {"alpha": 0.5, "epsilon": config.epsilon}
    change = jax.tree.map(lambda m: m[-1], change)
    errors = np.asarray((mean_field.predict(change, data.fresh_x, **setting) - data.fresh_y) ** 2)
    assert abs(errors.mean() - curves["test"][-1]) < 4 * errors.std() / np.sqrt(len(errors))
    parts = curves["variance"] + curves["misalignment"] + curves["linear_power"]
    np.testing.assert_allclose(curves["test"], parts, rtol=1e-5)
    assert curves["movement"][0] == 0


def small_sweep(config, alphas, strengths=(0.0,)):
    """A dimension in which grokking shows in a few hundred steps."""
    config = config.copy_and_resolve_references()
    config.task.dim, config.task.num_train = 20, 120
    config.sweep.alphas, config.sweep.steps = alphas, 4000
    return config


@pytest.fixture(scope="module")
def swept(config):
    config = small_sweep(config, (0.25, 1.0, 4.0, 64.0))
    data = study._sweep(config, Session())
    return data.assign_attrs(threshold=config.threshold, num_train=config.task.num_train)


def test_grokking_is_delayed_by_the_output_scale_and_the_lazy_control_fails(swept):
    found = {claim.name: claim for claim in claims._alpha_claims(swept)}
    for name in ("G1 delay grows with alpha", "G2 then better than its kernel"):
        assert found[name].passed, found[name]
    for name in ("G3 control, lazy network", "G3 control, linearised network"):
        assert found[name].control
        assert found[name].passed, found[name]
        assert found[name].measured > 0.15


def test_weights_grow_while_the_network_groks(swept):
    found = {claim.name: claim for claim in claims._feature_claims(swept)}
    assert found["G5 no weight decay needed"].passed
    assert found["G4 alignment comes late"].measured < 1


def test_weight_decay_is_the_control_of_a_growing_norm():
    """The norm at the step of generalisation counts, the last one where it does not come."""
    dims = ("digits_alpha", "digits_seed", "digits_step")
    data = xr.Dataset(
        {
            "digits_test_accuracy": (dims, [[[0.1, 0.2, 0.9], [0.1, 0.9, 0.9]]] * 2),
            "digits_train_accuracy": (dims, np.ones((2, 2, 3))),
            "digits_norm": (dims, [[[1.0, 0.9, 0.5], [2.0, 3.0, 1.0]]] * 2),
        },
        {"digits_alpha": [0.01, 0.1], "digits_seed": [0, 1], "digits_step": [0, 50, 100]},
    )
    claim = claims._decayed_claim(data)
    assert claim.interval == (0.5, 1.5)
    assert claim.measured == 1.0
    assert verdict(claim) == "fails, as it must"
    growing = data.assign(digits_norm=1 + data.digits_step + 0 * data.digits_norm)
    assert verdict(claims._decayed_claim(growing)) == "CONTROL HOLDS"


def test_a_network_whose_features_are_aligned_does_not_grok(config):
    config = small_sweep(config, (4.0,))
    steps = study.record_steps(config, 4000)

    def times(strength):
        _, curves = study.follow(config, Session(), 4000, seed=1, alpha=4.0, strength=strength)
        return [claims.crossing(steps, curves[key], 0.1) for key in ("train", "test")]

    plain, aligned = times(0.0), times(16.0)
    assert plain[1] > claims.GROKS * plain[0]
    assert aligned[1] < claims.GROKS * aligned[0]
    assert aligned[1] - aligned[0] < 0.1 * (plain[1] - plain[0])


def test_a_shuffled_target_is_not_generalised(config):
    """The same network and training loss, targets permuted: training succeeds, nothing is learnt."""
    config = small_sweep(config, ())
    data = study.problem(config, 0, 120, 20)
    shuffled = data._replace(
        y=jnp.asarray(np.random.default_rng(0).permutation(np.asarray(data.y)))
    )
    start, setting = mean_field.infinite_width(20), {"alpha": 1.0, "epsilon": 0.25}
    for problem, learnt in ((data, True), (shuffled, False)):
        path = mean_field.gradient_descent(
            start, (problem.x, problem.y), [0, 3000], learning_rate=2.0, **setting
        )
        curves = study.observables(path, start, problem, **setting)
        assert curves["train"][1] < 0.3 * curves["train"][0]
        assert (curves["test"][1] < 0.1 * curves["test"][0]) == learnt


def test_digits_times_and_their_claims():
    step = np.array([0, 50, 100, 150])
    train_accuracy = [[[0.1, 0.96, 1.0, 1.0]], [[0.1, 0.2, 0.96, 1.0]]]
    test_accuracy = [[[0.1, 0.9, 0.9, 0.9]], [[0.1, 0.1, 0.2, 0.3]]]
    dims = ("digits_alpha", "digits_seed", "digits_step")
    data = xr.Dataset(
        {
            "digits_train_accuracy": (dims, train_accuracy),
            "digits_test_accuracy": (dims, test_accuracy),
        },
        {"digits_alpha": [0.01, 0.1], "digits_step": step},
    )
    found = claims.digits_times(data)
    np.testing.assert_array_equal(found.train, [[50], [100]])
    np.testing.assert_array_equal(found.test, [[50], [np.inf]])
    large, small = claims._digits_claims(data)
    assert not large.passed, "an infinite time is no delay that was measured"
    assert small.control
    assert small.passed


def test_weights_of_the_loop_and_of_the_theory_are_the_same():
    key = train.stream(np.uint32(3), train.INIT)
    setup = study.network_setup(5, 4, True, {"alpha": 1.0, "epsilon": 0.1})
    np.testing.assert_array_equal(setup.init(key)["hidden"], study.draw_weights(key, 5, 4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.update(task=tasks.default_config("digits")),
            "task.name is 'digits'; it must be one of polynomial",
        ),
        (
            lambda c: c.task.update(coefficients=(0.0, 0.0, 0.0, 1.0)),
            "a tuple of 2 or more values .3 at most",
        ),
        (
            lambda c: c.task.update(coefficients=(1.0, 0.0, 1.0)),
            r"task.coefficients\[0\] is 1.0; it must be 0",
        ),
        (lambda c: c.network.update(chunk=7), "network.steps is .* a multiple of chunk, 7"),
        (lambda c: c.update(records=10**6), "records is 1000000"),
        (lambda c: c.update(learning_rate=100.0), "learning_rate is 100.0; it must be below"),
    ],
)
def test_mistakes_are_named(change, words):
    config = settings.get_config("smoke")
    change(config)
    with pytest.raises(ValueError, match=words):
        study.run(config)


def test_presets():
    for preset in settings.PRESETS:
        config = settings.get_config(preset)
        assert study.total_steps(config) > 0
        if preset != "paper":  # which asks for the user's MNIST
            study.check(config, tasks.load(config.task))
        assert set(claims.ALPHAS) <= set(config.sweep.alphas)
    with pytest.raises(ValueError, match="unknown preset 'huge'; there are: smoke, cpu, paper"):
        settings.get_config("huge")
