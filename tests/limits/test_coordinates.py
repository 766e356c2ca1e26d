import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import ntk
from limits import coordinates, judgement
from limits.coordinates import captured_outputs, coordinate_check
from limits.parametrization import parametrize
from limits.regimes import abc, classify
from models.mlp import MLP

# XLA's own generator: the default one takes seconds to compile for each new shape on a CPU.
KEY = jax.random.key(0, impl="rbg")
X = jax.random.normal(jax.random.key(1), (8, 12))
Y = jnp.where(jnp.arange(8) % 2 == 0, 1.0, -1.0)[:, None]
WIDTHS = [64, 256, 1024]


def squares(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


class Net(NamedTuple):
    init: object
    apply: object
    optimizer: object


def by_hand(a, b, c):
    """A tanh network n^-a_l w^l under SGD, written from the definition, without parametrize."""

    def at_width(n):
        sizes = [X.shape[1], *[n] * (len(a) - 1), 1]
        names = [f"layer_{l + 1}" for l in range(len(a))]

        def init(key):
            keys = jax.random.split(key, len(a))
            shapes = itertools.pairwise(sizes)
            return {
                name: n ** -b[l] * jax.random.normal(keys[l], shape)
                for l, (name, shape) in enumerate(zip(names, shapes))
            }

        def apply(params, x, *, features=False):
            layers = {}
            x = x / np.sqrt(X.shape[1])
            for l, name in enumerate(names):
                layers[name] = h = n ** -a[l] * x @ params[name]
                x = jnp.tanh(h)
            return (h, layers) if features else h

        def optimizer(factory, learning_rate):
            factors = {name: n ** -c[l] for l, name in enumerate(names)}
            scale = optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, factors))
            return optax.chain(factory(learning_rate), scale)

        return Net(init, apply, optimizer)

    return at_width


def check(net_at_width, widths=WIDTHS, loss=squares, **options):
    options = {"learning_rate": 0.5, "steps": 3, "seeds": 4} | options
    return coordinate_check(net_at_width, widths, (X, Y), loss, KEY, **options)


STANDARD = abc("standard", 2)._replace(c=(1.0, 1.0, 1.0))
LOGITS = ((0, 0, 1 / 2), (0, 1 / 2, 1 / 2), (0, 0, 0))
CHANGES = {
    "mup": (abc("mup", 2), (0, 0, 0)),
    "logits / sqrt(n)": (LOGITS, (-1, 0, 0)),
    "ntk": (abc("ntk", 2), (-1 / 2, -1 / 2, 0)),
    "standard at eta / n": (STANDARD, (-3 / 2, -1 / 2, 0)),
}


def compare_with_prediction(name, widths, seeds):
    exponents, change = CHANGES[name]
    predicted = classify(*exponents)
    result = check(by_hand(*exponents), widths, predicted=predicted, seeds=seeds)
    assert result.passed, result.verdict
    assert "layer_1, layer_2, layer_3 scale as predicted" in result.verdict
    assert predicted.change == change
    np.testing.assert_allclose(result.change_scaling.exponent[-1], change, atol=0.15)
    np.testing.assert_allclose(result.size_scaling.exponent[0], predicted.initial, atol=0.15)
    assert result.change.shape == result.own.shape == (len(widths), seeds, 3, 3)
    assert result.size.shape == (len(widths), seeds, 4, 3)


@pytest.mark.parametrize("name", ["mup", pytest.param("logits / sqrt(n)", marks=pytest.mark.slow)])
def test_measured_exponents_are_the_predicted_ones(name):
    compare_with_prediction(name, WIDTHS, seeds=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_measured_exponents_up_to_width_2048(name):
    compare_with_prediction(name, [128, 256, 512, 1024, 2048], seeds=6)


def test_a_divergence_is_told_beside_what_is_undecided():
    net = by_hand(*abc("ntk", 2))
    told = [check(net, [16, 24, 32], seeds=2, learning_rate=r).verdict for r in (0.5, 1e30)]
    assert all("undecided" in verdict for verdict in told), told
    assert ["Outputs are not finite from step" in verdict for verdict in told] == [False, True]


def shifted(layer, **shifts):
    """mup with a wrong exponent in one layer, counted from 1."""
    exponents = abc("mup", 2)._asdict()
    for name, shift in shifts.items():
        row = list(exponents[name])
        row[layer - 1] += shift
        exponents[name] = row
    return by_hand(**exponents)


@pytest.mark.parametrize(
    ("layer", "shifts", "words"),
    [
        pytest.param(
            3, {"a": -1 / 2}, "at initialisation: its size scales as n^", marks=pytest.mark.slow
        ),
        (2, {"c": 1 / 2}, "at step 1: the change by its own update scales as n^-0.5"),
        pytest.param(2, {"b": 1 / 2}, "at initialisation", marks=pytest.mark.slow),
        pytest.param(3, {"a": 1 / 2, "b": -1 / 2}, "at step 1", marks=pytest.mark.slow),
    ],
    ids=["readout multiplier", "hidden rate", "hidden init", "readout multiplier against init"],
)
def test_the_layer_with_a_wrong_exponent_is_named(layer, shifts, words):
    result = check(shifted(layer, **shifts), steps=2)
    assert result.wrong == (f"layer_{layer}",), result.verdict
    assert not result.passed
    assert f"layer_{layer} is wrong {words}" in result.verdict
    if "c" in shifts:
        # It moves all the same, because layer 1 does: its own update alone shows that it is frozen.
        assert abs(result.change_scaling.exponent[-1, 1]) < 0.15


def family(width):
    return MLP(width=width, depth=2, outputs=1, activation=jnp.tanh)


def parametrized(rule, base_width=1):
    return lambda n: parametrize(family, rule, width=n, base_width=base_width, example=X)


@pytest.mark.slow
def test_parametrized_mup_passes_with_sgd():
    result = check(parametrized("mup"), [128, 256, 512, 1024, 2048], seeds=6)
    assert result.passed, result.verdict
    assert result.layers == ("hidden_0", "hidden_1", "readout")


@pytest.mark.slow
def test_parametrized_mup_passes_with_adam():
    result = check(parametrized("mup", 8), optimizer=optax.adam, learning_rate=0.01, steps=2)
    assert result.passed, result.verdict


@pytest.mark.slow
def test_parametrized_standard_does_not_pass():
    result = check(parametrized("standard"), steps=1, learning_rate=0.001)
    assert result.wrong == ("readout",), result.verdict
    assert result.own_scaling.exponent[0, 1] > 0.35  # the hidden layer learns too fast, too


def test_any_linen_module_can_be_checked_and_its_mistake_found():
    class Plain(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(self.width, name="zeroth")(x))  # not in alphabetical order
            x = nn.tanh(nn.Dense(self.width, name="middle")(x))
            return nn.Dense(1, name="last")(x)

    def unscaled(n):
        net = parametrize(Plain, "mup", width=n, base_width=8, example=X)
        return Net(net.init, net.apply, lambda factory, rate: factory(rate))

    options = {"optimizer": optax.adam, "learning_rate": 0.001, "steps": 1}
    result = check(unscaled, features=captured_outputs, **options)
    assert result.layers == ("zeroth", "middle", "last")
    assert result.wrong == result.layers
    np.testing.assert_allclose(result.own_scaling.exponent[0], [1 / 2, 1, 1 / 2], atol=0.15)

    with pytest.raises(ValueError, match=r"features=True.*captured_outputs"):
        check(unscaled, **options)


class Constant(NamedTuple):
    """A network of two scalars, cheap to compile, whose sizes are what they are told to be."""

    width: int
    grow: float = 0.0

    def init(self, key):
        return {name: jax.random.normal(key, (64,)) for name in ("first", "last")}

    def apply(self, params, x, *, features=False):
        first = params["first"] * self.width**self.grow
        out = first + params["last"]
        return (out, {"first": first, "last": params["last"]}) if features else out

    def optimizer(self, factory, learning_rate):
        return factory(learning_rate)


def quick(net_at_width=Constant, widths=WIDTHS, **options):
    return check(net_at_width, widths, loss=lambda f, y: jnp.sum(f), **options)


def test_divergence_is_a_verdict_and_not_a_crash():
    result = quick(lambda n: Constant(n, 0.0 if n < 1000 else np.inf))
    assert result.wrong == ("first",)
    assert (
        "first is wrong at initialisation: its size is not finite from width 1024" in result.verdict
    )


class Frozen(Constant):
    """An optimizer leaves its last layer where it is."""

    def optimizer(self, factory, learning_rate):
        frozen = optax.stateless(lambda u, _: u | {"last": jnp.zeros_like(u["last"])})
        return optax.chain(factory(learning_rate), frozen)


def test_a_layer_that_never_moves_is_named():
    regime = classify((0, 0), (0, 1 / 2), (-1 / 2, 1))
    result = quick(Frozen, predicted=regime)
    assert result.wrong == ("last",)
    assert "last is wrong at step 3: the change by its own update is exactly zero" in result.verdict


class Aside(Constant):
    """A third layer, such as a head that training leaves out."""

    def init(self, key):
        return super().init(key) | {"aside": jax.random.normal(key, (64,))}

    def apply(self, params, x, *, features=False):
        out = params["first"] + params["last"]
        return (out, dict(params)) if features else out


def test_a_layer_that_the_loss_does_not_read_is_not_judged():
    result = quick(Aside)
    assert result.layers == ("first", "last")
    assert result.own.shape[-1] == result.size_scaling.exponent.shape[-1] == 2
    left_out = "Not judged, as the loss does not depend on their parameters: aside."
    assert result.verdict.endswith(left_out)
    of_none = check(Aside, WIDTHS, loss=lambda f, y: jnp.sum(y))
    assert len(of_none.layers) == 3
    assert of_none.wrong


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quick(widths=[64, 128]), r"widths=\[64, 128\] must be at least three different"),
        (lambda: quick(seeds=1), "seeds=1 must be at least 2"),
        (lambda: quick(steps=0), "steps=0 at least 1"),
        (
            lambda: quick(predicted=classify(*abc("mup", 3))),
            r"has 4 layers and the network 2, first, last.*classify\(\*abc\(rule, 1\)\)",
        ),
        (
            lambda: quick(features=lambda net, params, x: {"only": params["last"]}),
            "a hidden layer and a readout are needed",
        ),
        (
            lambda: quick(features=lambda net, params, x: {f"at_{net.width}": params["last"]}),
            "the layers at width 256 are .*at_256.*, at the first width .*at_64",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class TwoOutputs(nn.Module):
    """An actor-critic: what it returns is (policy, value), or a dict of them."""

    width: int
    named: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(self.width, name="hidden")(x))
        policy, value = nn.Dense(3, name="policy")(h), nn.Dense(1, name="value")(h)
        return {"policy": policy, "value": value} if self.named else (policy, value)


@pytest.mark.parametrize("named", [False, True])
def test_a_loss_of_several_outputs_is_asked_for_before_training(named):
    started = []

    def at_width(n):
        made = parametrize(
            lambda width: TwoOutputs(width, named), "mup", width=n, base_width=4, example=X
        )
        return made._replace(init=lambda key: started.append(n) or made.init(key))

    def checked(loss, **options):
        options |= {"steps": 1, "seeds": 2, "features": captured_outputs}
        return check(at_width, [8, 16, 32], loss=loss, **options)

    example = r"loss=lambda outputs, targets: \(\(outputs\[" + ("'policy'" if named else "0")
    with pytest.raises(ValueError, match=rf"returns 2 arrays .*raised TypeError.*{example}"):
        checked(lambda f, y: jnp.mean((f - y) ** 2))
    with pytest.raises(ValueError, match=r"gives 1 array \(\(\d+, 3\)\).*it must be one number"):
        checked(lambda f, y: jax.tree.leaves(f)[0] ** 2)
    with pytest.raises(ValueError, match=r"gives 2 arrays \(\(\), \(\)\)"):
        checked(lambda f, y: (jnp.zeros(()), jnp.zeros(())))
    assert started == [8] * len(started)  # asked for its shapes alone
    right = checked(lambda f, y: sum(jnp.mean((part - 1) ** 2) for part in jax.tree.leaves(f)))
    assert {"policy", "value"} < set(right.layers)
    one = checked(lambda f, y: jnp.mean(jax.tree.leaves(f)[0] ** 2))
    assert "policy" in one.layers
    assert "value" not in one.layers


def test_an_output_at_which_the_loss_pulls_less_and_less_is_not_judged():
    """Outputs start at n^-1/2, and so does the gradient of their square: right networks would be called wrong."""

    def at_width(n):
        return parametrize(TwoOutputs, "mup", width=n, base_width=4, example=X)

    def checked(loss):
        return check(at_width, [64, 256, 1024], loss=loss, features=captured_outputs, steps=1)

    right = checked(lambda f, y: jnp.mean((f[0] - 1) ** 2) + jnp.mean(f[1] ** 2))
    assert right.passed, right.verdict
    assert right.layers == ("hidden", "policy")
    reason = "as the loss's gradient at what they feed falls with the width: value."
    assert right.verdict.endswith(reason)
    none = checked(lambda f, y: jnp.mean((f[0] - 1) ** 2) + 0 * f[1].sum())
    assert none.verdict.endswith("as the loss does not depend on their parameters: value.")
    squares_alone = checked(lambda f, y: jnp.mean(f[0] ** 2) + jnp.mean(f[1] ** 2))
    assert not squares_alone.passed
    assert squares_alone.wrong == ()
    assert "gradient of this loss at the outputs falls" in squares_alone.verdict


class Handed:
    """An object of a user that hands on what it lacks."""

    def __init__(self, net, factor):
        self._net, self._factor = net, factor

    def __getattr__(self, name):
        return getattr(self._net, name)

    def init(self, key):
        return jax.tree.map(lambda p: self._factor * p, self._net.init(key))


def test_a_network_inside_an_object_is_not_judged_in_its_place():
    def at_width(n):
        return Handed(parametrize(TwoOutputs, "mup", width=n, base_width=4, example=X), n**0.5)

    def loss(f, y):
        return jnp.mean((f[0] - 1) ** 2)

    found = check(at_width, [64, 256, 1024], loss=loss, features=captured_outputs, steps=1)
    assert "hidden" in found.wrong, found.verdict


def test_the_interval_is_that_of_the_spread_over_repeats():
    """4000 repeats: the half-widths, over Student's quantile, against the spread of the exponents themselves."""
    draws = np.random.default_rng(0).standard_normal((3, 2, 4000, 1))
    widths = np.array([8, 32, 128])
    values = widths[:, None, None, None] ** 0.3 * np.exp(0.1 * draws)
    scaling = judgement.fit(widths, values, 0.95)
    half = (scaling.interval[..., 1] - scaling.interval[..., 0]) / 2
    reported = np.sqrt(
        np.mean((half / 12.7062047) ** 2)
    )  # Student's quantile of one degree of freedom
    assert abs(reported / scaling.exponent.std() - 1) < 0.1
    assert abs(scaling.exponent.mean() - 0.3) < 0.02
    assert np.mean(np.abs(scaling.exponent - 0.3) < half) == pytest.approx(0.95, abs=0.015)


def test_small_widths_may_spread_more():
    """The interval from the spreads at each width covers the truth though they differ fourfold; as one spread: 91 %."""
    draws = np.random.default_rng(0).standard_normal((3, 4, 4000, 1))
    widths, spread = np.array([32, 128, 512]), np.array([0.2, 0.1, 0.05])[:, None, None, None]
    interval = judgement.fit(widths, np.exp(spread * draws), 0.95, pooled=True).interval
    covered = (interval[..., 0] < 0) & (interval[..., 1] > 0)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


class Powers(NamedTuple):
    """Layers whose sizes are the powers of the width that they are told to be; they do not learn."""

    width: int
    power: float = 0.0
    bend: float = 0.0
    base_width: int = 1
    nested: bool = False

    def init(self, key):
        return {"body": {name: jax.random.normal(key, (256,)) for name in ("hidden", "readout")}}

    def apply(self, params, x, *, features=False):
        bend = 1 + self.bend * (self.base_width / self.width) ** 0.5
        hidden = jnp.resize(params["body"]["hidden"], (self.width,)) * self.width**self.power * bend
        readout = params["body"]["readout"] * self.width**-0.5
        layers = {"body/hidden": hidden, "body/readout": readout}
        layers |= {"body": readout} if self.nested else {}
        return (readout, layers) if features else jnp.sum(hidden) + jnp.sum(readout)

    def optimizer(self, factory, learning_rate):
        return factory(learning_rate)


def judged(widths, seeds=4, **fields):
    """What is said of the sizes at initialisation alone: everything else is as predicted by construction."""
    predicted = classify((0, 0), (0, 1), (0, 0))
    keys = jax.random.split(KEY, seeds)
    sizes = []
    for width in widths:
        layers = [
            Powers(width, **fields).apply(Powers(width).init(key), X, features=True)[1]
            for key in keys
        ]
        sizes.append(
            [[float(jnp.sqrt(jnp.mean(x**2))) for x in found.values()] for found in layers]
        )
    names, widths = tuple(layers[0]), np.array(widths)
    size = np.array(sizes)[:, :, None].repeat(2, 2)
    places = [0, -1, -1][: len(names)]
    change = widths[:, None, None, None] ** np.array([predicted.change[p] for p in places])
    change = np.broadcast_to(change, (len(widths), seeds, 1, len(names)))
    own = np.full_like(change, np.nan)
    fits = [judgement.fit(widths, values, 0.95) for values in (size, change, own)]
    base = fields.get("base_width", 1)
    measured = judgement.Measured(names, places, widths, (size, change, own), fits, 0.95, base)
    return judgement.judge(measured, predicted._replace(initial=(0, -1 / 2)), 0.15)


def verdicts(widths, *, base=8, seeds=4, noise=(0.1, 0.2, 0.2, 0.3), wrong=None, repeats=60):
    """Share of repeats with each verdict for networks of three layers whose coordinates are powers of the width.

    Seeds spread by `noise`, as those of small networks do: the sizes, and the changes of the layers; corrections
    1 + c (base/n)^1/2 have c uniform in [-1, 1]. `wrong` is (stage, layer, shift of the exponent); "start" is a size
    at initialisation with what follows from it, the own changes of all layers below.
    """
    rng = np.random.default_rng(0)
    widths, predicted = np.array(widths), classify(*abc("mup", 2))
    names, found = ("first", "second", "readout"), {}

    def drawn(exponents, steps, stage):
        power = np.array(exponents, float)
        if wrong and wrong[0] == stage:
            power[wrong[1]] += wrong[2]
        if wrong and wrong[0] == "start":
            layers = {"size": slice(wrong[1], wrong[1] + 1), "own": slice(wrong[1])}
            power[layers.get(stage, slice(0))] += wrong[2]
        bend = 1 + rng.uniform(-1, 1, (steps, 3)) * (base / widths[:, None, None, None]) ** 0.5
        spread = noise[0] if stage == "size" else np.array(noise[1:])
        draws = rng.standard_normal((len(widths), seeds, steps, 3))
        return widths[:, None, None, None] ** power * bend * np.exp(spread * draws)

    for _ in range(repeats):
        values = (
            drawn(predicted.initial, 4, "size"),
            drawn(predicted.change, 3, "change"),
            drawn([-r for r in predicted.layers], 3, "own"),
        )
        first = [widths[:, None] ** (r - f) for r, f in zip(predicted.layers, predicted.first)]
        values[2][:, :, 0] *= np.stack(first, -1)
        fits = [judgement.fit(widths, v, 0.95) for v in values]
        measured = judgement.Measured(names, [0, 1, -1], widths, values, fits, 0.95, base)
        said, passed, _ = judgement.judge(measured, predicted, 0.15)
        what = "passed" if passed else said or "undecided"
        found[what] = found.get(what, 0) + 1 / repeats
    return found


@pytest.mark.parametrize("seeds", [2, 4])
@pytest.mark.parametrize("base", [1, 8, 64])
def test_widths_too_close_to_decide_are_undecided(base, seeds):
    assert verdicts([64, 65, 66], base=base, seeds=seeds) == {"undecided": pytest.approx(1)}


@pytest.mark.parametrize("widths", [(64, 128, 256), (64, 256, 1024), (32, 64, 128, 256, 512)])
def test_a_right_network_is_called_wrong_in_fewer_cases_than_the_confidence_leaves(widths):
    """1 - .95 of 100, with three standard errors; all fifteen comparisons together."""
    found = verdicts(widths, repeats=100)
    false = 1 - found.get("passed", 0) - found.get("undecided", 0)
    assert false <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5, found


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize(
    ("stage", "shift"), [("size", 1 / 2), ("size", -1 / 2), ("own", 1 / 2), ("own", -1 / 2)]
)
def test_half_a_power_in_one_layer_is_named(layer, stage, shift):
    name = ("first", "second", "readout")[layer]
    found = verdicts([64, 256, 1024], noise=(0.05,) * 4, wrong=(stage, layer, shift), repeats=20)
    assert found.get((name,), 0) > 0.9, found
    assert "passed" not in found


@pytest.mark.parametrize("shift", [1 / 2, -1 / 2])
def test_no_layer_is_named_for_what_a_wrong_initial_size_may_explain(shift):
    """The readout starts wrong; hidden layers, whose gradient it is, deviate as much and are less noisy."""
    for base, widths in ((4, [32, 64, 128]), (2, [16, 64, 256])):
        found = verdicts(
            widths,
            base=base,
            seeds=8,
            noise=(0.25, 0.02, 0.02, 0.02),
            wrong=("start", 2, shift),
            repeats=20,
        )
        assert set(found) <= {("readout",), "undecided"}, found
    assert found[("readout",)] > 0.9


def test_near_the_base_width_nothing_is_wrong_and_widths_that_decide_are_named():
    near = {"bend": 1.0, "base_width": 64}
    wrong, passed, verdict = judged([64, 128, 256], **near)
    assert (wrong, passed) == ((), False)
    assert "body/hidden is undecided at initialisation: its size scales as n^-0.2" in verdict
    assert "would decide it, or 64, " in verdict
    widths = [
        int(word.strip(",")) for word in verdict.split("Widths ")[1].split(" would")[0].split()
    ]
    assert len(widths) == 3
    assert judged(widths, **near)[1]


def test_a_wrong_power_is_named_near_the_base_width_if_it_is_large():
    assert judged([64, 256, 1024], power=0.5, base_width=8)[0] == ("body/hidden",)
    assert judged([64, 256, 1024], power=-0.5, base_width=8)[0] == ("body/hidden",)
    assert judged([64, 256, 1024], base_width=8)[1]


def test_an_enclosing_module_is_as_its_outputs_are():
    """`body` returns what its readout does: both are readouts, whatever their names and order."""
    predicted = classify((0, 0), (0, 1), (-1, 1))
    result = check(
        lambda n: Powers(n, nested=True),
        [16, 64, 256],
        loss=lambda f, y: f,
        steps=1,
        predicted=predicted,
        learning_rate=1e-3,
    )
    assert result.layers == ("body/hidden", "body/readout", "body")
    assert not any("body" in name for name in result.wrong if "initialisation" in result.verdict)
    assert np.isnan(result.own[..., 2]).all()
    assert np.isfinite(result.own[..., :2]).all()


def test_the_update_of_each_layer_alone_is_that_of_parameters_mixed_by_hand():
    """Behind patches, norms, a branch, attention and a recurrent loop."""

    class Mixed(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(self.width, (2, 2), strides=2)(x).reshape(len(x), -1, self.width)
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = nn.RNN(nn.SimpleCell(self.width), name="loop")(x)
            return nn.Dense(2)(jnp.tanh(x[:, -1]))

    x = jax.random.normal(KEY, (3, 4, 4, 1))
    net = ntk.network(Mixed, 4, x)
    starts, moved = (jax.vmap(net.init)(jax.random.split(jax.random.key(k), 2)) for k in (0, 1))
    names, layers, masks = coordinates._layers(net, starts, x, captured_outputs)
    assert {"Conv_0", "LayerNorm_0", "loop", "MultiHeadDotProductAttention_0/query"} < set(names)
    alone = coordinates._compiled(net, squares, optax.sgd, captured_outputs)[2]
    owned = tuple(tuple(np.flatnonzero(mask).tolist()) for mask in masks)
    before = [jnp.zeros((2, *layer.shape), layer.dtype) for layer in layers]
    still, _ = alone(starts, starts, before, x, owned)
    found, sizes = alone(starts, moved, still, x, owned)
    leaves, tree = jax.tree.flatten(starts)
    each = jax.jit(jax.vmap(lambda p: captured_outputs(net, p, x)))
    for l, name in enumerate(names):
        pairs = zip(masks[l], leaves, jax.tree.leaves(moved))
        mixed = tree.unflatten([new if own else old for own, old, new in pairs])
        expected = each(mixed)[name]
        np.testing.assert_allclose(found[l], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        change = jnp.sqrt(jnp.square(expected - still[l]).reshape(2, -1).mean(1))
        np.testing.assert_allclose(sizes[:, l], change, rtol=1e-3, atol=1e-6, err_msg=name)
    nothing = alone(starts, starts, still, x, owned)[1]
    assert not nothing.any()


def test_biases_that_are_drawn_do_not_hide_how_a_readout_shrinks():
    """As PyTorch and Equinox draw them: with them the outputs at initialisation are of order one at every width."""
    drawn = nn.initializers.uniform(2.0)

    class Biased(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, bias_init=drawn)(nn.tanh(nn.Dense(self.width)(x)))

    found = coordinate_check(
        lambda n: parametrize(Biased, "mup", width=n, base_width=8, example=X[:1]),
        [32, 128, 512],
        (X, jnp.arange(len(X)) % 3),
        lambda out, y: optax.softmax_cross_entropy_with_integer_labels(out, y).mean(),
        KEY,
        learning_rate=0.1,
        seeds=8,
        features=captured_outputs,
    )
    assert found.size_scaling.exponent[0, 1] == pytest.approx(-0.5, abs=0.2)
    assert "Dense_1" not in found.wrong


def test_layers_under_a_vmap_that_drops_what_they_record():
    class Critic(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.tanh(nn.Dense(self.width)(x)))

    class Twin(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            several = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.vmap(Critic, in_axes=None, out_axes=0, axis_size=2, **several)(self.width)(x)

    net = parametrize(Twin, "mup", width=16, base_width=8, example=X[:1])
    found = captured_outputs(net, net.init(KEY), X)
    assert [name.rpartition("/")[2] for name in found] == [
        "Dense_1",
        "Dense_0",
    ]  # as they are called
    assert all(len(values) == len(X) for values in found.values())
