from __future__ import annotations

from datetime import date

import pytest

from ports.generate.chat import FirstMatch, Offsets, load_family


def test_the_shipped_families() -> None:
    assert isinstance(load_family("llama").prototype_mask, Offsets)
    assert isinstance(load_family("qwen").prototype_mask, FirstMatch)
    assert isinstance(load_family("mistral").prototype_mask, FirstMatch)
    assert load_family("plain").prototype_mask is None
    assert load_family("harmony").today == date(2025, 8, 5)
    assert load_family("llama4").variables == {}
    assert load_family("llama").system == "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"


def test_a_new_family_is_a_few_lines(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("gemma:\n  system: Be brief.\n")
    assert load_family(f"{file}:gemma").system == "Be brief."


BAD = [
    ("- a\n", "x", "chat_template", "list", "a mapping"),
    ("a: {system: [", "a", "chat_template", "", "a readable YAML file"),
    ("a: {}\n", "b", "chat_template", "b", "one of a, or FILE.yaml:NAME"),
    ("a: {sytem: x}\n", "a", "a.sytem", "'x'", "not permitted"),
    ("a: {today: soon}\n", "a", "a.today", "soon", "date"),
    ("a: {prototype_mask: {rule: guess}}\n", "a", "a.prototype_mask", "guess", "'offsets', 'first_match'"),
    (
        "a: {prototype_mask: {rule: first_match, after: x}}\n",
        "a",
        "a.prototype_mask.first_match.before",
        "",
        "required",
    ),
]


@pytest.mark.parametrize(("text", "name", "field", "found", "expected"), BAD)
def test_a_bad_table_is_refused(tmp_path, refuses, text, name, field, found, expected) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with refuses(file, field, found, expected):
        load_family(f"{file}:{name}")


def test_a_missing_table_is_refused(tmp_path, refuses) -> None:
    with refuses(tmp_path / "none.yaml", "chat_template", "No such file", "a readable YAML file"):
        load_family(f"{tmp_path}/none.yaml:a")
