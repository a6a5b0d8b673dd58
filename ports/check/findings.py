"""What a step of a check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ports.errors import InputError


@dataclass(frozen=True)
class Finding:
    """Of ``step``: what was measured, in a line, and of a fault or a step that was left out, what to do about it."""

    step: str
    state: Literal["ok", "fault", "left out"]
    figure: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def ok(step: str, figure: str, /, **numbers: Any) -> Finding:
    """Nothing is wrong."""
    return Finding(step, "ok", figure, numbers=numbers)


def fault(step: str, figure: str, advice: str, /, **numbers: Any) -> Finding:
    """Something is wrong, and ``advice`` says what to do, in a sentence."""
    return Finding(step, "fault", figure, advice, numbers)


def left_out(step: str, why: str, advice: str) -> Finding:
    """It was not looked at."""
    return Finding(step, "left out", why, advice)


def finding_of(step: str, advice: str, look: Callable[[], Finding]) -> Finding:
    """What ``look`` finds; a refusal of what it reads is a fault of this step."""
    try:
        return look()
    except InputError as error:
        return fault(step, str(error), advice)
