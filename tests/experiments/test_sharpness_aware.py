"""The edge of sharpness-aware descent: its control optimizer, claims on a small run and on wrong data, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import claims, tasks
from experiments.configs import sharpness_aware as configs
from experiments.studies import sharpness_aware as study
from experiments.studies.sharpness_aware_claims import PARTS, exponent, late


def small():
    config = configs.get_config("smoke")
    config.width = 16
    for name in PARTS:
        config[name].steps, config[name].num_train = 400, 100
        config[name].chunk = 20 if name.startswith("edge") else 200
    return config


@pytest.fixture(scope="module")
def data():
    return study.run(small())


@pytest.mark.slow  # most of it compiles
def test_what_no_size_changes_holds_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 25
    for name in ("8 formula", "8 limits", "9 quadratic, SAM", "6 flatter, random direction"):
        assert judged[name].passed
    ratio = late(data.edge_sharpness / data.edge_edge, "edge_step")
    assert (ratio.sel(edge_radius=[0.0, 0.03]) > 0.5).all()
    assert (data.edge_edge.isel(edge_step=-1).diff("edge_radius") < 0).all()
    assert claims.verdict(judged["8 formula, other sign of rho"]) == "fails, as it must"


@pytest.mark.slow
def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    for name in ("edge", "edge_small"):
        wrong[f"{name}_sharpness"] = 3 * data[f"{name}_edge"] + 0 * data[f"{name}_sharpness"]
    wrong["edge_sharpness"] = wrong.edge_sharpness * data.edge_radius.clip(0.01) ** 2
    wrong["batch_sharpness"] = data.batch_sharpness * (1 + 9 * (data.batch_radius > 0))
    wrong["batch_weights"] = data.batch_weights * (1 - 0.5 * (data.batch_radius > 0))
    wrong["batch_accuracy"] = data.batch_accuracy - 0.3 * data.batch_radius
    for name in ("residual", "limits", "quadratic"):
        wrong[name] = data[name] + 1
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_exponents_and_late_medians():
    radii, steps = [0.03, 0.1, 0.3], np.arange(11)
    line = xr.DataArray(np.outer(np.array(radii) ** -0.4, np.where(steps < 5, 99, 1.0)))
    line = line.rename(dim_0="r", dim_1="t").assign_coords(r=radii, t=steps)
    assert float(exponent(late(line, "t"), "r")) == pytest.approx(-0.4)
    assert np.isnan(late(line.where(line.t < 10), "t")).all()


def test_the_control_looks_along_new_random_directions_of_the_radius():
    rule, seen = study.random_sam(0.0, 0.5, None), []
    w = jnp.zeros(100)
    state = rule.init(w)

    def slope(at, _):
        seen.append(np.asarray(at))
        return at

    for _ in range(2):
        _, state = jax.tree.map(lambda x: x, rule.update(w + 1.0, state, w, grad_fn=slope))
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 0.5, rtol=1e-5)
    cosines = [abs(seen[0] @ other) / 0.25 for other in (seen[1], np.full(100, 0.05))]
    assert max(cosines) < 0.4


def test_inputs_have_one_size_for_all_images():
    task = tasks.load(configs.get_config("cpu").task)
    x, x_test = study.inputs(task, 300)
    assert np.sqrt((x**2).sum(1).mean()) == pytest.approx(study.NORM, rel=1e-5)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    assert x_test.shape == (797, 64)


@pytest.mark.slow
def test_figures(data):
    assert set(study.figures(data)) == {"edge", "noise"}


def test_mistakes():
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for key, value, message in (
        ("edge_small.learning_rate", 0.4, "edge_small.learning_rate is 0.4"),
        ("batch.radii", (0.0, 0.1), "includes 0.0, 0.1, 0.3, 0.6"),
        ("batch_random.seeds", (7, 8), "includes 0, 1"),
        ("edge.num_train", 5000, "edge.num_train is 5000"),
        ("batch.chunk", 7, "batch.steps is 400; it must be a multiple of chunk"),
    ):
        config, (part, name) = small(), key.split(".")
        config[part][name] = value
        with pytest.raises(ValueError, match=message):
            study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
