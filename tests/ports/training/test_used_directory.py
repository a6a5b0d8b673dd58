"""Starts in directories that hold something: a refusal has touched nothing, and what is the user's always stays."""

import json
import shutil
from pathlib import Path

import pytest

from ports.eagle3 import train as eagle3
from ports.training.checkpoint import FOLDER
from tests.ports.training.conftest import words_of

OWN = [f".{name}{end}/note" for name in ("model0", "mine") for end in (".partial", ".old", ".removed")]
"""A user's files in a checkpoint directory, under names that a careless writer would take for its own."""

OWN += [".mine.txt.old", ".mine.txt.partial", "model9_is_best/note", "notes.txt"]


@pytest.fixture(scope="session")
def run_once(built_once, tmp_path_factory):
    """``step_2`` and ``model0`` of a run with three steps."""
    cpdir = tmp_path_factory.mktemp("run") / "cp"
    assert eagle3.main(words_of(built_once, "eagle3", cpdir, bs=2, save_steps=2)) == 0
    return cpdir


def nothing(cpdir):
    """A run as it was left."""


def without_states(cpdir):
    for state in cpdir.glob(f"*/{FOLDER}"):
        shutil.rmtree(state)


def without_checkpoints(cpdir):
    """As a run leaves it that was killed before its first save."""
    for state in cpdir.glob(f"*/{FOLDER}"):
        shutil.rmtree(state.parent)


def empty(cpdir):
    shutil.rmtree(cpdir)
    cpdir.mkdir()


CHOICE = "--resume auto to go on with it, --overwrite to start afresh over it, or another --out"
LOGS = "metrics.jsonl, settings.json"
RUN = f"out: found a run: model0, step_2, {LOGS}, expected {CHOICE}"
FEW = "records: found 6, expected at least batch_size = 7"
NO_STATE = "resume: found no training state in model0, step_2, expected a checkpoint to go on from; --overwrite"
OWN_WEIGHTS, WEIGHTS = ({"ckpt_path": path, "weights_only": None} for path in ("cp/model0", "run"))
STARTS = {
    "over a run": (nothing, {}, 2, RUN),
    "over a run's log": (without_checkpoints, {}, 2, f"out: found a run: {LOGS}, expected {CHOICE}"),
    "over drafts": (without_states, {}, 2, RUN),
    "over a run, from another one's weights": (nothing, WEIGHTS, 2, RUN),
    "over a run, on with another one": (nothing, {"ckpt_path": "run"}, 2, RUN),
    "over a run, from its own weights": (nothing, OWN_WEIGHTS, 2, RUN),
    "on, but no state is left": (without_states, {"ckpt_path": "auto"}, 2, NO_STATE),
    "both": (nothing, {"ckpt_path": "auto", "overwrite": None}, 2, "overwrite: found --resume auto, expected"),
    "over what it starts from": (nothing, OWN_WEIGHTS | {"overwrite": None}, 2, "overwrite: found --resume "),
    "refused late": (empty, {"bs": 7}, 2, FEW),
    "refused late, over a run": (nothing, {"overwrite": None, "bs": 7}, 2, FEW),
    "refused late, with another one": (nothing, {"overwrite": None, "ckpt_path": "run", "lr": 1}, 2, "lr was"),
    "refused late, on": (nothing, {"ckpt_path": "cp/step_2", "lr": 1}, 2, "lr was"),
    "on": (nothing, {"ckpt_path": "auto"}, 0, ""),
    "on, before the first save": (without_checkpoints, {"ckpt_path": "auto"}, 0, ""),
    "on with a named one": (nothing, {"ckpt_path": "cp/step_2"}, 0, ""),
    "over a run, as asked": (nothing, {"overwrite": None}, 0, ""),
    "over drafts, as asked": (without_states, {"overwrite": None}, 0, ""),
    "over a run from another one's weights, as asked": (nothing, WEIGHTS | {"overwrite": None}, 0, ""),
    "beside a user's files": (empty, {}, 0, ""),
}


def contents(folder):
    files = (path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in files}


@pytest.mark.parametrize("start", STARTS)
def test_a_start(run_once, words, tmp_path, reset_accelerator, capsys, start):
    prepare, flags, code, said = STARTS[start]
    cpdir = Path(shutil.copytree(run_once, tmp_path / "cp"))
    shutil.copytree(run_once / "model0", tmp_path / "run")
    shutil.copyfile(run_once / "metrics.jsonl", tmp_path / "metrics.jsonl")
    prepare(cpdir)
    for name in OWN:
        (cpdir / name).parent.mkdir(exist_ok=True)
        (cpdir / name).write_text("the user's")
    before = contents(tmp_path)
    flags = {
        name: tmp_path / value if name == "ckpt_path" and value != "auto" else value for name, value in flags.items()
    }
    reset_accelerator()
    assert eagle3.main(words("eagle3", cpdir, **{"bs": 2, **flags})) == code
    if code:
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
        assert contents(tmp_path) == before
    assert {name: (cpdir / name).read_text() for name in OWN} == dict.fromkeys(OWN, "the user's")
    if not code:
        steps = [json.loads(line)["step"] for line in (cpdir / "metrics.jsonl").read_text().splitlines()]
        kept = {path.parent.name for path in cpdir.glob(f"*/{FOLDER}")}
        assert steps == [0, 1, 2]
        assert kept - {"step_2"} == {"model0"}
        assert ("step_2" in kept) == (start in ("on", "on with a named one"))
