"""Deep kernel machines: claims on data as theory has them and on others, the sampler against a known posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import claims
from experiments.configs import deep_kernel_machines as configs
from experiments.studies import deep_kernel_machines as study


def lawful():
    """Data as theory has them, three seeds alike."""
    nu, copies = np.array(study.NUS), np.array([4, 16, 64])
    learning = np.array([0.1, 1.0, 10.0, 1e4])

    def over_seeds(values):
        return np.repeat(np.asarray(values, float)[..., None], 3, -1)

    error = np.array([[0.05, 0.02, 0.2, 0.4], [0.9, 0.8, 0.5, 0.5]])
    align = np.array([[0.999, 0.998, 0.9, 0.6], [0.5, 0.5, 0.5, 0.5]])
    prediction = ("target", "learning_nu", "prediction_seed")
    distance = np.where(nu < 50, 1.0 / (1 + nu / 10), 10 / nu)
    return xr.Dataset(
        {
            "linear_error": (("widths", "linear_seed"), over_seeds([1e-7] * 4)),
            "equal_error": (("widths", "linear_seed"), over_seeds([1e-12, 1e-12, 0.3, 0.5])),
            "distance": (("kernel", "nu", "nngp_seed"), over_seeds([distance, distance])),
            "posterior_distance": (("copies", "posterior_seed"), over_seeds([0.24, 0.06, 0.01])),
            "prior_distance": (("copies", "posterior_seed"), over_seeds([0.5] * 3)),
            "posterior_sd": (("copies", "posterior_seed"), over_seeds(copies**-0.5)),
            "bound": (("inducing", "sparse_seed"), over_seeds([-60.0, -20.0, -8.0])),
            "full": ("sparse_seed", over_seeds(-8.0)),
            "sparse_gram": ("sparse_seed", over_seeds(1e-8)),
            "error": (prediction, over_seeds(error)),
            "nngp_error": (prediction, over_seeds(np.full((2, 4), 0.41))),
            "train_likelihood": (
                prediction,
                over_seeds(np.tile([15.0, 7.0, -17.0, -30.0], (2, 1))),
            ),
            "alignment": (prediction, over_seeds(align)),
        },
        {
            "widths": list(study.WIDTHS),
            "kernel": list(study.KERNELS),
            "nu": nu,
            "copies": copies,
            "inducing": [3, 6, 12],
            "target": ["one direction", "radial"],
            "learning_nu": learning,
        },
    )


def judged(data):
    return {claim.name: claim for claim in study.claims(data)}


def test_data_as_theory_has_them_pass_and_their_controls_fail():
    found = judged(lawful())
    wrong = {n: claims.verdict(claim) for n, claim in found.items() if not claim.passed}
    assert not wrong
    assert found["D3 nu to infinity, ReLU"].measured == pytest.approx(-1, abs=1e-9)
    assert found["D5 the posterior narrows"].measured == pytest.approx(-0.5, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("D1 closed form", lambda d: {"linear_error": d.linear_error * 1e3}),
        ("D3 nu to infinity, ReLU", lambda d: {"distance": d.distance**0.5}),
        ("D4 wide processes are machines", lambda d: {"posterior_distance": d.prior_distance}),
        (
            "D4 the wider the nearer",
            lambda d: {"posterior_distance": d.posterior_distance * d.copies**2},
        ),
        ("D5 the posterior narrows", lambda d: {"posterior_sd": d.posterior_sd**2}),
        ("D6 all inducing", lambda d: {"bound": d.bound - 0.1}),
        ("D7 a bound that rises", lambda d: {"bound": -d.bound}),
        ("D7 a lower bound", lambda d: {"full": d.full - 0.1}),
        ("D8 the fit improves", lambda d: {"train_likelihood": -d.train_likelihood}),
        ("D9 learning pays", lambda d: {"error": d.nngp_error}),
        ("D10 an optimum inside", lambda d: {"error": d.error.sortby("learning_nu") * 0 + 1}),
        ("D11 the direction is found", lambda d: {"alignment": d.alignment * 0.9}),
    ],
)
def test_claims_fail_on_data_that_are_not(name, change):
    data = lawful()
    assert not judged(data.assign(change(data)))[name].passed


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_sampler_keeps_a_known_posterior(monkeypatch):
    """Where targets say nothing the posterior is the prior: E G = C C^T, var G_ij = (K_ii K_jj + K_ij^2) / N."""
    monkeypatch.setitem(study.NOISE, "posterior", 1e6)
    random = np.random.default_rng(0).normal(size=(3, 5))
    kernel = random @ random.T / 5 + 0.2 * np.eye(3)
    root = jnp.asarray(np.linalg.cholesky(kernel))
    mean, spread = study._sample(jax.random.key(0), root, jnp.zeros((3, 1)), copies=8, samples=3000)
    variance = (np.outer(np.diag(kernel), np.diag(kernel)) + kernel**2) / 8
    error = np.sqrt(variance / 3000)
    assert (np.abs(np.asarray(mean) - kernel) < 8 * error).all()
    assert float(spread) == pytest.approx(np.sqrt(variance).mean(), rel=0.1)


def test_the_problem_is_the_same_for_the_same_seed_and_positive():
    one, other = study.problem(6, 3, 1), study.problem(6, 3, 1)
    np.testing.assert_array_equal(one[0], other[0])
    assert np.linalg.eigvalsh(one[0])[0] > 0.04
    assert one[1].shape == (6, 1)


def test_a_wrong_configuration_is_refused():
    config = configs.get_config("smoke")
    config.prediction.nus = (10.0, 100.0, 1e4)
    with pytest.raises(ValueError, match=r"includes 1.0, 10000.0"):
        study.check(config)


def test_the_parts_make_one_dataset_that_is_judged_and_drawn(monkeypatch):
    """Units replaced by numbers: what is tested is how they are put together."""
    config, data = configs.get_config("smoke"), lawful()
    points, sizes = config.prediction.points, {"bound": 3}

    def unit(part, **point):
        return {
            name: np.ones(sizes[name]) if name in sizes else 0.5
            for name in data
            if name.startswith(unit.names)
        } | {"test_likelihood": -1.0, "gram": np.eye(points)}

    unit.names = tuple(data)
    for name in ("_linear", "_nngp", "_posterior", "_sparse", "_prediction"):
        monkeypatch.setattr(study, name, unit)
    made = study.run(config)
    assert dict(made.gram.sizes) == {
        **{"target": 2, "learning_nu": 3, "prediction_seed": 2},
        **{"row": points, "column": points},
    }
    assert made.bound.dims == ("sparse_seed", "inducing")
    assert set(judged(made)) == set(judged(data))
    assert set(study.figures(made)) == {"prediction", "gram_matrices", "limits"}
