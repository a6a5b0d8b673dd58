"""At its new place; gone once nothing imports it from here."""

from collections.abc import Mapping

from torch import Tensor

from parity.environment import deterministic
from parity.kit.names import NameMap
from parity.side import Side, dtype_of, start, state_of, trace_side


def original_weights(side: Side, names: NameMap, seed: int) -> Mapping[str, Tensor]:
    """What the original starts from, by the port's names."""
    with deterministic(seed):
        return names.parameters(state_of(side.build()))


__all__ = ["dtype_of", "original_weights", "start", "trace_side"]
