"""What a mask says, read once: the documents of a batch, and its rows in the loss.

Reading waits for the device on which the mask lies. A loader's masks are read on the host, and what they say goes with
them to the device: see :func:`moved`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")


class _OnceAMask(Generic[T]):
    """``read`` of a mask, once for each tensor as it is; ``known`` by tensor, with its version; must not hold it."""

    def __init__(self, read: Callable[[Tensor], T]) -> None:
        self.read, self.known = read, WeakIdKeyDictionary()
        self.__doc__ = read.__doc__

    def __call__(self, mask: Tensor) -> T:
        if self.known.get(mask, (None,))[0] != _version(mask):
            self.known[mask] = (_version(mask), self.read(mask))
        found: T = self.known[mask][1]
        return found


def _version(mask: Tensor) -> int:
    return 0 if mask.is_inference() else mask._version


class Documents(NamedTuple):
    """The documents of a mask.

    ``lengths`` are those of a packed row, in tokens; none where every row is one document. ``positions`` [1, T] int64
    count from 0 in every document. ``first`` [1, T] bool marks where they are 0, None where that is column 0 alone.
    ``right_padded``: every row is one document, and all padding comes after it. Attention that never looks ahead needs
    no mask then.
    """

    lengths: tuple[int, ...]
    positions: Tensor
    first: Tensor | None
    right_padded: bool


@_OnceAMask
def documents_of(mask: Tensor) -> Documents:
    """Read a mask [B, T] of :mod:`ports.training.attention`.

    Raises:
        ValueError: several documents in a row of a batch of several rows, or out of order.
    """
    columns, real = torch.arange(mask.shape[1], device=mask.device)[None], mask.bool()
    ones_first = (real[:, :-1] | ~real[:, 1:]).all()
    packed, right_padded = torch.stack([(mask > 1).any(), ones_first]).tolist()
    if not packed:
        return Documents((), columns, None, right_padded)
    numbers, counts = torch.unique_consecutive(mask, return_counts=True)
    if mask.shape[0] > 1 or numbers.tolist() != list(range(1, len(numbers) + 1)):
        found = f"{tuple(mask.shape)} with numbers {numbers.tolist()[:5]}"
        raise ValueError(f"document_ids: found {found}, expected one row [1, T] numbered 1, 2, 3, ..")
    lengths = tuple(counts.tolist())
    positions = torch.cat([columns[0, :length] for length in lengths])[None]
    return Documents(lengths, positions, positions == 0, right_padded=False)


class Rows(NamedTuple):
    """Places in a flat mask [B * T]: of its zeros, and of all ``others``."""

    inside: Tensor
    others: Tensor


@_OnceAMask
def rows_in_loss(mask: Tensor) -> Rows:
    """Where a loss mask [B, T] is not 0, and where it is."""
    inside = mask.flatten() != 0
    return Rows(*(each.nonzero().squeeze(1) for each in (inside, ~inside)))


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """``batch`` on ``device``, where nobody has to read its masks; pinned memory goes there while the host goes on."""
    there: dict[str, Any] = send_to_device(batch, device, non_blocking=device.type == "cuda")
    readers: dict[str, _OnceAMask[Any]] = {
        "attention_mask": documents_of,
        "document_ids": documents_of,
        "loss_mask": rows_in_loss,
    }
    for name, reader in readers.items():
        if name in batch and there[name] is not batch[name]:
            said = send_to_device(reader(batch[name]), device, non_blocking=device.type == "cuda")
            reader.known[there[name]] = (_version(there[name]), said)
    return there
