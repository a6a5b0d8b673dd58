"""A recording as a trace: names, aliases, and lines that do not fit."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.recorded import load_recorded, recorded_noise


def test_aliases_are_resolved(case):
    stored = load_file(case.directory / "first_step.safetensors")
    assert "after.embed_tokens.weight" in case.meta.aliases
    assert "after.embed_tokens.weight" not in stored
    trace, initial = load_recorded(case), load_file(case.initial)
    assert torch.equal(trace.tensors["init.norm.weight"], initial["init.lm_head_layernorm.weight"])
    for name in ("after.embed_tokens.weight", "final.embed_tokens.weight"):
        assert torch.equal(trace.tensors[name], initial["verifier.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["first_step.safetensors", "trajectory.jsonl"])
def test_a_missing_file_is_named(name, copy):
    (copy.directory / "final.safetensors").unlink()
    assert load_recorded(copy).group("after.").keys() > load_recorded(copy).group("final.").keys() == set()
    (copy.directory / name).unlink()
    with pytest.raises(InputError, match=name):
        load_recorded(copy)


def change_second_line(copy, changes):
    file = copy.directory / "trajectory.jsonl"
    lines = file.read_text().splitlines()
    kept = {name: value for name, value in json.loads(lines[1]).items() if changes.get(name, 0) is not ...}
    lines[1] = json.dumps({**kept, **{name: value for name, value in changes.items() if value is not ...}})
    file.write_text("\n".join(lines))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: ...} for name in ("epoch", "loss", "kldiv_steps", "lr_used", "cc", "topk_correct", "synced")),
        {"loss": "low"},
        {"cc": math.inf},
        {"cc": math.nan},
        {"kldiv_steps": 3},
        {"topk_correct": ["x"]},
        {"clip": [1.0]},
        {"clip": {"kind": "norm"}},
        {"clip": None, "grad_norm_after_backward": {}, "loss": None},
        {"logdict": [1]},
    ],
    ids=str,
)
def test_a_line_that_does_not_fit_is_named(changes, copy):
    change_second_line(copy, changes)
    with pytest.raises(InputError, match=r"trajectory\.jsonl: line 2: found .*, expected a trajectory line"):
        load_recorded(copy)


@pytest.mark.parametrize(
    ("changes", "norm"),
    [
        ({"clip": None, "grad_norm_after_backward": [1.0, 2.5]}, 2.5),
        ({"clip": {"kind": "value"}, "grad_norm_after_backward": [3.5]}, 3.5),
        ({"clip": None, "grad_norm_after_backward": []}, None),
        ({"clip": None, "grad_norm_after_backward": [None]}, None),
        ({"clip": {"kind": "norm", "returned": 4.5}, "grad_norm_after_backward": [1.0]}, 4.5),
    ],
    ids=str,
)
def test_the_gradient_norm_is_the_one_before_clipping(changes, norm, copy):
    change_second_line(copy, changes)
    assert load_recorded(copy).curve[1].grad_norm == norm


@pytest.mark.parametrize("field", ["aliases", "final_aliases"])
def test_an_alias_that_leads_nowhere_is_named(field, copy):
    broken = replace(copy, meta=copy.meta.model_copy(update={field: {"fc.bias": "nowhere"}}))
    with pytest.raises(InputError, match=r"meta\.json: alias of .*fc\.bias: found nowhere"):
        load_recorded(broken)


def test_tensors_are_read_as_they_are_and_never_unpickled(copy):
    file = copy.directory / "first_step.safetensors"
    save_file({**load_file(file), "mb0.step0.extra": torch.ones(1)}, file)
    assert "mb0.step0.extra" in load_recorded(copy).tensors
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"first_step\.safetensors"):
        load_recorded(copy)


def test_draws_come_in_loading_order_and_fit_or_are_refused(tmp_path):
    file = tmp_path / "noise_uniforms.safetensors"
    half = torch.full((1, 2, 3), 0.5, dtype=torch.float64)  # wider numbers come first in the file
    save_file({"u10000": half, "u9999": torch.zeros(1, 4, 3)}, file)
    draw = recorded_noise(file)
    assert torch.equal(draw(torch.ones(1, 4, 3)), torch.zeros(1, 4, 3))
    assert draw(torch.ones(1, 2, 3)).tolist() == [[[0.5] * 3] * 2]
    with pytest.raises(InputError, match="noise: found 2 draws, expected one more"):
        draw(torch.ones(1, 1, 3))
    with pytest.raises(InputError, match=r"u9999: found shape \(1, 4, 3\), expected shape \(1, 2, 3\)"):
        recorded_noise(file)(torch.ones(1, 2, 3))
    save_file({"first": half}, file)
    with pytest.raises(InputError, match="noise: found first, expected draws named u and a number"):
        recorded_noise(file)
