"""``parity new``: what it writes, what it refuses, and that nothing half-written stays."""

import sys
from pathlib import Path

import pytest

from parity import scaffold
from parity.errors import InputError
from parity.scaffold import new_port
from tests.tidy import untidy


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["ab", "x" * 16])
def test_what_is_written_is_tidy_whatever_the_name_and_untidy_code_is_seen(name, tmp_path):
    """The planted faults: an import that nobody uses, then a line that wants formatting."""
    model = new_port(name, tmp_path) / "model.py"
    assert untidy(tmp_path, name) == ""
    text = model.read_text()
    model.write_text(text.replace("import torch\n", "import os\n\nimport torch\n"))
    assert "F401" in untidy(tmp_path, name)
    model.write_text(text + "x=1\n")
    assert "+x = 1" in untidy(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, name) for name in ("", "x", "two words", "../up", "Sprout", "9lives", "up\n", "x" * 17)),
        *((name, "a keyword") for name in ("class", "match")),
        *((name, "an installed package") for name in ("torch", "json", "ports")),
        *((name, "an algorithm") for name in ("hass", "eagle3", "mtp")),
    ],
)
def test_names_that_cannot_be_or_would_hide_something_are_refused(name, found, tmp_path):
    with pytest.raises(InputError) as caught:
        new_port(name, tmp_path)
    assert caught.value.field == "NAME"
    assert found in str(caught.value.found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [{"sprout"}, {"sprout/model.py"}, set()])
def test_nothing_is_overwritten(files, tmp_path):
    (tmp_path / "sprout").mkdir() if files != {"sprout"} else None
    for file in files:
        (tmp_path / file).write_text("mine")
    with pytest.raises(InputError, match="nothing is overwritten"):
        new_port("sprout", tmp_path)
    assert tree(tmp_path) == files


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    """The planted fault: the disk is full at the last file."""
    files = scaffold.render("sprout")
    monkeypatch.setattr(scaffold, "render", lambda name: {**files, "x" * 300: ""})
    with pytest.raises(InputError, match=r"folder: found .*File name too long"):
        new_port("sprout", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_templates_are_package_data():
    """Each of them is matched by what setuptools is told to ship."""
    shipped, package = "scaffold/**/*.j2", Path(scaffold.__file__).parents[1]
    assert f'"{shipped}"' in (package.parent / "pyproject.toml").read_text()
    assert {file.name for file in package.glob(shipped)} == {
        Path(name).name for name in scaffold.TEMPLATES.list_templates(["j2"])
    }
    assert len(scaffold.TEMPLATES.list_templates(["j2"])) == len([*package.glob(shipped)]) > 10


def test_a_pair_of_classes_that_exist_has_their_names_and_is_refused_where_there_are_none(
    command, tmp_path, capsys, monkeypatch
):
    text = "from torch import nn\nclass {}(nn.Module):\n    def __init__(self, size: int = 3, {}):\n"
    text += "        super().__init__()\n        self.{} = nn.Linear(size, 4)\n"
    text += (
        "    def forward(self, x, mask):\n        return some_loss(x, mask)\ndef some_loss(x, mask):\n    return x\n"
    )
    (tmp_path / "old_one.py").write_text(text.format("Old", "", "up"))
    (tmp_path / "new_one.py").write_text(text.format("New", "", "gate_up"))
    needy = text.format("Needy", "*, more: Only", "up")  # a name for type checkers alone
    (tmp_path / "needy_one.py").write_text(f"from __future__ import annotations\n{needy}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert command("new", "pair_one", "--port", "new_one.py:New", "--original", "old_one.py:Old") == 0
    found = (tmp_path / "pair_one.py").read_text()
    assert "'up': 'gate_up'" in found
    assert "{'old_one.some_loss': {'x': 'x', 'mask': 'mask'}}" in found
    assert command("run", "pair_one.py:PAIR") == 2
    assert "batches: found none" in capsys.readouterr().err
    assert command("new", "pair_two", "--port", "needy_one.py:Needy", "--original", "old_one.py:Old") == 0
    assert "lambda: Port(more=...)" in (tmp_path / "pair_two.py").read_text()
    for words in (["--port", "new_one.py:Nix"], ["--port", "nowhere:X"], ["--port", "new_one.py:New"], []):
        original = ["--original", "old_one.py:Old"] if words[1:] != ["new_one.py:New"] else []
        assert command("new", "pair_three", *words, *original) == 2
    assert command("new", "pair_one", "--port", "new_one.py:New", "--original", "old_one.py:Old") == 2
    assert not (tmp_path / "pair_three.py").exists()


def test_a_pair_may_be_called_as_its_algorithm_and_an_original_that_cannot_be_imported_is_one_line(
    command, tmp_path, capsys, monkeypatch
):
    """A file of one's own may put a stand-in for what is missing, and its classes are imported from there."""
    (tmp_path / "odd_kernels.py").write_text("import no_such_compiler\n")
    head = "from torch import nn\nfrom odd_kernels import fast\n"
    (tmp_path / "odd_draft.py").write_text(f"{head}class Odd(nn.Linear):\n    pass\n")
    standin = "import sys\nfrom types import SimpleNamespace\nsys.modules['odd_kernels'] = SimpleNamespace(fast=abs)\n"
    (tmp_path / "odd_made.py").write_text(f"{standin}from odd_draft import Odd\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert command("new", "mtp", "--port", "torch.nn:Linear", "--original", "odd_draft:Odd") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: command line: --original: found odd_draft:Odd, which raises ModuleNotFoundError")
    assert len(said.splitlines()) == 1
    monkeypatch.delitem(sys.modules, "odd_kernels", raising=False)
    assert command("new", "mtp", "--port", "torch.nn:Linear", "--original", "odd_made.py:Odd") == 0
    monkeypatch.delitem(sys.modules, "odd_kernels")
    assert "from odd_made import Odd as Original" in (tmp_path / "mtp.py").read_text()
