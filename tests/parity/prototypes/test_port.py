"""The port under observation: settings, seeds, weights and what the trace keeps."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import parity.prototypes.port
import parity.prototypes.recorded
import ports.eagle3.train
import ports.numerics
import ports.training.loop
import ports.training.runs
from parity.checks import run_checks
from parity.errors import InputError
from parity.pair import find_pair
from parity.plants import Ground, patched, taking
from parity.prototypes.case import SETTINGS
from parity.prototypes.pair import port
from parity.prototypes.port import Tracer, settings_for, start_port, trace_port
from parity.prototypes.recorded import start_of
from parity.run import CaseRun
from ports.training.loop import Loop
from tests.parity.prototypes.test_synthetic import Shape, make


@pytest.fixture
def noisy(tmp_path):
    """Small, with noise and a shuffled order."""
    return make(Shape("any"), tmp_path, k=2, bs=2, epoch=0, noise=True, shuffle=True)


def same(first, second):
    names = first.tensors.keys() | second.tensors.keys()
    return all(torch.equal(first.tensors[name], second.tensors[name]) for name in names)


def test_a_replayed_run_repeats_itself_whatever_the_seed(noisy):
    first, second = trace_port(noisy, seed=0), trace_port(noisy, seed=5)
    assert same(first, second)
    assert [point.loss for point in first.curve] == [point.loss for point in second.curve]


def test_no_environment_steers_the_port(case, tmp_path, monkeypatch):
    plain = settings_for(case, tmp_path)
    for name, value in (("LOSS_IMPLEMENTATION", "eager"), ("MAX_STEPS", "1"), ("LOG_WITH", '["tensorboard"]')):
        monkeypatch.setenv(f"SPECULATOR_{name}", value)
    assert settings_for(case, tmp_path) == plain


def test_a_live_run_draws_from_its_seed(noisy):
    first, again, other = (trace_port(noisy, seed=seed, live=True) for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first.tensors["after.fc.weight"], other.tensors["after.fc.weight"])
    assert torch.equal(first.tensors["init.fc.weight"], other.tensors["init.fc.weight"])
    assert first.configuration["seed"] == 3


def test_a_live_run_does_not_read_the_recorded_draws(noisy):
    noisy.uniforms.unlink()
    assert trace_port(noisy, live=True).curve
    with pytest.raises(InputError, match="noise_uniforms"):
        trace_port(noisy)


def test_the_trace_keeps_the_first_step_and_every_point(case, capsys):
    """And nobody reads what the run says to its user."""
    trace = trace_port(case)
    assert capsys.readouterr() == ("", "")
    assert trace.micro_batches() == [0]
    assert len(trace.curve) == 40
    assert trace.prints == case.meta.prints
    assert "embed_tokens.weight" in trace.frozen
    assert set(trace.trained) == trace.group("mb0.grad.").keys()
    assert all(not torch.equal(trace.tensors[f"init.{one}"], trace.tensors[f"after.{one}"]) for one in trace.trained)
    assert all(len(point.ties) == 3 for point in trace.curve)


def altered(case, folder, changes):
    """The case with other initial weights; None takes one away."""
    stored = load_file(case.initial) | {f"init.{name}": value for name, value in changes.items()}
    save_file({name: value for name, value in stored.items() if value is not None}, folder / "initial.safetensors")
    return replace(case, initial=folder / "initial.safetensors")


def test_recorded_weights_are_given_to_the_draft(case, tmp_path):
    """Those of the verifier may be left out."""
    draft = start_port(altered(case, tmp_path, {"lm_head.weight": None}), tmp_path / "out").plan.objective.draft
    stored = load_file(case.initial)
    assert torch.equal(draft.norm.weight, stored["init.lm_head_layernorm.weight"])
    assert torch.equal(draft.embed_tokens.weight, stored["verifier.embed_tokens.weight"])
    assert torch.equal(draft.lm_head.weight, stored["verifier.lm_head.weight"][stored["t2d"].bool()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.weight": torch.ones(2, 3)}, r"init\.fc\.weight: found \(2, 3\), expected \(64, 192\)"),
        ({"fc.bias": torch.ones(64)}, r"init\.fc\.bias: found \(64,\), expected none"),
        ({"fc.weight": None}, r"init\.fc\.weight: found none, expected \(64, 192\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(changes, message, case, tmp_path):
    with pytest.raises(InputError, match=message):
        start_port(altered(case, tmp_path, changes), tmp_path / "out")


def failing(evidence, check):
    rows = run_checks(evidence, find_pair(evidence.case.algorithm).every_check, {check})
    return {row.tensor for row in rows if row.compared and not row.passed}


def one_pass_less(real):
    def ended(self):
        real(self)
        self.epoch += 1

    return ended


MISREAD = {
    "seed": (taking(ports.numerics, "set_seed", lambda seed: (seed + 1,)), {"seed"}),
    "bs": (
        taking(ports.training.runs, "build_loader", lambda data, bs, *rest: (data, 1, *rest)),
        {"run.samples of a batch", "run.batches"},
    ),
    "epoch": (patched(Loop, "_next_pass", one_pass_less), {"run.passes", "run.batches"}),
    "TTT steps": (
        taking(ports.eagle3.train, "Eagle3Objective", lambda draft, steps, *rest: (draft, steps + 1, *rest)),
        {"run.TTT steps"},
    ),
    "rate": (taking(ports.training.loop, "build_optimizer", lambda module, lr: (module, 2 * lr)), {"lr"}),
}
"""What the port's run does otherwise than its command line says."""


@pytest.mark.parametrize(("plant", "entries"), MISREAD.values(), ids=MISREAD)
def test_what_the_run_does_otherwise_than_it_was_told_is_a_row(plant, entries, whole_run):
    with plant(Ground(), 1.0):
        assert failing(whole_run("eagle3_fp32_k1"), "configuration") == entries


@pytest.mark.parametrize("name", ["lr", "bs", "accumulation", "epoch", "ttt_steps"])
def test_every_flag_is_read_by_the_port_s_own_parser(name, case, tmp_path):
    given = replace(case, **{name: 3 * getattr(case, name)})
    assert getattr(settings_for(given, tmp_path), SETTINGS[name]) == 3 * getattr(case, name)


def test_weights_are_the_port_s_own_after_it_loaded_them(cases, monkeypatch):
    """What is written for the port to load is other than what the prototype started from."""
    for module in (parity.prototypes.port, parity.prototypes.recorded):
        monkeypatch.setattr(module, "start_of", lambda *given: {n: 2 * w + 1 for n, w in start_of(*given).items()})
    case, pair = cases["eagle3_fp32_k1"], replace(find_pair("eagle3"), port=port(steps=1))
    with CaseRun(pair, case) as run:
        held = run.evidence(pair.port)
    assert failing(held, "weights") == {f"init.{name}" for name in held.found.trained}


def test_looking_on_that_changes_the_loss_is_seen(whole_run):
    with taking(Tracer, "batch", lambda self, number, batch: (self, number, batch, batch["features"].add_(1))[:3])(
        Ground(), 1.0
    ):
        held = whole_run("eagle3_fp32_k1")
    assert failing(held, "environment") == {"loss of port"}
