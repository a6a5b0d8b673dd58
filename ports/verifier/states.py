"""Stored hidden states held against the verifier that they should come from.

The measure. A row's distance is ``|stored - computed| / |computed|``, over the h numbers of one layer. Of the rows of a
record, in up to four stretches, the largest median counts: rounding may throw single rows far off (a router that sends
a token elsewhere), a stretch it does not. What the precision explains is measured on the same ids: the verifier runs
once more with its embeddings moved by a rounding, after which every sum rounds anew; four times that is allowed, and at
least four times what a rounding in each of a layer's two sums comes to, ``eps / 4 * sqrt(2 * layer + 1)``, with eps of
the coarser of the record's and the weights' precision, TF32's or coarser (float32 records may be made with it). The
target's distribution is the head's of the last state: the median KL divergence of the model's own from it may be 16
times what the same rounding gives (KL goes with the square), at least 1e-4 and at most 1e-2 nats.

T tokens of a record, h hidden size; layers are entries of ``hidden_states``, -1 the last, after the final norm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from ports.errors import InputError
from ports.verifier.config import model_directory, verifier_config
from ports.verifier.loading import load_verifier
from ports.verifier.logits import VerifierHead

LENGTH = 1024
"""Tokens of a record that are looked at, from its first on: later ones change nothing before them."""

ROWS = 128
"""Of a record, whose distributions are compared."""

TIMES = 4
KL_LEAST, KL_MOST = 1e-4, 1e-2
STRETCHES = 4

TF32 = 2.0**-10
"""Its eps."""

GAIN, FEW = 1.0, 64
"""Nats that the head must be better than the answers' frequencies by, and tokens below which that says nothing."""

LENGTHY = ("longrope", "dynamic")
"""Rotary embeddings whose early positions depend on how long a text is."""


@dataclass(frozen=True)
class Stored:
    """A record: ``input_ids`` and ``loss_mask`` [T], ``hidden_state`` [T, F], with ``layers`` also ``target`` [T, h].

    ``layers`` are those that lie side by side in ``hidden_state``; none where it is the last alone.
    """

    file: Path
    record: Mapping[str, Tensor]
    layers: Sequence[int] | None = None

    def states(self, length: int, size: int) -> list[tuple[str, int, Tensor]]:
        """By field and layer, of the first ``length`` tokens: [length, h] each."""
        fields = {name: self.record[name][:length] for name in ("hidden_state", "target") if name in self.record}
        parts = fields["hidden_state"].split(size, dim=-1)
        found = [("hidden_state", layer, part) for layer, part in zip(self.layers or [-1], parts, strict=True)]
        return [*found, *([("target", -1, fields["target"])] if "target" in fields else [])]

    @property
    def dtype(self) -> torch.dtype:
        """The precision that its numbers have: float32 may hold no more than halves, float16 no more than bfloat16."""
        values = self.record["hidden_state"]
        halves = (
            half for half in (torch.bfloat16, torch.float16) if torch.equal(values.to(half).to(values.dtype), values)
        )
        return next(halves, values.dtype)

    @property
    def last(self) -> Tensor:
        """[T, h], after the final norm."""
        return self.record.get("target", self.record["hidden_state"])


@dataclass(frozen=True)
class Distance:
    """How far a field's ``layer`` in ``file`` is from the verifier's, what is ``allowed``, and which layer is nearest.

    ``kl`` says that it is the target's distribution, in nats.
    """

    file: Path
    field: str
    layer: int
    found: float
    allowed: float
    nearest: int
    kl: bool = False

    @property
    def holds(self) -> bool:
        """NaN does not."""
        return self.found <= self.allowed

    def refusal(self, verifier: str) -> InputError:
        """In a line."""
        if self.kl:
            found = f"a distribution {self.found:.2g} nats from the verifier's"
        else:
            found = f"entry {self.layer} of hidden_states {self.found:.2g} from the verifier's"
            found += f" (it is entry {self.nearest})" if self.nearest != self.layer else ""
        return InputError(
            self.file, self.field, found, f"at most {self.allowed:.2g}, as rounding explains, on the ids of {verifier}"
        )


def check_states(verifier: str, stored: Sequence[Stored], device: Any = "cpu", head_alone: bool = False) -> str:
    """Refuse records whose states the verifier does not compute on their ids; says what was done, in a line.

    Where the verifier has no room on ``device``, or with ``head_alone``, its head alone is asked: on the stored last
    states, what is said next in answers must be a nat likelier than by its frequency there.

    Raises:
        InputError: names the record and the field; or the verifier cannot be loaded.
    """
    if not head_alone and fits(verifier, stored[0].dtype, device):
        try:
            apart = distances(verifier, stored, device)
        except torch.OutOfMemoryError:
            apart = []
        for each in apart:
            if not each.holds:
                raise each.refusal(verifier)
        if apart:
            share = max(each.found / each.allowed for each in apart)
            most = f"at most {share:.0%} of the difference that rounding explains"
            return f"{len(stored)} records held against the verifier: {most}"
    nats, chance, tokens = next_token(verifier, stored, device)
    if tokens < FEW:
        return f"records NOT held against the verifier: {tokens} tokens of answers in {len(stored)} are too few to tell"
    if not nats <= chance - GAIN:
        found = f"{nats:.2f} nats a token of the answers from the stored last states, {chance:.2f} by their frequency"
        raise InputError(stored[0].file.parent, "target", found, f"{GAIN} nat less: states of {verifier}")
    return f"{len(stored)} records held against the verifier's head alone: {nats:.2f} nats, {chance:.2f} by chance"


def fits(verifier: str, dtype: torch.dtype, device: Any) -> bool:
    """Is there room for the weights, as they are run, and a fifth more?"""
    files = model_directory(verifier, ["*.safetensors", "*.json"]).glob("*.safetensors")
    own = own_dtype(verifier)
    needed = 1.2 * sum(map(os.path.getsize, files)) * run_in(dtype, own).itemsize / own.itemsize
    if torch.device(device).type == "cuda":
        return needed < torch.cuda.mem_get_info(device)[0]
    return bool(needed < psutil.virtual_memory().available)


def own_dtype(verifier: str) -> torch.dtype:
    """Of the weights, as the config says."""
    own = str(getattr(verifier_config(verifier), "dtype", None) or "float32").removeprefix("torch.")
    return getattr(torch, own)  # type: ignore[no-any-return]


def run_in(stored: torch.dtype, own: torch.dtype) -> torch.dtype:
    """The coarser of the two; of two halves the record's."""
    return stored if stored.itemsize <= own.itemsize else own


@torch.no_grad()
def distances(verifier: str, stored: Sequence[Stored], device: Any = "cpu") -> list[Distance]:
    """Of every layer and target of every record; one forward of each, and one with a rounding more.

    Raises:
        InputError: the verifier cannot be loaded.
    """
    found, config = [], verifier_config(verifier)
    head = VerifierHead.load(verifier).to(device)
    for dtype in dict.fromkeys(run_in(each.dtype, own_dtype(verifier)) for each in stored):
        model = load_verifier(verifier, str(dtype).removeprefix("torch."), device)
        these = [each for each in stored if run_in(each.dtype, own_dtype(verifier)) is dtype]
        read = partial(_computed, model, length=None if depends_on_length(config) else LENGTH)
        runs = [(read(each), read(each, eps=torch.finfo(dtype).eps)) for each in these]
        noise = [max(_apart(moved[layer], own[layer]) for own, moved in runs) for layer in range(len(runs[0][0]))]
        unsure = max(_divergence(head, moved[-1], own[-1]) for own, moved in runs)
        least = max(torch.finfo(dtype).eps, TF32) / 4
        allowed = [TIMES * max(each, least * (2 * layer + 1) ** 0.5) for layer, each in enumerate(noise)]
        most = min(max(TIMES**2 * unsure, KL_LEAST), KL_MOST)
        for each, (own, _) in zip(these, runs, strict=True):
            found += _of_record(each, own, allowed)
            divergence = _divergence(head, each.last[: len(own[-1])].to(own[-1].device), own[-1])
            field = "target" if "target" in each.record else "hidden_state"
            found.append(Distance(each.file, field, len(own) - 1, divergence, most, len(own) - 1, kl=True))
    return found


def _of_record(stored: Stored, own: Sequence[Tensor], allowed: Sequence[float]) -> list[Distance]:
    found = []
    for name, entry, states in stored.states(len(own[0]), own[0].shape[-1]):
        layer = entry % len(own)
        apart = [_apart(states.to(each.device), each) for each in own]
        nearest = min(range(len(own)), key=apart.__getitem__)
        nearest = nearest if apart[nearest] <= allowed[nearest] else layer
        found.append(Distance(stored.file, name, layer, apart[layer], allowed[layer], nearest))
    return found


def depends_on_length(config: Any) -> bool:
    """Do a text's early positions turn otherwise where it is longer?"""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return any(kind in str(rope) for kind in LENGTHY)


def _computed(model: Any, stored: Stored, length: int | None, eps: float = 0.0) -> list[Tensor]:
    """All entries of ``hidden_states``, [T, h] each, of the first ``length`` ids; the embeddings moved by ``eps``."""
    generator = torch.Generator().manual_seed(0)

    def moved(_: Any, __: Any, out: Tensor) -> Tensor:
        draw = torch.rand(out.shape, generator=generator).to(out.device, out.dtype)
        return out * (1 + eps * (draw - 0.5))

    hook = model.get_input_embeddings().register_forward_hook(moved) if eps else None
    try:
        ids = stored.record["input_ids"][None, :length].to(model.device)
        return [each[0] for each in model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states]
    finally:
        if hook is not None:
            hook.remove()


def _apart(states: Tensor, own: Tensor) -> float:
    """The largest median of the rows' distances in a stretch of them."""
    states, own = states.float(), own.float()
    far = (states - own).norm(dim=-1) / own.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return max(float(part.median()) for part in far.tensor_split(min(STRETCHES, max(1, len(far) // STRETCHES))))


def _some(rows: Tensor) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(ROWS, len(rows)), device=rows.device).long()]


def _divergence(head: VerifierHead, states: Tensor, own: Tensor) -> float:
    """The median KL divergence, in nats, of the distributions of ``own`` from those of ``states``, over some rows."""
    asked, given = (head(_some(each)).log_softmax(-1) for each in (own, states))
    return max(float((asked.exp() * (asked - given)).sum(-1).median()), 0.0)


@torch.no_grad()
def next_token(verifier: str, stored: Sequence[Stored], device: Any = "cpu") -> tuple[float, float, int]:
    """Nats of the answers' tokens by the head on the stored states before them, by their frequency, and their number.

    Raises:
        InputError: the verifier's head cannot be loaded.
    """
    head = VerifierHead.load(verifier).to(device)
    said, nats = [], []
    for each in stored:
        answers = (each.record["loss_mask"][1:] != 0).nonzero().flatten()
        if len(answers):
            rows = _some(answers)
            tokens = each.record["input_ids"][rows + 1]
            logs = head(each.last[rows].to(device)).log_softmax(-1).cpu()
            said.append(tokens)
            nats.append(-logs.gather(-1, tokens[:, None])[:, 0])
    if not said:
        return 0.0, 0.0, 0
    counts = torch.cat(said).bincount().double()
    shares = counts[counts > 0] / counts.sum()
    return float(torch.cat(nats).double().mean()), float(-(shares * shares.log()).sum()), int(counts.sum())
