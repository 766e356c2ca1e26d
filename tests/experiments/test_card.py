"""The theory card: its command line, its parts on models of several kinds, what it says where a part does not apply."""

import pathlib
import pickle

import jax
import numpy as np
import pytest
import xarray as xr

import ntk
from experiments import card as command
from experiments import contract, settings, tasks
from experiments.configs import card as config_file
from experiments.judges import verdict
from experiments.studies import card, card_claims, card_figures, card_model, card_parts
from ntk.trace import limit

FILE = """
import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Net(nn.Module):
    hidden: int
    outputs: int = 10

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Dense(self.hidden)(x))
        return nn.Dense(self.outputs)(x)


class ActorCritic(nn.Module):
    width: int
    actions: int = 10

    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.actions)(h), nn.Dense(1)(h)[..., 0]


class Dropped(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(self.width)(x)))
        return nn.Dense(10)(x)


class Images(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        n, height, wide, channels = x.shape
        return nn.Dense(10)(nn.relu(nn.Conv(self.width, (3, 3), strides=4)(x)).mean((1, 2)))


class NNX(nnx.Module):
    def __init__(self, width, outputs=10, *, rngs):
        self.layers = nnx.List([nnx.Linear(n, width, rngs=rngs) for n in (64, width)])
        self.out = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.out(x)


class Normed(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(self.width)(x)))
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x)))


class Deep(nn.Module):
    width: int
    depth: int = 1

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10)(x)


class Three(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))
"""
# Less than smoke: what is tested here is what the card says.
TINY = (
    ("widths", "(16, 32, 64)"),
    ("base_width", "8"),
    ("coordinates.widths", "(16, 32, 64)"),
    ("coordinates.steps", "1"),
    ("task.num_train", "200"),
    ("task.num_test", "20"),
    ("prediction.examples", "8"),
    ("transfer.log2_rates", "(-10.0, -6.0, 3)"),
    ("transfer.steps", "10"),
    ("collapse.steps", "8"),
    ("collapse.examples", "20"),
    ("laziness.steps", "4"),
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def made(name, *changes):
    """(configuration, model) of a card."""
    config, _ = settings.load("card:smoke", [("model.name", name), *TINY, *changes])
    task = tasks.load(config.task)
    card.check(config, task)
    return config, card.model(config, task)


def test_the_parts_are_those_of_the_configuration():
    assert tuple(card_parts.PARTS) == config_file.PARTS == tuple(card_claims.CLAIMS)
    assert set(card_figures.FIGURES) == set(config_file.PARTS) - {"axes", "criticality"}
    assert {table.part for table in card_parts.TABLES.values()} <= set(config_file.PARTS)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["MLP"], ["--config=card:cpu", "--config.model.name=MLP", "--config.task.name=digits"]),
        (
            ["a/m.py:Net:hidden", "--data=digits", "--preset", "smoke", "--check"],
            ["--config=card:smoke", "--config.model.name=a/m.py:Net:hidden", "--check"],
        ),
        (["MLP", "--workdir=here", "--config.seeds=(1, 2)"], ["--workdir=here"]),
    ],
)
def test_a_command_line_stands_for_options_of_run(arguments, options):
    found = command.options(arguments)
    assert set(options) <= set(found)
    settings.parse(found)
    assert sum(word.startswith("--workdir") for word in found) == 1


def test_data_by_its_kind(tmp_path):
    np.savez(tmp_path / "a.npz", x=1)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "images").mkdir()
    assert command.find_data("modular") == ("modular", "")
    assert command.find_data(str(tmp_path / "a.npz")) == ("npz", str(tmp_path / "a.npz"))
    assert command.find_data(str(tmp_path / "a.txt"))[0] == "text"
    assert command.find_data(str(tmp_path))[0] == "text"
    assert command.find_data(str(tmp_path / "images"))[0] == "image_folder"
    with pytest.raises(ValueError, match=r"--data is 'digit' \(did you mean 'digits'\?\)"):
        command.find_data("digit")


def test_a_command_without_a_model_is_refused(capsys):
    assert command.main(["card", "--data=digits"]) == 2
    assert "give a model first; usage: python -m experiments.card" in capsys.readouterr().err
    assert command.main(["card", "/nowhere.py:family"]) == 2
    assert "there is no file '/nowhere.py'" in capsys.readouterr().err
    assert command.main(["card", "my_module:family"]) == 2
    assert "write my_module.py:family" in capsys.readouterr().err


def test_inputs_are_as_the_model_takes_them(file):
    assert made("MLP")[1].x.shape == (200, 64)
    assert made(f"{file}:Images")[1].x.shape == (200, 8, 8, 1)
    with pytest.raises(
        ValueError, match=r"at width 8 does not run on digits. inputs vectors \(64,\):"
    ):
        made(f"{file}:Images", ("inputs", "vectors"))


def test_archives_folders_and_texts_are_data_of_a_card(tmp_path, file):
    from PIL import Image

    random = np.random.default_rng(0)
    arrays = {f"x_{part}": random.normal(size=(20, 64)) for part in ("train", "test")}
    arrays |= {f"y_{part}": random.normal(size=(20, 3)) for part in ("train", "test")}
    np.savez(tmp_path / "real.npz", **arrays)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for k in range(3):
                pixels = random.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    (tmp_path / "a.txt").write_text("the quick brown fox " * 300)
    (tmp_path / "former.py").write_text(
        "import models\n"
        "def family(width, vocabulary, context):\n"
        "    sizes = dict(heads=2, vocabulary=vocabulary, context=context)\n"
        "    return models.Transformer(width, 1, **sizes)\n"
    )
    whole = [("task.num_train", "0"), ("task.num_test", "0")]
    cases = (
        ("real.npz", f"{file}:Net:hidden", (64,), "squared_error", 3),
        ("pictures", f"{file}:Net:hidden", (192,), "cross_entropy", 2),
        ("pictures", f"{file}:Images", (8, 8, 3), "cross_entropy", 2),
        ("a.txt", f"{tmp_path / 'former.py'}:family", (16,), "cross_entropy", None),
    )
    for data, name, shape, loss, outputs in cases:
        words = command.options([name, f"--data={tmp_path / data}"])
        changes = [(c.removeprefix("--config.").partition("=")) for c in words if "config." in c]
        _, model = made(name, *[(k, v) for k, _, v in changes], *whole)
        assert model.x.shape[1:] == shape
        assert model.loss == loss
        assert outputs in (None, model.outputs)
        assert (model.unfit == "") == (name.endswith((":hidden", ":family")))


def test_keywords_of_the_call_reach_the_model(file):
    with pytest.raises(ValueError, match="PRNG"):
        made(f"{file}:Dropped")
    assert made(f"{file}:Dropped", ("call", "train=False"))[1].call == {"train": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All the card of a class in a file."""
    path = tmp_path_factory.mktemp("card") / "mine.py"
    path.write_text(FILE)
    config, _ = settings.load("card:smoke", [("model.name", f"{path}:Net:hidden"), *TINY])
    return card.run(config)


@pytest.mark.slow
def test_every_part_applies_to_a_perceptron_of_a_file(whole):
    assert card.refusals(whole) == {}
    assert set(card.figures(whole)) == set(card_figures.FIGURES)
    assert whole.attrs["title"] == "The theory card of mine.py:Net:hidden"
    contract.result(card, whole)
    contract.tables(card, whole)
    claims = card.claims(whole)
    for part in config_file.PARTS:
        own = [claim for claim in claims if claim.name.startswith(part)]
        assert any(claim.control for claim in own), part
        assert any(not claim.control for claim in own), part
    held = {claim.name: verdict(claim) for claim in claims}
    assert held["axes: plain at the base width"] == "holds"
    assert held["axes, control: at the widest"] == "fails, as it must"
    roles = dict(zip(whole.parameter.values, whole.role.values))
    assert roles["Dense_1/kernel"] == "hidden"
    assert list(whole.activation.values) == ["tanh(x) (Hermite series)"]
    assert float(whole.critical_std[0]) == pytest.approx(1)


@pytest.mark.slow
def test_the_nngp_of_the_card_is_that_of_the_combinators(whole):
    """Zero biases add nothing to it; to the tangent kernel they do, as they are trained."""
    x = tasks.load(settings.load("card:smoke", TINY)[0].task).train.x[:4].reshape(4, -1)
    dense, tanh = ntk.stax.Dense(1, 1.0, None), ntk.stax.Elementwise(jax.numpy.tanh)
    kernel_fn = ntk.stax.serial(dense, tanh, dense, tanh, dense)[2]
    np.testing.assert_allclose(whole.limit_nngp, kernel_fn(x, None, "nngp"), rtol=2e-2, atol=1e-4)


def test_a_card_reads_its_model_once(file, monkeypatch):
    reads, chains = [], []
    trace, longest = limit._trace, card_model._longest_chain
    monkeypatch.setattr(limit, "_trace", lambda *a: (reads.append(a), trace(*a))[1])
    monkeypatch.setattr(card_model, "_longest_chain", lambda *a: (chains.append(a), longest(*a))[1])
    config, model = made(f"{file}:Net:hidden", ("kernel.seeds", "2"), ("prediction.steps", "1"))
    for part in ("signals", "criticality", "kernel", "spectrum", "prediction"):
        card_parts.PARTS[part].measure(config, model)
    assert (len(reads), len(chains)) == (1, 1)
    other = pickle.loads(pickle.dumps(model._replace(family=None, features=None)))
    assert model.shared
    assert other.shared == {}
    assert isinstance(other.shared, card_model.Shared)


def test_a_model_of_a_file_keeps_its_own_depth(file):
    def layers(name, *changes):
        return len(
            jax.tree.leaves(
                card_model.at_width(made(f"{file}:{name}", *changes)[1], 16).init(jax.random.key(0))
            )
        )

    assert layers("Deep") == 2 * 2
    assert layers("Deep", ("model.depth", "4")) == 2 * 5


@pytest.mark.parametrize("normalised", [False, True])
def test_sizes_behind_a_normalisation_are_not_measured(normalised):
    """Its outputs have variance one whatever the weights, so that no initialisation could fail."""
    own, other = [1.0, 1.1, 0.9], [1.0, 1.0 if normalised else 1.5, 0.9 if normalised else 4.0]
    axes = ("weights", "signal_seed", "signal_depth")
    values = (axes, np.array([[own] * 3, [other] * 3]))
    data = xr.Dataset(
        {"signal_variance": values, "signal_growth": (axes, values[1] ** 2), "signal_factor": 2.0},
        coords={"weights": ["own", "mistuned"]},
    )
    made = {claim.name: verdict(claim) for claim in card_claims._signals(data)}
    assert made["signals: variance"] == ("NOT MEASURED" if normalised else "holds")
    assert made["signals, control: variance"] == (
        "NOT MEASURED" if normalised else "fails, as it must"
    )


def test_verdicts_on_many_layers_are_brief():
    clauses = [f"layer_{k} is undecided" for k in range(9)]
    found = card._brief("; ".join(clauses) + ". Widths 1, 2, 3 would decide it")
    assert found == (
        "layer_0 is undecided; layer_1 is undecided; layer_2 is undecided; and 6 more (in data.nc). "
        "Widths 1, 2, 3 would decide it"
    )
    assert [card._cell(value) for value in ("relu", np.float64(0.5), np.nan)] == [
        "relu",
        "0.5",
        "-",
    ]
    assert card._brief("; ".join(clauses[:4])) == "; ".join(clauses[:4])


def test_what_refuses_is_asked_once(file):
    calls = []

    def refuse():
        calls.append(1)
        raise ValueError("no kernel")

    model = made(f"{file}:Net:hidden")[1]
    for _ in range(2):
        with pytest.raises(ValueError, match="no kernel"):
            card_model.once(model, "refused", refuse)
    assert len(calls) == 1


def test_two_outputs_are_refused_where_a_loss_is_needed(file):
    parts = str(("coordinates", "prediction", "sharpness", "transfer", "collapse"))
    config, _ = made(f"{file}:ActorCritic", ("parts", parts))
    data = card.run(config)
    missing = card.refusals(data)
    said = "the model returns 2 arrays ((2, 10), (2,)); a loss needs one array ('N', 10)"
    assert {missing[part] for part in ("coordinates", "sharpness", "transfer", "collapse")} == {
        said
    }
    assert missing["kernel"] == "switched off by config.parts"
    assert card.claims(data) == []
    head, rows, _ = card.tables(data)["What does not apply"]
    assert head == ("part", "why")
    assert ("sharpness", said) in rows
    assert list(card.figures(data)) == ["nothing"]


def test_layers_of_models_that_do_not_record_them_are_read_off_their_program(file):
    config, model = made(f"{file}:NNX")
    found = card_parts.PARTS["signals"].measure(config, model)
    assert found["signal_layer"] == ["layers/0", "layers/1"]
    found = card_parts.PARTS["criticality"].measure(config, model)
    assert found["activation"] == ["relu"]
    assert found["critical_std"] == pytest.approx([2**0.5])
    assert found["no_chain"] == ""
    np.testing.assert_allclose(
        found["next_predicted"][:, 0], found["next_variance"][:, 0], rtol=0.6
    )


def test_outputs_of_another_number_than_the_classes_are_said(file):
    _, model = made(f"{file}:Three")
    assert model.unfit == "the model returns an array (2, 3); the targets need ('N', 10)"
    with pytest.raises(ValueError, match="the targets need"):
        card_model.check_loss(model)


def test_a_refusal_is_one_line():
    assert card_model.sentence(ValueError("two\n  lines")) == "two lines"
    assert card_model.sentence(NotImplementedError("no")) == "NotImplementedError: no"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("parts", "('kernels',)")], "one of axes"),
        ([("base_width", "64")], "config.base_width is 64; it must be below all widths"),
        ([("sharpness.steps", "20")], "16 chunks or more"),
        ([("collapse.steps", "9")], "a multiple of 8"),
        ([("transfer.log2_rates", "(-3.0, -4.0, 5)")], "a lower and a higher power of two"),
        ([("coordinates.rules", "('ntk', 'standard')")], "includes 'mup'"),
        ([("call", "train")], "train=False"),
    ],
)
def test_configurations_that_cannot_be_carried_through(changes, words):
    with pytest.raises(ValueError, match=r"config|call") as caught:
        made("MLP", *changes)
    assert words in str(caught.value)


def test_a_page_shows_the_tables():
    from experiments import page

    text = page._table("Title <b>", ("a", "b"), [("1", "<x>")], "a note")
    assert "<h2>Title &lt;b&gt;</h2>" in text
    assert "&lt;x&gt;" in text
    assert "a note" in text


def test_tables_that_are_none_are_refused():
    study = type("study", (), {"__file__": "s.py", "tables": staticmethod(lambda data: {"t": 3})})
    with pytest.raises(ValueError, match=r"s.py: tables returned .*; expected a dict"):
        contract.tables(study, xr.Dataset())
    study.tables = staticmethod(lambda data: {"t": (("a",), [("1", "2")], "")})
    with pytest.raises(ValueError, match="other lengths"):
        contract.tables(study, xr.Dataset())
    assert contract.tables(type("none", (), {}), xr.Dataset()) == {}


def test_the_card_has_its_place_on_disk():
    words = command.options(["/a/b/mine.py:Net:hidden", "--data", "digits"])
    assert f"--workdir={pathlib.Path('runs/card-mine-Net-hidden-digits-cpu')}" in words


def test_layers_beside_one_another_are_no_chain(file):
    _, model = made(f"{file}:ActorCritic")
    assert card_model.wide_layers(model, (16, 32), least=1) == ["Dense_0"]


def test_a_model_that_keeps_statistics_has_a_card(file):
    config, model = made(f"{file}:Normed", ("call", "train=False"))
    assert model.state
    found = card_parts.PARTS["axes"].measure(config, model)
    assert not np.asarray(found["plain_difference"])[:, 0].any()
    assert card_parts.PARTS["signals"].measure(config, model)["signal_layer"][-1] == "Dense_2"
