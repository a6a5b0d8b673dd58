import pytest
import torch

from ports.training.loss import likeliest
from ports.training.loss.likeliest import BLOCK, argmax, topk


def rows(columns, seed=0):
    return torch.rand(5, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("columns", [7, BLOCK, 8 * BLOCK, 8 * BLOCK + 1, 64 * BLOCK])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_they_are_torchs_own(columns, count):
    values = rows(columns)
    wanted = torch.topk(values, count, dim=-1)
    found, where = topk(values, count)
    assert torch.equal(found, wanted.values)
    assert torch.equal(where, wanted.indices)
    assert torch.equal(argmax(values), values.argmax(-1))


def test_several_of_the_largest_in_one_block():
    values = rows(16 * BLOCK)
    values[:, 5 * BLOCK + 3 : 5 * BLOCK + 6] = torch.tensor([2.0, 4.0, 3.0], dtype=torch.float64)
    found, where = topk(values, 3)
    assert found.tolist() == [[4, 3, 2]] * 5
    assert where.tolist() == [[5 * BLOCK + 4, 5 * BLOCK + 5, 5 * BLOCK + 3]] * 5


def test_the_first_of_equal_entries():
    values = rows(16 * BLOCK)
    values[:, [3 * BLOCK + 9, 3 * BLOCK + 8, 7 * BLOCK]] = 5.0
    assert argmax(values).tolist() == [3 * BLOCK + 8] * 5
    assert topk(values, 3)[0].tolist() == [[5.0] * 3] * 5


def test_wide_rows_are_searched_in_blocks_and_narrow_ones_are_not(monkeypatch):
    seen = []
    whole = torch.topk
    monkeypatch.setattr(torch, "topk", lambda *args, **kwargs: seen.append(args[0].shape) or whole(*args, **kwargs))
    likeliest.topk(rows(64 * BLOCK), 3)
    assert seen == []
    likeliest.topk(rows(BLOCK), 3)
    assert seen == [(5, BLOCK)]
