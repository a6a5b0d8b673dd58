import torch

from ports.eagle3 import train as eagle3
from ports.training.data.batches import build_loader, collate
from ports.training.data.samples import Sample


def sample(length, dtype=torch.float32, value=1.0):
    return Sample(
        input_ids=torch.full((length,), 7),
        features=torch.full((length, 6), value, dtype=dtype),
        target=torch.full((length, 2), value, dtype=dtype),
        loss_mask=torch.ones(length, dtype=torch.int64),
    )


def test_samples_are_padded_right_with_zeros():
    batch = collate([sample(2), sample(4)])
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["input_ids"].tolist() == [[7, 7, 0, 0], [7, 7, 7, 7]]
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["features"].shape == (2, 4, 6)
    assert batch["target"].shape == (2, 4, 2)
    assert not batch["features"][0, 2:].any()
    assert not batch["target"][0, 2:].any()
    assert bool((batch["features"][0, :2] == 1).all())


def test_half_precision_becomes_float32_without_changing_values():
    batch = collate([sample(2, torch.bfloat16, 1.5), sample(3, torch.float16, 0.1)])
    assert batch["features"].dtype is batch["target"].dtype is torch.float32
    assert batch["features"][1, 0, 0].item() == torch.tensor(0.1, dtype=torch.float16).item()


def test_noise_is_on_the_features_only_and_fresh_at_every_visit(settings):
    quiet, noisy = settings(), settings(noise=True)
    config = eagle3.build(quiet).config
    clean = eagle3.build_dataset(quiet, config)[0]
    dataset = eagle3.build_dataset(noisy, config)
    first, second = dataset[0], dataset[0]
    assert not torch.equal(first.features, second.features)
    assert not torch.equal(first.features, clean.features)
    for name in ("target", "input_ids", "loss_mask"):
        assert torch.equal(getattr(first, name), getattr(clean, name))


def test_incomplete_batches_are_dropped(settings):
    chosen = settings()
    dataset = eagle3.build_dataset(chosen, eagle3.build(chosen).config)
    assert [len(dataset), len(build_loader(dataset, 4)), len(build_loader(dataset, 6))] == [6, 1, 1]
    assert [batch["input_ids"].shape[0] for batch in build_loader(dataset, 4)] == [4]


def test_natural_order_shuffling_and_a_sampler(settings):
    chosen = settings()
    dataset = eagle3.build_dataset(chosen, eagle3.build(chosen).config)

    def lengths(**options):
        return [int(batch["attention_mask"].sum()) for batch in build_loader(dataset, 1, **options)]

    assert lengths(shuffle=False) == [9, 5, 12, 7, 3, 10]
    assert lengths(sampler=[4, 0, 4]) == [3, 9, 3]
    orders = {tuple(lengths()) for _ in range(5)}
    assert len(orders) > 1
    assert all(sorted(order) == [3, 5, 7, 9, 10, 12] for order in orders)


def test_samples_are_cut_to_max_len(settings):
    chosen = settings(max_len=4)
    dataset = eagle3.build_dataset(chosen, eagle3.build(chosen).config)
    assert [len(sample.input_ids) for sample in dataset] == [4, 4, 4, 4, 3, 4]
