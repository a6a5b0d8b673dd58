"""The command, and the page of the shipped recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ports.estimate.__main__ import main
from ports.estimate.recipe import EstimateSettings, estimate
from ports.estimate.training import TrainingMemory
from ports.files import gigabytes

EXAMPLE = Path(__file__).parents[3] / "examples" / "llama_3_1_8b"


@pytest.fixture
def arguments(fixture):
    return {"model_path": str(fixture / "verifier"), "configpath": str(fixture / "draft_eagle3.json")}


def test_the_verifier_is_counted_without_its_head(fixture, arguments) -> None:
    tensors = {}
    for file in (fixture / "verifier").glob("*.safetensors"):
        tensors |= load_file(file)
    size = sum(value.numel() * value.element_size() for name, value in tensors.items() if name != "lm_head.weight")
    assert estimate(EstimateSettings(**arguments)).verifier == size


def test_the_command_prints_every_part(arguments, capsys) -> None:
    words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    assert main([*words, "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    for part in ("on disk", "hidden states", "Adam", "frozen", "DDP buckets", "activations", "target", "--online"):
        assert part in said


def test_a_verifier_without_a_config_is_refused(arguments, tmp_path, capsys) -> None:
    assert main(["--model_path", str(tmp_path), "--configpath", arguments["configpath"]]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_the_page_of_the_recipe_is_what_is_computed_now(monkeypatch) -> None:
    """All columns but the measured activations, which take a minute: those may be anything positive."""
    spec = importlib.util.spec_from_file_location("example", EXAMPLE / "estimate.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    nothing = TrainingMemory(0, 0, 0, 0, 0)
    monkeypatch.setattr("ports.estimate.recipe.training_memory", lambda *arguments: nothing)
    page = (EXAMPLE / "README.md").read_text()
    for algorithm, gpus in example.RECIPES:
        found = estimate(example.settings_of(algorithm, gpus))
        cells = f"| {gigabytes(found.records)} | {gigabytes(found.verifier + found.states)} | "
        line = next(line for line in page.splitlines() if line.startswith(f"| {algorithm}, {gpus} GPU"))
        assert cells in line, "run python examples/llama_3_1_8b/estimate.py"
        training, online = (float(cell.split(" GB")[0]) for cell in line.split("|")[4:6])
        assert training > 0
        assert online - training == pytest.approx(found.verifier / 1e9, abs=0.11)
