"""Grouped orders: whole, drawn from seed and pass alone, and with less padding; resumed they are the same."""

import itertools
import random
from pathlib import Path

import pytest

from parity.fixtures.samples import build_random_fixture
from ports.eagle3 import train as eagle3
from ports.training.data.batches import build_loader
from ports.training.data.grouping import LengthGroupedSampler, record_sizes
from tests.ports.conftest import DRAFT_VOCAB_SIZE, SPEC

SIZES = random.Random(0).choices(range(10, 8000), k=1003)
BATCH = 4


def order(seed=0, epoch=0, sizes=SIZES, batch=BATCH):
    sampler = LengthGroupedSampler(sizes, batch, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding(indices, sizes=SIZES, batch=BATCH):
    """Share of the places of whole batches that hold no token."""
    batches = [[sizes[i] for i in indices[at : at + batch]] for at in range(0, len(indices) - batch + 1, batch)]
    return 1 - sum(map(sum, batches)) / sum(batch * max(lengths) for lengths in batches)


def test_every_sample_once_and_the_length_is_known():
    assert sorted(order()) == list(range(len(SIZES)))
    assert len(LengthGroupedSampler(SIZES, BATCH, 0)) == len(SIZES)


def test_seed_and_pass_decide_and_nothing_else():
    random.seed(5)
    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 1) != order(1, 0)


def test_less_is_padded_than_in_a_random_order():
    shuffled = random.Random(1).sample(range(len(SIZES)), len(SIZES))
    assert padding(shuffled) > 0.3
    assert padding(order()) < 0.1 * padding(shuffled)


def test_lengths_do_not_rise_over_the_pass():
    first = [SIZES[index] for index in order()[::BATCH]]
    rises = sum(after > before for before, after in itertools.pairwise(first))
    assert 0.4 < rises / len(first) < 0.6, "of the neighbouring batches; sorted pools would rise throughout"


def test_what_fills_no_batch_is_drawn_and_not_the_shortest():
    sizes = list(range(1, 10))
    assert len({order(0, epoch, sizes)[-1] for epoch in range(30)}) == 9, "9 samples, 2 batches of 4"


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_few_samples(count):
    assert sorted(order(sizes=SIZES[:count])) == list(range(count))


def test_a_file_that_cannot_be_read_has_no_size(tmp_path):
    (tmp_path / "there").write_bytes(b"four")
    assert record_sizes([tmp_path / "there", tmp_path / "gone"]) == [4, 0]


def test_records_on_disk_are_grouped_by_what_they_weigh(tmp_path, settings):
    lengths = tuple(random.Random(2).sample(range(3, 200), 40))
    folder = build_random_fixture(tmp_path / "many", spec=SPEC, lengths=lengths, draft_vocab_size=DRAFT_VOCAB_SIZE)
    chosen = settings(tmpdir=folder / "data_eagle3")
    dataset = eagle3.build_dataset(chosen, eagle3.build(chosen).config)
    sizes = record_sizes(dataset.files)
    share = {}
    for name, sampler in {"grouped": LengthGroupedSampler(sizes, BATCH, 0), "natural": range(40)}.items():
        masks = [batch["attention_mask"] for batch in build_loader(dataset, BATCH, sampler=sampler)]
        assert len(masks) == 10
        share[name] = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert share["grouped"] < 0.3 * share["natural"], share


def test_grouping_needs_shuffling(flags, capsys):
    assert eagle3.main([*flags(group_by_length=None), "--no-shuffle"]) == 2
    assert "group_by_length draws an order of its own: it needs shuffle" in capsys.readouterr().err


@pytest.mark.parametrize(("algorithm", "workers"), [("eagle3", 0), ("hass", 2)])
def test_stopped_in_either_pass_and_resumed_it_is_the_same_run(run_until, run_to_the_end, tmp_path, algorithm, workers):
    options = {"group_by_length": True, "bs": 2, "epoch": 2, "num_workers": workers}
    expected = run_to_the_end(algorithm, tmp_path / "straight", **options)
    for stop in (1, 2, 4):  # in the first pass, at its end, in the second
        cpdir = tmp_path / f"stopped{stop}"
        run_until(algorithm, cpdir, stop, **options)
        found = run_to_the_end(algorithm, cpdir, ckpt_path=Path("auto"), **options)
        assert expected.differs_from(found) == []


def test_a_resume_that_forgot_the_pass_would_fail_that_test(run_until, run_to_the_end, tmp_path, monkeypatch):
    """The planted fault: every pass draws the order of the first."""
    options = {"group_by_length": True, "bs": 1, "epoch": 1, "noise": False}
    expected = run_to_the_end("eagle3", tmp_path / "straight", **options)
    run_until("eagle3", tmp_path / "stopped", 8, **options)
    monkeypatch.setattr(LengthGroupedSampler, "set_epoch", lambda self, epoch: None)
    found = run_to_the_end("eagle3", tmp_path / "stopped", ckpt_path=Path("auto"), **options)
    assert "metrics" in expected.differs_from(found)
