"""The information plane: rules of the sphere, claims on a short run, on wrong data, and figures."""

import numpy as np
import pytest
import xarray as xr

from experiments import claims
from experiments.configs import information_plane as configs
from experiments.studies import information_plane as study
from experiments.studies.information_plane_claims import compression, first_step, peak
from experiments.tasks import sphere


@pytest.fixture(scope="module")
def data():
    config = configs.get_config("smoke")
    config.network.steps, config.network.probes, config.network.draws = 400, 4, 200
    return study.run(config)


def test_rules_are_those_of_the_icosahedron():
    """Invariant under its rotations; 64 values on patterns, as many as the sums of pairs at its four angles allow."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, s, t * golden) for s in (1, -1) for t in (1, -1)]
    corners = np.array([np.roll(c, turn) for turn in range(3) for c in corners])
    cosines = (corners @ corners.T) / (1 + golden**2)
    assert len(np.unique(cosines.round(6))) == 4
    turned = np.roll(corners, 1, axis=1)  # a third of a turn about the diagonal
    place = [int(np.argmin(np.abs(corners - c).sum(1))) for c in turned]
    x = sphere.patterns()
    assert x.shape == (4096, 12)
    assert len(np.unique(x, axis=0)) == 4096
    moved = x[:, place] @ (1 << np.arange(12))
    for seed in (0, 3):
        f = sphere.rule(seed)
        np.testing.assert_allclose(f[moved], f, atol=1e-9)
        assert f.std() == pytest.approx(1)
        assert len(np.unique(f.round(8))) == 64
    y = sphere.label_probabilities(1, 400.0)
    np.testing.assert_allclose(y.sum(1), 1)
    assert 0.4 < y[:, 1].mean() < 0.6
    assert ((y < 0.01) | (y > 0.99)).all()
    f = sphere.rule(1)
    assert f[y[:, 1] < 0.5].max() < f[y[:, 1] > 0.5].min()


def test_compression_and_peak():
    bits = xr.DataArray([[1.0, 3.0, 2.5], [4.0, 2.0, 1.0]], dims=("seed", "step"))
    bits = bits.assign_coords(step=[0, 10, 20])
    np.testing.assert_allclose(compression(bits), [0.5, 3])
    np.testing.assert_allclose(peak(bits), [10, 0])
    np.testing.assert_allclose(first_step(bits < 2.7, bits), [0, 10])
    assert np.isnan(first_step(bits < 1.5, bits)[0] * 0 + first_step(bits > 9, bits)[0])
    assert np.isnan(peak(bits.where(bits < 4))[1])


@pytest.mark.slow
def test_a_layer_filled_up_with_zeros_tells_the_same(data):
    """One program for all layers: the last one, measured in its own width, is the same up to drawing."""
    assert data.sizes["layer"] == 5
    np.testing.assert_allclose(data.noisy.isel(layer=-1), data.by_sigma.sel(sigma=0.1), atol=1e-5)
    np.testing.assert_allclose(data.binned.isel(layer=-1), data.by_bins.sel(bins=30), atol=1e-9)
    assert (data.noisy <= 12.01).all()
    tanh = data.sel(network="tanh")
    assert (tanh.noisy.isel(layer=0) > tanh.noisy.isel(layer=-1) + 3).all()


@pytest.mark.slow
def test_exact_claims_hold_on_a_short_run_and_their_controls_fail(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 43
    exact = [c for name, c in judged.items() if int(name.split()[0]) in (6, 8, 12, 13, 14, 15)]
    assert len(exact) == 13
    assert all(c.passed for c in exact), [c for c in exact if not c.passed]


@pytest.mark.slow
def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    along = xr.DataArray(np.linspace(0, 1, data.sizes["step"]), dims="step")
    for name in ("noisy", "binned", "by_bins", "by_sigma"):
        wrong[name] = data[name] * 0 + along
    relu = data.network == "ReLU"
    wrong["noisy"] = wrong.noisy - 5 * relu * along
    wrong["moving"] = wrong.binned
    wrong["signal"] = data.signal * 0 + 2 - 1.5 * (along > 0) * (along < 0.5)
    wrong["accuracy"], wrong["label_share"] = data.accuracy * 0.8, data.label_share * 0.5
    wrong["outside"], wrong["excess"] = data.outside + 9, data.excess + 1
    wrong["gap"] = data.gap**0.3 * 9
    wrong["gibbs"], wrong["last"] = data.gibbs + 1, data["last"] * 0.9
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


@pytest.mark.slow
def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"plane", "resolution", "drift", "gaps"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config = configs.get_config("smoke")
    config.network.rules = (0, 2)
    with pytest.raises(ValueError, match="claims are about them"):
        study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
    assert claims.summary(study.claims(data))
