"""Another model and configuration for the toy's script; building it draws other random numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch


class EConfig:
    """Reads what the model needs."""

    @staticmethod
    def from_pretrained(file):
        return SimpleNamespace(**json.loads(Path(file).read_text()))


class Model(torch.nn.Module):
    """Has the parts that the script reaches for, and the toy's parameters."""

    def __init__(self, config, load_emb, path):
        super().__init__()
        torch.rand(5)
        self.fc = torch.nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.mix = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.lm_head_layernorm = torch.nn.Identity()
        self.lm_head = torch.nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)

    def forward(self, hidden, ids, mask, history):
        return self.mix(hidden).tanh()
