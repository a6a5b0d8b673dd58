"""A stand-in for EAGLE's model, made of the project's own formulas, with EAGLE's names, index and call."""

import torch
from modeling_llama_kv import LlamaForCausalLM
from torch import nn

from parity.prototypes.explain.eagle import EagleLayer
from parity.prototypes.reference.layer import no_tap, rms_norm

LAYER = "layers.0."


class Rotary(nn.Module):
    base = 10000


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Middle(nn.Module):
    """Holds the layer's parameters; its forward is only there to be heard."""

    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        kv = width // config.num_attention_heads * config.num_key_value_heads
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.rotary_emb = Rotary()
        for name, size in {"q": width, "k": kv, "v": kv}.items():
            setattr(self.self_attn, f"{name}_proj", nn.Linear(2 * width, size, bias=False))
        self.self_attn.o_proj = nn.Linear(width, width, bias=False)
        self.mlp.gate_proj, self.mlp.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.mlp.down_proj = nn.Linear(inner, width, bias=False)
        self.hidden_norm, self.input_layernorm, self.post_attention_layernorm = (Norm(width) for _ in range(3))

    def forward(self, hidden):
        return (hidden, None), None


def left(value, count):
    return torch.cat([value[:, count:], torch.zeros_like(value[:, :count])], dim=1)


class Model(nn.Module):
    length = 7

    def __init__(self, config, ds_config, training_config, path, load_emb, load_head):
        super().__init__()
        self.gradient_checkpointing = training_config.gradient_checkpointing
        self.config = {**vars(config), "rope_theta": Rotary.base}
        self.midlayer, self.norm = Middle(config), Norm(config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size).requires_grad_(False)
        self.fc = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.target_model = LlamaForCausalLM.from_pretrained(path, torch_dtype=torch.float16).requires_grad_(False)

    def scandata(self, *_):
        self.t2d = torch.load("cache.pt", weights_only=True)["t2d"]

    def weights(self):
        own = {name.removeprefix("midlayer."): value for name, value in self.midlayer.named_parameters()}
        return {f"{LAYER}{name}": value for name, value in own.items()}

    def forward(self, input_ids, attention_mask, loss_mask):
        seen = self.target_model(input_ids=input_ids, attention_mask=attention_mask)
        logits, kept = left(seen.logits, 1), left(seen.logits, 1)[..., self.t2d].softmax(-1)
        embeds = self.embed_tokens(left(input_ids, 1))
        layer = EagleLayer(self.weights(), self.config, embeds, attention_mask, False, no_tap, False)
        layer.raw_residual = True
        hidden, losses = self.fc(torch.cat(list(seen.hidden_states), dim=-1)), []
        rows = (loss_mask * self.t2d[logits.argmax(-1)])[..., None]
        for step in range(self.length):
            (out, _), _ = self.midlayer(left(layer(hidden), step))
            if self.gradient_checkpointing:
                out = out.detach()
            found = self.lm_head(rms_norm(out, self.norm.weight, self.config["rms_norm_eps"])).log_softmax(-1)
            losses.append(-(left(rows, step) * left(kept, step) * found).sum(-1).mean())
            moved = torch.cat([torch.zeros_like(out[:, :step]), out], dim=1)[:, : out.shape[1]]
            hidden = torch.cat([hidden[:, :1], moved[:, :-1]], dim=1)
        return losses, [], []
