"""What rules leave out, and on which lines a mutant sits."""

from __future__ import annotations

import ast

from mutation.reach import statement_lines, watch
from mutation.rules import RULES, left_out, rule_at
from mutation.scope import GROUPS, KEPT_NAMES, LEFT_OUT_FILES, LEFT_OUT_NAMES, ROOT, files

SOURCE = """\
Alias = Callable[[int | None], int]
LIMIT = 1 << 3

@dataclass(frozen=True)
class Thing:
    size: int | None = 4

    def grow(self, by: int | str = 9) -> int | None:
        if self.size > 3 and (
            by > 1
        ):
            raise ValueError("é" + str(by - 1))
        warnings.warn(f"{by + 1}")
        try:
            return self.size + 1
        except KeyError:
            return 2

if __name__ == "__main__":
    print(1 + 1)
"""


def rules_of(needle: str, offset: int = 0, file: str = "ports/some.py", source: str = SOURCE) -> str | None:
    line = next(number for number, text in enumerate(source.splitlines(), 1) if needle in text)
    column = source.splitlines()[line - 1].index(needle) + offset
    return rule_at(left_out(file, source), (line, column))


def test_annotations_messages_declarations_and_commands_are_left_out():
    assert rules_of("| None], int]") == "annotation"
    assert rules_of("| None = 4") == "annotation"
    assert rules_of("| str") == "annotation"
    assert rules_of("| None:") == "annotation"
    assert rules_of("True") == "declaration"
    assert rules_of("9)") == "default"
    assert rules_of("- 1") == rules_of('by + 1}"') == "message"
    assert rules_of("1 + 1)") == "command"


def test_all_else_is_mutated():
    for needle in ("<< 3", "4", "> 3", "+ 1\n".strip(), "return 2"):
        assert rules_of(needle, source=SOURCE.replace('f"{by + 1}"', '""').replace("1 + 1", "0")) is None, needle


def test_names_that_need_what_is_not_there():
    spans = left_out("ports/training/settings.py", (ROOT / "ports/training/settings.py").read_text())
    lines = (ROOT / "ports/training/settings.py").read_text().splitlines()
    schedule = next(number for number, text in enumerate(lines, 1) if "def schedule" in text)
    assert rule_at(spans, (schedule + 2, 8)) is None, "kept inside of a class that is left out"
    assert rule_at(spans, (schedule - 2, 8)) == "elsewhere"


def test_sizes_are_left_out():
    file = "ports/training/loss/likeliest.py"
    source = (ROOT / file).read_text()
    assert rules_of("512", file=file, source=source) == "size"
    assert rules_of("count * BLOCK", file=file, source=source) is None


def test_every_name_that_is_left_out_exists():
    for name in (*LEFT_OUT_NAMES, *KEPT_NAMES):
        file, _, qualified = name.partition(":")
        source = (ROOT / file).read_text()
        assert all(f" {part}" in source for part in qualified.split(".")), name
    assert all((ROOT / file).is_file() for file in LEFT_OUT_FILES)
    assert set(files().values()) == set(GROUPS)
    assert set(files("loss/").values()) == {"objective"}
    assert "elsewhere" in RULES


def test_the_lines_of_a_statement():
    tree = ast.parse(SOURCE)
    assert statement_lines(tree, 2) is None
    assert statement_lines(tree, 6) is None
    assert statement_lines(tree, 10) == {9, 10, 11}, "the header of an if"
    assert statement_lines(tree, 12) == {12}
    assert statement_lines(tree, 16) == {16}, "an except clause"


def test_lines_that_run_are_seen():
    from ports.training.metrics import PassTotals

    with watch() as lines:
        assert PassTotals(3.0, 2).mean == 1.5
    source = (ROOT / "ports/training/metrics.py").read_text().splitlines()
    assert [source[number - 1].strip() for number in lines["ports/training/metrics.py"]] == [
        'return self.loss / self.batches if self.batches else float("nan")'
    ]
