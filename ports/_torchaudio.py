"""Keep a broken torchaudio from breaking ``import transformers``.

Speculators requires torchaudio, which nothing here uses. Beside a torch of another build (CPU, other CUDA) its import
raises ``OSError``, and transformers imports it wherever it is found. The guard lets transformers conclude, once, that
torchaudio is absent; a torchaudio that somebody has already imported is left alone.
"""

from __future__ import annotations

import importlib
import sys


def skip_torchaudio() -> None:
    """Import ``transformers.audio_utils`` with torchaudio hidden; idempotent, does nothing if torchaudio is loaded."""
    if "torchaudio" in sys.modules or "transformers.audio_utils" in sys.modules:
        return
    sys.modules["torchaudio"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("transformers.audio_utils")
    except ModuleNotFoundError:
        pass
    finally:
        del sys.modules["torchaudio"]
