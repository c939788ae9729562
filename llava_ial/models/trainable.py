"""What of LLaVA trains, by part."""

from collections import Counter

from torch import nn

from llava_ial.models.llava import PROJECTORS, TOWER, TOWERS
from llava_ial.models.quantized import num_weights


def module_group(name: str) -> str:
    """Which part of the model a parameter belongs to."""
    if ".lora_" in name:
        return f"LoRA on the {'vision tower' if TOWER in name else 'language model'}"
    for marks, group in ((TOWERS, "vision tower"), (PROJECTORS, "projector")):
        if any(mark in name for mark in marks):
            return group
    return "language model"


def trainable_table(model: nn.Module) -> str:
    """Parameters by part: how many there are and how many train."""
    total: Counter[str] = Counter()
    training: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue  # PEFT keeps the base's copy of a saved module; it is not used
        count = num_weights(parameter)
        total[module_group(name)] += count
        training[module_group(name)] += count if parameter.requires_grad else 0
    rows = [f"{group:<28}{total[group]:>14,}{training[group]:>14,}" for group in sorted(total)]
    head = f"{'part':<28}{'parameters':>14}{'trained':>14}"
    return "\n".join([head, *rows, f"{'all':<28}{sum(total.values()):>14,}{sum(training.values()):>14,}"])
