"""HASS: research/hass of vllm-project/speculators against ``ports.hass``."""

from parity.prototypes.pair import prototype_pair

PAIR = prototype_pair("hass")
