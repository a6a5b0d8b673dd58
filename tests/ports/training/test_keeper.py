"""When a run is saved, which checkpoints stay, and digests as earlier releases made them, whose runs must go on."""

import hashlib
from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from ports.training.keeper import records_digest, sharding


def test_a_run_that_is_asked_to_stop_saves_where_it_stands_unless_it_just_did(start_run, tmp_path):
    loop, saved = start_run("eagle3", tmp_path / "cp", save_steps=2), []
    for _ in zip(range(3), loop.optimizer_steps()):
        before = {path.name: path.stat().st_ino for path in (tmp_path / "cp").glob("step_*")}
        found = loop.plan.keeper.on_stop(loop)
        saved.append((found.name, before.get(found.name) == found.stat().st_ino))
    assert saved == [("step_1", False), ("step_2", True), ("step_3", False)]


def test_keep_last_and_the_best_pass(run_to_the_end, tmp_path):
    cpdir = tmp_path / "cp"
    run_to_the_end("eagle3", cpdir, save_steps=2, keep_last=2, epoch=3, bs=2, noise=False, max_steps=10)
    names = {path.name for path in cpdir.iterdir() if path.is_dir()}
    assert names == {"model2", "step_10", "model3"}, "what is learned by heart gets better; a pass cut short is no best"


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.FSDP])
def test_what_shards_the_states_is_named(kind):
    expected = "FSDP2" if kind is DistributedType.FSDP else "none"
    assert sharding(SimpleNamespace(distributed_type=kind)) == expected


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def test_records_are_digested_by_name_size_and_ends(tmp_path):
    """Of a torch file its last 4 KiB, of safetensors the first ones too; a size of -1 where a record is gone."""
    folder, long = tmp_path / "data", bytes(range(250)) * 20
    (folder / "below").mkdir(parents=True)
    contents = {
        "end.ckpt": (b"abc", b"3\0abc"),
        "below/both.safetensors": (b"abc", b"3\0abcabc"),
        "gone.ckpt": (None, b"-1\0"),
        "long.ckpt": (long, b"5000\0" + long[-4096:]),
        "long.safetensors": (long, b"5000\0" + long[:4096] + long[-4096:]),
    }
    for name, (content, _) in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    expected = b"".join(name.encode() + b"\0" + said for name, (_, said) in contents.items())
    assert records_digest(folder, [folder / name for name in contents]) == digest(expected)
