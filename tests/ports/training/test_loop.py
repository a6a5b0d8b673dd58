"""The loop, driven through Eagle3's run on the tiny fixture, and what it logs and prints."""

import math
import time
import weakref

import pytest
import torch
from accelerate import Accelerator

from ports.eagle3 import train as eagle3
from ports.errors import InputError
from ports.training.metrics import PassClock, PassTotals, log_entry
from ports.training.observer import Observer
from tests.ports.training.conftest import metrics


class Watch(Observer):
    """Keeps what passes by."""

    def __init__(self):
        self.events, self.records, self.lines, self.lengths = [], [], [], []
        self.gradients_at, self.parameters_at = {}, {}

    def started(self, objective, optimizer):
        self.events.append("started")

    def batch(self, micro_batch, batch):
        self.events.append(f"batch {micro_batch}")
        self.lengths.append(batch["attention_mask"].sum(1).tolist())

    def outcome(self, micro_batch, outcome):
        self.events.append(f"outcome {micro_batch}")
        self.outcome_seen = outcome

    def gradients(self, micro_batch, objective):
        self.events.append(f"gradients {micro_batch}")
        self.gradients_at[micro_batch] = gradients_of(objective)

    def stepped(self, record, objective):
        self.events.append(f"stepped {record.micro_batch}")
        self.records.append(record)
        named = objective.draft.named_parameters()
        self.parameters_at[record.micro_batch] = {name: value.detach().clone() for name, value in named}

    def printed(self, line):
        self.lines.append(line)

    def finished(self, objective):
        self.events.append("finished")


def gradients_of(objective):
    named = objective.draft.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}


@pytest.fixture
def train(settings, lively_draft, reset_accelerator):
    def go(sampler=None, watch=None, **changes):
        reset_accelerator()
        chosen, watch = settings(**changes), watch or Watch()
        draft = lively_draft(**changes)
        eagle3.finish(eagle3.start(chosen, draft, eagle3.build_dataset(chosen, draft.config), sampler, watch))
        watch.draft, watch.settings = draft, chosen
        return watch

    return go


def relative_error(found, wanted):
    assert found.keys() == wanted.keys()
    assert found
    return max(
        float((found[name] - wanted[name]).norm() / (wanted[name].norm() + 1e-30)) for name in wanted if name != "none"
    )


@pytest.mark.parametrize("alignment", ["prototype", "chain"])
def test_accumulation_gives_the_gradient_and_the_step_of_the_big_batch(train, alignment):
    common = {"max_steps": 1, "ttt_alignment": alignment}
    big = train(bs=3, **common)
    small = train(bs=1, gradient_accumulation_steps=3, **common)
    rows = [record.rows for record in small.records]
    assert len(set(rows)) > 1, "unequal counts are the point"
    assert big.records[0].rows == sum(rows)
    assert relative_error(small.gradients_at[2], big.gradients_at[0]) < 2e-6
    before = dict(train(bs=1, max_steps=1, lr=1e-9, ttt_alignment=alignment).parameters_at[0])
    after_small, after_big = small.parameters_at[2], big.parameters_at[0]
    moved = {name: after_big[name] - before[name] for name in big.gradients_at[0]}
    also = {name: after_small[name] - before[name] for name in big.gradients_at[0]}
    assert all(bool(value.any()) for value in moved.values())
    assert relative_error(also, moved) < 1e-3


def test_the_mean_of_means_would_fail_that_test(train):
    """The planted fault: what accumulation gives when every micro-batch is divided by its own rows."""
    big = train(bs=2, max_steps=1)
    parts = [train(bs=1, max_steps=1, sampler=[index, index]).gradients_at[0] for index in (0, 1)]
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert relative_error(mean, big.gradients_at[0]) > 1e-2


def test_the_last_window_may_be_shorter_and_is_divided_by_its_own_rows(train):
    """At a rate that hardly moves the weights, so that its gradient is that of one batch of its two samples."""
    watch = train(sampler=[0, 1, 2, 3, 4], bs=1, gradient_accumulation_steps=3, lr=1e-9)
    whole = train(sampler=[3, 4], bs=2, lr=1e-9)
    assert [record.stepped for record in watch.records] == [False, False, True, False, True]
    assert relative_error(watch.gradients_at[4], whole.gradients_at[0]) < 2e-6


def test_epoch_n_makes_n_plus_1_passes_and_everything_is_told(train):
    """Events in their order, printed lines, checkpoints, and the metrics of every micro-batch."""
    watch = train(epoch=2)
    told = [f"{event} {n}" for n in range(9) for event in ("batch", "outcome", "gradients", "stepped")]
    assert watch.events == ["started", *told, "finished"]
    assert watch.lengths == [[9, 5], [12, 7], [3, 10]] * 3, "in natural order"
    assert [record.epoch for record in watch.records] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert watch.lines[0] == "training on 6 examples total"
    assert [line.split(",")[0] for line in watch.lines[1::2]] == ["Epoch [1/2]", "Epoch [2/2]", "Epoch [3/2]"]
    assert [path.name for path in sorted(watch.settings.cpdir.glob("model*"))] == ["model0", "model1", "model2"]
    rows = metrics(watch.settings.cpdir)
    assert rows == [{"step": record.micro_batch, **record.logged} for record in watch.records]
    for row, record in zip(rows, watch.records):
        assert record.loss == pytest.approx(sum(record.step_losses), rel=1e-6)
        said = (record.loss, record.lr_after, record.correct / record.rows)
        assert (row["train/loss"], row["train/lr"], row["train/acc"]) == said


def test_the_rates_follow_the_schedule(train):
    watch = train(epoch=1, gradient_accumulation_steps=2)  # 6 * 2 / (2 * 2) = 3 steps planned
    used = [record.lr_used for record in watch.records]
    assert used == pytest.approx([1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3, 1e-3 / 3, 0])
    after = [record.lr_after for record in watch.records if record.stepped]
    assert after == pytest.approx([2e-3 / 3, 1e-3 / 3, 0, 0])


def test_bfloat16_autocast_trains_float32_masters(train):
    watch, exact = train(mixed_precision="bf16", epoch=5), train(epoch=5)
    outcome = watch.outcome_seen
    assert outcome.steps[0].logits.dtype is torch.bfloat16
    assert outcome.target.probabilities.dtype is torch.float32
    assert {value.dtype for value in watch.draft.parameters()} == {torch.float32}
    losses = [record.loss for record in watch.records]
    assert losses[-1] < losses[2] < math.inf
    assert losses == pytest.approx([record.loss for record in exact.records], rel=0.02)
    assert losses != [record.loss for record in exact.records]


class Spent(Observer):
    """How many earlier micro-batches there still are, with what was made of them, when the next one begins."""

    def __init__(self):
        self.held, self.alive = [], []

    def batch(self, micro_batch, batch):
        self.alive.append([ref() is not None for ref in self.held].count(True))
        self.held.append(weakref.ref(batch["features"]))

    def outcome(self, micro_batch, outcome):
        self.held.append(weakref.ref(outcome.steps[0].hidden))


def test_a_spent_micro_batch_is_held_by_nobody(train):
    assert train(bs=1, gradient_accumulation_steps=3, watch=Spent()).alive == [0] * 6


def test_foreign_accumulation_is_refused(train, refuses, monkeypatch):
    monkeypatch.setattr(Accelerator, "gradient_accumulation_steps", 4)  # as DeepSpeed's config may say
    expected = "1 or auto: accumulate with --gradient-accumulation-steps"
    with refuses("DeepSpeed config", "gradient_accumulation_steps", "4", expected):
        train()


def test_debug_stops_at_the_operation_that_gives_nan(train):
    try:
        with pytest.raises(InputError, match=r"data_0.ckpt.*: gradient: found Function .* returned nan values"):
            train(debug=True, watch=Poison())
    finally:
        torch.autograd.set_detect_anomaly(False)


class Poison(Watch):
    def outcome(self, micro_batch, outcome):
        outcome.backward_loss = outcome.backward_loss * torch.sqrt(outcome.backward_loss * 0)


def test_where_no_row_is_in_the_loss_nothing_is_logged_and_lines_are_printed():
    assert log_entry(0.1, {"loss": 0.0, "correct": 0, "top": [0, 0, 0], "rows": 0}) == {}
    assert PassTotals().lines(0, 4) == ["Epoch [1/4], Loss: nan", "Train Accuracy: 0.00%"]


PAUSE = 0.05


def test_a_slow_loader_is_waited_for_and_slow_training_is_not():
    clock = PassClock()
    for _ in clock.watch(time.sleep(PAUSE) for _ in range(3)):
        time.sleep(2 * PAUSE)
    found = clock.read()
    assert found["pass/data_wait"] >= 3 * PAUSE
    assert found["pass/seconds"] - found["pass/data_wait"] >= 6 * PAUSE


def test_what_a_pass_waited_is_printed_and_logged_where_it_is_asked_for(train):
    plain, asked = train(), train(report_data_wait=True)
    (said,) = [line for line in asked.lines if line not in plain.lines]
    assert said.startswith("Data wait: ")
    assert said.endswith("%), padding 25.8%")
    *others, last = metrics(asked.settings.cpdir)
    assert others == [{"step": record.micro_batch, **record.logged} for record in plain.records]
    assert last.keys() == {"step", "pass/seconds", "pass/data_wait", "pass/padding"}
    assert last["pass/padding"] == pytest.approx(1 - 46 / (2 * (9 + 12 + 10)))
