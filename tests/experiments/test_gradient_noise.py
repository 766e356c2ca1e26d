"""Gradient noise: its walk, full batches without draws, claims on a short run, on wrong data, and figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import claims
from experiments.configs import gradient_noise as configs
from experiments.studies import gradient_noise as study
from experiments.studies.gradient_noise_claims import first_learning, fit


def config():
    made = configs.get_config("smoke")
    made.batches.steps = 100
    return made


@pytest.fixture(scope="module")
def data():
    return study.run(config())


def flat(params, batch):
    return 0.0 * sum(p.sum() for p in jax.tree.leaves(params)) + 0.0 * batch[0].sum()


def test_weights_without_a_gradient_walk_as_predicted():
    part = config().noise
    start = part.deviation * jax.random.normal(jax.random.key(1), (400, 400))
    state = {"w": start}, {"w": jnp.zeros((400, 400))}
    batch = jnp.ones((8, 2)), jnp.zeros(8, int)
    settings = (part.learning_rate, 0.0, part.eta, jax.random.key(0), batch)
    found, _ = study.descend(flat, 4, state, 0, 50, *settings)
    predicted = study.walk(part, part.eta)
    assert part.width * float(jnp.square(found["w"]).mean()) == pytest.approx(
        predicted[50], rel=0.02
    )
    assert predicted[0] == pytest.approx(part.width * part.deviation**2)
    assert study.critical() == pytest.approx(2)
    step = study.crossing(part)
    assert predicted[step - 1] < 2 <= predicted[step]


def quadratic(params, batch):
    return ((params["w"] - batch[0].mean()) ** 2).sum() / 2


def test_full_batches_are_full_and_momentum_is_momentum():
    x = jnp.arange(8.0)[:, None]
    state = {"w": jnp.zeros(1)}, {"w": jnp.zeros(1)}
    made = study.descend(
        quadratic, None, state, 0, 3, 0.1, 0.9, 0.0, jax.random.key(0), (x, jnp.zeros(8, int))
    )
    w, v = 0.0, 0.0
    for _ in range(3):
        v = 0.9 * v + (w - 3.5)
        w -= 0.1 * v
    assert float(made[0]["w"][0]) == pytest.approx(w, rel=1e-5)
    clipped = study.descend(
        quadratic, None, state, 0, 1, 0.1, 0.9, 0.0, jax.random.key(0), (x * 1e3, jnp.zeros(8, int))
    )
    assert float(clipped[0]["w"][0]) == pytest.approx(10, rel=1e-5)


def test_fits_and_first_learning():
    step = np.array([1, 50, 100, 400, 1000])
    line = xr.DataArray([2 + np.log(step), step**0.5], dims=("seed", "step")).assign_coords(
        step=step
    )
    logarithm, power = fit(line)
    assert logarithm[0] == pytest.approx(1)
    assert power[1] == pytest.approx(1)
    assert logarithm[1] < 0.98
    assert power[0] < 0.9999
    parts = xr.Dataset(
        {
            "loss": (("noise_seed", "noise_step"), [[2.3, 1.0, 0.5], [2.3, 2.3, 2.3]]),
            "variance": (("noise_seed", "noise_step"), [[0.5, 1.9, 2.5], [0.5, 1.9, 2.5]]),
        }
    )
    found = first_learning(parts, 10)
    assert float(found[0]) == 1.9
    assert np.isnan(found[1])


def test_the_walk_holds_on_a_short_run_and_controls_fail(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 17
    assert not judged["7 a random walk, weak noise"].measured > 0.95
    before = data.noise_step < data.crossing / 2
    walked = data.variance.sel(noise="strong").where(before, drop=True)
    predicted = data.walk.isel(walk_noise=1).where(before, drop=True)
    np.testing.assert_allclose(walked, [predicted] * walked.sizes["noise_seed"], rtol=0.1)


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    wrong["accuracy"] = data.accuracy * 0 + 0.8 + 0.1 * (data.schedule == "large")
    growth = (data.step / 100.0) ** 9
    wrong["distance"], wrong["growth_distance"] = (
        data[name] * 0 + growth for name in ("distance", "growth_distance")
    )
    wrong["loss"] = data.loss * 0 + 2.2
    wrong["variance"] = data.variance * 3
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"updates", "growth", "walk"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for key, value, message in (
        ("batches.large", 100, "a multiple of small"),
        ("batches.large", 1280, "below 1280"),
        ("noise.eta", 1e-4, "reach criticality"),
    ):
        wrong = config()
        part, name = key.split(".")
        wrong[part][name] = value
        if value == 1280:
            wrong.batches.steps = 80 * 5
        with pytest.raises(ValueError, match=message):
            study.run(wrong)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
    assert claims.summary(study.claims(data))
