"""What vLLM hands hidden states to, in its worker: they stay in memory there until :func:`taken`.

vLLM imports this module by its name; its own connector writes files, through memory that only CUDA has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as vllms

KEPT: dict[str, Tensor] = {}
"""By request: [T, layers, h] on the CPU."""


class KeptStates(vllms.ExampleHiddenStatesConnector):
    """Copies a finished request's states out of the cache at once, on the first of the ranks, which all have them."""

    def _submit_async_write(self, pending: Any) -> None:
        if self._is_tp_rank_zero:
            blocks = torch.tensor(pending.block_ids, dtype=torch.long)[:, None] * self._block_size
            slots = (blocks + torch.arange(self._block_size)).flatten().to(self._kv_cache.device)
            states = vllms.extract_from_kv_cache(self._kv_cache, slots, len(pending.token_ids))
            KEPT[pending.req_id] = states.cpu()
            self._req_copy_events[pending.req_id] = _Done()


class _Done:
    """What stands for a copy on its way where none is."""

    def query(self) -> bool:
        return True


def taken(_: Any) -> dict[str, Tensor]:
    """What a worker has kept, given away."""
    found = dict(KEPT)
    KEPT.clear()
    return found
