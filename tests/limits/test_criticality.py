"""Criticality of any activation: closed forms, roots by a second road, and the learning rates that follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special

from limits import quadrature
from limits.criticality import criticality, learning_rates, residual_nu, susceptibilities
from limits.finite_width import vertices
from ntk.activations import closed_forms


def leaky(z):
    return jnp.where(z > 0, z, 0.1 * z)


def identity(z):
    return z


@pytest.mark.parametrize(
    ("activation", "C_W", "nu"),
    [(jax.nn.relu, 2.0, 5.0), (leaky, 2 / 1.01, 3 * 0.50005 / 0.505**2 - 1), (identity, 1.0, 2.0)],
)
def test_piecewise_linear_functions_are_critical_at_any_variance(activation, C_W, nu):
    found = criticality(activation)
    assert found.kind == "scale invariant"
    assert (found.C_W, found.C_b, found.nu) == pytest.approx((C_W, 0, nu), rel=1e-12)
    for variance in (1e-3, 1.0, 300.0):
        at = susceptibilities(activation, variance, C_W=C_W)
        assert (at.parallel, at.perpendicular) == pytest.approx((1, 1), abs=1e-11)
        assert at.K_next == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("variance", [0.3, 2.0, 20.0])
def test_susceptibilities_are_the_derivatives_of_closed_forms(variance, x64):
    """erf: <s^2> = (2/pi) asin(2K / (1 + 2K)), <s'^2> = (4/pi) / sqrt(1 + 4K)."""

    def norm(K):
        return 2 / np.pi * jnp.arcsin(2 * K / (1 + 2 * K))

    def slope(K):
        return 4 / np.pi / jnp.sqrt(1 + 4 * K)

    found = susceptibilities(closed_forms.erf(), variance, C_W=1.7, C_b=0.2)
    assert found.K_next == pytest.approx(0.2 + 1.7 * float(norm(variance)), rel=1e-12)
    assert found.parallel == pytest.approx(1.7 * float(jax.grad(norm)(variance)), rel=1e-12)
    assert found.perpendicular == pytest.approx(1.7 * float(slope(variance)), rel=1e-12)
    assert found.h == pytest.approx(1.7 / 2 * float(jax.grad(slope)(variance)), rel=1e-11)


@pytest.mark.parametrize(
    ("activation", "a1", "p_perp"), [(jnp.tanh, -2.0, 1.0), (jnp.sin, -1.0, 1.0)]
)
def test_odd_functions_are_critical_at_zero(activation, a1, p_perp):
    found = criticality(activation)
    assert (found.kind, found.C_W, found.nu) == ("zero", 1.0, 2 / 3)
    assert (found.a1, found.p_perp) == pytest.approx((a1, p_perp), abs=1e-12)


def test_a_function_that_is_not_odd_has_another_exponent():
    """s = tanh z + 0.3 z^2 / (1 + z^2): s'' / s' = 0.6, s''' / s' = -2."""
    found = criticality(lambda z: jnp.tanh(z) + 0.3 * z**2 / (1 + z**2))
    assert found.a1 == pytest.approx(-2 + 0.75 * 0.36, abs=1e-12)
    assert found.p_perp == pytest.approx((-2 + 0.36) / (-2 + 0.27), abs=1e-12)


@pytest.mark.parametrize(
    ("activation", "constants"),
    [
        (lambda z: jax.nn.gelu(z, approximate=False), (3.56155281, 1.98305826, 0.17292239, 4.9042)),
        (closed_forms.gelu(), (3.56155281, 1.98305826, 0.17292239, 4.9042)),
        (jax.nn.swish, (14.32017362, 1.98800468, 0.55514317, 4.9232)),
    ],
)
def test_half_stable_points(activation, constants):
    """Constants of an independent quadrature."""
    found = criticality(activation)
    assert found.kind == "half-stable"
    assert (found.variance, found.C_W, found.C_b) == pytest.approx(constants[:3], abs=1e-8)
    assert found.nu == pytest.approx(constants[3], abs=1e-4)
    at = susceptibilities(activation, found.variance, C_W=found.C_W, C_b=found.C_b)
    assert at[:3] == pytest.approx((found.variance, 1, 1), abs=1e-10)


def test_attraction_is_the_curvature_of_the_flow():
    found = criticality(jax.nn.swish)
    K, step = found.variance, 0.05
    up, down = (susceptibilities(jax.nn.swish, K + s, C_W=found.C_W).K_next for s in (step, -step))
    middle = susceptibilities(jax.nn.swish, K, C_W=found.C_W).K_next
    assert found.attraction == pytest.approx(K * (up - 2 * middle + down) / step**2, rel=1e-3)
    assert found.attraction > 0
    assert criticality(closed_forms.gelu()).attraction < 0


@pytest.mark.parametrize("activation", [jax.nn.softplus, jax.nn.sigmoid])
def test_activations_that_are_critical_nowhere(activation):
    assert criticality(activation) == ("none",) + (None,) * 7


@pytest.mark.parametrize(
    ("activation", "below", "above"),
    [
        (jax.nn.elu, 1.0, 1.0),
        (jax.nn.selu, 1.0507009873554805 * 1.6732632423543772, 1.0507009873554805),
    ],
)
def test_a_bend_at_zero_is_of_no_class_and_another_power(activation, below, above):
    """K' = K - c K^(3/2), so that K depth^2 tends to 4 / c^2, 2 pi for ELU; V / K^2 has a third of the slope at 0."""
    assert criticality(activation).kind == "none"
    second, fourth = ((below**k + above**k) / 2 for k in (2, 4))
    found = vertices(activation, 800, C_W=1 / second, variance=1.0)
    layers = np.arange(1.0, 801)
    power = np.polyfit(np.log(layers[400:]), np.log(found.K[400:]), 1)[0]
    assert power == pytest.approx(-2, abs=0.03)
    if activation is jax.nn.elu:
        assert found.K[-1] * 800**2 == pytest.approx(2 * np.pi, rel=0.03)
    ratio = found.V / found.K**2
    slope = (3 * fourth / second**2 - 1) / 3
    assert (ratio[-1] - ratio[-401]) / 400 == pytest.approx(slope, rel=0.01)


@pytest.mark.parametrize("activation", [jnp.tanh, jnp.sin, jax.nn.relu])
def test_learning_rates_make_layers_contribute_alike(activation):
    """Each layer's share of Theta, carried to the end by chi_perp; constant rates do not."""
    found, depth = criticality(activation), 100
    K = vertices(activation, depth, C_W=found.C_W, variance=1.0).K
    layers = [susceptibilities(activation, k, C_W=found.C_W) for k in K]
    carried = np.append(np.cumprod([s.perpendicular for s in layers[-2::-1]])[::-1], 1.0)
    rates = learning_rates(found, depth)
    squares = np.append(1 / found.C_W, [s.K_next / found.C_W for s in layers[:-1]])
    for share, control in zip((rates[0] * carried, rates[1] * squares * carried), (carried, None)):
        late = share[depth // 4 :]
        assert late.max() / late.min() < 1.1
        assert 0.3 < share.sum() < 3
        if control is not None and found.kind == "zero":
            assert control[-1] / control[depth // 4] > 3


def test_residual_slopes():
    """ReLU against the recursion at depth; odd functions against the closed form."""
    for skew in (True, False):
        slope = residual_nu(jax.nn.relu, 0.5, skew=skew)
        if skew:
            V = vertices(jax.nn.relu, 60, C_W=1.5, variance=1.0, gamma=0.5).V
            assert slope == pytest.approx(V[-1] - V[-2], rel=1e-9)
        else:
            assert slope == pytest.approx(3.5625)
            V = vertices(jax.nn.relu, 9, C_W=1.5, variance=1.0, gamma=0.5, skew=False).V
            np.testing.assert_allclose(V, slope * np.arange(9), rtol=1e-10)
    assert residual_nu(jnp.tanh, 0.5) == pytest.approx(2 / 3 * (1 - 0.5**4))
    found = vertices(jnp.tanh, 600, C_W=0.75, variance=1.0, gamma=0.5)
    ratio = found.V / found.K**2
    assert (ratio[-1] - ratio[-200]) / 199 == pytest.approx(residual_nu(jnp.tanh, 0.5), rel=0.01)


def test_panels_integrate_moments_at_any_deviation():
    for deviation in (0.01, 1.0, 7.0):
        z, mass = quadrature.panels(deviation, (0.0, 0.3))
        moments = [mass @ z**k / deviation**k for k in (0, 2, 4, 8)]
        assert moments == pytest.approx([1, 1, 3, 105], rel=1e-13)
        assert mass @ np.maximum(z, 0) == pytest.approx(deviation / np.sqrt(2 * np.pi), rel=1e-13)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_kinks_are_found_at_any_scale_of_the_activation(unit):
    """A kink that is not at the end of a panel would cost six digits: g(K) of a soft threshold in closed form."""

    def threshold(z):
        return unit * jnp.sign(z) * jax.nn.relu(jnp.abs(z) - 0.3)

    found, K = susceptibilities(threshold, 0.73, C_W=1 / unit**2), 0.73
    a = 0.3 / np.sqrt(K)
    tail, density = special.erfc(a / np.sqrt(2)), np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    assert found.K_next == pytest.approx(K * ((1 + a**2) * tail - 2 * a * density), rel=1e-11)
    assert found.perpendicular == pytest.approx(tail, rel=1e-11)


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="activation is 3"):
        criticality(3)
    with pytest.raises(ValueError, match="jumps at"):
        criticality(jnp.sign)
    with pytest.raises(ValueError, match="constant"):
        criticality(jnp.ones_like)
    with pytest.raises(ValueError, match="too steep"):
        criticality(lambda z: jnp.tanh(20 * z))
    with pytest.raises(ValueError, match=r"cannot be applied .* jax\.numpy"):
        criticality(lambda z: np.maximum(z, 0))
    with pytest.raises(ValueError, match=r"cannot be applied .* layer\.apply"):
        criticality(nn.PReLU())
    with pytest.raises(ValueError, match="of the shape of its input"):
        criticality(lambda z: 1.0 * z.sum())
    with pytest.raises(ValueError, match="jumps at"):
        criticality(lambda z: 1e-6 * jnp.sign(z))
    with pytest.raises(ValueError, match="grows so fast"):
        susceptibilities(jnp.exp, 10.0, C_W=1.0)
    with pytest.raises(ValueError, match="variance"):
        susceptibilities(jnp.tanh, 0.0, C_W=1.0)
    with pytest.raises(ValueError, match="none of the classes"):
        learning_rates(criticality(jax.nn.softplus), 3)
    with pytest.raises(TypeError, match="critical"):
        learning_rates(jnp.tanh, 3)
    with pytest.raises(ValueError, match="gamma is 1"):
        residual_nu(jnp.tanh, 1.0)
    with pytest.raises(ValueError, match="half-stable"):
        residual_nu(closed_forms.gelu(), 0.5)
