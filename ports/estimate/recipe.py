"""Everything a recipe takes: records on disk, a generating process, a training process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from transformers import AutoConfig, AutoModel

from ports.eagle3.config import load_draft_config as eagle3_config
from ports.errors import InputError
from ports.estimate.training import TrainingMemory, training_memory
from ports.files import gigabytes
from ports.generate.prepare import geometry_of
from ports.generate.records import ITEM_BYTES
from ports.hass.config import load_draft_config as hass_config
from ports.training.verifier import verifier_config


class EstimateSettings(BaseSettings):
    """What a recipe will take; only config.json is needed of the verifier."""

    model_config = SettingsConfigDict(extra="forbid", cli_avoid_json=True, protected_namespaces=())

    algorithm: Literal["eagle3", "hass"] = Field("eagle3", description="which draft")
    model_path: str = Field(description="verifier: directory with config.json, or hub id")
    configpath: str = Field(description="draft: prototype JSON or Speculators config")
    gpus: int = Field(1, ge=1, description="training processes")
    bs: int = Field(1, ge=1, description="samples per micro-batch and process")
    max_len: int = Field(8192, ge=1, description="tokens of the longest sample")
    forward_num_total: int = Field(3, ge=1, description="TTT steps")
    supervised: float = Field(0.6, gt=0, le=1, description="share of the tokens in the loss")
    samples: int = Field(68000, ge=0, description="dialogues, less one")
    tokens: int = Field(1000, ge=1, description="of a dialogue in the mean; speculator-generate estimate counts them")
    batch_tokens: int = Field(16384, ge=1, description="tokens of one forward in generation")


@dataclass(frozen=True)
class Estimate:
    """Bytes: ``records`` on disk; a generating process's ``verifier`` and ``states``; a training process's memory."""

    records: int
    verifier: int
    states: int
    training: TrainingMemory

    def lines(self) -> list[str]:
        """For the terminal."""
        train = self.training
        parts = {
            "weights, gradients, Adam": train.trained,
            "frozen": train.frozen,
            "DDP buckets": train.buckets,
            "activations": train.activations,
            "target": train.target,
        }
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
        return [
            f"records: {gigabytes(self.records)} on disk",
            f"generation, per process: verifier {gigabytes(self.verifier)}, hidden states {gigabytes(self.states)}",
            f"training, per device: {gigabytes(train.total)} ({listed})",
            f"training --online, per device: {gigabytes(train.total + self.verifier)}",
        ]


def estimate(settings: EstimateSettings) -> Estimate:
    """Compute it all; measuring activations of an 8B verifier's draft takes half a minute.

    Raises:
        InputError: configs that cannot be read or do not fit.
    """
    verifier = verifier_config(settings.model_path)
    shape = geometry_of(settings.algorithm, settings.model_path)
    item = ITEM_BYTES[shape.dtype]
    load = eagle3_config if settings.algorithm == "eagle3" else hass_config
    config = load(settings.configpath, settings.model_path, settings.forward_num_total)
    longest = settings.bs * settings.max_len
    return Estimate(
        records=(settings.samples + 1) * shape.bytes_of(settings.tokens),
        verifier=item * _parameters(settings.model_path),
        states=item * (verifier.num_hidden_layers + 1) * settings.batch_tokens * verifier.hidden_size,
        training=training_memory(config, settings.forward_num_total, longest, settings.supervised, settings.gpus),
    )


def _parameters(name_or_path: str) -> int:
    """Of the verifier without its head."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.from_pretrained(name_or_path))
    except Exception as error:  # transformers' own
        raise InputError(name_or_path, "model_path", str(error)[:200], "a config of transformers") from error
    return sum(parameter.numel() for parameter in model.parameters())
