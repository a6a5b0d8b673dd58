"""A report with all there is: two runs, four things held against, something failed, blocked, absent and not finite."""

import math
from dataclasses import replace

import pytest

from parity.verdict import Against, Curve, Deviation, GradientFlow, Report, Row, Skip, Speed, Status

CASES = ("eagle3_fp32_k3", "hass_bf16_k3")
CHECKS = ("batches", "forward", "gradients", "curve")


def build_report():
    """The port's forward fails in the first case, its curve in the second."""
    report = Report(environment={"threads": 1, "port": {"torch": None, "deep": {"x": True}}}, notes=["a note"])
    for case in CASES:
        report.curves.append(Curve(case, "prototype", "loss", tuple(3 / (i + 1) for i in range(20))))
        for run in ("reference", "port"):
            report.rows += [
                Row(check, case, run, check, f"t{i}", 0.1 * i, 1.0, Status.PASSED) for check in CHECKS for i in range(3)
            ]
            report.curves.append(Curve(case, run, "loss", tuple(3 / (i + 1) * (1 + 1e-7 * i) for i in range(20))))
            report.gradient_flow.append(GradientFlow(case, run, "fc.weight", True, 0.5, 0.1))
        report.rows += [
            Row("chain", case, "port", "logits", "", 0.0, 1.0, Status.PASSED, against=Against.SPECULATORS),
            Row("resume", case, "port", "loss", "", 0.0, 0.0, Status.PASSED, against=Against.SELF_CONSISTENCY),
            absent("precision", case, "port", "float32: compared directly"),
        ]
    report.rows.append(absent("converted", "third", "reference", "float32: compared directly"))
    spoil(report, CASES[0], "forward", 1.588489, "largest at [1, 17, 203]: 2.417603 against 0.829114")
    spoil(report, CASES[1], "curve", math.nan, "first NaN at micro-batch 3")
    report.gradient_flow.append(GradientFlow(CASES[0], "port", "norm.weight", True, None, 0.0))
    report.skips.append(Skip("original", CASES[0], "no checkout was given", "pass --prototype DIR"))
    report.speeds.append(
        Speed(CASES[0], "reference", "port", (3.9, 3.78), (1.43, 1.41), 2 * 10**12, 10**12, 2.68, (2.5, 2.8), 1024)
    )
    report.deviations.append(Deviation("own-kv", "attention", "logits differ", "a switch", "test_attention.py"))
    return report


def absent(check, case, run, reason):
    return Row(check, case, run, "", "", None, None, Status.NOT_APPLICABLE, reason)


def spoil(report, case, check, measured, detail):
    """One row of a check of the port fails, and whatever the port's later checks say is blocked."""
    hint = "layers.0.mlp: its inputs agree, its outputs do not"
    for index, row in enumerate(report.rows):
        if (row.case, row.run) == (case, "port") and row.check in CHECKS[CHECKS.index(check) + 1 :]:
            report.rows[index] = replace(row, status=Status.FAILED).following(check)
        if (row.case, row.run, row.check, row.tensor) == (case, "port", check, "t2"):
            report.rows[index] = replace(row, measured=measured, status=Status.FAILED, detail=detail, hint=hint)


@pytest.fixture
def demo():
    return build_report()
