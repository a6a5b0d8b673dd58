"""vLLM as a side of a pair: what its own implementation of a model gives for the prompts of a case.

The engine runs in a process of its own, in whatever environment has it (:mod:`parity.inside_vllm`). Its trace has the
checkpoint as it was loaded, the inputs and outputs of its modules by name, [prompts, tokens, ...] in the order of the
sequence whatever the batch and the chunks were, logits, log-probabilities and greedy answers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity.calls import CALLS, WHOLE, dotted
from parity.compare import View
from parity.errors import InputError
from parity.inside_vllm import ANSWER, HEAD, LIKELY, ROTATED
from parity.names import Fused, NameMap
from parity.observe import tap
from parity.outside import run_command
from parity.plants import Ground
from parity.side import Run
from parity.trace import read_trace
from parity.trace_pair import Check, TracePair
from parity.verdict import Row

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""vLLM's names of what it computes at once, with their parts elsewhere."""

OTHERWISE = {"self_attn": ("rotary_emb", "attn"), "mlp": ("act_fn",), "model": ("rotary_emb",)}
"""By what they are inside of, modules that a side has otherwise or not at all; what they give is another's input."""

ENGINE = {"enforce_eager": True, "enable_prefix_caching": False, "seed": 0, "logprobs_mode": "raw_logprobs"}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Of its process, but for what the environment says already; the first is always so, else there is nothing to watch."""

LOGITS = f"{CALLS}{HEAD}#0.out"
VIEWS = (View(f"{ROTATED}.*", original=lambda tensor, trace: tensor.transpose(1, 2)),)
"""Rotated queries and keys, which transformers has by head first."""


@dataclass(frozen=True)
class EngineSide:
    """vLLM's own implementation of a model on the first batch of a case: ``input_ids`` [prompts, tokens], all as long.

    Args:
        model: a folder that vLLM opens.
        dtype: what it computes in; it has no default, since vLLM's runs float32 weights in half precision.
        drafter: a draft that runs beside it; its modules stand below ``draft``.
        method: what vLLM calls the way that it is run.
        engine: further arguments of ``vllm.LLM``, ``hf_overrides`` for example.
        answer: the last so many ids of a prompt are an answer to those before, which vLLM is asked for besides.
        chunk: tokens of a step at most; default: what vLLM takes.
        python: the command of an interpreter that has vLLM and parity; default: this one.
        timeout: seconds.
        name: in reports.
        ground: of a planted fault.
    """

    model: str | Path
    dtype: str
    drafter: str | Path | None = None
    method: str = "eagle3"
    engine: Mapping[str, Any] = field(default_factory=dict)
    answer: int = 0
    chunk: int | None = None
    python: Sequence[str] = ()
    timeout: float = 900
    name: str = "vllm"
    ground: Ground | None = None

    forward_only = True
    checks = ("weights", "forward", "modules", "logprobs", "tokens")

    @contextmanager
    def trace(self, case: Any) -> Iterator[Run]:
        """Starts the engine.

        Raises:
            InputError: no vLLM here and no other interpreter given, or a batch without prompts.
            SideError: the engine stopped; with the last lines that it said.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "request.json").write_text(json.dumps(self.request(case)))
            words = [
                *self._interpreter(),
                "-m",
                "parity.inside_vllm",
                str(folder / "request.json"),
                str(folder / "out"),
            ]
            said = {**ENVIRONMENT, **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            run_command(words, "vLLM", self.timeout, env=said)
            found = read_trace(folder / "out")
            for name, value in found.configuration.get("ground", {}).items() if self.ground else ():
                setattr(self.ground, name, value)
            yield Run(found)

    def planted(self, ground: Ground) -> EngineSide:
        """With a fault, in what it is asked or, by the fault's name, in its process."""
        return replace(self, ground=ground)

    def request(self, case: Any) -> dict[str, Any]:
        """What the program is asked, see :mod:`parity.inside_vllm`."""
        ground = self.ground or Ground()
        ids = prompts_of(replace(case, batches=[*map(ground.feed, case.batches[:1])]))
        room: dict[str, Any] = {"max_model_len": ids.shape[1] + 1}
        if self.drafter is not None:
            speculative = {"method": self.method, "model": str(self.drafter), "num_speculative_tokens": 1}
            room = {"max_model_len": ids.shape[1] + 2, "speculative_config": speculative}
        pace = {"max_num_batched_tokens": self.chunk, "max_num_seqs": self.chunk} if self.chunk else {}
        engine = {**ENGINE, **room, **pace, **self.engine, "model": str(self.model), "dtype": self.dtype}
        run = {"run": self.name, "case": case.name or "prompts"}
        fault = {name: getattr(ground, name) for name in ("fault", "size", "called", "buffers", "place")}
        return {"engine": engine, "ids": ids.tolist(), "answer": self.answer, "ground": fault, **run}

    def _interpreter(self) -> Sequence[str]:
        if not self.python and find_spec("vllm") is None:
            expected = "vLLM here, or EngineSide(python=...), the command of an interpreter that has it and parity"
            raise InputError("environment", "vllm", "not installed", expected)
        return self.python or (sys.executable,)


def prompts_of(case: Any) -> Tensor:
    """int64 [prompts, tokens] of a case's first batch; InputError: none, or a mask that leaves some out."""
    batch = case.batches[0] if case.batches else None
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        raise InputError("engine", "batches", type(batch).__name__, "a mapping with input_ids [prompts, tokens]")
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is not None and not bool(mask.all()):
        raise InputError("engine", "attention_mask", "entries of 0", "prompts of one length, without padding")
    return ids


def likelihood(module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss of an original beside an engine: minus the mean log-probability of every prompt's tokens but the first.

    The log-probabilities, float32 [prompts, tokens - 1] in nats, are tapped.
    """
    logits, ids = module(**batch, use_cache=False).logits, batch["input_ids"]
    found = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return -tap(LIKELY, found).mean()


def engine_names(
    original: nn.Module, prefixes: Mapping[str, str | None] | None = None, further: Iterable[Fused] = ()
) -> NameMap:
    """A map of a model of transformers to vLLM's: what is fused, and what each has otherwise.

    ``prefixes`` are names that differ besides, ``further`` weights that vLLM has in another layout. Rotated heads are
    compared where the original taps them.
    """
    parts, plain = {name: part for name, part in original.named_modules() if name}, NameMap(prefixes)
    inside = [(name, word) for name in parts for word in OTHERWISE.get(name.rpartition(".")[2], ())]
    none: dict[str, str | None] = {whole: None for one in inside if (whole := dotted(*one)) in parts}
    ports = {name: port for name in parts if (port := plain.to_port(name)) is not None}
    own = [dotted(ports[name], word) for name, word in inside if name in ports]
    fused = [*further]
    for name, port in ports.items():
        for made, words in FUSED.items():
            pieces = tuple(f"{name}.{word}" for word in words)
            if all(piece in parts for piece in pieces):
                none |= dict.fromkeys(pieces)
                held = [kind for kind, _ in parts[pieces[0]].named_parameters(recurse=False)]
                fused.append(Fused(f"{port}.{made}", pieces, -1))
                fused += [Fused(f"{port}.{made}.{kind}", tuple(f"{one}.{kind}" for one in pieces)) for kind in held]
    return NameMap({**none, WHOLE: None, **(prefixes or {})}, fused, [*own, ROTATED])


def logprob_rows(evidence: TracePair) -> list[Row]:
    """Log-probabilities of the prompts' tokens: the mean difference in nats under its bound, and the largest."""
    name = f"mb0.tap.{LIKELY}#0"
    expected, found = (trace.tensors[name].double() for trace in evidence.traces)
    bound, apart = evidence.allowed("out", name), (found - expected).abs()
    allowed = bound.bound * float(expected.square().mean().sqrt())
    mean, place = float(apart.mean()), divmod(int(apart.nan_to_num(nan=torch.inf).argmax()), apart.shape[1])
    detail = f"mean; the largest, {float(apart.max()):.2e} nats, at token {place[1] + 1} of prompt {place[0]}"
    return [
        evidence.subject("logprobs").row("nats", LIKELY, mean, allowed, mean <= allowed, f"{detail}; {bound.reason}")
    ]


def token_rows(evidence: TracePair) -> list[Row]:
    """Greedy answers beside the original's choice, up to the first that differs: a row for every prompt.

    One that differs passes where the original's logits of the two are as near as rounding may bring them.
    """
    answers, logits = evidence.found.tensors[ANSWER], evidence.expected.tensors[LOGITS].double()
    ids, subject, rows = prompts_of(evidence.case), evidence.subject("tokens"), []
    near = 2 * evidence.allowed("out", LOGITS).bound * float(logits.square().mean().sqrt())
    for number, answer in enumerate(answers):
        before = logits[number, -answer.numel() - 1 : -1]
        given, choice = ids[number, -answer.numel() :], before.argmax(-1)
        behind, detail = 0.0, f"{len(answer)} tokens"
        at = next((n for n in range(len(answer)) if answer[n] != choice[n] or answer[n] != given[n]), None)
        if at is not None:
            first, second = before[at].topk(2).values.tolist()
            behind = float(before[at, choice[at]] - before[at, answer[at]])
            detail = f"token {at} of the answer: {int(answer[at])}, expected {int(choice[at])}; "
            detail += f"its top two are {first - second:.2e} apart"
        rows.append(subject.row("behind", f"answer {number}", behind, near, behind <= near, detail))
    return rows


CHECKS = (
    Check("logprobs", logprob_rows, ("weights", "forward")),
    Check(
        "tokens",
        token_rows,
        ("weights", "forward", "logprobs"),
        lambda e: None if ANSWER in e.found.tensors else "no answers were asked for: EngineSide(answer=...)",
    ),
)
"""Of a pair with an engine, ``Pair(checks=...)``."""
