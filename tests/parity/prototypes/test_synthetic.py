"""Cases nobody recorded, in sizes unlike the recordings': reference and port train on them and agree."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from parity.checks import run_checks
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.outside import TraceSide
from parity.pair import find_pair
from parity.prototypes.case import read_case
from parity.prototypes.pair import REFERENCE
from parity.prototypes.reference.loop import trace_reference
from parity.prototypes.spread import margin_of, with_spread
from parity.prototypes.synthetic import sample_order, write_case
from parity.run import CaseRun
from tests.fixtures.test_verifier import LLAMA3

ROPE = {**LLAMA3, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 3.0}
SMALL = {
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
    Shape("k4 with llama3 rope", {"rope_scaling": ROPE, "rope_theta": 500.0}, {"k": 4, "bs": 3}),
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


def make(shape, folder, **changes):
    fixture = build_random_fixture(
        folder / "fixture",
        spec=VerifierSpec(**{**SMALL, **shape.spec}),
        lengths=shape.lengths,
        draft_vocab_size=shape.draft_vocab_size,
    )
    return write_case(folder, fixture, **{**shape.run, **changes})


def against_the_reference(case):
    """The port on the case, with the reference, in the case's precision, in the recording's place."""
    expected = with_spread(trace_reference(case, margin=margin_of(case)), case)
    pair = replace(find_pair(case.algorithm), original=TraceSide(replace(expected, trained=(), frozen=())))
    with CaseRun(pair, case) as run:
        return run_checks(run.evidence(pair.port), pair.every_check)


DIRECT = {"batches", "targets", "forward", "loss", "gradients", "optimizer_step", "curve", "hits", "cross_step_grad"}
HALF = {"eagle3": "bf16ds", "hass": "bf16"}
RUNS = [
    (shape, algorithm, half)
    for half, shapes in ((False, SHAPES), (True, SHAPES[2:7]))
    for shape in shapes
    for algorithm in ("eagle3", "hass")
]
BY_DAY = {(shape.name, ("eagle3", "hass")[number % 2], False) for number, shape in enumerate(SHAPES)}
BY_DAY |= {(SHAPES[2].name, "eagle3", True), (SHAPES[3].name, "hass", True)}
"""Every shape once, and either algorithm in half precision; by night all."""


@pytest.mark.parametrize(
    ("shape", "algorithm", "half"),
    [
        pytest.param(*run, id="-".join(map(str, name)), marks=() if name in BY_DAY else pytest.mark.nightly)
        for run in RUNS
        for name in [(run[0].name, *run[1:])]
    ],
)
def test_port_and_reference_agree_on_sizes_nobody_recorded(shape, algorithm, half, tmp_path):
    """In half precision by the same checks."""
    case = make(shape, tmp_path, algorithm=algorithm, dtype=HALF[algorithm] if half else "fp32")
    rows = [row for row in against_the_reference(case) if row.compared]
    assert [(row.check, row.tensor, row.measured, row.detail) for row in rows if not row.passed] == []
    assert {row.check for row in rows} >= DIRECT


@pytest.mark.parametrize(
    ("bs", "epoch", "status"), [(4, 0, "not applicable"), (4, 1, "passed"), (2, 0, "passed"), (4, 3, "passed")]
)
def test_a_run_of_few_optimizer_steps_is_resumed_or_has_none_to_stop_before(bs, epoch, status, tmp_path):
    """1, 2, 3 and 4 of them."""
    case = make(Shape("any"), tmp_path, k=1, bs=bs, epoch=epoch)
    pair = find_pair("eagle3")
    with CaseRun(replace(pair, original=REFERENCE), case) as run:
        rows = run_checks(run.evidence(pair.port), pair.every_check, only={"resume"})
    assert {row.status for row in rows} == {status}


def test_a_wrong_size_would_show(tmp_path, monkeypatch):
    """The reference with a scale of its own: the comparison above notices."""
    case = make(SHAPES[2], tmp_path)
    monkeypatch.setattr("parity.prototypes.reference.layer._llama3", lambda frequencies, scaling: frequencies)
    assert {row.check for row in against_the_reference(case) if row.status == "failed"} == {"forward"}


def test_a_written_case_is_read_back(tmp_path):
    case = make(Shape("any"), tmp_path, k=4, bs=2, lr=0.25, epoch=99, accumulation=2, noise=True, shuffle=True, seed=6)
    assert read_case(case.directory) == case
    assert (case.ttt_steps, case.bs, case.lr, case.epoch, case.accumulation, case.seed) == (4, 2, 0.25, 99, 2, 6)
    assert case.fixture == case.directory / "fixture"
    assert (case.meta.total_steps, case.meta.warm_steps) == (7 * 100 // 4, 1)
    with pytest.raises(FileExistsError):
        write_case(tmp_path, case.fixture)


def test_orders():
    assert sample_order(7, 3, 2, None) == [0, 1, 2, 3, 4, 5] * 2
    shuffled = sample_order(7, 3, 3, seed=1)
    passes = [shuffled[start : start + 6] for start in (0, 6, 12)]
    assert all(len(set(one)) == 6 and set(one) <= set(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert shuffled == sample_order(7, 3, 3, seed=1) != sample_order(7, 3, 3, seed=2)
