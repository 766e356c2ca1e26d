"""Naive Bayes beside logistic regression: claims on a small run and on wrong data, figures and mistakes."""

import numpy as np
import pytest
import xarray as xr

from experiments.configs import naive_bayes as configs
from experiments.studies import naive_bayes as study
from experiments.studies.naive_bayes_claims import slope


@pytest.fixture(scope="module")
def data():
    config = configs.get_config("smoke")
    config.needed.dims, config.needed.points = (25, 50, 200), 12
    config.surrogate.draws, config.features.width, config.features.steps = 200, 32, 60
    return study.run(config)


def test_claims_that_need_few_runs_hold(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 14
    for name in (
        *("1 logistic regression needs more", "2 naive Bayes does not", "3 ten times as many"),
        *("5 cross-entropy bounds the error", "4 then logistic regression"),
    ):
        assert judged[name].margin >= 0, judged[name]
    for name in ("1 naive Bayes needs more", "4 naive Bayes first, strong correlation"):
        assert judged[name].passed, judged[name]


def test_errors_lie_above_the_best_and_near_their_ends(data):
    assert (data.error >= data.ends.isel(learner=1) - 1e-12).all()
    last = data.error.isel(count=-1).mean("regime_seed")
    assert (abs(last - data.ends) < 0.03).all()


def test_slopes_of_a_power_law():
    dims = np.array([10.0, 20.0, 80.0])
    needed = xr.DataArray(
        3 * dims[:, None] ** [0.5, 2.0], dims=("dim", "seed"), coords={"dim": dims}
    )
    np.testing.assert_allclose(slope(np.log(needed)), [0.5, 2.0])


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    wrong["needed"] = data.needed * 0 + 50 * data.dim**0.5
    wrong["error"] = data.error * 0 + 0.1 + 0.01 * (data.learner == "logistic regression")
    wrong["error"].loc[{"count": 80}] *= 0.9 + 0.2 * (data.learner == "naive Bayes")
    wrong["violations"] = data.violations + 1e-3
    wrong["accuracy"] = data.accuracy * 0 + 0.9 - 0.1 * (data.learner == "naive Bayes")
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"needed", "regimes", "probes"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config = configs.get_config("smoke")
    config.features.shots = (2, 20, 500)
    with pytest.raises(ValueError, match="the rarest class"):
        study.run(config)
    config = configs.get_config("smoke")
    config.regimes.counts = (6, 80)
    with pytest.raises(ValueError, match="that includes 6, 80, 640"):
        study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
