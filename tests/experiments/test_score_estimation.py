"""Score estimation: the flow against one by hand, claims on data that are right and wrong, figures, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr

from experiments import claims, tasks, train
from experiments.configs import score_estimation as configs
from experiments.studies import score_estimation as study
from experiments.studies.score_estimation_claims import slope


def tiny():
    config = configs.get_config("smoke")
    config.mixture.num_test = 50
    config.flow.update({"examples": (20, 40), "times": (1.0, 30.0, 100.0, 1e4)})
    config.wide.update({"widths": (16, 2048), "examples": 10, "steps": 40, "seeds": (0, 1)})
    config.denoisers.update({"images": (3, 40), "width": 24, "steps": 30})
    return config


@pytest.fixture(scope="module")
def data():
    return study.run(tiny())


def tangent(a, b):
    """The NTK of two ReLU layers with the first biases, from angles."""
    u, v = (np.column_stack([x, np.ones(len(x))]) for x in (a, b))
    sizes = np.linalg.norm(u, axis=1)[:, None] * np.linalg.norm(v, axis=1)
    angle = np.arccos(np.clip(u @ v.T / sizes, -1, 1))
    return (sizes * np.sin(angle) + 2 * (np.pi - angle) * (u @ v.T)) / (2 * np.pi)


def test_errors_are_those_of_small_steps_by_hand(data):
    """Euler's method on K by its own formula, 2000 steps to time 30."""
    config = tiny()
    (z, x), (z_test, exact) = study.points(config, 0.3, 20, 1)[1:3]
    assert z.shape == (20, 1)
    kernel, read = tangent(z, z), tangent(z_test, z)
    f, g, step = np.zeros((20, 1)), np.zeros((50, 1)), 30 / 2000 / 20
    for _ in range(2000):
        f, g = f - step * kernel @ (f - x), g - step * read @ (f - x)
    measured = data.error.sel(noise=0.3, examples=20, seed=1, targets="noisy", time=30.0)
    assert float(measured) == pytest.approx(float(((g - exact) ** 2).mean()), rel=0.02)
    assert (
        data.error.sel(targets="exact").isel(time=-1)
        < data.error.sel(targets="noisy").isel(time=-1)
    ).all()


def test_wide_networks_follow_the_kernel_of_all_layers(data):
    mean = data.distance.mean("net_seed")
    assert mean.sel(width=2048, kernel="NTK") < 0.5 * mean.sel(width=16, kernel="NTK")
    assert mean.sel(width=2048, kernel="NTK") < 0.5 * mean.sel(width=2048, kernel="NNGP")


def test_fit_takes_the_steps_of_its_optimizer_with_a_key_for_each():
    """On a quadratic descent multiplies by 1 - rate; with noise in the gradient alone the steps add up."""
    key = jax.random.key(0)
    found = train.fit(lambda w, _: 0.5 * w @ w, jnp.array([1.0, -2.0]), optax.sgd(0.1), key, 7)
    np.testing.assert_allclose(found, np.array([1, -2]) * 0.9**7, rtol=1e-5)
    noisy = train.fit(lambda w, k: w * jax.random.normal(k), jnp.array(0.0), optax.sgd(1.0), key, 3)
    assert float(noisy) == pytest.approx(
        -sum(float(jax.random.normal(k)) for k in jax.random.split(key, 3)), abs=1e-5
    )


def right(data):
    """What the papers say, in numbers."""
    made = data.copy(deep=True)
    n, time = data.examples.astype(float), data.time
    best = 1 / n + 0 * data.error
    made["error"] = xr.where(
        data.targets == "noisy", best + 0.5 * (time == time[-1]) + (time < n), best
    )
    made["distance"] = data.distance * 0 + xr.where(data.kernel == "NTK", data.width**-0.5, 1.0)
    many = data.images > 10
    made["cosine"] = data.cosine * 0 + xr.where(many, 0.95, 0.2)
    other = xr.where(many, 0.2, 0.9)
    seen = xr.where(many, 0.18, 0.01)
    made["risk"] = (
        xr.concat([seen, other, 0.25 + 0 * seen], "of").assign_coords(of=data.of) + 0 * data.risk
    )
    wrong = data.variant == "wrong"
    made["stein"] = data.stein * 0 + xr.where(wrong, 0.5, 0.02)
    made["homogeneity"] = data.homogeneity * 0 + xr.where(wrong, 0.1, 1e-7)
    made["asymmetry"] = data.asymmetry * 0 + 0.03
    return made


def test_claims_hold_of_what_the_papers_say_and_of_nothing_else(data):
    judged = study.claims(right(data))
    assert len(judged) == 31
    assert {claim.name for claim in judged if not claim.passed} == set()
    wrong = right(data)
    wrong["error"] = 0.1 + 0 * wrong.error * wrong.examples
    wrong["error"] = wrong.error * wrong.examples**0.3
    wrong["distance"] = wrong.distance * 0 + 1
    wrong["cosine"] = wrong.cosine * 0 + 0.6
    wrong["risk"] = wrong.risk * 0 + xr.where(data.of == "other images", 0.5, 0.1)
    for name in ("stein", "homogeneity", "asymmetry"):
        wrong[name] = wrong[name] * 0 + 0.3
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held
    lost = right(data)
    lost["error"] = lost.error.where(lost.seed > 0)
    assert sum(claims.verdict(c) == "NOT MEASURED" for c in study.claims(lost)) == 14


def test_slopes_by_hand():
    n = xr.DataArray([10.0, 100.0, 1000.0], dims="examples", coords={"examples": [10, 100, 1000]})
    assert float(slope(3 * n**-0.5)) == pytest.approx(-0.5)
    assert np.isnan(slope(n.where(n > 10)))


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"early_stopping", "learnt_score", "denoisers"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for key, value, message in (
        ("denoisers.images", (5, 5000), "two sets are disjoint"),
        ("flow.noises", (0.3,), "includes 0.3, 1.0"),
        ("mixture.centres", ((0.0, 1.0),), "rows of one number"),
        ("mixture.noise", 0.0, "nothing to denoise"),
    ):
        config = tiny()
        part, name = key.split(".")
        config[part][name] = value
        with pytest.raises(ValueError, match=message):
            study.run(config)
    with pytest.raises(ValueError, match="real inputs only"):
        study.check(tiny(), tasks.load(tasks.default_config("text")))
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
