"""Trials: what an ideal observer reads off them is their label."""

import numpy as np
import pytest
from scipy.stats import norm

from experiments.tasks import neuro

N, T = 2000, 8


def stimuli(data, first=1):
    return data.x[:, :-1, first : first + 2].mean(axis=1)


def observer(name, data):
    """The choice, 1 or 2, from the sequences alone, noise averaged away."""
    if name == "two_alternative":
        return 1 + (stimuli(data)[:, 0] < stimuli(data)[:, 1])
    if name == "context":
        pairs = [data.x[:, :-1, [1 + k, 3 + k]].mean(axis=1) for k in (0, 1)]
        cue = data.x[:, 0, 5:7].argmax(axis=1)
        chosen = np.where(cue[:, None] == 0, *pairs)
        return 1 + (chosen[:, 0] < chosen[:, 1])
    first, second = data.x[:, :2, 1].mean(axis=1), data.x[:, 5:7, 1].mean(axis=1)
    return 1 + ((first > 0.5) != (second > 0.5))


@pytest.mark.parametrize("name", neuro.TASKS)
def test_the_label_is_what_the_stimuli_say(name):
    data = neuro.TASKS[name](N, T, 0)
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int32
    assert data.x.shape[:2] == data.y.shape == (N, T)
    assert (data.y[:, :-1] == 0).all()
    assert (data.x[:, -1] == 0).all()
    assert (data.x[:, :-1, 0] == 1).all()
    choice = data.y[:, -1]
    assert (observer(name, data) == choice).mean() > 0.95
    assert abs((choice == 1).mean() - 0.5) < 0.05
    again, other = neuro.TASKS[name](N, T, 0), neuro.TASKS[name](N, T, 1)
    np.testing.assert_array_equal(data.x, again.x)
    assert (data.x != other.x).any()


def test_an_ideal_observer_of_two_alternatives_reaches_what_the_study_says():
    """Seven samples of a difference of mean z and deviation .1 sqrt(2): mean of Phi(z sqrt(7) / .1 sqrt(2)) over z."""
    exact = norm.cdf(np.array(neuro.COHERENCES) * 7**0.5 / (0.1 * 2**0.5)).mean()
    assert exact == pytest.approx(0.969, abs=5e-4)
    data = neuro.two_alternative(20_000, T, 3)
    right = (observer("two_alternative", data) == data.y[:, -1]).mean()
    assert right == pytest.approx(exact, abs=4 * (0.03 / 20_000) ** 0.5)


def test_context_matters_and_the_other_pair_misleads():
    data = neuro.context(N, T, 0)
    first = 1 + (data.x[:, :-1, 1].mean(axis=1) < data.x[:, :-1, 3].mean(axis=1))
    assert 0.65 < (first == data.y[:, -1]).mean() < 0.85


def test_coherences_and_noise_are_those_asked_for():
    data = neuro.two_alternative(N, T, 0, noise=0.0)
    apart = np.abs(data.x[:, 0, 1] - data.x[:, 0, 2]).astype(float)
    assert set(apart.round(4)) == set(neuro.COHERENCES)
    noisy = neuro.two_alternative(N, T, 0)
    spread = (noisy.x[:, 0, 1] - noisy.x[:, 1, 1]).std() / 2**0.5
    assert spread == pytest.approx(0.1, rel=0.05)
    for wrong in ({"num_trials": 0}, {"steps": 1}, {"noise": -1.0}):
        with pytest.raises(ValueError, match="must be at least 1, 2 and 0"):
            neuro.two_alternative(**({"num_trials": 4, "steps": 4, "seed": 0} | wrong))
