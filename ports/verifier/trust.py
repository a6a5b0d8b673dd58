"""Code that lies beside a verifier's weights (``auto_map``) is not run, and nobody is asked, unless the user said so.

The choice is this process' and that of all that it starts, loader processes and phases among them: it stands in the
environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import CONFIG_MAPPING
from transformers.utils import cached_file

from ports.errors import InputError, reason

TRUSTED = "SPECULATOR_TRUST_REMOTE_CODE"
HELP = "run code that lies beside the verifier's weights, which can do all that you can: read it first"


def trust_remote_code() -> None:
    """From now on, here and in every process that is started from here."""
    os.environ[TRUSTED] = "1"


def trusts_remote_code() -> bool:
    """What transformers and vLLM are told; never None, for which transformers asks the terminal."""
    return os.environ.get(TRUSTED) == "1"


@contextmanager
def opening(name_or_path: str, field: str, expected: str) -> Iterator[None]:
    """Whatever a library raises while it reads a part of the verifier is bad input (InputError)."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file makes transformers raise whatever its values run into
        if not trusts_remote_code() and ("trust_remote_code" in str(error) or _is_own(name_or_path)):
            found, allowed = "code of its own, which is not run", "--trust-remote-code from who has read it"
            raise InputError(name_or_path, field, found, allowed) from error
        raise InputError(name_or_path, field, reason(error), expected) from error


def _is_own(name_or_path: str) -> bool:
    """Is its config of a class beside it, and of none of transformers'? A tokenizer that fails over that hides it."""
    try:
        told = json.loads(Path(str(cached_file(name_or_path, "config.json"))).read_text(encoding="utf-8"))
        return "auto_map" in told and told.get("model_type") not in CONFIG_MAPPING
    except Exception:  # none that could be read
        return False
