"""Which hits rounding decides."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.trace import TIE

PLACES = 3


@torch.no_grad()
def near_ties(logits: Tensor, target_p: Tensor, rows: Tensor) -> tuple[int, ...]:
    """For places 1, 2, 3 the rows in the loss whose target's logit lies within ``TIE`` of that place's other candidate.

    Args:
        logits, target_p: [B, T, D], the draft's at the last step and the verifier's distribution.
        rows: bool [B, T], the positions in the loss.
    """
    chosen, wanted = logits[rows].double(), target_p[rows].argmax(-1, keepdim=True)
    own = chosen.gather(1, wanted)
    others = chosen.scatter(1, wanted, -torch.inf).topk(min(PLACES, chosen.shape[-1]), dim=-1).values
    return tuple(((own - others).abs() <= TIE).sum(0).tolist())
