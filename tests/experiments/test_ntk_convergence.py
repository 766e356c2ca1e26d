"""The kernel's convergence: the network is the paper's, theory by a second road, claims on written files, controls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import claims, rundir
from experiments.configs import ntk_convergence as configs
from experiments.studies import ntk_convergence as study


@pytest.fixture
def config():
    return configs.get_config("smoke")


@pytest.fixture(scope="module")
def data(smoke_run):
    return rundir.read_dataset(smoke_run("ntk_convergence")[0] / "data.nc")


def test_the_network_is_the_papers(config):
    """W / sqrt(fan-in) and beta b with standard normal W and b, layer by layer."""
    net = study.network(config, 24, 2)
    params = net.init(jax.random.key(0))
    assert np.std(params["hidden_1"]["kernel"]) == pytest.approx(1, abs=0.1)
    x = np.array([[0.3, -1.2]], np.float32)
    out = x
    for name in ("hidden_0", "hidden_1", "hidden_2", "readout"):
        layer = params[name]
        out = out @ layer["kernel"] / np.sqrt(out.shape[1]) + 0.1 * layer["bias"][None]
        out = out if name == "readout" else np.maximum(out, 0)
    np.testing.assert_allclose(net.apply(params, x), out, rtol=1e-5)


def test_the_limit_kernel_by_the_papers_recursion(config):
    _, points = study.circle(32)
    found = study.limit_kernel(config)(points[16:17], points, "ntk")[0]
    cosine = np.clip(points @ points[16], -1, 1)
    sigma, variance = cosine / 2 + 0.01, 0.5 + 0.01
    theta = sigma
    for _ in range(3):
        angle = np.arccos(np.clip(sigma / variance, -1, 1))
        slope = (np.pi - angle) / (2 * np.pi)
        sigma = variance * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi) + 0.01
        theta, variance = theta * slope + sigma, variance / 2 + 0.01
    np.testing.assert_allclose(found, theta, rtol=1e-4)
    assert found[16] == pytest.approx(0.2825, abs=1e-5)


def test_the_tangent_kernel_is_the_derivative_of_a_step(config):
    """Under each rule, a small step of its own optimizer moves the outputs by - rate kernel gradient."""
    import optax

    x = np.array([[0.6, 0.8], [-1.0, 0.2]], np.float32)
    for rule in ("ntk", "mup"):
        net = study.network(config, 16, 2, rule)
        params, rate = net.init(jax.random.key(1)), 1e-4
        kernel = study.tangent_kernel(net)(params, x, x)
        optimizer = net.optimizer(optax.sgd, rate)
        gradient = jax.grad(lambda p, net=net: net.apply(p, x)[0, 0])(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        moved = net.apply(optax.apply_updates(params, updates), x) - net.apply(params, x)
        np.testing.assert_allclose(moved[:, 0] / rate, -kernel[:, 0], rtol=0.03, atol=2e-3)


@pytest.mark.slow
def test_controls_fail_and_claims_hold_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    verdicts = [claims.verdict(claim) for claim in judged.values() if claim.control]
    # The smoke preset trains along components of the digits only: the control on the sphere stays, unmeasured.
    assert sorted(verdicts) == ["NOT MEASURED"] + ["fails, as it must"] * 4
    for name in ("2 constancy, ntk", "2 rate of constancy", "4 other components, digits"):
        assert judged[name].passed, judged[name]


@pytest.mark.slow
def test_theory_is_exact_where_it_can_be(data):
    """The predicted outputs of long training pass through the targets; the component decays from 0.5."""
    at = np.argmin(abs(data.ensemble_angle.values[:, None] - data.train_angle.values[None]), axis=0)
    assert (data.predicted_sd.values[at] < data.predicted_sd.values.max() / 2).all()
    assert study.predicted_along(data).values[:, 0] == pytest.approx(0.5)
    assert data.along.values[..., 0] == pytest.approx(0.5, abs=1e-6)
    assert data.off.values[..., 0] == pytest.approx(0, abs=1e-6)
    product = (data.eigenvalue.sel(rank=2) * data.time.isel(chunk=-1)).values
    assert product == pytest.approx(2.0)


@pytest.mark.slow
def test_claims_can_fail(data):
    """A kernel that moves as much at every width, outputs and components off their theory."""
    wrong = data.copy(deep=True)
    start, end = (data.drift_kernel.sel(moment=moment) for moment in ("start", "end"))
    change = (end - start).isel(drift_width=0)
    wrong["drift_kernel"] = data.drift_kernel.copy()
    wrong.drift_kernel.loc[{"moment": "end"}] = start + change
    wrong["start_kernel"] = data.start_kernel + 0.1
    wrong["outputs"] = data.outputs * 1.5 + 0.2
    # No decay, and wide networks are the faster ones.
    rank = xr.DataArray(np.arange(data.sizes["component_width"]), dims="component_width")
    wrong["along"] = data.along.min("component_width") + 0.1 - 0.01 * rank
    wrong["off"] = data.off.roll(component_width=1)
    held = {claim.name for claim in study.claims(wrong) if claim.passed and not claim.control}
    assert held <= {"3 spread"}, held


@pytest.mark.slow
def test_every_part_has_its_figure(data):
    assert set(study.figures(data)) == {
        "kernel_on_the_circle",
        "gaussian_limit",
        "components",
        "convergence",
    }


def test_mistakes_are_named(config):
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    with pytest.raises(ValueError, match="unknown inputs 'torus'"):
        study.examples(config, "torus", 3)
    with pytest.raises(ValueError, match="training examples"):
        study.examples(config, "digits", 10**6)
    wrong = configs.get_config("smoke")
    wrong.component.chunk = 7
    with pytest.raises(ValueError, match="multiple of chunk"):
        study.run(wrong)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
    norms = jnp.linalg.norm(jnp.asarray(study.examples(config, "sphere", 5)), axis=1)
    np.testing.assert_allclose(norms, config.component.dim**0.5, rtol=1e-5)
