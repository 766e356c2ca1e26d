"""Wide CNNs: their kernels by the recursion of the paper, claims on written files, controls, mistakes."""

import math

import numpy as np
import pytest

import metrics
from experiments import claims, rundir, tasks
from experiments.configs import cnn_learning_curves as configs
from experiments.studies import cnn_learning_curves as study


@pytest.fixture
def config():
    return configs.get_config("smoke")


@pytest.fixture(scope="module")
def data(smoke_run):
    return rundir.read_dataset(smoke_run("cnn_learning_curves")[0] / "data.nc")


def recursion(cosines, groups, get):
    """Kernels from the cosines of patches, (p, n, n): arc-cosine kernels and means over the patches that are joined."""

    def joined(a, size):
        return a.reshape(-1, size, *a.shape[1:]).mean(1)

    nngp = ntk = cosines
    for size in (*groups, None):
        size = size or len(nngp)
        t = np.clip(nngp, -1, 1)
        zeroth, first = (math.pi - np.arccos(t)) / math.pi, np.sqrt(1 - t**2) / math.pi
        first = first + zeroth * t
        ntk = joined(zeroth * ntk, size) + joined(first, size)
        nngp = joined(first, size)
    return (ntk if get == "ntk" else nngp)[0]


@pytest.mark.parametrize("name", ["d = 1", "d = 2", "d = 4"])
def test_the_kernels_are_the_papers(name):
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (12, 4))
    cosines = np.cos(angles.T[:, :, None] - angles.T[:, None, :])
    for get in ("ntk", "nngp"):
        found = study.evaluated(study.cnn(study.GROUPS[name]), study.circles(angles), None, get)
        expected = recursion(cosines, study.GROUPS[name], get)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_embedding_has_the_dimension_that_it_is_told():
    for d in (1, 2):
        random = np.random.default_rng(d)
        x = study.embedding(d, 20, random.uniform(0, 2 * np.pi, (800, d)), random)
        assert x.shape == (800, 20)
        np.testing.assert_allclose((x**2).sum(1), 20)
        assert np.linalg.matrix_rank(x - x.mean(0)) > 2 * d  # curved
        assert metrics.intrinsic_dimension(x).value == pytest.approx(d, rel=0.12)


def test_predictions_are_of_the_mean_over_teachers():
    """Gaussian teachers drawn one by one, against the columns of the root of their kernel."""
    random = np.random.default_rng(0)
    x = study.circles(random.uniform(0, 2 * np.pi, (320, 2)))
    teacher, student = (study.evaluated(study.cnn(study.GROUPS[d]), x) for d in ("d = 1", "d = 2"))
    found = study.regressions(teacher, student, (40, 80), 240, 40, random)
    np.testing.assert_allclose(found, study.predicted(student, teacher, (40, 80)), rtol=0.15)


@pytest.mark.slow
def test_controls_fail_and_claims_hold_on_a_small_run(data):
    judged = {claim.name: claim for claim in study.claims(data)}
    assert all(claims.verdict(c) == "fails, as it must" for c in judged.values() if c.control)
    for name in (
        *("1 sector of two patches, ntk", "1 sector of two patches, nngp"),
        *("1 both patches together", "3 fewer dimensions are learnt faster"),
        *("4 predicted without training, four patches", "5 dimension 2 is measured"),
    ):
        assert judged[name].passed, judged[name]


@pytest.mark.slow
def test_claims_can_fail(data):
    """No sectors, teachers all alike, predictions off, exponents of the number of coordinates."""
    wrong = data.copy(deep=True)
    wrong["one_patch"] = data.one_patch / data.wavenumber
    wrong["two_patches"] = 1e-12 * data.two_patches * data.wavenumber
    for p in (1, 2, 4):
        wrong[f"error_{p}"] = 0 * data[f"error_{p}"] + data["sample"] ** -0.3
    wrong["manifold_error"] = 0 * data.manifold_error + data.manifold_sample ** (-16 / data.ambient)
    wrong["measured_dimension"] = 0 * data.measured_dimension + data.ambient
    wrong["image_error"] = 0 * data.image_error + data.image_sample**-0.9
    held = {claim.name for claim in study.claims(wrong) if claim.passed and not claim.control}
    assert not held, held


@pytest.mark.slow
def test_every_part_has_its_figure(data):
    assert set(study.figures(data)) == {"sectors", "learning_curves", "dimensions"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spectrum.modes", (10, 15), "spectrum.modes"),
        ("curves.fit_from", 100, "curves.fit_from is 100; .* three of samples"),
        ("images.samples", (32, 64, 400), "images.points is 600; .* at least 4 x 400"),
        ("manifold.ambient", (16,), "manifold.ambient"),
    ],
)
def test_mistakes_are_named(config, key, value, message):
    part, name = key.split(".")
    config[part][name] = value
    with pytest.raises(ValueError, match=message):
        study.check(config, tasks.load(config.task))
    assert all(study.total_steps(configs.get_config(name)) > 0 for name in configs.PRESETS)
