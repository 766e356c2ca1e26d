"""The tabulated map of a deep network against the direct recursion, layer by layer in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk.activations import closed_forms
from ntk.infinite import depth_map

RELU = closed_forms.abrelu(0, 1)
LEAKY = closed_forms.abrelu(0.3, 1)
ERF = closed_forms.erf()
GELU = closed_forms.gelu()


def recursion(dual, W_std, b_std, layers, q, rho):
    """Covariances, NTK and gain by plain loops over float64 arrays, unlike the module's own."""

    @jax.jit
    def layer(q, k, ntk, gain):
        q, k = W_std**2 * q + b_std**2, W_std**2 * k + b_std**2
        ntk = k + W_std**2 * ntk
        k, slope = dual.moments(q, q, k / q)
        return dual.norm(q), k, ntk * slope, W_std**2 * gain * slope

    state = jnp.float64(q), q * rho, jnp.zeros_like(rho), jnp.ones_like(rho)
    for _ in range(layers):
        state = layer(*state)
    q, k, ntk, gain = state
    return float(q), k / q, ntk, gain


RELU_LINE = (RELU, math.sqrt(2), None, None)


@pytest.mark.parametrize(
    ("dual", "W_std", "b_std", "variance", "layers"),
    [
        *[(*RELU_LINE, layers) for layers in (1, 10, 100, 200)],
        (LEAKY, 1.2, None, None, 40),
        (RELU, math.sqrt(2), 0.2, 1.3, 60),
        (ERF, 1.0, 0.3, 0.8, 30),
    ],
)
def test_whole_depth_equals_the_recursion(dual, W_std, b_std, variance, layers, x64):
    ours = depth_map.depth_map(dual, W_std, b_std, layers, variance=variance)
    rho = jnp.concatenate([jnp.linspace(-1, 0.999, 1001), 1 - jnp.geomspace(1e-6, 1e-2, 200)])
    q, *exact = recursion(dual, W_std, b_std or 0.0, layers, variance or 1.0, rho)
    np.testing.assert_allclose(ours.variance, q, rtol=1e-12)
    amplified = 1e-11 * layers  # rounding of a correlation 1e-6 below 1, as an angle
    for dtype, bound in ((jnp.float64, amplified), (jnp.float32, 2e-6)):
        rho_ = rho.astype(dtype)
        if dtype == jnp.float32:
            _, *exact = recursion(
                dual, W_std, b_std or 0.0, layers, variance or 1.0, rho_.astype(float)
            )
        for value, truth in zip(jax.jit(ours.maps)(rho_), exact):
            assert value.dtype == dtype
            assert np.abs(value - truth).max() <= bound * np.abs(truth).max()
        assert ours.error(dtype) <= 3e-7


def test_series_length_hardly_grows_with_depth():
    lengths = []
    for layers in (10, 1000):
        numbers = (math.sqrt(2), 0.0, 1.0, 2.0, 0.0)
        table = depth_map._table(RELU, numbers, layers, 4)
        assert table.error < 2e-6
        lengths.append(len(table.coefficients[0]))
    assert lengths[1] <= 40


def test_homogeneous_networks_scale_with_the_norms(x64):
    """Variances 0.5 and 3: the NTK of unit inputs times sqrt(q1 q2)."""
    q1, q2, rho = 0.5, 3.0, jnp.linspace(-1, 1, 21)
    scale = math.sqrt(q1 * q2)
    k, ntk = scale * rho, jnp.zeros_like(rho)
    v1, v2 = q1, q2
    for _ in range(6):
        v1, v2, k = 2 * v1, 2 * v2, 2 * k
        ntk = k + 2 * ntk
        k, slope = RELU.moments(v1, v2, k / math.sqrt(v1 * v2))
        v1, v2, ntk = RELU.norm(v1), RELU.norm(v2), ntk * slope
    correlation, unit, _ = depth_map.depth_map(RELU, math.sqrt(2), None, 6).maps(rho)
    np.testing.assert_allclose(scale * correlation, k, atol=1e-10)
    np.testing.assert_allclose(scale * unit, ntk, rtol=1e-9)


def test_coincident_points_and_gradients_stay_finite():
    ours = depth_map.depth_map(RELU, math.sqrt(2), None, 100)
    rho = jnp.asarray([1.0, 1 + 1e-7, 1 - 6e-8, -1.0, 0.0])
    correlation, ntk, gain = ours.maps(rho)
    np.testing.assert_allclose([correlation[0], ntk[0], gain[0]], [1, 100, 1], rtol=1e-6)
    assert correlation.max() <= 1
    for i in range(3):
        slope = jax.jit(jax.grad(lambda r, i=i: ours.maps(r)[i].sum()))(rho)
        assert np.isfinite(slope).all()


def test_standard_parametrization_weighs_the_contributions(x64):
    rho = jnp.linspace(-1, 1, 11)
    _, ntk, gain = depth_map.depth_map(
        RELU, 1.5, 0.1, 1, variance=1.0, weight_scale=7.0, bias_scale=3.0
    ).maps(rho)
    k, q = 1.5**2 * rho + 0.01, 1.5**2 + 0.01
    slope = RELU.moments(q, q, k / q)[1]
    np.testing.assert_allclose(ntk, (7 * rho + 3) * slope, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gain, 1.5**2 * slope, rtol=1e-9, atol=1e-9)


def test_chaotic_networks_are_refused_not_wrong():
    ours = depth_map.depth_map(ERF, 3.0, 0.0, 100, variance=1.0)
    assert ours.error(jnp.float32) > 1e-3
    with pytest.raises(ValueError, match="chaotic"):
        ours.maps(jnp.zeros(3))
    assert depth_map.depth_map(ERF, 3.0, 0.0, 5, variance=1.0).error(jnp.float32) < 1e-6


def test_inside_jit_and_traced_settings():
    rho = jnp.linspace(-1, 1, 5)

    def ntk(rho):
        return depth_map.depth_map(GELU, 1.1, 0.1, 7, variance=1.0).maps(rho)[1]

    np.testing.assert_allclose(jax.jit(ntk)(rho), ntk(rho), rtol=1e-6)
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda w: depth_map.depth_map(RELU, w, None, 3).maps(rho))(1.0)


def test_errors():
    with pytest.raises(ValueError, match="depth is 0"):
        depth_map.depth_map(RELU, 1.0, None, 0)
    with pytest.raises(ValueError, match="homogeneous is None"):
        depth_map.depth_map(ERF, 1.0, None, 3)
    with pytest.raises(ValueError, match=r"b_std is 0\.1"):
        depth_map.depth_map(RELU, 1.0, 0.1, 3)
