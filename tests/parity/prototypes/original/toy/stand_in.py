"""Another model for the toy's script; building it draws other random numbers."""

import torch
from model import llama_eagle3_full_grad as toy
from model.configs import EConfig

__all__ = ["EConfig", "Model"]


class Model(toy.Model):
    """The toy's parameters in float32, and a forward of its own."""

    def __init__(self, *given, **named):
        torch.rand(5)
        super().__init__(*given, **named)
        self.float()

    def forward(self, hidden, ids, mask, history):
        return self.mix(hidden).tanh()
