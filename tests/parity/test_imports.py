"""The contracts in ``pyproject.toml`` on who may import whom hold, and can fail; ways are drawn from the imports."""

import re
from graphlib import CycleError
from pathlib import Path

import pytest

from docs import ways

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
BROKEN = {
    "roots": (r"root_packages = \[", 'root_packages = ["planted", ', ""),
    "circles": (r"ancestors = \[", 'ancestors = ["planted", ', "No cycles are allowed in planted"),
    "core": (r'"parity\.fixtures\.\*\* -> ports\.\*\*",', "", "parity is not allowed to import ports"),
    "run": (r'"parity\.plugin", ', "", "parity.plugin -> parity.run"),
    "layers": (
        r'"training",\n    "verifier"',
        '"verifier",\n    "training"',
        "ports.training is not allowed to import ports.verifier",
    ),
}


def judged(project, folder, capsys, monkeypatch):
    """Exit code and output of import-linter under a ``pyproject.toml``."""
    pytest.importorskip("importlinter", reason="import-linter is not installed: pip install -e '.[dev]'")
    from importlinter.cli import lint_imports

    monkeypatch.chdir(ROOT)
    (folder / "pyproject.toml").write_text(project)
    code = lint_imports(config_filename=str(folder / "pyproject.toml"), cache_dir=str(folder / "cache"))
    return code, " ".join(capsys.readouterr().out.split())


def test_the_contracts_hold(tmp_path, capsys, monkeypatch):
    code, said = judged(PROJECT, tmp_path, capsys, monkeypatch)
    assert code == 0, said


def test_a_contract_that_allows_less_fails(tmp_path, capsys, monkeypatch):
    project = PROJECT
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / "planted" / name).mkdir(parents=True)
        (tmp_path / "planted" / name / "__init__.py").write_text(f"import planted.{other}\n")
    (tmp_path / "planted" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for old, new, _ in BROKEN.values():
        project, count = re.subn(old, new, project, count=1)
        assert count == 1, old
    code, said = judged(project, tmp_path, capsys, monkeypatch)
    assert code == 1
    assert [name for name, (*_, complaint) in BROKEN.items() if complaint not in said] == []


def test_there_is_no_circle_of_modules_and_ways_lead_downwards():
    known = ways.modules()
    for way in ways.WAYS.values():
        rows = ways.levels(*way)
        row_of = {name: row for row, names in enumerate(rows) for name in names}
        assert len(row_of) > 20
        for name, row in row_of.items():
            assert all(row_of[each] > row for each in ways.imports(known[name], known) & row_of.keys()), name


def test_a_circle_ends_the_drawing(tmp_path, monkeypatch):
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "one.py").write_text("from parity import two\n")
    (tmp_path / "parity" / "two.py").write_text("import parity.one\n")
    monkeypatch.setattr(ways, "ROOT", tmp_path)
    with pytest.raises(CycleError):
        ways.levels("parity.one", ("parity.",), ())
