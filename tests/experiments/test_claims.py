"""Claims: the words of a criterion and its test agree, controls read the other way, JSON keeps everything."""

import io
import json
import math
import re
import types

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments import claims, contract, judges
from experiments.claims import Claim

TEXTS = ("P1", "Noci et al. 2024, Fig. 1", "the optimum does not move")
finite = st.floats(-1e6, 1e6, allow_nan=False)


def meets(measured, criterion):
    """The criterion read by its words alone, as a reader would."""
    if found := re.fullmatch(r"([<>])= (\S+)", criterion):
        sign, bound = found.groups()
        return measured <= float(bound) if sign == "<" else measured >= float(bound)
    if found := re.fullmatch(r"in \[(\S+), (\S+)\]", criterion):
        return float(found[1]) <= measured <= float(found[2])
    target, tolerance = map(float, criterion.split(" ± "))
    return target - tolerance <= measured <= target + tolerance


@given(measured=finite, low=finite, width=st.floats(0, 1e6), control=st.booleans())
def test_the_words_of_a_criterion_are_its_test(measured, low, width, control):
    for claim in (
        claims.at_most(*TEXTS, measured, low, control=control),
        claims.at_least(*TEXTS, measured, low, control=control),
        claims.within(*TEXTS, measured, low, low + width, control=control),
        claims.near(*TEXTS, measured, low, width, control=control),
    ):
        assert claim.passed == (meets(measured, claim.criterion) != control)


@given(bound=finite)
def test_a_value_that_equals_the_bound_passes_and_the_next_one_fails(bound):
    assert claims.at_most(*TEXTS, bound, bound).passed
    above = math.nextafter(bound, math.inf)
    claim = claims.at_most(*TEXTS, above, bound)
    assert not claim.passed
    assert claims.value_text(claim) != claims.value_text(
        claims.at_most(*TEXTS, bound, bound)
    ) or float(claims.value_text(claim)) != float(claim.criterion.removeprefix("<= "))


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("control", [False, True])
def test_what_is_not_finite_decides_nothing(measured, control):
    for claim in (
        claims.at_most(*TEXTS, measured, 1, control=control),
        claims.at_least(*TEXTS, measured, 1, control=control),
        claims.within(*TEXTS, measured, 0, 1, control=control),
    ):
        assert not claim.passed
        assert claims.verdict(claim) == "NOT MEASURED"


def test_four_verdicts():
    words = {
        (measured, control): claims.verdict(claims.at_most(*TEXTS, measured, 1, control=control))
        for measured in (0, 2)
        for control in (False, True)
    }
    assert words == {
        (0, False): "holds",
        (2, False): "FAILS",
        (2, True): "fails, as it must",
        (0, True): "CONTROL HOLDS",
    }


def test_words_can_be_claimed_too():
    claim = claims.equals(*TEXTS, "kernel regime", "feature learning", control=True)
    assert claim.passed
    assert claim.criterion == "is feature learning"
    assert claims.value_text(claim) == "kernel regime"
    assert not claims.equals(*TEXTS, "kernel regime", "feature learning").passed


def test_criteria_that_decide_nothing_are_refused():
    with pytest.raises(ValueError, match="low 2 is larger than high 1"):
        claims.within(*TEXTS, 0, 2, 1)
    with pytest.raises(ValueError, match="tolerance is -1"):
        claims.near(*TEXTS, 0, 2, -1)
    for bound in (math.nan, math.inf):
        with pytest.raises(ValueError, match="no finite bound"):
            claims.at_most(*TEXTS, 0, bound)


EXAMPLES = [
    claims.at_most("P1 mup", "paper A", "moves by little", 0.0625, 0.5, interval=(0.01, 0.11)),
    claims.at_least("P1 ntk", "paper A", "moves a lot", 0.25, 1.5),
    claims.at_most("P1 standard", "paper A", "does not transfer", 1.93, 0.5, control=True),
    claims.near("P6 hidden", "paper B", "slope of hidden layers", math.nan, 0, 0.15),
    claims.at_least("P7", "paper B", "grows", math.inf, 1, interval=(1.0, math.inf)),
    claims.equals("regime", "paper C", "the regime", "nan-free", "nan-free"),
]

SEEDS = xr.DataArray([0.2, 0.9, 0.4], dims="seed", coords={"seed": [3, 4, 5]}, name="accuracy")


def judged(judge, values, by="worst", **rest):
    return claims.over_seeds(
        judge, values, by, **dict(zip(("name", "source", "statement"), TEXTS)), **rest
    )


def test_json_keeps_every_field_and_is_strict_json():
    text = claims.to_json(EXAMPLES)
    rows = json.loads(text, parse_constant=pytest.fail)
    assert rows[0]["verdict"] == "holds"
    again = claims.from_json(text)
    assert [c._replace(measured=0) for c in again] == [c._replace(measured=0) for c in EXAMPLES]
    assert claims.differences(EXAMPLES, again) == []
    assert math.isnan(again[3].measured)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("{}", "expected a list of claims, found dict"),
        ('[{"name": "P1"}]', "entry 0 is not a claim: .*P1"),
        ("[3]", "entry 0 is not a claim: 3"),
        (claims.to_json(EXAMPLES).replace("true", "1", 1), "entry 0 is not a claim"),
        (claims.to_json(EXAMPLES).replace("0.0625", "null"), "entry 0 is not a claim"),
        (claims.to_json(EXAMPLES).replace("0.01,", "null,"), "entry 0 is not a claim"),
        (claims.to_json(EXAMPLES).replace("0.4375", "null"), "entry 0 is not a claim"),
    ],
)
def test_json_that_holds_no_claims_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        claims.from_json(text)


def test_differences_name_the_claim_and_both_values():
    now = [
        EXAMPLES[0]._replace(measured=0.7, passed=False),
        *EXAMPLES[2:],
        EXAMPLES[1]._replace(name="new"),
    ]
    found = claims.differences(EXAMPLES, now)
    assert found == [
        "P1 ntk is recorded but no longer computed",
        "new is computed but was not recorded",
        "P1 mup: recorded 0.0625, computed 0.7",
        "P1 mup: recorded as 'holds', computed as 'FAILS'",
    ]
    assert (
        claims.differences(EXAMPLES[:1], [EXAMPLES[0]._replace(measured=0.0625 * (1 + 1e-8))]) == []
    )
    other = claims.at_most("P1 mup", "paper A", "moves by little", 0.0625, 0.4)
    assert "criterion was <= 0.5, now <= 0.4" in claims.differences(EXAMPLES[:1], [other])[0]


def test_the_summary_counts_claims_and_controls_apart():
    assert claims.summary(EXAMPLES) == (
        "2 of 5 claims hold, 2 not measured; 1 of 1 controls fail, as they must"
    )
    assert claims.summary([]) == "no claims"


def test_the_plain_table_says_everything_in_lines():
    file = io.StringIO()
    claims.print_table(EXAMPLES, "A study", file)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "holds              P1 mup       0.0625 [0.01, 0.11]  (<= 0.5)" in text
    assert "fails, as it must  P1 standard  1.93  (control: must fail <= 0.5)" in text
    for claim in EXAMPLES:
        assert claim.statement in text
    assert text.splitlines()[-1] == claims.summary(EXAMPLES)


@pytest.mark.parametrize("width", [50, 100, 160])
def test_the_terminal_table_cuts_no_verdict(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(claims.rich_table(EXAMPLES, "A study"))
    text = re.sub(r"[^A-Za-z]", "", console.file.getvalue())
    assert "…" not in console.file.getvalue()
    assert "FAILS" in text


def test_markup_in_a_statement_is_shown_as_it_is():
    claim = Claim("P[1]", "[bold]", "lies in [0, 1]", 0.5, "in [0, 1]", True)
    console = Console(file=io.StringIO(), width=120)
    console.print(claims.rich_table([claim]))
    assert "[bold]" in console.file.getvalue()
    assert "P[1]" in console.file.getvalue()


@pytest.mark.parametrize(
    ("judge", "criterion", "control", "worst"),
    [
        (claims.at_least, {"bound": 0.5}, False, 0.2),
        (claims.at_most, {"bound": 0.5}, False, 0.9),
        (claims.near, {"target": 0.3, "tolerance": 0.05}, False, 0.9),
        (claims.near, {"target": 0.7, "tolerance": 0.05}, False, 0.2),
        (claims.within, {"low": 0.3, "high": 1.0}, False, 0.2),
        # Of a control the seed that comes nearest to holding.
        (claims.at_least, {"bound": 0.95}, True, 0.9),
        (claims.at_most, {"bound": 0.1}, True, 0.2),
    ],
)
def test_the_worst_seed_speaks_against_the_claim(judge, criterion, control, worst):
    claim = judged(judge, SEEDS, control=control, **criterion)
    assert claim.measured == worst
    assert claim.interval == (0.2, 0.9)


def test_the_median_and_the_mean_are_those_of_all_seeds():
    assert judged(claims.at_least, SEEDS, "median", bound=0.3).measured == 0.4
    claim = judged(claims.at_most, SEEDS, "mean", bound=2)
    half = 2 * np.sqrt(0.13 / 3)  # variance .13 of .2, .9, .4 around .5
    np.testing.assert_allclose(claim.measured, 0.5)
    np.testing.assert_allclose(claim.interval, (0.5 - half, 0.5 + half))
    assert claims.verdict(claim) == "holds"


@pytest.mark.parametrize("by", ["worst", "median", "mean"])
@pytest.mark.parametrize("control", [False, True])
def test_a_diverged_seed_is_never_skipped(by, control):
    """Also where it is read beside the values, and for a control: a diverged run does not fail properly."""
    for values, reads in (
        (SEEDS.where(SEEDS.seed < 5), ()),
        (SEEDS, (SEEDS.where(SEEDS.seed < 5),)),
        (xr.full_like(SEEDS, np.nan), ()),
    ):
        for judge, bound in ((claims.at_least, 0.0), (claims.at_most, 1.0), (claims.at_most, 0.0)):
            claim = judged(judge, values, by, bound=bound, control=control, reads=reads)
            assert claims.verdict(claim) == "NOT MEASURED"
            assert not claim.passed
            assert "every run: accuracy is nan at seed" in claims.reason(claim)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("interval", [(math.nan, math.nan), (0.0, math.nan), (1.0, -1.0)])
def test_an_interval_that_is_not_in_order_decides_nothing(interval, control):
    claim = claims.at_most(*TEXTS, 0.0, 1.0, interval=interval, control=control)
    assert claims.verdict(claim) == "NOT MEASURED"
    assert not claim.passed
    assert "is not two numbers in order" in claims.reason(claim)
    open_end = claims.at_most(*TEXTS, 0.0, 1.0, interval=(-1.0, math.inf))
    assert claims.verdict(open_end) == "holds"


@pytest.mark.parametrize("by", ["worst", "median", "mean"])
@pytest.mark.parametrize("control", [False, True])
def test_an_infinite_seed_has_diverged_unless_words_say_what_it_is(by, control):
    diverged = xr.DataArray([math.inf, 0.0, 0.0], dims="seed", name="loss")
    for values, reads in ((diverged, ()), (xr.zeros_like(diverged), diverged)):
        claim = judged(claims.at_most, values, by, bound=1.0, control=control, reads=reads)
        assert claims.verdict(claim) == "NOT MEASURED"
        assert not claim.passed
        assert "loss is inf at seed 0 (1 of 3)" in claims.reason(claim)


def test_words_say_how_infinity_counts():
    never = xr.DataArray([math.inf, 0.0, 0.0], dims="seed")
    rest = {"bound": 1.0, "infinite": "inf: never reached"}
    found = {by: judged(claims.at_most, never, by, **rest) for by in ("worst", "median", "mean")}
    verdicts = {by: claims.verdict(claim) for by, claim in found.items()}
    assert verdicts == {"worst": "NOT MEASURED", "median": "holds", "mean": "NOT MEASURED"}
    assert found["median"].statement.endswith("(inf: never reached)")
    lost = judged(claims.at_most, never.where(never.seed > 0), "median", **rest)
    assert claims.verdict(lost) == "NOT MEASURED"  # a nan stays a diverged run
    with pytest.raises(TypeError, match="infinite is True; say in words"):
        claims.at_most(*TEXTS, 0.0, 1.0, infinite=True)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("measured", ["nan", "NaN", "-inf", "", math.nan, None])
def test_a_verdict_in_words_is_a_word(measured, control):
    claim = claims.equals(*TEXTS, measured, "kernel regime", control=control)
    assert claims.verdict(claim) == "NOT MEASURED"
    assert not claim.passed


def test_one_array_can_be_read_without_a_list():
    poisoned = SEEDS.where(SEEDS.seed < 5)
    for reads in (poisoned, poisoned.values, [poisoned]):
        claim = claims.at_most(*TEXTS, 0.0, 1.0, reads=reads)
        assert claims.verdict(claim) == "NOT MEASURED"
    assert claims.verdict(claims.at_most(*TEXTS, 0.0, 1.0, reads=SEEDS)) == "holds"
    for reads in ("accuracy", [0.2, 0.9], SEEDS.to_dataset()):
        with pytest.raises(TypeError, match=r"reads holds .*an array or a list of arrays"):
            claims.at_most(*TEXTS, 0.0, 1.0, reads=reads)


def test_the_reason_names_the_variable_and_the_run():
    losses = xr.DataArray(
        [[1.0, np.nan], [np.nan, 2.0]],
        dims=("width", "seed"),
        coords={"width": [64, 128], "seed": [0, 1], "optimizer": "sgd"},
        name="loss",
    )
    found = claims.every_run(SEEDS, losses)
    assert not found.met
    assert found.found == "loss is nan at width 64, seed 1, optimizer sgd (2 of 4)"
    assert claims.every_run(SEEDS) == ("every run", True, "")
    assert (
        "loss is nan at width 0, seed 1" in claims.every_run(losses.drop_vars(losses.coords)).found
    )


def test_a_seed_between_the_others_can_meet_the_criterion_of_a_control():
    spread = xr.DataArray([0.0, 5.0, 10.0], dims="seed")
    control = judged(claims.within, spread, low=4.0, high=6.0, control=True)
    assert claims.verdict(control) == "CONTROL HOLDS"
    assert control.measured == 5
    assert claims.verdict(judged(claims.within, spread, low=4.0, high=6.0)) == "FAILS"


WRONG = [
    (lambda: claims.at_most(3, "s", "t", 1, 2), "name of claim 3 is 3; it must be text"),
    (lambda: claims.at_most(*TEXTS, "1", 2), "measured of claim .* is '1'; it must be one real"),
    (lambda: claims.at_most(*TEXTS, 1j, 2), "measured of claim .* is 1j"),
    (lambda: claims.at_most(*TEXTS, np.ones(1), 2), r"an array of shape \(1,\)"),
    (lambda: claims.at_most(*TEXTS, None, 2), "is None; it must be one real number"),
    (lambda: claims.at_least(*TEXTS, 1, "2"), "bound of claim .* is '2'"),
    (lambda: claims.within(*TEXTS, 1, None, 2), "low of claim .* is None"),
    (lambda: claims.near(*TEXTS, 1, 2, [1]), "tolerance of claim"),
    (lambda: claims.at_most(*TEXTS, 1, 2, interval=3), "interval of claim .* is 3; it must be two"),
    (lambda: claims.at_most(*TEXTS, 1, 2, interval=(1, "a")), r"interval\[1\] of claim"),
    (lambda: claims.at_most(*TEXTS, 1, 2, control="no"), "control of claim .* is 'no'"),
    (lambda: claims.at_most(*TEXTS, 1, 2, resolve=1), "resolve of claim .* is 1"),
    (
        lambda: claims.at_most(*TEXTS, 1, 2, preconditions=claims.Precondition("a", True)),
        "they must be a list of Precondition",
    ),
    (lambda: claims.at_most(*TEXTS, 1, 2, preconditions=[("a", True)]), "a list of Precondition"),
    (
        lambda: claims.at_most(*TEXTS, 1, 2, preconditions=[claims.Precondition("a", "no")]),
        "a list of Precondition",
    ),
    (lambda: claims.equals(*TEXTS, "a", 3, control=True), "expected of claim .* is 3"),
    (lambda: judged(3, SEEDS, bound=1), "judge is 3"),
    (lambda: judged(claims.at_most, ["a"], bound=1), "they must be one real number a seed"),
    (lambda: judged(claims.at_most, SEEDS * 1j, bound=1), "are of type complex128"),
    (lambda: claims.every_run(3), "it must be an array"),
    (lambda: claims.verdict(3), "claim is 3; it must be a Claim"),
    (lambda: claims.reason("a"), "it must be a Claim"),
    (lambda: claims.summary([3]), "it must be a Claim"),
    (lambda: judges.completed(SEEDS.to_dataset(), "width", [1]), "no labels along 'width'"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_call_names_the_value_and_what_is_allowed(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_seeds_that_decide_nothing_are_refused():
    with pytest.raises(
        ValueError, match="by='best' is not known; take 'worst', 'median' or 'mean'"
    ):
        judged(claims.at_least, SEEDS, "best", bound=1)
    with pytest.raises(ValueError, match="at least one seed"):
        judged(claims.at_least, SEEDS[:0], bound=1)


def test_an_interval_across_the_criterion_leaves_it_open():
    open_ = claims.at_most(*TEXTS, 0.4, 0.5, interval=(0.2, 0.6), resolve=True)
    assert claims.verdict(open_) == "NOT MEASURED"
    assert claims.reason(open_) == (  # from .4 it reaches .2 up, and .5 is .1 away: (.2 / .1)^2
        "clear of the criterion: 0.5 lies in [0.2, 0.6]; 4 times the runs would decide"
    )
    near = claims.at_most(*TEXTS, 0.4999, 0.5, interval=(0.2, 0.6), resolve=True)
    assert claims.reason(near).endswith("; not even 100 times the runs would decide")
    below = claims.within(*TEXTS, 0.5, 0.4, 0.9, interval=(0.2, 0.91), resolve=True)
    assert claims.reason(below).endswith("0.4 lies in [0.2, 0.91]; 9 times the runs would decide")
    for control in (False, True):
        far = claims.at_most(*TEXTS, 0.7, 0.5, interval=(0.6, 0.8), resolve=True, control=control)
        assert claims.verdict(far) == ("fails, as it must" if control else "FAILS")
    unknown = claims.at_most(*TEXTS, 0.4, 0.5, resolve=True)
    assert claims.verdict(unknown) == "NOT MEASURED"
    both = claims.near(*TEXTS, 0.0, 0.0, 0.1, interval=(-0.2, 0.05), resolve=True)
    assert claims.verdict(both) == "NOT MEASURED"


@pytest.mark.parametrize("control", [False, True])
def test_an_unmet_precondition_leaves_a_claim_open(control):
    needs = (
        claims.Precondition("fitted", False, "training accuracy 0.97"),
        claims.Precondition("inside the grid", True),
    )
    for claim in (
        claims.at_least(*TEXTS, 1.0, 0.5, control=control, preconditions=needs),
        claims.equals(*TEXTS, "a", "a", control=control, preconditions=needs),
    ):
        assert claims.verdict(claim) == "NOT MEASURED"
        assert not claim.passed
        assert claims.reason(claim) == "fitted: training accuracy 0.97"
        assert claims.reason(claim) in claims.plain_table([claim])
        again = claims.from_json(claims.to_json([claim]))
        assert again == [claim]


def test_a_list_of_preconditions_is_checked():
    text = claims.to_json(EXAMPLES[:1]).replace('"preconditions": []', '"preconditions": [3]')
    with pytest.raises(ValueError, match="entry 0: its preconditions are no list"):
        claims.from_json(text)


def test_controls_are_counted_in_words_that_are_true():
    def control(measured):
        return claims.at_most(*TEXTS, measured, 1, control=True)

    fails, holds, lost = control(2), control(0), control(math.nan)
    assert claims.summary([fails] * 3) == "3 of 3 controls fail, as they must"
    assert claims.summary([fails, holds, holds, lost]) == (
        "1 of 4 controls fail as they must, 2 hold, which must not be, 1 not measured"
    )
    assert claims.summary([lost]) == "0 of 1 controls fail as they must, 1 not measured"


def test_a_precondition_that_numpy_judged_is_written_and_read():
    need = claims.Precondition("fitted", np.bool_(True), "loss 0")
    claim = claims.at_most("n", "s", "t", 1.0, 2.0, preconditions=(need,))
    (read,) = claims.from_json(claims.to_json([claim]))
    assert read.preconditions[-1] == ("fitted", True, "loss 0")


def test_a_claim_of_ones_own_study_that_does_not_say_what_it_reads_is_not_measured_beside_nan():
    """xarray's maximum passes over nan."""
    data = xr.Dataset({"off": ("width", [0.0, np.nan, 0.0])}, {"width": [2, 4, 8]})
    off = float(data["off"].max())
    found = [
        claims.at_most("silent", "nobody", "the largest", off, 1e-6),
        claims.at_most("silent control", "nobody", "the largest", off, -1.0, control=True),
    ]
    for claim in contract.claims(types.ModuleType("mine"), found, data):
        assert judges.verdict(claim) == "NOT MEASURED"
        assert (
            "off is nan at width 4 (1 of 3), and the claim does not say what it reads"
            in judges.reason(claim)
        )
    assert contract.claims(types.ModuleType("mine"), found, data.fillna(0.0)) == found
    assert contract.claims(types.ModuleType("experiments.studies.ours"), found, data) == found
