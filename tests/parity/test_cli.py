"""``parity``: exit codes, messages and the files it writes."""

import errno
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import parity.cli
import parity.environment
import parity.prototypes.pair
from parity.pair import SHIPPED, Options, find_pair
from parity.run import KitReport
from parity.verdict import Row, Skip, Status
from tests.parity.folders import META, make_fixture, write_checkout, write_meta


def one_row(status):
    return KitReport(rows=[Row("forward", "one", "port", "logits", "mb0.step0.logits", 1.0, 2.0, status)])


def broken(*arguments):
    raise AssertionError("measured too early")


@pytest.fixture
def verdicts(monkeypatch):
    """What was asked of the run, which passes without running anything."""
    asked = []

    def run_pair(pair, options, progress):
        asked.append((pair.name, options))
        return one_row(Status.PASSED)

    monkeypatch.setattr(parity.cli, "run_pair", run_pair)
    return asked


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (one_row(Status.PASSED), 0),
        (one_row(Status.FAILED), 1),
        (one_row(Status.BLOCKED), 1),
        (KitReport(), 1),
        (KitReport(skips=[Skip("original", "one", "no checkout", "clone it")]), 1),
    ],
)
def test_the_exit_code_is_the_verdict(report, code, command, monkeypatch, capsys):
    monkeypatch.setattr(parity.cli, "run_pair", lambda pair, options, progress: report)
    assert command("run", "hass") == code
    assert ("PASS" in capsys.readouterr().out) == (code == 0)


@pytest.mark.parametrize("option", ["--original", "--prototype"])
def test_options_reach_the_run(option, command, verdicts, tmp_path):
    words = ("--recordings", tmp_path, "-k", "fp32 and not k4", "--checks", "loss,curve")
    assert command("run", "hass", option, "checkout", *words) == 0
    assert command("run") == command("run", "all") == 0
    asked = Options(Path("checkout"), tmp_path, "fp32 and not k4", ("loss", "curve"))
    assert verdicts == [("hass", asked), *2 * [("eagle3", Options()), ("hass", Options())]]


BAD = {
    "run nosuch": "error: command line: PAIR: found nosuch, expected eagle3, hass or FILE.py:NAME",
    "run --recordings /no/where": "error: /no/where: recordings: found no such folder",
    "run --recordings {tmp}": "one/meta.json: dtype: found 'fp8'",
    "run -k a!b": "error: command line: -k: found 'a!b', expected words joined by and, or, not, parentheses",
    "run eagle3 --checks speed -k none": "checks: found speed, expected of environment",
    "record --prototype /no/where --output {tmp} -k eagle3_fp32_k1": "research/eagle3",
    "record eagle3": "--original: found nothing, expected a checkout: git clone",
    "record eagle3 --output {tmp} -k nosuch": "error: command line: -k: found 'nosuch', expected a word of eagle3_bf16",
    "trace eagle3 {tmp} -k nosuch": "error: command line: -k: found 'nosuch', expected a word of eagle3_bf16ds_k3",
    "trace eagle3 {tmp} --leave-out all": "error: command line: --leave-out: found all, expected of init, after",
    "run hass --original /no/where -k fp32_k1": "research/hass: found no such folder, expected a checkout",
    "doctor --prototype /no/where": "research/eagle3: found no such folder",
}
PLACES = {
    "run --json /no/where/x.json": "error: /no/where/x.json: --json: found no folder /no/where",
    "run --report /no/where/x.html": "error: /no/where/x.html: --report: found no folder /no/where",
    "run --report {tmp}": "--report: found a folder, expected a file",
    "compare {tmp} {tmp} --json /no/where/x": "error: /no/where/x: --json: found no folder /no/where",
    "record --prototype /no --output /proc/no": "error: /proc/no: --output: found ",
    "record --prototype /no --output {tmp}/one/meta.json/no": "meta.json/no: --output: found no folder",
    "trace eagle3 /proc/no": "error: /proc/no: the command line: found ",
}
"""Places of what is to be written, which are looked at before anything is measured."""


@pytest.mark.parametrize("line", [*BAD, *PLACES])
def test_bad_input_exits_with_two_and_one_line(line, command, tmp_path, monkeypatch, capsys):
    make_fixture(tmp_path)
    write_meta(tmp_path / "one", {**META, "dtype": "fp8"})
    if line in PLACES:
        monkeypatch.setattr(parity.cli, "find_pair", broken)
    assert command(*(word.replace("{tmp}", str(tmp_path)) for word in line.split())) == 2
    complaint = capsys.readouterr().err
    assert {**BAD, **PLACES}[line] in complaint
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, "nobody reads the output"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the system: found [Errno 28] No space left"),
    ],
)
def test_what_goes_wrong_outside_is_a_line(error, code, said, command, monkeypatch, capfd):
    def interrupted(*arguments):
        raise error

    monkeypatch.setattr(parity.cli, "run_pair", interrupted)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored afterwards
    assert command("run") == code
    complaint = capfd.readouterr().err
    assert complaint.startswith(said)
    assert complaint.count("\n") == 1


def test_the_help_names_the_options(command, capsys):
    assert command("run", "--help") == 0
    assert "--recordings" in capsys.readouterr().out


def test_a_recorded_case_passes(command, tmp_path):
    assert command("run", "eagle3", "-k", "eagle3_fp32_k1", "--json", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"eagle3_fp32_k1"}
    assert {row["run"] for row in rows} == {"reference", "port"}
    assert all(row["passed"] is not False for row in rows)


@pytest.mark.parametrize(("keyword", "code"), [("k3_noise or bf16ds", 0), ("bf16ds", 2)])
def test_cases_that_cannot_be_recorded_here_are_left_out_with_the_reason(
    keyword, code, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(parity.prototypes.pair, "find_spec", lambda name: None)
    pair = replace(find_pair("eagle3"), record=lambda case, original, output: output / case.name)
    monkeypatch.setattr(parity.cli, "find_pair", lambda name: pair)
    assert command("record", "eagle3", "--original", tmp_path, "--output", tmp_path / "new", "-k", keyword) == code
    told = capsys.readouterr()
    assert "eagle3_bf16ds_k3 is left out: DeepSpeed is not installed: pip install -e '.[deepspeed]'" in told.err
    assert told.out == ("" if code else f"{tmp_path / 'new' / 'eagle3_fp32_k3_noise'}\n")


@pytest.mark.parametrize("there", [True, False])
def test_the_doctor_tells_what_is_there_and_how_to_get_the_rest(there, command, monkeypatch, capsys):
    monkeypatch.setattr(parity.environment, "find_spec", lambda name: there or None)
    monkeypatch.setattr(parity.environment.torch.cuda, "is_available", lambda: False)
    assert command("doctor") == 0
    out = capsys.readouterr().out
    for word in ("torch", "speculators", "matmul_precision", "GPU: none: tests marked gpu", "no checkout given"):
        assert word in out
    present = [f"{name}: present" in out for name in parity.environment.OPTIONAL]
    assert present == [there] * len(present)
    remedy = "deepspeed: missing, needed for the bf16ds cases with --original: pip install -e '.[deepspeed]'"
    assert (remedy in out) == (not there)


def test_the_doctor_tells_another_checkout_file_by_file(command, tmp_path, monkeypatch, capsys):
    files = [file for name in SHIPPED for file in write_checkout(tmp_path, name)]
    assert command("doctor", "--original", tmp_path) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("original: ")]
    assert len(told) == len(files) > 2
    assert all(re.search(r"\.py: found \w{64}, expected \w{64}$", line) for line in told)
    monkeypatch.setattr(parity.cli, "find_pair", lambda name: replace(find_pair(name), verify=lambda root: []))
    assert command("doctor", "--original", tmp_path) == 0
    assert f"original: {tmp_path} holds the commit's files" in capsys.readouterr().out


def test_the_command_in_a_process_of_its_own():
    words = [sys.executable, "-m", "parity", "run", "nosuch"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: command line: PAIR: found nosuch, expected eagle3, hass or FILE.py:NAME\n"
    assert done.stdout == ""
