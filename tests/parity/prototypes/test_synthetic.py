"""Cases nobody recorded, in sizes unlike the recordings': reference and port train on them and agree."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parity.checks import run_checks
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.prototypes.case import Case, read_case
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.synthetic import initial_weights, plain_order, sample_order, write_case
from parity.run import CaseRun, find_pair
from parity.side import TraceSide
from parity.verdict import Row

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 3.0}
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_hidden_layers": 7,
    "intermediate_size": 38,
    "vocab_size": 71,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Shape:
    """An odd size: of the verifier, of the samples, of the run."""

    name: str
    spec: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (9, 5, 14, 7, 3, 11, 6)
    draft_vocab_size: int = 29


SHAPES = (
    Shape("k1 with wide heads", {"head_dim": 14}, {"k": 1}),
    Shape("k2 with narrow heads and linear rope", {"head_dim": 2, "rope_scaling": LINEAR}, {"k": 2, "bs": 3}),
    Shape("k4 with llama3 rope", {"rope_scaling": LLAMA3, "rope_theta": 500.0}, {"k": 4, "bs": 3}),
    Shape("k5 over four tokens", {"head_dim": 10}, {"k": 5, "bs": 1}, lengths=(4, 6, 5, 4)),
    Shape("bfloat16 records", {"dtype": "bfloat16"}, {"k": 3, "bs": 2}),
    Shape("float16 records with noise", {"dtype": "float16"}, {"k": 3, "bs": 3, "noise": True, "shuffle": True}),
    Shape(
        "as many key heads as heads, every token drafted",
        {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5, "intermediate_size": 17},
        {"k": 4, "bs": 7, "epoch": 2},
        draft_vocab_size=71,
    ),
    Shape("tied embeddings and a large eps", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}, {"k": 2, "bs": 3}),
)


def make(shape: Shape, folder: Path, **changes: Any) -> Case:
    fixture = build_random_fixture(
        folder / "fixture",
        spec=VerifierSpec(**{**SMALL, **shape.spec}),
        lengths=shape.lengths,
        draft_vocab_size=shape.draft_vocab_size,
    )
    return write_case(folder, fixture, **{**shape.run, **changes})


def against_the_reference(case: Case, dtype: torch.dtype = torch.float32) -> list[Row]:
    """The port on the case, with the reference in the recording's place.

    Gradients are the float64 reference's: over a few tokens terms cancel, and the reference's own float32 ones are up
    to 1.7e-6 of the largest entry off, where the port's are 0.5e-6.
    """
    expected = trace_reference(case, dtype)
    if dtype is torch.float32:
        exact = trace_reference(case, torch.float64).tensors
        expected.tensors.update({name: exact[name].float() for name in expected.tensors if ".grad." in name})
    pair = find_pair(case.algorithm)
    pair = replace(pair, original=TraceSide(replace(expected, trained=(), frozen=())))
    with ExitStack() as stack:
        return run_checks(CaseRun(pair, case, stack).evidence(pair.port), pair.every_check)


def complaints(rows: list[Row]) -> str:
    return "\n".join(
        f"{row.check} {row.tensor}: {row.measured} {row.detail}" for row in rows if row.compared and not row.passed
    )


@pytest.mark.parametrize("algorithm", ["eagle3", "hass"])
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name.replace(" ", "-") for shape in SHAPES])
def test_port_and_reference_agree_on_sizes_nobody_recorded(shape: Shape, algorithm: str, tmp_path: Path) -> None:
    case = make(shape, tmp_path, algorithm=algorithm)
    rows = against_the_reference(case)
    assert not complaints(rows)
    named = {row.check for row in rows}
    assert named >= {"batches", "targets", "forward", "loss", "gradients", "optimizer_step", "curve", "hits", "paths"}


def test_a_wrong_size_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference with a scale of its own: the comparison above notices."""
    case = make(SHAPES[2], tmp_path)
    monkeypatch.setattr("parity.prototypes.reference.parts._llama3", lambda frequencies, scaling: frequencies)
    assert {row.check for row in against_the_reference(case) if row.status == "failed"} == {"forward"}


def test_an_uneven_split_into_batches_drops_the_rest(tmp_path: Path) -> None:
    case = make(Shape("seven in threes"), tmp_path, bs=3, k=1)
    assert case.order == (0, 1, 2, 3, 4, 5) * 2
    assert len(trace_reference(case).curve) == 4


def test_a_written_case_is_read_back(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path, k=4, bs=3, lr=0.25, epoch=2, accumulation=2, noise=True, shuffle=True, seed=6)
    again = read_case(case.directory)
    assert again == case
    assert (case.ttt_steps, case.bs, case.lr, case.epoch, case.accumulation, case.seed) == (4, 3, 0.25, 2, 2, 6)
    assert case.fixture == case.directory / "fixture"
    assert case.uniforms is not None
    assert len(load_file(case.uniforms)) == len(case.order) == 18


def test_noise_draws_have_the_shape_of_their_sample(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path, noise=True, shuffle=True, bs=2)
    assert case.uniforms is not None
    draws = [value for _, value in sorted(load_file(case.uniforms).items())]
    lengths = [Shape("any").lengths[index] for index in case.order]
    assert [tuple(draw.shape) for draw in draws] == [(1, length, 72) for length in lengths]
    assert all(draw.min() >= 0 and draw.max() < 1 for draw in draws)
    assert torch.cat([draw.flatten() for draw in draws]).mean() == pytest.approx(0.5, abs=0.02)


def test_orders() -> None:
    assert plain_order(7, 3, 2) == [0, 1, 2, 3, 4, 5] * 2
    shuffled = sample_order(7, 3, 3, seed=1)
    passes = [shuffled[start : start + 6] for start in (0, 6, 12)]
    assert all(len(set(one)) == 6 and set(one) <= set(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert shuffled == sample_order(7, 3, 3, seed=1)
    assert shuffled != sample_order(7, 3, 3, seed=2)


def test_weights_depend_on_the_seed_and_fit_the_verifier(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path)
    weights = load_file(case.initial)
    assert all(torch.equal(value, weights[name]) for name, value in initial_weights(case.fixture, "eagle3", 0).items())
    other = initial_weights(case.fixture, "eagle3", 1)
    assert other.keys() == weights.keys()
    assert not torch.equal(other["init.fc.weight"], weights["init.fc.weight"])
    kept = np.load(case.fixture / "t2d.npy")
    assert torch.equal(weights["init.lm_head.weight"], weights["verifier.lm_head.weight"][torch.from_numpy(kept)])


def test_given_weights_are_taken(tmp_path: Path) -> None:
    first = make(Shape("any"), tmp_path)
    second = write_case(tmp_path, first.fixture, "second", seed=9, initial=first.initial)
    assert all(torch.equal(value, load_file(first.initial)[name]) for name, value in load_file(second.initial).items())


def test_a_folder_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path)
    with pytest.raises(FileExistsError):
        write_case(tmp_path, case.fixture)


def test_the_schedule_is_the_prototypes(tmp_path: Path) -> None:
    case = make(Shape("any"), tmp_path, bs=2, accumulation=2, epoch=99, k=1)
    meta = json.loads((case.directory / "meta.json").read_text())
    assert (meta["total_steps"], meta["warm_steps"]) == (7 * 100 // 4, 1)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=[shape.name.replace(" ", "-") for shape in SHAPES[:5]])
@pytest.mark.parametrize(("algorithm", "dtype"), [("eagle3", "bf16ds"), ("hass", "bf16")])
def test_runs_in_half_precision_are_judged_by_their_error(
    algorithm: str, dtype: str, shape: Shape, tmp_path: Path
) -> None:
    case = make(shape, tmp_path, algorithm=algorithm, dtype=dtype)
    rows = against_the_reference(case, torch.bfloat16)
    assert {row.check for row in rows} >= {"precision", "paths", "curve"}
    assert not complaints(rows)
