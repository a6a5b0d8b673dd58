import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from parity.fixtures import RECORDINGS
from ports.training.alignment import Alignment

CASES = sorted(path.parent.name for path in RECORDINGS.glob("*/meta.json"))


@pytest.mark.parametrize("case", CASES)
def test_the_schedule_is_the_one_recorded(settings, case):
    meta = json.loads((RECORDINGS / case / "meta.json").read_text())
    words = meta["argv"]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    chosen = settings(
        bs=int(flags["--bs"]),
        epoch=int(flags["--epoch"]),
        gradient_accumulation_steps=int(flags.get("--gradient-accumulation-steps", 1)),
    )
    assert chosen.schedule(len(meta["samples_files"])) == (meta["total_steps"], meta["warm_steps"])


def test_the_recordings_are_there():
    assert len(CASES) >= 14


@pytest.mark.parametrize(
    ("files", "epoch", "bs", "accumulation", "expected"),
    [(68000, 40, 4, 1, (697000, 6970)), (7, 4, 2, 1, (17, 0)), (7, 4, 2, 3, (5, 0)), (100, 1, 1, 2, (100, 1))],
)
def test_the_schedule_in_numbers(settings, files, epoch, bs, accumulation, expected):
    assert settings(bs=bs, epoch=epoch, gradient_accumulation_steps=accumulation).schedule(files) == expected


@pytest.mark.parametrize("files", [7, 999, 68001])
@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (3, 2), (8, 4)])
def test_global_processes_follow_the_schedule_of_one_with_the_whole_batch(settings, files, processes, accumulation):
    """They count a step each; one process counts it once."""
    common = {"epoch": 2, "gradient_accumulation_steps": accumulation, "loss_normalisation": "global"}
    total, warmup = settings(bs=2 * processes, **common).schedule(files)
    assert settings(bs=2, **common).schedule(files, processes) == (total * processes, warmup * processes)
    by_rank = settings(bs=2, **{**common, "loss_normalisation": "rank"})
    assert by_rank.schedule(files, processes) == by_rank.schedule(files)


def test_the_defaults_are_the_prototypes(fixture):
    from ports.eagle3.settings import Eagle3Settings

    chosen = Eagle3Settings(basepath="a", configpath="b", tmpdir="c", cpdir="d")
    expected = {"lr": 3e-5, "bs": 4, "gradient_accumulation_steps": 1, "epoch": 40, "forward_num_total": 3, "topk": 10}
    expected |= {"topk_w": 1.0, "data_num": 68000, "debug": False, "ckpt_path": None, "max_len": 8192, "noise": True}
    expected |= {"shuffle": True, "num_workers": 8, "t2d": Path("t2d.npy"), "d2t": Path("d2t.npy")}
    assert {name: getattr(chosen, name) for name in expected} == expected
    assert chosen.ttt_alignment is Alignment.PROTOTYPE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0),
        ("lr", -1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("bs", 0),
        ("epoch", -1),
        ("forward_num_total", 0),
        ("gradient_accumulation_steps", 0),
        ("max_len", 1),
        ("max_steps", 0),
        ("num_workers", -1),
        ("mixed_precision", "fp16"),
        ("log_with", ["csv"]),
        ("ttt_alignment", "own"),
        ("learning_rate", 1.0),
    ],
)
def test_values_out_of_range_and_unknown_names_are_refused(settings, name, value):
    with pytest.raises(ValidationError, match=name):
        settings(**{name: value})


def test_as_json_holds_json_types(settings):
    values = settings(ckpt_path=Path("x")).as_json()
    assert json.loads(json.dumps(values)) == values
    assert values["ttt_alignment"] == "prototype"
