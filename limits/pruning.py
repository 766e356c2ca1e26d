"""Data pruning of a perceptron: which examples to keep, with a perfect or an imperfect probe.

Inputs x ~ N(0, I_N) are labelled by a teacher, y = sign(T.x). A probe at the angle theta from the teacher ranks the
P = alpha_total N examples by |z|, z = probe.x, and the share f with the smallest |z| is kept (hard), or with the
largest (easy): alpha = f alpha_total of them a dimension. The student is the max-margin classifier of those. With its
components a along the probe, b along the rest of the teacher and s orthogonal to both, a^2 + b^2 + s^2 = 1,

    s^2 = alpha E[(k - y (a z + b w) - s t)_+^2],   y = sign(z cos(theta) + w sin(theta)),   w, t ~ N(0, 1)

gives the margin k(a, b), and the student is where k is largest; R = a cos(theta) + b sin(theta) is its overlap with
the teacher and arccos(R)/pi its error. In (a, b, s)/k this minimises a norm over a convex set: a maximum with k > 0 is
the only one, and the teacher itself has k > 0.

As f -> 0 under a perfect probe the kept examples lie on the teacher's boundary. Up to alpha = 2 of them a dimension
(Cover 1965) are separated by students that know nothing, and pruning ruins; from there on error times alpha_total
tends to a constant, .65 at alpha = 2.4 and .50 from 4 on, that of all examples.

Source: the setting is that of Sorscher et al. 2022, arXiv:2206.14486, section 2. The equation is derived here, by
Gordon's comparison and without replicas; it is exact as N grows at fixed alpha.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from limits.arguments import array, boolean, broadcast, count, takes
from ntk import show

CRITICAL_DENSITY = 2.0
"""Kept examples a dimension above which the hardest examples of a perfect probe teach as much as any number of them."""

_FAR = 9.0  # deviations of a normal variable beyond which there is nothing in double precision
_W_EDGES = (
    0.01,
    0.05,
    0.25,
    1.0,
    2.5,
    4.5,
    7.0,
    10.0,
    14.0,
    18.0,
)  # distances from the change of the label


@show.readable
class Pruned(NamedTuple):
    """The student of the kept examples; floats, or arrays of the broadcast shape of the arguments.

    Attributes:
        error: share of new examples that it gets wrong, to six digits also where it is small.
        overlap: R, cosine of the angle to the teacher.
        margin: k, smallest y (student.x) of the kept examples, for a student of norm 1.
    """

    error: np.ndarray | float
    overlap: np.ndarray | float
    margin: np.ndarray | float


@show.readable
class Frontier(NamedTuple):
    """The share to keep at a given number of kept examples, and its error; floats or arrays.

    Attributes:
        keep: f of the lowest error.
        error: that error.
    """

    keep: np.ndarray | float
    error: np.ndarray | float


@takes(alpha_total=array(), keep=array(), keep_hard=boolean, probe_angle=array())
def perceptron(
    alpha_total: ArrayLike,
    keep: ArrayLike,
    *,
    keep_hard: bool = True,
    probe_angle: ArrayLike = 0.0,
) -> Pruned:
    """Error of the max-margin perceptron trained on the kept examples, see the top of this file.

    Args:
        alpha_total: examples a dimension before pruning, P/N > 0.
        keep: f, share that is kept, in (0, 1]; alpha_total * keep stay.
        keep_hard: whether the examples next to the probe's boundary are kept, or those farthest from it.
        probe_angle: theta in radians, from 0, the teacher itself, to pi/2, a probe that knows nothing.

    Returns:
        Pruned. To keep examples at random is ``perceptron(alpha_total * keep, 1.0)``.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, or the equations are not solved to eight digits.
    """
    broadcast(alpha_total=alpha_total, keep=keep, probe_angle=probe_angle)
    total, share, angle = np.broadcast_arrays(alpha_total, keep, probe_angle)
    _check(total, share, angle, "alpha_total")
    cases = zip(*(x.ravel().astype(float).tolist() for x in (total, share, angle)))
    found = [_solve(a * f, f, bool(keep_hard), theta) for a, f, theta in cases]
    return Pruned(*(_shaped(column, total.shape) for column in np.reshape(found, (-1, 3)).T))


@takes(alpha_kept=array(), probe_angle=array(), least=array(0), points=count(3))
def frontier(
    alpha_kept: ArrayLike, probe_angle: ArrayLike = 0.0, *, least: float = 1e-3, points: int = 13
) -> Frontier:
    """The best share to keep, if alpha_kept examples a dimension can be labelled or trained on.

    With a perfect probe the error falls without end as fewer are kept once alpha_kept is above CRITICAL_DENSITY: the
    answer is then ``least``. A probe of accuracy c on the teacher's labels has the angle pi (1 - c).

    Args:
        alpha_kept: examples a dimension after pruning, f P/N > 0.
        probe_angle: theta in radians, from 0 to pi/2.
        least: smallest share that is tried; 1/least candidates are looked at for one that is kept.
        points: shares on a logarithmic grid, between whose best neighbours the best is sought.

    Returns:
        Frontier.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range.
    """
    broadcast(alpha_kept=alpha_kept, probe_angle=probe_angle)
    kept, angle = np.broadcast_arrays(alpha_kept, probe_angle)
    _check(kept, np.asarray(least), angle, "alpha_kept", "least")
    cases = zip(kept.ravel().astype(float).tolist(), angle.ravel().astype(float).tolist())
    found = [_best(alpha, theta, math.log(least), points) for alpha, theta in cases]
    return Frontier(*(_shaped(column, kept.shape) for column in np.reshape(found, (-1, 2)).T))


def _best(alpha: float, theta: float, lowest: float, points: int) -> tuple[float, float]:
    def error(log_share: float) -> float:
        return _solve(alpha, min(math.exp(log_share), 1.0), True, theta)[0]

    grid = np.linspace(lowest, 0.0, points)
    errors = [error(x) for x in grid]
    best = int(np.argmin(errors))
    if best == 0:
        return math.exp(grid[0]), errors[0]
    ends = grid[best - 1], grid[min(best + 1, points - 1)]
    found = optimize.minimize_scalar(error, bounds=ends, method="bounded", options={"xatol": 1e-3})
    if found.fun < errors[best]:
        return math.exp(found.x), found.fun
    return math.exp(grid[best]), errors[best]


def _check(
    alpha: np.ndarray,
    share: np.ndarray,
    angle: np.ndarray,
    alpha_name: str,
    share_name: str = "keep",
) -> None:
    for name, value, right, words in (
        (alpha_name, alpha, alpha > 0, "positive"),
        (share_name, share, (share > 0) & (share <= 1), "above 0 and at most 1"),
        ("probe_angle", angle, (angle >= 0) & (angle <= math.pi / 2), "from 0 to pi/2 (radians)"),
    ):
        if not right.all():
            raise ValueError(f"{name} is {value[~right].flat[0]}; it must be {words}")


def _shaped(column: np.ndarray, shape: tuple) -> np.ndarray | float:
    return column.reshape(shape) if shape else float(column[0])


# One student: coordinates chi and psi, a = cos(chi) cos(psi), b = cos(chi) sin(psi), s = sin(chi)


def _solve(alpha: float, share: float, hard: bool, theta: float) -> tuple[float, float, float]:
    """Error, overlap and margin at so many kept examples a dimension."""
    if share == 1.0:
        theta = 0.0  # nothing is chosen: the probe does not matter
    nodes = _nodes(alpha, share, hard, theta)

    def along(
        log_chi: float,
    ) -> float:  # no student in the plane of probe and teacher is turned away from the teacher
        return _slopes(math.exp(log_chi), theta, nodes, alpha)[1]

    # From a student that knows nothing towards the teacher the margin rises, and at the end it falls.
    high = math.log(math.pi / 2)
    while along(low := high - 1.5) <= 0:
        high = low
    chi = math.exp(optimize.brentq(along, low, high, xtol=1e-13, rtol=1e-14))
    psi, margin = theta, _slopes(chi, theta, nodes, alpha)[0]
    if theta:
        chi, psi, margin = _turn(chi, psi, nodes, alpha)
    away = math.sin(chi / 2) ** 2 + math.cos(chi) * math.sin((psi - theta) / 2) ** 2  # (1 - R) / 2
    return 2 * math.asin(math.sqrt(away)) / math.pi, 1 - 2 * away, margin


def _turn(chi: float, psi: float, nodes: tuple, alpha: float) -> tuple[float, float, float]:
    """The largest margin over both angles, from one with k > 0: ascent, then the zero of its slopes."""
    for _ in range(20):
        scale, center = chi, psi
        unit = _slopes(scale, center, nodes, alpha)[0]

        def fall(
            x: np.ndarray, scale: float = scale, center: float = center, unit: float = unit
        ) -> tuple[float, np.ndarray]:
            angle, turned = _place(x, scale, center)
            k, by_log_chi, by_psi = _slopes(angle, turned, nodes, alpha)
            slope = math.hypot(
                k, unit
            )  # of -arsinh(k / unit), which tells large margins apart and small
            bent = (1 - 2 * angle / math.pi) / (1 - 2 * scale / math.pi)
            return -math.asinh(k / unit), -np.array([by_log_chi * bent, by_psi * scale]) / slope

        rough = optimize.minimize(
            fall, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-7}
        )
        exact = optimize.root(lambda x: fall(x)[1], rough.x, options={"xtol": 1e-13})
        chi, psi = _place(rough.x, scale, center)
        there = _place(exact.x, scale, center)
        margin, *slopes = _slopes(*there, nodes, alpha)
        highest = margin > unit * math.sinh(-rough.fun) * (
            1 - 1e-9
        )  # a zero of the slopes that is no other one
        if highest and math.hypot(slopes[0], slopes[1] * there[0]) < 1e-10 * margin:
            return *there, margin
    raise ValueError(
        f"the student of {alpha:g} kept examples a dimension is not found to eight digits (margin {margin:.3g}, slopes "
        f"{slopes[0]:.1e}, {slopes[1]:.1e}); keep a larger share, or take a larger or no angle"
    )


def _place(x: np.ndarray, scale: float, center: float) -> tuple[float, float]:
    """Angles from free coordinates: chi between 0 and pi/2 by its odds, psi in units of scale."""
    odds = scale / (math.pi / 2 - scale) * math.exp(min(max(x[0], -30.0), 30.0))
    return math.pi / 2 * odds / (1 + odds), center + scale * x[1]


def _slopes(chi: float, psi: float, nodes: tuple, alpha: float) -> tuple[float, float, float]:
    """k, dk/dlog(chi), dk/dpsi, by the derivative of the equation that defines k."""
    z, w, weight = nodes  # those of z and w times the label
    s, c = math.sin(chi), math.cos(chi)
    mean = c * (math.cos(psi) * z + math.sin(psi) * w)
    k = float(weight @ mean) + s / math.sqrt(alpha)
    for _ in range(100):
        u = (k - mean) / s
        below = special.ndtr(u)
        first = s * (
            u * below + np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
        )  # E (k - mean - s t)_+
        second = (k - mean) * first + s * s * below
        root = math.sqrt(float(weight @ second))
        # Newton's step on the root of the mean square, which is convex and nearly straight in k
        step = (root - s / math.sqrt(alpha)) * root / float(weight @ first)
        k -= step
        if abs(step) <= 1e-15 * (abs(k) + s):
            break
    gain = weight * first / float(weight @ first)
    by_a, by_b = float(gain @ z), float(gain @ w)
    by_s = s * (1 / alpha - float(weight @ below)) / float(weight @ first)
    across = math.cos(psi) * by_a + math.sin(psi) * by_b
    by_psi = c * (math.cos(psi) * by_b - math.sin(psi) * by_a)
    return k, chi * (c * by_s - s * across), by_psi


def _nodes(alpha: float, share: float, hard: bool, theta: float) -> tuple[np.ndarray, ...]:
    """Nodes y z, y w and weights (of sum 1) of a kept example; z > 0, which the symmetry x -> -x allows."""
    # The equation bends within some 1/alpha of a boundary: panels that shrink towards it.
    fine = 4.0 ** np.arange(-math.ceil(math.log(1 + alpha, 4)), 0)
    start, length = 0.0, _FAR
    if share < 1 and hard:
        length = min(math.sqrt(2) * float(special.erfinv(share)), _FAR)
    elif share < 1:
        start = math.sqrt(2) * float(special.erfcinv(share))
    edges = 4.0 ** np.arange(-6 if theta == 0 else -2, 1)
    edges = start + length * np.concatenate([[0.0], edges[0] * fine, edges])
    z, of_z = (x[:, 0] for x in _panels(edges[:, None], 16 if theta == 0 else 10))
    # Times a constant, so that nothing underflows however far out the interval lies
    of_z = of_z * np.exp((start**2 - z * z) / 2)
    of_z /= of_z.sum()
    if theta == 0:
        return z, np.zeros_like(z), of_z
    turn = np.clip(-z / math.tan(theta), -_FAR, _FAR)  # where the label changes
    edges = np.concatenate([[0.0], _W_EDGES[0] * fine, _W_EDGES])[:, None]
    parts = []
    for sign in (-1.0, 1.0):
        distance, of_w = _panels(np.minimum(edges, _FAR - sign * turn), 10)
        w = turn + sign * distance
        of_w = of_w * np.exp(-w * w / 2) / math.sqrt(2 * math.pi)
        parts.append((sign * z + 0 * w, sign * w, of_w * of_z))
    z, w, weight = (np.concatenate([part.ravel() for part in both]) for both in zip(*parts))
    there = weight > 1e-14 * weight.max()
    return z[there], w[there], weight[there] / weight.sum()


def _panels(edges: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights (panels * nodes, columns) between consecutive edges (panels + 1, columns)."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    half = np.diff(edges, axis=0)[:, None] / 2
    at = edges[:-1, None] + half * (1 + x[:, None])
    weights = half * weight[:, None] + 0 * at
    return at.reshape(-1, edges.shape[1]), weights.reshape(-1, edges.shape[1])
