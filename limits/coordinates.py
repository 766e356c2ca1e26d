"""Coordinate check: how the activations of every layer, and their change in training, scale with width.

With h_l the output of layer l, Delta h_l(t) its change after t steps and that by the layer's own update alone, each is
fitted as RMS = C n^s over the widths n, and s compared with what the abc-parametrization says (`limits.regimes`).

One file: which layers are read, how they are trained and where they stand in a regime is fixed by one network.

Source: Yang et al. 2022, arXiv:2203.03466, appendix D.1; the separation by updates and the verdict are derived.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from limits import judgement
from limits.captured import weighted_outputs
from limits.judgement import Scaling
from limits.regimes import Regime, abc, classify
from ntk import jaxprs, show
from ntk.arguments import is_key, shown, strict
from ntk.family import check_width, named_leaves, path_name
from ntk.options import check_count, check_real
from ntk.types import Float, Integer, PRNGKey, PyTree, Shape

# Exponent with which a loss's gradient at the outputs falls, from which on it is no loss of their size.
_FALLS = 0.25

Features: TypeAlias = Callable[[Any, PyTree, Any], dict[str, jax.Array]]

# Before JAX 0.12, programs of several loops (two passes of a recurrent network) may wait for ever on CPUs if parts of
# them run beside one another.
IN_ORDER = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


@show.drawn
class CoordinateCheck(NamedTuple):
    """What a coordinate check measured, and what it says.

    Attributes:
        layers: names of the layers, from the input to the readout, without those whose parameters the loss does not
            depend on, such as a head that it leaves out.
        widths: (widths,).
        size: (widths, seeds, steps + 1, layers), RMS of each layer's output; step 0 is initialisation, but for biases
            that are drawn at random.
        change: (widths, seeds, steps, layers), RMS of its change since initialisation.
        own: likewise, of the change that the layer's own update makes alone, all other layers kept at
            initialisation; nan for a layer whose name is not a path in the parameters.
        size_scaling: Scaling of `size`.
        change_scaling: Scaling of `change`.
        own_scaling: Scaling of `own`.
        predicted: the Regime compared with.
        wrong: names of the layers that are wrong, () if none.
        passed: whether every layer scales as predicted; False, with no layer wrong, where that is undecided.
        verdict: the same in words, with widths that would decide what is undecided.
    """

    layers: tuple[str, ...]
    widths: Integer[np.ndarray, "widths"]
    size: Float[np.ndarray, "widths seeds stages layers"]
    change: Float[np.ndarray, "widths seeds steps layers"]
    own: Float[np.ndarray, "widths seeds steps layers"]
    size_scaling: Scaling
    change_scaling: Scaling
    own_scaling: Scaling
    predicted: Regime
    wrong: tuple[str, ...]
    passed: bool
    verdict: str

    def __repr__(self) -> str:
        widths = ", ".join(map(str, self.widths.tolist()))
        first, *more = self.verdict.split("; ")
        rest = f"; and {len(more)} more in .verdict" if more else ""
        return f"CoordinateCheck(passed={self.passed}, widths {widths}: {first}{rest})"

    def _repr_html_(self) -> str:
        last = {"size": self.size_scaling, "change": self.change_scaling, "own": self.own_scaling}
        rows = {
            name: ", ".join(f"{k} n^{s.exponent[-1, l]:+.2f}" for k, s in last.items())
            for l, name in enumerate(self.layers)
        }
        return show.table(self.verdict, rows)


def layer_outputs(net: Any, params: PyTree, inputs: Any) -> dict[str, jax.Array]:
    """Layer outputs by name, for a model that returns them when called with `features=True`."""
    try:
        return _outputs(net, params, inputs, features=True)[1]
    except TypeError as error:
        if "features" not in str(error):
            raise
        raise ValueError(
            "the model does not return its layers' outputs when called with features=True: give "
            "features=limits.captured_outputs, which reads them off any model, or a function of yours, "
            "features(net, params, inputs)"
        ) from error


def captured_outputs(net: Any, params: PyTree, inputs: Any) -> dict[str, jax.Array]:
    """Outputs of the layers by path: of all submodules that return one array for a linen module, of all layers with
    weights for any other model (NNX, Equinox, plain functions).

    Args:
        net: of `parametrize` or `ntk.network`.
        params: its parameters.
        inputs: a batch, or a tuple of several inputs.

    Raises:
        ValueError: the model is not of linen, and no product of inputs and parameters is found in it.
    """
    kept, state = _kept(net), {}
    mutable = ["intermediates", *kept]
    try:
        _, state = _outputs(net, params, inputs, capture_intermediates=True, mutable=mutable)
    except TypeError as error:
        if "capture_intermediates" not in str(error):
            raise
    found: dict[str, jax.Array] = {}

    def collect(path: tuple[str, ...], tree: dict) -> None:
        for name, value in tree.items():
            if name == "__call__" and path and isinstance(value[-1], jax.Array):
                found["/".join(path)] = value[-1]
            elif name != "__call__":
                collect((*path, name), value)

    collect((), state.get("intermediates", {}))
    if found:
        return found
    # Another library, or modules under an nn.vmap that drops what they record.
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    apply = functools.partial(net.apply, state=kept) if kept else net.apply
    return weighted_outputs(apply, params, given)


def _kept(net: Any) -> dict:
    """What a model keeps besides parameters, as it starts; {} for most."""
    return net.state(jax.random.key(0)) if hasattr(net, "state") else {}


def _with_kept(net: Any) -> Any:
    """The network with what it keeps written into it, so that no call computes that again."""
    # Of the type: an object that hands on what it lacks would hand on the network inside instead of itself.
    if not (hasattr(net, "state") and hasattr(type(net), "_replace")):
        return net
    kept = _kept(net)
    apply = functools.partial(net.apply, state=kept) if kept else net.apply
    return net._replace(apply=apply, state=lambda key: {})


def _outputs(net: Any, params: PyTree, inputs: Any, **options: Any) -> Any:
    """What a network returns on a batch, or on a tuple of several inputs."""
    if not hasattr(net, "apply"):
        raise TypeError(
            f"net is {shown(net)}; it must be a network, of limits.parametrize or ntk.network"
        )
    for name, tree in (("params", params), ("inputs", inputs)):
        leaves = jax.tree.leaves(tree)
        wrong = [leaf for leaf in leaves if not hasattr(leaf, "shape")] if leaves else [tree]
        if wrong:
            raise TypeError(f"{name} holds {shown(wrong[0])}; it must be a pytree of arrays")
    given, kept = inputs if isinstance(inputs, tuple) else (inputs,), _kept(net)
    return net.apply(params, *given, **({"state": kept} if kept else {}), **options)


@strict
def coordinate_check(
    net_at_width: Callable[[int], Any],
    widths: Sequence[int],
    batch: tuple,
    loss: Callable,
    key: PRNGKey,
    *,
    learning_rate: float,
    optimizer: Callable = optax.sgd,
    steps: int = 3,
    seeds: int = 8,
    predicted: Regime | None = None,
    features: Features = layer_outputs,
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
        batch: (inputs, targets), the same at every step; inputs are an array, or a tuple of several. What a model
            keeps besides parameters (batch statistics) stays as it starts. With adam take few examples, B: its step
            has the sign of a gradient over all of them, of which the output at one keeps B^-1/2, while n units add
            noise n^-1/2. A layer's own change is then (1 + (pi/2) B/n)^1/2 times its limit: at widths 32 to 256, B = 32
            independent examples take .18 from its exponent, and 8 take .07.
        loss: `loss(outputs, targets)`, a scalar; `outputs` is all that the model returns. Of a model of two outputs
            take `lambda outputs, targets: policy_loss(outputs[0], targets[0]) + value_loss(outputs[1], targets[1])`.
        key: PRNG key of the initialisations.
        learning_rate: at the base width; large enough to change the activations visibly in a few steps.
        optimizer: an optax factory, such as optax.sgd or optax.adam.
        steps: optimizer steps; with a readout that starts at zero at least 2.
        seeds: initialisations, at least 2, for the intervals. They cost little beside compiling; with 4 a third of the
            wrong layers of small networks stay undecided.
        predicted: the Regime to compare with, from `classify`, with as many hidden layers as `features` names:
            those whose outputs grow with the width. All others are compared with its readout. By
            default maximal update (mup): outputs start at n^-1/2 or zero, all else at order one, and every
            layer's update acts at order one.
        features: `features(net, params, inputs)`, layer outputs by name from the input to the readout.
            `layer_outputs` (of a model that returns them when called with `features=True`) or `captured_outputs`
            (of any model).
        tolerance: largest deviation of an exponent that counts as right.
        confidence: coverage of the intervals.

    Returns:
        CoordinateCheck. A deviation beyond `tolerance` is wrong if it is larger than both together can explain: the
        interval, at a confidence that covers all layers and steps at once, and corrections n^s (1 + c (base/n)^1/2) of
        the initial outputs, |c| up to 2, which near the base width bend what is a power of the width further on.
        Otherwise, where they do not exclude an exponent half a power away, and where the largest width is less
        than twice the smallest, the verdict is "undecided" and says which widths would decide.

    Raises:
        TypeError: arguments of another type, named.
        ValueError: fewer than three widths, two seeds or one step; a prediction with another number of
            layers; layers that differ between widths; a loss that does not take what the model returns, or gives more
            than one number.

    Source: Yang et al. 2022, arXiv:2203.03466, appendix D.1, which reads the exponents off a plot by eye.
    """
    tried, base = _check_settings(widths, steps, seeds), 1
    check_real("learning_rate", learning_rate, positive=True)
    check_real("tolerance", tolerance, positive=True)
    if not 0 < check_real("confidence", confidence) < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1, such as 0.95.")
    if not (predicted is None or isinstance(predicted, Regime)):
        raise TypeError(f"predicted is {predicted!r}; it must be a Regime, from limits.classify.")
    if not is_key(key):
        raise TypeError(f"key is {key!r}; it must be a key: jax.random.key(0)")
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise TypeError("batch must be a pair (inputs, targets).")
    _check_finite(batch)
    for name, value in {"net_at_width": net_at_width, "loss": loss, "features": features}.items():
        if not callable(value):
            raise TypeError(f"{name} is {value!r}; it must be a function.")
    keys = jax.random.split(key, seeds)
    names: tuple[str, ...] = ()
    sizes: list[tuple[Shape, ...]] = []
    pulls: list[list[tuple[Shape, float]]] = []
    recorded: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for width in tried:
        net = net_at_width(int(width))
        _check_network(net, width)
        if not sizes:
            _check_loss(net, batch, loss, keys[0])
        base = getattr(net, "base_width", None) or 1
        found, shapes, fed, pull, *values = _train(
            net, batch, loss, keys, optimizer, learning_rate, steps, features
        )
        if sizes and names != found:
            raise ValueError(
                f"the layers at width {width} are {found}, at the first width {names}."
            )
        names = found
        sizes.append(shapes)
        pulls.append(pull)
        recorded.append((values[0], values[1], values[2]))
    keeps, falls, aside = _pulled(tried, pulls, fed, names)
    names = tuple(np.array(names)[keeps].tolist())
    sizes = [tuple(shape for shape, kept in zip(row, keeps) if kept) for row in sizes]
    recorded = [(a[..., keeps], b[..., keeps], c[..., keeps]) for a, b, c in recorded]
    places = _places(sizes)
    predicted = _prediction(predicted, names, places)
    size, change, own = (np.stack(of_widths) for of_widths in zip(*recorded))
    fits = [judgement.fit(tried, each, confidence) for each in (size, change, own)]
    measured = judgement.Measured(names, places, tried, (size, change, own), fits, confidence, base)
    wrong, passed, verdict = judgement.judge(measured, predicted, tolerance)
    if falls:
        wrong, passed = (), False
    verdict += aside
    return CoordinateCheck(
        layers=names,
        widths=tried,
        size=size,
        change=change,
        own=own,
        size_scaling=fits[0],
        change_scaling=fits[1],
        own_scaling=fits[2],
        predicted=predicted,
        wrong=wrong,
        passed=passed,
        verdict=verdict,
    )


def _check_finite(batch: Any) -> None:
    """A loss of nan moves nothing that could be fitted."""
    for name, part in zip(("inputs", "targets"), batch):
        for leaf in jax.tree.leaves(part):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not jnp.isfinite(leaf).all():
                raise ValueError(
                    f"the {name} of batch have entries that are not finite; drop those examples"
                )


def _check_network(net: Any, width: int) -> None:
    if not all(callable(getattr(net, part, None)) for part in ("init", "apply", "optimizer")):
        raise TypeError(
            f"net_at_width({width}) is of type {type(net).__name__}; it must have init, apply and optimizer, such as "
            'lambda n: limits.parametrize(family, "mup", width=n, base_width=8, example=inputs).'
        )


def _check_loss(net: Any, batch: tuple, loss: Callable, key: PRNGKey) -> None:
    """Refuses a loss that is none of the model's outputs, before anything is compiled."""
    inputs, targets = (jax.tree.map(_as_array, part) for part in batch)
    params = jax.eval_shape(net.init, key)
    outputs = jax.eval_shape(lambda p: _outputs(net, p, inputs), params)
    leaves = jax.tree.leaves(outputs)
    alone = len(leaves) == 1 and outputs is leaves[0]
    shapes = ", ".join(str(leaf.shape) for leaf in leaves)
    example = "loss=lambda outputs, targets: ((outputs - targets) ** 2).mean()"
    if not alone:
        place = next((f"[{k!r}]" for k in outputs), "[0]") if isinstance(outputs, dict) else "[0]"
        example = (
            "a number of all of them, or of the one that training is about, such as loss=lambda outputs, targets: "
            f"((outputs{place} - targets) ** 2).mean()"
        )
    try:
        found = jax.eval_shape(loss, outputs, targets)
    except Exception as error:  # a loss raises nearly anything
        if alone:
            raise
        raise ValueError(
            f"the model returns {len(leaves)} arrays ({shapes}), and loss(outputs, targets), which is given all that "
            f"the model returns, raised {type(error).__name__}: {error}. Give {example}"
        ) from error
    given = jax.tree.leaves(found)
    if len(given) != 1 or given[0] is not found or found.shape != ():
        said = ", ".join(str(leaf.shape) for leaf in given)
        raise ValueError(
            f"loss(outputs, targets) gives {len(given)} array{'s' * (len(given) != 1)} ({said}) of outputs {shapes}; "
            f"it must be one number. Give {example}"
        )


def _check_settings(widths: Sequence[int], steps: int, seeds: int) -> np.ndarray:
    """The widths as an array of integers."""
    check_count("seeds", seeds, least=1)
    check_count("steps", steps, least=0)
    if seeds < 2 or steps < 1:
        raise ValueError(
            f"seeds={seeds} must be at least 2, for an interval, and steps={steps} at least 1."
        )
    try:
        found = np.asarray([check_width("width", width) for width in widths])
    except TypeError as error:
        raise TypeError(f"widths={widths!r} must be at least three integers: {error}") from None
    if len(set(found.tolist())) < 3:
        raise ValueError(f"widths={found.tolist()} must be at least three different widths.")
    return found


def _places(shapes: Sequence[Sequence[Shape]]) -> list[int]:
    """Place of each layer in a Regime: 0 ... L-1 for those whose outputs grow with the width, -1 for readouts."""
    grows = [len(set(along)) > 1 for along in zip(*shapes, strict=True)]
    if not any(grows):
        grows = [True] * (len(grows) - 1) + [False]
    return [sum(grows[:l]) if grow else -1 for l, grow in enumerate(grows)]


def _prediction(predicted: Regime | None, names: tuple[str, ...], places: Sequence[int]) -> Regime:
    hidden = max(places) + 1
    if len(names) < 2 or hidden < 1:
        raise ValueError(f"the layers are {names}: a hidden layer and a readout are needed.")
    if predicted is None:
        return classify(*abc("mup", hidden))
    if len(predicted.layers) != hidden + 1:
        raise ValueError(
            f"the prediction has {len(predicted.layers)} layers and the network {hidden + 1},"
            f" {', '.join(names)}: for a named rule use classify(*abc(rule, {hidden}))."
        )
    return predicted


def _train(
    net: Any,
    batch: tuple,
    loss: Callable,
    keys: jax.Array,
    optimizer: Callable,
    learning_rate: float,
    steps: int,
    features: Features,
) -> tuple[
    tuple[str, ...], tuple[Shape, ...], np.ndarray, list, np.ndarray, np.ndarray, np.ndarray
]:
    """Layer names, shapes, (layers, outputs) which outputs a layer feeds, `_pull`, and RMS of size, change and own
    change, (seeds, steps, layers)."""
    inputs, targets = (jax.tree.map(_as_array, part) for part in batch)
    net = _with_kept(net)

    # It runs once: half optimised it compiles twice as fast.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    @jax.vmap
    def initialise(key: PRNGKey) -> PyTree:
        return net.init(key)

    advance, outputs, alone = _programs(net, loss, optimizer, features)
    start = params = initialise(keys)
    state = jax.vmap(net.optimizer(optimizer, learning_rate).init)(params)
    names, layers, masks = _layers(net, start, inputs, features)
    nothing = [jnp.zeros((keys.size, *layer.shape), layer.dtype) for layer in layers]
    before, initial, _ = outputs(start, nothing, inputs)
    plain = _without_biases(start)
    if plain is not None:
        _, initial, _ = outputs(plain, nothing, inputs)
    owned = tuple(tuple(np.flatnonzero(mask).tolist()) for mask in masks)
    # By the same program, so that what does not move has a change of exactly zero.
    still, _ = alone(start, start, nothing, inputs, owned)
    size, change, own = [initial], [], []
    for _ in range(steps):
        params, state = advance(params, state, inputs, targets, learning_rate)
        _, after, moved = outputs(params, before, inputs)
        size.append(after)
        change.append(moved)
        _, by_itself = alone(start, params, still, inputs, owned)
        own.append(np.where(masks.any(1), by_itself, np.nan))
    reads = _reads(lambda p: jax.tree.leaves(_outputs(net, p, inputs)), start)
    fed = np.array([reads[mask].any(0) | ~mask.any() for mask in masks])
    pull = _pull(net, loss, start, inputs, targets)
    sizes, changes, owns = (np.stack(v, axis=1).astype(float) for v in (size, change, own))
    return names, tuple(layer.shape for layer in layers), fed, pull, sizes, changes, owns


def _reads(outputs: Callable, params: PyTree) -> np.ndarray:
    """(parameters, outputs), whether an output depends on a parameter, of networks that are stacked."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    jaxpr = jax.make_jaxpr(outputs)(one).jaxpr
    wanted = np.eye(len(jaxpr.outvars), dtype=bool)
    return np.array([jaxprs.alive(jaxpr, row.tolist()).inputs for row in wanted], bool).T


def _pull(
    net: Any, loss: Callable, params: PyTree, inputs: Any, targets: Any
) -> list[tuple[Shape, float]]:
    """Of each array of outputs its shape, and the RMS of the loss's gradient there before training."""

    @jax.jit
    @jax.vmap
    def gradient(params: PyTree) -> list[jax.Array]:
        leaves, tree = jax.tree.flatten(_outputs(net, params, inputs))

        def of_leaves(*leaves: jax.Array) -> jax.Array:
            return loss(tree.unflatten(leaves), targets)

        return jax.grad(of_leaves, tuple(range(len(leaves))), allow_int=True)(*leaves)

    found = gradient(params)
    return [
        (g.shape[1:], 0.0 if g.dtype == jax.dtypes.float0 else float(_sizes([g])[0])) for g in found
    ]


def _pulled(
    widths: np.ndarray,
    pulls: Sequence[list[tuple[Shape, float]]],
    fed: np.ndarray,
    names: Sequence[str],
) -> tuple[np.ndarray, bool, str]:
    """Which layers can be judged by how they learn, (layers,); whether the loss is none to judge by; what to say.

    A prediction is of a loss whose gradient at the outputs keeps its size. Outputs that it does not pull at, or less
    and less (its square, where they start at n^-1/2), tell nothing of the layers that feed them alone.
    """
    shapes = [[shape for shape, _ in of_output] for of_output in zip(*pulls)]
    size = np.array([[pull for _, pull in row] for row in pulls])
    everything = np.ones(len(fed), bool)
    if not size.any():  # a loss of none of the parameters: every change is zero, and said to be
        return everything, False, ""
    held, falls = (size > 0).all(0), np.zeros(size.shape[1], bool)
    for k in np.flatnonzero(held):
        if len(set(shapes[k])) == 1:  # of outputs that grow, the gradient of each falls as it must
            falls[k] = np.polyfit(np.log(widths), np.log(size[:, k]), 1)[0] < -_FALLS
    if not (held & ~falls).any():
        return (
            everything,
            True,
            " But the gradient of this loss at the outputs falls with the width, and with it every change: no rule "
            "predicts that. Give targets that the outputs do not start at.",
        )
    keeps = np.array(fed[:, held & ~falls].any(1))
    text = ""
    for why, layers in (
        ("the loss does not depend on their parameters", ~keeps & ~fed[:, held].any(1)),
        (
            "the loss's gradient at what they feed falls with the width",
            ~keeps & fed[:, held].any(1),
        ),
    ):
        if layers.any():
            text += f" Not judged, as {why}: {', '.join(np.array(names)[layers])}."
    return keeps, False, text


class _Network(NamedTuple):
    """What of a network its programs depend on."""

    apply: Callable[..., Any]
    optimizer: Callable[..., Any]


def _without_biases(params: PyTree) -> PyTree | None:
    """The parameters with zeros for biases; None where these are zero.

    Biases drawn at random, as by Equinox, would hide how a readout's outputs shrink with the width.
    """
    biases = {n: v for n, v in named_leaves(params).items() if _is_bias(n) and bool(v.any())}
    if not biases:
        return None
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if path_name(path) in biases else leaf, params
    )


def _is_bias(name: str) -> bool:
    return name.rpartition("/")[2].startswith("bias")


def _programs(net: Any, loss: Callable, optimizer: Callable, features: Features) -> tuple:
    """The programs of `_compiled`; those of the last networks are kept, for other keys, rates and initialisations."""
    parts = _Network(net.apply, net.optimizer), loss, optimizer, features
    try:
        hash(parts)
    except TypeError:
        return _compiled(net, *parts[1:])
    if features not in (layer_outputs, captured_outputs) or _kept(net):
        return _compiled(net, *parts[1:])  # what else of the network they read is not known
    return _kept_programs(*parts)


def _compiled(net: Any, loss: Callable, optimizer: Callable, features: Features) -> tuple:
    """(advance, outputs, alone): a step of training, the outputs of layers, and those after the update of each layer
    alone, of many networks at once."""

    # The data and the rate are arguments, mapped over by none of the seeds.
    @functools.partial(jax.jit, compiler_options=IN_ORDER)
    def advance(params: PyTree, state: PyTree, inputs: Any, targets: Any, rate: float) -> tuple:
        def one(params: PyTree, state: PyTree) -> tuple:
            gradient = jax.grad(lambda p: loss(_outputs(net, p, inputs), targets))(params)
            updates, state = net.optimizer(optimizer, rate).update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        return jax.vmap(one)(params, state)

    @functools.partial(jax.jit, compiler_options=IN_ORDER)
    def outputs(params: PyTree, before: list[jax.Array], inputs: Any) -> tuple:
        def one(params: PyTree, before: list[jax.Array]) -> tuple:
            found = list(features(net, params, inputs).values())
            return found, _sizes(found), _differences(found, before)

        return jax.vmap(one)(params, before)

    @functools.partial(jax.jit, compiler_options=IN_ORDER, static_argnames="owned")
    def alone(
        start: PyTree, params: PyTree, before: list[jax.Array], inputs: Any, owned: tuple
    ) -> tuple:
        def one(start: PyTree, params: PyTree, before: list[jax.Array]) -> tuple:
            leaves, tree = jax.tree.flatten(start)

            def run(*leaves: jax.Array) -> list[jax.Array]:
                return list(features(net, tree.unflatten(leaves), inputs).values())

            program = jaxprs.flatten(run, *leaves)
            found = _moved_alone(program, leaves, jax.tree.leaves(params), owned)
            return found, _differences(found, before)

        return jax.vmap(one)(start, params, before)

    return advance, outputs, alone


def _moved_alone(
    program: jaxprs.Program, start: list, moved: list, owned: Sequence[Sequence[int]]
) -> list[jax.Array]:
    """Output l of a program with its own arguments moved, all others at the start.

    What lies between them is evaluated anew, on the values of all else at the start: two passes for all layers.
    """
    jaxpr, found = program.jaxpr, []
    at_start = jaxprs.values(program, start, lambda equation, operands: None)
    for l, out in enumerate(jaxpr.outvars):
        after = {jaxpr.invars[k]: moved[k] for k in owned[l]}
        values = collections.ChainMap(after, at_start)
        wanted = [k == l for k in range(len(jaxpr.outvars))]
        for equation, _ in jaxprs.alive(jaxpr, wanted, whole_calls=True).equations:
            if any(v in after for v in equation.invars if not hasattr(v, "val")):
                operands = [jaxprs.read(values, v) for v in equation.invars]
                after |= zip(equation.outvars, jaxprs.apply(jaxpr, equation, operands))
        found.append(jaxprs.read(values, out))
    return found


_kept_programs = functools.lru_cache(maxsize=8)(_compiled)


def _as_array(x: Any) -> Any:
    return x if is_key(x) else jnp.asarray(x)


def _differences(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> jax.Array:
    return _sizes([x - y for x, y in zip(one, other)])


def _sizes(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.sqrt(jnp.mean(jnp.square(x))) for x in arrays])


def _layers(
    net: Any, params: PyTree, inputs: Any, features: Features
) -> tuple[tuple[str, ...], tuple[jax.ShapeDtypeStruct, ...], np.ndarray]:
    """Layer names, their outputs' shapes and types, and (layers, leaves): whether a parameter is the layer's own.

    It is if it lies under the layer's path and under that of no other layer inside.
    """
    found = {}

    def record(params: PyTree, inputs: Any) -> None:
        # Inside an abstract evaluation, because the order of a dict does not survive a transformation.
        outputs = features(net, params, inputs)
        found.update({k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in outputs.items()})

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    jax.eval_shape(record, one, inputs)
    paths = list(named_leaves(params))
    owners = [
        max((name for name in found if f"{path}/".startswith(f"{name}/")), key=len, default=None)
        for path in paths
    ]
    own = [[owner == name for owner in owners] for name in found]
    return tuple(found), tuple(found.values()), np.array(own)
