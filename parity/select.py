"""``-k EXPR``: choose cases by words of their names, with ``and``, ``or``, ``not`` and parentheses, as pytest does."""

from __future__ import annotations

import ast
import re

from parity.errors import InputError

WORD = re.compile(r"[\w.-]+")
FORMULA = (ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Constant)


def matches(expression: str, name: str) -> bool:
    """True when ``name`` fits; every word stands for "is part of the name", an empty expression fits everything.

    Raises:
        InputError: an expression that cannot be read.
    """
    if not expression.strip():
        return True
    if not re.fullmatch(r"[\w.\s()-]+", expression):
        raise InputError("command line", "-k", repr(expression), "words, and, or, not, parentheses")
    formula = WORD.sub(lambda match: _value(match.group(), name), expression)
    try:
        tree = ast.parse(formula.strip(), mode="eval")
        fits = all(isinstance(node, FORMULA) for node in ast.walk(tree))
        if fits:  # only True, False, and, or, not and parentheses are left
            return bool(eval(compile(tree, "-k", "eval"), {"__builtins__": {}}))
    except (SyntaxError, RecursionError, MemoryError):
        pass
    raise InputError("command line", "-k", repr(expression)[:80], "words joined by and, or, not")


def _value(word: str, name: str) -> str:
    return word if word in ("and", "or", "not") else str(word in name)
