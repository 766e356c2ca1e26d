"""Wide and deep optimality: label probabilities by a second road, claims on the written files, controls that fail."""

import numpy as np
import pytest
from scipy import stats

from experiments import claims, rundir
from experiments.configs import wide_deep_optimality as configs
from experiments.studies import wide_deep_optimality as study


@pytest.fixture(scope="module")
def data(smoke_run):
    return rundir.read_dataset(smoke_run("wide_deep_optimality")[0] / "data.nc")


@pytest.fixture(scope="module")
def judged(data):
    return {claim.name: claim for claim in study.claims(data)}


def test_risk_is_the_error_of_drawn_labels():
    random = np.random.default_rng(0)
    probability, scores = random.random(50), random.normal(size=50)
    scores[0] = 0
    drawn = np.stack([study.draw(probability, random) for _ in range(4000)])
    wrong = (drawn != np.sign(scores)) * (scores != 0) + 0.5 * (scores == 0)
    error = wrong.mean(axis=1)
    assert study.risk(scores, probability) == pytest.approx(error.mean(), abs=4e-3)


@pytest.mark.parametrize("d", study.DIRICHLET)
def test_probability_of_a_dirichlet_label_is_bayes_rule(d):
    random = np.random.default_rng(d)
    x, labels, probability = study.dirichlet(d, 2000, 0.4, random)
    assert x.shape == (2000, d + 1)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
    points = x / x.sum(axis=1, keepdims=True)
    inside = (points > 1e-8).all(axis=1)  # where renormalised points are in scipy's domain
    first, second = (
        np.array([stats.dirichlet.pdf(p / p.sum(), a) for p in points[inside]])
        for a in study.DIRICHLET[d]
    )
    expected = 0.4 * first / (0.4 * first + 0.6 * second)
    np.testing.assert_allclose(probability[inside], expected, rtol=1e-5, atol=1e-9)
    calibration = ((labels > 0) - probability).mean()
    assert abs(calibration) < 0.04


def test_stripes_have_the_stated_errors():
    x = study.sphere(50_000, 1, np.random.default_rng(0))
    probability = study.striped(x)
    assert study.risk(probability - 0.5, probability) == pytest.approx(0.2)
    assert study.risk(-np.ones(len(x)), probability) == pytest.approx(0.35, abs=0.005)
    assert np.mean(probability > 0.5) == pytest.approx(0.25, abs=0.01)


def test_the_claims_hold_on_a_small_run_and_the_controls_fail(judged):
    small = {name for name in judged if "depth 3000" in judged[name].statement}
    failed = [name for name, claim in judged.items() if not claim.passed and name not in small]
    assert not failed
    controls = [claim for claim in judged.values() if claim.control]
    assert len(controls) == 5
    assert all(claims.verdict(claim) == "fails, as it must" for claim in controls)


def test_claims_can_fail(data):
    """Data that contradict each claim are found out."""
    wrong = data.copy(deep=True)
    wrong["log_psi"] = wrong.log_psi * 1.1
    for name in ("noise_error", "dirichlet_error"):
        wrong[name].values = data[name].values[..., ::-1]  # the order of the classifiers reversed
    wrong["stripe_error"] = data.stripe_error.roll(exponent=1)
    for name in data:
        if name.endswith(("_agreement", "_fit")):
            wrong[name] = data[name] * 0.9
    wrong["relu_ratio"] = data.relu_ratio + 0.01
    wrong["digit_nearest"] = data.digit_deep.isel(digit_dimension=0)
    held = [claim.name for claim in study.claims(wrong) if claim.passed and not claim.control]
    assert not held


def test_every_part_has_its_figure(data):
    figures = study.figures(data)
    assert len(figures) == 8
    assert all(figure.get_label() for figure in figures.values())


def test_an_unknown_preset_and_task_are_named():
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    config = configs.get_config("smoke")
    config.task.name = "digit"
    with pytest.raises(ValueError, match="digits"):
        study._digit_examples(config, 0.0, 0)


def test_presets_count_their_steps():
    for preset in configs.PRESETS:
        assert study.total_steps(configs.get_config(preset)) > 0
