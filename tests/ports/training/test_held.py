"""Records held against their verifier before a run: right ones in every precision, and wrong ones."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ports.training.online import FeatureReader
from ports.training.records import list_records
from ports.verifier.loading import load_verifier
from ports.verifier.logits import VerifierHead
from ports.verifier.states import Stored, check_states, distances
from tests.ports.conftest import TRAIN
from tests.ports.training.conftest import words_of

LAYERS = [3, 5, 6]
HALVES = (torch.float16, torch.bfloat16, torch.float32)


def computed(verifier, ids, dtype=torch.float32, together=False):
    """By field and dialogue, in ``dtype``, one at a time or as one padded batch."""
    read = FeatureReader(load_verifier(str(verifier), str(dtype).removeprefix("torch."), "cpu"), LAYERS)
    return read(ids) if together else [read([each])[0] for each in ids]


def as_algorithm(record, algorithm):
    return record if algorithm == "eagle3" else {**record, "hidden_state": record["target"]}


@pytest.fixture(scope="module")
def genuine_once(built_once, tmp_path_factory):
    """The tiny fixture with the states that its verifier computes."""
    folder = shutil.copytree(built_once, tmp_path_factory.mktemp("genuine") / "fixture")
    for algorithm in TRAIN:
        files = list_records(folder / f"data_{algorithm}")
        records = [torch.load(file, weights_only=True) for file in files]
        for file, record, own in zip(files, records, computed(folder / "verifier", [r["input_ids"] for r in records])):
            fields = as_algorithm(own, algorithm)
            torch.save({name: fields.get(name, value) for name, value in record.items()}, file)
    return folder


@pytest.fixture
def genuine(genuine_once, tmp_path):
    return shutil.copytree(genuine_once, tmp_path / "genuine")


def rolled(value, *_):
    return value.roll(1, 0)


def half_zero(value, *_):
    return torch.where(torch.arange(len(value))[:, None] < len(value) // 2, value, torch.zeros_like(value))


def of_others(value, verifier, ids, algorithm):
    """What the verifier says of other ids: of another record, or of another template's text."""
    others = computed(verifier, [(ids * 7 + 3) % 61])[0]
    return others["hidden_state" if value.shape[1] > 32 or algorithm == "hass" else "target"][:, : value.shape[1]]


def of_layers(*layers):
    def take(value, verifier, ids, algorithm):
        model = load_verifier(str(verifier), "float32", "cpu")
        with torch.no_grad():
            states = model(input_ids=ids[None], output_hidden_states=True).hidden_states
        return torch.cat([states[layer][0] for layer in (layers if value.shape[1] > 32 else layers[-1:])], dim=-1)

    return take


def before_the_norm(value, verifier, ids, algorithm):
    model, kept = load_verifier(str(verifier), "float32", "cpu"), []
    model.norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0][0]))
    with torch.no_grad():
        model(input_ids=ids[None])
    return kept[0]


def of_a_longer_header(ids, *_):
    return torch.cat([ids[:1], ids[:-1]])


LAST, IDS = "last", "ids"
DAMAGES = {
    "all zero": (None, lambda value, *_: value * 0),
    "half of a record zero": (None, half_zero),
    "targets zero": (LAST, lambda value, *_: value * 0),
    "a row repeated": (None, lambda value, *_: value[:1].repeat(len(value), 1)),
    "rolled by one": (None, rolled),
    "targets rolled by one": (LAST, rolled),
    "another record's": (None, of_others),
    "another template's ids": (IDS, of_a_longer_header),
    "another layer's": (None, of_layers(3, 4, 6)),
    "layers one off": (None, of_layers(2, 4, 5)),
    "random": (None, lambda value, *_: torch.randn(value.shape, generator=torch.Generator().manual_seed(0))),
    "constant": (None, lambda value, *_: torch.full_like(value, 0.5)),
    "times 1e4": (None, lambda value, *_: value * 1e4),
    "targets times 1.1": (LAST, lambda value, *_: value * 1.1),
    "NaN": (None, lambda value, *_: value * torch.nan),
    "the last layer before its norm": (LAST, before_the_norm),
}


OF_HASS = ("rolled by one", "another template's ids", "another layer's", "the last layer before its norm")
"""Whose records have the last state alone."""


@pytest.mark.parametrize(
    ("algorithm", "damage"), [*(("eagle3", damage) for damage in DAMAGES), *(("hass", damage) for damage in OF_HASS)]
)
def test_damaged_records_end_a_run_before_its_first_step(genuine, algorithm, damage, tmp_path, capsys):
    field, change = DAMAGES[damage]
    where = "target" if field is LAST and algorithm == "eagle3" else "hidden_state"
    changed = "input_ids" if field is IDS else where
    for file in list_records(genuine / f"data_{algorithm}"):
        record = torch.load(file, weights_only=True)
        record[changed] = change(record[changed], genuine / "verifier", record["input_ids"], algorithm)
        torch.save(record, file)
    assert TRAIN[algorithm][0].main(words_of(genuine, algorithm, tmp_path / "cp", records_check="full")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f".ckpt: {where}: found " in line
    assert not (tmp_path / "cp").exists() or not any((tmp_path / "cp").iterdir())


def test_right_records_train_and_a_check_that_is_off_is_said(genuine, algorithm, tmp_path, capsys):
    for check, said in (("full", "6 records held against the verifier: at most "), ("off", "NOT held against")):
        line = words_of(genuine, algorithm, tmp_path / check, records_check=check, bs=3)
        assert TRAIN[algorithm][0].main(line) == 0
        assert said in capsys.readouterr().err
        assert f'"records_check": "{check}"' in (tmp_path / check / "settings.json").read_text()


def test_records_to_validate_on_are_held_too(genuine, tmp_path, capsys):
    """Right ones are counted on a line of their own, wrong ones are named."""
    others = Path(shutil.copytree(genuine / "data_hass", tmp_path / "val"))
    line = words_of(genuine, "hass", tmp_path / "cp", records_check="full", val_dir=others)
    assert TRAIN["hass"][0].main(line) == 0
    assert capsys.readouterr().err.count("6 records held against the verifier: at most ") == 2
    wrong = list_records(others)[-1]
    record = torch.load(wrong, weights_only=True)
    torch.save({**record, "hidden_state": record["hidden_state"].roll(1, 0)}, wrong)
    assert TRAIN["hass"][0].main([*line, "--overwrite"]) == 2
    assert f"error: {wrong}: hidden_state: found " in capsys.readouterr().err


@pytest.mark.parametrize(("room", "said"), [(1e9, "held against the verifier: at most"), (1e5, "NOT held against")])
def test_a_verifier_without_room_is_asked_by_its_head_alone(genuine_once, monkeypatch, room, said):
    """Its weights take 0.2 MB; six short records are too few for the head to tell."""
    monkeypatch.setattr("ports.verifier.states.psutil.virtual_memory", lambda: SimpleNamespace(available=room))
    file = list_records(genuine_once / "data_hass")[0]
    stored = Stored(file, torch.load(file, weights_only=True))
    assert said in check_states(str(genuine_once / "verifier"), [stored])


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize("made", HALVES)
def test_right_records_hold_whatever_they_were_made_and_kept_in(genuine_once, stored, made):
    """In a padded batch, in one precision, and kept in another."""
    records = [torch.load(file, weights_only=True) for file in list_records(genuine_once / "data_eagle3")]
    verifier = genuine_once / "verifier"
    own = computed(verifier, [record["input_ids"] for record in records], made, together=True)
    kept = [
        {**record, **{name: value.to(stored) for name, value in each.items()}} for record, each in zip(records, own)
    ]
    for each in distances(str(verifier), [Stored("a", record, LAYERS) for record in kept]):
        assert each.holds, each


def test_the_head_alone_tells_states_from_others(genuine_once, refuses):
    """On texts whose next token the last state foresees, as it does of a verifier's own answers."""
    verifier, head = str(genuine_once / "verifier"), VerifierHead.load(str(genuine_once / "verifier")).weight
    ids = torch.randint(61, (200,), generator=torch.Generator().manual_seed(0))
    foreseen = head[ids.roll(-1)] * 2
    record = {"input_ids": ids, "loss_mask": torch.ones(200), "hidden_state": foreseen}
    said = check_states(verifier, [Stored(genuine_once / "a", record)], head_alone=True)
    assert "records held against the verifier's head alone: " in said
    for wrong in (foreseen.roll(1, 0), foreseen.flip(0), foreseen * 0, torch.randn(200, 32) * 1e4):
        with refuses(genuine_once, "target", "nats a token of the answers from the stored last states", "nat less"):
            check_states(verifier, [Stored(genuine_once / "a", {**record, "hidden_state": wrong})], head_alone=True)
    few = {name: value[:20] for name, value in record.items()}
    assert "NOT held" in check_states(verifier, [Stored(genuine_once / "a", few)], head_alone=True)
