"""From a chat model to a draft by one command: what is left, and that a kill in any phase leaves no trace in it."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from speculators import SpeculatorModel

import ports.hass  # noqa: F401, registers its model
from ports import cli, progress
from ports.draft import command, fit, phases, plan, processes
from ports.draft.card import CARD
from ports.draft.phases import best_checkpoint, phases_of
from ports.draft.plan import Plan
from ports.draft.settings import DraftSettings
from ports.errors import InputError
from ports.flags import parse
from ports.generate import answers
from ports.training.derived import derived_config
from ports.training.records import GENERATION, list_records
from ports.verifier.config import verifier_config
from tests.commands import main_of
from tests.ports.conftest import edit, edit_tensors, words_of
from tests.ports.generate.conftest import contents, forking
from tests.ports.generate.test_answers import without_template
from tests.ports.training.conftest import metrics
from tests.ports.verifier.test_loading import LOST, lose
from tests.processes import await_end_of, family, wait_for

main = main_of("draft")

QUESTIONS = [{"question": f"What is {number} and {number}?", "answer": f"It is {2 * number}."} for number in range(12)]


@pytest.fixture
def words(verifier, tmp_path):
    """A command line on GSM8K's form, some of its flags changed; False leaves one out."""

    def make(rows=QUESTIONS, **changes):
        data = tmp_path / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"verifier": verifier, "data": data, "out": tmp_path / "out", "max_new_tokens": 6, "epochs": 2}
        return words_of({**values, "engine": "transformers", "no-progress": None, **changes})

    return make


@pytest.fixture(autouse=True)
def asked_here(monkeypatch):
    """Commands in this process spare themselves the imports of another one; those of ``spawn`` do not."""
    monkeypatch.setattr(fit, "run_subprocess", lambda name, act: act())


@pytest.fixture
def spawn(words, fork):
    return lambda **changes: fork(forking, main, words(**changes))


def results(out):
    """What must be the same, whenever it was made."""
    kept = {name: content for name, content in contents(out).items() if not name.startswith("checkpoints/")}
    found, checked = json.loads(kept.pop("evaluation.json")), json.loads(kept.pop("check.json"))
    del found["seconds"], found["draft"], found["files"], checked["draft"], kept["log.txt"]
    return {**kept, "evaluation": json.dumps(found).encode(), "check": json.dumps(checked).encode()}


TRAINED = "checkpoints/model0"
SIGNS = ["data", "answers/answers.jsonl", "records/0/data_4.safetensors", "draft.json", TRAINED, "draft"]
"""What appears when a phase is in the middle of its work, or when the next one begins."""

LEARNS = {"epochs": 4, "lr": 0.02}
"""Its own answers, by heart."""


def stopped_in_every_phase(spawn, **asked):
    """By SIGKILL, and while it trains by SIGTERM, which the trainer hears: it saves, and its code is the command's."""
    codes, out = {}, asked["out"]
    for sign in SIGNS:
        process = spawn(**asked, **LEARNS)
        while process.returncode is None and not (out / sign).exists():
            time.sleep(0.002)
        phase = family(process.pid)[1:]
        os.kill(process.pid, signal.SIGTERM if sign == TRAINED else signal.SIGKILL)
        process.ended()
        codes[sign] = process.returncode
        await_end_of(phase, 20)  # that of a killed command ends by itself
    assert codes == {**dict.fromkeys(SIGNS, -signal.SIGKILL), TRAINED: 75}
    assert "acceptance length" in spawn(**asked, **LEARNS).ended()


def test_a_draft_to_serve_is_left_wherever_it_was_stopped_and_the_same_command_does_nothing_more(
    spawn, tmp_path, verifier
):
    process, out = spawn(**LEARNS), tmp_path / "out"
    said = process.ended()
    assert process.returncode == 0, said
    assert "10 dialogues to train on in 4 passes, 2 held out; at most " in said
    assert "memory of a device, at least: answers and records " in said
    following = "records, config, training, draft, evaluation, check, card"
    assert f"2 of 9, answers: {out / 'answers'}; then {following}\n" in said
    assert f"8 of 9, check: {out / 'check.json'}; then card\n" in said
    assert (out / "log.txt").is_file()
    for line in (out / "answers" / "answers.jsonl").read_text().splitlines():
        assert json.loads(line)["messages"][1]["content"] != "", "its own words"
    draft = SpeculatorModel.from_pretrained(out / "draft")
    assert draft.config.draft_vocab_size == 512
    config, layer = verifier_config(str(verifier)), draft.config.transformer_layer_config
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rope_parameters"):
        assert getattr(layer, name) == getattr(config, name)
    assert layer.num_hidden_layers == 1
    config.rope_parameters = {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {"rope_theta": 9.0}}
    assert derived_config(config)["rope_parameters"] == {"rope_theta": 7.0}, "of several kinds of layers"
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}
    config.rope_parameters = {**scaled, "partial_rotary_factor": 1.0}
    assert derived_config(config)["rope_parameters"] == scaled
    assert draft.config.speculators_config.verifier.name_or_path == str(verifier)
    assert {"tokenizer.json", GENERATION} <= {path.name for path in (out / "draft").iterdir()}
    assert not (out / "draft" / "training_state").exists()
    assert {value.dtype for value in draft.parameters()} == {config.dtype}
    assert json.loads((out / "evaluation.json").read_text())["prompts"] == 2
    assert ModelCard.load(out / "draft" / CARD).data.library_name == "speculators"
    assert "`evaluation.json`" in (out / CARD).read_text()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    again = spawn(**LEARNS)
    assert "served not checked: pip install vllm" in again.ended()
    assert again.returncode == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}
    stopped_in_every_phase(spawn, out=tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(out)
    edit_tensors(out / "draft" / "model.safetensors", lambda weights: weights["fc.weight"].zero_())
    (out / "check.json").unlink()
    wrong = spawn(**LEARNS)
    assert "8 of 9, check" in wrong.ended()
    assert "is not what it should be: files: fc.weight: all zero" in wrong.said
    assert f"; serve {out}" not in wrong.said
    assert wrong.returncode == 1
    assert "**Not what it should be**" in (out / "draft" / CARD).read_text()


@pytest.mark.nightly
def test_a_kill_leaves_no_trace_either_where_no_hidden_states_are_on_the_disk(spawn, tmp_path):
    process, out = spawn(keep_records="none", **LEARNS), tmp_path / "out"
    assert "serve " in process.ended()
    assert "; records not checked: speculator records keeps hidden states" in process.said
    stopped_in_every_phase(spawn, out=tmp_path / "stopped", keep_records="none")
    assert results(tmp_path / "stopped") == results(out)


def in_small_windows(argv):
    answers.WINDOW, phases.BATCH_TOKENS = 2, 100
    return forking(main, argv)


@pytest.mark.nightly
def test_two_copies_killed_in_every_phase_make_the_draft_of_one(words, fork, tmp_path):
    def spawn(**changes):
        return fork(in_small_windows, words(**changes))

    spawn(**LEARNS).ended()
    stopped_in_every_phase(spawn, out=tmp_path / "stopped", copies=2)
    assert results(tmp_path / "stopped") == results(tmp_path / "out")


def test_a_hass_draft_of_the_answers_that_are_given_trained_in_bf16_without_hidden_states_on_the_disk(spawn, tmp_path):
    common, out = {"algorithm": "hass", "answers": "given", "mixed_precision": "bf16"}, tmp_path / "out"
    process = spawn(**common, keep_records="none")
    process.ended()
    assert " of disk, no hidden states on it\n" in process.said
    states = {each["step"]: each["state"] for each in json.loads((out / "check.json").read_text())["findings"]}
    assert (states["records"], states["trained"]) == ("left out", "ok")
    assert "no hidden states are kept: " in (out / "draft" / CARD).read_text()
    assert "is not what it should be: accepted: 1.000 [1.000, 1.000] tokens a pass" in process.said, "of two passes"
    assert process.returncode == 1
    assert json.loads((out / "checkpoints" / "settings.json").read_text())["mixed_precision"] == "bf16"
    assert not (out / "answers").exists()
    assert SpeculatorModel.from_pretrained(out / "draft").config.speculators_model_type == "hass"


LONGROPE = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 256,
    "pad_token_id": 0,
}


def test_a_draft_of_a_verifier_that_turns_a_part_of_its_heads_turns_whole_ones(words, verifier):
    """As Phi-4-mini: LongRoPE's factors are for 3 of the 4 pairs of a head."""
    edit(verifier / "config.json", **LONGROPE)
    made = Plan(parse(DraftSettings, words()))
    layer = made.likely_config().transformer_layer_config
    assert layer.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert fit.memory(made, fit.Work(500, 0, 50))["training"]["activations"] > 0


def asked(argv):
    """Says where the device is asked, and ends as the command does where that is refused."""
    made = pickle.loads(pickle.dumps(Plan(parse(DraftSettings, argv))))  # as it reaches another process
    fit.free_memory = lambda device: print("elsewhere" if os.getpid() != above else "here", flush=True)
    above, work = os.getpid(), fit.Work(500, 0, 50)
    assert fit._asked_apart(made, work)[0].startswith("memory of a device, at least: answers and records ")
    made.settings.model = "/nowhere"
    command.fit = lambda made: fit._asked_apart(made, work)
    command.Plan = lambda settings: made
    return main(argv)


def test_the_device_is_asked_by_a_process_that_ends(words, fork):
    """Not by the one that waits for the phases: what that held on a GPU would be missing there."""
    process = fork(forking, asked, words())
    assert "elsewhere\n" in process.ended()
    assert "error: /nowhere: verifier: found " in process.said
    assert process.returncode == 2


@pytest.mark.parametrize("code", [0, 2])
def test_a_phase_shows_its_work_and_says_when_it_begins_and_ends(monkeypatch, code):
    """In between, the process that waits for it shows nothing; the silence of one that ends was its own."""
    told, telling = multiprocessing.Pipe(duplex=False)
    monkeypatch.setattr(processes.os, "setsid", lambda: None)
    monkeypatch.setattr(processes, "end_with_parent", lambda: None)

    def act():
        assert progress._open[-1].what == "forecast"
        assert told.recv_bytes() == b"begins"
        return code

    with pytest.raises(SystemExit) as ended:
        processes._phase("forecast", act, telling, None)
    assert ended.value.code == code
    assert told.recv_bytes() == b"ends"


def test_what_a_device_must_hold_is_counted_and_what_it_cannot_is_refused(words, fork, monkeypatch):
    """By the phase, with what takes most and what to change; unknown room refuses nothing."""
    made = Plan(parse(DraftSettings, words(bs=4)))
    small, large = (fit.memory(made, fit.Work(length * 10, 0, length)) for length in (50, 100))
    assert small["answers and records"]["verifier"] == large["answers and records"]["verifier"] > 0
    for part in ("activations", "target"):
        assert large["training"][part] == pytest.approx(2 * small["training"][part], rel=0.1)
    beside = fit.memory(Plan(parse(DraftSettings, words(bs=4, keep_records="none"))), fit.Work(500, 0, 50))
    verifier = small["answers and records"]["verifier"]
    states = 4 / fit.BATCH_TOKENS * 50 * small["answers and records"]["hidden states"]
    assert sum(beside["training"].values()) == sum(small["training"].values()) + verifier + states
    copies = fit.memory(Plan(parse(DraftSettings, words(bs=4, copies=3))), fit.Work(500, 0, 50))
    assert copies["answers and records"]["verifier"] == 3 * verifier, "which share a CPU's memory"
    spread = fit.memory(Plan(parse(DraftSettings, words(bs=4, tensor_parallel=2))), fit.Work(500, 0, 50))
    fit.check_memory({"answers and records": {"verifier": verifier}}, verifier // 2 + 1, 2)
    with pytest.raises(InputError, match=r"for evaluation \(the verifier on one device"):
        fit.check_memory({"evaluation": spread["evaluation"]}, verifier // 2 + 1, 2)
    needed = {name: sum(parts.values()) for name, parts in small.items()}
    for name, size in needed.items():
        others = {other: small[other] for other in small if needed[other] <= size}
        fit.check_memory(others, size)
        with pytest.raises(InputError, match=rf"memory: found .* free, expected at least .* for {name} \(") as refused:
            fit.check_memory(others, size - 1)
        assert str(refused.value).endswith(fit.ADVICE[name])
    assert "free" not in fit.told_memory(small, None)[0]


def test_a_dry_run_says_what_it_takes_whether_it_fits_or_not_and_writes_nothing(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fit, "free_memory", lambda device: 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    assert main(["--dry-run", *words()]) == 0
    said = capsys.readouterr().err
    assert "10 dialogues to train on in 2 passes, 2 held out; at most " in said
    assert ", of 1e-06 GB that are free\n  answers and records: verifier " in said
    assert "\n  training: weights, gradients, Adam " in said
    assert main(words()) == 2
    assert "out: found 1e-06 GB free" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))
    assert main(words()) == 2
    assert "memory: found 1e-06 GB free, expected at least " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


PRECISIONS = [("no", True, "no"), ("bf16", False, "bf16"), ("auto", True, "bf16"), ("auto", False, "no")]


@pytest.mark.parametrize(("asked", "units", "precision"), PRECISIONS)
def test_the_precision_is_the_one_asked_for_or_the_fastest(words, monkeypatch, asked, units, precision):
    """What is recorded, and what the trainer is told (a run of it is above)."""
    monkeypatch.setattr(plan, "has_bf16_units", lambda device: units)
    made, told = Plan(parse(DraftSettings, words(mixed_precision=asked))), {}
    monkeypatch.setattr(phases, "_command", lambda made, name, **flags: told.update(flags))
    monkeypatch.setattr(phases, "list_records", lambda folder: [])
    next(phase for phase in phases_of(made) if phase.name == "training").run()
    assert told["mixed_precision"] == made.inputs()["mixed_precision"] == precision
    assert told["keep_last"] == 1, "the best one and the last"


ROWS = [{"question": f"What is {number}?", "answer": f"It is {number}."} for number in range(20)]
"""Some of one length, whose numbers are not."""

TALKS = [{**row, "answer": " and ".join([row["answer"]] * (1 + number % 5))} for number, row in enumerate(QUESTIONS)]


def test_two_processes_draw_the_curve_of_one(words, fork, programs, tmp_path, monkeypatch):
    """Over gloo: told to stop, all of them as by a scheduler, they save, and the same command goes on; by one process
    as many steps as good."""
    common, out = {"rows": TALKS, "bs": 4, "epochs": 4, "answers": "given", "mixed_precision": "no"}, tmp_path / "out"
    two = {"PYTHON_EXEC": str(programs / "python"), "PYTHONPATH": os.getcwd()}
    line = words(**common, num_processes=2)
    process = fork(forking, main, line, **two)
    wait_for(out / "checkpoints" / "model0")
    everyone = family(process.pid)
    for pid in reversed(everyone):
        os.kill(pid, signal.SIGTERM)
    said = process.ended()
    assert process.returncode == 75, said
    await_end_of(everyone, 20)
    process = fork(forking, main, line, **two)
    assert "acceptance length" in process.ended()
    assert "processes: 2, on cpu" in process.said
    one = Plan(parse(DraftSettings, words(**common, num_processes=1, out=tmp_path / "one")))
    shutil.copytree(out / "records", one.out / "records")
    shutil.copy(out / "draft.json", one.out)
    monkeypatch.setattr(phases, "in_process", lambda name, words, log: cli.run([*name.split(), *words]))
    next(phase for phase in phases_of(one) if phase.name == "training").run()
    found, wanted = (metrics(each / "checkpoints") for each in (out, one.out))
    assert len(found) == 8
    for both, alone in zip(found, wanted, strict=True):
        assert both == pytest.approx(alone, rel=1e-5, abs=1e-6)


def test_without_hidden_states_on_disk_the_curve_is_that_of_stored_ones(
    words, tmp_path, monkeypatch, reset_accelerator, algorithm
):
    """To what one rounding moves."""
    monkeypatch.setattr(phases, "in_process", lambda name, words, log: cli.run([*name.split(), *words]))

    def trained(name, **changes):
        reset_accelerator()
        common = {"rows": ROWS, "bs": 2, "answers": "given", "mixed_precision": "no", "algorithm": algorithm}
        made = Plan(parse(DraftSettings, words(**common, **changes, out=tmp_path / name)))
        for phase in phases_of(made)[:4]:
            phase.run()
        return metrics(made.out / "checkpoints")

    stored, beside = trained("stored"), trained("beside", keep_records="none")
    assert len(beside) == len(stored) == 16
    for one, other in zip(stored, beside, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    for file in list_records(tmp_path / "beside" / "records"):
        assert load_file(file).keys() == {"input_ids", "loss_mask"}


def linear(verifier):
    layers = ["linear_attention", "full_attention"] * 4
    edit(verifier / "config.json", layer_types=layers[:7])


def takes_no_system(verifier):
    template = verifier / "chat_template.jinja"
    text = json.loads((verifier / "tokenizer_config.json").read_text())["chat_template"]
    template.write_text(text.replace("'system', ", ""))


def loses_a_tensor(verifier):
    lose(verifier, LOST["renamed"][0])


LAST = [*QUESTIONS[:-1], {"messages": [{"role": role, "content": "Hi"} for role in ("system", "user")]}]
REFUSED = [
    ({"verifier": "/nowhere"}, None, "/nowhere: verifier: found "),
    ({"rows": QUESTIONS[:4]}, None, "rows: found 4, expected at least 5"),
    ({}, without_template, "expected a tokenizer with a chat template, or --chat-template FILE.yaml:NAME, a family"),
    ({"data": "x.jsonl"}, None, "x.jsonl: data: found nothing of that name here, expected a JSON, parquet or text"),
    ({"out": "/proc/nowhere"}, None, ": out: found "),
    ({"configpath": "/nowhere.json"}, None, "draft_config: found no such file"),
    ({"draft_vocab_size": 513}, None, "draft_vocab_size: found 513, expected 1..512"),
    ({"algorithm": "hass", "draft_vocab_size": 5}, None, "--draft-vocab-size: found 5, expected Eagle3"),
    ({"data": "{root}"}, None, "out: found inside {root}, expected a place outside --data"),
    ({}, loses_a_tensor, "model.layers.3.mlp.down_proj.weight missing, expected every tensor"),
    ({}, linear, "layer_types: found linear_attention, expected full_attention"),
    ({"bs": 11}, None, "--batch-size: found 11, expected at most 10, the dialogues to train on"),
    ({"rows": QUESTIONS * 5, "bs": 47}, None, "--batch-size: found 47, expected at most 46, the dialogues to train on"),
    ({"bs": 4, "num_processes": 3}, None, "--num-processes: found 3, expected a number that divides --batch-size 4"),
    ({"keep_records": "none", "tensor_parallel": 2}, None, "--keep-records: found none, expected all, or --tensor-pa"),
    ({"rows": LAST}, takes_no_system, "row 11: found role system"),
    ({"rows": LAST, "answers": "given"}, takes_no_system, "row 11: found role system"),
]


@pytest.mark.parametrize(("changes", "spoil", "said"), REFUSED)
def test_bad_input_is_refused_before_anything_is_written(words, verifier, tmp_path, capsys, changes, spoil, said):
    if spoil:
        spoil(verifier)
    changes = {name: str(tmp_path) if value == "{root}" else value for name, value in changes.items()}
    assert main(words(**changes)) == 2
    line = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert line.startswith("error: ")
    assert said.format(root=tmp_path) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("width", "asked", "rate"),
    [(8192, None, 1e-4), (4096, None, 1e-4), (2048, None, 1.62e-4), (576, None, 3.95e-4), (64, None, 4e-4), (64, 1, 1)],
)
def test_narrow_drafts_learn_at_a_higher_rate(width, asked, rate):
    made = SimpleNamespace(settings=SimpleNamespace(lr=asked), verifier=SimpleNamespace(hidden_size=width))
    assert Plan.lr.fget(made) == pytest.approx(rate, rel=1e-2)


def other_verifier(verifier):
    weights = sorted(verifier.glob("*.safetensors"))[0]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


OTHERS = [
    ({"epochs": 3}, None, "passes: found 2, expected 3"),
    ({"lr": 1e-3}, None, "lr: found 0.0004, expected 0.001"),
    ({"algorithm": "hass"}, None, "algorithm: found eagle3, expected hass"),
    ({"keep_records": "none"}, None, "keep_records: found all, expected none"),
    ({"rows": QUESTIONS[1:]}, None, "data: found "),
    ({"draft_vocab_size": 7}, None, "draft: found {"),
    ({"served_model": "b"}, None, "served_model: found None, expected b"),
    ({}, other_verifier, "verifier: found "),
]


def test_a_run_that_is_begun_anew_has_nothing_of_the_one_before(words, tmp_path, capsys, monkeypatch):
    """What it did not write stays."""

    def stop(*_, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "in_process", stop)
    out, kept = tmp_path / "out", "answers/.answers.jsonl.kept"
    assert main(words()) == 130
    before = contents(out)
    for name in (kept, "records/generation.json", "draft.json", "evaluation-8.json", "notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    (out / "evaluation.json").write_text("{}")  # of a run that is done, which need not be fitted again
    assert main(words(rows=QUESTIONS[1:])) == 2
    assert capsys.readouterr().err.endswith("another one takes another --out or --restart\n")
    monkeypatch.setattr(command, "fit", lambda plan: ["fitted"])
    assert main(words(rows=QUESTIONS[1:], restart=None)) == 130
    assert "fitted\n" in capsys.readouterr().err
    assert contents(out).keys() - before.keys() == {"notes.txt"}
    assert contents(out)["data/train.jsonl"] != before["data/train.jsonl"]
    (out / "run.json").unlink()
    assert main(words(restart=None)) == 2
    assert "out: found data without run.json" in capsys.readouterr().err


def test_a_key_is_handed_to_the_answers_by_the_environment_alone(words, tmp_path, capsys, monkeypatch):
    told = []

    def stop(name, arguments, *_, **more):
        told.extend([*arguments, os.environ["OPENAI_API_KEY"]])
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "in_process", stop)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert main(words(server="http://127.0.0.1:9", **{"api-key": "sk-4711"})) == 130
    *arguments, key = told
    said = capsys.readouterr()
    assert key == "sk-4711"
    assert key not in "".join([*arguments, said.out, said.err])
    assert key.encode() not in b"".join(contents(tmp_path / "out").values())


def test_a_run_in_a_used_directory_must_be_the_same(words, verifier, hold, tmp_path, capsys, monkeypatch):
    """Stopped after its first phase, and begun again otherwise; or it has no room, or another command is there."""

    def stop(*_, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(phases, "in_process", stop)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
        assert main(words()) == 2
        assert "out: found 0 GB free" in capsys.readouterr().err
    assert main(words()) == 130
    before = contents(tmp_path / "out")
    capsys.readouterr()
    for changes, spoil, said in OTHERS:
        if spoil:
            spoil(verifier)
        assert main(words(**changes)) == 2
        assert f"run.json: {said}" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    file = tmp_path / "out" / "run.json"
    edit(file, keep_records=...)  # by a release that had no such flag: all were kept
    other_verifier(verifier)  # the first one again
    assert main(words(keep_records="none")) == 2
    assert "run.json: keep_records: found all, expected none" in capsys.readouterr().err
    assert main(words()) == 130
    file.write_text(json.dumps({**json.loads(before["run.json"]), "done": 7}))
    assert main(words()) == 2
    assert "run.json: done: found 7, expected a value of kind list" in capsys.readouterr().err
    file.unlink()
    assert main(words()) == 2
    assert "out: found data without run.json" in capsys.readouterr().err
    hold(tmp_path / "out")
    assert main(words()) == 2
    assert "out: found in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("code", [2, 75, -9])
def test_a_phase_that_ends_otherwise_ends_the_command_with_its_code(words, monkeypatch, code):
    """The first of them is told to take every dialogue, and by how many copies."""

    def ended(name, arguments, good=(0,), log=None):
        assert (name, {"--samples=9", "--copies=2"} <= {*arguments}) == ("records", True)
        raise processes.PhaseError(code if code > 0 else 128 - code)

    monkeypatch.setattr(phases, "in_process", ended)
    assert main(words(answers="given", copies=2)) == (code if code > 0 else 137)


def test_the_best_checkpoint_is_the_one_that_training_names_else_the_last(tmp_path, refuses):
    for name in ("model0", "model1", "step_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert best_checkpoint(tmp_path, 2).name == "model1"
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": "model0", "expected_acceptance": 2.0}))
    assert best_checkpoint(tmp_path, 2).name == "model0"
    for best in ({}, 7, {"checkpoint": 7}):
        (tmp_path / "best.json").write_text(json.dumps(best))
        with refuses(tmp_path / "best.json", "checkpoint", "", "a value of kind str"):
            best_checkpoint(tmp_path, 2)
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": "model7"}))
    with refuses(tmp_path, "checkpoint", "model7", "what training saved"):
        best_checkpoint(tmp_path, 2)


@pytest.mark.parametrize(
    ("lossless", "ties", "state", "code", "said"),
    [
        (True, 0, "ok", 0, "over 9 held-out prompts; serve"),
        (True, None, "ok", 0, "over 9 held-out prompts; serve"),  # as an evaluation wrote it that knew none
        (True, 2, "left out", 0, "prompts, 2 of them a near tie; serve {out}/draft; served not checked: do it"),
        (False, 1, "ok", 1, "beyond rounding, see differences in"),
        (True, 0, "fault", 1, "9 held-out prompts; {out}/draft is not what it should be: served: few: do it"),
    ],
)
def test_a_fault_is_exit_code_1_and_no_success(tmp_path, capsys, lossless, ties, state, code, said):
    known = {} if ties is None else {"near_ties": ties}
    found = {"acceptance_length": 2.0, "prompts": 9, "lossless": lossless, **known}
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    findings = [
        {"step": "files", "state": "ok"},
        {"step": "served", "state": state, "figure": "few", "advice": "do it"},
    ]
    (tmp_path / "check.json").write_text(json.dumps({"findings": findings}))
    assert command.report(tmp_path) == code
    told = "".join(capsys.readouterr())
    assert said.format(out=tmp_path) in told
    assert ("serve " in told) is (code == 0)
    if state == "fault" and lossless:  # no vLLM that could: said before anything was made
        assert command.report(tmp_path, served=False) == 0
        assert "not served by vLLM: " in "".join(capsys.readouterr())
