"""Eagle3: research/eagle3 of vllm-project/speculators against ``ports.eagle3``, which Speculators knows too."""

from __future__ import annotations

from parity.evidence import Check, Evidence
from parity.prototypes.checks.chain import check_chain
from parity.prototypes.checks.round_trip import check_converted
from parity.prototypes.pair import port_in_fp32, prototype_pair
from parity.verdict import Against


def _needs_final(evidence: Evidence) -> str | None:
    if not evidence.expected.group("final."):
        return "the recording kept no final parameters"
    return port_in_fp32(evidence)


PAIR = prototype_pair(
    "eagle3",
    (
        Check("chain", check_chain, ("loss", "paths", "gradients"), port_in_fp32, Against.LIBRARY),
        Check("converted", check_converted, ("curve", "round_trip"), _needs_final, Against.LIBRARY),
    ),
)
