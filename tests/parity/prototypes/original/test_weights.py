from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parity.errors import InputError
from parity.prototypes.original.weights import overwrite, read_verifier, save_initial, split_aliases


class Draft(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2, bias=False)
        self.lm_head = torch.nn.Linear(2, 3, bias=False)


def write(tmp_path: Path, **shapes: tuple[int, ...]) -> Path:
    file = tmp_path / "start.safetensors"
    save_file({f"init.{name}.weight": torch.full(shape, 7.0) for name, shape in shapes.items()}, file)
    return file


def test_a_head_that_is_absent_is_kept(tmp_path: Path) -> None:
    draft = Draft()
    head = draft.lm_head.weight.clone()
    overwrite(draft, write(tmp_path, fc=(2, 2)))
    assert draft.fc.weight.eq(7.0).all()
    assert torch.equal(draft.lm_head.weight, head)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lm_head": (3, 2)}, r"missing \['fc.weight'\]"),
        ({"fc": (2, 2), "gate": (1,)}, r"unknown \['gate.weight'\]"),
        ({"fc": (2, 3)}, r"init.fc.weight: found \(2, 3\), expected \(2, 2\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        overwrite(Draft(), write(tmp_path, **shapes))


def test_an_embedding_stored_elsewhere_is_left_out() -> None:
    known = {"verifier.embed_tokens.weight": torch.ones(2)}
    same_values = {"init.embed_tokens.weight": torch.ones(2), "init.norm.weight": torch.ones(2)}
    kept, aliases = split_aliases(same_values, known)
    assert list(kept) == ["init.norm.weight"]
    assert aliases == {"init.embed_tokens.weight": "verifier.embed_tokens.weight"}
    assert split_aliases({"embed_tokens.weight": torch.ones(2, dtype=torch.bfloat16)}, known)[1] == {}


def test_cases_share_a_starting_point_only_if_it_is_the_same(tmp_path: Path) -> None:
    for case, value in (("one", 1.0), ("two", 1.0), ("three", 3.0)):
        (tmp_path / case).mkdir()
        save_initial(tmp_path / case, {"init.w": torch.tensor([value])}, "initial.safetensors")
    assert load_file(tmp_path / "initial.safetensors")["init.w"].item() == 1.0
    assert not (tmp_path / "two" / "initial.safetensors").exists()
    assert load_file(tmp_path / "three" / "initial.safetensors")["init.w"].item() == 3.0


def test_a_verifier_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.safetensors.index.json: file: found missing"):
        read_verifier(tmp_path)
