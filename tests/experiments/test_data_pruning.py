"""Data pruning: claims on a small run, on wrong data, simulated students, figures and mistakes."""

import math

import numpy as np
import pytest

from experiments import claims
from experiments.configs import data_pruning as configs
from experiments.studies import data_pruning as study
from limits import pruning


@pytest.fixture(scope="module")
def config():
    config = configs.get_config("smoke")
    config.angles, config.shares, config.kept, config.dim = (0.0,), (1.0, 0.1), (1.0, 4.0), 30
    config.settings = (*config.settings[:6], *study.NEEDED)
    config.seeds = (0, 1, 2)
    config.task.num_train, config.task.num_test = 300, 100
    config.images.width, config.images.steps = 32, 80
    config.images.seeds, config.images.batch_size = (0, 1), 32
    return config


@pytest.fixture(scope="module")
def data(config):
    return study.run(config)


def test_theory_and_wrong_labels_are_found_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert len(judged) == 34
    of_theory = [claim for name, claim in judged.items() if name in data.quantity]
    assert len(of_theory) == 12
    assert all(claim.passed for claim in of_theory), of_theory
    assert judged["2 theory, wrong angle"].passed
    assert judged["11 wrong labels, bottom"].passed
    assert float(data.mislabelled[1, 0]) > 0.5
    assert float(data.agreement.sel(labels="right labels", epoch=10, end="value")) > 0.9


def test_networks_learn_and_half_is_nearly_all(data):
    full = data.full.sel(labels="right labels").mean()
    hard = data.accuracy.sel(labels="right labels", order="EL2N", share=0.5).mean()
    assert full > 0.8
    assert abs(full - hard) < 0.1


def test_a_student_is_the_theorys():
    errors = [study.student(60, 20.0, 3.0, 0.3, 1.0, seed) for seed in range(12)]
    found = pruning.perceptron(10.0, 0.3, probe_angle=math.radians(20)).error
    assert abs(np.mean(errors) - found) < 3 * np.std(errors, ddof=1) / math.sqrt(12) + 0.02
    easy = [study.student(60, 0.0, 2.0, 0.4, 0.0, seed) for seed in range(6)]
    hard = [study.student(60, 0.0, 1.0, 0.1, 1.0, seed) for seed in range(6)]
    assert np.mean(easy) < 0.15 < 0.4 < np.mean(hard)


def test_claims_can_fail(data):
    wrong = data.copy(deep=True)
    wrong["number"] = data.number * 0 + 3.0
    wrong["simulated"] = data.simulated * 3
    wrong["accuracy"] = data.accuracy * 0 + data.full - 0.02
    wrong["accuracy"][:, :, 0] += (
        0.01 * np.where(data.labels == "right labels", 1, -1)[:, None, None]
    )
    wrong["accuracy"].loc[{"order": "EL2N, easy", "share": 0.05}] -= 0.01
    for name in ("agreement", "reliability", "mislabelled"):
        wrong[name] = data[name] * 0 + 0.5
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held
    assert len(study.claims(wrong)) == len(study.claims(data))


def test_figures(data):
    assert set(study.figures(data)) == {"perceptron", "images", "scores"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": (1.5,)}, r"shares\[0\] is 1.5"),
        ({"settings": ((0.0, 1.5, 0.1, 1.0),) * 6}, "without repetitions"),
        ({"dim": 5}, "dim is 5"),
        ({"images.skip": 0.5, "images.shares": (0.05, 0.5, 0.6)}, "images.shares"),
        ({"images.score_seeds": (0, 1, 2, 3)}, "others than images.seeds"),
        ({"images.epochs": (0, 1)}, "epochs"),
        ({"images.wrong": 0.0}, "wrong is 0.0"),
    ],
)
def test_mistakes_are_refused(change, message):
    config = configs.get_config("smoke")
    for key, value in change.items():
        with config.ignore_type():
            config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        study.run(config)


def test_presets_count_their_units(config):
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    assert study.total_steps(config) == 1 + 1 + 8 + 2
    assert claims.summary([]) == "no claims"
