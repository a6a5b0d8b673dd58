"""The prototypes' names stand in ``ports/spellings.py`` alone: not in pages, recipes, messages or docstrings."""

import ast
import re
from pathlib import Path

import pytest

from ports import flags
from ports.spellings import NOW
from ports.training.settings import public_name

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [file for suffix in ("md", "sh") for file in (ROOT / "examples").rglob(f"*.{suffix}")]
QUOTES = {"originals.md"}
"""Pages of the originals' own command lines."""

SOURCES = [file for file in (ROOT / "ports").rglob("*.py") if file.name != "spellings.py"]
THEIRS = "multi_gpu|nproc_per_node|use_fsdp|fsdp_version|zero_stage|use_deepspeed|num_processes|mixed_precision"
THEIRS += "|data-path|output"
"""Flags of accelerate, pytest, Speculators and parity."""

FLAG = re.compile(rf"(?<![\w-])--(?!(?:{THEIRS})\b)([a-z][a-z0-9]*(?:[_-][a-z0-9]+)*)")


def old_names(text):
    """Of flags in a text; what is said of the prototypes' own programs is theirs."""
    found = []
    for line in text.splitlines():
        if "prototype" in line.lower() or "ports.eagle3.train" in line or "python -m ports.generate" in line:
            continue
        found += [name for name in FLAG.findall(line) if name.replace("-", "_") in NOW or "_" in name]
    return found


def old_fields(source):
    """What messages call a thing: old names that are arguments of errors, and of what raises them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISERS:
            words = [each.value for each in node.args if isinstance(each, ast.Constant)]
            found += [word for word in words if word in NOW]
    return found


RAISERS = {"InputError", "check_output", "check_outside", "check_regular", "read_json", "read_tensors", "opening"}
RAISERS |= {"DirectoryLock", "list_records", "complete_records", "start_or_go_on"}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_no_page_uses_an_old_name(file):
    assert file.name in QUOTES or old_names(file.read_text()) == []


def test_no_message_and_no_docstring_uses_an_old_name():
    found = {file.name: old_names(file.read_text()) + old_fields(file.read_text()) for file in SOURCES}
    assert {name: words for name, words in found.items() if words} == {}


PLANTED = ["use --basepath DIR", "`--ckpt-path auto`", "--loss_mask exact", "--epoch 3"]


@pytest.mark.parametrize("line", PLANTED)
def test_an_old_name_would_be_seen(line):
    assert len(old_names(f"It says {line}.")) == 1


def test_an_old_field_would_be_seen():
    assert old_fields('InputError(file, "tmpdir", 1, 2); DirectoryLock(folder, "cpdir")') == ["tmpdir", "cpdir"]


@pytest.mark.parametrize("theirs", sorted(NOW))
def test_every_flag_of_the_prototypes_is_understood_in_their_programs_alone(theirs):
    ours = f"--{public_name(theirs).replace('_', '-')}"
    for word in (theirs, theirs.replace("_", "-")):
        assert flags._respelled(f"--{word}=a/--{theirs}", True) == f"{ours}=a/--{theirs}"
        assert flags._respelled(f"--{word}", False) == f"--{theirs.replace('_', '-')}"
    assert flags._respelled(theirs, True) == theirs
