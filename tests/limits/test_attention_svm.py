"""Attention SVMs: solutions by hand and with certificates, descent against autodiff, and its direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from limits import attention_svm


def problem(seed, n=4, length=5, d=6):
    random = np.random.default_rng(seed)
    tokens, queries = random.normal(size=(n, length, d)), random.normal(size=(n, d))
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    labels = random.choice([-1.0, 1.0], size=n)
    return tokens, queries, random.normal(size=d), labels


def test_constraints_are_differences_of_logits():
    tokens, queries, _, _ = problem(0)
    selected = np.array([4, 0, 2, 2])
    c = attention_svm.constraints(tokens, queries, selected)
    w = np.random.default_rng(1).normal(size=(6, 6))
    logits = np.einsum("itd,de,ie->it", tokens, w, queries)
    expected = [
        logits[i, selected[i]] - logits[i, t]
        for i in range(4)
        for t in range(5)
        if t != selected[i]
    ]
    np.testing.assert_allclose(np.tensordot(c, w, 2), expected, rtol=1e-12)


def test_one_constraint_is_solved_by_hand():
    """The nearest point of a half space: C / |C|^2; in the nuclear norm u v^T over the largest singular value."""
    c = np.array([[3.0, 0.0], [0.0, 1.0]])[None]
    frobenius = attention_svm.solve(c)
    np.testing.assert_allclose(frobenius.matrix, c[0] / 10, rtol=1e-9)
    nuclear = attention_svm.solve(c, "nuclear")
    np.testing.assert_allclose(nuclear.matrix, [[1 / 3, 0], [0, 0]], atol=1e-7)
    assert nuclear.norm == pytest.approx(1 / 3)
    assert frobenius.margin == pytest.approx(10**0.5)


def test_diagonal_problems_are_linear_programmes():
    """With diagonal constraints the nuclear norm is an l1 norm."""
    random = np.random.default_rng(0)
    diagonals = random.normal(size=(7, 5)) + 0.7
    found = attention_svm.solve(diagonals[:, None] * np.eye(5), "nuclear")
    both = np.hstack([diagonals, -diagonals])
    programme = optimize.linprog(np.ones(10), A_ub=-both, b_ub=-np.ones(7), bounds=(0, None))
    assert found.norm == pytest.approx(programme.fun, rel=1e-6)
    assert found.gap < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_solutions_are_certified_and_the_best_of_their_norm(seed):
    tokens, queries, _, _ = problem(seed)
    c = attention_svm.constraints(tokens, queries, np.zeros(4, int))
    found = {name: attention_svm.solve(c, name) for name in ("frobenius", "nuclear")}
    for name, order in (("frobenius", "fro"), ("nuclear", "nuc")):
        assert np.tensordot(c, found[name].matrix, 2).min() == pytest.approx(1)
        assert np.linalg.norm(found[name].matrix, order) == pytest.approx(found[name].norm)
        assert found[name].gap < 1e-6
        other = found["nuclear" if name == "frobenius" else "frobenius"].matrix
        assert found[name].norm <= np.linalg.norm(other, order) * (1 + 1e-6)
    # the second road: a general solver on the dual variables of the Frobenius norm
    rows = c.reshape(len(c), -1)
    gram = rows @ rows.T
    dual = optimize.minimize(
        lambda a: (0.5 * a @ gram @ a - a.sum(), gram @ a - 1),
        np.ones(len(rows)),
        jac=True,
        bounds=[(0, None)] * len(rows),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
    )
    assert found["frobenius"].norm == pytest.approx((dual.x @ gram @ dual.x) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("factored", [False, True])
def test_descent_is_that_of_autodiff(factored, x64):
    tokens, queries, values, labels = problem(1)
    random = np.random.default_rng(5)
    start = (
        tuple(random.normal(size=(6, 6)) for _ in range(2))
        if factored
        else random.normal(size=(6, 6))
    )

    def loss(parts):
        w = parts[0] @ parts[1].T if factored else parts[0]
        p = jax.nn.softmax(jnp.einsum("itd,de,ie->it", tokens, w, queries), axis=1)
        outputs = jnp.einsum("it,itd,d->i", p, tokens, values)
        return jax.nn.softplus(-labels * outputs).mean()

    parts = [jnp.asarray(part) for part in (start if factored else (start,))]
    losses = []
    for _ in range(4):
        losses.append(float(loss(parts)))
        slopes = [g + 0.01 * part for g, part in zip(jax.grad(loss)(parts), parts)]
        parts = [part - 0.3 * g / jnp.linalg.norm(g) for part, g in zip(parts, slopes)]
    path = attention_svm.descend(
        tokens, queries, values, labels, 4, start=start, step_size=0.3, decay=0.01, every=1
    )
    final = parts[0] @ parts[1].T if factored else parts[0]
    np.testing.assert_allclose(path.matrices[-1], final, rtol=1e-10)
    np.testing.assert_allclose(path.losses[:4], losses, rtol=1e-12)
    assert len(path.matrices) == 5


def test_the_gradient_keeps_its_direction_where_it_underflows():
    """At logits of 10^4 the gradient is that of one pair of tokens, by hand."""
    tokens, queries, values, labels = problem(2, n=1, length=3)
    w = np.random.default_rng(0).normal(size=(6, 6)) * 3e4
    path = attention_svm.descend(tokens, queries, values, labels, 1, start=w)
    logits = tokens[0] @ w @ queries[0]
    first, second = np.argsort(-logits)[:2]
    change = (tokens[0, first] - tokens[0, second]) @ values
    direction = labels[0] * change * np.outer(tokens[0, first] - tokens[0, second], queries[0])
    moved = path.matrices[-1] - w
    np.testing.assert_allclose(moved, 0.1 * direction / np.linalg.norm(direction), atol=1e-9)


@pytest.mark.parametrize("factored", [False, True])
def test_descent_goes_to_the_svm_of_its_own_norm(factored):
    tokens, queries, values, labels = problem(3, n=3, length=4, d=5)
    random = np.random.default_rng(0)
    start = (
        tuple(random.normal(size=(5, 5)) / 5 for _ in range(2)) if factored else np.zeros((5, 5))
    )
    path = attention_svm.descend(
        tokens, queries, values, labels, 1500, start=start, decay=2.2e-16, every=100
    )
    assert path.weights.max(1).min() > 1 - 1e-9
    c = attention_svm.constraints(tokens, queries, path.selected)
    near, far = (attention_svm.solve(c, name).matrix for name in ("frobenius", "nuclear"))
    if factored:
        near, far = far, near
    reached = attention_svm.correlation(path.matrices[-1], near)
    assert reached > 0.99
    assert attention_svm.correlation(path.matrices[-1], far) < reached - 0.02
    assert path.losses[-1] < path.losses[0]


def test_mistakes_are_named():
    tokens, queries, values, labels = problem(0)
    twice = tokens.copy()
    twice[0, 1] = twice[0, 0]
    c = attention_svm.constraints(twice, queries, np.zeros(4, int))
    with pytest.raises(ValueError, match="no matrix separates the selected tokens"):
        attention_svm.solve(c)
    with pytest.raises(ValueError, match="it must hold one or more"):
        attention_svm.solve(np.zeros((0, 2, 2)))
    with pytest.raises(ValueError, match=r"selected has the shape \(2,\)"):
        attention_svm.constraints(tokens, queries, [0, 1])
    with pytest.raises(ValueError, match="do not fit"):
        attention_svm.constraints(tokens, queries[:, :2], [0] * 4)
    given = (tokens, queries, values, labels, 2)
    with pytest.raises(ValueError, match=r"start has the shape \(2, 2\)"):
        attention_svm.descend(*given, start=np.eye(2))
    with pytest.raises(ValueError, match="start has the shapes"):
        attention_svm.descend(*given, start=(np.eye(6), np.eye(5)))
    with pytest.raises(ValueError, match="start is K = Q = 0"):
        attention_svm.descend(*given, start=(np.zeros((6, 6)), np.zeros((6, 6))))
    with pytest.raises(ValueError, match="every is 0"):
        attention_svm.descend(*given, start=np.eye(6), every=0)
    with pytest.raises(ValueError, match="must have one shape"):
        attention_svm.correlation(np.eye(2), np.eye(3))
