import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ports.training.data.noise import add_uniform_noise


@given(length=st.integers(1, 40), width=st.integers(1, 4), level=st.floats(0, 1, exclude_max=True, width=32))
def test_the_formula(length, width, level):
    features = torch.ones(length, width)
    noisy = add_uniform_noise(features, lambda like: torch.full_like(like, level))
    expected = 1 + (level - 0.5) * 0.2 * 512 / length
    torch.testing.assert_close(noisy, torch.full((length, width), expected), rtol=1e-6, atol=1e-5)


def test_a_short_sample_gets_noise_of_many_times_its_size():
    noise = add_uniform_noise(torch.zeros(20, 400))
    assert 2.5 < noise.max().item() <= 2.56
    assert -2.56 <= noise.min().item() < -2.5
    assert abs(noise.mean().item()) < 0.1


def test_the_draw_sees_a_leading_batch_axis_and_the_dtype():
    seen = []

    def draw(like):
        seen.append((tuple(like.shape), like.dtype))
        return torch.zeros_like(like)

    noisy = add_uniform_noise(torch.zeros(5, 3, dtype=torch.bfloat16), draw)
    assert seen == [((1, 5, 3), torch.bfloat16)]
    assert noisy.dtype is torch.bfloat16


def test_it_is_what_the_generator_gives_next():
    features = torch.randn(6, 2)
    torch.manual_seed(5)
    first, second = add_uniform_noise(features), add_uniform_noise(features)
    torch.manual_seed(5)
    uniforms = torch.rand(2, 1, 6, 2)
    assert torch.equal(first, features + (uniforms[0, 0] - 0.5) * 0.2 * 512 / 6)
    assert torch.equal(second, features + (uniforms[1, 0] - 0.5) * 0.2 * 512 / 6)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("length", [1, 512])
def test_the_input_is_left_alone(length):
    features = torch.zeros(length, 2)
    add_uniform_noise(features)
    assert not features.any()
