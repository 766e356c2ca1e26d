"""Coordinate check: how the activations of every layer, and their change in training, scale with width."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from limits.regimes import Regime, abc, classify


class Scaling(NamedTuple):
    """n^exponent fitted over the widths, seed by seed.

    Attributes:
        exponent: (steps, layers), mean over seeds; nan where a value is zero or not finite.
        interval: (steps, layers, 2), its confidence interval from the spread over seeds.
    """

    exponent: np.ndarray
    interval: np.ndarray


class CoordinateCheck(NamedTuple):
    """What a coordinate check measured, and what it says.

    Attributes:
        layers: names of the layers, from the input to the readout.
        widths: (widths,).
        size: (widths, seeds, steps + 1, layers), RMS of each layer's output; step 0 is initialisation.
        change: (widths, seeds, steps, layers), RMS of its change since initialisation.
        own: likewise, of the change that the layer's own update makes alone, all other layers kept at
            initialisation; nan for a layer whose name is not a path in the parameters.
        size_scaling: Scaling of `size`.
        change_scaling: Scaling of `change`.
        own_scaling: Scaling of `own`.
        predicted: the Regime compared with.
        wrong: names of the layers that are wrong, () if none.
        passed: whether every layer scales as predicted.
        verdict: the same in words.
    """

    layers: tuple[str, ...]
    widths: np.ndarray
    size: np.ndarray
    change: np.ndarray
    own: np.ndarray
    size_scaling: Scaling
    change_scaling: Scaling
    own_scaling: Scaling
    predicted: Regime
    wrong: tuple[str, ...]
    passed: bool
    verdict: str


def layer_outputs(net, params, inputs) -> dict[str, jax.Array]:
    """Layer outputs by name, for a model that returns them when called with `features=True`."""
    try:
        return net.apply(params, inputs, features=True)[1]
    except TypeError as error:
        if "features" not in str(error):
            raise
        raise ValueError(
            "the model does not return its layers' outputs when called with features=True: give a"
            " function features(net, params, inputs), for a linen module captured_outputs."
        ) from error


def captured_outputs(net, params, inputs) -> dict[str, jax.Array]:
    """Outputs of all submodules by path, for any linen module (modules that return one array)."""
    _, state = net.apply(params, inputs, capture_intermediates=True, mutable=["intermediates"])
    found = {}

    def collect(path, tree):
        for name, value in tree.items():
            if name == "__call__" and path and isinstance(value[-1], jax.Array):
                found["/".join(path)] = value[-1]
            elif name != "__call__":
                collect((*path, name), value)

    collect((), state["intermediates"])
    return found


def coordinate_check(
    net_at_width: Callable[[int], Any],
    widths: Sequence[int],
    batch: tuple,
    loss: Callable,
    key: jax.Array,
    *,
    learning_rate: float,
    optimizer: Callable = optax.sgd,
    steps: int = 3,
    seeds: int = 4,
    predicted: Regime | None = None,
    features: Callable = layer_outputs,
    tolerance: float = 0.15,
    confidence: float = 0.95,
) -> CoordinateCheck:
    """Train at several widths for a few steps, fit how coordinates scale, and name the layer that is wrong.

    Errors are traced to where they start: first the sizes at initialisation (a_l + b_l), then, step by
    step, what each layer's own update does (a_l and c_l), last the changes as a whole. Later deviations can
    be consequences of the first, so only the first are named. These fix a parametrization up to its exact
    symmetry.

    Args:
        net_at_width: maps a width to a network: an object with `init(key) -> params`,
            `apply(params, inputs, ...)` and `optimizer(factory, learning_rate)`, such as
            `lambda n: parametrize(family, "mup", width=n, base_width=8, example=inputs)`. A base width
            well below the widths keeps the initial outputs, which shrink with the width, small
            beside the targets; otherwise they bend the first steps.
        widths: at least three; a factor of eight between the extremes makes the fit sharp.
        batch: (inputs, targets), the same at every step.
        loss: `loss(outputs, targets)`, a scalar.
        key: PRNG key of the initialisations.
        learning_rate: at the base width; large enough to change the activations visibly in a few steps.
        optimizer: an optax factory, such as optax.sgd or optax.adam.
        steps: optimizer steps; with a readout that starts at zero at least 2.
        seeds: initialisations, at least 2, for the intervals.
        predicted: the Regime to compare with, from `classify`, with as many layers as `features` names. By
            default maximal update (mup): outputs start at n^-1/2 or zero, all else at order one, and every
            layer's update acts at order one.
        features: `features(net, params, inputs)`, layer outputs by name from the input to the readout.
            `layer_outputs` (for `features=True`) or `captured_outputs` (any linen module).
        tolerance: largest deviation of an exponent that counts as right.
        confidence: coverage of the intervals.

    Returns:
        CoordinateCheck. A deviation beyond `tolerance` is wrong if the prediction lies outside the
        interval; otherwise the verdict is "undecided".

    Raises:
        ValueError: fewer than three widths, two seeds or one step; a prediction with another number of
            layers; layers that differ between widths.

    Source: Yang et al. 2022, arXiv:2203.03466, appendix D.1, which reads the exponents off a plot by eye.
    """
    widths = np.asarray(widths)
    _check_settings(widths, steps, seeds)
    keys = jax.random.split(key, seeds)
    names, size, change, own = None, [], [], []
    for width in widths:
        net = net_at_width(int(width))
        found, *measured = _train(net, batch, loss, keys, optimizer, learning_rate, steps, features)
        if names not in (None, found):
            raise ValueError(
                f"the layers at width {width} are {found}, at the first width {names}."
            )
        names = found
        for values, value in zip((size, change, own), measured):
            values.append(value)
    predicted = _prediction(predicted, names)
    size, change, own = map(np.stack, (size, change, own))
    fits = [_fit(widths, values, confidence) for values in (size, change, own)]
    wrong, passed, verdict = _judge(names, widths, (size, change, own), fits, predicted, tolerance)
    return CoordinateCheck(
        names, widths, size, change, own, *fits, predicted, wrong, passed, verdict
    )


def _check_settings(widths, steps, seeds):
    if widths.ndim != 1 or len(set(widths.tolist())) < 3 or (widths < 1).any():
        raise ValueError(f"widths={widths.tolist()} must be at least three different widths.")
    if seeds < 2 or steps < 1:
        raise ValueError(
            f"seeds={seeds} must be at least 2, for an interval, and steps={steps} at least 1."
        )


def _prediction(predicted, names):
    if len(names) < 2:
        raise ValueError(f"the layers are {names}: a hidden layer and a readout are needed.")
    if predicted is None:
        return classify(*abc("mup", len(names) - 1))
    if len(predicted.layers) != len(names):
        raise ValueError(
            f"the prediction has {len(predicted.layers)} layers and the network {len(names)},"
            f" {', '.join(names)}: for a named rule use classify(*abc(rule, {len(names) - 1}))."
        )
    return predicted


def _train(net, batch, loss, keys, optimizer, learning_rate, steps, features):
    """Layer names, and RMS of size, change and own change as (seeds, steps, layers)."""
    inputs, targets = (jnp.asarray(part) for part in batch)

    def outputs(params, inputs):
        return list(features(net, params, inputs).values())

    # It runs once: half optimised it compiles twice as fast.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    @jax.vmap
    def initialise(key):
        return net.init(key)

    # The data and the rate are arguments, mapped over by none of the seeds.
    @jax.jit
    def advance(start, params, state, inputs, targets, rate):
        def one(start, params, state):
            gradient = jax.grad(lambda p: loss(net.apply(p, inputs), targets))(params)
            updates, state = net.optimizer(optimizer, rate).update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            before, after = outputs(start, inputs), outputs(params, inputs)
            moved = [x - y for x, y in zip(after, before)]
            return params, state, _sizes(before), _sizes(after), _sizes(moved)

        return jax.vmap(one)(start, params, state)

    @jax.jit
    def own_change(start, params, inputs, mask):
        def one(start, params):
            leaves, tree = jax.tree.flatten(start)
            mixed = [jnp.where(m, x, y) for m, x, y in zip(mask, jax.tree.leaves(params), leaves)]
            before, after = outputs(start, inputs), outputs(tree.unflatten(mixed), inputs)
            return _sizes([x - y for x, y in zip(after, before)])

        return jax.vmap(one)(start, params)

    start = params = initialise(keys)
    state = jax.vmap(net.optimizer(optimizer, learning_rate).init)(params)
    names, masks = _layers(net, start, inputs, features)
    size, change, own = [], [], []
    for _ in range(steps):
        params, state, initial, after, moved = advance(
            start, params, state, inputs, targets, learning_rate
        )
        size = size or [initial]
        size.append(after)
        change.append(moved)
        alone = [
            np.asarray(own_change(start, params, inputs, mask))[:, l]
            if mask.any()
            else np.full(keys.size, np.nan)
            for l, mask in enumerate(masks)
        ]
        own.append(np.stack(alone, axis=-1))
    return names, *(np.stack(values, axis=1).astype(float) for values in (size, change, own))


def _sizes(arrays):
    return jnp.stack([jnp.sqrt(jnp.mean(jnp.square(x))) for x in arrays])


def _layers(net, params, inputs, features):
    """Layer names, and (layers, leaves): whether a parameter lies under the layer's path."""
    names = []
    # Through an abstract evaluation, because the order of a dict does not survive a transformation.
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    jax.eval_shape(lambda p, x: names.extend(features(net, p, x)), one, inputs)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    under = [[f"{path}/".startswith(f"{name}/") for path in paths] for name in names]
    return tuple(names), np.array(under)


def _fit(widths, values, confidence):
    """Scaling of values (widths, seeds, steps, layers)."""
    x = np.log(widths) - np.log(widths).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        log_values = np.log(values)
        slopes = np.einsum("w,w...->...", x / (x @ x), log_values)  # (seeds, steps, layers)
        slopes = np.where(np.isfinite(slopes), slopes, np.nan)
    seeds = slopes.shape[0]
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * slopes.std(0, ddof=1) / np.sqrt(seeds)
    mean = slopes.mean(axis=0)
    return Scaling(mean, np.stack([mean - half, mean + half], axis=-1))


class _Stage(NamedTuple):
    """One comparison of all layers: values (widths, seeds, layers) and what is expected of them."""

    when: str
    what: str
    values: np.ndarray
    exponent: np.ndarray
    interval: np.ndarray
    expected: tuple
    inherited: bool  # a deviation is handed on to later layers
    may_vanish: bool


def _judge(names, widths, values, fits, predicted, tolerance):
    """(wrong, passed, verdict), from the first stage at which a layer deviates."""
    doubts = []
    for stage in _stages(values, fits, predicted):
        wrong = {}
        for l, name in enumerate(names):
            certain, text = _deviation(stage, l, widths, tolerance)
            if text and certain:
                wrong[name] = f"{name} is wrong {stage.when}: {stage.what} {text}"
            elif text:
                doubts.append(f"{name} is undecided {stage.when}: {stage.what} {text}")
        if wrong:
            named = tuple(wrong)[:1] if stage.inherited else tuple(wrong)
            text = "; ".join(wrong[name] for name in named)
            return named, False, f"{text}. Later deviations can follow from this."
    if doubts:
        return (), False, f"{'; '.join(doubts)}. Take more seeds or a wider range of widths."
    return (
        (),
        True,
        f"{', '.join(names)} scale as predicted ({predicted.kind}), within {tolerance}.",
    )


def _stages(values, fits, predicted):
    (size, change, own), (size_fit, change_fit, own_fit) = values, fits
    steps = change.shape[2]
    start = size[:, :, 0], size_fit.exponent[0], size_fit.interval[0]
    yield _Stage("at initialisation", "its size", *start, predicted.initial, True, True)
    for t in range(steps):
        measured = own[:, :, t], own_fit.exponent[t], own_fit.interval[t]
        expected = tuple(-r for r in (predicted.layers if t else predicted.first))
        what = "the change by its own update"
        yield _Stage(f"at step {t + 1}", what, *measured, expected, False, t + 1 < steps)
    end = change[:, :, -1], change_fit.exponent[-1], change_fit.interval[-1]
    yield _Stage(f"at step {steps}", "its change", *end, predicted.change, True, False)


def _deviation(stage, l, widths, tolerance):
    """(certain, what is wrong with layer l, or "")."""
    values, expected = stage.values[:, :, l], stage.expected[l]
    if np.isnan(values).all() and "own" in stage.what:
        return True, ""  # its name is not a path in the parameters
    if not np.isfinite(values).all():
        first = widths[~np.isfinite(values).all(axis=1)].min()
        return True, f"is not finite from width {first} (lower the learning rate)"
    if (values == 0).any():
        return True, "" if stage.may_vanish else "is exactly zero"
    exponent, (low, high) = stage.exponent[l], stage.interval[l]
    if abs(exponent - expected) <= tolerance:
        return True, ""
    text = f"scales as n^{exponent:.2f} [{low:.2f}, {high:.2f}], predicted n^{expected:g}"
    return not low <= expected <= high, text
