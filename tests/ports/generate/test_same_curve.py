"""Records that the generator makes from recorded ids train as the recorded samples of the same verifier do."""

import json
from dataclasses import fields

import torch
from accelerate.utils import set_seed

from parity.fixtures import FIXTURE
from ports.generate.records import Manifest, Row, geometry_of, record_file
from ports.generate.run import GenerationSettings, Prepared, write
from ports.training.observer import Observer
from ports.training.records import GENERATION, list_records, read_record
from ports.training.runs import finish
from ports.verifier.fingerprint import verifier_fingerprint
from tests.ports.conftest import TRAIN, settings_of

VERIFIER = FIXTURE / "verifier"
WIDTHS = {"eagle3": {"hidden_state": 192, "target": 64}, "hass": {"hidden_state": 64}}
VOCAB_SIZE = 320
CURVE = 3e-6
"""Measured 4e-7: a batch sums in another order than a dialogue alone, and Adam's first steps amplify it."""


class Curve(Observer):
    """Losses of every TTT step, gradient norms and hits, micro-batch by micro-batch."""

    def __init__(self):
        self.points = []

    def stepped(self, record, objective):
        self.points.append((*record.step_losses, record.grad_norm, float(record.correct)))


def samples_of(algorithm):
    files = list_records(FIXTURE / f"data_{algorithm}")
    return [read_record(file, WIDTHS[algorithm], VOCAB_SIZE) for file in files]


def write_again(algorithm, folder):
    """The recorded ids and masks through our generator, in batches of several."""
    settings = GenerationSettings(
        model_path=str(VERIFIER), outdir=folder, algorithm=algorithm, batch_tokens=200, progress=False
    )
    shape = geometry_of(algorithm, str(VERIFIER), "prototype", "float32")
    samples = enumerate(samples_of(algorithm))
    rows = [Row(number, sample["input_ids"].tolist(), sample["loss_mask"].tolist()) for number, sample in samples]
    told = {field.name: "" for field in fields(Manifest)}
    told |= {"algorithm": algorithm, "verifier": verifier_fingerprint(str(VERIFIER)), "dtype": shape.dtype}
    manifest = Manifest(**told | {"feature_layers": shape.layers or []})
    places = [(record_file(folder / "0", row.number), row) for row in rows]
    write(Prepared(settings, manifest, shape, places, [], ""), 1)


def curve_of(algorithm, data, cpdir, reset_accelerator):
    reset_accelerator()
    train, curve = TRAIN[algorithm][0], Curve()
    settings = settings_of(FIXTURE, algorithm, tmpdir=data, cpdir=cpdir, bs=2, epoch=1)
    set_seed(0)
    draft = train.build(settings)
    finish(train.start(settings, draft, train.build_dataset(settings, draft.config), None, curve))
    return curve.points


def distance(a, b):
    """Largest difference of any number of two curves, relative to it where it is above 1."""
    one, other = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return float(((one - other).abs() / one.abs().clamp(min=1)).max())


def test_generated_records_train_to_the_recorded_samples_curve(algorithm, tmp_path, reset_accelerator):
    """Noise and shuffling on: the same draws on both sides."""
    write_again(algorithm, tmp_path / "generated")
    made = json.dumps({"processes": [len(list_records(tmp_path / "generated"))]})
    (tmp_path / "generated" / GENERATION).write_text(made)
    recorded = curve_of(algorithm, FIXTURE / f"data_{algorithm}", tmp_path / "a", reset_accelerator)
    generated = curve_of(algorithm, tmp_path / "generated", tmp_path / "b", reset_accelerator)
    assert [file.read_text() for file in (tmp_path / "b").glob(f"*/{GENERATION}")] == [made] * 2
    assert not list((tmp_path / "a").glob(f"*/{GENERATION}"))
    assert len(recorded) == len(generated) == 16
    print(f"{algorithm}: largest difference of the curves {distance(recorded, generated):.2g}")
    assert distance(recorded, generated) < CURVE
