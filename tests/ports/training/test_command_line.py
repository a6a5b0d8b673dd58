import contextlib

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ports.eagle3.settings import Eagle3Settings
from ports.errors import InputError
from ports.training.alignment import Alignment
from ports.training.command_line import parse

NEEDED = ["--basepath", "a", "--configpath", "b", "--tmpdir", "c", "--cpdir", "d"]


@pytest.fixture
def yaml_file(tmp_path):
    def write(content):
        (tmp_path / "run.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(tmp_path / "run.yaml")

    return write


def test_the_prototypes_command_line_is_understood():
    words = "--lr 8e-5 --bs 1 --gradient-accumulation-steps 2 --epoch 4 --topk 1 --topk_w 0 --forward_num_total 3"
    chosen = parse(Eagle3Settings, [*NEEDED, *words.split(), "--data_num", "5", "--ckpt_path", "e", "--debug"])
    assert (chosen.lr, chosen.bs, chosen.epoch, chosen.topk, chosen.topk_w) == (8e-5, 1, 4, 1, 0.0)
    assert (chosen.gradient_accumulation_steps, chosen.forward_num_total, chosen.data_num) == (2, 3, 5)
    assert (str(chosen.ckpt_path), chosen.debug) == ("e", True)


@pytest.mark.parametrize("flag", ["--gradient-accumulation-steps", "--gradient_accumulation_steps"])
@pytest.mark.parametrize("form", [lambda flag: [flag, "3"], lambda flag: [f"{flag}=3"]])
def test_dashes_and_underscores_are_the_same(flag, form):
    assert parse(Eagle3Settings, [*NEEDED, *form(flag)]).gradient_accumulation_steps == 3


def test_a_value_keeps_its_dashes():
    assert parse(Eagle3Settings, ["--basepath=max-len/--max-len", *NEEDED[2:]]).basepath == "max-len/--max-len"


def test_flags_go_over_environment_over_file_over_defaults(yaml_file, monkeypatch):
    file = yaml_file({"lr": 0.1, "bs": 5, "epoch": 7, "seed": 9})
    monkeypatch.setenv("SPECULATOR_PORT_LR", "0.2")
    monkeypatch.setenv("SPECULATOR_PORT_BS", "6")
    chosen = parse(Eagle3Settings, [*NEEDED, "--config", file, "--lr", "0.3"])
    assert (chosen.lr, chosen.bs, chosen.epoch, chosen.seed, chosen.topk) == (0.3, 6, 7, 9, 10)


@pytest.mark.parametrize("name", sorted(Eagle3Settings.model_fields))
def test_only_the_prefixed_environment_counts(name, monkeypatch):
    monkeypatch.setenv(name.upper(), "7")
    monkeypatch.setenv(name, "7")
    plain = Eagle3Settings.model_validate({"basepath": "a", "configpath": "b", "tmpdir": "c", "cpdir": "d"})
    assert parse(Eagle3Settings, NEEDED).as_json() == plain.as_json()


@pytest.mark.parametrize("name", ["GRADIENT_ACCUMULATION_STEPS", "FORWARD_NUM_TOTAL", "TOPK"])
def test_every_setting_has_an_environment_variable(name, monkeypatch):
    monkeypatch.setenv(f"SPECULATOR_PORT_{name}", "7")
    assert getattr(parse(Eagle3Settings, NEEDED), name.lower()) == 7


def test_required_values_may_come_from_the_file(yaml_file):
    content = {"basepath": "a", "configpath": "b", "tmpdir": "c", "cpdir": "d", "gradient-accumulation-steps": 4}
    chosen = parse(Eagle3Settings, [f"--config={yaml_file(content | {'ttt_alignment': 'chain', 'noise': False})}"])
    assert (chosen.basepath, chosen.gradient_accumulation_steps) == ("a", 4)
    assert (chosen.ttt_alignment, chosen.noise) == (Alignment.CHAIN, False)


def test_switches_and_lists():
    chosen = parse(Eagle3Settings, [*NEEDED, "--no-noise", "--no-shuffle", "--log_with", "tensorboard"])
    assert (chosen.noise, chosen.shuffle, chosen.progress, chosen.log_with) == (False, False, True, ["tensorboard"])


def test_an_unknown_flag_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Eagle3Settings, [*NEEDED, "--learning_rate", "1"])
    assert caught.value.code == 2
    assert "--learning_rate" in capsys.readouterr().err


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Eagle3Settings, ["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, field in Eagle3Settings.model_fields.items():
        assert f"--{name}" in said
        assert field.description, name
        assert " ".join(field.description.split()) in said, name


def test_an_unknown_key_in_the_file_is_refused(yaml_file, refuses):
    file = yaml_file({"lr": 0.1, "learning_rate": 0.1})
    with refuses(
        file, "learning_rate", "an unknown key", "one of activation_checkpointing, attn_implementation, basepath"
    ):
        parse(Eagle3Settings, [*NEEDED, "--config", file])


@pytest.mark.parametrize(
    ("content", "found", "expected"),
    [("", "NoneType", "a mapping of settings"), ("[1, 2]", "list", "a mapping"), ("a: [", "", "a readable YAML file")],
)
def test_a_file_that_is_no_mapping_is_refused(yaml_file, refuses, content, found, expected):
    file = yaml_file(content)
    with refuses(file, "--config", found, expected):
        parse(Eagle3Settings, [*NEEDED, "--config", file])


def test_a_missing_file_and_a_missing_name_are_refused(tmp_path, refuses):
    with refuses(tmp_path / "no.yaml", "--config", "No such file", "a readable YAML file"):
        parse(Eagle3Settings, [*NEEDED, "--config", str(tmp_path / "no.yaml")])
    with refuses("command line", "--config", "no file name", "a YAML file"):
        parse(Eagle3Settings, [*NEEDED, "--config"])


def test_a_wrong_value_says_where_it_may_come_from(yaml_file, refuses):
    with refuses("command line or environment", "lr", "'-1'", "greater than 0"):
        parse(Eagle3Settings, [*NEEDED, "--lr", "-1"])
    file = yaml_file({"bs": "many"})
    with refuses(file, "bs", "'many'", "valid integer"):
        parse(Eagle3Settings, [*NEEDED, "--config", file])
    with refuses("command line or environment", "lr", "'inf'", "expected a finite number"):
        parse(Eagle3Settings, [*NEEDED, "--lr", "inf"])


def test_a_missing_value_is_named(refuses):
    with refuses("command line or environment", "basepath", "nothing", "required"):
        parse(Eagle3Settings, NEEDED[2:])


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=30) | st.text(st.sampled_from("lr:bs-[]{}&*!|>'\"# \n01e."), max_size=30).map(str.encode)
)
def test_no_file_at_all_raises_anything_but_an_input_error(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    with contextlib.suppress(InputError):
        parse(Eagle3Settings, [*NEEDED, "--config", str(tmp_path / "run.yaml")])
