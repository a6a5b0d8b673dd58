"""From plain JSON values back to the report's dataclasses, led by their type hints."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


class MismatchError(ValueError):
    """A value is not what its type hint says: where it lies, what was found and what was expected."""

    def __init__(self, where: str, found: str, expected: str) -> None:
        self.where, self.found, self.expected = where, found, expected
        super().__init__(f"{where}: found {found}, expected {expected}")


def decode(hint: Any, value: Any, where: str) -> Any:
    """``value`` as ``hint``; MismatchError when it is something else."""
    if hint is Any:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return _decode_fields(hint, value, where)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return None if value is None else decode(get_args(hint)[0], value, where)
    if origin in (list, tuple):
        return _decode_items(hint, value, where)
    return _decode_scalar(origin or hint, value, where)


def _decode_fields(hint: type, value: Any, where: str) -> Any:
    found = _expect(dict, value, where)
    known = {field.name: field for field in fields(hint)}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    for name in sorted((needed - set(found)) | (set(found) - set(known))):
        expected = "a value" if name in needed else f"no such field, only {', '.join(known)}"
        raise MismatchError(f"{where}.{name}", "nothing" if name in needed else repr(found[name]), expected)
    hints = get_type_hints(hint)
    return hint(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in found.items()})


def _decode_items(hint: Any, value: Any, where: str) -> Any:
    items = _expect(list, value, where)
    kinds = get_args(hint)
    if get_origin(hint) is tuple and kinds[-1] is not Ellipsis and len(kinds) != len(items):
        raise MismatchError(where, f"{len(items)} entries", str(len(kinds)))
    container: type = list if get_origin(hint) is list else tuple
    return container(decode(_kind(kinds, i), item, f"{where}[{i}]") for i, item in enumerate(items))


def _kind(kinds: tuple[Any, ...], index: int) -> Any:
    return kinds[0] if len(kinds) == 1 or kinds[-1] is Ellipsis else kinds[index]


def _decode_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        return _decode_float(value, where)
    if issubclass(hint, Enum):
        return _decode_enum(hint, value, where)
    return _expect(hint, value, where)


def _decode_float(value: Any, where: str) -> float:
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MismatchError(where, repr(value), "a number")
    return float(value)


def _decode_enum(hint: type[Enum], value: Any, where: str) -> Enum:
    try:
        return hint(value)
    except ValueError as error:
        raise MismatchError(where, repr(value), f"one of {[member.value for member in hint]}") from error


def _expect(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise MismatchError(where, type(value).__name__, kind.__name__)
    return value
