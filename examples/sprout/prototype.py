"""Sprout as its authors left it: a script, with names, norms and a rope of its own."""

import torch
from torch import nn
from torch.nn import functional as F


class Rms(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.g = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return self.g * x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


class Mixer(nn.Module):
    def __init__(self, n, heads):
        super().__init__()
        self.heads, self.dim = heads, n // heads
        self.qkv = nn.Linear(n, 3 * n, bias=False)
        self.proj = nn.Linear(n, n, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, self.dim)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))

    def turn(self, x):
        rate = 50000.0 ** -(torch.arange(0, self.dim, 2) / self.dim)
        angle = torch.arange(x.shape[2])[:, None] * rate
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Sprout(nn.Module):
    def __init__(self, words, head, heads=4):
        super().__init__()
        n = words.shape[1]
        self.words = nn.Embedding.from_pretrained(words)
        self.join = nn.Linear(2 * n, n)
        self.pre, self.mixer = Rms(n), Mixer(n, heads)
        self.bud = nn.Linear(n, n, bias=False)
        self.post = Rms(n)
        self.head = nn.Parameter(head, requires_grad=False)

    def forward(self, hidden, ids, steps):
        known, logits = self.words(ids), []
        for _ in range(steps):
            x = self.join(torch.cat([hidden, known], -1))
            x = x + self.mixer(self.pre(x))
            x = x + F.silu(self.bud(x))
            logits.append(self.post(x) @ self.head.T)
            hidden = torch.cat([hidden[:, :1], x[:, :-1]], 1)
        return logits


def cost(model, batch, steps=3):
    target, mask = (batch["target"] @ model.head.T).softmax(-1), batch["loss_mask"]
    logits = model(batch["features"], batch["input_ids"], steps)
    parts = [F.kl_div(z.log_softmax(-1), target, reduction="none").sum(-1) for z in logits]
    return sum(0.8**s * (part * mask).sum() / (mask.sum() + 1e-5) for s, part in enumerate(parts))


def tune(model, batches, lr=1e-3):
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, (0.9, 0.95), weight_decay=0.01)
    for n, batch in enumerate(batches):
        opt.param_groups[0]["lr"] = lr * (1 - n / len(batches))
        opt.zero_grad()
        cost(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        opt.step()
