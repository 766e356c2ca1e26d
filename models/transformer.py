"""Pre-LN Transformers for tokens (N, T) and images (N, H, W, C), as functions of their width.

Keep `heads` fixed and the head dimension grows with the width; write `heads=width // 64` and the
number of heads does.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from models.convnet import check_images
from models.fields import check_fields
from models.mlp import Activation, Layers, Outputs

# Coordinates of order one at every width, which is what a wide residual stream needs; Flax's own
# default shrinks an embedding with its width.
_embedding_init = nn.initializers.normal(stddev=1.0)


class Transformer(nn.Module):
    """Pre-LN causal decoder: logits of the next token at every position.

    Learned positions, no biases but the shifts of the norms, untied readout. Layers are named
    `embed`, `block_0/attention/query`, ..., `block_0/mlp_in`, `block_0/mlp_out`, `block_0` (the
    residual stream after it), `norm`, `readout`.

    Attributes:
        width: size of the residual stream, heads times the head dimension d.
        depth: number of blocks, each one attention branch and one MLP branch.
        heads: attention heads.
        vocabulary: number of tokens, and of logits.
        context: longest sequence.
        mlp_ratio: hidden units of the MLP branch over `width`.
        activation: nonlinearity of the MLP branch.
        attention_scale: factor of the attention logits, "1/sqrt(d)" or "1/d" (the one that stays
            of order one when queries and keys learn features as d grows).
        branch_scale: depth multiplier of every residual branch.

    Raises:
        ValueError: `width` is not a multiple of `heads`; unknown `attention_scale`; tokens that are
            not integers of shape (N, T), or longer than `context`.
    """

    width: int
    depth: int
    heads: int
    vocabulary: int
    context: int
    mlp_ratio: int = 4
    activation: Activation = nn.gelu
    attention_scale: str = "1/sqrt(d)"
    branch_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = ("width", "vocabulary", "context", "mlp_ratio")
        check_fields(
            self,
            sizes={"depth": 0, "heads": 0} | dict.fromkeys(sizes, 1),
            functions=("activation",),
        )
        _check_attention(self.width, self.heads, self.attention_scale)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, *, features: bool = False) -> Outputs:
        """Logits (N, T, vocabulary); with `features`, also each layer's output by name."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens of shape {tokens.shape} and type {tokens.dtype} are not integers (N, T)."
            )
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"sequences of {tokens.shape[1]} tokens are longer than context={self.context}:"
                " cut them, or build the model with a longer context."
            )
        x = nn.Embed(self.vocabulary, self.width, embedding_init=_embedding_init, name="embed")(
            tokens
        )
        x, layers = _trunk(self, x, positions=self.context, causal=True)
        layers["readout"] = outputs = nn.Dense(self.vocabulary, use_bias=False, name="readout")(x)
        return (outputs, layers) if features else outputs


class ViT(nn.Module):
    """Pre-LN vision Transformer (arXiv:2010.11929), averaging its tokens before the readout.

    Each `patch` x `patch` square is one token. There is no class token. Layers are named as in
    `Transformer`; `embed` is the linear map of the patches.

    Attributes:
        width: size of the residual stream, heads times the head dimension d.
        depth: number of blocks.
        outputs: units of the readout.
        heads: attention heads.
        patch: side of a patch, in pixels.
        mlp_ratio: hidden units of the MLP branch over `width`.
        activation: nonlinearity of the MLP branch.
        attention_scale: factor of the attention logits, "1/sqrt(d)" or "1/d".
        branch_scale: depth multiplier of every residual branch.

    Raises:
        ValueError: `width` is not a multiple of `heads`; unknown `attention_scale`; inputs that are
            not (N, H, W, C), or whose sides are not multiples of `patch`.
    """

    width: int
    depth: int
    outputs: int
    heads: int
    patch: int
    mlp_ratio: int = 4
    activation: Activation = nn.gelu
    attention_scale: str = "1/sqrt(d)"
    branch_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = ("width", "outputs", "patch", "mlp_ratio")
        check_fields(
            self,
            sizes={"depth": 0, "heads": 0} | dict.fromkeys(sizes, 1),
            functions=("activation",),
        )
        _check_attention(self.width, self.heads, self.attention_scale)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> Outputs:
        """Outputs (N, outputs); with `features`, also each layer's output by name."""
        check_images(x)
        patches = _patches(x, self.patch)
        x = nn.Dense(self.width, use_bias=False, name="embed")(patches)
        x, layers = _trunk(self, x, positions=patches.shape[1], causal=False)
        readout = nn.Dense(self.outputs, use_bias=False, name="readout")
        layers["readout"] = outputs = readout(x.mean(axis=1))
        return (outputs, layers) if features else outputs


def _trunk(
    model: "Transformer | ViT", x: jax.Array, *, positions: int, causal: bool
) -> tuple[jax.Array, Layers]:
    """Positions, blocks and final norm, as submodules of `model`; also the features on the way."""
    layers = {"embed": x}
    table = nn.Embed(positions, model.width, embedding_init=_embedding_init, name="position")
    x = x + table(jnp.arange(x.shape[1]))[None]
    for l in range(model.depth):
        block = _Block(
            width=model.width,
            heads=model.heads,
            hidden=model.mlp_ratio * model.width,
            activation=model.activation,
            attention_scale=model.attention_scale,
            branch_scale=model.branch_scale,
            causal=causal,
            name=f"block_{l}",
        )
        x, inner = block(x)
        layers |= {f"block_{l}/{name}": h for name, h in inner.items()} | {f"block_{l}": x}
    layers["norm"] = x = nn.LayerNorm(name="norm")(x)
    return x, layers


class _Block(nn.Module):
    width: int
    heads: int
    hidden: int
    activation: Activation
    attention_scale: str
    branch_scale: float
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Layers]:
        attention = _Attention(
            self.width, self.heads, self.attention_scale, self.causal, name="attention"
        )
        h, inner = attention(nn.LayerNorm(name="norm_attention")(x))
        layers = {f"attention/{name}": value for name, value in inner.items()}
        x = x + self.branch_scale * h
        h = nn.Dense(self.hidden, use_bias=False, name="mlp_in")(nn.LayerNorm(name="norm_mlp")(x))
        layers["mlp_in"] = h
        h = nn.Dense(self.width, use_bias=False, name="mlp_out")(self.activation(h))
        layers["mlp_out"] = h
        return x + self.branch_scale * h, layers


class _Attention(nn.Module):
    """Multi-head self-attention of x (N, T, width); axes n, q and k (positions), h, d."""

    width: int
    heads: int
    scale: str
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Layers]:
        d = self.width // self.heads
        query, key, value = (
            nn.DenseGeneral((self.heads, d), use_bias=False, name=name)(x)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key)
        scores = scores * (1 / d if self.scale == "1/d" else d**-0.5)
        if self.causal:
            mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            scores = jnp.where(mask[None, None], scores, -jnp.inf)
        h = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
        h = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=False, name="out")(h)
        return h, {"query": query, "key": key, "value": value, "out": h}


def _patches(x: jax.Array, side: int) -> jax.Array:
    """Images (N, H, W, C) as flat patches (N, T, side * side * C), row by row."""
    n, height, width, channels = x.shape
    if height % side or width % side:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be cut into patches of side"
            f" patch={side}: choose a common divisor of the sides, or crop the images."
        )
    x = x.reshape(n, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, side * side * channels)


def _check_attention(width: int, heads: int, scale: str) -> None:
    if heads < 1 or width % heads:
        raise ValueError(
            f"width={width} is not a multiple of heads={heads}: every head has width / heads units."
        )
    if scale not in ("1/sqrt(d)", "1/d"):
        raise ValueError(f"attention_scale={scale!r} is not one of '1/sqrt(d)', '1/d'.")
