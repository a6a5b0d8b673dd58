"""Samples, noise, batches, orders of a pass, and what a resumed run reads of the batches that it has seen."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from ports.eagle3 import train as eagle3
from ports.errors import InputError
from ports.training import checkpoint_manager, data
from ports.training.alignment import Alignment
from ports.training.data import (
    LengthGroupedSampler,
    RecordDataset,
    Skipped,
    make_sample,
    record_sizes,
)
from ports.training.records import list_records
from tests.ports.conftest import LENGTHS
from tests.ports.training.test_records import as_safetensors

BOTH = list(Alignment)
SIZES = random.Random(0).choices(range(10, 8000), k=1003)
BATCH = 4


def record(length=5, **changes):
    return {
        "input_ids": torch.arange(10, 10 + length),
        "loss_mask": torch.ones(length),
        "hidden_state": torch.randn(length, 6),
        "target": torch.randn(length, 2),
        **changes,
    }


@pytest.mark.parametrize("alignment", BOTH)
@pytest.mark.parametrize("length", [1, 4])
def test_a_cut_sample_ends_like_a_short_one(alignment, length):
    long = record(9)
    cut = make_sample(long, length, alignment)
    short = make_sample({name: value[:length] for name, value in long.items()}, 8192, alignment)
    for name in ("input_ids", "features", "target", "loss_mask"):
        assert torch.equal(getattr(cut, name), getattr(short, name))


@pytest.fixture
def dataset(settings):
    def build(**changes):
        chosen = settings(**changes)
        return eagle3.build_dataset(chosen, eagle3.build(chosen).config)

    return build


def test_noise_is_on_the_features_only_and_fresh_at_every_visit(dataset):
    clean, noisy = dataset()[0], dataset(noise=True)
    first, second = noisy[0], noisy[0]
    assert not torch.equal(first.features, second.features)
    for name in ("target", "input_ids", "loss_mask"):
        assert torch.equal(getattr(first, name), getattr(clean, name))


def order(seed=0, epoch=0, sizes=SIZES, batch=BATCH):
    sampler = LengthGroupedSampler(sizes, batch, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def padding(indices, sizes=SIZES, batch=BATCH):
    """Share of the places of whole batches that hold no token."""
    batches = [[sizes[i] for i in indices[at : at + batch]] for at in range(0, len(indices) - batch + 1, batch)]
    return 1 - sum(map(sum, batches)) / sum(batch * max(lengths) for lengths in batches)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, len(SIZES)])
def test_a_grouped_order_has_every_sample_once_and_is_of_seed_and_pass_alone(count):
    orders = {tuple(order(seed, epoch, SIZES[:count])) for seed in (0, 1) for epoch in (0, 1) for _ in range(2)}
    assert all(sorted(each) == list(range(count)) for each in orders)
    assert len(orders) == 4 or count < 6
    assert len(LengthGroupedSampler(SIZES[:count], BATCH, 0)) == count


def test_less_is_padded_than_in_a_random_order_and_lengths_do_not_rise_over_the_pass():
    shuffled = random.Random(1).sample(range(len(SIZES)), len(SIZES))
    assert padding(shuffled) > 0.3
    assert padding(order()) < 0.1 * padding(shuffled)
    first = [SIZES[index] for index in order()[::BATCH]]
    rises = sum(after > before for before, after in itertools.pairwise(first))
    assert 0.4 < rises / len(first) < 0.6, "of the neighbouring batches; sorted pools would rise throughout"


def test_what_fills_no_batch_is_drawn_and_not_the_shortest():
    assert len({order(0, epoch, range(1, 10))[-1] for epoch in range(30)}) == 9, "9 samples, 2 batches of 4"


def test_records_are_grouped_by_what_they_weigh_on_the_disk(fixture, tmp_path):
    files = list_records(fixture / "data_eagle3")
    assert sorted(range(6), key=record_sizes(files).__getitem__) == sorted(range(6), key=LENGTHS.__getitem__)
    assert record_sizes([tmp_path / "gone"]) == [0]


def test_keyed_noise_depends_on_seed_pass_and_sample_alone(dataset):
    def noisy(sample=0, epoch=0, seed=0):
        records = dataset(noise=True, noise_stream="keyed", seed=seed)
        records.start_pass(epoch)
        return records[sample].features

    before = torch.get_rng_state()
    first = noisy()
    torch.manual_seed(7)
    assert torch.equal(first, noisy())
    assert not torch.equal(first, dataset()[0].features)
    assert not any(torch.equal(first, other) for other in (noisy(epoch=1), noisy(seed=1)))
    noise = [noisy(sample)[:3] - dataset()[sample].features[:3] for sample in (1, 2)]
    assert not torch.equal(noise[0] * 5, noise[1] * 12), "of samples of 5 and 12 tokens"
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state()), "seeded with 0 before every test"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_noise_is_drawn_on_the_host_and_added_where_the_features_lie(dataset, device):
    records, seen = dataset(noise=True), []
    records.draw = lambda like: seen.append(like.device.type) or torch.rand_like(like)
    found = records.sample_of(0, record(hidden_state=torch.randn(5, 6, device=device)))
    assert (seen, found.features.device.type) == (["cpu"], device)


class Reads:
    """The records that were read whole, had their header read, or opened by the manager, in any process."""

    def __init__(self, log, monkeypatch):
        self.log = log
        for module, name in ((data, "read_record"), (data, "record_header"), (checkpoint_manager, "_ends_of")):
            monkeypatch.setattr(module, name, self.logged(getattr(module, name)))

    def logged(self, function):
        def call(path, *words):
            with self.log.open("a") as stream:
                stream.write(f"{function.__name__} {path.name}\n")
            return function(path, *words)

        return call

    def take(self):
        """How many records each function was given since the last call."""
        lines = set(self.log.read_text().splitlines()) if self.log.exists() else set()
        self.log.unlink(missing_ok=True)
        return Counter(line.split()[0] for line in lines)


@pytest.fixture
def reads(tmp_path, monkeypatch):
    return Reads(tmp_path / "reads", monkeypatch)


KEYED = {"noise_stream": "keyed"}
SEEN = [
    ("eagle3", "ckpt", {}, 1, 5),
    ("eagle3", "safetensors", {"num_workers": 2}, 1, 5),
    ("hass", "ckpt", {"noise": False, "packing": True, "bs": 2}, 2, 0),
    ("hass", "safetensors", {**KEYED, "bs": 2, "group_by_length": True}, 2, 0),
    ("eagle3", "ckpt", {**KEYED, "num_workers": 2}, 1, 0),
    ("eagle3", "bad", {"shuffle": False}, 6, 0),
    ("eagle3", "bad", {**KEYED, "shuffle": False}, 1, 0),
]
"""Of six records: those that a resume reads whole, and those whose header is; all, where a bad one drew nothing."""


@pytest.mark.parametrize(
    ("algorithm", "form", "options", "whole", "headers"),
    [pytest.param(*each, marks=pytest.mark.nightly if index in (3, 4) else ()) for index, each in enumerate(SEEN)],
)
def test_of_the_batches_that_a_resume_has_seen_only_headers_are_read(
    run_to_the_end, run_until, reads, fixture, tmp_path, algorithm, form, options, whole, headers
):
    if form == "safetensors":
        as_safetensors(fixture, algorithm)
    if form == "bad":
        (fixture / "data_eagle3" / "data_2.ckpt").write_bytes(b"")
    options = {"epoch": 0, "on_bad_record": "skip", **options}
    expected = run_to_the_end(algorithm, tmp_path / "a", **options)
    run_until(algorithm, tmp_path / "b", 6 // options.get("bs", 1) - 2, **options)
    reads.take()
    found = run_to_the_end(algorithm, tmp_path / "b", ckpt_path=Path("auto"), **options)
    assert reads.take() == Counter(read_record=whole, record_header=headers)
    assert expected.differs_from(found) == []


def test_records_that_were_written_anew_are_opened_and_compared(run_until, start_run, reads, fixture, tmp_path):
    run_until("hass", tmp_path / "a", 3)
    file = fixture / "data_hass" / "data_0.ckpt"
    file.write_bytes(file.read_bytes())
    reads.take()
    start_run("hass", tmp_path / "a", ckpt_path=Path("auto"))
    assert reads.take() == Counter(_ends_of=6)
    (fixture / "data_hass" / "data_1.ckpt").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="records was"):
        start_run("hass", tmp_path / "a", ckpt_path=Path("auto"))


def test_a_resume_that_did_not_draw_the_noise_again_is_refused(run_until, start_run, tmp_path, monkeypatch):
    run_until("eagle3", tmp_path / "a", 2)
    monkeypatch.setattr(RecordDataset, "_pass_over", lambda self, index: Skipped("planted"))
    with pytest.raises(InputError, match="torch: found another state after replaying 3 batches"):
        start_run("eagle3", tmp_path / "a", ckpt_path=Path("auto")).run()
