"""What a report amounts to: counts by what was held against what, one line; what follows from what."""

import math
from dataclasses import replace

import pytest

from parity.run import one_row_a_check
from parity.trace_pair import explained
from parity.verdict import Against, GradientFlow, Planted, Report, Row, Sight, Status

PASSED, FAILED, BLOCKED, ABSENT = Status.PASSED, Status.FAILED, Status.BLOCKED, Status.NOT_APPLICABLE


def row(status=PASSED, against=Against.PROTOTYPE, check="forward", **words):
    plain = Row(check, "case", "port", "logits", "t", 0.5, 1.0, status, against=against, bound="rounding")
    return replace(plain, **words)


ONE = "1 case; 1 quantity of the prototype matched, the closest at 0.5 of what its own rounding allows"
OTHERS = [
    row(run="reference", beside=True),
    *(row(against=one) for one in Against),
    row(against=Against.SELF_CONSISTENCY, check="round_trip"),
    *[row(against=Against.SELF_CONSISTENCY, check="resume")] * 3,
    row(ABSENT),
    row(run="adapter", beside=True),
]
SILENT = [row(one) for one in (Status.SILENT, Status.UNMOVED, Status.GIVEN, Status.REPEATED)]
SIGHTS = [Planted("case", "port", "a fault", sight) for sight in Sight]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], "FAIL: Nothing was compared, so nothing was shown"),
        ([row(ABSENT)], "FAIL: Nothing was compared, so nothing was shown"),
        (SILENT, "FAIL: Nothing was compared, so nothing was shown; 1 within rounding, which say nothing"),
        ([row()], f"PASS: {ONE}"),
        ([row(), *SILENT], f"PASS: {ONE}; 1 within rounding, which say nothing"),
        (
            [row(), row(case="b", bound="table")],
            "PASS: 2 cases; 2 quantities of the prototype matched, the closest at 0.5 of what is allowed",
        ),
        (
            [row(), row(FAILED, measured=7.0)],
            "FAIL: 1 case; 1 of 2 quantities of the prototype matched, "
            "the furthest at 7 of what its own rounding allows",
        ),
        ([row(), row(BLOCKED)], f"FAIL: {ONE}".replace("1 quantity", "1 of 2 quantities")),
        ([row(bound="")], "PASS: 1 case; 1 quantity of the prototype matched"),
        (
            OTHERS,
            f"PASS: {ONE}; reference 1 of 1; formulas 1 of 1; Speculators 1 of 1; library 1 of 1; forward 1 of 1; "
            "saved 1 of 1; resumed 1 of 1; adapter 1 of 1",
        ),
        ([row(), row(FAILED, Against.LIBRARY), row(against=Against.LIBRARY)], f"FAIL: {ONE}; library 0 of 1"),
        ([row(), row(check="throughput")], f"PASS: {ONE}; throughput 1 of 1"),
    ],
)
def test_the_verdict(rows, line):
    report = Report(rows=rows)
    assert (report.verdict_line(), report.passed) == (line, line.startswith("PASS"))


def test_planted_faults_are_told_where_some_were():
    told = Report(rows=[row()], planted=SIGHTS).verdict_line()
    assert told == f"PASS: {ONE}; 1 of 3 planted faults would have been seen"


def test_what_other_cases_share_to_the_bit_counts_once():
    """Under the same name, with the same bits on both sides, of the same run; a failure counts wherever it is."""
    report = Report()
    for case, *held in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "")):
        report.add([row(case=case, bits=bits) for bits in held])
    report.add([row(case="a", bits="x", tensor="u"), row(case="e", bits="x", run="other"), row(FAILED, bits="x")])
    report.add([row(case=case, against=Against.SELF_CONSISTENCY, bits="x", check="environment") for case in "ab"])
    assert [each.status for each in report.rows].count(Status.REPEATED) == 1
    assert report.rows[1].status is Status.REPEATED
    assert (report.counts().quantities, report.counts().checks) == (6, {"environment": (2, 2)})


def test_what_is_saved_is_one_row_that_names_the_worst():
    saved = [row(against=Against.SELF_CONSISTENCY, check="round_trip", tensor=name, measured=0.0) for name in "abc"]
    (one,) = one_row_a_check(saved, ("round_trip",))
    assert (one.passed, one.detail) == (True, "0 of 3 differ, the worst: ")
    saved[1:] = [replace(each, status=FAILED, measured=size) for each, size in zip(saved[1:], (2.0, 3.0))]
    one, other = one_row_a_check([*saved, row()], ("round_trip",))
    assert (one.tensor, one.status, one.detail) == ("c", FAILED, "2 of 3 differ, the worst: ; also b")
    assert other == row()


@pytest.mark.parametrize(
    ("failed", "blocked"),
    [
        ((), ()),
        (("forward",), ()),
        (("forward", "curve"), ("curve",)),
        (("batches", "curve"), ("curve",)),
        (("batches", "forward", "curve"), ("forward", "curve")),
        (("curve",), ()),
    ],
)
def test_what_follows_from_an_earlier_failure_is_blocked(failed, blocked):
    follows = {"batches": (), "forward": ("batches",), "loss": ("forward",), "curve": ("loss",)}
    rows = [row(FAILED if check in failed else PASSED, check=check) for check in follows]
    *found, absent = explained([*rows, row(ABSENT, check="curve")], follows)
    assert tuple(each.check for each in found if each.status is BLOCKED) == blocked
    assert tuple(each.check for each in found if not each.passed) == failed
    assert absent.status is ABSENT
    assert {each.detail for each in found if each.status is BLOCKED} <= {f"follows from {''.join(failed[:1])}. "}


@pytest.mark.parametrize(
    ("measured", "allowed", "ratio"),
    [
        (1.0, 2.0, 0.5),
        (0.0, 0.0, 0.0),
        (1e-9, 0.0, math.inf),
        (math.inf, 1.0, math.inf),
        (-3.0, 1.0, 3.0),
        (None, 1.0, None),
        (1.0, None, None),
        (math.nan, 1.0, math.nan),
    ],
)
def test_the_ratio_is_measured_over_allowed(measured, allowed, ratio):
    found = replace(row(), measured=measured, allowed=allowed).ratio
    assert found == pytest.approx(ratio, nan_ok=True)


@pytest.mark.parametrize(
    ("trainable", "grad_max", "moved", "fault"),
    [
        (True, 0.1, 0.1, ""),
        (True, None, 0.1, "no gradient"),
        (True, 0.0, 0.1, "zero everywhere"),
        (True, math.nan, 0.1, "gradient is nan"),
        (True, 0.1, 0.0, "did not move"),
        *((True, 0.1, moved, "became NaN or Inf") for moved in (math.nan, math.inf)),
        (False, None, 0.0, ""),
        (False, None, 0.1, "frozen, but moved by 0.1"),
        (False, 0.5, 0.0, "frozen, but has a gradient of up to 0.5"),
    ],
)
def test_what_is_wrong_with_a_parameter(trainable, grad_max, moved, fault):
    found = GradientFlow("case", "port", "w", trainable, grad_max, moved).fault
    assert (fault in found, bool(found)) == (True, bool(fault))
