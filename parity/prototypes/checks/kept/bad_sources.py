"""Data sets that no run may begin on: arrow data whose states do not fit, folders of nothing, impossible layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow
import torch
from datasets import Dataset
from safetensors.torch import save_file

from parity.errors import InputError
from parity.prototypes.checks.beyond.forms import Dialogue, write_arrow, write_noise
from parity.prototypes.checks.evidence import Evidence
from parity.prototypes.checks.kept.attempts import Attempt
from parity.prototypes.port import dataset_for
from ports.training.data.feature_layers import aux_layer_ids, chosen_layers
from ports.training.data.features import load_verifier
from ports.training.data.prepared import prepared_files


def bad_sources(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    """As a run's data set is built and read."""
    yield from _arrow(evidence, dialogue, folder / "arrow data")
    yield from _nothing(evidence, folder)


def _arrow(evidence: Evidence, dialogue: Dialogue, folder: Path) -> Iterator[Attempt]:
    """Speculators' prepared data whose states do not fit its rows."""
    states = torch.stack([*(dialogue.arrow_states or [dialogue.before]), dialogue.before], dim=1)
    fitting = {"hidden_states": states, "token_ids": dialogue.ids}
    reversed_ids = {**fitting, "token_ids": dialogue.ids.flip(0)}
    narrow, wide = (
        {**fitting, "hidden_states": torch.nn.functional.pad(states, (0, more)).contiguous()} for more in (-1, 1)
    )
    files: dict[str, tuple[str, Callable[[Path], object]]] = {
        "as written": ("", lambda file: None),
        "without states": ("hidden_states", lambda file: file.unlink()),
        "of noise": ("hidden_states", lambda file: write_noise(None, file)),
        "of other ids": ("token_ids", partial(save_file, reversed_ids)),
        "too narrow": ("hidden_states", partial(save_file, narrow)),
        "too wide": ("hidden_states", partial(save_file, wide)),
    }
    folder.mkdir(parents=True)
    for name, (field, spoil) in files.items():

        def attempt(name: str = name, spoil: Callable[[Path], object] = spoil) -> object:
            write_arrow(folder / name, evidence.case, [dialogue])
            spoil(folder / name / "hidden_states" / "hs_0.safetensors")
            return dataset_for(evidence.case, evidence.draft.config, tmpdir=folder / name)[0]

        yield f"arrow data {name}", field, attempt


def _write_no_rows(folder: Path) -> None:
    """``datasets`` writes no file for a table of no rows, which it could not read again."""
    data = Dataset.from_dict({"input_ids": [[1]]})
    data.save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    pyarrow.ipc.new_stream(str(file), data.data.schema).close()


def _reason(read: Callable[[], object], limit: int) -> None:
    """A library's own reason on one line, cut after ``limit`` characters, is what the refusal found."""
    try:
        read()
    except InputError as error:
        said = " ".join(str(error.__cause__).split())
        if error.found != said[:limit] or len(said) <= limit:
            raise


def _nothing(evidence: Evidence, folder: Path) -> Iterator[Attempt]:
    """No data, and layers that a verifier has not."""
    (folder / "empty").mkdir()
    (folder / "arrow").mkdir()
    for mark in ("dataset_info.json", "state.json"):
        (folder / "arrow" / mark).write_text("{}")
    build = partial(dataset_for, evidence.case, evidence.draft.config)
    for name in ("empty", "missing", "arrow"):
        yield f"{name} folder", "tmpdir", partial(build, tmpdir=folder / name)
    _write_no_rows(folder / "no rows")
    yield "arrow data of no rows", "tmpdir", partial(build, tmpdir=folder / "no rows")
    yield "arrow data with --online", "--online", partial(build, tmpdir=folder / "arrow", online=True)
    yield "a verifier that is none", "model_path", lambda: load_verifier(str(folder / "empty"), "auto")
    long = folder / ("long" * 50) / ("longer" * 40)
    yield "verifier: reason cut", "", partial(_reason, partial(load_verifier, str(long), "auto"), 300)
    yield "arrow: reason cut", "", partial(_reason, partial(prepared_files, long), 200)
    yield "a verifier of two layers", "num_hidden_layers", lambda: aux_layer_ids("verifier", 2)
    yield "a verifier of three layers", "", lambda: aux_layer_ids("verifier", 3)
    for choice in ("1,2", "1,1,2", "1,2,x", "0,2,x", "0,1,32", "0,1,33"):
        yield f"layers {choice}", "--aux_layers", partial(chosen_layers, choice, "verifier", 32)
