"""Runs of both algorithms on a tiny fixture, stopped and resumed, and everything they leave behind."""

import json
from functools import partial

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from ports.evaluate.measure import acceptance_of
from ports.training.observer import Observer
from ports.training.runs import finish
from ports.training.stop import StoppedError
from tests.ports import conftest
from tests.ports.conftest import TRAIN, data_of, enliven, settings_of

PREFIX = {"eagle3": "model", "hass": "state_"}
"""Of the checkpoints that a pass ends with."""


class Saved:
    """What a checkpoint holds: parameters, Adam's state, schedule, generators."""

    def __init__(self, folder):
        files = [folder / "model.safetensors", *(folder / "training_state").glob("*.safetensors")]
        self.files = {str(file.relative_to(folder)): load_file(file) for file in files}
        state = json.loads((folder / "training_state/state.json").read_text())
        self.state = {name: value for name, value in state.items() if name not in ("serial", "records_seen")}

    def differs_from(self, other):
        found = [] if self.state == other.state else ["state"]
        found += [f"{file} is missing" for file in self.files.keys() ^ other.files.keys()]
        for file in self.files.keys() & other.files.keys():
            tensors, theirs = self.files[file], other.files[file]
            found += [f"{file} {name}" for name in tensors if not same(tensors[name], theirs.get(name))]
            found += [f"{file} {name}" for name in set(theirs) - set(tensors)]
        return found


class Left(Saved):
    """What a finished run leaves: its last checkpoint, its log, and the lines it printed."""

    def __init__(self, cpdir, last, lines):
        super().__init__(cpdir / last)
        self.metrics = (cpdir / "metrics.jsonl").read_bytes()
        self.lines = lines

    def differs_from(self, other):
        log = [] if isinstance(other, Left) and self.metrics == other.metrics else ["metrics"]
        return super().differs_from(other) + log


def same(a, b):
    """To the bit: NaN is NaN, -0 is not 0."""
    return b is not None and a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def bits(value):
    return value.flatten().view(torch.uint8)


class StopAfter(Observer):
    """Asks the loop to stop in the middle of the window that holds ``micro_batch``."""

    def __init__(self, micro_batch):
        self.micro_batch, self.lines, self.loop = micro_batch, [], None

    def batch(self, micro_batch, batch):
        if micro_batch == self.micro_batch:
            self.loop.stop.requested = True

    def printed(self, line):
        self.lines.append(line)


def metrics(cpdir):
    """The lines of a run's log."""
    return [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]


def words_of(fixture, algorithm, cpdir, *switches, **changes):
    """A command line for either algorithm; of what is None the flag alone."""
    values = {**data_of(fixture, algorithm), "cpdir": cpdir, "bs": 1, "lr": 1e-3, "epoch": 0, "num_workers": 0}
    values |= {"mixed_precision": "no", "forward_num_total": 2, "no-progress": None, "records_check": "off"}
    return [*conftest.words_of({**values, **changes}), *switches]


@pytest.fixture
def words(fixture):
    return partial(words_of, fixture)


@pytest.fixture
def start_run(fixture, reset_accelerator):
    """``start_run(algorithm, cpdir, observer, **changes)``: a loop on the fixture, three passes, shuffled and noisy."""

    def start(algorithm, cpdir, observer=None, **changes):
        reset_accelerator()
        values = {"cpdir": cpdir, "bs": 1, "epoch": 1, "forward_num_total": 2, **changes}
        settings = settings_of(fixture, algorithm, **values)
        set_seed(settings.seed)
        train, _ = TRAIN[algorithm]
        draft = train.build(settings)
        dataset = train.build_dataset(settings, draft.config)
        return train.start(settings, draft, dataset, None, observer, acceptance_of(settings))

    return start


@pytest.fixture
def lively(start_run, tmp_path):
    """``lively(algorithm, **changes)``: an objective with lively weights, and the samples it may be given, clean."""

    def make(algorithm, **changes):
        loop = start_run(algorithm, tmp_path / "run", noise=False, **changes)
        enliven(loop.objective.draft)
        return loop.objective, loop.plan.loader.dataset

    return make


@pytest.fixture
def run_to_the_end(start_run):
    """The run that nobody stops, or one that goes on with ``ckpt_path``."""

    def go(algorithm, cpdir, **changes):
        watch = StopAfter(None)
        loop = start_run(algorithm, cpdir, watch, **changes)
        finish(loop)
        return Left(cpdir, f"{PREFIX[algorithm]}{loop.plan.settings.epoch}", watch.lines)

    return go


@pytest.fixture
def run_until(start_run):
    """A run that is asked to stop while it works on a micro-batch; returns the checkpoint it saved."""

    def go(algorithm, cpdir, micro_batch, **changes):
        watch = StopAfter(micro_batch)
        watch.loop = start_run(algorithm, cpdir, watch, **changes)
        with pytest.raises(StoppedError) as stopped:
            finish(watch.loop)
        return stopped.value.checkpoint

    return go
