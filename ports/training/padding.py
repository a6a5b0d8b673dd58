"""Which padding a batch has: attention that never looks ahead needs no mask where all of it is on the right."""

from __future__ import annotations

from torch import Tensor

from ports.training.once import once_per_tensor


@once_per_tensor
def right_padded(mask: Tensor) -> bool:
    """Does every row of ``mask`` [B, T] hold one document, whose ones come before zeros?

    The answer waits for the device once per mask tensor, not once per step and layer.
    """
    real = mask.bool()
    return bool((real[:, :-1] | ~real[:, 1:]).all() & (mask <= 1).all())
