"""Models named in a configuration: of `models`, or classes and families of a file."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import limits
import ntk
from experiments import families, settings, tasks

FILE = """
import flax.linen as nn
from flax import nnx
import jax
import beside


class Net(nn.Module):
    hidden: int
    outputs: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.relu(nn.Dense(self.hidden)(x)))


class Needy(nn.Module):
    width: int
    actions: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.actions)(nn.Dense(self.width)(x))


class NNX(nnx.Module):
    def __init__(self, width, outputs=3, *, rngs):
        self.a = nnx.Linear(4, width, rngs=rngs)
        self.b = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


def family(width, outputs):
    return Net(width, outputs)


module = Net(8)
number = beside.NUMBER


def nothing():
    return Net(8)
"""
X = np.ones((1, 4), np.float32)


@pytest.fixture
def file(tmp_path, monkeypatch):
    import sys

    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("NUMBER = 3\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    return tmp_path / "mine.py"


def outputs(family, width=8):
    net = ntk.network(family, width, X)
    return jax.eval_shape(net.apply, jax.eval_shape(net.init, jax.random.key(0)), X).shape


@pytest.mark.parametrize("name", ["Net:hidden", "NNX", "family"])
def test_classes_and_families_are_functions_of_the_width(file, name):
    family = families.load(f"{file}:{name}", outputs=5, depth=2)
    assert outputs(family) == (1, 5)
    axes = ntk.named_leaves(
        ntk.width_axes(family, X), is_leaf=lambda leaf: isinstance(leaf, ntk.ParamAxes)
    )
    assert sorted(leaf.role for leaf in axes.values()) == ["input", "input", "output", "scalar"]


def test_an_equinox_class_gets_its_key(file):
    pytest.importorskip("equinox")
    source = """
import equinox as eqx
import jax


class Net(eqx.Module):
    layers: list

    def __init__(self, width, outputs=3, *, key):
        one, two = jax.random.split(key)
        self.layers = [eqx.nn.Linear(4, width, key=one), eqx.nn.Linear(width, outputs, key=two)]

    def __call__(self, x):
        return self.layers[1](jax.nn.relu(self.layers[0](x)))
"""
    file.write_text(source)
    assert outputs(families.load(f"{file}:Net", outputs=5)) == (1, 5)


def test_an_architecture_of_models_has_every_field():
    assert outputs(families.load("MLP", {"depth": 1}, outputs=2)) == (1, 2)
    with pytest.raises(TypeError, match=r"MLP has no field 'heads'"):
        families.load("MLP", {"heads": 1}, depth=1, outputs=2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Net", ["no field 'width'", "mine.py:Net:FIELD", "hidden, outputs"]),
        ("famly", ["no 'famly'", "did you mean 'family'", "NNX"]),
        (
            "Needy",
            ["needs actions", "does not know", "family = lambda width: Needy(..., actions=...)"],
        ),
        ("module", ["is of type Net", "a function of the width"]),
        ("number", ["is of type int"]),
        ("nothing", ["takes no argument"]),
        ("family:width", ["is a function", "leave it out"]),
    ],
)
def test_what_is_no_family_is_refused(file, name, words):
    with pytest.raises(ValueError, match=r"mine\.py") as caught:
        families.load(f"{file}:{name}", outputs=5)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_field_that_a_model_lacks_is_refused(file):
    with pytest.raises(ValueError, match=r"no argument 'output' \(did you mean 'outputs'\?\)"):
        families.load(f"{file}:family", {"output": 3})


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"no file 'nowhere\.py'"):
        families.load("nowhere.py:family")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_module:family", "write my_module.py:family"),
        ("folder/my_module", "write folder/my_module.py:NAME"),
        ("my_module.py", "my_module.py:NAME"),
    ],
)
def test_a_name_that_says_no_file_or_nothing_in_it_says_what_is_missing(name, words):
    with pytest.raises(ValueError, match=name) as caught:
        families.load(name, depth=1)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["Transformer", "ViT"])
def test_architectures_that_need_more_than_sizes_are_made_for_a_task(name):
    config = tasks.default_config("text" if name == "Transformer" else "digits")
    if name == "Transformer":
        config.length = 16
    else:
        config.flatten = False
    task = tasks.load(config)
    for fields, heads in ({}, 4), ({"heads": 2}, 2):
        model = families.for_task(name, task, fields, depth=1)(16)
        assert model.heads == heads
        shape = jax.eval_shape(model.init, jax.random.key(0), task.train.x[:1])
        assert jax.tree.leaves(shape)


def test_keywords_of_a_call():
    assert families.keywords("") == {}
    assert families.keywords("train=False, scale=(1, 2)") == {"train": False, "scale": (1, 2)}
    for text in ("train", "f(x)", "a=b", "**x", "train=="):
        with pytest.raises(ValueError, match="train=False"):
            families.keywords(text)


def test_a_model_is_found_beside_the_configuration_or_where_the_command_is_given(
    file, tmp_path, monkeypatch
):
    config = ml_collections.ConfigDict(
        {"study": "s", "model": {"name": "mine.py:family"}, "net": {"model": {"name": "MLP"}}}
    )
    settings._locate_models(config, tmp_path)
    assert config.model.name == f"{file.resolve()}:family"
    assert settings.model_files(config) == {"model.name": file.resolve()}
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(FILE)
    monkeypatch.chdir(other)
    config.model.name = "mine.py:family"
    settings._locate_models(config, tmp_path)
    assert pathlib.Path(config.model.name.partition(":")[0]).parent == other.resolve()


def test_activations_of_a_file_are_those_of_the_model(file):
    """Two roads: what is read off the model, and the function itself."""
    found = ntk.nonlinearities(families.load(f"{file}:family", outputs=5), X)
    assert list(found) == ["relu"]
    assert limits.criticality(found["relu"]) == limits.criticality(jax.nn.relu)
    assert pytest.approx(2) == limits.criticality(found["relu"]).C_W
    assert np.allclose(found["relu"](jnp.array([-1.0, 2.0])), [0, 2])
