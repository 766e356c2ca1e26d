"""Attention SVMs: claims on a run with few seeds, on wrong data, and figures."""

import numpy as np
import pytest

from experiments import claims
from experiments.configs import attention_svm as configs
from experiments.studies import attention_svm as study
from experiments.studies.attention_svm_claims import wilson


@pytest.fixture(scope="module")
def data():
    config = configs.get_config("smoke")
    return study.run(config)


def test_the_best_tokens_have_the_largest_scores():
    x, z, v, labels = study.problem(np.random.default_rng(0), 5, 4, 3)
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1)
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1)
    assert set(labels) <= {-1.0, 1.0}
    best = study.best_tokens(x, v, labels)
    for i in range(5):
        assert labels[i] * x[i, best[i]] @ v == pytest.approx(max(labels[i] * (x[i] @ v)))


def test_wilson_intervals_by_hand():
    """Half of 20: .5 +- 1.96 sqrt(.0125 + .0024) / 1.192; none of n: up to z^2 / (n + z^2)."""
    assert wilson(0.5, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0, 3.8415 / 23.8415), abs=1e-4)
    assert wilson(float("nan"), 20) == (0, 1)


def test_solutions_and_feasibility_hold_on_a_short_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 19
    for name in ("7 constraints", "7 gap", "6 separable, dimension 8", "3 saturation, K, Q"):
        assert judged[name].passed, judged[name]
    assert all(claims.verdict(c) == "fails, as it must" for c in judged.values() if c.control)


def test_the_direction_is_nearer_to_its_own_norm(data):
    end = data.correlation.isel(step=-1).mean("seed")
    assert end.sel(trained="W", norm="Frobenius") > end.sel(trained="W", norm="nuclear") + 0.05
    for name in ("K, Q", "K, Q, no decay"):
        assert (
            end.sel(trained=name, norm="nuclear") > end.sel(trained=name, norm="Frobenius") + 0.05
        )


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    wrong["correlation"] = data.correlation * 0.9
    wrong["largest_weight"] = data.largest_weight * 0.99
    wrong["singular"] = data.singular + 0.02
    wrong["slack"], wrong["gap"] = data.slack * 0.9, data.gap + 1e-3
    wrong["optimal"], wrong["feasible"] = data.optimal * 0 + 1, data.feasible * 0.9
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"direction", "singular_values", "feasibility"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config = configs.get_config("smoke")
    config.layer.points = 7
    with pytest.raises(ValueError, match="multiple of points"):
        study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
