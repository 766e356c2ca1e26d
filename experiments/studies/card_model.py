"""A user's model on a theory card: how it takes its data, its losses, layers, limits, and how it is trained."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.errors import FlaxError

import limits
import metrics
import ntk
from experiments import loop, losses, tasks
from experiments.train import INIT, ONCE, Probe, Program, Setup, compile_program, stream
from metrics import stability
from ntk import jaxprs
from ntk.types import R

NOT_HERE = (ValueError, TypeError, NotImplementedError, FlaxError)
"""What the library, Flax or the model raises where a part does not apply."""


class Shared(dict):
    """What several parts need of a model, by name; it starts empty in a process that the model is sent to."""

    def __reduce__(self) -> tuple[type[Shared], tuple[()]]:
        return Shared, ()


class Model(NamedTuple):
    """A user's family with its data.

    Attributes:
        family: ``width -> model``.
        x: training inputs, as the model takes them.
        y: their targets.
        test: (inputs, targets).
        outputs: classes, or real targets.
        loss: name of its loss.
        call: static keywords of every call.
        features: ``(net, params, x) -> {layer: outputs}``.
        state: whether it keeps more than parameters.
        unfit: why its outputs have no loss; "" if they have one.
        shared: what `once` has made.
    """

    family: Callable
    x: np.ndarray
    y: np.ndarray
    test: tuple[np.ndarray, np.ndarray]
    outputs: int
    loss: str
    call: dict
    features: Callable
    state: bool
    unfit: str
    shared: Shared


def once(model: Model, name: Hashable, make: Callable[[], R]) -> R:
    """What ``make`` returns, or why it refuses, for the first part that asks; the same for all others."""
    if name not in model.shared:
        try:
            model.shared[name] = make(), None
        except NOT_HERE as error:
            model.shared[name] = None, error
    found, refusal = model.shared[name]
    if refusal is not None:
        raise refusal
    return found


def tried(family: Callable, width: int, x: np.ndarray, call: dict) -> tuple[Any, bool]:
    """(shapes of the outputs, whether the model keeps more than parameters), if the model runs on these inputs."""
    net, state = network(family, width, x, call)
    params = jax.eval_shape(net.init, jax.random.key(0))
    return jax.eval_shape(net.apply, params, x), state


def network(family: Callable, width: int, x: np.ndarray, call: dict) -> tuple[Any, bool]:
    """(the model at a width, whether it keeps more than parameters), with what it keeps as it starts."""
    net = ntk.network(family, width, x[:1], call=call)
    state = _started(lambda key: ntk.initial_state(family, width, x[:1], key, call=call))
    if not state:
        return net, False
    return net._replace(apply=functools.partial(net.apply, state=state)), True


def _started(state: Callable) -> dict:
    """What a model keeps besides parameters, as it starts; nothing is computed where there is nothing."""
    key = jax.random.key(0)
    return state(key) if jax.tree.leaves(jax.eval_shape(state, key)) else {}


def at_width(model: Model, width: int) -> Any:
    """The model's own network at a width."""
    return network(model.family, width, model.x, model.call)[0]


def _with_state(net: limits.Parametrized) -> limits.Parametrized:
    """The network with what the model keeps besides parameters as it starts, so that no call asks for it."""
    state = _started(net.state)
    if not state:
        return net

    def held(net: limits.Parametrized) -> limits.Parametrized:
        return net._replace(
            apply=functools.partial(net.apply, state=state),
            state=lambda key: {},
            with_factors=lambda factors: held(net.with_factors(factors)),
        )

    return held(net)


def made(config: Any, task: tasks.Task, family: Callable, call: dict, x: Any, found: Any) -> Model:
    """The model with what its parts need; ``found`` is of `tried`."""
    outputs, state = found
    loss = config.loss
    if loss == "auto":
        loss = "cross_entropy" if task.train.y.dtype.kind in "iu" else "squared_error"
    leaves = jax.tree.leaves(outputs)
    expected = (*(("T",) if task.train.y.ndim == 2 and loss == "cross_entropy" else ()),)
    expected = ("N", *expected, task.outputs)
    unfit = ""
    if len(leaves) != 1 or outputs is not leaves[0]:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        unfit = (
            f"the model returns {len(leaves)} arrays ({shapes}); a loss needs one array {expected}"
        )
    elif len(outputs.shape) != len(expected) or outputs.shape[-1] != task.outputs:
        unfit = f"the model returns an array {outputs.shape}; the targets need {expected}"
    test = task.test.x.reshape(len(task.test.x), *x.shape[1:]), task.test.y
    y = task.train.y
    features = _features(family, config.base_width, x[:2], call)
    return Model(family, x, y, test, task.outputs, loss, call, features, state, unfit, Shared())


def _features(family: Callable, width: int, x: np.ndarray, call: dict) -> Callable:
    """How the outputs of the layers are had: from the model itself, or from all submodules of a linen module.

    Where they are had neither way, `limits.layer_outputs`, which says so.
    """
    net, _ = network(family, width, x, call)
    params = jax.eval_shape(net.init, jax.random.key(0))
    for features in (limits.layer_outputs, limits.captured_outputs):
        try:
            jax.eval_shape(lambda p, features=features: features(net, p, x), params)
            return features
        except Exception:  # the model was never asked for that before
            continue
    return limits.layer_outputs


def sentence(error: Exception) -> str:
    """The words of an error in one line, with its kind where that is not the library's own."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {text}"


def parametrized(model: Model, rule: str, width: int, base: int | None) -> limits.Parametrized:
    """The model at a width under a rule."""
    options = {"example": model.x[:1], "call": model.call, "base_width": base}

    def make() -> limits.Parametrized:
        return _with_state(limits.parametrize(model.family, rule, width=width, **options))

    return once(model, (rule, width, base), make)


def check_loss(model: Model) -> None:
    """Refuses a model whose outputs no loss takes.

    Raises:
        ValueError: says what they are.
    """
    if model.unfit:
        raise ValueError(model.unfit)


def curved_loss(model: Model, apply: Callable) -> Callable:
    """The loss whose curvature is taken: patches of images are matrix products, which loops of products can hold."""
    return metrics.chunks.matrix_convolutions(
        losses.supervised(model.loss, apply), overlapping=False
    )


def edges(model: Model, net: Any, batch: tuple, seeds: Sequence[int]) -> np.ndarray:
    """The largest stable rate of gradient descent before training, 2 over the sharpness, of the runs of these seeds.

    Raises:
        ValueError: as `check_loss`.
    """
    check_loss(model)
    loss, scale = curved_loss(model, net.apply), net.lr_scale("sgd")

    @functools.partial(jax.jit, compiler_options=ONCE)
    def rate(params):
        pairs = metrics.sharpness(loss, params, batch, num_steps=12, scale=scale)
        return stability.maximal_learning_rate(pairs).value

    def make() -> np.ndarray:
        init = jax.jit(net.init, compiler_options=ONCE)
        return np.array([float(rate(init(stream(seed, INIT)))) for seed in seeds])

    return once(model, ("edges", net.rule.name, net.width, net.base_width, len(batch[0])), make)


def program(
    net: limits.Parametrized,
    loss: str,
    data: dict[str, Any],
    count: int,
    steps: int,
    measure: Callable,
    *,
    start: Callable = lambda net, params, key, data: (),
    optimizer: Callable = optax.sgd,
    batch: int | None = None,
) -> Program:
    """The compiled training of a network, for every rule: its factors are data.

    Args:
        net: at its width, under any rule.
        loss: name of the loss.
        data: "train", "factors" (of a network under a rule), and what ``measure`` reads.
        count: runs that train at a time.
        steps: between two measurements.
        measure: ``(net, params, carry, data) -> (carry, {name: array})``.
        start: ``(net, params, key, data) -> carry``.
        optimizer: an optax factory.
        batch: examples a step, None for all.
    """

    def scaled(data):
        return net.with_factors(data["factors"])

    def setup(data):
        under = scaled(data)
        supervised = losses.supervised(loss, under.apply)
        return Setup(under.init, supervised, lambda rate: under.optimizer(optimizer, rate))

    probe = Probe(
        lambda params, key, data: start(scaled(data), params, key, data),
        lambda params, carry, rate, data: measure(scaled(data), params, carry, data),
    )
    # One after the other they compile faster.
    runs = count if jax.default_backend() != "cpu" else None
    return compile_program(setup, data, steps=steps, batch_size=batch, probe=probe, runs=runs)


def trained(
    program: Program, data: dict[str, Any], rates: Any, seeds: list[int], chunks: int
) -> dict[str, np.ndarray]:
    """What was measured before the first and after each chunk of every run, as `loop.train_runs` gives it."""
    return loop.train_runs(program, data, rates, seeds, chunks=chunks, name="card")


def one_hot(model: Model, y: np.ndarray) -> np.ndarray:
    """Targets of squared error: real ones as they are."""
    return np.asarray(jax.nn.one_hot(y, model.outputs)) if y.dtype.kind in "iu" else y


def as_matrix(kernel: Any) -> Any:
    """A kernel of outputs at several positions, (n, n, T, T), as a matrix (nT, nT)."""
    if kernel.ndim == 2:
        return kernel
    rows = math.prod(kernel.shape[::2])
    order = (*range(0, kernel.ndim, 2), *range(1, kernel.ndim, 2))
    return kernel.transpose(order).reshape(rows, -1)


def moved(params: Any) -> Any:
    """Parameters after a step in a fixed random direction, which a readout that starts at zero leaves there."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda p: p + (0.1 * rng.standard_normal(p.shape, np.float32)).astype(p.dtype), params
    )


def wide_layers(model: Model, widths: tuple, least: int = 2) -> list[str]:
    """Names of the layers whose outputs grow with the width, each fed by the one before: the longest such chain.

    Raises:
        ValueError: there are fewer than ``least``.
    """
    names = once(model, ("layers", *widths), lambda: _wide_layers(model, widths))
    if len(names) < least:
        needs = "signals through depth need two" if least > 1 else "one is needed"
        raise ValueError(
            f"{len(names)} layers grow with the width one after the other ({', '.join(names) or 'none'}); {needs}"
        )
    return names


def _wide_layers(model: Model, widths: tuple) -> list[str]:
    shapes = []
    for width in (widths[0], widths[-1]):
        net = at_width(model, width)
        params, found = jax.eval_shape(net.init, jax.random.key(0)), {}

        def record(params, net=net, found=found):
            found |= {n: h.shape for n, h in model.features(net, params, model.x[:2]).items()}

        jax.eval_shape(record, params)
        shapes.append(found)
    names = [name for name, shape in shapes[0].items() if shapes[1].get(name) != shape]
    return _longest_chain(model, widths[0], names)


def _longest_chain(model: Model, width: int, names: Sequence[str]) -> list[str]:
    """The longest chain of layers of which each depends on the parameters of the one before.

    Layers beside one another, such as queries and keys or the heads of an actor and a critic, are no chain.
    """
    if not names:
        return []
    net = at_width(model, width)
    params = jax.eval_shape(net.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)

    def outputs(*leaves):
        found = model.features(net, jax.tree.unflatten(structure, leaves), model.x[:2])
        return [found[name] for name in names]

    owners = [
        max((n for n in names if f"{path}/".startswith(f"{n}/")), key=len, default=None)
        for path in ntk.named_leaves(params)
    ]
    # Read off the program: gradients of all layers take longer to compile than a part of the card may.
    jaxpr = jaxprs.flatten(outputs, *leaves).jaxpr
    reads = [jaxprs.alive(jaxpr, [n == name for n in names]).inputs for name in names]
    chains: dict[str, list[str]] = {}
    for name, row in zip(names, reads):
        if name in owners:  # others, such as a dropout, are no layers
            before = [chains[n] for n, used in zip(owners, row) if used and n in chains]
            chains[name] = [*max(before, key=len, default=[]), name]
    return max(reversed(chains.values()), key=len, default=[])


class Limit(NamedTuple):
    """The limit of a family: its kernel function, and the networks whose limit it is."""

    kernel_fn: Callable
    at_width: Callable


def limit(config: Any, model: Model) -> Limit:
    """The limit of weights of unit variance; where they have none, of the model itself from the base width on.

    Raises:
        ValueError: as `ntk.infinite_width`.
    """
    return once(model, "limit", lambda: _limit(config, model))


def _limit(config: Any, model: Model) -> Limit:
    options: dict[str, Any] = {"call": model.call}
    try:
        kernel_fn = ntk.infinite_width(model.family, model.x[:1], **options)
    except ValueError as error:
        if "base_width" not in str(error):
            raise
        options["base_width"] = config.base_width
        kernel_fn = ntk.infinite_width(model.family, model.x[:1], **options)

    def finite(width):
        return parametrized(model, "ntk", width, options.get("base_width"))

    return Limit(kernel_fn, finite)


class Gram(NamedTuple):
    """The kernels of infinite width of the examples that parts ask for, {"ntk" or "nngp": (n, n, ...)}.

    Attributes:
        between: of the first training examples, so many as each part asks for, and then the test inputs.
        train: how many training examples there are.
    """

    between: dict[str, np.ndarray]
    train: int


def gram(config: Any, model: Model) -> Gram:
    """One evaluation for all parts: with random scores a program takes longer to compile than to run.

    Raises:
        ValueError: as `limit`, or the model has no tangent kernel.
    """
    return once(model, "gram", lambda: _gram(config, model))


def _gram(config: Any, model: Model) -> Gram:
    asked = [
        config[part].examples
        for part in ("kernel", "spectrum", "prediction")
        if part in config.parts
    ]
    train = min(max(asked), len(model.x))
    tested = model.test[0][: config.prediction.examples * ("prediction" in config.parts)]
    x = np.concatenate([model.x[:train], tested])
    found = limit(config, model).kernel_fn(x, None, ("ntk", "nngp"))
    return Gram({name: np.asarray(k) for name, k in found._asdict().items()}, train)
