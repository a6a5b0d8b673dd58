"""Planted faults are found in the module they were planted in."""

from dataclasses import replace

import pytest
import torch

import ports.eagle3.train
import ports.training.optimizer
from parity.plants import Ground, giving, patched
from parity.prototypes.faults import in_config, swapped, unnormed_residual
from parity.prototypes.hints import hint, localise
from parity.verdict import Row, Status


def change_draft(change):
    """Alter the draft after building."""
    return giving(ports.eagle3.train, "build_draft", lambda draft: (change(draft), draft)[1])


def detach_mlp_input(draft):
    mlp = draft.layers[0].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x.detach())


def shift_down_proj(draft):
    draft.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, out: out + 1e-2)


def forget_head(draft):
    draft.norm.register_forward_hook(lambda module, args, out: torch.nan * out)


def wrong_rope(config):
    parameters = getattr(config.transformer_layer_config, "rope_parameters", None)
    (parameters or config.transformer_layer_config.rope_scaling)["factor"] = 2.0


def freeze_head(draft):
    draft.lm_head.weight.requires_grad_(False)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (swapped("ttt_prototype_auto", "ttt_chain_auto"), ("forward", "layers.0.self_attn", 2)),
        (in_config(unnormed_residual), ("forward", "layers.0", 0)),
        (in_config(wrong_rope), ("forward", "layers.0.self_attn", 0)),
        (change_draft(freeze_head), ("backward", "lm_head", 0)),
        (patched(ports.training.optimizer, "BETAS", lambda real: (0.9, 0.999)), None),
        (change_draft(detach_mlp_input), ("backward", "layers.0.mlp", 2)),
        (change_draft(shift_down_proj), ("forward", "layers.0.mlp.down_proj", 0)),
        (change_draft(forget_head), ("forward", "norm", 0)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_fault_is_found_where_it_is(plant, found, case):
    with plant(Ground(), 1.0):
        finding = localise(case)
    assert (finding and (finding.direction, finding.module, finding.call)) == found


@pytest.mark.parametrize("name", ["eagle3_fp32_k3", "hass_fp32_k3", "eagle3_bf16ds_k3", "hass_bf16_k3"])
def test_without_a_fault_nothing_is_found(name, cases):
    assert localise(cases[name]) is None


def test_in_half_precision_rounding_is_not_taken_for_the_fault(cases):
    with swapped("ttt_prototype_auto", "ttt_chain_auto")(Ground(), 1.0):
        assert "forward first goes wrong in layers.0.self_attn, call 2" in str(localise(cases["eagle3_bf16ds_k3"]))


@pytest.mark.parametrize(("check", "told"), [("gradients", "module by module both sides agree"), ("hits", "")])
def test_a_failed_row_of_a_module_s_numbers_has_a_hint(check, told, sound):
    row = Row(check, "one", "port", "q", "t", 1.0, 0.0, Status.FAILED)
    assert hint(row, sound("eagle3_fp32_k3")).startswith(told)
    assert not hint(row, replace(sound("eagle3_fp32_k3"), left=None))
