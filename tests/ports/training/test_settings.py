"""Every flag, where its value may come from, and what is said of a wrong one."""

import json
import re

import pytest
import yaml

from parity.fixtures import RECORDINGS
from ports.errors import InputError
from ports.flags import parse
from ports.spellings import NOW
from ports.training.alignment import Alignment
from ports.training.settings import Eagle3Settings

NEEDED = ["--verifier", "a", "--draft-config", "b", "--data", "c", "--out", "d"]
CASES = sorted(path.parent.name for path in RECORDINGS.glob("*/meta.json"))


def chosen(*words):
    return parse(Eagle3Settings, [*NEEDED, *words])


@pytest.fixture
def yaml_file(tmp_path):
    def write(content):
        (tmp_path / "run.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(tmp_path / "run.yaml")

    return write


def test_the_schedules_are_the_recorded_ones(settings):
    assert len(CASES) >= 14
    for case in CASES:
        meta = json.loads((RECORDINGS / case / "meta.json").read_text())
        flags = dict(zip(meta["argv"][::2], meta["argv"][1::2], strict=True))
        words = {name: int(flags.get(f"--{name.replace('_', '-')}", 1)) for name in ("bs", "epoch")}
        accumulation = int(flags.get("--gradient-accumulation-steps", 1))
        found = settings(**words, gradient_accumulation_steps=accumulation).schedule(len(meta["samples_files"]))
        assert found == (meta["total_steps"], meta["warm_steps"]), case


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (3, 2), (8, 4)])
def test_global_processes_follow_the_schedule_of_one_with_the_whole_batch(settings, processes, accumulation):
    """They count a step each; one process counts it once."""
    common = {"epoch": 2, "gradient_accumulation_steps": accumulation, "loss_normalisation": "global"}
    by_rank = settings(bs=2, **{**common, "loss_normalisation": "rank"})
    for files in (7, 999, 68001):
        total, warmup = settings(bs=2 * processes, **common).schedule(files)
        assert settings(bs=2, **common).schedule(files, processes) == (total * processes, warmup * processes)
        assert by_rank.schedule(files, processes) == by_rank.schedule(files)


def test_the_prototypes_command_line_is_understood_with_dashes_and_underscores():
    words = "--lr 8e-5 --bs 1 --gradient-accumulation-steps=2 --epoch 4 --topk 1 --topk_w 0 --forward_num_total 3"
    found = chosen(*words.split(), "--data_num", "5", "--ckpt_path", "e", "--debug")
    assert (found.lr, found.bs, found.epoch, found.topk, found.topk_w) == (8e-5, 1, 4, 1, 0.0)
    assert (found.gradient_accumulation_steps, found.forward_num_total, found.data_num) == (2, 3, 5)
    assert (str(found.ckpt_path), found.debug) == ("e", True)
    assert parse(Eagle3Settings, ["--basepath=max-len/--max-len", *NEEDED[2:]]).basepath == "max-len/--max-len"
    found = chosen("--no-noise", "--no-shuffle", "--log_with", "tensorboard", "--gradient_accumulation_steps", "3")
    assert (found.noise, found.shuffle, found.progress, found.log_with) == (False, False, True, ["tensorboard"])
    assert found.gradient_accumulation_steps == 3


def test_flags_go_over_environment_over_file_over_defaults(yaml_file, monkeypatch):
    """What is needed may come from the file, with dashes too; only what has the prefix comes from the environment."""
    needed = {"verifier": "a", "draft-config": "b", "data": "c", "out": "d", "gradient-accumulation-steps": 4}
    file = yaml_file(needed | {"lr": 0.1, "batch_size": 5, "epochs": 8, "ttt_alignment": "chain", "noise": False})
    for name in Eagle3Settings.model_fields:
        monkeypatch.setenv(name.upper(), "8")
        monkeypatch.setenv(name, "8")
    for name in ("LR", "BATCH_SIZE"):
        monkeypatch.setenv(f"SPECULATOR_{name}", "6")
    found = parse(Eagle3Settings, [f"--config={file}", "--lr", "0.3"])
    assert (found.lr, found.bs, found.epoch, found.gradient_accumulation_steps, found.topk) == (0.3, 6, 7, 4, 10)
    assert (found.basepath, found.ttt_alignment, found.noise) == ("a", Alignment.CHAIN, False)


def test_the_help_speaks_of_every_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    with pytest.raises(SystemExit) as caught:
        chosen("--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name, field in Eagle3Settings.model_fields.items():
        flag, shown = f"--{(field.alias or name).replace('_', '-')}", NOW.get(name, name) is not None
        assert (f"{flag} " in said) is shown, name
        assert field.description, name
        assert (" ".join(field.description.split())[:150] in said) is shown, name


def test_the_help_says_what_checkpoints_are_called_and_how_two_ways_to_begin_with_weights_differ():
    said = {name: field.description for name, field in Eagle3Settings.model_fields.items()}
    assert "model<n> of Eagle3 or state_<n> of HASS" in said["cpdir"]
    assert "--from-checkpoint DIR also refuses" in said["weights_only"]


FILES = [
    ("learning_rate: 1", "learning_rate", "an unknown key", "one of activation_checkpointing, attn_implementation"),
    ("", "--config", "NoneType", "a mapping of settings"),
    ("a: [", "--config", "", "a readable YAML file"),
    ("batch_size: many", "batch_size", "'many'", "valid integer"),
    ("bs: many", "bs", "an unknown key", "one of activation_checkpointing"),
    ("log_with: csv", "log_with.0", "'csv'", "'tensorboard'"),
    (None, "--config", "No such file", "a readable YAML file"),
]


@pytest.mark.parametrize(("content", "field", "found", "expected"), FILES)
def test_a_bad_file_is_refused(tmp_path, yaml_file, refuses, content, field, found, expected):
    file = str(tmp_path / "no.yaml") if content is None else yaml_file(content)
    with refuses(file, field, found, expected):
        chosen("--config", file)


WORDS = [
    ([*NEEDED, "--config"], "--config", "requires an argument", "YAML file"),
    ([*NEEDED, "--lr", "-1"], "--lr", "'-1'", "greater than 0"),
    ([*NEEDED, "--lr", "inf"], "--lr", "'inf'", "a finite number"),
    ([*NEEDED, "--log_with", "csv"], "--log-with.0", "'csv'", "'tensorboard'"),
    ([*NEEDED, "--log_with=["], "--log-with.0", "'['", "'tensorboard'"),
    (NEEDED[2:], "--verifier", "nothing", "Hugging Face directory"),
    ([*NEEDED[:-1], "c/d"], "settings", "do not go together", "out lies in data"),
    ([*NEEDED, "--weights_only"], "settings", "", "weights_only needs"),
    ([*NEEDED, "--group_by_length", "--no-shuffle"], "settings", "", "needs shuffle"),
    ([*NEEDED, "--epoch", "3", "--epochs", "3"], "settings", "", "one of them"),
    *(
        ([*NEEDED, f"--{name}", "0"], f"--{name}", "'0'", "greater than")
        for name in ("batch-size", "ttt-steps", "gradient-accumulation-steps", "max-steps", "max-length", "epochs")
    ),
    *(([*NEEDED, f"--{name}=-1"], f"--{name}", "'-1'", "greater than") for name in ("epoch", "num-workers")),
    ([*NEEDED, "--mixed_precision", "fp16"], "--mixed-precision", "'fp16'", "'no'"),
]


@pytest.mark.parametrize(("words", "field", "found", "expected"), WORDS)
def test_a_bad_command_line_is_refused(refuses, words, field, found, expected):
    with refuses("command line", field, found, expected):
        parse(Eagle3Settings, words)


def test_a_bad_variable_is_refused_by_its_name(refuses, monkeypatch):
    monkeypatch.setenv("SPECULATOR_TTT_STEPS", "0")
    with refuses("environment", "SPECULATOR_TTT_STEPS", "'0'", "greater than"):
        chosen()
    assert chosen("--ttt-steps", "2").forward_num_total == 2


def test_all_wrong_values_are_refused_at_once(monkeypatch, tmp_path):
    """Each where it stands."""
    monkeypatch.setenv("SPECULATOR_TTT_STEPS", "0")
    file = tmp_path / "more.yaml"
    file.write_text("batch-size: 0\n")
    with pytest.raises(InputError) as refused:
        chosen("--lr", "x", "--config", str(file))
    places = ["command line: --lr", "environment: SPECULATOR_TTT_STEPS", f"{file}: batch_size"]
    found = re.findall(r"(?:^|; )([^;]*?): found '?(?:x|0)'?, expected ", str(refused.value))
    assert sorted(found) == sorted(places)


def test_passes_are_one_more_than_the_prototypes_epoch():
    assert (chosen("--epochs", "5").epoch, chosen("--epoch", "4").epochs) == (4, 5)
    assert (chosen("--epochs", "5").last_pass, chosen("--epoch", "4").last_pass) == (5, 4), "as the prototypes print it"
    assert chosen().epochs == Eagle3Settings(basepath="a", draft_config="b", tmpdir="c", out="d", epoch=40).epochs


def test_a_map_that_nobody_named_is_the_one_beside_the_records(tmp_path, monkeypatch):
    """The prototype's place, the directory it runs in, comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").mkdir()
    words = ["--verifier", "a", "--draft-config", "b", "--data", "records", "--out", "d", "--d2t", "other.npy"]
    for name in ("t2d", "d2t"):
        (tmp_path / "records" / f"{name}.npy").write_bytes(b"")
    found = parse(Eagle3Settings, words)
    assert (str(found.t2d), str(found.d2t)) == ("records/t2d.npy", "other.npy")
    (tmp_path / "t2d.npy").write_bytes(b"")
    assert str(parse(Eagle3Settings, words).t2d) == "t2d.npy"
