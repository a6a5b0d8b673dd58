"""Fold the part of the fusion that depends on the token alone into an embedding table of the draft's own.

``fc`` reads [E ; H], E = RMSNorm(embedding[t]), with weight [F_e | F_h] and, in some EAGLE-1 drafts, a bias b. Then

    fc([E ; H]) = E'[t] + F_h H = [I | F_h] [E'[t] ; H],    E'[t] = F_e RMSNorm(embedding[t]) + b

exactly, so a server needs neither the norm nor the bias, and multiplies half as much. The norms on the hidden state and
before the head depend on more than the token: they stay. Shapes: V vocabulary, h hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold(embedding: Tensor, norm: Tensor, eps: float, fc: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The table E' [V, h] and the weight ``[I | F_h]`` [h, 2h], computed in float64 and given in the dtype of ``fc``.

    Args:
        embedding: [V, h].
        norm: [h], the RMSNorm's weight, and its ``eps``.
        fc: [h, 2h], the token's half first, and its ``bias`` [h].
    """
    width = embedding.shape[1]
    exact = embedding.double()
    normed = norm.double() * exact / (exact.square().mean(-1, keepdim=True) + eps).sqrt()
    table = normed @ fc[:, :width].double().T
    if bias is not None:
        table = table + bias.double()
    return table.to(fc.dtype), torch.cat([torch.eye(width, dtype=fc.dtype), fc[:, width:]], dim=1)
