"""Every setting of the trainers: the prototypes' arguments by their names, and what users expect besides.

Outside, in flags, files and environment, they are called what :func:`public_name` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import to_jsonable_python

from ports.spellings import NOW
from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation
from ports.training.loss import LossImplementation
from ports.verifier.trust import HELP

Precision = Literal["no", "bf16"]
Tracker = Literal["tensorboard", "wandb"]


def public_name(field: str) -> str:
    """What a settings' field is called outside."""
    return NOW.get(field) or field


class CommandSettings(BaseModel):
    """What a command is told: flags, environment, ``--config file.yaml``, defaults, see :mod:`ports.flags`.

    Made in Python, settings are the arguments, by either name, and the defaults, whatever the environment.
    """

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), alias_generator=public_name, populate_by_name=True
    )

    trust_remote_code: bool = Field(False, description=HELP)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """As JSON, of every field that has one: what a run was told that was kept before there was such a field."""
        fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
        return {
            name: to_jsonable_python(field.get_default(call_default_factory=True)) for name, field in fields.items()
        }


class TrainingSettings(CommandSettings):
    """What both algorithms are told."""

    panels: ClassVar[dict[str, str]] = {
        "lr": "Optimisation",
        "max_len": "Data",
        "max_steps": "Length, checkpoints and resuming",
        "val_fraction": "Validation",
        "loss_normalisation": "Records, verifier and loader",
        "ttt_alignment": "Computation",
        "debug": "What is said",
        "t2d": "Vocabulary",
    }
    """Headings of the help, by the first field below each."""

    basepath: str = Field(description="verifier: Hugging Face directory (stored as an absolute path) or hub id")
    configpath: str = Field(description="draft: prototype JSON, Speculators config or checkpoint directory, or hub id")
    tmpdir: Path = Field(description="directory of the training records (*.safetensors, *.ckpt), read in natural order")
    cpdir: Path = Field(
        description="where checkpoints and metrics go: after pass n, from 0, model<n> of Eagle3 or state_<n> of HASS"
    )

    lr: float = Field(3e-5, gt=0, allow_inf_nan=False, description="peak learning rate")
    bs: int = Field(4, ge=1, description="samples per micro-batch and process")
    packing: bool = Field(
        False, description="lay the samples of a batch end to end in one row instead of padding them; same gradients"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="micro-batches per optimizer step; the gradient equals that of the big batch"
    )
    epochs: int = Field(41, ge=1, exclude=True, description="passes over the data")
    epoch: int = Field(40, ge=0, description="the prototypes' word for it: one less than the passes")
    forward_num_total: int = Field(3, ge=1, description="TTT steps: how often the draft runs on its own output")
    topk: int = Field(10, ge=1, description="HASS: how many of the verifier's largest probabilities topkloss covers")

    max_len: int = Field(8192, ge=2, description="samples are cut to this many tokens")
    noise: bool = Field(True, description="add the prototypes' uniform noise to the features")
    noise_stream: Literal["drawn", "keyed"] = Field(
        "drawn",
        description="drawn: noise from the running generators, as the prototypes draw it; keyed: from seed, pass and "
        "number of the sample alone, which no loader process changes and a resumed run need not draw again",
    )
    shuffle: bool = Field(True, description="shuffle the samples of every pass")
    group_by_length: bool = Field(
        False, description="shuffle so that the samples of a batch are of about one length: less padding, another order"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps; the schedule stays")
    save_steps: int | None = Field(None, ge=1, description="also save step_<n> after every n-th optimizer step")
    keep_last: int | None = Field(
        None,
        ge=1,
        description="keep this many checkpoints, and the best: by expected acceptance, or by mean loss if nothing is "
        "validated on; default: all of them",
    )
    ckpt_path: Path | None = Field(
        None,
        description="checkpoint directory to go on from exactly, or to start from its weights if it holds no training "
        "state; auto: the newest whole one in out, else a fresh start",
    )
    overwrite: bool = Field(False, description="start afresh in an out that holds a run, whose checkpoints and log go")
    resume_anyway: bool = Field(False, description="resume although settings, records or processes differ")
    weights_only: bool = Field(
        False,
        description="of --resume DIR the weights alone, if shapes and vocabulary map fit; --from-checkpoint DIR also "
        "refuses those of another verifier or config",
    )
    from_checkpoint: Path | None = Field(
        None,
        description="begin with the weights of this draft, which Speculators opens and which has the same verifier, "
        "vocabulary map and sizes; with --resume auto only where there is nothing to go on from",
    )
    val_fraction: float | None = Field(
        None, gt=0, lt=1, description="hold this share of the records out of training, by seed and name, to validate on"
    )
    val_dir: Path | None = Field(None, description="directory of other records to validate on")
    val_steps: int | None = Field(
        None, ge=1, description="validate after every n-th optimizer step too, and not after each pass alone"
    )
    val_prompts: Path | None = Field(
        None, description="after each pass, decode these prompts with the draft and log how much is accepted"
    )
    val_tokens: int = Field(64, ge=1, description="tokens of an answer to such a prompt, at most")
    loss_normalisation: Literal["rank", "global"] = Field(
        "rank",
        description="several processes: the mean of every process's mean loss, as the prototypes train, or the mean "
        "over all rows of all processes, which is what one process with the whole batch computes",
    )
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="a record that cannot be used: end the run, or leave it out, say so and count it"
    )
    records_check: Literal["full", "head", "off"] = Field(
        "full",
        description="before the first step: some records against the verifier, run on their ids (where it has no room, "
        "its head alone); head: its head alone; off: nothing, which is said",
    )
    online: bool = Field(
        False,
        description="run the verifier beside the draft: of the records in data only ids and masks are read, "
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
        description="fast: O(T) memory; eager: dense, for reading; auto takes the fast one where torch has a kernel",
    )
    loss_implementation: LossImplementation = Field(
        LossImplementation.FUSED, description="fused: logits of a few rows at a time; eager: all of them, for reading"
    )
    activation_checkpointing: bool = Field(
        False, description="keep no activations of the draft's layers and run them again in the backward: less memory"
    )
    mixed_precision: Precision | None = Field(None, description="bf16 or no; default: what accelerate launch says")
    debug: bool = Field(False, description="log at debug level and stop at the first operation that gives NaN")
    log_with: list[Tracker] = Field(default_factory=list, description="trackers beside out/metrics.jsonl")
    progress: bool = Field(True, description="show a progress bar")
    data_num: int = Field(68000, description="does nothing: the prototypes never use it")
    topk_w: float = Field(1.0, description="HASS; does nothing: the prototypes log it and never add topkloss")

    @model_validator(mode="after")
    def _count_passes(self) -> TrainingSettings:
        """``epoch`` and ``epochs`` say one thing."""
        if "epoch" not in self.model_fields_set:
            self.__dict__["epoch"] = self.epochs - 1  # which says nothing of who gave it
        elif "epochs" in self.model_fields_set and self.epochs != self.epoch + 1:
            raise ValueError("epochs and epoch both say how many passes: one of them")
        self.__dict__["epochs"] = self.epoch + 1
        return self

    @model_validator(mode="after")
    def _go_together(self) -> TrainingSettings:
        if self.weights_only and (self.ckpt_path is None or str(self.ckpt_path) == "auto"):
            raise ValueError("weights_only needs the directory of a checkpoint as resume")
        if self.from_checkpoint is not None and str(self.ckpt_path or "auto") != "auto":
            raise ValueError("from_checkpoint and resume both name a checkpoint to start from: one of them")
        if self.group_by_length and not self.shuffle:
            raise ValueError("group_by_length draws an order of its own: it needs shuffle")
        if self.val_fraction is not None and self.val_dir is not None:
            raise ValueError("val_fraction and val_dir both name what is validated on: one of them")
        for name in ("tmpdir", "val_dir"):
            place = getattr(self, name)
            if place is not None and self.cpdir.resolve().is_relative_to(place.resolve()):
                raise ValueError(f"out lies in {public_name(name)}, where checkpoints would be read as records")
        if self.val_steps is not None and self.val_fraction is None and self.val_dir is None:
            raise ValueError("val_steps needs something to validate on: val_fraction or val_dir")
        return self

    @property
    def last_pass(self) -> int:
        """What a pass is printed beside: their number, or the prototypes' ``--epoch``, which is one less."""
        return self.epoch if "epoch" in self.model_fields_set else self.epochs

    def as_json(self) -> dict[str, Any]:
        """All values as JSON types, for logs."""
        return self.model_dump(mode="json")

    def samples_per_step(self, processes: int = 1) -> int:
        """Samples from which the schedule reckons its length: the prototypes count those of one process."""
        return self.bs * self.gradient_accumulation_steps * self._together(processes)

    def schedule(self, num_files: int, processes: int = 1) -> tuple[int, int]:
        """(total, warm-up) steps of the schedule, of which every process takes one at an optimizer step."""
        total, warmup = linear_schedule_steps(num_files, self.epoch, self.samples_per_step(processes))
        return total * self._together(processes), warmup * self._together(processes)

    def _together(self, processes: int) -> int:
        return processes if self.loss_normalisation == "global" else 1


class Eagle3Settings(TrainingSettings):
    """Train an Eagle3 draft for a verifier; the result is a Speculators checkpoint."""

    t2d: Path = Field(
        Path("t2d.npy"), description="bool [V]: which verifier tokens the draft can say; without it, the one in data"
    )
    d2t: Path = Field(
        Path("d2t.npy"), description="int64 [D]: verifier id of each draft id, minus the draft id; as t2d"
    )

    @model_validator(mode="after")
    def _map_beside_data(self) -> Eagle3Settings:
        """A map that nobody named and that is not here is the one that ``speculator vocabulary`` wrote to the data."""
        for name in {"t2d", "d2t"} - self.model_fields_set:
            beside = self.tmpdir / f"{name}.npy"
            if not getattr(self, name).exists() and beside.exists():
                setattr(self, name, beside)
        return self


class HassSettings(TrainingSettings):
    """Train a HASS draft for a verifier; the result is a Speculators checkpoint, opened after ``import ports.hass``."""


def linear_schedule_steps(num_files: int, epoch: int, samples_per_step: int) -> tuple[int, int]:
    """(total, warm-up) steps of the prototypes' linear schedule; a hundredth of the run warms up."""
    total = int(num_files * (epoch + 1) / samples_per_step)
    return total, total // 100
