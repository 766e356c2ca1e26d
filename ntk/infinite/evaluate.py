"""The kernel function of a network of rules: inputs checked, evaluated at once or compiled, and what was asked for.

A small kernel is evaluated by numpy (`ntk.infinite.immediate`), a larger one compiled, in tiles (`ntk.infinite.tiled`);
samples that nearly coincide in double precision (`ntk.infinite.precision`).

One file: the larger part of it is what a call takes, refuses and promises, and by what road it is answered.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp

from ntk import arguments, show
from ntk.infinite import immediate, precision, tiled, true_law
from ntk.infinite.inputs import Need as Need
from ntk.infinite.inputs import (
    Plan,
    check_axes,
    check_pair,
    check_samples,
    checked,
    coincident_batches,
    inputs_to_kernel,
    product_of_units,
)
from ntk.infinite.inputs import join as join
from ntk.infinite.kernel import Array, Kernel
from ntk.regression import spectra

OPTIONS = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
"""Compiler options by platform: XLA uses half the vector registers of a CPU that has AVX-512, unless told."""
_TOLD = 2**18
"""Pairs of samples up to which it is told before compiling whether any are near: a product, and two programs' time."""

_STATIC = (
    "x1_is_x2",
    "is_gaussian",
    "is_reversed",
    "is_input",
    "diagonal_batch",
    "diagonal_spatial",
    "shape1",
    "shape2",
    "batch_axis",
    "channel_axis",
)
NAMES = (*tiled.BETWEEN, *tiled.FIRST, *tiled.SECOND, *_STATIC)
_FIELDS = (
    "correlation",
    "ntk",
    "coincident",
    "var1",
    "within1",
    "mask1",
    "var2",
    "within2",
    "mask2",
)


class Options(TypedDict, total=False):
    """Keywords of a `KernelFn`, for a checker."""

    pattern: tuple[Any, Any] | None
    mask_constant: float | None
    diagonal_batch: bool | None
    diagonal_spatial: bool | None
    batch_axis: int | None
    channel_axis: int | None
    attention_seed: int | None


@show.drawn
@dataclasses.dataclass(frozen=True, eq=False)
class KernelFn:
    """Kernel of an infinitely wide network; a function of inputs, or of a `Kernel` of the activations below it.

    Attributes:
        rule: maps the `Kernel` of the input (a list of them for several inputs) to that of the output.
        needs: maps what must be known of the output to what must be known of the input.
        spec: equal for layers that compute the same thing; repeated blocks of a network are found by it.
        axes: batch and channel axis of the input, or None if any will do.
        scalar: what a layer does to each correlation by itself: a `ntk.Dual`, or (W_std, b_std) for an affine
            map in the NTK parametrization; None for every other layer.
        pair: for a network that reads the data themselves, (x1, x2, coincident, plan) -> `Kernel` of two batches;
            `rule` is not used then.
        area: with `pair`, maps what is needed of the output to the entries (pairs of positions) that one pair of
            samples takes at most.
        reads: which of the options "pattern" and "attention_seed" its layers read.
        samples: with `pair`, shape and type of one sample of each input.
        traced: with `pair`, the steps that were read from the family, for `ntk.explain` and `ntk.nonlinearities`.
    """

    rule: Callable[..., Any]
    needs: Callable[[Need], Need]
    spec: Hashable
    axes: tuple[int, int] | None = None
    scalar: Any = None
    pair: Callable[..., Kernel] | None = None
    area: Callable[[Need], int] | None = None
    reads: frozenset[str] = frozenset()
    samples: tuple[jax.ShapeDtypeStruct, ...] = ()
    traced: Any = None

    def __repr__(self) -> str:
        return show.line("KernelFn", self._shown())

    def _repr_html_(self) -> str:
        return show.table("KernelFn", self._shown())

    def _shown(self) -> dict[str, Any]:
        """How it is called, and what it asks for besides."""
        asked = {"options_of_its_layers": tuple(sorted(self.reads))} if self.reads else {}
        return {"call": "kernel_fn(x1, x2=None, get='ntk')"} | asked

    @overload
    def __call__(
        self, x1_or_kernel: Any, x2: Any, get: Literal["nngp", "ntk"], **options: Unpack[Options]
    ) -> Array: ...
    @overload
    def __call__(
        self,
        x1_or_kernel: Any,
        x2: Any = None,
        *,
        get: Literal["nngp", "ntk"],
        **options: Unpack[Options],
    ) -> Array: ...
    @overload
    def __call__(
        self, x1_or_kernel: Any, x2: Any = None, get: None = None, **options: Unpack[Options]
    ) -> Kernel: ...
    @overload
    def __call__(
        self,
        x1_or_kernel: Any,
        x2: Any = None,
        get: str | tuple[str, ...] | None = None,
        **options: Unpack[Options],
    ) -> Any: ...
    @arguments.strict
    def __call__(
        self,
        x1_or_kernel: Any,
        x2: Any = None,
        get: str | tuple[str, ...] | None = None,
        *,
        pattern: tuple[Any, Any] | None = None,
        mask_constant: float | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        batch_axis: int | None = None,
        channel_axis: int | None = None,
        attention_seed: int | None = None,
    ) -> Any:
        """Second moments of the network's outputs over initialisations, at infinite width.

        Args:
            x1_or_kernel: first batch of inputs, or the `Kernel` of another network whose output feeds this one; a
                list or tuple of them for a network of several inputs.
            x2: second batch; None means the first. It may have another number of samples.
            get: "nngp", "ntk", another field of `Kernel`, or a tuple of names; None for the whole `Kernel`.
            pattern: graphs for `Aggregate`, one for each batch.
            mask_constant: value of inputs that marks them as hidden, such as padding; nan is allowed.
            diagonal_batch: cov1 and cov2 hold one covariance per sample; True or None.
            diagonal_spatial: whether covariances between equal pixels alone are kept. By default, what the
                network needs, and all pixel pairs in the result.
            batch_axis: position of the batch in the inputs, where the first layer does not say.
            channel_axis: position of the channels.
            attention_seed: other draws of random scores, or of first-layer weights, than those of seed 0.

        Returns:
            An array, a namedtuple of them, or a `Kernel`. NNGP is E[f(x1) f(x2)] of one output; the NTK is the
            kernel of gradient flow on all parameters.

            Of float32 inputs, small batches and tiles with samples closer than a relative distance of .045 are
            evaluated in double precision and rounded once: K11 + K22 - 2 K12 has an error of 2^-22 max K. Smaller
            differences, as of a smooth NNGP at distance 1e-4, have no float32 value: use float64. Other entries
            of large batches are computed in float32, to a few units in the last place per layer. A `Kernel` that is
            given as input has lost what its float32 arrays do not hold: close samples want one `stax.serial`, or
            float64.

            Derivatives of every order are those of the function, at vanishing samples and pixels and at coincident
            points, too. Where there is none: a kink (ReLU) makes the NTK depend on the angle between two samples,
            so that it has no derivative where they coincide, and its NNGP no third; neither has a second one at a
            vanishing preactivation; a jump makes the same of the NNGP. The angle is then taken as constant: the
            first derivative is the mean of those from both sides, higher ones are finite and mean nothing.
            Derivatives of float32 inputs are computed in float32, where an NTK with kinks loses them at close samples:
            of three ReLU layers a gradient is off by .001 at a relative distance of .01, and by more than its size at
            .001. Give float64 inputs there.

        Raises:
            TypeError: an option that the network does not read.
            ValueError: inputs are empty, complex, not finite, of mismatched shapes; an unknown name.

        Source: Lee et al. (2018); Jacot et al. (2018); Novak et al. (2020).
        """
        get = arguments.lower(get)
        names = _names(get)
        pattern = None if pattern is not None and all(p is None for p in pattern) else pattern
        leaves = jax.tree.leaves(x1_or_kernel, is_leaf=lambda x: isinstance(x, Kernel))
        chained = bool(leaves) and all(isinstance(leaf, Kernel) for leaf in leaves)
        self._refuse_unread(
            chained and self.pair is None,
            x2=x2,
            pattern=pattern,
            attention_seed=attention_seed,
            mask_constant=mask_constant,
            diagonal_batch=diagonal_batch,
            diagonal_spatial=diagonal_spatial,
            batch_axis=batch_axis,
            channel_axis=channel_axis,
        )
        if chained and self.pair is None:
            return _select(self.rule(x1_or_kernel, pattern=pattern), get)
        least = 2 if self.pair is None else 1
        for name, x in (("x1", x1_or_kernel), ("x2", x2)):
            if self.samples and x is not None:
                check_samples(x, self.samples, name)
        x1, mask1 = checked(x1_or_kernel, mask_constant, "x1", least)
        symmetric = x2 is None
        x2, mask2 = (x1, mask1) if symmetric else checked(x2, mask_constant, "x2", least)
        batch, channel = self.axes or (0, -1)
        batch = batch if batch_axis is None else batch_axis
        channel = channel if channel_axis is None else channel_axis
        ndim = jax.tree.leaves(x1)[0].ndim
        # An axis that is lacking wraps around; the layers refuse it, unless it falls on the other here.
        one = self.axes is not None and (batch - channel) % ndim == 0
        if one or batch_axis is not None or channel_axis is not None:
            check_axes(x1, batch, channel)
        check_pair(x1, x2, (batch, channel))
        if diagonal_batch is False and {"cov1", "cov2"} & set(names or ("cov1",)):
            raise ValueError(
                "diagonal_batch=False asks for covariances between all samples of one batch: "
                "call kernel_fn(x1, None, 'nngp') for them, and keep diagonal_batch unset here"
            )
        plan = Plan(
            names,
            self._need(names, diagonal_spatial),
            get is None or "ntk" in names,
            symmetric,
            symmetric or coincident_batches(x1, x2),
            batch,
            channel,
            () if attention_seed is None else (("attention_seed", attention_seed),),
        )
        data = (x1, x2, mask1, mask2, pattern)
        return _chosen(self._evaluated(plan, data), get)

    def _refuse_unread(self, chained: bool, **options: Any) -> None:
        """Raises a TypeError for an option that would change nothing."""
        for name in ("pattern", "attention_seed"):
            if options.pop(name) is not None and name not in self.reads:
                raise TypeError(f"{name} is given, and no layer of this network reads it")
        for name, value in options.items():
            traced = self.pair is not None and name in (
                "mask_constant",
                "batch_axis",
                "channel_axis",
            )
            if value is not None and (traced or chained):
                kind = "a Kernel has settled that" if chained else "a traced network settles that"
                raise TypeError(f"{name} is given, and is not read: {kind}")

    def _evaluated(self, plan: Plan, data: tuple) -> Any:
        """The network on its inputs; JAX takes compiler options only outside every jit, grad and vmap."""
        alone, inside = self._compiled
        if not all(map(spectra.is_concrete, jax.tree.leaves(data))):
            return inside(plan, *data)
        try:
            if (out := self._at_once(plan, data)) is not None:
                return out
            return alone(self._told(plan, data), *data)
        except ValueError as error:  # known inputs, inside a jit
            if "compiler_options" not in str(error):
                raise
            return inside(plan, *data)

    def _told(self, plan: Plan, data: tuple) -> Plan:
        """The plan with `near` where telling costs little: one network is compiled then, in single or in double."""
        x1, x2 = data[:2]
        if isinstance(x1, tuple) or not x1.dtype == x2.dtype == jnp.float32:
            return plan
        batch = plan.batch_axis % x1.ndim
        sizes = x1.shape[batch], x2.shape[batch]
        entries = tiled.entries_of(x1, batch, plan, self.area)
        unread = tiled.is_small(sizes, entries) or (entries == 1 and self.pair is None)
        if unread or math.prod(sizes) > _TOLD:
            return plan
        same = jnp.eye(sizes[0], dtype=bool) if plan.coincident else None
        near = bool(precision.any_near(x1, x2, same, batch))
        if near and tiled.sizes_of(
            sizes, entries, plan
        ):  # of several tiles some are computed in single
            return plan
        return plan._replace(near=near)

    def _at_once(self, plan: Plan, data: tuple) -> Any:
        """A small kernel by `immediate`; None once it was asked for so often that compiling is worth it."""
        first, second = (jax.tree.leaves(x)[0] for x in data[:2])
        batch = plan.batch_axis % first.ndim
        sizes = first.shape[batch], second.shape[batch]
        entries = tiled.entries_of(first, batch, plan, self.area)
        small = tiled.is_small(sizes, entries)
        # JAX adds its options by name, which no checker sees.
        if not small or jax.config.jax_disable_jit:  # type: ignore[attr-defined, unused-ignore]
            return None
        # One program of both kernels serves who asks for one of them, too.
        both = plan._replace(names=("nngp", "ntk"), ntk=True)
        if set(plan.names) in ({"ntk"}, {"nngp", "ntk"}):
            plan = both
        # Means over draws of weights or scores cost per pair of samples, not per equation.
        apart, draws = tiled.of_pairs(plan, data), "attention_seed" in self.reads
        # First by cumulants alone; what needs means over weights once is evaluated with them from then on.
        expanded = draws and not self._drawn
        shared = apart and (not draws or (expanded and entries == 1))
        tile = tiled.small_sizes(sizes, entries) if shared else sizes
        try:
            program = self._program(plan, data, batch, tile, both, expanded)
        except jax.errors.UnexpectedTracerError:
            if not expanded:
                raise
            self._drawn.append(True)  # a layer of a loop asks whether means are needed
            return self._at_once(plan, data)
        if expanded and program.cost == math.inf:
            self._drawn.append(True)
            return self._at_once(plan, data)
        if tile != sizes and immediate.READING < program.cost < math.inf:
            tile = sizes
            program = self._program(plan, data, batch, tile, both, expanded)
        places = tiled.places(plan, sizes, tile)
        cost = len(places) * program.cost
        spent = self._spent.get((id(program), sizes), 0.0)
        if cost + spent > program.limit:
            return None
        self._spent[id(program), sizes] = spent + cost
        parts = {}
        for at in places:
            leaves = jax.tree.leaves(tiled.cut_at(plan, data, batch, tile, *at))
            parts[at] = program(*leaves)
            if expanded:
                parts[at], needed = parts[at]
                if needed:
                    self._drawn.append(True)
                    return self._at_once(plan, data)
        # jnp.asarray would compile a copy for every shape.
        return jax.device_put(
            parts[0, 0] if tile == sizes else tiled.put_together(plan, sizes, parts)
        )

    def _program(
        self,
        plan: Plan,
        data: tuple,
        batch: int,
        tile: tuple[int, int],
        both: Plan,
        expanded: bool,
    ) -> immediate.Program:
        """For so many samples of such data; that of both kernels, where there is one. See `true_law.without_means`."""
        shapes, tree = jax.tree.flatten(tiled.cut_at(plan, data, batch, tile, 0, 0))
        # JAX adds its options by name, which no checker sees.
        double = jax.config.jax_enable_x64  # type: ignore[attr-defined, unused-ignore]
        rest = tree, *((x.shape, x.dtype) for x in shapes), double, expanded
        if plan.names == ("nngp",) and (both, rest) in self._small:
            plan = both
        if (plan, rest) not in self._small:
            evaluate: Callable[..., Any] = functools.partial(_evaluate, self, plan, slopes=False)
            if expanded:
                evaluate = true_law.without_means(evaluate)
            self._small[plan, rest] = immediate.program(evaluate, *jax.tree.unflatten(tree, shapes))
        return self._small[plan, rest]

    @functools.cached_property
    def _drawn(self) -> list[bool]:
        """Not empty once means over weights were needed."""
        return []

    @functools.cached_property
    def _small(self) -> dict[Hashable, immediate.Program]:
        """Programs of small kernels by plan and shapes."""
        return {}

    @functools.cached_property
    def _spent(self) -> dict[Hashable, float]:
        """What was spent on each, by the numbers of samples that were asked for."""
        return {}

    @functools.cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """With compiler options and without, compiled once per shapes and plan; they live as long as the network."""
        evaluate = functools.partial(_evaluate, self)
        options = OPTIONS.get(jax.default_backend())
        alone = jax.jit(evaluate, static_argnums=0, compiler_options=options)
        return alone, jax.jit(evaluate, static_argnums=0)

    def _need(self, names: tuple[str, ...], diagonal_spatial: bool | None) -> Need:
        covariance = {"cov1", "cov2", "var1", "var2", "within1", "within2"}
        variance = 0
        if not names or covariance & set(names):
            variance = 1 if diagonal_spatial else 2
        need = self.needs(Need(not diagonal_spatial, variance))
        return need if diagonal_spatial is None else need._replace(pairs=not diagonal_spatial)


def _names(get: str | tuple[str, ...] | None) -> tuple[str, ...]:
    names = () if get is None else (get,) if isinstance(get, str) else tuple(get)
    for name in names:
        if name not in NAMES:
            rest = ", ".join(sorted({*NAMES} - {"nngp", "ntk"}))
            raise ValueError(
                f"{name!r} is not a kernel; get may be 'nngp', 'ntk', a tuple of names, None, or a field of Kernel: "
                f"{rest}"
            )
    return names


def _select(out: Any, get: str | tuple[str, ...] | None) -> Any:
    """The fields asked for of a kernel, or of each of a list of them."""
    if get is None:
        return out
    if not isinstance(out, Kernel):
        return type(out)(_select(k, get) for k in out)
    if isinstance(get, str):
        return getattr(out, get)
    return show.bundle("AnalyticKernel", tuple(get))(*(getattr(out, name) for name in get))


def _result(kernel: Kernel, names: tuple[str, ...]) -> tiled.Result:
    if kernel.ntk is not None and kernel.ntk.ndim == 0:  # nothing was trained
        kernel = kernel.replace(ntk=jnp.zeros_like(kernel.correlation))
    arrays = {name: getattr(kernel, name) for name in names or _FIELDS if name not in _STATIC}
    empty: dict[str, Any] = dict.fromkeys(_FIELDS)
    if kernel.coincident is not None:
        # Whether it is None is all that `x1_is_x2` of the frame reads.
        empty["coincident"] = jnp.ones((), bool)
    return tiled.Result(dataclasses.replace(kernel, **empty), arrays)


def _chosen(out: Any, get: str | tuple[str, ...] | None) -> Any:
    if not isinstance(out, tiled.Result):
        return type(out)(_chosen(part, get) for part in out)
    if get is None:
        arrays: dict[str, Any] = out.arrays
        return dataclasses.replace(out.kernel, **arrays)

    def field(name: str) -> Any:
        return out.arrays[name] if name in out.arrays else getattr(out.kernel, name)

    if isinstance(get, str):
        return field(get)
    return show.bundle("AnalyticKernel", tuple(get))(*map(field, get))


def _evaluate(
    fn: KernelFn,
    plan: Plan,
    x1: Any,
    x2: Any,
    mask1: Any,
    mask2: Any,
    pattern: Any,
    same: Array | None = None,
    *,
    slopes: bool = True,
) -> Any:
    """The network on tiles; without ``slopes`` its values alone, which cannot be differentiated at close samples.

    ``same`` tells which samples coincide, where these are not those of the same places.
    """

    def inputs(
        x1: Any, x2: Any, mask1: Any, mask2: Any, coincident: Array | None, plan: Plan
    ) -> Any:
        if isinstance(x1, tuple):
            return tuple(inputs(*part, coincident, plan) for part in zip(x1, x2, mask1, mask2))
        return inputs_to_kernel(x1, x2, mask1, mask2, coincident, plan)

    def layers(kernels: Any, pattern: Any) -> Any:
        out = fn.rule(kernels, pattern=pattern)
        return jax.tree.map(
            lambda k: _result(k, plan.names), out, is_leaf=lambda k: isinstance(k, Kernel)
        )

    def network(
        x1: Any,
        x2: Any,
        mask1: Any,
        mask2: Any,
        pattern: Any,
        coincident: Array | None,
        plan: Plan = plan,
    ) -> Any:
        if fn.pair is not None:
            return _result(fn.pair(x1, x2, coincident, plan), plan.names)
        return layers(inputs(x1, x2, mask1, mask2, coincident, plan), pattern)

    def unless_near(
        x1: Any, x2: Any, mask1: Any, mask2: Any, pattern: Any, coincident: Array | None
    ) -> Any:
        data = (x1, x2, mask1, mask2, pattern, coincident)
        if plan.near is not None:
            return (precision.doubled(network) if plan.near else network)(*data)
        if fn.pair is not None or isinstance(x1, tuple) or x1.ndim > 2:
            close = precision.near_samples(x1, x2, coincident, batch)
            return jax.lax.cond(close, precision.doubled(network), network, *data)
        # What both the test and the branch read is the product itself: it is in memory anyway.
        product = product_of_units(x1, x2, plan)

        def single(
            x1: Any, x2: Any, mask1: Any, mask2: Any, pattern: Any, coincident: Array | None
        ) -> Any:
            kernel = inputs_to_kernel(x1, x2, mask1, mask2, coincident, plan, product)
            return layers(kernel, pattern)

        close = precision.near(product, coincident)
        return jax.lax.cond(close, precision.doubled(network), single, *data)

    first, second = (jax.tree.leaves(x)[0] for x in (x1, x2))
    batch = plan.batch_axis % first.ndim
    sizes = first.shape[batch], second.shape[batch]
    entries = tiled.entries_of(first, batch, plan, fn.area)
    tile = tiled.sizes_of(sizes, entries, plan)
    data = (x1, x2, mask1, mask2, pattern)
    values: Callable[..., Any] = network
    if all(x.dtype == jnp.float32 for x in jax.tree.leaves((x1, x2))):
        if tiled.is_small(sizes, entries):
            values = precision.doubled(network)
        else:
            values = unless_near
    if slopes:
        other = functools.partial(network, plan=plan._replace(differentiated=True))
        values = precision.split(values, other)
    if tile is None:
        if plan.coincident and same is None:
            same = jnp.eye(sizes[0], dtype=bool)
        return values(*data, same)
    return tiled.run(values, plan, batch, sizes, tile, data)
