"""What self-attention over all pixels does to a `Kernel` in the limit of infinitely many heads and channels.

With weights G = score(std K) of each sample's own covariances K of pixel pairs, queries equal to keys, and N the NNGP
and T the NTK between two samples, `attend` is::

    N' = s^2 G_1 N G_2^T + b^2,    T' = s^2 G_1 (T + 2 N) G_2^T + b^2

Source: Hron, Bahri, Sohl-Dickstein & Novak (2020), "Infinite attention", section 3.2 and theorem 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk.infinite import kernel as kernels
from ntk.infinite.kernel import Array, Kernel

HIDDEN = -1e20
"""Score of a hidden pixel under a softmax."""


class Embedding(NamedTuple):
    """Positional embeddings in the infinite-width limit.

    Attributes:
        covariance: between pixels, (H, H, W, W).
        input_weight: share of the inputs in the covariance of what queries and keys see.
        weight: share of the embeddings.
        values: whether values see the embeddings too.
    """

    covariance: Array
    input_weight: float
    weight: float
    values: bool


def attend(
    kernel: Kernel,
    score: Callable[[Array, tuple[int, ...]], Array],
    qk_std: float,
    ov_std: float,
    b_std: float | None = None,
    *,
    embedding: Embedding | None = None,
    hidden: float = 0.0,
) -> Kernel:
    """Moments after attention whose queries equal its keys (scores scaled by 1 / channels): fixed weights.

    Args:
        kernel: moments of its input, with `within` moments.
        score: (scores, axes of the pixels attended to) -> attention weights.
        qk_std: product of the standard deviations of query and key weights.
        ov_std: product of the standard deviations of output and value weights.
        b_std: standard deviation of the biases, or None.
        embedding: positional embeddings, or None.
        hidden: score of a pixel that is hidden.

    Returns:
        The moments of a Gaussian.

    Source: Hron et al. (2020), "Infinite attention", section 3.2 and appendix B.
    """
    pos1, pos12, pos2 = _embeddings(kernel, embedding)
    raw1, raw2 = kernel.within
    seen1, seen2 = _mix(raw1, pos1, embedding), _mix(raw2, pos2, embedding)
    weight1 = _weights(kernel, seen1, kernel.mask1, score, qk_std, hidden)
    weight2 = _weights(kernel, seen2, kernel.mask2, score, qk_std, hidden)
    values = embedding is not None and embedding.values
    nngp, ntk = kernel.nngp, kernel.ntk
    if values:
        nngp = _mix(nngp, pos12, embedding)
        ntk = None if ntk is None else _mix(ntk, pos12, embedding)
    bias = 0.0 if b_std is None else b_std**2
    within1 = ov_std**2 * _weigh(seen1 if values else raw1, weight1, weight1) + bias
    within2 = ov_std**2 * _weigh(seen2 if values else raw2, weight2, weight2) + bias
    mean = ov_std**2 * _weigh(nngp, weight1, weight2)
    if ntk is not None:
        # Value and output weights are trained, and each adds what it multiplies: G_1 N G_2^T twice. Scores are
        # constants in the limit, so that queries and keys add nothing.
        ntk = ov_std**2 * (_weigh(ntk, weight1, weight2) if ntk.ndim else ntk) + bias + 2 * mean
    return _gaussian(kernel, mean + bias, ntk, within1, within2)


def attend_identity(
    kernel: Kernel, std: float, b_std: float | None = None, *, embedding: Embedding | None = None
) -> Kernel:
    """Moments after attention with independent queries and keys (scores scaled by 1 / sqrt(channels)) and no softmax.

    Args:
        kernel: moments of its input, with `within` moments.
        std: product of the standard deviations of query, key, output and value weights.
        b_std: standard deviation of the biases, or None.
        embedding: positional embeddings, or None.

    Source: Hron et al. (2020), theorem 3.
    """
    pos1, pos12, pos2 = _embeddings(kernel, embedding)
    values = embedding is None or embedding.values

    def inner(seen: Array, raw: Array, lead: int) -> Array:
        return jnp.sum(
            seen * (seen if values else raw), tuple(range(lead, seen.ndim)), keepdims=True
        )

    raw1, raw2 = kernel.within
    seen1, seen2 = _mix(raw1, pos1, embedding), _mix(raw2, pos2, embedding)
    seen = _mix(kernel.nngp, pos12, embedding)
    bias = 0.0 if b_std is None else b_std**2
    # Scores S of independent queries and keys have E S(p, q) S'(p', q') = N(p, p') N(q, q'), and values N(q, q'):
    # N'(p, p') = N(p, p') sum_qq' N(q, q')^2.
    dot = inner(seen, kernel.nngp, 2)
    ntk = kernel.ntk
    if ntk is not None:
        axes = tuple(range(2, seen.ndim))
        mixed = _mix(ntk, pos12, embedding)
        if values:
            cross = 2 * jnp.sum(seen * mixed, axes, keepdims=True)
        else:
            cross = jnp.sum(seen * ntk, axes, keepdims=True) + jnp.sum(
                kernel.nngp * mixed, axes, keepdims=True
            )
        # The input is read by queries at p (dot T) and by keys and values at q (cross N); 4 N dot are query, key,
        # value and output weights.
        ntk = std**2 * (cross * seen + dot * (mixed + 4 * seen)) + bias
    within1 = std**2 * inner(seen1, raw1, 1) * seen1 + bias
    within2 = std**2 * inner(seen2, raw2, 1) * seen2 + bias
    return _gaussian(kernel, std**2 * dot * seen + bias, ntk, within1, within2)


def _gaussian(
    kernel: Kernel, nngp: Array, ntk: Array | None, within1: Array, within2: Array
) -> Kernel:
    out = kernel.replace(
        nngp=nngp,
        var1=kernels.pixel_diagonal(within1, 1),
        var2=kernels.pixel_diagonal(within2, 1),
        within1=within1,
        within2=within2,
        is_gaussian=True,
        is_input=False,
    )
    return out.replace(ntk=ntk)


def _mix(x: Array, position: Array | None, embedding: Embedding | None) -> Array:
    if embedding is None or position is None:
        return x
    return embedding.input_weight * x + embedding.weight * position


def _embeddings(
    kernel: Kernel, embedding: Embedding | None
) -> tuple[Array | None, Array | None, Array | None]:
    """Covariances of the embeddings within and between the batches, zero where a pixel is hidden."""
    if embedding is None:
        return None, None, None
    cov = embedding.covariance.astype(kernel.correlation.dtype)
    seen1, seen2 = _seen(kernel, kernel.mask1), _seen(kernel, kernel.mask2)
    if seen1 is None and seen2 is None:
        return cov[None], cov[None, None], cov[None]
    ones = jnp.ones((1, *kernel.var1.shape[1:]), cov.dtype)
    seen1 = ones if seen1 is None else seen1.astype(cov.dtype)
    seen2 = ones if seen2 is None else seen2.astype(cov.dtype)
    a, b = kernels.views_within(seen1)
    c, d = kernels.views_within(seen2)
    e, f = kernels.views(seen1, seen2, False)
    return cov[None] * (a * b), cov[None, None] * (e * f), cov[None] * (c * d)


def _seen(kernel: Kernel, mask: Array | None) -> Array | None:
    if mask is None:
        return None
    hidden = kernels.pixel_mask(kernel, jnp.all(mask, kernel.channel_axis, keepdims=True))
    return ~jnp.broadcast_to(hidden, (hidden.shape[0], *kernel.var1.shape[1:]))


def _weights(
    kernel: Kernel,
    cov: Array,
    mask: Array | None,
    score: Callable[[Array, tuple[int, ...]], Array],
    qk_std: float,
    hidden: float,
) -> Array:
    seen = _seen(kernel, mask)
    scores = qk_std * cov
    if seen is not None:
        # Hidden pixels are not attended to, but attend like others.
        key = kernels.views_within(seen)[1]
        scores = jnp.where(key, scores, hidden)
    return score(scores, tuple(range(2, cov.ndim, 2)))


def _weigh(x: Array, weight1: Array, weight2: Array) -> Array:
    """G1 x G2^T over pixel pairs; (N1, N2, H, H, W, W), or (N, H, H, W, W) with the same G."""
    pairs = (weight1.ndim - 1) // 2
    lead = x.ndim - 2 * pairs
    out1, in1, out2, in2 = (list(range(10 + 10 * i, 10 + 10 * i + pairs)) for i in range(4))

    def zipped(a: list[int], b: list[int]) -> list[int]:
        return [axis for pair in zip(a, b) for axis in pair]

    samples = [0, 1] if lead == 2 else [0, 0]
    batch = samples[:lead]
    return jnp.einsum(
        weight1,
        [samples[0], *zipped(out1, in1)],
        x,
        [*batch, *zipped(in1, in2)],
        weight2,
        [samples[1], *zipped(out2, in2)],
        [*batch, *zipped(out1, out2)],
        optimize=True,
    )


def softmax(scores: Array, axes: tuple[int, ...]) -> Array:
    """Softmax over all pixels attended to."""
    return jax.nn.softmax(scores, axes)
