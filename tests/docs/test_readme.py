"""What the README says of a whole run is what a whole run says."""

import re
import subprocess
import sys

import pytest

from docs.tables import ROOT

CLOSEST = re.compile(r"closest at (\d\.\d+) of")


def parts_of(line):
    """By ``;``, without the place of the closest, which another machine's rounding moves."""
    return [part.strip() for part in CLOSEST.sub("closest at _ of", line).split(";")]


@pytest.mark.nightly
def test_the_verdict_in_the_readme_is_that_of_a_whole_run(tmp_path):
    said = re.sub(r"\s+", " ", re.search(r"exit code 0: `(.*?)`", (ROOT / "README.md").read_text(), re.DOTALL)[1])
    words = [sys.executable, "-m", "parity", "run", "--report", tmp_path / "r.html", "--json", tmp_path / "r.json"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = parts_of(next(line for line in done.stdout.splitlines() if line.startswith("PASS")))
    assert float(CLOSEST.search(said)[1]) < 1
    assert [part for part in parts_of(said) if part != "..." and part not in found] == []
