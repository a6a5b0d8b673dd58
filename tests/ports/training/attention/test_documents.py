import gc

import pytest
import torch

from ports.training.attention.documents import documents_of


def test_a_packed_row():
    documents = documents_of(torch.tensor([[1, 1, 1, 2, 3, 3]]))
    assert documents.lengths == (3, 1, 2)
    assert documents.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert documents.first.tolist() == [[True, False, False, True, True, False]]
    assert documents.right_padded is False


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("rows", [[[1, 1, 1]], [[1, 0, 0], [1, 1, 1]], [[0, 1, 1]], [[0, 0, 0]]])
def test_a_padded_batch_counts_columns(rows, dtype):
    documents = documents_of(torch.tensor(rows, dtype=dtype))
    assert (documents.lengths, documents.first) == ((), None)
    assert documents.positions.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("rows", [[[1, 1], [1, 2]], [[1, 3]], [[2, 2]], [[2, 1]], [[1, 2, 1]], [[1, 2, 0]]])
def test_numbers_out_of_order_and_several_rows_are_refused(rows):
    with pytest.raises(ValueError, match=r"document_ids: found .* expected one row \[1, T\] numbered 1, 2, 3"):
        documents_of(torch.tensor(rows))


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
    assert documents_of(torch.tensor(rows, dtype=dtype)).right_padded is right


def test_the_answer_is_remembered_while_the_mask_lives_and_forgotten_when_it_is_written_to():
    gc.collect()  # what earlier tests left in cycles
    mask = torch.ones(1, 3)
    known = len(documents_of.known)
    assert documents_of(mask) is documents_of(mask)
    assert documents_of(mask).right_padded
    assert len(documents_of.known) == known + 1
    mask[0, 0] = 0
    assert not documents_of(mask).right_padded
    del mask
    gc.collect()
    assert len(documents_of.known) == known


def test_a_mask_made_in_inference_mode():
    with torch.inference_mode():
        mask = torch.ones(1, 3)
    assert documents_of(mask).right_padded
