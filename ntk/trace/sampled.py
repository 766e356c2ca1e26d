"""Kernels of a family that has no rule: means over random finite networks, carried on to infinite width.

A mean over initialisations of a kernel at width n is K + a / n + O(1/n^2) where activations are smooth enough, so that
a line in 1/n through several widths meets the axis at K. That of one network deviates by O(n^-1/2) from it.

Source: Yang (2019), Tensor Programs I (the limit exists whatever the architecture); Dyer & Gur-Ari (2020), "Asymptotics
of wide networks from Feynman diagrams" (the powers of 1/n).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk import arguments, show
from ntk import family as families
from ntk.family import named_leaves
from ntk.infinite.inputs import check_samples
from ntk.trace import networks
from ntk.trace.parameters import Assumed

WIDEST = 2**21
"""Parameters of the widest networks that are drawn, unless the narrowest family that is allowed has more."""
_LEAST = 64
_MOST_DRIFT = 0.25


@show.readable
class Estimate(NamedTuple):
    """A kernel and its standard error, arrays of one shape."""

    mean: Any
    standard_error: Any


@show.drawn
@dataclasses.dataclass(frozen=True, eq=False)
class SampledKernelFn:
    """Kernel of a family by finite networks; takes and returns what `ntk.infinite.evaluate.KernelFn` does.

    Attributes:
        family, first, assumed, batched: as `ntk.trace.networks.finite` takes them.
        widths: of the networks, each twice the one before.
        counts: number of networks at each width.
        reason: why there is no rule.
    """

    family: Callable
    first: tuple
    assumed: Assumed
    batched: bool
    widths: tuple[int, ...]
    counts: tuple[int, ...]
    reason: str
    reads: frozenset[str] = frozenset({"attention_seed"})

    def __repr__(self) -> str:
        return show.line("SampledKernelFn", self._shown())

    def _repr_html_(self) -> str:
        return show.table("SampledKernelFn", self._shown())

    def _shown(self) -> dict[str, Any]:
        call = "kernel_fn(x1, x2=None, get='ntk')"
        return {"call": call, "widths": self.widths, "counts": self.counts, "reason": self.reason}

    @arguments.strict
    def __call__(
        self,
        x1: Any,
        x2: Any = None,
        get: str | tuple[str, ...] | None = None,
        *,
        attention_seed: int | None = None,
    ) -> Any:
        """The kernels, see `estimate`.

        Args:
            x1: first batch, or a tuple of them for a model of several inputs.
            x2: second batch; None means the first.
            get: "nngp", "ntk" or a tuple of both, which None stands for.
            attention_seed: other networks than those of seed 0.

        Returns:
            (N1, N2), with two axes for each of the outputs' positions; a namedtuple of them for a tuple of names.

        Raises:
            ValueError: another name; a kernel that grows or vanishes with the width; examples that interact.
        """
        get = arguments.lower(get)
        names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else tuple(get)
        found = self.estimate(x1, x2, names, seed=attention_seed or 0)
        if isinstance(get, str):
            return found[get].mean
        return show.bundle("SampledKernel", names)(*(found[n].mean for n in names))

    def estimate(
        self, x1: Any, x2: Any = None, get: tuple[str, ...] = ("nngp", "ntk"), *, seed: int = 0
    ) -> dict[str, Estimate]:
        """Kernels at infinite width with their standard errors.

        The line in 1/n is fitted by least squares to the means at all widths. Its error is that of the means; where the
        two widest networks alone give another limit, by more than chance, the difference is added in squares.

        Args:
            x1: first batch.
            x2: second batch; None means the first.
            get: names of kernels.
            seed: of the networks.

        Returns:
            {name: Estimate}.
        """
        for name in get:
            if name not in ("nngp", "ntk"):
                raise ValueError(
                    f"{name!r} is not sampled; get may be 'nngp', 'ntk' or a tuple of both: the kernel is a mean over "
                    "finite networks"
                )
        start = 1 if self.batched else 0
        samples = tuple(jax.ShapeDtypeStruct(x.shape[start:], x.dtype) for x in self.first)
        for name, x in (("x1", x1), ("x2", x2)):
            if x is not None:
                check_samples(x, samples, name)
        x1, x2 = (None if x is None else jax.tree.map(jnp.asarray, x) for x in (x1, x2))
        self._check_apart(x1)
        means: dict[str, list] = {name: [] for name in get}
        errors: dict[str, list] = {name: [] for name in get}
        for width, count in zip(self.widths, self.counts):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), width), count)
            drawn = dict(zip(("nngp", "ntk"), self._stack(width, x1)(keys, x1, x2)))
            for name in get:
                kernels = np.asarray(drawn[name], np.float64)
                means[name].append(kernels.mean(0))
                errors[name].append(kernels.std(0, ddof=1) / math.sqrt(count))
        out = {}
        for name in get:
            _check_size(name, self.widths, means[name], errors[name])
            out[name] = extrapolated(self.widths, np.stack(means[name]), np.stack(errors[name]))
        return out

    @functools.cached_property
    def _networks(self) -> dict[int, networks.Finite]:
        return {
            width: networks.finite(self.family, width, self.first, self.assumed, self.batched)
            for width in self.widths
        }

    @functools.cached_property
    def _compiled(self) -> dict[int, Callable]:
        return {}

    @functools.cached_property
    def _readout(self) -> list[tuple[str, ...]]:
        return []

    def _stack(self, width: int, x: Any) -> Callable:
        if width not in self._compiled:
            narrow = self._networks[self.widths[0]]
            if not self._readout:
                few = jax.tree.map(lambda a: a[:2], x)
                last = networks.readout(narrow, narrow.draw(jax.random.key(0)), few)
                self._readout.append(last)
            self._compiled[width] = networks.stack(self._networks[width], self._readout[0])
        return self._compiled[width]

    def _check_apart(self, x: Any) -> None:
        """Refuses outputs that depend on the other examples of a batch."""
        net = self._networks[self.widths[0]]
        weights = net.draw(jax.random.key(0))
        few = jax.tree.map(lambda a: a[:3], x)
        apply = jax.jit(net.apply)
        together = np.asarray(apply(weights, few))
        alone = [
            apply(weights, jax.tree.map(lambda a, k=k: a[k : k + 1], few))
            for k in range(len(together))
        ]
        if np.abs(np.concatenate(alone) - together).max() > 1e-3 * max(
            np.abs(together).max(), 1e-30
        ):
            raise ValueError(
                "no kernel: the output of one example depends on the others of its batch (batch normalisation by the "
                "batch at hand). Use layer normalisation, or statistics that are fixed (use_running_average=True)"
            )


def extrapolated(widths: tuple[int, ...], means: np.ndarray, errors: np.ndarray) -> Estimate:
    """The value at 1/n = 0 of a line through means (W, ...) with standard errors at W widths.

    Means at all widths count alike: numbers of networks fall like 1/n, as their variance does.
    """
    t = 1.0 / np.asarray(widths, np.float64)

    def weights(kept: np.ndarray) -> np.ndarray:
        # The intercept of least squares through (1/n, mean) is linear in the means: these are its weights.
        design = np.stack([np.ones_like(kept), kept], 1)
        out = np.zeros_like(t)
        out[-len(kept) :] = np.linalg.pinv(design)[0]
        return out

    whole, last = weights(t), weights(t[-2:])
    limit = np.tensordot(whole, means, 1)
    variance = np.tensordot(whole**2, errors**2, 1)
    contrast = np.tensordot(last - whole, means, 1)
    chance = np.tensordot((last - whole) ** 2, errors**2, 1)
    # Where both fits differ by more than chance the line is bent, and the limit as uncertain as it is.
    bend = max(0.0, float(np.mean(contrast**2 - chance)))
    return Estimate(jnp.asarray(limit), jnp.asarray(np.sqrt(variance + bend)))


def _check_size(name: str, widths: tuple[int, ...], means: list, errors: list) -> None:
    """Refuses a kernel whose size is another power of the width than 0."""
    sizes = [np.sqrt(np.mean(m**2)) for m in means]
    noise = (
        max(np.sqrt(np.mean(e**2)) / s for e, s in zip(errors, sizes) if s > 0) if max(sizes) else 0
    )
    if not max(sizes) or min(sizes) == 0:
        return
    # A limit that is neither zero nor infinite has power 0; three standard errors are granted.
    power = np.polyfit(np.log(widths), np.log(sizes), 1)[0]
    if not math.isfinite(power) or abs(power) > _MOST_DRIFT + 3 * noise:
        raise ValueError(
            f"no infinite-width kernel: over networks of widths {widths} the {name} goes like width^{power:.2g}, so "
            "that its limit is zero or infinite. base_width= keeps the initial scale of one width"
        )


def sampled(
    family: Callable,
    first: tuple,
    assumed: Assumed,
    batched: bool,
    networks_drawn: int,
    reason: str,
) -> SampledKernelFn:
    """The kernel of a family at the largest widths that fit.

    Args:
        family: as in `infinite_width`.
        first: shapes of the inputs.
        assumed: (base_width, learning_rates, bias_std, roles).
        batched: as in `infinite_width`.
        networks_drawn: number of networks at the largest width; twice as many at half of it.
        reason: why there is no rule.
    """
    width = _LEAST
    while width < 4 * _LEAST and _size(family, 4 * 2 * width, first) <= WIDEST:
        width *= 2
    widths = (width, 2 * width, 4 * width)
    counts = (4 * networks_drawn, 2 * networks_drawn, networks_drawn)
    return SampledKernelFn(family, first, assumed, batched, widths, counts, reason)


def _size(family: Callable, width: int, first: tuple) -> float:
    """Number of parameters; infinite where the family does not allow that width."""
    try:
        net = families.network(family, width, first)
        shapes = jax.eval_shape(net.init, jax.random.key(0))
    except (ValueError, TypeError):
        return math.inf
    return sum(math.prod(s.shape) for s in named_leaves(shapes).values())
