"""What makes a verifier speak: vLLM in this process, a server, or transformers. All of them read ids and give texts.

An engine's models are loaded at its first prompt: a run that has nothing left to do loads none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig

from ports.generate.replies import MAX_CONCURRENCY, Drawn, Prompt, Reply, Tell
from ports.generate.server import ServerEngine
from ports.progress import Work
from ports.verifier.config import verifier_config
from ports.verifier.loading import load_verifier
from ports.verifier.tokenizer import end_tokens
from ports.verifier.vllm import open_vllm, set_environment, unusable

LONGEST = 8192
"""Tokens of a dialogue at most, as in records."""


def _reply(tokenizer: Any, ids: Sequence[int], end: str) -> Reply:
    """Older releases of transformers take spaces away unless they are told not to."""
    text, whole = (
        tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) for skip in (True, False)
    )
    return Reply(text, end, whole)


def longest_dialogue(model: str) -> int:
    """Tokens that fit the verifier, of which a prompt and its answer are."""
    return min(getattr(verifier_config(model), "max_position_embeddings", None) or LONGEST, LONGEST)


@dataclass
class _Heard:
    """Hears the tokens of a batch, at most ``longest`` a row, as transformers streams them; ``stop`` ends a row.

    It tells of them and of the ``before`` that are answered.
    """

    before: int
    stop: Tensor
    longest: float
    tell: Tell
    steps: int = 0
    ended: Any = False

    def put(self, tokens: Tensor) -> None:
        """The prompts [B, T], then the tokens [B] of every step."""
        if tokens.dim() == 1:
            self.steps += 1
            self.ended = self.ended | torch.isin(tokens, self.stop)
            ended = int(self.ended.sum())
            left = (len(tokens) - ended) * (1 - self.steps / self.longest)
            self.tell(self.before + ended, self.before + len(tokens) - left)

    def end(self) -> None:
        """Is told by transformers, too."""


class _Counted(tqdm):  # type: ignore[type-arg]
    """A bar of vLLM's that nobody sees: it ``tell``s of answers as they end."""

    def __init__(self, *words: Any, tell: Tell, **options: Any) -> None:
        self._tell = tell
        super().__init__(*words, **{**options, "file": io.StringIO()})

    def update(self, n: float | None = 1) -> bool | None:
        """Of answers; over what is iterated is something else."""
        found = super().update(n)
        if self.iterable is None:
            self._tell(int(self.n), self.n)
        return found


class TransformersEngine:
    """Batches of prompts of about equal length, padded on the left."""

    independent = False

    def __init__(self, model: str, tokenizer: Any, batch_size: int, devices: int = 1) -> None:
        self.model, self.tokenizer, self.max_concurrency, self.devices = model, tokenizer, batch_size, devices

    @property
    def name(self) -> str:
        """Another size of the batches gives other sums, and in the end other answers."""
        return f"transformers {transformers.__version__}, {self.max_concurrency} at a time"

    @cached_property
    def _verifier(self) -> Any:
        model = load_verifier(self.model, "auto", devices=self.devices, head=True)
        # its own says how to sample and what to punish, and would fill in whatever a call leaves open
        model.generation_config = GenerationConfig(eos_token_id=sorted(end_tokens(model)) or None)
        return model

    def answer(self, prompts: Sequence[Prompt], drawn: Drawn, tell: Tell) -> Iterator[tuple[int, Reply]]:
        """See :data:`Engine`."""
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number].ids))
        for start in range(0, len(order), self.max_concurrency):
            chosen = order[start : start + self.max_concurrency]
            yield from zip(chosen, self._batch([prompts[number] for number in chosen], drawn, start, tell))

    def _batch(self, prompts: Sequence[Prompt], drawn: Drawn, before: int, tell: Tell) -> list[Reply]:
        ids, stop = [torch.tensor(prompt.ids) for prompt in prompts], end_tokens(self._verifier)
        real = [torch.ones_like(each) for each in ids]
        left: dict[str, Any] = {"batch_first": True, "padding_side": "left"}
        words = {"max_new_tokens": drawn["max_tokens"], "pad_token_id": min(stop, default=0)}
        if drawn["temperature"]:
            words |= {"do_sample": True, "temperature": drawn["temperature"], "top_p": drawn["top_p"], "top_k": 0}
        rows = pad_sequence(ids, padding_value=words["pad_token_id"], **left).to(self._verifier.device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(prompts[0].seed)
            mask, config = pad_sequence(real, **left).to(rows.device), GenerationConfig(**words)
            heard = _Heard(before, torch.tensor(sorted(stop)), drawn["max_tokens"], tell)
            given = self._verifier.generate(rows, attention_mask=mask, generation_config=config, streamer=heard)
        tell(before + len(prompts), before + len(prompts))
        return [self._reply(answer, stop) for answer in given[:, rows.shape[1] :].tolist()]

    def _reply(self, ids: Sequence[int], stop: frozenset[int]) -> Reply:
        """The answer up to the first of ``stop``, which ends it."""
        end = next((place for place, token in enumerate(ids) if token in stop), None)
        return _reply(self.tokenizer, ids[:end], "length" if end is None else "stop")


class VllmEngine:
    """vLLM in this process."""

    independent = False

    def __init__(self, model: str, tokenizer: Any, devices: int = 1) -> None:
        self.model, self.tokenizer, self.devices = model, tokenizer, devices
        set_environment(model)

    @cached_property
    def name(self) -> str:
        """vLLM's version."""
        try:
            import vllm
        except Exception as error:  # an installation that does not fit this machine
            raise unusable(self.model, error) from error
        return f"vllm {vllm.__version__}"

    @cached_property
    def _engine(self) -> Any:
        own = str(getattr(verifier_config(self.model), "dtype", None) or "auto").removeprefix("torch.")
        options = {"max_model_len": longest_dialogue(self.model), "tensor_parallel_size": self.devices}
        if not torch.accelerator.is_available():  # 0.32 turns back the draws of a prompt that it cuts: a CPU's cannot
            options["enable_chunked_prefill"] = False
        return open_vllm(self.model, dtype=own, max_num_seqs=MAX_CONCURRENCY, **options)

    def answer(self, prompts: Sequence[Prompt], drawn: Drawn, tell: Tell) -> Iterator[tuple[int, Reply]]:
        """See :data:`Engine`."""
        with Work("vLLM starts"):
            engine = self._engine
        from vllm import SamplingParams

        params = [SamplingParams(seed=prompt.seed, detokenize=False, **drawn) for prompt in prompts]
        asked = [{"prompt_token_ids": prompt.ids} for prompt in prompts]
        given = engine.generate(asked, params, use_tqdm=partial(_Counted, tell=tell))
        for number, output in enumerate(given):
            first = output.outputs[0]
            end, ids = str(first.finish_reason), list(first.token_ids)
            yield number, _reply(self.tokenizer, ids[:-1] if end == "stop" else ids, end)  # the last one ended it


Engine = TransformersEngine | VllmEngine | ServerEngine
"""``name`` says what answers, with its version: another one's answers are others. ``answer`` gives the number of a
prompt and its answer, as they come, and loads the models at the first; of what is on its way it tells.
``independent`` answers do not depend on the prompts beside them."""
