import pytest
import torch

from ports.training.optimizer import build_optimizer, build_schedule


def module():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Embedding(4, 3))
    layers[2].weight.requires_grad_(False)
    return layers


def test_adamw_over_everything_that_trains_norms_included():
    layers = module()
    optimizer = build_optimizer(layers, 0.5)
    (group,) = optimizer.param_groups
    assert [id(value) for value in group["params"]] == [
        id(value) for value in layers.parameters() if value.requires_grad
    ]
    assert len(group["params"]) == 4
    options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "amsgrad")}
    assert options == {"lr": 0.5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}


@pytest.mark.parametrize(("total", "warmup"), [(20, 0), (200, 2), (7, 1), (0, 0)])
def test_linear_up_then_linear_down_to_0(total, warmup):
    optimizer = build_optimizer(module(), 0.5)
    schedule = build_schedule(optimizer, total, warmup)
    rates = []
    for _ in range(total + 2):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [
        0.5 * (n / max(1, warmup) if n < warmup else max(0, (total - n) / max(1, total - warmup)))
        for n in range(total + 2)
    ]
    assert rates == pytest.approx(expected, abs=1e-15)
    assert rates[-1] == 0
    assert (rates[0] == 0) is (warmup >= 1 or total == 0)
