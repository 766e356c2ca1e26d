"""The table of primitives against JAX, row by row, and the walker of programs on calls and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk import jaxprs
from ntk.primitives import TABLE
from ntk.trace import algebra, ops, rules

POINTS = np.linspace(0.05, 0.95, 7)  # inside the domain of all of them
OTHER = 0.3
PLAIN = [
    name for name, row in TABLE.items() if row.plain and not row.identity and hasattr(jax.lax, name)
]
SLOPES = [name for name, row in TABLE.items() if row.slope]
BITS = {"and", "or", "xor", "not", "shift_right_logical"}


def arguments(name, z):
    """As many as the primitive takes, the first of them z."""
    if name == "clamp":
        return [np.asarray(0.2), z, np.asarray(0.6)]
    counts = {"not": 1} | dict.fromkeys(BITS - {"not"} | {"max", "min", "add", "sub", "mul"}, 2)
    try:
        jax.eval_shape(getattr(jax.lax, name), z)
        return [z]
    except TypeError:
        return [z, np.full_like(z, OTHER)][: counts.get(name, 2)]


@pytest.mark.parametrize("name", PLAIN)
def test_numpy_is_jax(x64, name):
    z = np.arange(7) if name in BITS else POINTS
    z = z + 1.0 if name == "acosh" else z
    args = [a if name not in BITS else np.asarray(a, np.int64) for a in arguments(name, z)]
    expected = getattr(jax.lax, name)(*map(jnp.asarray, args))
    (equation,) = jax.make_jaxpr(getattr(jax.lax, name))(*args).eqns[-1:]
    found = jaxprs.bind(equation.primitive, equation.params, args)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("custom", [False, True])
def test_slopes_are_derivatives(x64, name, custom):
    z = np.concatenate([POINTS, -POINTS])
    other = ("number", OTHER) if name in ("max", "min") else None
    params = tuple(algebra.equation(name, 1 if other is None else 2).params.items())
    own = (name, params, algebra.Z) if other is None else (name, params, algebra.Z, other)
    slope = TABLE[name].slope(own, algebra.Z, other, custom)
    expected = jax.vmap(jax.grad(algebra.function(own)))(jnp.asarray(z))
    np.testing.assert_allclose(algebra.on_host(slope)(z), expected, rtol=1e-12)
    np.testing.assert_allclose(algebra.function(slope)(z), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["neg", "abs", "sign", "square", "sqrt", "rsqrt"])
def test_powers_of_the_width_are_those_of_the_function(name):
    f = getattr(jax.lax, name)
    power = float(jnp.log2(f(jnp.asarray(3.0 * 2)) / f(jnp.asarray(3.0))))
    assert TABLE[name].power([1.0], {}) == pytest.approx(power, abs=1e-6)


def test_what_is_not_listed_has_an_empty_row():
    assert not any(TABLE["no such primitive"])
    assert "no such primitive" not in TABLE


def test_every_kind_of_step_is_in_the_table():
    modules = [getattr(ops, name) for name in dir(ops) if not name.startswith("_")]
    kinds = [m.KIND for m in modules if hasattr(m, "KIND")]
    assert len(kinds) >= 12
    assert set(map(id, kinds)) <= set(map(id, rules.KINDS.values()))


def scanned(x):
    """A loop one of whose outputs, and what only it reads, is not used."""

    def body(carry, row):
        kept, dropped = carry
        return (kept * row, dropped + jnp.sin(x[0])), kept

    unused = jnp.exp(x)
    (kept, _), rows = jax.lax.scan(body, (jnp.ones(()), unused[0]), x)
    return jax.jit(jnp.cos)(kept) + rows.sum()


def test_programs_without_dead_code_compute_the_same():
    x = np.linspace(0.5, 1.5, 4)
    whole = jax.make_jaxpr(scanned)(x)
    expected = scanned(jnp.asarray(x))
    np.testing.assert_allclose(jaxprs.on_numpy(whole, [x])[0], expected, rtol=1e-6)
    program = jaxprs.living(whole)
    np.testing.assert_allclose(
        jaxprs.evaluate(program, [x], lambda *_: None)[0], expected, rtol=1e-6
    )
    used = jaxprs.alive(whole.jaxpr, (True,))
    assert not any(e.primitive.name == "exp" for e, _ in used.equations)
    assert jaxprs.contains(whole.jaxpr, {"sin"})


def test_calls_are_written_out_but_for_rules_of_their_own():
    def f(x):
        return jax.nn.relu(jax.jit(lambda y: jax.jit(jnp.sin)(y) + y)(x))

    names = {e.primitive.name for e in jaxprs.flatten(f, jnp.ones(3)).jaxpr.eqns}
    assert {"sin", "custom_jvp_call"} <= names
    assert not names & {"jit", "pjit"}
