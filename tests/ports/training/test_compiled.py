import shutil

import pytest
import torch

from ports.eagle3.objective import Eagle3Objective
from ports.training.compiled import compile_mlps


def test_the_numbers_and_the_names_stay(lively_draft, batch_of):
    plain, compiled = lively_draft(), lively_draft()
    compile_mlps(compiled, backend="aot_eager")
    assert compiled.layers[0].mlp._compiled_call_impl is not None
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for indices in ((0, 1), (2,)):
        losses, grads = [], []
        for draft in (plain, compiled):
            outcome = Eagle3Objective(draft, 3)(batch_of(*indices))
            draft.zero_grad()
            outcome.backward_loss.backward()
            losses.append(outcome.loss)
            grads.append(draft.layers[0].mlp.up_proj.weight.grad.clone())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-6)


def test_without_a_compiler_it_says_so(lively_draft, monkeypatch, refuses):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refuses("command line", "--compile", "no C++ compiler", "g++"):
        compile_mlps(lively_draft())


@pytest.mark.parametrize("asked", [True, False])
def test_the_flag_asks_for_it(start_run, tmp_path, monkeypatch, asked):
    from ports.training import runs

    seen = []
    monkeypatch.setattr(runs, "compile_mlps", seen.append)
    loop = start_run("eagle3", tmp_path / "run", compile=asked)
    assert seen == ([loop.objective.draft] if asked else [])
