"""Answers that were cut at their longest, and the length that would cut fewer."""

from __future__ import annotations

import json
import math
from pathlib import Path

BEYOND = 0.05
"""Share of the answers that may be cut without another limit being proposed."""


def told_of_cuts(file: Path, limit: int, longest: int) -> list[str]:
    """How many answers in ``file`` were cut at ``limit`` tokens, if any were, and a limit that would cut fewer.

    The limit is the one that lengths which fall off exponentially, as many as are beyond ``limit``, reach in 95 %; at
    most four times ``limit``, and half of the ``longest`` dialogue.
    """
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    reasons = [why for row in rows for why in row.get("finish_reasons", [row["finish_reason"]])]
    cut, answers = reasons.count("length"), len(reasons)
    if not cut:
        return []
    said = f"{cut:,} of {answers:,} answers were cut at --max-new-tokens {limit}"
    beyond = min(cut, answers - 0.5) / answers
    longer = min(math.ceil(limit * min(4, math.log(BEYOND) / math.log(beyond))), longest // 2)
    return [said + (f"; --max-new-tokens {longer} would cut fewer" if beyond > BEYOND and longer > limit else "")]
