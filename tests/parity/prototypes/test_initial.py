"""Speculators' extension points, asked once for HASS."""

import ports.training.tied_verifier_ends
from parity.pair import EVERYTHING
from parity.prototypes.library import initial
from parity.verdict import Status


def failed(report):
    return [(row.quantity, row.tensor) for row in report.rows if row.status is Status.FAILED]


def test_a_draft_of_speculators_arguments_is_as_asked_for():
    report = initial(EVERYTHING)
    assert {row.against.value for row in report.rows} == {"speculators"}
    assert len(report.rows) == 5
    assert failed(report) == []


def test_a_draft_without_its_verifier_is_named(monkeypatch):
    attach = ports.training.tied_verifier_ends.attach_verifier

    def forgetful(*words):
        attached = attach(*words)
        attached.verifier.name_or_path = None
        return attached

    monkeypatch.setattr(ports.training.tied_verifier_ends, "attach_verifier", forgetful)
    assert ("extension", "config") in failed(initial(EVERYTHING))
