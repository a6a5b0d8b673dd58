"""The command line that every port shares: the prototypes' arguments by their names, and what users expect besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation
from ports.training.loss import LossImplementation

Precision = Literal["no", "bf16"]
Tracker = Literal["tensorboard", "wandb"]


class TrainingSettings(BaseSettings):
    """Flags, then environment (``SPECULATOR_PORT_LR=1e-4``), then ``--config file.yaml``, then the defaults below."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix="SPECULATOR_PORT_",
        cli_implicit_flags=True,
        cli_avoid_json=True,
        protected_namespaces=(),
    )

    basepath: str = Field(description="verifier: Hugging Face directory (stored as an absolute path) or hub id")
    configpath: str = Field(description="draft: prototype JSON, Speculators config or checkpoint directory, or hub id")
    tmpdir: Path = Field(description="directory of the training records (*.safetensors, *.ckpt), read in natural order")
    cpdir: Path = Field(description="where checkpoints and metrics go")

    lr: float = Field(3e-5, gt=0, description="peak learning rate")
    bs: int = Field(4, ge=1, description="samples per micro-batch and process")
    packing: bool = Field(
        False, description="lay the samples of a batch end to end in one row instead of padding them; same gradients"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="micro-batches per optimizer step; the gradient equals that of the big batch"
    )
    epoch: int = Field(40, ge=0, description="training makes epoch + 1 passes over the data, as the prototypes do")
    forward_num_total: int = Field(3, ge=1, description="TTT steps: how often the draft runs on its own output")
    topk: int = Field(10, ge=1, description="HASS: how many of the verifier's largest probabilities topkloss covers")
    topk_w: float = Field(1.0, description="HASS: weight of topkloss; the prototypes log it and never add it")
    ckpt_path: Path | None = Field(
        None,
        description="checkpoint directory to go on from exactly, or to start from its weights if it holds no training "
        "state; auto: the newest whole one in cpdir, else a fresh start",
    )
    data_num: int = Field(68000, description="accepted for the prototypes' command lines; they never use it")
    debug: bool = Field(False, description="log at debug level and stop at the first operation that gives NaN")

    max_len: int = Field(8192, ge=2, description="samples are cut to this many tokens")
    noise: bool = Field(True, description="add the prototypes' uniform noise to the features")
    shuffle: bool = Field(True, description="shuffle the samples of every pass")
    group_by_length: bool = Field(
        False, description="shuffle so that the samples of a batch are of about one length: less padding, another order"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps; the schedule stays")
    save_steps: int | None = Field(None, ge=1, description="also save step_<n> after every n-th optimizer step")
    keep_last: int | None = Field(
        None, ge=1, description="keep this many checkpoints, and the best pass by its mean loss; default: all of them"
    )
    overwrite: bool = Field(False, description="start afresh in a cpdir that holds a run, whose checkpoints and log go")
    resume_anyway: bool = Field(False, description="resume although settings, records or processes differ")
    weights_only: bool = Field(False, description="take nothing but the weights of --ckpt_path")
    loss_normalisation: Literal["rank", "global"] = Field(
        "rank",
        description="several processes: the mean of every process's mean loss, as the prototypes train, or the mean "
        "over all rows of all processes, which is what one process with the whole batch computes",
    )
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="a record that cannot be used: end the run, or leave it out, say so and count it"
    )
    online: bool = Field(
        False,
        description="run the verifier beside the draft: of the records in tmpdir only ids and masks are read, "
        "by this process",
    )
    verifier_dtype: Literal["default", "auto", "float16", "bfloat16", "float32"] = Field(
        "default",
        description="online: the verifier's precision; auto for Eagle3 and float16 for HASS, as in generation",
    )
    num_workers: int = Field(8, ge=0, description="loader processes; they draw the noise, so runs depend on them")
    prefetch_factor: int = Field(2, ge=1, description="batches that every loader process reads ahead")
    report_data_wait: bool = Field(
        False,
        description="after every pass, print and log how long it waited for data and how much of it was padding; "
        "metrics.jsonl then holds times, which no two runs share",
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of python, numpy and torch, set once before anything is drawn"
    )
    ttt_alignment: Alignment = Field(
        Alignment.PROTOTYPE,
        description="prototype: keys of earlier steps at the query's position; chain: as Speculators and vLLM serve it",
    )
    attn_implementation: AttentionImplementation = Field(
        AttentionImplementation.AUTO,
        description="fast: O(T) memory; eager: dense, for reading; auto takes the fast one",
    )
    loss_implementation: LossImplementation = Field(
        LossImplementation.FUSED, description="fused: logits of a few rows at a time; eager: all of them, for reading"
    )
    activation_checkpointing: bool = Field(
        False, description="keep no activations of the draft's layers and run them again in the backward: less memory"
    )
    mixed_precision: Precision | None = Field(None, description="bf16 or no; default: what accelerate launch says")
    log_with: list[Tracker] = Field(default_factory=list, description="trackers beside cpdir/metrics.jsonl")
    progress: bool = Field(True, description="show a progress bar")

    @model_validator(mode="after")
    def _has_weights(self) -> TrainingSettings:
        if self.weights_only and (self.ckpt_path is None or str(self.ckpt_path) == "auto"):
            raise ValueError("weights_only needs the directory of a checkpoint as ckpt_path")
        return self

    @model_validator(mode="after")
    def _groups_what_is_shuffled(self) -> TrainingSettings:
        if self.group_by_length and not self.shuffle:
            raise ValueError("group_by_length draws an order of its own: it needs shuffle")
        return self

    @field_validator("cpdir")
    @classmethod
    def _outside_the_records(cls, value: Path, info: ValidationInfo) -> Path:
        tmpdir = info.data.get("tmpdir")
        if tmpdir is not None and value.resolve().is_relative_to(tmpdir.resolve()):
            raise ValueError("a directory outside --tmpdir, where checkpoints would be read as records")
        return value

    @field_validator("lr")
    @classmethod
    def _finite(cls, value: float) -> float:
        if value != value or value == float("inf"):
            raise ValueError(f"found {value}, expected a finite number")
        return value

    def as_json(self) -> dict[str, Any]:
        """All values as JSON types, for logs."""
        return self.model_dump(mode="json")

    def samples_per_step(self, processes: int = 1) -> int:
        """Samples from which the schedule reckons its length: the prototypes count those of one process."""
        together = processes if self.loss_normalisation == "global" else 1
        return self.bs * self.gradient_accumulation_steps * together

    def schedule(self, num_files: int, processes: int = 1) -> tuple[int, int]:
        """(total, warm-up) steps of the schedule, of which every process takes one at an optimizer step."""
        together = processes if self.loss_normalisation == "global" else 1
        total, warmup = linear_schedule_steps(num_files, self.epoch, self.samples_per_step(processes))
        return total * together, warmup * together


def linear_schedule_steps(num_files: int, epoch: int, samples_per_step: int) -> tuple[int, int]:
    """(total, warm-up) steps of the prototypes' linear schedule; a hundredth of the run warms up."""
    total = int(num_files * (epoch + 1) / samples_per_step)
    return total, total // 100
