"""Two processes on a CPU, over gloo: the numbers of one, checkpoints that open in one, and no hang when one dies."""

import importlib.util
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from safetensors.torch import load_file
from speculators import SpeculatorModel

from ports.errors import InputError
from ports.training.checkpoint import OPTIMIZER, read_state
from tests.ports.training.conftest import PREFIX, Left, metrics
from tests.ports.training.ranks import Gradients, gradients_file, refused_file
from tests.processes import await_end_of, children, family, free_port, wait_for

ZERO_2 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    "DS_ACCELERATOR": "cpu",
}
ON_CPU = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[3])}
FSDP_2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
}
LAUNCHED = {"ddp": {}, "fsdp2": FSDP_2, "zero2": ZERO_2}
"""What ``accelerate launch`` sets for each."""

ALGORITHMS_OF = {"ddp": ["eagle3", "hass"], "fsdp2": ["eagle3", "hass"], "zero2": ["eagle3"]}
"""DeepSpeed cannot clip by value, as HASS does."""

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install deepspeed"
)
PARALLEL = ["ddp", "fsdp2", pytest.param("zero2", marks=needs_deepspeed)]


@pytest.fixture
def torchrun(fork, programs):
    """``torchrun(options, module, words)``: a job on the CPU, whose processes are forks too."""

    def start(options, module, words, **variables):
        line = [*options, "-m", module, *map(str, words)]
        return fork(torch.distributed.run.main, line, PYTHON_EXEC=str(programs / "python"), **ON_CPU, **variables)

    return start


def two_processes():
    return ["--standalone", "--nproc-per-node", "2"]


def finish(*jobs):
    """What they said, once all have ended well."""
    said = [job.ended() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), "\n".join(said)[-3000:]
    return said


@pytest.fixture
def run_ranks(torchrun, tmp_path):
    """``run_ranks(parallel, runs)``: the runs, one after the other, in two processes; see :mod:`ranks`."""

    def go(parallel, runs):
        file = tmp_path / "runs.json"
        file.write_text(json.dumps(runs))
        return finish(torchrun(two_processes(), "tests.ports.training.ranks", [file], **LAUNCHED[parallel]))[0]

    return go


def gap(found, wanted):
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in wanted)


def validated(cpdir):
    return [line for line in metrics(cpdir) if "val_loss" in line]


def unequal_masks(folder):
    """Rows in the loss as unequal as they get between two processes, and a record that is left over; five held out."""
    for index, rows in enumerate((9, 2, 11, 3, 2, 9, 4)):
        file = folder / f"data_{index}.ckpt"
        record = torch.load(folder / f"data_{index % 6}.ckpt", weights_only=True)
        record["loss_mask"] = (torch.arange(len(record["input_ids"])) < rows).long()
        torch.save(record, file)
    shutil.copytree(folder, held(folder), ignore=lambda *_: ["data_1.ckpt", "data_6.ckpt"])


def held(folder):
    return folder.with_name(f"held_{folder.name}")


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes(words, run_ranks, start_run, fixture, tmp_path, parallel):
    """One job for all runs, so that the imports are paid for once; what is told of each stands below."""
    for algorithm in ALGORITHMS_OF[parallel]:
        unequal_masks(fixture / f"data_{algorithm}")
    pairs, options = pairs_of(words, fixture, tmp_path, parallel), options_of(words, tmp_path)
    pairs.append(online_in_bf16(words, fixture, tmp_path))
    straight, resumed, found = resumes_of(words, tmp_path, parallel)
    run_ranks(parallel, pairs + options + straight + resumed)
    they_are_one_with_the_whole_batch(start_run, fixture, tmp_path, parallel)
    if parallel != "zero2":  # whose weights are bfloat16
        one_loss_online_in_bf16(start_run, fixture, tmp_path)
    options_learn_the_same(tmp_path)
    for expected, again, last in found:
        assert Left(expected, last, []).differs_from(Left(again, last, [])) == [], again
        opens_in_one(again / last)
    goes_on_in_one(start_run, tmp_path, tmp_path / "eagle3_straight" / "step_4", parallel)


def pairs_of(words, fixture, folder, parallel):
    common, quiet = {"loss_normalisation": "global", "save_steps": 1, "val_steps": 2}, ("--no-shuffle", "--no-noise")
    lines = {
        name: words(name, folder / f"{name}_pair", *quiet, val_dir=held(fixture / f"data_{name}"), **common)
        for name in ALGORITHMS_OF[parallel]
    }
    gradients = parallel != "zero2"
    return [{"algorithm": algorithm, "words": line, "gradients": gradients} for algorithm, line in lines.items()]


def they_are_one_with_the_whole_batch(start_run, fixture, tmp_path, parallel):
    """Unequal rows on the two: gradients of the first step, curves and the final weights, each to 1e-6."""
    for algorithm in ALGORITHMS_OF[parallel]:
        quiet = {"shuffle": False, "noise": False, "epoch": 0, "save_steps": 1}
        quiet |= {"val_steps": 2, "val_dir": held(fixture / f"data_{algorithm}")}
        for name, size in {"big": {"bs": 2}, "accumulated": {"gradient_accumulation_steps": 2}}.items():
            cpdir = tmp_path / f"{algorithm}_{name}"
            start_run(algorithm, cpdir, Gradients(gradients_file(cpdir, 0)), **quiet, **size).run()
        same_as_one_process(tmp_path, algorithm, first_gradients if parallel != "zero2" else first_moments)


ONLINE = {"online": True, "verifier_dtype": "float32", "mixed_precision": "bf16", "max_steps": 1, "val_steps": 1}


def online_in_bf16(words, fixture, folder):
    switches = ("--no-shuffle", "--no-noise", "--online")
    asked = {**ONLINE, "online": False, "val_dir": held(fixture / "data_eagle3"), "loss_normalisation": "global"}
    return {"algorithm": "eagle3", "words": words("eagle3", folder / "online_pair", *switches, **asked)}


def one_loss_online_in_bf16(start_run, fixture, folder):
    """Every process has the verifier, and what autocast keeps in float32 stays in it."""
    asked = {**ONLINE, "shuffle": False, "noise": False, "bs": 2, "val_dir": held(fixture / "data_eagle3")}
    start_run("eagle3", folder / "online", **asked).run()
    (step, *looks), (whole, *wanted) = metrics(folder / "online_pair"), metrics(folder / "online")
    assert step["train/loss"] == pytest.approx(whole["train/loss"], rel=1e-5)
    assert [look["val_loss"] for look in looks] == [pytest.approx(look["val_loss"], rel=1e-4) for look in wanted]


def first_gradients(cpdir):
    return load_file(gradients_file(cpdir, 0))


def first_moments(cpdir):
    """Adam's after one step: a tenth of the clipped gradients, which DeepSpeed clips and drops in its backward."""
    state = load_file(cpdir / "step_1" / "training_state/optimizer.safetensors")
    return {name: value for name, value in state.items() if name.startswith("exp_avg.")}


def same_as_one_process(folder, algorithm, gradients_of):
    cpdirs = {name: folder / f"{algorithm}_{name}" for name in ("pair", "big", "accumulated")}
    looked_at = {name: load_file(cpdirs[name] / "step_2" / OPTIMIZER) for name in cpdirs}
    assert looked_at["pair"].keys() >= looked_at["big"].keys(), "saved right after a validation"
    grads = {name: gradients_of(cpdir) for name, cpdir in cpdirs.items()}
    measured = {name: gap(grads["pair"], grads[name]) for name in ("big", "accumulated")}
    lines, wanted = ([line for line in metrics(cpdirs[name]) if "train/loss" in line] for name in ("pair", "big"))
    assert len(lines) == len(wanted) == 3
    looks, looked = validated(cpdirs["pair"]), validated(cpdirs["big"])
    assert [look["steps"] for look in looks] == [2, 3]
    for name in ("val_loss", "val_accuracies"):  # a process without a last batch, and padded rows
        assert [look[name] for look in looks] == [pytest.approx(look[name], rel=1e-6) for look in looked]
    losses = [abs(mine["train/loss"] / theirs["train/loss"] - 1) for mine, theirs in zip(lines, wanted)]
    print(f"{algorithm}: gradients differ by {measured} of the tensor's largest, losses by {max(losses)}")
    assert max(measured.values()) < 1e-6, measured
    for mine, theirs in zip(lines, wanted):
        assert mine.keys() == theirs.keys()
        assert all(mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-9) for name in theirs), (mine, theirs)
    last = f"{PREFIX[algorithm]}0"
    final = {name: load_file(cpdir / last / "model.safetensors") for name, cpdir in cpdirs.items()}
    first = load_file(cpdirs["pair"] / "step_1" / "model.safetensors")
    assert not torch.equal(final["pair"]["fc.weight"], first["fc.weight"]), "it trains"
    for name in ("big", "accumulated"):
        worst = max(
            float((final["pair"][key] - value).abs().max())
            for key, value in final[name].items()
            if value.is_floating_point()
        )
        assert worst < 2e-5, "Adam divides round-off by itself where a gradient is nearly zero"


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes_stop_together_and_count_together(words, run_ranks, start_run, fixture, tmp_path, parallel):
    """Both refuse in the same words, and save nothing of it, what only one has seen; the best pass is that of both."""
    data, spoilt, common = fixture / "data_eagle3", fixture / "spoilt", ("--no-shuffle", "--no-noise")
    shutil.copytree(data, spoilt)
    record = torch.load(spoilt / "data_3.ckpt", weights_only=True)
    beyond = torch.empty_like(record["hidden_state"]).uniform_(2e38, 3e38)
    torch.save({**record, "hidden_state": beyond}, spoilt / "data_3.ckpt")
    refused = {
        "idle": ({"bs": 4}, {}, "records: found 6, expected at least batch_size = 4 * 2 processes = 8", set()),
        "loss": (
            {"tmpdir": spoilt},
            {},
            f"{spoilt}/data_3.ckpt: loss: found nan at optimizer step 2, micro-batch 1",
            {"step_1"},
        ),
        "norm": ({}, {"overflow": 1}, f"{data}/data_2.ckpt, {data}/data_3.ckpt: gradient norm: found ", {"step_1"}),
    }
    runs = [
        {
            "algorithm": "eagle3",
            "refused": True,
            "words": words("eagle3", tmp_path / name, *common, save_steps=1, **changes),
            **watch,
        }
        for name, (changes, watch, *_) in refused.items()
    ]
    calm = {"lr": 1e-9, "epoch": 1}
    runs.append({"algorithm": "eagle3", "words": words("eagle3", tmp_path / "best", *common, **calm)})
    assert run_ranks(parallel, runs).count("processes: 2, on cpu") == len(refused)
    for name, (*_, message, left) in refused.items():
        said = {refused_file(tmp_path / name, rank).read_text() for rank in (0, 1)}
        assert [message in each for each in said] == [True], said
        assert {path.parent.name for path in (tmp_path / name).rglob("model.safetensors")} == left
    assert not (tmp_path / "idle").exists()
    start_run("eagle3", tmp_path / "one", shuffle=False, noise=False, **calm).run()
    (pair, one) = (read_state(tmp_path / name / "model1").best[1] for name in ("best", "one"))  # the pass is a tie
    assert pair == pytest.approx(one, rel=1e-6)


STOPS = {"eagle3": ("no", 0, (1, 4)), "hass": ("bf16", 2, (5,))}
"""Precision, loader processes, and the optimizer steps of six in two passes: in either pass."""


def resumes_of(words, tmp_path, parallel):
    """From checkpoints of both passes, with noise and an order of its own in each, to the bit."""
    straight, resumed, found = [], [], []
    for algorithm in ALGORITHMS_OF[parallel]:
        (precision, workers, stops), cpdir = STOPS[algorithm], tmp_path / f"{algorithm}_straight"
        options = {"epoch": 1, "mixed_precision": precision, "num_workers": workers}
        straight.append({"algorithm": algorithm, "words": words(algorithm, cpdir, save_steps=1, **options)})
        for stop in stops:
            again, source = tmp_path / f"{algorithm}_{stop}", cpdir / f"step_{stop}"
            line = words(algorithm, again, ckpt_path=source, **options)
            resumed.append({"algorithm": algorithm, "words": line})
            found.append((cpdir, again, f"{PREFIX[algorithm]}1"))
    return straight, resumed, found


def opens_in_one(checkpoint):
    """A plain directory with the draft, the generators of both processes, and Adam's state of every parameter."""
    draft = SpeculatorModel.from_pretrained(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(draft.state_dict()[name], value)
    for name, value in load_file(checkpoint / OPTIMIZER).items():
        moment, _, parameter = name.partition(".draft.")
        assert moment == "step" or value.shape == weights[parameter].shape
    generators = load_file(checkpoint / "training_state/generators.safetensors")
    assert {name.split(".")[0] for name in generators} == {"0", "1"}
    assert torch.equal(generators["0.start.sampler"], generators["1.start.sampler"])


OPTIONS = ("--packing", "--activation-checkpointing", "--report-data-wait")


def options_of(words, tmp_path):
    common = {"bs": 2, "epoch": 1, "loss_normalisation": "global"}
    lines = {
        name: words("eagle3", tmp_path / name, "--group-by-length", *options, **common)
        for name, options in {"padded": (), "packed": OPTIONS}.items()
    }
    return [{"algorithm": "eagle3", "words": line} for line in lines.values()]


def options_learn_the_same(tmp_path):
    """Grouped batches padded, and the same packed and recomputed: one curve, and the time that was waited for data."""
    packed, padded = (metrics(tmp_path / name) for name in ("packed", "padded"))
    told = [line for line in packed if "pass/data_wait" in line]
    assert [line["pass/padding"] for line in told] == [0, 0]
    learned = [line for line in packed if line not in told]
    assert len(learned) == len(padded) == 2, "one step of two processes in either pass"
    for mine, theirs in zip(learned, padded):
        assert mine.keys() == theirs.keys()
        assert all(mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-9) for name in theirs)


def goes_on_in_one(start_run, folder, checkpoint, parallel):
    """Another number of processes is refused; on request the pass starts anew, where Adam's state is the same kind."""
    with pytest.raises(InputError, match="processes was 2, now 1"):
        start_run("eagle3", folder / "one", ckpt_path=checkpoint, epoch=1)
    asked = {"ckpt_path": checkpoint, "epoch": 1, "resume_anyway": True}
    if parallel == "zero2":
        with pytest.raises(InputError, match=r"optimizer.safetensors: weight.*expected no such tensor"):
            start_run("eagle3", folder / "one", **asked)
        asked = {"ckpt_path": checkpoint, "weights_only": True}
    loop = start_run("eagle3", folder / "one", **asked)
    assert (loop.steps, loop.epoch, loop.totals.batches) == ((4, 1, 0) if parallel != "zero2" else (0, 0, 0))
    next(loop.optimizer_steps())


def test_a_killed_rank_ends_the_job_which_resumes_exactly(torchrun, words, tmp_path):
    """Two "nodes" on loopback run to the end; two processes on one lose a rank, resume, and end at the same bits."""
    algorithm, module, common = "hass", "ports.hass.train", {"epoch": 3, "save_steps": 1}
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "job")
    node = ["--nnodes", "2", "--nproc-per-node", "1", *rendezvous]
    straight = words(algorithm, tmp_path / "straight", **common)
    finish(*(torchrun(node, module, straight) for _ in range(2)))

    cpdir = tmp_path / "killed"
    job = torchrun(two_processes(), module, words(algorithm, cpdir, **common))
    wait_for(cpdir / "step_4" / "training_state" / "manifest.json")  # of the second pass
    os.kill(children(job.pid)[1], signal.SIGKILL)
    said = job.ended()
    assert job.returncode != 0
    assert "SIGKILL" in said or "Signal 9" in said

    (said,) = finish(torchrun(two_processes(), module, words(algorithm, cpdir, ckpt_path="auto", **common)))
    assert f"resuming from {cpdir}" in said
    assert said.count("Epoch [4/3]") == said.count("training on 6 examples total") == 1
    expected, found = (Left(folder, f"{PREFIX[algorithm]}3", []) for folder in (tmp_path / "straight", cpdir))
    assert expected.differs_from(found) == []


def test_a_job_that_is_told_to_stop_saves_before_torchrun_ends_with_1(torchrun, words, tmp_path):
    """Which says of a stop and of a failure the same: that it was a stop stands in what the processes print."""
    line = words("eagle3", tmp_path / "cp", epoch=2000, save_steps=5)
    running = torchrun(two_processes(), "ports.eagle3.train", line)
    wait_for(tmp_path / "cp" / "step_5" / "training_state" / "manifest.json")
    everyone = family(running.pid)
    os.kill(running.pid, signal.SIGTERM)
    said = running.ended()
    saved = re.findall(r"stopped after optimizer step \d+, saved (\S+);", said)
    assert saved == saved[:1] * 2, said
    assert (Path(saved[0]) / "training_state" / "manifest.json").is_file()
    assert running.returncode == 1, said
    await_end_of(everyone, 20)
