"""Infinite-width limit of networks with one hidden layer under muP: training, and first-order MAML.

A network f(x) = (1/n) sum_i v_i phi(u_i . x) with v_i, u_i of order one, whose u and v learn at the rate eta n,
is muP with one hidden layer (its mean-field form). At infinite width (u_i, v_i) become a distribution, and
with chi = dLoss/df gradient descent moves every unit by::

    v -= eta chi phi(u . x)        u -= eta chi . v phi'(u . x) x

`particles` draws n units: a finite network, which is also the limit up to O(n^-1/2). `linear_limit` is the
limit itself where phi is the identity: then only second moments of (u, v) are used, and d + k orthogonal units
have those of infinitely many Gaussian ones. Both train with the same functions, and `.sample(key, width)` draws
from either, trained or not, a finite network that converges to it.

One file: particles, the linear and the kernel limit are trained, adapted and sampled by the same functions.

Source: Yang & Hu 2021, arXiv:2011.14522, the limits of one hidden layer; MAML: Finn et al. 2017, arXiv:1703.03400.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from limits.arguments import (
    array,
    batch,
    count,
    function,
    instance,
    integer,
    key,
    number,
    real_dtype,
    takes,
)
from limits.exponents import Rule, named_rule
from limits.regimes import abc, classify
from ntk import show
from ntk.arguments import scalar_loss
from ntk.types import Elementwise, Float, Integer, PRNGKey, Real, jitted

Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def identity(h: jax.Array) -> jax.Array:
    """The activation of a linear network, for which `linear_limit` is exact."""
    return h


@show.readable
class Particles(NamedTuple):
    """n units of equal weight: a finite network in mean-field form.

    Attributes:
        u: (n, d), input weights.
        v: (n, k), readout weights.
    """

    u: jax.Array
    v: jax.Array

    @property
    def scale(self) -> float:
        """Weight of one unit in the outputs; one over the factor on its learning rate."""
        return 1 / self.u.shape[0]

    def apply(self, x: jax.Array, activation: Elementwise = identity) -> jax.Array:
        """Outputs (N, k) at inputs (N, d)."""
        return self.scale * (activation(x @ self.u.T) @ self.v)

    def sample(self, key: PRNGKey, width: int) -> Particles:
        """`width` of the units, drawn independently: a network that converges to this one as width^-1/2."""
        chosen = jax.random.randint(key, (width,), 0, self.u.shape[0])
        return Particles(self.u[chosen], self.v[chosen])


@show.readable
class LinearLimit(NamedTuple):
    """An infinitely wide linear network, exactly: m orthogonal units, where m is d + k at initialisation.

    Attributes:
        u: (m, d).
        v: (m, k).
    """

    u: jax.Array
    v: jax.Array

    @property
    def scale(self) -> float:
        """The limit's is 1: its gradient is free of the width as it is."""
        return 1.0

    def apply(self, x: jax.Array, activation: Elementwise = identity) -> jax.Array:
        """Outputs (N, k) at inputs (N, d); the activation must be `identity`."""
        if activation is not identity:
            raise ValueError(
                "LinearLimit holds second moments only, and no activation but feature_learning.identity"
                " can do with them: use particles for others."
            )
        return (x @ self.u.T) @ self.v

    def sample(self, key: PRNGKey, width: int) -> Particles:
        """Gaussian mixtures of the units: a network of this width that converges to it as width^-1/2."""
        omega = jax.random.normal(key, (width, self.u.shape[0]), self.u.dtype)
        return Particles(omega @ self.u, omega @ self.v)


@show.readable
class KernelLimit(NamedTuple):
    """The same linear network at infinite width in the NTK parametrization: a linear model, features fixed.

    Its kernel is x . x', the same for NTK and NNGP but for a factor, sigma_u^2 + sigma_v^2 or sigma_u^2, that
    belongs into the learning rate.

    Attributes:
        w: (k, d).
    """

    w: jax.Array

    @property
    def scale(self) -> float:
        """The limit's is 1: its gradient is free of the width as it is."""
        return 1.0

    def apply(self, x: jax.Array, activation: Elementwise = identity) -> jax.Array:
        """Outputs (N, k) at inputs (N, d)."""
        if activation is not identity:
            raise ValueError(
                "KernelLimit is the limit of a linear network: use ntk.predict for others."
            )
        return x @ self.w.T


Net = Particles | LinearLimit | KernelLimit
N = TypeVar("N", bound=Net)


def _rate(name: str, value: Any) -> None:
    if not isinstance(value, Net):
        number()(name, value)


_network = instance(Particles, LinearLimit, KernelLimit, remedy=", from particles or linear_limit")


@takes(inputs=integer, outputs=integer, sigma_u=number(), sigma_v=number(), dtype=real_dtype)
def linear_limit(
    inputs: int,
    outputs: int,
    *,
    sigma_u: float = 1.0,
    sigma_v: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> LinearLimit:
    """The limit of a linear network at initialisation: u = [sigma_u I; 0], v = [0; sigma_v I].

    Args:
        inputs: d.
        outputs: k.
        sigma_u: standard deviation of the input weights.
        sigma_v: standard deviation of the readout weights in mean-field form (n times the effective ones).
        dtype: of the arrays.

    Source: Yang & Hu 2021, arXiv:2011.14522, the linear network of one hidden layer.
    """
    _check_sizes(inputs=inputs, outputs=outputs)
    u, v = sigma_u * jnp.eye(inputs, dtype=dtype), sigma_v * jnp.eye(outputs, dtype=dtype)
    return LinearLimit(jnp.pad(u, ((0, outputs), (0, 0))), jnp.pad(v, ((inputs, 0), (0, 0))))


@takes(
    key=key,
    width=integer,
    inputs=integer,
    outputs=integer,
    sigma_u=number(),
    sigma_v=number(),
    dtype=real_dtype,
)
def particles(
    key: PRNGKey,
    width: int,
    inputs: int,
    outputs: int,
    *,
    sigma_u: float = 1.0,
    sigma_v: float = 1.0,
    dtype: DTypeLike = jnp.float32,
) -> Particles:
    """Independent Gaussian units: a finite network at initialisation, or the limit of any activation to O(width^-1/2).

    Args as in `linear_limit`.
    """
    _check_sizes(width=width, inputs=inputs, outputs=outputs)
    u, v = jax.random.split(key)
    return Particles(
        sigma_u * jax.random.normal(u, (width, inputs), dtype),
        sigma_v * jax.random.normal(v, (width, outputs), dtype),
    )


@takes(inputs=integer, outputs=integer, dtype=real_dtype)
def kernel_limit(inputs: int, outputs: int, dtype: DTypeLike = jnp.float32) -> KernelLimit:
    """The kernel limit of a linear network whose outputs start at zero."""
    _check_sizes(inputs=inputs, outputs=outputs)
    return KernelLimit(jnp.zeros((outputs, inputs), dtype))


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1.")


@takes(net=instance(Particles, remedy=", from feature_learning.particles"))
def weights(net: Particles, rule: str | Rule = "mup") -> dict[str, Any]:
    """The finite network as trainable weights of a rule: multipliers n^-a, learning rates eta n^-c.

    Args:
        net: a finite network.
        rule: "mup", "mean_field", or a Rule that is their image under the abc symmetry.

    Returns:
        {"w": (w1 (d, n), w2 (n, k)), "multiplier": (m1, m2), "rate": (r1, r2)}: the network is
        (m2 w2)^T phi((m1 w1)^T x), and layer l learns at eta r_l.

    Raises:
        ValueError: a rule with another limit, or none.

    Source: exponents from limits.abc; Yang & Hu 2021, arXiv:2011.14522, the symmetry of abc-parametrizations.
    """
    a, b, c = abc(rule, 1)
    effective = [a[l] + b[l] for l in (0, 1)], [2 * a[l] + c[l] for l in (0, 1)]
    if not np.allclose(effective, ((0, 1), (-1, 1))):
        kind = classify(a, b, c).kind
        raise ValueError(
            f"rule {named_rule(rule).name!r} ({kind}) does not train towards this limit: it needs"
            f" a + b = (0, 1) and 2a + c = (-1, 1) in the two layers, as mup and mean_field have,"
            f" not {tuple(effective[0])} and {tuple(effective[1])}."
        )
    n = net.u.shape[0]
    multiplier, rate = ((n ** -a[0], n ** -a[1]), (n ** -c[0], n ** -c[1]))
    w = net.u.T / multiplier[0], net.v / (n * multiplier[1])
    return {"w": w, "multiplier": multiplier, "rate": rate}


@show.readable
class Trained(NamedTuple):
    """What training made.

    Attributes:
        net: the network at the end.
        losses: (steps,), before each step.
        outputs: (steps + 1, N, k) at the inputs asked for, before the first step and after each; () without.
    """

    net: Net
    losses: Float[jax.Array, "steps"]
    outputs: jax.Array | tuple


@takes(outputs=array(), targets=array())
def squared_error(
    outputs: Real[jax.Array, "*shape"], targets: Real[jax.Array, "*shape"]
) -> Float[jax.Array, ""]:
    """Half the squared error, summed over outputs, mean over examples."""
    if jnp.shape(outputs) != jnp.shape(targets):
        raise ValueError(
            f"outputs have the shape {jnp.shape(outputs)} and targets {jnp.shape(targets)}; they must be equal"
        )
    return 0.5 * jnp.square(outputs - targets).sum(axis=-1).mean()


@takes(outputs=array(), labels=array(integers=True))
def cross_entropy(
    outputs: Real[jax.Array, "*examples k"], labels: Integer[jax.Array, "*examples"]
) -> Float[jax.Array, ""]:
    """Mean softmax cross-entropy in nats, for integer labels; NaN inside of a trace where a label is none of 0..k-1.

    Raises:
        ValueError: a label is none of 0..k-1, or there is not one for each example.
    """
    shape, classes = jnp.shape(outputs)[:-1], jnp.shape(outputs)[-1]
    if jnp.shape(labels) != shape:
        raise ValueError(
            f"labels have the shape {jnp.shape(labels)}; it must be {shape}: one for each example"
        )
    known = (labels >= 0) & (labels < classes)
    if not isinstance(known, jax.core.Tracer) and not known.all():
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; they must be 0..{classes - 1}"
        )
    # Negative indices would count from the last class.
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.where(known, labels, 0))
    return jnp.where(known, losses, jnp.nan).mean()


@takes(net=_network, batch=batch, activation=function, loss=function)
def gradient(
    net: N, batch: tuple, *, activation: Elementwise = identity, loss: Loss = squared_error
) -> tuple[Float[jax.Array, ""], N]:
    """(loss, gradient in units of the limit): what one SGD step subtracts per learning rate, free of the width."""
    one = scalar_loss(loss)
    value, slope = jax.value_and_grad(lambda p: one(p.apply(batch[0], activation), batch[1]))(net)
    return value, jax.tree.map(lambda g: g / net.scale, slope)


@takes(net=_network, slope=_network)
def norm(net: Net, slope: Net) -> Float[jax.Array, ""]:
    """Norm of such a gradient, free of the width: the root of the mean over units of the squared entries."""
    squares = jax.tree.map(lambda g: jnp.square(g).sum(), slope)
    return jnp.sqrt(net.scale * sum(jax.tree.leaves(squares)))


@takes(net=_network, batches=batch, learning_rate=_rate, activation=function, loss=function)
@jitted(static_argnames=("activation", "loss"))
def train(
    net: Net,
    batches: tuple,
    learning_rate: float | Net,
    *,
    activation: Elementwise = identity,
    loss: Loss = squared_error,
    inputs: Real[jax.Array, "N d"] | None = None,
) -> Trained:
    """Stochastic gradient descent, one step a batch; finite networks and limits alike. Compiled once per shape.

    Args:
        net: from `linear_limit`, `particles` or `kernel_limit`, or what an earlier call returned.
        batches: (inputs (steps, B, d), targets (steps, B, ...)).
        learning_rate: eta, the same at every width; or one for each array of the net, as a net of numbers.
        activation: phi, a function (not a new lambda at each call, which would compile anew).
        loss: `loss(outputs, targets)`, a scalar, likewise.
        inputs: (N, d), where to record the outputs along training.

    Returns:
        Trained(net, losses, outputs).

    Source: Yang & Hu 2021, arXiv:2011.14522, the limit of a network of one hidden layer under SGD.
    """

    def outputs(net: N) -> Any:
        return () if inputs is None else net.apply(inputs, activation)

    one = not isinstance(learning_rate, type(net))
    rates = jax.tree.map(lambda _: learning_rate, net) if one else learning_rate

    def step(net: N, batch: tuple) -> tuple[N, tuple]:
        value, slope = gradient(net, batch, activation=activation, loss=loss)
        new = jax.tree.map(lambda p, g, rate: p - rate * g, net, slope, rates)
        return new, (value, outputs(new))

    start = outputs(net)
    net, (losses, path) = jax.lax.scan(step, net, batches)
    return Trained(
        net, losses, jax.tree.map(lambda f, rest: jnp.concatenate([f[None], rest]), start, path)
    )


@show.readable
class Episodes(NamedTuple):
    """Few-shot tasks, as rows of one array of inputs; every leaf may have further leading axes.

    Attributes:
        support: (..., S), the examples to adapt to.
        support_labels: (..., S), integers below k.
        query: (..., Q), the examples to be right on after it.
        query_labels: (..., Q).
    """

    support: Integer[jax.Array, "*tasks S"]
    support_labels: Integer[jax.Array, "*tasks S"]
    query: Integer[jax.Array, "*tasks Q"]
    query_labels: Integer[jax.Array, "*tasks Q"]


@takes(net=_network, batch=batch, rate=number(), steps=count(0), activation=function)
def adapt(
    net: N, batch: tuple, rate: float, steps: int = 1, *, activation: Elementwise = identity
) -> N:
    """The inner loop of MAML: `steps` of gradient descent on the cross-entropy of one task's support."""

    def step(net: N, _: None) -> tuple[N, None]:
        slope = gradient(net, batch, activation=activation, loss=cross_entropy)[1]
        return jax.tree.map(lambda p, g: p - rate * g, net, slope), None

    return jax.lax.scan(step, net, length=steps)[0]


@takes(
    net=_network,
    inputs=array(2),
    episodes=instance(Episodes),
    inner_rate=number(),
    outer_rate=number(),
    clip=number(),
    inner_steps=count(0),
    activation=function,
)
@jitted(static_argnames=("inner_steps", "activation"))
def meta_train(
    net: N,
    inputs: Real[jax.Array, "P d"],
    episodes: Episodes,
    *,
    inner_rate: float = 0.4,
    outer_rate: float = 0.1,
    clip: float = 0.5,
    inner_steps: int = 1,
    activation: Elementwise = identity,
) -> tuple[N, Float[jax.Array, "steps"]]:
    """First-order MAML: each outer step adapts to its tasks and follows their gradients at the adapted networks.

    The gradients are summed over the tasks and clipped in the norm that is free of the width.

    Args:
        net: a network or a limit; for a linear one the limit is exact.
        inputs: (P, d), all examples.
        episodes: leaves (outer steps, tasks, ...).
        inner_rate: learning rate of the adaptation.
        outer_rate: learning rate of the outer steps.
        clip: largest norm of the summed gradient.
        inner_steps: steps of adaptation.
        activation: phi.

    Returns:
        (net, losses): losses (outer steps,), mean cross-entropy on the queries after adaptation.

    Source: Yang & Hu 2021, arXiv:2011.14522, the experiments with MAML and their appendix.
    """

    def task(net: N, episode: Episodes) -> tuple[jax.Array, N]:
        support = inputs[episode.support], episode.support_labels
        query = inputs[episode.query], episode.query_labels
        adapted = adapt(net, support, inner_rate, inner_steps, activation=activation)
        return gradient(adapted, query, activation=activation, loss=cross_entropy)

    def step(net: N, episodes: Episodes) -> tuple[N, jax.Array]:
        losses, slopes = jax.vmap(task, (None, 0))(net, episodes)
        slope = jax.tree.map(lambda g: g.sum(axis=0), slopes)
        shrink = jnp.minimum(1.0, clip / jnp.maximum(norm(net, slope), 1e-30))
        new = jax.tree.map(lambda p, g: p - outer_rate * shrink * g, net, slope)
        return new, losses.mean()

    return jax.lax.scan(step, net, episodes)


@takes(
    net=_network,
    inputs=array(2),
    episodes=instance(Episodes),
    inner_rate=number(),
    inner_steps=count(0),
    activation=function,
)
@jitted(static_argnames=("inner_steps", "activation"))
def adapted_outputs(
    net: Net,
    inputs: Real[jax.Array, "P d"],
    episodes: Episodes,
    *,
    inner_rate: float = 0.4,
    inner_steps: int = 20,
    activation: Elementwise = identity,
) -> Float[jax.Array, "tasks Q k"]:
    """Outputs (tasks, Q, k) at the queries of each task, after adaptation to its support.

    Args:
        net: a network or a limit.
        inputs: (P, d), all examples.
        episodes: leaves (tasks, ...).
        inner_rate: learning rate of the adaptation.
        inner_steps: its steps.
        activation: phi.
    """

    def task(episode: Episodes) -> jax.Array:
        support = inputs[episode.support], episode.support_labels
        adapted = adapt(net, support, inner_rate, inner_steps, activation=activation)
        return adapted.apply(inputs[episode.query], activation)

    together = min(20, episodes.support.shape[0])  # each has weights of its own
    return jax.lax.map(task, episodes, batch_size=together)
