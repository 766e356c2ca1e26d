"""Connectivity and laziness: problems are what they say, claims on a small run, on wrong data, and figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import connectivity_rank as configs
from experiments.studies import connectivity_rank as study
from metrics import kernels


def small():
    config = configs.get_config("smoke")
    config.networks.update({"width": 8, "ranks": (1, 8), "length": 4, "num_trials": 100})
    config.networks.steps = config.networks.chunk = 5
    return config


@pytest.fixture(scope="module")
def data():
    return study.run(small())


def test_problems_have_the_norms_the_rank_and_the_alignment_asked_for(x64):
    for how, rank in (((0.0, True, True), 2), ((1.0, False, False), 5)):
        w, readout, beta = study.problem(3, 6, rank, how, 4.0, 2.0)
        assert jnp.linalg.norm(w) == pytest.approx(4)
        assert jnp.linalg.norm(beta) == pytest.approx(2)
        _, values, right = np.linalg.svd(w)
        assert (values > 1e-9).sum() == rank
        assert (np.ptp(values[:rank]) < 1e-9) == how[2]
        spanned = right[:rank] @ beta
        assert (spanned @ spanned == pytest.approx(4)) == how[1]
        assert bool((readout == 0).all()) == (how[0] == 0)


def test_the_kernel_that_is_compared_is_that_of_the_recurrent_weights():
    part = configs.get_config("smoke").networks
    part.update({"width": 12, "length": 3})
    setup, probe = study._network(part, 2)
    x, y = study.neuro.two_alternative(20, 3, 0)
    data = dict.fromkeys(("train", "test", "probe"), (jnp.asarray(x), jnp.asarray(y)))
    init, loss = setup(data)[:2]
    first, last = (init(jax.random.key(seed)) for seed in (0, 1))
    found = probe.measure(last, first, 0.1, data)[1]
    model = study.RNN(12, 3)

    def kernel(params):
        def apply(w):
            recurrent = {"recurrent": {"kernel": w}}
            return model.apply({"params": params | recurrent}, x[:16]).ravel()

        j = jax.jacobian(apply)(params["recurrent"]["kernel"]).reshape(16 * 3 * 3, -1)
        return j @ j.T

    expected = kernels.alignment(kernel(last), kernel(first))
    assert found["net_alignment"] == pytest.approx(float(expected), rel=1e-4)
    assert loss(first, data["train"]) == pytest.approx(np.log(3), rel=0.3)


def test_the_linear_claims_hold_on_two_seeds_and_the_controls_fail(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 21
    linear = [c for name, c in judged.items() if "alternative" not in name]
    assert all(claim.passed for claim in linear), [c for c in linear if not c.passed]


def test_claims_can_fail(data):
    # Alignments that fall with the rank, differ between starts, and are as high for Gaussian spectra
    falling = np.array([0.9, 0.8, 0.7, 0.6, 0.5])[:, None] - np.array([0, 0.001])
    shifts = dict(zip(study.STARTS, (0, 0.1, 0.1, 0.0, 0.1, 0.1)))
    ka = np.stack([falling - shift * (1 + 0 * falling) for shift in shifts.values()])
    nets = (0.9 - 0.5 * (data.net_rank > 1) + 0.01 * data.net_seed).expand_dims("task")
    wrong = data.assign(
        alignment=(data.alignment.dims, ka),
        features=(data.features.dims, ka[:, ::-1]),
        moved=1 / data.moved,
        net_alignment=nets,
        net_features=nets,
    )
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert held == ["2 at every size"], "the formula reads no data"


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"laziness", "recurrent", "heat_map"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for key, value, message in (
        ("chunk", 3, "multiple of chunk"),
        ("ranks", (1, 4), r"ranks up to networks.width"),
        ("tasks", ("contxt",), "did you mean 'context'"),
    ):
        config = small()
        config.networks[key] = value
        with pytest.raises(ValueError, match=message):
            study.run(config)
    for name in configs.PRESETS:
        config = configs.get_config(name)
        study.check(config, None)
        assert study.total_steps(config) > 0
