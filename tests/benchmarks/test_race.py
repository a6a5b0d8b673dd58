import pytest

import parity.prototypes.reference.loop
from benchmarks.race import race
from benchmarks.shapes import Shape, build_case, sides_of
from benchmarks.sides import reference
from tests.forked import FORKS

SHAPE = Shape("hass", 48, 2)


@pytest.fixture(autouse=True)
def forks(monkeypatch):
    """Sides that need not import everything anew."""
    monkeypatch.setattr("benchmarks.race.get_context", lambda method: FORKS)


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
    with pytest.raises(KeyError, match="nobody"):
        race(SHAPE, ["nobody"], 1, tmp_path)


def test_the_reference_keeps_nothing_that_the_prototype_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(parity.prototypes.reference.loop, "keep_steps", None)
    assert 0 < next(reference(build_case(SHAPE, tmp_path, tmp_path, 1), SHAPE, tmp_path)) < 100


@pytest.mark.parametrize(
    ("shape", "original", "sides"),
    [
        (Shape("eagle3", 16384), True, ["port chain", "port"]),
        (Shape("hass", 1024), True, ["original", "reference", "port eager", "port"]),
        (Shape("eagle3", 1024), False, ["reference", "speculators", "port chain", "port eager", "port"]),
        (Shape("eagle3", 1024, dtype="bf16"), True, ["speculators", "port chain", "port eager", "port"]),
    ],
    ids=str,
)
def test_dense_sides_stay_away_from_long_rows_and_the_port_does_not(shape, original, sides):
    assert sides_of(shape, original) == sides
