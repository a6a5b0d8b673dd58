"""The verifier's distribution in the plain way, which the fused target is held against."""

import torch
from torch import Tensor

from ports.training.loss.objective import Target


def verifier_target(hidden: Tensor, head: Tensor) -> Target:
    """``hidden`` [B, T, h] after the final norm, shifted; ``head`` [D, h] float32."""
    with torch.no_grad():
        logits = hidden.float() @ head.t()
    return Target(logits, torch.softmax(logits, dim=-1))
