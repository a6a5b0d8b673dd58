"""What a run says of records that it is not trained on, and that looking at them changes nothing else."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ports.eagle3 import train as eagle3
from ports.evaluate.measure import measure
from ports.numerics import wide_dtype
from ports.training.alignment import Alignment
from ports.training.data import collate, make_sample
from ports.training.runs import finish
from ports.training.stop import StoppedError
from ports.training.validation import Acceptance, Validation, drawn
from tests.ports.training.conftest import PREFIX, Saved, metrics

NAMES = [f"folder/data_{number}.ckpt" for number in range(40)]


def lines_of(cpdir, word="val_loss"):
    return [line for line in metrics(cpdir) if word in line]


@pytest.fixture
def other(fixture):
    """Three records beside those of an algorithm."""

    def make(algorithm):
        folder = fixture / f"other_{algorithm}"
        shutil.copytree(fixture / f"data_{algorithm}", folder)
        for number in (1, 3, 4):
            (folder / f"data_{number}.ckpt").unlink()
        return folder

    return make


def test_a_share_is_drawn_by_seed_and_name():
    held = {NAMES[place] for place in drawn(NAMES, 0.2, 0)}
    assert len(held) == 8
    assert {name for place, name in enumerate(NAMES[::-1]) if place in drawn(NAMES[::-1], 0.2, 0)} == held
    assert {NAMES[place] for place in drawn(NAMES, 0.2, 1)} != held
    assert held < {NAMES[place] for place in drawn(NAMES, 0.5, 0)}, "a larger share holds the smaller"


def test_held_out_records_are_not_trained_on(start_run, tmp_path, algorithm):
    trained, looked = set(), set()
    loop = start_run(algorithm, tmp_path / "cp", val_fraction=0.34, val_steps=1)

    def note(module, inputs):
        (trained if module.training else looked).update(map(tuple, inputs[0]["input_ids"].tolist()))

    loop.objective.register_forward_pre_hook(note)
    finish(loop)
    assert (len(trained), len(looked), trained & looked) == (4, 2, set())
    assert loop.plan.num_files == 4
    assert len(lines_of(tmp_path / "cp", "train/loss")) <= 8


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("hass", {}),
        ("eagle3", {"num_workers": 2, "packing": True, "bs": 2}),
        ("hass", {"noise_stream": "keyed", "group_by_length": True, "on_bad_record": "skip"}),
    ],
    ids=str,
)
def test_looking_changes_nothing_else(start_run, other, tmp_path, algorithm, options):
    """Losses, weights and random generators to the bit."""
    finish(start_run(algorithm, tmp_path / "plain", **options))
    finish(start_run(algorithm, tmp_path / "looked", val_dir=other(algorithm), val_steps=1, **options))
    plain, looked = tmp_path / "plain", tmp_path / "looked"
    assert lines_of(plain) == [] != lines_of(looked)
    assert lines_of(plain, "train/loss") == lines_of(looked, "train/loss")
    assert not (plain / "best.json").exists()
    last = f"{PREFIX[algorithm]}1"
    assert Saved(plain / last).differs_from(Saved(looked / last)) == ["state"], (
        "its log, its best and what it looked at"
    )


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("hass", {"ttt_alignment": "chain"}),
        ("eagle3", {"ttt_alignment": "prototype", "bs": 2, "gradient_accumulation_steps": 2}),
        ("hass", {"packing": True, "bs": 3, "num_workers": 2}),
        ("eagle3", {"mixed_precision": "bf16"}),
        *((algorithm, {"online": True, "verifier_dtype": "float32"}) for algorithm in PREFIX),
    ],
    ids=str,
)
def test_the_numbers_are_those_of_the_clean_records(start_run, other, tmp_path, algorithm, options):
    """Without noise, in chain alignment, over all rows: a record at a time by hand."""
    loop = start_run(algorithm, tmp_path / "cp", val_dir=other(algorithm), max_steps=2, **options)
    finish(loop)
    (line,) = lines_of(tmp_path / "cp")
    loop.objective.eval()
    total = torch.zeros(4, 2, dtype=torch.float64)
    share = loop.plan.validation.share
    if "online" in options:
        assert share.reader is loop.plan.loader.dataset.reader, "one verifier for both"
    for file in share.files:
        record = torch.load(file, weights_only=True)
        record |= share.reader([record["input_ids"]])[0] if "online" in options else {}
        sample = make_sample(record, 8192, Alignment.CHAIN)
        total += loop.objective(collate([sample]), None, True)
    losses = total[0] / (total[1] + 1e-5)
    wanted = float(losses.sum() if algorithm == "eagle3" else losses.mean())
    close = 2e-2 if options.get("mixed_precision") else 1e-3 if options.get("online") else 1e-5
    assert line["val_loss"] == pytest.approx(wanted, rel=close)
    first, second = (accepted / reached if reached else 0.0 for reached, accepted in total[2:].T.tolist())
    assert line["val_accuracies"] == pytest.approx([first, second])
    assert line["val_expected_acceptance"] == pytest.approx(1 + first + first * second)
    assert (line["steps"], line["pass"]) == (2, 0)


@pytest.fixture
def found(monkeypatch):
    """``found({steps: acceptance})``: what the records say after so many steps."""

    def say(expected):
        def score(self, loop):
            return Acceptance(loop.steps, loop.epoch, 5.0, [expected[loop.steps]])

        monkeypatch.setattr(Validation, "_score", score)

    return say


def best_of(cpdir):
    best = json.loads((cpdir / "best.json").read_text())
    return [best.pop(name) for name in ("checkpoint", "expected_acceptance", "pass", "step")], best


def test_the_best_checkpoint_is_named_and_kept(start_run, tmp_path, found):
    """Of equal ones the first."""
    found({3: 0.1, 6: 0.4, 9: 0.4, 12: 0.2})
    cpdir = tmp_path / "cp"
    finish(start_run("eagle3", cpdir, val_fraction=0.5, epoch=3, keep_last=1))
    assert best_of(cpdir) == (["model1", 1.4, 1, 6], {})
    assert {path.name for path in cpdir.iterdir() if path.is_dir()} == {"model1", "model3"}
    finish(start_run("eagle3", cpdir, overwrite=True))
    assert not (cpdir / "best.json").exists()


@pytest.mark.parametrize("moment", ["in the step before", "at a step", "after a pass", "decoding"])
def test_a_stop_is_saved_before_anything_is_looked_at(start_run, fixture, tmp_path, monkeypatch, moment):
    """A validation is abandoned, which the resumed run makes up for: its log is that of the run that went on."""
    file = fixture / "prompts.jsonl"
    file.write_text("[3, 4, 5]\n")
    options = {"val_fraction": 0.34, "val_prompts": file, "val_tokens": 2, "val_steps": 3, "bs": 1, "epoch": 0}
    finish(start_run("eagle3", tmp_path / "straight", **options))
    loop = start_run("eagle3", tmp_path / "cp", **options)
    forward, looks = loop.forward, []

    def ask():
        os.kill(os.getpid(), signal.SIGTERM)

    def watched(*inputs):
        looking = not loop.module.training
        looks.append(loop.steps if looking else None)
        if moment == "in the step before" and not looking and loop.steps == 2:
            ask()
        if looking and loop.steps == {"at a step": 3, "after a pass": 4}.get(moment):
            ask()
        return forward(*inputs)

    def decode(directory):
        ask()
        looks.append("decoded")

    loop.forward = watched
    if moment == "decoding":
        loop.plan.validation.measure = decode
    with pytest.raises(StoppedError) as stopped:
        finish(loop)
    steps = 3 if "step" in moment else 4
    assert (stopped.value.steps, stopped.value.checkpoint.name) == (steps, f"step_{steps}")
    assert looks.count(steps) == {"in the step before": 0, "decoding": 2}.get(moment, 1)
    assert "decoded" not in looks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    finish(start_run("eagle3", tmp_path / "cp", ckpt_path=Path("auto"), **options))
    assert Saved(tmp_path / "cp/model0").differs_from(Saved(tmp_path / "straight/model0")) == []
    assert metrics(tmp_path / "cp") == metrics(tmp_path / "straight")


def test_what_was_written_over_is_the_best_no_longer(start_run, tmp_path, found):
    """As by a run that ``--max-steps`` cut short, once it may go on."""
    found({2: 0.9, 3: 0.1})
    options = {"val_fraction": 0.5, "epoch": 0}
    finish(start_run("hass", tmp_path, max_steps=2, **options))
    finish(start_run("hass", tmp_path, ckpt_path=tmp_path / "state_0", **options))
    assert best_of(tmp_path) == (["state_0", 1.1, 0, 3], {})


@pytest.mark.parametrize("options", [{"val_fraction": 0.34}, {}], ids=["others", "none"])
def test_the_best_on_other_records_is_forgotten(start_run, other, tmp_path, options):
    finish(start_run("hass", tmp_path, val_dir=other("hass"), max_steps=2))
    assert (tmp_path / "best.json").is_file()
    loop = start_run("hass", tmp_path, ckpt_path=tmp_path / "state_0", resume_anyway=True, **options)
    assert loop.plan.checkpoint_manager.best_accepted is None
    finish(loop)
    assert (tmp_path / "best.json").is_file() == bool(options)


def test_prompts_are_decoded_after_each_pass(start_run, fixture, tmp_path):
    """By the evaluator, on what is saved then; and the run goes on as if they had not been."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("[7, 8, 9]\n[4, 11, 30, 2]\n")
    finish(start_run("eagle3", tmp_path / "plain"))
    finish(start_run("eagle3", tmp_path / "cp", val_prompts=prompts, val_tokens=8))
    found = lines_of(tmp_path / "cp", "chain_acceptance")
    assert [(line["steps"], line["pass"]) for line in found] == [(6, 0), (12, 1)]
    for number, line in enumerate(found):
        wanted = measure(
            tmp_path / "cp" / f"model{number}", [prompts], verifier=str(fixture / "verifier"), max_new_tokens=8
        )
        assert line["chain_acceptance"] == wanted["acceptance_length"]
    assert lines_of(tmp_path / "plain", "train/loss") == lines_of(tmp_path / "cp", "train/loss")


def test_a_pass_whose_prompts_cannot_be_decoded_is_saved(start_run, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("[7, 8, 9]\n")
    loop = start_run("hass", tmp_path / "cp", val_prompts=prompts)
    prompts.unlink()
    finish(loop)
    assert lines_of(tmp_path / "cp", "chain_acceptance") == []
    assert capsys.readouterr().out.count(f"not decoded: {prompts}: ") == 2
    assert {path.name for path in (tmp_path / "cp").iterdir() if path.is_dir()} == {"state_0", "state_1"}


def spoil(folder, **values):
    for file in folder.iterdir():
        record = torch.load(file, weights_only=True)
        torch.save({**record, **{name: make(record[name]) for name, make in values.items()}}, file)


REFUSED = [
    ({"val_fraction": 0.05}, "--val-fraction: found 0.05 of 6 records, which is 0"),
    ({"val_fraction": 0.95}, "--val-fraction: found 0.95 of 6 records, which is 6"),
    ({"val_fraction": 0.7, "bs": 3}, "records: found 2, expected at least batch_size = 3"),
    ({"val_dir": "data_eagle3"}, "--val-dir: found records of --data"),
    ({"val_dir": "nowhere"}, "--val-dir: found no such directory"),
    ({"val_dir": "verifier"}, "a record that speculator records wrote"),
    ({"val_dir": "silent"}, "records: found no row in the loss in 6 held-out records"),
    ({"val_dir": "broken"}, "hidden_state: found NaN or Inf"),
    ({"val_dir": "verifier", "cpdir": "verifier/cp"}, "out lies in val_dir"),
    ({"val_steps": 1}, "val_steps needs something to validate on"),
    ({"val_fraction": 0.5, "val_dir": "silent"}, "val_fraction and val_dir both name"),
    ({"val_fraction": 1.0}, "--val-fraction: found '1.0'"),
    ({"val_prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
    ({"val_prompts": "empty.jsonl"}, "prompts: found nothing"),
    ({"val_prompts": "long.jsonl"}, "prompts: found 5000 tokens and more, expected at most"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=str)
def test_what_cannot_be_validated_on_is_refused_before_training(fixture, tmp_path, flags, capfd, options, said):
    for name, values in {"silent": {"loss_mask": torch.zeros_like}, "broken": {"hidden_state": torch.log}}.items():
        shutil.copytree(fixture / "data_eagle3", fixture / name)
        spoil(fixture / name, **values)
    (fixture / "empty.jsonl").touch()
    (fixture / "long.jsonl").write_text(f"{[7] * 5000}\n")
    options = {name: fixture / value if isinstance(value, str) else value for name, value in options.items()}
    assert eagle3.main(flags(**options)) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list((tmp_path / "checkpoints").glob("m*"))


class WithoutFloat64(TorchDispatchMode):
    """As Apple's devices are."""

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        out = operation(*arguments, **(options or {}))
        if isinstance(out, torch.Tensor) and out.dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


def test_a_device_without_float64_validates(start_run, tmp_path, monkeypatch, algorithm):
    """The sums are float32 there, and the same but for rounding."""
    loop = start_run(algorithm, tmp_path / "cp", val_fraction=0.5)
    validation, mps = loop.plan.validation, torch.device("mps")
    exact = validation._score(loop)
    for module in ("objective", "validation"):
        monkeypatch.setattr(f"ports.training.{module}.wide_dtype", lambda device: wide_dtype(mps))
    with WithoutFloat64():
        rounded = validation._score(loop)
    assert rounded.accuracies == exact.accuracies
    assert rounded.loss == pytest.approx(exact.loss, rel=1e-5)
