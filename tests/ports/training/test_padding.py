import gc

import pytest
import torch

from ports.training.padding import right_padded


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([[1, 1, 1]], True),
        ([[1, 1, 0], [1, 1, 1]], True),
        ([[0, 0, 0], [1, 0, 0]], True),
        ([[1]], True),
        ([[0, 1, 1]], False),
        ([[1, 1, 1], [1, 0, 1]], False),
    ],
)
def test_ones_come_before_zeros(rows, right, dtype):
    assert right_padded(torch.tensor(rows, dtype=dtype)) is right


def test_a_packed_row_is_no_padding():
    assert not right_padded(torch.tensor([[1, 1, 2]]))
    assert not right_padded(torch.tensor([[2, 2, 1]]))


def test_the_answer_is_remembered_while_the_mask_lives_and_forgotten_when_it_is_written_to():
    gc.collect()  # what earlier tests left in cycles
    mask = torch.ones(1, 3)
    known = len(right_padded.known)
    assert right_padded(mask)
    assert right_padded(mask)
    assert len(right_padded.known) == known + 1
    mask[0, 0] = 0
    assert not right_padded(mask)
    del mask
    gc.collect()
    assert len(right_padded.known) == known


def test_a_mask_made_in_inference_mode():
    with torch.inference_mode():
        mask = torch.ones(1, 3)
    assert right_padded(mask)
