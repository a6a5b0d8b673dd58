"""Studies of the toys, which compute what the originals compute; of toys with a planted fault; and of the originals."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity.errors import InputError
from parity.prototypes.explain.run import STUDIES, run_studies, speculators_algorithms
from parity.prototypes.others import OTHERS
from tests.parity.toys import seal

FAULTS = {
    ("hass", "model/cnets_hass.py", "for cause in CAUSES)", "for cause in CAUSES if cause.id != 'unmasked-softmax')"): {
        "hidden, step 0",
        "logits, step 2",
    },
    ("hass", "train/main_hass.py", "vloss + train_config", "1.01 * vloss + train_config"): {"loss, step 0"},
    ("hass", "train/main_hass.py", "mask[-1] = 0", "mask[0] = 0"): {"loss, step 0", "loss, total"},
}
"""One line of a toy changed, and quantities that can no longer be explained."""


def unexplained(studies) -> set[str]:
    return {finding.quantity for study in studies for finding in study.findings if not finding.left.passed}


def test_every_study_of_the_toys_passes(toys: dict[str, Path], recordings: Path) -> None:
    said: list[str] = []
    studies = run_studies(toys, recordings, said.append)
    assert len(studies) == len(said) == sum(map(len, STUDIES.values())) == 4
    failed = [row for study in studies for row in study.rows if not row.passed]
    assert not failed
    assert all(study.passed for study in studies)
    assert min(len(study.rows) for study in studies) > 20


@pytest.mark.parametrize(("fault", "quantities"), FAULTS.items(), ids=lambda value: value[2] if len(value) == 4 else "")
def test_a_fault_in_the_original_is_named(fault, quantities, toys, recordings, monkeypatch) -> None:
    name, file, before, after = fault
    path = toys[name] / OTHERS[name].folder / file
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    seal(toys[name], name, monkeypatch)
    studies = run_studies({name: toys[name]}, recordings)
    assert not all(study.passed for study in studies)
    assert quantities <= unexplained(studies)
    assert "features" not in unexplained(studies)


def test_a_fault_in_eagles_weights_is_named(toys, recordings, monkeypatch) -> None:
    """The tampered weight reaches what it feeds and nothing before it."""
    path = toys["eagle"] / OTHERS["eagle"].folder / "cnets.py"
    text = path.read_text()
    path.write_text(text.replace("found = self.lm_head(", "found = 1.001 * self.lm_head("))
    assert path.read_text() != text
    seal(toys["eagle"], "eagle", monkeypatch)
    found = unexplained(run_studies({"eagle": toys["eagle"]}, recordings))
    assert {"loss, step 0", "gradients, lm_head"} <= found
    assert not found & {"features", "hidden, step 0", "hidden, step 2"}


def test_nothing_to_study_is_bad_input(recordings: Path) -> None:
    with pytest.raises(InputError, match="--eagle, --hass: found neither"):
        run_studies({}, recordings)


def test_speculators_own_algorithms() -> None:
    found = speculators_algorithms()
    assert "eagle3" in found
    assert "hass" not in found  # the port registers one, which is not Speculators' own


@pytest.mark.eagle
def test_the_real_eagle(eagle_dir: Path, recordings: Path) -> None:
    studies = run_studies({"eagle": eagle_dir}, recordings)
    assert [row for study in studies for row in study.rows if not row.passed] == []
    assert [study.against for study in studies][-1] == "Speculators"


@pytest.mark.hass
def test_the_real_hass(hass_dir: Path, recordings: Path) -> None:
    (study,) = run_studies({"hass": hass_dir}, recordings)
    assert [row for row in study.rows if not row.passed] == []
