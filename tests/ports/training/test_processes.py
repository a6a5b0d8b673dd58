"""Two processes on a CPU, over gloo: the numbers of one, checkpoints that open in one, and no hang when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel

from ports.errors import InputError
from ports.training.observer import Observer
from tests.ports.training.conftest import Left

ROOT = Path(__file__).parents[3]

DRIVER = """
import os, sys
from accelerate.utils import set_seed
from ports.eagle3 import train as eagle3
from ports.hass import train as hass
from ports.eagle3.settings import Eagle3Settings
from ports.hass.settings import HassSettings
from ports.training.command_line import parse
from tests.ports.training.test_processes import Gradients

train, settings_class = {"eagle3": (eagle3, Eagle3Settings), "hass": (hass, HassSettings)}[sys.argv[1]]
settings = parse(settings_class, sys.argv[2:])
file = settings.cpdir.parent / f"{settings.cpdir.name}_grads_{os.environ['RANK']}.safetensors"
set_seed(settings.seed)
draft = train.build(settings)
train.run(settings, draft, train.build_dataset(settings, draft.config), observer=Gradients(file))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def start(*words, launcher=()):
    command = [sys.executable, *launcher, *words]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, stderr) in zip(processes, outputs):
        assert process.returncode == 0, stderr[-3000:]
    return [stdout for stdout, _ in outputs]


def torchrun(port, *options):
    return ("-m", "torch.distributed.run", *options, "--master_port", port)


def two_processes():
    return torchrun(free_port(), "--nproc_per_node", "2")


class Gradients(Observer):
    """Writes the gradients of the first optimizer step."""

    def __init__(self, file):
        self.file = file

    def gradients(self, micro_batch, objective):
        named = objective.draft.named_parameters()
        self.kept = {name: value.grad.clone() for name, value in named if value.grad is not None}

    def stepped(self, record, objective):
        if record.stepped and not self.file.exists():
            save_file(self.kept, self.file)


def curve(cpdir):
    return [json.loads(line) for line in (cpdir / "metrics.jsonl").read_text().splitlines()]


def gap(found, wanted):
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_two_processes_are_one_with_the_whole_batch(words, start_run, fixture, tmp_path, algorithm):
    """Unequal rows on the two: gradients of the first step, the curve and the final weights, each to 1e-6."""
    driver, quiet = tmp_path / "driver.py", ("--no-shuffle", "--no-noise")
    driver.write_text(DRIVER)
    for index, rows in enumerate((9, 2, 11, 3, 2, 9)):  # masks as unequal as they get
        file = fixture / f"data_{algorithm}" / f"data_{index}.ckpt"
        record = torch.load(file, weights_only=True)
        record["loss_mask"] = (torch.arange(len(record["input_ids"])) < rows).long()
        torch.save(record, file)
    options = {"loss_normalisation": "global"}
    pair = start(driver, algorithm, *words(algorithm, tmp_path / "pair", *quiet, **options), launcher=two_processes())
    quiet_here = {"shuffle": False, "noise": False, "epoch": 0}
    for name, size in {"big": {"bs": 2}, "accumulated": {"gradient_accumulation_steps": 2}}.items():
        watch = Gradients(tmp_path / f"{name}_grads_0.safetensors")
        start_run(algorithm, tmp_path / name, watch, **quiet_here, **size).run()
    finish(pair)
    grads = {name: load_file(tmp_path / f"{name}_grads_0.safetensors") for name in ("pair", "big", "accumulated")}
    measured = {name: gap(grads["pair"], grads[name]) for name in ("big", "accumulated")}
    assert max(measured.values()) < 1e-6, measured
    lines, wanted = curve(tmp_path / "pair"), curve(tmp_path / "big")
    assert len(lines) == len(wanted) == 3
    for mine, theirs in zip(lines, wanted):
        assert mine.keys() == theirs.keys()
        assert all(mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9) for name in theirs), (mine, theirs)
    folder = {"eagle3": "model0", "hass": "state_0"}[algorithm]
    final = {name: load_file(tmp_path / name / folder / "model.safetensors") for name in grads}
    for name in ("big", "accumulated"):
        worst = max(
            float((final["pair"][key] - value).abs().max())
            for key, value in final[name].items()
            if value.is_floating_point()
        )
        assert worst < 2e-5, "Adam divides round-off by itself where a gradient is nearly zero"


def workers_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def test_a_killed_rank_ends_the_job_which_resumes_exactly(words, start_run, tmp_path):
    """Two "nodes" on loopback run to the end; two processes on one lose a rank, resume, and end at the same bits."""
    common = {"epoch": 3, "save_steps": 1}
    port = free_port()
    rendezvous = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "job")
    node = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *rendezvous)
    module = ("-m", "ports.eagle3.train")
    straight = words("eagle3", tmp_path / "straight", **common)
    finish(*(start(*module, *straight, launcher=node) for _ in range(2)))

    cpdir = tmp_path / "killed"
    job = start(*module, *words("eagle3", cpdir, **common), launcher=two_processes())
    end = time.monotonic() + 120
    while not (cpdir / "step_2" / "training_state").is_dir() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(workers_of(job.pid)[1], signal.SIGKILL)
    _, stderr = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "SIGKILL" in stderr or "Signal 9" in stderr

    again = start(*module, *words("eagle3", cpdir, ckpt_path="auto", **common), launcher=two_processes())
    (said,) = finish(again)
    assert f"resuming from {cpdir}" in said
    expected, found = (Left(folder, "model3", []) for folder in (tmp_path / "straight", cpdir))
    assert expected.differs_from(found) == []
    assert {name.split(".")[0] for name in load_file(cpdir / "model3/training_state/generators.safetensors")} == {
        "0",
        "1",
    }

    draft = SpeculatorModel.from_pretrained(cpdir / "model3")
    assert all(bool(value.isfinite().all()) for value in draft.state_dict().values() if value.is_floating_point())
    with pytest.raises(InputError, match="processes was 2, now 1"):
        start_run("eagle3", tmp_path / "one", ckpt_path=cpdir / "step_4", epoch=3)
    loop = start_run("eagle3", tmp_path / "one", ckpt_path=cpdir / "step_4", epoch=3, resume_anyway=True)
    assert (loop.steps, loop.epoch, loop.totals.batches) == (4, 1, 0)
