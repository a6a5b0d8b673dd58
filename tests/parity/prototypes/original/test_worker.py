"""The toy prototype goes through the whole machinery: child process, stand-ins, recorder, files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.case import read_case
from parity.prototypes.original.child import record_original
from parity.prototypes.original.worker import overwrite
from parity.prototypes.recorded import load_recorded
from tests.parity.prototypes.original.conftest import H


def read_meta(folder):
    return json.loads((folder / "meta.json").read_text())


def test_a_recording_of_the_toy_is_a_case(toy, toy_case, tmp_path):
    case = toy_case(accumulation=2, noise=True, shuffle=True)
    folder = record_original(case, toy, tmp_path / "out")
    meta, found = read_meta(folder), read_case(folder)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    trace = load_recorded(found)
    assert trace.prints == ["toy sees 17 files", "toy pass 0"]
    assert "FIXTURE/verifier" in meta["argv"]
    assert meta["train_config"] == {"data_noise": True, "num_workers": 0, "datapath": "FIXTURE/data_eagle3"}
    assert meta["samples_files"] == [f"data_{number}.ckpt" for number in range(17)]
    assert meta["saved"] == [{"file": "model0.safetensors", "zip_pickle": True}]
    assert (found.accumulation, found.noise, found.shuffle, found.seed) == (2, True, True, 0)
    assert sorted(found.order) != list(found.order)
    assert len(load_file(found.uniforms)) == len(found.order) == 16
    assert [point.stepped for point in trace.curve] == [False, True] * 4
    assert all(len(point.step_losses) == 3 and point.top == (1, 2, 3) for point in trace.curve)
    assert [point.lr_used for point in trace.curve[:3]] == pytest.approx([1e-3, 1e-3, 5e-4])
    assert trace.micro_batches() == [0, 1]
    assert {name for name in trace.tensors if ".grad." in name} == {
        f"mb1.grad.{name}.weight" for name in ("fc", "mix", "lm_head")
    }
    assert trace.tensors["mb1.step2.logits"].shape == (2, 8, 96)
    assert torch.equal(trace.tensors["init.mix.weight"], torch.eye(H))
    assert trace.group("after.").keys() == trace.group("final.").keys() == trace.group("init.").keys()
    assert not torch.equal(trace.tensors["after.mix.weight"], trace.tensors["final.mix.weight"])


def test_a_recording_to_be_thrown_away_links_its_fixture(toy, toy_case, tmp_path):
    folder = record_original(toy_case(), toy, tmp_path / "out", link_fixture=True, max_optimizer_steps=1)
    assert (folder / "fixture").is_symlink()
    assert (folder / "fixture" / "verifier").is_dir()


def test_only_timings_and_an_early_end(toy, toy_case, tmp_path, monkeypatch):
    """By relative paths, though the child works elsewhere."""
    monkeypatch.chdir(tmp_path)
    case = toy_case()
    case = replace(case, initial=case.initial.relative_to(tmp_path))
    folder = record_original(case, Path(toy.name), Path("out"), record=False, max_optimizer_steps=2)
    meta = read_meta(folder)
    assert [path.name for path in folder.iterdir()] == ["meta.json"]
    assert len(meta["step_seconds"]) == len(meta["step_cpu_seconds"]) == 2
    assert meta["first_step_flops"] > 0


def test_another_model_in_its_place(toy, toy_case, tmp_path, monkeypatch):
    """The seed makes both models see the same samples, whatever their construction drew."""
    monkeypatch.setenv("PYTHONPATH", str(toy))
    case = toy_case(shuffle=True)
    metas, losses = [], []
    for redirect in (None, "stand_in"):
        out = tmp_path / f"out_{redirect}"
        folder = record_original(case, toy, out, redirect=redirect, max_optimizer_steps=1)
        metas.append(read_meta(folder))
        losses.append(json.loads((folder / "trajectory.jsonl").read_text().splitlines()[0])["loss"])
    one, two = (meta["sample_index_order"] for meta in metas)
    assert one == two != sorted(one)
    assert losses[0] != losses[1]
    still = read_meta(record_original(toy_case("still"), toy, tmp_path / "still", max_optimizer_steps=1))
    assert still["sample_index_order"] == sorted(still["sample_index_order"])
    assert still["train_config"]["data_noise"] is False


class Draft(torch.nn.Module):
    """A layer, and a head that a file of weights may lack."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2, bias=False)
        self.lm_head = torch.nn.Linear(2, 3, bias=False, dtype=dtype)


@pytest.mark.parametrize(
    ("shapes", "dtype", "message"),
    [
        ({"fc": (2, 2)}, torch.float32, None),
        ({"lm_head": (3, 2)}, torch.float32, r"init\.fc\.weight: found none, expected \(2, 2\)"),
        ({"fc": (2, 2), "gate": (1,)}, torch.float32, r"init\.gate\.weight: found \(1,\), expected none"),
        ({"fc": (2, 3)}, torch.float32, r"init\.fc\.weight: found \(2, 3\), expected \(2, 2\)"),
        ({"fc": (2, 2)}, torch.bfloat16, r"lm_head\.weight: found torch\.bfloat16, expected torch\.float32"),
    ],
)
def test_initial_weights_fit_or_are_refused(shapes, dtype, message, tmp_path, case):
    draft, file = Draft(dtype), tmp_path / "start.safetensors"
    head = draft.lm_head.weight.clone()
    save_file({f"init.{name}.weight": torch.full(shape, 7.0) for name, shape in shapes.items()}, file)
    if message is None:
        overwrite(draft, replace(case, initial=file))
        assert draft.fc.weight.eq(7.0).all()
        assert torch.equal(draft.lm_head.weight, head)
    else:
        with pytest.raises(InputError, match=message):
            overwrite(draft, replace(case, initial=file))
