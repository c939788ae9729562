"""Which weights of a CLIP are tuned: towers whole, locked (LiT, arXiv 2111.07991) or by low-rank updates."""

import copy

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from llava_ial.models.address_clip import DualEncoder

TUNED, LOCKED, LORA = "tuned", "locked", "lora"
TOWERS = {"image": "vision_model", "text": "text_model"}
_ADAPTED = r".*encoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


def tune_tower(clip: DualEncoder, tower: str, way: str, lora_rank: int) -> None:
    """Sets what of a tower is trained; projections and temperature are trained in every way.

    Args:
        clip: Changed in place.
        tower: ``image`` or ``text``.
        way: ``tuned``, ``locked`` or ``lora``, which locks the tower and adds low-rank updates to its matrices.
        lora_rank: Of the updates; they are scaled by 2.
    """
    module = getattr(clip, TOWERS[tower])
    if way != TUNED:
        module.requires_grad_(False)
    if way == LORA:
        inject_adapter_in_model(
            LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, lora_dropout=0.0, target_modules=_ADAPTED), module
        )


def merged_copy(clip: DualEncoder) -> DualEncoder:
    """The same function without adapters: a plain CLIP with plain names."""
    plain = copy.deepcopy(clip)
    for name, layer in [(n, m) for n, m in plain.named_modules() if isinstance(m, LoraLayer)]:
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, layer.get_base_layer())
    return plain


def has_adapters(module: nn.Module) -> bool:
    """True if any matrix has a low-rank update."""
    return any(isinstance(part, LoraLayer) for part in module.modules())
