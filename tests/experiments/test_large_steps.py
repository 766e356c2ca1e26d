"""Large steps: the sets are what they say, claims on a small run, on wrong data, and figures."""

import numpy as np
import pytest

from experiments import claims, tasks
from experiments.configs import large_steps as configs
from experiments.studies import large_steps as study
from limits import perceptron


@pytest.fixture(scope="module")
def data():
    config = configs.get_config("smoke")
    config.gaussian.step_sizes = config.gaussian.step_sizes[1:]
    return study.run(config)


def test_sets_have_the_margin_asked_for_and_norm_one():
    b = study.gaussian(50, 8, 0.1, 3)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1)
    assert perceptron.margin(b).value > 0.09
    hard = study.adversarial(20, 0.05)
    np.testing.assert_allclose(np.linalg.norm(hard, axis=1), 1)
    # between e_1 and -e_1: 2 margin up to the slopes
    assert perceptron.margin(hard).value == pytest.approx(0.1, rel=0.02)
    config = configs.get_config("smoke")
    pair = study.digits(config, tasks.load(config.task), (3, 8))
    assert pair.shape == (100, 65)
    assert np.linalg.norm(pair, axis=1).max() == pytest.approx(1)
    assert len(set(np.abs(pair[:, -1]).round(12))) == 1


def test_small_angles_are_accurate():
    assert study.angle(np.array([1.0, 0]), np.array([3.0, 3e-9])) == pytest.approx(1e-9)
    assert study.angle(np.array([1.0, 0]), np.array([0, 2.0])) == pytest.approx(np.pi / 2)


def test_the_claims_hold_on_a_small_run_and_the_controls_fail(data):
    judged = study.claims(data)
    assert len(judged) == 17
    # Of 100 digits steps fall less: the claim is about all of them.
    assert {claim.name for claim in judged if not claim.passed} <= {"4 fewer steps"}
    assert all(claims.verdict(c) == "fails, as it must" for c in judged if c.control)


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    wrong["large_difference"], wrong["angle"] = data.large_difference + 1, data.angle + 1e-3
    wrong["steps"] = data.steps**0.8
    wrong["ratio"] = data.ratio * 1e5
    wrong["hard_steps"] = data.hard_steps**1.3 * 20
    wrong["pair_steps"] = data.pair_steps**0.5
    wrong["pair_loss"] = data.pair_loss**0.3
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"steps_against_step_size", "loss_misleads", "hard_example"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config = configs.get_config("smoke")
    config.pairs.classes = ((3, 8), (1, 12))
    with pytest.raises(ValueError, match="two different classes below 10"):
        study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
