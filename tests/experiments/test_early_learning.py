"""Early learning: the sets are what they say, descent by hand, claims on a small run and on wrong data, mistakes."""

import numpy as np
import pytest
import xarray as xr

from experiments import claims
from experiments.configs import early_learning as configs
from experiments.studies import early_learning as study
from experiments.studies.early_learning_claims import best, crossing


def small():
    config = configs.get_config("smoke")
    config.network.width, config.network.num_train, config.network.steps = 16, 200, 100
    config.linear.steps, config.linear.seeds = 300, (0, 1)
    return config


@pytest.fixture(scope="module")
def data():
    return study.run(small())


def test_the_theory_of_one_step_and_memorisation_hold_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 20
    for name in (
        "1 one step, theory of a mislabelled example",
        "5 phase boundary, labels flipped",
        "2 memorised, linear, dimension 400, rate 0.5",
    ):
        assert judged[name].passed
    assert all(
        claims.verdict(c) == "fails, as it must"
        for c in judged.values()
        if c.control and c.name[0] in "15"
    )


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    wrong["step_true"] = data.step_true * 0.4
    for part in ("linear", "network"):
        kept = data.strength == 0
        wrong[f"{part}_true"] = 0.5 + 0 * data[f"{part}_true"]
        wrong[f"{part}_test"] = 0.5 + 0.1 * kept + 0 * data[f"{part}_test"]
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_a_sample_has_its_classes_and_its_wrong_labels():
    config = configs.get_config("smoke")
    x, labels, clean = study.sample(config, 50, 3)
    side = 2 * clean - 1
    assert (x[:, 0] * side).mean() == pytest.approx(3.0, abs=0.3)
    assert x[:, 1:].std() == pytest.approx(1.0, abs=0.05)
    assert (labels != clean).mean() == pytest.approx(0.3, abs=0.1)
    other = study.sample(config, 50, 4)[0]
    assert np.abs(x - other).max() > 1


def test_descent_on_cross_entropy_by_hand():
    x, labels, _ = study.sample(configs.get_config("smoke"), 7, 0)
    found = study.descend(np.float32(x), labels, 0.0, 0.5, 5)
    w = np.zeros(7)
    for step in range(5):
        w = w - 0.5 * x.T @ (1 / (1 + np.exp(-x @ w)) - labels) / len(x)
        np.testing.assert_allclose(found[step], w, atol=1e-5)
    assert np.abs(study.descend(np.float32(x), labels, 3.0, 0.5, 5)[-1] - w).max() > 1e-3


def test_crossings_and_best_steps():
    share = xr.DataArray([[0.9], [0.75], [0.25]], dims=("dim", "seed"))
    part = xr.Dataset({"step_true": share}, {"dim": [10, 100, 10_000]})
    assert crossing(part) == pytest.approx(1000)
    assert np.isnan(crossing(part + 0.5))
    runs = xr.Dataset(
        {"net_test": ("net_step", [0.1, 0.9, 0.5]), "net_true": ("net_step", [0.2, 0.3, 0.8])},
        {"net_step": [0, 1, 2]},
    )
    assert float(best(runs, "net", "true")) == 0.3
    assert np.isnan(
        best(runs.assign(net_test=runs.net_test.where(runs.net_step < 2)), "net", "true")
    )


def test_figures_and_mistakes(data):
    names = {"first_step", "linear_0.02", "linear_0.5", "network"}
    assert set(study.figures(data)) == names
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for key, value, message in (
        ("linear.dims", (20, 100), "includes 20, 400"),
        ("linear.rates", (0.5,), "includes 0.02, 0.5"),
        ("step.draws", 1, "step.draws is 1"),
        ("gaussian.flip", 0.5, "gaussian.flip is 0.5"),
        ("network.num_train", 5000, "network.num_train is 5000"),
        ("network.chunk", 7, "network.steps is 100; it must be a multiple of chunk"),
    ):
        config, (part, name) = small(), key.split(".")
        config[part][name] = value
        with pytest.raises(ValueError, match=message):
            study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
