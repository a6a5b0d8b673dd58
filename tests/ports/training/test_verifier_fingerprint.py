from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from parity.fixtures.tokenizer import build_tokenizer
from ports.training.verifier import SAMPLE, tokenizer_fingerprint, verifier_fingerprint


@pytest.fixture
def folder(tmp_path):
    def write(name="a", shards=1, **changes):
        torch.manual_seed(0)
        tensors = {f"t{i}": torch.randn(40, 20) for i in range(4)} | changes
        directory = tmp_path / name
        directory.mkdir()
        names = list(tensors)
        for shard in range(shards):
            save_file({name: tensors[name] for name in names[shard::shards]}, directory / f"m{shard}.safetensors")
        return str(directory)

    return write


def test_shards_do_not_matter_and_names_of_files_do_not(folder) -> None:
    assert verifier_fingerprint(folder("a")) == verifier_fingerprint(folder("b", shards=3))


@pytest.mark.parametrize("element", [0, 400, 799])
def test_other_weights_are_another_verifier(folder, element) -> None:
    changed = torch.randn(40, 20, generator=torch.Generator().manual_seed(1))
    spoiled = changed.clone()
    spoiled.view(-1)[element] += 1
    assert verifier_fingerprint(folder("a", t1=changed)) != verifier_fingerprint(folder("b", t1=spoiled))
    assert changed.numel() * 4 > 3 * SAMPLE


@pytest.mark.parametrize(
    "change", [{"t1": torch.zeros(20, 40)}, {"t4": torch.zeros(1)}, {"t1": torch.zeros(40, 20).half()}]
)
def test_other_tensors_are_another_verifier(folder, change) -> None:
    assert verifier_fingerprint(folder("a", t1=torch.zeros(40, 20))) != verifier_fingerprint(folder("b", **change))


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]", b'\x0a\0\0\0\0\0\0\0{"a": {}}   '])
def test_what_is_no_safetensors_is_refused(folder, tmp_path, refuses, content) -> None:
    directory = folder("a")
    (tmp_path / "a" / "m0.safetensors").write_bytes(content)
    with refuses(directory, "weights", "", "whole safetensors"):
        verifier_fingerprint(directory)


def test_a_directory_without_weights_is_refused(tmp_path, refuses) -> None:
    with refuses(tmp_path, "weights", "no *.safetensors", "a verifier's weights"):
        verifier_fingerprint(str(tmp_path))


def test_a_tokenizer_is_known_by_what_it_does(tmp_path) -> None:
    from transformers import AutoTokenizer

    one, other = (AutoTokenizer.from_pretrained(build_tokenizer(tmp_path / name)) for name in "ab")
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    other.chat_template += " "
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
