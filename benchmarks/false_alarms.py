"""How often a right port is called wrong: measured on draws of the original, and on cases recorded elsewhere.

    python -m benchmarks.false_alarms record OUT [--cases 48] [--seed 1] [--original DIR]   # in any environment
    python -m benchmarks.false_alarms judge OUT                                             # the port, here
    python -m benchmarks.false_alarms tail OUT [--cases 7] [--draws 128] [--nanogpt DIR] [--plot FILE.png]

``record`` draws cases at random and writes what the original computes in this environment: the reference, or the live
prototype for the first dozen that it can run. ``judge`` holds the port against them. ``tail`` takes fresh draws of the
original as ports, by the rule of 0.2.0 (four root mean squares of 3 and of 8 draws) and by today's, and fits the tail
of the worst ratio by case.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import genpareto

from parity import fixtures
from parity.allowed import DRAWN, Size, Spread, size_of, spread_of
from parity.checks import CHECKS, run_checks
from parity.compare import viewed
from parity.draws import DRAWS, Run, draws_of, runs_of, stages_of
from parity.pair import find_pair
from parity.prototypes.case import RecordedCase, find_cases
from parity.prototypes.original.child import record_original
from parity.prototypes.pair import FunctionSide
from parity.prototypes.pair import port as port_of
from parity.prototypes.recorded import load_recorded
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.spread import VIEWS, more_of, with_spread
from parity.prototypes.synthetic import write_case
from parity.run import Runner
from parity.side import Run as Ran
from parity.trace import Trace, read_trace, write_trace
from parity.trace_pair import TracePair
from parity.verdict import Status

COMPUTED = ("targets", "forward", "loss", "cross_step_grad", "gradients", "optimizer_step", "curve")
"""Checks of what rounding moves."""

OF_FILES = {"throughput", "initialisation", "round_trip", "resume", "converted", "chain"}
"""Checks that no rounding of the original bounds."""

LIVE = 12
FRESH = 10_000
"""Numbers of draws from here on are no calibration's."""


def settings_at(number: int, seed: int) -> dict[str, Any]:
    """Of one case: every field by chance, half of them of either algorithm."""
    chance = random.Random(seed * 1000 + number)
    return {
        "algorithm": ("eagle3", "hass")[number % 2],
        "k": chance.randint(1, 5),
        "bs": chance.randint(1, 4),
        "accumulation": chance.choice((1, 1, 2, 3)),
        "lr": float(f"{10 ** chance.uniform(-5, -2):.2g}"),
        "epoch": chance.randint(0, 3),
        "noise": chance.random() < 0.5,
        "shuffle": chance.random() < 0.5,
        "seed": chance.randrange(10**6, 10**7),
    }


def record(out: Path, count: int, seed: int, original: Path | None) -> None:
    """Write so many cases and what the original computes; every fourth in bfloat16, where no live original runs."""
    if torch.get_num_threads() > 1:  # an environment that asks for several threads gets them
        torch.set_num_threads = lambda threads: None
    torch.backends.mkldnn.enabled = "ATEN_CPU_CAPABILITY" not in os.environ
    for number in range(count):
        name, words = f"case{number:02}", settings_at(number, seed)
        live = original is not None and number < LIVE
        half = words["algorithm"] == "hass" and number % 4 == 3
        words |= {"accumulation": 1} if live else {"dtype": "bf16"} if half else {}
        case = write_case(out, fixtures.RECORDINGS / "fixture", name, **words)
        if live:
            record_original(case, original, out / "live", link_fixture=True)
        else:
            write_trace(trace_reference(case), out / name / "trace")
        print(name, json.dumps(words), "live" if live else "reference", flush=True)


def cases_in(out: Path) -> list[RecordedCase]:
    """What ``record`` wrote: a live recording takes the place of its case."""
    live = {case.name: case for case in find_cases(out / "live")} if (out / "live").exists() else {}
    return [live.get(case.name, case) for case in find_cases(out)]


def recorded(case: RecordedCase, folder: Path) -> Ran:
    """The original's trace of a case, with what few draws here say of it, and more where they are asked for."""
    there = case.directory / "trace"
    trace = replace(read_trace(there), run="recorded") if there.exists() else load_recorded(case)
    return Ran(with_spread(trace, case), case=case, more=more_of(case))


def judge(out: Path) -> None:
    """Hold the port against every case; tells what is called wrong."""
    wrong = []
    for case in cases_in(out):
        pair = replace(find_pair(case.algorithm), original=FunctionSide("recorded", recorded), sides=())
        live = case.directory.parent.name == "live"
        pair = replace(pair, port=port_of(afresh=live))
        checks = {check.name for check in pair.every_check} - OF_FILES
        runner = Runner(pair, checks)
        runner.judge(case)
        runner.close()
        failed = [row for row in runner.report.rows if row.status in (Status.FAILED, Status.BLOCKED)]
        wrong += [case.name] if failed else []
        counts = runner.report.counts()
        print(f"{case.name}: {counts.matched} of {counts.quantities}, closest {counts.closest or 0:.2f}", flush=True)
        for row in failed[:5]:
            print(f"   {row.check} {row.tensor}: {row.ratio} {row.detail[:300]}")
    print(f"{len(wrong)} of {len(cases_in(out))} called wrong: {wrong}")


def reference_runs(case: RecordedCase) -> Run:
    """The reference of a case, run again."""
    return lambda number, disturbance=None: trace_reference(case, draw=number, disturbance=disturbance)


def by_position(base: Trace, trace: Trace) -> Trace:
    """A trace in the coordinates that are compared."""
    return viewed(base, trace, VIEWS)[1]


def nanogpt_runs(root: Path) -> Run:
    """nanoGPT's model from a checkout, run again."""
    pair = find_pair("examples/pairs/nanogpt.py:NANOGPT")
    side, case = pair.at(root, None).original, pair.find_cases(None)[0]
    with side.trace(case) as ran:
        again = runs_of(side, case, ran.trace)
        return lambda number, disturbance=None: again(number, disturbance) if number or disturbance else ran.trace


def ratios(base: Trace, found: Trace, spread: Spread) -> list[float]:
    """Measured over allowed of every row that rounding bounds."""
    evidence = TracePair(None, base, replace(found, run="port"), measure_spread=lambda: spread)
    rows = run_checks(evidence, CHECKS, COMPUTED)
    return [row.ratio or 0.0 for row in rows if row.bound == "rounding" and row.compared]


def as_before(spread: Spread) -> Spread:
    """The rule of 0.2.0: root mean squares alone."""
    return {name: [Size(size_of(size).rms) for size in sizes] for name, sizes in spread.items() if name != DRAWN}


def worst_by_draw(run: Run, aligned: Any, draws: int) -> dict[str, list[float]]:
    """The worst ratio of every fresh draw, taken as a port: by 3 and by 8 draws of 0.2.0's rule, and by today's."""
    whole = run(0)
    base, few = aligned(whole), draws_of(run)
    eight = [aligned(run(number)) for number in range(1, 9)]
    rules = {
        "0.2.0, 3 draws": as_before(spread_of(base, eight[:DRAWS])),
        "0.2.0, 8 draws": as_before(spread_of(base, eight)),
        "today": [*stages_of(run, whole, few, aligned, 1e9)][-1],
    }
    found: dict[str, list[float]] = {name: [] for name in rules}
    for number in range(FRESH, FRESH + draws):
        moved = aligned(run(number))
        for name, spread in rules.items():
            found[name].append(max(ratios(base, moved, spread), default=0.0))
    return found


def fitted(worst: Sequence[float]) -> float:
    """The probability that a case is beyond its bound, by a generalised Pareto tail over the upper fifth of ratios."""
    sizes = np.sort(np.asarray(worst))
    threshold = sizes[int(0.8 * len(sizes))]
    beyond = sizes[sizes > threshold] - threshold
    if threshold >= 1 or not len(beyond):
        return float((sizes > 1).mean())
    shape, _, scale = genpareto.fit(beyond, floc=0)
    return float(len(beyond) / len(sizes) * genpareto.sf(1 - threshold, shape, scale=scale))


def tail(out: Path, count: int, draws: int, nanogpt: Path | None, plot: Path | None) -> None:
    """Rates by case, and the plot of their tails."""
    found = {}
    for case in cases_in(out)[:count]:
        base = trace_reference(case)
        found[case.name] = worst_by_draw(reference_runs(case), partial(by_position, base), draws)
        tell(case.name, found[case.name])
    if nanogpt is not None:
        found["nanogpt"] = worst_by_draw(nanogpt_runs(nanogpt), lambda trace: trace, draws)
        tell("nanogpt", found["nanogpt"])
    for rule in next(iter(found.values())):
        every = [ratio for case in found.values() for ratio in case[rule]]
        rate = float(np.mean([fitted(case[rule]) for case in found.values()]))
        print(f"{rule}: {sum(ratio > 1 for ratio in every)} of {len(every)} called wrong; fitted {rate:.1e} by case")
    if plot is not None:
        draw_tails(found, plot)


def tell(name: str, worst: dict[str, list[float]]) -> None:
    """A line of one case."""
    rates = {rule: float(np.mean(np.array(each) > 1)) for rule, each in worst.items()}
    said = (f"{rule} {rates[rule]:.2%} (largest {max(each):.2f})" for rule, each in worst.items())
    print(f"{name}: " + "; ".join(said), f"fitted {fitted(worst['today']):.1e}", flush=True)


def draw_tails(found: dict[str, dict[str, list[float]]], file: Path) -> None:
    """How often the worst ratio of a draw exceeds x: one line a case, by 0.2.0's three draws and by today's rule."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, rule in zip(axes, ("0.2.0, 3 draws", "today")):
        for name, worst in found.items():
            sizes = np.sort(worst[rule])
            axis.step(sizes, 1 - np.arange(len(sizes)) / len(sizes), where="post", label=name, linewidth=1)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", title=rule, xlabel="worst measured / allowed of a right port")
    axes[0].set_ylabel("share of draws beyond")
    axes[1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main(words: list[str]) -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "judge", "tail"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=128)
    for name in ("--original", "--nanogpt", "--plot"):
        parser.add_argument(name, type=Path)
    said = parser.parse_args(words)
    if said.what == "record":
        record(said.out, said.cases, said.seed, said.original)
    elif said.what == "judge":
        judge(said.out)
    else:
        tail(said.out, said.cases, said.draws, said.nanogpt, said.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
