"""The example of the public kit does what it says, in as few lines as it says."""

import ast
import os
import subprocess
from pathlib import Path

from parity import Options, run_pair
from parity.pair import find_pair

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "compare_modules.py"
COMPARISON = {"NAMES", "batches", "ORIGINAL", "PORT", "PAIR"}


def test_the_example_passes_and_writes_its_report(programs, tmp_path):
    done = subprocess.run(
        [programs / "python", FILE, str(tmp_path / "report.html")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("PASS") == 1
    assert "hand-written" in (tmp_path / "report.html").read_text()


def test_the_pair_takes_the_lines_that_readme_and_manual_say():
    lines, seen = 1, set()  # the import
    for node in ast.parse(FILE.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names = {node.name}
        elif isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        else:
            continue
        if names & COMPARISON:
            seen |= names
            lines += (node.end_lineno or 0) - node.lineno + 1
    assert seen == COMPARISON
    assert lines < 25
    for page in ("docs/kit.md", "README.md"):
        assert f"in {lines} lines" in (ROOT / page).read_text()


def test_the_command_runs_it_by_the_same_code():
    pair = find_pair(f"{FILE}:PAIR")
    report = run_pair(pair, Options(checks=("forward", "loss")))
    assert report.passed
    assert {row.check for row in report.rows} == {"forward", "loss"}
