"""``speculator check``: a good draft passes every step, and each fault is found by the step that it belongs to."""

import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ports.check import accepted, command
from ports.check import trained as steps
from ports.check.accepted import look_at_acceptance, look_at_contexts
from ports.check.command import check
from ports.evaluate.acceptance import by_context
from ports.evaluate.decode import Answer
from ports.evaluate.drafter import open_draft
from ports.generate.records import write_record
from ports.training.records import RecordInfo, list_records
from ports.verifier.fingerprint import verifier_fingerprint
from tests.commands import main_of
from tests.ports.conftest import edit, edit_tensors

main = main_of("check")

STEPS = ["files", "records", "trained", "accepted", "context", "served"]


def tensors(data, **changes):
    """Change tensors of the draft, each by a function."""

    def change(weights):
        for name, act in changes.items():
            key = name if name in weights else f"{name}.weight"
            weights[key] = act(weights[key]).contiguous()

    edit_tensors(data / "draft" / "model.safetensors", change)


def config(data, change):
    edit(data / "draft" / "config.json", change)


def random(value):
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * value.std()


def records(data, change, every=1):
    for file in sorted((data / "data_eagle3").iterdir())[::every]:
        record = torch.load(file, weights_only=True)
        change(record)
        torch.save(record, file)


def zeros(record):
    record["hidden_state"][3:9] = 0


def layer_before(record):
    record["target"] = record["hidden_state"][:, -record["target"].shape[1] :]


def shifted_map(data):
    tensors(data, t2d=lambda t2d: t2d.roll(1), d2t=lambda d2t: d2t + 1)


def aux_layers(content):
    content["eagle_aux_hidden_state_layer_ids"][1] += 1


def few_positions(content):
    content["transformer_layer_config"]["max_position_embeddings"] = 40


def unsaid_norm(content):
    del content["norm_before_residual"]


FAULTS = {
    "an embedding left random": (lambda data: tensors(data, embed_tokens=random), "files", "embed_tokens: mean cosine"),
    "a tensor that nothing filled": (lambda data: tensors(data, fc=torch.zeros_like), "files", "fc.weight: all zero"),
    "a tensor that is not finite": (lambda data: tensors(data, fc=lambda fc: fc / 0), "files", "fc.weight: found NaN"),
    "a map shifted by one": (shifted_map, "files", "tokens -1 from those of its map"),
    "a norm's place that vLLM guesses": (lambda data: config(data, unsaid_norm), "files", "norm_before_residual"),
    "zeros in a tenth of the records": (lambda data: records(data, zeros, every=8), "records", "hidden_state"),
    "another layer as the target": (lambda data: records(data, layer_before), "records", "target"),
    "aux layers off by one": (lambda data: config(data, aux_layers), "records", "hidden_state: found entry"),
    "a head left random": (lambda data: tensors(data, lm_head=random), "accepted", "tokens a pass"),
    "positions that end too early": (lambda data: config(data, few_positions), "context", "40 positions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_step(trained, fault):
    plant, step, words = FAULTS[fault]
    plant(trained)
    for finding in check(trained / "draft", None, trained / "data_eagle3", [], tokens=24):
        if finding.state == "fault":
            break
    assert (finding.step, finding.state) == (step, "fault"), finding
    assert words in finding.figure, finding
    assert finding.advice


def test_a_good_draft_passes_every_step(trained, run_app, tmp_path, capsys):
    told = tmp_path / "told.json"
    words = (trained / "draft", "--records", trained / "data_eagle3", "--max-new-tokens", 24, "--json", told)
    assert run_app(main, *words) == 0, capsys.readouterr()
    found = json.loads(told.read_text())["findings"]
    assert [each["step"] for each in found] == STEPS
    assert {each["state"] for each in found[:-1]} == {"ok"}
    assert found[-1]["state"] == "left out"
    assert "vllm" in found[-1]["advice"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[: len(STEPS)]] == STEPS
    assert re.search(r"accepted +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] tokens a pass", lines[3])


def test_of_ids_alone_everything_but_the_records_is_looked_at(trained, tmp_path, refuses):
    """What they promise is what stored ones do; those of another verifier are refused."""
    look = partial(check, trained / "draft", None, prompts=[], tokens=24)
    stored = list(look(trained / "data_eagle3"))
    told = {"algorithm": "ids", "verifier": verifier_fingerprint(str(trained / "verifier")), "feature_layers": ()}
    told |= {"tokenizer": "none", "loss_mask": "exact", "chat_template": "plain"}
    (tmp_path / "ids").mkdir()
    for row, file in enumerate(list_records(trained / "data_eagle3")):
        record = torch.load(file, weights_only=True)
        tokens = {name: record[name] for name in ("input_ids", "loss_mask")}
        write_record(tmp_path / "ids" / f"data_{row}.safetensors", tokens, RecordInfo(**told, row=row))
    found = list(look(tmp_path / "ids"))
    assert [each.state for each in found] == ["ok", "left out", *(each.state for each in stored[2:])]
    assert found[3].numbers["expected"] == pytest.approx(stored[3].numbers["expected"], rel=1e-4)
    write_record(tmp_path / "ids" / "data_0.safetensors", tokens, RecordInfo(**told | {"verifier": "other"}, row=0))
    with refuses(tmp_path / "ids", "verifier", "other", ""):
        list(look(tmp_path / "ids"))


def test_a_fault_ends_with_exit_code_1_and_is_explained(trained, run_app, capsys):
    tensors(trained, embed_tokens=random)
    assert run_app(main, trained / "draft") == 1
    assert "files: a converter left it random" in capsys.readouterr().out


def test_no_draft_there_is_bad_input(tmp_path, run_app, capsys):
    assert run_app(main, tmp_path) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected a Speculators checkpoint directory" in line


def test_a_forward_that_ignores_the_rope_is_named(trained, monkeypatch):
    """As a trainer did that read no ``partial_rotary_factor``: what is trained and what is opened are two drafts."""
    right = steps.chain_logits

    def wrong(draft, batch, size):
        turned, draft.rotary_emb.inv_freq = draft.rotary_emb.inv_freq, draft.rotary_emb.inv_freq * 0.5
        try:
            return right(draft, batch, size)
        finally:
            draft.rotary_emb.inv_freq = turned

    monkeypatch.setattr(steps, "chain_logits", wrong)
    found = {each.step: each for each in check(trained / "draft", None, trained / "data_eagle3", [], tokens=8)}
    assert found["trained"].state == "fault"
    assert "the evaluator's forward" in found["trained"].figure


@pytest.mark.parametrize(("counted", "state"), [((60, (20, 8, 2)), "ok"), ((60, (2, 0, 0)), "fault")])
def test_what_vllm_counts_is_held_against_the_evaluator(trained, monkeypatch, counted, state):
    answers = [Answer([1] * 8, [1, 0, 1]), Answer([1] * 8, [0, 1, 0]), Answer([1] * 8, [1, 0, 0, 1])]
    drafts, places = counted
    monkeypatch.setattr(accepted, "find_spec", lambda name: True)
    asked = {}

    def start(request):
        asked.update(request)
        return [{"drafts": drafts, "accepted_per_position": list(places)}]

    monkeypatch.setattr(accepted, "start_engine", start)
    model = open_draft(trained / "draft")
    found = accepted.look_at_serving(trained / "draft", model, [[1, 2]] * 3, answers, 3, 8)
    assert found.state == state, found
    assert asked["engine"]["dtype"] == "float32"


def test_hass_is_served_where_vllm_has_the_plugin(trained, monkeypatch):
    monkeypatch.setattr(accepted, "find_spec", lambda name: True)
    monkeypatch.setattr(accepted, "start_engine", lambda request: [{"drafts": 4, "accepted_per_position": [2]}])
    attached = SimpleNamespace(verifier=SimpleNamespace(name_or_path=str(trained / "verifier")))
    model = SimpleNamespace(config=SimpleNamespace(speculators_model_type="hass", speculators_config=attached))
    look = partial(accepted.look_at_serving, trained, model, [[1, 2]], [Answer([1] * 6, [1, 0, 1, 0])], 1, 8)
    for plugins, state in (([], "left out"), ([SimpleNamespace(module="ports.serving.plugin")], "ok")):
        monkeypatch.setattr(accepted, "entry_points", lambda group, plugins=plugins: plugins)
        found = look()
        assert found.state == state, found
    assert "vLLM 1.500 tokens a pass" in found.figure


def test_fewer_tokens_than_records_promise_want_a_cause():
    few = [Answer([1] * 40, [0, 1] * 10), Answer([1] * 40, [0, 0, 1, 0] * 5)] * 4
    assert look_at_acceptance(few, 3, [0.4, 0.1, 0.1]).state == "ok"
    found = look_at_acceptance(few, 3, [0.9, 0.9, 0.9])
    assert found.state == "fault"
    assert "records promise 3.439" in found.figure


@pytest.mark.parametrize(("own", "state"), [(True, "fault"), (False, "ok")])
def test_what_texts_of_others_promise_is_not_held_against_acceptance(trained, monkeypatch, own, state):
    """Given answers may be easy to foresee where the verifier's own are not."""
    monkeypatch.setattr(command, "expected", lambda *_: [1.0, 1.0, 1.0, 1.0, 1.0])
    found = {each.step: each for each in check(trained / "draft", None, trained / "data_eagle3", [], held=2, own=own)}
    assert found["accepted"].state == state
    assert ("records promise 6.000" in found["accepted"].figure) is own


def test_contexts_are_where_proposals_begin():
    answer = Answer([1] * 600, [1] * 10 + [0] * 30)
    lengths = by_context([[1] * 500, [1] * 600], [answer, answer])
    assert {name: length.value for name, length in lengths.items()} == {
        "under 512": 2.0,
        "512 to 1024": 1 + (4 + 10) / (34 + 40),
    }
    assert look_at_contexts([[1] * 500], [answer], 2048).state == "ok"
    assert look_at_contexts([[1] * 500], [answer], 1024).state == "fault"
