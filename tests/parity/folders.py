"""Recordings folders made for a test."""

import json

from parity.prototypes.original.checkout import PROTOTYPES

META = {
    "case": "one",
    "which": "eagle3",
    "dtype": "fp32",
    "argv": ["--configpath", "FIXTURE/draft_eagle3.json", "--tmpdir=FIXTURE/data_eagle3", "--bs", "2", "--epoch", "1"],
    "noise": False,
    "shuffle": False,
    "total_steps": 3,
    "warm_steps": 0,
    "sample_index_order": [0, 1, 2, 0],
    "samples_files": ["data_0.ckpt", "data_1.ckpt", "data_2.ckpt"],
    "initial": "initial.safetensors",
    "prints": [],
}
"""The smallest ``meta.json`` that describes a case: two passes over one batch of two."""


def make_fixture(folder):
    """What a case points at; the contents are nobody's business here."""
    (folder / "fixture" / "data_eagle3").mkdir(parents=True)
    (folder / "fixture" / "draft_eagle3.json").write_text("{}")
    (folder / "initial.safetensors").write_bytes(b"")


def write_meta(folder, meta):
    """``meta.json`` in a folder of its own; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return folder


def with_flags(*flags):
    """``META`` with further words on the recorded command line."""
    return {**META, "argv": [*META["argv"], *flags]}


def write_checkout(root, algorithm):
    """Every file of a prototype, none of them with the commit's content; returns their names."""
    prototype = PROTOTYPES[algorithm]
    for name in prototype.hashes:
        file = root / prototype.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# another commit")
    return [f"{prototype.folder}/{name}" for name in prototype.hashes]
