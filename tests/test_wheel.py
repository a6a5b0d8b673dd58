"""What an installed wheel brings: our two packages and no other's name, and what each of them needs."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("ports", "parity", "fixtures", "docs", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<of>[\w,-]+)\])?[^;]*(?:;.*extra == ['\"](?P<extra>[\w-]+)['\"])?")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, in which no earlier build has left anything."""
    copy, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for source in map(ROOT.joinpath, SOURCES):
        if source.is_dir():
            shutil.copytree(source, copy / source.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / source.name)
    subprocess.run([sys.executable, "-c", BUILD, str(output)], cwd=copy, check=True, capture_output=True, timeout=120)
    return zipfile.ZipFile(next(output.iterdir()))


def test_no_name_but_ours_is_installed(wheel):
    files = [name for name in wheel.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in files} == {"parity", "ports"}


def test_the_fixtures_and_the_ledger_are_whole(wheel):
    files = [file for file in (ROOT / "fixtures").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert len(files) > 100
    assert {f"parity/{file.relative_to(ROOT)}" for file in files} <= set(wheel.namelist())
    assert wheel.read("parity/prototypes/deviations.md") == (ROOT / "docs" / "deviations.md").read_bytes()


def test_what_only_the_harness_needs_is_an_extra(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needs = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist") or []
    found = [match for need in needs if (match := REQUIREMENT.fullmatch(need))]
    assert len(found) == len(needs)
    named = {extra: {match["name"] for match in found if match["extra"] == extra} for extra in (None, "parity")}
    assert named["parity"] == {"matplotlib", "pytest"}
    assert named["parity"].isdisjoint(named[None])
    (ours,) = [match["of"] for match in found if match["name"] == "speculator-parity" and match["extra"] == "dev"]
    assert "parity" in ours.split(",")


@pytest.mark.parametrize("words", [["run", "eagle3", "-k", "k1"], ["--help"]])
def test_the_harness_without_its_extra_says_what_to_install(words):
    done = without_the_extra("from parity.__main__ import main; main()", *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "error: environment: matplotlib, pytest: found nothing, expected what comes with "
        "pip install 'speculator-parity[parity]'"
    ]


def without_the_extra(code, *words):
    absent = "import sys; sys.modules.update(pytest=None, matplotlib=None)"
    command = [sys.executable, "-c", f"{absent}\n{code}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
