"""Which weights these are: one hash that a tower keeps from stage 1 to the chat.

A swapped or lost vision tower is the classic silent failure of LLaVA-like projects, so every manifest carries this hash
and every command verifies it.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors, independent of their order, device and of float32 against bfloat16 storage.

    Floating tensors are rounded to bfloat16 first: the same tower in a bf16 LLaVA and in a float32 CLIP is one tower.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tower_hash(vision_tower: nn.Module) -> str:
    """Hash of a vision tower: ``CLIPModel.vision_model`` and ``LlavaModel.vision_tower`` have the same names inside.

    Raises:
        ValueError: A tensor is empty, as under ZeRO-3 without gathering: its hash would name nothing.
    """
    state = vision_tower.state_dict()
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if not state or empty:
        raise ValueError(f"vision tower has empty tensors {empty[:3]}: gather the ZeRO-3 partitions before hashing")
    return hash_tensors(state)
