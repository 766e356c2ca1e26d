"""The study of corrupted modular addition: its network, its data, the analytic solution, its controls."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run as command_line
from experiments.claims import verdict
from experiments.configs.grokking_corrupted import get_config
from experiments.studies import grokking_corrupted as study
from experiments.studies import grokking_corrupted_claims as claims
from experiments.tasks import modular

MODULUS = 7


def small(**changes):
    config = get_config("smoke")
    config.task.modulus = MODULUS
    config.network.width = 10
    for key, value in changes.items():
        part, name = key.split("__")
        config[part][name] = value
    return config


@functools.cache
def trained(kind="decay"):
    """A network of random weights, its parameters and its data."""
    config = small()
    data = study.examples(config, 0.6, 0.3, 0)
    net = study.network(config, kind)
    params = net.init(jax.random.key(1), data["train"][0])["params"]
    return net, params, data


def test_the_network_is_the_one_of_the_paper_on_one_hot_inputs():
    net, params, data = trained()
    pairs = data["table"]["pairs"]
    onehot = np.concatenate([np.eye(MODULUS)[pairs[:, 0]], np.eye(MODULUS)[pairs[:, 1]]], axis=1)
    kernel = np.concatenate([params["left"]["embedding"], params["right"]["embedding"]])
    expected = np.square(onehot @ kernel) @ params["readout"]["kernel"]
    outputs, hidden, before = net.apply({"params": params}, pairs)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_allclose(hidden, np.square(before), rtol=1e-6)


def test_weights_begin_at_the_authors_scale():
    net = study.QuadraticMLP(4000, 50, 0.5 / 8000 ** (1 / 3))
    params = net.init(jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    for leaf in jax.tree.leaves(params):
        assert float(leaf.std()) == pytest.approx(0.5 / 8000 ** (1 / 3), rel=0.01)


def test_batch_norm_normalises_with_the_statistics_of_the_reference():
    net, params, data = trained("batch_norm")
    pairs, reference = data["table"]["pairs"], data["train"][0]
    _, own, _ = net.apply({"params": params}, pairs)
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-5)
    _, base, before = net.apply({"params": params}, reference)
    _, given, _ = net.apply({"params": params}, pairs, reference)
    assert float(jnp.abs(own - given).max()) > 0.01
    rows = reference[:, 0] * MODULUS + reference[:, 1]
    np.testing.assert_allclose(given[rows], base, atol=1e-5)
    square = np.square(before)
    expected = (square - square.mean(axis=0)) / np.sqrt(square.var(axis=0) + 1e-5)
    np.testing.assert_allclose(base, expected, atol=1e-4)


def test_dropout_loss_is_the_mean_over_masks():
    """Monte Carlo over masks of the pre-activations, within four standard errors."""
    net, params, data = trained()
    # weights of order one, so that the variance over masks is not lost beside the targets
    params = jax.tree.map(lambda leaf: leaf * 5, params)
    x, y = data["train"]
    _, _, before = net.apply({"params": params}, x)
    targets, rate = np.eye(MODULUS)[y], 0.4

    def draw(key):
        mask = jax.random.bernoulli(key, 1 - rate, before.shape) / (1 - rate)
        outputs = jnp.square(before * mask) @ params["readout"]["kernel"]
        return jnp.square(outputs - targets).mean()

    draws = jax.vmap(draw)(jax.random.split(jax.random.key(2), 1000))
    exact = float(study.dropout_loss(net, params, data["train"], rate))
    without = float(study.dropout_loss(net, params, data["train"], 0.0))
    error = float(draws.std()) / np.sqrt(len(draws))
    assert abs(float(draws.mean()) - exact) < 4 * error
    assert abs(without - exact) > 20 * error
    outputs, *_ = net.apply({"params": params}, x)
    assert without == pytest.approx(float(jnp.square(outputs - targets).mean()), rel=1e-6)


def test_the_table_marks_every_pair_once():
    _, _, data = trained()
    table, (x, y) = data["table"], data["train"]
    np.testing.assert_array_equal(table["kept"] + table["corrupted"] + table["test"], 1)
    assert table["test"].sum() == MODULUS**2 - len(x)
    rows = x[:, 0] * MODULUS + x[:, 1]
    np.testing.assert_array_equal(table["given"][rows], y)
    wrong = (x.sum(axis=1) % MODULUS) != y
    assert 0 < wrong.sum() <= round(0.3 * len(x))
    np.testing.assert_array_equal(table["corrupted"][rows], wrong)


def test_accuracies_of_designed_answers():
    _, _, data = trained()
    table = data["table"]
    answers = np.stack([table["truth"], table["given"], (table["truth"] + 1) % MODULUS])
    found = modular.accuracies(answers, table)
    right = table["kept"].sum() / (1 - table["test"]).sum()
    np.testing.assert_allclose(found["train"][:2], [right, 1])
    np.testing.assert_allclose(found["corrupted"][:2], [0, 1])
    np.testing.assert_allclose(found["restored"], [1, 0, 0])
    np.testing.assert_allclose(found["test"], [1, 1, 0])


@pytest.mark.parametrize(
    ("test", "corrupted", "expected"),
    [
        (0.99, 0.9, "coexistence"),
        (0.99, 0.5, "partial inversion"),
        (0.99, 0.0, "full inversion"),
        (0.1, 1.0, "memorisation"),
        (0.1, 0.1, "forgetting"),
        (float("nan"), 0.1, "diverged"),
        (0.99, float("nan"), "diverged"),
    ],
)
def test_phases(test, corrupted, expected):
    assert claims.phase(test, corrupted) == expected


# The analytic solution


def logits(solution, modulus):
    pairs, truth = modular.table(modulus, "add")
    return (solution.left[pairs[:, 0]] + solution.right[pairs[:, 1]]) ** 2 @ solution.readout, truth


@pytest.mark.parametrize(("modulus", "times"), [(5, 1), (9, 1), (23, 2)])
def test_phases_on_the_lattice_give_the_closed_form_exactly(modulus, times):
    width = times * 3 * (modulus - 1)
    found, truth = logits(modular.fourier_solution(modulus, width), modulus)
    mean = modular.fourier_logits(modulus, width)
    expected = np.where(np.eye(modulus)[truth] == 1, mean.right, mean.wrong)
    np.testing.assert_allclose(found, expected, atol=1e-12 * width)


def test_the_lattice_is_the_smallest_one():
    """The unwanted terms have phases x s + y t; a lattice of n points on a line cancels them if none is 0 mod n."""
    unwanted = [(1, 1), (3, 1), (1, 3), (1, -1), (2, 2), (2, 0), (0, 2)]

    def cancels(n, step):
        return all((x + y * step) % n for x, y in unwanted)

    assert cancels(6, 4)
    assert not any(cancels(n, step) for n in range(1, 6) for step in range(n))


def test_logits_with_random_phases_have_the_moments_of_the_closed_form():
    p, width = 11, 20
    found, truth = zip(
        *(logits(modular.fourier_solution(p, width, seed), p) for seed in range(300))
    )
    found, right = np.array(found), np.eye(p)[truth[0]] == 1
    expected = modular.fourier_logits(p, width)
    pairs = p * p
    for mask, mean, deviation in (
        (right, expected.right, expected.right_deviation),
        (~right, expected.wrong, expected.wrong_deviation),
    ):
        values = found[:, mask]
        # the pairs of one draw depend on each other: the error is that of the draws' means
        draws = values.mean(axis=1)
        error = max(draws.std() / np.sqrt(len(draws)), 1e-12)
        assert abs(values.mean() - mean) < 5 * error
        assert values.std() == pytest.approx(deviation, rel=0.03)
    assert found.shape == (300, pairs, p)


@pytest.mark.parametrize(("modulus", "count"), [(59, 2), (59, 4), (97, 1)])
def test_predicted_accuracy(modulus, count):
    width = count * (modulus - 1) // 2
    measured = []
    for seed in range(4):
        found, truth = logits(modular.fourier_solution(modulus, width, seed), modulus)
        measured.append((found.argmax(axis=1) == truth).mean())
    assert modular.fourier_accuracy(modulus, width) == pytest.approx(np.mean(measured), abs=0.03)


def test_the_solution_needs_its_phases():
    solution = modular.fourier_solution(23, 88, 0)
    found, truth = logits(solution, 23)
    assert (found.argmax(axis=1) == truth).mean() > 0.97
    other = solution._replace(readout=modular.fourier_solution(23, 88, 1).readout)
    found, truth = logits(other, 23)
    assert (found.argmax(axis=1) == truth).mean() < 0.2


def test_mistakes_about_the_solution():
    with pytest.raises(ValueError, match="modulus is 8; the Fourier solution is for odd moduli"):
        modular.fourier_solution(8, 10, 0)
    with pytest.raises(ValueError, match=r"width is 10; .* multiples of 3 \(p - 1\) = 18"):
        modular.fourier_solution(7, 10)


# The study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"runs__regularisers": (("decya", 1.0),)},
            r"runs.regularisers\[0\]\[0\] is 'decya'; it must be one of decay",
        ),
        (
            {"phases__regularisers": (("decay", 0.0), ("dropout", 1.0))},
            r"phases.regularisers is \('dropout', 1.0\); it must be a dropout below 1",
        ),
        (
            {"runs__regularisers": (("decay", 2.0),)},
            r"runs.regularisers is .* includes \('decay', 0.0\)",
        ),
        ({"task__encoding": "onehot"}, "task.encoding is 'onehot'; it must be one of tokens"),
        ({"runs__probes": 7}, "runs.minibatch_steps is 40; it must be a multiple of probes, 7"),
        ({"runs__groups": 3}, "runs.groups is 3; it must be a divisor of network.width, 10"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        study.run(small(**changes))


def test_presets():
    for preset in ("smoke", "cpu", "paper"):
        assert study.total_steps(get_config(preset)) > 0
    with pytest.raises(ValueError, match="unknown preset 'gpu'; there are: smoke, cpu, paper"):
        get_config("gpu")


def test_one_program_serves_every_strength_noise_and_seed():
    """Strengths are data: the compiled step of one number of examples changes with them, without compiling."""
    config = small()
    first = study.regularised(study.examples(config, 0.6, 0.2, 0), "decay", 0.0)
    program = study.program(config, "decay", first, 5, 1)

    def loss(kind, strength, noise):
        data = study.regularised(study.examples(config, 0.6, noise, 0), kind, strength)
        rate, seed = np.float32(0.01), np.uint32(0)
        state = program.start(rate, seed, data)
        return float(program.advance(state, rate, seed, data)[1][-1])

    losses = [loss("decay", 0.0, 0.2), loss("decay", 9.0, 0.2), loss("dropout", 0.5, 0.2)]
    assert len({*losses, loss("decay", 0.0, 0.5)}) == 4


def test_a_transformer_is_pruned_where_it_is_told_to():
    config = get_config("smoke")
    config.task.modulus = config.transformer.modulus
    net = study.transformer(config)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 2), np.int32))["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    size = study.transformer_logits(params).shape
    assert size == (4 * config.transformer.width, config.transformer.modulus)
    nothing = study.pruned_transformer(params, jnp.ones(size[0]))
    np.testing.assert_array_equal(*(p["block_0"]["mlp_out"]["kernel"] for p in (params, nothing)))
    keep = jnp.arange(size[0]) >= 3
    kernel = study.pruned_transformer(params, keep)["block_0"]["mlp_out"]["kernel"]
    assert not kernel[:3].any()
    np.testing.assert_array_equal(kernel[3:], params["block_0"]["mlp_out"]["kernel"][3:])


def test_smoke_through_the_command_line(tmp_path):
    """Files, claims judged on them, and figures that carry captions."""
    config = get_config("smoke")
    config.phases.fractions, config.phases.noises = (0.6,), (0.1,)
    config.transformer.decays = ()
    config.runs.regularisers = (("decay", 0.0), ("decay", 10.0))
    path = command_line.run(config, str(tmp_path / "run"), "smoke")
    written = json.loads((pathlib.Path(path) / "claims.json").read_text())
    by_name = {claim["name"]: claim for claim in written}
    shuffled = by_name["C1 control, shuffled"]
    assert shuffled["control"]
    assert shuffled["passed"], "labels drawn at random must not generalise"
    assert by_name["A3 control"]["passed"]
    assert by_name["A2 exact"]["passed"]
    data = command_line.rundir.read_dataset(pathlib.Path(path) / "data.nc")
    again = {claim.name: verdict(claim) for claim in study.claims(data)}
    assert again == {name: claim["verdict"] for name, claim in by_name.items()}
    for figure in study.figures(data).values():
        assert figure.get_label()


@pytest.mark.slow
def test_rule_and_memory_live_in_different_neurons():
    """One seed of the close look: coexistence, and pruning that separates the two; the controls fail."""
    config = get_config("cpu")
    config.runs.seeds, config.runs.regularisers = (0,), (("decay", 0.0),)
    config.phases.regularisers, config.transformer.decays = (("decay", 0.0),), ()
    config.phases.fractions, config.phases.noises, config.phases.steps = (0.3,), (0.1,), 2
    data = study.run(config)
    wanted = [*claims._coexistence_claims(data), *claims._pruning_claims(data)]
    assert all(claim.passed for claim in wanted), [c for c in wanted if not c.passed]
