"""The entry of a micro-batch, the sums of a pass, and how long it waits for data: printed and logged when asked."""

import json
import time

import pytest
import torch

from parity.fixtures import RECORDINGS
from ports.training.loss import Hits
from ports.training.metrics import PassClock, PassTotals, log_entry
from ports.training.observer import Observer
from ports.training.runs import finish

PAUSE = 0.05


def hits(correct, top, rows):
    return Hits(torch.tensor(correct), torch.tensor(top), torch.tensor(rows))


@pytest.mark.parametrize("case", ["eagle3_fp32_k3", "eagle3_fp32_k3_ga2", "eagle3_fp32_k5", "hass_fp32_k3"])
def test_entries_and_lines_are_those_recorded(case):
    meta = json.loads((RECORDINGS / case / "meta.json").read_text())
    rows = [json.loads(line) for line in (RECORDINGS / case / "trajectory.jsonl").read_text().splitlines()]
    totals = [PassTotals() for _ in range(rows[-1]["epoch"] + 1)]
    for row in rows:
        wanted = row["logdict"]
        extra = {name: wanted[name] for name in ("train/ploss", "train/topkloss") if name in wanted}
        counted = hits(int(row["cc"]), [int(count) for count in row["topk_correct"]], int(row["ct"]))
        assert log_entry(row["lr_after"], row["loss"], counted, extra) == wanted
        totals[row["epoch"]].add(row["loss"], counted)
    lines = [line for epoch, each in enumerate(totals) for line in each.lines(epoch, len(totals) - 1)]
    assert lines == [line for line in meta["prints"] if line.startswith(("Epoch [", "Train Accuracy"))]


def test_where_no_row_is_in_the_loss_nothing_is_logged_and_lines_are_printed():
    assert log_entry(0.1, 0.0, hits(0, [0, 0, 0], 0)) == {}
    assert PassTotals().lines(0, 4) == ["Epoch [1/4], Loss: nan", "Train Accuracy: 0.00%"]


class Watch(Observer):
    """Keeps the times and the lines; may be slow itself."""

    def __init__(self, pause=0.0):
        self.pause, self.times, self.lines = pause, {}, []

    def gradients(self, micro_batch, objective):
        time.sleep(self.pause)

    def timed(self, epoch, times):
        self.times[epoch] = times

    def printed(self, line):
        self.lines.append(line)


@pytest.fixture
def run(start_run, tmp_path):
    """One pass of six samples, with a loader that takes ``pause`` seconds a sample; the observer and the log."""

    def go(name="run", pause=0.0, watch=None, **changes):
        watch = watch or Watch()
        loop = start_run("eagle3", tmp_path / name, watch, epoch=0, **changes)
        draw = loop.plan.loader.dataset.draw
        loop.plan.loader.dataset.draw = lambda features: (time.sleep(pause), draw(features))[1]
        finish(loop)
        log = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return watch, log

    return go


def test_waiting_is_counted_and_work_is_not():
    now = iter([0.0, 1.0, 1.5, 10.0, 12.0, 20.0, 20.25, 21.0])
    clock = PassClock(lambda: next(now))
    assert list(clock.watch(iter("ab"))) == ["a", "b"]
    times = clock.read()
    assert (times.waited, times.seconds) == (0.5 + 2.0 + 0.25, 21.0)


def test_padding_is_the_share_of_places_without_a_token():
    clock = PassClock()
    assert clock.read().padding == 0
    clock.count(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
    clock.count(torch.tensor([[1, 0]]))
    assert clock.read().padding == pytest.approx(3 / 10)


class Ahead(Observer):
    """Works on the first sample until ``enough`` records have been read, or for ``patience`` seconds."""

    def __init__(self, folder, enough, patience):
        self.folder, self.enough, self.patience, self.read = folder, enough, patience, None

    def gradients(self, micro_batch, objective):
        if micro_batch == 0:
            until = time.monotonic() + self.patience
            while (read := len(list(self.folder.iterdir()))) < self.enough and time.monotonic() < until:
                time.sleep(0.01)
            self.read = read


@pytest.mark.parametrize(("num_workers", "patience"), [(0, 0.3), (2, 120.0)])
def test_loader_processes_read_during_the_work(start_run, tmp_path, num_workers, patience):
    """Without any, the next record is read before the work begins, as accelerate does, and no other during it."""
    folder = tmp_path / "read"
    folder.mkdir()
    watch = Ahead(folder, 3, patience)
    loop = start_run("eagle3", tmp_path / "run", watch, epoch=0, bs=1, num_workers=num_workers, prefetch_factor=1)
    draw = loop.plan.loader.dataset.draw
    loop.plan.loader.dataset.draw = lambda features: ((folder / str(time.monotonic_ns())).touch(), draw(features))[1]
    finish(loop)
    assert watch.read == 2 if num_workers == 0 else watch.read >= 3


def test_what_a_pass_took_is_printed_and_logged_only_when_asked(run):
    """A slow loader is waited for, slow training is not."""
    quiet, plain = run("quiet", watch=Watch(PAUSE), bs=2, shuffle=False)
    loud, told = run("loud", pause=PAUSE, bs=2, shuffle=False, report_data_wait=True)
    busy, waiting = quiet.times[0], loud.times[0]
    assert busy.seconds - busy.waited >= 3 * PAUSE
    assert waiting.seconds >= waiting.waited >= max(6 * PAUSE, busy.waited)
    assert busy.padding == waiting.padding == pytest.approx(1 - 46 / (2 * (9 + 12 + 10)))
    assert loud.lines[:-1] == quiet.lines
    assert loud.lines[-1] == waiting.line()
    assert loud.lines[-1].startswith("Data wait: ")
    assert loud.lines[-1].endswith("%), padding 25.8%")
    assert told == [*plain, {"step": 3, **waiting.logged()}]


def test_reading_ahead_changes_nothing_that_is_drawn(run_to_the_end, tmp_path):
    one, many = (
        run_to_the_end("eagle3", tmp_path / str(ahead), num_workers=2, prefetch_factor=ahead) for ahead in (1, 5)
    )
    assert one.differs_from(many) == []
    assert one.lines == many.lines
