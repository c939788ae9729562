"""Optimiser groups and the learning rate of a step."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class RateFactors:
    """Learning rates of parts of a dual encoder, as factors on the common one.

    Attributes:
        image: Of the image tower.
        text: Of the text tower.
        layer_decay: Factor from a layer of a tower to the one below it (layer-wise decay, arXiv 1801.06146); the
            embeddings lie below the lowest.
    """

    image: float = 1.0
    text: float = 1.0
    layer_decay: float = 1.0


def rate_factor(name: str, num_layers: dict[str, int], factors: RateFactors) -> float:
    """Factor on the learning rate of a weight.

    Args:
        name: As in ``named_parameters``, for example ``clip.vision_model.encoder.layers.3.mlp.fc1.weight``.
        num_layers: Of ``vision_model`` and of ``text_model``.
        factors: What is asked for.
    """
    for tower, factor in (("vision_model", factors.image), ("text_model", factors.text)):
        if f"{tower}." in name:
            layer = re.search(r"\.layers\.(\d+)\.", name)
            if layer:
                below_top = num_layers[tower] - 1 - int(layer[1])
            else:
                below_top = num_layers[tower] if "embed" in name or "pre_layrnorm" in name else 0
            return float(factor * factors.layer_decay**below_top)
    return 1.0


def parameter_groups(
    model: nn.Module, weight_decay: float, factor_of: Callable[[str], float] = lambda _: 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters by what they share: matrices decay; biases, norms, scales and other vectors do not.

    Args:
        model: Whose weights.
        weight_decay: Of matrices.
        factor_of: From a weight's name to the factor on its learning rate, kept in the group as ``rate_factor``.
    """
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((factor_of(name), parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": found, "weight_decay": weight_decay if is_matrix else 0.0, "rate_factor": factor}
        for (factor, is_matrix), found in members.items()
    ]


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
    factor_of: Callable[[str], float] = lambda _: 1.0,
) -> torch.optim.AdamW:
    """AdamW; without weight decay it is the Adam of the AddressCLIP paper."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay, factor_of), lr=learning_rate, betas=betas)


def learning_rate_at(step: int, *, num_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Learning rate of step ``step`` (from 0): linear from 0 to ``peak``, then a half cosine down to ``final``.

    A function of the step alone, so that resuming needs no state. The last step has ``final``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives all groups the learning rate, times their own factor if they have one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)
