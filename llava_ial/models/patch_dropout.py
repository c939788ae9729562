"""Patch dropout (FLIP, arXiv 2212.00794; open_clip has it too): training sees some patches of each photo."""

import torch
from torch import nn

from llava_ial.errors import UserError


class PatchDropout:
    """Hands a random part of each photo's patches on to the transformer while it trains; positions are added before.

    Args:
        share: Of the patches, left out; the class token, where there is one, always stays.
        has_class_token: Whether the first token is no patch.
    """

    def __init__(self, share: float, *, has_class_token: bool) -> None:
        self.share = share
        self.num_kept_first = int(has_class_token)

    def __call__(self, module: nn.Module, inputs: object, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, T, D)`` to ``(B, T', D)``, in the order they had; unchanged where the module does not train."""
        if not module.training:
            return tokens
        patches = tokens[:, self.num_kept_first :]
        count = max(1, round(patches.shape[1] * (1 - self.share)))
        drawn = torch.rand(patches.shape[:2], device=tokens.device)
        kept = drawn.topk(count, dim=1).indices.sort(dim=1).values
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        return torch.cat([tokens[:, : self.num_kept_first], patches], dim=1)


def drop_patches(vision_model: nn.Module, share: float) -> None:
    """Makes a CLIP's or SigLIP's image tower train on ``1 - share`` of the patches; weights stay as named.

    Raises:
        UserError: The tower has no embeddings that a part could be taken of.
    """
    embeddings = getattr(vision_model, "embeddings", None)
    if embeddings is None:
        raise UserError(
            f"--patch_dropout {share}: {type(vision_model).__name__} has no patch embeddings; leave it at 0"
        )
    has_class_token = hasattr(embeddings, "class_embedding")
    embeddings.register_forward_hook(PatchDropout(share, has_class_token=has_class_token))
