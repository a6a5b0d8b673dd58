import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from parity.errors import InputError
from parity.files import write_whole
from parity.report import print_report, write_json
from parity.report.page import render_html
from parity.verdict import Report, Row, Status


def test_last_line_json_and_page_have_the_counts_of_the_rows(demo, tmp_path):
    write_json(demo, tmp_path / "report.json")
    document, page = json.loads((tmp_path / "report.json").read_text()), render_html(demo)
    assert list(document)[:5] == ["format_version", "passed", "verdict", "counts", "rows"]
    print_report(demo, Console(file=(terminal := io.StringIO())))
    assert terminal.getvalue().splitlines()[-1] == document["verdict"]
    counts, rows = document["counts"], [row for row in document["rows"] if row["passed"] is not None]
    quantities = [row["passed"] for row in rows if row["against"] == "prototype" and not row["beside"]]
    assert (counts["matched"], counts["quantities"]) == (sum(quantities), len(quantities))
    lines = [re.sub(r"<[^>]*>", " ", line).split() for line in page.partition('id="counts"')[2].split("</tr>")]
    assert ["quantities", "of", "the", "prototype", str(sum(quantities)), str(len(quantities))] in lines
    for word, (passed, run) in counts["checks"].items():
        assert f"; {word} {passed} of {run}" in document["verdict"]
        assert ["checks:", word, str(passed), str(run)] in lines


def test_json_is_strict_with_floats_in_full(tmp_path):
    values = (0.1 + 0.2, math.nan, math.inf, -math.inf)
    report = Report(rows=[Row("c", "k\udcff", "r", "q", "t", v, 1e-300, Status.FAILED) for v in values])
    report.environment = {"where": Path("a"), "x": {1: math.nan}, "flags": (True, None)}
    write_json(report, tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert [row["measured"] for row in document["rows"]] == [0.30000000000000004, "NaN", "Infinity", "-Infinity"]
    assert document["rows"][0]["allowed"] == 1e-300
    assert document["environment"] == {"where": "a", "x": {"1": "NaN"}, "flags": [True, None]}


def test_a_failed_write_leaves_the_old_file_and_says_which(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "report.json"
    write_whole(path, "old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"report\.json: file: found No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", ["a_file/report.html", "a_folder"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "a_file").touch()
    (tmp_path / "a_folder").mkdir()
    with pytest.raises(InputError, match=f"{place}: file: found .*, expected a place that can be written"):
        write_whole(tmp_path / place, "text")
