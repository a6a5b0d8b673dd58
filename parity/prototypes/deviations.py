"""Deviations: where the prototypes depart from what their papers, Speculators or a reader would expect.

It is the page ``docs/deviations.md``; ``deviations.md`` beside this file is a link to it.
"""

from __future__ import annotations

import re
from pathlib import Path

from parity.verdict import Deviation

PAGE = Path(__file__).with_name("deviations.md")
ENTRY = re.compile(
    r"^## (?P<id>\S+)\n\nWhere: (?P<where>.+)\.\n\nThe prototype: (?P<effect>.+)\.\n\n"
    r"The port: (?P<choice>.+)\.\n\nShown by `(?P<test>.+)`\.$",
    re.MULTILINE,
)
DEVIATIONS = tuple(Deviation(**entry.groupdict()) for entry in ENTRY.finditer(PAGE.read_text(encoding="utf-8")))
