"""Which padding a batch has: attention that never looks ahead needs no mask where all of it is on the right."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def right_padded(mask: Tensor) -> bool:
    """Does every row of ``mask`` [B, T] hold its ones before its zeros?

    The answer waits for the device once per mask tensor, not once per step and layer: it is remembered while the tensor
    lives and is not written to.
    """
    version = 0 if mask.is_inference() else mask._version
    if _known.get(mask, (None,))[0] != version:
        real = mask.bool()
        _known[mask] = (version, bool((real[:, :-1] | ~real[:, 1:]).all()))
    verdict: bool = _known[mask][1]
    return verdict
