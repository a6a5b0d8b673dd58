"""What objectives of all algorithms share: rows of the chain, which logits are made, whose rows divide the loss."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ports.training.alignment import Alignment
from ports.training.loss import LossImplementation, Verifier
from ports.training.objective import GlobalNormalisation, Step, TTTObjective, build_normalisation, step_rows


def test_the_chain_drops_the_first_rows_of_later_steps():
    mask = torch.ones(2, 4, dtype=torch.int64)
    assert [step_rows(mask, step, Alignment.PROTOTYPE).sum().item() for step in range(4)] == [8, 8, 8, 8]
    chain = [step_rows(mask, step, Alignment.CHAIN)[0].tolist() for step in range(3)]
    assert chain == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert mask.all()


@pytest.mark.parametrize("implementation", list(LossImplementation))
def test_only_the_eager_loss_makes_all_logits(implementation):
    head, states = torch.randn(9, 6), torch.randn(3, 2, 4, 6)
    objective = TTTObjective(nn.Identity(), 3, Alignment.PROTOTYPE, implementation)
    objective.output = lambda: (nn.Identity(), head)
    steps = [Step(state, state, lambda hidden: hidden @ head.T) for state in states]
    batch = {"attention_mask": torch.ones(2, 4), "loss_mask": torch.ones(2, 4, dtype=torch.int64)}
    objective.score(steps, batch, Verifier(torch.randn(2, 4, 6), torch.randn(9, 6)))
    assert ["logits" in vars(step) for step in steps] == [implementation is LossImplementation.EAGER] * 3


@pytest.mark.parametrize(
    ("kind", "processes", "together"), [("rank", 2, False), ("global", 1, False), ("global", 2, True)]
)
def test_rows_are_counted_together_where_that_was_asked_for_and_there_is_somebody(kind, processes, together):
    found = build_normalisation(kind, SimpleNamespace(num_processes=processes, device="cpu"))
    assert (type(found) is GlobalNormalisation) is together
