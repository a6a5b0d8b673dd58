"""The originals of a checkout, run again, give the shipped recordings, to the bit on the machine that made them."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from parity.outside import SideError
from parity.prototypes.case import read_case
from parity.prototypes.original.child import record_original
from parity.prototypes.recorded import load_recorded
from parity.prototypes.synthetic import write_case

ROUND_OFF = 1e-4
"""Allowed on another machine or torch, in absolute terms; 0 is usual."""


@pytest.mark.parametrize(
    "name", ["eagle3_fp32_k3_noise", "eagle3_fp32_k3_ga2", "hass_fp32_k3_noise", "hass_bf16_k3", "eagle3_bf16ds_k3"]
)
def test_running_it_again_gives_the_recording(name, cases, prototype_dir, tmp_path):
    shipped = cases[name]
    if shipped.dtype == "bf16ds" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: python -m pip install deepspeed")
    fresh = read_case(record_original(shipped, prototype_dir, tmp_path, seed=shipped.seed))
    old, new = load_recorded(shipped), load_recorded(fresh)
    kept = {key: value for key, value in old.tensors.items() if key != "final.fp32_master_flat"}
    if not old.group("final."):
        new.tensors = {key: value for key, value in new.tensors.items() if not key.startswith("final.")}
    assert new.tensors.keys() == kept.keys()
    for key, value in kept.items():
        torch.testing.assert_close(
            new.tensors[key], value, rtol=0, atol=ROUND_OFF, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert [point.loss for point in new.curve] == pytest.approx([point.loss for point in old.curve], abs=ROUND_OFF)
    assert (new.prints, new.configuration, fresh.order) == (old.prints, old.configuration, shipped.order)
    seen = [case.meta.model_extra or {} for case in (fresh, shipped)]
    assert seen[0]["saved"] == [{key: one[key] for key in ("file", "zip_pickle")} for one in seen[1]["saved"]]


def test_eagle3_in_bf16_without_deepspeed_stops(case, prototype_dir, tmp_path):
    with pytest.raises(SideError, match="to have the same dtype"):
        record_original(replace(case, dtype="bf16"), prototype_dir, tmp_path)


def test_a_draft_without_rope_scaling(case, prototype_dir, tmp_path):
    fixture = tmp_path / "fixture"
    fixture.mkdir()
    for part in case.fixture.iterdir():
        (fixture / part.name).symlink_to(part)
    config = json.loads(case.configpath.read_text()) | {"rope_scaling": None}
    (fixture / "draft_eagle3.json").unlink()
    (fixture / "draft_eagle3.json").write_text(json.dumps(config))
    plain = write_case(tmp_path / "cases", fixture, initial=case.initial)
    folder = record_original(plain, prototype_dir, tmp_path / "out", max_optimizer_steps=1)
    assert len((folder / "trajectory.jsonl").read_text().splitlines()) == 1
