import io

import numpy as np
import pytest
import torch

from ports.training.vocabulary import load_vocabulary_map

KEPT = [1, 2, 5, 8]


@pytest.fixture
def files(tmp_path):
    def write(t2d=None, d2t=None):
        good_t2d = np.isin(np.arange(10), KEPT)
        good_d2t = np.array(KEPT) - np.arange(4)
        np.save(tmp_path / "t2d.npy", good_t2d if t2d is None else t2d)
        np.save(tmp_path / "d2t.npy", good_d2t if d2t is None else d2t)
        return tmp_path / "t2d.npy", tmp_path / "d2t.npy"

    return write


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_a_good_pair_is_read_as_bool_and_int64(files, dtype):
    t2d, d2t = files(
        t2d=np.isin(np.arange(10), KEPT).astype(dtype), d2t=(np.array(KEPT) - np.arange(4)).astype(np.int32)
    )
    vocabulary = load_vocabulary_map(t2d, d2t, 10, 4)
    assert (vocabulary.t2d.dtype, vocabulary.d2t.dtype) == (torch.bool, torch.int64)
    assert vocabulary.t2d.nonzero().flatten().tolist() == KEPT
    assert (vocabulary.d2t + torch.arange(4)).tolist() == KEPT


def npz():
    stream = io.BytesIO()
    np.savez(stream, t2d=np.ones(10, bool))
    return stream.getvalue()


BAD = [
    ("t2d", np.ones(9, bool), "bool (9,)", "bools or integers (10,)"),
    ("t2d", np.ones(10, bool), "10 kept ids", "draft_vocab_size = 4"),
    ("t2d", np.ones(10), "float64 (10,)", "bools or integers (10,)"),
    ("t2d", None, "no such file", "speculator vocabulary"),
    ("t2d", b"", "", "a .npy array"),
    ("t2d", npz(), "several arrays", "a .npy array"),
    ("d2t", np.array([{"a": 1}], dtype=object), "Object arrays cannot be loaded", "without pickled objects"),
    ("d2t", np.zeros(5, np.int64), "int64 (5,)", "bools or integers (4,)"),
    ("d2t", np.array([1, 0, 3, 5]), "draft id 1 -> 1", "2, the 1-th id kept by t2d"),
    ("d2t", np.array([1, 1, 3, 2**64 - 3], np.uint64), "draft id 3 ->", "8, the 3-th id kept by t2d"),
    ("d2t", np.array([1, 1, 3, 2**63 - 1]), "draft id 3 ->", "8, the 3-th id kept by t2d"),
]


@pytest.mark.parametrize(("name", "content", "found", "expected"), BAD)
def test_a_bad_file_is_refused(files, refuses, tmp_path, name, content, found, expected):
    t2d, d2t = files(**({name: content} if isinstance(content, np.ndarray) else {}))
    if content is None:
        (tmp_path / f"{name}.npy").unlink()
    elif isinstance(content, bytes):
        (tmp_path / f"{name}.npy").write_bytes(content)
    with refuses(tmp_path / f"{name}.npy", name, found, expected):
        load_vocabulary_map(t2d, d2t, 10, 4)
