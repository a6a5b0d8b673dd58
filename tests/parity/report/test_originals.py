"""The page and the JSON of the studies hold what was measured, and the command ends as the studies do."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import parity.cli
import parity.prototypes.others.command
from parity.prototypes.explain.prototype import prototype_facts, step_weights
from parity.prototypes.explain.study import Cause, Finding, Study
from parity.prototypes.others import OTHERS
from parity.report.originals import print_studies, render_originals, size, worst, write_studies_json
from parity.verdict import Row, Status

ROW = Row("others", "one", "HASS against prototype", "logits", "step0.logits", 1.5e-7, 5e-6, Status.PASSED)
MACHINE = {"cpu": "a machine", "torch": "2"}


@pytest.fixture
def found(cases) -> Study:
    config = {"v_w": 1.0, "p_w": 0.1, "topk_w": 1.0, "b1": 0.9, "b2": 0.95, "max_len": 7, "noise": "none", "std": 0}
    facts = {"train_config": config, "clip_value": 0.25, "rope_base": 123.0, "config_refusal": "ValueError: a|b"}
    facts |= {"standins": ["nothing at all"], "prototype": prototype_facts(cases["hass_fp32_k3"])}
    findings = (
        Finding("logits, step 0", 0.4321, ROW, (("head-norm", 0.3),)),
        Finding("gradients, fc.bias", None, replace(ROW, quantity="gradients"), (("fc-bias", None),)),
    )
    causes = (Cause("head-norm", "no norm"), Cause("fc-bias", "a bias"))
    return Study("HASS", "prototype", "hass_fp32_k3", causes, findings, (ROW,), facts)


def test_the_page_holds_every_number(found: Study) -> None:
    page = render_originals([found], MACHINE, ["eagle3"])
    assert "| logits, step 0 | 0.43 | 1.5e-07 | 5e-06 | yes | head-norm |" in page
    assert "| gradients, fc.bias | only one has it | 1.5e-07 | 5e-06 | yes | fc-bias |" in page
    assert "| head-norm | no norm |  |  | 0.3 |  |  |" in page
    assert "| fc-bias | a bias |  |  |  |  | only one has it |" in page
    assert "| gradients clipped | value 0.25 | value 0.5 |" in page
    assert "| base of the rotary frequencies | 123 | 500000 |" in page
    assert "stops: `ValueError: a/b`" in page
    assert "The run passed." in page
    assert OTHERS["hass"].commit in page
    assert "no HASS to compare with" in page
    assert "nothing at all" in page


def test_a_failure_is_on_the_page_and_on_the_terminal(found: Study, capsys: pytest.CaptureFixture[str]) -> None:
    bad = replace(ROW, measured=1.0, status=Status.FAILED, detail="the moon is full")
    broken = replace(found, findings=(replace(found.findings[0], left=bad),), rows=(bad,))
    page = render_originals([found, broken], MACHINE, ["eagle3"])
    assert "The run FAILED." in page
    print_studies([], Console(width=150))
    assert "FAIL: studies of other originals 0 of 0" in capsys.readouterr().out
    assert "| logits, step 0 | 0.43 | 1 | 5e-06 | NO |" in page
    print_studies([found, broken], Console(width=150))
    said = capsys.readouterr().out
    assert "FAILED others logits step0.logits: the moon is full" in said
    assert "FAIL: studies of other originals 1 of 2" in said


def test_json_holds_the_studies(found: Study, tmp_path: Path) -> None:
    write_studies_json([found], tmp_path / "others.json")
    document = json.loads((tmp_path / "others.json").read_text())
    (study,) = document["studies"]
    assert document["passed"] is study["passed"] is True
    assert study["findings"][0]["difference"] == 0.4321
    assert study["findings"][1]["difference"] is None
    assert study["rows"][0]["status"] == "passed"


@pytest.mark.parametrize(("passed", "code"), [(Status.PASSED, 0), (Status.FAILED, 1)])
def test_the_exit_code_is_the_studies(
    passed: Status, code: int, found: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def run_studies(checkouts, recordings, say):
        asked.update(checkouts)
        return [replace(found, rows=(replace(ROW, status=passed),))]

    monkeypatch.setattr(parity.prototypes.others.command, "run_studies", run_studies)
    monkeypatch.setattr(parity.cli, "hush", lambda: None)
    files = tmp_path / "o.json", tmp_path / "o.md"
    words = ["others", "--hass", "there", "--json", str(files[0]), "--markdown", str(files[1])]
    monkeypatch.setattr(sys, "argv", ["parity", *words])
    with pytest.raises(SystemExit) as stop:
        parity.cli.main()
    assert stop.value.code == code
    assert asked == {"hass": Path("there")}
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: command line: --eagle, --hass: found neither"),
        (["--eagle", "no/where"], "eagle/traineagle3: found no such folder, expected a checkout of SafeAILab/EAGLE"),
        (["--hass", "no/where"], "found no such folder, expected a checkout of HArmonizedSS/HASS at 38922e43"),
    ],
)
def test_bad_input_exits_with_two(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parity.cli, "hush", lambda: None)
    monkeypatch.setattr(sys, "argv", ["parity", "others", *words])
    with pytest.raises(SystemExit) as stop:
        parity.cli.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_numbers(found: Study) -> None:
    assert size(math.inf) == "only one has it"
    assert worst(found, "logits") == "0.432"
    assert worst(found, "gradients") == "only one has it"
    assert "Speculators registers eagle3, hass: a HASS" in render_originals([found], MACHINE, ["eagle3", "hass"])


def test_step_weights_are_read_off_the_losses() -> None:
    assert step_weights({"kldiv_steps": [1.0, 2.0], "loss": 3.0}) == [1.0, 1.0]
    assert step_weights({"kldiv_steps": [1.0, 2.0], "loss": 1.5}) == [0.5, 0.5]
    assert step_weights({"kldiv_steps": [1.0, 2.0], "loss": 2.0}) == []


def test_the_shipped_page_is_of_the_pinned_commits_and_passed() -> None:
    page = (Path(__file__).parents[3] / "docs" / "originals.md").read_text()
    assert "The run passed." in page
    assert "| NO |" not in page
    assert all(other.commit in page for other in OTHERS.values())
    causes = {cause.id for module in ("eagle", "hass", "speculators") for cause in _causes(module)}
    assert len(causes) > 15
    assert all(f"\n| {cause} | " in page for cause in causes)


def _causes(module: str) -> tuple[Cause, ...]:
    import importlib

    found: tuple[Cause, ...] = importlib.import_module(f"parity.prototypes.explain.{module}").CAUSES
    return found
