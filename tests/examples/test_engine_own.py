"""What bfloat16 does to log-probabilities is said by a model's own sides; with vLLM: tests/serving/test_engine.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from parity import Options, run_pair
from parity.errors import InputError
from parity.fixtures.architectures import ARCHITECTURES, build_architecture
from parity.pair import module_of

FILE = Path(__file__).resolve().parents[2] / "examples" / "pairs" / "engine_own.py"
CHECKS = Options(checks=["forward", "logprobs"])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The example for a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODEL", str(build_architecture(ARCHITECTURES["llama"], tmp_path_factory.mktemp("own") / "llama")))
        yield module_of(str(FILE))


def test_rounding_is_within_what_rounding_explains(own):
    report = run_pair(own.ROUNDING, CHECKS)
    assert report.passed, report
    rows = {row.run: row for row in report.rows if row.check == "logprobs"}
    assert rows.keys() == {"sdpa-bfloat16", "float32"}
    assert all(0 < row.measured < row.allowed for row in rows.values())


def test_another_eps_is_not_rounding(own):
    def build():
        model = own.EXACT.build()
        model.model.layers[1].input_layernorm.variance_epsilon = 1.0
        return model

    first = run_pair(replace(own.ROUNDING, port=replace(own.EXACT, build=build), sides=()), CHECKS).first
    assert (first.check, first.module) == ("forward", "model.layers.1.input_layernorm")


def test_a_folder_without_a_tokenizer_is_said_in_one_line(own, monkeypatch, tmp_path):
    monkeypatch.setattr(own, "FOLDER", str(tmp_path))
    with pytest.raises(InputError, match=r"tokenizer: found none that transformers opens, expected"):
        run_pair(own.ROUNDING, CHECKS)
