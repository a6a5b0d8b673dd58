"""A folder with something of everything the commands read, made by the commands themselves, and a way to run them here.

``python -c "..."`` costs ten seconds of imports; a command that runs in this process costs a tenth of one.
"""

import contextlib
import io
import json
import shutil
import sys
import traceback
from dataclasses import dataclass, field

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from safetensors.torch import load_file, save_file

from parity.fixtures.draft import eagle3_config, hass_config
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec, build_verifier
from ports.eagle3 import train as eagle3
from ports.generate import __main__ as generate
from ports.hass import train as hass
from tests.commands import main_of
from tests.mutants import TooLongError, in_time

SPEC = VerifierSpec(
    hidden_size=16, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=7, intermediate_size=24
)
DRAFT_VOCAB_SIZE = 40
DIALOGUES = [
    [("Hi.", "Yes."), ("Why?", "So.")],
    [("One and one?", "Two.")],
    [("Name a river.", "The Po."), ("Another.", "The Elbe, in the north.")],
    [("Bye.", "See you.")],
]
SECONDS = 60
"""Of processor time; a command that takes longer hangs."""


@dataclass
class Ran:
    """What came of a command: its exit code, what it said, and the traceback of what it did not catch."""

    code: int = 0
    out: str = ""
    err: str = ""
    uncaught: str = ""
    words: list[str] = field(default_factory=list)

    def __str__(self):
        said = self.out[-1500:] + self.err[-1500:] + self.uncaught[-3000:]
        return f"{' '.join(self.words)}\nexit code {self.code}\n{said}"


class Place:
    """Names of what lies in ``root``, and command lines on it."""

    def __init__(self, root):
        self.root, self.out = root, root / "out"
        self.verifier, self.prompts = root / "verifier", root / "prompts.jsonl"
        self.share, self.ultra = root / "share.json", root / "ultra.jsonl"

    def words(self, command, **changes):
        """The command line; a changed value of None leaves the flag out, True makes it a switch."""
        flags = {**getattr(self, f"_{command}")(), **changes}
        first = [str(flags.pop(""))] if "" in flags else []
        for name, value in flags.items():
            first += [] if value is None else [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return first

    def run(self, command, *more, **changes):
        """Run it here."""
        return run(command, [*self.words(command, **changes), *more])

    def _train(self, algorithm):
        return {
            "basepath": self.verifier,
            "configpath": self.root / f"draft_{algorithm}.json",
            "tmpdir": self.root / algorithm,
            "cpdir": self.out,
            "lr": 1e-3,
            "bs": 2,
            "epoch": 0,
            "forward_num_total": 2,
            "num_workers": 0,
            "mixed_precision": "no",
            "no-progress": True,
        }

    def _eagle3(self):
        return {**self._train("eagle3"), "t2d": self.root / "t2d.npy", "d2t": self.root / "d2t.npy"}

    def _hass(self):
        return self._train("hass")

    def _online(self):
        return {**self._hass(), "online": True, "verifier_dtype": "float32"}

    def _arrow(self):
        return {**self._eagle3(), "tmpdir": self.root / "arrow"}

    def _generate(self):
        values = {"model_path": self.verifier, "outdir": self.out, "data_path": self.share, "dataset": "sharegpt"}
        return {**values, "chat_template": "plain", "no-progress": True}

    def _answers(self):
        files = {"verifier": self.verifier, "data": self.share, "out": self.out / "answers.jsonl"}
        return {**files, "engine": "transformers", "max_new_tokens": 4, "no-progress": True}

    def _show(self):
        return {**self._generate(), "outdir": None}

    def _vocabulary(self):
        files = {"tmpdir": self.root / "eagle3", "basepath": self.verifier, "out": self.out}
        return {**files, "draft_vocab_size": DRAFT_VOCAB_SIZE}

    def _evaluate(self):
        files = {"": self.root / "trained_eagle3", "prompts": self.prompts, "json": self.root / "result.json"}
        return {**files, "verifier": self.verifier, "max_new_tokens": 4}

    def _serving(self):
        return {"": self.root / "trained_hass", "verifier": self.verifier}


MAINS = {
    **dict.fromkeys(("eagle3", "arrow"), eagle3.main),
    **dict.fromkeys(("hass", "online"), hass.main),
    "generate": generate.main,
    "show": main_of("records show"),
    **{name: main_of(name) for name in ("answers", "evaluate", "vocabulary")},
    "serving": main_of("serve"),
}


def run(command, words):
    """Run a command in this process; whatever it lets out is ``uncaught``, and so is a hang."""
    ran, out, err, before = Ran(words=[command, *words]), _Text(), _Text(), sys.argv
    sys.argv = [command, *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), in_time(SECONDS):
            ran.code = int(MAINS[command](words) or 0)
    except SystemExit as left:
        ran.code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except (Exception, TooLongError):
        ran.code, ran.uncaught = 1, traceback.format_exc()
    finally:
        sys.argv = before
        torch.autograd.set_detect_anomaly(False)
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    ran.out, ran.err = out.text(), err.text()
    return ran


class _Text(io.TextIOWrapper):
    """As strict about characters as a terminal."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)

    def text(self):
        return self.buffer.getvalue().decode()


def build(root):
    """Verifier, conversations, records of both algorithms and as arrow, vocabulary, a trained draft of each kind."""
    place = Place(root)
    build_tokenizer(build_verifier(SPEC, place.verifier))
    for algorithm, config in (("eagle3", eagle3_config(SPEC, DRAFT_VOCAB_SIZE)), ("hass", hass_config(SPEC))):
        (root / f"draft_{algorithm}.json").write_text(json.dumps(config))
    _write_texts(place)
    for algorithm in ("eagle3", "hass"):
        _well(place.run("generate", algorithm=algorithm, outdir=root / algorithm, dtype="float32"))
    _well(place.run("vocabulary", out=root))
    _write_arrow(place)
    for algorithm, last in (("eagle3", "model0"), ("hass", "state_0")):
        _well(place.run(algorithm))
        (place.out / last).rename(root / f"trained_{algorithm}")
        shutil.rmtree(place.out)
    return place


def _well(ran):
    assert ran.code == 0, str(ran)


def _write_texts(place):
    share, ultra = [], []
    for dialogue in DIALOGUES:
        pairs = [turn for user, answer in dialogue for turn in (("human", user), ("gpt", answer))]
        share.append({"conversations": [{"from": role, "value": text} for role, text in pairs]})
        roles = {"human": "user", "gpt": "assistant"}
        ultra.append({"messages": [{"role": roles[role], "content": text} for role, text in pairs]})
    place.share.write_text(json.dumps(share))
    place.ultra.write_text("".join(f"{json.dumps(row)}\n" for row in ultra))
    prompts = [[7, 8, 9], "The tide.", {"prompt": "Why?"}, ultra[0], share[2]]
    place.prompts.write_text("".join(f"{json.dumps(row)}\n" for row in prompts))


def _write_arrow(place):
    """The records of Eagle3 as Speculators lays out its own."""
    folder = place.root / "arrow"
    files = sorted((place.root / "eagle3").rglob("*.safetensors"))
    records = [load_file(file) for file in files]
    columns = {name: [record[name].tolist() for record in records] for name in ("input_ids", "loss_mask")}
    lengths = {"seq_len": [len(ids) for ids in columns["input_ids"]]}
    Dataset.from_dict({**columns, **lengths}).with_format("torch").save_to_disk(folder)
    (folder / "hidden_states").mkdir()
    for index, record in enumerate(records):
        length, width = record["target"].shape
        states = torch.cat([record["hidden_state"].view(length, 3, width), record["target"][:, None]], dim=1)
        content = {"hidden_states": states, "token_ids": record["input_ids"]}
        save_file(content, folder / "hidden_states" / f"hs_{index}.safetensors")
