"""What the first import does, beside a torchaudio whose own import fails as one of another build does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ports import SCRIPTS, is_command

ROOT = Path(__file__).parents[2]
USE = "import transformers.audio_utils"
AFTER = "import sys, importlib.util as u; assert 'torchaudio' not in sys.modules; assert u.find_spec('torchaudio')"


@pytest.mark.parametrize(("code", "said"), [(f"import ports; {USE}; {AFTER}", ""), (USE, "undefined symbol")])
def test_transformers_imports_beside_a_broken_torchaudio_after_ports(tmp_path, code, said):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('undefined symbol')\n")
    (tmp_path / "torchaudio-9.9.0.dist-info").mkdir()
    (tmp_path / "torchaudio-9.9.0.dist-info" / "METADATA").write_text("Name: torchaudio\nVersion: 9.9.0\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert said in result.stderr
    assert (result.returncode == 0) is (said == ""), result.stderr


def test_every_script_of_the_project_is_known():
    scripts = re.findall(r'^([\w-]+) = "[\w.]+:main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(scripts) == SCRIPTS
    assert not is_command("/usr/bin/pytest")
