import json

from safetensors import safe_open

from parity.fixtures import RECORDINGS
from ports.eagle3.names import to_native, to_prototype


def test_every_recorded_parameter_has_a_native_name_and_back(lively_draft):
    with safe_open(RECORDINGS / "initial_eagle3_fp32.safetensors", "pt") as file:
        recorded = {name[5:] for name in file.keys() if name.startswith("init.")}  # noqa: SIM118 (safe_open is no dict)
    recorded |= {"embed_tokens.weight"}
    native = {name for name, _ in lively_draft().named_parameters() if not name.startswith("verifier_")}
    assert {to_native(name) for name in recorded} == native
    assert {to_prototype(name) for name in native} == recorded


def test_what_trains_is_what_trained(lively_draft):
    meta = json.loads((RECORDINGS / "eagle3_fp32_k3" / "meta.json").read_text())
    frozen = {to_native(name) for name in meta["frozen_unchanged_after_training"]}
    own = {name: value.requires_grad for name, value in lively_draft().named_parameters() if "verifier" not in name}
    assert {name for name, trains in own.items() if not trains} == frozen == {"embed_tokens.weight"}
