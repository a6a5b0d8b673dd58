"""Every flag of the trainers: the prototypes' arguments by their names, and what users expect besides.

:func:`parse` reads a command line of any of the project's settings, and speaks plainly about mistakes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ports.errors import InputError, reason
from ports.files import read_yaml
from ports.training.alignment import Alignment
from ports.training.attention import AttentionImplementation
from ports.training.loss import LossImplementation
from ports.verifier.trust import HELP, trust_remote_code

Precision = Literal["no", "bf16"]
Tracker = Literal["tensorboard", "wandb"]
S = TypeVar("S", bound=BaseSettings)


class CommandSettings(BaseSettings):
    """Flags, then environment (by the class' ``env_prefix``), then ``--config file.yaml``, then the defaults.

    All of that by :func:`parse`; made in Python, settings are the arguments and the defaults, whatever the environment.
    """

    model_config = SettingsConfigDict(
        extra="forbid", cli_implicit_flags=True, cli_avoid_json=True, protected_namespaces=()
    )

    trust_remote_code: bool = Field(False, description=HELP)

    @classmethod
    def settings_customise_sources(  # type: ignore[override]
        cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (sources["init_settings"],)


class TrainingSettings(CommandSettings):
    """Flags, then environment (``SPECULATOR_PORT_LR=1e-4``), then ``--config file.yaml``, then the defaults below."""

    model_config = SettingsConfigDict(env_prefix="SPECULATOR_PORT_")

    basepath: str = Field(description="verifier: Hugging Face directory (stored as an absolute path) or hub id")
    configpath: str = Field(description="draft: prototype JSON, Speculators config or checkpoint directory, or hub id")
    tmpdir: Path = Field(description="directory of the training records (*.safetensors, *.ckpt), read in natural order")
    cpdir: Path = Field(description="where checkpoints and metrics go")

    lr: float = Field(3e-5, gt=0, allow_inf_nan=False, description="peak learning rate")
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
    records_check: Literal["full", "head", "off"] = Field(
        "full",
        description="before the first step: some records against the verifier, run on their ids (where it has no room, "
        "its head alone); head: its head alone; off: nothing, which is said",
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
        description="fast: O(T) memory; eager: dense, for reading; auto takes the fast one where torch has a kernel",
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
    def _go_together(self) -> TrainingSettings:
        if self.weights_only and (self.ckpt_path is None or str(self.ckpt_path) == "auto"):
            raise ValueError("weights_only needs the directory of a checkpoint as ckpt_path")
        if self.group_by_length and not self.shuffle:
            raise ValueError("group_by_length draws an order of its own: it needs shuffle")
        if self.val_fraction is not None and self.val_dir is not None:
            raise ValueError("val_fraction and val_dir both name what is validated on: one of them")
        for name in ("tmpdir", "val_dir"):
            place = getattr(self, name)
            if place is not None and self.cpdir.resolve().is_relative_to(place.resolve()):
                raise ValueError(f"cpdir lies in {name}, where checkpoints would be read as records")
        if self.val_steps is not None and self.val_fraction is None and self.val_dir is None:
            raise ValueError("val_steps needs something to validate on: val_fraction or val_dir")
        return self

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

    t2d: Path = Field(Path("t2d.npy"), description="bool [V]: which verifier tokens the draft can say")
    d2t: Path = Field(Path("d2t.npy"), description="int64 [D]: verifier id of each draft id, minus the draft id")


class HassSettings(TrainingSettings):
    """Train a HASS draft for a verifier; the result is a Speculators checkpoint, opened after ``import ports.hass``."""


def linear_schedule_steps(num_files: int, epoch: int, samples_per_step: int) -> tuple[int, int]:
    """(total, warm-up) steps of the prototypes' linear schedule; a hundredth of the run warms up."""
    total = int(num_files * (epoch + 1) / samples_per_step)
    return total, total // 100


def parse(settings_class: type[S], argv: Sequence[str]) -> S:
    """Settings from flags, environment, YAML file and defaults, in that order; ``--a-flag`` is ``--a_flag``.

    ``--trust_remote_code`` holds from then on.

    Raises:
        InputError: a wrong value or unknown key, with where it came from.
        SystemExit: argparse's, on an unknown flag or ``--help``.
    """
    file, words = _take_config_flag(argv)
    values = {} if file is None else _read_config(file, settings_class)

    class Layered(settings_class):  # type: ignore[misc,valid-type]
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **sources: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return sources["env_settings"], sources["init_settings"]  # pydantic puts the flags before them

    Layered.__name__, Layered.__doc__ = settings_class.__name__, settings_class.__doc__
    flags = [_with_underscores(settings_class, word) for word in words]
    try:
        settings = Layered(_cli_parse_args=flags, _cli_prog_name=Path(sys.argv[0]).name, **values)
    except ValidationError as error:
        raise _explain(error, file) from error
    except SettingsError as error:  # a list that begins like JSON and is none
        expected = "words, as in --log_with tensorboard"
        raise InputError("command line or environment", "settings", reason(error), expected) from error
    if getattr(settings, "trust_remote_code", False):
        trust_remote_code()
    return settings


def _take_config_flag(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file that ``--config`` names, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        known, words = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError("command line", "--config", "no file name", "a YAML file") from error
    return known.config, words


def _read_config(file: Path, settings_class: type[BaseSettings]) -> dict[str, Any]:
    content = read_yaml(file, "--config", "a mapping of settings")
    values = {key.replace("-", "_"): value for key, value in content.items()}
    for name in values.keys() - settings_class.model_fields.keys():
        raise InputError(file, name, "an unknown key", f"one of {', '.join(sorted(settings_class.model_fields))}")
    return values


def _with_underscores(settings_class: type[BaseSettings], word: str) -> str:
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    return f"--{name}{equals}{value}" if flag.startswith("--") and name in settings_class.model_fields else word


def _explain(error: ValidationError, file: Path | None) -> InputError:
    first = error.errors()[0]
    where = f"command line, environment or {file}" if file else "command line or environment"
    field = ".".join(str(part) for part in first["loc"])
    if not field:
        return InputError(where, "settings", "several that do not go together", first["msg"])
    found = "nothing" if first["type"] == "missing" else repr(first.get("input"))
    return InputError(where, field, found, first["msg"])
