"""Every flag, where its value may come from, and what is said of a wrong one."""

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from parity.fixtures import RECORDINGS
from ports.errors import InputError
from ports.training.alignment import Alignment
from ports.training.settings import Eagle3Settings, parse

NEEDED = ["--basepath", "a", "--configpath", "b", "--tmpdir", "c", "--cpdir", "d"]
CASES = sorted(path.parent.name for path in RECORDINGS.glob("*/meta.json"))


def chosen(*words):
    return parse(Eagle3Settings, [*NEEDED, *words])


@pytest.fixture
def yaml_file(tmp_path):
    def write(content):
        (tmp_path / "run.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(tmp_path / "run.yaml")

    return write


def test_the_defaults_are_the_prototypes():
    expected = {"lr": 3e-5, "bs": 4, "gradient_accumulation_steps": 1, "epoch": 40, "forward_num_total": 3, "topk": 10}
    expected |= {"topk_w": 1.0, "data_num": 68000, "debug": False, "ckpt_path": None, "max_len": 8192, "noise": True}
    expected |= {"shuffle": True, "num_workers": 8, "t2d": Path("t2d.npy"), "d2t": Path("d2t.npy")}
    expected |= {"ttt_alignment": Alignment.PROTOTYPE}
    found = Eagle3Settings(basepath="a", configpath="b", tmpdir="c", cpdir="d")
    assert {name: getattr(found, name) for name in expected} == expected
    assert json.loads(json.dumps(found.as_json())) == found.as_json()


def test_the_schedules_are_the_recorded_ones(settings):
    assert len(CASES) >= 14
    for case in CASES:
        meta = json.loads((RECORDINGS / case / "meta.json").read_text())
        flags = dict(zip(meta["argv"][::2], meta["argv"][1::2], strict=True))
        words = {name: int(flags.get(f"--{name.replace('_', '-')}", 1)) for name in ("bs", "epoch")}
        accumulation = int(flags.get("--gradient-accumulation-steps", 1))
        found = settings(**words, gradient_accumulation_steps=accumulation).schedule(len(meta["samples_files"]))
        assert found == (meta["total_steps"], meta["warm_steps"]), case


@pytest.mark.parametrize(
    ("files", "epoch", "bs", "accumulation", "expected"),
    [(68000, 40, 4, 1, (697000, 6970)), (7, 4, 2, 1, (17, 0)), (7, 4, 2, 3, (5, 0)), (100, 1, 1, 2, (100, 1))],
)
def test_the_schedule_in_numbers(settings, files, epoch, bs, accumulation, expected):
    assert settings(bs=bs, epoch=epoch, gradient_accumulation_steps=accumulation).schedule(files) == expected


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (3, 2), (8, 4)])
def test_global_processes_follow_the_schedule_of_one_with_the_whole_batch(settings, processes, accumulation):
    """They count a step each; one process counts it once."""
    common = {"epoch": 2, "gradient_accumulation_steps": accumulation, "loss_normalisation": "global"}
    by_rank = settings(bs=2, **{**common, "loss_normalisation": "rank"})
    for files in (7, 999, 68001):
        total, warmup = settings(bs=2 * processes, **common).schedule(files)
        assert settings(bs=2, **common).schedule(files, processes) == (total * processes, warmup * processes)
        assert by_rank.schedule(files, processes) == by_rank.schedule(files)


def test_the_prototypes_command_line_is_understood():
    words = "--lr 8e-5 --bs 1 --gradient-accumulation-steps 2 --epoch 4 --topk 1 --topk_w 0 --forward_num_total 3"
    found = chosen(*words.split(), "--data_num", "5", "--ckpt_path", "e", "--debug")
    assert (found.lr, found.bs, found.epoch, found.topk, found.topk_w) == (8e-5, 1, 4, 1, 0.0)
    assert (found.gradient_accumulation_steps, found.forward_num_total, found.data_num) == (2, 3, 5)
    assert (str(found.ckpt_path), found.debug) == ("e", True)


def test_dashes_and_underscores_switches_and_lists():
    for flag in ("--gradient-accumulation-steps", "--gradient_accumulation_steps"):
        assert chosen(flag, "3").gradient_accumulation_steps == chosen(f"{flag}=3").gradient_accumulation_steps == 3
    assert parse(Eagle3Settings, ["--basepath=max-len/--max-len", *NEEDED[2:]]).basepath == "max-len/--max-len"
    found = chosen("--no-noise", "--no-shuffle", "--log_with", "tensorboard")
    assert (found.noise, found.shuffle, found.progress, found.log_with) == (False, False, True, ["tensorboard"])


def test_flags_go_over_environment_over_file_over_defaults(yaml_file, monkeypatch):
    file = yaml_file({"lr": 0.1, "bs": 5, "epoch": 7, "seed": 9})
    monkeypatch.setenv("SPECULATOR_PORT_LR", "0.2")
    monkeypatch.setenv("SPECULATOR_PORT_BS", "6")
    found = chosen("--config", file, "--lr", "0.3")
    assert (found.lr, found.bs, found.epoch, found.seed, found.topk) == (0.3, 6, 7, 9, 10)


def test_only_the_prefixed_environment_counts(monkeypatch):
    plain = chosen().as_json()
    for name in Eagle3Settings.model_fields:
        monkeypatch.setenv(name.upper(), "7")
        monkeypatch.setenv(name, "7")
    assert chosen().as_json() == plain
    names = "gradient_accumulation_steps", "forward_num_total", "topk"
    for name in names:
        monkeypatch.setenv(f"SPECULATOR_PORT_{name.upper()}", "7")
    assert [getattr(chosen(), name) for name in names] == [7, 7, 7]


def test_required_values_may_come_from_the_file(yaml_file):
    content = {"basepath": "a", "configpath": "b", "tmpdir": "c", "cpdir": "d", "gradient-accumulation-steps": 4}
    found = parse(Eagle3Settings, [f"--config={yaml_file(content | {'ttt_alignment': 'chain', 'noise': False})}"])
    assert (found.basepath, found.gradient_accumulation_steps) == ("a", 4)
    assert (found.ttt_alignment, found.noise) == (Alignment.CHAIN, False)


@pytest.mark.parametrize(("words", "code"), [(["--learning_rate", "1"], 2), (["--help"], 0)])
def test_argparse_speaks_of_every_flag(capsys, words, code):
    with pytest.raises(SystemExit) as caught:
        chosen(*words)
    assert caught.value.code == code
    said = " ".join("".join(capsys.readouterr()).split())
    if code:
        assert "--learning_rate" in said
    for name, field in Eagle3Settings.model_fields.items() if code == 0 else ():
        assert f"--{name}" in said
        assert field.description, name
        assert " ".join(field.description.split()) in said, name


@pytest.mark.parametrize("given", ["inf", "[", "{"])
def test_what_begins_like_json_and_is_none_is_refused(monkeypatch, refuses, given):
    with refuses("command line or environment", "log_with", "", ""):
        chosen(f"--log_with={given}")
    monkeypatch.setenv("SPECULATOR_PORT_LOG_WITH", given)
    with refuses("command line or environment", "log_with", "", ""):
        chosen()


FILES = [
    ("learning_rate: 1", "learning_rate", "an unknown key", "one of activation_checkpointing, attn_implementation"),
    ("", "--config", "NoneType", "a mapping of settings"),
    ("[1, 2]", "--config", "list", "a mapping"),
    ("a: [", "--config", "", "a readable YAML file"),
    ("bs: many", "bs", "'many'", "valid integer"),
    (None, "--config", "No such file", "a readable YAML file"),
]


@pytest.mark.parametrize(("content", "field", "found", "expected"), FILES)
def test_a_bad_file_is_refused(tmp_path, yaml_file, refuses, content, field, found, expected):
    file = str(tmp_path / "no.yaml") if content is None else yaml_file(content)
    with refuses(file, field, found, expected):
        chosen("--config", file)


WORDS = [
    ([*NEEDED, "--config"], "command line", "--config", "no file name", "a YAML file"),
    ([*NEEDED, "--lr", "-1"], "command line or environment", "lr", "'-1'", "greater than 0"),
    ([*NEEDED, "--lr", "inf"], "command line or environment", "lr", "'inf'", "a finite number"),
    (NEEDED[2:], "command line or environment", "basepath", "nothing", "required"),
    ([*NEEDED[:-1], "c/d"], "command line or environment", "cpdir", "c/d", "a directory outside --tmpdir"),
    ([*NEEDED, "--weights_only"], "command line or environment", "settings", "", "weights_only needs"),
    ([*NEEDED, "--group_by_length", "--no-shuffle"], "command line or environment", "settings", "", "needs shuffle"),
]


@pytest.mark.parametrize(("words", "file", "field", "found", "expected"), WORDS)
def test_a_bad_command_line_is_refused(refuses, words, file, field, found, expected):
    with refuses(file, field, found, expected):
        parse(Eagle3Settings, words)


OUT_OF_RANGE = [
    *({name: 0} for name in ("lr", "bs", "forward_num_total", "gradient_accumulation_steps", "max_steps")),
    *({name: -1} for name in ("lr", "epoch", "num_workers")),
    *({"lr": value} for value in (float("nan"), float("inf"))),
    *({"max_len": 1}, {"mixed_precision": "fp16"}, {"log_with": ["csv"]}, {"ttt_alignment": "own"}),
    {"learning_rate": 1.0},
]


@pytest.mark.parametrize("values", OUT_OF_RANGE)
def test_values_out_of_range_and_unknown_names_are_refused(settings, values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        settings(**values)


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=30) | st.text(st.sampled_from("lr:bs-[]{}&*!|>'\"# \n01e."), max_size=30).map(str.encode)
)
def test_no_file_at_all_raises_anything_but_an_input_error(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with contextlib.suppress(InputError):
        chosen("--config", str(tmp_path / "run.yaml"))
