"""A stand-in for vLLM: what :mod:`parity.inside_vllm` touches of it, around a model of one token at a time.

Its steps hold parts of several prompts, one after the other in an order of their own, and padding behind them; its
modules are fused and carry a residual beside the hidden state, as vLLM's are.
"""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

WIDTH, VOCABULARY, LAYERS = 8, 24, 2
LOADER = "vllm.model_executor.model_loader.default_loader"


class Norm(nn.Module):
    """RMS norm; with a residual, of their sum, which it gives too."""

    def __init__(self, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), eps

    def forward(self, *args):
        return self.forward_native(*args)

    def forward_native(self, x, residual=None):
        whole = x if residual is None else x + residual
        normed = whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return normed if residual is None else (normed, whole)


class Rotary(nn.Module):
    """Turns nothing."""

    head_size = WIDTH

    def forward(self, query, key):
        return query, key


class Attention(nn.Module):
    """The mean of query, key and value stands for attention."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        for name in ("qkv_proj",) if fused else ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(WIDTH, 3 * WIDTH if fused else WIDTH))
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        if fused:
            self.rotary_emb = Rotary()

    def forward(self, hidden_states):
        parts = [self.qkv_proj] if self.fused else [self.q_proj, self.k_proj, self.v_proj]
        query, key, value = torch.cat([part(hidden_states) for part in parts], -1).chunk(3, -1)
        if self.fused:
            query, key = self.rotary_emb(query, key)
        return self.o_proj(torch.stack([query, key, value]).mean(0))


class Layer(nn.Module):
    def __init__(self, eps, fused):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(eps), Attention(fused)


class PlainLayer(Layer):
    def forward(self, hidden_states):
        return hidden_states + self.self_attn(self.input_layernorm(hidden_states))


class FusedLayer(Layer):
    def forward(self, hidden_states, residual):
        if residual is None:
            return self.self_attn(self.input_layernorm(hidden_states)), hidden_states
        hidden_states, residual = self.input_layernorm(hidden_states, residual)
        return self.self_attn(hidden_states), residual


class Body(nn.Module):
    def __init__(self, eps, fused):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(VOCABULARY, WIDTH), Norm(eps)
        self.layers = nn.ModuleList((FusedLayer if fused else PlainLayer)(eps, fused) for _ in range(LAYERS))

    def forward(self, input_ids):
        states, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            if isinstance(layer, FusedLayer):
                states, residual = layer(states, residual)
            else:
                states = layer(states)
        return self.norm(states) if residual is None else self.norm(states, residual)[0]


class Plain(nn.Module):
    """As transformers has a model."""

    def __init__(self, eps=1e-5):
        super().__init__()
        self.model, self.lm_head = Body(eps, fused=False), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids, use_cache=False):
        return SimpleNamespace(logits=self.lm_head(self.model(input_ids)))


class Fused(nn.Module):
    """As vLLM has one."""

    def __init__(self, eps=1e-5):
        super().__init__()
        self.model, self.lm_head = Body(eps, fused=True), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.logits_processor = Logits()

    def forward(self, input_ids, positions):
        return self.model(input_ids)

    def compute_logits(self, hidden):
        return self.logits_processor(self.lm_head, hidden)


class DraftBody(nn.Module):
    """One layer on the next token beside the state that foresaw it."""

    def __init__(self, fused):
        super().__init__()
        self.embed_tokens, self.fc = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleList([(FusedLayer if fused else PlainLayer)(1e-5, fused)])
        self.norm = Norm(1e-5)

    def forward(self, input_ids, hidden_states):
        states = self.fc(torch.cat([self.embed_tokens(input_ids), hidden_states], -1))
        if isinstance(self.layers[0], FusedLayer):
            return self.norm(*self.layers[0](states, None))[0]
        return self.norm(self.layers[0](states))


class Drafted(nn.Module):
    """A verifier and its draft, as transformers and Speculators have them."""

    def __init__(self):
        super().__init__()
        self.verifier, self.draft = plain(), DraftBody(fused=False)
        for value in self.draft.parameters():
            nn.init.normal_(value, std=0.5)
        self.draft.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name in ("model.embed_tokens", "lm_head"):  # the verifier's
            mine = self.draft.get_submodule(name.rpartition(".")[2])
            mine.load_state_dict(self.verifier.get_submodule(name).state_dict())


class FusedDraft(nn.Module):
    """As vLLM has the draft: with the verifier's tables, which it is given once all is loaded."""

    def __init__(self):
        super().__init__()
        self.model, self.lm_head, self.logits_processor = DraftBody(fused=True), None, Logits()

    def forward(self, input_ids, positions, hidden_states):
        out = self.model(input_ids, hidden_states)
        return out, out


class Drafter:
    """What runs a draft after every step."""

    def __init__(self, model):
        self.model = model

    def propose(self, following, positions, target_hidden_states):
        given = {"input_ids": following, "positions": positions, "hidden_states": target_hidden_states}
        return self.model(**given)[0]


class Logits(nn.Module):
    def forward(self, head, hidden):
        return hidden @ head.weight.T


def plain():
    """Weights that are not all alike, norms' neither."""
    torch.manual_seed(0)
    module = Plain()
    for value in module.parameters():
        nn.init.normal_(value, std=0.5)
    return module.eval()


class Runner:
    def __init__(self, model):
        self.model, self.input_batch = model, SimpleNamespace(req_ids=[])

    def execute_model(self, scheduled):
        return self.model(input_ids=scheduled.ids, positions=scheduled.positions)


class Engine:
    """Requests in turns of at most ``budget`` tokens, the last that came first; then greedy tokens one by one."""

    def __init__(self, runner, budget, dtype):
        self.runner, self.budget, self.waiting = runner, budget, dict[str, Any]()
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))

    def add_request(self, name, prompt, params):
        ids = prompt["prompt_token_ids"]
        one = SimpleNamespace(ids=[*ids], prompt=len(ids), done=0, params=params, logits=[])
        self.waiting = {f"{name}-abc": one, **self.waiting}

    def has_unfinished_requests(self):
        return bool(self.waiting)

    @torch.inference_mode()
    def step(self):
        parts, left = dict[str, int](), self.budget
        for name, one in self.waiting.items():
            parts[name] = min(left, len(one.ids) - one.done)
            left -= parts[name]
        self.runner.input_batch.req_ids = list(parts)
        spans = {name: range(one.done, one.done + parts[name]) for name, one in self.waiting.items()}
        ids = [self.waiting[name].ids[at] for name, span in spans.items() for at in span] + [0, 0, 0]
        places = [at for span in spans.values() for at in span] + [0, 0, 0]
        scheduled = SimpleNamespace(ids=torch.tensor(ids), positions=torch.tensor(places), num_scheduled_tokens=parts)
        hidden = self.runner.execute_model(scheduled)
        logits, start = self.runner.model.compute_logits(hidden), 0
        for name, one in self.waiting.items():
            one.logits += logits[start : start + parts[name]].log_softmax(-1)
            one.done, start = one.done + parts[name], start + parts[name]
            if one.done == len(one.ids):
                one.ids.append(int(one.logits[-1].argmax()))
        if (drafter := getattr(self.runner, "drafter", None)) is not None:
            following = [self.waiting[name].ids[at + 1] for name, span in spans.items() for at in span] + [0, 0, 0]
            drafter.propose(torch.tensor(following), scheduled.positions, target_hidden_states=hidden)
        ended = {name: one for name, one in self.waiting.items() if len(one.ids) == one.prompt + one.params.max_tokens}
        self.waiting = {name: one for name, one in self.waiting.items() if name not in ended}
        return [answered(name, one) for name, one in ended.items()]


def answered(name, one):
    told = [None, *({n: SimpleNamespace(logprob=float(value)) for n, value in enumerate(row)} for row in one.logits)]
    return SimpleNamespace(
        request_id=name,
        finished=True,
        prompt_token_ids=one.ids[: one.prompt],
        prompt_logprobs=told[: one.prompt],
        outputs=[SimpleNamespace(token_ids=one.ids[one.prompt :])],
    )


@contextmanager
def vllm(weights, alter=id, eps=1e-5, draft=None, alter_drafter=id):
    """In vLLM's place, for as long as the body runs; ``weights`` are what it loads, ``alter`` is done to its model.

    With the weights of a ``draft`` one runs beside it.
    """

    class DefaultModelLoader:
        enable_weights_track: bool | None = None

        def load_weights(self, model, given):
            held = dict(model.named_parameters())
            for name, value in given.items():
                held[name].data.copy_(value)
            assert self.enable_weights_track is False or given.keys() == held.keys()

    def engine(dtype, max_num_batched_tokens=5, speculative_config=None, **_):
        model = Fused(eps).to(getattr(torch, dtype))
        DefaultModelLoader().load_weights(model, weights)
        alter(model)
        runner = Runner(model)
        if speculative_config is not None:
            runner.drafter = Drafter(FusedDraft())
            DefaultModelLoader().load_weights(runner.drafter.model, draft or {})
            runner.drafter.model.model.embed_tokens, runner.drafter.model.lm_head = (
                model.model.embed_tokens,
                model.lm_head,
            )
            alter_drafter(runner.drafter)
        worker = SimpleNamespace(model_runner=runner)
        engine = Engine(runner, max_num_batched_tokens, getattr(torch, dtype))
        return SimpleNamespace(llm_engine=engine, collective_rpc=lambda act: [act(worker)])

    names = ["vllm", *(LOADER.rsplit(".", n)[0] for n in (2, 1)), LOADER]
    modules, before = {name: ModuleType(name) for name in names}, {name: sys.modules.get(name) for name in names}
    modules["vllm"].__dict__.update(
        LLM=engine, SamplingParams=lambda **named: SimpleNamespace(**named), __version__="0"
    )
    modules[LOADER].__dict__.update(DefaultModelLoader=DefaultModelLoader)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            sys.modules.update({name: module} if module else {})
