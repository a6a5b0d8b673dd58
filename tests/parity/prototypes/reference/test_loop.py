"""The reference's run: passes, windows, what it keeps, and input it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.case import Case
from parity.prototypes.reference.loop import Run, Visits, float64_oracle, hits, trace_reference
from parity.prototypes.reference.setup import prepare


def test_a_run_can_end_early(case: Case) -> None:
    trace = trace_reference(case, optimizer_steps=2)
    assert len(trace.curve) == 2
    assert trace.run == "reference"
    assert not torch.equal(trace.tensors["after.fc.weight"], trace.tensors["final.fc.weight"])


def test_only_the_last_micro_batch_of_a_window_counts(cases: dict[str, Case]) -> None:
    """The prototypes' own loop loses the gradients of the others."""
    trace = trace_reference(cases["eagle3_fp32_k3_ga2"], optimizer_steps=2)
    assert [point.stepped for point in trace.curve] == [False, True, False, True]
    assert trace.micro_batches() == [0, 1]
    assert not torch.equal(trace.tensors["mb0.grad.fc.weight"], trace.tensors["mb1.grad.fc.weight"])
    alone = replace(cases["eagle3_fp32_k3_ga2"], order=(2, 3))
    first = Run(prepare(replace(alone, bs=2, epoch=0)))
    first._micro_batch(0, next(Visits(alone).batches_of_pass(0)), stepped=True)
    torch.testing.assert_close(first.trace.tensors["mb0.grad.fc.weight"], trace.tensors["mb1.grad.fc.weight"])


def test_the_oracle_runs_once_and_in_double_precision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(*args: object, **options: object) -> tuple[object, ...]:
        calls.append((args, options))
        return args

    monkeypatch.setattr("parity.prototypes.reference.loop.trace_reference", fake)
    oracle = float64_oracle(case)
    assert not calls
    assert oracle() is oracle()
    assert calls == [((case, torch.float64), {"optimizer_steps": 1})]


def test_hits_are_counted_among_the_first_choices() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0], [0, 0, 0, 9]])
    target = torch.eye(4)[[0, 1, 2, 3, 3]]
    everywhere, most = torch.ones(5, dtype=torch.bool), torch.tensor([True, True, True, True, False])
    assert hits(logits, target, everywhere) == (2, (2, 3, 4))
    assert hits(logits, target, most) == (1, (1, 2, 3))


def test_hits_with_fewer_tokens_than_places() -> None:
    assert hits(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([True])) == (0, (0, 1))


def test_too_few_noise_draws_are_named(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["eagle3_fp32_k3_noise"]
    assert case.uniforms is not None
    stored = load_file(case.uniforms)
    save_file({name: stored[name] for name in sorted(stored)[:3]}, tmp_path / "noise_uniforms.safetensors")
    visits = Visits(replace(case, directory=tmp_path)).batches_of_pass(0)
    next(visits)
    with pytest.raises(InputError, match="noise: found 3 draws, expected one for every sample visited"):
        next(visits)


def test_a_missing_sample_is_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data_0\.ckpt: file"):
        next(Visits(replace(case, tmpdir=tmp_path)).batches_of_pass(0))


@pytest.mark.parametrize("name", ["verifier.lm_head.weight", "verifier.embed_tokens.weight"])
def test_a_missing_verifier_weight_is_named(name: str, case: Case, tmp_path: Path) -> None:
    stored = load_file(case.initial)
    del stored[name]
    save_file(stored, tmp_path / "initial.safetensors")
    with pytest.raises(InputError, match=f"{name}: found missing"):
        prepare(replace(case, initial=tmp_path / "initial.safetensors"))


def test_a_draft_config_that_is_no_object_is_named(case: Case, tmp_path: Path) -> None:
    (tmp_path / "draft.json").write_text("[1]")
    with pytest.raises(InputError, match=r"draft\.json: file: found list, expected a JSON object"):
        prepare(replace(case, configpath=tmp_path / "draft.json"))


def test_weights_under_deepspeed_are_rounded_before_the_masters(cases: dict[str, Case]) -> None:
    setup = prepare(cases["eagle3_bf16ds_k3"], torch.bfloat16)
    for value in setup.masters.values():
        assert value.dtype == torch.float32
        assert torch.equal(value, value.bfloat16().float())
    assert setup.weights()["fc.weight"].dtype == torch.bfloat16
    assert not setup.autocast


def test_hass_in_bfloat16_keeps_its_weights_and_runs_in_autocast(cases: dict[str, Case]) -> None:
    setup = prepare(cases["hass_bf16_k3"], torch.bfloat16)
    assert setup.autocast
    assert setup.weights()["fc.weight"].dtype == torch.float32
    with setup.precision():
        assert torch.is_autocast_enabled("cpu")
