"""Training the vision tower inside LLaVA: not at all, by LoRA, or whole.

Tuned by LoRA it is still saved as a plain tower, with LoRA added to its weights: whatever opens the folder needs to
know nothing of it. The parts of LoRA themselves stand beside a checkpoint, to go on from.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from llava_ial.models.feature_layers import num_read_layers
from llava_ial.models.llava import TOWER, LoraSettings, saved_module

TOWER_TUNING = ("none", "lora", "full")
TOWER_LORA_FILE = "tower_lora.safetensors"
_ADAPTER = "tower"  # PEFT's name for it, beside the language model's "default"
_LINEAR = r"encoder\.layers\.({layers})\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]


def add_tower_lora(model: PeftModel, lora: LoraSettings) -> None:
    """Puts LoRA on those layers of the tower that LLaVA reads."""
    layers = "|".join(str(layer) for layer in range(num_read_layers(model.get_base_model().config)))
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, use_rslora=lora.use_rslora,
        target_modules=_LINEAR.format(layers=layers),
    )  # fmt: skip
    inject_adapter_in_model(config, saved_module(model, TOWER), adapter_name=_ADAPTER)


def set_tower_training(model: PeftModel, how: str) -> None:
    """Marks what trains of the tower; PEFT marks all that stands in ``modules_to_save``, also when it resumes.

    What lies behind the features that LLaVA reads gets no gradient: it stays frozen, as processes that average
    gradients would wait for it.
    """
    for name, parameter in model.named_parameters():
        if f".{TOWER}." in name:
            parameter.requires_grad_(False)
    for name, parameter in saved_module(model, TOWER).named_parameters():
        is_read = "post_layernorm" not in name and _layer(name) < num_read_layers(model.get_base_model().config)
        parameter.requires_grad_(is_read and (how == "full" or (how == "lora" and ".lora_" in name)))


def plain_state(model: PeftModel, gather: Gather) -> dict[str, torch.Tensor]:
    """What a LLaVA-IAL folder holds: LoRA of the language model, projector, and the tower without LoRA of its own.

    Args:
        model: On every process that holds a part of it.
        gather: Makes parameters whole while it is open; ZeRO-3 spreads them.
    """
    state = {}
    for name, parameter in model.named_parameters():
        is_tower_lora = ".lora_" in name and f".{TOWER}." in name
        if (".lora_" in name or ".modules_to_save." in name) and not is_tower_lora:
            with gather([parameter]):
                state[name.replace(".base_layer.", ".")] = parameter.detach().cpu().clone()
    for name, layer in _tower_lora_layers(model):
        with gather(list(layer.parameters())):
            change = layer.get_delta_weight(_ADAPTER).detach().cpu()
        # At 32 bits: rounded to a frozen weight's 16 a small change is lost, and another tower saved than measured.
        state[f"{name}.weight"] = state[f"{name}.weight"].float() + change.float()
    return state


@contextmanager
def named_as_plain(model: PeftModel, *, writes: bool = False) -> Iterator[None]:
    """PEFT takes the names to save and to load from the tower in use; meanwhile that is one without LoRA.

    Args:
        model: Whose tower is tuned by LoRA, or else nothing is done.
        writes: Somebody will write into that tower, so it is not the base's own.
    """
    in_use = getattr(model.get_base_model().model, TOWER)
    tuned = in_use.modules_to_save["default"]
    if not any(_tower_lora_parameters(model)):
        yield
        return
    in_use.modules_to_save["default"] = copy.deepcopy(in_use.original_module) if writes else in_use.original_module
    try:
        yield
    finally:
        in_use.modules_to_save["default"] = tuned


def save_tower_lora(model: PeftModel, folder: Path) -> None:
    """Writes the parts of the tower's LoRA, if it has one, for a run that goes on from this checkpoint."""
    parts = {name: p.detach().cpu().contiguous() for name, p in _tower_lora_parameters(model)}
    if parts:
        save_file(parts, folder / TOWER_LORA_FILE)


def load_tower_lora(model: PeftModel, folder: Path) -> None:
    """Inverse of ``save_tower_lora``."""
    parts = dict(_tower_lora_parameters(model))
    if not parts:
        return
    saved = load_file(folder / TOWER_LORA_FILE)
    if saved.keys() != parts.keys():
        raise ValueError(f"{folder / TOWER_LORA_FILE} is of another tower")
    with torch.no_grad():
        for name, parameter in parts.items():
            parameter.copy_(saved[name])


def _tower_lora_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """LoRA's layers in the tower that is in use, named as in ``model.named_parameters``."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and f".{TOWER}.modules_to_save." in name:
            yield name, module


def _tower_lora_parameters(model: PeftModel) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in saved_module(model, TOWER).named_parameters():
        if ".lora_" in name:
            yield name, parameter


def _layer(name: str) -> int:
    """Layer of a weight of the tower; its embeddings stand before all of them."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1
