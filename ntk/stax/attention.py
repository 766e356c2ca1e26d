"""Self-attention over all pixels, with positional embeddings.

With weights in the NTK parametrization, for every head h::

    y = W_out concat_h[zeta(Q_h K_h^T / n^a) V_h] + b,    a = 1 and Q_h = K_h, or a = 1/2

and what it does to a kernel in `ntk.infinite.attention`.

Source: Hron et al. (2020), "Infinite attention".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk.infinite import attention
from ntk.infinite.evaluate import Need
from ntk.infinite.kernel import Array, Kernel
from ntk.stax.layers import Layer, check_counts, check_scales, layer
from ntk.types import PRNGKey, Shape

MECHANISMS = {
    "SOFTMAX": attention.softmax,
    "IDENTITY": lambda scores, axes: scores,
    "ABS": lambda scores, axes: jnp.abs(scores),
    "RELU": lambda scores, axes: jnp.maximum(scores, 0),
}
"""(scores, axes attended to) -> attention weights."""

EMBEDDINGS = ("NONE", "SUM", "CONCAT")


def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: float = 1.0,
    W_value_std: float = 1.0,
    W_query_std: float = 1.0,
    W_out_std: float = 1.0,
    b_std: float | None = None,
    attention_mechanism: str = "SOFTMAX",
    pos_emb_type: str = "NONE",
    pos_emb_p_norm: float = 2,
    pos_emb_decay_fn: Callable[[Array], Array] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: float = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Multi-head self-attention between all pixels of an input, in the NTK parametrization.

    Args:
        n_chan_out: channels of the output.
        n_chan_key: channels of keys and queries of one head.
        n_chan_val: channels of values of one head.
        n_heads: heads; infinitely many in the kernel.
        linear_scaling: scores divided by n_chan_key and queries equal to keys, so that the attention weights become
            deterministic; else by its square root, whose kernel is known for "IDENTITY" alone.
        W_key_std: standard deviation of the weights of the keys.
        W_value_std: of the values.
        W_query_std: of the queries.
        W_out_std: of the output.
        b_std: standard deviation of the biases of the output; None for no bias.
        attention_mechanism: "SOFTMAX", "IDENTITY", "ABS" or "RELU" of the scores.
        pos_emb_type: "NONE", or random positional embeddings added to ("SUM") or put beside ("CONCAT") the input.
        pos_emb_p_norm: p of the distance between pixels; the decay acts on its p-th power.
        pos_emb_decay_fn: covariance of the embeddings as a function of that; None: independent embeddings.
        n_chan_pos_emb: channels of the embeddings for "CONCAT"; None for as many as the input has.
        W_pos_emb_std: standard deviation of the embeddings.
        val_pos_emb: whether values see the embeddings too.
        batch_axis: position of the batch.
        channel_axis: position of the channels.

    Returns:
        (init_fn, apply_fn, kernel_fn).

    Raises:
        ValueError: unknown mechanism or embedding; sizes that are not positive, scales not finite.

    Source: Hron et al. (2020), "Infinite attention: NNGP and NTK for deep attention networks".
    """
    check_counts(
        n_chan_out=n_chan_out, n_chan_key=n_chan_key, n_chan_val=n_chan_val, n_heads=n_heads
    )
    check_scales(
        W_key_std=W_key_std,
        W_value_std=W_value_std,
        W_query_std=W_query_std,
        W_out_std=W_out_std,
        b_std=b_std,
        W_pos_emb_std=W_pos_emb_std,
    )
    if attention_mechanism not in MECHANISMS:
        raise ValueError(
            f"attention_mechanism is {attention_mechanism!r}; it must be one of {', '.join(MECHANISMS)}"
        )
    if pos_emb_type not in EMBEDDINGS:
        raise ValueError(
            f"pos_emb_type is {pos_emb_type!r}; it must be one of {', '.join(EMBEDDINGS)}"
        )
    score = MECHANISMS[attention_mechanism]
    hidden = attention.HIDDEN if attention_mechanism == "SOFTMAX" else 0
    qk_std, ov_std = W_query_std * W_key_std, W_out_std * W_value_std
    add, beside = pos_emb_type == "SUM", pos_emb_type == "CONCAT"

    def shape(input_shape: Shape) -> Shape:
        at = channel_axis % len(input_shape)
        return (*input_shape[:at], n_chan_out, *input_shape[at + 1 :])

    def extra(width: int) -> int:
        return (width if n_chan_pos_emb is None else n_chan_pos_emb) if beside else 0

    def params(key: PRNGKey, input_shape: Shape) -> tuple:
        keys = jax.random.split(key, 6)
        width = input_shape[channel_axis]
        seen = width + extra(width)
        queries = (
            None if linear_scaling else jax.random.normal(keys[0], (n_heads, seen, n_chan_key))
        )
        bias_shape = [1] * len(input_shape)
        bias_shape[channel_axis] = n_chan_out
        position_shape = list(input_shape)
        position_shape[batch_axis] = 1
        position_shape[channel_axis] = extra(width) if beside else width
        return (
            queries,
            jax.random.normal(keys[1], (n_heads, seen, n_chan_key)),
            jax.random.normal(keys[2], (n_heads, seen if val_pos_emb else width, n_chan_val)),
            jax.random.normal(keys[3], (n_chan_val * n_heads, n_chan_out)),
            None if b_std is None else jax.random.normal(keys[4], bias_shape),
            None if pos_emb_type == "NONE" else jax.random.normal(keys[5], position_shape),
        )

    def positions(embedding: Array, spatial: tuple[int, ...], mask: Array | None) -> Array:
        """Embeddings (1, P, C) with the covariance of the decay, zero where hidden."""
        embedding = flat(embedding)
        if pos_emb_decay_fn is not None:
            factor = jnp.linalg.cholesky(
                covariance(spatial, pos_emb_p_norm, pos_emb_decay_fn, False)
            )
            # L z of covariance L L^T over pixels, each channel drawn by itself.
            embedding = factor.astype(embedding.dtype)[None] @ embedding
        if mask is not None:
            embedding = jnp.where(mask[:, :, None], 0, embedding)
        return W_pos_emb_std * embedding

    def flat(x: Array) -> Array:
        x = jnp.moveaxis(x, (batch_axis, channel_axis), (0, -1))
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def apply(parameters: tuple, inputs: Array, mask: Array | None = None, **_: Any) -> Array:
        queries, keys, values, out, b, embedding = parameters
        spatial = jnp.moveaxis(inputs, (batch_axis, channel_axis), (0, -1)).shape[1:-1]
        raw = seen = flat(inputs)
        if mask is not None:
            mask = jnp.moveaxis(
                jnp.all(mask, channel_axis, keepdims=True), (batch_axis, channel_axis), (0, -1)
            )
            mask = jnp.broadcast_to(mask, (raw.shape[0], *spatial, 1)).reshape(raw.shape[0], -1)
        if embedding is not None:
            position = positions(embedding, spatial, mask)
            position = jnp.broadcast_to(position, (raw.shape[0], *position.shape[1:]))
            seen = raw + position if add else jnp.concatenate([raw, position], -1)
        source = seen if val_pos_emb else raw
        key = jnp.einsum("npc,hck->nhpk", seen, keys)
        query = key if linear_scaling else jnp.einsum("npc,hck->nhpk", seen, queries)
        power = 1 if linear_scaling else 0.5
        scores = jnp.einsum("nhpk,nhqk->nhpq", query, key)
        # Weights of queries and keys are std channels^(-1/2) times normals; the power is of the number of key channels.
        scores = scores * (qk_std / (seen.shape[-1] * n_chan_key**power))
        if mask is not None:
            scores = jnp.where(mask[:, None, None], hidden, scores)
        heads = score(scores, (3,)) @ jnp.einsum("npc,hcv->nhpv", source, values)
        heads = jnp.moveaxis(heads, 1, -1).reshape(*raw.shape[:2], -1)
        y = heads @ out * (ov_std / math.sqrt(n_chan_val * n_heads * source.shape[-1]))
        y = jnp.moveaxis(
            y.reshape(raw.shape[0], *spatial, n_chan_out), (0, -1), (batch_axis, channel_axis)
        )
        return y if b is None else y + b_std * b

    def embedding_of(kernel: Kernel) -> attention.Embedding | None:
        if pos_emb_type == "NONE":
            return None
        width = kernel.shape1[channel_axis]
        # Side by side, the covariance is the mean over all channels: each part counts by its number of them.
        share = width / (width + extra(width)) if beside else 1.0
        other = 1 - share if beside else 1.0
        sizes = kernel.var1.shape[1:]
        return attention.Embedding(
            covariance(sizes, pos_emb_p_norm, pos_emb_decay_fn, True),
            share,
            other * W_pos_emb_std**2,
            val_pos_emb,
        )

    def rule(kernel: Kernel, **_: Any) -> Kernel:
        if kernel.within1 is None:
            raise ValueError(
                f"self-attention needs inputs with pixels, and covariances of all pixel pairs; got activations of "
                f"shape {kernel.shape1}, with diagonal_spatial={kernel.diagonal_spatial}"
            )
        if linear_scaling:
            return attention.attend(
                kernel,
                score,
                qk_std,
                ov_std,
                b_std,
                embedding=embedding_of(kernel),
                hidden=hidden,
            )
        if attention_mechanism != "IDENTITY":
            raise ValueError(
                f"attention with linear_scaling=False and {attention_mechanism} has no known kernel; "
                "use linear_scaling=True or attention_mechanism='IDENTITY'"
            )
        return attention.attend_identity(
            kernel, qk_std * ov_std, b_std, embedding=embedding_of(kernel)
        )

    spec = (
        "GlobalSelfAttention",
        *(n_chan_out, linear_scaling, W_key_std, W_value_std, W_query_std, W_out_std, b_std),
        *(attention_mechanism, pos_emb_type, pos_emb_p_norm, pos_emb_decay_fn, n_chan_pos_emb),
        *(W_pos_emb_std, val_pos_emb, batch_axis, channel_axis),
    )
    return layer(
        apply,
        rule,
        spec,
        shape=shape,
        params=params,
        needs=lambda out: Need(True, 2, out.whole),
        mask=lambda mask, _: jnp.all(mask, channel_axis, keepdims=True),
        axes=(batch_axis, channel_axis),
    )


def covariance(
    sizes: tuple[int, ...], p_norm: float, decay: Callable[[Array], Array] | None, zipped: bool
) -> Array:
    """Covariance of positional embeddings between pixels.

    Args:
        sizes: spatial shape, (H, W).
        p_norm: p of the distance.
        decay: covariance as a function of sum |i - j|^p; None for the identity.
        zipped: (H, H, W, W), else (H W, H W).
    """
    points = np.array(list(itertools.product(*map(range, sizes))), float).reshape(-1, len(sizes))
    distance = np.sum(np.abs(points[:, None] - points[None]) ** p_norm, -1)
    cov = jnp.asarray(distance == 0, float) if decay is None else decay(jnp.asarray(distance))
    if not zipped:
        return cov
    order = [axis for i in range(len(sizes)) for axis in (i, len(sizes) + i)]
    return jnp.transpose(cov.reshape(*sizes, *sizes), order)
