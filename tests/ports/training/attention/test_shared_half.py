import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ports.training.attention.shared_half import SharedHalf, can_split


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 4), (2, 5, 4), (2, 5, 4), (7, 8), (7,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
def test_products_and_gradients_are_those_of_the_whole(with_bias):
    first, *seconds, weight, bias = inputs()
    bias = bias if with_bias else None
    share = SharedHalf(first, weight, bias)
    shared = [share(second) for second in seconds]
    whole = [F.linear(torch.cat([first, second], dim=-1), weight, bias) for second in seconds]
    wanted = [value for value in (first, *seconds, weight, bias) if value is not None]
    for one, other in zip(shared, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    grads = [torch.autograd.grad(sum(p.square().sum() for p in side), wanted) for side in (shared, whole)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert other.abs().max() > 1


def test_gradcheck():
    first, second, third, weight, bias = inputs()

    def twice(first, second, third, weight, bias):
        share = SharedHalf(first, weight, bias)
        return share(second), share(third)

    assert torch.autograd.gradcheck(twice, (first, second, third, weight, bias))


def test_only_full_precision_is_split():
    projection = nn.Linear(2, 2)
    assert can_split(projection, [projection])
    assert can_split(projection.double(), [projection])
    assert not can_split(projection.bfloat16(), [projection])
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_split(projection, [projection.float()])


def test_what_is_no_plain_product_is_not_split():
    class Adapted(nn.Linear):
        pass

    layer = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3), Adapted(2, 2), nn.Identity()])
    assert can_split(layer, layer[:2])
    assert not can_split(layer, layer[1:3])
    assert not can_split(layer, layer[3:])


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_deep_inside_is_seen_while_it_is_there(register):
    projection = nn.Linear(2, 2)
    module = nn.Sequential(projection, nn.Sequential(nn.Identity()))
    assert can_split(module, [projection])
    handle = getattr(module[1][0], register)(lambda *_: None)
    assert not can_split(module, [projection])
    handle.remove()
    assert can_split(module, [projection])
