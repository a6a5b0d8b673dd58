"""The prototypes' optimizer and schedule."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.01


def build_optimizer(module: nn.Module, lr: float) -> AdamW:
    """AdamW over everything that trains, norms included, with one weight decay; one pass over memory a tensor."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return AdamW(trainable, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)


def build_schedule(optimizer: AdamW, total_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear warm-up to the peak, then linear decay to zero at ``total_steps``."""
    return get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)


def without_gradient(module: nn.Module) -> list[str]:
    """Trained parameters that a backward has not reached, which an optimizer passes over in silence."""
    return [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
