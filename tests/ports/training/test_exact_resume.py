"""Stopped anywhere and resumed, a run ends where the one that was never stopped ended: to the bit."""

import json
from pathlib import Path

import pytest
import torch

DTYPES = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def straight():
    """Finished runs by their options, so that every one is made once."""
    return {}


@pytest.fixture
def never_stopped(straight, run_to_the_end, tmp_path_factory):
    def get(algorithm, **options):
        key = (algorithm, *sorted(options.items()))
        if key not in straight:
            straight[key] = run_to_the_end(algorithm, tmp_path_factory.mktemp("straight"), **options)
        return straight[key]

    return get


STOPPED = [  # at a micro-batch, with so many in a step
    ("eagle3", "no", 6, 1),  # the first of the second pass
    ("eagle3", "no", 4, 4),  # the first of a pass' last, shorter window
    ("hass", "no", 5, 1),  # the last of a pass
    ("hass", "bf16", 11, 1),  # the run's last
    *(
        pytest.param(*each, marks=pytest.mark.nightly)
        for each in (
            ("eagle3", "no", 0, 1),  # the first of the run
            ("eagle3", "no", 11, 1),
            ("hass", "no", 1, 4),  # in the middle of a window
            ("eagle3", "bf16", 8, 2),
        )
    ),
]


@pytest.mark.parametrize(("algorithm", "precision", "stop", "accumulation"), STOPPED)
def test_stopped_anywhere(
    never_stopped, run_until, run_to_the_end, tmp_path_factory, algorithm, precision, stop, accumulation
):
    options = {"mixed_precision": precision, "gradient_accumulation_steps": accumulation}
    expected, cpdir = never_stopped(algorithm, **options), tmp_path_factory.mktemp("stopped")
    checkpoint = run_until(algorithm, cpdir, stop, **options)
    found = run_to_the_end(algorithm, cpdir, ckpt_path=checkpoint, **options)
    assert expected.differs_from(found) == []
    assert found.lines[-2:] == expected.lines[-2:]


def test_loader_processes_draw_the_noise(never_stopped):
    """So that another number of them is another run, and the test above means something; else it is none."""
    assert "metrics" in never_stopped("eagle3").differs_from(never_stopped("eagle3", num_workers=2))
    for options in (KEYED, {"noise": False}, {"online": True}):
        alone, two = (never_stopped("eagle3", num_workers=number, **options) for number in (0, 2))
        assert alone.differs_from(two) == []


KEYED, SKIP = {"noise_stream": "keyed"}, {"on_bad_record": "skip"}
HELD_OUT = [
    ("eagle3", 3, {}),  # the last step of a pass, which is stopped before it is validated
    ("eagle3", 6, {**KEYED, **SKIP, "num_workers": 2, "save_steps": 3}),
    ("hass", 1, {**KEYED, **SKIP, "online": True, "bs": 2, "group_by_length": True}),
    *(
        pytest.param(*each, marks=pytest.mark.nightly)
        for each in (
            ("hass", 5, {"max_steps": 6}),  # the last of the run
            ("hass", 6, {"num_workers": 2, "group_by_length": True}),
            ("hass", 2, {**KEYED, "bs": 2, "packing": True, "group_by_length": True}),
            ("eagle3", 6, {"online": True}),
        )
    ),
]


@pytest.mark.parametrize(("algorithm", "stop", "options"), HELD_OUT, ids=str)
def test_what_is_held_out_is_looked_at_as_if_nothing_had_been(
    never_stopped, run_until, run_to_the_end, fixture, tmp_path, algorithm, stop, options
):
    """Records 1 and 3 are held out; all are of several dtypes, and with ``skip`` one of either kind is bad."""
    for number in range(6):
        file, dtype = fixture / f"data_{algorithm}" / f"data_{number}.ckpt", DTYPES[number % 3]
        record = torch.load(file, weights_only=True)
        torch.save({name: each.to(dtype) if each.is_floating_point() else each for name, each in record.items()}, file)
        if "on_bad_record" in options and number in (1, 4):
            file.write_bytes(b"")
    options = {"val_fraction": 0.33, "val_steps": 2, "keep_last": 2, **options}
    expected = never_stopped(algorithm, **options)
    run_until(algorithm, tmp_path, stop, **options)
    found = run_to_the_end(algorithm, tmp_path, ckpt_path=Path("auto"), **options)
    assert expected.differs_from(found) == []
    assert found.lines[-4:] == expected.lines[-4:], "with what was skipped in the pass"
    assert (
        found.metrics.count(b"val_expected_acceptance") == options.get("max_steps", 8 // options.get("bs", 1)) // 2 + 2
    )
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {{"epoch": "pass"}.get(name, name): value for name, value in found.state["best_accepted"].items()}
    assert (tmp_path / best["checkpoint"]).is_dir()


def test_saving_often_changes_nothing_and_every_save_can_be_gone_on_from(never_stopped, run_to_the_end, tmp_path):
    found = run_to_the_end("eagle3", tmp_path / "saved", save_steps=1)
    assert never_stopped("eagle3").differs_from(found) == []
    saved = {int(path.name[5:]) for path in (tmp_path / "saved").glob("step_*")}
    assert saved == set(range(2, 13)), "the first draw has no row in the loss"
    for step in (2, 7):
        found = run_to_the_end("eagle3", tmp_path / f"from_{step}", ckpt_path=tmp_path / "saved" / f"step_{step}")
        assert never_stopped("eagle3").differs_from(found) == [], step


def test_a_finished_run_has_nothing_left_to_do(never_stopped, run_to_the_end, tmp_path):
    run_to_the_end("eagle3", tmp_path)
    found = run_to_the_end("eagle3", tmp_path, ckpt_path=Path("auto"))
    assert never_stopped("eagle3").differs_from(found) == []
    assert found.lines == ["training on 6 examples total"]


def test_max_steps_may_grow(never_stopped, run_to_the_end, start_run, tmp_path):
    start_run("eagle3", tmp_path, max_steps=4).run()
    found = run_to_the_end("eagle3", tmp_path, ckpt_path=tmp_path / "model0")
    assert never_stopped("eagle3").differs_from(found) == []
