"""The three losses of AddressCLIP (arXiv 2407.08156, section 4).

    L = 1.0 * image_address_loss + 0.2 * image_caption_loss + 0.8 * image_geography_loss

All are computed over the whole batch of all processes, in float32 outside autocast.

Which pairs count as positive in the two contrastive losses is a choice (``POSITIVES``). A city has fewer addresses than
a batch has photos, so several photos of a batch share an address for certain:

    paper  photo i and text i alone; the same address at another row is a negative, as printed
    multi  every row of the same address, with equal shares
    geo    shares that decay with the distance between the photos (SW-CLIP, arXiv 2604.04357)
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

POSITIVES = ("paper", "multi", "geo")
# Beyond this many sigma a photo is no positive at all: exp(-4.5) is about 1 %.
_GEO_CUT_SIGMAS = 3.0


@dataclass(frozen=True)
class LossWeights:
    """Share of each loss; the paper's values."""

    address: float = 1.0
    caption: float = 0.2
    geography: float = 0.8


def address_clip_losses(
    features: dict[str, torch.Tensor],
    address_id: torch.Tensor,
    xy_m: torch.Tensor,
    *,
    weights: LossWeights,
    positives: str = "paper",
    sigma_m: float = 50.0,
) -> dict[str, torch.Tensor]:
    """All losses of a batch under the names they are logged by; ``loss`` is the weighted sum to minimise.

    Args:
        features: ``image_features``, ``address_features``, ``caption_features`` ``(B, D)`` of length one, and
            ``logit_scale`` ``()``, the factor on the cosines.
        address_id: ``(B,)`` class of each row.
        xy_m: ``(B, 2)`` metres from a local origin.
        weights: Share of each loss.
        positives: One of ``POSITIVES``.
        sigma_m: Decay of ``geo``, in metres.
    """
    image, scale = features["image_features"], features["logit_scale"]
    targets = positive_targets(positives, address_id, xy_m, sigma_m)
    losses = {
        "image_address_loss": contrastive_loss(image, features["address_features"], scale, targets),
        "image_caption_loss": contrastive_loss(image, features["caption_features"], scale, targets),
        "image_geography_loss": image_geography_loss(image, xy_m),
    }
    losses["loss"] = (
        weights.address * losses["image_address_loss"]
        + weights.caption * losses["image_caption_loss"]
        + weights.geography * losses["image_geography_loss"]
    )
    return losses


def positive_targets(positives: str, address_id: torch.Tensor, xy_m: torch.Tensor, sigma_m: float) -> torch.Tensor:
    """Share of each text in each photo's target, ``(B, B)``; rows sum to one, and so it serves both directions.

    The weights before normalisation are symmetric, therefore the rows for "text to photo" are the same ones.
    """
    if positives == "paper":
        return torch.eye(len(address_id), device=address_id.device)
    if positives == "multi":
        shares = (address_id[:, None] == address_id[None, :]).float()
    elif positives == "geo":
        # Differences instead of the matrix-product form of cdist: exact where photos are metres apart.
        distance_m = (xy_m[:, None] - xy_m[None, :]).float().norm(dim=-1)
        shares = torch.exp(-(distance_m**2) / (2 * sigma_m**2)) * (distance_m < _GEO_CUT_SIGMAS * sigma_m)
    else:
        raise ValueError(f"positives '{positives}' is unknown; allowed: {', '.join(POSITIVES)}")
    return shares / shares.sum(dim=-1, keepdim=True)


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE between photos and texts: ``L_address`` with addresses, ``L_caption`` with captions.

    Mean over both directions of the cross entropy between ``targets`` and the softmax over the batch. With one-hot
    targets its chance level is ``ln B``.

    Args:
        image_features: ``(B, D)``, length one.
        text_features: ``(B, D)``, length one.
        logit_scale: ``()``, the inverse temperature.
        targets: ``(B, B)``, rows sum to one.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = _full_precision(image_features), _full_precision(text_features)
        logits = logit_scale.to(image.dtype) * image @ text.T  # (B, B)
        targets = targets.to(image.dtype)
        return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def image_geography_loss(image_features: torch.Tensor, xy_m: torch.Tensor) -> torch.Tensor:
    """``L_geography``: photos taken near each other look alike to the encoder, distant ones differ.

    Mean over all pairs of ``(D^V_ij - D^U_ij)^2``. ``D^U`` is the L1 distance of the positions, each axis scaled to
    [0, 1] over the batch, halved so that it lies in [0, 1]. As printed, ``D^V`` is a cosine similarity, which would
    push near photos apart; the stated intention is the reverse, so ``D^V = 1 - cos``.

    An axis without extent (one place, a street that runs due east) contributes 0.

    Args:
        image_features: ``(B, D)``, length one.
        xy_m: ``(B, 2)`` metres from a local origin; a UTM northing would lose kilometres in bfloat16.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image = _full_precision(image_features)
        position = xy_m.to(image.dtype)
        low, high = position.amin(dim=0), position.amax(dim=0)
        extent = high - low
        scaled = torch.where(extent > 0, (position - low) / extent.clamp(min=torch.finfo(image.dtype).tiny), 0.0)
        ground = (scaled[:, None] - scaled[None, :]).abs().sum(dim=-1) / 2  # (B, B)
        visual = 1 - image @ image.T  # (B, B)
        return ((visual - ground) ** 2).mean()


def _full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
