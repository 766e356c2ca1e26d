"""pi-nets: deep ReLU networks that learn features and whose infinite-width limit can be computed exactly.

A wide layer whose weights are n x n has no limit of finite size: its pre-activations need ever more Gaussian
directions. A pi-net lets every layer pass through r numbers g: with Omega_l (n, r) Gaussian and fixed and
W_l (n, r) trained at eta n,::

    g_1 = A_1^T x        g_l = (1/n) W_l^T relu(Omega_{l-1} g_{l-1})        outputs g_{L+1}

As n goes to infinity W_l is a sum of relu(Omega b) a^T over directions b: those it starts with and, after each
step, one for each example of the batch. All of it is then known from the pairs (b, a), through
E relu(w . g) relu(w . g') = |g| |g'| V(cos), w ~ N(0, I).

Source: Yang, Santacroce, Hu 2022, "Efficient computation of deep nonlinear infinite-width neural networks
that learn features" (ICLR 2022).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from limits.arguments import batch, function, instance, integer, key, number, real_dtype, takes
from limits.feature_learning import squared_error
from ntk import show
from ntk.arguments import scalar_loss
from ntk.types import Float, PRNGKey, Real, Scalar


@jax.custom_jvp
def relu_dual(c: Real[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """V(c) = (sqrt(1 - c^2) + c arccos(-c)) / 2 pi: E relu(u) relu(v) for unit normals of correlation c."""
    c = jnp.clip(c, -1, 1)
    return (jnp.sqrt(1 - c * c) + c * jnp.arccos(-c)) / (2 * jnp.pi)


@relu_dual.defjvp
def _relu_dual_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (c,), (dc,) = primals, tangents  # the rule of the parts is infinity minus infinity at c = 1
    return relu_dual(c), jnp.arccos(-jnp.clip(c, -1, 1)) / (2 * jnp.pi) * dc


class Rows(NamedTuple):
    """One layer of the limit: the sum over m rows of relu(Omega b) a^T.

    Attributes:
        b: (m, r), unit directions.
        a: (m, r of the layer's outputs).
    """

    b: jax.Array
    a: jax.Array


@show.readable
class PiNet(NamedTuple):
    """A pi-net of finite width.

    Attributes:
        first: (d, r), A_1.
        omega: one (n, r) for each hidden layer, fixed.
        w: one (n, r) for each hidden layer, the last (n, k).
    """

    first: jax.Array
    omega: tuple[jax.Array, ...]
    w: tuple[jax.Array, ...]

    def apply(self, x: jax.Array) -> jax.Array:
        """Outputs (N, k) at inputs (N, d)."""
        g = x @ self.first
        for omega, w in zip(self.omega, self.w):
            g = jax.nn.relu(g @ omega.T) @ w / len(w)
        return g


@show.readable
class PiLimit(NamedTuple):
    """A pi-net of infinite width.

    Attributes:
        first: (d, r), A_1.
        rows: one Rows for each hidden layer.
    """

    first: jax.Array
    rows: tuple[Rows, ...]

    def apply(self, x: jax.Array) -> jax.Array:
        """Outputs (N, k) at inputs (N, d)."""
        return _forward(self, x)[0]

    def sample(self, key: PRNGKey, width: int) -> PiNet:
        """A pi-net of this width that converges to it, trained or not, as width^-1/2."""
        shape = len(self.rows), width, self.first.shape[1]
        omega = jax.random.normal(key, shape, self.first.dtype)
        w = [jax.nn.relu(o @ rows.b.T) @ rows.a for o, rows in zip(omega, self.rows)]
        return PiNet(self.first, tuple(omega), tuple(w))


@takes(
    key=key, inputs=integer, outputs=integer, rank=integer, hidden_layers=integer, dtype=real_dtype
)
def limit(
    key: PRNGKey,
    inputs: int,
    outputs: int,
    *,
    rank: int,
    hidden_layers: int,
    start: int | None = None,
    dtype: DTypeLike = jnp.float32,
) -> PiLimit:
    """A pi-net of infinite width at initialisation: random directions, Gaussian rows, outputs zero.

    Args:
        key: PRNG key; unlike Omega, what it draws stays the same at every width.
        inputs: d.
        outputs: k.
        rank: r, the numbers that a layer passes on.
        hidden_layers: L.
        start: rows of a layer at initialisation; rank by default.
        dtype: of the arrays.

    Raises:
        ValueError: a size that is not positive.
    """
    start = rank if start is None else start
    integer("start", start)
    sizes = {"inputs": inputs, "outputs": outputs, "rank": rank}
    for name, size in {**sizes, "hidden_layers": hidden_layers, "start": start}.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1.")
    keys = jax.random.split(key, 2 * hidden_layers + 1)
    rows = []
    for l in range(hidden_layers):
        b = jax.random.normal(keys[2 * l], (start, rank), dtype)
        last = l == hidden_layers - 1
        shape = (start, outputs if last else rank)
        a = 0.0 if last else (start * rank * _mean_square(rank)) ** -0.5
        a = a * jax.random.normal(keys[2 * l + 1], shape, dtype)
        rows.append(Rows(b / jnp.linalg.norm(b, axis=1, keepdims=True), a))
    first = jax.random.normal(keys[-1], (inputs, rank), dtype) * inputs**-0.5
    return PiLimit(first, tuple(rows))


def _mean_square(rank: int) -> float:
    """E V(c)^2 over random directions in `rank` dimensions, to second order in c: with it g keeps its norm."""
    mean = 1 / (2 * math.pi)
    return mean**2 + (1 / 16 + mean**2) / rank


def _forward(
    net: PiLimit, x: jax.Array, shifts: Sequence[Scalar] | None = None
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """(outputs, [(direction, size) of the inputs of each hidden layer]), with a shift added to every g."""
    shifts = [0.0] * (1 + len(net.rows)) if shifts is None else shifts
    g, seen = x @ net.first + shifts[0], []
    for rows, shift in zip(net.rows, shifts[1:]):
        size = jnp.sqrt(jnp.maximum(jnp.square(g).sum(axis=1, keepdims=True), 1e-30))
        seen.append((g / size, size))
        g = (relu_dual((g / size) @ rows.b.T) * size) @ rows.a + shift
    return g, seen


@takes(
    net=instance(PiLimit, PiNet, remedy=", from pi_net.limit"),
    batches=batch,
    learning_rate=number(),
    loss=function,
)
def train(
    net: PiLimit | PiNet, batches: tuple, learning_rate: float, *, loss: Callable = squared_error
) -> tuple[PiLimit | PiNet, Float[jax.Array, "steps"]]:
    """Stochastic gradient descent, one step a batch; pi-nets and their limit alike. Compiled once per shape.

    Each step adds one row per example to every layer of the limit: after s steps with batches of B a layer has
    start + s B rows, and a step costs O(B (start + s B) r).

    Args:
        net: from `limit`, or a sample of it, or what an earlier call returned.
        batches: (inputs (steps, B, d), targets (steps, B, ...)).
        learning_rate: eta, the same at every width.
        loss: `loss(outputs, targets)`, a scalar; a function, not a new lambda at each call.

    Returns:
        (net, losses): losses (steps,), before each step.

    Source: Yang, Santacroce, Hu 2022, without momentum and weight decay.
    """
    if isinstance(net, PiNet):
        return _train_finite(net, batches, learning_rate, loss)
    return _train_limit(net, batches, learning_rate, loss)


@functools.partial(jax.jit, static_argnums=3)
def _train_finite(
    net: PiNet, batches: tuple, learning_rate: Scalar, loss: Callable
) -> tuple[PiNet, jax.Array]:
    one = scalar_loss(loss)

    def step(net: PiNet, batch: tuple) -> tuple[PiNet, jax.Array]:
        value, slope = jax.value_and_grad(lambda p: one(p.apply(batch[0]), batch[1]))(net)
        w = tuple(w - learning_rate * len(w) * g for w, g in zip(net.w, slope.w))
        return PiNet(net.first - learning_rate * slope.first, net.omega, w), value

    return jax.lax.scan(step, net, batches)


@functools.partial(jax.jit, static_argnums=3)
def _train_limit(
    net: PiLimit, batches: tuple, learning_rate: Scalar, loss: Callable
) -> tuple[PiLimit, jax.Array]:
    steps, size = batches[0].shape[:2]
    one = scalar_loss(loss)
    start = [len(rows.b) for rows in net.rows]
    # Rows that are not there yet are zero, and add nothing.
    grown = jax.tree.map(lambda x: jnp.pad(x, ((0, steps * size), (0, 0))), net.rows)

    def step(net: PiLimit, inputs: tuple) -> tuple[PiLimit, jax.Array]:
        number, (x, y) = inputs
        widths = [net.first.shape[1], *(rows.a.shape[1] for rows in net.rows)]
        shifts = [jnp.zeros((size, width), x.dtype) for width in widths]

        def objective(
            shifts: list[jax.Array],
        ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
            outputs, seen = _forward(net, x, shifts)
            return one(outputs, y), seen

        (value, seen), slopes = jax.value_and_grad(objective, has_aux=True)(shifts)
        rows = [
            _append(old, begin + number * size, direction, -learning_rate * norm * slope)
            for old, begin, (direction, norm), slope in zip(net.rows, start, seen, slopes[1:])
        ]
        return PiLimit(net.first - learning_rate * x.T @ slopes[0], tuple(rows)), value

    return jax.lax.scan(step, PiLimit(net.first, grown), (jnp.arange(steps), batches))


def _append(rows: Rows, place: jax.Array, b: jax.Array, a: jax.Array) -> Rows:
    return Rows(
        jax.lax.dynamic_update_slice(rows.b, b, (place, 0)),
        jax.lax.dynamic_update_slice(rows.a, a, (place, 0)),
    )
