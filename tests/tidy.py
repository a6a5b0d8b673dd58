"""Is generated code as tidy as the project's own?"""

import subprocess
import sys

STYLE = ("--isolated", "--no-cache", "--line-length", "120", "--target-version", "py310")
RULES = "E,F,W,I,UP,B,C4,SIM,RUF,PT,RET,PIE,N"
QUESTIONS = (("check", "--select", RULES), ("format", "--diff"))


def untidy(folder, package):
    """What ruff has to say about ``package`` in ``folder``; empty if nothing."""
    said = []
    for question in QUESTIONS:
        command = [sys.executable, "-m", "ruff", *question, *STYLE, package]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        said += [done.stdout + done.stderr] if done.returncode else []
    return "\n".join(said)
