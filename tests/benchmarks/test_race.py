import pytest

from benchmarks.matrix import FULL, QUICK, sides_of
from benchmarks.race import Racer, race
from benchmarks.shapes import Shape

SHAPE = Shape("hass", 48, 2)


def test_sides_step_in_turn_and_say_what_they_took(tmp_path):
    measured = race(SHAPE, ["port eager", "port"], 2, tmp_path)
    assert list(measured) == ["port eager", "port"]
    for side, found in measured.items():
        assert len(found.seconds) == 2, side
        said = found.as_json()
        assert said["tokens_per_second"] == 48 / min(found.seconds)
        assert 0 < said["fraction_of_gemm_peak"] < 1
        assert said["peak_bytes"] > 1e8
    assert measured["port"].loss == pytest.approx(measured["port eager"].loss, rel=5e-6)


def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
        Racer("nobody", SHAPE, 1, tmp_path)


def test_dense_sides_stay_away_from_long_rows_and_the_port_does_not():
    assert sides_of(Shape("eagle3", 16384), original=True) == ["port chain", "port"]
    assert sides_of(Shape("hass", 1024), original=True) == ["original", "reference", "port eager", "port"]
    assert "original" not in sides_of(Shape("eagle3", 1024), original=False)
    assert "reference" not in sides_of(Shape("eagle3", 1024, dtype="bf16"), original=False)


def test_the_matrix_spans_what_it_says():
    assert {shape.length for shape in FULL} == {256, 512, 1024, 2048, 4096, 8192, 16384}
    assert {shape.ttt_steps for shape in FULL} == {1, 2, 3, 4, 5, 6, 7}
    assert {shape.dtype for shape in FULL} == {"fp32", "bf16"}
    assert {shape.threads for shape in FULL} == {1, 2}
    assert set(QUICK) <= set(FULL)
    assert len(set(FULL)) == len(FULL)
