"""The sides that are timed, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ports  # noqa: F401  (its guard runs before anything imports transformers)
from fixtures.samples import build_random_fixture
from fixtures.verifier import VerifierSpec
from parity.case import Case
from parity.environment import describe, deterministic, quietly
from parity.runs.port import start_port
from parity.speed import reference_steps
from parity.synthetic import write_case

SPEC = VerifierSpec(
    hidden_size=512,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    num_hidden_layers=3,
    intermediate_size=1792,
    vocab_size=32768,
    max_position_embeddings=16384,
    seed=11,
)
DRAFT_VOCABULARY = 8192
PASSES = 30

CaseOf = Callable[[str, int, int], Case]


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    """A case of one sample of T tokens, two thirds of them in the loss; ``case_of(algorithm, length, k)``."""
    fixtures: dict[int, Path] = {}

    def make(algorithm: str, length: int, k: int) -> Case:
        root = tmp_path_factory.mktemp("case")
        if length not in fixtures:
            folder = tmp_path_factory.mktemp("fixture") / f"t{length}"
            fixtures[length] = build_random_fixture(
                folder, spec=SPEC, lengths=(length,), draft_vocab_size=DRAFT_VOCABULARY
            )
        name = f"{algorithm}_t{length}_k{k}"
        return write_case(root, fixtures[length], name, algorithm=algorithm, k=k, bs=1, epoch=PASSES)

    return make


@pytest.fixture(params=["reference", "port eager", "port"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Case], Iterator[int]]:
    """Starts a run that yields after every optimizer step: the prototype's cost, the readable port, the default one."""
    slow = {"attn_implementation": "eager", "loss_implementation": "eager"}
    if request.param == "reference":
        return lambda case: reference_steps(case)()
    changes = slow if request.param == "port eager" else {}
    return lambda case: start_port(case, tmp_path, **changes).optimizer_steps()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Fixed seeds, one thread, nothing printed."""
    with deterministic(), quietly():
        yield


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Versions and numeric modes go into the JSON."""
    machine_info["parity"] = describe()
