"""A derivation as a reader sees it: modules, what each step reads, what is approximated; refusals with their place."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import ntk

X = jax.ShapeDtypeStruct((1, 5), jnp.float32)
SEQUENCE = jax.ShapeDtypeStruct((1, 4, 3), jnp.float32)
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
Dense = functools.partial(nn.Dense, kernel_init=NORMAL, use_bias=False)


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        h = Dense(self.width, name="inside")(x)
        h = nn.silu(h)
        return x + Dense(self.width, name="outside")(h)


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = Dense(self.width, name="first")(x)
        x = Block(self.width)(x)
        return Dense(1, name="last")(x)


def line_with(text):
    """Number of the only line of this file that has the text in its code."""
    lines = pathlib.Path(__file__).read_text().splitlines()
    (found,) = [k for k, line in enumerate(lines, 1) if text in line and "line_with" not in line]
    return found


def test_a_kernel_function_is_explained_without_reading_its_family_again():
    calls = []

    def family(width):
        calls.append(width)
        return Net(width)

    kernel_fn = ntk.infinite_width(family, X)
    calls.clear()
    assert str(ntk.explain(kernel_fn)) == str(ntk.explain(Net, X))
    assert list(ntk.nonlinearities(kernel_fn)) == list(ntk.nonlinearities(Net, X))
    assert calls == []
    sampled = ntk.infinite_width(Net, X, otherwise="sample", networks=2)
    assert str(ntk.explain(sampled)) == str(ntk.explain(Net, X, otherwise="sample", networks=2))


@pytest.mark.parametrize("function", [ntk.explain, ntk.nonlinearities])
def test_what_a_kernel_function_has_settled_is_refused_beside_it(function):
    kernel_fn = ntk.infinite_width(Net, X)
    with pytest.raises(TypeError, match=r"kernel function with example, bias_std, which it has"):
        function(kernel_fn, X, bias_std=0.1)
    with pytest.raises(ValueError, match="was read from no model"):
        function(ntk.stax.Dense(1)[2])


def test_steps_are_named_by_modules_and_lines_and_say_what_they_read():
    found = ntk.explain(Net, X)
    rows = [(row.step, row.module, row.operation, row.reads) for row in found.steps]
    assert rows == [
        ("0", "first", "data", "data"),
        ("1", "first", "weights", "0"),
        ("2", "Block_0/inside", "weights", "1"),
        ("3", "Block_0", "function", "2"),
        ("4", "Block_0/outside", "weights", "3"),
        ("5", "Block_0", "sum", "1, 4"),
        ("6", "last", "weights", "5"),
    ]
    assert found.steps[3].what == "silu(x) (Hermite series)"
    assert re.search(rf":{line_with('h = nn.silu(h)')}$", found.steps[3].line)
    assert found.approximations == ()
    assert "Nothing is approximated" in str(found)
    assert "Nothing is approximated" in found._repr_html_()


def test_modules_of_nnx_are_those_of_their_parameters():
    class Model(nnx.Module):
        def __init__(self, width, *, rngs):
            self.first = nnx.Linear(5, width, kernel_init=NORMAL, rngs=rngs)
            self.last = nnx.Linear(width, 1, kernel_init=NORMAL, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    rows = ntk.explain(lambda width: lambda rngs: Model(width, rngs=rngs), X).steps
    assert [row.module for row in rows if row.operation == "weights"] == ["first", "last"]


def test_a_block_that_repeats_is_shown_once_and_read_as_itself():
    class Deep(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = Dense(self.width)(x)
            for _ in range(5):
                x = Block(self.width)(x)
            return Dense(1)(x)

    rows = ntk.explain(Deep, X).steps
    repeated = [row for row in rows if row.step.endswith("(x 5)")]
    assert {row.module.split("/")[0] for row in repeated} == {"Block_0"}
    steps = {row.step.split()[0] for row in rows}
    assert all(set(row.reads.split(", ")) <= steps | {"data"} for row in rows)


def test_approximations_are_named_with_their_steps():
    class Attention(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(self.width, name="first")(x))
            x = nn.MultiHeadDotProductAttention(2, use_bias=False, name="attend")(x, x)
            return nn.Dense(1, name="last")(x.mean(1))

    found = ntk.explain(Attention, SEQUENCE)
    law, draws = found.approximations
    (step,) = [row.step for row in found.steps if "relu" in row.what]
    assert law.startswith(f"step {step}: functions of sums over few weights that are not normal")
    (step,) = [row.step for row in found.steps if row.operation == "attention"]
    assert draws.startswith(f"step {step}: averages over random scores of attention, by 1024 draws")
    sampled = ntk.explain(Attention, SEQUENCE, attention_samples=64).approximations[1]
    assert "64 draws (error of the order of 0.1 of" in sampled


class AddedFirst(nn.Module):
    """gelu(h + W relu(h)) of a first layer h."""

    width: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.width, use_bias=False)(x)
        h = nn.gelu(h + nn.Dense(self.width, use_bias=False)(nn.relu(h)))
        return nn.Dense(1, use_bias=False)(h)


def test_a_first_layer_beside_one_over_units_has_an_error_of_its_own():
    """Against quadrature over the truncated normal weight w of h = w x and the Gaussian beside it."""
    x = np.array([1.0, 0.5, -0.8, 2.0])
    told = ntk.explain(AddedFirst, x[:, None], base_width=8).approximations
    assert any("step 5" in line and ".01 at one input" in line for line in told), told
    nodes, weights = np.polynomial.legendre.leggauss(60)
    w = np.concatenate([nodes - 1, nodes + 1])  # to two deviations, in halves: relu has a kink at 0
    p = np.tile(weights, 2) * np.exp(-(w**2) / 2)
    h, p = w[:, None] * x / 0.87962566103423978, p / p.sum()
    K = (np.maximum(h, 0) * p[:, None]).T @ np.maximum(h, 0)
    z, u = np.polynomial.hermite_e.hermegauss(40)
    expected = np.empty((4, 4))
    for i, j in np.ndindex(4, 4):
        L = np.linalg.cholesky(K[np.ix_([i, j], [i, j])] + 1e-12 * np.eye(2))
        g = L[:, :1, None] * z[:, None] + L[:, 1:, None] * z  # (2, 40, 40)
        f = [np.asarray(nn.gelu(h[:, k, None, None] + part)) for k, part in zip((i, j), g)]
        expected[i, j] = np.einsum("q,qab,qab,a,b->", p, *f, u, u) / (2 * np.pi)
    kernel = ntk.infinite_width(AddedFirst, x[:1, None], base_width=8)(x[:, None], None, "nngp")
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert 1e-3 < np.abs((kernel - expected) / size).max() < 3e-3


def test_what_is_sampled_is_approximated():
    class Gated(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(jnp.sort(nn.Dense(self.width)(x), -1))

    with pytest.raises(ValueError, match=r"not known.*otherwise=\"sample\"") as refusal:
        ntk.infinite_width(Gated, X)
    assert re.search(
        rf"\(sort of Gated at \S+:{line_with('jnp.sort(nn.Dense')}\)", str(refusal.value)
    )
    (what,) = ntk.explain(Gated, X, otherwise="sample", networks=2).approximations
    assert "means over finite networks" in what


def test_a_refusal_names_the_module_inside_of_which_it_is():
    class Sorting(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.sort(x, -1)

    class Sorted(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(Sorting(name="inner")(nn.Dense(self.width)(x)))

    with pytest.raises(ValueError, match=r"\(sort of Sorted/inner at \S+test_explain.py:\d+\)"):
        ntk.infinite_width(Sorted, SEQUENCE)
