"""The verifier beside the draft: the curve of stored features, without them."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from parity.fixtures import FIXTURE
from ports.training.data.records import list_records
from ports.training.runs import finish
from tests.ports.generate.test_same_curve import CURVE, VERIFIER, Curve, distance

ONLINE = 1e-6
"""The issue's bar: relative difference of any loss, gradient norm or count."""


@pytest.fixture
def curve(start_run, tmp_path):
    """The curve of a run on the recorded samples, shuffled and noisy."""

    def go(algorithm: str, name: str, **changes) -> list[tuple[float, ...]]:
        watch = Curve()
        values = {
            "basepath": str(VERIFIER),
            "configpath": str(FIXTURE / f"draft_{algorithm}.json"),
            "tmpdir": FIXTURE / f"data_{algorithm}",
            "bs": 2,
            "forward_num_total": 3,
        }
        if algorithm == "eagle3":
            values |= {"t2d": FIXTURE / "t2d.npy", "d2t": FIXTURE / "d2t.npy"}
        finish(start_run(algorithm, tmp_path / name, watch, **{**values, **changes}))
        return watch.points

    return go


def without_features(source, target):
    """Copies of records that hold ids and masks alone."""
    target.mkdir()
    for file in list_records(source):
        record = torch.load(file, weights_only=True)
        torch.save({name: record[name] for name in ("input_ids", "loss_mask")}, target / file.name)
    return target


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
def test_online_and_offline_curves_are_the_same(curve, tmp_path, algorithm) -> None:
    offline = curve(algorithm, "offline")
    bare = without_features(FIXTURE / f"data_{algorithm}", tmp_path / "ids")
    online = curve(algorithm, "online", online=True, tmpdir=bare, verifier_dtype="float32")
    print(f"{algorithm}: online and offline differ by {distance(offline, online):.2g}")
    assert len(offline) == len(online) == 16
    assert distance(offline, online) < ONLINE


def test_other_layers_are_another_curve(curve, tmp_path) -> None:
    """The comparison above would notice features of one layer earlier."""
    offline, native = curve("eagle3", "offline"), tmp_path / "native"
    native.mkdir()
    config = json.loads((tmp_path / "offline" / "model1" / "config.json").read_text())
    (native / "config.json").write_text(json.dumps(config | {"eagle_aux_hidden_state_layer_ids": [2, 4, 5]}))
    online = curve("eagle3", "online", online=True, configpath=str(native), verifier_dtype="float32")
    assert distance(offline, online) > 100 * CURVE


def test_an_online_run_resumes_to_the_bit(run_to_the_end, run_until, tmp_path) -> None:
    whole = run_to_the_end("eagle3", tmp_path / "a", online=True)
    checkpoint = run_until("eagle3", tmp_path / "b", 4, online=True)
    resumed = run_to_the_end("eagle3", tmp_path / "b", online=True, ckpt_path=checkpoint)
    assert [name for name in resumed.differs_from(whole) if name != "state"] == []


def test_dialogues_beyond_the_verifiers_positions_are_said(start_run, fixture, tmp_path) -> None:
    config = fixture / "verifier" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 11}))
    with pytest.warns(UserWarning, match="longer than the verifier's 11 positions; --max_len 11 cuts them"):
        start_run("hass", tmp_path / "a", online=True, epoch=0, verifier_dtype="float32").run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_run("hass", tmp_path / "b", online=True, epoch=0, verifier_dtype="float32", max_len=11).run()


def test_a_bad_record_is_skipped_or_ends_the_run(start_run, fixture, tmp_path, refuses) -> None:
    file = fixture / "data_eagle3" / "data_2.ckpt"
    file.write_bytes(b"")
    with refuses(file, "file", "", "a torch file of plain tensors"):
        start_run("eagle3", tmp_path / "a", online=True).run()
    steps = []
    for name, online in (("b", True), ("c", False)):
        start_run("eagle3", tmp_path / name, online=online, epoch=0, on_bad_record="skip").run()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        steps.append([json.loads(line)["step"] for line in lines])
    assert steps[0] == steps[1]
    assert len(steps[0]) >= 4


def test_a_batch_of_bad_records_alone_trains_nothing(start_run, fixture, tmp_path) -> None:
    """It is a step without a row in the loss, and no accident beside others."""
    for file in (fixture / "data_eagle3").iterdir():
        if file.name != "data_0.ckpt":
            file.write_bytes(b"")
    start_run("eagle3", tmp_path / "cp", online=True, epoch=0, on_bad_record="skip").run()
    assert len((tmp_path / "cp" / "metrics.jsonl").read_text().splitlines()) == 1
