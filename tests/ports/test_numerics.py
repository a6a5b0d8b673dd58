"""Which precision a device is fast in."""

import pytest
import torch

from ports.numerics import has_bf16_units


@pytest.mark.parametrize(
    ("flags", "units"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_a_cpu_is_faster_in_bfloat16_with_units_for_it(monkeypatch, flags, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert has_bf16_units(torch.device("cpu")) is units


def test_an_older_torch_tells_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bf16_units(torch.device("cpu"))


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_tells_by_itself(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert has_bf16_units(torch.device("cuda")) is supported
