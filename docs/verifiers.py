"""Every tiny verifier taken the whole way, held against its own logits: what ``docs/architectures.md`` says of each.

The shipped commands make records, a vocabulary, a derived draft and its first steps; what the draft is trained to
foresee and what the evaluator decodes are held against transformers' own model, as nobody here loads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from speculators.models.eagle3 import Eagle3DraftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from parity.fixtures.architectures import ARCHITECTURES, build_architecture
from ports.eagle3 import train
from ports.eagle3.objective import Eagle3Objective
from ports.errors import InputError
from ports.evaluate.decode import Limits, decode
from ports.evaluate.measure import measure
from ports.evaluate.verifier import TargetModel
from ports.generate.__main__ import main as generate
from ports.generate.vocabulary import VocabularySettings, write_vocabulary
from ports.training.derived import derived_config
from ports.training.records import list_records
from ports.training.settings import Eagle3Settings
from ports.verifier.config import verifier_config
from ports.verifier.loading import load_verifier

TRIED = Path(__file__).with_name("verifiers.json")
"""What was found of each, by its name; ``python -m docs.tables`` writes it, tests hold it."""

DIALOGUES = [
    ("Which river is the longest?", "The Nile, some say; others say that it is the Amazon."),
    ("Count to five.", "One, two, three, four, five."),
    ("Who wrote it?", "Nobody knows who wrote it, and nobody has asked before you did."),
]
SAMPLES, STEPS, DRAFT_VOCAB_SIZE, ANSWER = len(DIALOGUES), 2, 384, 6
CLOSE = 1e-4
"""Largest difference of two logits in float32, and of two probabilities; logits of these verifiers have size 2."""

YES, BAD_INPUT = "yes", 2


class Way:
    """The tiny verifier ``name``, with ``changes`` in its config, and what is made of it in ``folder``."""

    def __init__(self, name: str, folder: Path, **changes: Any) -> None:
        entry = ARCHITECTURES[name]
        entry = replace(entry, config={**entry.config, **changes})
        self.folder, self.verifier = folder, str(build_architecture(entry, folder / "verifier"))
        self.family, self.draft = entry.family, folder / "drafts" / "model0"

    @cached_property
    def model(self) -> Any:
        """transformers' own."""
        return AutoModelForCausalLM.from_pretrained(self.verifier, dtype=torch.float32).eval()

    @cached_property
    def records(self) -> list[dict[str, Tensor]]:
        """As they lie on the disk."""
        return [load_file(file) for file in list_records(self.folder / "records")]

    @property
    def prompts(self) -> list[list[int]]:
        """Beginnings of the records, of different lengths."""
        return [row["input_ids"][: 12 + 5 * number].tolist() for number, row in enumerate(self.records)]

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """[T, V], what the model says of ids [T]."""
        found: Tensor = self.model(input_ids=ids[None]).logits[0]
        return found

    def make(self) -> None:
        """Records, a vocabulary, and the draft's JSON."""
        model = {"model_path": self.verifier, "dtype": "auto", "chat_template": self.family, "algorithm": "eagle3"}
        turns = [[{"from": "human", "value": asked}, {"from": "gpt", "value": said}] for asked, said in DIALOGUES]
        (self.folder / "dialogues.json").write_text(json.dumps([{"conversations": each} for each in turns]))
        data = {"data_path": self.folder / "dialogues.json", "dataset": "sharegpt", "max_length": 128}
        _run(generate, [], outdir=self.folder / "records", **model, **data)
        places = {"tmpdir": self.folder / "records", "output": self.folder, "basepath": str(self.verifier)}
        write_vocabulary(VocabularySettings(**places, draft_vocab_size=DRAFT_VOCAB_SIZE))
        draft = derived_config(verifier_config(self.verifier)) | {"draft_vocab_size": DRAFT_VOCAB_SIZE}
        (self.folder / "draft.json").write_text(json.dumps(draft))

    def prepare(self) -> None:
        """The same dialogues as Speculators prepares them: the last state is the one before the final norm."""
        folder, rows = self.folder / "prepared", self.records
        columns = {name: [row[name].tolist() for row in rows] for name in ("input_ids", "loss_mask")}
        columns["seq_len"] = [len(row["input_ids"]) for row in rows]
        Dataset.from_dict(columns).with_format("torch").save_to_disk(folder)
        (folder / "hidden_states").mkdir()
        for index, row in enumerate(rows):
            features = row["hidden_state"].unflatten(-1, (3, -1))
            states = torch.cat([features, self._before_norm(row["input_ids"])[:, None]], dim=1)
            tensors = {"hidden_states": states, "token_ids": row["input_ids"]}
            save_file(tensors, folder / "hidden_states" / f"hs_{index}.safetensors")

    def _before_norm(self, ids: Tensor) -> Tensor:
        given: list[Tensor] = []
        hook = self.model.model.norm.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][0].clone()))
        self.logits(ids)
        hook.remove()
        return given[0]

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Flags of the trainer."""
        files = {"basepath": self.verifier, "configpath": str(self.folder / "draft.json")}
        files |= {"cpdir": self.folder / "drafts", "tmpdir": self.folder / "records"}
        files |= {"t2d": self.folder / "t2d.npy", "d2t": self.folder / "d2t.npy"}
        return {**files, "forward_num_total": STEPS, "epoch": 0, "bs": 1, "lr": 1e-2, "num_workers": 0, **changes}

    @cached_property
    def untrained(self) -> Eagle3DraftModel:
        """The draft as its training starts."""
        settings = Eagle3Settings(**self.settings())
        torch.manual_seed(settings.seed)
        return train.build(settings)

    def check_targets(self) -> None:
        """Of records, ``--online`` and prepared data: the distribution that the objective has is the model's own."""
        draft, objective = self.untrained, Eagle3Objective(self.untrained, STEPS)
        for changes in ({}, {"online": True}, {"tmpdir": self.folder / "prepared"}):
            settings = Eagle3Settings(**{**self.settings(), **changes, "noise": False})
            dataset = train.build_dataset(settings, draft.config)
            batch = dataset.batch_of([dataset[row] for row in range(SAMPLES)])
            found = objective.verifier(batch["target"]).probabilities.cpu()
            for row, record in zip(found, self.records, strict=True):  # a row's target is the next position's
                wanted = self.logits(record["input_ids"])[1:, draft.t2d].softmax(-1)
                torch.testing.assert_close(row[: len(wanted)], wanted, rtol=0, atol=CLOSE, msg=_said(changes))

    def train(self) -> None:
        """One pass over the records: losses are finite, and every weight that is trained moves."""
        _run(train.main, ["--no-noise", "--no-progress", "--overwrite"], **self.settings())
        lines = (self.folder / "drafts" / "metrics.jsonl").read_text().splitlines()
        losses = [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]
        if len(losses) != SAMPLES or not all(map(_finite, losses)):
            raise AssertionError(f"losses {losses}")
        before = {name: value for name, value in self.untrained.named_parameters() if value.requires_grad}
        trained = load_file(self.draft / "model.safetensors")
        still = [name for name, value in before.items() if torch.equal(value, trained[name])]
        if still:
            raise AssertionError(f"not trained: {still}")

    def evaluate(self) -> None:
        """The evaluator's logits and tokens are the model's own, and no token changes by the draft's proposals."""
        prompts, verifier = self.prompts, load_verifier(self.verifier, "float32", "cpu", head=True)
        target = TargetModel(verifier)
        target.prefill(prompts)
        for said, prompt, answer in zip(target.logits, prompts, decode(verifier, prompts, Limits(ANSWER)), strict=True):
            torch.testing.assert_close(said[0], self.logits(torch.tensor(prompt))[-1], rtol=0, atol=CLOSE)
            whole = self.logits(torch.tensor(prompt + answer.tokens))[len(prompt) - 1 : -1]
            if whole.argmax(-1).tolist() != answer.tokens:
                raise AssertionError(f"{answer.tokens} after {prompt}, the model says {whole.argmax(-1).tolist()}")
        (self.folder / "prompts.json").write_text(json.dumps(prompts))
        found = measure(
            self.draft, [self.folder / "prompts.json"], max_new_tokens=ANSWER, ignore_eos=True, device="cpu"
        )
        if found["lossless"] is not True:
            raise AssertionError(f"other tokens with a draft: {found}")


def tried(name: str, folder: Path) -> dict[str, str]:
    """Does the tiny verifier ``name`` train, and evaluate? "yes", or the line that refuses it.

    Raises:
        AssertionError: numbers that are not the verifier's own, or a draft that did not train.
    """
    way = Way(name, folder)
    trains = _answer(lambda: _trained(way))
    evaluates = trains if trains != YES else _answer(way.evaluate)
    return {"trains": trains.replace(f"{folder}/", ""), "evaluates": evaluates.replace(f"{folder}/", "")}


def _trained(way: Way) -> None:
    way.make()
    way.prepare()
    way.check_targets()
    way.train()


class RefusedError(Exception):
    """The line in which a command refused."""


def _answer(act: Callable[[], object]) -> str:
    try:
        act()
    except (InputError, RefusedError) as refused:
        return str(refused)
    return YES


def _run(main: Callable[[Sequence[str]], int], words: Sequence[str], **flags: Any) -> None:
    """A shipped command, in this process; what it refuses is raised."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = main([*words, *(f"--{name}={value}" for name, value in flags.items())])
    line = said.getvalue().strip().rpartition("\n")[2]
    if code == BAD_INPUT:
        raise RefusedError(line.removeprefix("error: "))
    if code:
        raise AssertionError(f"exit code {code}: {line}")


def _said(changes: dict[str, Any]) -> Callable[[str], str]:
    return lambda text: f"targets of {'online' if 'online' in changes else changes.get('tmpdir', 'records')}: {text}"


def _finite(value: float) -> bool:
    return bool(torch.tensor(value).isfinite())


def write() -> None:
    """Take all of them the whole way, into :data:`TRIED`."""
    found = {}
    for name in ARCHITECTURES:
        with TemporaryDirectory() as folder:
            found[name] = tried(name, Path(folder))
    TRIED.write_text(json.dumps(found, indent=1) + "\n")
