"""The bounds that nothing is measured for, and a user's own."""

import json

import pytest

from parity.errors import InputError
from parity.tolerances import UNITS, Kind, Tolerance, by_dtype, read_tolerances


def test_a_wider_dtype_is_held_closer():
    for quantity in UNITS:
        sizes = [by_dtype(quantity, dtype).bound for dtype in ("float64", "float32", "float16", "bfloat16")]
        assert sizes == sorted({*sizes})


def test_what_has_no_bound_is_refused():
    with pytest.raises(InputError, match="dtype: found int8"):
        by_dtype("out", "int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"kind": "LOOSE"}, "out.kind: found 'LOOSE', expected .*one of EQUAL, ABSOLUTE"),
        ({"kind": []}, "out.kind: found"),
        ({"bound": "1"}, "out.bound: found '1'"),
        ({"bound": True}, "out.bound: found True"),
        ({"bound": -1}, "out.bound: found -1"),
        ({"bound": float("nan")}, "out.bound: found nan"),
        ({"reason": " "}, "out.reason: found ' '"),
        ({"bounds": 1}, "out.bounds: found 1"),
    ],
)
def test_a_file_of_rows_is_read(change, message, tmp_path):
    file, row = tmp_path / "own.json", {"kind": "OF_MAX", "bound": 1, "reason": "coarse"}
    file.write_text(json.dumps({"out": {**row, **change}}))
    if not message:
        assert read_tolerances(file) == {"out": Tolerance(Kind.OF_MAX, 1.0, "coarse")}
        return
    with pytest.raises(InputError, match=rf"own.json: {message}"):
        read_tolerances(file)
