"""Random features: the regressions by explicit formulas, claims on written files, controls, mistakes."""

import numpy as np
import pytest

from experiments import claims, rundir, tasks
from experiments.configs import random_features as configs
from experiments.studies import random_features as study
from limits import eigenlearning


@pytest.fixture
def config():
    return configs.get_config("smoke")


@pytest.fixture(scope="module")
def data(smoke_run):
    return rundir.read_dataset(smoke_run("random_features")[0] / "data.nc")


def test_a_regression_is_the_explicit_one(config):
    part = config.gaussian
    part.modes = 50
    found = study.regress(part, 12, 20, np.array([0.1, 1.0]), 3)
    random = np.random.default_rng([12, 20, 3])
    l = np.arange(1, 51.0) ** -1.5
    x = random.normal(size=(12, 50))
    f = np.sqrt(l)[:, None] * random.normal(size=(50, 20)) / np.sqrt(20)
    y = x @ np.sqrt(l) + np.sqrt(0.5) * random.normal(size=12)
    for i, ridge in enumerate((0.1, 1.0)):
        weights = np.linalg.solve(f.T @ x.T @ x @ f + ridge * np.eye(20), f.T @ x.T @ y)
        residual = y - x @ f @ weights
        assert found["train"][i] == pytest.approx(np.mean(residual**2), rel=1e-8)
        fresh = np.random.default_rng(0).normal(size=(200_000, 50))
        error = np.mean((fresh @ np.sqrt(l) - fresh @ f @ weights) ** 2) + 0.5
        assert found["test"][i] == pytest.approx(error, rel=0.01)
        hat = x @ f @ np.linalg.solve(f.T @ x.T @ x @ f + ridge * np.eye(20), f.T @ x.T)
        generalised = np.mean(residual**2) / (1 - np.trace(hat) / 12) ** 2
        assert found["estimated"][i] == pytest.approx(generalised, rel=1e-8)


def test_bundled_layers_cost_more_than_one(config):
    found = [study.bundle_errors(config, None, 256, seed)["layer_error"] for seed in range(4)]
    layer, first, both = np.mean(found, 0)
    assert 0.4 < layer < 1
    assert 0.4 < first < 1
    assert both > 2 * layer


@pytest.mark.slow
def test_controls_fail_and_claims_hold_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert all(claims.verdict(c) == "fails, as it must" for c in judged.values() if c.control)
    names = ("3 test, median", "6 fitting ratio", "9 conservation", "8 interpolation is best")
    for name in (*names, "6 obligatory overfitting", "7 learning curve", "S2 variance"):
        assert judged[name].passed, judged[name]


@pytest.mark.slow
def test_theory_is_exact_where_it_can_be(data):
    l = np.arange(1, 501.0) ** -1.5
    exact = eigenlearning.random_features(l, l, 128, 256, ridge=0.01, noise=0.5)
    stored = data.theory_test.sel(sweep="features", count=256, rf_ridge=0.01)
    assert float(stored) == pytest.approx(float(exact.test), rel=1e-12)
    total = data.learnable.sum("mode").values
    np.testing.assert_allclose(total, data.conserved.values, rtol=1e-10)


@pytest.mark.slow
def test_claims_can_fail(data):
    """Experiments off their theory, more that hurts, features with a bias and the wrong rate."""
    wrong = data.copy(deep=True)
    wrong["rf_test"], wrong["rf_train"] = 1.3 * data.rf_test, 0.5 * data.rf_train
    wrong["rf_estimated"] = 2 * data.rf_test
    wrong["rf_best"] = data.rf_best * data["count"]
    wrong["learnt"], wrong["learnable"] = 0.5 * data.learnt, 0.9 * data.learnable
    wrong["ratio"] = 0.3 - data.ratio
    wrong["image_test"] = data.image_test / (1 + data.image_ridge)
    wrong["bias"], wrong["variance"] = data.bias + 5, 2 * data.variance
    wrong["layer_error"] = data.layer_error * data.layer_features
    wrong["accuracy"] = 0.9 * data.accuracy
    held = {claim.name for claim in study.claims(wrong) if claim.passed and not claim.control}
    assert not held, held


@pytest.mark.slow
def test_every_part_has_its_figure(data):
    assert set(study.figures(data)) == {
        "more_is_better",
        "obligatory_overfitting",
        "images",
        "layers",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images.counts", (50, 100, 400), "images.points is 1000; .* at least 4 x 400"),
        ("gaussian.fixed", 100, "gaussian.fixed is 100; .* one of counts"),
        ("gaussian.ridges", (0.0, 1.0), r"gaussian.ridges\[0\] is 0"),
        ("layer.train", 1000, "layer.train is 1000; .* below points"),
        ("phase.alpha", (1.5,), "phase.alpha"),
    ],
)
def test_mistakes_are_named(config, key, value, message):
    part, name = key.split(".")
    config[part][name] = value
    with pytest.raises(ValueError, match=message):
        study.check(config, tasks.load(config.task))
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
