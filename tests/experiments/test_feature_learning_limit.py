"""Feature-learning limits: rules, twins, windows, claims that can fail, controls, figures, mistakes."""

import jax
import numpy as np
import pytest
import xarray as xr

import limits
from experiments import claims, tasks
from experiments.configs import feature_learning_limit as configs
from experiments.loop import Session
from experiments.studies import feature_learning_limit as study
from experiments.studies import feature_learning_limit_claims as judged
from experiments.studies import feature_learning_limit_networks as networks
from experiments.tasks import few_shot, word_pairs


@pytest.fixture(autouse=True, scope="module")
def unoptimised():
    """Small arrays: compilation is all there is to save."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def as_predicted():
    """What the study would measure if every prediction were exact, with nothing trained."""
    rules = ("ntk", "r=1/3", "mup", "logits/sqrt(n)")
    regimes = [limits.classify(*limits.abc(networks.RULES.get(r, r), 2)) for r in rules]
    width, seeds = np.array([64, 128, 256]), np.array([0, 1, 2])
    r = np.array([regime.r for regime in regimes])
    predicted = np.array([regime.change[:2] for regime in regimes])
    exponent = np.concatenate([predicted, -2 * r[:, None]], axis=1)
    change = (width / 64.0) ** exponent[:, :, None, None] * np.ones((3, 1))
    systems, end = ["linear", "tanh", "linear, ntk"], np.array([0.9, 1.1])
    slope = np.array([-0.5, -0.5, 0.0])
    distance = (width / 64.0) ** slope[:, None] * 0.1
    loss = np.exp(-np.arange(5) / 5)
    words = [f"word{i}" for i in range(6)]
    accuracy = np.stack([np.array([0.5, 0.8, 0.8]), np.array([0.4, 0.5, 0.5])])
    kernel = np.array([0.6, 0.3])[:, None, None, None] * np.ones((2, 3, 2, 2))
    return xr.Dataset(
        {
            "change": (("rule", "quantity", "dichotomy_seed", "dichotomy_width"), change),
            "exponent": (("rule", "quantity"), exponent),
            "exponent_interval": (("rule", "quantity", "end"), exponent[..., None] * end),
            "predicted": (("rule", "layer"), predicted),
            "regime": ("rule", [regime.kind for regime in regimes]),
            "r": ("rule", r),
            "distance": (("system", "width", "seed"), distance[..., None] * np.ones(3)),
            "loss": (("system", "width", "seed", "step"), loss * np.ones((3, 3, 3, 1))),
            "limit_loss": (("system", "step"), loss * np.ones((3, 1))),
            "slope": ("system", slope),
            "slope_interval": (("system", "end"), np.sort(slope[:, None] * end)),
            "pi_distance": (("seed", "width"), distance[0] * np.ones((3, 1))),
            "pi_slope": -0.5,
            "pi_slope_interval": ("end", -0.5 * end[::-1]),
            "gram_distance": (("word_seed", "word_width"), [[0.4, 0.2, 0.1, 0.0]] * 3),
            "gram_slope": -0.5,
            "gram_slope_interval": ("end", -0.5 * end[::-1]),
            "analogy": (("word_seed", "word_width"), [[0.05, 0.08, 0.09, 0.09]] * 3),
            "word_rank": (("word_seed", "word_width"), [[0.2, 0.1, 0.08, 0.08]] * 3),
            "kernel_rank": 0.5,
            "kernel_analogy": 1 / 797,
            "shuffled_rank": ("word_seed", [0.5] * 3),
            "shuffled_analogy": ("word_seed", [1 / 797] * 3),
            "plane": (("panel", "word", "axis"), np.random.default_rng(0).normal(size=(4, 6, 2))),
            "vocabulary": 800,
            "few_accuracy": (
                ("background", "few_seed", "few_width"),
                accuracy[:, None] * np.ones((3, 1)),
            ),
            "few_kernel": (("background", "few_seed", "kernel_rate", "trained"), kernel),
        },
        {
            "rule": list(rules),
            "quantity": ["hidden_0", "hidden_1", "kernel_distance"],
            "layer": ["hidden_0", "hidden_1"],
            "dichotomy_width": width,
            "system": systems,
            "width": width,
            "seed": seeds,
            "step": np.arange(5),
            "word_width": [16, 64, 256, 0],
            "panel": ["width 64", "width 256", "limit", "kernel limit"],
            "word": words,
            "group": ("word", ["plural"] * 3 + ["past"] * 3),
            "background": [0.0, 1.0],
            "few_width": [2, 8, 0],
            "kernel_rate": [1.0, 2.0],
            "trained": [0, 1],
        },
        {"ways": 5, "shots": 1},
    )


def test_claims_hold_where_the_theory_does_and_controls_fail():
    table = study.claims(as_predicted())
    assert [claim.name for claim in table if not claim.passed] == []
    assert sum(claim.control for claim in table) == 7
    assert len({claim.name for claim in table}) == len(table)
    for claim in table:
        assert claims.verdict(claim) == ("fails, as it must" if claim.control else "holds")


@pytest.mark.parametrize(
    ("variable", "change", "broken"),
    [
        ("exponent", lambda v: v.where(v.quantity != "hidden_1", v + 0.25), {"D1", "D2 d"}),
        ("exponent", lambda v: v.where(v.quantity != "kernel_distance", 0.0), {"D3 kernel"}),
        ("exponent", lambda v: v.where(v.quantity != "kernel_distance", -0.5), {"D3"}),
        ("exponent", lambda v: v * np.nan, {"D1", "D2", "D3"}),
        ("slope", lambda v: 0 * v, {"L linear", "L tanh"}),
        ("slope", lambda v: 0 * v - 0.5, {"L control"}),
        ("pi_slope", lambda v: v + 0.2, {"L pi-net"}),
        ("gram_slope", lambda v: v - 0.2, {"L Word2Vec"}),
        ("word_rank", lambda v: v + 0.1, {"W1 similarity, limit"}),
        ("analogy", lambda v: v / 50, {"W2 analogies, limit", "W4"}),
        ("analogy", lambda v: v.where(v.word_width != 256, 0.07), {"W3"}),
        ("analogy", lambda v: v * 0 + 0.09, {"W4"}),
        ("shuffled_rank", lambda v: v - 0.4, {"W1 similarity, control"}),
        ("shuffled_analogy", lambda v: v * 20, {"W2 analogies, control"}),
        ("few_kernel", lambda v: v + 0.18, {"M1 features help"}),
        ("few_kernel", lambda v: v.where(v.trained == 0, v + 0.08), {"M1 control"}),
        ("few_accuracy", lambda v: v.where(v.few_width != 8, 0.6), {"M2"}),
    ],
)
def test_a_wrong_measurement_fails_its_claims(variable, change, broken):
    data = as_predicted()
    wrong = data.assign({variable: change(data[variable])})
    failed = {claim.name for claim in study.claims(wrong) if not claim.passed}
    for name in broken:
        assert any(claim.startswith(name) for claim in failed), name
    assert all(any(claim.startswith(name) for name in broken) for claim in failed), failed


def test_a_single_regime_decides_nothing():
    """Without kernel rules D3 is not measured; nothing breaks."""
    only = as_predicted().sel(rule=["mup"])
    table = {claim.name: claim for claim in study.claims(only)}
    assert claims.verdict(table["D3 kernel machines"]) == "NOT MEASURED"
    assert judged.measured_regimes(only) == ["feature learning"]


def test_figures_draw_every_experiment():
    made = study.figures(as_predicted())
    names = {
        "dichotomy",
        "limit_curves",
        "convergence",
        "word_embeddings",
        "word_scores",
        "few_shot",
    }
    assert set(made) == names
    for figure in made.values():
        assert len(figure.get_label()) > 80
        assert figure.axes
        assert all(ax.lines for ax in figure.axes)


@pytest.mark.parametrize(("rule", "r"), [("r=1/3", 1 / 3), ("r=1/6", 1 / 6), ("logits/sqrt(n)", 0)])
def test_the_rules_are_in_the_regime_of_their_name(rule, r):
    regime = limits.classify(*limits.abc(networks.RULES[rule], 2))
    assert regime.stable
    assert regime.nontrivial
    assert regime.r == pytest.approx(r)
    assert regime.kind == ("kernel" if r else "feature learning")
    assert regime.frozen == ((1, 2) if r else (1,))


@pytest.mark.parametrize(("q", "rule"), [(1 / 2, "ntk"), (1, "mean_field")])
def test_the_rules_between_end_in_ntk_and_mean_field(q, rule):
    assert limits.abc(networks.uniform(q), 3) == limits.abc(rule, 3)


def test_twins():
    """Rules that are images of each other train alike; the twin is the linearisation; a step is a step of SGD."""
    rng = np.random.default_rng(0)
    x, test = rng.standard_normal((2, 5, 3)).astype(np.float32)
    y = rng.standard_normal((5, 2)).astype(np.float32)
    normals = networks.gaussians(jax.random.key(0), (3, 32, 32, 2))
    assert [w.shape for w in normals] == [(3, 32), (32, 32), (32, 2)]

    def run(rule, rate):
        factors = networks.abc_factors(rule, 2, 32)
        return networks.train_twins(normals, factors, (x, y), test, rate, steps=4)

    mup = run("mup", 0.3)
    np.testing.assert_allclose(run("mean_field", 0.3), mup, rtol=1e-4)
    assert mup.shape == (3,)
    assert mup[0] > 0.02
    small = [np.asarray(run("ntk", rate)) for rate in (0.01, 0.03)]
    growth = np.log(small[1] / small[0]) / np.log(3)
    np.testing.assert_allclose(growth[:2], 1, atol=0.15)  # features move as the rate,
    assert growth[2] == pytest.approx(
        2, abs=0.3
    )  # the distance from the linear model as its square


def small():
    config = configs.get_config("smoke")
    part = config.convergence
    part.widths, part.seeds, part.steps = (16, 64, 1024), (0, 1, 2, 3), 8
    part.num_train = part.num_test = 16
    return config


def test_networks_converge_to_their_limit_and_ntk_does_not():
    config = small()
    data = networks.convergence(config, tasks.load(config.task), Session())
    slope = dict(zip(data.system.values, data.slope.values))
    assert slope["linear"] == pytest.approx(-0.5, abs=0.1)
    assert slope["linear, ntk"] > -0.2
    assert data.loss.shape == (2, 3, 4, 8)
    wide = data.loss.sel(system="linear", width=1024).mean("seed")
    np.testing.assert_allclose(wide, data.limit_loss.sel(system="linear"), rtol=0.05)
    assert float(wide[-1]) < 0.8 * float(wide[0])


def test_every_seed_has_as_many_windows():
    """Models of one width then share one compiled program; without thinning no window is lost."""
    source = word_pairs.corpus("", 300)
    options = {"epochs": 2, "subsample": 1e-3, "multiple": 32}
    counts = {len(word_pairs.windows(source, 2, seed, **options)[0]) for seed in range(5)}
    assert len(counts) == 1
    assert counts.pop() % 32 == 0
    assert len(word_pairs.windows(source, 2, 0)[0]) == len(source.ids)


def test_classes_of_the_test_are_new():
    data = tasks.load(configs.get_config("smoke").task).train
    x, labels = few_shot.images(data, study.META_TEST, 0.0, 0)
    assert not set(labels // 4) & set(study.META_TRAIN)
    assert len(set(labels)) == 4 * len(study.META_TEST)
    episode = few_shot.episodes(labels, (3,), 5, 1, 2, 0)
    assert episode.support.shape == (3, 5)
    assert episode.query.shape == (3, 10)
    assert not set(episode.support[0]) & set(episode.query[0])
    np.testing.assert_array_equal(
        labels[episode.support][:, :, None] == labels[episode.query][:, None],
        episode.support_labels[:, :, None] == episode.query_labels[:, None],
    )
    assert abs(x).max() < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.dichotomy, "rules", ("mupp",)), "'mupp'"),
        (
            lambda c: setattr(c.convergence, "systems", ("relu",)),
            r"convergence.systems\[0\] is 'relu'; it must be one of linear",
        ),
        (
            lambda c: setattr(c.words, "widths", (8, 16)),
            r"words.widths is \(8, 16\); it must be a tuple of 3",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    config = configs.get_config("smoke")
    change(config)
    with pytest.raises(ValueError, match=message):
        study.run(config)


def test_too_few_images_are_named():
    config = small()
    config.convergence.pi.steps = 1000
    with pytest.raises(ValueError, match="1000 batches of 32 need more than"):
        study.check(config, tasks.load(config.task))


def test_presets():
    with pytest.raises(ValueError, match="unknown preset 'big'; there are: smoke, cpu, paper"):
        configs.get_config("big")
    for preset in configs.PRESETS:
        config = configs.get_config(preset)
        study.check(config, tasks.load(config.task))
        assert study.total_steps(config) > 0
