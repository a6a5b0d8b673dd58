"""The originals of a checkout, run again, give the shipped recordings to the byte (same torch, one thread)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parity.fixtures import RECORDINGS
from parity.prototypes.original import OriginalRequest, OriginalRunError, record_original

pytestmark = pytest.mark.prototype
Ask = Callable[..., OriginalRequest]
ROUND_OFF = 1e-4
"""Allowed on another machine or torch, in absolute terms; the same bytes are usual and measured as 0."""


def request_like(case: str, ask: Ask, prototype: Path) -> OriginalRequest:
    meta = json.loads((RECORDINGS / case / "meta.json").read_text())
    flags = dict(zip(meta["argv"][::2], meta["argv"][1::2], strict=True))
    return ask(
        prototype,
        case=case,
        algorithm=meta["which"],
        dtype=meta["dtype"],
        noise=meta["noise"],
        shuffle=meta["shuffle"],
        initial_weights=RECORDINGS / meta["initial"],
        lr=float(flags["--lr"]),
        epoch=int(flags["--epoch"]),
        bs=int(flags["--bs"]),
        gradient_accumulation_steps=int(flags["--gradient-accumulation-steps"]),
        forward_num_total=int(flags["--forward_num_total"]),
    )


@pytest.mark.parametrize(
    "case", ["eagle3_fp32_k3_noise", "eagle3_fp32_k3_ga2", "hass_fp32_k3_noise", "hass_bf16_k3", "eagle3_bf16ds_k3"]
)
def test_running_it_again_gives_the_recording(case: str, ask: Ask, prototype_dir: Path) -> None:
    if case.startswith("eagle3_bf16ds") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: python -m pip install deepspeed")
    if not (RECORDINGS / case).is_dir():
        pytest.skip(f"no recording of {case} is shipped")
    folder = record_original(request_like(case, ask, prototype_dir))
    for shipped in (RECORDINGS / case).glob("*.safetensors"):
        assert_close(shipped, folder / shipped.name)
    assert len((folder / "trajectory.jsonl").read_text().splitlines()) == len(
        (RECORDINGS / case / "trajectory.jsonl").read_text().splitlines()
    )
    old, new = (json.loads((root / "meta.json").read_text()) for root in (RECORDINGS / case, folder))
    assert new.keys() >= old.keys()
    for name in ("prints", "dtypes_seen", "aliases", "final_aliases", "sample_index_order", "init_dtype", "saved"):
        assert new[name] == old[name], name


def assert_close(shipped: Path, fresh: Path) -> None:
    one, two = load_file(shipped), load_file(fresh)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=ROUND_OFF, msg=lambda text, n=name: f"{n}: {text}")


def test_eagle3_in_bf16_without_deepspeed_stops(ask: Ask, prototype_dir: Path) -> None:
    with pytest.raises(OriginalRunError, match="to have the same dtype"):
        record_original(ask(prototype_dir, dtype="bf16"))


def test_a_draft_without_rope_scaling(ask: Ask, prototype_dir: Path, tmp_path: Path) -> None:
    fixture = tmp_path / "fixture"
    fixture.mkdir()
    for part in ask(prototype_dir).fixture.iterdir():
        (fixture / part.name).symlink_to(part)
    (fixture / "draft_eagle3.json").unlink()
    config = json.loads(ask(prototype_dir).draft_config.read_text())
    (fixture / "draft_eagle3.json").write_text(json.dumps({**config, "rope_scaling": None}))
    folder = record_original(ask(prototype_dir, fixture=fixture, max_optimizer_steps=1))
    assert len((folder / "trajectory.jsonl").read_text().splitlines()) == 1
