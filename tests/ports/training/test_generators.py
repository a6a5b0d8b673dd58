"""Random generators to tensors and back, and what is refused on the way."""

from pathlib import Path

import pytest
import torch

from ports.errors import InputError
from ports.training import generators


@pytest.fixture
def sampler():
    return torch.Generator().manual_seed(7)


def test_what_is_restored_draws_the_same(sampler):
    state = generators.capture(sampler)
    drawn = torch.rand(3), torch.rand(3, generator=sampler)
    torch.manual_seed(1), sampler.manual_seed(1)
    generators.restore(state, sampler)
    for again, first in zip((torch.rand(3), torch.rand(3, generator=sampler)), drawn):
        assert torch.equal(again, first)


REFUSED = {
    "no sampler": lambda state: state.pop("sampler"),
    "another length": lambda state: state.update(sampler=state["sampler"][:-1]),
    "no state of a generator": lambda state: state["sampler"].fill_(255),
    "no state of torch's": lambda state: state["torch"].fill_(255),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_no_process_saved_is_refused_and_changes_nothing(sampler, damage):
    state, before = generators.capture(sampler), generators.capture(sampler)
    REFUSED[damage](state)
    with pytest.raises(InputError, match="file: generators: found"):
        generators.check(Path("file"), state, sampler)
    after = generators.capture(sampler)
    assert all(torch.equal(after[name], before[name]) for name in ("torch", "sampler", "numpy", "python"))
