"""Hostile input for whole commands: an answer, a refusal or a stop, never a traceback, never success without effect.

``FUZZ=2000 pytest tests/test_fuzz.py`` for more of them; ``-k "[17]"`` for input 17 alone.
"""

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ports.eagle3 import train as eagle3
from ports.flags import parse
from ports.generate.__main__ import ShowSettings
from ports.generate.run import GenerationSettings
from ports.generate.vocabulary import VocabularySettings
from ports.hass import train as hass
from ports.training.checkpoint import seal
from ports.training.records import list_records
from ports.training.settings import Eagle3Settings, HassSettings
from ports.training.vocabulary import load_vocabulary_map
from tests.mutants import VALUES, mutate, mutate_json, mutate_words
from tests.place import DRAFT_VOCAB_SIZE, SPEC, Place, run

COUNT = int(os.environ.get("FUZZ", "24"))
CODES = {0, 1, 2, 75}
TRAINERS = {"eagle3": (eagle3, Eagle3Settings), "hass": (hass, HassSettings)}
TRAINERS |= {"online": TRAINERS["hass"], "arrow": TRAINERS["eagle3"]}
COSTLY = (
    "epoch", "num_workers", "total_gpus", "tensor_parallel", "copies", "forward_num_total", "tokens", "batch_size",
    "max_new_tokens", "max_concurrency", "samples", "speculative_tokens", "prefetch_factor",
    "gradient_accumulation_steps", "max_len", "gpus", "bs",
)  # fmt: skip
"""Flags whose large values ask for a lot of work, and would get it."""


@dataclass
class Input:
    """A command line on a folder of which something is not as it should be."""

    command: str
    changes: dict[str, Any] = field(default_factory=dict)
    words: list[str] | None = None


def _values(value, draw):
    """What may stand in the place of a tensor; the last ones cannot be in a safetensors file."""
    length = len(value) if value.dim() else 1
    plain = [
        value[:1], value[:0], value[:-1], value.flatten(), value[None], value.reshape(-1)[:1].squeeze(), value * 0,
        value * 0 + 1, value * -1, value.to(torch.int32), value.bool(), value.half(), value.bfloat16(), value.double(),
        value.float() * 1e38, value.float() / 0, value.float() + float("nan"), value + 10**6, value.roll(1, 0),
        value.to(torch.float8_e4m3fn), value.to(torch.complex64), torch.full((length,), 0.5), torch.ones(length, 1),
        torch.ones(length), torch.zeros(length, dtype=torch.int64), torch.rand(length, 2 * SPEC.hidden_size),
    ]  # fmt: skip
    odd = [
        value.to_sparse(), value.to("meta"), torch.nn.Parameter(value.float()), value.transpose(0, -1),
        value[:1].expand_as(value), torch.nested.nested_tensor([value.float()]), None, "text", [1, 2], 7, 1.5,
        value.tolist(), {"a": value}, b"\0",
    ]  # fmt: skip
    return [draw.choice(plain), draw.choice(plain), draw.choice(odd)]


def _other(record, draw, plain):
    """``record`` with one entry replaced, left out, renamed, all of them cut, or nothing in the loss."""
    name = draw.choice(sorted(record))
    act = draw.randrange(7)
    if act == 6 and "loss_mask" in record:
        return {**record, "loss_mask": record["loss_mask"] * 0}
    if act == 0:
        return {key: value for key, value in record.items() if key != name}
    if act == 1:
        return {f"{key}x" if key == name else key: value for key, value in record.items()}
    if act == 2:
        cut = draw.choice((0, 1, 2, 3))
        return {key: value[:cut] for key, value in record.items()}
    return {**record, name: draw.choice(_values(record[name], draw)[: 2 if plain else 3])}


def _rewrite(file, draw, root):
    """A safetensors file: damaged bytes, other tensors, other words about itself, or a torch file in its place."""
    act = draw.randrange(4)
    if act == 0:
        file.write_bytes(mutate(file.read_bytes(), draw, root / "executed"))
        return
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    record = load_file(file)
    if act == 1 and metadata:
        name = draw.choice(sorted(metadata))
        damaged = mutate_json(metadata[name].encode(), draw) if metadata[name].startswith("{") else b"x"
        save_file(record, file, {**metadata, name: damaged.decode()})
    elif act == 2 and file.parent.name == "0":
        torch.save(_other(record, draw, plain=False), file.with_suffix(".ckpt"))
        file.unlink()
    else:
        other = {key: value.contiguous() for key, value in _other(record, draw, plain=True).items()}
        save_file(other, file, metadata)


def _skips(draw):
    workers = draw.choice((0, 0, 0, 0, 0, 0, 0, 1))
    return {"on_bad_record": draw.choice(("skip", "fail")), "bs": draw.choice((1, 2, 4)), "num_workers": workers}


def records(place, draw):
    """One record, or all of them."""
    command = draw.choice(("eagle3", "hass", "online", "vocabulary"))
    folder = place.root / ("hass" if command in ("hass", "online") else "eagle3")
    files, seed = list_records(folder), draw.random()
    for file in [draw.choice(files)] if draw.random() < 0.6 else files:
        _rewrite(file, random.Random(seed), place.root)
    return Input(command, {} if command == "vocabulary" else _skips(draw))


def arrow(place, draw):
    """Speculators' own data: hidden states, the table, or what describes it."""
    files = sorted(file for file in (place.root / "arrow").rglob("*") if file.is_file())
    file = draw.choice(files)
    if file.suffix == ".safetensors":
        _rewrite(file, draw, place.root)
    else:
        _damage(file, draw, place.root)
    return Input("arrow", _skips(draw))


def _damage(file, draw, root):
    content = file.read_bytes()
    if file.suffix == ".json" and draw.random() < 0.8:
        file.write_bytes(mutate_json(content, draw))
    else:
        file.write_bytes(mutate(content, draw, root / "executed"))


def draft_configs(place, draw):
    """The prototypes' JSON, or a Speculators config."""
    command = draw.choice(("eagle3", "hass", "native eagle3", "native hass"))
    native, _, algorithm = command.rpartition(" ")
    if native:
        _damage(place.root / f"trained_{algorithm}" / "config.json", draw, place.root)
        return Input(algorithm, {"configpath": place.root / f"trained_{algorithm}"})
    _damage(place.root / f"draft_{algorithm}.json", draw, place.root)
    return Input(algorithm)


def verifiers(place, draw):
    """Any file of a verifier, under any command."""
    _damage(draw.choice(sorted(place.verifier.iterdir())), draw, place.root)
    return Input(draw.choice(("eagle3", "hass", "online", "arrow", "generate", "vocabulary", "evaluate")))


def resumes(place, draw):
    """A checkpoint to go on from, with anything in it damaged, sealed again or not."""
    algorithm = draw.choice(("eagle3", "hass"))
    folder = place.root / f"trained_{algorithm}"
    file = draw.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    _damage(file, draw, place.root)
    if draw.random() < 0.6:
        (folder / "training_state" / "manifest.json").unlink()
        seal(folder)
    return Input(algorithm, {"ckpt_path": folder, "epoch": 1, "resume_anyway": True})  # its log lies elsewhere


def checkpoints(place, draw):
    """A trained draft: to be measured, folded, or trained on."""
    command = draw.choice(("evaluate", "evaluate", "serving", "eagle3", "hass"))
    algorithm = "hass" if command in ("serving", "hass") else "eagle3"
    folder = place.root / f"trained_{algorithm}"
    file = draw.choice([folder / "config.json", folder / "model.safetensors", folder / "model.safetensors"])
    _rewrite(file, draw, place.root) if file.suffix == ".safetensors" else _damage(file, draw, place.root)
    if command in TRAINERS:
        return Input(command, {"ckpt_path": folder, "weights_only": True})
    return Input(command, {} if command == "serving" else {"max_new_tokens": draw.choice((1, 4, 9))})


TEXTS = (
    "",
    " ",
    "\n",
    "\0",
    "\ud800",
    "\ue0f0\ue0f1",
    "<|eot_id|>",
    "<|start_header_id|>user",
    "a" * 4000,
    "é漢🙂",
    "{{ x }}",
)


def _other_words(value, draw):
    """A document with other texts in it."""
    if isinstance(value, dict):
        return {key: _other_words(each, draw) for key, each in value.items()}
    if isinstance(value, list):
        return [_other_words(each, draw) for each in value]
    return draw.choice(TEXTS) if isinstance(value, str) and draw.random() < 0.2 else value


def conversations(place, draw):
    """Dialogues of either layout: damaged files, values of other types, odd texts."""
    kind, file = draw.choice((("sharegpt", place.share), ("ultrachat", place.ultra)))
    act = draw.randrange(4)
    if act == 0:
        file.write_bytes(mutate(file.read_bytes(), draw, place.root / "executed"))
    elif kind == "sharegpt":
        content = file.read_bytes()
        new = mutate_json(content, draw) if act < 3 else json.dumps(_other_words(json.loads(content), draw)).encode()
        file.write_bytes(new)
    else:
        lines = file.read_bytes().splitlines()
        at = draw.randrange(len(lines))
        words = json.dumps(_other_words(json.loads(lines[at]), draw)).encode()
        lines[at] = mutate_json(lines[at], draw) if act < 3 else words
        file.write_bytes(b"\n".join(lines))
    values = {"dataset": kind, "data_path": file, "on_bad_conversation": draw.choice(("skip", "fail"))}
    return Input(draw.choice(("generate", "generate", "show")), values | {"algorithm": draw.choice(("ids", "hass"))})


def prompts(place, draw):
    """A file of prompts in any of its forms."""
    values = [json.loads(line) for line in place.prompts.read_text().splitlines()]
    suffix = draw.choice((".json", ".jsonl", ".txt"))
    file = place.root / f"held_out{suffix}"
    act = draw.randrange(3)
    if act == 1:
        values = _other_words(values, draw)
    if act == 2:
        values = json.loads(mutate_json(json.dumps(values).encode(), draw))
    lines = values if isinstance(values, list) else [values]
    text = json.dumps(values) if suffix == ".json" else "".join(f"{json.dumps(each)}\n" for each in lines)
    content = text.encode()
    file.write_bytes(mutate(content, draw, place.root / "executed") if act == 0 else content)
    return Input("evaluate", {"prompts": file})


def families(place, draw):
    """A table of chat families."""
    content = {"own": {"system": draw.choice(TEXTS), "template_options": {}, "today": "2026-01-01"}}
    file = place.root / "families.yaml"
    text = yaml.safe_dump(json.loads(mutate_json(json.dumps(content).encode(), draw))).encode()
    file.write_bytes(text if draw.random() < 0.7 else mutate(text, draw, place.root / "executed"))
    return Input(draw.choice(("generate", "show")), {"chat_template": f"{file}:own", "algorithm": "ids"})


def maps(place, draw):
    """``t2d.npy`` or ``d2t.npy``."""
    file = place.root / draw.choice(("t2d.npy", "d2t.npy"))
    if draw.random() < 0.4:
        file.write_bytes(mutate(file.read_bytes(), draw, place.root / "executed"))
        return Input("eagle3")
    array = np.load(file)
    others = [
        array[:-1], array[None], array.astype(float), array.astype("uint64"), -array.astype(int), array * 0, array + 1,
        array.astype("S1"), np.array(3), np.flip(array), array.astype(complex), array.astype("datetime64[s]"),
        array.astype(int) * 2**62, array.astype(object), np.resize(array, DRAFT_VOCAB_SIZE),
    ]  # fmt: skip
    other = draw.choice(others) if array.dtype != bool else draw.choice([*others[:4], *others[5:6], *others[7:12]])
    if draw.random() < 0.1:
        np.savez(file.with_suffix(".npz"), array)
        file.with_suffix(".npz").rename(file)
    else:
        np.save(file, other)
    return Input("eagle3")


ANYWHERE = ("/nowhere", "/proc/nowhere")
"""Output may go to what a word names: to a place that even root cannot make."""

SETTINGS = {"generate": GenerationSettings, "show": ShowSettings, "vocabulary": VocabularySettings}
FLAGGED = ("eagle3", "hass", "online", "arrow", "generate", "show", "vocabulary", "evaluate", "serving")


def flags(place, draw):
    """A command line with a damaged word, or another value for any of the command's settings."""
    command = draw.choice(FLAGGED)
    words = place.words(command)
    while True:
        others = mutate_words(words, draw) if draw.random() < 0.5 else [*words, *_another(command, draw)]
        if not _costs(others):
            return Input(command, words=[word.replace(*ANYWHERE) for word in others])


def _another(command, draw):
    """A flag that the command has, and something in its place."""
    name, kind = draw.choice(sorted(_flags_of(command).items(), key=str))
    if kind is bool:
        return [f"--{draw.choice(('', 'no-'))}{name}"]
    plausible = (1, 2, 3, 0.5, 1e-30, 1e30, 2**32, "cpu", "skip", "chain", "eager", "global", "float16", "bf16", "ids")
    return [f"--{name}", str(draw.choice((*VALUES, *plausible, *plausible)))]


def _flags_of(command):
    if command in ("evaluate", "serving"):
        names = (
            "max-new-tokens",
            "speculative-tokens",
            "max-concurrency",
            "seed",
            "device",
            "dtype",
            "verifier",
            "prompts",
            "json",
        )
        return {**dict.fromkeys(names, str), "untrained": bool, "ignore-eos": bool}
    settings = TRAINERS[command][1] if command in TRAINERS else SETTINGS[command]
    return {name: field.annotation for name, field in settings.model_fields.items()}


def _costs(words):
    """Would this line work for long, as it says?"""
    flat = [part for word in words for part in word.split("=", 1)]
    return any(name.lstrip("-").replace("-", "_") in COSTLY and _number(value) > 64 for name, value in pairwise(flat))


def _number(word):
    try:
        return float(word)
    except ValueError:
        return 0


def settings_files(place, draw):
    """A file for ``--config``."""
    command = draw.choice(("eagle3", "hass"))
    words = place.words(command)
    values = {words[at][2:]: words[at + 1] for at in range(0, len(words) - 1, 2)}
    while True:
        text = mutate_json(json.dumps({**values, "log_with": []}).encode(), draw)
        if not _costs([word for pair in json.loads(text).items() for word in map(str, pair)]):
            break
    content = yaml.safe_dump(json.loads(text.decode().replace(*ANYWHERE))).encode()
    file = place.root / "run.yaml"
    file.write_bytes(content if draw.random() < 0.8 else mutate(content, draw, place.root / "executed"))
    return Input(command, words=["--config", str(file), "--no-progress"])


TEXT_KINDS = (conversations, prompts, families, flags, settings_files)
KINDS = (records, arrow, draft_configs, verifiers, checkpoints, resumes, maps, *TEXT_KINDS)


def check(place, given, ran):
    """Raises AssertionError where a command did not end as it must."""
    assert not ran.uncaught, "let an exception out"
    assert ran.code in CODES, "another exit code"
    assert "Traceback" not in ran.err + ran.out, "a traceback"
    assert not (place.root / "executed").exists(), "ran what was in a file"
    if ran.code == 2:
        last = ran.err.strip().split("\n")[-1]
        assert "error: " in last or "usage" in ran.err.lower() or "─ Error ─" in ran.err, "no reason"
    if ran.code == 0:
        for effect in _effects(place, given, ran):
            assert effect, "success without effect"


def _effects(place, given, ran):
    if given.command in TRAINERS:
        yield from _trained(ran)
    if given.command == "generate" and given.words is None:
        rows = sum(json.loads((place.out / "generation.json").read_text())["processes"])
        yield len(list_records(place.out)) == rows > 0
    if given.command == "vocabulary" and given.words is None:
        load_vocabulary_map(place.out / "t2d.npy", place.out / "d2t.npy", SPEC.vocab_size, DRAFT_VOCAB_SIZE)
    if given.command == "evaluate" and given.words is None:
        result = json.loads((place.root / "result.json").read_text(), parse_constant=lambda name: None)
        yield result["tokens"] > 0
        yield result["acceptance_length"] is not None
    if given.command == "serving" and given.words is None:
        tensors = load_file(place.out / "model.safetensors")
        yield all(bool(value.isfinite().all()) for value in tensors.values())


def _trained(ran):
    """The last checkpoint's weights are numbers, and others than those that the run started with."""
    train, settings_class = TRAINERS[ran.words[0]]
    settings = parse(settings_class, ran.words[1:])
    set_seed(settings.seed)
    before = train.build(settings.model_copy(update={"cpdir": settings.cpdir / "none"})).state_dict()
    last = max(settings.cpdir.glob("*/model.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    after = {name: value for name, value in load_file(last).items() if value.is_floating_point()}
    yield all(bool(value.isfinite().all()) for value in after.values())
    yield any(not torch.equal(value, before[name]) for name, value in after.items())


def fuzz(number, built, folder):
    """What came of input ``number``. AssertionError, with what was said, where a command did not end as it must."""
    draw, kind = random.Random(f"fuzz {number}"), KINDS[number % len(KINDS)]
    place = Place(Path(shutil.copytree(built.root, folder / "place")))
    here, cache = Path.cwd(), datasets.config.HF_DATASETS_CACHE
    try:
        os.chdir(place.verifier)  # a word may be ../..
        datasets.config.HF_DATASETS_CACHE = place.root / "cache"
        given = kind(place, draw)
        output = [] if given.command != "serving" else [str(place.out)]
        words = place.words(given.command, **given.changes) if given.words is None else given.words
        ran = run(given.command, [*words, *output])
        try:
            check(place, given, ran)
        except Exception as error:
            raise AssertionError(f"{kind.__name__}: {type(error).__name__}: {error}\n{ran}") from error
        return ran
    finally:
        os.chdir(here)
        datasets.config.HF_DATASETS_CACHE = cache
