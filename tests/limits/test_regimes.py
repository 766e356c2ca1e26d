import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limits.exponents import RULES, layerwise, symmetry
from limits.regimes import abc, classify

HALVES = st.integers(-3, 4).map(lambda k: k / 2)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_named_parametrizations(depth):
    """Yang & Hu 2021, table 1 and the text below it."""
    hidden = depth - 1
    assert abc("standard", depth) == ((0,) * (depth + 1), (0, *[1 / 2] * depth), (0,) * (depth + 1))
    assert abc("ntk", depth) == ((0, *[1 / 2] * depth), (0,) * (depth + 1), (0,) * (depth + 1))
    assert abc("mup", depth) == (
        (-1 / 2, *[0] * hidden, 1 / 2),
        (1 / 2,) * (depth + 1),
        (0,) * (depth + 1),
    )
    assert abc("mean_field", depth) == (
        (0, *[1 / 2] * hidden, 1),
        (0,) * (depth + 1),
        (-1,) * (depth + 1),
    )

    for name, kind, r in [
        ("ntk", "kernel", 1 / 2),
        ("mup", "feature learning", 0),
        ("mean_field", "feature learning", 0),
    ]:
        regime = classify(*abc(name, depth))
        assert (regime.kind, regime.r, regime.stable, regime.nontrivial) == (kind, r, True, True)
    practice = classify(*abc("standard", depth))
    assert (practice.kind, practice.r) == ("unstable", -1 if depth > 1 else 0)
    a, b, _ = abc("standard", depth)
    stable = classify(a, b, 1)
    assert (stable.kind, stable.r) == ("kernel", 1 / 2 if depth > 1 else 3 / 2)


def theorem(a, b, c):
    """Yang & Hu 2021, theorem 3.6 for one learning rate c, as the theorem is written."""
    depth = len(a) - 1
    last, terms = a[-1] + b[-1], [2 * a[l] + (l == 0) for l in range(depth)]
    r = min(last, 2 * a[-1] + c) + c - 1 + min(terms)
    stable = (
        a[0] + b[0] == 0
        and all(a[l] + b[l] == 1 / 2 for l in range(1, depth))
        and last >= 1 / 2
        and r >= 0
        and 2 * a[-1] + c >= 1
        and last + r >= 1
    )
    nontrivial = last + r == 1 or 2 * a[-1] + c == 1
    if not stable:
        return "unstable", r
    return "trivial" if not nontrivial else "kernel" if r > 0 else "feature learning", r


@st.composite
def parametrizations(draw):
    """abc-parametrizations whose hidden layers start at order one more often than by chance."""
    depth = draw(st.integers(1, 3))
    a = draw(st.lists(HALVES, min_size=depth + 1, max_size=depth + 1))
    b = [(l > 0) / 2 - x for l, x in enumerate(a)]
    l = draw(st.integers(0, depth))
    b[-1], b[l] = b[-1] + draw(HALVES), b[l] + draw(st.sampled_from([0, 0, 0, 1 / 2, -1 / 2]))
    return a, b


@settings(deadline=None)
@given(parametrizations(), HALVES)
def test_one_learning_rate_gives_the_theorem(parametrization, c):
    regime = classify(*parametrization, c)
    assert (regime.kind, regime.r) == theorem(*parametrization, c)
    assert bool(regime.failed) == (regime.kind in ("unstable", "trivial"))


@settings(deadline=None)
@given(
    parametrizations(),
    st.lists(HALVES, min_size=4, max_size=4),
    st.lists(HALVES, min_size=4, max_size=4),
    st.sampled_from([("sgd", 2), ("adam", 1)]),
)
def test_the_symmetry_group_changes_nothing(parametrization, c, shifts, optimizer):
    """a + t, b - t, c - 2t (SGD) or c - t (Adam), for a t of each layer."""
    a, b = parametrization
    name, factor = optimizer
    moved = [
        [x + t for x, t in zip(a, shifts)],
        [x - t for x, t in zip(b, shifts)],
        [x - factor * t for x, t in zip(c, shifts)],
    ]
    before = classify(a, b, c[: len(a)], optimizer=name)
    after = classify(moved[0], moved[1], moved[2][: len(a)], optimizer=name)
    assert before[:-2] == after[:-2]  # the words quote a, b and c themselves


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("t", [-0.5, 1.0])
def test_symmetric_rules_share_a_regime(optimizer, t):
    for rule in RULES:
        before = classify(*abc(rule, 3, optimizer=optimizer), optimizer=optimizer)
        after = classify(*abc(symmetry(rule, t), 3, optimizer=optimizer), optimizer=optimizer)
        assert before[:-2] == after[:-2]


def test_logits_over_the_root_of_the_width_learn_features_over_a_frozen_input_layer():
    regime = classify(a=(0, 0, 1 / 2), b=(0, 1 / 2, 1 / 2), c=0)
    assert regime.kind == "feature learning"
    assert regime.layers == (1, 0, 0)
    assert regime.frozen == (1,)
    assert regime.change == (-1, 0, 0)
    assert regime.reasons == (
        "feature learning: r = 0 in layer 2",
        "layer 1 is frozen: its update acts as n^-1",
    )


def test_features_alone_move_the_outputs_by_their_alignment_with_the_readout():
    """A readout of standard size that hardly learns: a + b + r - omega is 0 for omega = 1/2, -1/2 for 1."""
    exponents = ((0, 0, 0), (0, 1 / 2, 1 / 2), (-1 / 2, 1 / 2, 2))
    independent = classify(*exponents, omega_out=1 / 2)
    assert (independent.kind, independent.nontrivial) == ("feature learning", True)
    assert independent.change == (0, 0, 0)
    aligned = classify(*exponents)
    assert (aligned.kind, aligned.nontrivial) == ("unstable", False)
    assert aligned.change == (0, 0, 1 / 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_maximal_update_freezes_nothing(optimizer):
    for rule in ("mup", "mean_field"):
        regime = classify(*abc(rule, 4, optimizer=optimizer), optimizer=optimizer)
        assert regime.frozen == ()
        assert regime.layers == regime.first == regime.change == (0,) * 5
        assert regime.initial == (0, 0, 0, 0, -1 / 2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("rule", ["standard", "ntk"])
def test_rates_per_layer_are_stable_if_readout_and_features_stay_independent(rule, optimizer):
    """Everett et al. 2024: with its initial readout aligned, a standard one outgrows n^0 by n^1/2."""
    exponents = abc(layerwise(rule), 3, optimizer=optimizer)
    independent = classify(*exponents, optimizer=optimizer, omega_out=1 / 2)
    assert (independent.kind, independent.layers) == ("feature learning", (0, 0, 0, 0))
    assert independent.stable
    assert independent.nontrivial
    assert independent.change == (0, 0, 0, 0)
    aligned = classify(*exponents, optimizer=optimizer, omega_out=1)
    assert aligned.kind == "unstable"
    assert aligned.change[-1] == 1 / 2
    assert "moves the outputs as n^0.5 through the initial readout" in aligned.failed[0]


def test_each_condition_is_named_when_it_fails():
    a, b, c = (list(x) for x in abc("mup", 2))

    def failed(**changes):
        parts = {"a": list(a), "b": list(b), "c": list(c)}
        for name, value in changes.items():
            parts[name[0]][int(name[1]) - 1] = value
        regime = classify(**parts)
        return regime.kind, regime.failed

    assert failed(b1=0) == ("unstable", ("layer 1 starts at n^0.5: a_1 + b_1 = -0.5, not 0",))
    assert failed(b2=1) == ("unstable", ("layer 2 starts at n^-0.5: a_2 + b_2 = 1, not 1/2",))
    assert failed(c1=-0.5)[1][0] == "layer 1 moves as n^0.5: r_1 = -0.5 is below 0"
    assert "layer 3 is 0.5, below 1" in failed(c3=-0.5)[1][-2]
    assert "outputs start at n^0.5" in failed(b3=-0.5)[1][0]
    kind, reasons = classify(a, b, 1).kind, classify(a, b, 1).reasons
    assert kind == "trivial"
    assert reasons == (
        "trivial: the outputs move as n^-1: neither the readout nor the features reach them",
    )


def test_a_readout_that_starts_small_delays_the_hidden_layers_by_a_step():
    a, b, c = abc("mup", 2)
    regime = classify(a, (*b[:-1], 1.5), c)
    assert regime.first == (1, 1, 0)
    assert regime.layers == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: abc("muP", 2), "rule is 'muP'; allowed are standard, ntk, mup, mean_field"),
        (lambda: abc("mup", 0), "hidden_layers=0 must be at least 1"),
        (lambda: abc("mup", 2, optimizer="lion"), "'lion' is not one of 'sgd', 'adam'"),
        (lambda: classify((0, 0), (0, 0), 0, optimizer="Adam"), "'Adam' is not one of"),
        (lambda: classify((0,), (0,), 0), "a has 1 and b 1 layers"),
        (lambda: classify((0, 0), (0, 0, 0), 0), "a has 2 and b 3 layers"),
        (lambda: classify((0, 0), (0, 0), (0, 0, 0)), "c has 3 layers: give one number, or 2"),
        (lambda: classify((0, 0), (0, 0), 0, omega_out=0), r"omega_out=0 must lie in \[1/2, 1\]"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
