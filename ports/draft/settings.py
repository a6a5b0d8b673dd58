"""What ``speculator draft`` is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ports.generate.answers import AnswersSettings
from ports.training.settings import Precision

NEUTRAL = frozenset(
    {"model", "data", "out", "trust_remote_code", "server", "served_model", "max_concurrency", "progress"}
    | {"copies", "tensor_parallel", "restart", "api_key", "dry_run"}
)
"""Settings that change nothing in the draft, or are taken otherwise: of a verifier's code and data, digests."""


class DraftSettings(AnswersSettings):
    """Train a draft for a chat model on its own answers, measure it, and leave a directory to serve."""

    out: Path = Field(description="directory of the run: records, checkpoints, draft/, evaluation.json, check.json")
    algorithm: Literal["eagle3", "hass"] = Field("eagle3", description="which draft")
    answers: Literal["own", "given"] = Field("own", description="own: the verifier answers; given: those in the data")
    keep_records: Literal["all", "none"] = Field(
        "all",
        description="none: no hidden states on disk; transformers computes them beside the draft, anew in every pass",
    )
    dry_run: bool = Field(False, description="say what it takes of disk and memory; nothing is loaded or written")
    held_out: int = Field(16, ge=1, description="dialogues at the end that only measure, a fifth of them at most")
    configpath: str | None = Field(None, description="draft config; default: one layer in the verifier's sizes")
    draft_vocab_size: int | None = Field(
        None, ge=1, description="tokens that an Eagle3 draft can say; default: as speculator vocabulary chooses"
    )
    passes: int | None = Field(
        None, alias="epochs", ge=1, description="over the records; default: 2 to 8, about 2,000 steps"
    )
    lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="peak learning rate; default: 1e-4 to 4e-4, by the verifier's width",
    )
    bs: int = Field(1, ge=1, description="samples of an optimizer step")
    mixed_precision: Literal["auto", Precision] = Field(
        "auto", description="of training; auto: bf16 where the device is faster in it, else no"
    )
    num_processes: int | None = Field(
        None, ge=1, description="of training, which share a batch; default: one a visible device, as far as it divides"
    )
    forward_num_total: int = Field(3, ge=1, description="TTT steps, and tokens that a server proposes")
