import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk.finite import contracted_sums


def array(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape))


def primitives(fun, *args):
    return {equation.primitive.name for equation in jax.make_jaxpr(fun)(*args).eqns}


CASES = {  # factors, axes, whether the sum becomes a contraction
    "shared along features": ((2, 1, 3, 1), (2, 4, 3, 5), (2,), True),
    "a vector": ((2, 3, 1, 5), (1, 1, 1, 5), (3,), True),
    "singular axes too": ((2, 1, 3, 5), (2, 4, 3, 5), (2, 3), True),
    "both vary everywhere": ((2, 3, 5), (2, 3, 5), (2,), False),
    "one factor does not vary along the sum": ((2, 1, 5), (2, 3, 5), (1,), False),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators keep their sums")
@pytest.mark.parametrize("name", CASES)
def test_sums_of_products_with_a_shared_factor_are_contractions(name, x64):
    left, right, axes, becomes = CASES[name]
    x, y = array(*left), array(*right)

    def total(x, y):
        return {"sum": (x * y).sum(axes)}

    rewritten = contracted_sums.contracted(total)
    (ours,), _, tree = rewritten(x, y)
    expected = total(x, y)["sum"]
    assert tree.unflatten([ours]).keys() == {"sum"}
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert (
        "reduce_sum" not in primitives(lambda *factors: rewritten(*factors)[0], x, y)
    ) == becomes
    assert "reduce_sum" in primitives(total, x, y)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators keep their sums")
def test_derivatives_of_a_batch_pass_through(x64):
    def scaled(scale, x):
        return jnp.tanh(x * scale).sum()

    gradients = jax.vmap(jax.grad(scaled), (None, 0))
    rewritten = lambda *args: contracted_sums.contracted(gradients)(*args)[0][0]  # noqa: E731
    scale, x = array(1, 5), array(4, 3, 5)
    np.testing.assert_allclose(rewritten(scale, x), gradients(scale, x), rtol=1e-12)
    slope = jax.jacobian(lambda s: rewritten(s, x).sum())(scale)
    np.testing.assert_allclose(slope, jax.jacobian(lambda s: gradients(s, x).sum())(scale))
