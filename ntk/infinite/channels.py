"""What operations on channels do to a `Kernel` in the infinite-width limit; each is derived once, for every front end.

Operations on pixels are in `ntk.infinite.pixels`.

With N the NNGP, T the NTK, and W_std, b_std the deviations of an affine map in the NTK parametrization::

    affine         N' = W_std^2 N + b_std^2      T' = N' + W_std^2 T
    activation     N' = E[f(u) f(v)]             T' = T E[f'(u) f'(v)],    (u, v) Gaussian of covariance N
    sum            N' = N_1 + N_2                T' = T_1 + T_2
    product        N' = N_1 N_2                  T' = T_1 N_2 + N_1 T_2

Source: Jacot et al. (2018), theorem 1; Daniely, Frostig & Singer (2016).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ntk.activations.closed_forms import Dual
from ntk.activations.elementary import root
from ntk.infinite import kernel as kernels
from ntk.infinite.kernel import Array, Kernel


def elementwise(kernel: Kernel, dual: Dual) -> Kernel:
    """Moments after a nonlinearity f(u), with u the Gaussian input.

    Args:
        kernel: moments of u; must be Gaussian.
        dual: dual activation of f.

    Returns:
        E[f(u)f(v)], and the NTK multiplied by E[f'(u)f'(v)].

    Raises:
        ValueError: the input is not Gaussian.

    Source: Daniely, Frostig & Singer (2016), section 4; Jacot et al. (2018), theorem 1.
    """
    if not kernel.is_gaussian:
        raise ValueError(
            "the input of a nonlinearity must be Gaussian; put a Dense, Conv or other layer with random weights "
            "before it (two nonlinearities cannot follow one another, nor can one act on the data)"
        )
    norm1, norm2 = _norms(dual, kernel.var1, kernel.var2)
    q = kernels.views(kernel.var1, kernel.var2, kernel.diagonal_spatial)
    n = kernels.views(norm1, norm2, kernel.diagonal_spatial)
    correlation, slope = _dual(dual, kernel.correlation, *q, *n)
    # Before the first trainable layer the NTK is the number zero, which slopes leave as it is.
    ntk = kernel.ntk
    if ntk is not None and ntk.ndim:
        ntk = ntk * slope
    within = []
    # Within a sample covariances are carried, not correlations: a pixel's variance is needed beside them.
    for cov, var, norm in (
        (kernel.within1, kernel.var1, norm1),
        (kernel.within2, kernel.var2, norm2),
    ):
        if cov is not None:
            q, n = kernels.views_within(var), kernels.views_within(norm)
            rho = cov * (kernels.inverse_sqrt(q[0]) * kernels.inverse_sqrt(q[1]))
            cov = _dual(dual, rho, *q, *n)[0] * (root(n[0]) * root(n[1]))
        within.append(cov)
    return kernel.replace(
        correlation=correlation,
        var1=norm1,
        var2=norm2,
        ntk=ntk,
        within1=within[0],
        within2=within[1],
        is_gaussian=False,
    )


def _norms(dual: Dual, q1: Array, q2: Array) -> list[Array]:
    """E f(u)^2 at variances q1 and q2, by one program for both."""
    if dual.homogeneous is not None:
        # f(c z) = c^d f(z) for c > 0: E f(u)^2 = q^d E f(z)^2.
        one = dual.norm(jnp.ones((), q1.dtype))
        return [one * q**dual.homogeneous for q in (q1, q2)]
    both = dual.norm(jnp.concatenate([q1.ravel(), q2.ravel()]))
    return [both[: q1.size].reshape(q1.shape), both[q1.size :].reshape(q2.shape)]


def _dual(
    dual: Dual, rho: Array, q1: Array, q2: Array, n1: Array, n2: Array
) -> tuple[Array, Array]:
    """Correlation of f(u), f(v), and E[f'(u)f'(v)]."""
    rho = snap(rho)
    if dual.homogeneous is None:
        k, slope = dual.moments(q1, q2, rho)
        return k * (kernels.inverse_sqrt(n1) * kernels.inverse_sqrt(n2)), slope
    # For f of degree d the variances cancel in the correlation; f' is of degree d - 1.
    one = jnp.ones((), rho.dtype)
    k, slope = dual.moments(one, one, rho)
    power = (dual.homogeneous - 1) / 2
    if power > 0:  # a homogeneous function of degree 0 has derivative zero almost everywhere
        slope = slope * (q1**power * q2**power)
    norm = dual.norm(one)
    return k / jnp.where(norm > 0, norm, 1), slope  # of the zero function every moment is 0


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def snap(rho: Array, width: int = 0) -> Array:
    """Clips to [-1, 1], and rounds up to 1 what is within rounding of it, so that coincident inputs stay so.

    Derivatives are those of rho: at coincident points the second ones do not vanish.

    Args:
        rho: correlations.
        width: terms of the inner product that they come from; its rounding grows with their number.
    """
    # Rounding errors of `width` terms add up like a random walk.
    top = 1 - float((4 + width**0.5 / 4) * jnp.finfo(rho.dtype).eps)
    return jnp.where(rho > top, 1, jnp.maximum(rho, -1))


@snap.defjvp
def _snap_jvp(width: int, primals: tuple, tangents: tuple) -> tuple:
    return snap(*primals, width), tangents[0]


def affine(
    kernel: Kernel, W_std: float = 1.0, b_std: float | None = None, *, fan_in: float | None = None
) -> Kernel:
    """Moments after a random affine map of the channels, the same at every pixel: W_std^2 K + b_std^2.

    Args:
        kernel: moments of its input.
        W_std: standard deviation of the weights times the square root of the fan-in.
        b_std: standard deviation of the biases; None for no bias.
        fan_in: None in the NTK parametrization; in the standard one, the channels of the narrowest network.

    Returns:
        The moments of a Gaussian. NTK <- W_std^2 NTK + W_std^2 K + b_std^2, or, with fan_in,
        W_std^2 NTK + fan_in K + 1 (without the 1 if there is no bias).

    Source: Jacot et al. (2018), theorem 1; Sohl-Dickstein et al. (2020), equation 10.
    """
    out = gaussian(
        kernel, kernel.correlation, kernel.var1, kernel.var2, W_std, b_std, normalised=True
    )
    if kernel.ntk is None:
        return out
    return out.replace(ntk=trained(out, kernel.nngp, kernel.ntk, W_std, b_std, fan_in))


def gaussian(
    kernel: Kernel,
    k: Array,
    var1: Array,
    var2: Array,
    W_std: float,
    b_std: float | None,
    *,
    normalised: bool = False,
) -> Kernel:
    """The moments W_std^2 k + b_std^2 of an affine map, without its NTK.

    Args:
        kernel: what is not a moment is taken from it; its `within` moments have been mapped like k.
        k: second moments of pixel pairs, or with `normalised` their correlations.
        var1: second moments of each pixel, shaped (N1, *S).
        var2: the same, (N2, *S).
        W_std: standard deviation of the weights times the square root of the fan-in.
        b_std: standard deviation of the biases, or None.
        normalised: whether k is divided by the root of its variances.
    """
    # Normalised, rho' = u1 u2 rho + v1 v2 with u = W_std sqrt(var / var') and v = b_std / sqrt(var'), u^2 + v^2 = 1: no
    # covariance is formed, so that samples which coincide keep the correlation 1 up to rounding.
    bias = 0.0 if b_std is None else b_std
    new, scales, shifts = [], [], []
    for var in (var1, var2):
        out = W_std**2 * var + bias**2
        inverse = kernels.inverse_sqrt(out)
        new.append(out)
        scales.append(W_std * inverse * (root(var) if normalised else 1))
        shifts.append(bias * inverse)
    if not (normalised and b_std is None):  # a map without bias keeps every correlation
        one, two = kernels.views(scales[0], scales[1], kernel.diagonal_spatial)
        k = k * (one * two)
        if b_std is not None:
            one, two = kernels.views(shifts[0], shifts[1], kernel.diagonal_spatial)
            k = k + one * two
    return kernel.replace(
        correlation=k,
        var1=new[0],
        var2=new[1],
        within1=None if kernel.within1 is None else W_std**2 * kernel.within1 + bias**2,
        within2=None if kernel.within2 is None else W_std**2 * kernel.within2 + bias**2,
        is_gaussian=True,
        is_input=False,
    )


def trained(
    out: Kernel, nngp: Array, ntk: Array, W_std: float, b_std: float | None, fan_in: float | None
) -> Array:
    """NTK after an affine map with trained weights: the part of the layers below, plus its own (see `affine`)."""
    # T' = W_std^2 T + own. NTK parametrization: a weight is W_std fan_in^-1/2 w with w trained, and its own part is the
    # new NNGP. Standard: the weights are trained as they stand, with derivatives x_i, whose squares sum up to fan_in K.
    below = W_std**2 * ntk
    if fan_in is None:
        return out.nngp + below
    own = fan_in * nngp
    return own + below if b_std is None else own + below + 1


def add(kernels_in: Sequence[Kernel]) -> Kernel:
    """Moments of a sum of independent mean-zero activations: every moment adds.

    Raises:
        ValueError: shapes differ, or an input is not a mean-zero Gaussian.
    """
    first = _same_shapes(kernels_in, "FanInSum")
    if len(kernels_in) == 1:
        return first
    if not all(k.is_gaussian for k in kernels_in):
        raise ValueError(
            "FanInSum adds independent mean-zero Gaussians: end each branch with a layer of random weights "
            "(is_gaussian of the branches: " + str([k.is_gaussian for k in kernels_in]) + ")"
        )
    return _combined(kernels_in, functools.partial(functools.reduce, operator.add))


def multiply(kernels_in: Sequence[Kernel]) -> Kernel:
    """Moments of a product of independent activations: second moments multiply, the NTK by the product rule.

    Raises:
        ValueError: shapes differ.
    """
    first = _same_shapes(kernels_in, "FanInProd")
    out = _combined(kernels_in, functools.partial(functools.reduce, operator.mul))
    # d (f g) = g df + f dg, and the factors are independent: E f f' E g g' at every step of the product.
    ntk: Array | None = None
    tangents = [k.ntk for k in kernels_in if k.ntk is not None]
    if len(tangents) == len(kernels_in):
        product, ntk = first.nngp, tangents[0]
        for k, tangent in zip(kernels_in[1:], tangents[1:]):
            ntk = ntk * k.nngp + product * tangent
            product = product * k.nngp
    return out.replace(ntk=ntk, is_gaussian=len(kernels_in) == 1 and first.is_gaussian)


def concatenate_channels(kernels_in: Sequence[Kernel]) -> Kernel:
    """Moments of channels side by side: the average, weighted by the widths.

    Raises:
        ValueError: shapes differ in another axis than the channels.
    """
    widths = [k.shape1[k.channel_axis] for k in kernels_in]
    if all(width == widths[0] for width in widths):
        widths = [1] * len(widths)  # also where the width is unknown, as -1

    def mean(moments: Sequence[Array]) -> Array:
        weighted = (w * m for w, m in zip(widths, moments))
        return functools.reduce(operator.add, weighted) / sum(widths)

    return _combined(kernels_in, mean).replace(is_gaussian=False)


def _same_shapes(kernels_in: Sequence[Kernel], name: str) -> Kernel:
    first = kernels_in[0]
    if any(k.shape1 != first.shape1 or k.shape2 != first.shape2 for k in kernels_in):
        raise ValueError(
            f"{name} needs inputs of one shape, and got {[k.shape1 for k in kernels_in]}; "
            "give the last layer of every branch the same number of channels"
        )
    return first


def _combined(kernels_in: Sequence[Kernel], reduce: Callable[[Sequence[Array]], Array]) -> Kernel:
    """A kernel whose unnormalised moments are `reduce` of the lists of the inputs' moments."""
    out = kernels.mapped(lambda *xs, **_: reduce(xs), *kernels_in)
    return out.replace(mask1=None, mask2=None)


def scale(kernel: Kernel, scale1: Array | float, scale2: Array | float) -> Kernel:
    """Moments after multiplying each sample's activations by a positive number: correlations stay.

    Args:
        kernel: moments of the activations.
        scale1: factors of the first batch, a scalar or (N1, *S) with sizes or ones.
        scale2: the same of the second batch.
    """
    one = jnp.broadcast_to(scale1, kernel.var1.shape)
    two = jnp.broadcast_to(scale2, kernel.var2.shape)
    left, right = kernels.views(one, two, kernel.diagonal_spatial)
    within = []
    for cov, factor in ((kernel.within1, one), (kernel.within2, two)):
        if cov is not None:
            a, b = kernels.views_within(factor)
            cov = cov * (a * b)
        within.append(cov)
    ntk = kernel.ntk
    return kernel.replace(
        var1=kernel.var1 * one**2,
        var2=kernel.var2 * two**2,
        ntk=ntk if ntk is None or ntk.ndim == 0 else ntk * (left * right),
        within1=within[0],
        within2=within[1],
    )


def normalise(kernel: Kernel, axes: tuple[int, ...] = (), eps: float = 1e-12) -> Kernel:
    """Moments after layer normalisation over the channels, and over spatial axes too if given.

    Args:
        kernel: moments of a mean-zero Gaussian.
        axes: spatial axes (0 for the first) that are normalised together with the channels.
        eps: added to the variance.

    Raises:
        ValueError: the input is not Gaussian.
    """
    if not kernel.is_gaussian:
        raise ValueError(
            "LayerNorm needs Gaussian activations: put a layer with random weights before it"
        )
    # Over infinitely many channels the mean is zero and the mean square the variance: a norm divides by numbers, which
    # scale the moments and leave correlations.
    factors = []
    for var, mask in ((kernel.var1, kernel.mask1), (kernel.var2, kernel.mask2)):
        over = tuple(1 + axis for axis in axes)
        if mask is None:
            mean = jnp.mean(eps + var, over, keepdims=True)
        else:
            seen = ~jnp.broadcast_to(kernels.pixel_mask(kernel, mask), var.shape)
            count = jnp.maximum(jnp.sum(seen, over, keepdims=True), 1)
            mean = jnp.sum(jnp.where(seen, eps + var, 0), over, keepdims=True) / count
            # Where all pixels are hidden, and variances are zero whatever divides them.
            mean = jnp.where(mean > 0, mean, 1)
        factors.append(1 / jnp.sqrt(mean))
    return scale(kernel, *factors)


def drop(kernel: Kernel, keep: float) -> Kernel:
    """Moments after dropout with independent noise for each entry: variances grow by 1 / keep.

    Covariances between different samples or pixels stay. Where both batches are the same, an input shares its
    noise with itself.

    Args:
        kernel: moments of the activations; not of the data.
        keep: probability of keeping an entry, in (0, 1].

    Raises:
        ValueError: applied to the data.
    """
    if kernel.is_input:
        raise ValueError(
            "Dropout cannot be applied to the data: put a layer with random weights before it"
        )
    # E (m / keep)^2 = 1 / keep for a mask m of mean keep, and E m m' / keep^2 = 1 for independent masks.
    factor = 1 / keep
    nngp, ntk = kernel.nngp, kernel.ntk
    if kernel.coincident is not None:
        same = kernels.same_entry(kernel)
        nngp = jnp.where(same, factor * nngp, nngp)
        ntk = None if ntk is None else jnp.where(same, factor * ntk, ntk)
    within = []
    for cov in (kernel.within1, kernel.within2):
        if cov is not None:
            cov = jnp.where(kernels.same_pixel(cov.shape[1:])[None], factor * cov, cov)
        within.append(cov)
    out = kernel.replace(
        nngp=nngp, var1=factor * kernel.var1, var2=factor * kernel.var2, is_gaussian=False
    )
    return out.replace(ntk=ntk, within1=within[0], within2=within[1])


def hide(kernel: Kernel, mask1: Array | None, mask2: Array | None) -> Kernel:
    """Moments with hidden entries set to zero.

    Args:
        kernel: moments of the activations.
        mask1: True where hidden; broadcasts against `shape1`, with one channel. None: nothing is hidden.
        mask2: the same of the second batch.
    """
    kernel = kernel.replace(mask1=mask1, mask2=mask2)
    if mask1 is None and mask2 is None:
        return kernel
    factors = []
    for mask, var in ((mask1, kernel.var1), (mask2, kernel.var2)):
        factors.append(
            jnp.ones(var.shape, var.dtype)
            if mask is None
            else jnp.broadcast_to(~kernels.pixel_mask(kernel, mask), var.shape).astype(var.dtype)
        )
    # A zero has no direction: its correlation is set, too, which `scale` leaves alone.
    out = scale(kernel, *factors)
    one, two = kernels.views(factors[0], factors[1], kernel.diagonal_spatial)
    return out.replace(correlation=kernel.correlation * (one * two))
