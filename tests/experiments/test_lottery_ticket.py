"""Lottery tickets: chains of masks, what each network keeps fixed, claims on designed data, and figures."""

import numpy as np
import pytest

from experiments import claims
from experiments.configs import lottery_ticket as configs
from experiments.studies import lottery_ticket as study


def small():
    config = configs.get_config("smoke")
    config.update({"hidden": (12,), "budgets": (5, 20, 40), "num_kernel": 10})
    return config


@pytest.fixture(scope="module")
def data():
    return study.run(small())


def test_densities_fall_by_a_fifth_a_round_and_dense_networks_are_alike(data):
    hidden, readout = 64 * 12, 12 * 10
    for count in range(max(data["round"].values) + 1):
        if count in data["round"]:
            left = data.density.sel(round=count)
            np.testing.assert_allclose(left, (hidden + readout) / (64 * 12 + 12 * 10))
        hidden, readout = hidden - int(hidden * 0.2), readout - int(readout * 0.1)
    dense = data.sel(round=0)
    accuracy, target = dense.accuracy, dense.target
    np.testing.assert_array_equal(accuracy.sel(net="random mask"), accuracy.sel(net="ticket"))
    for mask in ("random masks", "other random masks"):
        np.testing.assert_allclose(target.sel(mask=mask), target.sel(mask="ticket"), rtol=1e-5)
    assert (dense.kept > 1 - 1e-5).all()
    assert (data.kept.sel(round=16) < 0.999).all()
    assert (target.sel(mask="new weights") != target.sel(mask="ticket")).all()


def test_the_dense_network_learns(data):
    accuracy = data.accuracy.sel(round=0, net="ticket")
    assert (accuracy.sel(budget="long") > accuracy.sel(budget="early")).all()
    assert (accuracy.sel(budget="long") > 0.2).all(), "chance is 0.1"


def designed(data, ticket):
    """Tickets better than new weights than random masks, by as much as ticket says; else nothing but noise."""
    random, pruned = np.random.default_rng(0), (data["round"].values > 0)[:, None]
    order = ticket * np.array([1, 0, -0.5, -0.5])
    fall = np.array([2.5, 1.0, 0.6])  # early, short, long
    accuracy = 0.5 + (pruned * order[:3])[..., None] * fall
    kept = 0.5 + pruned * order
    made = {"accuracy": accuracy, "kept": kept, "target": kept}
    noise = {name: 1e-4 * random.normal(size=data[name].shape) for name in made}
    return data.assign({k: (data[k].dims, v + noise[k]) for k, v in made.items()})


def test_designed_data_pass_and_fail(data):
    good = study.claims(designed(data, 0.1))
    assert len(good) == 23
    lost = [claim for claim in good if not claim.passed]
    assert not lost, lost
    bad = study.claims(designed(data, -0.1))
    held = [claim.name for claim in bad if claim.passed and not claim.control]
    assert not held
    assert all(claims.verdict(c) == "fails, as it must" for c in good if c.control)


def test_figures_and_mistakes(data):
    assert set(study.figures(data)) == {"accuracy", "kernels"}
    with pytest.raises(ValueError, match=r"smoke, cpu, paper"):
        configs.get_config("gpu")
    for key, value, message in (
        ("share", 1.0, r"config.share is 1.0"),
        ("num_kernel", 10**6, "num_kernel is 1000000; it must be at most 360, the test set"),
        ("rounds", (0, 6), "that includes"),
    ):
        config = small()
        config[key] = value
        with pytest.raises(ValueError, match=message):
            study.run(config)
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
