"""The verifier beside the draft: the curve of stored features, without them."""

import warnings

import pytest
import torch

from parity.fixtures import FIXTURE
from ports.training.online import FeatureReader
from ports.training.records import list_records
from ports.training.runs import finish
from ports.verifier.loading import load_verifier
from tests.ports.conftest import data_of, edit
from tests.ports.generate.test_same_curve import CURVE, Curve, distance

ONLINE = 1e-6
"""The issue's bar: relative difference of any loss, gradient norm or count."""


@pytest.fixture
def curve(start_run, tmp_path):
    """The curve of a run on the recorded samples, shuffled and noisy."""

    def go(algorithm, name, **changes):
        watch = Curve()
        data = data_of(FIXTURE, algorithm)
        texts = {name: str(data[name]) for name in ("basepath", "configpath")}
        values = {**data, **texts, "bs": 2, "forward_num_total": 3}
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


def test_online_and_offline_curves_are_the_same(curve, tmp_path, algorithm):
    """And those of other layers, of one earlier, would be seen to differ."""
    offline = curve(algorithm, "offline")
    bare = without_features(FIXTURE / f"data_{algorithm}", tmp_path / "ids")
    online = curve(algorithm, "online", online=True, tmpdir=bare, verifier_dtype="float32")
    print(f"{algorithm}: online and offline differ by {distance(offline, online):.2g}")
    assert len(offline) == len(online) == 16
    assert distance(offline, online) < ONLINE
    if algorithm == "eagle3":
        edit(native := tmp_path / "offline" / "model1" / "config.json", eagle_aux_hidden_state_layer_ids=[2, 4, 5])
        other = curve("eagle3", "other", online=True, configpath=str(native), verifier_dtype="float32")
        assert distance(offline, other) > 100 * CURVE


@pytest.mark.parametrize(("algorithm", "noise_stream"), [("eagle3", "drawn"), ("hass", "keyed")])
def test_an_online_run_resumes_to_the_bit_without_the_verifier_for_what_is_seen(
    run_to_the_end, run_until, tmp_path, monkeypatch, algorithm, noise_stream
):
    options = {"online": True, "epoch": 0, "noise_stream": noise_stream}
    whole = run_to_the_end(algorithm, tmp_path / "a", **options)
    checkpoint = run_until(algorithm, tmp_path / "b", 4, **options)
    dialogues, call = [], FeatureReader.__call__
    monkeypatch.setattr(FeatureReader, "__call__", lambda self, ids: dialogues.extend(ids) or call(self, ids))
    resumed = run_to_the_end(algorithm, tmp_path / "b", ckpt_path=checkpoint, **options)
    assert [name for name in resumed.differs_from(whole) if name != "state"] == []
    assert len(dialogues) == 1


def test_dialogues_beyond_the_verifiers_positions_are_said(start_run, fixture, tmp_path):
    edit(fixture / "verifier" / "config.json", max_position_embeddings=11)
    with pytest.warns(UserWarning, match="longer than the verifier's 11 positions; --max-length 11 cuts them"):
        start_run("hass", tmp_path / "a", online=True, epoch=0, verifier_dtype="float32").run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_run("hass", tmp_path / "b", online=True, epoch=0, verifier_dtype="float32", max_len=11).run()


def test_a_verifier_that_cannot_be_loaded_is_refused(tmp_path, refuses):
    with refuses(tmp_path, "weights", "", "a model that transformers loads"):
        load_verifier(str(tmp_path), "float32", "cpu")
