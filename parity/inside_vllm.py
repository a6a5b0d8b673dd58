"""What runs in vLLM's own environment: ``python -m parity.inside_vllm request.json TRACE`` opens a model and traces it.

What is vLLM's and not public stands in this file: how weights are loaded, the worker's model, the order of requests in
a step. Tried with vLLM 0.32.0 on the CPU, eager, one process, one rank; a version that is laid out otherwise is said.

The request is JSON: ``engine`` (arguments of ``vllm.LLM``), ``ids`` (a list of token ids for each prompt), ``answer``
(how many of them are one, which is asked for besides), ``ground`` (a fault to plant in the model, in the drafter where
there is one), ``run`` and ``case``. The trace's tensors are [prompts, longest
prompt, ...], zero where a prompt is shorter; ``init`` are the weights as they were loaded, NaN where nothing was.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from parity.calls import CALLS, WHOLE, Call, dotted, watch
from parity.faults import planted_by_name
from parity.plants import Ground
from parity.trace import Trace, write_trace

TRIED = ("0.32.0",)
"""Versions of vLLM that this was tried with."""

HEAD, OF_HEAD = "lm_head", "logits_processor"
"""vLLM never calls the first, and the second for the last token alone: all logits stand under the first's name."""

ROTATED = "mb0.tap.rotated"
"""Before names of queries and keys as a rotary embedding turns them."""

RESIDUAL = "residual"
DRAFT = "draft"
"""Before names of the drafter's."""

LIKELY, ANSWER = "logprobs", "answer.tokens"
"""The tap of the log-probabilities of a prompt's own tokens, and the greedy answers' name in a trace."""


@contextmanager
def weights_caught(built: Callable[[int, nn.Module], object]) -> Iterator[list[dict[str, Tensor]]]:
    """The parameters of every model that vLLM opens meanwhile, as its checkpoint filled them.

    ``built`` is told of each model, with its number, before they are kept. What nothing fills is NaN here; the engine
    goes on with what it held before, and without its own complaint.
    """
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    caught: list[dict[str, Tensor]] = []
    real = DefaultModelLoader.load_weights

    def load(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        held = dict(model.named_parameters())
        before = {name: value.detach().clone() for name, value in held.items() if value.is_floating_point()}
        for name in before:
            held[name].data.fill_(torch.nan)
        self.enable_weights_track = False
        real(self, model, *args, **kwargs)
        built(len(caught), model)
        held = dict(model.named_parameters(remove_duplicate=False))
        caught.append({name: value.detach().clone() for name, value in held.items()})
        for name, value in before.items():
            if name in held and held[name].shape == value.shape:
                held[name].data.copy_(torch.where(held[name].isnan(), value, held[name]))

    with mock.patch.object(DefaultModelLoader, "load_weights", load):
        yield caught


class Watcher:
    """The calls of a worker's models, step by step, handed to the requests whose tokens went through them.

    ``rows`` are by request the tensors of its tokens, step after step, each [tokens, ...], until there are as many as
    ``wanted``; requests without an entry are not kept. ``order`` has the calls in the order in which they end. Of the
    drafter, below ``draft``, the pass over what the verifier has just seen is kept; its proposals follow from that.
    """

    def __init__(self, runner: Any, wanted: Mapping[str, int]) -> None:
        self.runner, self.left = runner, {number: [count, count] for number, count in wanted.items()}
        self.rows: dict[str, dict[str, list[Tensor]]] = {number: {} for number in wanted}
        self.order: dict[str, None] = {}
        self.scheduled: Mapping[str, int] = {}
        self.rotated = 0
        self.execute, runner.execute_model = runner.execute_model, self.step
        if (drafter := getattr(runner, "drafter", None)) is not None:
            self.propose, drafter.propose = drafter.propose, self.proposed

    def step(self, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        """One step of the engine, watched."""
        model, self.scheduled, self.rotated = self.runner.model, scheduled.num_scheduled_tokens, 0
        with watch(model) as calls:
            out = self.execute(scheduled, *args, **kwargs)
        self.keep(model, calls, "")
        return out

    def proposed(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the drafter, watched."""
        model = self.runner.drafter.model
        with watch(model) as calls:
            out = self.propose(*args, **kwargs)
        states = inspect.signature(self.propose).bind(*args, **kwargs).arguments["target_hidden_states"]
        self.keep(model, [call for call in calls if call.number == 0], DRAFT, {"hidden_states": states})
        return out

    @torch.inference_mode()
    def keep(self, model: Any, calls: Sequence[Call], prefix: str, handed: Mapping[str, Tensor] | None = None) -> None:
        """Every tensor of the calls by its name in a trace; logits, rotated heads, and what a drafter is handed."""
        whole = next((call for call in calls if call.module == WHOLE), None)
        if whole is None:
            return
        hidden, tensors = next(iter(whole.out.values())), dict[str, Tensor]()
        logits = model.logits_processor(model.lm_head, hidden)
        forms = {name: Form(module) for name, module in model.named_modules()}
        seen = [(call, forms[call.module]) for call in calls if call.module not in (HEAD, OF_HEAD, WHOLE)]
        for call, form in [*seen, (Call(HEAD, 0, {"input": hidden}, {"": logits}), Form(nn.Identity()))]:
            key, common = dotted(prefix, call.key), form.common(call)
            self.order[key] = None
            for kind in ("into", "out"):
                places = getattr(common, kind).items()
                tensors |= {dotted(f"{CALLS}{key}.{kind}", at): value for at, value in places}
            if form.head_size:
                for word, value in zip(("query", "key"), common.out.values()):
                    tensors[f"{ROTATED}.{word}#{self.rotated}"] = value.unflatten(-1, (-1, form.head_size))
                self.rotated += 1
        if handed is not None:
            ids = {"input_ids": whole.into["input_ids"].long()}
            tensors |= {f"mb0.tap.handed.{name}#0": value for name, value in {**handed, **ids}.items()}
        self.share(tensors, whole.into["positions"].shape[-1], int(prefix == DRAFT))

    def share(self, tensors: Mapping[str, Tensor], count: int, of: int) -> None:
        """Of ``count`` tokens, one request after the other in the order of the worker's batch, then padding."""
        start = 0
        for request in self.runner.input_batch.req_ids:
            number, tokens = request.partition("-")[0], self.scheduled.get(request, 0)
            rows = self.rows.get(number)
            if rows is not None and self.left[number][of] > 0:
                for name, tensor in tensors.items():
                    if tensor.dim() and tensor.shape[0] == count:
                        rows.setdefault(name, []).append(tensor[start : start + tokens])
                self.left[number][of] -= tokens
            start += tokens

    def whole(self, number: str, length: int) -> dict[str, Tensor]:
        """All that a request's tokens were, [length, ...]."""
        return {name: torch.cat(parts)[:length] for name, parts in self.rows[number].items()}


class Form:
    """How one of vLLM's modules says what others say: names of arguments, and a residual beside its hidden state.

    A norm adds the residual to what it is given, a layer leaves its own to who comes next. ``head_size`` is that of a
    rotary embedding, else 0.
    """

    def __init__(self, module: nn.Module) -> None:
        own = getattr(module, "forward_native", module.forward)
        self.names = [*inspect.signature(own).parameters]
        self.residual = RESIDUAL in self.names
        self.inside = not [*module.children()]
        self.head_size = int(getattr(module, "head_size", 0)) if "Rotary" in type(module).__name__ else 0

    def common(self, call: Call) -> Call:
        """The same call with its residual in its hidden state."""
        names = {f"args.{n}": name for n, name in enumerate(self.names)}
        into, out = {names.get(name, name): value for name, value in call.into.items()}, dict(call.out)
        residual = into.pop(RESIDUAL, None)
        if self.residual and residual is not None:
            name = next(name for name, value in reversed(into.items()) if value.shape == residual.shape)
            into[name] = into[name] + residual
        if self.residual and len(out) > 1:
            first, second, *_ = out.values()
            out = {"": first if self.inside else first + second}
        return Call(call.module, call.number, into, out)


def padded(parts: Sequence[Tensor]) -> Tensor:
    """[prompts, longest, ...]."""
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def traced(request: Mapping[str, Any]) -> Trace:
    """Open the model, run the prompts, and keep what its modules were given and gave."""
    import vllm

    ids, answer, options = request["ids"], int(request["answer"]), request["engine"]
    ground = Ground(**request["ground"], filled=True)
    subject = int("speculative_config" in options)
    with (
        planted_by_name(ground).plant(ground, ground.size),
        weights_caught(lambda number, model: number == subject and ground.build(model)) as weights,
    ):
        llm = vllm.LLM(**options)
    wanted = {str(number): len(prompt) for number, prompt in enumerate(ids)}
    (watcher,) = llm.collective_rpc(lambda worker: Watcher(worker.model_runner, wanted))
    prompts, greedy = finished(llm, [*ids, *(prompt[:-answer] for prompt in ids if answer)], answer, len(ids))
    dtype = str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")
    trace = Trace(run=request["run"], case=request["case"], dtype=dtype, precision=dtype)
    trace.environment = {"vllm": vllm.__version__, "torch": torch.__version__}
    trace.configuration = {"engine": {name: repr(value) for name, value in options.items()}}
    trace.keep("init", loaded(watcher.runner, weights))
    trace.calls = tuple(watcher.order)
    rows = [watcher.whole(*one) for one in wanted.items()]
    trace.tensors |= {name: padded([one[name] for one in rows]) for name in rows[0]}
    told = [zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:]) for one in prompts]
    likely = [torch.tensor([place[token].logprob for place, token in each]) for each in told]  # nats, [tokens]
    trace.tensors[f"mb0.tap.{LIKELY}#0"] = padded(likely)
    if greedy:
        trace.tensors[ANSWER] = torch.tensor([list(one.outputs[0].token_ids) for one in greedy])
    trace.configuration["ground"] = {"place": ground.place, "called": ground.called, "buffers": ground.buffers}
    return trace


def loaded(runner: Any, caught: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights of verifier and drafter; those that the drafter shares are the verifier's."""
    found = dict(caught[0])
    if (drafter := getattr(runner, "drafter", None)) is not None:
        theirs = {id(value): name for name, value in runner.model.named_parameters()}
        every = drafter.model.named_parameters(remove_duplicate=False)  # a head that is the embedding, too
        shared = {name: theirs[id(value)] for name, value in every if id(value) in theirs}
        own = {**caught[1], **{name: caught[0][other] for name, other in shared.items()}}
        found |= {dotted(DRAFT, name): value for name, value in own.items()}
    return found


def finished(llm: Any, prompts: Sequence[Sequence[int]], answer: int, first: int) -> tuple[list[Any], list[Any]]:
    """All requests at once: of the ``first`` prompts their own log-probabilities, of the others greedy answers."""
    from vllm import SamplingParams

    engine, done = llm.llm_engine, {}
    for number, prompt in enumerate(prompts):
        more = {"max_tokens": 1, "prompt_logprobs": 0} if number < first else {"max_tokens": answer}
        params = SamplingParams(temperature=0.0, ignore_eos=True, detokenize=False, **more)
        engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)
    while engine.has_unfinished_requests():
        done.update({one.request_id.partition("-")[0]: one for one in engine.step() if one.finished})
    found = [done[str(number)] for number in range(len(prompts))]
    return found[:first], found[first:]


def main(request: str, trace: str) -> None:
    """From a file to a folder.

    Raises:
        RuntimeError: something that is not where it was in the versions of ``TRIED``.
    """
    import vllm

    try:
        write_trace(traced(json.loads(Path(request).read_text())), trace)
    except (AttributeError, ImportError, KeyError, StopIteration, TypeError) as error:
        if vllm.__version__ in TRIED:
            raise
        known = f"tried with {', '.join(TRIED)}, this is {vllm.__version__}"
        raise RuntimeError(f"vLLM's insides are not where they were: {known}; {error!r}") from error


if __name__ == "__main__":
    main(*sys.argv[1:])
