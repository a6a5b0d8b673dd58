"""What training computes on a card beside what it computes on the CPU; ``pytest -m gpu`` runs the card's half."""

import pytest
import torch

from parity.fixtures import RECORDINGS
from parity.pair import Options
from parity.prototypes.case import read_case
from parity.prototypes.pair import EAGLE3, HASS
from parity.prototypes.port import start_port
from parity.run import run_pair
from ports.evaluate.decode import Limits
from ports.evaluate.drafter import drafter_of, open_draft
from ports.evaluate.measure import evaluate
from ports.training.attention import fast_ttt_attention, ttt_attention
from ports.training.loss import Verifier, fused_kl
from ports.training.saving import save_draft
from ports.verifier.loading import load_verifier
from tests.needs import GPU
from tests.ports.conftest import TRAIN, enliven, settings_of
from tests.ports.training import test_loss
from tests.ports.training.test_attention import BOTH, attend, draw, errors, numbered, run
from tests.ports.training.test_flash import Largest

CASES = "(fp32_k3 or bf16_k3) and not (bs1 or ga2)"
"""Of the recordings; on the CPU all of them are run elsewhere."""

on_a_card = pytest.param("cuda", marks=GPU)
every_device = pytest.mark.parametrize("device", ["cpu", on_a_card])


@pytest.fixture
def on(monkeypatch):
    """``on(device)``: trainers take it."""
    return lambda device: monkeypatch.setenv("ACCELERATE_USE_CPU", str(device == "cpu"))


@pytest.mark.parametrize("device", [on_a_card])
@pytest.mark.parametrize("pair", [EAGLE3, HASS], ids=lambda pair: pair.name)
def test_the_port_is_the_recorded_prototype_there(pair, device, on, tmp_path):
    """Every check of the parity run, forward, backward, curve, round trip and resume."""
    on(device)
    report = run_pair(pair, Options(keyword=CASES))
    assert report.passed, [row for row in report.rows if not row.passed]
    loop = start_port(read_case(RECORDINGS / f"{pair.name}_fp32_k3"), tmp_path)
    assert {parameter.device.type for parameter in loop.objective.parameters()} == {device}


@every_device
@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("lengths", [(40, 3, 130), (173,)], ids=["packed", "one"])
def test_flash_is_the_dense_form(device, alignment, dtype, bound, lengths):
    inputs = draw((1, 4, 2, sum(lengths), 16), 3, dtype)
    grad = torch.randn_like(inputs[0])
    wanted = run(ttt_attention, inputs, grad, alignment, numbered(lengths), torch.float64)
    there = [states.to(device) for states in inputs]
    found = run(fast_ttt_attention, there, grad.to(device), alignment, numbered(lengths).to(device))
    largest = max(value.abs().max() for value in wanted)
    assert max(errors([value.cpu() for value in found], wanted, floor=largest)) <= bound


@every_device
def test_the_fused_loss_is_the_one_in_float64(device):
    verifier, theirs, hidden, ours, weights = test_loss.draw((300, 64, 1100))
    true = test_loss.exact(verifier, theirs, hidden.double(), ours.double(), weights)
    wanted = test_loss.gradients(true, hidden, ours, weights)
    leaves = [value.detach().to(device).requires_grad_() for value in (hidden, ours)]
    target = Verifier(verifier.to(device), theirs.to(device))
    kl = fused_kl(leaves[0][None], leaves[1], target, weights[None].to(device)).kl[0]
    found = test_loss.gradients(kl, *leaves, weights.to(device))
    torch.testing.assert_close(kl.cpu().double(), true.detach(), rtol=1e-6, atol=1e-6 * float(weights.sum()))
    for value, best in zip(found, wanted, strict=True):
        torch.testing.assert_close(value.cpu(), best, rtol=0, atol=float(5e-6 * best.abs().max()))


def peak(device, act):
    """Bytes of a card, entries of the largest tensor on the CPU, where torch counts no bytes."""
    if device == "cpu":
        with Largest() as seen:
            act()
        return seen.entries
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    act()
    return torch.cuda.max_memory_allocated()


@every_device
@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("documents", [1, 8])
def test_memory_grows_as_t(device, documents, alignment):
    def steps(length, form):
        inputs = [each.float().to(device).requires_grad_() for each in draw((1, 2, 1, length, 16), 3)]
        mask = numbered([length // documents] * documents).to(device)
        return peak(device, lambda: attend(form, inputs, alignment, mask).sum().backward())

    assert steps(4096, fast_ttt_attention) <= 4.2 * steps(1024, fast_ttt_attention)
    assert steps(2048, ttt_attention) > 2 * steps(2048, fast_ttt_attention), "what grows as its square is seen"


@every_device
def test_the_evaluation_counts_the_same_and_changes_no_token(device, algorithm, fixture, tmp_path):
    """One prompt at a time or both, in float64: no two logits are so close that the order of a sum decides."""
    settings = settings_of(fixture, algorithm, cpdir=tmp_path / "checkpoints")
    saved = save_draft(enliven(TRAIN[algorithm][0].build(settings)), tmp_path / "draft")
    prompts, counted = [[5, 9, 11, 30], [7, 3, 50]], []
    for place, together in (("cpu", 2), (device, 1)):
        judge = load_verifier(str(fixture / "verifier"), "float64", torch.device(place), head=True)
        drafter = drafter_of(open_draft(saved).to(place, torch.float64))
        answers = evaluate(judge, drafter, prompts, Limits(12), 3, together)
        assert all(answer.tokens == answer.plain for answer in answers)
        counted.append([(answer.tokens, answer.accepted) for answer in answers])
    assert counted[0] == counted[1]
