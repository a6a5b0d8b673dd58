import pytest
import torch

from ports.training.documents import documents_of


def test_a_packed_row():
    documents = documents_of(torch.tensor([[1, 1, 1, 2, 3, 3]]))
    assert documents.lengths == (3, 1, 2)
    assert documents.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert documents.first.tolist() == [[True, False, False, True, True, False]]


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
