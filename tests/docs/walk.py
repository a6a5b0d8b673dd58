"""Run a Markdown page: write its files, apply its changes, run its commands, hold what they print against the page.

Fences: ``python title="FILE"`` is a file; ``diff title="FILE"`` a change of one, applied once; ``sh``, perhaps with
``title="exit code 1"``, a command; ``text`` what the command before it printed, where a line ``...``, or one at the end
of a line, leaves out.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(?P<kind>\w+)(?P<words>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
GAP = "..."


@dataclass(frozen=True)
class Block:
    """One fence; ``line`` is where it begins."""

    kind: str
    words: dict[str, str]
    body: str
    line: int


def blocks_of(page):
    """All fences of a page, in order."""
    found = []
    for match in FENCE.finditer(page):
        words = dict(word.split("=", 1) for word in shlex.split(match["words"]))
        found.append(Block(match["kind"], words, match["body"], page[: match.start()].count("\n") + 1))
    return found


class Walk:
    """Follows the blocks in a folder of its own; programs are looked for in ``programs`` first."""

    def __init__(self, folder, root, programs=Path(sys.executable).parent):
        self.folder, self.printed, self.commands = folder, "", 0
        paths = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}

    def follow(self, block):
        """Do what one block says. AssertionError, with its line, when something else comes out."""
        {"python": self._write, "diff": self._change, "sh": self._run, "text": self._expect}[block.kind](block)

    def _write(self, block):
        (self.folder / block.words["title"]).write_text(block.body)

    def _change(self, block):
        file, lines = self.folder / block.words["title"], block.body.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
        text = file.read_text()
        assert text.count(old) == 1, f"line {block.line}: found {text.count(old)} times in {file.name}: {old}"
        file.write_text(text.replace(old, new))

    def _run(self, block):
        done = subprocess.run(
            ["bash", "-e", "-c", block.body],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        self.printed, self.commands = done.stdout, self.commands + 1
        expected = int(block.words.get("title", "exit code 0").removeprefix("exit code "))
        assert done.returncode == expected, f"line {block.line}: exit code {done.returncode}\n{done.stdout}"

    def _expect(self, block):
        rest = self.printed
        for piece in pieces(block.body):
            _, found, rest = rest.partition(piece)
            assert found, f"line {block.line}: not printed, or out of order: {piece!r}\n{self.printed}"


def pieces(text):
    """What has to be printed in this order, between the gaps."""
    for part in re.split(rf"^{re.escape(GAP)}$|{re.escape(GAP)}$", text, flags=re.MULTILINE):
        if part.strip():
            yield part.strip("\n")
