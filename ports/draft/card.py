"""What a run's directory says: a model card in the hub's form beside the draft, and a page of what each folder is.

Both are templates over the JSON that the phases left. Every value in them is escaped, and no path of this machine is
told: the verifier goes by its hub id, what lies in the run by its place there, and everything else by its last part.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from ports.commands import printable
from ports.draft.settings import NEUTRAL, DraftSettings
from ports.errors import InputError, reason
from ports.evaluate.intervals import from_json
from ports.evaluate.measure import acceptance_panel
from ports.evaluate.plot import Panel, draw
from ports.files import read_json
from ports.training.checkpoint import CONFIG, write_file
from ports.training.records import GENERATION
from ports.verifier.config import hub_id
from ports.verifier.interfaces import METHODS, serving_of
from ports.verifier.states import own_dtype

CARD, PICTURE, RUN = "README.md", "acceptance.png", "run.json"
PACKAGES = ("speculator-parity", "speculators", "torch", "transformers")
POINTS = 100
"""Of a curve at most, each the mean of as many steps."""

SPECIAL = re.compile(r"[\\`*_\[\]<>|&~$#]")


def write_pages(settings: DraftSettings) -> None:
    """``draft/README.md`` with its picture, and ``README.md``, of a run that is done and measured.

    Raises:
        InputError: a file of the run that cannot be read.
    """
    out, pictured = settings.out, find_spec("matplotlib") is not None
    names = Names(out, settings.model, settings.data, settings.configpath)
    with readable(out):
        facts = facts_of(settings)
        if pictured:
            draw(out / "draft" / PICTURE, *curves(out / "checkpoints"), *map(acceptance_panel, facts["evaluations"]))
        card = names.render("card.md.j2", **facts, settings=settings, picture=PICTURE if pictured else None)
    write_file(out / CARD, names.render("run.md.j2", here={each.name for each in out.iterdir()}).encode())
    write_file(out / "draft" / CARD, card.encode())


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """What in ``directory`` is not as the commands write it is bad input."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, TemplateError) as error:
        expected = "files as the commands of speculator write them"
        raise InputError(directory, "content", reason(error), expected) from error


def facts_of(settings: DraftSettings) -> dict[str, Any]:
    """What the card tells: the JSON of the phases by name, and what follows from it."""
    out, check, measured = settings.out, settings.out / "check.json", sorted(settings.out.glob("evaluation*.json"))
    return {
        **draft_facts(out / "draft", settings.model),
        "front": front_matter(settings),
        "run": read_json(out / RUN, "manifest", "what speculator draft wrote"),
        "records": read_json(out / "records" / GENERATION, "manifest", "of records"),
        "dialogues": sum(1 for _ in (out / "data/train.jsonl").open("rb")),
        "evaluations": [read_json(file, file.stem, "what speculator evaluate wrote") for file in measured],
        "check": read_json(check, "check", "what speculator check wrote")["findings"] if check.is_file() else [],
        "trusted": settings.trust_remote_code,
        "flags": flags_of(settings),
        "versions": {name: found.version for name in PACKAGES for found in distributions(name=name)},
    }


def draft_facts(folder: Path, verifier: str) -> dict[str, Any]:
    """What a draft's directory tells of itself."""
    config = read_json(folder / CONFIG, "config", "of a draft")
    proposed = config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
    algorithm = config["speculators_model_type"]
    speculative = {"method": METHODS[algorithm], "model": folder.name, "num_speculative_tokens": proposed}
    return {
        "algorithm": algorithm,
        "verifier": verifier,
        "base": hub_id(verifier),
        "config": config,
        "folder": folder.name,
        "k": proposed,
        "dtype": f"{own_dtype(verifier)}".removeprefix("torch."),
        "speculative": json.dumps(speculative),
        "served": serving_of(algorithm, verifier),
    }


def front_matter(settings: DraftSettings) -> str:
    """What the hub reads of a card; a verifier or data that it does not have are left out, and so is a licence."""
    base, data = hub_id(settings.model), hub_id(settings.data.partition(":")[0])
    tags = ["speculative-decoding", "draft-model", settings.algorithm]
    named: dict[str, Any] = {"base_model": base, "datasets": [data] if data else None}
    return ModelCardData(library_name="speculators", pipeline_tag="text-generation", tags=tags, **named).to_yaml()


def flags_of(settings: DraftSettings) -> dict[str, Any]:
    """Those of ``speculator draft`` that were not left as they are."""
    fields = {name: each for name, each in DraftSettings.model_fields.items() if name not in NEUTRAL}
    changed = {name: getattr(settings, name) for name in fields if getattr(settings, name) != fields[name].default}
    return {str(fields[name].alias).replace("_", "-"): value for name, value in changed.items()}


def curves(checkpoints: Path) -> list[Panel]:
    """The loss by optimizer step, and the acceptance that was expected on held-out records, where there were any."""
    lines = [json.loads(line) for line in (checkpoints / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    seen = [(line["steps"], line["val_expected_acceptance"]) for line in lines if "val_expected_acceptance" in line]
    found = [Panel(*_thinned(losses, "loss"), {"xlabel": "step", "ylabel": "loss", "title": "training"})]
    axes = {"xlabel": "step", "ylabel": "tokens a pass", "title": "expected on records left out of training"}
    return found + ([Panel(*_thinned(seen, "1 + a1 + a1 a2 + .."), axes)] if seen else [])


def _thinned(points: Sequence[tuple[int, float]], label: str) -> tuple[list[float], dict[str, list[float]]]:
    size = math.ceil(len(points) / POINTS) or 1
    parts = [np.mean(points[start : start + size], axis=0).tolist() for start in range(0, len(points), size)]
    return [step for step, _ in parts], {label: [value for _, value in parts]}


class Names:
    """What pages call the verifier and the places of a run: no path of this machine stands in them."""

    def __init__(self, out: Path, verifier: str | None = None, *places: str | None) -> None:
        found = {place: hub_id(place) or Path(place).name for place in (str(out), verifier, *places) if place}
        if verifier and hub_id(verifier) is None and Path(verifier).resolve().is_relative_to(out.resolve().parent):
            found[verifier] = os.path.relpath(verifier, out)
        whole = {str(Path(place).resolve()): name for place, name in found.items() if hub_id(place) != place}
        told = {**whole, **found}
        self._told = {place: told[place] for place in sorted(told, key=len, reverse=True) if "/" in place}

    def public(self, value: Any) -> str:
        """In a line."""
        text = f"{value}"
        for place, name in self._told.items():
            text = text.replace(place, name)
        return printable(text)

    def escaped(self, value: Any) -> Any:
        """Text that means nothing to Markdown."""
        return value if hasattr(value, "__html__") else Markup(SPECIAL.sub(r"\\\g<0>", self.public(value)))

    def code(self, value: Any) -> Markup:
        """As code, in a table too: between more backticks than the text has in a row."""
        text = self.public(value).replace("|", r"\|")
        fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
        room = " " if "`" in text else ""
        return Markup(f"{fence}{room}{text}{room}{fence}")

    def shell(self, value: Any) -> Markup:
        """As a word of a command line."""
        return Markup(shlex.quote(self.public(value)))

    def render(self, template: str, **facts: Any) -> str:
        """A page of this package's templates; what it misses is an error."""
        made = Environment(
            loader=PackageLoader("ports", "draft"),
            undefined=StrictUndefined,
            finalize=self.escaped,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        made.filters.update(code=self.code, shell=self.shell, sure=sure, plain=Markup, count="{:,}".format)
        return made.get_template(template).render(**facts)


def sure(estimate: Mapping[str, float | None]) -> Markup:
    """A figure with its interval, of a single prompt without."""
    found = from_json(estimate)
    return Markup(f"{found:.3f}" if math.isinf(found.high) else f"{found}")
