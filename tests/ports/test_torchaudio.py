"""The guard is tried in a fresh interpreter, beside a torchaudio whose import fails as one of another build does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ports._starting import skip_torchaudio

ROOT = Path(__file__).parents[2]
USE = "import transformers.audio_utils"


@pytest.fixture
def broken_torchaudio(tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('undefined symbol')\n")
    (tmp_path / "torchaudio-9.9.0.dist-info").mkdir()
    (tmp_path / "torchaudio-9.9.0.dist-info" / "METADATA").write_text("Name: torchaudio\nVersion: 9.9.0\n")
    return tmp_path


def run(code, folder):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_transformers_imports_beside_a_broken_torchaudio_after_ports(broken_torchaudio):
    after = "import sys, importlib.util as u; assert 'torchaudio' not in sys.modules; assert u.find_spec('torchaudio')"
    result = run(f"import ports; {USE}; {after}", broken_torchaudio)
    assert result.returncode == 0, result.stderr


def test_without_the_guard_it_does_not(broken_torchaudio):
    result = run(USE, broken_torchaudio)
    assert "undefined symbol" in result.stderr


def test_a_loaded_torchaudio_is_left_alone(monkeypatch):
    loaded = object()
    monkeypatch.setitem(sys.modules, "torchaudio", loaded)
    monkeypatch.delitem(sys.modules, "transformers.audio_utils")
    skip_torchaudio()
    assert sys.modules["torchaudio"] is loaded
    assert "transformers.audio_utils" not in sys.modules


def test_it_works_without_transformers(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    monkeypatch.delitem(sys.modules, "transformers.audio_utils")
    monkeypatch.setitem(sys.modules, "transformers", None)
    skip_torchaudio()
    assert "torchaudio" not in sys.modules
