"""What a record says."""

from types import SimpleNamespace

from mutation.outcome import record


def test_a_record_names_no_folder_of_a_machine():
    mutant = SimpleNamespace(key="k", file="ports/a.py", group="data", place=(1, 0), operator="core/X")
    detail = "/home/me/x.y/data_0.ckpt, /tmp/t-1/b/state.json: loss: found nan in ports/a.py at 1/2"
    found = record(mutant, [], "killed", {"check": "run", "detail": detail})
    assert found["detail"] == "data_0.ckpt, state.json: loss: found nan in ports/a.py at 1/2"
