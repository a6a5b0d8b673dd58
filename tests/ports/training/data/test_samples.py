import pytest
import torch

from ports.training.alignment import Alignment
from ports.training.data.samples import make_sample

BOTH = list(Alignment)


def record(length=5, **changes):
    return {
        "input_ids": torch.arange(10, 10 + length),
        "loss_mask": torch.ones(length),
        "hidden_state": torch.randn(length, 6),
        "target": torch.randn(length, 2),
        **changes,
    }


@pytest.mark.parametrize("alignment", BOTH)
def test_ids_and_target_move_left_and_features_stay(alignment):
    source = record()
    sample = make_sample(source, 8192, alignment)
    assert sample.input_ids.tolist() == [11, 12, 13, 14, 0]
    assert torch.equal(sample.target[:-1], source["target"][1:])
    assert not sample.target[-1].any()
    assert torch.equal(sample.features, source["hidden_state"])


def test_the_mask_stays_in_the_prototype_and_moves_in_the_chain():
    source = record(loss_mask=torch.tensor([1, 0, 0, 1, 1]))
    assert make_sample(source, 8192, Alignment.PROTOTYPE).loss_mask.tolist() == [1, 0, 0, 1, 0]
    assert make_sample(source, 8192, Alignment.CHAIN).loss_mask.tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_the_mask_is_int64_and_off_at_the_end(alignment, dtype):
    mask = make_sample(record(loss_mask=torch.ones(5).to(dtype)), 8192, alignment).loss_mask
    assert mask.dtype is torch.int64
    assert mask.tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("alignment", BOTH)
def test_a_cut_sample_ends_like_a_short_one(alignment):
    long = record(9)
    short = {name: value[:4] for name, value in long.items()}
    cut, whole = make_sample(long, 4, alignment), make_sample(short, 8192, alignment)
    for name in ("input_ids", "features", "target", "loss_mask"):
        assert torch.equal(getattr(cut, name), getattr(whole, name))
    assert cut.input_ids.tolist() == [11, 12, 13, 0]


def test_without_a_target_it_is_the_clean_hidden_state():
    source = record()
    del source["target"]
    sample = make_sample(source, 8192, Alignment.PROTOTYPE)
    assert torch.equal(sample.target[:-1], source["hidden_state"][1:])


@pytest.mark.parametrize("alignment", BOTH)
def test_the_record_is_not_changed_and_one_token_is_enough(alignment):
    source = record(1)
    sample = make_sample(source, 8192, alignment)
    assert source["loss_mask"].tolist() == [1]
    assert (sample.input_ids.tolist(), sample.loss_mask.tolist()) == ([0], [0])
