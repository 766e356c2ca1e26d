"""Stacks of attention without softmax, for prompts whose last token is the query."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.fields import check_fields
from models.mlp import Initializer, Outputs


class LinearAttention(nn.Module):
    """Residual layers of linear self-attention: e_j += P sum_i V e_i (K e_i . Q e_j), tokens (N, T, D) -> (N, T, D).

    The sum is over all tokens but the last, the query, which reads and is not read: with tokens (x_i, y_i) and (q, 0)
    and the right matrices a layer is a step of gradient descent on the y_i (arXiv:2212.07677), and the last entry of
    the last token becomes minus the prediction. No biases, no norms, no division by T. Layers are named `layer_0`,
    ..., with `query`, `key`, `value` and `out` in each.

    Attributes:
        width: units of queries, keys and values, all heads together.
        depth: number of layers.
        heads: attention heads.
        softmax: whether scores, over the root of a head's units, pass a softmax.
        shared: whether all layers have the parameters of `layer_0`, a recurrent network.
        kernel_init: initializer of every matrix; the default has variance 1 / fan_in.

    Raises:
        ValueError: `width` is not a multiple of `heads`; tokens that are not (N, T, D) with T of 2 or more.
    """

    width: int
    depth: int
    heads: int = 1
    softmax: bool = False
    shared: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()

    def __post_init__(self) -> None:
        check_fields(self, sizes={"width": 1, "depth": 0, "heads": 1}, functions=("kernel_init",))
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not a multiple of heads={self.heads}: every head has width / heads units."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, *, features: bool = False) -> Outputs:
        """The tokens after the last layer; with `features`, also those after each layer by name."""
        if tokens.ndim != 3 or tokens.shape[1] < 2:
            raise ValueError(
                f"tokens of shape {tokens.shape} must be (N, T, D): examples, and the query as the last of T."
            )
        fields = (self.width, self.heads, self.softmax, self.kernel_init)
        shared = _Layer(*fields, name="layer_0") if self.shared and self.depth else None
        x, layers = tokens, {}
        for l in range(self.depth):
            layer = shared or _Layer(*fields, name=f"layer_{l}")
            layers[f"layer_{l}"] = x = x + layer(x)
        return (x, layers) if features else x


class _Layer(nn.Module):
    """What a layer adds; axes n, q and k (positions), h (heads), d (units)."""

    width: int
    heads: int
    softmax: bool
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def heads(name: str, tokens: jax.Array) -> jax.Array:
            h = nn.Dense(self.width, use_bias=False, kernel_init=self.kernel_init, name=name)(
                tokens
            )
            return h.reshape(*h.shape[:2], self.heads, -1)

        query, key, value = heads("query", x), heads("key", x[:, :-1]), heads("value", x[:, :-1])
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key)
        if self.softmax:
            scores = jax.nn.softmax(scores * query.shape[-1] ** -0.5)
        h = jnp.einsum("nhqk,nkhd->nqhd", scores, value).reshape(*x.shape[:2], self.width)
        return nn.Dense(x.shape[-1], use_bias=False, kernel_init=self.kernel_init, name="out")(h)
