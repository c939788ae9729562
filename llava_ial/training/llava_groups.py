"""Learning rates of stage 2's parts."""

from operator import itemgetter
from typing import Any

from torch import nn

from llava_ial.models.llava import PROJECTORS, TOWER


def optimizer_groups(
    model: nn.Module,
    learning_rate: float,
    projector_learning_rate: float,
    tower_learning_rate: float,
    *,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay, LoRA first, whose rate is the one that is logged.

    Biases and norms are not decayed; no group is empty.
    """
    rates = (learning_rate, projector_learning_rate, tower_learning_rate)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = 2 if f".{TOWER}." in name else int(any(f".{mark}." in name for mark in PROJECTORS))
            is_decayed = not name.endswith("bias") and "norm" not in name
            groups.setdefault((part, is_decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": weight_decay if is_decayed else 0.0}
        for (part, is_decayed), parameters in sorted(groups.items(), key=itemgetter(0))
    ]
