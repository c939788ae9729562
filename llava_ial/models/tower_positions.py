"""A tower of stage 1 for photos of another size: its positions interpolated, its image processor in step.

LLaVA keeps the image size and the number of image tokens of its own configuration, so whatever opens the result needs
to know nothing of it.
"""

import copy
from typing import Any, cast

import torch
from transformers import BaseImageProcessor

_POSITIONS = "embeddings.position_embedding.weight"  # (1 + patches, D), the class token's first


def state_for_size(tower: Any, image_size: int) -> dict[str, torch.Tensor]:
    """Weights of a CLIP's tower for photos of ``image_size`` pixels; that of its own changes nothing.

    The patches' positions are interpolated over their grid, bicubic, and the class token keeps its own, as
    ``CLIPModel(..., interpolate_pos_encoding=True)`` does for every photo anew. It is computed at 64 bits, so that the
    rounded weights, and with them the tower's hash, are the same on every machine.
    """
    embeddings = copy.deepcopy(tower.embeddings).double()
    num_patches = (image_size // embeddings.patch_size) ** 2
    patches = torch.empty(1, num_patches + 1, embeddings.embed_dim)  # asked for its shape alone
    positions = embeddings.interpolate_pos_encoding(patches, image_size, image_size)[0]
    state: dict[str, torch.Tensor] = tower.state_dict()
    return state | {_POSITIONS: positions.detach().to(state[_POSITIONS].dtype)}


def processor_for_size(image_processor: BaseImageProcessor, image_size: int) -> BaseImageProcessor:
    """The same preparation for photos of ``image_size`` pixels; a margin that is cropped off grows with them."""
    changed = cast(Any, copy.deepcopy(image_processor))
    size = {name: int(side) for name, side in dict(changed.size).items() if side}
    crop = {name: int(side) for name, side in dict(changed.crop_size or {}).items() if side}
    before = min((crop if changed.do_center_crop else size).values())
    if before != image_size:
        changed.size = {name: round(side * image_size / before) for name, side in size.items()}
        if changed.do_center_crop:
            changed.crop_size = dict.fromkeys(crop, image_size)
    return cast(BaseImageProcessor, changed)
