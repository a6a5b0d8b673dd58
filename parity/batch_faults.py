"""Faults of what a batch holds: its entries shifted, one token more in the loss, one position less seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parity.plants import Fault, Plant, feeding

IGNORED = -100
"""The label that torch's cross entropy leaves out."""

Change = Callable[[Tensor], Tensor | None]


def _at(key: str, change: Change) -> Plant:
    """One entry of every batch that is a mapping; None: it stays."""

    def other(number: int, batch: Any) -> Any:
        if not isinstance(batch, Mapping) or not isinstance(batch.get(key), Tensor):
            return None
        changed = change(batch[key])
        return None if changed is None else {**batch, key: changed}

    return feeding(other)


def _shifted(value: Tensor) -> Tensor:
    """By one position, the second axis, to the right."""
    return value.roll(1, min(1, value.dim() - 1))


def _one_more(value: Tensor) -> Tensor:
    """The first entry that is off after one that is on, on."""
    flat = value.clone().view(-1)
    off = (flat == 0).nonzero().flatten()
    after = off[(off > 0) & (flat[off - 1] != 0)]
    flat[(after if len(after) else off)[:1]] = 1
    return flat.view_as(value)


def _one_less(value: Tensor) -> Tensor:
    """The first entry that is on, off; of scores, which are added, a position in the middle out of sight."""
    value = value.clone()
    floating = value.is_floating_point()
    on = (value == 0 if floating else value != 0).view(-1).nonzero()
    if len(on):
        value.view(-1)[on[len(on) // 2 if floating else 0]] = torch.finfo(value.dtype).min if floating else 0
    return value


def _one_label_more(labels: Tensor) -> Tensor | None:
    """An ignored label beside one that counts gets that one's; the first of a row, which no token predicts, none."""
    on = labels != IGNORED
    near = ~on & (on.roll(1, -1) | on.roll(-1, -1))
    near[..., 0] = False
    if not near.any():
        return None
    value, place = labels.clone(), tuple(near.nonzero()[0])
    value[place] = labels[on][0]
    return value


def of_batches(keys: Mapping[str, str]) -> list[Fault]:
    """Faults of what a batch holds, by what its entries are: ``ids``, ``labels``, ``positions``, ``mask`` of the loss,
    ``attention``, or another word, to the batch's own keys. Without a mask, the loss ignores labels of -100."""
    why = "no batch has that entry"
    found = [Fault(f"{word} shifted by one", _at(key, _shifted), otherwise=why) for word, key in keys.items()]
    more, less = "one token more in the loss", "one position less seen"
    changes: dict[str, tuple[str, Change, str]] = {"mask": (more, _one_more, why), "attention": (less, _one_less, why)}
    if "mask" not in keys:
        changes["labels"] = (more, _one_label_more, f"no batch has labels of {IGNORED} beside others")
    return found + [
        Fault(name, _at(keys[word], do), otherwise=why) for word, (name, do, why) in changes.items() if word in keys
    ]
