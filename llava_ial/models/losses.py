"""The losses of AddressCLIP (arXiv 2407.08156, section 4), and further ones for streets and neighbourhoods.

    L = 1.0 * image_address_loss + 0.2 * image_caption_loss + 0.8 * image_geography_loss

All are computed over the whole batch of all processes, in float32 outside autocast. Each process computes the rows of
its own photos and texts against the columns of all; ``clip_step`` takes few rows at a time where a batch is large, so
that memory grows with the batch, not with its square.

Which pairs count as positive in the contrastive losses with addresses and captions is a choice (``POSITIVES``). A city
has fewer addresses than a batch has photos, so several photos of a batch share an address for certain:

    paper  photo i and text i alone; the same address at another row is a negative, as printed
    multi  every row of the same address, with equal shares
    geo    shares that decay with the distance between the photos (SW-CLIP, arXiv 2604.04357)

In the losses with streets and neighbourhoods, which most of a batch may share, every row of the same name is positive.
The loss between photos is in ``photo_loss``.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from llava_ial.models.photo_loss import WHOLE, KnownPhotos, image_photo_loss

POSITIVES = ("paper", "multi", "geo")
GEOGRAPHY_READINGS = ("stated", "printed")
TEXT_KINDS = ("address", "caption", "street", "neighbourhood")
# Beyond this many sigma a photo is no positive at all: exp(-4.5) is about 1 %.
_GEO_CUT_SIGMAS = 3.0


@dataclass(frozen=True)
class LossWeights:
    """Share of each loss; the paper's values, which has no losses with streets, neighbourhoods and other photos."""

    address: float = 1.0
    caption: float = 0.2
    geography: float = 0.8
    street: float = 0.0
    neighbourhood: float = 0.0
    photo: float = 0.0

    @property
    def text_kinds(self) -> tuple[str, ...]:
        """Kinds of text that are learnt from."""
        return tuple(kind for kind in TEXT_KINDS if getattr(self, kind))


@dataclass(frozen=True)
class Truths:
    """What is known of the photos of a batch, of all processes.

    Attributes:
        address_id: ``(B,)`` class of each row; the streets' and neighbourhoods' likewise.
        xy_m: ``(B, 2)`` metres from a local origin.
        panorama: ``(B,)`` key of each photo's panorama.
    """

    address_id: torch.Tensor
    street_id: torch.Tensor
    neighbourhood_id: torch.Tensor
    xy_m: torch.Tensor
    panorama: torch.Tensor


def address_clip_losses(
    features: dict[str, torch.Tensor],
    truths: Truths,
    *,
    weights: LossWeights,
    positives: str = "paper",
    sigma_m: float = 50.0,
    geography_reading: str = "stated",
    earlier: KnownPhotos | None = None,
    rows: slice = WHOLE,
) -> dict[str, torch.Tensor]:
    """The losses that have a weight, under the names they are logged by; ``loss`` is the sum to minimise.

    Args:
        features: ``image_features`` and, where they have a weight, ``address_features``, ``caption_features``,
            ``street_features`` and ``neighbourhood_features``, ``(B, D)`` of length one; ``logit_scale`` ``()``, the
            factor on the cosines.
        truths: Of the same rows.
        weights: Share of each loss.
        positives: One of ``POSITIVES``.
        sigma_m: Decay of ``geo``, in metres.
        geography_reading: One of ``GEOGRAPHY_READINGS``.
        earlier: Photos of earlier batches, for the loss between photos.
        rows: What this process accounts for. The values of all processes add up to those of the whole batch.
    """
    image, scale = features["image_features"], features["logit_scale"]
    kinds = {  # of text: weight, which rows are positive, and by which class
        "address": (weights.address, positives, truths.address_id),
        "caption": (weights.caption, positives, truths.address_id),
        "street": (weights.street, "multi", truths.street_id),
        "neighbourhood": (weights.neighbourhood, "multi", truths.neighbourhood_id),
    }
    losses: dict[str, torch.Tensor] = {}
    total = torch.zeros((), device=image.device)
    for kind, (weight, which, class_id) in kinds.items():
        if weight:
            targets = positive_targets(which, class_id, truths.xy_m, sigma_m, rows)
            loss = contrastive_loss(image, features[f"{kind}_features"], scale, targets, rows)
            losses[f"image_{kind}_loss"] = loss
            total = total + weight * loss
    if weights.geography:
        losses["image_geography_loss"] = image_geography_loss(image, truths.xy_m, geography_reading, rows)
        total = total + weights.geography * losses["image_geography_loss"]
    if weights.photo:
        photos = KnownPhotos(image, truths.address_id, truths.panorama)
        losses["image_photo_loss"] = image_photo_loss(photos, scale, earlier, rows)
        total = total + weights.photo * losses["image_photo_loss"]
    return {**losses, "loss": total}


def positive_targets(
    positives: str, class_id: torch.Tensor, xy_m: torch.Tensor, sigma_m: float, rows: slice = WHOLE
) -> torch.Tensor:
    """Share of each text in the targets of the photos ``rows``, ``(N, B)``; a row sums to one.

    The weights before normalisation are symmetric, therefore the targets for "text to photo" are the same ones.
    """
    if positives == "paper":
        row = torch.arange(len(class_id), device=class_id.device)
        return (row[rows, None] == row[None, :]).float()
    if positives == "multi":
        shares = (class_id[rows, None] == class_id[None, :]).float()
    elif positives == "geo":
        # Differences instead of the matrix-product form of cdist: exact where photos are metres apart.
        distance_m = (xy_m[rows, None] - xy_m[None, :]).float().norm(dim=-1)
        shares = torch.exp(-(distance_m**2) / (2 * sigma_m**2)) * (distance_m < _GEO_CUT_SIGMAS * sigma_m)
    else:
        raise ValueError(f"positives '{positives}' is unknown; allowed: {', '.join(POSITIVES)}")
    return shares / shares.sum(dim=-1, keepdim=True)


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    targets: torch.Tensor,
    rows: slice = WHOLE,
) -> torch.Tensor:
    """Symmetric InfoNCE between photos and texts: ``L_address`` with addresses, ``L_caption`` with captions.

    Mean over both directions of the cross entropy between ``targets`` and the softmax over the batch. With one-hot
    targets its chance level is ``ln B``.

    Args:
        image_features: ``(B, D)``, length one.
        text_features: ``(B, D)``, length one.
        logit_scale: ``()``, the inverse temperature.
        targets: ``(N, B)``, rows sum to one.
        rows: The ``N`` photos and texts to account for, of the mean over all ``B``.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = _full_precision(image_features), _full_precision(text_features)
        scale, targets = logit_scale.to(image.dtype), targets.to(image.dtype)
        to_text = cross_entropy(scale * image[rows] @ text.T, targets, reduction="sum")  # (N, B) logits
        to_image = cross_entropy(scale * text[rows] @ image.T, targets, reduction="sum")
        return (to_text + to_image) / (2 * len(image))


def image_geography_loss(
    image_features: torch.Tensor, xy_m: torch.Tensor, reading: str = "stated", rows: slice = WHOLE
) -> torch.Tensor:
    """``L_geography``: photos taken near each other look alike to the encoder, distant ones differ.

    Mean over all pairs of ``(D^V_ij - D^U_ij)^2``. ``D^U`` is the L1 distance of the positions, each axis scaled to
    [0, 1] over the batch, halved so that it lies in [0, 1]. As ``printed``, ``D^V`` is a cosine similarity, which
    pushes near photos apart; the ``stated`` intention is the reverse, so there ``D^V = 1 - cos``.

    An axis without extent (one place, a street that runs due east) contributes 0.

    Args:
        image_features: ``(B, D)``, length one.
        xy_m: ``(B, 2)`` metres from a local origin; a UTM northing would lose kilometres in bfloat16.
        reading: One of ``GEOGRAPHY_READINGS``.
        rows: Photos whose pairs are accounted for, of the mean over all.
    """
    if reading not in GEOGRAPHY_READINGS:
        raise ValueError(f"reading '{reading}' is unknown; allowed: {', '.join(GEOGRAPHY_READINGS)}")
    with torch.autocast(image_features.device.type, enabled=False):
        image = _full_precision(image_features)
        position = xy_m.to(image.dtype)
        low, high = position.amin(dim=0), position.amax(dim=0)
        extent = high - low
        scaled = torch.where(extent > 0, (position - low) / extent.clamp(min=torch.finfo(image.dtype).tiny), 0.0)
        ground = (scaled[rows, None] - scaled[None, :]).abs().sum(dim=-1) / 2  # (N, B)
        cosine = image[rows] @ image.T
        visual = cosine if reading == "printed" else 1 - cosine
        return ((visual - ground) ** 2).sum() / len(image) ** 2


def _full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32; float64 stays what it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
