"""From a command line to records: what they hold, and that an interruption leaves no trace in them."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from parity.fixtures.conversations import SHAREGPT
from ports.generate import records as record_files
from ports.generate.__main__ import main
from ports.generate.records import write_or_check
from ports.generate.run import _own_devices, prepare, work
from ports.generate.settings import GenerationSettings
from ports.training.checkpoint.atomic import MARK
from ports.training.command_line import parse
from ports.training.data.records import list_records, read_record, recorded_info
from tests.ports.forked import hold
from tests.ports.generate.conftest import SPEC, contents
from tests.ports.training.processes import await_end_of, children

WIDTHS = {"eagle3": {"hidden_state": 96, "target": 32}, "hass": {"hidden_state": 32}}


@pytest.fixture(scope="module")
def model(verifier_once):
    return AutoModelForCausalLM.from_pretrained(verifier_once)


@torch.no_grad()
def states(model, ids):
    return [state[0] for state in model(ids[None], output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_records_hold_the_verifiers_hidden_states(generate, model, algorithm) -> None:
    """Entries 3, n // 2 + 1 and n - 2, and the last; the dialogue alone gives the same as in a batch."""
    folder = generate(algorithm=algorithm, dtype="float32")
    files = list_records(folder)
    assert [file.relative_to(folder).as_posix() for file in files] == [f"0/data_{i}.safetensors" for i in range(8)]
    for file in files:
        record = read_record(file, WIDTHS[algorithm], SPEC.vocab_size)
        expected = states(model, record["input_ids"])
        fused = torch.cat([expected[3], expected[4], expected[5]], dim=-1)
        torch.testing.assert_close(record["hidden_state"], fused if algorithm == "eagle3" else expected[-1])
        assert algorithm == "hass" or bool((record["target"] - expected[-1]).abs().max() < 1e-5)
        assert 0 < int(record["loss_mask"].sum()) < len(record["input_ids"])


@pytest.mark.usefixtures("tf32")
def test_records_are_made_in_full_float32_and_say_so(generate) -> None:
    folder = generate(samples=1)
    assert json.loads((folder / "generation.json").read_text())["matmul_precision"] == "highest"
    assert torch.get_float32_matmul_precision() == "highest"


def test_ids_alone_need_no_verifiers_weights_in_memory(generate, monkeypatch) -> None:
    """Records for training with --online."""
    monkeypatch.setattr("ports.generate.run.load_verifier", None)
    files = list_records(generate(algorithm="ids"))
    record = read_record(files[0], {}, SPEC.vocab_size)
    assert len(files) == 8
    assert 0 < int(record["loss_mask"].sum()) < len(record["input_ids"])
    assert files[0].stat().st_size < 1000 + 16 * len(record["input_ids"])


@pytest.mark.parametrize(("choice", "layers"), [("speculators", (2, 3, 4)), ("1,2,6", (1, 2, 6))])
def test_other_layers_can_be_chosen(generate, model, choice, layers) -> None:
    files = list_records(generate(aux_layers=choice, samples=0))
    assert recorded_info(files).feature_layers == layers
    record = read_record(files[0], WIDTHS["eagle3"], SPEC.vocab_size)
    expected = states(model, record["input_ids"])
    torch.testing.assert_close(record["hidden_state"], torch.cat([expected[layer] for layer in layers], dim=-1))


@pytest.mark.parametrize(("algorithm", "dtype"), [("eagle3", torch.float32), ("hass", torch.float16)])
def test_the_default_precision_is_the_prototypes(generate, algorithm, dtype) -> None:
    file = list_records(generate(algorithm=algorithm, samples=0))[0]
    assert read_record(file, WIDTHS[algorithm], SPEC.vocab_size)["hidden_state"].dtype is dtype


def test_rows_are_split_over_processes_as_the_prototypes_do(generate, tmp_path) -> None:
    """Three processes on rows 0..7: three, three and two; together they hold what one process writes."""
    one, three = generate(), generate(outdir=tmp_path / "three", total_gpus=6, gpus_per_model=2, device="cpu")
    names = [file.relative_to(three).as_posix() for file in list_records(three)]
    assert names == [f"{p}/data_{i}.safetensors" for p, size in enumerate((3, 3, 2)) for i in range(size)]
    for mine, theirs in zip(list_records(one), list_records(three), strict=True):
        a, b = (read_record(file, WIDTHS["eagle3"], SPEC.vocab_size) for file in (mine, theirs))
        assert torch.equal(a["input_ids"], b["input_ids"])
        torch.testing.assert_close(a["hidden_state"], b["hidden_state"])


def test_twice_the_same_bytes_and_nothing_is_written_again(generate, tmp_path) -> None:
    first, second = generate(), generate(outdir=tmp_path / "second")
    assert contents(first) == contents(second)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")}
    generate()
    assert times == {path: path.stat().st_mtime_ns for path in first.rglob("*.safetensors")}


@pytest.mark.parametrize("missing", [[0], [3, 4], [7], list(range(8))])
def test_what_is_missing_or_torn_is_made_again(generate, missing) -> None:
    folder = generate()
    before = contents(folder)
    for index in missing:
        file = record_files.record_file(folder / "0", index)
        file.write_bytes(file.read_bytes()[:-1]) if index % 2 else file.unlink()
    (folder / "0" / f"{MARK}data_1.safetensors.partial").write_bytes(b"left by a killed writer")
    generate()
    assert contents(folder) == before


def test_an_interruption_at_any_record_leaves_no_trace(generate, flags, monkeypatch, tmp_path) -> None:
    whole = contents(generate(outdir=tmp_path / "whole"))
    write = record_files.write_file
    for stop in range(len(whole)):
        written = []

        def failing(file, content, stop=stop, written=written):
            written.append(file)
            if len(written) > stop:
                raise KeyboardInterrupt
            write(file, content)

        monkeypatch.setattr(record_files, "write_file", failing)
        assert main(flags(outdir=tmp_path / f"stop{stop}")) == 130
        monkeypatch.setattr(record_files, "write_file", write)
        assert len(contents(tmp_path / f"stop{stop}")) == stop
        assert contents(generate(outdir=tmp_path / f"stop{stop}")) == whole


def test_killed_at_random_moments_the_bytes_are_the_same(generate, spawn, tmp_path) -> None:
    """SIGKILL, again and again, then the same command to the end."""
    settings = {"samples": 19, "batch_tokens": 60}
    whole = contents(generate(outdir=tmp_path / "whole", **settings))
    folder, random_delay, counts = tmp_path / "killed", random.Random(5), []
    for _ in range(4):
        process = spawn(outdir=folder, **settings)
        while process.returncode is None and len(list(folder.rglob("data_*"))) <= (counts or [0])[-1]:
            time.sleep(0.002)
        time.sleep(random_delay.random() * 0.02)
        process.kill()
        counts.append(len(list(folder.rglob("data_*"))))
    assert 0 < counts[0] < 20, counts
    generate(outdir=folder, **settings)
    assert contents(folder) == whole


def in_this_process(argv) -> Path:
    """What several processes write, one after the other."""
    prepared = prepare(parse(GenerationSettings, argv))
    outdir = prepared.tasks[0].settings.outdir
    write_or_check(outdir, prepared.manifest)
    for task in prepared.tasks:
        work(task)
    return outdir


def ended_with(process) -> int:
    process.ended()
    return process.returncode


def test_killed_with_several_processes_the_bytes_are_the_same(flags, spawn, tmp_path) -> None:
    """The processes of a killed command end by themselves; until then their folders are in use."""
    settings = {"samples": 19, "batch_tokens": 60, "total_gpus": 2, "device": "cpu"}
    whole, folder = contents(in_this_process(flags(outdir=tmp_path / "whole", **settings))), tmp_path / "killed"
    process = spawn(outdir=folder, **settings)
    while process.returncode is None and not list(folder.rglob("data_*")):
        time.sleep(0.002)
    written, workers = len(list(folder.rglob("data_*"))), children(process.pid)
    process.kill()
    await_end_of(workers, 20)
    deadline = time.monotonic() + 60
    while ended_with(spawn(outdir=folder, **settings)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert 0 < written < 20
    assert contents(folder) == whole


def test_a_process_sees_the_devices_of_its_group(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [_own_devices(index, 2) for index in (0, 3)] == [["0", "1"], ["6", "7"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-ab,7")
    assert _own_devices(1, 2) == ["GPU-ab", "7"]


CHANGES = [
    ({"aux_layers": "speculators"}, "feature_layers"),
    ({"dtype": "bfloat16"}, "dtype"),
    ({"samples": 6}, "processes"),
    ({"max_length": 60}, "tokens"),
    ({"batch_tokens": 500}, "batch_tokens"),
    ({"algorithm": "hass"}, "algorithm"),
]


@pytest.mark.parametrize(("change", "field"), CHANGES)
def test_another_run_does_not_go_on_in_the_same_directory(generate, flags, capsys, change, field) -> None:
    before = contents(generate())
    assert main(flags(**change)) == 2
    assert f"generation.json: {field}: found" in capsys.readouterr().err
    assert contents(generate()) == before


def test_the_estimate_is_what_lands_on_the_disk(flags, generate, capsys) -> None:
    assert main(["estimate", *flags()]) == 0
    said = next(line for line in capsys.readouterr().err.splitlines() if line.endswith("records"))
    size = sum(path.stat().st_size for path in generate().rglob("*.safetensors"))
    assert abs(float(said.split(" GB")[0]) * 1e9 - size) < 0.02 * size


def test_too_little_room_is_said_before_anything_is_written(flags, monkeypatch, capsys, tmp_path) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("ports.files.shutil.disk_usage", lambda path: usage)
    assert main(flags()) == 2
    assert "outdir: found 1e-06 GB free" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


def test_features_that_a_precision_cannot_hold_are_refused(flags, verifier, capsys) -> None:
    """Half precision overflows above 65504; nothing unreadable is written."""
    from safetensors.torch import load_file, save_file

    shard = sorted(verifier.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1e6
    save_file(tensors, shard, {"format": "pt"})
    assert main(flags(algorithm="hass")) == 2
    assert "hidden_state: found NaN or Inf" in capsys.readouterr().err


def test_a_bad_dialogue_ends_the_run_or_is_left_out(flags, tmp_path, capsys) -> None:
    file = tmp_path / "share.json"
    turns = '{"conversations": [{"from": "%s", "value": "x"}, {"from": "gpt", "value": "y"}]}'
    file.write_text(f"[{turns % 'human'}, {turns % 'tool'}, {turns % 'human'}]")
    assert main(flags(data_path=file)) == 2
    assert ": row 1: found" in capsys.readouterr().err, "as the file counts them, from 0"
    assert main(flags(data_path=file, on_bad_conversation="skip")) == 0
    assert "skipped row 1: " in capsys.readouterr().err
    assert len(list_records(tmp_path / "records")) == 2


NO_ANSWER = [
    '{"conversations": [{"from": "human", "value": "who is there"}]}',
    '{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]}',
    '{"conversations": [{"from": "human", "value": "%s"}, {"from": "gpt", "value": "late"}]}' % ("so long " * 40),
]
"""Asked and not answered, answered with nothing, and answered after the cut."""


def test_dialogues_without_an_answer_are_left_out_and_counted(flags, tmp_path, capsys) -> None:
    file, answered = (
        tmp_path / "share.json",
        '{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "yes"}]}',
    )
    file.write_text(f"[{answered}, {', '.join(NO_ANSWER)}, {answered}]")
    assert main(flags(data_path=file, max_length=100)) == 0
    said = capsys.readouterr().err
    assert said.count("no token of an answer") == 3
    assert "2 dialogues, " in said
    assert "3 skipped" in said
    assert len(list_records(tmp_path / "records")) == 2
    file.write_text(f"[{', '.join(NO_ANSWER)}]")
    assert main(flags(data_path=file, max_length=100, outdir=tmp_path / "none")) == 2
    assert "that can be used, the first: row " in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_dialogues_beyond_the_verifiers_positions_are_said_and_counted(flags, verifier, capsys) -> None:
    config = verifier / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 100'))
    assert main(["estimate", *flags()]) == 0
    said = capsys.readouterr().err
    assert "of them longer than the verifier's 100 positions, up to " in said
    assert main(["estimate", *flags(max_length=100)]) == 0
    assert "positions" not in capsys.readouterr().err


def test_a_process_that_fails_is_reported(flags, verifier, capfd) -> None:
    (verifier / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert main(flags(total_gpus=2)) == 2
    assert "weights: found" in capfd.readouterr().err


def test_a_second_run_in_the_same_directory_is_refused(flags, spawn, generate, tmp_path) -> None:
    """Another process holds the folder for as long as it lives."""
    folder = generate()
    record_files.record_file(folder / "0", 0).unlink()
    with hold(folder / "0", tmp_path / "holder"):
        second = spawn()
        assert "outdir: found in use by process" in second.ended()
        assert second.returncode == 2
    generate()
    assert len(list_records(folder)) == 8


BAD = [
    ({"model_path": "/nowhere"}, "/nowhere"),
    ({"chat_template": "alpaca"}, "one of auto, chatml, llama, qwen, mistral, harmony, llama4, plain"),
    ({"prototype": "qwen"}, "prototype says what chat_template is"),
    ({"data_path": "/nowhere.json"}, "data_path: found"),
    ({"aux_layers": "3,3,4"}, "--aux_layers"),
    ({"aux_layers": "1,2,7"}, "--aux_layers"),
    ({"aux_layers": "last"}, "--aux_layers"),
    ({"total_gpus": 3, "gpus_per_model": 2}, "does not divide"),
    ({"loss_mask": "prototype"}, "--loss_mask"),
    ({"outdir": False}, "outdir"),
    ({"data_path": SHAREGPT.parent, "outdir": SHAREGPT.parent / "records"}, "expected a directory outside --data_path"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_bad_input_is_refused(flags, capsys, change, said) -> None:
    assert main(flags(**change)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_records_that_no_manifest_tells_about_are_refused(suffix, flags, tmp_path, capsys) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / f"data_0.{suffix}").write_bytes(b"")
    assert main(flags()) == 2
    assert "found records without generation.json" in capsys.readouterr().err


def test_show_prints_who_is_supervised(flags, capsys) -> None:
    assert main(["show", *flags(outdir=False, samples=False), "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("tokens in the loss") == 2
    assert "chain predicts" in said
    assert str(SHAREGPT) not in said
