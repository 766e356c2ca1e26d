"""The principles: networks against derivatives written out, errors that are spreads, claims that can fail, controls."""

import jax
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree

from experiments import claims, rundir
from experiments.configs import principles as configs
from experiments.studies import principles as study
from experiments.studies.principles_claims import SHAPES, _expected, extrapolated, fit, pooled


@pytest.fixture(scope="module")
def data(smoke_run):
    return rundir.read_dataset(smoke_run("principles")[0] / "data.nc")


@pytest.fixture(scope="module")
def network():
    """A small network at one draw of its weights: flat parameters, outputs, Jacobian and Hessian."""
    keys = jax.random.split(jax.random.key(3), 1)
    init, apply_fn, x, _ = study._network("tanh", 3)
    flat, unravel = ravel_pytree(init(keys[0]))

    def outputs(flat):
        return apply_fn(unravel(flat), x)[0]

    parts = outputs(flat), jax.jacrev(outputs)(flat), jax.hessian(outputs)(flat)
    return keys, *(np.asarray(part, float) for part in parts)


def test_the_kernels_derivative_is_the_third_order_sum_over_parameters(network):
    """n P's summand: sum over i != j of z_i z_i'' z_j' z_j', with the Hessian written out."""
    keys, z, jacobian, hessian = network
    dH = np.einsum("iab,ja,jb->ij", hessian, jacobian, jacobian)
    pairs = ~np.eye(len(z), dtype=bool)
    expected = (z[:, None] * dH)[pairs].mean()
    found = np.asarray(study._changes("tanh", 3)[0](keys))
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4)


def test_tangent_statistics_are_those_of_the_jacobian(network):
    keys, z, jacobian, _ = network
    H, pairs = jacobian @ jacobian.T, ~np.eye(len(z), dtype=bool)
    draw, _ = study._kernels("tanh", 3)
    off = np.diag(H) - study._network("tanh", 3)[3].Theta[-1]
    expected = [
        (H[pairs] ** 2).mean(),
        (np.outer(z, z) * H)[pairs].mean(),
        np.outer(off, off)[pairs].mean(),
    ]
    np.testing.assert_allclose(np.asarray(draw(keys))[0], expected, rtol=1e-3, atol=1e-5)


def test_an_error_over_blocks_is_the_spread_of_repetitions():
    random = np.random.default_rng(0)
    found = [study._blocks(random.normal(size=2000), lambda G: G.var(ddof=1)) for _ in range(60)]
    values, errors = np.array(found).T
    assert values.std(ddof=1) == pytest.approx(errors.mean(), rel=0.25)
    assert values.mean() == pytest.approx(1, abs=0.02)


def test_activations_begin_where_they_are_critical():
    fn, (C_W, C_b), found = study._start("GELU")
    assert (fn, C_W, C_b) == (study.gelu, found.C_W, found.C_b)
    assert study._start("tanh, C_W = 1.1")[1] == (1.1, 0.0)
    widths, depths = zip(*SHAPES.values())
    assert {d / w for w, d in zip(widths[:3], depths[:3])} == {0.25}
    assert set(widths[3:]) == {64}


@pytest.mark.slow
def test_controls_fail_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    exact = ("1 critical", "3 ", "7 ", "8 ", "11 ", "13 ")
    for name, claim in judged.items():
        if name.startswith(exact):
            assert claim.passed, claim
    assert sum(claims.verdict(claim) == "NOT MEASURED" for claim in judged.values()) == 0


@pytest.mark.slow
def test_errors_over_networks_fit_the_spread_over_seeds(data):
    _, error = pooled(data, "sampled")
    first = abs(data.sampled.isel(seed=0) - data.sampled.isel(seed=1)) / 2
    ratio = (first / error).isel(sampled_layer=slice(1, None))
    assert 0.3 < float(ratio.mean()) < 2


@pytest.mark.slow
def test_claims_can_fail(data):
    """Half the fluctuations, nothing critical, contributions that grow, another series."""
    measured = ("sampled", "aspect", "pair", "residual", "tangent", "change", "V", "variance")
    half = {name: data[name] / 2 for name in measured}
    layers = 1 + data.rate_layer / 50
    other = {
        "off": data.off + 0.1,
        "K": data.K.max("activation") + 0 * data.K,
        "nu": 2 * data.nu,
        "mean_shift": data.mean_shift + 10 * data.mean_shift_error + 1,
        "contribution": data.contribution * layers,
        "cubic": data.cubic + 1,
        "exact_growth": data.series_growth,
        "residual_slope": 2 * data.residual_slope,
    }
    wrong = data.assign(half | other)
    held = {c.name for c in study.claims(wrong) if c.passed and not c.control}
    # Halves of all widths keep their ratios, and what is left of the kernel's change is more than nothing.
    allowed = {
        "10 it is of order 1 / width",
        "10 tanh networks learn",
        "3 V = nu (depth − 1) for piecewise linear",
    }
    assert {name for name in held if not name.startswith("7 depth over width")} <= allowed, held


@pytest.mark.slow
def test_every_part_has_its_figure(data):
    assert set(study.figures(data)) == {
        *("depth_over_width", "flow", "susceptibilities", "order_of_the_error"),
        *("residual_connections", "contributions", "information"),
    }


def test_the_power_law_of_an_exact_excess():
    import xarray as xr

    widths = np.array([25, 50, 100, 200])
    shape = (1, 4, 2, 1)
    sampled = np.broadcast_to((2 * (1 + 3.0 / widths))[None, :, None, None], shape)
    made = xr.Dataset(
        {
            "sampled": (("sampled_activation", "sampled_width", "seed", "sampled_layer"), sampled),
            "sampled_error": (
                ("sampled_activation", "sampled_width", "seed", "sampled_layer"),
                0 * sampled + 1e-3,
            ),
            "sampled_theory": (
                ("sampled_activation", "sampled_width", "seed", "sampled_layer"),
                0 * sampled + 2.0,
            ),
        },
        {"sampled_activation": ["ReLU"], "sampled_width": widths},
    )
    exponent, error = fit(made)
    assert exponent == pytest.approx(-1, abs=1e-9)
    assert 0 < error < 0.05
    assert np.isnan(fit(made.assign(sampled=-made.sampled))[0])


def test_two_widths_are_carried_on_to_infinite_width():
    import xarray as xr

    dims, widths = ("residual_width", "seed"), np.array([200.0, 400.0])
    values = np.stack([3 + 70 / widths] * 2, axis=1)
    made = xr.Dataset(
        {"residual": (dims, values), "residual_error": (dims, 0 * values + 0.1)},
        {"residual_width": widths},
    )
    value, error = extrapolated(made)
    assert float(value) == pytest.approx(3)
    assert float(error) == pytest.approx(0.1 / 2**0.5 * 5**0.5)


def test_mistakes_are_named():
    wrong = configs.get_config("smoke")
    wrong.sampled.widths = (50, 100, 200)
    with pytest.raises(ValueError, match=r"includes 25, 100: claims are about them"):
        study.check(wrong, None)
    wrong = configs.get_config("smoke")
    wrong.residual.gammas = (0.5, 1.0)
    with pytest.raises(ValueError, match=r"residual\.gammas\[1\] is 1\.0"):
        study.check(wrong, None)
    with pytest.raises(ValueError, match="smoke, cpu, paper"):
        configs.get_config("gpu")
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)


def test_the_exponent_asked_for_is_that_of_the_exact_law():
    """By hand at two widths: log2 of the ratio of ((1 + 5 / n)^10 - 1) n / 50 - 1."""

    def expected(widths):
        where = {"sampled_width": widths, "sampled_layer": [2, 11]}
        return _expected(xr.Dataset(coords=where))

    narrow, wide = (((1 + 5 / n) ** 10 - 1) * n / 50 - 1 for n in (100, 200))
    assert expected([25, 100, 200]) == pytest.approx(np.log2(wide / narrow))
    assert expected([50, 100, 200, 400]) == pytest.approx(-1.115, abs=5e-4)
    assert expected([10_000, 20_000]) == pytest.approx(-1, abs=2e-3)
