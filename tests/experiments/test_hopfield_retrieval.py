"""Hopfield retrieval: claims on a small run, on wrong data, and figures."""

import numpy as np
import pytest
import xarray as xr

from experiments import claims
from experiments.configs import hopfield_retrieval as configs
from experiments.studies import hopfield_retrieval as study
from experiments.studies.hopfield_retrieval_claims import growth, threshold


@pytest.fixture(scope="module")
def data():
    config = configs.get_config("smoke")
    config.single.count, config.capacity.states = 40, 60
    return study.run(config)


def test_the_claims_hold_on_a_small_run_and_the_controls_fail(data):
    judged = study.claims(data)
    assert len(judged) == 19
    wrong = [claim for claim in judged if not claim.passed]
    assert not wrong
    assert all(claims.verdict(c) == "fails, as it must" for c in judged if c.control)


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    for name in ("energy_rise", "error_ratio", "attention"):
        wrong[name] = data[name] + 2
    wrong["share"] = data.share * 1.3 - 0.1 * (data.share - 1)
    wrong = wrong.assign_coords(share=data.share).assign(own_weight=data.own_weight**0.5)
    wrong["own_weight"] = wrong.own_weight.roll(dim=1, roll_coords=False)
    wrong["participation"] = data.participation.roll(phase_beta=3, roll_coords=False)
    wrong["inside"] = data.inside * 0.9
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_thresholds_are_interpolated():
    weight = xr.DataArray([[[[0.9, 0.6, 0.4]]]], dims=("beta", "dim", "pattern_seed", "share"))
    part = xr.Dataset({"own_weight": weight}, {"beta": [0.5], "share": [0.8, 1.0, 1.2]})
    assert threshold(part, 0.5).item() == pytest.approx(1.1)
    never = part.assign(own_weight=0 * weight + 0.9)
    assert np.isnan(threshold(never, 0.5).item())
    line = xr.DataArray(
        3.0 + 0.4 * np.array([12, 16, 24]), dims="dim", coords={"dim": [12, 16, 24]}
    )
    assert growth(line).item() == pytest.approx(0.4)


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"capacity", "phases"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config = configs.get_config("smoke")
    config.capacity.dims = (12, 24)
    with pytest.raises(ValueError, match=r"capacity.dims"):
        study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
