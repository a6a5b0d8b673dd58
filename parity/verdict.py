"""The main job: every case against the prototype, throughput, and equivalence in bfloat16; one report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from parity.case import Case, find_cases
from parity.errors import InputError
from parity.judge import PORT, REFERENCE, Side, judge, recorded_baseline, row_if_it_raises
from parity.live import ADAPTER_CHECKS, adapter_side, live_port_side, original_baseline, prototype_rows
from parity.result import Report, Skip
from parity.select import matches
from parity.speed import judge_speed, live_timings, measure, speed_case
from parity.spread import judge_spread, measure_spread

CHECKOUT = (
    "git clone https://github.com/vllm-project/speculators && git -C speculators checkout 227b8a1b, "
    "then --prototype speculators"
)


@dataclass(frozen=True)
class Options:
    """What to run."""

    recordings: Path
    algorithms: tuple[str, ...]
    keyword: str = ""
    prototype: Path | None = None


def verdict(options: Options, progress: Callable[[str], None] = lambda line: None) -> Report:
    """Run everything that fits the options.

    Raises:
        InputError: recordings or checkout that cannot be used.
    """
    cases = [case for name in options.algorithms for case in find_cases(options.recordings, name)]
    if not cases:
        raise InputError(
            options.recordings, "recordings", f"no case of {' or '.join(options.algorithms)}", "at least one"
        )
    cases = [case for case in cases if matches(options.keyword, case.name)]
    report = _judge(cases, options, progress)
    for name in options.algorithms:
        if matches(options.keyword, f"{name}_throughput"):
            progress(f"{name}_throughput")
            with row_if_it_raises(report, "throughput", f"{name}_throughput", "port"):
                _add_speed(report, name, options.prototype)
    if options.prototype is None:
        report.skips.append(Skip("original", "live run", "no checkout of the prototypes was given", CHECKOUT))
    for case in cases:
        if case.dtype != "fp32":
            progress(f"{case.name} over seeds")
            with row_if_it_raises(report, "equivalence", case.name, "port"):
                report.rows.append(judge_spread(case, measure_spread(case)))
    return report


def _judge(cases: list[Case], options: Options, progress: Callable[[str], None]) -> Report:
    if options.prototype is None:
        return judge(cases, recorded_baseline, (REFERENCE, PORT), progress)
    rows = [row for name in options.algorithms for row in prototype_rows(options.prototype, name)]
    runnable, skips = _runnable(cases)
    adapter = Side("adapter", adapter_side(options.prototype), _not_for_adapter, ADAPTER_CHECKS)
    port = replace(PORT, evidence=live_port_side)
    report = judge(runnable, original_baseline(options.prototype), (REFERENCE, port, adapter), progress)
    report.rows[:0] = rows if cases else []  # a checkout alone compares nothing
    report.skips += skips
    return report


def _not_for_adapter(case: Case) -> str | None:
    return None if case.dtype == "fp32" else "bfloat16: the adapter is held against the original in float32"


def _runnable(cases: list[Case]) -> tuple[list[Case], list[Skip]]:
    """Cases the original can run here: those under DeepSpeed need it installed."""
    if find_spec("deepspeed"):
        return cases, []
    missing = [case for case in cases if case.dtype == "bf16ds"]
    skips = [
        Skip("original", case.name, "DeepSpeed is not installed", "pip install -e '.[deepspeed]'") for case in missing
    ]
    return [case for case in cases if case not in missing], skips


def _add_speed(report: Report, algorithm: str, checkout: Path | None) -> None:
    with speed_case(algorithm) as case:
        timings = {"reference": measure(case)}
        if checkout is not None:
            timings["original"] = live_timings(case, checkout)
        for prototype, measured in timings.items():
            row, speed = judge_speed(case, measured, prototype)
            report.rows.append(row)
            report.speeds.append(speed)
