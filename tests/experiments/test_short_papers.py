"""Three short papers: a small run, claims on data that are right and wrong, figures, mistakes."""

import numpy as np
import pytest
import xarray as xr

from experiments import claims
from experiments.configs import short_papers as configs
from experiments.studies import short_papers as study
from experiments.studies.short_papers_claims import doubling


@pytest.fixture(scope="module")
def data():
    config = configs.get_config("smoke")
    config.update({"seeds": (0, 1), "steps": 20, "widths": (8, 128)})
    config.update({"temperatures": (0.05, 1.0), "ridges": (1e-4, 1.0, 1e3)})
    return study.run(config)


def test_a_ridge_turns_the_boundary_to_the_nearest_centroid_s(data):
    assert (np.diff(data.strength, axis=1) < 0).all()
    np.testing.assert_allclose(data.strength.sel(ridge=1e3), 1, atol=1e-3)
    assert (data.error.isel(ridge=0).diff("tilt") > 0).all()


def test_a_network_matches_itself_whatever_the_order_of_its_units(data):
    itself = data.similarity.sel(networks="itself", width=8)
    np.testing.assert_allclose(itself.sel(measure="CKA"), 1, atol=1e-5)
    alike = data.similarity.sel(measure="CKA")
    assert (alike.sel(networks="trained", width=128) > 0.5).all()
    assert (abs(alike.sel(networks="trained, shuffled")) < 0.2).all()
    assert (
        data.similarity.sel(measure="semi") >= data.similarity.sel(measure="bipartite") - 1e-12
    ).all()


def right(data):
    """What the papers say, in numbers."""
    made = data.copy(deep=True)
    made["strength"] = data.strength * 0 + xr.where(data.ridge < 1, 9.0, 1.0)
    made["error"] = data.error * 0 + 0.05 + 0.2 * (data.tilt == "random") * (data.ridge < 1)
    made["energy"] = data.energy * 0 + 0.2 * data.temperature
    made["tolerance"] = data.tolerance * 0 + xr.where(
        data.labels == "true", 0.4 * data.temperature, 0
    )
    grown = 0.5 + 0.04 * np.log2(data.width / 128)
    level = {"trained": grown, "untrained": grown - 0.2, "itself": 1 + 0 * grown}
    rows = [level.get(name, 0.1 + 0 * grown) for name in data.networks.values]
    pairs = xr.concat(rows, "networks").assign_coords(networks=data.networks) + 0 * data.similarity
    more = xr.where(data.networks == "itself", 0, xr.where(data.measure == "CKA", 0.3, 0.1))
    made["similarity"] = pairs + more * (data.measure != "bipartite")
    return made


def test_claims_hold_of_what_the_papers_say_and_of_nothing_else(data):
    judged = study.claims(right(data))
    assert len(judged) == 18
    assert {claim.name for claim in judged if not claim.passed} == set()
    wrong = right(data)
    wrong["strength"], wrong["energy"] = wrong.strength * 0 + 2, wrong.energy * 0
    wrong["error"] = wrong.error + 0.1 * (data.ridge < 1)
    wrong["tolerance"], wrong["similarity"] = wrong.tolerance * 0.1, wrong.similarity * 0 + 0.5
    assert not [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    lost = right(data)
    lost["similarity"] = lost.similarity.where(lost.seed > 0)
    assert sum(claims.verdict(c) == "NOT MEASURED" for c in study.claims(lost)) == 8


def test_doubling_by_hand():
    width = xr.DataArray([16.0, 64.0], dims="width", coords={"width": [16, 64]})
    assert float(doubling(np.log2(width) * 0.3 + 5)) == pytest.approx(0.3)


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"short_papers"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for name, value, message in (
        ("classes", (3, 12), "two classes that both sets hold"),
        ("ridges", (1.0,), "includes 0.0001, 1000.0"),
        ("temperatures", (0.0, 0.05, 1.0), "above 0"),
    ):
        config = configs.get_config("smoke")
        config[name] = value
        with pytest.raises(ValueError, match=message):
            study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
