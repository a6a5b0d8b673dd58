"""``--from-checkpoint``: the weights of a draft of the same verifier and vocabulary are where a run begins."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ports.eagle3 import train as eagle3
from ports.training.saving import save_draft
from ports.training.settings import HassSettings
from ports.training.warm import start_from
from tests.ports.conftest import TRAIN, edit, edit_tensors, enliven, settings_of


@pytest.fixture(scope="module")
def drafts(built_once, tmp_path_factory):
    """By algorithm a fresh draft, and a checkpoint of one with lively weights."""
    made = {}
    for algorithm, (train, _) in TRAIN.items():
        settings = settings_of(built_once, algorithm, cpdir=built_once)
        directory = save_draft(enliven(train.build(settings)), tmp_path_factory.mktemp("saved") / algorithm)
        made[algorithm] = train.build(settings), directory
    return made


@pytest.fixture
def saved(drafts, tmp_path):
    """``saved(algorithm)``: the checkpoint, a copy that a test may break."""
    return lambda algorithm: Path(shutil.copytree(drafts[algorithm][1], tmp_path / algorithm))


def weights_of(loop):
    return {name: value.clone() for name, value in loop.objective.draft.state_dict().items()}


def test_weights_are_taken_and_nothing_else(saved, start_run, tmp_path, capsys, algorithm):
    directory = saved(algorithm)
    loop = start_run(algorithm, tmp_path / "cp", from_checkpoint=directory)
    held, now = load_file(directory / "model.safetensors"), weights_of(loop)
    assert [name for name, value in held.items() if not torch.equal(value, now[name])] == []
    assert (loop.steps, loop.epoch, dict(loop.optimizer.state)) == (0, 0, {})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("starting from")]
    assert f"{directory}{', which says 23 tokens' if algorithm == 'eagle3' else ''}: {len(held)} tensors" in line


def test_a_moved_verifier_is_the_same(saved, fixture, start_run, tmp_path):
    directory = saved("eagle3")
    shutil.copytree(fixture / "verifier", tmp_path / "copy")
    change(directory, lambda told: told["speculators_config"]["verifier"].update(name_or_path=str(tmp_path / "copy")))
    start_run("eagle3", tmp_path / "cp", from_checkpoint=directory)


def test_what_can_be_gone_on_from_is(saved, start_run, run_until, tmp_path, capsys):
    directory = saved("eagle3")
    stopped = run_until("eagle3", tmp_path / "cp", 2, from_checkpoint=directory)
    loop = start_run("eagle3", tmp_path / "cp", from_checkpoint=directory, ckpt_path="auto")
    assert loop.steps == 3
    assert torch.equal(weights_of(loop)["fc.weight"], load_file(stopped / "model.safetensors")["fc.weight"])
    assert "starting from" not in capsys.readouterr().out.rpartition("resuming from")[2]


def change(directory, act):
    edit(directory / "config.json", act)


def tensors(directory, act):
    edit_tensors(directory / "model.safetensors", act)


def elsewhere(directory, verifier):
    """The verifier that it names is another one."""
    other = shutil.copytree(verifier, directory.with_name("other"))
    change(other, lambda told: told.update(rms_norm_eps=0.1))
    named(directory, str(other))


def named(directory, name):
    change(directory, lambda told: told["speculators_config"]["verifier"].update(name_or_path=name))


def layer(directory, **values):
    change(directory, lambda told: told["transformer_layer_config"].update(values))


def shifted(held):
    held.update(t2d=held["t2d"].roll(1), d2t=held["d2t"] + 1)


REFUSED = {
    "another verifier": (elsewhere, "verifier", "other", "this run's, or a copy of it"),
    "a verifier that is gone": (lambda at, _: named(at, "/gone"), "verifier", "/gone", "one that is there"),
    "another map": (lambda at, _: tensors(at, shifted), "d2t", "another vocabulary map", "t2d and d2t files"),
    "a smaller vocabulary": (
        lambda at, _: change(at, lambda told: told.update(draft_vocab_size=22)),
        "draft_vocab_size",
        "22",
        "23, this run's",
    ),
    "another size": (lambda at, _: layer(at, intermediate_size=40), "intermediate_size", "40", "this run's"),
    "another eps": (lambda at, _: layer(at, rms_norm_eps=1e-4), "rms_norm_eps", "0.0001", "this run's"),
    "another rope": (lambda at, _: layer(at, rope_parameters={"rope_theta": 9.0}), "rope_parameters", "9.0", "this"),
    "another layer": (
        lambda at, _: change(at, lambda told: told.update(eagle_aux_hidden_state_layer_ids=[2, 4, 5])),
        "eagle_aux_hidden_state_layer_ids",
        "[2, 4, 5]",
        "this run's",
    ),
    "a tensor that is missing": (
        lambda at, _: tensors(at, lambda held: held.pop("fc.weight")),
        "tensors",
        "missing ['fc.weight']",
        "exactly the draft's",
    ),
    "a tensor that is not finite": (
        lambda at, _: tensors(at, lambda held: held["fc.weight"].div_(0)),
        "fc.weight",
        "",
        "",
    ),
    "no draft at all": (
        lambda at, _: (at / "config.json").unlink(),
        "from_checkpoint",
        "no config.json",
        "Speculators",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused(drafts, saved, built_once, refuses, fault):
    directory, (plant, *told) = saved("eagle3"), REFUSED[fault]
    plant(directory, built_once / "verifier")
    with refuses(directory, *told):
        start_from(drafts["eagle3"][0], directory)


def test_another_algorithm_ends_with_a_line_and_exit_code_2(saved, flags, tmp_path, capsys):
    assert eagle3.main(flags(cpdir=tmp_path / "cp", from_checkpoint=saved("hass"))) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert "speculators_model_type: found hass, expected eagle3" in line
    assert not (tmp_path / "cp").exists(), "nothing is written"


def test_two_starts_are_refused(tmp_path):
    values = dict.fromkeys(("basepath", "configpath", "tmpdir", "cpdir"), "x")
    with pytest.raises(ValueError, match="from_checkpoint and resume"):
        HassSettings(**values, ckpt_path=tmp_path, from_checkpoint=tmp_path)
