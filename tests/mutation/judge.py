"""Judge edits of the ports' files in forks of this process: ``judge.py jobs.json``; prints one JSON object a line.

A job: file, old, new (a piece of its source and what takes its place), parts, limit (seconds of processor time).
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from mutation import outcome, worker
from mutation.scope import ROOT
from mutation.server import _import_all


def judge(job):
    source = (ROOT / job["file"]).read_text()
    assert job["old"] in source, job
    mutated = source.replace(job["old"], job["new"], 1)
    folder = Path(tempfile.mkdtemp())
    limits = dict.fromkeys((worker.IMPORT, *job["parts"]), job["limit"])
    pid = worker.fork(folder, lambda: worker.judged(job["file"], mutated, job["parts"], limits))
    _, status = os.waitpid(pid, 0)
    mutant = SimpleNamespace(key="", file=job["file"], group="", place=(1, 0), operator="core/Edit")
    return outcome.ended(outcome.Running(mutant, [], folder), status, pid)


if __name__ == "__main__":
    _import_all(["speculators.models.eagle3", "accelerate", "datasets"])
    for each in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps({"name": each["name"], **judge(each)}), flush=True)
    ports = [name for name in sys.modules if name.partition(".")[0] in ("ports", "parity")]
    print(json.dumps({"name": "parent", "imported": ports}))
