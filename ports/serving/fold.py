"""``speculator serve``: write a HASS checkpoint with its embedding folded, as vLLM's plugin reads it.

``fc`` reads [E ; H], E = RMSNorm(embedding[t]), with weight [F_e | F_h]. Then

    fc([E ; H]) = E'[t] + F_h H = [I | F_h] [E'[t] ; H],    E'[t] = F_e RMSNorm(embedding[t])

exactly, so a server does not need the norm, and multiplies half as much. The norms on the hidden state and
before the head depend on more than the token: they stay. Shapes: V vocabulary, D the draft's, h hidden size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from ports import flags
from ports.commands import hushed
from ports.errors import InputError
from ports.evaluate.drafter import open_draft, read_vocabulary
from ports.files import check_output
from ports.hass import HassDraftModel
from ports.serving.plugin import served_config
from ports.training.checkpoint import write_directory
from ports.training.vocabulary import VocabularyMap


def run(
    draft: Annotated[Path, typer.Argument(help="HASS checkpoint")],
    out: Annotated[Path, typer.Argument(help="where the folded draft goes; a new or empty directory")],
    verifier: Annotated[str | None, typer.Option(help="default: the one that the checkpoint names")] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="folder that speculator vocabulary wrote: the draft proposes these tokens only"),
    ] = None,
) -> None:
    """Fold the norm on the token into an embedding table of the draft's own. Exit code 2: bad input.

    Checkpoints are served as they lie; a folded one is larger by the table and needs half the multiplications in fc.
    With a vocabulary, an addition to the prototype, it has the rows of the verifier's head for these tokens.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "OUT", "something there", "a new or empty directory")
    check_output(out, "OUT")
    model = open_draft(draft, verifier)
    if not isinstance(model, HassDraftModel):
        kind = model.config.speculators_model_type
        raise InputError(draft, "speculators_model_type", kind, "hass; vLLM serves other checkpoints as they lie")
    typer.echo(write_folded(model, out, None if vocabulary is None else read_vocabulary(vocabulary, model)))


def fold(embedding: Tensor, norm: Tensor, eps: float, fc: Tensor) -> tuple[Tensor, Tensor]:
    """The table E' [V, h] and the weight ``[I | F_h]`` [h, 2h], computed in float64 and given in the dtype of ``fc``.

    Args:
        embedding: [V, h].
        norm: [h], the RMSNorm's weight, and its ``eps``.
        fc: [h, 2h], the token's half first.
    """
    width = embedding.shape[1]
    exact = embedding.double()
    normed = norm.double() * exact / (exact.square().mean(-1, keepdim=True) + eps).sqrt()
    table = normed @ fc[:, :width].double().T
    return table.to(fc.dtype), torch.cat([torch.eye(width, dtype=fc.dtype), fc[:, width:]], dim=1)


def folded_weights(draft: HassDraftModel, vocabulary: VocabularyMap | None = None) -> dict[str, Tensor]:
    """The checkpoint's tensors without the token's norm, with ``embed_tokens`` [V, h] and the folded ``fc``.

    With a vocabulary of D tokens also its ``d2t`` [D] and their rows of ``lm_head`` [D, h].

    Raises:
        InputError: weights whose product does not fit their dtype.
    """
    weights = {name: value.detach() for name, value in draft.state_dict().items()}
    norm, eps = weights.pop("embed_layernorm.weight"), draft.config.transformer_layer_config.rms_norm_eps
    table, fc = fold(weights["embed_tokens.weight"], norm, eps, weights["fc.weight"])
    if not bool(table.isfinite().all()):
        raise InputError("draft", "embed_tokens.weight", f"NaN or Inf in {fc.dtype} once folded", "finite values")
    head = weights.pop("lm_head.weight")  # the verifier's
    if vocabulary is not None:
        weights |= {"lm_head.weight": head[vocabulary.t2d], "d2t": vocabulary.d2t}
    return {**weights, "embed_tokens.weight": table, "fc.weight": fc}


def write_folded(draft: HassDraftModel, directory: Path, vocabulary: VocabularyMap | None = None) -> Path:
    """Write ``config.json`` and ``model.safetensors`` at ``directory``, whole or not at all.

    Raises:
        InputError: it could not be written.
    """

    def fill(folder: Path) -> None:
        folder.mkdir(parents=True)
        size = None if vocabulary is None else len(vocabulary.d2t)
        config = served_config(draft.config.transformer_layer_config, folded=True, draft_vocab_size=size)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tensors = {name: value.contiguous() for name, value in folded_weights(draft, vocabulary).items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return write_directory(directory, fill)


command = flags.function_command(hushed(run))
