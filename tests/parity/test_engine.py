"""An engine as a side, with a stand-in for vLLM; with vLLM itself: tests/serving/test_engine.py."""

import sys
from types import SimpleNamespace

import pytest
import torch

from parity import Case, EngineSide, Pair, Side, engine, inside_vllm, run_pair, tap
from parity.errors import InputError
from parity.power import FORWARD_ONLY, run_with_power
from parity.verdict import Sight
from tests.parity import stand_in

ANSWER = 3
NAMES = engine.engine_names(stand_in.plain())


def prompts():
    """Drawn ids and what the plain model answers."""
    ids, model = (
        torch.randint(0, stand_in.VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0)),
        stand_in.plain(),
    )
    for _ in range(ANSWER):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], -1)
    return ids


CASE = Case("tiny", [{"input_ids": prompts()}], steps=1)


def in_process(words, what, timeout, env):
    """The program in this process: what stands for vLLM is there."""
    assert words[:3] == [sys.executable, "-m", "parity.inside_vllm"]
    inside_vllm.main(*words[3:])


@pytest.fixture
def judged(monkeypatch):
    """A report of the plain model against the stand-in's."""
    monkeypatch.setattr(engine, "run_command", in_process)

    def judge(lacks="", dtype="float32", run=run_pair, **options):
        side = EngineSide("folder", dtype, answer=ANSWER, python=(sys.executable,))
        original = Side(
            lambda: stand_in.plain().to(getattr(torch, dtype)), engine.likelihood, backward=False, name="plain"
        )
        weights = NAMES.parameters(stand_in.plain().state_dict())
        weights = {name: weights[name] for name in dict(stand_in.Fused().named_parameters()) if name != lacks}
        with stand_in.vllm(weights, **options):
            return run(Pair("tiny", original, side, [CASE], NAMES, checks=engine.CHECKS))

    return judge


IN_THE_ENGINE = {
    "one module's output times 1.001": "model.layers.1.input_layernorm",
    "dropout left on": "model.layers.1.input_layernorm",
    "a norm's eps times 10": "model.layers.0.input_layernorm.eps",
    "one weight's largest entry off by 1 %": "model.layers.1.self_attn.qkv_proj.weight",
    "samples in another order": "batch 0",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_faults_are_planted_in_the_engine_s_own_process(judged, dtype):
    """By their names; what shows while training alone is planted in none."""
    found = {one.fault: one for one in judged(dtype=dtype, run=run_with_power).planted}
    planted = {name: one for name, one in found.items() if one.sight is not Sight.NOT_PLANTABLE}
    assert {name: one.place for name, one in planted.items()} == IN_THE_ENGINE
    assert {one.sight for one in planted.values()} <= {Sight.SEEN, *([Sight.BELOW] if dtype == "bfloat16" else ())}
    assert {one.detail for one in found.values() if one not in planted.values()} == {FORWARD_ONLY}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_does_the_same_passes(judged, dtype):
    report = judged(dtype=dtype)
    assert report.passed, report
    ended = [row.tensor for row in report.rows if row.check == "forward" and row.quantity == "out"]
    layer = "model.layers.1"
    wanted = [f"{layer}.input_layernorm#0", f"{layer}.self_attn.qkv_proj#0", f"{layer}.self_attn#0", f"{layer}#0"]
    assert [name for name in ended if name in wanted] == wanted
    assert {"lm_head#0", "mb0.tap.logprobs#0"} <= {*ended}
    assert len([row for row in report.rows if row.check == "tokens"]) == 3


def rolled(model):
    """A vocabulary shifted by one."""
    model.lm_head.weight.data = model.lm_head.weight.data.roll(1, 0)


def scaled(model):
    model.model.layers[1].self_attn.register_forward_hook(lambda module, given, out: out * 1.01)


def forgetful(model):
    """Whoever reads the residual finds half of it."""
    model.model.norm.register_forward_pre_hook(lambda module, given: (given[0], given[1] / 2))


PLANTED = {
    "eps": ({"eps": 1e-2}, "forward", "model.layers.0.input_layernorm"),
    "scaled": ({"alter": scaled}, "forward", "model.layers.1.self_attn"),
    "residual": ({"alter": forgetful}, "forward", "model"),
    "head": ({"alter": rolled}, "forward", "lm_head"),
    "unfilled": ({"lacks": "model.layers.1.self_attn.o_proj.weight"}, "weights", "model.layers.1.self_attn.o_proj"),
}


@pytest.mark.parametrize(("options", "check", "module"), PLANTED.values(), ids=PLANTED)
def test_a_fault_is_placed(judged, options, check, module):
    report = judged(**options)
    assert (report.first.check, report.first.module) == (check, module)


def followed(module, batch):
    """The draft on every state of the verifier's, each beside the token that follows."""
    ids = batch["input_ids"]
    hidden = module.verifier.model(ids)
    logits = module.verifier.lm_head(hidden)
    following = torch.cat([ids[:, 1:], logits[:, -1:].argmax(-1)], -1)
    out = module.draft(tap("handed.input_ids", following), tap("handed.hidden_states", hidden))
    tap("logprobs", logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0])
    return module.draft.lm_head(out).mean()


@pytest.fixture
def served(monkeypatch):
    """A report of verifier and draft against the stand-in's, in chunks of several prompts."""
    monkeypatch.setattr(engine, "run_command", in_process)
    inner = {f"draft.{part}": f"draft.model.{part}" for part in ("layers", "fc", "norm", "embed_tokens")}
    heads = {"verifier.model": "model", "verifier.lm_head": "lm_head", "verifier": None, "draft": None}
    names = engine.engine_names(stand_in.Drafted(), {**heads, **inner, "draft.lm_head": "draft.lm_head"})

    def judge(lacks="", **options):
        side = EngineSide("folder", "float32", drafter="draft", python=(sys.executable,))
        original = Side(stand_in.Drafted, followed, backward=False, name="plain")
        held = names.parameters(stand_in.Drafted().state_dict())
        parts = {"": stand_in.Fused(), "draft.": stand_in.FusedDraft()}
        weights, draft = (
            {name: held[at + name] for name in dict(one.named_parameters()) if name != lacks}
            for at, one in parts.items()
        )
        with stand_in.vllm(weights, draft=draft, **options):
            return run_pair(Pair("drafted", original, side, [CASE], names, checks=engine.CHECKS))

    return judge


def test_a_draft_is_run_on_what_the_verifier_hands_it(served):
    report = served()
    assert report.passed, report
    ended = {row.tensor for row in report.rows if row.check == "forward" and row.quantity == "out"}
    taps = {f"mb0.tap.handed.{name}#0" for name in ("hidden_states", "input_ids")}
    assert {*taps, "draft.model.fc#0", "draft.model.layers.0.self_attn.qkv_proj#0", "draft.lm_head#0"} <= ended


def handing(change):
    """A drafter that is handed something else."""

    def alter(drafter):
        propose = drafter.propose
        drafter.propose = lambda following, positions, target_hidden_states: propose(
            *change(following, positions, target_hidden_states)
        )

    return alter


def weaker(drafter):
    drafter.model.model.layers[0].self_attn.register_forward_hook(lambda module, given, out: out * 1.01)


DRAFTED = {
    "other states on the way": (
        {"alter_drafter": handing(lambda ids, at, states: (ids, at, states * 1.01))},
        "draft.model.fc#0",
    ),
    "other tokens": (
        {"alter_drafter": handing(lambda ids, at, states: (ids.roll(1), at, states))},
        "mb0.tap.handed.inp",
    ),
    "scaled": ({"alter_drafter": weaker}, "draft.model.layers.0.self_attn#0"),
    "unfilled": ({"lacks": "model.fc.weight"}, "init.draft.model.fc.weight"),
}


@pytest.mark.parametrize(("options", "row"), DRAFTED.values(), ids=DRAFTED)
def test_a_fault_of_a_draft_is_placed(served, options, row):
    assert next(row for row in served(**options).rows if not row.passed).tensor.startswith(row)


def test_log_probabilities_and_answers_are_told_apart(judged):
    rows = {row.check: row for row in judged(alter=rolled).rows if row.check in ("logprobs", "tokens")}
    assert rows["logprobs"].measured > 0.1
    assert "the largest" in rows["logprobs"].detail
    assert "token 0 of the answer" in rows["tokens"].detail
    assert not rows["tokens"].passed


def test_what_a_draft_shares_with_a_tied_verifier_is_there_by_both_names():
    embedding = torch.nn.Embedding(5, 2)
    head = torch.nn.Linear(2, 5, bias=False)
    head.weight = embedding.weight
    both = {"embed_tokens": embedding, "lm_head": head}
    verifier, draft = torch.nn.ModuleDict(both), torch.nn.ModuleDict({**both, "fc": torch.nn.Linear(2, 2, bias=False)})
    kept = {"embed_tokens.weight": embedding.weight, "lm_head.weight": embedding.weight}
    runner = SimpleNamespace(model=verifier, drafter=SimpleNamespace(model=draft))
    found = inside_vllm.loaded(runner, [kept, {"fc.weight": draft["fc"].weight}])
    assert found.keys() == kept.keys() | {f"draft.{name}" for name in (*kept, "fc.weight")}
    assert found["draft.lm_head.weight"] is embedding.weight


def test_another_layout_is_said(judged):
    report = judged(alter=lambda model: setattr(model, "logits_processor", None))
    assert "tried with 0.32.0, this is 0;" in report.rows[0].detail


def test_what_an_engine_cannot_be_given(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"EngineSide\(python="):
        EngineSide("folder", "float32").trace(CASE).__enter__()
    for batch in (torch.zeros(3), {"input_ids": torch.zeros(3, dtype=torch.int64)}):
        with pytest.raises(InputError, match="input_ids"):
            engine.prompts_of(Case("", [batch]))
    padded = {"input_ids": prompts(), "attention_mask": torch.tensor([[1, 0]])}
    with pytest.raises(InputError, match="attention_mask"):
        engine.prompts_of(Case("", [padded]))
