"""HASS: research/hass of vllm-project/speculators against ``ports.hass``, a model that Speculators learns of by it."""

from __future__ import annotations

from parity.evidence import Check
from parity.prototypes.checks.initial import check_initial
from parity.prototypes.pair import port_in_fp32, prototype_pair
from parity.verdict import Against

PAIR = prototype_pair("hass", (Check("initial", check_initial, (), port_in_fp32, Against.LIBRARY, once=True),))
