from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from ports.training.keeper import sharding


def test_a_run_that_is_asked_to_stop_saves_where_it_stands_unless_it_just_did(start_run, tmp_path):
    loop, saved = start_run("eagle3", tmp_path / "cp", save_steps=2), []
    for _ in zip(range(3), loop.optimizer_steps()):
        before = {path.name: path.stat().st_ino for path in (tmp_path / "cp").glob("step_*")}
        found = loop.plan.keeper.on_stop(loop)
        saved.append((found.name, before.get(found.name) == found.stat().st_ino))
    assert saved == [("step_1", False), ("step_2", True), ("step_3", False)]


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.FSDP])
def test_what_shards_the_states_is_named(kind):
    expected = "FSDP2" if kind is DistributedType.FSDP else "none"
    assert sharding(SimpleNamespace(distributed_type=kind)) == expected
