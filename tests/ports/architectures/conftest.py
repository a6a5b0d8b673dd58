"""For each architecture a tiny verifier, records made with it, and trained drafts."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from parity.fixtures.architectures import ARCHITECTURES, STUDIED, Architecture, build_architecture
from parity.fixtures.conversations import SHAREGPT
from ports.generate.__main__ import main as generate
from ports.training.runs import finish
from tests.commands import main_of
from tests.ports.conftest import TRAIN, settings_of, words_of

DRAFT_VOCAB_SIZE, MAX_LENGTH, STEPS = 384, 128, 3
DRAFTS = [(name, "eagle3", layer) for name in STUDIED for layer in ARCHITECTURES[name].drafts]
DRAFTS += [(name, "hass", "llama") for name in STUDIED]


@dataclass(frozen=True)
class Tiny:
    """``folder`` holds verifier/, data_eagle3/, data_hass/, t2d.npy and d2t.npy."""

    architecture: Architecture
    folder: Path

    @property
    def verifier(self):
        return self.folder / "verifier"


def make_records(tiny, algorithm):
    """With the shipped command, from the shipped conversations."""
    flags = {
        "model_path": tiny.verifier,
        "outdir": tiny.folder / f"data_{algorithm}",
        "data_path": SHAREGPT,
        "dataset": "sharegpt",
        "chat_template": tiny.architecture.family,
        "algorithm": algorithm,
        "dtype": "auto",
        "samples": 7,
        "max_length": MAX_LENGTH,
    }
    assert generate([*words_of(flags), "--no-progress"]) == 0


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory):
    """The verifier and records of an architecture, made once."""
    made = {}

    def make(name):
        if name not in made:
            tiny = Tiny(ARCHITECTURES[name], tmp_path_factory.mktemp(name))
            build_architecture(tiny.architecture, tiny.verifier)
            for algorithm in TRAIN:
                make_records(tiny, algorithm)
            flags = {"tmpdir": tiny.folder / "data_eagle3", "out": tiny.folder, "basepath": tiny.verifier}
            flags |= {"draft_vocab_size": DRAFT_VOCAB_SIZE}
            assert main_of("vocabulary")(words_of(flags)) == 0
            made[name] = tiny
        return made[name]

    return make


@pytest.fixture(params=STUDIED)
def tiny(request, tiny_of):
    return tiny_of(request.param)


@pytest.fixture
def own_verifier(tiny, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny.verifier, tmp_path / "verifier"))


@dataclass
class Draft:
    """A draft to be trained, and what it is trained on."""

    tiny: Tiny
    algorithm: str
    layer: str
    folder: Path

    @property
    def config(self):
        """The file with its JSON."""
        size = {"draft_vocab_size": DRAFT_VOCAB_SIZE} if self.algorithm == "eagle3" else {}
        file = self.folder / "draft.json"
        file.write_text(json.dumps(self.tiny.architecture.drafts[self.layer] | size))
        return str(file)

    def settings(self, **changes):
        values = {"configpath": self.config, "cpdir": self.folder / "checkpoints"}
        values |= {"bs": 2, "lr": 3e-3, "epoch": 1, "forward_num_total": STEPS, "noise": False}
        return settings_of(self.tiny.folder, self.algorithm, **{**values, **changes})

    @property
    def trainer(self):
        return TRAIN[self.algorithm][0]

    def build(self, **changes):
        return self.trainer.build(self.settings(**changes))

    def train(self, **changes):
        """The draft after its training, and its last checkpoint."""
        settings, model = self.settings(**changes), self.build(**changes)
        finish(self.trainer.start(settings, model, self.dataset(model, **changes)))
        prefix = "model" if self.algorithm == "eagle3" else "state_"
        return model, settings.cpdir / f"{prefix}{settings.epoch}"

    def dataset(self, model, **changes):
        return self.trainer.build_dataset(self.settings(**changes), model.config)


@pytest.fixture(params=DRAFTS, ids="-".join)
def draft(request, tiny_of, tmp_path):
    """Every draft of every architecture."""
    return Draft(tiny_of(request.param[0]), *request.param[1:], tmp_path)


@pytest.fixture(params=[each for each in DRAFTS if each[1] == "eagle3"], ids="-".join)
def eagle3_draft(request, tiny_of, tmp_path):
    return Draft(tiny_of(request.param[0]), *request.param[1:], tmp_path)


@pytest.fixture
def hass_draft(tiny, tmp_path):
    return Draft(tiny, "hass", "llama", tmp_path)
