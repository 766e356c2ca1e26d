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
    with jax.numpy_rank_promotion("allow"):
        return study.run(small())


def test_problems_have_the_norms_the_rank_and_the_alignment_asked_for(x64):
    for how, rank in (((0.0, True, True), 2), ((1.0, False, False), 5)):
        (kernel, readout), beta = study.problem(3, 6, rank, how, 4.0, 2.0)
        assert jnp.linalg.norm(kernel) == pytest.approx(4)
        assert jnp.linalg.norm(beta) == pytest.approx(2)
        values = np.linalg.svd(kernel)[1]
        assert (values > 1e-9).sum() == rank
        assert (np.ptp(values[:rank]) < 1e-9) == how[2]
        spanned = np.linalg.svd(kernel)[0][:, :rank].T @ beta
        assert (spanned @ spanned == pytest.approx(4)) == how[1]
        assert bool((readout == 0).all()) == (how[0] == 0)


def test_descent_ends_where_it_fits_and_only_there(x64):
    made = study.problem(0, 6, 6, (0.0, False, True), 3.0, 2.0)
    first, beta = jax.tree.map(lambda leaf: leaf[None], made)
    kernel, readout = study.descend(first, beta, jnp.array([0.002]))
    np.testing.assert_allclose(kernel[0] @ readout[0], beta[0], atol=1e-6)
    # W W^T - a a^T is kept, up to the size of steps
    kept = [k.T @ k - jnp.outer(a, a) for k, a in ((kernel[0], readout[0]), made[0])]
    np.testing.assert_allclose(*kept, atol=0.02)
    assert jnp.isnan(study.descend(first, beta, jnp.array([10.0]))[0]).all()


def test_the_kernel_that_is_compared_is_that_of_the_recurrent_weights():
    part = configs.get_config("smoke").networks
    part.update({"width": 5, "length": 3})
    setup, probe = study._network(part, 2)
    x, y = study.neuro.two_alternative(20, 3, 0)
    data = dict.fromkeys(("train", "test", "probe"), (jnp.asarray(x), jnp.asarray(y)))
    init, loss, _ = setup(data)
    first, last = (init(jax.random.key(seed)) for seed in (0, 1))
    found = probe.measure(last, first, 0.1, data)[1]
    model = study.RNN(5, 3)

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
    wrong = data.copy(deep=True)
    # 1, 5 and 6: noise; 2, 3, 4, 7 and 8: the ranks the other way round
    wrong["alignment"] = 0.5 + 0.1 * data.alignment[:, ::-1].values * (1 + data.start.str.len())
    wrong["alignment"] = wrong.alignment * (data.alignment * 0 + 1) / 3
    wrong["moved"], wrong["features"] = 1 / data.moved, 1 - data.features
    for name in ("net_alignment", "net_features"):
        wrong[name] = data[name] * 0 + xr_falling(data)
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert held == ["2 at every size"], "the formula reads no data"


def xr_falling(data):
    seeds = 0.01 * data.net_seed / data.net_seed.max()
    return 0.9 - 0.5 * (data.net_rank > 1) + seeds


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
