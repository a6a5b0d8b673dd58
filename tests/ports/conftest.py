"""A tiny verifier with samples, drafts for it, and what every error message must say."""

import json
import os
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from ports.eagle3 import train as eagle3
from ports.errors import InputError
from ports.hass import train as hass
from ports.training.checkpoint import LOCK, DirectoryLock
from ports.training.data import collate
from ports.training.settings import Eagle3Settings, HassSettings
from tests.fixtures.test_verifier import LLAMA3

ROPE = {**LLAMA3, "factor": 4.0, "original_max_position_embeddings": 16}
SPEC = VerifierSpec(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    num_hidden_layers=8,
    intermediate_size=48,
    vocab_size=61,
    rope_scaling=ROPE,
    bos_token_id=1,
    eos_token_id=2,
)
LENGTHS = (9, 5, 12, 7, 3, 10)
DRAFT_VOCAB_SIZE = 23


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "fixture"
    return build_random_fixture(folder, spec=SPEC, lengths=LENGTHS, draft_vocab_size=DRAFT_VOCAB_SIZE)


@pytest.fixture
def fixture(built_once, tmp_path):
    """verifier/, draft_eagle3.json, data_eagle3/, t2d.npy, d2t.npy: a copy that a test may break."""
    return Path(shutil.copytree(built_once, tmp_path / "fixture"))


TRAIN = {"eagle3": (eagle3, Eagle3Settings), "hass": (hass, HassSettings)}


def data_of(fixture, algorithm):
    """What either algorithm is trained on, by flag."""
    maps = {name: fixture / f"{name}.npy" for name in ("t2d", "d2t")} if algorithm == "eagle3" else {}
    configpath, tmpdir = fixture / f"draft_{algorithm}.json", fixture / f"data_{algorithm}"
    return {"basepath": fixture / "verifier", "configpath": configpath, "tmpdir": tmpdir, **maps}


def settings_of(fixture, algorithm, **values):
    """Settings for the fixture, in float32."""
    data = data_of(fixture, algorithm)
    texts = {name: str(data.pop(name)) for name in ("basepath", "configpath")}
    quiet = {"lr": 1e-3, "num_workers": 0, "mixed_precision": "no", "progress": False}
    quiet |= {"records_check": "off"}  # random features
    quiet["overwrite"] = "ckpt_path" not in values
    return TRAIN[algorithm][1](**{**texts, **data, **quiet, **values})


def words_of(values):
    """As a command line; None makes a switch of a flag, False leaves it out."""
    kept = {name: value for name, value in values.items() if value is not False}
    return [f"--{name}" if value is None else f"--{name}={value}" for name, value in kept.items()]


def edit(file, change=lambda content: None, **values):
    """Rewrite a file of JSON: ``change`` is done to its content, and an entry that is an ellipsis goes."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps({name: value for name, value in {**content, **values}.items() if value is not ...}))


def edit_tensors(file, change):
    """Rewrite a file of safetensors: ``change`` is done to its tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def run_app(monkeypatch):
    """Runs a program here that ends itself, or a command; gives its exit code."""
    monkeypatch.setattr("ports.commands.hush_libraries", lambda: None)

    def run(main, *words):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        try:
            return int(main() or 0)
        except SystemExit as ended:
            return int(ended.code or 0)

    return run


@pytest.fixture
def port():
    """Whose settings, flags, drafts and batches the fixtures below make."""
    return "eagle3"


@pytest.fixture
def settings(fixture, tmp_path, port):
    """Two samples a batch, one pass in natural order, no noise."""
    values = {"cpdir": tmp_path / "checkpoints", "bs": 2, "epoch": 0, "noise": False, "shuffle": False}
    return lambda **changes: settings_of(fixture, port, **{**values, **changes})


@pytest.fixture
def flags(fixture, tmp_path, port):
    """The same as a command line, shuffled and with noise."""
    values = {**data_of(fixture, port), "cpdir": tmp_path / "checkpoints", "bs": 2, "num_workers": 0, "epoch": 0}
    values |= {"records_check": "off"}

    return lambda **changes: words_of({**values, "no-progress": None, **changes})


@pytest.fixture
def lively_draft(settings, port):
    """A draft whose weights are far from their initial state, so that every term shows in its logits."""
    return lambda seed=0, **changes: enliven(TRAIN[port][0].build(settings(**changes)), seed)


@torch.no_grad()
def enliven(draft, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(draft.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1
            parameter.copy_(1 + 0.3 * noise if is_norm else noise / parameter.shape[1] ** 0.5)
    return draft


@pytest.fixture
def batch_of(settings, port):
    """The given samples of the fixture, padded to a batch."""

    def make(*indices, **changes):
        chosen, train = settings(**changes), TRAIN[port][0]
        dataset = train.build_dataset(chosen, train.build(chosen).config)
        return collate([dataset[index] for index in indices])

    return make


@pytest.fixture
def refuses():
    """``with refuses(file, field, found, expected):`` the block must raise an InputError that names all four."""

    @contextmanager
    def expect(file, field, found, expected):
        with pytest.raises(InputError) as caught:
            yield caught
        error = caught.value
        assert str(file) in error.file, error
        assert f": {error.field}".endswith(f": {field}"), error
        assert found in str(error.found), error
        assert expected in str(error).partition(", expected ")[2], error

    return expect


@pytest.fixture(autouse=True)
def reset_accelerator():
    """Accelerate keeps its state in the process and in the environment; call this between two runs in one test."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    before = dict(os.environ)
    yield reset
    reset()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def hold(fork):
    """``hold(directory, name)``: a process that holds the lock on it, and has a child that does not."""

    def start(directory, name=LOCK):
        holder = fork(_hold, directory, name)
        while holder.returncode is None and "held" not in holder.said:
            time.sleep(0.01)
        return holder

    return start


def _hold(directory, name):
    lock = DirectoryLock(directory, name=name)
    if os.fork() == 0:
        os.setsid()
        time.sleep(20)
    else:
        print("held", lock.file, flush=True)
        time.sleep(600)  # until it is killed


@pytest.fixture(params=TRAIN)
def algorithm(request):
    """Either of them."""
    return request.param
