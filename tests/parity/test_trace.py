from __future__ import annotations

import torch

from parity.trace import Trace


def test_a_group_is_named_without_its_prefix() -> None:
    value = torch.ones(1)
    trace = Trace("port", "one", "fp32", {"after.a.weight": value, "after.b": value, "aftermath": value})
    assert set(trace.group("after.")) == {"a.weight", "b"}
    assert trace.group("after.")["b"] is value
    assert trace.group("final.") == {}


def test_micro_batches_are_sorted_as_numbers() -> None:
    names = ["mb10.loss", "mb2.loss", "mb2.step0.loss", "mb0.grad.mb7", "after.mb3.x", "mbx.loss", "mb5", "mb.loss"]
    assert Trace("port", "one", "fp32", dict.fromkeys(names, torch.ones(1))).micro_batches() == [0, 2, 10]
