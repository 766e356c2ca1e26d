"""Descent in context: what is trained is what the theory is about, claims on exact data, on wrong data, and figures."""

import jax
import numpy as np
import pytest
import xarray as xr

from experiments import claims, rundir
from experiments.configs import in_context_descent as configs
from experiments.studies import in_context_descent as study
from experiments.studies.in_context_descent_claims import PREDICTORS, SETTINGS, WRONG


@pytest.fixture
def config():
    return configs.get_config("smoke")


def exact(config):
    """Data as they would be if every layer had reached its optimum."""
    best = np.stack([study.best_matrix(config, name) for name in SETTINGS])
    wrong = [
        [study.best_matrix(config, name, 10)] + [study.best_matrix(config, w) for w in WRONG[1:]]
        for name in SETTINGS
    ]
    matrix = np.repeat(best[:, None], 3, axis=1)
    loss = np.broadcast_to([4.0, 1.0, 0.7, 0.4], (6, 4))
    values = {
        "loss": (("setting", "seed", "step"), np.ones((6, 3, 2))),
        "agreement": (("setting", "seed"), np.ones((6, 3))),
        "matrix": (("setting", "seed", "row", "column"), matrix),
        "predictor_loss": (("setting", "predictor"), loss),
        "ridge_agreement": (("setting",), np.full(6, 0.9)),
        "best": (("setting", "row", "column"), best),
        "other": (("setting", "wrong", "row", "column"), np.array(wrong)),
        "descent_loss": (
            ("descent_steps", "descent", "descent_seed"),
            np.array([[[1.6] * 3, [1.6] * 3], [[1.2] * 3, [0.8] * 3]]),
        ),
        "construction": (("exact_seed", "sign"), np.array([[0.0, 3.0]] * 3)),
        "softmax_ratio": (("exact_seed",), np.full(3, 0.4)),
        "shift_error": (("exact_seed",), np.zeros(3)),
        "tight_ratio": (("exact_seed",), np.ones(3)),
    }
    labels = {"setting": list(SETTINGS), "predictor": list(PREDICTORS), "wrong": list(WRONG)}
    labels |= {"descent_steps": [1, 2], "descent": ["GD", "GD++"], "sign": [1, -1]}
    return xr.Dataset(values, labels | {"seed": [0, 1, 2], "step": [0, 10]})


def test_the_layer_predicts_with_its_effective_matrix(config):
    params = study.start(config, jax.random.key(0), True)
    tokens, _ = study.prompts(config, study.law(config, "anisotropic"), jax.random.key(1), 50)
    matrix = study.effective(params)
    assert np.linalg.norm(matrix) == pytest.approx(config.train.start**2, rel=1e-3)
    found = study.predict(study.layer(config), params, tokens)
    np.testing.assert_allclose(found, study.descended(tokens, matrix), rtol=1e-3, atol=1e-6)


def test_prompts_have_their_law(config):
    d, n = config.prompt.dim, config.prompt.num_examples
    lam, s = study.covariances(d, "whitened")
    np.testing.assert_allclose(lam @ s, np.eye(d), atol=1e-9)
    for name, response in (("whitened", lambda z: z), ("ReLU", lambda z: np.maximum(z, 0))):
        tokens, targets = study.prompts(config, study.law(config, name), jax.random.key(0), 20_000)
        assert tokens.shape == (20_000, n + 1, d + 1)
        assert (tokens[:, -1, -1] == 0).all()
        x = np.asarray(tokens[..., :-1], float)
        expected = study.covariances(d, name)[0]
        np.testing.assert_allclose(
            np.einsum("bni,bnj->ij", x, x) / x[..., 0].size, expected, atol=0.05
        )
        z = np.random.default_rng(0).normal(size=400_000) * np.sqrt(
            np.random.default_rng(1).chisquare(d, 400_000)
        )
        assert float((targets**2).mean()) == pytest.approx((response(z) ** 2).mean(), rel=0.06)
        spread = (np.asarray(tokens[:, :-1, -1]) ** 2).mean() - (response(z) ** 2).mean()
        assert spread == pytest.approx(config.prompt.noise, abs=0.15)


def test_claims_hold_where_every_layer_is_at_its_optimum_and_controls_fail(config):
    for claim in study.claims(exact(config)):
        assert claim.passed, claim


def test_claims_can_fail(config):
    """Matrices of other laws, losses off by 2 %, no gain by correction."""
    wrong = exact(config)
    wrong["matrix"] = wrong.matrix * 1.1 + 0.01
    wrong["loss"] = wrong.loss * 1.02
    wrong["agreement"] = wrong.agreement - 0.01
    wrong["descent_loss"] = wrong.descent_loss * 0 + 1
    for name in ("construction", "softmax_ratio", "shift_error"):
        wrong[name] = wrong[name] + 1
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_mistakes_are_named(config):
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config.train.chunk = 7
    with pytest.raises(ValueError, match="multiple of chunk"):
        study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)


@pytest.mark.slow
def test_the_files_of_a_run_have_figures_and_exact_claims(smoke_run):
    data = rundir.read_dataset(smoke_run("in_context_descent")[0] / "data.nc")
    assert set(study.figures(data)) == {"training", "matrices", "responses"}
    judged = {claim.name: claim for claim in study.claims(data)}
    assert judged["7 construction"].passed
    assert judged["8 GD++, two layers"].passed
    assert judged["9 a step moves little"].passed
    assert all(claims.verdict(c) == "fails, as it must" for c in judged.values() if c.control)
    assert (data.loss.isel(step=-1) < data.loss.isel(step=0)).all()
