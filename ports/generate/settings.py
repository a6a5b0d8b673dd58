"""The command line: the flags of the prototypes' ``ge_data.allocation`` by their names, and more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from ports.generate.chat import Encoder, LossMask, load_family
from ports.training.settings import CommandSettings


class GenerationSettings(CommandSettings):
    """Flags, then environment (``SPECULATOR_GENERATE_SAMPLES=10``), then ``--config file.yaml``, then the defaults."""

    model_config = SettingsConfigDict(env_prefix="SPECULATOR_GENERATE_")

    model_path: str = Field(description="verifier: Hugging Face directory or hub id")
    outdir: Path = Field(description="records go to outdir/<process>/data_<i>.safetensors")
    data_path: str = Field(
        "0", description="file, directory or hub id; left out, ultrachat is the hub's ultrachat_200k"
    )
    dataset: Literal["sharegpt", "ultrachat", "any"] = Field(
        "ultrachat",
        description="how rows are laid out; any: messages, conversations, turns, question and answer, prompt or text",
    )
    split: str = Field("sft", description="ultrachat on the hub: train_<split>")
    chat_template: str = Field(
        "auto", description="auto: the tokenizer's own; or a family: chatml, llama, qwen, ..., or FILE.yaml:NAME"
    )
    prototype: Literal["llama", "qwen", "mistral"] | None = Field(
        None, description="all as that family's prototype script has it: --chat_template, --loss_mask, --leading_space"
    )
    samples: int = Field(68000, ge=0, description="last row to take, so samples + 1 of them, as the prototypes take")
    total_gpus: int = Field(1, ge=1, description="devices to share out; without any, the number of processes")
    gpus_per_model: int = Field(1, ge=1, description="devices that one process spreads the verifier over")

    algorithm: Literal["eagle3", "hass", "ids"] = Field(
        "eagle3", description="eagle3: three layers and the last; hass: the last; ids: none, for training with --online"
    )
    loss_mask: LossMask = Field(LossMask.EXACT, description="exact: the answers' tokens; prototype: as the prototypes'")
    leading_space: bool = Field(False, description="sharegpt: a space before every answer, as the prototypes put")
    aux_layers: str = Field(
        "prototype", description="eagle3: prototype, speculators, or entries of hidden_states: a,b,c"
    )
    dtype: Literal["default", "auto", "float16", "bfloat16", "float32"] = Field(
        "default", description="verifier: auto for eagle3 and float16 for hass, as in the prototypes"
    )
    max_length: int = Field(8192, ge=1, description="dialogues are cut to this many tokens")
    batch_tokens: int = Field(16384, ge=1, description="tokens of one forward, padding included; more use more memory")
    device: str | None = Field(None, description="where one process runs; default: its accelerators, else the CPU")
    on_bad_conversation: Literal["fail", "skip"] = Field("fail", description="a dialogue that cannot be used")
    progress: bool = Field(True, description="show progress bars")

    @field_validator("dataset", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        """The prototypes spell ultrachat in two ways."""
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> GenerationSettings:
        if self.total_gpus % self.gpus_per_model:
            raise ValueError(f"gpus_per_model {self.gpus_per_model} does not divide total_gpus {self.total_gpus}")
        if self.prototype is not None:
            given = sorted({"chat_template", "loss_mask", "leading_space"} & self.model_fields_set)
            if given:
                raise ValueError(f"prototype says what {given[0]} is: one of the two")
            self.chat_template, self.loss_mask, self.leading_space = self.prototype, LossMask.PROTOTYPE, True
        return self

    @property
    def processes(self) -> int:
        """How many processes share the rows."""
        return self.total_gpus // self.gpus_per_model

    def encoder(self, tokenizer: Any) -> Encoder:
        """How a dialogue becomes tokens."""
        space = self.leading_space and self.dataset == "sharegpt"
        return Encoder(tokenizer, load_family(self.chat_template), self.loss_mask, space, self.max_length)
