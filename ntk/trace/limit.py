"""The infinite-width limit of a family of networks, read from its own code.

`infinite_width(family, example)` gives the NNGP and the NTK of the limit of `limits.parametrize(family, "ntk")`: every
weight is its initial standard deviation times a standard normal and is trained at unit rate. `explain` shows the
derivation step by step.

One file: half of it is what `infinite_width` takes and promises; `explain`, `nonlinearities` and `attention_error`
take the same, and read the same trace.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp

from ntk import family as families
from ntk.arguments import refuse_unknown, strict
from ntk.infinite.evaluate import KernelFn
from ntk.infinite.kernel import Array
from ntk.options import check_count
from ntk.trace import axes as ax
from ntk.trace import initial, interpret
from ntk.trace.activations import Function, known
from ntk.trace.axes import BATCHES, WIDTHS
from ntk.trace.context import Context
from ntk.trace.coordinates import Coefficient, Linear, Refusal, is_random
from ntk.trace.explanation import Explanation, explanation, sampling
from ntk.trace.kernels import NoRule, kernel_function
from ntk.trace.ops.function import Functions, process_of
from ntk.trace.ops.shapes import one_axis
from ntk.trace.parameters import Assumed, Options, check_parametrization, read_parameters
from ntk.trace.rules import kind
from ntk.trace.sampled import SampledKernelFn, sampled
from ntk.trace.sharing import jaxpr_of
from ntk.trace.traced import Traced, loops, pruned


@overload
def infinite_width(
    family: Callable,
    example: Any,
    *,
    otherwise: Literal["refuse"] = "refuse",
    **options: Unpack[Options],
) -> KernelFn: ...
@overload
def infinite_width(
    family: Callable, example: Any, *, otherwise: Literal["sample"], **options: Unpack[Options]
) -> KernelFn | SampledKernelFn: ...
@strict
def infinite_width(
    family: Callable,
    example: Any,
    *,
    parametrization: str = "ntk",
    base_width: int | None = None,
    learning_rates: Any = None,
    bias_std: float | None = None,
    roles: Any = None,
    batched: bool = True,
    attention_samples: int = 1024,
    call: Any = None,
    otherwise: str = "refuse",
    networks: int = 64,
) -> KernelFn | SampledKernelFn:
    """NNGP and NTK of the infinite-width limit of a family of networks, read from its own code.

    The limit is that of the finite networks `net = limits.parametrize(family, "ntk", width=n, **options)` with the same
    options: of `ntk.empirical_ntk(net.apply, ...)` and of the outputs' covariance, with errors of order n^-1/2. Without
    options every weight is its initial standard deviation times a parameter of unit variance, which is trained at unit
    rate; a parameter that is constant at initialisation (a bias at zero, the gain of a norm) is trained as it stands.
    A matrix that starts at zero (a readout, the last layer of a branch) is fan_in^-1/2 times a parameter: it adds
    nothing to the NNGP, and its inputs' kernel to the NTK.
    With `base_width` all parameters are those of the model at that width, trained at unit rate, and multipliers
    (growth of the fan-in)^-1/2 carry on from there.

    The initial law counts by its variance in a layer that sums over units, which is exact. A layer that sums over a
    fixed number of entries (a first layer, an embedding, a bias) has the law of its weights, as they are read off the
    initializer: truncated normal for Flax's defaults. Nonlinearities act on it under that law by its fourth cumulant,
    or, where the excess kurtosis of an entry is above `true_law.MOST` (a truncated normal and fewer than three equal
    inputs, or a one-hot input), by means over weights at `weight_laws.POINTS` points. Relative errors of the kernels
    are below .003 and .001 (measured up to nine inputs for activations of moderate slope); `attention_error` gives that
    of the means, and `explain` says what is done with each parameter. They do not hold for functions that are steep
    at the size of the layer (exp, powers from the third on, sin of three times its argument, jumps: `true_law.steep`):
    for exp(2 z) of four inputs the kernel is off by some percent. `explain` names them; normal initializers have no
    such error. Where such a layer is added to one over units, and for covariances between more than 32 positions, there
    is the fourth cumulant alone, whose error is of the order of the square of the kurtosis: .01 at one input. Normal
    initializers give Gaussian first layers, without error.

    Attention with scores scaled by 1/d attends to every position alike in the limit. Under 1/sqrt(d) scores stay
    random, one draw for each head, and the number of heads grows too: the kernels are those of infinitely many heads,
    which are the averages, over initial scores, of those of a wide network with a fixed number (whose own kernels
    differ from draw to draw, by the order of 1/sqrt(heads)). They are means over `attention_samples` draws, the same
    for every pair of samples; `ntk.attention_error` gives their standard error, and
    `kernel_fn(x1, x2, get, attention_seed=1)` other draws. The error makes a Gram matrix positive semidefinite up to
    its size only. Heads of fixed size whose number grows have the same mean, over draws of their queries and keys.

    A function of several activations at once, or of one at several positions (max pooling, maxout, a nonlinearity of a
    product, an instance norm, a gate that multiplies what it depends on) has the mean over four times as many draws of
    them, with errors told in the same way. Time grows with the third power of the number of positions, of which there
    may be 256.

    Args:
        family: a function of the width that returns a linen module, an NNX factory, or (init, apply); see
            `ntk.family`. Widths 64 and 256 must be allowed.
        example: an input (array or jax.ShapeDtypeStruct), or a tuple of several; the batch axis comes first.
        parametrization: "ntk"; no other has a kernel limit.
        base_width: the width at which the network is the model itself, as in `limits.parametrize`. Needed where an
            initializer does not divide by the fan-in. None if the model's own scale has a limit.
        learning_rates: factors of the learning rates, 1 by default: a tree like the parameters, or {pattern of the
            path: factor}; 0 freezes a parameter.
        bias_std: standard deviation of a normal law given to parameters named `bias` that start at zero; None leaves
            them there.
        roles: roles of parameters that names and shapes cannot tell, see `ntk.width_axes`; they count where fans are
            compared with those at `base_width`.
        batched: whether `apply` takes a batch; False if it takes one example, which `example` is then.
        attention_samples: draws of random scores for each pair of samples, a power of two, and a fourth of those of
            functions of several activations; the error falls as 1/sqrt(attention_samples), and faster for a few
            positions.
        call: static keywords of every call of the model: `dict(train=False)`.
        otherwise: what to do with a model that has no rule here: "refuse" it, or "sample": take means over random
            finite networks at three widths, carried on to infinite width by a line in 1/width. Where the limit of one
            network is itself random (a bottleneck of fixed size, a gate that all units share), it is their mean.
        networks: at the largest width, for "sample"; the error falls as 1/sqrt(networks).

    Returns:
        `kernel_fn(x1, x2=None, get=None)`, see `ntk.infinite.evaluate.KernelFn`; for a model that is sampled
        `ntk.trace.sampled.SampledKernelFn`, whose errors `ntk.attention_error` gives.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> import ntk
        >>> normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        >>> dense = lambda n: nn.Dense(n, use_bias=False, kernel_init=normal)
        >>> family = lambda n: nn.Sequential([dense(n), nn.relu, dense(1)])
        >>> x = jnp.ones((1, 4))  # first preactivations have variance 1
        >>> kernels = ntk.infinite_width(family, x)(x, None, ("nngp", "ntk"))
        >>> round(float(kernels.nngp[0, 0]), 4), round(float(kernels.ntk[0, 0]), 4)  # E[relu^2], twice that
        (0.5, 1.0)

    Raises:
        TypeError: an unknown option, with the nearest one; an option of another type.
        ValueError: the model contains an operation without a limit here; the message names the primitive, the line
            of the model, and what to do. Also for parametrizations without a kernel limit.

    Source: Yang (2019, 2020), Tensor Programs I and II; Yang & Littwin (2021), Tensor Programs IIb; for random scores
        Hron, Bahri, Sohl-Dickstein & Novak (2020), "Infinite attention".
    """
    check_parametrization(parametrization)
    _check_otherwise(otherwise, networks)
    assumed = (base_width, learning_rates, bias_std, roles)
    family = families.called(family, call)
    if otherwise == "sample":
        return _ruled_or_sampled(family, example, assumed, batched, attention_samples, networks)[1]
    return kernel_function(_trace(family, example, assumed, batched, attention_samples), batched)


def _defaults() -> dict[str, Any]:
    """Keywords of `infinite_width` and their defaults, in order."""
    given = inspect.signature(infinite_width).parameters.values()
    return {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}


def _check_otherwise(otherwise: str, networks: int) -> None:
    if otherwise not in ("refuse", "sample"):
        raise ValueError(f'otherwise is {otherwise!r}; it must be "refuse" or "sample"')
    check_count("networks", networks, least=2)


def _ruled_or_sampled(
    family: Callable, example: Any, assumed: Assumed, batched: bool, samples: int, networks: int
) -> tuple[Traced | None, KernelFn | SampledKernelFn]:
    """The traced network and its kernel; (None, kernel by finite networks) where a rule is missing."""
    try:
        traced = _trace(family, example, assumed, batched, samples)
        kernel_fn = kernel_function(traced, batched)
        x = example if batched else jax.tree.map(lambda s: jnp.zeros((1, *s.shape)), example)
        jax.eval_shape(lambda x: kernel_fn(x, None, ("nngp", "ntk")), x)
        return traced, kernel_fn
    except (NoRule, Refusal) as refusal:
        reason = str(refusal)
    first = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), example)
    first = first if isinstance(first, tuple) else (first,)
    return None, sampled(family, first, assumed, batched, networks, reason)


def explain(family: Callable, example: Any = None, **options: Any) -> Explanation:
    """The derivation of `infinite_width(family, example, **options)`: its steps, and what is assumed of each parameter.

    Args:
        family: as in `infinite_width`; or, alone, the kernel function that it returned, which is not traced again.
        example: as in `infinite_width`.
        **options: the same.

    Returns:
        Explanation(steps, parameters); prints as two tables in a terminal and in a notebook.

    Raises:
        TypeError: an unknown option; an example or options beside a kernel function.
        ValueError: as in `infinite_width`; a kernel function that was read from no model.
    """
    if isinstance(family, SampledKernelFn):
        _check_alone("explain", example, options)
        return sampling(family)
    if isinstance(family, KernelFn) and (example is None or isinstance(family.traced, Traced)):
        return explanation(_read("explain", family, example, options))
    defaults = _defaults()
    refuse_unknown("explain", options, defaults, ("family", "example"))
    given = defaults | options
    check_parametrization(given.pop("parametrization"))
    batched, samples = given.pop("batched"), given.pop("attention_samples")
    family = families.called(family, given.pop("call"))
    otherwise, networks = given.pop("otherwise"), given.pop("networks")
    _check_otherwise(otherwise, networks)
    assumed = tuple(given.values())
    if otherwise == "refuse":
        return explanation(_trace(family, example, assumed, batched, samples))
    traced, kernel_fn = _ruled_or_sampled(family, example, assumed, batched, samples, networks)
    return sampling(kernel_fn) if traced is None else explanation(traced)


def _read(name: str, kernel_fn: KernelFn, example: Any, options: dict[str, Any]) -> Traced:
    """What a kernel function was made of."""
    _check_alone(name, example, options)
    if not isinstance(kernel_fn.traced, Traced):
        raise ValueError(
            f"{name} was given a kernel function that was read from no model; give one of ntk.infinite_width, or a "
            "family with an example"
        )
    return kernel_fn.traced


def _check_alone(name: str, example: Any, options: dict[str, Any]) -> None:
    given = [*["example"] * (example is not None), *options]
    if given:
        raise TypeError(
            f"{name} was given a kernel function with {', '.join(given)}, which it has settled; give it alone, or the "
            "family in its place"
        )


def nonlinearities(family: Callable, example: Any = None, **options: Any) -> dict[str, Callable]:
    """The nonlinearities of a family, each a function of one preactivation, by name in the order of their use.

    What `limits.criticality` and `limits.susceptibilities` take. Products with gates and gains that are trained are
    left out: they are no functions of one Gaussian.

    Args:
        family: as in `infinite_width`; or, alone, the kernel function that it returned, which is not traced again.
        example: as in `infinite_width`.
        **options: the same, but for `otherwise`, which must be "refuse".

    Returns:
        {name: elementwise function of an array}; empty for a linear network.

    Raises:
        TypeError: an unknown option; an example or options beside a kernel function.
        ValueError: as in `infinite_width`; a kernel function that was read from no model.
    """
    if isinstance(family, SampledKernelFn):
        raise ValueError(
            "the kernel function is by finite networks: a model that is sampled is not read"
        )
    if isinstance(family, KernelFn) and (example is None or isinstance(family.traced, Traced)):
        return _functions_of(_read("nonlinearities", family, example, options))
    defaults = _defaults()
    refuse_unknown("nonlinearities", options, defaults, ("family", "example"))
    given = defaults | options
    check_parametrization(given.pop("parametrization"))
    batched, samples = given.pop("batched"), given.pop("attention_samples")
    family = families.called(family, given.pop("call"))
    if given.pop("otherwise") != "refuse":
        raise ValueError('otherwise must be "refuse": a model that is sampled is not read')
    given.pop("networks")
    return _functions_of(_trace(family, example, tuple(given.values()), batched, samples))


def _functions_of(traced: Traced) -> dict[str, Callable]:
    """The functions of one preactivation among the steps, by name."""
    terms = [t for s in traced.steps if isinstance(s.op, Functions) for t in s.op.terms]
    alone = [Function(f[0].tree) for _, arrays, f, _ in terms if len(f) == 1 and not arrays]
    found: dict[str, Callable] = {}
    for function in dict.fromkeys(alone):
        name = known(function).name
        found[f"{name}, another" if name in found else name] = function
    return found


@strict
def attention_error(
    kernel_fn: KernelFn | SampledKernelFn,
    x1: Any,
    x2: Any = None,
    get: str = "ntk",
    *,
    seeds: int = 4,
) -> Array:
    """Standard error of a kernel by draws: of attention scores, of activations, of first-layer weights, of networks.

    Args:
        kernel_fn: of `infinite_width`.
        x1: first batch.
        x2: second batch; None means the first.
        get: "nngp", "ntk" or another array of the kernel.
        seeds: number of independent estimates, each of which is compiled anew.

    Returns:
        The standard deviation of one estimate, an array like that of `kernel_fn(x1, x2, get)`; zero for a network
        without draws whose first layers are normal, or taken by their fourth cumulant. For a kernel by
        finite networks (`otherwise="sample"`) the standard error of the extrapolated mean, from its own networks.

    Raises:
        ValueError: seeds is less than 2.
    """
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}; a spread needs at least 2")
    if isinstance(kernel_fn, SampledKernelFn):
        return kernel_fn.estimate(x1, x2, (get,))[get].standard_error
    if "attention_seed" not in kernel_fn.reads:
        return jnp.zeros_like(kernel_fn(x1, x2, get))
    found = [kernel_fn(x1, x2, get, attention_seed=1 + seed) for seed in range(seeds)]
    # Differences first: the mean of numbers that agree to their last bits would be rounded by as much as they differ.
    return jnp.std(jnp.stack([one - found[0] for one in found]), axis=0, ddof=1)


def _trace(
    family: Callable,
    example: Any,
    assumed: Assumed,
    batched: bool,
    attention_samples: int,
) -> Traced:
    """The traced network; `assumed` is (base_width, learning_rates, bias_std, roles)."""
    if attention_samples < 4 or attention_samples & (attention_samples - 1):
        raise ValueError(
            f"attention_samples is {attention_samples}; it must be a power of two, at least 4"
        )
    inputs = example if isinstance(example, tuple) else (example,)
    families.check_batches(inputs)
    if not batched:
        inputs = tuple(jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in inputs)
    for x in inputs:
        if not hasattr(x, "shape") or len(x.shape) < 1:
            raise ValueError("example must be an array (or several) whose first axis is the batch")
    first = tuple(
        jax.ShapeDtypeStruct(x.shape[1:] if not batched else x.shape, x.dtype) for x in inputs
    )
    double = jnp.result_type(float) == jnp.float64
    with jax.enable_x64(True):
        made = [families.initialised(family, width, first) for width in WIDTHS]
        laws = [initial.laws_of(one.program, one.shapes) for one in made]
        trees = [_shapes(one.shapes) for one in made]
        sizes = [
            {n: tuple(s.shape) for n, s in families.named_leaves(tree).items()} for tree in trees
        ]
        parameters = read_parameters(list(zip(laws, sizes)), family, first, *assumed)
        shapes = [
            tuple(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in inputs)
            for batch in BATCHES
        ]
        context = Context(parameters, attention_samples, double)
        programs = [
            _program(made[k].model.network, family, width, first, trees[k], shapes[k], batched)
            for k, width in enumerate(WIDTHS)
        ]
        try:
            out = interpret.trace(programs, trees, shapes, context)
            return _finished(context, out, inputs)
        except Refusal as refusal:
            raise NoRule(str(refusal)) from None


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), tree)


def _program(
    net: Any, family: Callable, width: int, first: tuple, params: Any, shapes: tuple, batched: bool
) -> Any:
    """The program of `apply` at one width, with what the model keeps besides parameters as constants."""

    def apply(params: Any, *inputs: Any, **kept: Any) -> Any:
        if batched:
            return net.apply(params, *inputs, **kept)
        return jax.vmap(lambda *x: net.apply(params, *x, **kept))(*inputs)

    def traced(inputs: tuple) -> Any:
        try:
            return jaxpr_of(apply, params, *inputs)
        except ValueError as error:
            if "initial_state" not in str(error):
                raise
        state = families.initial_state(family, width, first, jax.random.key(0))
        return jaxpr_of(functools.partial(apply, state=state), params, *inputs)

    try:
        return traced(shapes)
    except TypeError as error:
        # Parameters are traced in double precision, and convolutions outside of Flax ask for inputs alike.
        if "same dtypes" not in str(error):
            raise
    return traced(tuple(_in_double(x) for x in shapes))


def _in_double(x: Any) -> Any:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, jnp.float64 if floating else x.dtype)


def _finished(context: Context, out: Any, inputs: tuple) -> Traced:
    if not is_random(out.body):
        raise Refusal(
            "no infinite-width kernel: the output does not depend on random weights, or is a mean over units, which "
            "is the same for every initialisation"
        )
    if any(a.infinite for a in ax.units(out.dims)):
        raise Refusal(
            "no infinite-width kernel: the outputs grow with the width; add a readout of fixed size"
        )
    for k in range(len(out.dims)):
        out = one_axis(context, out, k)
    body = out.body
    if isinstance(body, Linear):
        powers = {c.power for _, c in body.terms}
        if powers != {0.0}:
            why = f": {context.scales[-1]}" if context.scales else ""
            raise Refusal(
                f"no infinite-width kernel: the outputs are of size width^{max(powers):g}{why}"
            )
    ref = process_of(context, body)
    tied = context.program.joint and _joined(context)
    if ref.maps or body == Coefficient():
        raise AssertionError
    axes = ax.positions(out.dims)
    last = ref.process.index
    order = tuple(ref.axes.index(a) for a in axes if a in ref.axes)
    steps, notes = pruned(context.program, last, not tied)
    samples = tuple(jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in inputs)
    constants = tuple(context.program.constants)
    laws = {name: context.parameters[name].laws[0].kind for name in context.facts}
    facts = {name: facts | {"law": laws[name]} for name, facts in context.facts.items()}
    alone = [n for step, n in zip(steps, notes) if not kind(step).joint]
    if tied and (context.program.cut or alone):
        used = " and ".join(n for (n, *_), places in context.ties.items() if len(places) > 1)
        where = (
            f" ({alone[0].text or alone[0].module} at {alone[0].line})"
            if alone and alone[0].line
            else ""
        )
        raise Refusal(
            f"no infinite-width kernel: a matrix is used more than once ({used}), in a network with convolutions, "
            f"attention, layers side by side or split, or tables of positions{where}: correlations of its uses are not "
            'followed there. Give each use its own parameter, or take means over finite networks: otherwise="sample"'
        )
    return Traced(steps, notes, constants, order, samples, facts, () if tied else loops(steps))


def _joined(context: Context) -> bool:
    """Marks the layers that have weights in common."""
    steps = context.program.steps
    for name, places in context.ties.items():
        for index in places if len(places) > 1 else ():
            steps[index] = steps[index]._replace(op=steps[index].op._replace(tied=name))
    return True
