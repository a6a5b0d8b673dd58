"""Names go over by the longest prefix, and parameters in another layout through their own function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parity import Joined, NameMap, Side, compare_sides, compare_traces, trace_side, transposed
from parity.errors import InputError
from parity.names import WHOLE


@pytest.mark.parametrize(
    ("prefixes", "name", "port"),
    [
        ({}, "a.weight", "a.weight"),
        ({"a": "b"}, "a.weight", "b.weight"),
        ({"a": "b"}, "ab.weight", "ab.weight"),
        ({"a": "b", "a.q": "c.wq"}, "a.q.weight", "c.wq.weight"),
        ({"a": "b", "a.q": "c.wq"}, "a.k.weight", "b.k.weight"),
        ({"a": None}, "a.weight", None),
        ({"a": None, "a.q": "q"}, "a.q", "q"),
        ({"": "model"}, "a.weight", "model.a.weight"),
        ({"": "model"}, WHOLE, "model"),
        ({"model": ""}, "model.a", "a"),
        ({"model": ""}, "model", WHOLE),
        ({"model": ""}, WHOLE, None),
        ({}, WHOLE, WHOLE),
    ],
)
def test_a_name_goes_over(prefixes: dict[str, str | None], name: str, port: str | None) -> None:
    assert NameMap(prefixes).to_port(name) == port


def test_one_name_for_two_is_refused() -> None:
    with pytest.raises(InputError, match="name map: c: found several"):
        NameMap({"a": "c", "b": "c"})


def test_a_name_that_another_takes_by_being_the_same_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    with pytest.raises(InputError, match=r"name map: b.*: found a.* and b.* of the original"):
        compare_sides(Side(Two), Side(Two), [torch.ones(1, 2)], names={"a": "b"})
    with pytest.raises(InputError, match="name map: b: found a and b of the original"):
        compare_traces(
            *[trace_side(Side(Two), [torch.ones(1, 2)])] * 2, names={"a": "b", "b.weight": None, "b.bias": None}
        )
    swapped = compare_sides(Side(Two), Side(Two), [torch.ones(1, 2)], names={"a": "b", "b": "a"})
    assert swapped.failed[0] == "forward"


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.q(x) * self.k(x))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(4, 12)
        self.project = nn.Parameter(torch.zeros(6, 4))
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.qk(x).chunk(2, dim=-1)
        return (q * k * self.scale) @ self.project


NAMES = NameMap(
    {"q": None, "k": None},
    joined=[
        Joined("qk.weight", ("q.weight", "k.weight")),
        Joined("qk.bias", ("q.bias", "k.bias")),
        transposed("out.weight", "project"),
    ],
    only_port=["scale"],
)
BATCHES = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]


def test_fused_and_transposed_parameters_are_compared() -> None:
    report = compare_sides(Side(Split), Side(Fused), BATCHES, names=NAMES)
    report.raise_if_failed()
    gradients = {row.tensor for row in report.rows if row.check == "gradients"}
    assert gradients == {"mb0.grad.qk.weight", "mb0.grad.qk.bias", "mb0.grad.project", "mb0.grad_norm"}


def test_the_other_order_is_seen() -> None:
    swapped = NameMap(
        NAMES.prefixes,
        [*NAMES.joined.values(), Joined("qk.weight", ("k.weight", "q.weight"))],
        NAMES.only_port,
    )
    assert compare_sides(Side(Split), Side(Fused), BATCHES, names=swapped).failed[0] == "forward"


def test_split_parameters_go_the_other_way() -> None:
    names = NameMap(
        {"qk": None},
        joined=[
            Joined("q.weight", ("qk.weight",), lambda tensors: tensors[0][:6]),
            Joined("k.weight", ("qk.weight",), lambda tensors: tensors[0][6:]),
            Joined("q.bias", ("qk.bias",), lambda tensors: tensors[0][:6]),
            Joined("k.bias", ("qk.bias",), lambda tensors: tensors[0][6:]),
            transposed("project", "out.weight"),
        ],
    )
    fused = Side(lambda: filled(Fused()))
    assert compare_sides(
        fused, Side(Split), BATCHES, names=NameMap({**names.prefixes, "scale": None}, names.joined.values())
    ).passed


def filled(module: Fused) -> nn.Module:
    nn.init.normal_(module.project)
    return module


@pytest.mark.parametrize(
    ("names", "tensor", "detail"),
    [
        (NameMap({"q": None, "k": None}, NAMES.joined.values()), "init.scale", "unexpected"),
        (NameMap({}, list(NAMES.joined.values())[1:], ["scale"]), "init.q.weight", "missing"),
    ],
)
def test_a_parameter_without_a_counterpart_must_be_named(names: NameMap, tensor: str, detail: str) -> None:
    report = compare_sides(Side(Split), Side(Fused), BATCHES, names=names)
    assert report.failed[0] == "weights"
    row = next(row for row in report.rows if row.tensor == tensor)
    assert not row.passed
    assert detail in row.detail
