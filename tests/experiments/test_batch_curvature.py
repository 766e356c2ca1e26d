"""Batch size: claims on data that obey the laws and on data that do not, padded batches, units against formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments import claims, tasks
from experiments.configs import batch_curvature as configs
from experiments.studies import batch_curvature as study


def lawful():
    """Data exactly as the laws have them; the noise of the measurement is 1 %."""
    sizes, seeds = np.array([16, 32, 64, 128, 256, 512]), 3
    inverse, excess = 1 / sizes - 1 / 1437, 50.0
    top = np.array([2.0, 2.2, 2.4])
    law = top[:, None] + excess * inverse[None]
    kinds = np.stack([law, 0 * law + top[:, None] + 1e-3, 0 * law + top[:, None] + 1e-2], 1)
    batches = np.array([1, 2, 4, 16, 64, 256])
    rate = 2 / (1.5 + 40 / batches)
    linear = np.where(batches <= 4, batches / 20.0, rate)
    largest = np.stack([linear, 0.03 * np.sqrt(batches)])[..., None] * np.ones(seeds)
    spikes = np.array([0.7, 1.5, 3.0])
    random = np.broadcast_to((spikes + 1 / spikes)[None, :, None], (2, 3, seeds))
    bare = np.broadcast_to(spikes[None, :, None], (2, 3, seeds))
    random_dims = ("law", "spike", "synthetic_seed")
    return xr.Dataset(
        {
            "random_top": (random_dims, random),
            "random_law": (random_dims, random),
            "random_bare": (random_dims, bare),
            "top": ("seed", top),
            "law_top": (("seed", "kind", "batch"), kinds),
            "gap": ("seed", np.full(seeds, 0.4)),
            "law_error": (("seed", "batch"), 0.05 * excess * inverse + 0 * law),
            "measured": (("seed", "batch"), law),
            "measured_error": (("seed", "batch"), 0.01 * law),
            "smallest": (("seed", "smallest_of"), np.tile([-0.02, -0.8], (seeds, 1))),
            "early_top": ("seed", np.full(seeds, 1.5)),
            "early_excess": ("seed", np.full(seeds, 40.0)),
            "largest_rate": (("optimizer", "rate_batch", "rate_seed"), largest),
        },
        {
            "law": ["Hessians", "gradients"],
            "spike": spikes,
            "kind": list(study.LAWS),
            "batch": sizes,
            "inverse": ("batch", inverse),
            "smallest_of": ["all", "batch"],
            "optimizer": ["sgd", "adam"],
            "rate_batch": batches,
        },
    )


def judged(data):
    return {claim.name: claim for claim in study.claims(data)}


def test_data_that_obey_the_laws_pass_and_their_controls_fail():
    found = judged(lawful())
    # Rates that saturate so slowly are no saturation; the rest is exact.
    wrong = {name for name, claim in found.items() if not claim.passed}
    assert wrong <= {"B6 SGD saturates"}, {n: claims.verdict(found[n]) for n in wrong}
    assert found["B3 the excess is proportional to 1/b"].measured == pytest.approx(1, abs=1e-6)
    assert found["B7 Adam, square-root rule"].measured == pytest.approx(0.5, abs=1e-6)
    assert found["B6 SGD, linear rule"].measured == pytest.approx(1.0, abs=1e-6)
    assert found["B8 rates follow the sharpness of batches"].measured == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("B1 random Hessians, the law", lambda d: {"random_top": d.random_top * 1.02}),
        ("B2 batches are sharper", lambda d: {"measured": d.top + 0 * d.measured}),
        ("B2 the smaller the sharper", lambda d: {"measured": d.measured + 0.01 * d.batch}),
        (
            "B3 the excess is proportional to 1/b",
            lambda d: {"measured": d.top + 10 * d.inverse**0.5 + 0 * d.measured},
        ),
        ("B4 errors, law, measured noise", lambda d: {"measured": d.measured + 0.2}),
        (
            "B4 excess, law, measured noise",
            lambda d: {"measured": d.top + 1.5 * (d.measured - d.top)},
        ),
        ("B5 the smallest eigenvalue grows too", lambda d: {"smallest": 0 * d.smallest - 1.0}),
        ("B6 SGD, linear rule", lambda d: {"largest_rate": d.largest_rate**0.5}),
        ("B7 Adam, square-root rule", lambda d: {"largest_rate": d.largest_rate**2}),
        (
            "B8 rates follow the sharpness of batches",
            lambda d: {"largest_rate": d.largest_rate * d.rate_batch},
        ),
    ],
)
def test_claims_fail_on_data_that_do_not(name, change):
    data = lawful()
    assert not judged(data.assign(change(data)))[name].passed


def test_the_law_is_judged_where_it_is_valid():
    """What it misses where the excess is no small part of the gap fails nothing; without others nothing is said."""
    data = lawful()
    bent = data.measured + 20 * data.inverse**2 * (data.batch <= 256) * 100
    found = judged(data.assign(measured=bent))
    assert found["B4 excess, law, measured noise"].measured == pytest.approx(1)
    narrow = judged(data.assign(gap=0.01 * data.gap))["B4 excess, law, measured noise"]
    assert claims.verdict(narrow) == "NOT MEASURED"


def test_the_mean_of_the_leading_examples_of_a_batch_is_that_of_a_smaller_batch():
    def losses(params, batch):
        return (params * batch[0] - batch[1]) ** 2

    x, y = jnp.arange(16.0), jnp.ones(16)
    for size in (1, 4, 16):
        ours, alone = (
            jax.value_and_grad(loss)(2.0)
            for loss in (
                lambda p, size=size: study.leading(losses, size, p, (x, y)),
                lambda p, size=size: losses(p, (x[:size], y[:size])).mean(),
            )
        )
        np.testing.assert_allclose(ours, alone, rtol=1e-6)


def test_random_matrices_against_their_laws_by_hand():
    config = configs.get_config("smoke")
    config.synthetic.size, config.synthetic.matrices = 60, 2
    part = study._random(config.synthetic, "Hessians", 3.0, 0)
    assert part["random_law"] == pytest.approx(3 + 1 / 3, rel=1e-6)
    assert part["random_top"] == pytest.approx(3 + 1 / 3, rel=0.2)
    part = study._random(config.synthetic, "gradients", 3.0, 0)
    top = 3 * 0.1 * (1 + 0.5**0.5)
    assert part["random_bare"] == pytest.approx(top)
    assert part["random_law"] == pytest.approx(top * (1 + 0.5 * 0.1 / (top - 0.1)), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sharpness.batch_sizes", (16, 64, 256, 100000), "below 1437, all examples"),
        ("sharpness.batch_sizes", (16, 32, 64), "includes 16, 64, 256"),
        ("rates.log2_adam", (-8.0, 0.0, 5), "as many rates as of log2_sgd"),
    ],
)
def test_refused_before_anything_is_made(key, value, message):
    config = configs.get_config("smoke")
    part, name = key.split(".")
    config[part][name] = value
    with pytest.raises(ValueError, match=message):
        study.check(config, tasks.load(config.task))


def test_the_parts_make_one_dataset_that_is_judged_and_drawn(monkeypatch):
    """Training replaced by its lawful results: what is tested is how the parts are put together."""
    config, data = configs.get_config("smoke"), lawful()
    config.synthetic.size, config.synthetic.matrices = 10, 1
    config.synthetic.spikes = (1.5, 3.0)
    rates = data[["largest_rate"]].assign(best_rate=data.largest_rate)
    rest = ["top", "gap", "law_top", "law_error", "measured", "measured_error", "smallest"]
    sharpness = data[[*rest, "early_top", "early_excess"]]
    monkeypatch.setattr(study, "_sharpness", lambda *_: sharpness)
    monkeypatch.setattr(study, "_rates", lambda *_: rates)
    made = study.run(config)
    assert made.random_top.dims == ("law", "spike", "synthetic_seed")
    assert set(judged(made)) == set(judged(data))
    assert set(study.figures(made)) == {"sharpness", "learning_rates"}
