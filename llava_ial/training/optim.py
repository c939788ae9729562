"""Optimiser groups and the learning rate of a step."""

import math

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices decay; biases, norms, scales and other vectors do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.98)
) -> torch.optim.AdamW:
    """AdamW; without weight decay it is the Adam of the AddressCLIP paper."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=betas)


def learning_rate_at(step: int, *, num_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Learning rate of step ``step`` (from 0): linear from 0 to ``peak``, then a half cosine down to ``final``.

    A function of the step alone, so that resuming needs no state. The last step has ``final``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives all groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
