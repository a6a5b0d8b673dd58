"""The reference's run: passes, windows, what it keeps, and input it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.observe import path_norms
from parity.prototypes.reference.loop import near_ties, prepare, trace_reference


def test_a_run_can_end_early_and_only_the_last_micro_batch_of_a_window_counts(cases):
    """The prototypes' own loop loses the gradients of the others."""
    case = cases["eagle3_fp32_k3_ga2"]
    trace = trace_reference(case, optimizer_steps=2)
    assert trace.run == "reference"
    assert [point.stepped for point in trace.curve] == [False, True, False, True]
    assert trace.micro_batches() == [0, 1]
    assert not torch.equal(trace.tensors["after.fc.weight"], trace.tensors["final.fc.weight"])
    assert not torch.equal(trace.tensors["mb0.grad.fc.weight"], trace.tensors["mb1.grad.fc.weight"])
    alone = trace_reference(replace(case, order=(2, 3, 2, 3) * 20), optimizer_steps=1)
    torch.testing.assert_close(alone.tensors["mb0.grad.fc.weight"], trace.tensors["mb1.grad.fc.weight"])


@pytest.mark.parametrize(
    ("others", "ties"),
    [((0.5, 0, 0), (0, 0, 0)), ((1, 0, 0), (1, 0, 0)), ((9, 1, 0), (0, 1, 0)), ((1, 1, 1), (1, 1, 1))],
)
def test_near_ties_are_counted_where_rounding_decides(others, ties):
    """The target's logit is a little more than 1. The second row is not in the loss."""
    logits = torch.tensor([[1 + 1e-5, *others]] * 2)
    assert near_ties(logits, torch.eye(4)[[0, 0]], torch.tensor([True, False]), 2e-5) == ties


@pytest.mark.parametrize("name", ["verifier.lm_head.weight", "verifier.embed_tokens.weight"])
def test_a_missing_verifier_weight_is_named(name, case, tmp_path):
    stored = load_file(case.initial)
    del stored[name]
    save_file(stored, tmp_path / "initial.safetensors")
    with pytest.raises(InputError, match=f"{name}: found missing"):
        prepare(replace(case, initial=tmp_path / "initial.safetensors"))


@pytest.mark.parametrize("left_out", ["init.lm_head.weight", "rms_norm_eps"])
def test_the_verifier_s_head_and_the_default_eps_may_be_left_out(left_out, case, tmp_path):
    stored, config = load_file(case.initial), json.loads(case.configpath.read_text())
    stored["init.lm_head.weight"] = stored["verifier.lm_head.weight"][stored["t2d"].bool()]
    config["rms_norm_eps"] = 1e-6
    files, traces = {"initial": tmp_path / "initial.safetensors", "configpath": tmp_path / "draft.json"}, []
    for _ in range(2):
        save_file(stored, files["initial"])
        files["configpath"].write_text(json.dumps(config))
        traces.append(trace_reference(replace(case, **files), optimizer_steps=1).tensors)
        stored.pop(left_out, None)
        config.pop(left_out, None)
    assert traces[0].keys() == traces[1].keys()
    assert all(torch.equal(value, traces[1][name]) for name, value in traces[0].items())


def test_a_draft_config_that_is_no_object_is_named(case, tmp_path):
    (tmp_path / "draft.json").write_text("[1]")
    with pytest.raises(InputError, match=r"draft\.json: file: found list, expected a JSON object"):
        prepare(replace(case, configpath=tmp_path / "draft.json"))


def test_half_precision_is_what_the_prototypes_were_launched_with(cases):
    """Under DeepSpeed weights are rounded before the masters; HASS keeps its weights and runs in autocast."""
    rounded, kept = (prepare(cases[name], torch.bfloat16) for name in ("eagle3_bf16ds_k3", "hass_bf16_k3"))
    for value in rounded.masters.values():
        assert value.dtype == torch.float32
        assert torch.equal(value, value.bfloat16().float())
    assert (rounded.weights()["fc.weight"].dtype, rounded.autocast) == (torch.bfloat16, False)
    assert (kept.weights()["fc.weight"].dtype, kept.autocast) == (torch.float32, True)


def test_path_norms_are_the_derivatives_and_the_graph_is_left():
    first = torch.tensor([3.0, 4.0], requires_grad=True)
    second, cut, plain = first * 2, (first * 2).detach().requires_grad_(), torch.ones(2)
    losses = [(first**2).sum(), second.sum() * 5, cut.sum(), plain.sum()]
    norms = path_norms(losses, [first, second, cut, plain])
    found = {name: norm.item() for name, norm in norms.items() if norm}
    assert found == pytest.approx({"0.0": 10.0, "1.0": 10 * 2**0.5, "1.1": 5 * 2**0.5, "2.2": 2**0.5})
    assert len(norms) == 10
    losses[0].backward()
    assert first.grad.tolist() == [6.0, 8.0]
