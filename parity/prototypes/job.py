"""The main job: every case against the prototype, throughput, and equivalence in bfloat16; one report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from parity.errors import InputError
from parity.prototypes.case import Case, find_cases
from parity.prototypes.judge import PORT, REFERENCE, Side, judge, recorded_baseline
from parity.prototypes.live import ADAPTER_CHECKS, adapter_side, live_port_side, original_baseline, prototype_rows
from parity.prototypes.speed import measure, measure_live, speed_case
from parity.prototypes.spread import judge_spread, measure_spread
from parity.select import matches
from parity.speed import read_baseline, save_baseline
from parity.verdict import Report, Skip

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
    baseline: Path | None = None
    save_baseline: Path | None = None


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
    progress("throughput")
    _add_speed(report, options)
    if options.prototype is None:
        report.skips.append(Skip("original", "live run", "no checkout of the prototypes was given", CHECKOUT))
    for case in cases:
        if case.dtype != "fp32":
            progress(f"{case.name} over seeds")
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


def _add_speed(report: Report, options: Options) -> None:
    """Gate one against the live original where there is one, else against the reference; gate two where asked for."""
    baseline = read_baseline(options.baseline) if options.baseline else None
    figures = {}
    for name in options.algorithms:
        if not matches(options.keyword, f"{name}_throughput"):
            continue
        with speed_case(name) as case:
            measured = measure(case)
            figures[case.name] = measured.figure
            report.rows += measured.rows(case, baseline)
            report.speeds.append(measured.speed(case))
            if options.prototype is not None:
                live = measure_live(case, options.prototype)
                report.rows += live.rows(case)
                report.speeds.append(live.speed(case))
    if options.save_baseline is not None:
        save_baseline(options.save_baseline, figures)
