"""From a command line to records: what they hold, and that an interruption leaves no trace in them."""

import json
import re
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from parity.fixtures.conversations import SHAREGPT
from ports.files import gigabytes
from ports.generate import records as record_files
from ports.generate.__main__ import main
from ports.generate.run import length_buckets
from ports.training.checkpoint import MARK
from ports.training.records import complete_records, list_records, read_record, recorded_info
from tests.commands import main_of
from tests.ports.conftest import edit, edit_tensors
from tests.ports.generate.conftest import SPEC, contents
from tests.processes import await_end_of, children

WIDTHS = {"eagle3": {"hidden_state": 96, "target": 32}, "hass": {"hidden_state": 32}}


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_buckets_hold_every_dialogue_once_in_order_of_length_and_fit(lengths, batch_tokens):
    buckets = length_buckets(lengths, batch_tokens)
    order = [index for bucket in buckets for index in bucket]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for bucket, following in zip(buckets, [*buckets[1:], None]):
        assert len(bucket) == 1 or len(bucket) * lengths[bucket[0]] <= batch_tokens
        assert following is None or (len(bucket) + 1) * lengths[bucket[0]] > batch_tokens


@pytest.fixture(scope="module")
def model(verifier_once):
    return AutoModelForCausalLM.from_pretrained(verifier_once)


@torch.no_grad()
def states(model, ids):
    return [state[0] for state in model(ids[None], output_hidden_states=True).hidden_states]


FULL, HALF = torch.float32, torch.float16
CHOICES = [
    ("eagle3", {}, (3, 4, 5), FULL),
    ("eagle3", {"aux_layers": "speculators"}, (2, 3, 4), FULL),
    ("eagle3", {"aux_layers": "1,2,6"}, (1, 2, 6), FULL),
    ("hass", {"dtype": "float32"}, (), FULL),
    ("hass", {}, (), HALF),
]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(("algorithm", "changes", "layers", "dtype"), CHOICES)
def test_records_hold_the_verifiers_hidden_states(generate, model, algorithm, changes, layers, dtype):
    """By default entries 3, n // 2 + 1 and n - 2, in the prototypes' precision; float32 is whole, TF32 or not.

    The dialogue alone gives the same as in a batch.
    """
    folder = generate(algorithm=algorithm, **changes)
    assert json.loads((folder / "generation.json").read_text())["matmul_precision"] == "highest"
    files = list_records(folder)
    assert [file.relative_to(folder).as_posix() for file in files] == [f"0/data_{i}.safetensors" for i in range(8)]
    assert recorded_info(files).feature_layers == layers
    for file in files:
        record = read_record(file, WIDTHS[algorithm], SPEC.vocab_size)
        entries = states(model, record["input_ids"])
        fused = torch.cat([entries[layer] for layer in layers or [-1]], dim=-1)
        assert record["hidden_state"].dtype is dtype
        if dtype is FULL:
            torch.testing.assert_close(record["hidden_state"], fused)
        assert algorithm == "hass" or bool((record["target"] - entries[-1]).abs().max() < 1e-5)
        assert 0 < int(record["loss_mask"].sum()) < len(record["input_ids"])


def test_ids_alone_need_no_verifiers_weights_in_memory(generate, monkeypatch):
    """Records for training with --online."""
    monkeypatch.setattr("ports.generate.run.load_verifier", None)
    files = list_records(generate(algorithm="ids"))
    record = read_record(files[0], {}, SPEC.vocab_size)
    assert len(files) == 8
    assert 0 < int(record["loss_mask"].sum()) < len(record["input_ids"])
    assert files[0].stat().st_size < 1000 + 16 * len(record["input_ids"])


def test_rows_are_split_over_folders_as_the_prototypes_do(generate, flags, tmp_path):
    """Rows 0..7 of three: three, three and two; together they hold what one has, to the bit."""
    one = list_records(generate())
    assert main(flags(outdir=tmp_path / "three", total_gpus=6, gpus_per_model=2, copies=1, device="cpu")) == 0
    three = list_records(tmp_path / "three")
    names = [file.relative_to(tmp_path / "three").as_posix() for file in three]
    assert names == [f"{p}/data_{i}.safetensors" for p, size in enumerate((3, 3, 2)) for i in range(size)]
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in three]


def test_what_is_missing_torn_or_another_rows_is_made_again(generate):
    folder = generate()
    before = contents(folder)
    for missing in ([0], [3, 4], [7], range(8)):
        for index in missing:
            file = record_files.record_file(folder / "0", index)
            file.write_bytes(file.read_bytes()[:-1]) if index % 2 else file.unlink()
        (folder / "0" / f"{MARK}data_1.safetensors.partial").write_bytes(b"left by a killed writer")
        record_files.record_file(folder / "0", 2).write_bytes(before["0/data_5.safetensors"])
        assert contents(generate()) == before
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    generate()
    assert times == {path: path.stat().st_mtime_ns for path in times}, "what is whole"


@pytest.mark.parametrize("inside", ["", "0"])
def test_records_that_are_gone_are_missed(generate, refuses, inside):
    """They would make another draft; so would those that somebody put in between."""
    folder = generate() / inside
    assert len(complete_records(folder)) == 8
    first, kept = next(folder.rglob("data_3.*")), folder.parent / "kept"
    first.rename(kept)
    with refuses(folder, "records", "7", "8, as generation.json says"):
        complete_records(folder)
    kept.rename(first)
    shutil.copy(first, first.with_name("data_99.ckpt"))
    assert len(complete_records(folder)) == 9, "the prototypes' may lie beside"
    shutil.copy(first, first.with_name("data_99.safetensors"))
    with refuses(folder, "records", "9", "8, as generation.json says"):
        complete_records(folder)


def test_killed_with_several_copies_the_bytes_are_those_of_one(generate, spawn, tmp_path):
    """Those of a killed command end by themselves; until then the directory is in use."""
    settings = {"samples": 19, "batch_tokens": 60}
    whole = contents(generate(outdir=tmp_path / "whole", **settings))
    for number in range(5):  # until it is killed before it is done, however late this process looks
        folder = tmp_path / f"killed{number}"
        process = spawn(outdir=folder, copies=2, **settings)
        while process.returncode is None and not list(folder.rglob("data_*")):
            time.sleep(0.002)
        written, workers = len(list(folder.rglob("data_*"))), children(process.pid)
        process.kill()
        await_end_of(workers, 20)
        if written < 20:
            break
    again = spawn(outdir=folder, copies=2, **settings)
    again.ended()
    assert again.returncode == 0
    assert 0 < written < 20
    assert contents(folder) == whole


CHANGES = [
    ({"aux_layers": "speculators"}, "feature_layers"),
    ({"dtype": "bfloat16"}, "dtype"),
    ({"samples": 6}, "processes"),
    ({"max_length": 60}, "tokens"),
    ({"batch_tokens": 500}, "batch_tokens"),
    ({"algorithm": "hass"}, "algorithm"),
]


def test_another_run_does_not_go_on_in_the_same_directory(generate, flags, hold, tmp_path, capsys):
    """Made otherwise, by nobody knows whom, or by a process that holds the folder for as long as it lives."""
    before = contents(generate())
    for change, field in CHANGES:
        assert main(flags(**change)) == 2
        assert f"generation.json: {field}: found" in capsys.readouterr().err
    assert contents(generate()) == before
    hold(tmp_path / "records")
    assert main(flags()) == 2
    assert "out: found in use by process" in capsys.readouterr().err
    manifest = tmp_path / "records" / "generation.json"
    edit(manifest, format_version=1)
    assert main(flags()) == 2
    assert "format_version: found 1, expected 2; written by an older release" in capsys.readouterr().err
    manifest.unlink()
    assert main(flags()) == 2
    assert "out: found records without generation.json" in capsys.readouterr().err


def test_a_dry_run_says_what_lands_on_the_disk_and_writes_nothing(flags, generate, verifier, capsys, monkeypatch):
    """Dialogues beyond the verifier's positions are said; what lies there needs no room again."""
    edit(verifier / "config.json", max_position_embeddings=100)
    assert main(["--dry-run", *flags()]) == 0
    lines = capsys.readouterr().err
    assert not (verifier.parent / "records").exists()
    tensors = [item for file in verifier.glob("*.safetensors") for item in load_file(file).items()]
    weights = gigabytes(sum(value.nbytes for name, value in tensors if name != "lm_head.weight"))
    assert "memory of a copy of the verifier, at least: " in lines
    assert f" (verifier {weights}, hidden states " in lines
    assert "of them longer than the verifier's 100 positions, up to " in lines
    said = next(line for line in lines.splitlines() if line.endswith("records"))
    folder = generate()
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert abs(float(said.split(" GB")[0]) * 1e9 - size) < 0.02 * size
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=4000))
    generate()
    assert main(flags(outdir=folder.with_name("other"))) == 2
    assert "out: found 4e-06 GB free" in capsys.readouterr().err


def test_features_that_a_precision_cannot_hold_are_refused_in_every_process(spawn, verifier):
    """Half precision overflows above 65504, which the weights do not reach; nothing unreadable is written."""
    shard = sorted(verifier.glob("*.safetensors"))[-1]
    edit_tensors(shard, lambda tensors: tensors["model.norm.weight"].mul_(4e4))
    process = spawn(algorithm="hass", copies=2)
    said = process.ended()
    assert "hidden_state: found NaN or Inf" in said
    assert re.search("copies: processes: found [01] ended with code 2, expected copies that end well", said)
    assert process.returncode == 2


ANSWERED = '{"conversations": [{"from": "human", "value": "%s"}, {"from": "gpt", "value": "%s"}]}'
NO_ANSWER = [
    '{"conversations": [{"from": "human", "value": "who is there"}]}',
    ANSWERED % ("x", ""),
    ANSWERED % ("so long " * 40, "late"),
]
"""Asked and not answered, answered with nothing, and answered after the cut."""


def test_dialogues_that_are_bad_or_without_an_answer_are_left_out_and_counted(flags, tmp_path, capsys):
    good, file = ANSWERED % ("x", "yes"), tmp_path / "share.json"
    file.write_text(f"[{', '.join([good, good.replace('human', 'tool'), *NO_ANSWER, good])}]")
    assert main(flags(data_path=file, max_length=100)) == 2
    assert ": row 1: found" in capsys.readouterr().err, "as the file counts them, from 0"
    assert main(flags(data_path=file, max_length=100, on_bad_conversation="skip")) == 0
    said = capsys.readouterr().err
    assert "skipped row 1: " in said
    assert said.count("no token of an answer") == 3
    assert "2 dialogues, " in said
    assert "4 skipped" in said
    assert len(list_records(tmp_path / "records")) == 2
    file.write_text(f"[{', '.join(NO_ANSWER)}]")
    assert main(flags(data_path=file, max_length=100, outdir=tmp_path / "none")) == 2
    assert "that can be used, the first: row " in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


BAD = [
    ({"chat_template": "alpaca"}, "one of auto, chatml, llama, qwen, mistral, harmony, llama4, plain"),
    ({"prototype": "qwen"}, "prototype says what chat_template is"),
    ({"aux_layers": "3,3,4"}, "--aux-layers"),
    ({"aux_layers": "1,2,7"}, "--aux-layers"),
    ({"total_gpus": 3, "tensor_parallel": 2}, "does not divide"),
    ({"loss_mask": "prototype"}, "--loss-mask"),
    ({"data_path": SHAREGPT.parent, "outdir": SHAREGPT.parent / "records"}, "expected a place outside --data"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_bad_input_is_refused(flags, capsys, change, said):
    assert main(flags(**change)) == 2
    assert said in capsys.readouterr().err


def test_show_prints_who_is_supervised(flags, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main_of("records show")([*flags(outdir=False, samples=False), "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("tokens in the loss") == 2
    assert "\x1b[1;32m" in said, "an answer"


def test_what_a_template_writes_moves_no_cursor(flags, verifier, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    (verifier / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\x1b[2J\x07{% endfor %}")
    assert main_of("records show")([*flags(outdir=False, samples=False, model_path=verifier), "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[2J\\x07" in said
    assert not {"\x1b", "\x07"} & set(said)
